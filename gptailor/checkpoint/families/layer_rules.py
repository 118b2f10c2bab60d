"""Rules for settings that move with layers, as data: a class for each form in a configuration.

The release's families and family files (`MovedKey`) use the same classes. A *derivation* gives the
values of all layers where a configuration doesn't list them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, final, runtime_checkable

from gptailor.checkpoint.families.layer_config import Config, RuleError, window
from gptailor.checkpoint.files import shown
from gptailor.plan.layer_parts import Branch

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DENSE, SPARSE = "dense", "sparse"

_OLDER_NAMES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": "indexed_attention",
}
"""Kinds of layers by the names that older configurations have for them."""

Values = Sequence[Any]
Rewrite = Callable[[Config, Values], dict[str, Any]]
"""Function of a configuration and the layers' values to a configuration that agrees with them."""


@runtime_checkable
class Derivation(Protocol):
    """Function of a configuration and the number of layers to a value for each layer."""

    def __call__(self, config: Config, count: int, /) -> list[Any]:
        """Return the values. Raises RuleError."""


@dataclass(frozen=True, eq=False)
class LayerRule(ABC):
    """One thing that a configuration states by position: its name, and the branch it concerns."""

    name: str
    part: Branch

    @abstractmethod
    def read(self, config: Config, count: int) -> list[Any]:
        """Return a value for each of `count` layers. Raises RuleError."""

    @abstractmethod
    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with these values for its layers, in order. Raises RuleError."""


# ------------------------------------------------------------------------------------ derivations


@final
class EveryNth(NamedTuple):
    """Each `period`-th layer is `nth`, all others `others`; a configuration may have a period.

    Layers are counted from 1, or from 0: then the first layer is `nth` too.
    """

    period: int
    key: str | None = None
    nth: Any = FULL
    others: Any = SLIDING
    counted_from: Literal[0, 1] = 1

    def __call__(self, config: Config, count: int) -> list[Any]:
        """Return the values."""
        step = int_of(config, self.key, self.period, least=1) if self.key else self.period
        places = range(self.counted_from, self.counted_from + count)
        return [self.others if place % step else self.nth for place in places]


@final
class FirstLayers(NamedTuple):
    """The first layers are of one kind, all others of another; a configuration may have a number.

    `others` are each `step_key`-th layer only, if there is such a key.
    """

    number: int
    key: str | None = None
    first: Any = DENSE
    others: Any = SPARSE
    step_key: str | None = None

    def __call__(self, config: Config, count: int) -> list[Any]:
        """Return the values."""
        number = int_of(config, self.key, self.number) if self.key else self.number
        step = int_of(config, self.step_key, 1, least=1) if self.step_key else 1
        later = [i >= number and i % step == 0 for i in range(count)]
        return [self.others if each else self.first for each in later]


@final
class Repeated(NamedTuple):
    """A pattern of values that begins again where it ends."""

    pattern: tuple[Any, ...]

    def __call__(self, _: Config, count: int) -> list[Any]:
        """Return the values."""
        return [self.pattern[i % len(self.pattern)] for i in range(count)]


@final
class Alike(NamedTuple):
    """Each layer has the value that a key states of all layers."""

    key: str
    default: Any

    def __call__(self, config: Config, count: int) -> list[Any]:
        """Return the values."""
        return [config.get(self.key, self.default)] * count


@final
class IfWindow(NamedTuple):
    """Kinds of attention with a window; without one all layers attend fully."""

    kinds: Derivation
    gated: bool = False

    def __call__(self, config: Config, count: int) -> list[Any]:
        """Return the values."""
        if window(config, gated=self.gated, default=4096) is None:
            return [FULL] * count
        return self.kinds(config, count)


# ------------------------------------------------------------------------------- lists and counts


@final
@dataclass(frozen=True, eq=False)
class Listed(LayerRule):
    """A list with an entry a layer, under its rule's name.

    Without a list, `absent` gives the entries, and the list is written; if `absent` is None, all
    entries are None, and no list is written. `replaces` are keys that are left out once the list is
    written, and `keep` makes other keys agree with it. A configuration may have the list under an
    `older` name, where it stays.

    If `tried` isn't None, entries must be among these. If `needed` isn't None, each kind of the
    list must remain; `needed` are the kinds of a configuration without a list.
    """

    absent: Derivation | None = None
    older: str | None = None
    replaces: tuple[str, ...] = ()
    keep: Rewrite | None = None
    tried: tuple[Any, ...] | None = None
    needed: tuple[Any, ...] | None = None

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the entries of the list, or of `absent`."""
        key = self._key(config)
        if config.get(key) is not None:
            values = list_of(config, key, count)
        else:
            values = self.absent(config, count) if self.absent else [None] * count
        if self.tried is None:
            return [current_name(value) for value in values]
        for i, value in enumerate(values):
            if value not in self.tried:
                tried = ", ".join(map(shown, self.tried))
                raise RuleError(
                    f"'{key}' of L{i} is {shown(value)}, and its family was proven with {tried}"
                )
        return values

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the list, unless it has none and needs none."""
        key = self._key(config)
        listed = config.get(key)
        if listed is None and self.absent is None:
            return dict(config)
        if self.needed is not None:
            for kind in listed or self.needed:
                if kind not in values:
                    raise RuleError(
                        f"'{key}' would have no {shown(kind)} any more, and its family needs a "
                        "layer of each kind"
                    )
        entries = self._words(listed, values) if self.tried is None else list(values)
        out = {name: value for name, value in config.items() if name not in self.replaces}
        names = (self.name, self.older) if self.older else (self.name,)
        out |= {name: entries for name in names if name == key or name in config}
        return self.keep(out, values) if self.keep else out

    def _key(self, config: Config) -> str:
        """Return the name under which the configuration has the list, or would have it."""
        if self.older and self.older in config and config.get(self.name) is None:
            return self.older
        return self.name

    def _words(self, listed: Any, values: Values) -> list[Any]:
        """Return the values in the words of the list that is there."""
        words = {
            _OLDER_NAMES[v]: v for v in _OLDER_NAMES if isinstance(listed, list) and v in listed
        }
        return [words.get(v, v) if isinstance(v, str) else v for v in complete(self.name, values)]


@final
@dataclass(frozen=True, eq=False)
class Numbered(LayerRule):
    """A list of the numbers of the layers of the second kind; all others are of the first.

    Without the list `absent` gives the kinds; `keep` makes other keys agree with the list. Numbers
    beyond the last layer are passed over, unless the rule is `strict`; with `every_kind` a layer
    of each kind must remain.
    """

    key: str
    kinds: tuple[Any, Any]
    absent: Derivation
    keep: Rewrite | None = None
    strict: bool = False
    every_kind: bool = False

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        numbers = config.get(self.key)
        if numbers is None:
            return self.absent(config, count)
        if not isinstance(numbers, list | tuple):
            raise RuleError(f"'{self.key}' is {shown(numbers)}, and should be a list")
        if self.strict and any(type(number) is not int for number in numbers):
            raise RuleError(f"'{self.key}' is {shown(numbers)}, and should be a list of layers")
        beyond = next((n for n in numbers if self.strict and not 0 <= n < count), None)
        if beyond is not None:
            raise RuleError(f"'{self.key}' names layer {beyond}, and the model has {count} layers")
        return [self.kinds[i in numbers] for i in range(count)]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the numbers."""
        kinds = complete(self.key, values)
        if self.every_kind and len(set(kinds)) < 2:
            raise RuleError(
                f"'{self.key}' would name all layers, or no layer: its family needs both kinds"
            )
        numbers = [i for i, kind in enumerate(kinds) if kind == self.kinds[1]]
        out = {**config, self.key: numbers}
        return self.keep(out, kinds) if self.keep else out


@final
@dataclass(frozen=True, eq=False)
class First(LayerRule):
    """The number of the first layers that are of the first kind; all others are of the second.

    `default` is the number of a configuration without the key. A configuration with a step
    (`step_key`) is refused; with `every_kind` a layer of each kind must remain.
    """

    key: str
    kinds: tuple[str, str] = (DENSE, SPARSE)
    default: int | None = None
    step_key: str | None = None
    every_kind: bool = False

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        stated = config.get(self.key)
        number = int_of({self.key: self.default if stated is None else stated}, self.key, 0)
        if self.step_key and (step := config.get(self.step_key, 1)) != 1:
            raise RuleError(f"'{self.step_key}' is {shown(step)}, which transformers doesn't read")
        return [self.kinds[i >= number] for i in range(count)]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the number."""
        first, later = self.kinds
        number = first_place(later, values)
        for i, value in enumerate(values):
            if value != (first if i < number else later):
                raise RuleError(
                    f"'{self.key}' makes the first layers {first} and all others {later}, "
                    f"and a {first} layer would be L{i}, after the {later} L{number}"
                )
        if self.every_kind and number in {0, len(values)}:
            raise RuleError(
                f"'{self.key}' would count all layers, or no layer: its family needs both kinds"
            )
        return {**config, self.key: number}


@final
@dataclass(frozen=True, eq=False)
class Periodic(LayerRule):
    """Layers whose number leaves the remainder `offset` by `period` are of the second kind."""

    period: str
    offset: str
    kinds: tuple[str, str]
    defaults: tuple[int, int]

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        step = int_of(config, self.period, self.defaults[0], least=1)
        return self._kinds(step, int_of(config, self.offset, self.defaults[1]), count)

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with a period and an offset, solved for the new order."""
        entries, count = complete(self.period, values), len(values)
        default_step, default_first = self.defaults
        current = config.get(self.period, default_step), config.get(self.offset, default_first)
        steps = ((step, first) for step in range(1, count + 2) for first in range(step))
        for step, first in (current, *steps):
            if self._kinds(step, first, count) == entries:
                return {**config, self.period: step, self.offset: first}
        which = ", ".join(f"L{i}" for i, kind in enumerate(entries) if kind == self.kinds[1])
        raise RuleError(
            f"no '{self.period}' and '{self.offset}' make only {which} '{self.kinds[1]}'"
        )

    def _kinds(self, step: int, first: int, count: int) -> list[Any]:
        return [self.kinds[i % step == first] for i in range(count)]


@final
@dataclass(frozen=True, eq=False)
class SparseSteps(LayerRule):
    """Qwen: each `decoder_sparse_step`-th layer is sparse, except those of `mlp_only_layers`.

    `experts` is the number of experts of a configuration without a key for it.
    """

    experts: int

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        step = int_of(config, "decoder_sparse_step", 1, least=1)
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple):
            raise RuleError(f"'mlp_only_layers' is {shown(dense)}, and should be a list")
        has = bool(config.get("num_experts", config.get("num_local_experts", self.experts)))
        sparse = [has and i not in dense and (i + 1) % step == 0 for i in range(count)]
        return [SPARSE if each else DENSE for each in sparse]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the numbers of all dense layers, and without a step."""
        kinds = complete("mlp_only_layers", values)
        dense = [i for i, kind in enumerate(kinds) if kind == DENSE]
        return {**config, "mlp_only_layers": dense, "decoder_sparse_step": 1}


@final
@dataclass(frozen=True, eq=False)
class Cycled(LayerRule):
    """A list of kinds that begins again where it ends; it is written out for all layers."""

    key: str
    default: tuple[str, ...]

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        kinds = config.get(self.key, self.default)
        if not isinstance(kinds, list | tuple) or not kinds:
            raise RuleError(f"'{self.key}' is {shown(kinds)}, and should be a list")
        return [kinds[i % len(kinds)] for i in range(count)]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the list of all kinds."""
        return {**config, self.key: complete(self.key, values)}


@final
@dataclass(frozen=True, eq=False)
class SlidingWindow(LayerRule):
    """The width of the window of the layers that slide by the rule `types`: one width a model."""

    types: LayerRule
    gated: bool
    default: int | None

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the width for layers that slide, and None for all others."""
        kinds = self.types.read(config, count)
        width = window(config, gated=self.gated, default=self.default)
        if width is not None and not isinstance(width, int | float):
            raise RuleError(f"'sliding_window' is {shown(width)}, and should be a number")
        return [width if kind == SLIDING else None for kind in kinds]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the layers' width, if any layer has one."""
        widths = sorted({value for value in values if value is not None})
        if len(widths) > 1:
            several = " and ".join(map(str, widths))
            message = "'sliding_window' is one number for all layers, and these layers have windows"
            raise RuleError(f"{message} of {several}")
        gate = {"use_sliding_window": True} if self.gated else {}
        return {**config, **gate, "sliding_window": widths[0]} if widths else dict(config)


# -------------------------------------------------------------------------- what a stack must keep


@final
@dataclass(frozen=True, eq=False)
class Unset(LayerRule):
    """A key that turns a model into another; where it is set, the model is refused."""

    why: str

    def read(self, config: Config, count: int) -> list[Any]:
        """Return None for each layer."""
        if config.get(self.name):
            raise RuleError(f"'{self.name}' is {shown(config[self.name])}, {self.why}")
        return [None] * count

    def write(self, config: Config, _: Values) -> dict[str, Any]:
        """Return the configuration unchanged."""
        return dict(config)


@final
@dataclass(frozen=True, eq=False)
class InPlace(LayerRule):
    """A layer that computes with its own number and stays where it is; `why` is a clause.

    With a `switch` this holds only of configurations where that key is set.
    """

    why: str
    switch: str | None = None

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's number, or None where it doesn't matter."""
        matters = self.switch is None or config.get(self.switch)
        return list(range(count)) if matters else [None] * count

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration unchanged, if no layer moves."""
        matters = self.switch is None or config.get(self.switch)
        for i, value in enumerate(values):
            if value is None and self.switch and matters:
                raise RuleError(
                    f"'{self.switch}' is set for all layers, and L{i}'s own model has it unset"
                )
            if value != (i if matters else None):
                raise RuleError(f"{self.why}, and L{value} would be L{i}")
        return dict(config)


@final
@dataclass(frozen=True, eq=False)
class AtEnd(LayerRule):
    """A layer at an end that is built otherwise and stays there; `why` is a clause."""

    end: Literal["first", "last"]
    why: str

    def read(self, config: Config, count: int) -> list[Any]:
        """Return for each layer whether it is the one at the end."""
        return [i == (0 if self.end == "first" else count - 1) for i in range(count)]

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration unchanged, if the layer is still at its end."""
        ends = self.read(config, len(values))
        for i, (value, wanted) in enumerate(zip(values, ends, strict=True)):
            if value != wanted:
                which = f"the {self.end} layer" if value else "another layer"
                raise RuleError(f"{self.why}, and {which} would be L{i}")
        return dict(config)


@final
@dataclass(frozen=True, eq=False)
class AtMost(LayerRule):
    """The number of layers that a model can have."""

    deepest: int

    def read(self, config: Config, count: int) -> list[Any]:
        """Return None for each layer."""
        return [None] * count

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration unchanged, if there are no more layers."""
        if len(values) > self.deepest:
            raise RuleError(
                f"the model would have {len(values)} layers, and its family is proven for "
                f"{self.deepest} at most"
            )
        return dict(config)


@final
@dataclass(frozen=True, eq=False)
class WithSome(LayerRule):
    """The rule `types`, if at least one layer of these kinds remains; `why` is a clause."""

    types: LayerRule
    kinds: tuple[str, ...]
    why: str

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the values of `types`."""
        return self.types.read(config, count)

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration that `types` writes."""
        if not any(value in self.kinds for value in values):
            raise RuleError(self.why)
        return self.types.write(config, values)


@final
@dataclass(frozen=True, eq=False)
class Computed(LayerRule):
    """A form that only one family has: two functions."""

    read_by: Derivation
    write_by: Rewrite

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the result of the first function."""
        return self.read_by(config, count)

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the result of the second function."""
        return self.write_by(config, values)


# ----------------------------------------------------------------------------------- usual cases


def layer_types(
    absent: Derivation, *replaces: str, older: str | None = None, keep: Rewrite | None = None
) -> Listed:
    """Return the rule of the kinds of attention, which `absent` gives without a list."""
    return Listed("layer_types", "attn", absent, older, replaces, keep)


def sliding(
    types: LayerRule, default: int | None = 4096, *, gated: bool = False
) -> tuple[LayerRule, LayerRule]:
    """Return the rules of the kinds of attention and of the window of the layers that slide."""
    return types, SlidingWindow("sliding_window", "attn", types, gated, default)


def attending(types: LayerRule, kinds: tuple[str, ...] = (FULL, SLIDING)) -> WithSome:
    """Return the rule of a hybrid, in which one layer has to attend: its cache counts by that."""
    why = "no layer that attends would be left, and transformers can't generate from such a hybrid"
    return WithSome(types.name, types.part, types, kinds, why)


def dense_first(key: str, default: int) -> First:
    """Return the rule of a stack that begins with dense layers, without a list of them."""
    return First("mlp", "mlp", key, default=default, step_key="moe_layer_freq")


def dense_or_sparse(
    default: int, key: str | None = "first_k_dense_replace", *, stepped: bool = False
) -> Listed:
    """Return the rule of a list of dense and sparse layers; without it the first are dense.

    Older configurations have their number under `key`, and may have a step. The number is kept
    where it still agrees with the list.
    """

    def keep(config: Config, values: Values) -> dict[str, Any]:
        number = first_place(SPARSE, values)
        return dict(config) if DENSE in values[number:] else {**config, str(key): number}

    step_key = "moe_layer_freq" if stepped else None
    absent = FirstLayers(default, key, step_key=step_key)
    if key is None:
        return Listed("mlp_layer_types", "mlp", absent)
    replaces = (key, "moe_layer_freq")
    return Listed("mlp_layer_types", "mlp", absent, replaces=replaces, keep=keep)


# ------------------------------------------------------------------------------------ single values


def current_name(kind: Any) -> Any:
    """Return a kind of layer by transformers 5's name, whatever an older configuration has."""
    return _OLDER_NAMES.get(kind, kind) if isinstance(kind, str) else kind


def list_of(config: Config, key: str, count: int) -> list[Any]:
    """Return a list that should have an entry a layer. Raises RuleError."""
    values = config.get(key)
    if not isinstance(values, list | tuple):
        raise RuleError(f"'{key}' is {shown(values)}, and the model has {count} layers")
    if len(values) != count:
        raise RuleError(f"'{key}' has {len(values)} entries, and the model has {count} layers")
    return list(values)


def complete(key: str, values: Values) -> list[Any]:
    """Return the values, if each layer has one. Raises RuleError."""
    if None in values:
        raise RuleError(f"'{key}' has no entry for the layer that would be L{values.index(None)}")
    return list(values)


def first_place(kind: Any, values: Values) -> int:
    """Return the number of the first layer of a kind, or how many layers there are."""
    return list(values).index(kind) if kind in values else len(values)


def int_of(config: Config, key: str, default: int, least: int = 0) -> int:
    """Return a key's value, an integer from `least` up. Raises RuleError."""
    value = config.get(key, default)
    if type(value) is not int or value < least:
        raise RuleError(f"'{key}' is {shown(value)}, and should be an integer from {least} up")
    return value
