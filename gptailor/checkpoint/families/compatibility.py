"""Keys on which two models' configurations must agree for their layers to be exchangeable."""

from dataclasses import dataclass
from typing import Literal, final

from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import UNSPOKEN, Config, stated_value

_Weight = Literal["fault", "warning"]

_EPSILONS = frozenset({
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
})  # fmt: skip
"""Norms' epsilons: 1e-5 beside 1e-6 is a warning, as checkpoints of one family have both."""


@final
@dataclass(frozen=True)
class Disagreement:
    """A key, its value in the base, its value in the other model, and how bad that is."""

    key: str
    base_value: object
    other_value: object
    severity: _Weight


def disagreements(
    base_family: Family, other_family: Family, base: Config, other: Config, *, cautious: bool
) -> list[Disagreement]:
    """Return the keys of both families that differ in two configurations.

    If `cautious`, keys of unknown meaning are compared too.
    """
    shared = [key for key in base_family.agree if key in other_family.agree]
    read = {key: (base_family.value(key, base), other_family.value(key, other)) for key in shared}
    unknown = {*base, *other} - other_family.agree.keys() - UNSPOKEN if cautious else ()
    for key in sorted(unknown):
        read[key] = stated_value(base, key, None), stated_value(other, key, None)
    warned = {*base_family.warn, *unknown}
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
