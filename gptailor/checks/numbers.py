"""Rules of named numbers, of curves, and of statements for all positions at once."""

from collections.abc import Iterator
from itertools import product

from gptailor.checks.rule import ANYWHERE, repeats, rule
from gptailor.plan import plan as p
from gptailor.plan import sites
from gptailor.plan.faults import Also, Fault, Place, listed, nearest
from gptailor.plan.layer_parts import is_pattern, may_overlap, rank
from gptailor.plan.written_out import covers, untied_choices

# -------------------------------------------------------------------------------------------- names


@rule("P113", "P114", missing_in=("let",))
def _every_named_number_is_declared(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each name at a number's place that no `let` declares."""
    named = [
        (at, name, "24576" if at[0] in p.CUTS else "0.5")
        for at, value in sites.values(plan)
        for name in sites.names_in(value)
    ]
    named += [((*at, "count"), name, "7") for at, name, _ in _named_counts(plan)]
    for at, name, example in named:
        if name in plan.numbers:
            continue
        if name in plan.models:
            yield Fault("P113", f"expected a number, got the model '{name}'", at)
            continue
        declared = listed(f"'{number}'" for number in list(plan.numbers)[:8])
        help_ = nearest(name, plan.numbers) or (
            f"the defined numbers are {declared}" if declared else ""
        )
        help_ = help_ or f"add a line such as let {name} = {example}"
        yield Fault("P114", f"the number '{name}' is not defined", at, help_)


def _named_counts(plan: p.Plan) -> Iterator[tuple[Place, str, p.Count]]:
    """Yield the place, the name and the count of each drop by choice with a named count."""
    for at, choice in sites.drops_by_choice(plan):
        if choice.named is not None:
            yield at, choice.named, choice.count


@rule("P310", missing_in=("let",))
def _every_named_count_is_its_number(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each count by a name that has another number, or no whole number."""
    for at, name, count in _named_counts(plan):
        value = plan.numbers.get(name)
        also = Also("the number is defined here", ("numbers", name, "value"))
        if value is None or value == count:
            continue
        if isinstance(value, int):
            message = f"the count is {p.count_text(count)}, but '{name}' is {value}"
            help_ = "give both the same value"
            yield Fault("P310", message, (*at, "count"), help_, also=(also,))
            continue
        message = f"expected a whole number of layers to drop, but '{name}' is another value"
        help_ = f"write 'let {name} = 7', or a range of counts such as 4..10 in the drop"
        yield Fault("P310", message, (*at, "count"), help_, also=(also,))


@rule("P113")
def _no_number_shares_a_models_name(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each name that a model and a number have."""
    for name in plan.numbers:
        if name in plan.models:
            also = Also("the model is declared here", ("models", name, "name"))
            message = f"'{name}' is the name of a model and of a number"
            yield Fault(
                "P113", message, ("numbers", name, "name"), "rename one of the two", (also,)
            )


@rule("P115", missing_in=ANYWHERE)
def _every_named_number_is_used(plan: p.Plan) -> Iterator[Fault]:
    """Yield a warning for each named number that nothing uses."""
    used = {name for _, value in sites.values(plan) for name in sites.names_in(value)}
    used |= {name for _, name, _ in _named_counts(plan)}
    for name in plan.numbers:
        if name not in used:
            message = f"the number '{name}' is never used"
            yield Fault("P115", message, ("numbers", name, "name"), "remove it", severity="warning")


# ------------------------------------------------------------------------------------------- curves


def _curves(plan: p.Plan) -> Iterator[tuple[Place, p.Curve]]:
    """Yield each curve and its place."""
    for at, value in sites.values(plan):
        if isinstance(value, p.Curve):
            yield at, value


@rule("P510")
def _every_curve_has_knots_and_positions(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each curve with fewer than two knots, or not over its own positions."""
    for at, curve in _curves(plan):
        message = help_ = ""
        if len(curve.curve) < 2:
            message, help_ = (
                "expected at least two knots in a curve, got one",
                "write one number without 'curve'",
            )
        elif at[0] in (*p.REST, "bridges"):
            where = "a bridge" if at[0] == "bridges" else f"'{at[0]}'"
            message, help_ = f"{where} can't have a curve over layers", "write one number"
        elif at[0] in ("others", "whole", "models") and curve.over is not None:
            where = str(at[1] if at[0] == "models" else at[0])
            message = f"a curve in '{where}' always spans all layers of the base"
            help_ = "remove 'over'"
        elif at[0] in ("layers", "scales"):
            message = _outside(plan, at, curve)
        if message:
            yield Fault("P510", message, at, help_)


def _outside(plan: p.Plan, at: Place, curve: p.Curve) -> str:
    """Return a message if a curve of a layer or scale doesn't go over its position."""
    entries: tuple[p.Layer | p.Scale, ...] = plan.layers if at[0] == "layers" else plan.scales
    position = entries[int(at[1])].position
    if curve.over is None:
        return "the curve has no range of layers ('over')"
    first, last = curve.over
    if first <= position <= last:
        return ""
    return f"L{position} is outside of the curve's L{first}..L{last}"


@rule("P510")
def _curves_of_a_stack_span_their_statement(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each item with a curve that isn't one of its statement's items.

    The others are its neighbours, and no item is `maybe`.
    """
    items = plan.stack.items if plan.stack is not None else ()
    over = {at: curve.over or (1, 0) for at, curve in _curves(plan) if at[0] == "stack"}
    for at, (number, last) in over.items():
        i, inner = int(at[2]), at[3:]
        beside = [(i - 1, (number - 1, last))] if number else []
        beside += [(i + 1, (number + 1, last))] if number < last else []
        if items[i].maybe:
            message = "a curve in a stack can't span 'maybe' items"
            yield Fault("P510", message, at, "write a number for each item")
        elif not 0 <= number <= last or not all(
            over.get(("stack", "items", k, *inner)) == span and _alike(items[k], items[i])
            for k, span in beside
        ):
            message = "a curve in a stack must span all items of its statement"
            yield Fault("P510", message, at, "remove 'over'")


def _alike(item: p.Item, other: p.Item) -> bool:
    """Return whether items differ in layers alone."""
    return sites.unplaced(item.recipe) == sites.unplaced(other.recipe) and item.tied == other.tied


# ------------------------------------------------------------------------------------ all positions


@rule("P207", "P401")
def _others_stand_once_for_each_part(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each second `others` of a part, and each second pattern."""
    patterns = [i for i, entry in enumerate(plan.others) if is_pattern(entry.part)]
    for i in patterns[1:]:
        also = Also("and here", ("others", patterns[0]))
        message = "two patterns may match the same tensor"
        yield Fault("P207", message, ("others", i), "keep one of the two", (also,))
    parts = [entry.part for entry in plan.others]
    for i, first in repeats(parts):
        if not is_pattern(parts[i]):
            what = f"others.{parts[i]}" if parts[i] else "others"
            also = Also("first given here", ("others", first))
            help_ = "keep one of the two"
            yield Fault("P401", f"'{what}' is given twice", ("others", i), help_, (also,))


@rule("P511")
def _no_maybe_hides_a_choice_of_each_position(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each `maybe` above a statement that leaves each position a choice.

    If the `maybe` isn't taken, the lower statement decides: two genomes may decode to one plan.
    """
    of_whole, of_others = untied_choices(plan)
    others = sites.enumerated(plan, "others") if of_others else ()
    below: list[tuple[str | None, Place]] = [(entry.part, at) for at, entry in others]
    below += [(None, ("whole",))] if of_whole else []
    for at, entry in sites.enumerated(plan, "layers", "others"):
        lower = [place for part, place in below if place[0] != at[0] and entry.part in (None, part)]
        if entry.maybe and lower:
            message = f"'maybe' adds a second choice to that of '{lower[0][0]}' for the same layers"
            help_ = f"write 'tied {lower[0][0]} …', or all options here without 'maybe'"
            also = Also("the other choice", lower[0])
            yield Fault("P511", message, (*at, "maybe"), help_, (also,))


@rule("P512")
def _no_position_overrides_an_open_finer_part(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for a layer that wins over a finer part that `others` leave open.

    Choices of each position become statements of positions, where the finer part wins.
    """
    finer = [(i, entry.part) for i, entry in enumerate(plan.others) if rank(entry.part) > 1]
    if not finer or not untied_choices(plan)[1]:
        return
    solid: dict[int, set[str | None]] = {}
    for layer in plan.layers:
        solid.setdefault(layer.position, set()).update(set() if layer.maybe else {layer.part})
    for (i, part), (j, layer) in product(finer, enumerate(plan.layers)):
        loses = rank(layer.part) < rank(part) and may_overlap(layer.part, part)
        if loses and not covers(solid[layer.position], part):
            target = f"L{layer.position}.{layer.part}" if layer.part else f"L{layer.position}"
            message = f"'{target}' overrides an open choice of 'others.{part}'"
            finer_part = f"L{layer.position}.{part}"
            help_ = f"write 'tied others.{part} …', or set '{finer_part}' too"
            also = Also("the choice", ("others", i))
            yield Fault("P512", message, ("layers", j), help_, (also,))
            return
