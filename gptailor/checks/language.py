"""Rules of plans from JSON or from code: the language must be able to write them."""

from collections.abc import Iterator
from itertools import groupby, islice

from gptailor.checks.rule import repeats, rule
from gptailor.plan.faults import Fault, Place
from gptailor.plan.plan import Item, Layer, Merge, OneOfModels, Others, Plan, Subset, Whole
from gptailor.plan.registry import LARGEST_SINGLE
from gptailor.plan.sites import (
    bounded_measures,
    drops_by_choice,
    enumerated,
    measured,
    recipes,
    sources,
    tied_entries,
    unplaced,
)

LARGEST = 2**63 - 1
"""The largest whole number that a budget may be."""


@rule("P219")
def _every_recipe_can_be_written(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each recipe that the language can't express at its place."""
    for at, recipe in recipes(plan):
        message = ""
        if at[0] == "stack" and isinstance(recipe, Subset):
            message = "'any of' isn't allowed in a stack"
        elif at[0] == "layers" and isinstance(recipe, Subset):
            position = plan.layers[int(at[1])].position
            if recipe.layer not in (position, None):
                message = f"expected L{position} of each model for 'any of', got L{recipe.layer}"
        elif at[0] not in ("layers", "stack") and isinstance(recipe, Merge):
            message = _unwritable_merge(str(at[1] if at[0] == "models" else at[0]), recipe)
        if message:
            yield Fault("P219", message, at)


def _unwritable_merge(where: str, recipe: Merge) -> str:
    """Return a message if a merge of the rest can't be written, else an empty text."""
    if recipe.share is None and recipe.by is None:
        return f"the merge of '{where}' has no method"
    if recipe.share is not None:
        return f"expected a method for '{where}', such as linear(0.5, 0.5), got a number"
    if len(recipe.merge) > 1 and any(isinstance(s.model, OneOfModels) for s in recipe.merge):
        return f"a choice of models can't be one of several sources of '{where}'"
    return ""


def _objective_arguments(plan: Plan) -> Iterator[tuple[Place, int | float | str]]:
    """Yield arguments of objectives and bounds of measures, with their places."""
    for at, objective in measured(plan):
        yield from (
            ((*at, "arguments", name), value) for name, value in objective.arguments.items()
        )
    for at, entry in bounded_measures(plan):
        if entry.bound.number is not None:
            yield (*at, "bound", "number"), entry.bound.number


@rule("P219")
def _every_text_can_be_quoted(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each text with quotes or line ends, which quotes can't enclose."""
    on = [*plan.calibration_texts]
    if isinstance(plan.chat_template, str):
        on.append((("chat_template",), plan.chat_template))
    for place, text in (*on, *_objective_arguments(plan)):
        if isinstance(text, str) and any(c in '"\r\n' for c in text):
            yield Fault("P219", "a text can't contain quotes or line ends", place)


@rule("P306")
def _every_objective_number_is_finite(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each number of an objective that a float can't hold."""
    for place, number in _objective_arguments(plan):
        try:
            float(number if not isinstance(number, str) else 0)
        except OverflowError:
            message = (
                f"expected at most {LARGEST_SINGLE:.9g}, the largest float32, got a larger one"
            )
            yield Fault("P306", message, place)


@rule("P310")
def _every_limit_is_a_count(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a stack's limit that isn't a number of layers."""
    limit = plan.stack.limit if plan.stack else None
    if limit is not None and not 1 <= limit <= LARGEST:
        message = "a limit of layers must be a whole number of at least 1"
        yield Fault("P310", message, ("stack", "limit"))


@rule("P202")
def _a_drop_by_choice_names_a_layer_once(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each drop by choice that lists a position twice."""
    for at, choice in drops_by_choice(plan):
        for i, _ in islice(repeats(choice.among), 1):
            yield Fault(
                "P202",
                f"L{choice.among[i]} is in this list twice",
                (*at, "among"),
                "remove one of the two",
            )


# ---------------------------------------------------------------------------------- tied statements


@rule("P508")
def _a_tied_group_is_alike(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each tied entry with other choices than the first of its group."""
    first: dict[tuple[Place, int | None], object] = {}
    for at, entry in tied_entries(plan):
        shape = (
            unplaced(entry.recipe) if isinstance(entry, Layer | Others | Whole | Item) else None,
            entry.maybe,
            getattr(entry, "part", None),
            getattr(entry, "factor", None),
        )
        if first.setdefault((at[:-1], entry.tied), shape) != shape:
            yield Fault(
                "P508",
                "a tied entry differs from its group",
                at,
                "give each entry of a group the same choices",
            )


@rule("P508")
def _a_tied_group_is_one_statement(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each tied group that no statement has.

    Its layers go in step as lists do, and its items are neighbours in the stack.
    """
    steps = [
        (at, source.layer, (at[:-1], entry.tied, k, source.layer))
        for at, entry in tied_entries(plan)
        if isinstance(entry, Layer | Item) and not isinstance(entry.recipe, Subset)
        for k, (_, source) in enumerate(sources(entry.recipe))
    ]
    for i, _ in repeats(key for *_, key in steps):
        at, layer, _ = steps[i]
        yield Fault("P508", f"L{layer} is in a tied group twice", (*at, "recipe"))
    ended: set[int | None] = set()
    items = enumerate(plan.stack.items if plan.stack else ())
    for tied, run in groupby(items, lambda pair: pair[1].tied):
        for i, _ in run if tied in ended else ():
            message = "the items of a tied group aren't neighbours"
            yield Fault("P508", message, ("stack", "items", i))
        ended |= {tied} - {None}


_INDIVISIBLE = (
    ("drop_any", "drop any", "remove 'tied'; it is one choice already"),
    ("windows", "drop window", "remove 'tied'; it is one choice already"),
    ("bridges", "bridge", "remove 'tied'; it is one choice already"),
    ("repeats", "repeat", "remove 'tied'; it is one choice already"),
)
"""The lists in which each entry is one choice by itself, their words, and the remedy."""


@rule("P506")
def _no_mark_stands_in_vain(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each tied entry that is one choice, and for `maybe` before `whole`."""
    for name, word, help_ in _INDIVISIBLE:
        for at, entry in enumerated(plan, name):
            if entry.tied is not None:
                yield Fault("P506", f"'tied' can't be combined with '{word}'", at, help_)
    if plan.whole is not None and plan.whole.maybe:
        yield Fault("P506", "'maybe' can't be combined with 'whole'", ("whole", "maybe"))
