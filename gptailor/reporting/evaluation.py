"""The table of an evaluation: targets down, objectives across, then differences in pairs."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

from gptailor.plan.output_size import OutputSize
from gptailor.reporting.measure import Estimate
from gptailor.reporting.quantities import bytes_in_words, percent, short_count, with_error
from gptailor.reporting.table import shortened, table_lines

_INDENT = "  "


@final
class Column(NamedTuple):
    """An objective as people read it; objectives of one `kind` have a mean, unless it is "".

    `share` means that the score is an accuracy, so its share of the base's score is shown.
    """

    name: str
    said: str
    kind: str = ""
    share: bool = False


@final
@dataclass(frozen=True)
class Mark:
    """A target's score by one objective, or the reason for its absence.

    `difference` is the score minus another target's, sample by sample. `unpaired` is the reason for
    a missing difference. `retained` is the share of the base's score.
    """

    score: Estimate | None
    difference: Estimate | None = None
    retained: float | None = None
    failure: str = ""
    unpaired: str = ""


TableRows: TypeAlias = Sequence[tuple[str, Sequence[Mark]]]
"""The targets' names, each with a mark for each objective."""


_BAR = 40
"""The most columns of a chart's bar."""


def chart_lines(
    title: str, points: Sequence[tuple[str, float | None]], width: int, *, minimize: bool
) -> Iterator[str]:
    """Yield a chart of scores by a setting's value; the best score is marked.

    Bars begin at the least score, because scores of one model differ little; the title names it.
    A score of None failed.
    """
    known = [score for _, score in points if score is not None]
    if not known:
        yield title
        return
    least, most = min(known), max(known)
    yield f"{title} (bars begin at {least:.4g})" if most > least else title
    best = least if minimize else most
    label = max(len(value) for value, _ in points)
    room = max(1, min(_BAR, width - label - 24))
    for value, score in points:
        if score is None:
            yield f"  {value:>{label}}  failed"
            continue
        share = (score - least) / (most - least) if most > least else 1.0
        bar = "█" * (1 + round(share * (room - 1)))
        yield f"  {value:>{label}}  {bar} {score:.4g}" + (" (best)" if score == best else "")


def evaluation_lines(
    columns: Sequence[Column],
    rows: TableRows,
    beside: str,
    width: int,
    encoding: str | None = None,
) -> Iterator[str]:
    """Yield the whole table, in as many columns as fit.

    `beside` is the target that the differences are from.
    """
    alone = len(columns) == 1
    heads = [column.name if alone else f"({n})" for n, column in enumerate(columns, start=1)]
    for head, column in zip(heads, columns, strict=True):
        name = column.name if alone else f"{head} {column.name}"
        line = f"{name}: {column.said}"
        yield from [line] if len(line) <= width else [f"{name}:", f"{_INDENT}{column.said}"]
    means = [] if alone else _means(columns)
    heads = [""] if alone else heads + [head for head, _ in means]
    scores = [
        [
            *map(_score_words, marks),
            *(_mean_words([marks[i].score for i in among]) for _, among in means),
        ]
        for _, marks in rows
    ]
    differences = [
        [
            *(_difference_words(mark.difference) for mark in marks),
            *(_difference_words(_mean([marks[i].difference for i in among])) for _, among in means),
        ]
        for _, marks in rows
    ]
    shares = [
        [
            percent(mark.retained) if column.share and mark.retained is not None else ""
            for mark, column in zip(marks, columns, strict=True)
        ]
        + [""] * len(means)
        for _, marks in rows
    ]
    names = [name for name, _ in rows]
    yield from _rows(heads, names, scores, width, encoding)
    for title, cells in (
        (
            f"difference from {shortened(beside, 30)}, paired (* beyond two errors)",
            differences,
        ),
        ("of the base's score", shares),
    ):
        filled = [n for n, row in enumerate(cells) if any(row)]
        if filled:
            yield title
            used = [j for j in range(len(heads)) if any(cells[n][j] for n in filled)]
            body = [[cells[n][j] for j in used] for n in filled]
            used_heads, used_names = [heads[j] for j in used], [names[n] for n in filled]
            yield from _rows(used_heads, used_names, body, width, encoding)
    for name, marks in rows:
        for reason in dict.fromkeys(mark.unpaired for mark in marks if mark.unpaired):
            yield from _wrapped(f"{name} has no difference: {reason}", width)
    for name, marks in rows:
        for head, mark in zip(heads, marks, strict=False):
            if mark.score is None:
                which = f"{head} " if head else ""
                yield from _wrapped(f"{which}{name} failed: {mark.failure}", width)


def _rows(
    heads: Sequence[str],
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    width: int,
    encoding: str | None,
) -> Iterator[str]:
    body = [[name, *row] for name, row in zip(names, cells, strict=True)]
    yield from table_lines(["", *heads], body, width, encoding)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(20, width), subsequent_indent=_INDENT, max_lines=4, placeholder=" …"
    )


def _means(columns: Sequence[Column]) -> list[tuple[str, list[int]]]:
    """Return a head and the objectives' numbers for each kind with several objectives."""
    kinds = dict.fromkeys(column.kind for column in columns if column.kind)
    of_kind = [[i for i, column in enumerate(columns) if column.kind == kind] for kind in kinds]
    means = []
    for numbers in (alike for alike in of_kind if len(alike) > 1):
        first, last = numbers[0] + 1, numbers[-1] + 1
        words = (
            f"{first}..{last}"
            if last - first + 1 == len(numbers)
            else ",".join(str(i + 1) for i in numbers)
        )
        means.append(("mean" if len(numbers) == len(columns) else f"mean ({words})", numbers))
    return means


def _score_words(mark: Mark) -> str:
    return "failed" if mark.score is None else with_error(*mark.score)


def _difference_words(difference: Estimate | None) -> str:
    """Return `+0.214 ± 0.031 *`; the star marks a difference beyond two errors."""
    if difference is None:
        return ""
    value, error = difference
    sure = difference.sure or difference.reversed.sure
    sign = "+" if value >= 0 else ""
    return f"{sign}{with_error(value, error)}{' *' if sure else '  '}"


def _mean_words(scores: Sequence[Estimate | None]) -> str:
    mean = _mean(scores)
    return "" if mean is None else with_error(*mean)


def _mean(scores: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean with equal weights of scores on independent texts."""
    present = [score for score in scores if score is not None]
    if not present or len(present) < len(scores):
        return None
    value = math.fsum(score.value for score in present) / len(present)
    return Estimate(value, math.hypot(*(score.stderr for score in present)) / len(present))


def size_lines(
    rows: Sequence[tuple[str, OutputSize, Sequence[str]]],
    width: int,
    encoding: str | None = None,
) -> Iterator[str]:
    """Yield the table of targets' sizes; each has speeds of a prompt and an answer, in words."""
    fast = any(speeds for _, _, speeds in rows)
    head = ["", "layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] * fast)]
    body = [
        [
            name,
            str(size.layers),
            short_count(size.parameters),
            bytes_in_words(size.kv_cache, "B"),
            *(speeds or ["?", "?"] * fast),
        ]
        for name, size, speeds in rows
    ]
    yield from table_lines(head, body, width, encoding)
