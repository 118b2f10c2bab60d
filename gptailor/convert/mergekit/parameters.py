"""A mergekit parameter for one tensor: which block decides, filters, gradients."""

import math
from collections.abc import Iterator, Sequence

from gptailor.convert.mergekit.amounts import Gradient, NeedsNumbers, ParameterValue
from gptailor.convert.mergekit.config import Filtered, ParameterBlock
from gptailor.convert.mergekit.methods import MERGEKIT_METHODS
from gptailor.convert.mergekit.mixture import MergekitMethod
from gptailor.convert.mergekit.names import TensorNames
from gptailor.convert.note import Note
from gptailor.plan.faults import Place, nearest

_DEFAULTS: dict[str, ParameterValue] = {
    "density": 1.0, "gamma": 0.01, "lambda": 1.0, "epsilon": 0.15, "select_topk": 1.0, "r": 0.1,
    "alpha": 0.2,
}  # fmt: skip
"""The values of parameters where the file has none; others have none that is a number."""

_OF_OTHERS = ("embed_slerp", "similarity_threshold")
"""Parameters of older versions."""

_TRUE: tuple[object, ...] = (True, "true", "t", "yes", "y", "on", "1")
_FALSE: tuple[object, ...] = (False, "false", "f", "no", "n", "off", "0")
"""What mergekit reads as a flag; its own files have 1.0 and 0.0, which are equal to these."""

_FLAGS = ("normalize", "rescale", "int8_mask", "filter_wise", "nuslerp_flatten",
          "nuslerp_row_wise", "normalize_weights")  # fmt: skip


def value_at(
    name: str,
    tensor: str,
    t: float | None,
    blocks: Sequence[ParameterBlock],
    method: MergekitMethod,
) -> ParameterValue:
    """A parameter for a tensor: that of the first block that has one for it, or the default.

    `t` is how far through its slice the tensor is: 0 at the first layer, 1 at the last. Without it
    numbers that change on the way come back as a gradient.
    """
    for block in blocks:
        for setting, at in _entries(block, name):
            if setting.filter not in tensor:
                continue
            given = setting.value
            if not isinstance(given, list):
                return _value(block, name, given, at)
            values = [_value(block, name, one, (*at, i)) for i, one in enumerate(given)]
            return _along(values, t)
    return method.defaults.get(name, _DEFAULTS.get(name))


def _along(values: Sequence[float | bool], t: float | None) -> ParameterValue:
    """What a list of values is at a place, or the gradient; flags are steps."""
    if len(set(values)) == 1:
        return values[0]
    if any(isinstance(value, bool) for value in values):
        if t is None:
            raise NeedsNumbers
        return values[int(t * (len(values) - 1))]
    gradient = Gradient(tuple(values))
    return gradient if t is None else gradient.at(t)


def _entries(block: ParameterBlock, name: str) -> Iterator[tuple[Filtered, Place]]:
    setting, at = block.parameters.get(name), ("parameters", name)
    if isinstance(setting, Filtered):
        yield setting, (*at, "value")
    elif isinstance(setting, list) and isinstance(setting[0], Filtered):
        yield from ((one, (*at, i, "value")) for i, one in enumerate(setting))
    elif setting is not None:
        yield Filtered.model_construct(value=setting), at


def _value(block: ParameterBlock, name: str, value: object, at: Place) -> float | bool:
    """A flag, or a finite number; YAML 1.1 reads `1e-3` as a text."""
    if name in _FLAGS:
        word = value.lower() if isinstance(value, str) else value
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise block.error(f"'{name}' is true or false, and not {value!r}", *at)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise block.error(f"'{name}' is a number, and not {value!r}", *at)
    return number


def filters_of(block: ParameterBlock, name: str) -> list[str]:
    """The filters of a block's parameter."""
    return [setting.filter for setting, _ in _entries(block, name) if setting.filter]


def unread(block: ParameterBlock, method: MergekitMethod) -> Iterator[Note]:
    """Notes on a block's parameters that its method doesn't read."""
    known = {name for each in MERGEKIT_METHODS.values() for name in each.parameters}
    for name in block.parameters:
        if name in method.parameters:
            continue
        why = f"'{method.name}' has no '{name}'; it does nothing, in mergekit neither"
        if name not in known and name not in _OF_OTHERS:
            near = nearest(name, method.parameters)
            why = f"mergekit knows no parameter '{name}', and passes over it"
            why += f" ({near})" if near else ""
        yield block.note(why, "parameters", name, ignored=True)
    if block.parameters.get("int8_mask") and "int8_mask" in method.shared:
        why = "it saves mergekit memory, and changes nothing"
        yield block.note(why, "parameters", "int8_mask")


def idle_filters(block: ParameterBlock, names: TensorNames, layers: int) -> Iterator[Note]:
    """Notes on a block's filters that no tensor of a model of that many layers has."""
    for name, filter_ in ((n, f) for n in block.parameters for f in filters_of(block, n)):
        if not names.has(filter_, layers):
            why = f"no tensor has '{filter_}' in mergekit's name for it, so that it does nothing"
            yield block.note(why, "parameters", name)


def idle_in_source(
    source: ParameterBlock, method: MergekitMethod, *, is_base: bool
) -> Iterator[Note]:
    """Notes on the parameters of one source that do nothing there."""
    for name in source.parameters:
        if name in method.shared:
            why = f"'{name}' of one source does nothing, in mergekit neither"
            yield source.note(why, "parameters", name)
        elif is_base and "lambda" in method.shared and name in ("weight", "density"):
            yield source.note(f"the base's own '{name}' does nothing", "parameters", name)
