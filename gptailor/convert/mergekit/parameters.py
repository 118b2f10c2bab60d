"""What a mergekit parameter is for one tensor: filters, gradients, and which block decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.convert.mergekit.config import Scope, SliceSource
from gptailor.convert.yaml import Document
from gptailor.plan.faults import Place, nearest

DEFAULTS: dict[str, float | bool | None] = {
    "weight": None,
    "density": 1.0,
    "gamma": 0.01,
    "scale": None,
    "t": None,
    "lambda": 1.0,
    "normalize": None,
    "rescale": None,
    "int8_mask": False,
    "filter_wise": False,
    "max_iter": 10.0,
    "tol": 1e-5,
}
"""The parameters of the methods that are known, and what they are where nothing is said."""

BY_SOURCE = ("weight", "density", "gamma", "scale")
"""Parameters that each source has for itself; mergekit reads the others of slice and file alone."""

OF_OTHERS = ("epsilon", "select_topk", "r", "alpha", "nuslerp_row_wise", "nuslerp_flatten",
             "embed_slerp", "eps", "similarity_threshold")  # fmt: skip
"""Parameters of methods that have no equivalent, and of older versions."""

_FLAGS = ("normalize", "rescale", "int8_mask", "filter_wise")

ParameterValue = float | bool | None


@dataclass(frozen=True)
class Spot:
    """A tensor and how far through its slice it is: 0 at the first layer, 1 at the last."""

    tensor: str
    t: float


@dataclass(frozen=True)
class ParameterBlocks:
    """The blocks that decide a slice's parameters, the slice's own first."""

    document: Document
    scopes: Sequence[Scope]

    def shared(self, name: str, spot: Spot) -> ParameterValue:
        """A parameter of the slice."""
        return self._resolved(name, spot, self.scopes)

    def of(self, source: SliceSource, name: str, spot: Spot) -> ParameterValue:
        """A parameter of a source: its own block, then the slice's."""
        return self._resolved(name, spot, (source.scope, *self.scopes))

    def place(self, name: str, source: SliceSource | None = None) -> Place:
        """Where a parameter is said: the first block that has it."""
        scopes = self.scopes if source is None else (source.scope, *self.scopes)
        return next(((*s.at, name) for s in scopes if name in s.values), ())

    def _resolved(self, name: str, spot: Spot, scopes: Sequence[Scope]) -> ParameterValue:
        for scope in scopes:
            if name in scope.values:
                found = self._evaluated(name, scope.values[name], spot, (*scope.at, name))
                if found is not None:
                    return found
        return DEFAULTS[name]

    def _evaluated(self, name: str, setting: Any, spot: Spot, at: Place) -> ParameterValue:
        """The value for a tensor; None where no filter is the tensor's."""
        if isinstance(setting, dict):
            setting = [setting]
        if isinstance(setting, list) and isinstance(setting[0], dict):
            for i, one in enumerate(setting):
                if filter_matches(one.get("filter"), spot.tensor):
                    return self._evaluated(name, one["value"], spot, (*at, i, "value"))
            return None
        if not isinstance(setting, list):
            return self._scalar(name, setting, at)
        values = [self._scalar(name, one, (*at, i)) for i, one in enumerate(setting)]
        return _interpolated(values, spot.t)

    def _scalar(self, name: str, value: object, at: Place) -> float | bool:
        if name in _FLAGS:
            if not isinstance(value, bool):
                raise self.document.error(at, f"'{name}' is true or false, and not {value!r}")
            return value
        number = _number(value)
        if number is None:
            raise self.document.error(at, f"'{name}' is a number, and not {value!r}")
        return number


def filter_matches(filter_: str | None, tensor: str) -> bool:
    """Whether a filter is a tensor's: it is a part of its name, or there is none."""
    return filter_ is None or filter_ == "*" or filter_ in tensor


def _interpolated(values: Sequence[float | bool], t: float) -> float | bool:
    """The value on the straight lines through the values, evenly spaced; flags are steps."""
    if any(isinstance(value, bool) for value in values):
        return values[int(t * (len(values) - 1))]
    scaled = t * (len(values) - 1)
    low = int(scaled)
    high = min(len(values) - 1, low + 1)
    share = scaled - low
    return (1 - share) * values[low] + share * values[high]


def _number(value: object) -> float | None:
    """A finite number; YAML 1.1 reads `1e-3` as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def filters_of(setting: Any) -> list[str]:
    """The filters that a setting has."""
    entries = setting if isinstance(setting, list) else [setting]
    found = [entry.get("filter") for entry in entries if isinstance(entry, dict)]
    return [one for one in found if one is not None and one != "*"]


def unread(document: Document, scope: Scope, known: Sequence[str], method: str) -> dict[str, str]:
    """The parameters of a block that its method doesn't read, and why."""
    found = {}
    for name in scope.values:
        if name in known:
            continue
        if name not in DEFAULTS and name not in OF_OTHERS:
            help_ = nearest(name, known) or f"'{method}' has {', '.join(known) or 'none'}"
            raise document.error((*scope.at, name), f"there is no parameter '{name}'", help_)
        found[name] = f"'{method}' has no '{name}'; it does nothing, in mergekit neither"
    return found
