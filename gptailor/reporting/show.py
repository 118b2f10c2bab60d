"""The layers of a plan as a map for a terminal: `show`, and the rows below the map."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import click

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError, expanded, is_gguf
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.checkpoint.models import source_from_here
from gptailor.lang import words as tailor
from gptailor.lang.plan_of import model_plan, plan_of
from gptailor.plan import plan as p
from gptailor.plan.arguments import Positive
from gptailor.plan.faults import PlanError, errors, listed
from gptailor.plan.optional_packages import MissingPackageError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.resolved import Resolved, Slot
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.prepare import ModelPaths, Prepared, prepare
from gptailor.reporting.known_layers import resolved_by_headers
from gptailor.reporting.layer_cells import COLOURS, HUES, LayerGrid, painted
from gptailor.reporting.layer_view import (
    Row,
    layer_rows,
    layer_views,
    plan_summary,
    repeats_in_words,
    runs_of,
    short_rows,
)
from gptailor.reporting.quantities import bytes_in_words
from gptailor.reporting.terminal_encoding import wrapped


@final
@dataclass(frozen=True, repr=False)
class LayerMap:
    """The map of a plan's layers, line by line, in a terminal's colours.

    `print` shows it without colours, and a notebook with them.
    """

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return click.unstyle("\n".join(self.lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the map in colours that a light and a dark notebook show alike.

        Each model has its colour of a report's page.
        """
        from rich.color import parse_rgb_hex
        from rich.console import Console
        from rich.terminal_theme import TerminalTheme
        from rich.text import Text

        rgb = (parse_rgb_hex(hue.removeprefix("#")) for hue in HUES)
        hues: dict[str, tuple[int, int, int]] = dict(zip(COLOURS, rgb, strict=True))
        grey: tuple[int, int, int] = parse_rgb_hex("767676")
        plain = [hues.get(name, grey) for name in _ANSI]
        bright = [hues.get(f"bright_{name}", hues.get(name, grey)) for name in _ANSI]
        console = Console(record=True, file=io.StringIO(), width=200, force_jupyter=False)
        console.print(Text.from_ansi("\n".join(self.lines)))
        theme = TerminalTheme(grey, grey, plain, bright)
        html = console.export_html(theme=theme, inline_styles=True, code_format="<pre>{code}</pre>")
        return html.replace("background-color: ", "color: #000000; background-color: ")


_ANSI: Final = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def show(
    plan: str | Path | p.Plan,
    *,
    models: ModelPaths | None = None,
    every_layer: bool = False,
    width: Positive = 80,
) -> LayerMap:
    """Return the map of a plan's layers, in `width` columns: a cell for each layer.

    `plan` is a plan or its file, a compiled folder or GGUF file (the plan that it was compiled
    from), or a model's folder. `models` gives other folders for the plan's names. With
    `every_layer` layers along a curve have rows of their own. The output's size is below the
    map if the plan is closed and its models are there.

    Raises PlanError for faults of the plan by itself, and OSError for a missing file.
    """
    name, declared = plan_of(plan)
    paths = {name: Path(path) for name, path in (models or {}).items()}
    lines = shown_lines(name, declared, paths, width=width, every_layer=every_layer)
    return LayerMap(tuple(lines))


def shown_lines(
    name: str, plan: p.Plan, models: Mapping[str, Path], *, width: int, every_layer: bool = False
) -> Iterator[str]:
    """Yield the lines of the map and the size, in a terminal's colours."""
    prepared, stopped = prepared_from_headers(plan, models)
    for of, inner in (prepared.inner_plans if prepared is not None else {}).items():
        if of in plan.models:  # which shows its inner models
            yield from shown_lines(
                plan.models[of].source, inner.plan, {}, width=width, every_layer=every_layer
            )
            yield ""
    if prepared is None:
        resolved, known = resolved_by_headers(plan, models)
    else:
        resolved, known = replace(prepared.resolved, declared=plan), True
    yield from plan_map(name, resolved, known=known, width=width, every_layer=every_layer)
    if is_gguf(file := expanded(name)) and file.is_file():  # its size is known without its plan's
        prepared, stopped = prepared_from_headers(model_plan(str(file.absolute())), {})
    if prepared is not None:
        yield ""
        yield _size_line(prepared.output_size)
        if prepared.checked.gguf_file is not None:
            yield from wrapped(gguf_words(file), width, _MAP_INDENT, 2 * _MAP_INDENT)
        repairs = ["bridging"] * bool(prepared.resolved.gaps) + ["healing"] * bool(
            prepared.resolved.healing
        )
        if repairs:
            yield f"  time and memory of {' and '.join(repairs)}: 'gptailor compile --dry-run'"
        if (cut := prepared.checked.token_cut) is not None:
            yield f"  vocabulary: {cut.size:,} of {cut.whole.total:,} tokens"
    elif stopped:
        yield ""
        yield from wrapped(f"size unknown: {stopped}", width, _MAP_INDENT, 2 * _MAP_INDENT)


def prepared_from_headers(plan: p.Plan, models: Mapping[str, Path]) -> tuple[Prepared | None, str]:
    """Return the plan's output, from headers; or None and the reason, empty for open choices."""
    if open_choices(plan):
        return None, ""
    try:
        return prepare(plan, models=models), ""
    except PlanError as error:
        count = len(errors(error.faults))
        return None, f"the plan has {count} fault{'s' * (count != 1)}; 'gptailor check' shows them"
    except (CheckpointError, CalibrationError) as error:
        return None, f"{error.message} ({error.path})"
    except MissingPackageError as error:
        return None, str(error)


def _size_line(size: OutputSize) -> str:
    """Return a size in words: `134,515,008 parameters, 269.0 MB; KV cache: 46.1 kB a token`."""
    kept = size.kv_cache
    cache = f"{bytes_in_words(kept)} a token" if kept is not None else "unknown"
    return f"  {size.parameters:,} parameters, {bytes_in_words(size.bytes)}; KV cache: {cache}"


def gguf_words(file: Path) -> str:
    """Return a GGUF file's size and types: `GGUF: 95,890,240 bytes; tensors: 53 F32`."""
    kinds = Counter(tensor.spec.dtype for tensor in read_gguf(file).tensors.values())
    tensors = listed([f"{count} {kind}" for kind, count in kinds.most_common()])
    return f"GGUF: {file.stat().st_size:,} bytes; tensors: {tensors}"


# ----------------------------------------------------------------------------------------- the map

_MAP_INDENT = "  "


def plan_map(
    name: str, resolved: Resolved, *, known: bool, width: int, every_layer: bool = False
) -> Iterator[str]:
    """Yield the lines that show a plan; `known` is whether the base's depth was read.

    With `every_layer` no layers along a curve share a row, and numbers have all digits.
    """
    plan = resolved.declared
    views = layer_views(resolved)
    yield from wrapped(f"{name}: {_size_words(resolved, known=known)}", width)
    choices = resolved.choices if known else open_choices(plan)
    facts = [plan_summary(views) + repeats_in_words(resolved)] if views else []
    facts += [f"{choices} choice{'s' * (choices != 1)} open"] if choices else []
    yield from wrapped("; ".join(facts), width, _MAP_INDENT, _MAP_INDENT)
    yield ""
    if views:
        grid = LayerGrid.of(views, list(plan.models))
        yield from painted(grid, width)
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


def table(rows: Sequence[Row], width: int) -> Iterator[str]:
    """Yield a table of two columns; the second one is wrapped."""
    wide = max((len(row.where) for row in rows), default=0)
    for row in rows:
        first = f"{_MAP_INDENT}{row.where:<{wide}}  "
        yield from wrapped(row.what, max(width, len(first) + 20), first, " " * len(first))


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
        *(Row(name, tailor.text_fit_words(fit)) for name, fit in plan.text_fits.items()),
        *(
            Row(*tailor.keyword_and_words(entry))
            for entry in (*plan.bridges, *healed, *plan.gguf, *plan.expects)
        ),
    ]


def _repeat_row(repeat: p.Repeat | p.RepeatWindow) -> Row:
    keyword, words = tailor.keyword_and_words(repeat)
    return Row(keyword, f"{words}: {p.count_text(runs_of(repeat.times))} runs")


def _twice(plan: p.Plan, slots: Sequence[Slot]) -> Iterator[Row]:
    """Yield a row for the layers of a model that are several times in a stack."""
    recipes = (slot.recipes[None].recipe for slot in slots if plan.stack is not None)
    takes = (recipe.take for recipe in recipes if isinstance(recipe, p.Take))
    runs = Counter((take.model, take.layer) for take in takes if isinstance(take.model, str))
    often = {(model, count) for (model, _), count in runs.items() if count > 1}
    for model, count in sorted(often):
        layers = sorted(
            n or 0 for (name, n), times in runs.items() if (name, times) == (model, count)
        )
        yield Row("again", f"{model} {tailor.range_words(layers)}: {count} runs")
