"""`compressed-tensors`: FP8 and INT8 as they are, fewer bits packed in words."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from gptailor.checkpoint.files import may_hang, quoted, shown
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.formats.quantised.small_floats import block_scaled
from gptailor.checkpoint.tensor import PackedIntegers, TensorInfo

_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_PACKED = "pack-quantized"
_ACTIVATIONS = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
    "q_scale", "q_zero_point", "k_scale", "k_zero_point", "v_scale", "v_zero_point",
)  # fmt: skip
"""Endings of tensors of activations, which are quantised while the model runs."""
_WORD = 32
_SIZE = re.compile(r"[0-9]{1,9}")
_CLASS = re.compile(r"[A-Za-z_]\w*")
"""A target that means all modules of a class."""


@final
@dataclass(frozen=True, slots=True)
class _Scheme:
    """The quantisation of the weights of a group of modules.

    A `block` has the rows and columns that share a scale, None for all of them; without one, the
    matrix has one scale. With groups its columns are `group`.
    """

    dtype: str
    bits: int
    symmetric: bool
    packed: bool
    group: int = 0
    block: tuple[int | None, int | None] | None = None


def read_compressed(pieces: QuantisedTensors) -> None:
    """Read each `X.weight`, or `X.weight_packed`, with its `weight_scale`."""
    _check_settings(pieces)
    by_target = _schemes(pieces)
    for name in list(pieces.left):
        if name.rpartition(".")[2] in _ACTIVATIONS:
            pieces.find(name)
    for stem in pieces.stems(".weight_scale"):
        scheme = _scheme(pieces, by_target, stem)
        if scheme.packed:
            _read_packed(pieces, stem, scheme)
            continue
        name = f"{stem}.weight"
        values = pieces.take(name, name, (scheme.dtype,))
        scales = pieces.take(f"{name}_scale", name)
        zeros = pieces.find(f"{name}_zero_point")
        if zeros is None and not scheme.symmetric:
            pieces.refuse(f"{quoted(name)} has no zero points, but its quantisation is asymmetric")
        rows, columns = pieces.check_matrix(values)
        _check_group(pieces, name, scheme, columns)
        block = scheme.block and (scheme.block[0] or rows, scheme.block[1] or columns)
        pieces.add(name, (rows, columns), block_scaled(pieces, values, scales, block, zeros))


def _read_packed(pieces: QuantisedTensors, stem: str, scheme: _Scheme) -> None:
    name = f"{stem}.weight"
    values = pieces.take(f"{name}_packed", name, ("I32",))
    scales = pieces.take(f"{name}_scale", name)
    shape = pieces.take(f"{name}_shape", name, ("I64", "I32"))
    rows, words = pieces.check_matrix(values)
    columns = words * _WORD // scheme.bits
    if scheme.group:
        columns = pieces.check_matrix(scales)[1] * scheme.group
    if (stated := _numbers(pieces, shape)) is not None:
        columns = stated[-1] if len(stated) == 2 else columns
        if stated != (rows, columns):
            pieces.refuse(f"{quoted(shape.spec.name)} is {list(stated)}, but it has {rows} rows")
    if -(-columns * scheme.bits // _WORD) != words:
        message = f"{quoted(values.spec.name)} has {words} columns of words"
        pieces.refuse(f"{message}, which doesn't match {columns} numbers of {scheme.bits} bits")
    _check_group(pieces, name, scheme, columns)
    if scheme.block is None or scheme.block[0] != 1:
        pieces.refuse(f"{quoted(name)} is packed, but has no scale for each row")
    width = scheme.block[1] or columns
    grid = (rows, -(-columns // width))
    pieces.check_shape(scales, grid)
    zeros = None
    if not scheme.symmetric:
        zeros = pieces.take(f"{name}_zero_point", name, ("I32",))
        pieces.check_shape(zeros, (-(-rows * scheme.bits // _WORD), grid[1]))
    form = PackedIntegers("compressed", scheme.bits, width, values, scales, zeros)
    pieces.add(name, (rows, columns), form)


def _numbers(pieces: QuantisedTensors, tensor: TensorInfo) -> tuple[int, ...] | None:
    """Return the whole numbers of a short tensor; None without its file."""
    raw = pieces.content(tensor) if tensor.spec.elements <= 4 else None
    kind = "q" if tensor.spec.dtype == "I64" else "i"
    return None if raw is None else struct.unpack(f"<{tensor.spec.elements}{kind}", raw)


def _check_group(pieces: QuantisedTensors, name: str, scheme: _Scheme, columns: int) -> None:
    if scheme.group and columns % scheme.group:
        message = f"{quoted(name)} has {columns} columns"
        pieces.refuse(f"{message}, which isn't a multiple of the group of {scheme.group}")


def _check_settings(pieces: QuantisedTensors) -> None:
    """Refuse settings that change weights, or a layer's arithmetic, in further ways."""
    sparsity = pieces.settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        pieces.refuse_setting("sparsity_config", sparsity, "gptailor can't read sparse weights")
    if (transforms := pieces.settings.get("transform_config")) not in (None, {}):
        pieces.refuse_setting("transform_config", transforms, "gptailor can't read rotated weights")


def _schemes(pieces: QuantisedTensors) -> dict[str, _Scheme]:
    """Return the schemes of a configuration, by target."""
    by_target: dict[str, _Scheme] = {}
    groups = pieces.settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        pieces.refuse_setting("config_groups", groups, "expected names of groups of layers")
    for key, group in groups.items():
        targets = group.get("targets") if isinstance(group, Mapping) else None
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            pieces.refuse_setting(str(key), group, "expected a list of targets")
        if group.get("weights") is not None:  # else of activations only
            by_target |= dict.fromkeys(targets, _read_scheme(pieces, group))
    return by_target


def _read_scheme(pieces: QuantisedTensors, group: Mapping[str, Any]) -> _Scheme:
    weights = group["weights"]
    if not isinstance(weights, Mapping):
        pieces.refuse_setting("weights", weights, "expected an object")
    format_ = group.get("format") or pieces.settings.get("format")
    if format_ not in (*_PLAIN, _PACKED):
        formats = ", ".join(map(quoted, (*_PLAIN, _PACKED)))
        pieces.refuse_setting("format", format_, f"expected one of {formats}")
    bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
    allowed = (2, 4, 8) if format_ == _PACKED else (8,) if kind == "float" else range(1, 9)
    if type(bits) is not int or bits not in allowed or kind not in ("int", "float"):
        form = f"{shown(kind)} of {shown(bits)} bits"
        pieces.refuse(f"its quantisation is to {form}, which gptailor can't read in '{format_}'")
    if format_ == _PACKED and kind != "int":
        pieces.refuse_setting("type", kind, "expected packed whole numbers")
    dtype = "F8_E4M3" if kind == "float" else "I8"
    symmetric = bool(weights.get("symmetric", True))
    return _with_blocks(pieces, _Scheme(dtype, bits, symmetric, format_ == _PACKED), weights)


def _with_blocks(pieces: QuantisedTensors, scheme: _Scheme, weights: Mapping[str, Any]) -> _Scheme:
    """Return the scheme with the shape of the blocks that share a scale."""
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "group" if size != -1 else "channel"
    match strategy:
        case "tensor":
            return scheme
        case "channel":
            return replace(scheme, block=(1, None))
        case "group":
            if type(size) is not int or size < 1:
                pieces.refuse_setting("group_size", size, "expected a positive whole number")
            return replace(scheme, group=size, block=(1, size))
        case "block":
            sides = weights.get("block_structure")
            if isinstance(sides, str):  # an older form: 128x128
                sides = [int(n) if _SIZE.fullmatch(n) else n for n in sides.split("x")]
            return replace(scheme, block=pieces.sides("block_structure", sides))
    pieces.refuse_setting("strategy", strategy, "gptailor can't read it")


def _scheme(pieces: QuantisedTensors, by_target: Mapping[str, _Scheme], module: str) -> _Scheme:
    """Return a module's scheme: by its name, else by a pattern, else by its class."""
    if module in by_target:
        return by_target[module]
    for target in sorted(t for t in by_target if t.startswith("re:")):
        pattern = target.removeprefix("re:")
        if may_hang(pattern, len(module)):
            pieces.refuse_setting("targets", target, "expected a pattern that is quick to match")
        try:
            if re.match(pattern, module):
                return by_target[target]
        except (re.error, RecursionError, OverflowError):
            pieces.refuse_setting("targets", target, "expected a valid pattern")
    classes = [s for target, s in by_target.items() if _CLASS.fullmatch(target)]
    if len(set(classes)) != 1:
        how = "no group" if not classes else "several groups"
        pieces.refuse(f"{how} of its quantisation may be for {quoted(module)}")
    return classes[0]
