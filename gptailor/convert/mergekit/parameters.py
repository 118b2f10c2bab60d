"""A mergekit parameter for one tensor: the block that decides, its filters and its gradients."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from gptailor.convert.mergekit.base import TensorNames
from gptailor.convert.mergekit.config import Filtered, ParameterBlock
from gptailor.convert.mergekit.methods import (
    MERGEKIT_METHODS,
    Gradient,
    MergekitMethod,
    NeedsLayerValues,
    ParameterValue,
)
from gptailor.convert.note import Note
from gptailor.plan.faults import Place, nearest
from gptailor.plan.written_out import curve_at

_OLD_PARAMETERS = ("embed_slerp", "similarity_threshold")
"""Parameters of older versions."""

_TRUE: tuple[object, ...] = (True, "true", "t", "yes", "y", "on", "1")
_FALSE: tuple[object, ...] = (False, "false", "f", "no", "n", "off", "0")
"""Flags as mergekit reads them; its own files have 1.0 and 0.0, which are equal to these."""


def parameter_value(
    name: str,
    tensor: str,
    t: float | None,
    blocks: Sequence[ParameterBlock],
    method: MergekitMethod,
) -> ParameterValue:
    """Return a tensor's parameter: from the first block that has one for it, or the default.

    `t` is the tensor's place in its slice: 0 at the first layer, 1 at the last. Without it
    numbers that change along the slice come back as a gradient.
    """
    default = method.parameters[name]
    check = partial(_checked, name, is_flag=isinstance(default, bool))
    for block in blocks:
        for setting, at in _settings(block, name):
            if setting.filter not in tensor:
                continue
            if not isinstance(setting.value, list):
                return check(block, setting.value, at)
            places = ((*at, i) for i in range(len(setting.value)))
            return _interpolated([*map(partial(check, block), setting.value, places)], t)
    return default


def _interpolated(values: Sequence[float | bool], t: float | None) -> ParameterValue:
    """Return a list's value at `t`, or the gradient without it; flags are steps."""
    if len(set(values)) == 1:
        return values[0]
    if any(isinstance(value, bool) for value in values):
        if t is None:
            raise NeedsLayerValues
        return values[int(t * (len(values) - 1))]
    return Gradient(tuple(values)) if t is None else curve_at(values, t, 0, 1)


def _settings(block: ParameterBlock, name: str) -> Iterator[tuple[Filtered, Place]]:
    """Yield a parameter's values with their filters and their places in the block."""
    setting, at = block.parameters.get(name), ("parameters", name)
    if isinstance(setting, Filtered):
        yield setting, (*at, "value")
    elif isinstance(setting, list) and isinstance(setting[0], Filtered):
        yield from ((filtered, (*at, i, "value")) for i, filtered in enumerate(setting))
    elif setting is not None:
        yield Filtered.model_construct(value=setting), at


def _checked(
    name: str, block: ParameterBlock, value: object, at: Place, *, is_flag: bool
) -> float | bool:
    """Return a flag or a finite number; YAML 1.1 reads `1e-3` as a text."""
    if is_flag:
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
    """Return the filters of a block's parameter."""
    return [setting.filter for setting, _ in _settings(block, name) if setting.filter]


def unread_parameters(block: ParameterBlock, method: MergekitMethod) -> Iterator[Note]:
    """Yield a note for each parameter of a block that its method ignores."""
    known = {name for each in MERGEKIT_METHODS.values() for name in each.parameters}
    for name in block.parameters:
        if name in method.parameters:
            continue
        message = f"'{method.name}' has no '{name}'; it does nothing, in mergekit neither"
        if name not in known and name not in _OLD_PARAMETERS:
            message = f"mergekit knows no parameter '{name}', and passes over it"
            message += _in_brackets(nearest(name, method.parameters))
        yield block.note(message, "parameters", name, ignored=True)
    if block.parameters.get("int8_mask") and "int8_mask" in method.shared:
        yield block.note("it saves mergekit memory, and changes nothing", "parameters", "int8_mask")


def idle_filters(block: ParameterBlock, names: TensorNames, layers: int) -> Iterator[Note]:
    """Yield a note for each filter of a block that decides no tensor of a model's `layers`.

    The first filter that matches a tensor decides.
    """
    for name in (name for name in block.parameters if filters_of(block, name)):
        every = undecided = names.names(layers)
        for word in (setting.filter for setting, _ in _settings(block, name)):
            message = ""
            if not any(word in tensor for tensor in every):
                message = (
                    f"no tensor has '{word}' in mergekit's name for it, so that it does nothing"
                    f"{_in_brackets(names.nearest(word, layers))}"
                )
            elif word and not any(word in tensor for tensor in undecided):
                message = f"values before '{word}' have all of its tensors, so that it does nothing"
            if message:
                yield block.note(message, "parameters", name, ignored=True)
            undecided = [tensor for tensor in undecided if word not in tensor]


def idle_parameters(
    source: ParameterBlock, method: MergekitMethod, *, is_base: bool
) -> Iterator[Note]:
    """Yield a note for each parameter of a source that has no effect there."""
    for name in source.parameters:
        if name in method.shared:
            yield source.note(
                f"'{name}' of one source does nothing, in mergekit neither", "parameters", name
            )
        elif is_base and "lambda" in method.shared and name in ("weight", "density"):
            yield source.note(f"the base's own '{name}' does nothing", "parameters", name)


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""
