"""What came of a search, for people: a table of what it began with and what it found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
    lines += [*_random(said), "", *_commands(said)]
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
    for part in (_random(said), _commands(said)):
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
    return (
        f"{said['trials']} trials at the cost of {said['cost']:g} whole ones"
        f"{failed}{hits}{ends[said['ended']]}"
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
    """Name, score, share of the base's score, score on what was held out."""
    values, errors, held = row["values"], row.get("stderrs"), row["held"]
    shares = row.get("retained")
    by_base = said["objectives"][i]["scale"] == "base"
    return (
        name + (" (bridged)" if row.get("bridged") else ""),
        shown_number(values and values[i], errors and errors[i]),
        percent(shares[i]) if shares and by_base else "",
        "" if not held else shown_number(*_pair(held, i)) if "values" in held else "failed",
    )


def _pair(held: _Row, i: int) -> tuple[float | None, float | None]:
    return held["values"][i], held["stderrs"][i]


def _table(said: Mapping[str, Any], i: int, aim: _Row) -> list[str]:
    head = (f"`{aim['name']}` ({_better(aim)})", "score", "of the base's", "held out")
    rows = [_cells(name, row, i, said) for name, row in _rows(said)]
    return [_line(head), "|---|--:|--:|--:|", *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
