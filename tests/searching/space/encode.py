"""The genome of a closed plan: the inverse of decoding, by another algorithm."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, final

import numpy as np
from pydantic import BaseModel

from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import may_overlap
from gptailor.plan.resolved import own
from gptailor.plan.sites import entries, sites, sources
from gptailor.plan.windows import stretch_of, windows_of
from gptailor.searching.space.decode import decode, without_unused
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, SpaceError
from gptailor.searching.space.table import canonical

Answer: TypeAlias = bool | int | float | list[int]
"""An answer to a choice: yes or no, an option's number, a real, or the chosen numbers."""


def encode(space: Space, plan: p.Plan) -> Genome:
    """Return the canonical genome of a closed plan, as numpy arrays.

    The plan may contain more than its shortest form: the base's own layers, or unused models. Raise
    SpaceError if no genome gives the plan.
    """
    closed = shortest_form(plan)
    genome = _genome(space, _read(space.plan, closed))
    decoded = decode(space, genome)
    low, high = space.table.low, space.table.high
    dropped = np.bincount(space.table.group + 1, genome.bits, 1 + len(low))[1:]
    if decoded != closed or ((dropped < low) | (dropped > high)).any():
        fields = [f for f in p.Plan.model_fields if getattr(decoded, f) != getattr(closed, f)]
        unlike = ", ".join(f for f in fields if f != "models" or len(fields) == 1) or "drops"
        message = f"the plan is not in the space: no closed choices give its {unlike}"
        raise SpaceError(message)
    return canonical(space.table, genome)


_NO_MEASURES = {"search": None, "expects": ()}


def shortest_form(plan: p.Plan) -> p.Plan:
    """Return a closed plan in its shortest form, as `decode` gives it."""
    recipes = {where: getattr(plan, where) for where in p.REST}
    short = {where: None if value == own(None) else value for where, value in recipes.items()}
    layers = _meaningful(plan.layers, bool(plan.others) or plan.whole is not None)
    return without_unused(plan.model_copy(update={**short, "layers": layers, **_NO_MEASURES}))


def _meaningful(layers: Iterable[p.Layer], below: bool) -> tuple[p.Layer, ...]:
    """Return the layers of a closed plan that change it. The layers are sorted.

    A recipe that is the base's own changes the plan only over a coarser recipe. `below` is whether
    the plan has `others` or a `whole`.
    """
    by_position: dict[int, list[p.Layer]] = {}
    for layer in layers:
        kept = by_position.setdefault(layer.position, [])
        over = below or any(may_overlap(other.part, layer.part) for other in kept)
        if over or layer.recipe != own(layer.position):
            kept.append(layer)
    return tuple(layer for kept in by_position.values() for layer in kept)


def _genome(space: Space, answers: Mapping[Place, Answer]) -> Genome:
    """Return the genome of these answers, with the default genes where an answer is missing."""
    genome = Genome(*(np.array(genes) for genes in space.table.defaults))
    for site in sites(space.plan):
        answer = answers.get(site.place)
        numbers = list(space.index.get(site.place, ()))
        if isinstance(answer, list):
            genome.bits[numbers] = [k in answer for k in range(len(numbers))]
        elif isinstance(site.value, p.Interval) and answer is not None:
            genome.reals[numbers] = space.reals[numbers[0]].share(answer)
        elif answer is not None:
            (genome.bits if site.value is True else genome.picks)[numbers] = answer
    return genome


# ------------------------------------------------------------------------------------- the reading


def _read(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """Return the answers of a closed plan to the choices.

    An entry that doesn't fit its choices gives no answer. `encode` then finds the difference.
    """
    dropped = {drop.position for drop in closed.drops}
    answers: dict[Place, Answer] = {}
    for where in p.REST:
        if (recipe := plan.rest(where)) is not None:
            answers |= _fit(recipe, closed.rest(where) or own(None), (where,)) or {}
    answers |= _models_and_numbers(plan, closed)
    for name, cut in plan.cuts.items():
        answers |= dict(_answered(cut, closed.cuts.get(name), (name,)))
    for at, entry in entries(plan):
        if isinstance(entry, p.DropAny | p.DropWindow):
            answers |= _of_several(entry, [position in dropped for position in entry.among], at)
        elif isinstance(entry, p.Drop) and entry.maybe and entry.position in dropped:
            answers[*at, "maybe"] = True
    for at, entry in entries(plan):
        if isinstance(entry, p.Repeat | p.RepeatWindow):
            answers |= _block(entry, closed, at)
    return answers | _entries(plan, closed, dropped) | _stack(plan, closed)


def _block(entry: p.Repeat | p.RepeatWindow, closed: p.Plan, at: Place) -> dict[Place, Answer]:
    """Return whether a block is repeated, which block, and how often.

    A block that isn't allowed gives no answer.
    """
    first, last = stretch_of(entry)
    repeats = (repeat for repeat in closed.repeats if isinstance(repeat, p.Repeat))
    block = next((r for r in repeats if first <= r.first and r.last <= last), None)
    answers: dict[Place, Answer] = {(*at, "maybe"): block is not None} if entry.maybe else {}
    if block is not None and isinstance(entry, p.RepeatWindow):
        options = list(windows_of(entry.count, entry.among))
        if (block.first, block.last) in options:
            answers[at] = options.index((block.first, block.last))
    if block is not None and isinstance(entry.times, p.CountRange):
        low, high = entry.times.between
        if isinstance(block.times, int) and low <= block.times <= high:
            answers[*at, "times"] = block.times - low
    return answers


def _of_several(
    choice: p.DropAny | p.DropWindow, dropped: Sequence[bool], at: Place
) -> dict[Place, Answer]:
    """Return whether a choice of several drops is made, and how.

    A window that isn't allowed gives no answer.
    """
    numbers = [k for k, drops in enumerate(dropped) if drops]
    answers: dict[Place, Answer] = {(*at, "maybe"): bool(numbers)} if choice.maybe else {}
    if isinstance(choice, p.DropAny):
        return {**answers, at: numbers} if numbers or not choice.maybe else answers
    window = (choice.among[numbers[0]], choice.among[numbers[-1]]) if numbers else None
    options = list(windows_of(choice.count, choice.among))
    return {**answers, at: options.index(window)} if window in options else answers


def _answered(
    value: p.Value | p.SizeCut, closed: object, at: Place
) -> Iterator[tuple[Place, Answer]]:
    with suppress(_UnlikeError):
        yield from _answers(value, closed, at)


def _models_and_numbers(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """Return the answers of named numbers and of merged models."""
    answers: dict[Place, Answer] = {}
    for name, value in plan.numbers.items():
        if name in closed.numbers:
            answers |= dict(_answered(value, closed.numbers[name], ("numbers", name)))
    for name, model in plan.models.items():
        if model.made is not None and name in closed.models:
            answers |= _fit(model, closed.models[name], ("models", name)) or {}
    return answers


def _entries(plan: p.Plan, closed: p.Plan, dropped: set[int]) -> dict[Place, Answer]:
    answers: dict[Place, Answer] = {}
    closed_entries = {_identity(entry): entry for _, entry in entries(closed)}
    for at, entry in entries(plan):
        apart = p.Drop | p.DropAny | p.DropWindow | p.Repeat | p.RepeatWindow
        dropping = isinstance(entry, apart)
        if dropping or isinstance(entry, p.Item) or getattr(entry, "position", None) in dropped:
            continue
        counterpart = closed_entries.get(_identity(entry))
        if entry.maybe:
            answers[*at, "maybe"] = counterpart is not None
        elif isinstance(entry, p.Layer) and counterpart is None:
            counterpart = entry.model_copy(update={"recipe": own(entry.position)})
        answers |= _fit(entry, counterpart, at) or {}
    return answers


def _identity(entry: p.Open) -> tuple[object, ...]:
    """Return a key that tells the entries of a closed plan apart."""
    return type(entry), *(getattr(entry, name, None) for name in ("position", "after", "part"))


def _stack(plan: p.Plan, closed: p.Plan) -> dict[Place, Answer]:
    """Return the answers of a stack's items.

    Each statement is matched, in order, with the first items that leave a match for all other
    statements. A tied statement has all of its items, or its first ones at a stack's limit.
    """
    items = plan.stack.items if plan.stack else ()
    statements = closed.stack.items if closed.stack else ()
    blocks = _blocks(items)
    at_limit = plan.stack is not None and plan.stack.limit == len(statements)
    omitted = len(items) - len(statements)
    fits = {
        (i, n): fit
        for i, item in enumerate(items)
        for n in range(max(0, i - omitted), min(i + 1, len(statements)))
        if (fit := _fit(item, statements[n], ("stack", "items", i))) is not None
    }

    def counts(block: range, n: int, over: bool) -> Iterator[int]:
        """Yield how many items of a block may match from statement `n` on, the most first."""
        most = next((k for k, i in enumerate(block) if (i, n + k) not in fits), len(block))
        maybe = items[block.start].maybe
        if most == len(block) and not (maybe and over):
            yield most
        if maybe:
            yield from range(min(most, len(block) - 1) if at_limit and not over else 0, -1, -1)

    # for each block, the states from which all further statements can be matched
    solvable = [{(len(statements), False), (len(statements), True)}]
    for block in reversed(blocks):
        states = ((n, over) for n in range(len(statements) + 1) for over in (False, True))
        solvable.insert(0, {
            (n, over)
            for n, over in states
            if any(_after(block, n, over, k) in solvable[0] for k in counts(block, n, over))
        })  # fmt: skip
    answers: dict[Place, Answer] = {}
    n, over = 0, False
    for block, next_states in zip(blocks, solvable[1:], strict=True):
        ways = (k for k in counts(block, n, over) if _after(block, n, over, k) in next_states)
        kept = next(ways, 0)
        for k, i in enumerate(block):
            if items[i].maybe:
                answers["stack", "items", i, "maybe"] = kept > 0
            answers |= fits[i, n + k] if k < kept else {}
        n, over = _after(block, n, over, kept)
    # an empty stack keeps its first item
    alone = len(statements) == 1 and (0, False) not in solvable[0]
    return answers | fits.get((0, 0), {}) if alone else answers


def _blocks(items: Sequence[p.Item]) -> list[range]:
    """Return the numbers of items, grouped by tied statement."""
    blocks: list[range] = []
    for i, item in enumerate(items):
        if blocks and item.tied is not None and item.tied == items[i - 1].tied and item.maybe:
            blocks[-1] = range(blocks[-1].start, i + 1)
        else:
            blocks.append(range(i, i + 1))
    return blocks


def _after(block: range, n: int, over: bool, kept: int) -> tuple[int, bool]:
    """Return the next statement, and whether `maybe` items have no more room."""
    return n + kept, over or 0 < kept < len(block)


# --------------------------------------------------------------------------------- side by side


@final
class _UnlikeError(Exception):
    """A value that its choice can't be closed to."""


def _fit(
    entry: p.Recipe | p.Open | p.Model, closed: object, at: Place
) -> dict[Place, Answer] | None:
    """Return how the choices in a recipe or an entry were closed, by place; None if unlike."""
    if isinstance(entry, p.Open) and isinstance(closed, p.Open):
        closed = closed.model_copy(update={"maybe": entry.maybe, "tied": entry.tied})
    try:
        return dict(_answers(entry, closed, at))
    except _UnlikeError:
        return None


def _answers(
    value: object,
    closed: object,
    at: Place,
    chosen: Sequence[int] | None = None,
    position: int | None = None,
) -> Iterator[tuple[Place, Answer]]:
    """Yield the answers that close the choices in `value` to `closed`.

    A method that has a number for each member keeps the numbers of the `chosen` members only.
    `position` is the position of a layer without `tied`.
    """
    if value == closed:
        return
    if isinstance(value, p.Layer) and value.tied is None:
        position = value.position
    if isinstance(value, p.Subset):
        yield from _subset(value, closed, at, position)
    elif isinstance(value, p.OneOfMethods):
        yield from _option(value, closed, at, chosen)
    elif isinstance(value, p.SizeRange) and isinstance(closed, int) and closed in value.sizes:
        yield at, value.sizes.index(closed)
    elif isinstance(value, p.OneOfModels | p.OneOfNumbers) and closed in value.one_of:
        yield at, list[object](value.one_of).index(closed)
    elif (
        isinstance(value, p.Interval)
        and isinstance(closed, int | float)
        and (value.interval[0] <= closed <= value.interval[1])
    ):
        yield at, closed
    else:
        for step, (inner, other) in _pairs(value, closed, chosen).items():
            yield from _answers(inner, other, (*at, step), chosen, position)


def _subset(
    recipe: p.Subset, closed: object, at: Place, position: int | None
) -> Iterator[tuple[Place, Answer]]:
    assert isinstance(closed, p.Take | p.Merge), "an open plan"
    layers = [source for _, source in sources(closed)]
    names = {source.model for source in layers if source.layer == recipe.layer}
    if len(layers) == 1 and names == {"base"}:
        names = set()  # no member is the base's own, too
        if "base" in recipe.any_of and recipe.layer != position:
            names = {"base"}
    chosen = [k for k, name in enumerate(recipe.any_of) if name in names]
    yield at, chosen
    if isinstance(closed, p.Merge):
        yield from _answers(recipe.by, closed.by, (*at, "by"), chosen)


def _option(
    choice: p.OneOfMethods, closed: object, at: Place, chosen: Sequence[int] | None
) -> Iterator[tuple[Place, Answer]]:
    """Yield the number of the first method that may have been closed so, and its answers."""
    for v, call in enumerate(choice.one_of):
        with suppress(_UnlikeError):
            answers = dict(_answers(call, closed, (*at, "one_of", v), chosen))
            yield at, v
            yield from answers.items()
            return
    raise _UnlikeError


def _pairs(
    value: object, closed: object, chosen: Sequence[int] | None
) -> dict[str | int, tuple[object, object]]:
    """Return the values at the same places of both."""
    if isinstance(value, BaseModel) and type(value) is type(closed):
        return {n: (getattr(value, n), getattr(closed, n)) for n in type(value).model_fields}
    if isinstance(value, dict) and isinstance(closed, dict) and value.keys() == closed.keys():
        return {name: (value[name], closed[name]) for name in value}
    if isinstance(value, tuple) and isinstance(closed, tuple):
        numbers = range(len(value)) if chosen is None or len(value) == 1 else chosen
        if len(numbers) == len(closed):
            return {k: (value[k], other) for k, other in zip(numbers, closed, strict=True)}
    raise _UnlikeError
