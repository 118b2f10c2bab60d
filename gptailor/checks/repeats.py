"""Rules of blocks that come again: by themselves, beside drops and bridges, and of the models."""

from collections.abc import Callable, Iterator
from itertools import islice

from gptailor.checks.drops import a_count_ascends
from gptailor.plan import layers as outline
from gptailor.plan import plan as p
from gptailor.plan.faults import Also, Fault, Place
from gptailor.plan.plan import LARGEST_LAYER, count_ends
from gptailor.plan.walk import drops_by_choice
from gptailor.plan.windows import runs, window_words, windows_of
from gptailor.program.sources import Checked

_Repeats = Iterator[tuple[Place, p.Repeat | p.RepeatWindow]]

# --------------------------------------------------------------------------------- by themselves


def _said(plan: p.Plan) -> _Repeats:
    yield from ((("repeats", i), entry) for i, entry in enumerate(plan.repeats))


def _positions(entry: p.Repeat | p.RepeatWindow) -> range | tuple[int, ...]:
    """All that may come again."""
    if isinstance(entry, p.RepeatWindow):
        return entry.among
    return range(entry.first, entry.last + 1)


def every_block_ascends(plan: p.Plan) -> Iterator[Fault]:
    """A block is one range, from the lower layer to the higher, and of a list each stands once."""
    for at, entry in _said(plan):
        if isinstance(entry, p.Repeat) and entry.first > entry.last:
            message = f"the range L{entry.first}..L{entry.last} descends"
            yield Fault("P201", message, at, f"write L{entry.last}..L{entry.first}")
        elif isinstance(entry, p.RepeatWindow):
            twice = [a for a, b in zip(entry.among, entry.among[1:], strict=False) if a == b]
            if twice:
                yield Fault("P202", f"L{twice[0]} stands twice in this list", (*at, "among"))


def every_count_of_a_block_can_be_met(plan: p.Plan) -> Iterator[Fault]:
    """A block has a layer or more, as many as its list has neighbours, and comes again."""
    for at, entry in _said(plan):
        yield from _count(entry.times, (*at, "times"), "a block comes again once or more")
        there = sorted(_positions(entry))
        longest = max((last - first + 1 for first, last in runs(there)), default=0)
        if isinstance(entry, p.RepeatWindow):
            yield from _count(entry.count, (*at, "count"), "a block has one layer or more")
            most = count_ends(entry.count)[1]
            places = list(islice(windows_of(entry.count, there), 2))
            if most > longest:
                message = (
                    f"no {most} neighbours stand in this list, whose longest run has {longest}"
                )
                yield Fault("P503", message, (*at, "count"))
            elif len(places) == 1:
                message = "there is one place for this block, so it leaves nothing open"
                yield Fault(
                    "P505",
                    message,
                    at,
                    f"write '{'maybe ' * entry.maybe}repeat {window_words(places[0])}'",
                )
        times = count_ends(entry.times)[1]
        if times * longest > LARGEST_LAYER:
            message = f"{times} times {longest} layers are more than any model has"
            yield Fault("P503", message, (*at, "times"), f"{LARGEST_LAYER} are the most")


def _count(count: p.Count, at: Place, least: str) -> Iterator[Fault]:
    if min(count_ends(count)) < 1:
        yield Fault("P503", least, at)
    yield from a_count_ascends(count, at)


def no_blocks_overlap(plan: p.Plan) -> Iterator[Fault]:
    """A position comes again in one block, whatever the choices come to."""
    seen: dict[int, Place] = {}
    for at, entry in _said(plan):
        there = _positions(entry)
        both = next((position for position in there if position in seen), None)
        if both is not None:
            may = any(isinstance(plan.repeats[int(one[1])], p.RepeatWindow)
                      for one in (at, seen[both]))  # fmt: skip
            message = f"L{both} {'may be' if may else 'is'} in two blocks that come again"
            help_ = "blocks don't overlap: a list of positions is of one block"
            yield Fault("P222", message, at, help_, (Also("and here", seen[both]),))
        seen |= dict.fromkeys(there, at)


def no_block_is_tied(plan: p.Plan) -> Iterator[Fault]:
    """A block's choices are its own."""
    for at, entry in _said(plan):
        if entry.tied is not None:
            yield Fault("P506", "'tied' doesn't go with 'repeat'", at)


# ------------------------------------------------------------------------ beside other statements


def every_block_ends_with_layers(plan: p.Plan) -> Iterator[Fault]:
    """What a fixed `drop` takes away is no end of a block, and in no list of a choice."""
    drops = {d.position: ("drops", i) for i, d in enumerate(plan.drops) if not d.maybe}
    for at, entry in _said(plan):
        ends: tuple[tuple[str, int], ...]
        if isinstance(entry, p.RepeatWindow):
            ends, what = tuple(("among", one) for one in entry.among), "may come again"
        else:
            ends, what = (("first", entry.first), ("last", entry.last)), "ends a block"
        gone = next(((name, one) for name, one in ends if one in drops), None)
        if gone is not None:
            message = f"L{gone[1]} {what} and is dropped"
            also = (Also("dropped here", drops[gone[1]]),)
            help_ = "name layers that stay: those inside may be dropped"
            if what == "may come again":
                help_ = f"leave L{gone[1]} out of the list"
            yield Fault("P208", message, (*at, gone[0]), help_, also)


def no_window_is_of_drops_by_choice(plan: p.Plan) -> Iterator[Fault]:
    """What may come again by choice stays: else one plan would be had by several choices."""
    gone: dict[int, Place] = {d.position: ("drops", i) for i, d in enumerate(plan.drops) if d.maybe}
    for place, choice in drops_by_choice(plan):
        gone |= dict.fromkeys(choice.among, place)
    for at, entry in _said(plan):
        both = next((one for one in _positions(entry) if one in gone), None)
        if isinstance(entry, p.RepeatWindow) and both is not None:
            message = f"L{both} may be dropped, and a choice of what comes again has it"
            help_ = "leave it out of one list, or repeat a block that is no choice"
            also = (Also("it may be dropped here", gone[both]),)
            yield Fault("P223", message, (*at, "among"), help_, also)


def no_bridge_is_in_a_block(plan: p.Plan) -> Iterator[Fault]:
    """A gap within a block isn't bridged: its layers run more than once."""
    inside: dict[int, Place] = {}
    for at, entry in _said(plan):
        for first, last in runs(sorted(_positions(entry))):
            inside |= dict.fromkeys(range(first, last), at)
    dropped = {drop.position for drop in plan.drops}
    dropped |= {one for _, choice in drops_by_choice(plan) for one in choice.among}
    for i, bridge in enumerate(plan.bridges):
        if bridge.after in inside:
            message = f"a bridge after L{bridge.after} stands inside a block that comes again"
            help_ = "a gap inside a block stays open; one after the block may be bridged"
            also = (Also("the block is here", inside[bridge.after]),)
            yield Fault("P709", message, ("bridges", i, "after"), help_, also)
        elif bridge.after is None:
            gap = next((one for one in sorted(inside) if one + 1 in dropped), None)
            if gap is not None:
                message = f"the gap after L{gap}, inside a block that comes again, stays open"
                also = (Also("the block is here", inside[gap]),)
                yield Fault("P710", message, ("bridges", i), also=also, severity="warning")


REPEATING: tuple[Callable[[p.Plan], Iterator[Fault]], ...] = (
    every_block_ascends,
    every_count_of_a_block_can_be_met,
    no_blocks_overlap,
    no_block_is_tied,
    every_block_ends_with_layers,
    no_window_is_of_drops_by_choice,
    no_bridge_is_in_a_block,
)

# ------------------------------------------------------------------------------ against the models


_SCALAR = "layer_scalar"
"""In the name of a number that a layer's output is multiplied by (Gemma 4)."""


def no_scalar_comes_again(checked: Checked) -> Iterator[Fault]:
    """A number on each layer's output was learned for one run of the layer."""
    for at, entry in _said(checked.plan):
        for position in _positions(entry):
            part = checked.base.part(position, outline.PARTS[-1])
            name = next((rest for rest in part if rest.rpartition(".")[2] == _SCALAR), None)
            if name is not None:
                message = (
                    f"L{position} multiplies its output by '{name}', which each run does again"
                )
                help_ = "such blocks are known to need that number lowered, which no plan can say"
                yield Fault("M316", message, at, help_, severity="warning")
                break


AGAIN: tuple[Callable[[Checked], Iterator[Fault]], ...] = (no_scalar_comes_again,)
