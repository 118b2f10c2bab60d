"""Starting plans: in any space, what their names say, and at a bounded cost."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, pairwise

import numpy as np
import pytest

from gptailor import loads
from gptailor.plan.plan import Merge, Plan, Take
from gptailor.searching.run.origin import (
    BlockInfluenceCut,
    BridgedCut,
    GreedyRemoval,
    ModelAlone,
    TrialOrigin,
    WindowCut,
    composition_words,
    origin_words,
)
from gptailor.searching.run.schedule import Start, next_stage
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of, with_gap_errors
from gptailor.searching.starts.compositions import composed, compositions, wholes
from gptailor.searching.starts.cuts import candidates, greedy_removal
from gptailor.searching.starts.stages import Starts
from tests.searching.space.encode import encode
from tests.searching.space.test_space import SPACES, space

HEAD = "tailor 1\n" + "".join(
    f'model {name} = "./{name}"\n' for name in ("base", "math", "code", "chat", "law", "bio", "art")
)
PAPER = "drop any {k} of L0..L{last}\nL0..L{last} from any of {models} by task_arithmetic(0.0..1.0)"
OTHERS = "L0..L39 from any of math, code by task_arithmetic(0.0..1.0)"
SHARES = (1.0, 0.25, 1 / 16, 0.01)

Evaluate = Callable[[Plan], tuple[float, ...]]


@cache
def paper(layers: int = 30, k: int | str = 7, models: str = "math, code, chat") -> Space:
    text = PAPER.format(k=k, last=layers - 1, models=models)
    return space_of(loads(HEAD + text), layers)


def drive(starts: Starts, evaluate: Evaluate) -> list[list[Start]]:
    """All stages."""
    stages, told = starts.stages(), None
    made: list[list[Start]] = []
    while stage := next_stage(stages, told):
        made.append(stage)
        told = [
            start._replace(losses=evaluate(decode(starts.space, start.genome))) for start in stage
        ]
    return made


def called(start: Start) -> str:
    """The start's words for people."""
    return origin_words(start.origin)


def origins(stages: Sequence[Sequence[Start]]) -> set[TrialOrigin]:
    """The origins of all stages."""
    return {start.origin for stage in stages for start in stage}


def dropped(plan: Plan) -> list[int]:
    return [drop.position for drop in plan.drops]


def names_of(plan: Plan) -> set[str]:
    results = set()
    for layer in plan.layers:
        if isinstance(layer.recipe, Take):
            results.add(str(layer.recipe.take.model))
        elif isinstance(layer.recipe, Merge):
            results |= {str(source.model) for source in layer.recipe.merge}
    return results


def apart(plan: Plan) -> tuple[float, ...]:
    """The base is worst; a cut costs its distance from L12..L18, and its pieces."""
    cut = dropped(plan)
    pieces = sum(b - a > 1 for a, b in pairwise(cut))
    return (sum(abs(p - 15) for p in cut) + 3.0 * pieces + ("math" not in names_of(plan)),)


def same(one: Genome, other: Genome) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------ in any space


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("name", SPACES)
def test_starts_are_genomes_of_any_space(name: str, share: float) -> None:
    given = space(name)
    starts = Starts(given, cheapest=share)
    stages = drive(starts, lambda plan: (float(len(plan.drops)),))
    assert stages
    for stage in stages:
        for start in stage:
            assert 0 < start.share <= 1
            assert same(encode(given, decode(given, start.genome)), start.genome)
    named = [(called(start), start.share) for stage in stages for start in stage]
    assert len(set(named)) == len(named)


@pytest.mark.parametrize("name", SPACES)
def test_influence_is_of_plans_without_drops(name: str) -> None:
    given = space(name)
    plans = wholes(given)
    assert bool(plans) == ("drop " in SPACES[name][0] and "drop L2\nbridge" not in SPACES[name][0])
    assert not any(plan.drops or plan.bridges for plan in plans.values())


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "given",
    [
        paper(),
        paper(40, 10),
        paper(models="math, code, chat, law, bio, art"),
        paper(40, "1..19"),
        space_of(loads(HEAD + "drop window 4..12 of L2..L38\n" + OTHERS), 40),
    ],
    ids=["30", "40", "seven models", "counts", "windows"],
)
def test_all_starts_together_cost_little(given: Space, share: float) -> None:
    stages = drive(Starts(given, cheapest=share), lambda plan: (float(sum(dropped(plan))),))
    several = len(given.table.ranged) or len(given.table.inside_pick)
    assert sum(start.share for stage in stages for start in stage) <= (26 if several else 20)


# ------------------------------------------------------------------- numbers of fixed merges

TWO = "let m = 0.0..1.0\nlet c = 0.0..1.0\n"
MEAN, FULL = "uniform merge", "uniform merge by 1"
MERGES = {"uniform merge by 0.6": (0.6, 0.6), "uniform merge by 0.3": (0.3, 0.3)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            TWO + "others from math, code by task_arithmetic(weight=(m, c))",
            {"base": (0, 0), "math": (1, 0), "code": (0, 1), MEAN: (0.5, 0.5), FULL: (1, 1)}
            | MERGES,
        ),
        (
            "L0..L3 from math, code by task_arithmetic(weight=(0.0..1.0, 0.2..1.0))",
            {"code": (0, 1), MEAN: (0.5, 0.5), FULL: (1, 1)} | MERGES,
        ),
        (
            TWO + "L0..L3.norms from math, code by linear(weight=(m, c))",
            {"math": (1, 0), "code": (0, 1), MEAN: (0.5, 0.5)},
        ),
        (
            TWO + "others from base, math by slerp(curve(m, c))",
            {"base": (0, 0), "math": (1, 1), MEAN: (0.5, 0.5)},
        ),
        (
            TWO + "others from math, code by task_arithmetic(weight=(curve(m, m), curve(c, c)))",
            {"base": (0, 0), "math": (1, 0), "code": (0, 1), MEAN: (0.5, 0.5), FULL: (1, 1)}
            | MERGES,
        ),
        (
            TWO.replace("0.0", "0.6") + "others from math, code by task_arithmetic(weight=(m, c))",
            {FULL: (1, 1), "uniform merge by 0.6": (0.6, 0.6)},
        ),
        (
            TWO + "L0 from math, code by task_arithmetic(weight=(m, c))\n"
            "L1 from code, math by task_arithmetic(weight=(m, c))",
            {"base": (0, 0), MEAN: (0.5, 0.5), FULL: (1, 1)} | MERGES,
        ),
        (
            "let m = 0.4..0.9\nothers from math, code by task_arithmetic(m)",
            {MEAN: (0.5,), "uniform merge by 0.6": (0.6,)},
        ),
        (
            "let m = 0.0..1.0\nL1 from math, code by linear(weight=(m, 0.5))",
            {"base": (1,)},
        ),
    ],
)  # fmt: skip
def test_fixed_merges_begin_with_each_model_alone_and_uniform_merges(
    text: str, wanted: dict[str, tuple[float, ...]]
) -> None:
    given = space_of(loads(HEAD + text), 4)
    order = sorted(range(len(given.reals)), key=lambda i: "let c" in given.reals[i].name)
    results = {}
    for of in compositions(given):
        shares = composed(given, of).reals
        values = [given.reals[i].value(float(shares[i])) for i in order]
        results[composition_words(of)] = tuple(values[: len(wanted[composition_words(of)])])
    assert results == {name: pytest.approx(values) for name, values in wanted.items()}


def test_a_merge_of_some_models_has_the_coefficients_that_it_can_have() -> None:
    text = "let m = 0.6..0.9\nothers from any of math, code by task_arithmetic(m)"
    given = space_of(loads(HEAD + text), 4)
    plans = {composition_words(of): decode(given, composed(given, of)) for of in
             compositions(given)}  # fmt: skip
    assert {name: plan.numbers for name, plan in plans.items()} == {
        "base": {}, "math": {}, "code": {}, "uniform merge by 0.6": {"m": 0.6}
    }  # fmt: skip
    assert names_of(plans["math"]) == {"math"}
    assert list(wholes(space_of(loads(HEAD + text + "\nmaybe drop L1..L2"), 4))) == [
        "base", "math", "code", "uniform merge"
    ]  # fmt: skip


@pytest.mark.parametrize(("cheapest", "room"), [(1.0, 3.0), (1.0, 4.0), (0.25, 2.0), (0.5, 3.0)])
def test_a_small_budget_tries_each_model_and_their_mean(cheapest: float, room: float) -> None:
    merge = "others from math, code by task_arithmetic(weight=(m, c))\ndrop any 3 of L1..L8"
    given = space_of(loads(HEAD + TWO + merge), 10)
    stages = drive(Starts(given, cheapest=cheapest, room=room), apart)
    names = {
        called(start).removeprefix("block influence on ") for stage in stages for start in stage
    }
    assert {"math", "code", MEAN} <= names
    first = [stage for stage in stages if called(stage[0]).startswith("block influence")]
    assert sum(start.share for stage in first for start in stage) <= room


def test_coefficients_of_a_choice_are_its_options() -> None:
    text = "let m = one of 0.2, 0.5, 1\nothers from math, code by task_arithmetic(m)"
    given = space_of(loads(HEAD + text), 4)
    merges = {composition_words(of): decode(given, composed(given, of)).numbers for of in
              compositions(given)}  # fmt: skip
    assert merges == {MEAN: {"m": 0.5}, FULL: {"m": 1}, "uniform merge by 0.2": {"m": 0.2}}


@pytest.mark.parametrize("room", [7, math.inf])
def test_starts_of_named_weights_include_the_sum_of_all_models(room: float) -> None:
    given = space_of(
        loads(HEAD + TWO + "others from math, code by task_arithmetic(weight=(m, c))"), 4
    )
    (stage,) = drive(Starts(given, room=room), lambda plan: (0.0,))
    assert [called(start) for start in stage] == ["base", "math", "code", MEAN, FULL, *MERGES]
    assert len({start.genome.reals.tobytes() for start in stage}) == 7


# ------------------------------------------------------------------------------- what names promise


def test_compositions_are_models_and_uniform_merges() -> None:
    names = [composition_words(item) for item in compositions(paper())]
    assert names[:5] == ["base", "math", "code", "chat", "uniform merge"]
    assert names[5:] == [
        f"uniform merge of {a} and {b}"
        for a, b in (("math", "code"), ("math", "chat"), ("code", "chat"))
    ]
    stronger = [composition_words(of) for of in compositions(paper(), strengths=True)]
    assert [name for name in stronger if name not in names] == [
        f"uniform merge by {coefficient}" for coefficient in ("1", "0.6", "0.3")
    ]


def test_models_alone_and_the_mean_of_all() -> None:
    given = paper()
    (stage, *_) = drive(Starts(given), apart)
    plans = {called(start): decode(given, start.genome) for start in stage}
    assert names_of(plans["block influence on base"]) == set()
    assert names_of(plans["block influence on code"]) == {"code"}
    merged = plans["block influence on uniform merge"].layers[0].recipe
    assert isinstance(merged, Merge)
    assert len(merged.merge) == 3
    scales = merged.by.arguments["weight"]  # type: ignore[union-attr]
    assert scales == (pytest.approx(1 / 3, abs=1e-4),)


ALIKE = """\
let share = 0.3..1.0
whole from math, code by task_arithmetic(weight=(share, 0.5))
drop any {k} of L1..L8
"""


@pytest.mark.parametrize("k", ["3", "2..4"])
def test_cuts_of_equal_layers_are_not_named_after_the_base(k: str) -> None:
    given = space_of(loads(HEAD + ALIKE.format(k=k)), 10)
    starts = Starts(given, removal=(3, 4, 5, 6), cheapest=0.25)
    made = [start for stage in drive(starts, apart) for start in stage]
    names = {called(item) for item in made}
    whole = decode(given, made[0].genome).whole
    assert whole is not None
    assert isinstance(whole.recipe, Merge)
    assert not any(" on " in name for name in names)
    window = "best window" if k == "3" else "best window of 3"
    assert {"block influence", window, "window L4..L6", "greedy removal"} <= names
    assert starts.untried({item.origin for item in made})["left_out"] == ()
    assert starts.untried(set())["left_out"][0] == "block influence"


def test_a_plan_without_drops_starts_with_its_own_layers() -> None:
    given = space_of(loads(HEAD + "whole from math, code by ties(0.3..1.0)"), 4)
    assert [called(start) for stage in drive(Starts(given), apart) for start in stage] == [
        "the plan's layers"
    ]


def test_block_influence_drops_the_layers_of_least_influence() -> None:
    given = paper(10, 3)
    influence = {
        "base": [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 5.0, 4.0, 9.5],
        "math": [float(10 - position) for position in range(10)],
    }
    (stage, *_) = drive(Starts(given, influence), apart)
    cuts = {called(start): dropped(decode(given, start.genome)) for start in stage}
    assert cuts["block influence on base"] == [1, 3, 5]
    assert cuts["block influence on math"] == [7, 8, 9]
    assert cuts["block influence on code"] == [1, 3, 5], "the base's, where it wasn't measured"


@pytest.mark.parametrize("share", [0.25, 0.1])
def test_the_best_window_is_found_and_tried_on_the_base_too(share: float) -> None:
    given = paper()
    stages = drive(Starts(given, cheapest=share), apart)
    full = {
        called(item): decode(given, item.genome) for s in stages for item in s if item.share == 1
    }
    best = full["best window on math"]
    assert dropped(best) == list(range(12, 19))
    assert names_of(best) == {"math"}
    assert dropped(full["best window on base"]) == dropped(best)
    assert names_of(full["best window on base"]) == set()


def test_windows_that_would_cost_too_much_are_left_out_by_influence() -> None:
    given = paper()
    influence = {"base": [abs(position - 20.0) for position in range(30)]}
    stages = drive(Starts(given, influence), apart)
    windows = [start for stage in stages for start in stage if called(start).startswith("window ")]
    middles = [np.mean(dropped(decode(given, window.genome))) for window in windows]
    assert len(middles) == 6
    assert all(abs(middle - 20) <= 3 for middle in middles)


def test_each_size_has_a_cut_inside_the_next_larger_cut() -> None:
    given = paper(k="4..10")
    influence = {"base": [abs(position - 20.5) for position in range(30)]}
    stages = drive(Starts(given, influence, cheapest=0.1), apart)
    [sizes] = [stage for stage in stages if called(stage[0]).endswith(", 4 layers")]
    plans = {called(item): (decode(given, item.genome), item.share) for item in sizes}
    of_each = {len(dropped(plan)): dropped(plan) for plan, _ in plans.values()}
    of_each[7] = dropped(decode(given, stages[0][0].genome))
    assert sorted(of_each) == [*range(4, 11)]
    assert all({*of_each[size]} < {*of_each[size + 1]} for size in range(4, 10))
    assert of_each[4] == [19, 20, 21, 22]
    full = [name for name, (_, share) in plans.items() if share == 1]
    assert full == [f"block influence on math, {size} layers" for size in (4, 6, 8, 10)]
    assert all("math" in name for name in plans)


def test_nested_cuts_follow_greedy_removal() -> None:
    given = paper(k="2..4")
    stages = drive(Starts(given, removal=(9, 3, 20, 11), cheapest=0.1), apart)
    named = {
        called(start): dropped(decode(given, start.genome)) for stage in stages for start in stage
    }
    assert named["greedy removal on math"] == [3, 9, 20]
    assert named["greedy removal on math, 2 layers"] == [3, 9]
    assert named["greedy removal on math, 4 layers"] == [3, 9, 11, 20]


@pytest.mark.parametrize(
    ("room", "sizes"), [(math.inf, [6, 3, 5, 8]), (7.0, [6, 3, 5, 8]), (4.0, [6, 3, 8])]
)
def test_the_smallest_and_the_largest_size_have_their_best_bridged_cut(
    room: float, sizes: list[int]
) -> None:
    text = HEAD + "drop any 3..8 of L1..L18"
    errors = [[abs(after - 9) + number for number in range(1, 20 - after)] for after in range(20)]
    given = with_gap_errors(space_of(loads(text), 20), errors)
    stages = drive(Starts(given, room=room), apart)
    cuts = [start for stage in stages for start in stage if isinstance(start.origin, BridgedCut)]
    assert stages[0] == cuts[:1], "no cut by block influence stands first"
    assert [len(dropped(decode(given, item.genome))) for item in cuts] == sizes


CUTS = """drop any 1..3 of L2..L9
vocabulary 100..400 step 100 on "c.txt"
let n = one of 256, 512
width n on "c.txt"
L0..L11 from any of math, code by linear()"""


@pytest.mark.parametrize(("room", "tried"), [(math.inf, 2), (60.0, 2), (10.0, 1), (5.0, 0)])
def test_each_cut_alone_has_its_smallest_size(room: float, tried: int) -> None:
    given = space_of(loads(HEAD + CUTS), 12)
    stages = drive(Starts(given, room=room), apart)
    plans = {called(start): decode(given, start.genome) for stage in stages for start in stage}
    small = {"width 256 on math": (400, 256), "vocabulary 100 on math": (100, 512)}
    assert [name for name in plans if name in small] == [*small][:tried]
    for name, plan in plans.items():
        sizes = plan.cuts["vocabulary"].size, plan.numbers["n"]
        assert sizes == small.get(name, (400, 512)), name
        assert name not in small or len(dropped(plan)) == 1


WINDOWS = "drop window 3..5 of L2..L9\nL0..L11 from any of math, code by linear()"


def windows_tried(starts: Starts) -> list[list[int]]:
    stages = drive(starts, apart)
    given = starts.space
    tried = [start for stage in stages for start in stage if called(start).startswith("window ")]
    return [dropped(decode(given, item.genome)) for item in tried]


def test_all_windows_are_tried_on_few_samples() -> None:
    given = space_of(loads(HEAD + WINDOWS), 12)
    starts = Starts(given, cheapest=0.1)
    tried = windows_tried(starts)
    ends = {(cut[0], cut[-1]) for cut in tried if cut == [*range(cut[0], cut[-1] + 1)]}
    assert ends == {(a, a + n - 1) for n in (3, 4, 5) for a in range(2, 11 - n)}
    assert len(ends) == len(tried) == 6 + 5 + 4
    assert len(starts._windows(starts._all[0], math.inf)) == len(tried)


def test_windows_that_are_left_out_are_reported() -> None:
    given = space_of(loads(HEAD + WINDOWS), 12)
    influence = {"base": [abs(position - 5.0) for position in range(12)]}
    starts = Starts(given, influence, cheapest=1.0)
    tried = windows_tried(starts)
    assert "9 of 15 windows" in starts.untried(origins(drive(starts, apart)))["left_out"]
    assert sorted(map(len, tried)) == [3, 3, 4, 4, 5, 5]
    assert all(5 in cut for cut in tried)


def test_two_windows_and_a_count_have_each_place_of_each() -> None:
    text = "drop window 2 of L0..L3\nmaybe drop window 2 of L4..L7\ndrop any 1..2 of L8..L9"
    given = space_of(loads(HEAD + text), 12)
    tried = {tuple(cut) for cut in windows_tried(Starts(given, cheapest=0.05))}
    pairs = {
        tuple(at for at in cut if at in range(first, first + 4))
        for cut in tried
        for first in (0, 4)
    }
    assert {(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7)} <= pairs
    assert {len(cut) for cut in tried} <= {3, 4, 5, 6}


def test_greedy_removal_takes_the_layer_that_costs_least_in_each_round() -> None:
    given = paper(12, 3)
    influence = [abs(position - 6) + 0.1 * (position % 2) for position in range(12)]
    seen: list[list[int]] = []

    def evaluate(plans: Sequence[Plan]) -> list[float]:
        seen.extend(dropped(plan) for plan in plans)
        costs = {6: math.nan, 7: 5.0, 5: 1.0, 4: 2.0, 8: 3.0}
        return [
            sum(costs.get(p, 4.0) for p in dropped(plan)) - 9 * ({5, 8} <= {*dropped(plan)})
            for plan in plans
        ]

    width = candidates(given, 0.1)
    rounds = list(greedy_removal(given, wholes(given)["base"], influence, evaluate, width))
    result = rounds[-1]
    assert rounds == [(5,), (5, 8), (5, 8, 4)]
    again = greedy_removal(given, wholes(given)["base"], influence, evaluate, width, rounds[0])
    assert list(again) == rounds[1:], "as if it had never been interrupted"
    tried = seen[: -2 * width]
    assert {len(cut) for cut in tried} == {1, 2, 3}
    assert len(tried) == 3 * width
    stages = drive(Starts(given, removal=result, cheapest=0.1), apart)
    last = {called(start): decode(given, start.genome) for start in stages[-1]}
    assert {name: dropped(plan) for name, plan in last.items()} == {
        "greedy removal on base": [4, 5, 8],
        "greedy removal on math": [4, 5, 8],
    }


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("k", [2, 7, 10, 19])
def test_greedy_removal_costs_four_evaluations_at_most(k: int, share: float) -> None:
    given = paper(20, k)
    tried: list[Plan] = []

    def evaluate(plans: Sequence[Plan]) -> list[float]:
        tried.extend(plans)
        return [0.0] * len(plans)

    for most in (4.0, 1.0):
        tried.clear()
        width = candidates(given, share, most)
        rounds = list(greedy_removal(given, wholes(given)["base"], [1.0] * 20, evaluate, width))
        assert len(rounds) in (0, k)
        assert len(tried) * max(share, 1 / 16) <= most


@pytest.mark.parametrize("room", [1.0, 3.0, 6.0, 12.0, 40.0])
@pytest.mark.parametrize("share", SHARES)
def test_a_small_budget_still_tries_the_best_window_and_removal(share: float, room: float) -> None:
    given = paper()
    influence = {"base": [abs(position - 15.0) for position in range(30)]}
    starts = Starts(given, influence, tuple(range(12, 19)), share, room)
    stages = drive(starts, apart)
    cost = sum(start.share for stage in stages for start in stage)
    assert cost <= max(room, 1) + 5, "what comes last is cut by the schedule"
    names = [called(start) for stage in stages for start in stage]
    first = next(name for name in names if name.startswith("window "))
    assert "L12..L18" in first, "windows of least influence come first"
    assert {"best window on base", "greedy removal on base"} <= set(names)


def test_untried_starts_are_reported() -> None:
    given = paper()
    starts = Starts(given, removal=range(12, 19), cheapest=0.25)
    tried = origins(drive(starts, apart))
    assert starts.untried(tried)["left_out"] == ()
    some = {item for item in tried if not isinstance(item, WindowCut | GreedyRemoval)}
    assert starts.untried(some)["left_out"] == ("24 of 24 windows", "greedy removal")
    of_math = BlockInfluenceCut(of=ModelAlone(model="math"))
    assert "block influence on code" in starts.untried({of_math})["left_out"]


def test_starts_outside_bounds_are_reported_separately() -> None:
    given = paper()
    starts = Starts(given, removal=range(12, 19), cheapest=0.25)
    tried = origins(drive(starts, apart))
    cuts = {item for item in tried if isinstance(item, WindowCut) and 12 in item.dropped}
    untried = starts.untried(tried - cuts, lambda genome: 12 not in dropped(decode(given, genome)))
    assert untried["left_out"] == ()
    assert [name for name in untried["beyond"] if "window" in name] == ["7 of 24 windows"]
    assert starts.untried(set())["beyond"] == ()


def test_a_failure_is_never_the_best() -> None:
    given = paper()

    def evaluate(plan: Plan) -> tuple[float, ...]:
        return (math.nan,) if "math" in names_of(plan) else apart(plan)

    stages = drive(Starts(given, cheapest=0.25), evaluate)
    names = [called(start) for stage in stages[2:] for start in stage]
    assert not any("math" in name for name in names)


def test_starts_end_if_all_plans_failed() -> None:
    stages = drive(Starts(paper(), cheapest=0.25), lambda plan: (math.nan, math.inf))
    assert sum(map(len, stages)) > 10


# ------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("share", [1.0, 0.25, 0.05])
def test_equal_trials_give_the_same_stage(share: float) -> None:
    given = paper()
    starts = Starts(given, cheapest=share)
    first = drive(starts, apart)
    for again in (drive(starts, apart), drive(Starts(given, cheapest=share), apart)):
        assert [*map(len, again)] == [*map(len, first)]
        for one, other in zip(chain(*first), chain(*again), strict=True):
            assert called(one) == called(other)
            assert same(one.genome, other.genome)


def test_only_the_order_of_losses_matters() -> None:
    given = paper()

    def several(shift: float, factor: float) -> Evaluate:
        return lambda plan: (factor * apart(plan)[0] + shift, sum(dropped(plan)) / factor)

    def said(stages: Sequence[Sequence[Start]]) -> list[list[int]]:
        return [dropped(decode(given, one.genome)) for stage in stages for one in stage]

    one, other = (drive(Starts(given, cheapest=0.1), several(*how)) for how in ((0, 1), (9, 7)))
    assert said(one) == said(other)
