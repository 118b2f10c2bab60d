"""The content of a compiled folder: tensors, other files, and the plan as it was used."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptailor
from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX, FoundFamily, family_text
from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened, folder_of, is_local, is_remote
from gptailor.checkpoint.tensor import Aligned, ByteRange, RowRange, TensorInfo, TensorSpec
from gptailor.checkpoint.tokenizer_settings import TokenizerFiles, files_without_code, has_template
from gptailor.checkpoint.write.output_file import Payload, blocks_of
from gptailor.evaluation.tokenizer_files import template_file, tokenizer
from gptailor.lang.format import format_file, format_plan
from gptailor.output.inputs import (
    CARD,
    known_ids,
    lowest_base,
    parents,
    processor,
    title,
)
from gptailor.plan.events import FitResult
from gptailor.plan.faults import PLAN_FILE, Origin
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Model, Plan, is_at_url
from gptailor.plan.search_block import with_file
from gptailor.prepare import Prepared, all_declared, declaring
from gptailor.program.fits import vocabulary_result
from gptailor.program.program import Combine, Copy, Output, stored_plainly
from gptailor.reporting.model_card import card

if TYPE_CHECKING:
    from torch import Tensor

    from gptailor.evaluation.fits.fit import Fitted

_BLOCK = 2**24
"""Number of bytes of a fitted tensor in a block."""


def payloads(
    outputs: tuple[Output, ...], device: str = "cpu", fitted: "Fitted | None" = None
) -> Callable[[TensorSpec], Payload]:
    """Return a function to the bytes of each output; NumPy is imported only for arithmetic.

    Raises MissingPackageError if arithmetic reads tensors that torch reads, and it isn't installed.
    """
    making = [output.make for output in outputs if isinstance(output.make, Combine)]
    if not all(stored_plainly(tensor) for make in making for tensor in make.tensors):
        require("torch", "arithmetic with quantised, adapted or pickled weights")
    by_name = {output.spec.name: output for output in outputs}
    by_name |= fitted.chosen if fitted is not None else {}
    in_memory: Mapping[str, Tensor] = fitted.tensors if fitted is not None else {}

    def payload_of(spec: TensorSpec) -> Payload:
        output = by_name[spec.name]
        if spec.name in in_memory:
            import torch  # a caller with a tensor has it imported

            raw: memoryview = in_memory[spec.name].reshape(-1).view(torch.uint8).numpy().data
            return (raw[start : start + _BLOCK] for start in range(0, len(raw), _BLOCK))
        if isinstance(output.make, Copy):
            return _copied(output.make.source)
        return _computed(output, device)

    return payload_of


def _copied(source: TensorInfo) -> Payload:
    """Return the bytes of a tensor, or of some of its rows, as they are on disk."""
    if isinstance(source.form, Aligned):
        return (block for piece in source.form.pieces for block in blocks_of(_rows(piece)))
    return ByteRange(source.file, source.offset, source.spec.size)


def _rows(piece: RowRange) -> ByteRange:
    """Return the place of some rows of a plain tensor."""
    tensor = piece.tensor
    row = tensor.spec.size // tensor.spec.shape[0]
    return ByteRange(tensor.file, tensor.offset + piece.first * row, piece.count * row)


def fit_sketches(
    prepared: Prepared, fitted: "Fitted | None", names: Iterable[str]
) -> dict[str, tuple[float, ...]]:
    """Return sketches of some of the program's tensors: of the tensors that fits decide.

    They include the tensors that are made of inner plans' fitted tensors.
    """
    tensors: Mapping[str, Tensor] = {} if fitted is None else fitted.tensors
    remade = prepared.refitted
    if not (decided := [name for name in names if name in tensors or name in remade]):
        return {}
    from gptailor.evaluation.live.content_keys import TensorMaker  # imports torch
    from gptailor.program.devices import CPU
    from gptailor.program.sketch import sketch

    make = TensorMaker(CPU, keep=False).make
    return {n: sketch(tensors[n] if n in tensors else make(remade[n])) for n in decided}


def _computed(output: Output, device: str) -> Iterator[memoryview | bytes]:
    from gptailor.program.run import chunks  # imports NumPy

    if device == "cpu":
        yield from chunks(output)
        return
    from gptailor.program.devices import device_of  # imports torch

    yield from chunks(output, device=device_of(device))


def side_files(
    prepared: Prepared, target: Path, fitted: "Fitted | None" = None
) -> dict[str, bytes | Path]:
    """Return the files beside the weights: configuration, tokenizer, plan, card."""
    beside = beside_weights(prepared)
    written = {
        checkpoints.CONFIG: json.dumps(prepared.compiled.config, indent=2, ensure_ascii=False)
        + "\n",
        PLAN_FILE: used_plan_text(prepared, target),
        CARD: _card(prepared, target, fitted, beside),
    }
    beside |= files_without_code(beside)
    for kind, family in families(prepared).items():  # so that the folder can be verified anywhere
        written[kind + FAMILY_SUFFIX] = family_text(family.file)
    return beside | {name: content.encode() for name, content in written.items()}


def _card(prepared: Prepared, target: Path, fitted: "Fitted | None", beside: TokenizerFiles) -> str:
    """Return the model card, without paths of this machine; `beside` has the tokenizer's files."""
    used = used_plan(prepared, None).model_copy(update={"models": used_models(prepared, None)})
    plan, images = without_paths(used, known_ids(prepared)), prepared.models["base"].layout.wrapped
    declared = {name: plan.models[name] for name in prepared.plan.models}  # no inner plans'
    return card(
        title(prepared, target),
        target.resolve().name,
        replace(prepared.resolved, declared=plan),
        commented_text(
            plan.model_copy(update={"models": declared}),
            prepared.plan.origin,
        ),
        (prepared.base_size, prepared.output_size),
        " and ".join([gptailor.__version__, *dict.fromkeys(prepared.packages.values())]),
        parents(prepared),
        fit_results(prepared, fitted),
        inner=[
            (name, fits.plan.name, of, prepared.texts[f"{name}.{of}"].name, text)
            for name, fits in prepared.inner_fits.items()
            for of, text in fits.texts.items()
        ],
        chats=has_template(beside, processor=images),
        images=images,
    )


def fit_results(prepared: Prepared, fitted: "Fitted | None") -> dict[str, FitResult]:
    """Return the results of fits by their places, a smaller vocabulary's first."""
    return vocabulary_result(prepared.checked) | dict({} if fitted is None else fitted.results)


def beside_weights(prepared: Prepared) -> dict[str, bytes | Path]:
    """Return the models' own files that go with the weights: tokenizer, processor, generation."""
    files = processor(prepared.models[lowest_base(prepared)])
    return tokenizer(prepared.checked) | {path.name: path for path in files}


def families(prepared: Prepared) -> dict[str, FoundFamily]:
    """Return the models' family files by model type."""
    opened = (model.checkpoint for model in prepared.models.values())
    return {str(c.config["model_type"]): c.family for c in opened if c.family is not None}


# ----------------------------------------------------------------------------- the output's plan


def used_plan_text(prepared: Prepared, place: Path) -> str:
    """Return the plan as it was used, with its comments, its paths as seen from a folder."""
    return commented_text(used_plan(prepared, place), prepared.plan.origin)


def commented_text(plan: Plan, origin: Origin | None) -> str:
    """Return the text of a plan with the comments of the text that it was read from."""
    commented = origin.tree if origin is not None else None
    return format_plan(plan) if commented is None else format_file(commented, plan)


def used_plan(prepared: Prepared, target: Path | None) -> Plan:
    """Return the plan with the used models and dtype, its paths as seen from the target.

    The search is left out: nothing is left to choose. Without a target the paths are absolute. A
    dtype that would change the configuration, because
    the base's is silent or says another, is left out unless the plan names it.
    """
    plan = plan_seen_from(prepared.plan, prepared.models, prepared.commits, target)
    plan = plan.model_copy(update={"search": None})
    dtype, config = prepared.dtype, prepared.compiled.config
    if dtype is None or vision.with_dtype(config, dtype) != config:
        return plan
    return plan.model_copy(update={"dtype": dtype})


def plan_seen_from(
    plan: Plan, opened: Mapping[str, Opened], commits: Mapping[str, str], target: Path | None
) -> Plan:
    """Return a plan, open or closed, with the opened models, its paths as seen from the target."""
    models = {name: _seen_from(plan, opened, commits, name, target) for name in plan.models}
    return _renamed(
        plan,
        models,
        lambda file: path_from(target, _place(plan, file)),
        lambda file: _source(target, _place(plan, file)),
    )


def without_paths(plan: Plan, ids: Mapping[str, str]) -> Plan:
    """Return a plan with names in place of this machine's paths; `ids` are names of models.

    Any other name is the last part of its path, with a number before it if another path has it too.
    A search, which has paths as written, is left out.
    """
    names: dict[str, str] = {}

    def name_of(path: str) -> str:
        written = path_from(None, _place(plan, path))
        if written not in names:
            last, taken = Path(written).name, set(names.values())
            possible = chain([last], (f"{number}-{last}" for number in count(2)))
            names[written] = next(name for name in possible if name not in taken)
        return names[written]

    models = {
        name: model
        if is_remote(model) or model.made is not None or is_at_url(model.source)
        else model.model_copy(update={"source": ids.get(name) or f"./{name_of(model.source)}"})
        for name, model in plan.models.items()
    }
    plan = plan.model_copy(update={"search": None})
    return _renamed(plan, models, name_of, lambda file: f"./{name_of(file)}")


def _renamed(
    plan: Plan,
    models: Mapping[str, Model],
    name_of: Callable[[str], str],
    template_of: Callable[[str], str],
) -> Plan:
    """Return a plan with other declarations of its models, and other names of its files."""
    used: dict[str, Any] = {
        "models": models,
        "expects": tuple(with_file(entry, name_of) for entry in plan.expects),
    }
    if template_file(plan) is not None:
        used["chat_template"] = template_of(str(plan.chat_template))
    return plan.with_calibration_texts(name_of).model_copy(update=used)


def used_models(prepared: Prepared, target: Path | None) -> dict[str, Model]:
    """Return the used models as seen from the target; an inner plan's are named `deep.math`.

    Without a target the paths are absolute.
    """
    names = all_declared(prepared.plan.models, prepared.models)
    plan, opened, commits = prepared.plan, prepared.models, prepared.commits
    return {name: _seen_from(plan, opened, commits, name, target) for name in names}


def _seen_from(
    outermost: Plan,
    opened: Mapping[str, Opened],
    commits: Mapping[str, str],
    name: str,
    target: Path | None,
) -> Model:
    """Return a model's declaration for the target: paths from there, revisions resolved."""
    plan, _, short = declaring(outermost, opened, name)
    model = plan.models[short]
    if model.made is not None or is_at_url(model.source):
        return model
    if not is_local(model.source):
        commit = commits.get(name, model.revision)
        return model.model_copy(update={"revision": commit})
    return model.model_copy(update={"source": _source(target, _place(plan, model.source))})


def _source(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target, in the form that a plan has for local paths."""
    shown = path_from(target, path)
    return shown if shown.startswith((".", "/")) else f"./{shown}"


def path_from(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target; the absolute path without a target. Links stay."""
    written = Path(os.sep)
    for part in path.absolute().parts[1:]:
        # `..` after a link is the parent of the folder that the link leads to
        before = written.resolve() if part == ".." and written.is_symlink() else written
        written = before.parent if part == ".." else before / part
    return str(written) if target is None else os.path.relpath(written, target.resolve())


def _place(plan: Plan, file: str) -> Path:
    """Return the path that a plan names, from the plan's folder without links."""
    return folder_of(plan, ".").resolve() / expanded(file)
