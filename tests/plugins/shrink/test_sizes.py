"""The candidates of a goal: their sizes from headers, and the cuts that rules and files allow."""

from pathlib import Path

import pytest

import gptailor
from gptailor.plugins.shrink.candidates import CutStep, Drafts, ShrinkCandidate
from gptailor.plugins.shrink.goal import PlanCost, ShrinkGoal
from gptailor.plugins.shrink.texts import ShrinkTexts
from gptailor.plugins.shrink.ways import ShrinkWay, vocabulary_sizes, ways_of
from tests.support.tiny import letters, tiny_model, write_rows
from tests.support.vocabularies import write_byte_level, write_pieces

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    write_byte_level(tiny_model("llama", folder / "base", vocab_size=400))
    gemma = tiny_model(
        "gemma3_text", folder / "gemma", layers=18, vocab_size=800, query_pre_attn_scalar=4
    )
    write_pieces(gemma)
    write_rows(folder / "t.jsonl", [{"text": letters(400, seed)} for seed in range(12)])
    return folder


def drafts_of(world: Path, name: str = "base") -> Drafts:
    head = f'tailor 1\nmodel base = "./{name}"'
    return Drafts(head, world, fit="t.jsonl", calibration="t.jsonl")


def way(drafts: Drafts, name: str) -> ShrinkWay:
    return next(way for way in ways_of(drafts, {}) if way.name == name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0"])
def test_the_size_of_a_candidate_is_that_of_its_file(
    world: Path, tmp_path: Path, kind: str, weighted: bool
) -> None:
    drafts = drafts_of(world)
    step = way(drafts, "vocabulary").least(lambda cut: cut.size <= 350)
    assert step is not None
    assert step.size <= 350
    candidate = ShrinkCandidate((step,), kind, weighted=weighted and kind == "Q5_0")
    cost = drafts.cost(candidate)
    matrix = world / "t.jsonl" if candidate.weighted else None
    plan = drafts.plan(candidate).model_copy(update={"gguf": ()})
    gptailor.compile(plan, tmp_path / "m.gguf", quantize=kind, imatrix=matrix)
    assert cost is not None
    assert cost.bytes == (tmp_path / "m.gguf").stat().st_size
    assert cost.is_gguf


def test_each_kind_of_cut_has_its_smallest_cut_for_a_goal(world: Path) -> None:
    drafts = drafts_of(world)
    whole = drafts.cost(ShrinkCandidate())
    assert whole is not None
    goal = ShrinkGoal(parameters=whole.parameters - 1)
    for each in ways_of(drafts, {}):

        def meets(cut: CutStep) -> bool:
            cost = drafts.cost(ShrinkCandidate((cut,)))
            return cost is not None and goal.excess(cost) <= 1

        step = each.least(meets)
        assert step is not None, each.name
        assert step.size == each.sizes[0], each.name
        assert each.least(lambda _: False) is None


def test_the_least_cut_is_the_one_between_too_large_and_small_enough(world: Path) -> None:
    each = way(drafts_of(world), "vocabulary")
    step = each.least(lambda cut: cut.size <= 321)
    assert step is not None
    assert step.size == max(size for size in each.sizes if size <= 321)


@pytest.mark.parametrize(
    ("own", "largest", "step"), [(400, 392, 8), (49_152, 48_128, 1024), (262_144, 261_120, 1024)]
)
def test_sizes_of_a_large_vocabulary_are_1024_tokens_apart(
    own: int, largest: int, step: int
) -> None:
    sizes = vocabulary_sizes(own)
    assert sizes[0] == largest
    assert sizes.step == -step
    assert sizes[-1] > own / 16


def test_a_window_is_the_legal_one_that_moves_states_least(world: Path) -> None:
    drafts = drafts_of(world)
    layers = next(w for w in ways_of(drafts, {(2, 1): 0.1, (3, 1): 0.3}) if w.name == "layers")
    step = layers.make(1)
    assert step is not None
    assert step.statements == ("drop L2", 'bridge on "t.jsonl"')


def test_windows_of_gemma_keep_full_attention_in_each_sixth_layer(world: Path) -> None:
    drafts = drafts_of(world, "gemma")
    assert drafts.no_gguf is None
    step = way(drafts, "layers").make(6)
    assert step is not None
    made = drafts.prepared((step,))
    assert made is not None
    kept = [slot.position for slot in made.resolved.kept]
    assert len(kept) == 12
    assert drafts.cost(ShrinkCandidate((step,), "Q8_0")) is not None
    illegal = CutStep("layers", 2, ("drop L2..L3",), "")
    assert drafts.cost(ShrinkCandidate((illegal,), "Q8_0")) is None
    assert "C306" in drafts.refusals["layers"]


def test_a_refused_kind_of_cut_has_a_reason(world: Path) -> None:
    drafts = drafts_of(world)
    step = CutStep("vocabulary", 10, ('vocabulary 10 on "t.jsonl"',), "10 tokens")
    assert drafts.prepared((step,)) is None
    assert "M241" in drafts.refusals["vocabulary"]


def test_a_goal_bounds_bytes_with_the_cache() -> None:
    cost = PlanCost(1000, 50, 2, is_gguf=True)
    assert ShrinkGoal(memory=9192).excess(cost) == 1
    assert ShrinkGoal(to=500).excess(cost) == 2
    assert ShrinkGoal(to=2000, parameters=25).excess(cost) == 2
    assert ShrinkGoal(faster=1.5).excess(cost, 1.5) == 1
    for wrong in ({}, {"faster": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            ShrinkGoal(**wrong)


def test_a_quarter_of_the_rows_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(letters(900, seed) for seed in range(60)))
    texts = ShrinkTexts.of([tmp_path / "a.txt"], 5000)
    words = "".join((tmp_path / "a.txt").read_text().split())
    rows = [*texts.fit, *texts.held]
    assert sum(len("".join(row.split())) for row in rows) == len(words)
    assert len(texts.held) == -(-len(rows) // 4)
    assert set(texts.calibration) < set(texts.fit)
    assert not set(texts.fit) & set(texts.held)
    assert texts == ShrinkTexts.of([tmp_path / "a.txt"], 5000)
