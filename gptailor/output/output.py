"""The content of a compiled folder, tensors and other files, and the files it is made from."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptailor
from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.chat_template import TokenizerFiles, has_template
from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.family_file import family_text
from gptailor.checkpoint.families.lookup import FAMILY_SUFFIX, FoundFamily
from gptailor.checkpoint.files import is_gguf, open_regular
from gptailor.checkpoint.foreign_code import files_without_code
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.formats.pytorch import BIN_INDEX, BIN_SINGLE
from gptailor.checkpoint.models import Opened, folder_of, is_local
from gptailor.checkpoint.tensor import Aligned, ByteRange, RowRange, TensorInfo, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest
from gptailor.checkpoint.write.output_file import Payload
from gptailor.checks.texts import refuse_unusable_texts, text_errors_as_faults
from gptailor.lang.format import format_file, format_plan
from gptailor.output.parents import (
    CARD,
    known_ids,
    licence_of,
    lowest_base,
    parents,
    title,
    without_paths,
)
from gptailor.output.tokenizer import (
    template_file,
    tokenizer,
    tokenizer_inputs,
)
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import PLAN_FILE, Origin
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Model, Plan, is_at_url
from gptailor.plan.search_block import with_file
from gptailor.prepare import Prepared, all_declared, calibration_path, chain, declaring
from gptailor.program.compile import with_tokenizer_ids
from gptailor.program.file_bytes import read_into
from gptailor.program.packages import method_packages
from gptailor.program.program import Combine, Copy, Output, stored_plainly
from gptailor.reporting.model_card import card

if TYPE_CHECKING:
    from torch import Tensor

    from gptailor.evaluation.repair import Fitted

_BLOCK = 2**24
"""Number of bytes of a fitted tensor, or of some rows, in a block."""


def fit_tensors(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> "Fitted | None":
    """Return the tensors that fits and healing change; None, and no import, without either.

    The arguments are those of `gptailor.evaluation.repair.fit`. Raises PlanError for a text that is
    unusable.
    """
    if not prepared.repaired:
        return None
    refuse_unusable_texts(prepared.checked)
    fewer = "experts" in prepared.resolved.cuts
    require("torch", "fewer experts" if fewer else "a narrowed, bridged or healed plan")
    from gptailor.evaluation.repair import fit

    with text_errors_as_faults(prepared.plan):
        return fit(prepared, device=device, memory=memory, on_event=on_event, anew=anew)


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
            return _bytes_of(in_memory[spec.name])
        if isinstance(output.make, Copy):
            return _copied(output.make.source)
        return _computed(output, device)

    return payload_of


def _copied(source: TensorInfo) -> Payload:
    """Return the bytes of a tensor as they are on disk, or those of some of its rows."""
    if isinstance(source.form, Aligned):
        return (block for piece in source.form.pieces for block in _rows(piece))
    return ByteRange(source.file, source.offset, source.spec.size)


def _rows(piece: RowRange) -> Iterator[memoryview]:
    """Yield the bytes of some rows of a plain tensor, in blocks."""
    tensor = piece.tensor
    row = tensor.spec.size // tensor.spec.shape[0]
    with open_regular(tensor.file) as file:
        for start in range(0, size := piece.count * row, _BLOCK):
            block = memoryview(bytearray(min(_BLOCK, size - start)))
            read_into(block, file.fileno(), tensor.offset + piece.first * row + start, tensor.file)
            yield block


def _bytes_of(tensor: "Tensor") -> Iterator[memoryview]:
    import torch  # a caller with a tensor has it imported

    raw: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return (raw[start : start + _BLOCK] for start in range(0, len(raw), _BLOCK))


def tensor_digest(spec: TensorSpec, sha256: str, fitted: "Fitted | None") -> TensorDigest:
    """Return the digest of a tensor of the output, with a sketch if it was fitted."""
    numbers = None
    if fitted is not None and spec.name in fitted.tensors:
        from gptailor.program.sketch import sketch  # imports torch

        numbers = sketch(fitted.tensors[spec.name])
    return TensorDigest(dtype=spec.dtype, shape=spec.shape, sha256=sha256, sketch=numbers)


def sketched(
    output: checkpoints.Checkpoint, digests: Mapping[str, TensorDigest], names: Iterable[str]
) -> dict[str, TensorDigest]:
    """Return the digests of some of a folder's tensors with sketches, which compare fits."""
    if not (present := [name for name in names if name in digests]):
        return {}
    from gptailor.program.load import load_tensor  # imports torch
    from gptailor.program.sketch import sketch  # imports torch

    numbers = {name: sketch(load_tensor(output.tensors[name])) for name in present}
    return {name: digests[name].model_copy(update={"sketch": numbers[name]}) for name in present}


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
        checkpoints.CONFIG: json.dumps(config(prepared), indent=2, ensure_ascii=False) + "\n",
        PLAN_FILE: used_plan_text(prepared, target),
        CARD: _card(prepared, target, fitted, beside),
    }
    beside |= files_without_code(beside)
    for kind, family in families(prepared).items():  # so that the folder can be verified anywhere
        written[kind + FAMILY_SUFFIX] = family_text(family.file)
    return beside | {name: content.encode() for name, content in written.items()}


def _card(prepared: Prepared, target: Path, fitted: "Fitted | None", beside: TokenizerFiles) -> str:
    """Return the model card, without paths of this machine; `beside` are the tokenizer's files."""
    plan, images = _public(prepared), prepared.models["base"].layout.wrapped
    declared = {name: plan.models[name] for name in prepared.plan.models}  # none of inner plans
    return card(
        title(prepared, target),
        target.resolve().name,
        replace(prepared.resolved, declared=plan),
        commented_text(
            plan.model_copy(update={"models": declared}),
            prepared.plan.origin,
        ),
        (prepared.base_size, prepared.output_size),
        _makers(prepared),
        parents(prepared),
        {} if fitted is None else fitted.results,
        vocabulary=None if (cut := prepared.checked.token_cut) is None else cut.report,
        chats=has_template(beside, processor=images),
        images=images,
    )


def _makers(prepared: Prepared) -> str:
    """Return the version of gptailor, and the packages of other merge methods."""
    packages = method_packages(prepared.compiled.program).values()
    return " and ".join([gptailor.__version__, *dict.fromkeys(packages)])


def _public(prepared: Prepared) -> Plan:
    """Return the plan with all models, and with ids and names in place of this machine's paths."""
    models = used_models(prepared, None)
    plan = used_plan(prepared, None).model_copy(update={"models": models})
    return without_paths(plan, known_ids(prepared))


def beside_weights(prepared: Prepared) -> dict[str, bytes | Path]:
    """Return the models' own files that go with the weights: tokenizer, processor, generation."""
    processor = _processor(prepared.models[lowest_base(prepared)])
    return tokenizer(prepared) | {path.name: path for path in processor}


def used_plan_text(prepared: Prepared, place: Path) -> str:
    """Return the plan as it was used, with its comments, its paths as seen from a folder."""
    return commented_text(used_plan(prepared, place), prepared.plan.origin)


def commented_text(plan: Plan, origin: Origin | None) -> str:
    """Return the text of a plan with the comments of the text that it was read from."""
    commented = origin.tree if origin is not None else None
    return format_plan(plan) if commented is None else format_file(commented, plan)


def families(prepared: Prepared) -> dict[str, FoundFamily]:
    """Return the models' family files by model type."""
    opened = (model.checkpoint for model in prepared.models.values())
    return {str(c.config["model_type"]): c.family for c in opened if c.family is not None}


def _processor(base: Opened) -> tuple[Path, ...]:
    """Return the files of the base's image processor: the output's towers are the base's."""
    return checkpoints.processor_files(base.checkpoint) if base.layout.wrapped else ()


def base_license(prepared: Prepared) -> str | None:
    """Return the licence in the front matter of the base's model card, if there is one."""
    return licence_of(prepared.models[lowest_base(prepared)].checkpoint.folder)


def config(prepared: Prepared) -> dict[str, Any]:
    """Return the output's configuration, with the special tokens of the tokenizer's model."""
    return with_tokenizer_ids(prepared.compiled.config, prepared.checked)


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

    def seen(file: str) -> str:
        return path_from(target, calibration_path(plan, file))

    used: dict[str, Any] = {
        "models": {name: _seen_from(plan, opened, commits, name, target) for name in plan.models},
        "expects": tuple(with_file(entry, seen) for entry in plan.expects),
    }
    if (template := template_file(plan)) is not None:
        used["chat_template"] = _source(target, template)
    return plan.with_calibration_texts(seen).model_copy(update=used)


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
    return model.model_copy(update={"source": _source(target, folder_of(plan, model.source))})


def _source(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target, in the form that a plan has for local paths."""
    shown = path_from(target, path)
    return shown if shown.startswith((".", "/")) else f"./{shown}"


def path_from(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target; the absolute path without a target."""
    real = os.path.realpath(path)
    return real if target is None else os.path.relpath(real, target.resolve())


# ------------------------------------------------------------------------------ what is read

InputFiles = dict[str, dict[str, Path]]
"""The files that are read of each model, by their path within its folder."""


def inputs(prepared: Prepared) -> InputFiles:
    """Return the files that a plan reads of each model, an adapter's under its own name.

    These are the weights of the output and of teachers, their index, the configuration, and
    the tokenizer's files that the output takes. Tokens are also read of models whose
    rows are sorted by another tokenizer.
    """
    read = set(prepared.read_files)
    teachers = prepared.healing.teachers if prepared.healing is not None else ()
    for name in filter(None, teachers):
        teacher = prepared.models[name].checkpoint
        read |= set(teacher.files) if teacher.nested else set()
    by_model: InputFiles = {}
    for name, opened in prepared.models.items():
        plan, before, short = declaring(prepared.plan, prepared.models, name)
        lowest, *adapters = (before + model for model in chain(plan, short))
        if opened.inner is not None:
            by_model[name] = {opened.inner.file.name: opened.inner.file}
        if opened.checkpoint.nested and not adapters:
            continue  # the files are those of its models
        weight_files = opened.checkpoint.files[: len(opened.checkpoint.files) - len(adapters)]
        weights_read = (
            weight_files if name in teachers else (file for file in weight_files if file in read)
        )
        if not opened.checkpoint.nested:
            own = [*weights_read, *_beside(prepared, name, weight_files)]
            folder = opened.checkpoint.folder
            folder = folder.parent if is_gguf(folder) else folder
            model_files = by_model.setdefault(lowest, {})
            model_files |= {file.relative_to(folder).as_posix(): file for file in own}
        adapter_files = opened.checkpoint.files[len(weight_files) :]
        for adapter, file in zip(adapters, adapter_files, strict=True):
            by_model[adapter] = {
                file.name: file,
                ADAPTER_CONFIG: file.with_name(ADAPTER_CONFIG),
            }
    return by_model


def _beside(prepared: Prepared, name: str, weights: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files that are read of a model besides its weights."""
    checkpoint = prepared.models[name].checkpoint
    if not is_gguf(checkpoint.folder) and not is_gguf(weights[0]):
        yield checkpoint.folder / checkpoints.CONFIG
    for index, single, suffix in (
        (checkpoints.INDEX, checkpoints.SINGLE, ".safetensors"),
        (BIN_INDEX, BIN_SINGLE, ".bin"),
    ):
        by_index = weights[0].suffix == suffix and weights[0].name != single
        if by_index and (path := checkpoint.folder / index).exists():
            yield path
    yield from tokenizer_inputs(prepared, name)
    if name == lowest_base(prepared):
        yield from _processor(prepared.models[name])


def work(prepared: Prepared) -> int:
    """Return the number of bytes that locking reads and makes."""
    read = sum(file.stat().st_size for of in inputs(prepared).values() for file in of.values())
    return read + prepared.compiled.program.size
