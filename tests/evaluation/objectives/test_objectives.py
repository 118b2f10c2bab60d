"""Objectives: each measures its quantity, on samples that lower and higher fidelities share."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.objectives import PREPARE, agree_on_direction, prepare_objective
from gptailor.evaluation.objectives.base import (
    Forward,
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
)
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.kl import Compare, compact, divergence, grouped, overlap
from gptailor.evaluation.objectives.likelihood import Choices, PerToken, piece_bytes
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.evaluation.scores import Score
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES, ObjectiveSpec
from tests.support.tiny import tiny_model

POSITIONS = 128


class World:
    """Two tiny models, their tokenizer, and a folder of files for each objective."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, PreTrainedModel] = {}
        for seed, name in enumerate(("base", "math")):
            path = tiny_model("llama", folder / name, seed=seed, layers=2)
            self.models[name] = AutoModelForCausalLM.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        (folder / "long.txt").write_text("the cat sat on the mat, " * 40)
        self.write("rows.jsonl", [{"text": "a cat " * n} for n in range(1, 9)])
        self.write("talk.jsonl", [{"prompt": f"{n} and", "response": "so on"} for n in range(9)])
        answers = [{"context": f"{n}, then ", "answer": str(n + 1)} for n in range(9)]
        self.write("answers.jsonl", answers)
        questions = [
            {"query": f"after {n}:", "choices": [str(n + 1), "no", "a thing"], "gold": n % 3}
            for n in range(9)
        ]
        self.write("questions.jsonl", questions)

    def write(self, name: str, rows: Sequence[object]) -> Path:
        path = self.folder / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    def prepare(
        self, name: str, samples: int | None = None, seed: int = 0, **arguments: str
    ) -> PreparedObjective:
        wish = Objective(
            direction=OBJECTIVES[name].direction or "maximize", name=name, arguments=arguments
        )
        return prepare_objective(
            wish,
            ObjectiveContext(
                encoder=TokenEncoder(self.tokenizer, POSITIONS),
                folder=self.folder,
                samples=samples,
                seed=seed,
                reference=lambda model, work: self.run(self.models[model], work),
            ),
        )

    def forward(
        self, name: str, samples: int | None = None, seed: int = 0, **arguments: str
    ) -> Forward:
        prepared = self.prepare(name, samples, seed, **arguments)
        assert isinstance(prepared, Forward)
        return prepared

    def run(self, model: PreTrainedModel, work: Work) -> list[Tensor]:
        """Each request by itself, with the whole logits."""
        results = []
        number = 0
        for request in work.requests:
            with torch.no_grad():
                logits = model(torch.tensor([request.tokens])).logits[0].float()
            rows = torch.arange(number, number + request.predicted)
            targets = torch.tensor(request.tokens[request.first :])
            results.append(work.measure(logits[request.first - 1 : -1], targets, rows))
            number += request.predicted
        return results

    def score(self, objective: Forward, model: str, samples: int | None = None) -> Score:
        return objective.score(self.run(self.models[model], objective.work(samples)))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    logging.disable_progress_bar()
    return World(tmp_path_factory.mktemp("objectives"))


FILES = {
    "nll": "rows.jsonl",
    "perplexity": "talk.jsonl",
    "kl": "rows.jsonl",
    "acceptance": "rows.jsonl",
    "multiple_choice": "questions.jsonl",
    "margin": "questions.jsonl",
    "generate": "answers.jsonl",
}


# -------------------------------------------------------------------------------- every objective


def test_every_objective_of_the_registry_has_a_prepare_function() -> None:
    of_plan = {"parameters", "bytes", "kv_cache", "latency"}
    assert set(PREPARE) == OBJECTIVES.own == {*FILES, *of_plan}


@pytest.mark.wrong_types
def test_an_objective_outside_of_the_core_prepares_its_samples(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.prepare("nll", file=FILES["nll"])
    spec = ObjectiveSpec("own", "minimize", prepare=lambda wish, context: (made, wish, context))
    monkeypatch.setitem(OBJECTIVES, "own", spec)
    prepared, wish, context = world.prepare("own")
    assert (prepared, wish.name, context.folder) == (made, "own", world.folder)


@pytest.mark.parametrize("name", FILES)
def test_an_objective_keeps_its_contract(world: World, name: str) -> None:
    whole = world.prepare(name, file=FILES[name])
    assert whole.name == f'{name}("{FILES[name]}")'
    assert whole.direction == OBJECTIVES[name].direction
    assert whole.normalise == ("spread" if name == "kl" else "base")
    assert whole.size >= 8
    few = world.prepare(name, samples=3, file=FILES[name])
    assert few.size == 3
    if isinstance(whole, Forward):
        assert isinstance(few, Forward)
        least = list(few.work().requests)
        assert list(whole.work(3).requests) == least == list(few.work(99).requests)
        assert list(whole.work().requests)[: len(least)] == least
        scores = [world.score(whole, "math", 3), world.score(few, "math")]
    else:
        assert isinstance(whole, Generative)
        assert isinstance(few, Generative)
        scores = [whole.evaluate(world.models["math"], 3), few.evaluate(world.models["math"])]
    assert scores[0] == scores[1]
    assert scores[0].samples == 3
    assert math.isfinite(scores[0].value)
    assert 0 <= scores[0].stderr < math.inf


@pytest.mark.parametrize("name", [n for n in FILES if n != "generate"])
def test_the_seed_draws_the_samples(world: World, name: str) -> None:
    one, same, other = (world.forward(name, 3, seed, file=FILES[name]) for seed in (1, 1, 2))
    assert list(one.work().requests) == list(same.work().requests) != list(other.work().requests)


# ------------------------------------------------------------------------------------------ text


def test_nll_is_the_mean_over_tokens(world: World) -> None:
    objective = world.forward("nll", file="rows.jsonl")
    sums, counts = [], []
    for request in objective.work().requests:
        ids = torch.tensor([request.tokens])
        with torch.no_grad():
            loss = world.models["base"](ids, labels=ids).loss
        counts.append(len(request.tokens) - 1)
        sums.append(float(loss) * counts[-1])
    score = world.score(objective, "base")
    assert score.value == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    gaps = [(s - score.value * c) for s, c in zip(sums, counts, strict=True)]
    error = math.sqrt(8 / 7 * sum(gap * gap for gap in gaps)) / sum(counts)
    assert score.stderr == pytest.approx(error, rel=1e-4)
    assert score.samples == 8


def test_perplexity_is_the_exponential_of_nll(world: World) -> None:
    nats = world.score(world.forward("nll", file="rows.jsonl"), "base")
    score = world.score(world.forward("perplexity", file="rows.jsonl"), "base")
    assert score.value == math.exp(nats.value)
    assert score.stderr == score.value * nats.stderr


def test_one_sample_has_no_error(world: World) -> None:
    assert world.score(world.forward("nll", file="rows.jsonl"), "base", 1).stderr == math.inf


def test_text_is_cut_into_whole_windows(world: World) -> None:
    objective = world.forward("nll", file="long.txt")
    assert isinstance(objective, PerToken)
    windows = {request.tokens for request in objective.samples}
    ids = world.tokenizer.encode("the cat sat on the mat, " * 40)
    whole = len(ids) // POSITIONS
    assert len(ids) % POSITIONS
    assert windows == {tuple(ids[i * POSITIONS : (i + 1) * POSITIONS]) for i in range(whole)}
    assert {request.first for request in objective.samples} == {1}


def test_a_row_that_is_longer_is_several_windows(world: World) -> None:
    world.write("wide.jsonl", [{"text": "a" * (POSITIONS + 5)}, {"text": "b" * (POSITIONS + 1)}])
    objective = world.forward("nll", file="wide.jsonl")
    assert sorted(len(request.tokens) for request in objective.work().requests) == [5, 128, 128]


def test_a_window_begins_as_the_tokenizer_begins_a_text(world: World) -> None:
    tokenizer = beginning(world)
    objective = prepare_objective(
        Objective(direction="minimize", name="nll", arguments={"file": "long.txt"}),
        ObjectiveContext(encoder=TokenEncoder(tokenizer, POSITIONS), folder=world.folder),
    )
    assert isinstance(objective, PerToken)
    assert {request.tokens[0] for request in objective.samples} == {1}
    assert {len(request.tokens) for request in objective.samples} == {POSITIONS}


def test_only_the_response_counts(world: World) -> None:
    objective = world.forward("nll", file="talk.jsonl")
    texts = {
        (
            world.tokenizer.decode(r.tokens[: r.first]),
            world.tokenizer.decode(r.tokens[r.first :]),
        )
        for r in objective.work().requests
    }
    assert texts == {(f"{n} and", " so on") for n in range(9)}


@pytest.mark.parametrize(
    ("rows", "message", "remedy"),
    [
        ([{"text": "ab"}, {"text": "a"}], "2: the text has 1 tokens, too few to predict one",
         "give a longer text"),
        ([{"prompt": "a", "response": "b" * 200}], "1: the answer has 201 tokens, more than the "
         "model's 128", 'shorten the row, or write it as {"text": "…"}, which is split'),
    ],
)  # fmt: skip
def test_a_row_without_a_prediction_is_refused(
    world: World, rows: list[object], message: str, remedy: str
) -> None:
    path = world.write("bad.jsonl", rows)
    with pytest.raises(CalibrationError) as caught:
        world.prepare("nll", file="bad.jsonl")
    assert caught.value.code == "C805"
    assert message in f"{caught.value.line}: {caught.value.message}"
    assert caught.value.help == remedy
    assert str(path) in str(caught.value)


def test_a_text_shorter_than_a_window_is_refused(world: World) -> None:
    (world.folder / "short.txt").write_text("a cat")
    with pytest.raises(CalibrationError, match="has 5 tokens, fewer than the window of 128"):
        world.prepare("nll", file="short.txt")


# ------------------------------------------------------------------------------------------ encoder


def beginning(world: World) -> AutoTokenizer:
    """The tokenizer, made to begin each text with `<s>`."""
    path = world.folder / "beginning"
    if not path.exists():
        world.tokenizer.save_pretrained(path)
        settings = json.loads((path / "tokenizer.json").read_text())
        single = [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        settings["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }
        (path / "tokenizer.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(
    ("context", "continuation", "split"),
    [
        ("ab", " c", ("ab", " c")),
        ("ab ", "c", ("ab", " c")),
        ("ab \n", "c", ("ab", " \nc")),
        ("", "c", ("<s>", "c")),
        (" ", "c", ("<s>", " c")),
    ],
)
def test_blanks_at_the_encoder_belong_to_the_continuation(
    world: World, context: str, continuation: str, split: tuple[str, str]
) -> None:
    request = TokenEncoder(world.tokenizer).request(context, continuation)
    before, after = request.tokens[: request.first], request.tokens[request.first :]
    assert (world.tokenizer.decode(before), world.tokenizer.decode(after)) == split


def test_special_tokens_stand_once(world: World) -> None:
    encoder = TokenEncoder(beginning(world))
    assert encoder.opening == (1,)
    assert encoder.request("a", " b").tokens == (1, *encoder.plain("a b"))
    assert encoder.request("<s>a", " b").tokens == (1, *encoder.plain("a b"))
    assert encoder.request("", "b").tokens == (1, *encoder.plain("b"))


def test_a_long_context_loses_its_beginning(world: World) -> None:
    request = TokenEncoder(world.tokenizer, 4).request("abcdef", "gh")
    assert world.tokenizer.decode(request.tokens) == "defgh"  # the last is only predicted
    assert request.first == 3


# -------------------------------------------------------------------------------------------- kl


def test_the_reference_is_at_no_distance_from_itself(world: World) -> None:
    for file in ("rows.jsonl", "talk.jsonl"):
        score = world.score(world.forward("kl", file=file), "base")
        assert (score.value, score.stderr) == (0, 0)
    other = world.forward("kl", file="rows.jsonl", **{"from": "math"})
    assert world.score(other, "math").value == 0
    assert world.score(other, "base").value > 0.01
    assert other.name == 'kl("rows.jsonl", from=math)'


def test_kl_is_the_divergence_of_the_whole_distributions(world: World) -> None:
    objective = world.forward("kl", file="rows.jsonl")
    total, count = 0.0, 0
    for request in objective.work().requests:
        ids = torch.tensor([request.tokens[:-1]])
        with torch.no_grad():
            p, q = (world.models[n](ids).logits.double().log_softmax(-1) for n in ("base", "math"))
        total += float((p.exp() * (p - q)).sum())
        count += ids.numel()
    assert world.score(objective, "math").value == pytest.approx(total / count, rel=1e-5)


def test_kl_runs_the_reference_once(world: World) -> None:
    asked = []

    def reference(model: str, work: Work) -> list[Tensor]:
        asked.append(model)
        return world.run(world.models[model], work)

    objective = prepare_objective(
        Objective(direction="minimize", name="kl", arguments={"file": "rows.jsonl"}),
        ObjectiveContext(
            encoder=TokenEncoder(world.tokenizer), folder=world.folder, reference=reference
        ),
    )
    assert isinstance(objective, Forward)
    assert not asked
    for samples in (2, 4, 4):
        world.score(objective, "math", samples)
    assert asked == ["base"]


def test_kl_refuses_another_vocabulary(world: World) -> None:
    work = world.forward("kl", file="rows.jsonl").work(1)
    rows = torch.zeros(1).long()
    with pytest.raises(ObjectiveError, match="reference has 64 tokens, the plan's 80"):
        work.measure(torch.zeros(1, 80), torch.zeros(1).long(), rows)


def test_kl_needs_a_reference(world: World) -> None:
    wish = Objective(direction="minimize", name="kl", arguments={"file": "rows.jsonl"})
    with pytest.raises(ObjectiveError, match="needs a plan, to compare"):
        prepare_objective(
            wish, ObjectiveContext(encoder=TokenEncoder(world.tokenizer), folder=world.folder)
        )


# ------------------------------------------------------------------------------------- acceptance


def test_acceptance_is_the_overlap_of_the_whole_distributions(world: World) -> None:
    objective = world.forward("acceptance", file="rows.jsonl")
    total, count = 0.0, 0
    for request in objective.work().requests:
        ids = torch.tensor([request.tokens[:-1]])
        with torch.no_grad():
            p, q = (world.models[n](ids).logits.double().softmax(-1) for n in ("base", "math"))
        total += float(torch.minimum(p, q).sum())
        count += ids.numel()
    result = world.score(objective, "math")
    assert 0.1 < result.value < 0.9
    assert result.value == pytest.approx(total / count, rel=1e-5)
    own = world.score(objective, "base")
    assert (own.value, own.stderr) == (1, 0)


def test_acceptance_counts_accepted_drafts(world: World) -> None:
    """As speculative sampling does, token by token: 20,000 drafts of one position."""
    objective = world.forward("acceptance", file="rows.jsonl").part(0, 1)
    assert isinstance(objective, Forward)
    [request] = objective.work().requests
    context = torch.tensor([request.tokens[: request.first]])
    with torch.no_grad():
        p, q = (
            world.models[n](context).logits[0, -1].double().softmax(-1) for n in ("base", "math")
        )
    generator = torch.Generator().manual_seed(0)
    drafts = torch.multinomial(q, 20_000, replacement=True, generator=generator)
    chances = torch.rand(20_000, generator=generator, dtype=torch.float64)
    accepted = float((chances < p[drafts] / q[drafts]).double().mean())
    measured = world.run(world.models["math"], objective.work())[0]
    assert float(measured[0, 0]) == pytest.approx(accepted, abs=0.01)


def test_pieces_of_bytes_fit_the_shortest_context() -> None:
    assert piece_bytes([32_768, None]) == piece_bytes([]) == 2048
    assert piece_bytes([32_768, 1024]) == 1021


def test_acceptance_refuses_another_vocabulary(world: World) -> None:
    wish = Objective(direction="maximize", name="acceptance", arguments={"file": "rows.jsonl"})
    context = ObjectiveContext(
        encoder=TokenEncoder(world.tokenizer), folder=world.folder, reference=lambda model, work: []
    )
    assert prepare_objective(wish, context).size == 8
    for other in (replace(context, piece_bytes=2048), replace(context, cut=True)):
        with pytest.raises(ObjectiveError, match="needs the same vocabulary in all models"):
            prepare_objective(wish, other)


# ---------------------------------------------------------------------------------------- choices


def likelihoods(world: World, model: str, query: str, choices: Sequence[str]) -> list[float]:
    """By hand: log-likelihood of each choice after the query and a blank."""
    results = []
    for choice in choices:
        before, whole = (world.tokenizer.encode(t) for t in (query, f"{query} {choice}"))
        with torch.no_grad():
            logs = world.models[model](torch.tensor([whole])).logits[0].log_softmax(-1)
        results.append(sum(float(logs[i - 1, whole[i]]) for i in range(len(before), len(whole))))
    return results


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_accuracy_is_the_share_of_rows_with_the_gold_choice_first(
    world: World, metric: str
) -> None:
    rows = [
        {"query": f"{n} is", "choices": ["é" * 3, "ab", "seven"], "gold": n % 3} for n in range(12)
    ]
    world.write("wise.jsonl", rows)
    length: Callable[[str], int] = {
        "acc": lambda _: 1,
        "acc_norm": len,
        "acc_bytes": lambda choice: len(choice.encode()),
    }[metric]
    right = []
    for row in rows:
        choices = [str(choice) for choice in row["choices"]]  # type: ignore[attr-defined]
        logs = likelihoods(world, "base", str(row["query"]), choices)
        scaled = [log / length(choice) for log, choice in zip(logs, choices, strict=True)]
        right.append(float(scaled.index(max(scaled)) == row["gold"]))
    score = world.score(world.forward("multiple_choice", file="wise.jsonl", metric=metric), "base")
    assert score.value == mean(right)
    assert score.stderr == pytest.approx(stdev(right) / math.sqrt(len(right)))


def test_margin_is_the_gap_to_the_best_other(world: World) -> None:
    gaps = []
    for n in range(9):
        choices = [str(n + 1), "no", "a thing"]
        logs = likelihoods(world, "base", f"after {n}:", choices)
        logs = [log / len(choice) for log, choice in zip(logs, choices, strict=True)]
        gaps.append(logs[n % 3] - max(log for i, log in enumerate(logs) if i != n % 3))
    score = world.score(world.forward("margin", file="questions.jsonl"), "base")
    assert score.value == pytest.approx(mean(gaps), rel=1e-5)
    assert score.stderr == pytest.approx(stdev(gaps) / 3, rel=1e-4)


def test_a_schema_has_one_continuation(world: World) -> None:
    row = {"context_options": ["it", "he"], "continuation": "ran", "gold": 1}
    world.write("schema.jsonl", [row])
    objective = world.forward("multiple_choice", file="schema.jsonl")
    assert isinstance(objective, Choices)
    texts = [world.tokenizer.decode(request.tokens) for request in objective.work().requests]
    assert texts == ["it ran", "he ran"]


def test_an_unknown_metric_is_refused(world: World) -> None:
    with pytest.raises(ObjectiveError, match="no metric 'acc_nrm': did you mean 'acc_norm'"):
        world.prepare("multiple_choice", file="questions.jsonl", metric="acc_nrm")


def test_the_worse_direction_is_refused(world: World) -> None:
    prepared = world.prepare("nll", file="rows.jsonl")
    agree_on_direction(Objective(direction="minimize", name="nll"), prepared)
    with pytest.raises(ObjectiveError, match=r"is better: write 'minimize'"):
        agree_on_direction(Objective(direction="maximize", name="nll"), prepared)


# -------------------------------------------------------------------------------- the divergence


def test_grouping_tokens_reduces_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (8 * torch.randn(50, 300, generator=generator) for _ in range(2))
    rows = torch.arange(50)
    targets = torch.zeros(50).long()

    def at(
        likeliest: int, logits: Float[Tensor, " n vocab"], compare: Compare = divergence
    ) -> Tensor:
        def reference(model: str, work: Work) -> Iterator[Tensor]:
            yield work.measure(p, targets, rows)

        kept = compact(
            lambda model, work: list(reference(model, work)), "base", (), likeliest, compare
        )
        return kept(logits, targets, rows)[:, 0]

    shared = torch.minimum(p.double().softmax(1), q.double().softmax(1)).sum(1)
    assert torch.allclose(at(300, q, overlap).double(), shared, atol=1e-5)
    few, more = at(16, q, overlap), at(64, q, overlap)
    assert bool((few >= more - 1e-5).all())
    assert bool((more >= shared - 1e-5).all())
    assert bool((few > shared + 1e-3).any())
    assert at(16, p, overlap).tolist() == [1.0] * 50

    exact = (p.double().softmax(1) * (p.double().log_softmax(1) - q.double().log_softmax(1))).sum(1)
    assert torch.allclose(at(300, q), exact, rtol=1e-4)
    assert torch.allclose(at(400, q), exact, rtol=1e-4)
    few, more = at(16, q), at(64, q)
    assert bool((few <= more * (1 + 1e-6)).all())
    assert bool((more <= exact * (1 + 1e-4)).all())
    assert bool((few > 0).all())
    assert float(at(16, p).abs().max()) == 0
    noisy = at(16, p + 1e-6 * torch.randn(50, 300, generator=generator))
    assert 0 <= float(noisy.max()) < 1e-9
    sharp = torch.tensor([[500.0, 0.0, -500.0]])
    tokens = torch.tensor([[0, 1]])
    far = divergence(*(grouped(item, tokens).double() for item in (sharp, sharp.flip(1))))
    assert far.tolist() == pytest.approx([1000.0])
