"""Keys on which two models' configurations must agree for their layers to be exchangeable."""

from dataclasses import dataclass
from typing import Literal, final

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import UNSPOKEN, Config, stated_value
from gptailor.checkpoint.families.layout import Layout
from gptailor.checkpoint.families.vision import text_of

_Weight = Literal["fault", "warning"]

_EPSILONS = frozenset({
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
})  # fmt: skip
"""Norms' epsilons: 1e-5 against 1e-6 is a warning, as checkpoints of one family have both."""


@final
@dataclass(frozen=True)
class Disagreement:
    """A key, its value in the base, its value in the other model, and how bad that is."""

    key: str
    base_value: object
    other_value: object
    severity: _Weight


def incompatible(layout: Layout, base_config: Config, other_config: Config) -> list[Disagreement]:
    """Return the keys that keep another model's layers from the base: faults and warnings.

    If the base's family isn't known, keys of unknown meaning are compared too.
    """
    base, other = text_of(base_config), text_of(other_config)
    types = [str(config.get("model_type")) for config in (base, other)]
    family = others = layout.family
    if types[1] != types[0]:
        others = FAMILY_OF.get(types[1], family)
    if (family.like or types[0]) != (others.like or types[1]):
        return [Disagreement("model_type", types[0], types[1], "fault")]
    shared = [key for key in family.agree if key in others.agree]
    read = {key: (family.value(key, base), others.value(key, other)) for key in shared}
    unknown = () if layout.known else {*base, *other} - others.agree.keys() - UNSPOKEN
    read |= {
        key: (stated_value(base, key, None), stated_value(other, key, None))
        for key in sorted(unknown)
    }
    warned = {*family.warn, *unknown}
    return [
        Disagreement(key, a, b, _severity(key, a, b, hint=key in warned))
        for key, (a, b) in read.items()
        if a != b
    ]


def _severity(key: str, a: object, b: object, *, hint: bool) -> _Weight:
    """Return how bad a difference is; epsilons that are near each other hardly matter."""
    if key in _EPSILONS:
        numbers = [value for value in (a, b) if isinstance(value, int | float) and value > 0]
        hint = len(numbers) == 2 and max(numbers) <= 10.5 * min(numbers)
    return "warning" if hint else "fault"
