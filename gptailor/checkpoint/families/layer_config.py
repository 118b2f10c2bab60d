"""What a configuration says of each layer by its position, and how that moves with the layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from gptailor.checkpoint.files import shown
from gptailor.plan.parts import Branch

Config = Mapping[str, Any]
LayerEntry = Mapping[str, Any]
"""What one layer's configuration is: a value for the name of each rule."""

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DENSE, SPARSE = "dense", "sparse"

_OLDER_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
}
"""What transformers 5 calls the kinds of layers that older configurations name so."""


QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Where a configuration says how weights are quantised."""


def quantisation(config: Config) -> Any:
    """What a configuration says of its quantisation, or None."""
    return next((config[key] for key in QUANTISATION_KEYS if config.get(key)), None)


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something can't be said of a model or written into its configuration; what to do."""

    reason: str
    help: str = ""


@final
class RuleError(ValueError):
    """Raised in a rule's functions: why there is no such value or configuration."""


Values = Sequence[Any]
Read = Callable[[Config, int], list[Any]]
Write = Callable[[Config, Values], dict[str, Any]]


@final
@dataclass(frozen=True)
class LayerRule:
    """One thing that a configuration says by position: its name, and the part that it is about.

    `read` makes a list with one value for each layer of a configuration that has that many;
    `write` makes the configuration whose layers, in order, have these values. Either may raise
    `RuleError`.
    """

    name: str
    part: Branch
    read: Read
    write: Write


def listed_per_layer(key: str, part: Branch) -> LayerRule:
    """A list with an entry a layer, where the model reads it but doesn't need it."""

    def write(config: Config, values: Values) -> dict[str, Any]:
        return dict(config) if config.get(key) is None else {**config, key: complete(key, values)}

    return LayerRule(key, part, lambda config, count: _list(config, key, count), write)


def derived(
    key: str,
    part: Branch,
    derive: Read,
    *,
    older: str | None = None,
    replaces: tuple[str, ...] = (),
    keep: Write | None = None,
) -> LayerRule:
    """A list with an entry a layer that older configurations leave to a rule of positions.

    It is written out, and the keys of the rule that it `replaces` are left out. `keep` makes a
    rule that can't be left out agree with the list where it can. A configuration may have the list
    under an `older` name, where it stays.
    """

    def named(config: Config) -> str:
        return older if older and older in config and config.get(key) is None else key

    def read(config: Config, count: int) -> list[Any]:
        given = config.get(named(config))
        if given is None:
            return derive(config, count)
        return [current_name(value) for value in _list(config, named(config), count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        given = config.get(named(config))
        words = {_OLDER_NAMES[v]: v for v in _OLDER_NAMES if isinstance(given, list) and v in given}
        out = {name: value for name, value in config.items() if name not in replaces}
        said = [words.get(v, v) if isinstance(v, str) else v for v in complete(key, values)]
        names = (key, older) if older else (key,)
        out |= {name: said for name in names if name == named(config) or name in config}
        return keep(out, values) if keep else out

    return LayerRule(key, part, read, write)


def unset(key: str, why: str) -> LayerRule:
    """A key that turns a model into another; where it is set, the model is refused."""

    def read(config: Config, count: int) -> list[Any]:
        if config.get(key):
            raise RuleError(f"'{key}' is {shown(config[key])}, {why}")
        return [None] * count

    return LayerRule(key, "mlp", read, lambda config, values: dict(config))


def in_place(name: str, part: Branch, why: str) -> LayerRule:
    """A layer computes with its own number, and stays where it is; `why` is a clause."""

    def write(config: Config, values: Values) -> dict[str, Any]:
        for i, value in enumerate(values):
            if value != i:
                raise RuleError(f"{why}, and L{value} would be L{i}")
        return dict(config)

    return LayerRule(name, part, lambda config, count: list(range(count)), write)


def at_end(name: str, part: Branch, end: Literal["first", "last"], why: str) -> LayerRule:
    """The layer at an end is built otherwise, and stays there; `why` is a clause."""

    def ends(count: int) -> list[Any]:
        return [i == (0 if end == "first" else count - 1) for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        for i, (value, wanted) in enumerate(zip(values, ends(len(values)), strict=True)):
            if value != wanted:
                which = f"the {end} layer" if value else "another layer"
                raise RuleError(f"{why}, and {which} would be L{i}")
        return dict(config)

    return LayerRule(name, part, lambda config, count: ends(count), write)


def current_name(kind: Any) -> Any:
    """A kind of layer as transformers 5 names it, whatever an older configuration says."""
    return _OLDER_NAMES.get(kind, kind) if isinstance(kind, str) else kind


def _list(config: Config, key: str, count: int) -> list[Any]:
    values = config.get(key)
    if values is None:
        return [None] * count
    if not isinstance(values, list | tuple):
        raise RuleError(f"'{key}' is {shown(values)}, and the model has {count} layers")
    if len(values) != count:
        raise RuleError(f"'{key}' has {len(values)} entries, and the model has {count} layers")
    return list(values)


def complete(key: str, values: Values) -> list[Any]:
    """The values, if each layer has one."""
    if None in values:
        raise RuleError(f"'{key}' has no entry for the layer that would be L{values.index(None)}")
    return list(values)


def int_of(config: Config, key: str, default: int, least: int = 0) -> int:
    """A key that is an integer from `least` up."""
    value = config.get(key, default)
    if type(value) is not int or value < least:
        raise RuleError(f"'{key}' is {shown(value)}, and should be an integer from {least} up")
    return value


def alternating(period: int, key: str | None = None) -> Read:
    """Every layer slides but each `period`-th; a configuration may say another period by `key`."""

    def derive(config: Config, count: int) -> list[Any]:
        every = int_of(config, key, period, least=1) if key else period
        return [SLIDING if (i + 1) % every else FULL for i in range(count)]

    return derive


def full_at(period: int, key: str | None = None) -> Read:
    """The first layer is full and each `period`-th after it, the others slide."""

    def derive(config: Config, count: int) -> list[Any]:
        every = int_of(config, key, period, least=1) if key else period
        return [SLIDING if i % every else FULL for i in range(count)]

    return derive


def sliding(
    types: LayerRule,
    *,
    gated: bool = False,
    default: int | None = 4096,
) -> tuple[LayerRule, LayerRule]:
    """The types of attention, and the window of the layers that slide: one width a model.

    In a `gated` family the window counts only where `use_sliding_window` is set.
    """

    def read(config: Config, count: int) -> list[Any]:
        kinds = types.read(config, count)
        width = window(config, gated=gated, default=default)
        if width is not None and not isinstance(width, int | float):
            raise RuleError(f"'sliding_window' is {shown(width)}, and should be a number")
        return [width if kind == SLIDING else None for kind in kinds]

    def write(config: Config, values: Values) -> dict[str, Any]:
        widths = sorted({value for value in values if value is not None})
        if len(widths) > 1:
            several = " and ".join(map(str, widths))
            message = "'sliding_window' is one number for all layers, and these layers have windows"
            raise RuleError(f"{message} of {several}")
        gate = {"use_sliding_window": True} if gated else {}
        return {**config, **gate, "sliding_window": widths[0]} if widths else dict(config)

    return types, LayerRule("sliding_window", "attn", read, write)


def window(config: Config, *, gated: bool, default: int | None) -> object:
    """What is said of the window, of whatever type; None: no layer has one."""
    if gated and not config.get("use_sliding_window", False):
        return None
    return config.get("sliding_window", default)
