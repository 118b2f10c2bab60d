"""The layer map: a column a layer, a row a model, with bars as tall as the models' shares."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptailor.plan.plan import Subset
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import named_models
from gptailor.plugins.report.charts import GRID, INK, MUTED, PAPER, mixed, sized
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.reporting.layer_cells import HUES, colours
from gptailor.reporting.layer_view import (
    LayerKind,
    LayerView,
    block_rows,
    layer_views,
    plan_summary,
    repeats_in_words,
)
from gptailor.reporting.quantities import percent

if TYPE_CHECKING:
    import altair as alt

_MOST_COLUMNS = 40
"""The most layers in one line of the map."""

_STEP = 18
"""Pixels of a row."""

_RULER, _RESULT, _NOTES = "", "result", " "


def _label(number: int, layer: LayerView) -> str:
    """Return `L12`: a layer's position, or the number of an item of a stack."""
    return f"L{number if layer.slot.position is None else layer.slot.position}"


def _is_dropped(layer: LayerView) -> bool:
    """Return whether a layer leaves the model."""
    return layer.slot.dropped == "yes"


def _models_of(layer: LayerView) -> set[str]:
    """Return the models that a layer's recipes name; a subset leaves the base's layer possible."""
    recipes = [entry.recipe for top in layer.slot.recipes.values() for entry in top.chain]
    names = {name for recipe in recipes for _, name, _ in named_models(recipe)}
    return names | {"base" for recipe in recipes if isinstance(recipe, Subset)}


def _marks(view: LayerView) -> str:
    """Return `runs 2 times, learns`."""
    marks = [f"runs {view.runs} times"] if view.runs > 1 else []
    marks += ["learns"] if view.learns else []
    return ", ".join(marks + (["may be dropped"] if view.slot.dropped == "maybe" else []))


def _shares_in_words(view: LayerView) -> str:
    """Return `base 70.0 %, math 30.0 %`."""
    if _is_dropped(view) or view.kind is LayerKind.OPEN:
        return ""
    if view.shares is None:
        return "as the method measures it"
    return ", ".join(f"{name} {percent(share)}" for name, share in view.shares.items())


def layer_map(resolved: Resolved) -> Section:
    """Return the section of a plan's layer map."""
    layers, plan = layer_views(resolved), resolved.declared
    numbered = "output's layers" if plan.stack is not None else "base's layers, before drops"
    words = (
        f"{plan_summary(layers)}{repeats_in_words(resolved)}. A column is a layer, by the"
        f" number of the {numbered}. The row 'result' mixes the models' colours by their"
        " shares. Each model below it has a bar as tall as its share."
    )
    rows = [
        (_label(number, layer), layer.recipe, _shares_in_words(layer), _marks(layer))
        for number, layer in enumerate(layers)
    ]
    rows += [(row.where, row.what, "", "") for row in block_rows(plan)]
    return Section(
        anchor="map",
        title="Layers",
        words=words[:1].upper() + words[1:],
        chart=_chart(layers, list(plan.models)) if layers else None,
        note=_key(layers),
        table=ShownTable(("layer", "made of", "shares", "marks"), tuple(rows)),
    )


def _key(layers: Sequence[LayerView]) -> str:
    """Return the marks that occur, each with its meaning."""
    unmeasured = [
        layer
        for layer in layers
        if layer.shares is None and not _is_dropped(layer) and layer.kind is not LayerKind.OPEN
    ]
    marks = {
        "◆: merged": any(layer.kind is LayerKind.MERGED for layer in layers),
        "hatched: dropped": any(_is_dropped(layer) for layer in layers),
        "a line across: bridged over": any(layer.slot.bridged for layer in layers),
        "one stroke: may be dropped": any(layer.slot.dropped == "maybe" for layer in layers),
        "an empty bar: may have a share": any(
            layer.shares is None and not _is_dropped(layer) for layer in layers
        ),
        "?: open": any(layer.kind is LayerKind.OPEN for layer in layers),
        "~: shares as the method measures them": any(
            layer.kind is not LayerKind.OPEN for layer in unmeasured
        ),
        "×2: runs so often": any(layer.runs > 1 for layer in layers),
        "+: learns by 'heal'": any(layer.learns for layer in layers),
    }
    return " · ".join(words for words, occurs in marks.items() if occurs)


# ------------------------------------------------------------------------------------- the drawing


def _chart(layers: Sequence[LayerView], models: Sequence[str]) -> "alt.LayerChart | alt.FacetChart":
    import altair as alt

    lines = -(-len(layers) // _MOST_COLUMNS)
    columns = -(-len(layers) // lines)
    marked = any(layer.runs > 1 or layer.learns for layer in layers)
    names = [_RULER, _RESULT, *([_NOTES] if marked else []), *models]
    labels = {row + line * (len(names) + 1) + 0.5: name
              for line in range(lines) for row, name in enumerate(names)}  # fmt: skip
    drawn = list(_drawn(layers, models, names, columns))
    expression = " : ".join(f"datum.value == {at} ? '{name}'" for at, name in labels.items())
    bottom = lines * (len(names) + 1) - 1
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, columns], nice=False))
    y = alt.Y(
        "y:Q",
        scale=alt.Scale(domain=[bottom, 0], nice=False),
        axis=alt.Axis(
            values=list(labels), labelExpr=f"{expression} : ''", title=None, grid=False,
            ticks=False, domain=False, labelOverlap=False, labelLimit=110,
        ),
    )  # fmt: skip
    ends = {"x": x, "y": y, "x2": "x2:Q", "y2": "y2:Q"}
    tooltip = [alt.Tooltip(f"{name}:N", title=title) for name, title in _TOOLTIP]

    def of(kind: str) -> "alt.Chart":
        rows = [row for row in drawn if row["kind"] == kind]
        return alt.Chart(alt.InlineData(values=rows))

    fill = alt.Color("colour:N", scale=None, legend=None)
    edge = alt.Stroke("colour:N", scale=None, legend=None)
    return sized([
        of("room").mark_rect(fill=GRID, fillOpacity=0.35).encode(**ends, tooltip=tooltip),
        of("cell").mark_rect(stroke=PAPER, strokeWidth=1).encode(
            **ends, color=fill, tooltip=tooltip),
        of("merged").mark_point(
            shape="diamond", size=64, filled=True, opacity=1, color="white",
            stroke="black", strokeWidth=0.8,
        ).encode(x=x, y=y, tooltip=tooltip),
        of("may").mark_rect(filled=False, strokeWidth=1.5).encode(
            **ends, stroke=edge, tooltip=tooltip),
        of("stroke").mark_rule(color=INK, strokeWidth=1.1, tooltip=False).encode(**ends),
        of("bridge").mark_rule(color=INK, strokeWidth=3).encode(**ends, tooltip=tooltip),
        of("ruler").mark_text(align="center", fontSize=10, color=MUTED).encode(
            x=x, y=y, text="text:N"),
        of("note").mark_text(fontSize=11, fontWeight="bold", color=INK).encode(
            x=x, y=y, text="text:N", tooltip=tooltip),
    ], _STEP * bottom)  # fmt: skip


_TOOLTIP = (("where", "layer"), ("made", "made of"), ("shares", "shares"), ("marks", "marks"))


def _drawn(
    layers: Sequence[LayerView], models: Sequence[str], names: Sequence[str], columns: int
) -> Iterator[dict[str, Any]]:
    """Yield the rectangles, strokes and texts, in columns and rows, each with its tooltip."""
    hues = colours(models, HUES)
    every = 5 if columns > 12 else 1
    for number, layer in enumerate(layers):
        line, x = divmod(number, columns)
        top = line * (len(names) + 1)
        tooltip = {
            "where": _label(number, layer),
            "made": layer.recipe,
            "shares": _shares_in_words(layer),
            "marks": _marks(layer),
        }
        if number % every == 0 or x == 0:
            yield {"kind": "ruler", "x": x + 0.5, "y": top + 0.6, "text": tooltip["where"]}
        yield from _result(layer, x, top + 1, hues, tooltip)
        if _NOTES in names:
            yield from _runs(layers, number, x, columns, top + 2)
            if layer.learns:
                yield {"kind": "note", "x": x + 0.5, "y": top + 2.75, "text": "+", **tooltip}
        for row, name in enumerate(names):
            if name in hues and row >= len(names) - len(models):
                yield from _share(layer, x, top + row, name, hues[name], tooltip)


def _runs(
    layers: Sequence[LayerView], number: int, x: int, columns: int, y: int
) -> Iterator[dict[str, Any]]:
    """Yield a line and a count below neighbours with equal runs, at the first of them."""
    runs = layers[number].runs
    if runs < 2 or (x and layers[number - 1].runs == runs):
        return
    line = [layer.runs for layer in layers[number : number - x + columns]]
    many = next((i for i, other in enumerate(line) if other != runs), len(line))
    yield {"kind": "stroke", "x": x + 0.1, "x2": x + many - 0.1, "y": y + 0.2, "y2": y + 0.2}
    yield {"kind": "note", "x": x + many / 2, "y": y + 0.7, "text": f"×{runs}"}


def _result(
    layer: LayerView, x: int, y: int, hues: Mapping[str, str], tooltip: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    place = {"x": x, "x2": x + 1, "y": y, "y2": y + 1}
    plain = _is_dropped(layer) or layer.kind is LayerKind.OPEN or layer.shares is None
    if plain:
        yield {"kind": "room", **place, **tooltip}
    else:
        parts = {hues.get(name, MUTED): share for name, share in (layer.shares or {}).items()}
        yield {"kind": "cell", "colour": mixed(parts), **place, **tooltip}
        if layer.kind is LayerKind.MERGED:
            yield {"kind": "merged", "x": x + 0.5, "y": y + 0.5, **tooltip}
    if _is_dropped(layer):
        for a, b, c, d in ((0, 0.5, 0.5, 0), (0, 1, 1, 0), (0.5, 1, 1, 0.5)):
            yield {"kind": "stroke", "x": x + a, "y": y + b, "x2": x + c, "y2": y + d}
    elif layer.slot.dropped == "maybe":
        yield {"kind": "stroke", "x": x, "y": y + 1, "x2": x + 1, "y2": y}
    if plain and not _is_dropped(layer):
        text = "?" if layer.kind is LayerKind.OPEN else "~"
        yield {"kind": "note", "x": x + 0.5, "y": y + 0.5, "text": text, **tooltip}
    if layer.slot.bridged:
        yield {"kind": "bridge", "x": x, "x2": x + 1, "y": y + 0.5, "y2": y + 0.5, **tooltip}


def _share(
    layer: LayerView, x: int, y: int, name: str, colour: str, tooltip: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the bar of one model, on a ground as tall as the whole layer."""
    yield {"kind": "room", "x": x + 0.06, "x2": x + 0.94, "y": y + 0.1, "y2": y + 0.95, **tooltip}
    if _is_dropped(layer):
        return
    if layer.shares is None and name in _models_of(layer):
        yield {"kind": "may", "colour": colour, "x": x + 0.12, "x2": x + 0.88, "y": y + 0.2,
               "y2": y + 0.9, **tooltip}  # fmt: skip
    if share := (layer.shares or {}).get(name, 0.0):
        yield {"kind": "cell", "colour": colour, "x": x + 0.06, "x2": x + 0.94,
               "y": y + 0.95 - 0.85 * min(share, 1.0), "y2": y + 0.95, **tooltip}  # fmt: skip
