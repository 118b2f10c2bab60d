"""The map of a plan's layers for a terminal."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from gptailor.checkpoint.models import source_from_here
from gptailor.lang import words as tailor
from gptailor.plan import plan as p
from gptailor.plan.layers import Slot
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.reporting.layer_cells import LayerGrid, painted, painted_legend
from gptailor.reporting.layer_view import (
    Row,
    layer_rows,
    layer_views,
    plan_summary,
    repeats_in_words,
    runs_of,
    short_rows,
)

_MAP_INDENT = "  "


def plan_map(
    name: str, resolved: Resolved, *, known: bool, width: int, every_layer: bool = False
) -> Iterator[str]:
    """Yield the lines that show a plan; `known` is whether the base's depth was read.

    With `every_layer` no layers along a curve share a row, and numbers have all digits.
    """
    plan = resolved.declared
    views = layer_views(resolved)
    yield from _wrapped(f"{name}: {_size_words(resolved, known=known)}", "", width)
    choices = resolved.choices if known else open_choices(plan)
    facts = [plan_summary(views) + repeats_in_words(resolved)] if views else []
    facts += [f"{choices} choice{'s' * (choices != 1)} open"] if choices else []
    yield from _wrapped("; ".join(facts), _MAP_INDENT, width)
    yield ""
    if views:
        grid = LayerGrid.of(views, list(plan.models))
        yield from map(painted, grid.lines(width))
        yield ""
        yield from painted_legend(grid, width)
        yield ""
    layers = layer_rows(resolved.slots)
    rows = [
        *(layers if every_layer else short_rows(layers)),
        *other_rows(resolved),
        *(() if known or plan.stack is not None else _of_all(plan)),
        *(Row("let", f"{n} = {tailor.value_words(v)}") for n, v in plan.numbers.items()),
        *(
            Row("model", f"{n} = {tailor.model_source(m)}")
            for n, m in plan.models.items()
            if m.made
        ),
    ]
    yield from table(rows, width)


def _of_all(plan: p.Plan) -> Iterator[Row]:
    """Yield the rows of `others` and `whole` for layers that can't be counted here."""
    entries: list[p.Others | p.Whole] = [*plan.others]
    entries += [] if plan.whole is None else [plan.whole]
    for entry in entries:
        words = tailor.mark_words(entry) + tailor.recipe_words(entry.recipe)
        yield Row(tailor.target_words(entry), words)


def _size_words(resolved: Resolved, *, known: bool) -> str:
    """Return the base's number of layers, or the output's if its blocks are certain."""
    plan, slots = resolved.declared, resolved.slots
    if plan.stack is not None:
        return f"a stack of {len(slots)} layers"
    base = source_from_here(plan, plan.models["base"].source)
    if not known:
        many = f"at least {len(slots)} layers" if slots else "some layers"
        return f"{many} of '{base}', which can't be read"
    if plan.repeats and resolved.layers_are_certain:
        return f"{len(resolved.kept)} layers (the base '{base}' has {len(slots)})"
    return f"{len(slots)} layers of '{base}'"


def table(rows: Sequence[Row], width: int, least: int = 0) -> Iterator[str]:
    """Yield a table of two columns; the second one is wrapped."""
    wide = max([least, *(len(row.where) for row in rows)])
    for row in rows:
        first = f"{_MAP_INDENT}{row.where:<{wide}}  "
        yield from _wrapped(row.what, first, width)


def other_rows(resolved: Resolved) -> list[Row]:
    """Return the rows of all statements that decide no layers."""
    plan = resolved.plan
    recipes = {where: getattr(plan, where) for where in (*p.REST, "chat_template")}
    healed = [plan.heal] if plan.heal is not None else []
    return [
        *_twice(plan, resolved.slots),
        *(Row(*tailor.keyword_and_words(choice)) for _, choice in drops_by_choice(plan)),
        *map(_repeat_row, plan.repeats),
        *(
            Row(where, tailor.rest_recipe_words(where, recipe))
            for where, recipe in recipes.items()
            if recipe is not None
        ),
        *([Row("dtype", plan.dtype)] if plan.dtype is not None else []),
        *(Row(name, tailor.cut_words(cut)) for name, cut in plan.cuts.items()),
        *(Row(*tailor.keyword_and_words(e)) for e in (*plan.bridges, *healed, *plan.expects)),
    ]


def _repeat_row(repeat: p.Repeat | p.RepeatWindow) -> Row:
    keyword, words = tailor.keyword_and_words(repeat)
    return Row(keyword, f"{words}: {p.count_text(runs_of(repeat.times))} runs")


def _twice(plan: p.Plan, slots: Sequence[Slot]) -> Iterator[Row]:
    """Yield a row for the layers of a model that stand several times in a stack."""
    recipes = (slot.recipes[None].recipe for slot in slots if plan.stack is not None)
    takes = (recipe.take for recipe in recipes if isinstance(recipe, p.Take))
    runs = Counter((take.model, take.layer) for take in takes if isinstance(take.model, str))
    often = {(model, count) for (model, _), count in runs.items() if count > 1}
    for model, count in sorted(often):
        layers = sorted(
            n or 0 for (name, n), times in runs.items() if (name, times) == (model, count)
        )
        yield Row("again", f"{model} {tailor.range_words(layers)}: {count} runs")


def _wrapped(text: str, first: str, width: int) -> list[str]:
    """Return the text after `first`, later lines indented below it."""
    indent = " " * len(first)
    room = max(width, len(first) + 20)
    return textwrap.wrap(
        text, room, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
