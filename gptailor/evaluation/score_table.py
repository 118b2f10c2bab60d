"""The scores of an evaluation as lines of a terminal: a table of targets, a chart of a setting."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence

from gptailor.evaluation.scores import Failure, Result, Score, ScoreDifference, TargetSize
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.measure import Estimate
from gptailor.reporting.quantities import (
    bytes_in_words,
    percent,
    short_count,
    speed_in_words,
    with_error,
)
from gptailor.reporting.table import shortened, table_lines

_INDENT = "  "
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


def score_lines(
    results: Sequence[Result], width: int, encoding: str | None = None
) -> Iterator[str]:
    """Yield the table of all scores, targets down and objectives across, in `width` columns.

    Characters that the terminal's encoding lacks are replaced; None is UTF-8.
    """
    columns: dict[str, list[Result]] = {}
    for result in results:
        columns.setdefault(result.objective, []).append(result)
    rows = list(zip(*columns.values(), strict=True))
    alone = len(columns) == 1
    heads = [""] if alone else [f"({n})" for n in range(1, len(columns) + 1)]
    for head, (name, column) in zip(heads, columns.items(), strict=True):
        title, said = name if alone else f"{head} {name}", _column_words(column)
        line = f"{title}: {said}"
        yield from [line] if len(line) <= width else [f"{title}:", f"{_INDENT}{said}"]
    means = [] if alone else _means(list(columns))
    besides = {result.against for result in results} - {""}
    beside = besides.pop() if len(besides) == 1 else "its base"
    all_heads = [*heads, *(head for head, _ in means)]
    scores = [
        [row[0].target, *_cells([_estimate(r.outcome) for r in row], means, _score_words, "failed")]
        for row in rows
    ]
    yield from table_lines(["", *all_heads], scores, width, encoding)
    shares = [[_share_words(result) for result in row] + [""] * len(means) for row in rows]
    differences = [
        _cells([_estimate(r.difference) for r in row], means, _difference_words) for row in rows
    ]
    for title, cells in (
        (f"difference from {shortened(beside, 30)}, paired (* beyond two errors)", differences),
        ("of the base's score", shares),
    ):
        filled = [n for n, row in enumerate(cells) if any(row)]
        if filled:
            yield title
            used = [j for j in range(len(all_heads)) if any(cells[n][j] for n in filled)]
            body = [[rows[n][0].target, *(cells[n][j] for j in used)] for n in filled]
            yield from table_lines(["", *(all_heads[j] for j in used)], body, width, encoding)
    for row in rows:
        for reason in dict.fromkeys(result.unpaired for result in row if result.unpaired):
            yield from _wrapped(f"{row[0].target} has no difference: {reason}", width)
    for row in rows:
        for head, result in zip(heads, row, strict=True):
            if isinstance(result.outcome, Failure):
                which = f"{head} {result.target}" if head else result.target
                yield from _wrapped(f"{which} failed: {result.outcome.message}", width)


def _column_words(results: Sequence[Result]) -> str:
    """Return what an objective's scores are: `64 samples, less is better`."""
    better = "less" if results[0].direction == "minimize" else "more"
    counts = {result.outcome.samples for result in results if isinstance(result.outcome, Score)}
    samples = "".join(f"{n} sample{'s' * (n != 1)}, " for n in sorted(counts - {0})[:1])
    return f"{samples}{better} is better"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, max(20, width), subsequent_indent=_INDENT, max_lines=4, placeholder=" …"
    )


def _means(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return a head and the objectives' numbers for each kind with several objectives.

    Objectives of a kind differ in their files alone.
    """
    of_kind: dict[tuple[str, str], list[int]] = {}
    for number, objective in enumerate(names):
        name, _, arguments = objective.partition('("')
        of_kind.setdefault((name, arguments.partition('"')[2]), []).append(number)
    means = []
    for numbers in (alike for alike in of_kind.values() if len(alike) > 1):
        first, last = numbers[0] + 1, numbers[-1] + 1
        words = (
            f"{first}..{last}"
            if last - first + 1 == len(numbers)
            else ",".join(str(i + 1) for i in numbers)
        )
        means.append(("mean" if len(numbers) == len(names) else f"mean ({words})", numbers))
    return means


def _estimate(measured: Score | Failure | ScoreDifference | None) -> Estimate | None:
    if measured is None or isinstance(measured, Failure):
        return None
    return Estimate(measured.value, measured.stderr)


def _cells(
    row: Sequence[Estimate | None],
    means: Sequence[tuple[str, Sequence[int]]],
    words: Callable[[Estimate], str],
    missing: str = "",
) -> list[str]:
    """Return the cells of a target: its estimates, then the means over some of them."""
    averages = [_mean([row[i] for i in among]) for _, among in means]
    own = [missing if estimate is None else words(estimate) for estimate in row]
    return own + ["" if mean is None else words(mean) for mean in averages]


def _score_words(score: Estimate) -> str:
    return with_error(*score)


def _difference_words(difference: Estimate) -> str:
    """Return `+0.214 ± 0.031 *`; the star marks a difference beyond two errors."""
    value, error = difference
    sure = difference.sure or difference.reversed.sure
    sign = "+" if value >= 0 else ""
    return f"{sign}{with_error(value, error)}{' *' if sure else '  '}"


def _share_words(result: Result) -> str:
    """Return the share of the base's score, if the score is an accuracy."""
    spec = OBJECTIVES.get(result.objective.partition("(")[0])
    shown = spec is not None and spec.share_of_base and result.direction == "maximize"
    return percent(result.retained) if shown and result.retained is not None else ""


def _mean(scores: Sequence[Estimate | None]) -> Estimate | None:
    """Return the mean with equal weights of scores on independent texts."""
    present = [score for score in scores if score is not None]
    if not present or len(present) < len(scores):
        return None
    value = math.fsum(score.value for score in present) / len(present)
    return Estimate(value, math.hypot(*(score.stderr for score in present)) / len(present))


def size_lines(
    subjects: Sequence[TargetSize], width: int, encoding: str | None = None
) -> Iterator[str]:
    """Yield the table of targets' sizes, and of their speeds if one is known."""
    fast = any(subject.speed is not None for subject in subjects)
    head = ["", "layers", "parameters", "KV/token", *(["prefill/s", "decoding/s"] * fast)]
    body = []
    for subject in subjects:
        size, speed, base = subject.size, subject.speed, subject.base_speed
        layers, cache = str(size.layers), bytes_in_words(size.kv_cache, "B")
        row = [subject.target, layers, short_count(size.parameters), cache]
        if speed is not None:
            row.append(speed_in_words(speed.prefill, None if base is None else base.prefill))
            row.append(speed_in_words(speed.decoding, None if base is None else base.decoding))
        body.append([*row, *["?"] * (len(head) - len(row))])
    yield from table_lines(head, body, width, encoding)
