"""A plan's layers as people see them: the one source of every map, table, card and hover."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import starmap
from typing import final

from gptailor.lang import words as tailor
from gptailor.plan import plan as p
from gptailor.plan.layer_parts import BRANCHES, Branch
from gptailor.plan.registry import METHODS
from gptailor.plan.resolved import LayerRecipe, Resolved, Slot, blocks
from gptailor.plan.sites import names_in, recipe_sites
from gptailor.plan.windows import stretch_of, window_words


@final
class LayerKind(Enum):
    """The kinds of layers, each with its words in a legend."""

    OF_ONE_MODEL = "of one model"
    MERGED = "merged"
    MIXED = "mixed"
    OPEN = "open"
    MAYBE = "maybe there"
    DROPPED = "dropped"
    BRIDGED = "bridged over"


@final
@dataclass(frozen=True)
class LayerView:
    """A position of the base, or an item of a stack, as people see it.

    `recipe` is in words. `model` is the one model of the layer, or the model with the largest share
    of a merge. `shares` are the models' shares, None where the recipe doesn't determine them.
    `runs` counts the layer's runs. `learns` means that `heal` trains the layer, even if healing
    changes nothing.
    """

    slot: Slot
    kind: LayerKind
    recipe: str
    model: str | None
    shares: Mapping[str, float] | None
    runs: int
    learns: bool


def layer_views(resolved: Resolved) -> list[LayerView]:
    """Return the view of each slot of a plan, in order."""
    slots = resolved.slots
    kinds = [_layer_kind(slot) for slot in slots]
    runs, learning = _runs(resolved, kinds), _learning_slots(resolved)
    views = []
    for index, (slot, kind) in enumerate(zip(slots, kinds, strict=True)):
        shares = slot_shares(slot)
        views.append(
            LayerView(
                slot=slot,
                kind=kind,
                recipe=layer_rows([slot])[0].what,
                model=_main_model(slot, kind, shares),
                shares=shares,
                runs=runs[index],
                learns=index in learning and slot.dropped != "yes",
            )
        )
    return views


def _layer_kind(slot: Slot) -> LayerKind:
    """Return the kind of a slot; `OPEN` wins over `MAYBE`."""
    if slot.dropped == "yes":
        return LayerKind.BRIDGED if slot.bridged else LayerKind.DROPPED
    entries = [entry for top in slot.recipes.values() for entry in top.chain]
    if any(_is_open(e.recipe) or (e.maybe and slot.position is not None) for e in entries):
        return LayerKind.OPEN
    if slot.dropped == "maybe":
        return LayerKind.MAYBE
    recipes = [top.recipe for top in slot.recipes.values()]
    if any(isinstance(recipe, p.Merge) for recipe in recipes):
        return LayerKind.MERGED
    models = {recipe.take.model for recipe in recipes if isinstance(recipe, p.Take)}
    return LayerKind.OF_ONE_MODEL if len(models) == 1 else LayerKind.MIXED


def _is_open(recipe: p.Recipe) -> bool:
    """Return whether a written-out recipe has a choice, or a number that is one."""
    return any(site.open or names_in(site.value) for site in recipe_sites(recipe))


def _main_model(slot: Slot, kind: LayerKind, shares: Mapping[str, float] | None) -> str | None:
    if kind not in {LayerKind.OF_ONE_MODEL, LayerKind.MERGED}:
        return None
    if shares:
        return max(shares, key=lambda name: shares[name])
    recipes = [top.recipe for top in slot.recipes.values()]
    first = (recipe.merge[0].model for recipe in recipes if isinstance(recipe, p.Merge))
    return next((model for model in first if isinstance(model, str)), None)


def _runs(resolved: Resolved, kinds: Sequence[LayerKind]) -> list[int]:
    """Return how often each slot's layer runs; in a stack, equal recipes are runs of one layer."""
    slots = resolved.slots
    if resolved.plan.stack is None:
        runs = Counter(slot.position for slot in resolved.remaining)
        return [runs[slot.position] for slot in slots]
    recipes = [
        None if kind in {LayerKind.OPEN, LayerKind.MAYBE} else repr(slot.recipes[None].recipe)
        for slot, kind in zip(slots, kinds, strict=True)
    ]
    times = Counter(recipes)
    return [1 if recipe is None else times[recipe] for recipe in recipes]


def _learning_slots(resolved: Resolved) -> Collection[int]:
    """Return the indices of the slots that `heal` trains unless they are dropped."""
    plan = resolved.declared
    if plan.heal is None or not plan.may_be_healed:
        return ()
    return frozenset(plan.heal.layers) or range(len(resolved.slots))


# --------------------------------------------------------------------------------------- as a table


@final
@dataclass(frozen=True)
class Row:
    """Neighbouring positions with matching recipes, and the recipes in words."""

    where: str
    what: str


def layer_rows(slots: Sequence[Slot]) -> list[Row]:
    """Return one row for each run of positions with one recipe; items of a stack begin at L0."""
    rows: list[Row] = []
    run: list[p.Layer] = []
    tail = ""
    for number, slot in enumerate(slots):
        position = number if slot.position is None else slot.position
        alone = _words_alone(slot)
        if alone is not None or _tail(slot) != tail:
            rows += _run_rows(run, tail)
            run, tail = [], _tail(slot)
        if alone is not None:
            rows.append(Row(f"L{position}", alone + tail))
        else:
            top = slot.recipes[None]
            run.append(p.Layer(position=position, recipe=top.recipe, maybe=top.maybe))
    return _joined(rows + _run_rows(run, tail))


_NUMBER = re.compile(r"(?<![\w.])(?:L\d+|\d+\.\d+(?:e-?\d+)?)(?![\w.])")
"""A layer, or a number with a point, in a recipe's words."""
_SERIES = 3
"""Layers that a series has at least."""


def short_rows(rows: Sequence[Row]) -> list[Row]:
    """Join at least three single layers along which numbers change in even steps, as a curve's do.

    `slerp(0.1)`, `slerp(0.2)`, `slerp(0.3)` become `slerp(0.1 … 0.3)`, and layers that count up
    become `L0..L2`. Long numbers have four digits.
    """
    short: list[Row] = []
    start = 0
    while start < len(rows):
        end = _series_end(rows, start)
        if end - start < _SERIES:
            end = start + 1
        first, last = rows[start], rows[end - 1]
        ends = zip(_NUMBER.findall(first.what), _NUMBER.findall(last.what), strict=True)
        where = first.where if first is last else f"{first.where}..{last.where}"
        words = zip(_NUMBER.split(first.what), [*starmap(_from_to, ends), ""], strict=True)
        short.append(Row(where, "".join(word + number for word, number in words)))
        start = end
    return short


def _series_end(rows: Sequence[Row], start: int) -> int:
    """Return the end of the longest series of rows from `start` on."""
    step: list[float] | None = None
    end = start + 1
    while end < len(rows) and ".." not in rows[start].where + rows[end].where:
        before, row = rows[end - 1].what, rows[end].what
        if _NUMBER.split(before) != _NUMBER.split(row):
            break
        pairs = [*zip(_NUMBER.findall(before), _NUMBER.findall(row), strict=True)]
        steps = [float(b.removeprefix("L")) - float(a.removeprefix("L")) for a, b in pairs]
        if step is not None and not all(map(partial(math.isclose, abs_tol=1e-9), steps, step)):
            break
        if any(a[0] == "L" and by not in {0, 1} for (a, _), by in zip(pairs, steps, strict=True)):
            break
        step, end = steps, end + 1
    return end


def _from_to(first: str, last: str) -> str:
    """Return the layers `L0..L2`, the numbers `0.1 … 0.3`, or one of them if both are equal."""
    if first[0] == "L":
        return first if first == last else f"{first}..{last}"
    return _digits(first) if first == last else f"{_digits(first)} … {_digits(last)}"


def _digits(number: str) -> str:
    """Return a number unchanged, or with four digits if it is long."""
    return number if len(number) <= len("0.1234") else f"{float(number):.4g}"


def block_rows(plan: p.Plan) -> Iterator[Row]:
    """Yield a row for each block that repeats: `L6..L9`, `2 runs`."""
    for block in blocks(plan):
        yield Row(window_words(stretch_of(block)), f"{p.count_text(runs_of(block.times))} runs")


def runs_of(times: p.Count) -> p.Count:
    """Return the runs of a block from its repeats: one more."""
    if isinstance(times, p.CountRange):
        return p.CountRange(between=(times.between[0] + 1, times.between[1] + 1))
    return times + 1


def plan_summary(views: Sequence[LayerView]) -> str:
    """Return `20 of base, 3 merged, 7 dropped`."""
    alone = LayerKind.OF_ONE_MODEL
    kinds = Counter(f"of {v.model}" if v.kind is alone else v.kind.value for v in views)
    return ", ".join(f"{count} {words}" for words, count in kinds.items())


def made_words(resolved: Resolved) -> str:
    """Return `20 of base, 3 merged, 7 dropped; cut: L3..L9`."""
    dropped = [drop.position for drop in resolved.plan.drops]
    cut = f"; cut: {tailor.range_words(dropped)}" if dropped else ""
    return plan_summary(layer_views(resolved)) + cut


def repeats_in_words(resolved: Resolved) -> str:
    """Return `; 4 more by 'repeat': 34 layers` for a plan with blocks that repeat, or nothing."""
    once = sum(slot.dropped != "yes" for slot in resolved.slots)
    more = len(resolved.remaining) - once
    return f"; {more} more by 'repeat': {once + more} layers" if more else ""


def _words_alone(slot: Slot) -> str | None:
    """Return the words of a slot that can't share a row with its neighbours, or None."""
    if slot.dropped == "yes":
        return "dropped, bridged over" if slot.bridged else "dropped"
    if slot.recipes.keys() == {None}:
        top = slot.recipes[None]
        return None if top.below is None else _chain_words(slot, top)
    parts = [(slot.called(part), _chain_words(slot, top)) for part, top in slot.recipes.items()]
    return "; ".join(f"{part}: {recipe}" if part else recipe for part, recipe in parts)


def _chain_words(slot: Slot, top: LayerRecipe) -> str:
    """Return a recipe, and the recipes below it that replace an untaken `maybe`."""
    position = slot.position or 0
    entries = (p.Layer(position=position, recipe=r.recipe, maybe=r.maybe) for r in top.chain)
    return ", else ".join(_recipe_words([entry]) for entry in entries)


def _tail(slot: Slot) -> str:
    """Return the facts on a layer besides its recipe: its scale, healing, a possible drop."""
    scale = f", scaled by {tailor.value_words(slot.scale)}" if slot.scale is not None else ""
    dropped = ", or dropped" * (slot.dropped == "maybe" and slot.position is not None)
    return scale + ", learns" * slot.learns + dropped


def _run_rows(run: Sequence[p.Layer], tail: str) -> list[Row]:
    return [
        Row(tailor.range_words([entry.position for entry in group]), _recipe_words(group) + tail)
        for group in tailor.groups(run)
    ]


def _recipe_words(entries: Sequence[p.Layer]) -> str:
    """Return the recipe of layers that go in step: `base`, `code L14`, `merge(…)`."""
    return "maybe " * entries[0].maybe + tailor.layer_recipe_words(entries)


def _joined(rows: Iterable[Row]) -> list[Row]:
    """Join neighbours with equal recipes, unless these name layers."""
    joined: list[tuple[str, str, str]] = []
    for row in rows:
        first, _, last = row.where.partition("..")
        if joined and joined[-1][2] == row.what and not re.search(r"\bL\d", row.what):
            joined[-1] = (joined[-1][0], last or first, row.what)
        else:
            joined.append((first, last or first, row.what))
    return [Row(a if a == b else f"{a}..{b}", what) for a, b, what in joined]


# --------------------------------------------------------------------------------- shares of models


_MEASURED = frozenset(["nearswap", "arcee_fusion"])
"""Methods with a share of the second source that depends on the tensors."""


def _recipe_shares(recipe: p.Recipe) -> dict[str, float] | None:
    """Return each model's share of a recipe's result; they sum to 1.

    A merge's weights count by their size; the rest of task vectors is the base's. A recipe with
    choices has no shares (None), nor has a method that depends on the tensors.
    """
    if isinstance(recipe, p.Take):
        model = recipe.take.model
        return {model: 1.0} if isinstance(model, str) else None
    if not isinstance(recipe, p.Merge):
        return None
    weights = _weights(recipe)
    models = [source.model for source in recipe.merge]
    if weights is None:
        return None
    shares: dict[str, float] = {}
    for model, weight in zip(models, weights, strict=True):
        if not isinstance(model, str):
            return None
        shares[model] = shares.get(model, 0.0) + abs(weight)
    by = recipe.by
    if isinstance(by, p.MethodCall) and METHODS[by.name].takes_base(by.arguments):
        shares["base"] = shares.get("base", 0.0) + max(0.0, 1.0 - math.fsum(map(abs, weights)))
    total = math.fsum(shares.values())
    return {name: share / total for name, share in shares.items() if share} if total else None


def slot_shares(slot: Slot, branches: Sequence[Branch] = BRANCHES) -> dict[str, float] | None:
    """Return each model's share of a layer's branches, which count alike, were it not dropped.

    None for a layer with a branch without shares.
    """
    recipes = [slot.recipes[None]] if None in slot.recipes else list(map(slot.part, branches))
    shares: dict[str, float] = {}
    for recipe in recipes:
        own = None if recipe.maybe else _recipe_shares(recipe.recipe)
        if own is None:
            return None
        for name, share in own.items():
            shares[name] = shares.get(name, 0.0) + share / len(recipes)
    return shares


def _weights(merge: p.Merge) -> list[float] | None:
    """Return a number for each source; None where a choice or the tensors decide it."""
    by, count = merge.by, len(merge.merge)
    if by is None:
        numbers = _numbers(merge.share, 1)
        mean = [1.0 / count] * count if merge.share is None else None
        return mean if numbers is None else [1.0 - numbers[0], *numbers]
    if not isinstance(by, p.MethodCall) or by.name in _MEASURED:
        return None
    method = METHODS[by.name]
    if method.name == "slerp":
        numbers = _numbers(method.argument(by.arguments, "t"), 1)
        return None if numbers is None else [1.0 - numbers[0], *numbers]
    weight, scale = (method.argument(by.arguments, name) for name in ("weight", "scale"))
    weights = _numbers(1.0 / count if weight is None else weight, count)
    scales = _numbers(1.0 if scale is None else scale, 1)
    if weights is None or scales is None:
        return None
    mean_of = method.argument(by.arguments, "normalize") == "yes"
    divisor = (math.fsum(weights) if mean_of else 0.0) or 1.0
    return [number * scales[0] / divisor for number in weights]


def _numbers(value: object, count: int) -> list[float] | None:
    """Return a number, or several, as `count` numbers; None for choices and for nothing."""
    numbers = list(value) if isinstance(value, tuple) else [value]
    numbers = numbers * count if len(numbers) == 1 else numbers
    fixed = [float(number) for number in numbers if isinstance(number, int | float)]
    return fixed if len(fixed) == len(numbers) == count else None
