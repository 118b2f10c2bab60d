"""A plan written out: others, whole, names and curves replaced by their values."""

import pytest

from gptailor import loads
from gptailor.plan.plan import Curve, Layer, Merge, MethodCall, Plan, Take
from gptailor.plan.resolved import Resolved, undone
from gptailor.plan.written_out import curve_at, written_out

HEAD = """tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
"""


def plan_of(text: str) -> Plan:
    return loads(HEAD + text)


def ts(text: str, count: int = 8) -> dict[int, object]:
    """The `t` of each position's slerp."""
    results = {}
    for slot in Resolved(plan_of(text), count).slots:
        recipe = slot.recipes[None].recipe
        if slot.position is not None and isinstance(recipe, Merge):
            assert isinstance(recipe.by, MethodCall)
            results[slot.position] = recipe.by.arguments["t"]
    return results


def test_a_curve_follows_position_numbers() -> None:
    assert ts("L0, L2, L4 from base, math by slerp(curve(0, 1))") == {0: 0.0, 2: 0.5, 4: 1.0}
    assert ts("L1..L2, L5 from base, math by slerp(curve(0.0, 1.0))") == {1: 0.0, 2: 0.25, 5: 1.0}
    assert ts("L3 from base, math by slerp(curve(0.2, 0.9))") == {3: 0.9}
    assert ts("L0..L1 from base, math by slerp(curve(0.1, 0.5, 0.7))") == {0: 0.1, 1: 0.7}


def test_a_curve_of_others_spans_the_whole_base() -> None:
    wanted = {0: 0.0, 1: 0.25, 3: 0.75}
    text = "others from base, math by slerp(curve(0, 1))\ndrop L2, L4"
    assert ts(text, 5) == wanted
    assert ts(text.replace("others", "whole"), 5) == wanted


@pytest.mark.parametrize(
    ("knots", "first", "last"),
    [((0, 1), 0, 9), ((0.0, 0.5, 0.3, 0.7, 1.0), 0, 31), ((1, 0.5, 0.7, 0.3, 0), 3, 12),
     ((0.2, 0.9), 4, 5), ((0, 0.5, 0.3, 0.7, 1), 2, 4)],
)  # fmt: skip
def test_a_curve_is_mergekits_gradient(knots: tuple[float, ...], first: int, last: int) -> None:
    """By the formula of its `evaluate_setting`, t being the share of the layers behind."""
    for position in range(first, last + 1):
        scaled = (position - first) / (last - first) * (len(knots) - 1)
        low = int(scaled)
        high, share = min(len(knots) - 1, low + 1), scaled - low
        wanted = (1 - share) * knots[low] + share * knots[high]
        assert curve_at(knots, position, first, last) == wanted
    assert curve_at(knots, first, first, last) == knots[0]
    assert curve_at(knots, last, first, last) == knots[-1]


def test_rounding_keeps_a_curve_within_its_knots() -> None:
    for last in range(1, 40):
        numbers = [curve_at([0.1, 1.0, 1.0, 0.3], n, 0, last) for n in range(last + 1)]
        assert min(numbers) >= 0.1
        assert max(numbers) <= 1.0


def test_finer_entries_override_coarser_ones() -> None:
    text = (
        "others.attn from math\nothers from code\nL1 from base\nL2.mlp from base\nwhole from math"
    )
    results = [
        tuple(slot.part(part).recipe.take.model for part in ("attn", "mlp"))  # type: ignore[union-attr]
        for slot in Resolved(plan_of(text), 4).slots
    ]
    assert results == [("math", "code"), ("base", "base"), ("math", "base"), ("math", "code")]


def test_the_plan_with_nothing_dropped_has_others_in_place_of_dropped_layers() -> None:
    plan = plan_of('others from math\ndrop L1..L2\nbridge on "t"')
    assert [gap.after for gap in Resolved(plan, 4).gaps] == [0]
    made = [slot.recipes[None].recipe for slot in Resolved(plan, 4).undone.kept]
    assert [recipe.take.model for recipe in made if isinstance(recipe, Take)] == ["math"] * 4
    again = undone(written_out(plan, 4))
    assert [slot.recipes[None].recipe for slot in Resolved(again, 4).kept] == made


def rest_of(text: str, *tied: str) -> list[str]:
    made = written_out(plan_of(text), 2, tied)
    return [where for where in ("embed", "norm", "head") if made.rest(where) is not None]


def test_whole_applies_to_parts_that_the_plan_does_not_name() -> None:
    whole = "whole from math"
    assert rest_of(whole) == ["embed", "norm", "head"]
    assert rest_of(whole, "base", "math") == ["embed", "norm"]
    assert rest_of(whole, "base") == ["embed", "norm", "head"]  # math's head is another tensor
    assert rest_of(f"{whole}\nhead from code", "base", "math", "code") == ["norm", "head"]
    assert rest_of(f"{whole}\nembed from code", "base", "math", "code") == ["embed", "norm"]
    made = written_out(plan_of(f"{whole}\nembed from code"), 2)
    assert made.embed == plan_of("embed from code").embed


def test_the_embedding_and_head_have_the_ends_of_the_curve_of_whole() -> None:
    made = written_out(plan_of("whole from base, math by slerp(curve(0.1, 0.5, 0.9))"), 3)
    results = [made.embed, *(layer.recipe for layer in made.layers), made.norm, made.head]
    calls = [recipe.by for recipe in results if isinstance(recipe, Merge)]
    given = [call.arguments["t"] for call in calls if isinstance(call, MethodCall)]
    assert given == [0.1, 0.1, 0.5, 0.9, 0.9, 0.9]


def test_an_open_choice_keeps_its_name() -> None:
    plan = plan_of("let t = 0..1\nL0..L1 from base, math by slerp(curve(0, t))")
    assert written_out(plan, 4) == plan
    [first, _] = written_out(plan, 4).layers
    assert isinstance(first, Layer)
    assert isinstance(first.recipe, Merge)
    assert isinstance(first.recipe.by, MethodCall)
    assert isinstance(first.recipe.by.arguments["t"], Curve)


def test_a_plan_with_nothing_to_write_out_is_itself() -> None:
    plan = plan_of("L0 from math\ndrop L1")
    assert written_out(plan, 4) is plan


def test_faults_of_a_written_out_plan_have_places_in_its_text() -> None:
    plan = plan_of("others from math, code by slerp(0.5)\nwhole from code")
    made = written_out(plan, 3)
    for at in (("layers", 2, "recipe", "merge", 1, "model"), ("head", "take", "model")):
        span = made.origin.span(at) if made.origin else None
        assert span is not None
        assert (HEAD + "others from math, code by slerp(0.5)\nwhole from code")[
            span.start : span.end
        ] == "code"
