"""From a closed plan to the genome that stands for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import final

import numpy as np
from pydantic import BaseModel

from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.layers import own
from gptailor.plan.sites import entries, sources
from gptailor.plan.windows import stretch_of, windows_of
from gptailor.search.space.collect import own_of
from gptailor.search.space.decode import Answer, decode, meaningful, without_unused
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space, SpaceError
from gptailor.search.space.table import canonical


def encode(space: Space, plan: p.Plan) -> Genome:
    """The canonical genome of a closed plan, as numpy arrays.

    A plan may say more than it has to: the base's own layers, say, or models that it doesn't use.
    Raises SpaceError where no genome stands for it.
    """
    closed = shortest_form(space.spread(plan))
    genome = _genome(space, _read(space.plan, closed))
    found = decode(space, genome)
    low, high = space.table.low, space.table.high
    dropped = np.bincount(space.table.group + 1, genome.bits, 1 + len(low))[1:]
    if found != closed or ((dropped < low) | (dropped > high)).any():  # as each set has to
        names = [one for one in p.Plan.model_fields if getattr(found, one) != getattr(closed, one)]
        what = ", ".join(one for one in names if one != "models" or len(names) == 1) or "drops"
        message = f"the plan is not in the space: its {what} can't be had by closing the choices"
        raise SpaceError(message)
    return canonical(space.table, genome)


def shortest_form(plan: p.Plan) -> p.Plan:
    """A closed plan in its shortest form, as `decode` makes it."""
    said = {where: getattr(plan, where) for where in p.REST}
    rest = {where: None if value == own_of(None) else value for where, value in said.items()}
    layers = meaningful(plan.layers, bool(plan.others) or plan.whole is not None)
    return without_unused(plan.model_copy(update={**rest, "layers": layers, "search": None}))


def _genome(space: Space, said: Mapping[Place, Answer]) -> Genome:
    """The genome of these answers; what is not answered is as it is where it says nothing."""
    genome = Genome(*(np.array(genes) for genes in space.table.defaults))
    for site in space.sites:
        answer = said.get(site.place)
        numbers = list(space.index[site.place])
        if isinstance(answer, list):
            genome.bits[numbers] = [k in answer for k in range(len(numbers))]
        elif isinstance(site.value, p.Interval) and answer is not None:
            genome.reals[numbers] = space.reals[numbers[0]].share(answer)
        elif answer is not None:
            (genome.bits if site.value is True else genome.picks)[numbers] = answer
    return genome


# ------------------------------------------------------------------------------------- the reading


def _read(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """What a closed plan answers to the choices; what doesn't fit is left, for decoding to find."""
    dropped = {drop.position for drop in closed.drops}
    found: dict[Place, Answer] = {}
    for where in p.REST:
        if (recipe := plan.rest(where)) is not None:
            found |= _fit(recipe, closed.rest(where) or own_of(None), (where,)) or {}
    found |= _named(plan, closed)
    for at, entry in entries(plan):
        if isinstance(entry, p.DropAny | p.DropWindow):
            found |= _of_several(entry, [one in dropped for one in entry.among], at)
        elif isinstance(entry, p.Drop) and entry.maybe and entry.position in dropped:
            found[*at, "maybe"] = True
    for at, entry in entries(plan):
        if isinstance(entry, p.Repeat | p.RepeatWindow):
            found |= _block(entry, closed, at)
    return found | _entries(plan, closed, dropped) | _stack(plan, closed)


def _block(entry: p.Repeat | p.RepeatWindow, closed: p.Plan, at: Place) -> dict[Place, Answer]:
    """Whether a block comes again, which, and how often; one that isn't allowed is left."""
    first, last = stretch_of(entry)
    blocks = (one for one in closed.repeats if isinstance(one, p.Repeat))
    there = next((one for one in blocks if first <= one.first and one.last <= last), None)
    found: dict[Place, Answer] = {(*at, "maybe"): there is not None} if entry.maybe else {}
    if there is not None and isinstance(entry, p.RepeatWindow):
        options = list(windows_of(entry.count, entry.among))
        if (there.first, there.last) in options:
            found[at] = options.index((there.first, there.last))
    if there is not None and isinstance(entry.times, p.CountRange):
        low, high = entry.times.between
        if isinstance(there.times, int) and low <= there.times <= high:
            found[*at, "times"] = there.times - low
    return found


def _of_several(
    choice: p.DropAny | p.DropWindow, gone: Sequence[bool], at: Place
) -> dict[Place, Answer]:
    """Whether a choice of several drops is made, and how; a window that isn't allowed is left."""
    numbers = [k for k, one in enumerate(gone) if one]
    found: dict[Place, Answer] = {(*at, "maybe"): bool(numbers)} if choice.maybe else {}
    if isinstance(choice, p.DropAny):
        return {**found, at: numbers} if numbers or not choice.maybe else found
    taken = (choice.among[numbers[0]], choice.among[numbers[-1]]) if numbers else None
    options = list(windows_of(choice.count, choice.among))
    return {**found, at: options.index(taken)} if taken in options else found


def _answered(mine: p.Value, theirs: object, at: Place) -> Iterator[tuple[Place, Answer]]:
    with suppress(_UnlikeError):
        yield from _answers(mine, theirs, at)


def _named(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """Numbers with a name, and models that are made of others."""
    found: dict[Place, Answer] = {}
    for name, value in plan.numbers.items():
        if name in closed.numbers:
            found |= dict(_answered(value, closed.numbers[name], ("numbers", name)))
    for name, model in plan.models.items():
        if model.made is not None and name in closed.models:
            found |= _fit(model, closed.models[name], ("models", name)) or {}
    return found


def _entries(plan: p.Plan, closed: p.Plan, dropped: set[int]) -> dict[Place, Answer]:
    found: dict[Place, Answer] = {}
    said = {_told(entry): entry for _, entry in entries(closed)}
    for at, entry in entries(plan):
        apart = p.Drop | p.DropAny | p.DropWindow | p.Repeat | p.RepeatWindow
        dropping = isinstance(entry, apart)
        if dropping or isinstance(entry, p.Item) or getattr(entry, "position", None) in dropped:
            continue
        there = said.get(_told(entry))
        if entry.maybe:
            found[*at, "maybe"] = there is not None
        elif isinstance(entry, p.Layer) and there is None:
            there = entry.model_copy(update={"recipe": own(entry.position)})
        found |= _fit(entry, there, at) or {}
    return found


def _told(entry: p.Open) -> tuple[object, ...]:
    """What tells the entries of a closed plan apart."""
    return type(entry), *(getattr(entry, name, None) for name in ("position", "after", "part"))


def _stack(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """Statements in order, each to the first items that may be it and leave the others theirs.

    A tied statement is there with all of its items, or with the first ones at a stack's limit.
    """
    items = plan.stack.items if plan.stack else ()
    wanted = closed.stack.items if closed.stack else ()
    blocks = _blocks(items)
    at_limit = plan.stack is not None and plan.stack.limit == len(wanted)
    left_out = len(items) - len(wanted)
    fits = {
        (i, n): fit
        for i, item in enumerate(items)
        for n in range(max(0, i - left_out), min(i + 1, len(wanted)))
        if (fit := _fit(item, wanted[n], ("stack", "items", i))) is not None
    }

    def there(block: range, n: int, over: bool) -> Iterator[int]:
        """How many of its items may be there from the wanted item `n` on, the most first."""
        most = next((k for k, i in enumerate(block) if (i, n + k) not in fits), len(block))
        maybe = items[block.start].maybe
        if most == len(block) and not (maybe and over):
            yield most
        if maybe:
            yield from range(min(most, len(block) - 1) if at_limit and not over else 0, -1, -1)

    able = [{(len(wanted), False), (len(wanted), True)}]  # for each block, from where all can be
    for block in reversed(blocks):
        states = ((n, over) for n in range(len(wanted) + 1) for over in (False, True))
        able.insert(0, {
            (n, over)
            for n, over in states
            if any(_after(block, n, over, k) in able[0] for k in there(block, n, over))
        })  # fmt: skip
    found: dict[Place, Answer] = {}
    n, over = 0, False
    for block, rest in zip(blocks, able[1:], strict=True):
        ways = (k for k in there(block, n, over) if _after(block, n, over, k) in rest)
        kept = next(ways, 0)
        for k, i in enumerate(block):
            if items[i].maybe:
                found["stack", "items", i, "maybe"] = kept > 0
            found |= fits[i, n + k] if k < kept else {}
        n, over = _after(block, n, over, kept)
    alone = len(wanted) == 1 and (0, False) not in able[0]  # what stays where nothing is in
    return found | fits.get((0, 0), {}) if alone else found


def _blocks(items: Sequence[p.Item]) -> list[range]:
    """The numbers of items that are there together: those of a tied statement, others alone."""
    found: list[range] = []
    for i, item in enumerate(items):
        if found and item.tied is not None and item.tied == items[i - 1].tied and item.maybe:
            found[-1] = range(found[-1].start, i + 1)
        else:
            found.append(range(i, i + 1))
    return found


def _after(block: range, n: int, over: bool, kept: int) -> tuple[int, bool]:
    """The next wanted item, and whether there is no room left for what is `maybe`."""
    return n + kept, over or 0 < kept < len(block)


# --------------------------------------------------------------------------------- side by side


@final
class _UnlikeError(Exception):
    """Something can't have been closed so."""


def _fit(
    mine: p.Recipe | p.Open | p.Model, theirs: object, at: Place
) -> dict[Place, Answer] | None:
    """How the choices in a recipe or an entry were closed, by their places; None: not so."""
    if isinstance(mine, p.Open) and isinstance(theirs, p.Open):
        theirs = theirs.model_copy(update={"maybe": mine.maybe, "tied": mine.tied})
    try:
        return dict(_answers(mine, theirs, at))
    except _UnlikeError:
        return None


def _answers(
    mine: object,
    theirs: object,
    at: Place,
    chosen: Sequence[int] | None = None,
    position: int | None = None,
) -> Iterator[tuple[Place, Answer]]:
    """What closes the choices in `mine` so that it is `theirs`.

    Of several numbers of a method only those of the `chosen` members are there. `position` is
    that of a layer that no `tied` stands before.
    """
    if mine == theirs:
        return
    if isinstance(mine, p.Layer) and mine.tied is None:
        position = mine.position
    if isinstance(mine, p.Subset):
        yield from _subset(mine, theirs, at, position)
    elif isinstance(mine, p.OneOfMethods):
        yield from _option(mine, theirs, at, chosen)
    elif isinstance(mine, p.OneOfModels | p.OneOfNumbers) and theirs in mine.one_of:
        yield at, list[object](mine.one_of).index(theirs)
    elif (
        isinstance(mine, p.Interval)
        and isinstance(theirs, int | float)
        and (mine.interval[0] <= theirs <= mine.interval[1])
    ):
        yield at, theirs
    else:
        for step, (inner, other) in _pairs(mine, theirs, chosen).items():
            yield from _answers(inner, other, (*at, step), chosen, position)


def _subset(
    recipe: p.Subset, closed: object, at: Place, position: int | None
) -> Iterator[tuple[Place, Answer]]:
    assert isinstance(closed, p.Take | p.Merge), "an open plan"
    layers = [source for _, source in sources(closed)]
    named = {source.model for source in layers if source.layer == recipe.layer}
    if len(layers) == 1 and named == {"base"}:
        named = set()  # none is the base's own too
        if "base" in recipe.any_of and recipe.layer != position:
            named = {"base"}
    chosen = [k for k, name in enumerate(recipe.any_of) if name in named]
    yield at, chosen
    if isinstance(closed, p.Merge):
        yield from _answers(recipe.by, closed.by, (*at, "by"), chosen)


def _option(
    mine: p.OneOfMethods, theirs: object, at: Place, chosen: Sequence[int] | None
) -> Iterator[tuple[Place, Answer]]:
    """The first method that may have been closed so."""
    for v, call in enumerate(mine.one_of):
        with suppress(_UnlikeError):
            found = dict(_answers(call, theirs, (*at, "one_of", v), chosen))
            yield at, v
            yield from found.items()
            return
    raise _UnlikeError


def _pairs(
    mine: object, theirs: object, chosen: Sequence[int] | None
) -> dict[str | int, tuple[object, object]]:
    """What stands in the same places of both."""
    if isinstance(mine, BaseModel) and type(mine) is type(theirs):
        return {n: (getattr(mine, n), getattr(theirs, n)) for n in type(mine).model_fields}
    if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
        return {name: (mine[name], theirs[name]) for name in mine}
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        numbers = range(len(mine)) if chosen is None or len(mine) == 1 else chosen
        if len(numbers) == len(theirs):
            return {k: (mine[k], other) for k, other in zip(numbers, theirs, strict=True)}
    raise _UnlikeError
