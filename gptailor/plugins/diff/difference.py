"""The differences between two plans, layer by layer, as two maps and in words."""

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, final

from gptailor.lang import words as tailor
from gptailor.plan import plan as p
from gptailor.plan.resolved import Resolved, Slot
from gptailor.plan.sites import drops_by_choice
from gptailor.reporting.layer_cells import (
    DIFFERS,
    LayerGrid,
    layer_row,
    mark_row,
    painted,
)
from gptailor.reporting.layer_view import LayerView, Row, layer_rows, layer_views, short_rows

_Value = TypeVar("_Value")
_TO = " → "
"""Between the recipes of a layer in both plans."""


def differences(first: Resolved, second: Resolved) -> list[str]:
    """Return one line for each difference of two plans over one base; empty if they are equal."""
    a, b = first.declared, second.declared
    lines = [*_declared("model", a.models, b.models, tailor.model_source)]
    lines += _declared("let", a.numbers, b.numbers, tailor.value_words)
    lines += _settings(first.plan, second.plan)
    return [*lines, *_layers(first, second), *_changes(first.plan, second.plan)]


def _declared(
    keyword: str,
    first: Mapping[str, _Value],
    second: Mapping[str, _Value],
    words: Callable[[_Value], str],
) -> Iterator[str]:
    """Yield the names that are declared otherwise, the base first."""
    for name in sorted(first.keys() | second.keys(), key=lambda n: (n != "base", n)):
        before, after = (words(side[name]) if name in side else "none" for side in (first, second))
        if before != after:
            yield f"{keyword} {name}: {before} → {after}"


def _settings(a: p.Plan, b: p.Plan) -> Iterator[str]:
    if a.dtype != b.dtype:
        yield f"dtype: {a.dtype or 'as the base'} → {b.dtype or 'as the base'}"
    for where in (*p.REST, "chat_template"):
        before, after = (_setting_words(plan, where) for plan in (a, b))
        if before != after:
            yield f"{where}: {before} → {after}"


def _setting_words(plan: p.Plan, where: str) -> str:
    recipe = getattr(plan, where)
    if recipe is None:
        return "the tokenizer's" if where == "chat_template" else "base"
    return tailor.rest_recipe_words(where, recipe)


def _layers(first: Resolved, second: Resolved) -> Iterator[str]:
    if first.plan.stack is not None or second.plan.stack is not None:
        yield from _stacked(first, second)
        return
    before, after = ([view.recipe for view in layer_views(side)] for side in (first, second))
    pairs = list(zip(before, after, strict=True))
    rows = [
        Row(tailor.range_words(list(run)), _TO.join(pair))
        for pair, run in itertools.groupby(range(len(pairs)), pairs.__getitem__)
        if pair[0] != pair[1]
    ]
    yield from (f"{row.where}: {row.what}" for row in _shortened(rows))


def _shortened(rows: list[Row]) -> list[Row]:
    """Return the rows with short numbers, and a row for a curve.

    If short numbers would hide a difference, return the rows as they are.
    """
    short = short_rows(rows)
    return rows if any(len(set(row.what.split(_TO))) == 1 for row in short) else short


def _stacked(first: Resolved, second: Resolved) -> Iterator[str]:
    """Yield the edits that turn the first output's layers into the second's."""
    before, after = _items(first), _items(second)
    texts_before, texts_after = ([_text(item) for item in items] for items in (before, after))
    matcher = difflib.SequenceMatcher(None, texts_before, texts_after, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            continue
        sides = before[i:j], after[k:m]
        removed, added = (_runs(layers, short_rows) for layers in sides)
        if removed == added:
            removed, added = (_runs(layers, list) for layers in sides)
        if tag == "insert":
            yield f"output L{k}: {added} inserted"
        elif tag == "delete":
            yield f"output L{i} of the first: {removed} removed"
        else:
            yield f"output L{k}: {removed} → {added}"


def _items(resolved: Resolved) -> list[p.Item | Slot]:
    """Return the output's layers as items of a stack, or as slots if no item can express them."""
    if resolved.plan.stack is not None:
        return list(resolved.plan.stack.items)
    return [_item(slot) for slot in resolved.remaining]


def _item(slot: Slot) -> p.Item | Slot:
    top = slot.recipes.get(None)
    if top is None or len(slot.recipes) > 1 or slot.dropped == "maybe" or slot.scale is not None:
        return slot
    return slot if isinstance(top.recipe, p.Subset) else p.Item(recipe=top.recipe)


def _text(item: p.Item | Slot) -> str:
    if isinstance(item, Slot):
        return f"L{item.position} {layer_rows([item])[0].what}"
    return tailor.statement_words([item])


def _runs(items: Sequence[p.Item | Slot], rows_of: Callable[[list[Row]], list[Row]]) -> str:
    """Return the layers in words; neighbours with matching recipes share their words."""
    texts: list[str] = []
    for kind, run in itertools.groupby(items, type):
        together = list(run)
        if kind is Slot:
            rows = rows_of(layer_rows([item for item in together if isinstance(item, Slot)]))
            texts += [f"{row.where} {row.what}" for row in rows]
        else:
            grouped = tailor.groups([item for item in together if isinstance(item, p.Item)])
            texts += [
                row.what for row in rows_of([Row("", tailor.statement_words(g)) for g in grouped])
            ]
    return "; ".join(texts)


def _changes(a: p.Plan, b: p.Plan) -> Iterator[str]:
    overlays = a.stack is None and b.stack is None  # else the copies are layers in order
    statements = (_statements(plan, repeats=overlays) for plan in (a, b))
    for before, after in zip(*statements, strict=True):
        yield from (f"only in the first: {text}" for text in sorted(before - after))
        yield from (f"only in the second: {text}" for text in sorted(after - before))
    bare = [plan.search and plan.search.model_copy(update={"requires": ()}) for plan in (a, b)]
    if bare[0] != bare[1]:
        yield "the search blocks differ"


def _statements(plan: p.Plan, *, repeats: bool) -> tuple[set[str], ...]:
    """Return the plan's statements in words by their kinds, except those about single layers."""
    required = plan.search.requires if plan.search else ()
    return (
        {tailor.statement_words([choice]) for _, choice in drops_by_choice(plan)},
        {tailor.statement_words([e]) for e in plan.repeats if repeats},
        {f"{name} {tailor.text_fit_words(fit)}" for name, fit in plan.text_fits.items()},
        {tailor.statement_words([e]) for e in plan.bridges},
        {tailor.statement_words([plan.heal])} if plan.heal else set(),
        {tailor.statement_words([r]) for r in required},
        {tailor.statement_words([e]) for e in plan.expects},
        {tailor.statement_words([e]) for e in plan.gguf},
    )


# ------------------------------------------------------------------------------------ as two maps


@final
class _DrawnLayer(NamedTuple):
    """A layer's view, its recipe in words, and its number."""

    view: LayerView
    words: str
    number: int


def difference_map(first: Resolved, second: Resolved, width: int) -> Iterator[str]:
    """Yield both plans' layers, one above the other, and marks below layers that differ.

    Yield nothing if no layer differs. Stacks are drawn by their outputs' layers, with gaps where
    only one output has a layer; the ruler then has the second output's numbers.
    """
    models = list(dict.fromkeys((*first.plan.models, *second.plan.models)))
    stacked = first.plan.stack is not None or second.plan.stack is not None
    before, after = (_drawn(side, stacked=stacked) for side in (first, second))
    columns = _aligned(before, after) if stacked else list(zip(before, after, strict=True))
    marked = [x is None or y is None or x.words != y.words for x, y in columns]
    if not any(marked):
        return
    rows = [
        layer_row([None if layer is None else layer.view for layer in side], models, head)
        for side, head in zip(zip(*columns, strict=True), "12", strict=True)
    ]
    ruler = [None if layer is None else layer.number for _, layer in columns]
    drawn = [layer.view for layer in (*before, *after)]
    grid = LayerGrid(models, drawn, [*rows, mark_row(DIFFERS, marked)], ruler)
    yield from painted(grid, width)


def _drawn(resolved: Resolved, *, stacked: bool) -> list[_DrawnLayer]:
    """Return all positions of the base; if either plan has a stack, the output's layers."""
    views = layer_views(resolved)
    if not stacked:
        return [_DrawnLayer(v, f"{v.recipe} {v.runs}", n) for n, v in enumerate(views)]
    if resolved.plan.stack is None:
        by_position = {view.slot.position: view for view in views}
        views = [by_position[slot.position] for slot in resolved.remaining]
    words = map(_text, _items(resolved))
    return [_DrawnLayer(*layer) for layer in zip(views, words, range(len(views)), strict=True)]


def _aligned(
    before: Sequence[_DrawnLayer], after: Sequence[_DrawnLayer]
) -> list[tuple[_DrawnLayer | None, _DrawnLayer | None]]:
    """Return pairs of layers; None is paired with a layer that only one plan has."""
    first, second = ([layer.words for layer in drawn] for drawn in (before, after))
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    pairs: list[tuple[_DrawnLayer | None, _DrawnLayer | None]] = []
    for _, i, j, k, m in matcher.get_opcodes():
        pairs += itertools.zip_longest(before[i:j], after[k:m])
    return pairs
