"""Values in memory: the ones unused for longest leave first."""

from gptailor.evaluation.recently_used import RecentlyUsed


def filled() -> RecentlyUsed[str, int]:
    kept = RecentlyUsed[str, int]()
    for number, name in enumerate("abc"):
        assert kept.of(name, lambda number=number: number, lambda _: 10) == number
    return kept


def names(kept: RecentlyUsed[str, int]) -> str:
    """The names of kept values, which are not made again."""
    return "".join(name for name in "abc" if kept.of(name, lambda: -1) >= 0)


def test_a_used_value_is_kept_longer() -> None:
    kept = filled()
    assert kept.of("a", lambda: 7) == 0
    kept.forget(29)
    assert kept.size == 20
    assert names(kept) == "ac"


def test_values_that_fit_are_kept() -> None:
    kept = filled()
    kept.forget(30)
    assert names(kept) == "abc"


def test_the_latest_value_is_kept_whatever_its_size() -> None:
    kept = filled()
    kept.forget(0)
    assert names(kept) == "c"
    kept.forget(0, least=0)
    assert kept.size == 0
    assert not names(kept)
