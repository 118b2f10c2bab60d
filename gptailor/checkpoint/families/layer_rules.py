"""Settings that move with layers, as data: a class for each form that a configuration has for them.

A family's file has these rules under `moved`, by the names of the settings.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, final

from pydantic import Field, PrivateAttr

from gptailor.checkpoint.families.layer_config import (
    FULL,
    OLDER_NAMES,
    SLIDING,
    Config,
    RuleError,
    Values,
    complete,
    current_name,
    int_of,
    window,
)
from gptailor.checkpoint.files import shown
from gptailor.plan.layer_parts import Branch
from gptailor.plan.plan import Closed, Pair, Several

_KINDS = ("plain", "special")
"""Kinds of layers of a list of numbers, which has the special ones."""


class LayerRule(Closed):
    """One thing that a configuration states by position, and the branch that it concerns.

    `needs` has the kinds that must keep at least one layer, by the reason. In rules that have
    them, `derived` is the rule that gives the values of a configuration without the rule's own key,
    and `of` is the name of another rule of the family, if its values decide.
    """

    part: Branch = "attn"
    needs: dict[str, Several[Any]] = Field(default_factory=dict)
    _name: str = PrivateAttr("")
    _other: "LayerRule | None" = PrivateAttr(None)

    @property
    def name(self) -> str:
        """The name under which the family has the rule."""
        return self._name

    def bound(self, name: str, rules: Mapping[str, "LayerRule"]) -> "LayerRule":
        """Return the rule itself, with its name and the earlier rule of the family named by `of`.

        Raises ValueError if the rule is missing.
        """
        self._name = name
        if (derived := getattr(self, "derived", None)) is not None:
            derived.bound("", rules)
        if of := getattr(self, "of", ""):
            if of not in rules:
                raise ValueError(f"'of': expected the name of an earlier rule, got {shown(of)}")
            self._other = rules[of]
        return self

    def named_keys(self) -> Iterator[str]:
        """Yield the configuration's keys that the rule names, and the keys of the derived rule."""
        names = ("key", "offset_key", "step_key", "older", "switch", "without_self")
        yield from (getattr(self, name, "") for name in names)
        yield from getattr(self, "replaces", ())
        if (derived := getattr(self, "derived", None)) is not None:
            yield from derived.named_keys()

    def others(self, config: Config, count: int) -> list[Any]:
        """Return the values of the rule `of`."""
        if self._other is None:
            raise RuleError(
                f"the rule '{self.name}' of its family needs 'of', the name of an earlier rule"
            )
        return self._other.read(config, count)

    @abstractmethod
    def read(self, config: Config, count: int) -> list[Any]:
        """Return a value for each of `count` layers. Raises RuleError."""

    def derive(self, config: Config, count: int) -> list[Any]:
        """Return the values where another rule derives its own from this one. Raises RuleError."""
        return self.read(config, count)

    def write(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with these values for its layers, in order. Raises RuleError."""
        for why, kinds in self.needs.items():
            if not any(value in kinds for value in values):
                raise RuleError(why)
        return self.stated(config, values)

    @abstractmethod
    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with these values, whatever `needs` has. Raises RuleError."""


# ------------------------------------------------------------------------------- lists and counts


@final
class Listed(LayerRule):
    """A list with an entry a layer, under its rule's name.

    Without a list the entries are `absent`, or `derived`, and the list is written; with `optional`
    all entries are None, and no list is written. With `if_window` all layers of a model without a
    window attend fully, if the list is missing. `replaces` are keys that are left out once the list
    is written; with `keep` the setting that the list was derived from is written too, where it can
    state the list (`sliding`: if any layer slides). A configuration may have the list under an
    `older` name, where it stays. The last layer is always of the kind `last`.

    If `tried` isn't None, entries must be among these. With `every_kind` each kind of the list must
    remain.
    """

    kind: Literal["entries"] = "entries"
    absent: Several[Any] | None = None
    derived: "MovedRule | None" = None
    optional: bool = False
    empty_is_absent: bool = False
    if_window: Literal["always", "gated"] | None = None
    last: str | None = None
    older: str = ""
    replaces: Several[str] = ()
    keep: Literal["always", "sliding"] | None = None
    tried: Several[Any] | None = None
    every_kind: bool = False

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the entries of the list, or the entries that a missing list means."""
        key = self._key(config)
        listed = config.get(key)
        if listed is not None and (listed or not self.empty_is_absent):
            if not isinstance(listed, list | tuple):
                raise RuleError(f"'{key}' is {shown(listed)}, but the model has {count} layers")
            if len(listed) != count:
                entries = f"{len(listed)} entries"
                raise RuleError(f"'{key}' has {entries}, but the model has {count} layers")
            values = list(listed)
        else:
            values = self._without_list(config, key, count)
        if self.tried is None:
            values = [current_name(value) for value in values]
            return values if self.last is None else [*values[:-1], self.last]
        for i, value in enumerate(values):
            if value not in self.tried:
                tried = ", ".join(map(shown, self.tried))
                raise RuleError(
                    f"'{key}' of L{i} is {shown(value)}, but its family was proven with {tried}"
                )
        return values

    def _without_list(self, config: Config, key: str, count: int) -> list[Any]:
        gated = self.if_window == "gated"
        if self.if_window and window(config, gated=gated, default=4096) is None:
            return [FULL] * count
        if self.derived is not None:
            return self.derived.derive(config, count)
        if self.optional:
            return [None] * count
        if self.absent is None or len(self.absent) != count:
            raise RuleError(f"'{key}' is missing, but the model has {count} layers")
        return list(self.absent)

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the list, unless it needs no list."""
        key = self._key(config)
        listed = config.get(key)
        if listed is None and self.optional:
            return dict(config)
        for kind in (listed or self.absent or ()) if self.every_kind else ():
            if kind not in values:
                raise RuleError(
                    f"'{key}' would have no {shown(kind)}, but its family needs a "
                    "layer of each kind"
                )
        if self.last is not None and values[-1] != self.last:
            raise RuleError(
                f"the last layer must have full attention, but L{len(values) - 1} has a window"
            )
        entries = self._words(listed, values) if self.tried is None else list(values)
        names = (self.name, self.older) if self.older else (self.name,)
        stated = {name: entries for name in names if name == key or name in config}
        keep = self.keep == "always" or (self.keep == "sliding" and SLIDING in values)
        return _with_list(self, config, stated, values, keep=keep)

    def _key(self, config: Config) -> str:
        """Return the name under which the configuration has the list, or would have it."""
        if self.older and self.older in config and config.get(self.name) is None:
            return self.older
        return self.name

    def _words(self, listed: Any, values: Values) -> list[Any]:
        """Return the values in the words of the list that is there."""
        words = {OLDER_NAMES[v]: v for v in OLDER_NAMES if isinstance(listed, list) and v in listed}
        return [words.get(v, v) if isinstance(v, str) else v for v in complete(self.name, values)]


def _with_list(
    rule: "Listed | Numbered",
    config: Config,
    stated: dict[str, Any],
    values: Values,
    *,
    keep: bool,
) -> dict[str, Any]:
    """Return the configuration with a list; with `keep` also in the derived form, if that can."""
    out = {key: value for key, value in config.items() if key not in rule.replaces} | stated
    with suppress(RuleError):
        return dict(rule.derived.stated(out, values)) if keep and rule.derived else out
    return out


@final
class Numbered(LayerRule):
    """A list of the numbers of the layers of the second kind; all others have the first kind.

    Without the list its numbers are `absent`, or the kinds are `derived`. Numbers beyond the last
    layer are refused if the rule is `strict`, else passed over. `replaces` and `keep` are as in
    `Listed`. With `every_kind` a layer of each kind must remain.
    """

    kind: Literal["numbers"] = "numbers"
    key: str = ""
    kinds: Pair[Any] = _KINDS
    absent: Several[int] | None = None
    derived: "MovedRule | None" = None
    strict: bool = True
    replaces: Several[str] = ()
    keep: bool = False
    tried: Several[Any] = ()
    every_kind: bool = False

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        key, numbers = self.key or self.name, config.get(self.key or self.name)
        if numbers is None and self.derived is not None:
            return self.derived.derive(config, count)
        numbers = self.absent if numbers is None else numbers
        if numbers is None:
            raise RuleError(f"'{key}' is missing, expected a list of layers")
        if not isinstance(numbers, list | tuple):
            raise RuleError(f"'{key}' is {shown(numbers)}, expected a list")
        if self.strict and any(type(number) is not int for number in numbers):
            raise RuleError(f"'{key}' is {shown(numbers)}, expected a list of layers")
        beyond = next((n for n in numbers if self.strict and not 0 <= n < count), None)
        if beyond is not None:
            raise RuleError(f"'{key}' names layer {beyond}, but the model has {count} layers")
        return [self.kinds[i in numbers] for i in range(count)]

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the numbers."""
        key = self.key or self.name
        kinds = complete(key, values)
        if self.every_kind and len(set(kinds)) < 2:
            raise RuleError(
                f"'{key}' would name all layers, or no layer: its family needs both kinds"
            )
        numbers = [i for i, kind in enumerate(kinds) if kind == self.kinds[1]]
        return _with_list(self, config, {key: numbers}, kinds, keep=self.keep)


@final
class First(LayerRule):
    """The number of the first layers, which have the first kind; all others have the second.

    `absent` has the number of a configuration without the key. A configuration with a step
    (`step_key`) is refused, unless another rule derives its own from this one: then only each
    step-th of the later layers has the second kind. With `every_kind` a layer of each kind must
    remain.
    """

    kind: Literal["first"] = "first"
    key: str = ""
    kinds: Pair[Any] = _KINDS[::-1]
    absent: Several[int] | None = None
    step_key: str = ""
    tried: Several[Any] = ()
    every_kind: bool = False

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind; a null key is an absent one."""
        if self.step_key and (step := config.get(self.step_key, 1)) != 1:
            raise RuleError(f"'{self.step_key}' is {shown(step)}, which transformers can't read")
        key = self.key or self.name
        return self.derive({} if config.get(key) is None else {key: config[key]}, count)

    def derive(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        default: Any = self.absent[0] if self.absent else None
        number = int_of(config, self.key or self.name, default)
        step = int_of(config, self.step_key, 1, least=1)
        return [self.kinds[i >= number and i % step == 0] for i in range(count)]

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the number."""
        key, (first, later) = self.key or self.name, self.kinds
        number = list(values).index(later) if later in values else len(values)
        for i, value in enumerate(values):
            if value != (first if i < number else later):
                raise RuleError(
                    f"'{key}' makes the first layers {first} and all others {later}, "
                    f"but a {first} layer would be L{i}, after the {later} L{number}"
                )
        if self.every_kind and number in {0, len(values)}:
            raise RuleError(
                f"'{key}' would count all layers, or no layer: its family needs both kinds"
            )
        return {**config, key: number}


@final
class Periodic(LayerRule):
    """Layers have the second kind if their number leaves a remainder by a period.

    `key` and `offset_key` have period and remainder, and `absent` both without them. Without an
    `offset_key` a negative remainder counts from the period's end.
    """

    kind: Literal["period"] = "period"
    key: str
    offset_key: str = ""
    kinds: Pair[Any]
    absent: Pair[int]

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        step = int_of(config, self.key, self.absent[0], least=1)
        return self._kinds(step, self._first(config, step), count)

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with a period and an offset, solved for the new order."""
        entries, count = complete(self.key, values), len(values)
        period = config.get(self.key, self.absent[0])
        steps = ((step, first) for step in range(1, count + 2) for first in range(step))
        for step, first in ((period, self._first(config, period)), *steps):
            fits = self.offset_key or first == self._first({}, step)
            if fits and self._kinds(step, first, count) == entries:
                offset = {self.offset_key: first} if self.offset_key else {}
                return {**config, self.key: step, **offset}
        which = ", ".join(f"L{i}" for i, kind in enumerate(entries) if kind == self.kinds[1])
        raise RuleError(
            f"no '{self.key}' and '{self.offset_key}' make only {which} '{self.kinds[1]}'"
        )

    def _first(self, config: Config, step: int) -> int:
        """Return the remainder of a period."""
        if self.offset_key:
            return int_of(config, self.offset_key, self.absent[1])
        return self.absent[1] % step

    def _kinds(self, step: int, first: int, count: int) -> list[Any]:
        return [self.kinds[i % step == first] for i in range(count)]


@final
class Repeated(LayerRule):
    """A list of kinds that begins again where it ends; it is written out for all layers.

    `absent` is the list of a configuration without the `key`. The first layers are `begin`, and the
    last ones `end`.
    """

    kind: Literal["repeat"] = "repeat"
    key: str = ""
    absent: Several[Any]
    begin: Several[Any] = ()
    end: Several[Any] = ()

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's kind."""
        kinds = config.get(self.key, self.absent)
        if not isinstance(kinds, list | tuple) or not kinds:
            raise RuleError(f"'{self.key}' is {shown(kinds)}, expected a list")
        middle = [kinds[i % len(kinds)] for i in range(count)][len(self.begin) :]
        values = [*self.begin, *middle][:count]
        values[count - min(len(self.end), count) :] = self.end[-count:]
        return values

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the list of all kinds."""
        return {**config, self.key: complete(self.key, values)}


@final
class SlidingWindow(LayerRule):
    """The width of the window of the layers that slide by the rule `of`: one width a model.

    `absent` is the width of a configuration without one. In a `gated` family the window counts only
    where `use_sliding_window` is set. `without_self` is a key of the width without the token
    itself, which goes first.
    """

    kind: Literal["window"] = "window"
    of: str = "layer_types"
    gated: bool = False
    absent: int | None = None
    without_self: str = ""

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the width for layers that slide, and None for all others."""
        if type(before := config.get(self.without_self)) is int:
            config = {**config, "sliding_window": before + 1}
        kinds = self.others(config, count)
        width = window(config, gated=self.gated, default=self.absent)
        if width is not None and not isinstance(width, int | float):
            raise RuleError(f"'sliding_window' is {shown(width)}, expected a number")
        return [width if kind == SLIDING else None for kind in kinds]

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration with the layers' width, if any layer has one."""
        widths = sorted({value for value in values if value is not None})
        if len(widths) > 1:
            several = " and ".join(map(str, widths))
            message = "'sliding_window' is one number for all layers, but these layers have windows"
            raise RuleError(f"{message} of {several}")
        gate = {"use_sliding_window": True} if self.gated else {}
        out = {**config, **gate, "sliding_window": widths[0]} if widths else dict(config)
        if type(out.get(self.without_self)) is int:
            out[self.without_self] = int(out.get("sliding_window") or self.absent or 0) - 1
        return out


@final
class InPlace(LayerRule):
    """Layers that stay where they are: all, which compute with their numbers, or one at an end.

    `why` is a clause. With a `switch` this holds only of configurations where that key is set.
    """

    kind: Literal["fixed"] = "fixed"
    layers: Literal["all", "first", "last"] = "all"
    why: str
    switch: str = ""

    def read(self, config: Config, count: int) -> list[Any]:
        """Return each layer's number, or whether it is at the end; None where it doesn't matter."""
        if self.switch and not config.get(self.switch):
            return [None] * count
        place = {"first": 0, "last": count - 1}.get(self.layers)
        return [i if place is None else i == place for i in range(count)]

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the configuration unchanged, if no such layer moves."""
        for i, (value, own) in enumerate(zip(values, self.read(config, len(values)), strict=True)):
            if value is None and self.switch and own is not None:
                raise RuleError(
                    f"'{self.switch}' is set for all layers, but the model of L{i} has it unset"
                )
            if value != own:
                end = f"the {self.layers} layer" if value else "another layer"
                which = f"L{value}" if self.layers == "all" else end
                raise RuleError(f"{self.why}, and {which} would be L{i}")
        return dict(config)


_Function = Literal[
    "after_dense", "alike", "chunked", "depth", "each", "ernie", "even_below_bound", "indexers",
    "kimi", "letters", "same", "shapes", "some_attend", "steps", "thetas", "times",
    "without_rotation",
]  # fmt: skip


@final
class Computed(LayerRule):
    """A form that no other rule has: a pair of functions in `functions.RULES`, and their values."""

    kind: Literal["function"] = "function"
    function: _Function
    key: str = ""
    of: str = ""
    absent: Several[Any] = ()

    def read(self, config: Config, count: int) -> list[Any]:
        """Return the result of the first function."""
        return list(self._call(0, config, count))

    def stated(self, config: Config, values: Values) -> dict[str, Any]:
        """Return the result of the second function."""
        return dict(self._call(1, config, values))

    def _call(self, number: int, *of: Any) -> Any:
        from gptailor.checkpoint.families.functions import RULES, Stated  # only few families do

        stated = Stated(self.name, self.key, self.absent, self.others)
        return RULES[self.function][number](stated, *of)


MovedRule = Annotated[
    Listed | Numbered | First | Periodic | Repeated | SlidingWindow | InPlace | Computed,
    Field(discriminator="kind"),
]

RULE_FORMS: Mapping[str, type[LayerRule]] = {
    "entries": Listed, "numbers": Numbered, "first": First, "period": Periodic,
    "repeat": Repeated, "window": SlidingWindow, "fixed": InPlace, "function": Computed,
}  # fmt: skip
"""Forms of rules, by their `kind`."""


def tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with tuples for lists, as validators make them."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in document.items()}


def trusted_rule(document: Mapping[str, Any]) -> LayerRule:
    """Return the rule of a valid document at once, without validators."""
    fields = tuples(document)
    if "needs" in fields:
        fields["needs"] = tuples(fields["needs"])
    if "derived" in fields:
        fields["derived"] = trusted_rule(fields["derived"])
    return RULE_FORMS[fields["kind"]].model_construct(**fields)
