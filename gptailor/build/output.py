"""What a compiled folder holds: the bytes of its tensors, and the files beside the weights."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptailor.build.lock import PLAN_FILE
from gptailor.checkpoint.folder import CONFIG, Checkpoint, generation_config, tokenizer_files
from gptailor.checkpoint.formats.gguf import is_gguf
from gptailor.checkpoint.models import Opened, folder_of, is_local
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest
from gptailor.checkpoint.write.output_file import Payload
from gptailor.lang.format import format_file, format_plan
from gptailor.lang.parse import parse
from gptailor.plan.layers import Gap, named_sources
from gptailor.plan.plan import Bridge, Model, Plan
from gptailor.plan.registry import DTYPES
from gptailor.prepare import Prepared, calibration_path
from gptailor.program.program import Copy, Output
from gptailor.report.card import card
from gptailor.version import VERSION

if TYPE_CHECKING:
    from torch import Tensor

    from gptailor.evaluate.bridge.fit import Fitted

CARD = "README.md"
_FITTED_BYTES = 2**24
"""Bytes of a fitted tensor that are handed on at once."""


def fit_bridges(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    told: Callable[[Gap], None] = lambda _: None,
) -> "Fitted | None":
    """The tensors that bridges change; None, and nothing imported, for a plan without gaps.

    As `gptailor.evaluate.live.stitch.fit` has it.
    """
    if not prepared.gaps:
        return None
    from gptailor.evaluate.live.stitch import fit  # noqa: PLC0415 (imports transformers)

    return fit(prepared, device=device, memory=memory, told=told)


def payloads(
    outputs: tuple[Output, ...], device: str = "cpu", fitted: "Fitted | None" = None
) -> Callable[[TensorSpec], Payload]:
    """Bytes of each output; the arithmetic is imported only where there is some, and then."""
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
    import torch  # noqa: PLC0415 (who has a tensor has it imported)

    raw: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return (raw[start : start + _FITTED_BYTES] for start in range(0, len(raw), _FITTED_BYTES))


def tensor_digest(spec: TensorSpec, sha256: str, fitted: "Fitted | None") -> TensorDigest:
    """The digest of a tensor of the output, with a sketch if it was fitted."""
    numbers = None
    if fitted is not None and spec.name in fitted.tensors:
        from gptailor.program.sketch import sketch  # noqa: PLC0415 (imports torch)

        numbers = sketch(fitted.tensors[spec.name])
    return TensorDigest(dtype=spec.dtype, shape=spec.shape, sha256=sha256, sketch=numbers)


def sketched(
    output: Checkpoint, found: Mapping[str, TensorDigest], names: Iterable[str]
) -> dict[str, TensorDigest]:
    """The digests of some of a folder's tensors with sketches, by which fits are compared."""
    from gptailor.program.load import load_tensor  # noqa: PLC0415 (imports torch)
    from gptailor.program.sketch import sketch  # noqa: PLC0415 (imports torch)

    there = [name for name in names if name in found]
    numbers = {name: sketch(load_tensor(output.tensors[name])) for name in there}
    return {name: found[name].model_copy(update={"sketch": numbers[name]}) for name in there}


def _made(output: Output, device: str) -> Iterator[memoryview | bytes]:
    from gptailor.program.run import chunks, device_of  # noqa: PLC0415 (imports torch)

    yield from chunks(output, device=device_of(device))


def side_files(prepared: Prepared, target: Path) -> dict[str, bytes | Path]:
    """The files beside the weights: configuration, tokenizer, plan, card."""
    beside = _tokenizer(prepared.models[tokenizer_model_name(prepared.plan)])
    plan = used_plan(prepared, target)
    text = _text(plan, prepared.plan)
    name = target.resolve().name
    about = card(name, plan, text, prepared.counts, VERSION)
    beside[CONFIG] = (json.dumps(config(prepared), indent=2, ensure_ascii=False) + "\n").encode()
    beside[PLAN_FILE] = text.encode()
    beside[CARD] = about.encode()
    return beside


def tokenizer_model_name(plan: Plan) -> str:
    """The name of the model whose tokenizer the output has."""
    return "base" if plan.tokenizer is None else next(named_sources(plan.tokenizer))[0]


def _tokenizer(model: Opened) -> dict[str, bytes | Path]:
    """The tokenizer of a model and how it generates: its files, or what its GGUF file holds."""
    checkpoint = model.checkpoint
    beside: dict[str, bytes | Path] = {
        str(path.relative_to(checkpoint.folder)): path for path in tokenizer_files(checkpoint)
    }
    if not beside and is_gguf(checkpoint.files[0]):
        from gptailor.program.gguf_tokenizer import tokenizer_from_gguf  # noqa: PLC0415 (late: it costs start-up)

        beside |= tokenizer_from_gguf(checkpoint.files[0])
    if (path := generation_config(checkpoint)) is not None:
        beside[path.name] = path
    return beside


def config(prepared: Prepared) -> dict[str, Any]:
    """The output's configuration, its special tokens those of the tokenizer's model."""
    made = dict(prepared.compiled.config)
    model = prepared.models[tokenizer_model_name(prepared.plan)]
    if model.name != "base":
        made = {key: v for key, v in made.items() if not key.endswith("_token_id")}
        made |= {key: v for key, v in model.config.items() if key.endswith("_token_id")}
    return made


def used_dtype(prepared: Prepared) -> str | None:
    """The dtype of all outputs if they have one; else what the plan says."""
    dtypes = {output.spec.dtype for output in prepared.compiled.program.outputs}
    names = [name for name, dtype in DTYPES.items() if dtypes == {dtype}]
    return names[0] if names else prepared.plan.dtype


def used_plan(prepared: Prepared, target: Path) -> Plan:
    """The plan with the models and dtype that were used, its paths as seen from the target."""
    plan = prepared.plan
    used = {
        "models": {name: _seen_from(prepared, name, target) for name in plan.models},
        "bridges": tuple(_bridge_from(plan, bridge, target) for bridge in plan.bridges),
        "dtype": used_dtype(prepared),
    }
    return plan.model_copy(update=used)


def _seen_from(prepared: Prepared, name: str, target: Path) -> Model:
    """A model's declaration as the output folder has it: paths from there, revisions resolved."""
    plan, model = prepared.plan, prepared.plan.models[name]
    if not is_local(model.source):
        commit = prepared.commits.get(name, model.revision)
        return model.model_copy(update={"revision": commit})
    path = _from(target, folder_of(plan, model.source))
    return model.model_copy(update={"source": path if path.startswith(".") else f"./{path}"})


def _bridge_from(plan: Plan, bridge: Bridge, target: Path) -> Bridge:
    """A bridge as the output folder has it."""
    return bridge.model_copy(update={"on": _from(target, calibration_path(plan, bridge.on))})


def _from(target: Path, path: Path) -> str:
    return os.path.relpath(os.path.realpath(path), target.resolve())


def _text(plan: Plan, read: Plan) -> str:
    """The plan's text, with the comments of the one that was read."""
    if read.origin is None or read.origin.source.text.lstrip()[:1] == "{":
        return format_plan(plan)
    file, faults = parse(read.origin.source)
    return format_plan(plan) if faults else format_file(file, plan)
