"""`bitsandbytes`: 4 bits by a table (NF4, FP4), their maxima perhaps quantised too, and INT8."""

import json
import math
from typing import Annotated, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gptailor.checkpoint.files import quoted, shown
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.tensor import Blockwise, NestedMaxima, Scaled, TensorInfo
from gptailor.plan.plan import Several
from gptailor.plan.registry import LARGEST_SINGLE

_Count = Annotated[int, Field(gt=0, lt=2**31)]

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
        pieces.add(name, (rows, columns), Scaled(values, scales, (1, columns), factor=_INT8_FACTOR))


def _read_4bit(pieces: QuantisedTensors, name: str, kind: str) -> None:
    values = pieces.take(name, name, ("U8", "I8", "BF16", "F16", "F32"))
    stated = pieces.left.pop(f"{name}.quant_state.bitsandbytes__{kind}")
    nests = f"{name}.nested_absmax" in pieces.left
    state = _read_state(pieces, stated, _NestedState if nests else _State)
    shape, block = state.shape, state.blocksize
    entries = math.prod(shape)
    if values.spec.size != -(-entries // 2):
        message = f"{quoted(name)} has {values.spec.size} bytes"
        pieces.refuse(f"{message}, but {list(shape)} numbers of 4 bits need {-(-entries // 2)}")
    table = pieces.take(f"{name}.quant_map", name, ("F32",))
    pieces.check_shape(table, (_TABLE,))
    nested = None
    if isinstance(state, _NestedState):
        maxima = pieces.take(f"{name}.absmax", name, ("U8",))
        inner = pieces.take(f"{name}.nested_absmax", name, ("F32",))
        inner_table = pieces.take(f"{name}.nested_quant_map", name, ("F32",))
        pieces.check_shape(inner_table, (_NESTED_TABLE,))
        inner_block = state.nested_blocksize
        pieces.check_shape(inner, (-(-maxima.spec.elements // inner_block),))
        nested = NestedMaxima(inner_table, inner, inner_block, state.nested_offset)
    else:
        maxima = pieces.take(f"{name}.absmax", name, ("F32",))
    pieces.check_shape(maxima, (-(-entries // block),))
    pieces.add(name, shape, Blockwise(values, table, maxima, block, nested))


class _State(BaseModel):
    """The state of a weight, without its tensors: the quantised matrix's shape and its blocks."""

    model_config = ConfigDict(strict=True, extra="ignore")

    shape: Annotated[Several[_Count], Field(min_length=2)]
    blocksize: _Count


@final
class _NestedState(_State):
    """The state of a weight with quantised maxima."""

    nested_blocksize: _Count
    nested_offset: float = Field(ge=-LARGEST_SINGLE, le=LARGEST_SINGLE)


def _read_state(pieces: QuantisedTensors, tensor: TensorInfo, kind: type[_State]) -> _State:
    """Return a state, which is JSON in bytes."""
    name = quoted(tensor.spec.name)
    if tensor.spec.dtype != "U8" or tensor.spec.size > _LONGEST_STATE:
        pieces.refuse(f"{name} isn't a valid text of bitsandbytes")
    if (raw := pieces.content(tensor)) is None:
        help = "fetch the model with `hf download`, and name its folder"
        why = "which can't be read from the Hub"
        pieces.refuse(f"{name} has the form of its weight's quantisation, {why}", help)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        place = error.errors(include_input=False)[0]["loc"]
    if not place:
        pieces.refuse(f"{name} isn't a JSON object")
    value = json.loads(raw).get(place[0])
    pieces.refuse(f"'{place[0]}' of {name} is {shown(value)}, which gptailor can't read")
