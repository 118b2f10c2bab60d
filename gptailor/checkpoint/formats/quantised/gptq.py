"""`gptq` and `awq`: whole numbers of a few bits in 32-bit words, a scale and a zero a group."""

from typing import Literal

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.tensor import PackedIntegers, TensorInfo

_Kind = Literal["gptq", "gptq_v2"]
_WORDS = ("I32",)
_BITS = 32
"""Bits of a word."""
_GPTQ_BITS = (2, 3, 4, 8)
_SCALES = ("F16", "BF16", "F32")


def read_gptq(pieces: QuantisedTensors) -> None:
    """Read each `X.qweight` with `X.scales`, `X.qzeros` and, where it has one, `X.g_idx`."""
    kind: _Kind = pieces.settings.get("checkpoint_format") or "gptq"
    if kind not in ("gptq", "gptq_v2"):
        pieces.refuse_setting("checkpoint_format", kind, "expected 'gptq' or 'gptq_v2'")
    if pieces.settings.get("is_marlin_format"):
        pieces.refuse_setting("is_marlin_format", True, "gptailor can't read Marlin's order")
    bits, group = pieces.number("bits"), pieces.number("group_size", -1)
    if bits not in _GPTQ_BITS:
        pieces.refuse_setting("bits", bits, "expected 2, 3, 4 or 8")
    for stem in pieces.stems(".qweight"):
        _read_weight(pieces, stem, kind, bits, group)


def _taken(pieces: QuantisedTensors, stem: str) -> tuple[TensorInfo, TensorInfo, TensorInfo]:
    """Take the values, the scales and the zeros of a weight."""
    name = f"{stem}.weight"
    values = pieces.take(f"{stem}.qweight", name, _WORDS)
    scales = pieces.take(f"{stem}.scales", name, _SCALES)
    return values, scales, pieces.take(f"{stem}.qzeros", name, _WORDS)


def _read_weight(pieces: QuantisedTensors, stem: str, kind: _Kind, bits: int, group: int) -> None:
    """Read one weight of GPTQ's."""
    values, scales, zeros = _taken(pieces, stem)
    groups = _column_groups(pieces, stem)
    words, outputs = pieces.check_matrix(values)
    inputs = words * _BITS // bits if groups is None else groups.spec.elements
    # Rules for single layers may change bits and groups: then the shapes decide.
    uniform = not pieces.settings.get("dynamic")
    own = bits if uniform else words * _BITS // inputs
    if own not in _GPTQ_BITS or -(-inputs * own // _BITS) != words:
        message = f"{quoted(values.spec.name)} has {words} rows of words for {inputs} inputs"
        pieces.refuse(f"{message}, but the configuration has {bits} bits")
    width = -(-inputs // pieces.check_matrix(scales)[0])
    if uniform:
        width = _group(pieces, inputs, group)
    shape = (-(-inputs // width), outputs)
    pieces.check_shape(scales, shape)
    pieces.check_shape(zeros, (shape[0], -(-outputs * own // _BITS)))
    form = PackedIntegers(kind, own, width, values, scales, zeros, groups)
    pieces.add(f"{stem}.weight", (outputs, inputs), form)


def _column_groups(pieces: QuantisedTensors, stem: str) -> TensorInfo | None:
    """Return the number of each input's group, where a weight has it."""
    if f"{stem}.g_idx" in pieces.left:
        groups = pieces.take(f"{stem}.g_idx", f"{stem}.weight", _WORDS)
        if len(groups.spec.shape) != 1 or not groups.spec.elements:
            shape = list(groups.spec.shape)
            pieces.refuse(f"{quoted(groups.spec.name)} has the shape {shape}, expected a list")
        return groups
    if pieces.settings.get("desc_act"):
        pieces.refuse(f"'{stem}.weight' has no 'g_idx', which 'desc_act' needs")
    return None


def _group(pieces: QuantisedTensors, inputs: int, size: int) -> int:
    """Return the number of inputs that share a scale; -1 stands for all."""
    if size == 0 or size < -1:
        pieces.refuse_setting("group_size", size, "expected -1 or a positive number")
    return inputs if size == -1 else min(size, inputs)


def read_awq(pieces: QuantisedTensors) -> None:
    """Read each `X.qweight` with `X.scales` and `X.qzeros`, in the order of AWQ's `gemm`."""
    version = pieces.settings.get("version") or "gemm"
    if str(version).lower() != "gemm":
        pieces.refuse_setting("version", version, "expected 'gemm'")
    bits = pieces.number("bits", pieces.number("w_bit", 4))
    group = pieces.number("group_size", pieces.number("q_group_size", 128))
    if bits != 4:
        pieces.refuse_setting("bits", bits, "expected 4")
    for stem in pieces.stems(".qweight"):
        values, scales, zeros = _taken(pieces, stem)
        inputs, words = pieces.check_matrix(values)
        outputs = words * _BITS // bits
        width = _group(pieces, inputs, group)
        rows = -(-inputs // width)
        pieces.check_shape(scales, (rows, outputs))
        pieces.check_shape(zeros, (rows, words))
        form = PackedIntegers("awq", bits, width, values, scales, zeros)
        pieces.add(f"{stem}.weight", (outputs, inputs), form)
