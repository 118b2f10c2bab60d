"""The verbs of gptailor as functions: `load`, `check`, `compile`, `format`."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gptailor
from gptailor.checkpoint.error import CheckpointError
from gptailor.checkpoint.gguf import is_gguf
from gptailor.checkpoint.header import ByteRange, TensorSpec
from gptailor.checkpoint.hub import fetch
from gptailor.checkpoint.opened import Opened
from gptailor.checkpoint.shards import Shard, plan_shards
from gptailor.checkpoint.source import generation_config, tokenizer_files
from gptailor.checkpoint.transfer import Payload
from gptailor.checkpoint.writer import check_target, free_space, write_checkpoint
from gptailor.checks.alone import check_alone
from gptailor.checks.merging import open_choices
from gptailor.checks.models import check_models
from gptailor.checks.opening import folder_of, is_local, open_models, rebind
from gptailor.diagnostics import Fault, PlanError, Source, errors, locate
from gptailor.lang.format import format_file, format_plan, format_text
from gptailor.lang.parse import parse
from gptailor.lang.reading import load, loads
from gptailor.outline import kept, sources
from gptailor.plan import Model, Plan
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import Copy, Output, files
from gptailor.registry import DTYPES
from gptailor.report.card import card

__all__ = ["Prepared", "Written", "check", "compile", "format", "load", "loads", "prepare"]

SHARD_SIZE = 5 * 10**9
"""Bytes of a shard, as transformers has it."""

Paths = Mapping[str, str | Path]


@dataclass(frozen=True)
class Written:
    """What `compile` wrote: the folder, and its counts."""

    folder: Path
    layers: int
    parameters: int
    size: int
    shards: tuple[str, ...]


def check(plan: Plan, models: Paths | None = None) -> list[Fault]:
    """All faults of a plan: by itself, and, if it has none, against its models.

    `models` gives other folders for the plan's names. Weights are not read.
    """
    return _checked(plan, models)[2]


def _checked(plan: Plan, models: Paths | None) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    declared = plan.models
    plan, unknown = rebind(plan, {name: Path(path) for name, path in (models or {}).items()})
    faults = unknown + check_alone(plan)
    if errors(faults):
        return plan, {}, faults
    opened, more = open_models(plan, declared)
    against = check_models(plan, opened) if not errors(more) else []
    return plan, opened, locate(faults + more + against, plan.origin)


def format(plan: Plan | str) -> str:
    """The canonical text of a plan, or of a text, whose comments stay.

    Raises PlanError where a text can't be read.
    """
    if isinstance(plan, Plan):
        return format_plan(plan)
    text, faults = format_text(Source("<text>", plan))
    if text is None:
        raise PlanError(faults)
    return text


# ----------------------------------------------------------------------------------------- compile


@dataclass(frozen=True)
class Prepared:
    """A plan that is ready to be written: checked, its program made, nothing read or written."""

    plan: Plan
    models: dict[str, Opened]
    compiled: Compiled
    shards: tuple[Shard, ...]
    warnings: tuple[Fault, ...]

    @cached_property
    def layers(self) -> int:
        """The output's number of layers."""
        return len(kept(self.plan, self.models["base"].layout.count))

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Layers and parameters, of the base and of the output."""
        base = self.models["base"]
        before = sum(t.spec.elements for t in base.checkpoint.tensors.values())
        return {
            "layers": (base.layout.count, self.layers),
            "parameters": (before, self.compiled.program.parameters),
        }

    @property
    def size(self) -> int:
        """Bytes that writing takes."""
        return sum(shard.size for shard in self.shards)


def prepare(
    plan: Plan,
    *,
    models: Paths | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """Check a plan and plan its output, from headers alone. Raises PlanError with all faults."""
    if dtype is not None:
        origin = plan.origin
        plan = plan.model_copy(update={"dtype": dtype})
        plan = plan.read_from(origin) if origin else plan
    plan, opened, faults = _checked(plan, models)
    if errors(faults):
        raise PlanError(faults)
    if impossible := _not_compilable(plan):
        raise PlanError(impossible)
    compiled = compile_plan(plan, opened)
    shards = plan_shards([output.spec for output in compiled.program.outputs], shard_size)
    return Prepared(plan, opened, compiled, shards, tuple(faults))


def ready(
    plan: Plan,
    *,
    models: Paths | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """The same, with the weights that the output is made of fetched from the Hub."""
    prepared = prepare(plan, models=models, dtype=dtype, shard_size=shard_size)
    missing = [file for file in files(prepared.compiled.program) if not file.exists()]
    if not missing:
        return prepared
    for model in prepared.models.values():
        folder = model.checkpoint.folder
        theirs = [file for file in missing if file.is_relative_to(folder)]
        if model.remotes and theirs:
            fetch(model.remotes[0], folder, theirs)
    return prepare(_pinned(plan, prepared), models=models, dtype=dtype, shard_size=shard_size)


def _pinned(plan: Plan, prepared: Prepared) -> Plan:
    """The plan with its models of the Hub at the commits that were opened, should one move on."""
    pinned = dict(plan.models)
    for name, opened in prepared.models.items():
        if opened.remotes and not is_local(pinned[name].source):
            commit = opened.remotes[-1].commit
            pinned[name] = pinned[name].model_copy(update={"revision": commit})
    made = plan.model_copy(update={"models": pinned})
    return made.read_from(plan.origin) if plan.origin else made


def _not_compilable(plan: Plan) -> list[Fault]:
    count = open_choices(plan)
    if count:
        choices = "1 choice is" if count == 1 else f"{count} choices are"
        return [
            Fault(
                "P801",
                f"{choices} open, and a model has none",
                help="'gptailor search' closes them",
                source=plan.origin.source if plan.origin else None,
            )
        ]
    if plan.bridges:
        message = "this version can't fit a bridge yet"
        return locate([Fault("P802", message, ("bridges", 0))], plan.origin)
    return []


def compile(  # noqa: PLR0913 (the verb of the command line, and its flags)
    plan: Plan,
    output: str | Path,
    *,
    models: Paths | None = None,
    dtype: str | None = None,
    force: bool = False,
    shard_size: int = SHARD_SIZE,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write the model that a plan declares into a new folder, all or nothing.

    `models` gives other folders for the plan's names, `dtype` another dtype than the plan's;
    `force` replaces a folder that is there; `progress` is told of the bytes written. Raises
    PlanError, with all faults, if the plan can't be compiled, and TailorError if the world fails.
    """
    return write(
        ready(plan, models=models, dtype=dtype, shard_size=shard_size),
        Path(output),
        force=force,
        progress=progress,
    )


def write(
    prepared: Prepared,
    target: Path,
    *,
    force: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """Write what was prepared."""
    protected = {model.checkpoint.folder for model in prepared.models.values()}
    files_read = [file for m in prepared.models.values() for file in m.checkpoint.files]
    protected |= {file if is_gguf(file) else file.parent for file in files_read}
    check_target(target, force=force, protected=protected)
    if (free := free_space(target)) < prepared.size:
        message = f"the output takes {prepared.size:,} bytes, and {free:,} are free there"
        raise CheckpointError("C305", message, target)
    write_checkpoint(
        target,
        prepared.shards,
        _payloads(prepared.compiled.program.outputs),
        _files(prepared, target),
        force=force,
        progress=progress,
        protected=protected,
    )
    program = prepared.compiled.program
    names = tuple(shard.name for shard in prepared.shards)
    return Written(target, prepared.layers, program.parameters, program.size, names)


def _payloads(outputs: tuple[Output, ...]) -> Callable[[TensorSpec], Payload]:
    """Bytes of each output; the arithmetic is imported only where there is some."""
    by_name = {output.spec.name: output for output in outputs}

    def payload_of(spec: TensorSpec) -> Payload:
        output = by_name[spec.name]
        if isinstance(output.make, Copy):
            source = output.make.source
            return ByteRange(source.file, source.offset, source.spec.size)
        from gptailor.program.run import payload  # noqa: PLC0415 (imports torch)

        return payload(output)

    return payload_of


def _files(prepared: Prepared, target: Path) -> dict[str, bytes | Path]:
    """The files beside the weights: configuration, tokenizer, plan, card."""
    base = prepared.models["base"]
    teller = base
    if prepared.plan.tokenizer is not None:
        teller = prepared.models[next(sources(prepared.plan.tokenizer))[0]]
    beside = _tokenizer(teller)
    plan = _used_plan(prepared, target)
    text = _text(plan, prepared.plan)
    name = target.resolve().name
    about = card(name, plan, text, prepared.counts, gptailor.__version__)
    config = _config(prepared, teller)
    beside["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    beside["plan.tailor"] = text.encode()
    beside["README.md"] = about.encode()
    return beside


def _tokenizer(teller: Opened) -> dict[str, bytes | Path]:
    """The tokenizer of a model and how it generates: its files, or what its GGUF file holds."""
    checkpoint = teller.checkpoint
    beside: dict[str, bytes | Path] = {
        str(path.relative_to(checkpoint.folder)): path for path in tokenizer_files(checkpoint)
    }
    if not beside and is_gguf(checkpoint.files[0]):
        from gptailor.program.gguf_tokenizer import (  # noqa: PLC0415 (imports transformers)
            tokenizer_from_gguf,
        )

        beside |= tokenizer_from_gguf(checkpoint.files[0])
    if (path := generation_config(checkpoint)) is not None:
        beside[path.name] = path
    return beside


def _config(prepared: Prepared, teller: Opened) -> dict[str, Any]:
    """The configuration, its special tokens those of the tokenizer's model."""
    config = dict(prepared.compiled.config)
    if teller.name != "base":
        config = {key: v for key, v in config.items() if not key.endswith("_token_id")}
        config |= {key: v for key, v in teller.config.items() if key.endswith("_token_id")}
    return config


def _used_plan(prepared: Prepared, target: Path) -> Plan:
    """The plan with the models and dtype that were used, its paths as seen from the target."""
    plan = prepared.plan
    models = {name: _seen_from(prepared, name, target) for name in plan.models}
    dtypes = {output.spec.dtype for output in prepared.compiled.program.outputs}
    names = [name for name, dtype in DTYPES.items() if dtypes == {dtype}]
    dtype = names[0] if names else plan.dtype
    return plan.model_copy(update={"models": models, "dtype": dtype})


def _seen_from(prepared: Prepared, name: str, target: Path) -> Model:
    """A model's declaration as the output folder has it: paths from there, revisions resolved."""
    plan, model = prepared.plan, prepared.plan.models[name]
    if not is_local(model.source):
        opened = prepared.models.get(name)
        commit = opened.remotes[-1].commit if opened and opened.remotes else model.revision
        return model.model_copy(update={"revision": commit})
    path = os.path.relpath(os.path.realpath(folder_of(plan, model.source)), target.resolve())
    return model.model_copy(update={"source": path if path.startswith(".") else f"./{path}"})


def _text(plan: Plan, read: Plan) -> str:
    """The plan's text, with the comments of the one that was read."""
    if read.origin is None or read.origin.source.text.lstrip()[:1] == "{":
        return format_plan(plan)
    file, faults = parse(read.origin.source)
    return format_plan(plan) if faults else format_file(file, plan.models, plan.dtype)
