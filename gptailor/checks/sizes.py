"""How large a plan may be: the limits in `plan/bounds.py`, checked before any other rule runs."""

from collections.abc import Iterator

from gptailor.plan.bounds import (
    DEEPEST,
    MOST_ENTRIES,
    MOST_LAYERS,
    MOST_LISTED,
    MOST_STATEMENTS,
    MOST_WINDOWS,
)
from gptailor.plan.faults import TOO_LARGE, Fault, Place
from gptailor.plan.needed import depths
from gptailor.plan.plan import DropWindow, Plan, RepeatWindow, count_ends
from gptailor.plan.walk import drops_by_choice, recipe_lists, recipes, value_lists
from gptailor.plan.windows import stretch_of, window_count


def oversizes(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each size of a plan that is beyond its limit."""
    yield from _statements(plan)
    yield from _named_layers(plan)
    yield from _output_layers(plan)
    yield from _windows(plan)
    yield from _lists(plan)
    if any(model.made is not None or model.on is not None for model in plan.models.values()):
        yield from _depths(plan)


def _statements(plan: Plan) -> Iterator[Fault]:
    names = ("models", "numbers", "others", "drop_any", "windows", "repeats", "bridges")
    for name in names:
        if (count := len(getattr(plan, name))) > MOST_STATEMENTS:
            message = f"expected at most {MOST_STATEMENTS:,} '{name}', got {count:,}"
            yield Fault(TOO_LARGE, message, (name,), "write several plans")


def _named_layers(plan: Plan) -> Iterator[Fault]:
    items = plan.stack.items if plan.stack is not None else ()
    named = sum(len(entries) for entries in (plan.layers, plan.drops, plan.scales, items))
    named += len(plan.heal.layers) if plan.heal is not None else 0
    named += sum(len(choice.among) for _, choice in drops_by_choice(plan))
    if named > MOST_ENTRIES:
        message = f"expected at most {MOST_ENTRIES:,} layers in a plan, got {named:,}"
        yield Fault(TOO_LARGE, message, ("layers",))


def _output_layers(plan: Plan) -> Iterator[Fault]:
    if plan.stack is not None and (count := len(plan.stack.items)) > MOST_LAYERS:
        message = f"expected at most {MOST_LAYERS:,} layers of an output, the stack has {count:,}"
        yield Fault("P214", message, ("stack",), "write fewer items")
    more = 0
    for i, block in enumerate(plan.repeats):
        first, last = stretch_of(block)
        length = count_ends(block.count)[1] if isinstance(block, RepeatWindow) else last - first + 1
        again = max(0, count_ends(block.times)[1]) * max(0, length)
        more += again if again < MOST_LAYERS else 0  # one block alone is P503
        if more > MOST_LAYERS:
            message = f"expected at most {MOST_LAYERS:,} layers that come again, got {more:,}"
            yield Fault("P214", message, ("repeats", i), "write fewer blocks, or fewer times")


def _windows(plan: Plan) -> Iterator[Fault]:
    choices: list[tuple[Place, DropWindow | RepeatWindow]] = []
    choices += [(("windows", i), window) for i, window in enumerate(plan.windows)]
    for i, block in enumerate(plan.repeats):
        choices += [(("repeats", i), block)] if isinstance(block, RepeatWindow) else []
    total = 0
    for at, choice in choices:
        total += window_count(choice.count, choice.among)
        if total > MOST_WINDOWS:
            message = f"expected at most {MOST_WINDOWS:,} windows to choose from, got {total:,}"
            yield Fault(TOO_LARGE, message, at, "choose of fewer layers, or of fewer lengths")
            return


def _lists(plan: Plan) -> Iterator[Fault]:
    lists: list[tuple[Place, int]] = []
    for name, number in plan.numbers.items():
        lists += value_lists(number, ("numbers", name))
    for i, scale in enumerate(plan.scales):
        lists += value_lists(scale.factor, ("scales", i, "factor"))
    for at, recipe in recipes(plan):
        lists += (((*at, *place), length) for place, length in recipe_lists(recipe))
    if plan.search is not None:
        lists.append((("search", "objectives", 0), len(plan.search.objectives)))
        lists.append((("search", "requires", 0), len(plan.search.requires)))
    for at, length in lists:
        if length > MOST_LISTED:
            message = f"expected at most {MOST_LISTED:,} entries in a list, got {length:,}"
            yield Fault(TOO_LARGE, message, at, "write a shorter list")


def _depths(plan: Plan) -> Iterator[Fault]:
    found = depths(plan)
    name = max(found, key=found.__getitem__)
    if (depth := found[name]) > DEEPEST:
        message = f"expected models at most {DEEPEST} deep in one another, '{name}' is {depth}"
        help_ = "compile a part of them first, and name the folder"
        yield Fault(TOO_LARGE, message, ("models", name, "name"), help_)
