"""`compressed-tensors`: FP8 and INT8 as they are, fewer bits packed in words."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from gptailor.checkpoint.files import open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.formats.patterns import may_hang
from gptailor.checkpoint.formats.quantised.fp8 import block_scaled
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
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
    """The quantisation of the weights of a group of modules."""

    dtype: str
    bits: int
    symmetric: bool
    strategy: str
    group: int
    block: tuple[int, int] | None
    packed: bool

    def block_of(self, rows: int, columns: int) -> tuple[int, int] | None:
        """Return the rows and columns that share a scale; None for all."""
        match self.strategy:
            case "channel":
                return 1, columns
            case "group":
                return 1, self.group
            case "block":
                return self.block
            case _:
                return None


def read_compressed(pieces: QuantisedTensors) -> None:
    """Read each `X.weight`, or `X.weight_packed`, with its `weight_scale`."""
    _check_settings(pieces)
    groups = _Groups(pieces)
    for name in list(pieces.left):
        if name.rpartition(".")[2] in _ACTIVATIONS:
            pieces.find(name)
    for stem in pieces.stems(".weight_scale"):
        scheme = groups.scheme(stem)
        if scheme.packed:
            _read_packed(pieces, stem, scheme)
            continue
        name = f"{stem}.weight"
        values = pieces.take(name, name, (scheme.dtype,))
        scales = pieces.take(f"{name}_scale", name)
        zeros = pieces.find(f"{name}_zero_point")
        if zeros is None and not scheme.symmetric:
            pieces.refuse(f"{quoted(name)} has no zero points, and its quantisation is asymmetric")
        rows, columns = pieces.check_matrix(values)
        _check_group(pieces, name, scheme, columns)
        block = scheme.block_of(rows, columns)
        form = block_scaled(pieces, values, scales, block, zeros)
        pieces.add(name, (rows, columns), form)


def _read_packed(pieces: QuantisedTensors, stem: str, scheme: _Scheme) -> None:
    name = f"{stem}.weight"
    values = pieces.take(f"{name}_packed", name, ("I32",))
    scales = pieces.take(f"{name}_scale", name)
    shape = pieces.take(f"{name}_shape", name, ("I64", "I32"))
    rows, words = pieces.check_matrix(values)
    columns = words * _WORD // scheme.bits
    if scheme.strategy == "group":
        columns = pieces.check_matrix(scales)[1] * scheme.group
    if (stated := _numbers(shape)) is not None:
        columns = stated[-1] if len(stated) == 2 else columns
        if stated != (rows, columns):
            pieces.refuse(f"{quoted(shape.spec.name)} is {list(stated)}, and there are {rows} rows")
    if -(-columns * scheme.bits // _WORD) != words:
        message = f"{quoted(values.spec.name)} has {words} columns of words"
        pieces.refuse(f"{message}, and {columns} numbers of {scheme.bits} bits take another number")
    _check_group(pieces, name, scheme, columns)
    block = scheme.block_of(rows, columns)
    if block is None or block[0] != 1:
        pieces.refuse(f"{quoted(name)} is packed, and has no scale of its own for each row")
    grid = (rows, -(-columns // block[1]))
    pieces.check_shape(scales, grid)
    zeros = None
    if not scheme.symmetric:
        zeros = pieces.take(f"{name}_zero_point", name, ("I32",))
        pieces.check_shape(zeros, (-(-rows * scheme.bits // _WORD), grid[1]))
    form = PackedIntegers("compressed", scheme.bits, block[1], values, scales, zeros)
    pieces.add(name, (rows, columns), form)


def _numbers(tensor: TensorInfo) -> tuple[int, ...] | None:
    """Return the whole numbers of a short tensor; None without its file."""
    if tensor.form is not None or not tensor.file.exists() or tensor.spec.elements > 4:
        return None
    with open_regular(tensor.file) as file:
        file.seek(tensor.offset)
        raw = read_exactly(file, tensor.spec.size, tensor.file, "C304")
    kind = "q" if tensor.spec.dtype == "I64" else "i"
    return struct.unpack(f"<{tensor.spec.elements}{kind}", raw)


def _check_group(pieces: QuantisedTensors, name: str, scheme: _Scheme, columns: int) -> None:
    if scheme.strategy == "group" and columns % scheme.group:
        message = f"{quoted(name)} has {columns} columns"
        pieces.refuse(f"{message}, which groups of {scheme.group} don't divide")


def _check_settings(pieces: QuantisedTensors) -> None:
    """Refuse settings that change weights, or a layer's arithmetic, in further ways."""
    sparsity = pieces.settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        pieces.refuse_setting("sparsity_config", sparsity, "sparse weights aren't read")
    if (transforms := pieces.settings.get("transform_config")) not in (None, {}):
        pieces.refuse_setting("transform_config", transforms, "rotated weights aren't read")


@final
class _Groups:
    """The schemes of a configuration, by target."""

    def __init__(self, pieces: QuantisedTensors) -> None:
        self.pieces = pieces
        self.by_target: dict[str, _Scheme] = {}
        groups = pieces.settings.get("config_groups")
        if not isinstance(groups, Mapping) or not groups:
            pieces.refuse_setting("config_groups", groups, "should name groups of layers")
        for key, group in groups.items():
            targets = group.get("targets") if isinstance(group, Mapping) else None
            if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
                pieces.refuse_setting(str(key), group, "should have a list of targets")
            if group.get("weights") is None:
                continue  # of activations only
            scheme = self._read(group)
            self.by_target |= dict.fromkeys(targets, scheme)

    def _read(self, group: Mapping[str, Any]) -> _Scheme:
        weights = group["weights"]
        if not isinstance(weights, Mapping):
            self.pieces.refuse_setting("weights", weights, "should be an object")
        format_ = group.get("format") or self.pieces.settings.get("format")
        if format_ not in (*_PLAIN, _PACKED):
            formats = ", ".join(map(quoted, (*_PLAIN, _PACKED)))
            self.pieces.refuse_setting("format", format_, f"those read are {formats}")
        bits, kind = weights.get("num_bits", 8), weights.get("type", "int")
        allowed = (2, 4, 8) if format_ == _PACKED else (8,) if kind == "float" else range(1, 9)
        if type(bits) is not int or bits not in allowed or kind not in ("int", "float"):
            form = f"{shown(kind)} of {shown(bits)} bits"
            self.pieces.refuse(f"its quantisation is to {form}, which '{format_}' isn't read with")
        if format_ == _PACKED and kind != "int":
            self.pieces.refuse_setting("type", kind, "whole numbers are packed")
        size = weights.get("group_size")
        strategy = weights.get("strategy")
        if strategy is None:
            strategy = "tensor" if size is None else "group" if size != -1 else "channel"
        if strategy not in ("tensor", "channel", "group", "block"):
            self.pieces.refuse_setting("strategy", strategy, "isn't read")
        group_size = size if type(size) is int and strategy == "group" else 0
        if strategy == "group" and group_size < 1:
            self.pieces.refuse_setting("group_size", size, "should be a positive whole number")
        dtype = "F8_E4M3" if kind == "float" else "I8"
        block = self._block(weights.get("block_structure")) if strategy == "block" else None
        symmetric = bool(weights.get("symmetric", True))
        return _Scheme(
            dtype, bits, symmetric, strategy, group_size, block, packed=format_ == _PACKED
        )

    def _block(self, size: object) -> tuple[int, int]:
        if isinstance(size, str):  # an older form: 128x128
            size = [int(n) if _SIZE.fullmatch(n) else n for n in size.split("x")]
        match size:
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return rows, columns
            case _:
                wanted = "should be two whole numbers"
                self.pieces.refuse_setting("block_structure", size, wanted)

    def scheme(self, module: str) -> _Scheme:
        """Return a module's scheme: by its name, else by a pattern, else by its class."""
        if module in self.by_target:
            return self.by_target[module]
        for target in sorted(t for t in self.by_target if t.startswith("re:")):
            pattern = target.removeprefix("re:")
            if may_hang(pattern, len(module)):
                self.pieces.refuse_setting("targets", target, "could be matched for ever")
            try:
                if re.match(pattern, module):
                    return self.by_target[target]
            except (re.error, RecursionError, OverflowError):
                self.pieces.refuse_setting("targets", target, "is no pattern")
        classes = [s for target, s in self.by_target.items() if _CLASS.fullmatch(target)]
        if len(set(classes)) != 1:
            how = "no group" if not classes else "several groups"
            self.pieces.refuse(f"{how} of its quantisation may be for {quoted(module)}")
        return classes[0]
