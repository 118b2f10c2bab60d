"""Requirements of sizes: nothing beyond is asked for; where all is, the search doesn't begin."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.space_trials import opened
from gptailor.lang.parse import read_objective
from gptailor.plan.faults import PlanError
from gptailor.program.sources import Checked
from gptailor.searching.limits import Sizes, Within, measured_sizes, size_bounds
from gptailor.searching.run import schedule
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import RandomPlan
from gptailor.searching.run.schedule import Start
from gptailor.searching.run.trials import STARTS
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome, genome_to_json
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import allowed, sample
from gptailor.searching.strategies import strategy_of
from tests.searching.landscape import BASE, Drifting, search, setting
from tests.support.tiny import tiny_model
from tests.support.tiny_bytes import model

MANY = 256
LAYER = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24 + 2 * 16
ENDS = 2 * 64 * 16 + 16
CACHE = 2 * 2 * 4 * 4
"""A layer's bytes of a token in the KV cache."""

SPACES = {
    "counts": "drop any 1..3 of L0..L5",
    "maybe": "maybe drop L0..L4",
    "window": "drop window 1..4 of L1..L5",
    "both": "maybe drop L0..L1; drop window 1..2 of L3..L5",
    "again": "maybe drop L0..L1; maybe repeat window 1..2 of L3..L5",
    "models": "drop any 1..3 of L0..L5; L0..L5 from any of base, math by task_arithmetic(0.1..0.9)",
}
MOST = {"counts": 4, "maybe": 3, "window": 3, "both": 3, "again": 5, "models": 4}
"""So many layers are within."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed)
    return folder


def made(
    folder: Path, statements: str, *required: str, count: int = 6
) -> tuple[Space, Sizes, list[str]]:
    wanted = "; ".join(f"require {item}" for item in required)
    models = "".join(f'model {name} = "./{name}"\n' for name in ("base", "math"))
    text = f'tailor 1\n{models}{statements}\nsearch {{ minimize nll("a.txt"); {wanted} }}\n'
    plan, opened_models, _ = opened(gptailor.loads(text, folder=folder))
    space = space_of(plan, count)
    return space, Sizes(space, opened_models), list(required)


def within(folder: Path, statements: str, *required: str, count: int = 6) -> Within:
    space, sizes, _ = made(folder, statements, *required, count=count)
    assert space.plan.search is not None
    return Within(space, sizes, size_bounds(space.plan, space.plan.search.requires))


def layers(space: Space, genomes: Sequence[Genome], sizes: Sizes) -> list[int]:
    return [sizes.of_plan(decode(space, genome)).layers for genome in genomes]


def rows(genomes: Genome) -> list[Genome]:
    return [Genome(*(genes[n] for genes in genomes)) for n in range(len(genomes.bits))]


@pytest.mark.parametrize("name", SPACES)
def test_bounds_are_checked_for_many_genomes_together(name: str, folder: Path) -> None:
    most = MOST[name]
    result = within(folder, SPACES[name], f"parameters() <= {ENDS + most * LAYER}")
    drawn = sample(result.space.table, key_of(7), MANY)
    counts = layers(result.space, rows(drawn), result.sizes)
    inside = [count <= most for count in counts]
    assert True in inside
    assert False in inside
    assert allowed(result.space.table, drawn).tolist() == inside
    assert [result.holds(row) for row in rows(drawn)] == inside
    others = [result.or_other(one, key_of(n)) for n, one in enumerate(rows(drawn))]
    assert all(result.holds(item) for item in others)
    assert len({str(one) for one, ok in zip(others, inside, strict=True) if not ok}) > 1
    [least] = layers(result.space, [result.smallest], result.sizes)
    assert least == min(counts)


@pytest.mark.parametrize(
    ("statements", "most"),
    [
        ("maybe repeat window 3..8 of L10..L27", 33),
        ("maybe drop window 3..8 of L2..L27", 26),
    ],
)
def test_rare_windows_are_fitted(statements: str, most: int, tmp_path: Path) -> None:
    """No random sample of that size has what only one window has."""
    tiny_model("llama", tmp_path / "base", num_hidden_layers=30)
    tiny_model("llama", tmp_path / "math", num_hidden_layers=30)
    required = f"parameters() <= {ENDS + most * LAYER}"
    result = within(tmp_path, statements, required, count=30)
    drawn = sample(result.space.table, key_of(9), MANY)
    inside = [count <= most for count in layers(result.space, rows(drawn), result.sizes)]
    assert allowed(result.space.table, drawn).tolist() == inside
    assert [result.holds(row) for row in rows(drawn)] == inside


def test_sizes_near_a_bound_are_exact(folder: Path) -> None:
    """A part of a parameter beyond is beyond, which is less than sums are exact to."""
    result = within(folder, SPACES["counts"], f"parameters() <= {ENDS + 4 * LAYER - 0.001:.3f}")
    drawn = rows(sample(result.space.table, key_of(7), 64))
    counts = layers(result.space, drawn, result.sizes)
    assert [result.holds(item) for item in drawn] == [count < 4 for count in counts]


@pytest.mark.parametrize("strategy", ["surrogate", "random"])
def test_strategies_ask_for_plans_within_the_bound(strategy: str, folder: Path) -> None:
    result = within(folder, SPACES["models"], f"kv_cache() <= {4 * CACHE}")
    table, asked = result.space.table, strategy_of(strategy)
    state = asked.init(table, 64, key_of(0), 1)
    drawn = sample(table, key_of(1), 8)
    told = drawn, np.arange(8, dtype=np.float32)[:, None], np.ones(8, np.float32)
    for number in range(4):
        state = asked.tell(table, state, *told)
        population, _, state = asked.ask(table, state, key_of(number), np.ones(1))
        assert allowed(table, population).all()
        told = (
            population,
            np.ones((len(population.bits), 1), np.float32),
            np.ones(len(population.bits), np.float32),
        )


@pytest.mark.parametrize(
    ("required", "message", "least"),
    [
        ("parameters() <= 5000", "at most 5,000 parameters", f"{ENDS + 3 * LAYER:,}, in 3 layers"),
        ("parameters() <= 0.25 * base", "at most 3,444 parameters", "in 3 layers"),
        ("kv_cache() <= 0.4 * math", "at most 154 bytes a token", f"{3 * CACHE}, in 3 layers"),
        ("parameters() <= -1", "at most -1 parameters", "in 3 layers"),
    ],
)
def test_a_bound_below_the_smallest_plan_is_a_fault(
    required: str, message: str, least: str, folder: Path
) -> None:
    with pytest.raises(PlanError) as caught:
        within(folder, SPACES["counts"], required)
    [fault] = caught.value.faults
    assert fault.code == "P609"
    assert message in fault.message
    assert least in fault.help
    assert fault.span is not None


def test_models_with_larger_layers_are_distinguished(tmp_path: Path) -> None:
    """A layer of another kind has another size; what isn't a sum is counted."""
    config = {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}
    tiny_model("qwen3_moe", tmp_path / "base", **config)
    tiny_model("qwen3_moe", tmp_path / "math", seed=1, **config)
    statements = "L2..L4 from one of base, math; drop any 2 of L0..L5"
    space, sizes, _ = made(tmp_path, statements)
    drawn = rows(sample(space.table, key_of(0), 64))
    every = [sizes.of_plan(decode(space, item)).parameters for item in drawn]
    middle = sorted(set(every))[len(set(every)) // 2]
    result = within(tmp_path, statements, f"parameters() <= {middle}")
    assert len(set(every)) > 1
    assert allowed(result.space.table, sample(space.table, key_of(0), 64)).tolist() == [
        size <= middle for size in every
    ]


def test_the_bytes_of_a_gguf_file_are_counted_where_types_depend_on_layers(tmp_path: Path) -> None:
    """`q4_k_m` has more bits in some layers, by their positions among those that stay."""
    for name in ("base", "math"):
        long_rows = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
        model(tmp_path / name, layers=6, **long_rows)
    text = "drop any 1..3 of L0..L5"
    space, sizes, _ = made(tmp_path, text)
    drawn = rows(sample(space.table, key_of(7), 48))
    plans = [decode(space, item) for item in drawn]
    measure, _ = read_objective("bytes(gguf=q4_k_m)")
    every = [measured_sizes(Checked.of(plan, sizes.models), [measure])[0] for plan in plans]
    counts = [sizes.of_plan(plan).layers for plan in plans]
    file = gptailor.compile(plans[0], tmp_path / "out.gguf", quantize="q4_k_m").folder
    assert file.stat().st_size == every[0]
    three, bound, five = (every[counts.index(count)] for count in (3, 4, 5))
    assert bound - three != five - bound
    result = within(tmp_path, text, f"bytes(gguf=q4_k_m) <= {bound}")
    assert [result.holds(item) for item in drawn] == [count <= 4 for count in counts]
    assert all(result.holds(result.or_other(one, key_of(n))) for n, one in enumerate(drawn))
    with pytest.raises(PlanError) as caught:
        within(tmp_path, text, "bytes(gguf=q4_k_m) <= 1k")
    [fault] = caught.value.faults
    assert "at most 1,000 bytes as a GGUF file in q4_k_m" in fault.message
    assert f"the smallest has {min(every):,.0f}, in 3 layers" in fault.help


SLIDING, FULL = "sliding_attention", "full_attention"


def test_plans_that_llama_cpp_cannot_run_are_beyond_a_bound_of_a_gguf_file(
    tmp_path: Path,
) -> None:
    """Gemma 3 can't be a file if its layers slide without a period: that doesn't end a search."""
    kinds = [SLIDING, SLIDING, FULL] * 3
    for name in ("base", "math"):
        model(tmp_path / name, "gemma3_text", layers=9, layer_types=kinds)
    text = "drop any 1..3 of L3..L8"
    result = within(tmp_path, text, "bytes(gguf=q8_0) <= 1M", count=9)
    drawn = rows(sample(result.space.table, key_of(7), 24))
    run = []
    for item in drawn:
        kept = [kind for at, kind in enumerate(kinds) if at < 3 or not item.bits[at - 3]]
        by_period = [
            [FULL if i % p == p - 1 else SLIDING for i in range(len(kept))] for p in range(1, 10)
        ]
        run.append(kept in by_period)
    assert {*run} == {True, False}
    assert [result.holds(item) for item in drawn] == run
    assert allowed(result.space.table, sample(result.space.table, key_of(7), 24)).all()
    others = [result.or_other(item, key_of(n)) for n, item in enumerate(drawn)]
    assert all(result.holds(other) for other in others)
    least = result.sizes.of_plan(decode(result.space, result.smallest)).layers
    assert (least, result.holds(result.smallest)) == (6, True)


def test_a_plan_that_llama_cpp_cannot_run_has_a_reason(tmp_path: Path) -> None:
    for name in ("base", "math"):
        model(tmp_path / name, "gemma3_text", layers=6, layer_types=[SLIDING, SLIDING, FULL] * 2)
    with pytest.raises(PlanError) as caught:
        within(tmp_path, "drop any 1 of L0..L1", "bytes(gguf=q8_0) <= 1M")
    [fault] = caught.value.faults
    assert fault.code == "P609"
    assert "GGUF file in q8_0 and layers that llama.cpp can run" in fault.message
    assert "its sliding layers aren't periodic, as llama.cpp's 'gemma3' must: sFssF" in fault.help


def test_several_bounds_hold_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each limit alone, the smallest plan is beyond the other limit."""

    def counted(self: Within, genome: Genome, **_: bool) -> list[float]:
        ups = np.arange(1, 7)
        return [float(ups @ genome.bits), float(ups[::-1] @ genome.bits)]

    monkeypatch.setattr(Within, "_counted", counted)
    both = "drop any 3 of L0..L5"
    result = within(folder, both, "parameters() <= 11", "kv_cache() <= 11")
    assert result.holds(result.smallest)
    with pytest.raises(PlanError) as caught:
        within(folder, both, "parameters() <= 9", "kv_cache() <= 9")
    [fault] = caught.value.faults
    assert fault.code == "P609"
    assert "at most 9 parameters and at most 9 bytes a token" in fault.message


@pytest.mark.wrong_types
def test_starting_plans_beyond_are_left_out(folder: Path, tmp_path: Path) -> None:
    result = within(folder, SPACES["counts"], f"parameters() <= {ENDS + 4 * LAYER}")
    starts = [
        Start(RandomPlan(), row, 1.0) for row in rows(sample(result.space.table, key_of(3), 12))
    ]
    inside = [result.holds(start.genome) for start in starts]
    assert {*inside[:6]} == {*inside[6:]} == {True, False}
    heard: list[Start] = []

    class Stages:
        """Two stages, the second one after all results of the first."""

        def stages(self) -> schedule.Stages:
            heard[:] = yield starts[:6]
            yield starts[6:]

    chosen = setting(
        space=result.space,
        base=gptailor.loads(BASE),
        starts=Stages(),
        strategy=Drifting(shares=(1.0,) * 3),
        budget=Budget(40, 64, 64),
        within=result,
    )
    ledger = (done := search(tmp_path, chosen)).ledger
    done.run()
    asked = sorted((trial.request for trial in ledger.of(STARTS)), key=lambda one: one.key)
    assert [genome_to_json(request.genome) for request in asked] == [
        genome_to_json(start.genome) for start, ok in zip(starts, inside, strict=True) if ok
    ]
    assert [start.share for start in heard] == [float(ok) for ok in inside[:6]]
    assert [bool(np.isnan(start.losses).all()) for start in heard] == [not ok for ok in inside[:6]]
    assert all(result.holds(trial.request.genome) for trial in ledger.trials)


def test_other_requirements_are_no_bounds(folder: Path) -> None:
    space, _, _ = made(folder, SPACES["counts"], 'nll("a.txt") <= 2.0', "latency() <= base")
    assert space.plan.search is not None
    assert size_bounds(space.plan, space.plan.search.requires) == []
