"""What goes into a compiled folder, tensors and other files, and which files it is made from."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptailor
from gptailor.build.lock import PLAN_FILE
from gptailor.build.parents import CARD, licence_of, parents
from gptailor.build.tokenizer import (
    template_file,
    tokenizer,
    tokenizer_inputs,
    tokenizer_model_name,
)
from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.families.lookup import FAMILY_SUFFIX, FoundFamily
from gptailor.checkpoint.families.vision import with_tokens_of
from gptailor.checkpoint.files import is_gguf
from gptailor.checkpoint.foreign_code import files_without_code
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.models import Opened, folder_of, is_local
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest
from gptailor.checkpoint.write.output_file import Payload
from gptailor.checks.texts import refuse_absent_texts
from gptailor.lang.format import format_file, format_plan
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Model, Plan, is_at_url
from gptailor.plan.registry import DTYPES
from gptailor.prepare import Prepared, all_declared, calibration_path, chain, declaring
from gptailor.program.program import Copy, Output, files
from gptailor.report.model_card import card

if TYPE_CHECKING:
    from torch import Tensor

    from gptailor.evaluate.repair import Fitted

_FITTED_BYTES = 2**24
"""Bytes of a fitted tensor that are handed on at once."""


def fit_tensors(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> "Fitted | None":
    """The tensors that bridges and healing change; None, and nothing imported, where none does.

    As `gptailor.evaluate.repair.fit` has it.
    """
    if not prepared.gaps and prepared.healing is None:
        return None
    refuse_absent_texts(prepared.plan)
    require("torch", "what bridges or heals")
    from gptailor.evaluate.repair import fit

    return fit(prepared, device=device, memory=memory, on_event=on_event, anew=anew)


def payloads(
    outputs: tuple[Output, ...], device: str = "cpu", fitted: "Fitted | None" = None
) -> Callable[[TensorSpec], Payload]:
    """Bytes of each output; the arithmetic is imported only where there is some, and then.

    Raises MissingPackageError where there is some and torch isn't installed.
    """
    if any(not isinstance(output.make, Copy) for output in outputs):
        require("torch", "what merges, scales or casts tensors")
    by_name = {output.spec.name: output for output in outputs}
    in_memory: Mapping[str, Tensor] = fitted.tensors if fitted is not None else {}

    def payload_of(spec: TensorSpec) -> Payload:
        output = by_name[spec.name]
        if spec.name in in_memory:
            return _bytes_of(in_memory[spec.name])
        if isinstance(output.make, Copy):
            source = output.make.source
            return ByteRange(source.file, source.offset, source.spec.size)
        return _made(output, device)

    return payload_of


def _bytes_of(tensor: "Tensor") -> Iterator[memoryview]:
    import torch  # a caller with a tensor has it imported

    raw: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return (raw[start : start + _FITTED_BYTES] for start in range(0, len(raw), _FITTED_BYTES))


def tensor_digest(spec: TensorSpec, sha256: str, fitted: "Fitted | None") -> TensorDigest:
    """The digest of a tensor of the output, with a sketch if it was fitted."""
    numbers = None
    if fitted is not None and spec.name in fitted.tensors:
        from gptailor.program.run import sketch  # imports torch

        numbers = sketch(fitted.tensors[spec.name])
    return TensorDigest(dtype=spec.dtype, shape=spec.shape, sha256=sha256, sketch=numbers)


def sketched(
    output: checkpoints.Checkpoint, found: Mapping[str, TensorDigest], names: Iterable[str]
) -> dict[str, TensorDigest]:
    """The digests of some of a folder's tensors with sketches, by which fits are compared."""
    if not (there := [name for name in names if name in found]):
        return {}
    from gptailor.program.load import load_tensor  # imports torch
    from gptailor.program.run import sketch  # imports torch

    numbers = {name: sketch(load_tensor(output.tensors[name])) for name in there}
    return {name: found[name].model_copy(update={"sketch": numbers[name]}) for name in there}


def _made(output: Output, device: str) -> Iterator[memoryview | bytes]:
    from gptailor.program.run import chunks, device_of  # imports torch

    yield from chunks(output, device=device_of(device))


def side_files(prepared: Prepared, target: Path) -> dict[str, bytes | Path]:
    """The files beside the weights: configuration, tokenizer, plan, card."""
    text = used_plan_text(prepared, target)
    models = used_models(prepared, target)
    shown = used_plan(prepared, target).model_copy(update={"models": models})
    written = {
        checkpoints.CONFIG: json.dumps(config(prepared), indent=2, ensure_ascii=False) + "\n",
        PLAN_FILE: text,
        CARD: card(
            target.resolve().name,
            replace(prepared.resolved, declared=shown),
            text,
            (prepared.base_size, prepared.output_size),
            gptailor.__version__,
            parents(prepared),
        ),
    }
    beside = beside_weights(prepared)
    beside |= files_without_code(beside)
    for kind, found in families(prepared).items():  # so that the folder can be verified anywhere
        written[kind + FAMILY_SUFFIX] = found.file.text()
    return beside | {name: content.encode() for name, content in written.items()}


def beside_weights(prepared: Prepared) -> dict[str, bytes | Path]:
    """Return the models' own files that go with the weights: tokenizer, processor, generation."""
    processor = _processor(prepared.models[lowest_base(prepared)])
    return tokenizer(prepared) | {path.name: path for path in processor}


def used_plan_text(prepared: Prepared, place: Path) -> str:
    """The plan as it was used, with its comments, its paths as seen from a folder."""
    plan = used_plan(prepared, place)
    origin = prepared.plan.origin
    commented = origin.tree if origin is not None else None
    return format_plan(plan) if commented is None else format_file(commented, plan)


def families(prepared: Prepared) -> dict[str, FoundFamily]:
    """The family files that the models are read by, by model type."""
    opened = (model.checkpoint for model in prepared.models.values())
    return {str(c.config["model_type"]): c.family for c in opened if c.family is not None}


def _processor(base: Opened) -> tuple[Path, ...]:
    """The files of how the base's towers read images: the output's towers are the base's."""
    return checkpoints.processor_files(base.checkpoint) if base.layout.wrapped else ()


def lowest_base(prepared: Prepared) -> str:
    """The name of the checkpoint that the base is, where that is a plan's output its base's."""
    name = "base"
    while prepared.models[name].inner is not None:
        name += ".base"
    return name


def base_license(prepared: Prepared) -> str | None:
    """The licence that the base's model card names in its front matter, if there is one here."""
    return licence_of(prepared.models[lowest_base(prepared)].checkpoint.folder)


def config(prepared: Prepared) -> dict[str, Any]:
    """The output's configuration, its special tokens those of the tokenizer's model."""
    made = dict(prepared.compiled.config)
    model = prepared.models[tokenizer_model_name(prepared.plan)]
    return made if model.name == "base" else with_tokens_of(made, model.config)


def used_dtype(prepared: Prepared) -> str | None:
    """The dtype of all outputs if they have one; else what the plan says."""
    dtypes = {output.spec.dtype for output in prepared.compiled.program.outputs}
    names = [name for name, dtype in DTYPES.items() if dtypes == {dtype}]
    return names[0] if names else prepared.plan.dtype


def used_plan(prepared: Prepared, target: Path | None) -> Plan:
    """The plan with the models and dtype that were used, its paths as seen from the target.

    Without one they are whole.
    """
    plan = plan_seen_from(prepared.plan, prepared.models, prepared.commits, target)
    return plan.model_copy(update={"dtype": used_dtype(prepared)})


def plan_seen_from(
    plan: Plan, opened: Mapping[str, Opened], commits: Mapping[str, str], target: Path | None
) -> Plan:
    """The plan, open or closed, with the models that were opened, its paths as seen from there."""
    used: dict[str, Any] = {
        "models": {name: _seen_from(plan, opened, commits, name, target) for name in plan.models},
        "bridges": tuple(
            bridge.model_copy(update={"on": _from(target, calibration_path(plan, bridge.on))})
            for bridge in plan.bridges
        ),
    }
    if (template := template_file(plan)) is not None:
        used["chat_template"] = _source(target, template)
    if plan.heal is not None:
        on = _from(target, calibration_path(plan, plan.heal.on))
        used["heal"] = plan.heal.model_copy(update={"on": on})
    return plan.model_copy(update=used)


def used_models(prepared: Prepared, target: Path) -> dict[str, Model]:
    """The models that were used as seen from the target; those of inner plans as `deep.math`."""
    names = all_declared(prepared.plan.models, prepared.models)
    plan, opened, commits = prepared.plan, prepared.models, prepared.commits
    return {name: _seen_from(plan, opened, commits, name, target) for name in names}


def _seen_from(
    whole: Plan,
    opened: Mapping[str, Opened],
    commits: Mapping[str, str],
    name: str,
    target: Path | None,
) -> Model:
    """A model's declaration as the output folder has it: paths from there, revisions resolved."""
    plan, _, short = declaring(whole, opened, name)
    model = plan.models[short]
    if model.made is not None or is_at_url(model.source):
        return model
    if not is_local(model.source):
        commit = commits.get(name, model.revision)
        return model.model_copy(update={"revision": commit})
    return model.model_copy(update={"source": _source(target, folder_of(plan, model.source))})


def _source(target: Path | None, path: Path) -> str:
    """The same, as a plan names what is here and not on the Hub."""
    said = _from(target, path)
    return said if said.startswith((".", "/")) else f"./{said}"


def _from(target: Path | None, path: Path) -> str:
    real = os.path.realpath(path)
    return real if target is None else os.path.relpath(real, target.resolve())


# ------------------------------------------------------------------------------ what is read

InputFiles = dict[str, dict[str, Path]]
"""The files that are read of each model, by their path within its folder."""


def inputs(prepared: Prepared) -> InputFiles:
    """The files that a plan reads of each model, an adapter's own apart from those it is on.

    These are the weights that the output is made of and a teacher's, their index, the
    configuration, and what the output takes of a tokenizer. Tokens are also read of models whose
    rows are sorted by another tokenizer.
    """
    read = set(files(prepared.compiled.program))
    healing = prepared.healing
    if healing is not None and healing.teacher is not None:
        teacher = prepared.models[healing.teacher].checkpoint
        read |= set(teacher.files) if teacher.nested else set()
    found: InputFiles = {}
    for name, opened in prepared.models.items():
        plan, before, short = declaring(prepared.plan, prepared.models, name)
        lowest, *adapters = (before + one for one in chain(plan, short))
        if opened.inner is not None:
            found[name] = {opened.inner.file.name: opened.inner.file}
        if opened.checkpoint.nested and not adapters:
            continue  # the files are those of its models
        whole = opened.checkpoint.files[: len(opened.checkpoint.files) - len(adapters)]
        teaches = healing is not None and healing.teacher == name
        weights = whole if teaches else (file for file in whole if file in read)
        if not opened.checkpoint.nested:
            own = [*weights, *_beside(prepared, name, whole)]
            folder = opened.checkpoint.folder
            folder = folder.parent if is_gguf(folder) else folder
            theirs = found.setdefault(lowest, {})
            theirs |= {file.relative_to(folder).as_posix(): file for file in own}
        for adapter, file in zip(adapters, opened.checkpoint.files[len(whole) :], strict=True):
            found[adapter] = {
                file.name: file,
                ADAPTER_CONFIG: file.with_name(ADAPTER_CONFIG),
            }
    return found


def _beside(prepared: Prepared, name: str, whole: tuple[Path, ...]) -> Iterator[Path]:
    """What is read of a model besides its weights."""
    checkpoint = prepared.models[name].checkpoint
    if not is_gguf(checkpoint.folder) and not is_gguf(whole[0]):
        yield checkpoint.folder / checkpoints.CONFIG
    for index, single, suffix in (
        (checkpoints.INDEX, checkpoints.SINGLE, ".safetensors"),
        (BIN_INDEX, BIN_SINGLE, ".bin"),
    ):
        by_index = whole[0].suffix == suffix and whole[0].name != single
        if by_index and (path := checkpoint.folder / index).exists():
            yield path
    yield from tokenizer_inputs(prepared, name)
    if name == lowest_base(prepared):
        yield from _processor(prepared.models[name])


def work(prepared: Prepared) -> int:
    """The bytes that locking reads and makes."""
    read = sum(file.stat().st_size for of in inputs(prepared).values() for file in of.values())
    return read + prepared.compiled.program.size
