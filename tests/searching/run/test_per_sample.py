"""Each sample's scores: their mean, how two are compared, and that a study keeps them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.evaluation.scores import (
    Failure,
    PerSample,
    Score,
    mean,
    paired_difference,
)
from gptailor.searching.run.scores import (
    per_objective,
    per_sample_from_json,
    per_sample_to_json,
)

DRAWN = np.random.default_rng(3)
SUMS = DRAWN.gamma(4.0, 10.0, 64).tolist()
COUNTS = DRAWN.integers(1, 200, 64).tolist()


def ratio(sums: list[float], counts: list[int], *, exponential: bool = False) -> Score:
    return PerSample(tuple(sums), tuple(counts), exponential).score()


def test_a_score_is_computed_from_its_samples() -> None:
    for score in (mean(SUMS), ratio(SUMS, COUNTS), ratio(SUMS, COUNTS, exponential=True)):
        assert score.each is not None
        assert score.each.score().value == pytest.approx(score.value, rel=1e-15)
        spread = math.fsum(item * item for item in score.each.influences())
        assert math.sqrt(64 / 63 * spread) == pytest.approx(score.stderr, rel=1e-12)


def test_the_difference_of_means_has_the_error_of_the_differences() -> None:
    other = (np.array(SUMS) + DRAWN.normal(0.5, 0.1, 64)).tolist()
    result = paired_difference(_of(mean(other)), _of(mean(SUMS)))
    gaps = np.array(other) - np.array(SUMS)
    assert result.value == pytest.approx(gaps.mean(), rel=1e-9)
    assert result.stderr == pytest.approx(gaps.std(ddof=1) / 8, rel=1e-9)
    assert result.stderr < mean(SUMS).stderr / 10


def test_the_error_of_a_ratio_difference_equals_a_bootstrap() -> None:
    """Beside a bootstrap over samples."""
    other = (np.array(SUMS) * 1.1 + DRAWN.normal(0, 5, 64)).tolist()
    result = paired_difference(_of(ratio(other, COUNTS)), _of(ratio(SUMS, COUNTS)))
    drawn = DRAWN.integers(0, 64, (4000, 64))
    a, b, c = (np.array(item)[drawn].sum(axis=1) for item in (other, SUMS, COUNTS))
    assert result.stderr == pytest.approx((a / c - b / c).std(), rel=0.1)


def test_only_samples_that_both_have_are_compared() -> None:
    few = _of(mean(SUMS[:16]))
    result = paired_difference(_of(mean(SUMS)), few)
    assert result == (0.0, 0.0)


def test_an_unknown_error_is_infinite() -> None:
    one = PerSample((1.0,), (1,))
    assert paired_difference(one, one).stderr == math.inf
    many = PerSample((1e4, 1e4), (1, 1), exponential=True)
    assert paired_difference(many, PerSample((1.0, 1.0), (1, 1))).stderr == math.inf
    large = [PerSample((n, n + 0.5, n - 0.5), (1,) * 3, exponential=True) for n in (650.0, 700.0)]
    assert paired_difference(*large).stderr == math.inf, "squares beyond the largest float"
    tiny = PerSample((-1000.0,), (1,), exponential=True)
    assert paired_difference(tiny, tiny) == (0.0, math.inf)
    with pytest.raises(ValueError, match="without samples"):
        paired_difference(PerSample((), ()), one)


@given(
    st.lists(
        st.tuples(st.floats(-(2.0**90), 2.0**90, width=32), st.integers(1, 2**32 - 1)),
        min_size=1,
        max_size=50,
    ),
    st.booleans(),
)
def test_a_study_keeps_them_to_the_bit(rows: list[tuple[float, int]], to_e: bool) -> None:
    sums, counts = map(tuple, zip(*rows, strict=True))
    each = PerSample(sums, counts, to_e)
    scores = (Score(1.0, 0.1, len(rows), each), Score(1.0, 0.1, 1), Failure("nan", "no"))
    result = per_objective(scores)
    assert result == (each, None, None)
    assert per_sample_from_json(per_sample_to_json(result)) == result


def test_scores_of_samples_are_short_in_json() -> None:
    tokens = DRAWN.integers(20, 512, 256).tolist()
    nats = (np.array(tokens) * DRAWN.normal(3, 0.5, 256)).tolist()
    [kept] = per_sample_to_json(per_objective([ratio(nats, tokens)]))
    assert kept is not None
    assert sum(map(len, kept.values())) < 256 * 8


def test_damaged_samples_are_refused() -> None:
    for text in ("c-pn", "~~~~"):
        with pytest.raises(ValueError, match=r"incomplete|b85|base85"):
            per_sample_from_json([{"sums": text}])


def _of(score: Score) -> PerSample:
    assert score.each is not None
    return score.each
