"""The scores of an evaluation as lines of a terminal: objectives, differences, sizes and speeds."""

from collections.abc import Iterator, Sequence

from gptailor.evaluation.scores import Failure, Result, TargetSize
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.evaluation import Column, Mark, evaluation_lines, size_lines
from gptailor.reporting.measure import Estimate
from gptailor.reporting.quantities import speed_in_words


def score_lines(
    results: Sequence[Result],
    subjects: Sequence[TargetSize],
    width: int,
    encoding: str | None = None,
) -> Iterator[str]:
    """Yield the lines of all scores, and of the sizes below them, in `width` columns.

    Characters that the terminal's encoding lacks are replaced; None is UTF-8.
    """
    by_name: dict[str, list[Result]] = {}
    for one in results:
        by_name.setdefault(one.objective, []).append(one)
    columns = [_column(column) for column in by_name.values()]
    many = len(results) // len(columns)
    marks = [[_mark(column[n]) for column in by_name.values()] for n in range(many)]
    names = [one.target for one in next(iter(by_name.values()))]
    besides = {one.against for one in results} - {""}
    beside = besides.pop() if len(besides) == 1 else "its base"
    rows = list(zip(names, marks, strict=True))
    yield from evaluation_lines(columns, rows, beside, width, encoding)
    yield ""
    sizes = [(subject.target, subject.size, _speeds(subject)) for subject in subjects]
    yield from size_lines(sizes, width, encoding)


def _column(results: Sequence[Result]) -> Column:
    """Return an objective's column: its name, `64 samples, less is better`, its mean's group."""
    first = results[0]
    better = "less" if first.direction == "minimize" else "more"
    counts = {
        n for result in results if (n := getattr(result.outcome, "samples", None)) is not None
    }
    samples = "".join(f"{n} sample{'s' * (n != 1)}, " for n in sorted(counts - {0})[:1])
    name, _, arguments = first.objective.partition('("')
    spec = OBJECTIVES.get(first.objective.partition("(")[0])
    share = spec is not None and spec.share_of_base and first.direction == "maximize"
    settings = arguments.partition('"')[2]
    return Column(first.objective, f"{samples}{better} is better", f"{name} {settings}", share)


def _mark(result: Result) -> Mark:
    score, more = result.outcome, result.difference
    if isinstance(score, Failure):
        return Mark(None, failure=score.message)
    difference = None if more is None else Estimate(more.value, more.stderr)
    estimate = Estimate(score.value, score.stderr)
    return Mark(estimate, difference, result.retained, unpaired=result.unpaired)


def _speeds(subject: TargetSize) -> list[str]:
    """Return the speeds of a prompt and of an answer, or an empty list without a measurement."""
    speed, base = subject.speed, subject.base_speed
    if speed is None:
        return []
    return [
        speed_in_words(speed.prefill, None if base is None else base.prefill),
        speed_in_words(speed.decoding, None if base is None else base.decoding),
    ]
