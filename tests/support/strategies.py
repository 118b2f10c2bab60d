"""Hypothesis strategies that draw plans, closed and open; a new feature joins here."""

import re
from collections.abc import Callable
from typing import Any, Literal

from hypothesis import strategies as st

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, is_weighted
from gptailor.plan import plan as p
from gptailor.plan import sites
from gptailor.plan.layer_parts import NAMED_PARTS, is_pattern
from gptailor.plan.plan import LARGEST_LAYER
from gptailor.plan.registry import (
    DTYPES,
    LARGEST_SINGLE,
    METHODS,
    OBJECTIVES,
    WORDS,
    Method,
    ObjectiveSpec,
    Parameter,
)
from gptailor.plan.sites import sources
from gptailor.plan.windows import runs, stretch_of, windows_of

Draw = Callable[[st.SearchStrategy[Any]], Any]

MEASURES = [spec for name, spec in OBJECTIVES.items() if name in OBJECTIVES.own]
"""The core's objectives; the table also has those that other tests have loaded."""

# ------------------------------------------------------------------------------------------- words

NAMES = st.one_of(
    st.sampled_from(["math", "code", "chat", "linear", "attn", "l7", "Lx", "e5", "größe", "数学"]),
    st.text(st.characters(categories=["L", "Nd"], include_characters="_"), min_size=1, max_size=8),
).filter(lambda n: re.fullmatch(r"[^\W\d]\w*", n) and n not in WORDS and not re.match(r"L\d", n))
"""Names that a model may have."""

TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='"\r\n'), min_size=1, max_size=12
)
"""Texts that may stand in double quotes."""

LOCAL = st.builds("{}{}".format, st.sampled_from(["./", "/", "~/", "../"]), TEXTS).filter(
    lambda text: "\0" not in text
)
HUB = st.from_regex(
    r"\w[\w.-]{0,5}/[\w.-]{1,6}", fullmatch=True, alphabet=st.characters(codec="ascii")
)
REVISIONS = TEXTS
POSITIONS = st.one_of(st.integers(0, 12), st.integers(0, LARGEST_LAYER))

# ----------------------------------------------------------------------------------------- numbers

REALS = st.one_of(
    st.sampled_from([0, 1, 0.5, -1.0, 1e-05, 1e16, 5e-324]),
    st.integers(-10, 10),
    st.floats(-LARGEST_SINGLE, LARGEST_SINGLE),
)


def within(parameter: Parameter) -> st.SearchStrategy[float]:
    """Numbers that a parameter takes."""
    if parameter.integer:
        return st.integers(int(parameter.low), int(parameter.high))
    low, high = max(parameter.low, -LARGEST_SINGLE), min(parameter.high, LARGEST_SINGLE)
    return st.floats(low, high, exclude_min=parameter.open_low)


def values(numbers: st.SearchStrategy[Any], *, intervals: bool = True) -> st.SearchStrategy[Any]:
    """A number, or a choice of numbers."""
    two = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    several = st.lists(numbers, min_size=2, max_size=3, unique=True)
    choices = [numbers, several.map(lambda n: p.OneOfNumbers(one_of=tuple(n)))]
    if intervals:
        choices.append(two.map(lambda n: p.Interval(interval=(n[0], n[1]))))
    return st.one_of(choices)


# ----------------------------------------------------------------------------------------- recipes


def argument(parameter: Parameter, sources: int) -> st.SearchStrategy[Any]:
    """A word, a number, or numbers for that many sources."""
    if parameter.words:
        return st.sampled_from(parameter.words)
    number = values(within(parameter), intervals=not parameter.integer)
    if not (parameter.variadic or parameter.each):
        return number
    one_each = st.tuples(*[number] * sources)
    if parameter.each:
        return number | one_each
    return st.tuples(number) | one_each if parameter.one_serves_all else one_each


@st.composite
def calls(draw: Draw, method: Method, sources: int) -> p.MethodCall:
    """A method with some of its arguments, for that many sources."""
    given = [parameter for parameter in method.parameters if draw(st.booleans())]
    arguments = {parameter.name: draw(argument(parameter, sources)) for parameter in given}
    if method.argument(arguments, "normalize") == "yes" or method.name == "nuslerp":
        arguments |= {"weight": tuple(draw(st.floats(0.1, 3)) for _ in range(sources))}
    if method.parameter("gamma"):
        arguments |= {"density": 0.9, "gamma": draw(st.floats(0, 0.1))}
    if method.parameter("density") and method.parameter("epsilon"):
        arguments |= {"density": draw(st.floats(0.4, 0.6)), "epsilon": draw(st.floats(0, 0.3))}
    return p.MethodCall(name=method.name, arguments=arguments)


@st.composite
def methods(draw: Draw, sources: int, *, any_number: bool = False, no_base: bool = False) -> p.By:
    """A method for that many sources, or a choice of methods."""
    able = [
        m
        for m in METHODS.values()
        if (m.takes_any_number if any_number else m.least <= sources <= (m.most or sources))
        and not (no_base and (m.needs_base or m.parameter("of")))
    ]
    one = st.sampled_from(able).flatmap(lambda m: calls(m, sources))
    if draw(st.booleans()):
        return draw(one)
    several = st.lists(one, min_size=2, max_size=3, unique_by=lambda call: call.name)
    return p.OneOfMethods(one_of=tuple(draw(several)))


def picks(names: list[str]) -> st.SearchStrategy[Any]:
    """A model, or a choice of one."""
    if len(names) < 2:
        return st.sampled_from(names)
    several = st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True)
    return st.one_of(
        st.sampled_from(names), several.map(lambda result: p.OneOfModels(one_of=tuple(result)))
    )


@st.composite
def merges(draw: Draw, names: list[str], layers: st.SearchStrategy[int], stack: bool) -> p.Merge:
    """Layers merged; in a stack a method that needs the base has one layer number."""
    count = draw(st.integers(1, 3))
    numbers = [draw(layers) for _ in range(count)]
    results = tuple(p.LayerOf(model=draw(picks(names)), layer=n) for n in numbers)
    how = draw(st.sampled_from(["share", "by", "neither"]))
    if how == "share" and count == 2:
        return p.Merge(merge=results, share=draw(values(REALS)))
    if how == "by":
        by = draw(methods(count, no_base=stack and len(set(numbers)) > 1))
        return p.Merge(merge=results, by=by)
    return p.Merge(merge=results)


@st.composite
def subsets(draw: Draw, names: list[str], layer: int | None) -> p.Subset:
    """A choice of any of the models."""
    result = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    return p.Subset(
        any_of=tuple(result), layer=layer, by=draw(methods(len(result), any_number=True))
    )


@st.composite
def recipes(draw: Draw, names: list[str], position: int) -> p.Recipe:
    """Draw the recipe of a position."""
    layers = st.one_of(st.just(position), POSITIONS)
    kind = draw(st.sampled_from(["take", "merge", "subset"]))
    if kind == "take":
        return p.Take(take=p.LayerOf(model=draw(picks(names)), layer=draw(layers)))
    if kind == "merge":
        return draw(merges(names, layers, False))
    return draw(subsets(names, position))


@st.composite
def rest_recipes(draw: Draw, names: list[str], where: str) -> p.Recipe:
    """Draw the recipe of the embedding, the norm, the head or the tokenizer."""
    kind = "take" if where == "tokenizer" else draw(st.sampled_from(["take", "merge", "subset"]))
    if kind == "take":
        return p.Take(take=p.LayerOf(model=draw(picks(names))))
    if kind == "subset":
        return draw(subsets(names, None))
    result = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
    sources = tuple(p.LayerOf(model=name) for name in result)
    if len(sources) == 1:
        sources = (p.LayerOf(model=draw(picks(names))),)
    return p.Merge(merge=sources, by=draw(methods(len(sources))))


def chat_templates(names: list[str]) -> st.SearchStrategy[str | p.TemplateOf | None]:
    """A chat template: none, one with a name, a file's, a model's."""
    of_models = st.builds(p.TemplateOf, model=st.sampled_from(names))
    return st.one_of(st.sampled_from([None, "chatml", "./template.jinja"]), of_models)


@st.composite
def gguf_files(draw: Draw) -> p.GgufOutput:
    """A GGUF file, some with a text if an importance matrix changes their type."""
    kind = draw(st.sampled_from([*FILE_TYPES]))
    text = draw(st.one_of(st.none(), TEXTS)) if is_weighted(kind) else None
    return p.GgufOutput(type=kind, on=text)


# ------------------------------------------------------------------------------------- the overlay

PARTS = st.one_of(st.sampled_from(NAMED_PARTS), TEXTS.map(lambda text: f'"{text}"'))
"""Parts by their names, and patterns."""


@st.composite
def layers(draw: Draw, names: list[str], position: int, tied: int) -> list[p.Layer]:
    """Entries for a position: one, some for parts of any fineness, or a run that goes in step."""
    kind = draw(st.sampled_from(["whole", "parts", "run"]))
    maybe = draw(st.booleans())
    recipe = draw(recipes(names, position))
    if kind == "run":
        length = draw(st.integers(1, 3))
        group = draw(st.sampled_from([None, tied]))
        steps = range(min(length, 1 + LARGEST_LAYER - max(position, *_numbers(recipe))))
        shared = {"part": draw(st.one_of(st.none(), PARTS)), "maybe": maybe, "tied": group}
        return [p.Layer(position=position + n, recipe=moved(recipe, n), **shared) for n in steps]
    if kind == "parts":
        parts = draw(st.lists(st.one_of(st.none(), PARTS), min_size=1, max_size=4, unique_by=_one))
        return [
            p.Layer(
                position=position,
                part=part,
                recipe=recipe if n == 0 else draw(recipes(names, position)),
                maybe=maybe and n % 2 == 0,
            )
            for n, part in enumerate(parts)
        ]
    return [p.Layer(position=position, recipe=recipe, maybe=maybe)]


def _one(part: str | None) -> str | None:
    """Return a key that occurs once at a position: a part, or `pattern`."""
    return "pattern" if is_pattern(part) else part


def _numbers(recipe: p.Recipe) -> list[int]:
    return [0, *(s.layer for _, s in sources(recipe) if s.layer is not None)]


def moved(recipe: p.Recipe, step: int) -> p.Recipe:
    """The recipe some layers on."""
    if isinstance(recipe, p.Subset):
        return recipe.model_copy(update={"layer": (recipe.layer or 0) + step})
    results = tuple(
        p.LayerOf(model=s.model, layer=(s.layer or 0) + step) for _, s in sources(recipe)
    )
    if isinstance(recipe, p.Take):
        return p.Take(take=results[0])
    return recipe.model_copy(update={"merge": results})


@st.composite
def overlays(draw: Draw, names: list[str]) -> dict[str, Any]:
    """Layers, drops, scales and bridges that keep out of each other's way."""
    free = sorted(draw(st.sets(POSITIONS, max_size=10)))
    results: dict[str, list[Any]] = {
        n: [] for n in ("layers", "drops", "drop_any", "windows", "scales")
    }
    for n, position in enumerate(free):
        following = free[n + 1] if n + 1 < len(free) else LARGEST_LAYER + 1
        kind = draw(st.sampled_from(["layers", "drops", "scales", "both"]))
        tied = draw(st.sampled_from([None, 0, n]))
        if kind == "drops":
            maybe = True if tied == 0 else draw(st.booleans())
            results["drops"].append(p.Drop(position=position, maybe=maybe, tied=tied))
        if kind in ("layers", "both"):
            run = draw(layers(names, position, n))
            results["layers"] += [layer for layer in run if layer.position < following]
        if kind in ("scales", "both"):
            factor = draw(values(st.floats(1e-3, 1e3)))
            tied = draw(st.sampled_from([None, n]))
            maybe = draw(st.booleans())
            results["scales"].append(
                p.Scale(position=position, factor=factor, maybe=maybe, tied=tied)
            )
    if draw(st.booleans()):
        taken = {drop.position for drop in results["drops"]}
        among = sorted(draw(st.sets(POSITIONS, min_size=1, max_size=6)) - taken)
        if among:
            kind, maybe = draw(st.sampled_from([p.DropAny, p.DropWindow])), draw(st.booleans())
            name = "drop_any" if kind is p.DropAny else "windows"
            longest = max(last - first + 1 for first, last in runs(among))
            most = len(among) if kind is p.DropAny else longest
            low, high = sorted(draw(st.tuples(*2 * [st.integers(1, most)])))
            count = low if low == high else p.CountRange(between=(low, high))
            if kind is p.DropAny or len(list(windows_of(count, among))) > 1:
                results[name].append(kind(count=count, among=tuple(among), maybe=maybe))
    fixed = {drop.position for drop in results["drops"] if not drop.maybe}
    may = {drop.position for drop in results["drops"]}
    several = (*results["drop_any"], *results["windows"])
    may |= {item for choice in several for item in choice.among}
    again = draw(repeats(fixed, may))
    inside = {item for repeat in again for item in range(*stretch_of(repeat))}
    return {**results, "repeats": again, "bridges": draw(bridges(fixed | inside))}


@st.composite
def repeats(draw: Draw, dropped: set[int], may: set[int]) -> list[p.Repeat | p.RepeatWindow]:
    """Blocks that come again, one after the other, their ends not dropped; some are choices."""
    results: list[p.Repeat | p.RepeatWindow] = []
    times = st.sampled_from([1, 1, 3, p.CountRange(between=(1, 2)), p.CountRange(between=(2, 4))])
    start = draw(st.integers(0, 8))
    for _ in range(draw(st.integers(0, 2))):
        last = start + draw(st.integers(0, 4))
        among = tuple(item for item in range(start, last + 1) if item not in may)
        kinds = [1, 2, p.CountRange(between=(1, 2)), p.CountRange(between=(2, 3))]
        count = draw(st.sampled_from(kinds))
        longest = max((b - a + 1 for a, b in runs(among)), default=0)
        most = p.count_ends(count)[1]
        fields: dict[str, Any] = {"times": draw(times), "maybe": draw(st.booleans())}
        if draw(st.booleans()) and most <= longest and len(list(windows_of(count, among))) > 1:
            results.append(p.RepeatWindow(count=count, among=among, **fields))
        elif not {start, last} & dropped:
            results.append(p.Repeat(first=start, last=last, **fields))
        start = last + 1 + draw(st.integers(0, 3))
    return results


@st.composite
def bridges(draw: Draw, dropped: set[int]) -> list[p.Bridge]:
    """One bridge for every gap, or some for a gap each."""
    after = draw(
        st.sampled_from([[], [None], sorted(draw(st.sets(POSITIONS, max_size=2)) - dropped)])
    )
    return [
        p.Bridge(
            after=position,
            on=draw(TEXTS),
            tokens=draw(st.sampled_from([None, 1, 65536])),
            ridge=draw(st.one_of(st.none(), values(st.floats(0, 1e6)))),
            maybe=draw(st.booleans()),
        )
        for position in after
    ]


@st.composite
def heals(draw: Draw, names: list[str], dropped: set[int] | None) -> p.Heal:
    """Healing by any of its settings; of all layers where `dropped` is None, as with a stack."""
    learning = draw(st.sets(POSITIONS, max_size=4)) if dropped is not None else set()
    answers = st.builds(
        p.TeacherAnswers,
        tokens=st.sampled_from([None, 1, 256]),
        temperature=st.sampled_from([None, 0, 0.7]),
    )
    files = draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True))
    teachers = st.sampled_from([None, *names])
    return p.Heal(
        on=tuple(
            p.HealText(
                file=file,
                answers=draw(st.one_of(st.none(), answers)),
                teacher=draw(teachers),
                weight=draw(st.sampled_from([1, 2, 0.5])),
            )
            for file in files
        ),
        layers=tuple(learning - (dropped or set())),
        teacher=draw(teachers),
        tokens=draw(st.sampled_from([None, 1, 200_000])),
        rank=draw(st.sampled_from([None, 1, 64, "full"])),
        seed=draw(st.sampled_from([None, 0, 2**63 - 1])),
        loss=draw(st.sampled_from([None, "all", "answers"])),
    )


@st.composite
def levels(draw: Draw, names: list[str], *, tied: bool) -> dict[str, Any]:
    """Draw recipes of all positions; `tied` where no position may have a choice of its own."""
    finer = ["norms", "mlp.up", '"*.bias"'] if tied else []
    parts = draw(st.sets(st.sampled_from(["", "attn", "mlp", *finer]), max_size=2))
    others = [
        p.Others(
            part=part or None,
            recipe=draw(rest_recipes(names, "others")),
            maybe=draw(st.booleans()),
            tied=n if tied or draw(st.booleans()) else None,
        )
        for n, part in enumerate(sorted(parts))
    ]
    group = 0 if tied or any(entry.maybe for entry in others) else draw(st.sampled_from([None, 0]))
    whole = p.Whole(recipe=draw(rest_recipes(names, "whole")), tied=group)
    return {"others": tuple(others), "whole": draw(st.sampled_from([None, whole]))}


@st.composite
def numbered(draw: Draw, plan: p.Plan) -> p.Plan:
    """The plan with some of its shares and `t`s named, or going by the position."""
    free = sorted({"mix", "late", "curve", "full"} - plan.models.keys())
    known = {name: draw(values(st.floats(0.1, 0.9))) for name in free[: draw(st.integers(0, 2))]}
    layers = []
    for layer in plan.layers:
        first = draw(st.integers(0, layer.position))
        last = draw(st.integers(layer.position, LARGEST_LAYER))
        extent = draw(st.sampled_from([(layer.position, layer.position), (first, last)]))
        layers.append(draw(renumbered(layer, sorted(known), extent)))
    others = tuple(draw(renumbered(entry, sorted(known), None)) for entry in plan.others)
    update: dict[str, Any] = {"layers": tuple(layers), "others": others}
    if plan.stack is not None:
        items = tuple(
            item if item.maybe else draw(renumbered(item, sorted(known), (0, 0)))
            for item in plan.stack.items
        )
        update["stack"] = plan.stack.model_copy(update={"items": items})
    made = plan.model_copy(update=update)
    used = {name for _, value in sites.values(made) for name in sites.names_in(value)}
    numbers = {name: value for name, value in known.items() if name in used}
    for name in ("drop_any", "windows"):
        for i, choice in enumerate(getattr(made, name)):
            if isinstance(choice.count, int) and draw(st.booleans()):
                numbers[f"count_{choice.count}"] = choice.count
                named = choice.model_copy(update={"named": f"count_{choice.count}"})
                kept = getattr(made, name)
                made = made.model_copy(update={name: (*kept[:i], named, *kept[i + 1 :])})
    for name, cut in made.cuts.items():
        if isinstance(cut.size, int) and draw(st.booleans()):
            numbers[f"size_{cut.size}"] = cut.size
            size = p.Named(named=f"size_{cut.size}")
            made = made.model_copy(update={name: cut.model_copy(update={"size": size})})
    return made.model_copy(update={"numbers": numbers})


@st.composite
def renumbered(draw: Draw, entry: Any, known: list[str], over: tuple[int, int] | None) -> Any:
    """The entry; its share or `t` may be a name or a curve."""
    recipe = entry.recipe
    if not isinstance(recipe, p.Merge) or entry.tied is not None:
        return entry
    named = [st.just(p.Named(named=name)) for name in known]
    knots = st.lists(st.one_of(st.floats(0.1, 0.9), *named), min_size=2, max_size=3)
    curves = knots.map(lambda result: p.Curve(curve=tuple(result), over=over))
    number = st.one_of(curves, *named)
    if recipe.share is not None and draw(st.booleans()):
        recipe = recipe.model_copy(update={"share": draw(number)})
    elif isinstance(recipe.by, p.MethodCall) and recipe.by.name == "slerp":
        call = p.MethodCall(name="slerp", arguments={"t": draw(number)})
        recipe = recipe.model_copy(update={"by": call})
    return entry.model_copy(update={"recipe": recipe})


@st.composite
def cuts(draw: Draw) -> dict[str, p.SizeCut]:
    """Some of the statements that make something smaller, open or closed."""
    results = {}
    for name in sorted(draw(st.sets(st.sampled_from(p.CUTS)))):
        low, step, steps = draw(st.tuples(*3 * [st.integers(1, 9)]))
        open_size = p.SizeRange(between=(low, low + step * steps), step=step)
        ridges = [None, 0, 0.5] if name == "width" else [None]
        results[name] = p.SizeCut(
            size=draw(st.sampled_from([low, open_size])),
            on=draw(TEXTS),
            tokens=draw(st.sampled_from([None, 1, 65536])),
            ridge=draw(st.sampled_from(ridges)),
        )
    return results


# -------------------------------------------------------------------------------------- the blocks


@st.composite
def stacks(draw: Draw, names: list[str]) -> p.Stack:
    """A stack of items, some of them tied neighbours."""
    items: list[p.Item] = []
    for n in range(draw(st.integers(1, 6))):
        layer = draw(POSITIONS)
        if draw(st.booleans()):
            numbers = st.one_of(st.just(layer), POSITIONS)
            recipe: p.Recipe = draw(merges(names, numbers, True))
        else:
            recipe = p.Take(take=p.LayerOf(model=draw(picks(names)), layer=layer))
        tied = draw(st.sampled_from([None, n]))
        length = draw(st.integers(1, 1 + min(2, LARGEST_LAYER - max(_numbers(recipe)))))
        maybe = draw(st.booleans())
        items += [p.Item(recipe=moved(recipe, k), maybe=maybe, tied=tied) for k in range(length)]
    fixed = sum(not item.maybe for item in items)
    limit = draw(st.one_of(st.none(), st.integers(max(1, fixed), 100)))
    return p.Stack(items=tuple(items), limit=limit)


@st.composite
def objectives(draw: Draw, names: list[str], spec: ObjectiveSpec) -> p.Objective:
    """An objective with its required arguments and some others."""
    kinds = {
        "path": TEXTS, "text": TEXTS, "number": REALS, "model": st.just("base"),
        "file type": st.sampled_from(["q4_k_m", "q8_0"]),
    }  # fmt: skip
    arguments = {
        argument.name: draw(kinds[argument.kind])
        for argument in spec.arguments
        if argument.required or draw(st.booleans())
    }
    direction = spec.direction or draw(st.sampled_from(["minimize", "maximize"]))
    return p.Objective(direction=direction, name=spec.name, arguments=arguments)


BOUNDS = st.one_of(REALS, st.integers(-9, 9), st.integers(0, 9).map(lambda n: n * 250_000_000))


@st.composite
def requirements(draw: Draw, names: list[str]) -> p.Requirement:
    """A bound on the worse side of a measure: a number, a multiple of a model's, or a model's."""
    of = draw(objectives(names, draw(st.sampled_from(MEASURES))))
    number, model = draw(st.one_of(st.none(), BOUNDS)), draw(st.sampled_from([None, "base"]))
    bound = p.Bound(number=number, of=model if number is not None else "base")
    sign: Literal["<=", ">="] = "<=" if of.direction == "minimize" else ">="
    return p.Requirement(name=of.name, arguments=of.arguments, sign=sign, bound=bound)


@st.composite
def expectations(draw: Draw, names: list[str]) -> p.Expectation:
    """A bound on either side of a measure."""
    required = draw(requirements(names))
    sign: Literal["<=", ">=", "<", ">"] = draw(st.sampled_from(["<=", ">=", "<", ">"]))
    fields = {name: getattr(required, name) for name in ("name", "arguments", "bound")}
    return p.Expectation(sign=sign, **fields)


@st.composite
def searches(draw: Draw, names: list[str]) -> p.Search:
    """A search block."""
    specs = draw(st.lists(st.sampled_from(MEASURES), max_size=3, unique_by=id))
    if specs and all(spec.by != "samples" for spec in specs):
        specs.append(OBJECTIVES["nll"])
    low = draw(st.integers(1, 100))
    wanted = draw(st.lists(requirements(names), max_size=2, unique_by=repr))
    return p.Search(
        objectives=tuple(draw(objectives(names, spec)) for spec in specs),
        requires=tuple(wanted),
        fidelity=draw(st.sampled_from([None, (low, low), (low, low + 9)])),
        trials=draw(st.one_of(st.none(), st.integers(1, 10**6))),
        seed=draw(st.one_of(st.none(), st.integers(0, 2**63 - 1))),
    )


# ------------------------------------------------------------------------------------------- plans


@st.composite
def models(draw: Draw) -> dict[str, p.Model]:
    """The base and others: folders, Hub ids with revisions; adapters on and mixes of those before.

    The base isn't on a model that is made of others.
    """
    results: dict[str, p.Model] = {}
    for name in ("base", *draw(st.lists(NAMES, max_size=4, unique=True))):
        if name in results:
            continue
        kind = draw(st.sampled_from(["local", "hub", "adapter", "made"]))
        if kind == "made" and results:
            results[name] = p.Model(made=draw(rest_recipes(sorted(results), name)))
            continue
        under = sorted(n for n in results if not has_made(results, n))
        on = draw(st.sampled_from(under)) if kind == "adapter" and under else None
        if kind == "hub":
            revision = draw(st.one_of(st.none(), REVISIONS))
            results[name] = p.Model(source=draw(HUB), revision=revision, on=on)
        else:
            results[name] = p.Model(source=draw(LOCAL), on=on)
    return results


def has_made(declared: dict[str, p.Model], name: str) -> bool:
    """Return True for a model that is made of others, and for an adapter on one."""
    model = declared[name]
    return model.made is not None or (model.on is not None and has_made(declared, model.on))


@st.composite
def plans(draw: Draw) -> p.Plan:
    """A plan that has no faults by itself."""
    declared = draw(models())
    names = sorted(declared)
    tellers = [name for name in names if not has_made(declared, name)]
    stated: dict[str, list[str | None]] = {where: [None] for where in p.REST}
    stated["tokenizer"] = [None, "union"] if tellers == names else [None]
    telling = dict.fromkeys(p.REST, names) | {"tokenizer": tellers}
    rest = {
        where: draw(st.one_of(st.sampled_from(stated[where]), rest_recipes(telling[where], where)))
        for where in sorted(draw(st.sets(st.sampled_from(p.REST))))
    }
    layered = {"stack": draw(stacks(names))} if draw(st.booleans()) else draw(overlays(names))
    if "stack" not in layered and draw(st.booleans()):
        maybe = any(layer.maybe for layer in layered["layers"])
        layered |= draw(levels(names, tied=maybe))
    fixed = {drop.position for drop in layered.get("drops", ()) if not drop.maybe}
    healed = heals(names, fixed if "stack" not in layered else None)
    cut = draw(cuts())
    if rest.get("tokenizer") == "union":
        cut.pop("vocabulary", None)
    drawn = p.Plan(
        models=declared,
        dtype=draw(st.sampled_from([None, *DTYPES])),
        chat_template=draw(chat_templates(tellers)),
        gguf=tuple(draw(st.lists(gguf_files(), max_size=3, unique_by=lambda file: file.type))),
        heal=draw(st.one_of(st.none(), healed)),
        search=draw(st.one_of(st.none(), searches(names))),
        expects=tuple(draw(st.lists(expectations(names), max_size=3, unique_by=repr))),
        **rest,
        **layered,
        **cut,
    )
    return draw(numbered(drawn))
