"""Rules of statements that change the depth: drops, blocks that repeat."""

from collections.abc import Iterable, Iterator
from itertools import islice

from gptailor.checks.rule import ascending, rule
from gptailor.plan.faults import Also, Fault, Place
from gptailor.plan.plan import (
    LARGEST_LAYER,
    Count,
    CountRange,
    DropWindow,
    Open,
    Plan,
    Repeat,
    RepeatWindow,
    count_ends,
    count_text,
)
from gptailor.plan.sites import drops_by_choice, repeated_blocks
from gptailor.plan.windows import runs, window_words, windows_of

# ---------------------------------------------------------------------------------- drops by choice


def _a_count_ascends(count: Count, at: Place) -> Iterator[Fault]:
    """Yield a fault for a range of counts that descends or has one count."""
    if isinstance(count, CountRange):
        yield from ascending("range of counts", count.between, at, "is one count")


@rule("P504")
def _every_count_ascends(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each drop by choice with a range of counts that doesn't ascend."""
    for at, choice in drops_by_choice(plan):
        yield from _a_count_ascends(choice.count, (*at, "count"))


@rule("P503")
def _every_count_can_be_met(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each count below 1, or of more layers or neighbours than the list has."""
    for at, choice in drops_by_choice(plan):
        low, high = sorted(count_ends(choice.count))
        count, length = count_text(choice.count), len(choice.among)
        longest = max((last - first + 1 for first, last in runs(choice.among)), default=0)
        if low < 1:
            message = f"expected at least 1 layer to drop, got {count}"
            help_ = "write 'maybe' before 'drop' if no layer may be dropped"
            if choice.maybe:
                help_ = "begin the range at 1; 'maybe' already allows no drop"
        elif high > length:
            message = f"expected at most {length} layers to drop, got {count}"
            help_ = "add layers to the list, or drop fewer"
        elif isinstance(choice, DropWindow) and high > longest:
            message = _no_run(high, longest)
            help_ = "drop fewer layers, or name more neighbours"
        else:
            continue
        yield Fault("P503", message, (*at, "count"), help_)


def _no_run(wanted: int, longest: int) -> str:
    """Return the message for a window that is longer than each run of the list."""
    return f"expected a run of {wanted} neighbouring layers, the list's longest has {longest}"


@rule("P505")
def _every_window_has_places(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each window that has one place."""
    for i, window in enumerate(plan.windows):
        count = count_ends(window.count)[0]
        fitting = [(first, last) for first, last in runs(window.among) if last - first + 1 >= count]
        if isinstance(window.count, int) and len(fitting) == 1:
            first, last = fitting[0]
            if last - first + 1 > count:
                continue
            words = f"drop L{first}..L{last}" if first < last else f"drop L{first}"
            words = ("tied maybe " * (first < last) or "maybe ") * window.maybe + words
            yield Fault("P505", "the window has only one place", ("windows", i),
                        f"write '{words}'")  # fmt: skip


@rule("P210")
def _no_lists_of_drops_overlap(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each drop by choice with a position that another drop has."""
    drops: dict[int, Place] = {drop.position: ("drops", i) for i, drop in enumerate(plan.drops)}
    for at, earlier, position in _overlaps(drops_by_choice(plan), drops):
        message = f"L{position} is in two drops"
        help_ = f"remove L{position} from one of the two"
        yield Fault("P210", message, (*at, "among"), help_, (Also("and here", earlier),))


def _overlaps(
    entries: Iterable[tuple[Place, Open]], named: dict[int, Place]
) -> Iterator[tuple[Place, Place, int]]:
    """Yield each entry with a position that is named before: both places, and the position."""
    for at, entry in entries:
        position = next((position for position in entry.positions if position in named), None)
        if position is not None:
            yield at, named[position], position
        named |= dict.fromkeys(entry.positions, at)


# ------------------------------------------------------------------------------- blocks that repeat


@rule("P201", "P202")
def _every_block_ascends(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each block with a descending range or with a position twice."""
    for at, entry in repeated_blocks(plan):
        if isinstance(entry, Repeat) and entry.first > entry.last:
            message = f"the range L{entry.first}..L{entry.last} descends"
            yield Fault("P201", message, at, f"write L{entry.last}..L{entry.first}")
        elif isinstance(entry, RepeatWindow):
            twice = [a for a, b in zip(entry.among, entry.among[1:], strict=False) if a == b]
            if twice:
                yield Fault(
                    "P202",
                    f"L{twice[0]} is in this list twice",
                    (*at, "among"),
                    "remove one of the two",
                )


@rule("P503", "P504", "P505")
def _every_count_of_a_block_can_be_met(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each block of too few or too many layers, or with one place."""
    for at, entry in repeated_blocks(plan):
        yield from _count(entry.times, (*at, "times"), "expected at least 1 repeat, got 0")
        positions = sorted(entry.positions)
        longest = max((last - first + 1 for first, last in runs(positions)), default=0)
        if isinstance(entry, RepeatWindow):
            yield from _count(
                entry.count, (*at, "count"), "expected at least 1 layer to repeat, got 0"
            )
            most = count_ends(entry.count)[1]
            places = list(islice(windows_of(entry.count, positions), 2))
            if most > longest:
                help_ = "repeat fewer layers, or name more neighbours"
                yield Fault("P503", _no_run(most, longest), (*at, "count"), help_)
            elif len(places) == 1:
                message = "the window has only one place"
                yield Fault(
                    "P505",
                    message,
                    at,
                    f"write '{'maybe ' * entry.maybe}repeat {window_words(places[0])}'",
                )
        times = count_ends(entry.times)[1]
        if times * longest > LARGEST_LAYER:
            got = f"{times:,} times {longest:,}"
            message = f"expected at most {LARGEST_LAYER:,} repeated layers, got {got}"
            yield Fault("P503", message, (*at, "times"), "repeat fewer layers, or fewer times")


def _count(count: Count, at: Place, least: str) -> Iterator[Fault]:
    """Yield a fault if a count is below 1 or doesn't ascend."""
    if min(count_ends(count)) < 1:
        yield Fault("P503", least, at)
    yield from _a_count_ascends(count, at)


@rule("P222")
def _no_blocks_overlap(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each block with a position that another block may repeat."""
    for at, earlier, position in _overlaps(repeated_blocks(plan), {}):
        both = [plan.repeats[int(place[1])] for place in (at, earlier)]
        may = any(isinstance(block, RepeatWindow) for block in both)
        message = f"L{position} {'may be' if may else 'is'} in two repeated blocks"
        help_ = f"remove L{position} from one of the two"
        yield Fault("P222", message, at, help_, (Also("and here", earlier),))


@rule("P208")
def _every_block_ends_with_layers(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each block with a fixed drop at an end, or in its list of choices."""
    drops = {d.position: ("drops", i) for i, d in enumerate(plan.drops) if not d.maybe}
    for at, entry in repeated_blocks(plan):
        ends: tuple[tuple[str, int], ...]
        if isinstance(entry, RepeatWindow):
            ends, what = tuple(("among", position) for position in entry.among), "may be repeated"
        else:
            ends, what = (("first", entry.first), ("last", entry.last)), "ends a block"
        dropped = next(((name, position) for name, position in ends if position in drops), None)
        if dropped is not None:
            message = f"L{dropped[1]} {what} and is dropped"
            also = (Also("dropped here", drops[dropped[1]]),)
            help_ = "begin and end the block with kept layers"
            if what == "may be repeated":
                help_ = f"remove L{dropped[1]} from one of the two"
            yield Fault("P208", message, (*at, dropped[0]), help_, also)


@rule("P223")
def _no_repeat_window_may_be_dropped(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each choice of a block with a layer that may be dropped.

    Two genomes would decode to one plan.
    """
    dropped: dict[int, Place] = {
        d.position: ("drops", i) for i, d in enumerate(plan.drops) if d.maybe
    }
    for place, choice in drops_by_choice(plan):
        dropped |= dict.fromkeys(choice.among, place)
    for at, entry in repeated_blocks(plan):
        both = next((position for position in entry.positions if position in dropped), None)
        if isinstance(entry, RepeatWindow) and both is not None:
            message = f"L{both} may be dropped and is in a choice of 'repeat'"
            help_ = f"remove L{both} from one of the two, or repeat a fixed block"
            also = (Also("it may be dropped here", dropped[both]),)
            yield Fault("P223", message, (*at, "among"), help_, also)


@rule("P709", "P710")
def _no_bridge_is_in_a_block(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each bridge over a gap inside a block that runs more than once."""
    inside: dict[int, Place] = {}
    for at, entry in repeated_blocks(plan):
        for first, last in runs(sorted(entry.positions)):
            inside |= dict.fromkeys(range(first, last), at)
    dropped = {drop.position for drop in plan.drops}
    dropped |= {position for _, choice in drops_by_choice(plan) for position in choice.among}
    for i, bridge in enumerate(plan.bridges):
        if bridge.after in inside:
            message = f"a bridge after L{bridge.after} is inside a repeated block"
            help_ = "remove the bridge; a gap after the block may have one"
            also = (Also("the block is here", inside[bridge.after]),)
            yield Fault("P709", message, ("bridges", i, "after"), help_, also)
        elif bridge.after is None:
            gap = next((position for position in sorted(inside) if position + 1 in dropped), None)
            if gap is not None:
                message = f"the gap after L{gap} is inside a repeated block and stays open"
                also = (Also("the block is here", inside[gap]),)
                yield Fault("P710", message, ("bridges", i), also=also, severity="warning")
