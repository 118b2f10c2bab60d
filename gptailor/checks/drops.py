"""Rules of drops by choice: how many layers may leave, of which list, and where they are."""

from collections.abc import Callable, Iterator

from gptailor.plan.faults import Also, Fault, Place
from gptailor.plan.plan import Count, CountRange, DropWindow, Plan, count_ends, count_text
from gptailor.plan.walk import drops_by_choice
from gptailor.plan.windows import runs


def a_count_ascends(count: Count, at: Place) -> Iterator[Fault]:
    """A range of counts has its lower number first, and two different ones."""
    if isinstance(count, CountRange):
        low, high = count.between
        if low > high:
            message = f"the range of counts {low}..{high} descends"
            yield Fault("P504", message, at, f"write {high}..{low}")
        elif low == high:
            yield Fault(
                "P504", f"the range of counts {low}..{low} is one count", at, f"write {low}"
            )


def every_count_ascends(plan: Plan) -> Iterator[Fault]:
    """A range of counts is one."""
    for at, choice in drops_by_choice(plan):
        yield from a_count_ascends(choice.count, (*at, "count"))


def every_count_can_be_met(plan: Plan) -> Iterator[Fault]:
    """At least one layer leaves, and there are as many, for a window as many neighbours."""
    for at, choice in drops_by_choice(plan):
        low, high = sorted(count_ends(choice.count))
        said, listed = count_text(choice.count), len(choice.among)
        longest = max((last - first + 1 for first, last in runs(choice.among)), default=0)
        if low < 1:
            message = f"{said} of {listed} layers can't be dropped by choice"
            help_ = "a count is 1 or more; write 'maybe' before 'drop' where it may also be none"
        elif high > listed:
            message = f"{said} of {listed} layers can't be dropped by choice"
            help_ = f"at most {listed} are"
        elif isinstance(choice, DropWindow) and high > longest:
            message = f"no {high} layers of this list are neighbours"
            help_ = f"the longest run of neighbours in it has {longest}"
        else:
            continue
        yield Fault("P503", message, (*at, "count"), help_)


def every_window_has_places(plan: Plan) -> Iterator[Fault]:
    """A window may be in two places at least."""
    for i, window in enumerate(plan.windows):
        count = count_ends(window.count)[0]
        found = [(first, last) for first, last in runs(window.among) if last - first + 1 >= count]
        if isinstance(window.count, int) and len(found) == 1:
            first, last = found[0]
            if last - first + 1 > count:
                continue
            words = f"drop L{first}..L{last}" if first < last else f"drop L{first}"
            words = ("tied maybe " * (first < last) or "maybe ") * window.maybe + words
            yield Fault("P505", "there is one place for this window", ("windows", i),
                        f"write '{words}'")  # fmt: skip


def no_list_of_drops_meets_another(plan: Plan) -> Iterator[Fault]:
    """A position stands in one `drop`, of whatever kind."""
    seen: dict[int, Place] = {drop.position: ("drops", i) for i, drop in enumerate(plan.drops)}
    for at, choice in drops_by_choice(plan):
        position = next((position for position in choice.among if position in seen), None)
        if position is not None:
            also = Also("and here", seen[position])
            message = f"L{position} stands in two drops"
            help_ = f"leave L{position} out of one of the lists"
            yield Fault("P210", message, (*at, "among"), help_, (also,))
        seen |= dict.fromkeys(choice.among, at)


DROPPING: tuple[Callable[[Plan], Iterator[Fault]], ...] = (
    every_count_ascends,
    every_count_can_be_met,
    every_window_has_places,
    no_list_of_drops_meets_another,
)
