"""The only walk over a plan: its sites, each with its place, its subject and its condition.

All that reads a plan's choices folds over it: genes are made of open sites, decoding puts an answer
in each site's place, encoding reads the answer there, and rules look at the sites they are about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, final

from gptailor.plan import plan as p
from gptailor.plan.faults import Place

_Part = TypeVar("_Part")

Role = Literal[
    "drop", "cut", "window", "otherwise", "repeated", "block", "times", "scaled", "bridged",
    "item", "member", "take", "source", "method", "argument", "share", "factor", "tokens", "ridge",
    "vocabulary", "width", "experts", "let",
]  # fmt: skip
"""The decision at a site: whether a layer leaves, which models a recipe takes, one of its numbers.
"""


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a choice: its role, and the model, part, method or parameter that it is for.

    `number` counts sources and a method's several numbers from 1; it is 0 for a single one. A
    number with a name has the subject of its first use.
    """

    role: Role
    model: str = ""
    part: str = ""
    method: str = ""
    parameter: str = ""
    number: int = 0

    @property
    def used_as(self) -> str:
        """The role; a number with a name has the role of its first use."""
        return self.parameter if self.role == "let" and not self.method else self.role


SEVERAL = -1
"""The value of a condition on a subset: two or more members are chosen."""

Given: TypeAlias = tuple[Place, int]
"""A choice that another depends on, and its value there: an option, a member, or SEVERAL."""

Choice: TypeAlias = (
    p.DropAny
    | p.DropWindow
    | p.RepeatWindow
    | p.CountRange
    | p.SizeRange
    | p.Subset
    | p.OneOfModels
    | p.OneOfMethods
    | p.OneOfNumbers
    | p.Interval
)
"""An open value other than a `maybe`."""


@final
@dataclass(frozen=True, slots=True)
class Site:
    """One value of a plan that may be open.

    `place` is the value's place, `entry` the place of the model, layer, drop, scale, bridge or item
    around it, or (). `when` are the choices in the same recipe that it depends on; the entry's own
    `maybe` comes on top of them.
    """

    place: Place
    value: Choice | p.Value | p.By | str | bool
    subject: Subject
    entry: Place = ()
    when: tuple[Given, ...] = ()

    @property
    def open(self) -> bool:
        """Return whether this is a choice."""
        return self.value is True or isinstance(self.value, Choice)


# --------------------------------------------------------------------------------------- the sites


@p.derived
def sites(plan: p.Plan) -> tuple[Site, ...]:
    """Return all values of a plan that may be open, in the order of a space's genes."""
    uses = tuple(_value_sites(plan))
    return (*_number_sites(plan, uses), *uses)


def _number_sites(plan: p.Plan, uses: Sequence[Site]) -> Iterator[Site]:
    """Yield the numbers that have a name, each with the subject of its first use."""
    about = {name: site.subject for site in reversed(uses) for name in names_in(site.value)}
    for name, value in sorted(plan.numbers.items()):
        of = about.get(name, Subject("let"))
        subject = Subject("let", method=of.method, parameter=of.parameter or of.role)
        yield Site(("numbers", name), value, subject)


def names_in(value: object) -> tuple[str, ...]:
    """Return the names of numbers in a number of a plan."""
    if isinstance(value, p.Named):
        return (value.named,)
    knots = value.curve if isinstance(value, p.Curve) else ()
    return tuple(knot.named for knot in knots if isinstance(knot, p.Named))


def _value_sites(plan: p.Plan) -> Iterator[Site]:
    for at, recipe in recipes(plan):
        if at[-1] != "recipe":  # of no entry
            yield from recipe_sites(recipe, at, at[:-1])
    for at, entry in entries(plan):
        yield from entry_sites(entry, at)
    for word in p.CUTS:
        if (cut := plan.cuts.get(word)) is not None:
            yield Site((word, "size"), cut.size, Subject(word))


@p.derived
def entries(plan: p.Plan) -> tuple[tuple[Place, p.Open], ...]:
    """Return all entries that `maybe` and `tied` may stand before, and their places."""
    items = enumerate(plan.stack.items if plan.stack else ())
    first = ("drop_any", "windows", "drops", "layers", "others")
    return (
        *enumerated(plan, *first),
        *((("stack", "items", i), item) for i, item in items),
        *enumerated(plan, *(name for name in p.OVERLAY if name not in first)),
        *([] if plan.whole is None else [(("whole",), plan.whole)]),
    )


def enumerated(plan: p.Plan, *names: str) -> Iterator[tuple[Place, Any]]:
    """Yield the entries of a plan's lists, and their places."""
    for name in names:
        yield from (((name, i), entry) for i, entry in enumerate(getattr(plan, name)))


def drops_by_choice(plan: p.Plan) -> Iterator[tuple[Place, p.DropAny | p.DropWindow]]:
    """Yield each choice of several drops, and its place."""
    return enumerated(plan, "drop_any", "windows")


def repeated_blocks(plan: p.Plan) -> Iterator[tuple[Place, p.Repeat | p.RepeatWindow]]:
    """Yield each block that repeats, and its place."""
    return enumerated(plan, "repeats")


def tied_entries(plan: p.Plan) -> list[tuple[Place, p.Open]]:
    """Return the entries of tied groups and their places, layers before drops, items last."""
    order = ("layers", "others", "whole", "drops", "scales", "stack")
    tied = [pair for pair in entries(plan) if pair[1].tied is not None and pair[0][0] in order]
    return sorted(tied, key=lambda pair: order.index(str(pair[0][0])))


_MAYBE: dict[type[p.Open], Role] = {
    p.Drop: "drop",
    p.DropAny: "cut",
    p.DropWindow: "cut",
    p.Repeat: "repeated",
    p.RepeatWindow: "repeated",
    p.Scale: "scaled",
    p.Bridge: "bridged",
    p.Item: "item",
}
"""The roles of entries' `maybe`; where another recipe holds instead it is `otherwise`."""
_NUMBERS: tuple[Role, ...] = ("factor", "tokens", "ridge")


def entry_sites(entry: p.Open, at: Place) -> Iterator[Site]:
    """Yield the sites of one entry: its recipe, its `maybe`, its own numbers."""
    if isinstance(entry, p.DropAny | p.DropWindow):
        yield Site(at, entry, Subject("drop" if isinstance(entry, p.DropAny) else "window"), at)
    if isinstance(entry, p.Layer | p.Others | p.Whole | p.Item):
        yield from recipe_sites(entry.recipe, (*at, "recipe"), at)
    part = entry.part or "" if isinstance(entry, p.Layer | p.Others) else ""
    role = _MAYBE.get(type(entry), "otherwise")
    yield Site((*at, "maybe"), entry.maybe, Subject(role, part=part), at)
    if isinstance(entry, p.RepeatWindow):
        yield Site(at, entry, Subject("block"), at)
    if isinstance(entry, p.Repeat | p.RepeatWindow):
        yield Site((*at, "times"), entry.times, Subject("times"), at)
    for name in _NUMBERS:
        if (value := getattr(entry, name, None)) is not None:
            yield Site((*at, name), value, Subject(name), at)


def recipe_sites(recipe: p.Recipe, at: Place = (), entry: Place = ()) -> Iterator[Site]:
    """Yield the sites of one recipe."""
    conditions: tuple[Given, ...] = ()
    if isinstance(recipe, p.Subset):
        conditions = ((at, SEVERAL),)
        yield Site(at, recipe, Subject("member"), entry)
    else:
        for place, source in sources(recipe):
            k = 0 if isinstance(recipe, p.Take) else int(place[-1]) + 1
            subject = Subject("source" if k else "take", number=k)
            yield Site((*at, *place, "model"), source.model, subject, entry)
    if isinstance(recipe, p.Merge) and recipe.share is not None:
        yield Site((*at, "share"), recipe.share, Subject("share"), entry)
    by = (*at, "by")
    if not isinstance(recipe, p.Take) and isinstance(recipe.by, p.OneOfMethods):
        yield Site(by, recipe.by, Subject("method"), entry, conditions)
    for inner, call in calls(recipe):
        option = ((by, int(inner[-1])),) if len(inner) > 1 else ()
        for argument, name, value in call_values(call):
            given = call.arguments[str(argument[1])]
            k = int(argument[-1]) + 1 if isinstance(given, tuple) and len(given) > 1 else 0
            member = ((at, k - 1),) if k and isinstance(recipe, p.Subset) else ()
            subject = Subject("argument", method=call.name, parameter=name, number=k)
            place = (*at, *inner, *argument)
            yield Site(place, value, subject, entry, (*conditions, *option, *member))


def open_choices(plan: p.Plan) -> int:
    """Count the choices that a plan leaves open; a tied statement's count once."""
    shared = shared_place(plan)
    return len({shared(site.place) for site in sites(plan) if site.open})


def shared_place(plan: p.Plan) -> Callable[[Place], Place]:
    """Return a map from a choice's place to that in the first entry tied to it."""
    first: dict[tuple[Place, int], Place] = {}
    moved: dict[Place, Place] = {}
    for at, entry in entries(plan):
        if entry.tied is not None:
            moved[at] = first.setdefault((at[:-1], entry.tied), at)

    def shared(place: Place) -> Place:
        length = 3 if place[0] == "stack" else 2
        return (*moved.get(place[:length], place[:length]), *place[length:])

    return shared


# ------------------------------------------------------------------------------------- the recipes


def recipes(plan: p.Plan) -> Iterator[tuple[Place, p.Recipe]]:
    """Yield every recipe of a plan and its place: of models, and of the output."""
    for name, model in plan.models.items():
        if model.made is not None:
            yield ("models", name, "made"), model.made
    yield from output_recipes(plan)


def output_recipes(plan: p.Plan) -> Iterator[tuple[Place, p.Recipe]]:
    """Yield every recipe of the output and its place."""
    for where in p.REST:
        if (recipe := plan.rest(where)) is not None:
            yield (where,), recipe
    yield from layer_recipes(plan)


def layer_recipes(plan: p.Plan) -> Iterator[tuple[Place, p.Recipe]]:
    """Yield every recipe of a layer and its place."""
    for at, entry in entries(plan):
        if isinstance(entry, p.Layer | p.Others | p.Whole | p.Item):
            yield (*at, "recipe"), entry.recipe


def sources(recipe: p.Recipe) -> Iterator[tuple[Place, p.LayerOf]]:
    """Yield the layers that a recipe reads, a choice of models in one, and a subset's members."""
    if isinstance(recipe, p.Take):
        yield ("take",), recipe.take
    elif isinstance(recipe, p.Merge):
        yield from ((("merge", k), source) for k, source in enumerate(recipe.merge))
    else:
        for k, name in enumerate(recipe.any_of):
            yield ("any_of", k), p.built(p.LayerOf, model=name, layer=recipe.layer)


def named_models(recipe: p.Recipe) -> Iterator[tuple[Place, str, int | None]]:
    """Yield each model that a recipe names: its place in the recipe, its name, the layer taken."""
    for at, source in sources(recipe):
        if isinstance(source.model, p.OneOfModels):
            for i, name in enumerate(source.model.one_of):
                yield (*at, "model", "one_of", i), name, source.layer
        else:
            place = at if at[0] == "any_of" else (*at, "model")
            yield place, source.model, source.layer


def calls(recipe: p.Recipe) -> Iterator[tuple[Place, p.MethodCall]]:
    """Yield each method that a recipe may use, and its place."""
    by = None if isinstance(recipe, p.Take) else recipe.by
    if isinstance(by, p.MethodCall):
        yield ("by",), by
    elif isinstance(by, p.OneOfMethods):
        for i, call in enumerate(by.one_of):
            yield ("by", "one_of", i), call


def call_values(call: p.MethodCall) -> Iterator[tuple[Place, str, p.Value]]:
    """Yield each number of a method: its place, its parameter's name, the number.

    Arguments that are words are left out.
    """
    for name, value in call.arguments.items():
        if isinstance(value, tuple):
            for i, number in enumerate(value):
                yield ("arguments", name, i), name, number
        elif not isinstance(value, str):
            yield ("arguments", name), name, value


def recipe_lists(recipe: p.Recipe) -> Iterator[tuple[Place, int]]:
    """Yield each list of a recipe, of models, methods and numbers: its place and its length."""
    if isinstance(recipe, p.Merge):
        yield ("merge",), len(recipe.merge)
    for at, call in calls(recipe):
        yield at, len([*call_values(call)])
    if isinstance(recipe, p.Subset):
        yield ("any_of",), len(recipe.any_of)
    for site in recipe_sites(recipe):
        yield from value_lists(site.value, site.place)


def value_lists(value: object, at: Place = ()) -> Iterator[tuple[Place, int]]:
    """Yield the list of a value that has one, knots or options: its place and its length."""
    if isinstance(value, p.Curve):
        yield at, len(value.curve)
    elif isinstance(value, p.OneOfNumbers | p.OneOfModels | p.OneOfMethods):
        yield at, len(value.one_of)


def values(plan: p.Plan) -> Iterator[tuple[Place, p.Value]]:
    """Yield every number of a plan that may be a choice."""
    roles = ("argument", "share", "let", *_NUMBERS, *p.CUTS)
    for site in sites(plan):
        if isinstance(site.value, p.Value) and site.subject.role in roles:
            yield site.place, site.value


def numbers(value: p.Value, named: Mapping[str, p.Let] | None = None) -> tuple[int | float, ...]:
    """Return the numbers that bound a value: itself, its ends, its options, its knots.

    A name in `named` counts as its number; an unknown name has no bounds.
    """
    match value:
        case p.Interval():
            return value.interval
        case p.OneOfNumbers():
            return value.one_of
        case p.Named():
            number_ = (named or {}).get(value.named)
            return () if number_ is None else numbers(number_)
        case p.Curve():
            return tuple(number for knot in value.curve for number in numbers(knot, named))
        case _:
            return (value,)


def sizes_of(plan: p.Plan, size: p.Size) -> tuple[int, ...]:
    """Return the sizes that a cut may be closed to, in order."""
    if isinstance(size, p.SizeRange):
        return tuple(size.sizes)
    value = plan.numbers.get(size.named, ()) if isinstance(size, p.Named) else size
    found = value.one_of if isinstance(value, p.OneOfNumbers) else (value,)
    return tuple(sorted(n for n in found if isinstance(n, int)))


def revalued(part: _Part, change: Callable[[p.Value], p.Value]) -> _Part:
    """Return a recipe, or a part of one, with each of its numbers changed."""
    changed: Any = part
    if part is None or isinstance(part, str | p.LayerOf):
        return part
    if isinstance(changed, tuple):
        changed = tuple(revalued(each, change) for each in changed)
    elif isinstance(changed, dict):
        changed = {name: revalued(each, change) for name, each in changed.items()}
    elif isinstance(changed, p.Recipe | p.By):
        fields = {name: revalued(each, change) for name, each in changed if name != "layer"}
        changed = changed.model_copy(update=fields)
    else:
        changed = change(changed)
    return changed  # type: ignore[no-any-return]


def has_curve(recipe: p.Recipe) -> bool:
    """Return whether a number of the recipe depends on the position."""
    return any(isinstance(site.value, p.Curve) for site in recipe_sites(recipe))


def placed(recipe: p.Recipe, position: int | None) -> p.Recipe:
    """Return the recipe with all of its sources' layers at this position."""
    return layered(recipe, [position for _ in sources(recipe)] or [position])


def layered(recipe: p.Recipe, layers: Sequence[int | None]) -> p.Recipe:
    """Return the recipe with the layer of each of its sources; a subset has one for all."""
    if isinstance(recipe, p.Subset):
        return recipe.model_copy(update={"layer": layers[0]})
    pairs = zip(sources(recipe), layers, strict=True)
    moved = tuple(p.built(p.LayerOf, model=old.model, layer=layer) for (_, old), layer in pairs)
    if isinstance(recipe, p.Take):
        return p.built(p.Take, take=moved[0])
    return recipe.model_copy(update={"merge": moved})


def unplaced(recipe: p.Recipe) -> p.Recipe:
    """Return the recipe without its layers and without the positions of its curves."""

    def without(value: p.Value) -> p.Value:
        return p.built(p.Curve, curve=value.curve) if isinstance(value, p.Curve) else value

    return revalued(placed(recipe, None), without)


# ------------------------------------------------------------------------------------ the measures


def bounded_measures(plan: p.Plan) -> Iterator[tuple[Place, p.Expectation]]:
    """Yield the requirements of a plan's search, then the expectations, and their places."""
    for i, required in enumerate(plan.search.requires if plan.search is not None else ()):
        yield ("search", "requires", i), required
    yield from enumerated(plan, "expects")


def measured(plan: p.Plan) -> Iterator[tuple[Place, p.Objective]]:
    """Yield all measures that a plan names, and their places."""
    for i, objective in enumerate(plan.search.objectives if plan.search is not None else ()):
        yield ("search", "objectives", i), objective
    for at, entry in bounded_measures(plan):
        yield at, entry.objective


def compared_models(plan: p.Plan) -> Iterator[tuple[Place, str]]:
    """Yield the models that scores are compared with, and the places that name them."""
    for place, objective in measured(plan):
        if isinstance(model := objective.arguments.get("from"), str):
            yield (*place, "arguments", "from"), model
    for at, entry in bounded_measures(plan):
        if entry.bound.of is not None:
            yield (*at, "bound", "of"), entry.bound.of
