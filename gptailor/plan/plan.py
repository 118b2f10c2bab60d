"""The `Plan`: the declared output model, in the user's terms. Frozen, closed data.

A plan is a normal form: one entry for each position, sorted, so that two texts that say the same
are equal plans. Rules that speak to people are not here but in `gptailor.checks`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from gptailor.plan.arguments import fits
from gptailor.plan.bounds import LARGEST_LAYER
from gptailor.plan.faults import Fault, Origin, Place, PlanError, Source
from gptailor.plan.layer_parts import Part, rank
from gptailor.plan.numbers import (
    BuiltClosed,
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
    Size,
    SizeRange,
    Value,
    built,
    count_ends,
    count_text,
    over_positions,
)
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
from gptailor.plan.registry import HEAL_ANSWER_TOKENS, HEAL_TEMPERATURE, WIDTH_RIDGE
from gptailor.plan.search_block import Bound, Expectation, Objective, Requirement, Search

__all__ = [
    "LARGEST_LAYER", "Bound", "BuiltClosed", "By", "Closed", "Count", "CountRange", "Curve",
    "Expectation", "Interval", "LayerOf",
    "Let", "Merge", "MethodCall", "Named", "Number", "Objective", "OneOfMethods", "OneOfModels",
    "OneOfNumbers", "Pair", "Position", "Recipe", "Requirement", "Search", "Several", "Size",
    "SizeRange", "Subset",
    "Take", "Value", "built", "count_ends", "count_text", "over_positions",
]  # fmt: skip

# -------------------------------------------------------------------------------------- statements


class Open(Closed):
    """An entry that `maybe` and `tied` may stand before."""

    maybe: bool = False
    tied: int | None = None
    """Entries with one number share their choices. Numbered from 0 in the plan's order."""

    @property
    def positions(self) -> Sequence[int]:
        """The base's positions that the entry names, in order."""
        return ()


class AtPosition(Open):
    """An entry of one position."""

    position: Position

    @property
    def positions(self) -> Sequence[int]:
        """The position."""
        return (self.position,)


class Layer(AtPosition):
    """The recipe of a position, or of a part of it."""

    part: Part | None = None
    recipe: Recipe


@final
class LayerBelow(Layer):
    """A recipe of `others` (level 1) or `whole` (2) for a position, in a plan written out.

    A layer of a smaller level wins over it, whatever its part.
    """

    level: int


@final
class Others(Open):
    """The recipe of all positions, or of a part of them, that no layer names."""

    part: Part | None = None
    recipe: Recipe


@final
class Whole(Open):
    """The recipe of everything that nothing else names: layers, embedding, norm and head."""

    recipe: Recipe

    @field_validator("tied", mode="after")
    @classmethod
    def _one_group(cls, value: int | None) -> int | None:
        return None if value is None else 0


@final
class Drop(AtPosition):
    """A position that leaves the model."""


def _sorted(positions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(positions))


Among = Annotated[Several[Position], AfterValidator(_sorted)]
"""Positions to choose from, in order."""


class SomeOf(Open):
    """A choice of `count` of several positions."""

    count: Count
    among: Among

    @property
    def positions(self) -> Sequence[int]:
        """The positions to choose from."""
        return self.among


class DropSome(SomeOf):
    """A choice of several positions that leave the model.

    `named` is the name of the count's number, if the text has a name.
    """

    named: str | None = None


@final
class DropAny(DropSome):
    """A choice: `count` of these positions leave the model.

    `named` is the name of the count's number, if the text has a name.
    """


@final
class DropWindow(DropSome):
    """A choice: `count` neighbours of these positions leave the model.

    `named` is the name of the count's number, if the text has a name.
    """


@final
class Repeat(Open):
    """Positions that run `times` more after the last of them."""

    first: Position
    last: Position
    times: Count = 1

    @property
    def positions(self) -> Sequence[int]:
        """The positions of the block; empty if its range descends."""
        return range(self.first, self.last + 1)


@final
class RepeatWindow(SomeOf):
    """A choice: `count` neighbours of these positions run `times` more after the last of them."""

    times: Count = 1


@final
class Scale(AtPosition):
    """A factor on the hidden state after a position."""

    factor: Value


CUTS: Final[tuple[Literal["vocabulary", "width", "experts"], ...]] = (
    "vocabulary",
    "width",
    "experts",
)
"""The statements that make something smaller than layers; each is a field of a plan."""


class _Sized(Closed):
    size: Size


class TextFit(Closed):
    """A change of the output that one text decides, and the number of tokens that are read of it.

    A plan has at most one of each kind, in a field that its statement's word names.
    """

    on: str
    tokens: int | None = None


@final
class SizeCut(TextFit, _Sized):
    """A smaller size, and the text that decides which parts stay.

    `size` is the number of a vocabulary's tokens, of each MLP's neurons, or of a layer's experts.
    """

    ridge: Number | None = None

    @property
    def closed_size(self) -> int:
        """Return the size in a closed plan."""
        assert isinstance(self.size, int), "an open plan"
        return self.size

    @property
    def closed_ridge(self) -> float:
        """Return the ridge of a narrower MLP, or its default."""
        return WIDTH_RIDGE if self.ridge is None else float(self.ridge)


@final
class Bridge(Open):
    """Gaps that are closed by a fit on calibration text; `after` None: every gap.

    `by` names a fit of another package (`GAP_FITS`); None is gptailor's own.
    """

    after: Position | None = None
    by: str | None = None
    on: str
    tokens: Value | None = None
    ridge: Value | None = None

    @property
    def positions(self) -> Sequence[int]:
        """The layer before the gap; empty for every gap."""
        return () if self.after is None else (self.after,)


@final
class TeacherAnswers(Closed):
    """How a teacher answers prompts: by at most `tokens` tokens, drawn at a `temperature`."""

    tokens: int | None = None
    temperature: Number | None = None

    @property
    def closed_tokens(self) -> int:
        """Return the most tokens of an answer, by default `HEAL_ANSWER_TOKENS`."""
        return HEAL_ANSWER_TOKENS if self.tokens is None else self.tokens

    @property
    def closed_temperature(self) -> float:
        """Return the temperature of drawn answers, by default `HEAL_TEMPERATURE`."""
        return HEAL_TEMPERATURE if self.temperature is None else float(self.temperature)


PREDICTIONS_SUFFIX = ".parquet"
NO_TEXT = "a file of predictions has no text; only 'heal' learns from it"
"""The message for such a file where a text belongs."""


def has_predictions(file: str) -> bool:
    """Return whether a file of this name has a teacher's predictions."""
    return file.lower().endswith(PREDICTIONS_SUFFIX)


@final
class HealText(Closed):
    """A text that healing learns from, and its share of the tokens: its `weight`.

    With `answers` the file has prompts, and the text is the teacher's answers to them. A Parquet
    file has the predictions of a teacher of its own. In JSON a text that is only a file is a
    string.
    """

    file: str
    answers: TeacherAnswers | None = None
    teacher: str | None = None
    weight: Number = 1

    @property
    def predicted(self) -> bool:
        """Return whether the file has predictions, by its name."""
        return has_predictions(self.file)

    @model_serializer(mode="wrap")
    def _plainly(self, dump: Callable[[Any], Any]) -> Any:
        fields: dict[str, Any] = dump(self)
        return self.file if self == HealText(file=self.file) else fields


def _texts_of_json(value: object) -> object:
    """Return texts as objects: in JSON one text may stand alone, and a file is a string."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        return value
    return [{"file": text} if isinstance(text, str) else text for text in listed]


HealTexts = Annotated[
    Several[HealText],
    BeforeValidator(_texts_of_json, json_schema_input_type=str | list[str | HealText]),
]


@final
class Heal(Closed):
    """Training of the output to predict as its texts' teachers do; no `layers`: all layers learn.

    `teacher` is the teacher of all texts. If texts have different teachers, each text has its own,
    and `teacher` is None. The default teacher is the plan with nothing dropped; a stack's is the
    base.
    """

    on: HealTexts
    layers: Several[Position] = ()
    teacher: str | None = None
    tokens: int | None = None
    rank: int | Literal["full"] | None = None
    seed: int | None = None
    loss: Literal["all", "answers"] | None = None

    @field_validator("layers", mode="after")
    @classmethod
    def _sort(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _normal(self) -> "Heal":
        shared, texts = with_normal_teachers(self.teacher, self.on)
        self.__dict__.update(teacher=shared, on=texts)  # it is frozen from here on
        return self

    @field_serializer("on", mode="wrap")
    def _alone(self, texts: tuple[HealText, ...], dump: Callable[[Any], Any]) -> Any:
        dumped: list[Any] = list(dump(texts))
        return dumped[0] if len(dumped) == 1 and isinstance(dumped[0], str) else dumped

    @property
    def taught(self) -> tuple[tuple[str | None, Place], ...]:
        """Return the teacher of each text, None for the default one, with its place in a plan."""
        return tuple(
            (text.teacher, ("heal", "on", i, "teacher"))
            if text.teacher is not None
            else (self.teacher, ("heal", "teacher") if self.teacher is not None else ("heal",))
            for i, text in enumerate(self.on)
        )

    @property
    def needs_default_teacher(self) -> bool:
        """Return whether a text names no teacher and has no predictions."""
        pairs = zip(self.on, self.taught, strict=True)
        return any(teacher is None and not text.predicted for text, (teacher, _) in pairs)

    @property
    def has_other_teacher(self) -> bool:
        """Return whether a text has another teacher than the plan with nothing dropped."""
        return bool(self.named_teachers) or any(text.predicted for text in self.on)

    @property
    def named_teachers(self) -> dict[str, Place]:
        """Return the models that teach, each with its first place in a plan."""
        places: dict[str, Place] = {}
        for teacher, at in self.taught:
            if teacher is not None:
                places.setdefault(teacher, at)
        return places

    def with_files(self, file_of: Callable[[str], str]) -> "Heal":
        """Return the healing with other names of its texts' files."""
        texts = (t.model_copy(update={"file": file_of(t.file)}) for t in self.on)
        return self.model_copy(update={"on": tuple(texts)})


def with_normal_teachers(
    shared: str | None, texts: Iterable[HealText]
) -> tuple[str | None, tuple[HealText, ...]]:
    """Return the teacher of all texts, and the texts in the normal form of `Heal`."""
    texts = tuple(texts)
    teachers = [shared if text.teacher is None else text.teacher for text in texts]
    if len(set(teachers)) == 1:
        shared, teachers = teachers[0], [None] * len(texts)
    elif texts:
        shared = None
    pairs = zip(texts, teachers, strict=True)
    return shared, tuple(text.model_copy(update={"teacher": t}) for text, t in pairs)


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


@final
class GgufOutput(Closed):
    """A GGUF file that is written of the output: its type, such as `q4_k_m`.

    `on` is the text of an importance matrix.
    """

    type: Annotated[str, AfterValidator(str.lower)]
    on: str | None = None


PLAN_SUFFIX = ".tailor"
"""The suffix of a model's source that is a plan; the plan's output is the model."""

_AT_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


def is_at_url(source: str) -> bool:
    """Return whether a source is a URL, such as `s3://bucket/models/base`."""
    return _AT_URL.match(source) is not None


@final
class Model(Closed):
    """A checkpoint: a local folder, a Hub id, or a plan's output; or an adapter `on` another model.

    A model that is `made` of others has one recipe for all tensors, and no source.
    """

    source: str = ""
    revision: str | None = None
    on: str | None = None
    made: Recipe | None = None


REST = ("embed", "norm", "head", "tokenizer")
"""The parts of a model outside its decoder layers."""

OVERLAY: Final = (
    "layers", "others", "drops", "drop_any", "windows", "repeats", "scales", "bridges",
)  # fmt: skip
"""The lists of a plan with entries that change the base's layers, each in its normal order."""

BY_LAYER: Final = ("layers", "drops", "scales")
"""The lists with an entry for each layer of a statement; elsewhere an entry is a statement."""

Entry = TypeVar("Entry", bound=Closed)
_Derived = TypeVar("_Derived")


def normal_order(entry: Closed) -> tuple[Any, ...]:
    """Return the sort key of a list: positions, coarse parts before finer, every gap before one.

    It is () for an entry of a list that keeps its order.
    """
    if isinstance(entry, GgufOutput):
        return (entry.type,)
    if isinstance(entry, Layer | Others):
        return (*entry.positions, rank(entry.part), entry.part or "")
    if isinstance(entry, DropSome):
        return entry.among, count_ends(entry.count)
    ends = entry.positions if isinstance(entry, Open) else ()
    return (*ends[:1], *ends[-1:])


def retied(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries with their groups numbered by first appearance."""
    groups = dict.fromkeys(e.tied for e in entries if isinstance(e, Open) and e.tied is not None)
    moved = {old: {"tied": new} for new, old in enumerate(groups) if old != new}
    return tuple(
        e.model_copy(update=moved[e.tied]) if isinstance(e, Open) and e.tied in moved else e
        for e in entries
    )


@final
class Plan(Closed):
    """The declared output model. Equal plans have equal fields, wherever they were read from.

    Positions are the base's layer numbers, before anything is dropped. A position that nothing
    names follows `others`, then `whole`, then is the base's own. `layers`, `others`, `whole`,
    `drops`, `drop_any`, `windows`, `repeats`, `scales` and `bridges` are the overlay; a plan has
    these or a `stack`. `vocabulary`, `width`, `experts` and `heal` go with either. `numbers`
    are those that have a name. `gguf` are files that are written of the output, and `expects`
    change nothing of it.
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
    gguf: Several[GgufOutput] = ()
    layers: Several[Layer] = ()
    others: Several[Others] = ()
    whole: Whole | None = None
    drops: Several[Drop] = ()
    drop_any: Several[DropAny] = ()
    windows: Several[DropWindow] = ()
    repeats: Several[Repeat | RepeatWindow] = ()
    scales: Several[Scale] = ()
    vocabulary: SizeCut | None = None
    width: SizeCut | None = None
    experts: SizeCut | None = None
    bridges: Several[Bridge] = ()
    heal: Heal | None = None
    stack: Stack | None = None
    search: Search | None = None
    expects: Several[Expectation] = ()

    _origin: Origin | None = PrivateAttr(default=None)
    _derived: dict[str, Any] = PrivateAttr(default_factory=dict)

    if not TYPE_CHECKING:  # types come from the fields

        def __init__(self, *given: object, **fields: Any) -> None:
            """Build a plan of fields by name. Raises PlanError for unknown fields."""
            if given:
                raise TypeError("Plan() expects fields by name; gptailor.load reads a plan's file")
            super().__init__(**fields)

        __init__.__pydantic_base_init__ = True  # pydantic validates data without it

        def __setattr__(self, name: str, value: object) -> None:
            if name in type(self).model_fields:
                raise AttributeError(
                    "a plan is frozen; make another one: "
                    f"gptailor.Plan(**{{**dict(plan), '{name}': …}})"
                )
            super().__setattr__(name, value)

    @model_validator(mode="wrap")
    @classmethod
    def _with_faults(cls, fields: Any, validate: Callable[[Any], "Plan"]) -> "Plan":
        try:
            return validate(fields)
        except ValidationError as error:
            raise PlanError(data_faults(error)) from None

    @field_validator("gguf", *OVERLAY, mode="after")
    @classmethod
    def _sort(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return retied(sorted(value, key=normal_order))

    @property
    def origin(self) -> Origin | None:
        """Return the text that the plan was read from, with the span of each place, or None."""
        return self._origin

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "Plan":
        """Return a copy without derived values; see pydantic.

        Fields are validated if one is unknown, or has another type than a plan's. Raises PlanError
        for them. Faults of a copy point at the text that this plan was read from.
        """
        given, fields = update or {}, type(self).model_fields
        few = {  # of a long list, one entry of each type is looked at
            name: tuple({type(each): each for each in value}.values())
            if isinstance(value, tuple)
            else value
            for name, value in given.items()
        }
        if not all(
            name in fields
            and not isinstance(value, list)
            and fits(value, fields[name].annotation, bounded=False)
            for name, value in few.items()
        ):
            changed = Plan(**{**dict(self), **given})
            update = {name: getattr(changed, name) for name in given}
        plan = super().model_copy(update=update, deep=deep)
        plan._derived = {}
        return plan

    def read_from(self, origin: Origin | None) -> "Plan":
        """Return the plan with the text that it was read from, if there is one."""
        plan = self.model_copy()
        plan._origin = origin
        return plan

    def with_families(self, files: Iterable[str | Path]) -> "Plan":
        """Return the plan with files of families that its models may be of."""
        origin = self._origin or Origin(Source("<plan>", ""), Path())
        return self.read_from(replace(origin, families=tuple(Path(file) for file in files)))

    @property
    def may_be_healed(self) -> bool:
        """Return whether `heal` can change something, however the choices are closed.

        It changes nothing where the plan is its own teacher.
        """
        if self.heal is None:
            return False
        drops = self.drops or self.drop_any or self.windows
        return bool(drops or self.text_fits or self.stack or self.heal.has_other_teacher)

    @property
    def text_fits(self) -> dict[str, TextFit]:
        """Return the plan's changes that one text decides, by their statements' words."""
        return {name: value for name, value in self if isinstance(value, TextFit)}

    @property
    def cuts(self) -> dict[str, SizeCut]:
        """Return the plan's cuts by their statements' words, in the order of `CUTS`."""
        return {name: fit for name, fit in self.text_fits.items() if isinstance(fit, SizeCut)}

    @property
    def is_fitted(self) -> bool:
        """Return whether texts decide the output: the plan cuts, bridges or heals."""
        return bool(self.text_fits or self.bridges or self.heal)

    @property
    def calibration_texts(self) -> tuple[tuple[Place, str], ...]:
        """Return the texts that cuts, bridges, healing and GGUF files read, and their places."""
        healed = self.heal.on if self.heal is not None else ()
        return (
            *(((name, "on"), fit.on) for name, fit in self.text_fits.items()),
            *((("bridges", i, "on"), bridge.on) for i, bridge in enumerate(self.bridges)),
            *((("heal", "on", i, "file"), text.file) for i, text in enumerate(healed)),
            *((("gguf", i, "on"), file.on) for i, file in enumerate(self.gguf) if file.on),
        )

    def with_calibration_texts(self, file_of: Callable[[str], str]) -> "Plan":
        """Return the plan with other names of its `calibration_texts`."""

        def renamed(entry: Any) -> Any:
            return entry.model_copy(update={"on": file_of(entry.on)}) if entry.on else entry

        update: dict[str, Any] = {name: renamed(fit) for name, fit in self.text_fits.items()}
        update |= {name: tuple(map(renamed, getattr(self, name))) for name in ("bridges", "gguf")}
        update["heal"] = None if self.heal is None else self.heal.with_files(file_of)
        return self.model_copy(update=update)

    def rest(self, where: str) -> Recipe | None:
        """Return the recipe of `embed`, `norm`, `head` or `tokenizer`, or None without one."""
        recipe: Recipe | str | None = getattr(self, where)
        return None if isinstance(recipe, str) else recipe

    def __str__(self) -> str:
        """Return the canonical text."""
        return str(import_module("gptailor").format(self))  # is above this module

    def _repr_html_(self) -> str:
        """Return the layer map of a notebook."""
        return str(import_module("gptailor").show(self)._repr_html_())

    def __eq__(self, other: object) -> bool:
        """Return whether all fields are equal; the text they were read from doesn't count."""
        if not isinstance(other, Plan):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)

    __hash__ = None  # type: ignore[assignment] # it holds dictionaries


def data_faults(error: ValidationError, source: Source | None = None) -> list[Fault]:
    """Return the faults of data that isn't a plan, at the places of its fields."""
    return [
        Fault(
            "S107",
            "unknown field"
            if each["type"] == "extra_forbidden"
            else f"{each['msg'][:1].lower()}{each['msg'][1:]}",
            tuple(each["loc"]),
            "'gptailor schema' prints all fields of a plan",
            source=source,
        )
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def derived(derive: Callable[[Plan], _Derived]) -> Callable[[Plan], _Derived]:
    """Return the function with its result kept in the plan, which is computed once."""
    name = f"{derive.__module__}.{derive.__qualname__}"  # a plan is pickled with its kept results

    @wraps(derive)
    def of(plan: Plan) -> _Derived:
        if name not in plan._derived:
            plan._derived[name] = derive(plan)
        return plan._derived[name]  # type: ignore[no-any-return]

    return of


SCHEMA_ID = f"urn:gptailor:plan:{Plan.model_fields['version'].default}"
"""The schema's name, wherever the file lies; the number is the Tailor language's."""


def json_schema(kind: type[Closed], schema_id: str, what: str, release: str) -> dict[str, Any]:
    """Return the JSON schema of a file, as editors and validators take it.

    That of a plan is `docs/plan.schema.json`.
    """
    schema = kind.model_json_schema()
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_id,
        "$comment": f"gptailor {release}",
        "title": schema.pop("title"),
        "description": what,
    }
    return head | {key: value for key, value in schema.items() if key not in head}
