"""`bitsandbytes`: 4 bits by a table (NF4, FP4), their maxima perhaps quantised too, and INT8."""

import json
import math
from typing import Any, final

from gptailor.checkpoint.files import open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.tensor import Blockwise, NestedMaxima, Scaled, TensorInfo
from gptailor.plan.registry import LARGEST_SINGLE

_INT8_FACTOR = 7.874015718698502e-3
"""The factor that bitsandbytes uses in place of a division by 127."""
_TABLE = 16
_NESTED_TABLE = 256
_LONGEST_STATE = 2**16
"""Bytes of a state's JSON; it has some 200."""


def read_bitsandbytes(pieces: QuantisedTensors) -> None:
    """Read each `X.weight` with `X.weight.absmax` and its state, or with `X.SCB`."""
    for kind in ("nf4", "fp4"):
        for name in pieces.stems(f".quant_state.bitsandbytes__{kind}"):
            _read_4bit(pieces, name, kind)
    for stem in pieces.stems(".SCB"):
        name = f"{stem}.weight"
        values = pieces.take(name, name, ("I8",))
        rows, columns = pieces.check_matrix(values)
        scales = pieces.take(f"{stem}.SCB", name, ("F32",))
        pieces.check_shape(scales, (rows,))
        pieces.find(f"{stem}.weight_format")
        form = Scaled(values, scales, (1, columns), factor=_INT8_FACTOR)
        pieces.add(name, (rows, columns), form)


def _read_4bit(pieces: QuantisedTensors, name: str, kind: str) -> None:
    values = pieces.take(name, name, ("U8", "I8", "BF16", "F16", "F32"))
    state = _State(pieces, pieces.left.pop(f"{name}.quant_state.bitsandbytes__{kind}"))
    shape, block = state.shape(), state.count("blocksize")
    entries = math.prod(shape)
    if values.spec.size != -(-entries // 2):
        message = f"{quoted(name)} has {values.spec.size} bytes"
        pieces.refuse(f"{message}, and {list(shape)} numbers of 4 bits take {-(-entries // 2)}")
    table = pieces.take(f"{name}.quant_map", name, ("F32",))
    pieces.check_shape(table, (_TABLE,))
    nested = None
    if f"{name}.nested_absmax" in pieces.left:
        maxima = pieces.take(f"{name}.absmax", name, ("U8",))
        inner = pieces.take(f"{name}.nested_absmax", name, ("F32",))
        inner_table = pieces.take(f"{name}.nested_quant_map", name, ("F32",))
        pieces.check_shape(inner_table, (_NESTED_TABLE,))
        inner_block = state.count("nested_blocksize")
        count = maxima.spec.elements
        pieces.check_shape(inner, (-(-count // inner_block),))
        nested = NestedMaxima(inner_table, inner, inner_block, state.real("nested_offset"))
    else:
        maxima = pieces.take(f"{name}.absmax", name, ("F32",))
    pieces.check_shape(maxima, (-(-entries // block),))
    pieces.add(name, shape, Blockwise(values, table, maxima, block, nested))


@final
class _State:
    """The state of a weight beside its tensors: JSON in bytes."""

    def __init__(self, pieces: QuantisedTensors, tensor: TensorInfo) -> None:
        self.pieces = pieces
        self.name = tensor.spec.name
        self.facts = self._read(tensor)

    def _read(self, tensor: TensorInfo) -> dict[str, Any]:
        if tensor.form is not None or not tensor.file.exists():
            help = "fetch the model with `hf download`, and name its folder"
            why = "and can't be read where it is"
            self.pieces.refuse(f"{quoted(self.name)} says how its weight is quantised, {why}", help)
        if tensor.spec.dtype != "U8" or tensor.spec.size > _LONGEST_STATE:
            self.pieces.refuse(f"{quoted(self.name)} is no text of bitsandbytes'")
        with open_regular(tensor.file) as file:
            file.seek(tensor.offset)
            raw = read_exactly(file, tensor.spec.size, tensor.file, "C304")
        try:
            facts = json.loads(raw)
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict):
            self.pieces.refuse(f"{quoted(self.name)} is no JSON object")
        return facts

    def _refuse(self, key: str) -> None:
        message = f"'{key}' of {quoted(self.name)} is {shown(self.facts.get(key))}"
        self.pieces.refuse(f"{message}, which isn't read")

    def count(self, key: str) -> int:
        """Return a positive whole number."""
        value = self.facts.get(key)
        if type(value) is not int or not 0 < value < 2**31:
            self._refuse(key)
        assert isinstance(value, int)
        return value

    def real(self, key: str) -> float:
        """Return a number."""
        value = self.facts.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= LARGEST_SINGLE  # NaN is neither
        ):
            self._refuse(key)
        assert isinstance(value, int | float)
        return float(value)

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the quantised matrix."""
        value = self.facts.get("shape")
        if not isinstance(value, list) or len(value) < 2:
            self._refuse("shape")
        if not all(type(size) is int and 0 < size < 2**31 for size in value or ()):
            self._refuse("shape")
        assert isinstance(value, list)
        return tuple(value)
