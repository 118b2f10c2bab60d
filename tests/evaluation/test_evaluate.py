"""From targets and objectives to results: sharing, retained scores, failures."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import gptailor
from gptailor.evaluation.evaluate import EvaluationRun, evaluate
from gptailor.evaluation.meter import Placement, Samples
from gptailor.evaluation.result import EvaluationResult
from gptailor.evaluation.scores import (
    Failure,
    Result,
    Score,
    Speed,
    TargetSize,
    retained_score,
)
from gptailor.evaluation.speed import speeds
from gptailor.evaluation.targets import find_targets
from gptailor.lang.parse import read_objective
from gptailor.plan.events import Progress
from gptailor.plan.faults import PlanError
from gptailor.plan.output_size import OutputSize
from tests.evaluation.lent import loaded
from tests.support.events import progress
from tests.support.tiny import letters, tiny_model
from tests.support.tiny_adapter import Q, adapter, pair
from tests.support.tiny_bytes import model

pytestmark = pytest.mark.usefixtures("one_thread")

PLANS = {
    "cut": 'tailor 1\nmodel base = "./base"\ndrop L2\n',
    "more": 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nL3 from math\ndrop L2\n',
    "other": 'tailor 1\nmodel base = "./base"\nmodel math = "./base"\nL3 from math\n',
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=4)
    for name, text in PLANS.items():
        (folder / f"{name}.tailor").write_text(text)
    rows = [{"text": "a cat " * n} for n in range(1, 6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_gguf_file_has_the_kv_cache_of_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model(tmp_path / "base", layers=4)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1\n', folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out", dtype="bfloat16", gguf=["q4_0"]).folder
    file = tmp_path / "out-Q4_0.gguf"
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat sat"}\n' * 4)
    asked = ['nll("rows.jsonl")', "kv_cache()", "bytes(gguf=q4_0)", "bytes(gguf=q8_0)", "bytes()"]
    actual = evaluate([folder, file], asked, folder=tmp_path)
    caches = [subject.size.kv_cache for subject in actual.subjects]
    assert caches[0] == caches[1] == score_of(actual, 1).value == score_of(actual, 6).value
    size = file.stat().st_size
    assert (
        score_of(actual, 2).value == score_of(actual, 7).value == score_of(actual, 9).value == size
    )
    assert score_of(actual, 3).value == score_of(actual, 8).value > size, "of another type"
    assert {Path(result.target).resolve() for result in actual.bases} == {tmp_path / "base"}


def score_of(judgement: EvaluationResult, at: int = 0) -> Score:
    outcome = judgement.results[at].outcome
    assert isinstance(outcome, Score)
    return outcome


def judging(world: Path, *names: str, objective: str = 'nll("rows.jsonl")') -> EvaluationRun:
    targets = find_targets([world / name for name in names], {})
    wishes = [read_objective(objective)]
    return EvaluationRun(targets, wishes, Samples(world), Placement())


def test_targets_on_one_base_share_layers_and_first_hidden_states(world: Path) -> None:
    run = judging(world, "cut.tailor", "more.tailor")
    result = run.run(speed=False)
    assert not result.failed
    assert len(run.bases) == 1
    families = {run.meter.family(t.prepared.models) for t in run.targets}
    assert len(families) == 1
    layers_run = run.meter.evaluator.layers_run
    assert layers_run == 4 + 1 + 1, "the base's four, and what differs after L1"
    alone = evaluate(world / "more.tailor", 'nll("rows.jsonl")', folder=world)
    assert score_of(alone) == score_of(result, 1)


def test_a_compiled_folder_as_its_own_base_is_evaluated_alone(world: Path, tmp_path: Path) -> None:
    folder = gptailor.compile(world / "cut.tailor", tmp_path / "out").folder
    with_base = evaluate(folder, "parameters()")
    assert {Path(result.target).resolve() for result in with_base.bases} == {world / "base"}
    alone = evaluate(folder, "parameters()", models={"base": folder})
    assert (alone.results[0].outcome, alone.bases) == (with_base.results[0].outcome, ())


def test_memory_may_be_a_text(world: Path) -> None:
    one, other = (
        gptailor.evaluate(world / "base", "parameters()", memory=memory).records()
        for memory in (None, "1GB")
    )
    assert one == other
    with pytest.raises(ValueError, match="expected a size such as 5GB"):
        gptailor.evaluate(world / "base", "parameters()", memory="much")


def test_equal_plans_in_two_folders_learn_from_their_own_texts(world: Path, tmp_path: Path) -> None:
    plans = []
    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(letters(1500, seed=number))
        plan = f'tailor 1\nmodel base = "{world / "base"}"\ndrop L1\n'
        plans.append(tmp_path / name / "cut.tailor")
        plans[-1].write_text(plan + 'heal on "text.txt" tokens 512 rank 2\n')
    result = evaluate(plans, 'nll("rows.jsonl")', folder=world)
    alone = [evaluate(plan, 'nll("rows.jsonl")', folder=world) for plan in plans]
    assert score_of(result) == score_of(alone[0])
    assert score_of(result, 1) == score_of(alone[1]) != score_of(result)


def test_each_cut_plan_is_listed_with_its_uncut_plan(world: Path) -> None:
    merged = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nL3 from math\n'
    (world / "whole.tailor").write_text(merged)
    (world / "again.tailor").write_text(merged + "drop L1\n")
    targets = [world / name for name in ("cut.tailor", "more.tailor", "again.tailor")]
    actual = evaluate(targets, 'nll("rows.jsonl")', folder=world, uncut=True)
    whole = evaluate(world / "whole.tailor", 'nll("rows.jsonl")', folder=world)
    names = [result.target.removeprefix(f"{world}/") for result in actual.results]
    assert names == ["cut.tailor", "more.tailor", "more.tailor, uncut", "again.tailor"]
    assert score_of(actual, 2) == score_of(whole)


def test_a_name_for_another_model_is_not_shared(world: Path) -> None:
    run = judging(world, "more.tailor", "other.tailor")
    first, second = (run.meter.family(target.prepared.models) for target in run.targets)
    assert first != second
    result = run.run(speed=False)
    assert (
        score_of(result, 1)
        == evaluate(world / "base", 'nll("rows.jsonl")', folder=world).results[0].outcome
    )


def test_a_plan_object_and_a_file_are_the_same(world: Path) -> None:
    plan = gptailor.load(world / "cut.tailor")
    one, other = (
        gptailor.evaluate(target, 'nll("rows.jsonl")', folder=world)
        for target in (plan, world / "cut.tailor")
    )
    assert one.results[0].outcome == other.results[0].outcome


def test_kl_compares_with_the_model_that_is_named(world: Path) -> None:
    objectives = ['kl("rows.jsonl")', 'kl("rows.jsonl", from=math)']
    result = evaluate(world / "more.tailor", objectives, folder=world)
    from_base, from_math = score_of(result), score_of(result, 1)
    assert from_base.value > 0
    assert from_math.value > 0
    assert from_base != from_math
    assert [item.retained for item in result.results] == [None, None]


def test_a_model_without_a_plan_is_compared_only_with_a_stated_base(
    world: Path,
) -> None:
    kl, math_folder = 'kl("rows.jsonl")', world / "math"
    alone = evaluate(math_folder, kl, folder=world).results[0].outcome
    assert isinstance(alone, Failure)
    assert "is a model, not a plan" in alone.message
    assert "--model base=FOLDER" in alone.message
    named = evaluate(math_folder, kl, folder=world, models={"base": world / "base"})
    assert score_of(named).value > 0
    assert [Path(base.target).resolve() for base in named.bases] == [(world / "base").resolve()]
    whole = gptailor.loads('tailor 1\nmodel base = "./base"\nmodel m = "./math"\nwhole from m\n',
                           folder=world)  # fmt: skip
    assert score_of(named) == score_of(evaluate(whole, kl, folder=world))
    own = evaluate(world / "base", kl, folder=world, models={"base": world / "base"})
    assert isinstance(own.results[0].outcome, Failure)


def test_a_model_without_a_plan_is_compared_with_the_only_base_of_the_plans(world: Path) -> None:
    wanted = ['nll("rows.jsonl")', 'kl("rows.jsonl")']
    result = evaluate([world / "cut.tailor", world / "math", world / "base"], wanted, folder=world)
    by_name = {(Path(item.target).name, item.objective[:2]): item for item in result.results}
    assert by_name["math", "nl"].retained is not None
    named = evaluate(world / "math", wanted, folder=world, models={"base": world / "base"})
    assert by_name["math", "kl"].outcome == named.results[1].outcome
    assert by_name["base", "kl"].outcome == Score(0.0, 0.0, 5), "the others' base is itself"
    assert not result.bases


def compiled_on(world: Path, folder: Path) -> Path:
    """Write a compiled base with its own base in `world`, and a plan that cuts it."""
    gptailor.compile(world / "more.tailor", folder / "base")
    (folder / "short.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    gptailor.compile(folder / "short.tailor", folder / "short")
    (folder / "link").symlink_to("base")
    return folder


def test_a_base_that_is_a_target_is_evaluated_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compiled_on(world, tmp_path))
    events: list[Progress] = []
    wanted = [f'{name}("{world / "rows.jsonl"}")' for name in ("nll", "kl")]
    for targets in (["base", "short"], ["short.tailor", "base"]):
        events.clear()
        result = evaluate(targets, wanted, on_event=progress("evaluating", events.append))
        assert not result.bases
        assert [row.target for row in result.results] == [name for name in targets for _ in wanted]
        assert {row.against for row in result.results if row.target != "base"} >= {"base"}
        assert {row.against for row in result.results if row.target == "base"} == {""}
        assert events[-1].total == 2, "one forward pass for each target"
    alone = evaluate(["base"], wanted)
    assert [Path(row.target).name for row in alone.bases] == ["base"] * 2, "the base of the base"
    assert score_of(alone) == score_of(result, 2)
    both = evaluate(["base", "short", world / "base"], wanted)
    assert not both.bases
    assert both.results[0].against == str(world / "base"), "a given base of a base is compared"


def test_a_model_and_a_folder_without_its_base_are_evaluated_together(
    world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "base", tmp_path / "base")
    (tmp_path / "cut.tailor").write_text(PLANS["cut"])
    gptailor.compile(gptailor.load(tmp_path / "cut.tailor"), tmp_path / "orphan")
    shutil.rmtree(tmp_path / "base")
    orphan, alone = judging(world, str(tmp_path / "orphan"), "math").run(speed=False).results
    assert orphan.unpaired == "its base is missing"
    assert (alone.unpaired, alone.difference) == ("", None)


def test_one_model_under_several_names_is_one_target(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compiled_on(world, tmp_path))
    (tmp_path / "plain.tailor").write_text('tailor 1\nmodel base = "./base"\n')
    names = ["link", "./base", "base", "short", str(tmp_path / "base"), "plain.tailor"]
    nll = f'nll("{world / "rows.jsonl"}")'
    result = evaluate(names, nll, against="base")
    assert [row.target for row in result.results] == ["link", "short"]
    assert result.results[1].against == "link"
    assert not result.bases


def test_equal_weights_with_another_configuration_are_another_model(
    world: Path, tmp_path: Path
) -> None:
    variant = tmp_path / "variant"
    shutil.copytree(world / "base", variant, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in (world / "base").glob("*.safetensors"):
        (variant / file.name).symlink_to(file)
    settings = json.loads((variant / "config.json").read_text())
    settings["rms_norm_eps"] = 1.0
    (variant / "config.json").write_text(json.dumps(settings))
    result = evaluate([world / "base", variant], 'nll("rows.jsonl")', folder=world)
    alone = evaluate(variant, 'nll("rows.jsonl")', folder=world)
    assert score_of(result) != score_of(result, 1) == score_of(alone)


def test_tokenizers_with_equal_behaviour_are_equal(world: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(world / "math", tuned)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "a trainer's"
    tokenizer.save_pretrained(tuned)
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all((tuned / n).read_bytes() != (world / "math" / n).read_bytes() for n in names)

    def held() -> Result:
        [_, result] = evaluate(
            [world / "cut.tailor", tuned], 'nll("rows.jsonl")', folder=world
        ).results
        return result

    result = held()
    assert result.difference is not None
    assert not result.unpaired
    settings = json.loads((tuned / names[1]).read_text()) | {"eos_token": "a"}
    (tuned / names[1]).write_text(json.dumps(settings))
    tokens = json.loads((tuned / names[0]).read_text()) | {"normalizer": None}
    (tuned / names[0]).write_text(json.dumps(tokens))
    result = held()
    assert result.difference is None
    assert "its tokenizer is not the base's" in result.unpaired
    assert "normalizer" in result.unpaired
    assert "special tokens" in result.unpaired
    assert "vocabulary" not in result.unpaired


def test_bases_and_references_that_are_adapters(world: Path, tmp_path: Path) -> None:
    tensors = {name: torch.full_like(one, 0.1) for name, one in pair(Q).items()}
    adapter(tmp_path / "a", tensors)
    models = f'model plain = "{world / "base"}"\nmodel base = plain + "{tmp_path / "a"}"\n'
    swapped = f'model base = "{world / "base"}"\nmodel tuned = base + "{tmp_path / "a"}"\n'
    objectives = ['kl("rows.jsonl")', 'kl("rows.jsonl", from={})']
    for head, cut, other in ((models, "drop L2", "plain"), (swapped, "L0 from tuned", "tuned")):
        plan = gptailor.loads(f"tailor 1\n{head}{cut}\n", folder=world)
        wanted = [item.format(other) for item in objectives]
        from_base, from_other = (
            score_of(evaluate(plan, wanted, folder=world), at) for at in (0, 1)
        )
        assert from_base.value > 1e-6
        assert (from_other.value > 1e-6) == (other == "plain")


def test_another_folder_for_a_name(world: Path) -> None:
    mine = evaluate(
        world / "cut.tailor", 'nll("rows.jsonl")', folder=world, models={"base": world / "math"}
    )
    assert score_of(mine) != score_of(
        evaluate(world / "cut.tailor", 'nll("rows.jsonl")', folder=world)
    )
    models = "".join(f'model {name} = "./{name}"\n' for name in ("base", "math"))
    (world / "named.tailor").write_text(f"tailor 1\n{models}L1 from math\n")
    objective = 'kl("rows.jsonl", from=math)'
    own, other = (
        score_of(evaluate(world / "named.tailor", objective, folder=world, models=folders)).value
        for folders in ({}, {"math": world / "base"})
    )
    assert own > 1e-6 > other, "the model that is compared with is that of the other folder"
    with pytest.raises(PlanError, match="no target has a model 'code'"):
        evaluate(world / "cut.tailor", 'nll("rows.jsonl")', folder=world, models={"code": world})


def test_progress_counts_to_the_end(world: Path) -> None:
    events: list[Progress] = []
    evaluate(
        [world / "cut.tailor", world / "base"],
        'nll("rows.jsonl")',
        folder=world,
        speed=True,
        on_event=progress("evaluating", events.append),
    )
    assert [event.done for event in events] == list(range(5))
    assert {event.total for event in events} == {4}


def test_nan_weights_of_a_model_are_a_failure_of_that_model_alone(
    world: Path, tmp_path: Path
) -> None:
    folder = tiny_model("llama", tmp_path / "broken", layers=2)
    model = loaded("llama", tmp_path / "again", num_hidden_layers=2)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(folder)
    result = evaluate([folder, world / "base"], 'nll("rows.jsonl")', folder=world)
    broken, base = result.results
    assert isinstance(broken.outcome, Failure)
    assert broken.outcome.reason == "nan"
    assert isinstance(base.outcome, Score)
    assert result.failed
    record = json.loads(result.to_json())["results"][0]
    assert (record["score"], record["failure"]["reason"]) == (None, "nan")


@pytest.mark.parametrize(
    ("mine", "base", "direction", "share"),
    [
        (0.4, 0.5, "maximize", 0.8),
        (2.5, 2.0, "minimize", 0.8),
        (0.0, 0.5, "maximize", 0.0),
        (-0.1, 0.5, "maximize", None),
        (0.1, -0.5, "maximize", None),
        (0.1, 0.0, "minimize", None),
        (0.0, 2.0, "minimize", None),
        (math.inf, 2.0, "minimize", None),
    ],
)
def test_the_retained_share_of_a_score(
    mine: float, base: float, direction: str, share: float | None
) -> None:
    result = retained_score(Score(mine, 0.1, 4), Score(base, 0.1, 4), direction)
    assert result == (None if share is None else pytest.approx(share))


def test_a_failure_has_no_retained_share() -> None:
    score, failed = Score(1.0, 0.1, 2), Failure("nan", "NaN")
    assert retained_score(score, failed, "maximize") is None
    assert retained_score(failed, score, "maximize") is None
    assert retained_score(score, None, "maximize") is None


def test_json_has_no_infinity() -> None:
    result = Result("a", 'nll("b")', "minimize", Score(1.0, math.inf, 1))
    subject = TargetSize("a", OutputSize(10, 40, 4, 2), Speed(1.0, 2.0))
    record = json.loads(EvaluationResult((result,), (subject,)).to_json())
    assert record["results"][0]["stderr"] is None
    assert record["targets"][0]["speed"] == {"prefill": 1.0, "decoding": 2.0}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_speeds_of_a_model_and_its_base(family: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path / "model")
    mine, base = speeds(model, model, rounds=1)
    assert base is not None
    assert min(mine.prefill, mine.decoding, base.prefill, base.decoding) > 0
    assert len(speeds(model, rounds=1)) == 1


# ---------------------------------------------------------------------------------- sizes and times


def test_sizes_are_counted_and_need_no_samples(world: Path) -> None:
    result = evaluate(world / "cut.tailor", ["parameters()", "kv_cache()"], folder=world)
    heads, width, both, bytes_of_float = 2, 4, 2, 4
    size = gptailor.stitch(gptailor.load(world / "cut.tailor")).num_parameters()
    wanted = [(size, 0.0, 0), (3 * heads * width * both * bytes_of_float, 0.0, 0)]
    outcomes = [item.outcome for item in result.results]
    assert [(o.value, o.stderr, o.samples) for o in outcomes if isinstance(o, Score)] == wanted
    [whole, cache] = result.bases
    assert isinstance(whole.outcome, Score)
    assert result.results[0].retained == size / whole.outcome.value
    assert cache.outcome == Score(float(4 * heads * width * both * bytes_of_float), 0.0, 0)
    assert result.results[1].retained == 3 / 4


def test_latency_is_held_to_the_base_of_the_same_rounds(world: Path) -> None:
    [result] = evaluate(world / "cut.tailor", ["latency()"], folder=world, speed=True).results
    again = evaluate(world / "cut.tailor", ["latency()"], folder=world, speed=True)
    [target] = again.subjects
    assert target.speed is not None
    assert target.base_speed is not None
    assert isinstance(outcome := again.results[0].outcome, Score)
    assert outcome.value == pytest.approx(1 / target.speed.decoding)
    ratio = target.base_speed.decoding / target.speed.decoding
    assert again.results[0].retained == pytest.approx(ratio)
    assert result.retained != again.results[0].retained  # it was measured


def test_sizes_and_objectives_are_evaluated_together(world: Path) -> None:
    wishes = ["parameters()", 'nll("rows.jsonl")']
    result = evaluate([world / "cut.tailor", world / "base"], wishes, folder=world)
    [alone] = evaluate(world / "cut.tailor", wishes[1], folder=world).results
    assert [item.objective for item in result.results] == wishes * 2
    assert result.results[1].outcome == alone.outcome
