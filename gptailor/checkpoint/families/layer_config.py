"""Types of a configuration and of one layer's part of it; refusals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

Config = Mapping[str, Any]
LayerEntry = Mapping[str, Any]
"""One layer's configuration: a value for the name of each rule."""

QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Keys that state how weights are quantised."""


def quantisation(config: Config) -> Any:
    """Return the quantisation's configuration, or None."""
    return next((config[key] for key in QUANTISATION_KEYS if config.get(key)), None)


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason why a model or a configuration is impossible, and what to do."""

    reason: str
    help: str = ""


@final
class RuleError(ValueError):
    """A reason why a configuration has no value for a rule, or can't have one."""


def window(config: Config, *, gated: bool, default: int | None) -> object:
    """Return the width of the window, of whatever type; None: no layer has one.

    In a `gated` family the window counts only where `use_sliding_window` is set.
    """
    if gated and not config.get("use_sliding_window", False):
        return None
    return config.get("sliding_window", default)
