"""The layers of a plan as a map: `show`."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import click

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.plan_of import plan_of
from gptailor.plan.arguments import Positive
from gptailor.plan.faults import PlanError, errors
from gptailor.plan.optional_packages import MissingPackageError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import open_choices
from gptailor.prepare import ModelPaths, Prepared, prepare
from gptailor.reporting.known_layers import known_layer_count, tied_models
from gptailor.reporting.layer_cells import COLOURS, HUES
from gptailor.reporting.plan_map import plan_map
from gptailor.reporting.quantities import bytes_in_words

if TYPE_CHECKING:
    from rich.terminal_theme import TerminalTheme


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
        """Return the map in colours that a light and a dark notebook show alike."""
        from rich.console import Console
        from rich.text import Text

        console = Console(record=True, file=io.StringIO(), width=200, force_jupyter=False)
        console.print(Text.from_ansi("\n".join(self.lines)))
        html = console.export_html(
            theme=_notebook_theme(), inline_styles=True, code_format="<pre>{code}</pre>"
        )
        return html.replace("background-color: ", "color: #000000; background-color: ")


_ANSI: Final = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


def _notebook_theme() -> "TerminalTheme":
    """Return the theme in which each model has its colour of a report's page."""
    from rich.color import parse_rgb_hex
    from rich.terminal_theme import TerminalTheme

    rgb = map(parse_rgb_hex, (hue.removeprefix("#") for hue in HUES))
    hues: dict[str, tuple[int, int, int]] = dict(zip(COLOURS, rgb, strict=True))
    grey: tuple[int, int, int] = parse_rgb_hex("767676")
    plain = [hues.get(name, grey) for name in _ANSI]
    bright = [hues.get(f"bright_{name}", hues.get(name, grey)) for name in _ANSI]
    return TerminalTheme(grey, grey, plain, bright)


def show(
    plan: str | Path | Plan,
    *,
    models: ModelPaths | None = None,
    every_layer: bool = False,
    width: Positive = 80,
) -> LayerMap:
    """Return the map of a plan's layers, in `width` columns: a cell for each layer.

    `plan` is a plan or its file, a compiled folder (the plan that it was compiled from), or a
    model's folder. `models` gives other folders for the plan's names. With `every_layer` layers
    along a curve have rows of their own. The output's size stands below the map if the plan is
    closed and its models are there.

    Raises PlanError for faults of the plan by itself, and OSError for a missing file.
    """
    name, declared = plan_of(plan)
    paths = {name: Path(path) for name, path in (models or {}).items()}
    lines = shown_lines(name, declared, paths, width=width, every_layer=every_layer)
    return LayerMap(tuple(lines))


def shown_lines(
    name: str, plan: Plan, models: Mapping[str, Path], *, width: int, every_layer: bool = False
) -> Iterator[str]:
    """Yield the lines of the map and the size, in a terminal's colours."""
    prepared, stopped = prepared_from_headers(plan, models)
    for of, inner in (prepared.inner_plans if prepared is not None else {}).items():
        if of in plan.models:  # which shows those inside it
            yield from shown_lines(
                plan.models[of].source, inner.plan, {}, width=width, every_layer=every_layer
            )
            yield ""
    if prepared is None:
        count, known = known_layer_count(plan, models)
        resolved = Resolved(plan, count, frozenset(tied_models(plan, models)))
    else:
        resolved, known = replace(prepared.resolved, declared=plan), True
    yield from plan_map(name, resolved, known=known, width=width, every_layer=every_layer)
    if prepared is not None:
        yield ""
        yield _size_line(prepared.output_size)
        repairs = ["bridging"] * bool(prepared.resolved.gaps) + ["healing"] * bool(
            prepared.resolved.healing
        )
        if repairs:
            yield f"  time and memory of {' and '.join(repairs)}: 'gptailor compile --dry-run'"
        if (cut := prepared.checked.token_cut) is not None:
            yield f"  vocabulary: {cut.size:,} of {cut.whole.total:,} tokens"
    elif stopped:
        yield f"\n  size unknown: {stopped}"


def prepared_from_headers(plan: Plan, models: Mapping[str, Path]) -> tuple[Prepared | None, str]:
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
