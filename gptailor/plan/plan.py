"""The `Plan`: what the output model is to be, in the user's terms. Frozen, closed data.

A plan is a normal form: one entry for each position, sorted, so that two texts that say the same
are equal plans. Rules that speak to people are not here but in `gptailor.checks`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from pydantic import Field, PrivateAttr, field_validator

from gptailor.plan.bounds import LARGEST_LAYER
from gptailor.plan.faults import Fault, Origin, Source
from gptailor.plan.numbers import (
    Closed,
    Count,
    CountRange,
    Curve,
    Interval,
    Let,
    Named,
    Number,
    OneOfNumbers,
    Pair,
    Position,
    Several,
    Value,
    built,
    count_ends,
    count_text,
    over_positions,
)
from gptailor.plan.parts import Part, rank
from gptailor.plan.recipe import (
    By,
    LayerOf,
    Merge,
    MethodCall,
    OneOfMethods,
    OneOfModels,
    Recipe,
    Subset,
    Take,
)
from gptailor.plan.wishes import Bound, Objective, Requirement, Search

__all__ = [
    "LARGEST_LAYER", "Bound", "By", "Closed", "Count", "CountRange", "Curve", "Interval", "LayerOf",
    "Let", "Merge", "MethodCall", "Named", "Number", "Objective", "OneOfMethods", "OneOfModels",
    "OneOfNumbers", "Pair", "Position", "Recipe", "Requirement", "Search", "Several", "Subset",
    "Take", "Value", "built", "count_ends", "count_text", "over_positions",
]  # fmt: skip

# -------------------------------------------------------------------------------------- statements


class Open(Closed):
    """What `maybe` and `tied` may stand before."""

    maybe: bool = False
    tied: int | None = None
    """Entries with one number share their choices. Numbered from 0 in the plan's order."""


class Layer(Open):
    """What a position, or a part of it, is made of."""

    position: Position
    part: Part | None = None
    recipe: Recipe


@final
class LayerBelow(Layer):
    """What `others` (level 1) or `whole` (2) says of a position, in a plan that is written out.

    Whatever part it is of, a layer of a smaller level wins over it.
    """

    level: int


@final
class Others(Open):
    """What a position, or a part of it, is made of where no layer says so: the same layers."""

    part: Part | None = None
    recipe: Recipe


@final
class Whole(Open):
    """What everything is made of that nothing else says: layers, embedding, norm and head."""

    recipe: Recipe

    @field_validator("tied", mode="after")
    @classmethod
    def _one_group(cls, value: int | None) -> int | None:
        return None if value is None else 0


@final
class Drop(Open):
    """A position that leaves the model."""

    position: Position


@final
class DropAny(Open):
    """A choice: so many of these positions leave the model."""

    count: Count
    among: Several[Position]

    @field_validator("among", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(value))


@final
class DropWindow(Open):
    """A choice: so many neighbours of these positions leave the model."""

    count: Count
    among: Several[Position]

    @field_validator("among", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(value))


@final
class Repeat(Open):
    """After the last of these positions all of them come again, `times` more."""

    first: Position
    last: Position
    times: Count = 1


@final
class RepeatWindow(Open):
    """A choice: so many neighbours of these positions come again after the last, `times` more."""

    count: Count
    among: Several[Position]
    times: Count = 1

    @field_validator("among", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(value))


@final
class Scale(Open):
    """The hidden state after this position is multiplied by a number."""

    position: Position
    factor: Value


@final
class Bridge(Open):
    """Gaps that are closed by a fit on calibration text; `after` None: every gap."""

    after: Position | None = None
    on: str
    tokens: Value | None = None
    ridge: Value | None = None


@final
class Heal(Closed):
    """The output learns on a text to answer as its teacher; no `layers`: all of its layers learn.

    Without a `teacher` that is the plan with nothing dropped, and the base of a stack.
    """

    on: str
    layers: Several[Position] = ()
    teacher: str | None = None
    tokens: int | None = None
    rank: int | Literal["full"] | None = None
    seed: int | None = None

    @field_validator("layers", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))


@final
class Item(Open):
    """One layer of a stack."""

    recipe: Recipe


@final
class Stack(Closed):
    """The output's layers in order; above `limit` the last `maybe` items go first."""

    items: Several[Item]
    limit: int | None = None

    @field_validator("items", mode="after")
    @classmethod
    def _number_groups(cls, value: tuple[Item, ...]) -> tuple[Item, ...]:
        return retied(value)


@final
class TemplateOf(Closed):
    """The chat template of a model. `chat_template from chat`."""

    model: str


PLAN_SUFFIX = ".tailor"
"""A model's source that ends so is a plan, whose output is the model."""

_AT_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_at_url(source: str) -> bool:
    """Whether a source is a URL, as `s3://bucket/models/base` is."""
    return _AT_URL.match(source) is not None


@final
class Model(Closed):
    """A checkpoint: a local folder, a Hub id, or a plan's output; or an adapter `on` another model.

    Or it is `made` of other models of the plan, each tensor by one recipe, and has no source.
    """

    source: str = ""
    revision: str | None = None
    on: str | None = None
    made: Recipe | None = None


REST = ("embed", "norm", "head", "tokenizer")
"""What a model has besides its decoder layers."""

Entry = TypeVar("Entry", bound=Open)


def normal_order(
    entry: Layer | Others | Drop | DropAny | DropWindow | Repeat | RepeatWindow | Scale | Bridge,
) -> tuple[Any, ...]:
    """What a list is sorted by: positions, coarse parts before finer, every gap before one."""
    if isinstance(entry, Others):
        return rank(entry.part), entry.part or ""
    if isinstance(entry, DropAny | DropWindow):
        return entry.among, count_ends(entry.count)
    if isinstance(entry, Repeat):
        return entry.first, entry.last
    if isinstance(entry, RepeatWindow):
        return (*entry.among[:1], *entry.among[-1:])
    if isinstance(entry, Bridge):
        return (-1 if entry.after is None else entry.after,)
    part = entry.part if isinstance(entry, Layer) else None
    return entry.position, rank(part), part or ""


def retied(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The same entries, their groups numbered by first appearance."""
    entries = tuple(entries)
    numbers: dict[int, int] = {}
    for entry in entries:
        if entry.tied is not None:
            numbers.setdefault(entry.tied, len(numbers))
    moved = {old: {"tied": new} for old, new in numbers.items() if old != new}
    return tuple(e.model_copy(update=moved[e.tied]) if e.tied in moved else e for e in entries)


@final
class Plan(Closed):
    """The declared output model. Equal plans say the same, wherever they were read from.

    Positions are the base's layer numbers, before anything is dropped. A position that nothing
    names is as `others` say, else as `whole` does, else the base's own. `layers`, `others`,
    `whole`, `drops`, `drop_any`, `windows`, `repeats`, `scales` and `bridges` are the overlay; a
    plan has these or a `stack`, and `heal` with either. `numbers` are those that have a name.
    """

    version: int = 1
    models: dict[str, Model] = Field(default={})
    numbers: dict[str, Let] = Field(default={})
    dtype: str | None = None
    embed: Recipe | None = None
    norm: Recipe | None = None
    head: Recipe | None = None
    tokenizer: Recipe | Literal["union"] | None = None
    chat_template: str | TemplateOf | None = None
    layers: Several[Layer] = ()
    others: Several[Others] = ()
    whole: Whole | None = None
    drops: Several[Drop] = ()
    drop_any: Several[DropAny] = ()
    windows: Several[DropWindow] = ()
    repeats: Several[Repeat | RepeatWindow] = ()
    scales: Several[Scale] = ()
    bridges: Several[Bridge] = ()
    heal: Heal | None = None
    stack: Stack | None = None
    search: Search | None = None

    _origin: Origin | None = PrivateAttr(default=None)
    _faults: tuple[Fault, ...] | None = PrivateAttr(default=None)

    @field_validator(
        "layers", "others", "drops", "drop_any", "windows", "repeats", "scales", "bridges",
        mode="after",
    )  # fmt: skip
    @classmethod
    def _sort(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return retied(sorted(value, key=normal_order))

    @property
    def origin(self) -> Origin | None:
        """The text that the plan was read from, with the span of each place, if there is one."""
        return self._origin

    @property
    def faults(self) -> tuple[Fault, ...] | None:
        """What is wrong with this very plan, if its rules have run; a copy's have not."""
        return self._faults

    def knowing(self, faults: Iterable[Fault]) -> None:
        """Remember what the rules found."""
        self._faults = tuple(faults)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Plan":
        """A copy, of which nothing is known yet; see pydantic."""
        plan = super().model_copy(update=update, deep=deep)
        plan._faults = None
        return plan

    def read_from(self, origin: Origin) -> "Plan":
        """The same plan, knowing the text that it was read from."""
        plan = self.model_copy()
        plan._origin = origin
        return plan

    def with_families(self, files: Iterable[str | Path]) -> "Plan":
        """The same plan, whose models may be of the families in these files."""
        origin = self._origin or Origin(Source("<plan>", ""), Path())
        return self.read_from(replace(origin, families=tuple(Path(file) for file in files)))

    def rest(self, where: str) -> Recipe | None:
        """The recipe of `embed`, `norm`, `head` or `tokenizer`, if a model's is to be taken."""
        recipe: Recipe | str | None = getattr(self, where)
        return None if isinstance(recipe, str) else recipe

    def __eq__(self, other: object) -> bool:
        """Equal if they say the same; the text they were read from doesn't count."""
        if not isinstance(other, Plan):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)

    __hash__ = None  # type: ignore[assignment] # it holds dictionaries
