"""Draw the pictures of the documentation: the layer map, a bridge and a search's budget.

    python docs/pictures.py            # draw docs/pictures/*.svg
    python docs/pictures.py --check    # end with 1 if the pictures aren't current

The map shows the plan of docs/index.md. Colours follow the reader's scheme. docs/charts.py draws
charts of measurements.
"""

import argparse
import html
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from gptailor.plan.resolved import Resolved

sys.path.insert(0, str(Path(__file__).parent.parent))

from gptailor.lang.parse import read_text
from gptailor.plan import plan as p
from gptailor.plan.faults import Source
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Slot
from gptailor.reporting.layer_view import layer_rows

HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
LAYERS = 30
CELL, GAP, LEFT, TOP = 22, 3, 96, 48
STRIP, APART = 24, 12
STYLE = """
.panel { fill: #ffffff; stroke: #d8dce3 }
text { fill: #1f2733; font: 13px system-ui, sans-serif }
.small { font-size: 11px; fill: #5a6472 }
.mono { font: 12px ui-monospace, monospace }
.m0 { fill: #8a94a6 } .m1 { fill: #2f7dd1 } .m2 { fill: #d9822b }
.unused { opacity: .22 }
.slot { fill: none; stroke: #8a94a6; stroke-dasharray: 3 2 }
.line { fill: none; stroke: #8a94a6; stroke-width: 1.2 }
.on { font: 12px ui-monospace, monospace; fill: #0d1117 }
.bridge { fill: none; stroke: #1a8f6b; stroke-width: 2.5 }
.heal { fill: #1a8f6b; opacity: .8 }
.repair { fill: #14795a }
@media (prefers-color-scheme: dark) {
  .panel { fill: #161b22; stroke: #343b46 }
  text { fill: #e6e9ee } .small { fill: #aab3c0 }
  .m1 { fill: #58a6ff } .m2 { fill: #f0a050 }
  .bridge { stroke: #3fcf9f } .heal { fill: #3fcf9f } .repair { fill: #3fcf9f }
}
"""


def page_plan() -> Plan:
    """Return the plan on the first page."""
    page = (HERE / "index.md").read_text(encoding="utf-8")
    found = re.search(r"^```tailor[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit("docs/index.md has no plan")
    plan, _ = read_text(Source("index.md", found[1]), HERE)
    if plan is None:
        raise SystemExit("the plan of docs/index.md has faults")
    return plan


def left(position: float) -> float:
    """Return the left edge of a layer's cell."""
    return LEFT + position * CELL


def box(place: tuple[float, float], size: tuple[float, float], style: str, title: str = "") -> str:
    """Return a rectangle, with `title` as its tooltip."""
    said = f"<title>{html.escape(title)}</title>" if title else ""
    (x, y), (width, height) = place, size
    return (
        f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
        f'rx="3">{said}</rect>'
    )


def words(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    """Return a text element."""
    return (
        f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def shares(slot: Slot) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the models of a layer, each with its top and height in the cell, from 0 to 1."""
    parts = list(slot.recipes.items())
    for number, (_, made) in enumerate(parts):
        top, height = number / len(parts), 1 / len(parts)
        recipe = made.recipe
        refs = recipe.merge if isinstance(recipe, p.Merge) else (recipe.take,)  # type: ignore[union-attr]
        for index, ref in enumerate(refs):
            step = height / len(refs)
            yield str(ref.model), (top + index * step, step)


def layer_map() -> str:
    """Return the picture of the models, the plan's statements and the output, by position."""
    plan = page_plan()
    found = list(Resolved(plan, LAYERS).slots)
    models = {name: number for number, name in enumerate(plan.models)}
    used = {
        (name, n)
        for n, slot in enumerate(found)
        if slot.dropped == "no"
        for name, _ in shares(slot)
    }
    out = [words(LEFT, TOP - 14, "the base's layers, L0 nearest the input", "small")]
    for number in range(0, LAYERS, 5):
        out.append(words(left(number) + CELL / 2, TOP - 2, f"L{number}", "small", "middle"))
    y: float = TOP + 6
    for name, number in models.items():
        out.append(words(LEFT - 12, y + 17, name, "mono", "end"))
        for n in range(LAYERS):
            style = f"m{number}" + " unused" * ((name, n) not in used)
            out.append(box((left(n), y), (CELL - GAP, STRIP), style, f"L{n} of {name}"))
        y += STRIP + APART
    said, y = plan_words(found, y + 8)
    out += [words(LEFT - 12, y - 84, "the plan", "", "end"), *said]
    out += [words(LEFT - 12, y + 23, "the output", "", "end"), *output(plan, found, models, y)]
    height = y + 96
    return svg(LEFT + LAYERS * CELL + 20, height, out)


def plan_words(found: list[Slot], y: float) -> tuple[list[str], float]:
    """Return the labels of statements, drawn from right to left so that no line crosses a text."""
    out: list[str] = []
    begins = [left(LAYERS) + 40] * 3
    rows = [r for r in layer_rows(found) if r.what != "base" and "dropped" not in r.what]
    for row in reversed(rows):
        first, _, last = row.where.partition("..")
        x, end = left(int(first[1:])), left(int((last or first)[1:]) + 1) - GAP
        text = row.what.replace(", learns", "").replace("attn: base; mlp:", "mlp from")
        text = text if "(L" in text or " from " in text else f"from {text}"
        line = next(n for n, begin in enumerate(begins) if x + 7.3 * len(text) + 16 <= begin)
        begins[: line + 1] = [min(x, begin) for begin in begins[: line + 1]]
        at = y + 16 + 20 * line
        bracket = f"M{x:g},{y:g} V{y - 4:g} H{end:g} V{y:g} M{x + 2:g},{y - 4:g} V{at - 4:g} h4"
        out.append(f'<path class="line" d="{bracket}"/>')
        out.append(words(x + 9, at, text, "mono"))
    return out, y + 100


def output(plan: Plan, found: list[Slot], models: dict[str, int], y: float) -> Iterator[str]:
    """Yield the cells of the output: the colours of merged models, and empty slots for drops."""
    tall = 34
    for n, slot in enumerate(found):
        if slot.dropped == "yes":
            yield box((left(n), y), (CELL - GAP, tall), "slot", f"L{n}, dropped")
            yield words(left(n) + (CELL - GAP) / 2, y + 21, "×", "small", "middle")
            continue
        for name, (top, share) in shares(slot):
            place, size = (left(n), y + top * tall), (CELL - GAP, share * tall)
            yield box(place, size, f"m{models[name]}", f"L{n}: {name}")
    for gap in Resolved(plan, LAYERS).gaps:
        a, b = left(gap.after) + 8, left(gap.until) + 8
        low, high = y - 3, y - 26
        arc = f"M{a:g},{low:g} C{a:g},{high:g} {b:g},{high:g} {b:g},{low:g}"
        yield f'<path class="bridge" d="{arc}"/>'
        yield words((a + b) / 2, high + 2, "bridge", "repair small", "middle")
    if plan.heal is not None:
        yield box((LEFT, y + tall + 7), (LAYERS * CELL - GAP, 4), "heal")
        yield words(
            LEFT,
            y + tall + 28,
            "heal: all kept layers learn from the plan with nothing dropped",
            "repair small",
        )
    yield words(
        LEFT, y + tall + 46, "×: dropped · two colours: merged, or a branch of each", "small"
    )
    kept = sum(slot.dropped == "no" for slot in found)
    yield words(
        left(LAYERS) - GAP, y + tall + 28, f"{kept} layers, a stock checkpoint", "small", "end"
    )


def bridge() -> str:
    """Return the picture of a fit: the whole model above, the cut model below, and the change."""
    out = []
    wide, tall, first = 72, 34, 130
    names = [*(f"L{n}" for n in range(7, 15)), "…"]
    for n, name in enumerate(names):
        x = first + n * (wide + 8)
        gone = name in {"L9", "L10", "L11", "L12"}
        for y, style in ((50, "m0"), (170, "slot" if gone else "m1" if name == "L8" else "m0")):
            if name != "…":
                out.append(box((x, y), (wide, tall), style, name))
            word = "×" if gone and y > 100 else name
            out.append(
                words(x + wide / 2, y + 22, word, "small" if word == "×" else "on", "middle")
            )
    after = first + 6 * (wide + 8) - 4
    ends = first + 2 * (wide + 8) - 4
    fitted = "XC, added by L8, is fitted to R = T − Y − M"
    reads = "Y + M, the state after L8; X, what its last projection reads"
    becomes = "The projection A of L8 becomes A + Cᵀ: one matrix that was there anyway."
    out += [
        words(16, 72, "whole model"), words(16, 192, "cut model"),
        f'<path class="line" d="M{after},50 V34"/>',
        words(after + 6, 40, "T, the state that enters L13", "mono"),
        f'<path class="bridge" d="M{ends},214 V230 H{after} V210"/>',
        words((ends + after) / 2, 247, fitted, "repair mono", "middle"),
        words(first + wide - 12, 140, reads, "mono"),
        f'<path class="line" d="M{ends},170 V146"/>',
        f'<path class="line" stroke-dasharray="4 3" d="M{after},86 V168"/>',
        words(16, 282, becomes, "small"),
    ]  # fmt: skip
    return svg(first + len(names) * (wide + 8) + 8, 300, out)


BUDGET = (
    (19, "m0", "starting plans, at most", "with their measurements"),
    (5, "m2", "random", "one in twelve"),
    (30, "m1", "plans of the surrogate, half at least", "losers are given up early"),
    (6, "repair", "finalists", "bridged, healed"),
)
"""Parts of a search of 60 evaluations: the number, the style, the name, a remark."""


def budget() -> str:
    """Return the picture of a search's budget and of the verdict after it."""
    out, x, unit = [words(16, 30, "60 evaluations on the search's samples")], 16.0, 13.6
    for count, style, what, how in BUDGET:
        wide = count * unit - 4
        out.append(box((x, 44), (wide, 36), style, f"{what}: {count}"))
        out.append(words(x + wide / 2, 67, str(count), "on", "middle"))
        out += [words(x, 100, what), words(x, 115, how, "small")] if count > 6 else []
        x += count * unit
    out += [words(16 + BUDGET[0][0] * unit, 130, "random: one in twelve", "small")]
    out += [words(x - 4, 130, "finalists: bridged, healed", "small", "end")]
    out += [
        box((x + 10, 44), (150, 36), "slot"),
        words(x + 85, 67, "held-out samples", "mono", "middle"),
        words(x + 10, 100, "the verdict:", "small"),
        words(x + 10, 115, "found beside the best start,", "small"),
        words(x + 10, 130, "sample by sample", "small"),
    ]
    return svg(x + 176, 150, out)


def svg(width: float, height: float, inside: list[str]) -> str:
    """Return an SVG picture with its own panel, which is legible on any page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="panel" x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" '
        'rx="8"/>\n' + "\n".join(inside) + "\n</svg>\n"
    )


DRAWN: dict[str, Callable[[], str]] = {
    "map.svg": layer_map,
    "bridge.svg": bridge,
    "budget.svg": budget,
}


def main() -> int:
    """Draw the pictures, or compare them with the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    given = parser.parse_args()
    drawn = {name: draw() for name, draw in DRAWN.items()}
    if given.check:
        return int(any((PICTURES / n).read_text(encoding="utf-8") != t for n, t in drawn.items()))
    for name, text in drawn.items():
        (PICTURES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
