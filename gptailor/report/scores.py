"""Tables of scores: of an evaluation, with sizes and speeds, and of a search."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

_SCORE_INDENT = "  "
GAP = "  "
_LEAST_COLUMNS = 8
"""Columns of a target's name, at least."""


@final
@dataclass(frozen=True)
class Size:
    """A target's sizes, and tokens a second with the ratio to the base's; None is unknown."""

    target: str
    layers: int
    parameters: int | None
    cache: int | None
    prefill: tuple[float, float | None] | None
    decoding: tuple[float, float | None] | None


def sizes(rows: Sequence[Size], width: int) -> Iterator[str]:
    """A line for each target: layers, parameters, cache, speeds where there are any."""
    fast = any(row.prefill or row.decoding for row in rows)
    heads = ["layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] if fast else [])]
    bodies = [_size(row)[: len(heads)] for row in rows]
    columns = [max(map(len, column)) for column in zip(heads, *bodies, strict=True)]
    room = width - len(_SCORE_INDENT) - sum(columns) - len(GAP) * len(columns)
    wide = name_width([row.target for row in rows], room)
    for name, body in [
        ("", heads),
        *((row.target, b) for row, b in zip(rows, bodies, strict=True)),
    ]:
        cells = GAP.join(f"{cell:>{size}}" for cell, size in zip(body, columns, strict=True))
        yield f"{_SCORE_INDENT}{shortened(name, wide):<{wide}}{GAP}{cells}"


def shortened(text: str, width: int, *, end: bool = False) -> str:
    """The text in so many columns: without its beginning, which paths share, or without its end."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if len(text) <= width:
        return text
    return f"{text[: width - 1]}…" if end else f"…{text[1 - width :]}"


def name_width(names: Sequence[str], room: int) -> int:
    """The columns that names take, if there is so much room."""
    return max(_LEAST_COLUMNS, min(room, max(map(len, names), default=0)))


def with_error(value: float, error: float) -> str:
    """`3.012 ± 0.041`: the error with two digits, and the value as far as it is sure."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:.4g} ± ?"
    if error <= 0:
        return f"{value:.4g} ± 0"
    places = min(8, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{places}f} ± {error:.{places}f}"


def _size(row: Size) -> list[str]:
    return [
        str(row.layers),
        "?" if row.parameters is None else _counted(row.parameters),
        "?" if row.cache is None else _bytes(row.cache),
        _speed(row.prefill),
        _speed(row.decoding),
    ]


def _speed(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "?"
    speed, ratio = found
    number = f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"
    return number if ratio is None else f"{number} (×{ratio:.2f})"


def _counted(count: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.{2 if unit == 10**9 else 1}f} {name}"
    return f"{count:,}"


def _bytes(size: int) -> str:
    return f"{size / 1000:.1f} kB" if size >= 1000 else f"{size} B"


# ----------------------------------------------------------------------------------- a search

_Row = Mapping[str, Any]


def shown_number(value: float | None, error: float | None = None) -> str:
    """`3.785 ± 0.041`; `?` for what is unknown."""
    if value is None:
        return "?"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def percent(share: float | None) -> str:
    """`78.3 %`."""
    return "?" if share is None else f"{100 * share:.1f} %"


def markdown(said: Mapping[str, Any]) -> str:
    """The summary as a page."""
    lines = [f"# {said['plan']}", "", _ended(said), ""]
    for i, aim in enumerate(said["objectives"]):
        lines += [*_table(said, i, aim), ""]
    final = [f"- {line}" for line in _final(said)]
    for part in (final, [*_random(said)], [*_commands(said)]):
        lines += [*part, ""] if part else []
    return "\n".join(lines).rstrip() + "\n"


def summary_lines(said: Mapping[str, Any], width: int) -> Iterator[str]:
    """The same for a terminal of so many columns."""
    yield _ended(said)
    for i, aim in enumerate(said["objectives"]):
        yield ""
        yield f"{aim['name']}: {_better(aim)}{_held(said, i)}"
        head = ("", "score", "of the base's", "held out")
        rows = [head, *(_cells(name, row, i, said) for name, row in _rows(said))]
        sizes = [max(len(row[n]) for row in rows) for n in range(4)]
        sizes[0] = max(12, min(sizes[0], width - sum(sizes[1:]) - 8))
        for name, *cells in rows:
            short = name if len(name) <= sizes[0] else f"{name[: sizes[0] - 1]}…"
            columns = [f"{cell:>{size}}" for cell, size in zip(cells, sizes[1:], strict=True)]
            yield f"  {short:<{sizes[0]}}  {'  '.join(columns)}".rstrip()
    for part in (_final(said), _random(said), _commands(said)):
        for n, line in enumerate(part):
            yield from [line] if n else ["", line]


def _ended(said: Mapping[str, Any]) -> str:
    ends = {
        "budget": "",
        "exhausted": "; the strategy found nothing new any more",
        "interrupted": "; interrupted, and the same command goes on",
    }
    failed = f", {said['failed']} failed" if said["failed"] else ""
    hits = f", {said['hits']} known before" if said["hits"] else ""
    late = said.get("late", 0)
    times = "once" if late == 1 else f"{late} times"
    order = f"; a worker wasn't waited for {times}: the same seed may give others" if late else ""
    return (
        f"{said['trials']} trials at the cost of {said['cost']:g} whole ones"
        f"{failed}{hits}{ends[said['ended']]}{order}"
    )


def _better(aim: _Row) -> str:
    return "less is better" if aim["direction"] == "minimize" else "more is better"


def _held(said: Mapping[str, Any], i: int) -> str:
    count = said["held"][i] if said["held"] else 0
    return f"; held out: {count} samples" if count else "; nothing was held out"


def _rows(said: Mapping[str, Any]) -> list[tuple[str, _Row]]:
    """Names and rows: the base uncut, starting plans, random ones, what was found."""
    found: list[tuple[str, _Row]] = [("the base, uncut", said["base"])]
    found += [(row["origin"], row) for row in said["starts"]]
    drawn = said["random"]
    if drawn["best"] is not None:
        found.append((f"the best of {drawn['trials']} random plans", drawn["best"]))
    if said["best"] is not None:
        found.append((f"found: {said['best_file']}", said["best"]))
    return found


def _cells(name: str, row: _Row, i: int, said: Mapping[str, Any]) -> tuple[str, str, str, str]:
    values, errors, held = row["values"], row.get("stderrs"), row["held"]
    shares = row.get("retained")
    by_base = said["objectives"][i]["scale"] == "base"
    return (
        name + ("" if row.get("stage", "bare") == "bare" else f" ({row['stage']})"),
        shown_number(values and values[i], errors and errors[i]),
        percent(shares[i]) if shares and by_base else "",
        "" if not held
        else shown_number(held["values"][i], held["stderrs"][i]) if "values" in held
        else "failed",
    )  # fmt: skip


def _table(said: Mapping[str, Any], i: int, aim: _Row) -> list[str]:
    head = (f"`{aim['name']}` ({_better(aim)})", "score", "of the base's", "held out")
    rows = [head, *(_cells(name, row, i, said) for name, row in _rows(said))]
    first, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return [first, "|---|--:|--:|--:|", *rest]


def _final(said: Mapping[str, Any]) -> Iterator[str]:
    """What became of the best trials that were bridged, or bridged and healed, in the end."""
    for row in said["final"]:
        name = f"trial {row['trial']} ({row['origin']}), {row['stage']}"
        if row["values"] is None:
            why, _, _ = row["failure"].partition("\n")
            yield f"{name}: failed: {why}"
            continue
        before = row["before"] or [None] * len(row["values"])
        pairs = zip(before, row["values"], strict=True)
        yield f"{name}: {'; '.join(f'{shown_number(b)} → {shown_number(v)}' for b, v in pairs)}"


def _random(said: Mapping[str, Any]) -> Iterator[str]:
    drawn, best = said["random"], said["best"]
    if drawn["whole"]:
        yield f"Random search at the same cost evaluated {drawn['trials']} plans."
    elif drawn["expected"] is not None and best is not None:
        worst = min((share for share in best["retained"] if share is not None), default=None)
        yield (
            f"Random search at the same cost would be expected to keep {percent(drawn['expected'])}"
            f" (found: {percent(worst)}): an estimate from {drawn['trials']} random plans, which"
            " --compare-random makes sure."
        )


def _commands(said: Mapping[str, Any]) -> Iterator[str]:
    if said["best"] is not None:
        for command in said["commands"]:
            yield f"    {command}"
