"""Trials: the scores of `gptailor eval`, samples seen and held out, and what stays in memory."""

import gc
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import logging

import gptailor
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.scores import Failure, Outcomes, Race, Score
from gptailor.evaluation.space_trials import NOTHING_HELD, Trials, opened
from gptailor.lang.parse import read_objective
from gptailor.plan.events import OnEvent
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("base", "math", "code", "chat", "foreign")
SPACE = "drop any 2 of L1..L5; L0..L5 from any of math, code by task_arithmetic(0.0..1.0)"
CUTS = (
    "drop L2, L4",
    "L1 from math; drop L2, L4",
    "L1 from math; L3 from math, code by task_arithmetic(0.3); drop L2, L5",
    "L5 from code; drop L1, L2",
)
OBJECTIVES = (
    'nll("rows.jsonl")',
    'nll("text.txt")',
    'perplexity("pairs.jsonl")',
    'kl("rows.jsonl")',
    'kl("rows.jsonl", from=math)',
    'acceptance("rows.jsonl", from=math)',
    'multiple_choice("choices.jsonl")',
    'multiple_choice("choices.jsonl", metric="acc_norm")',
    'margin("choices.jsonl")',
    'generate("pairs.jsonl")',
)
ROWS = 24


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 24 samples each."""
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join("".join(chance.choices("abcdefgh", k=3)) for _ in range(count))

    def write(name: str, rows: Sequence[object]) -> None:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))

    write("rows.jsonl", [{"text": words(chance.randint(2, 8))} for _ in range(ROWS)])
    write(
        "pairs.jsonl", [{"context": words(4), "answer": chance.choice("ab")} for _ in range(ROWS)]
    )
    choices = [
        {"query": words(3), "choices": [words(1), words(2)], "gold": i % 2} for i in range(ROWS)
    ]
    write("choices.jsonl", choices)
    (folder / "text.txt").write_text(words(128 * ROWS // 4))
    return folder


Say = Callable[[str], Plan]


@pytest.fixture
def say(family: Path, texts: Path) -> Say:
    head = "".join(f'model {name} = "{family / name}"\n' for name in NAMES)
    return lambda text: gptailor.loads(f"tailor 1\n{head}{text}\n", folder=texts)


def trials_of(
    plan: Plan,
    *objectives: str,
    full: int | None = None,
    place: Placement | None = None,
    seed: int = 0,
) -> Trials:
    wishes = [read_objective(item, plan.models) for item in objectives or OBJECTIVES[:1]]
    bound, models, _ = opened(plan)
    assert plan.origin is not None
    return Trials(
        bound,
        models,
        objectives=wishes,
        folder=plan.origin.folder,
        fidelity=None if full is None else (1, full),
        meter=None if place is None else Meter(place),
        seed=seed,
    )


def outcomes(trials: Trials, plans: Sequence[Plan], samples: int, **how: bool) -> list[Outcomes]:
    results = dict(trials.run(plans, samples, stage=how.get("stage", "bare")))
    return [results[number] for number in range(len(plans))]


def judged(plan: Plan, objectives: Sequence[str], samples: int | None) -> Outcomes:
    assert plan.origin is not None
    result = evaluate(plan, objectives, samples=samples, folder=plan.origin.folder)
    return tuple(item.outcome for item in result.results)


def values(given: Outcomes) -> list[float]:
    assert all(isinstance(item, Score) for item in given)
    return [item.value for item in given if isinstance(item, Score)]


# ------------------------------------------------------------------------------------------ scores


def test_scores_are_those_of_eval(say: Say) -> None:
    trials = trials_of(say(SPACE), *OBJECTIVES, full=7)
    plans = [say(text) for text in CUTS]
    for plan, result in zip(plans, outcomes(trials, plans, 7), strict=True):
        assert result == judged(plan, OBJECTIVES, 7)
    assert trials.meter.evaluator.layers_saved > 0


def test_a_plan_has_the_same_scores_in_any_batch(say: Say) -> None:
    plans = [say(text) for text in CUTS]
    together = outcomes(trials_of(say(SPACE), full=9), plans, 9)
    apart = trials_of(say(SPACE), full=9)
    assert together == [outcomes(apart, [plan], 9)[0] for plan in reversed(plans)][::-1]


def test_a_bounded_memory_changes_no_score(say: Say) -> None:
    plans = [say(text) for text in (*CUTS, "embed from math; L1 from math; drop L3, L5")]
    space = say(f"{SPACE}; embed from one of base, math")
    free = outcomes(trials_of(space, *OBJECTIVES, full=5), plans, 5)
    place = Placement(memory=40_000)
    assert outcomes(trials_of(space, *OBJECTIVES, full=5, place=place), plans, 5) == free


def test_each_plan_is_measured_with_its_own_tokenizer(say: Say) -> None:
    space = say(f"{SPACE}; tokenizer from one of base, foreign")
    plans = [say("drop L2, L4"), say("tokenizer from foreign; drop L2, L4")]
    actual = outcomes(trials_of(space, full=6), plans, 6)
    assert actual[0] != actual[1]
    assert plans[0].origin is not None
    by_byte = evaluate(plans, OBJECTIVES[:1], samples=6, folder=plans[0].origin.folder)
    assert actual == [(result.outcome,) for result in by_byte.results]
    assert by_byte.by_byte


def test_a_trial_of_the_uncut_base_has_its_score(say: Say) -> None:
    base = say("")
    assert outcomes(trials_of(say(SPACE), full=6), [base], 6)[0] == judged(base, OBJECTIVES[:1], 6)


def test_bridges_are_kept_or_left_out(say: Say) -> None:
    text = 'drop L2, L4; bridge on "rows.jsonl" tokens 200 ridge 0.1'
    space = say(f'{SPACE}; bridge on "rows.jsonl" tokens 200 ridge 0.1')
    trials = trials_of(space, full=8)
    plan, bare = say(text), say("drop L2, L4")
    assert outcomes(trials, [plan, bare], 8) == [judged(bare, OBJECTIVES[:1], 8)] * 2
    (bridged,) = outcomes(trials, [plan], 8, stage="bridged")
    assert bridged == judged(plan, OBJECTIVES[:1], 8)
    assert bridged != judged(bare, OBJECTIVES[:1], 8)


def test_a_failed_plan_is_a_value_among_the_scores(say: Say) -> None:
    plans = [say("drop L2, L4"), say("L1 from math, code by linear(3e38, 3e38)"), say(CUTS[1])]
    result = outcomes(trials_of(say(SPACE), *OBJECTIVES[:2], full=5), plans, 5)
    assert all(isinstance(item, Failure) for item in result[1])
    assert [result[0], result[2]] == [judged(plans[i], OBJECTIVES[:2], 5) for i in (0, 2)]


# ----------------------------------------------------------------------------------------- samples


def test_a_low_fidelity_uses_the_first_samples_of_the_full_fidelity(say: Say) -> None:
    trials = trials_of(say(SPACE), *OBJECTIVES[:3], full=12)
    plan = say(CUTS[0])
    assert outcomes(trials, [plan], 3)[0] == judged(plan, OBJECTIVES[:3], 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_samples_follow_the_seen_samples(say: Say, seed: int) -> None:
    objectives = ('multiple_choice("choices.jsonl")', 'margin("choices.jsonl")')
    trials = trials_of(say(SPACE), *objectives, full=8, seed=seed)
    assert (trials.full, max(trials.helds), trials.helds) == (8, 8, (8, 8))
    plan = say(CUTS[0])
    [(_, held)] = trials.run([plan], None, stage="bare")
    (seen,) = outcomes(trials, [plan], 8)
    assert plan.origin is not None
    whole = evaluate(plan, objectives, samples=16, seed=seed, folder=plan.origin.folder)
    for i, one in enumerate(whole.results):
        assert isinstance(one.outcome, Score)
        parts = values((seen[i], held[i]))
        assert sum(parts) / 2 == pytest.approx(one.outcome.value)
    assert seen != held


def test_without_a_fidelity_a_quarter_of_the_smallest_file_is_held_out(say: Say) -> None:
    trials = trials_of(say(SPACE), *OBJECTIVES[:6])
    assert trials.full == 17
    assert trials.helds == (7, 6, 7, 7, 7, 7)


def test_one_objective_without_enough_samples_disables_held_out_samples(say: Say) -> None:
    assert trials_of(say(SPACE), *OBJECTIVES[:3], full=22).helds == (2, 1, 2)
    assert trials_of(say(SPACE), *OBJECTIVES[:3], full=23).helds == (0, 0, 0)


def test_missing_held_out_samples_are_reported(say: Say) -> None:
    trials = trials_of(say(SPACE), 'nll("rows.jsonl")', 'generate("pairs.jsonl")', full=ROWS)
    assert max(trials.helds) == 0
    assert list(trials.run([say(CUTS[0])], None, stage="bare")) == [(0, (NOTHING_HELD,) * 2)]


def test_a_fidelity_above_the_available_samples_is_refused(say: Say) -> None:
    with pytest.raises(PlanError, match=r"C815.*up to 25 samples, but 'nll\(.*' has 24 samples"):
        trials_of(say(SPACE), full=25)


def test_a_space_with_faults(say: Say) -> None:
    with pytest.raises(PlanError):
        opened(say("drop any 3 of L7..L9"))


def test_trials_take_objectives_from_the_search_block(say: Say) -> None:
    block = 'search {\n minimize nll("rows.jsonl")\n maximize generate("pairs.jsonl")\n}'
    bound, models, _ = opened(say(f"{SPACE}\n{block}"))
    assert bound.search is not None
    stated = [(objective, True) for objective in bound.search.objectives]
    assert bound.origin is not None
    folder = bound.origin.folder
    trials = Trials(bound, models, objectives=stated, folder=folder, fidelity=(2, 6))
    assert trials.objectives == (
        ('nll("rows.jsonl")', "minimize", "base"),
        ('generate("pairs.jsonl")', "maximize", "base"),
    )
    assert [path.name for path in trials.files] == ["rows.jsonl", "pairs.jsonl"]
    plan = say(CUTS[0])
    whole = (OBJECTIVES[0], OBJECTIVES[-1])
    assert outcomes(trials, [plan], 6)[0] == judged(plan, whole, 6)


# ------------------------------------------------------------------------------------------ memory


def tensor_bytes() -> int:
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def test_embeddings_heads_and_layers_of_past_trials_are_let_go(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = say(
        "embed from math, code by task_arithmetic(0.0..1.0)\n"
        "head from base, chat by task_arithmetic(0.0..1.0)\n"
        "L1 from math, code by task_arithmetic(0.0..1.0)"
    )

    def repairs(place: Placement, models: Mapping[str, Opened], on_event: OnEvent) -> Repairs:
        stitcher = Stitcher(models)
        stitcher.merged = 60_000
        return Repairs(stitcher)

    monkeypatch.setattr(Placement, "repairs", repairs)
    trials = trials_of(space, full=3)
    chance = random.Random(1)

    def six() -> list[Plan]:
        shares = [[round(chance.random(), 3) for _ in range(3)] for _ in range(6)]
        return [
            say(
                f"embed from math, code by task_arithmetic({a})\n"
                f"head from base, chat by task_arithmetic({b})\n"
                f"L1 from math, code by task_arithmetic({c})"
            )
            for a, b, c in shares
        ]

    used = []
    for _ in range(4):
        assert all(len(values(item)) == 1 for item in outcomes(trials, six(), 3))
        used.append(tensor_bytes())
    assert max(used[2:]) < used[1] + 40_000
    plan = six()[0]
    assert outcomes(trials, [plan], 3)[0] == judged(plan, OBJECTIVES[:1], 3)


# --------------------------------------------------------------------------------------- influence


def by_hooks(model: PreTrainedModel, texts: Sequence[tuple[int, ...]]) -> list[float]:
    """Block influence as ShortGPT has it, text by text."""
    results: list[list[float]] = [[] for _ in decoder_layers(model)]

    def note(index: int) -> Callable[..., None]:
        def hook(_: object, arguments: tuple[torch.Tensor, ...], after: object) -> None:
            made = after[0] if isinstance(after, tuple) else after
            assert isinstance(made, torch.Tensor)
            pairs = torch.cosine_similarity(arguments[0].double(), made.double(), dim=-1)
            results[index] += pairs.flatten().tolist()

        return hook

    for index, layer in enumerate(decoder_layers(model)):
        layer.register_forward_hook(note(index))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([text[:-1]]))
    return [1 - sum(item) / len(item) for item in results]


def test_block_influence_is_one_minus_the_mean_cosine(say: Say) -> None:
    trials = trials_of(say(SPACE), full=6)
    plan = say("L1 from math")
    (objective,) = trials.seen
    asked = objective.requests(6)
    wanted = by_hooks(gptailor.stitch(plan), [request.tokens for request in asked])
    assert trials.block_influence(plan, 6) == pytest.approx(wanted, rel=1e-4)


def test_block_influence_without_a_forward_objective(say: Say) -> None:
    trials = trials_of(say(SPACE), 'generate("pairs.jsonl")', full=6)
    assert len(trials.block_influence(say(""), 6)) == 6


# ---------------------------------------------------------------------------------- sizes and times


def test_trials_know_sizes_and_measure_each_shape_once(say: Say) -> None:
    trials = trials_of(say(SPACE), 'nll("rows.jsonl")', "parameters()", "latency()", full=4)
    received: list[dict[str, float]] = []
    trials.latencies.on_measured = lambda known: received.append(dict(known))
    plans = [say("drop L1"), say("drop L2"), say("drop L1..L2"), say("")]
    results = [values(item) for item in outcomes(trials, plans, 4)]
    sizes, times = [item[1] for item in results], [item[2] for item in results]
    assert sizes[0] == sizes[1] < sizes[3]
    assert sizes[3] - sizes[0] == sizes[0] - sizes[2]
    assert times[0] == times[1], "they are of one shape"
    assert len(set(times)) == len(received) == len(received[-1]) == 3
    alone = trials_of(say(SPACE), 'nll("rows.jsonl")', full=4)
    assert [item[0] for item in results] == [values(item)[0] for item in outcomes(alone, plans, 4)]
    later = trials_of(say(SPACE), 'nll("rows.jsonl")', "latency()", full=4)
    later.latencies.known |= received[-1]
    assert [values(item)[1] for item in outcomes(later, plans, 4)] == times


# ------------------------------------------------------------------------------------- no numbers


@pytest.mark.parametrize("race", [None, Race((), ())])
def test_a_model_with_nan_names_the_objective_the_tensor_and_its_file(
    family: Path, texts: Path, tmp_path: Path, race: Race | None
) -> None:
    shutil.copytree(family / "base", tmp_path / "base")
    file, name = tmp_path / "base" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(file)
    tensors[name][2, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    text = f'tailor 1\nmodel base = "{tmp_path / "base"}"\n'
    plan, sound = (gptailor.loads(text + cut, folder=texts) for cut in ("drop L2", "drop L1"))
    wished = ('nll("rows.jsonl")', 'perplexity("pairs.jsonl")')
    trials = trials_of(plan, *wished, full=5)
    results = dict(trials.run([plan, sound], 5, stage="bare", race=race))
    for objective, outcome in zip(wished, results[0], strict=True):
        assert isinstance(outcome, Failure)
        assert outcome.reason == "nan"
        assert outcome.message.startswith(f"{objective}: ")
        assert outcome.message.endswith(f" predictions are NaN; '{name}' in {file} contains NaN")
    assert all(isinstance(outcome, Score) for outcome in results[1])
    assert all(f"'{name}' in {file}" in str(outcome) for outcome in judged(plan, wished, 5))
