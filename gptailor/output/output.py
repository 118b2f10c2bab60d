"""The content of a compiled folder: tensors and other files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import gptailor
from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.chat_template import TokenizerFiles, has_template
from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX, FoundFamily, family_text
from gptailor.checkpoint.foreign_code import files_without_code
from gptailor.checkpoint.tensor import Aligned, ByteRange, RowRange, TensorInfo, TensorSpec
from gptailor.checkpoint.write.output_file import Payload, blocks_of
from gptailor.evaluation.tokenizer_files import tokenizer
from gptailor.output.inputs import (
    CARD,
    known_ids,
    lowest_base,
    parents,
    processor,
    title,
)
from gptailor.output.used_plan import (
    commented_text,
    used_models,
    used_plan,
    used_plan_text,
    without_paths,
)
from gptailor.plan.events import FitResult
from gptailor.plan.faults import PLAN_FILE
from gptailor.plan.optional_packages import require
from gptailor.prepare import Prepared
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
    """Return the bytes of a tensor as they are on disk, or those of some of its rows."""
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
    """Return sketches of some of the program's tensors: of those that fits decide.

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
    """Return the model card, without paths of this machine; `beside` are the tokenizer's files."""
    used = used_plan(prepared, None).model_copy(update={"models": used_models(prepared, None)})
    plan, images = without_paths(used, known_ids(prepared)), prepared.models["base"].layout.wrapped
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
    """Return the results of fits by their places, that of a smaller vocabulary first."""
    return vocabulary_result(prepared.checked) | dict({} if fitted is None else fitted.results)


def beside_weights(prepared: Prepared) -> dict[str, bytes | Path]:
    """Return the models' own files that go with the weights: tokenizer, processor, generation."""
    files = processor(prepared.models[lowest_base(prepared)])
    return tokenizer(prepared.checked) | {path.name: path for path in files}


def families(prepared: Prepared) -> dict[str, FoundFamily]:
    """Return the models' family files by model type."""
    opened = (model.checkpoint for model in prepared.models.values())
    return {str(c.config["model_type"]): c.family for c in opened if c.family is not None}
