"""`lm_eval`, and our own rows, give lm-eval's own numbers."""

import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")

from lm_eval import evaluator, tasks
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gptailor.checkpoint.datasets import order
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.objectives import agree_on_direction, prepare_objective
from gptailor.evaluation.objectives.base import Forward, ObjectiveContext, ObjectiveError
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective
from gptailor.plugins.lm_eval.objective import likelihood
from tests.evaluation.objectives.test_objectives import World, beginning

Found = Callable[[str], dict[str, Any]]

ROWS = [
    {
        "query": f"after {n} comes ",
        "choices": [f"{n + 1}", "no such thing", "the end"],
        "gold": n * 7 % 3,
    }
    for n in range(12)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("harness"))
    made.write("many.jsonl", ROWS)
    made.write("many.json", ROWS)
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(made.folder / "many.json")},
            "cache_dir": str(made.folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{query.strip()}}",
    }
    choice = {
        **data,
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": m} for m in ("acc", "acc_norm")],
    }
    shots = {"fewshot_split": "test", "num_fewshot": 1}
    rolling = {
        **data,
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{query * 9}}",
        "doc_to_text": "",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }
    said = {
        **data,
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": [";", "4"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}, {"metric": "chrf"}],
    }
    next_ = {
        **data,
        "output_type": "loglikelihood",
        "doc_to_target": "{{choices[2]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    }
    kinds = {"choice": choice, "shots": {**choice, **shots}, "rolling": rolling, "next": next_}
    for name, task in {**kinds, "said": said}.items():
        path = made.folder / f"{name}.yaml"
        path.write_text(json.dumps({"task": f"tiny_{name}", **task}))
    return made


@pytest.fixture(scope="module")
def harness(world: World) -> HFLM:
    return HFLM(
        pretrained=world.models["math"],
        tokenizer=world.tokenizer,
        batch_size=4,
        max_length=128,
        device="cpu",
    )


@pytest.fixture(scope="module")
def found(world: World, harness: HFLM) -> Found:
    """Return lm-eval's own results of a task, each computed once."""
    return cache(lambda name: theirs(world, harness, name))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def theirs(world: World, harness: HFLM, name: str, **settings: Any) -> dict[str, Any]:
    """Return lm-eval's own results of a task."""
    manager = tasks.TaskManager(include_defaults=False)
    results = evaluator.simple_evaluate(
        model=harness,
        tasks=[str(world.folder / f"{name}.yaml")],
        task_manager=manager,
        bootstrap_iters=0,
        **settings,
    )
    return dict(results["results"][f"tiny_{name}"])


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("choice", "acc,none"),
        ("choice", "acc_norm,none"),
        ("shots", "acc_norm"),
        ("rolling", "word_perplexity,none"),
        ("rolling", "bits_per_byte,none"),
        ("next", "acc,none"),
        ("next", "perplexity,none"),
    ],
)
def test_a_task_of_likelihoods_has_the_harness_score(
    world: World, found: Found, name: str, metric: str
) -> None:
    objective = world.forward("lm_eval", task=f"{name}.yaml", metric=metric)
    score = world.score(objective, "math")
    assert score.value == pytest.approx(
        found(name)[f"{metric.removesuffix(',none')},none"], rel=1e-5
    )
    assert score.samples == len(ROWS)
    assert score.stderr > 0 or score.value in (0, 1)


def test_a_task_of_texts_has_the_harness_score(world: World, found: Found) -> None:
    for metric in ("exact_match", "chrf"):
        objective = world.prepare("lm_eval", task="said.yaml", metric=metric)
        assert isinstance(objective, Generative)
        score = objective.evaluate(world.models["math"])
        assert score.value == pytest.approx(found("said")[f"{metric},none"])


def test_the_samples_of_a_lower_fidelity_are_the_first_ones(world: World, harness: HFLM) -> None:
    whole = world.forward("lm_eval", task="choice.yaml", metric="acc_norm,none")
    few = world.forward("lm_eval", task="choice.yaml", samples=7, metric="acc_norm,none")
    assert (whole.size, few.size) == (len(ROWS), 7)
    least = list(few.work().requests)
    assert list(whole.work(7).requests) == least == list(whole.work().requests)[: len(least)]
    assert world.score(whole, "math", 7) == world.score(few, "math")
    chosen = order(len(ROWS), 0)[:7]
    result = theirs(world, harness, "choice", samples={"tiny_choice": chosen})
    assert world.score(few, "math").value == result["acc_norm,none"]
    other = world.forward("lm_eval", task="choice.yaml", samples=7, seed=1)
    assert list(other.work().requests) != least


def test_the_accuracy_equals_that_of_the_harness(world: World, found: Found) -> None:
    for metric in ("acc", "acc_norm"):
        objective = world.forward("multiple_choice", file="many.jsonl", metric=metric)
        score = world.score(objective, "math")
        assert score.value == found("choice")[f"{metric},none"]
        assert score.stderr == pytest.approx(
            world.score(world.forward("lm_eval", task="choice.yaml", metric=metric), "math").stderr
        )


@pytest.mark.parametrize("begins", [False, True])
def test_log_likelihoods_are_the_harness_own(world: World, begins: bool) -> None:
    tokenizer = beginning(world) if begins else world.tokenizer
    model = world.models["base"]
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=16, device="cpu")
    pairs = [
        ("a cat", " sat"),
        ("a cat ", "sat"),
        ("a\n", " b"),
        ("", "sat down"),
        ("<s>a cat", " sat"),
        ("a rather long beginning", " of a text"),
    ]
    wanted = harness.loglikelihood(
        [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)],
        disable_tqdm=True,
    )
    encoder = TokenEncoder(tokenizer, 16)
    work = Work([encoder.request(*pair) for pair in pairs], likelihood)
    for got, (log, greedy) in zip(world.run(model, work), wanted, strict=True):
        assert float(got[:, 0].sum()) == pytest.approx(log, rel=1e-5)
        assert bool(got[:, 1].all()) == greedy


# ------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"task": "choice.yaml", "metric": "f1"},
            "'tiny_choice' returns no metric 'f1': it returns",
        ),
        ({"task": "choice.yaml", "metric": "acc,first"}, "has no filter 'first': it has 'none'"),
        ({"task": "absent.yaml"}, "'absent.yaml': there is no such file"),
        ({"task": "broken.yaml"}, "can't load the task 'broken.yaml'"),
        ({"task": "lost.yaml"}, "can't load the task 'lost.yaml'"),
        ({"task": "random.yaml"}, "draws its answers at random"),
        ({"task": "endless.yaml"}, "makes 900 tokens, and the model takes 128 in all"),
    ],
)
def test_missing_data_is_reported_in_one_line(
    world: World, arguments: dict[str, str], message: str
) -> None:
    task = json.loads((world.folder / "said.yaml").read_text())
    (world.folder / "broken.yaml").write_text("task: [")
    data = {"test": str(world.folder / "absent.json")}
    kept = task["dataset_kwargs"]
    changed = {
        "lost": {"dataset_kwargs": {**kept, "data_files": data}},
        "random": {"generation_kwargs": {"do_sample": True}},
        "endless": {"generation_kwargs": {"max_gen_toks": 900}},
    }
    for name, change in changed.items():
        (world.folder / f"{name}.yaml").write_text(json.dumps({**task, **change}))
    with pytest.raises(ObjectiveError) as caught:
        world.prepare("lm_eval", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_gets_the_nearest_name(world: World) -> None:
    with pytest.raises(ObjectiveError, match="knows no task 'arc_eazy': did you mean 'arc_easy'"):
        world.prepare("lm_eval", task="arc_eazy")


def test_several_tasks_are_refused(world: World) -> None:
    with pytest.raises(ObjectiveError, match="'ai2_arc' is several tasks; name one of them"):
        world.prepare("lm_eval", task="ai2_arc")


def test_the_direction_is_the_metrics(world: World) -> None:
    for metric, better in (("acc", "maximize"), ("perplexity", "minimize")):
        prepared = world.prepare("lm_eval", task="next.yaml", metric=metric)
        assert prepared.direction == better
        assert prepared.name == f'lm_eval("next.yaml", metric="{metric}")'
    with pytest.raises(ObjectiveError, match="write 'minimize'"):
        agree_on_direction(Objective(direction="maximize", name="lm_eval"), prepared)


def test_without_lm_eval_the_package_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.plan.optional_packages.find_spec", lambda name: None)
    with pytest.raises(TailorError, match=r"pip install 'gptailor\[eval\]'"):
        world.prepare("lm_eval", task="choice.yaml")


def test_the_prepared_task_is_one_forward_pass(world: World) -> None:
    wish = Objective(direction="maximize", name="lm_eval", arguments={"task": "choice.yaml"})
    prepared = prepare_objective(
        wish, ObjectiveContext(encoder=TokenEncoder(world.tokenizer), folder=world.folder)
    )
    assert isinstance(prepared, Forward)
    assert len(prepared.work(2).requests) == 6
