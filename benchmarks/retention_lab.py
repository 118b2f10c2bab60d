"""Tools of `benchmarks/retention.py`: a family's models, loaded once, and a journal.

The folder has scores on the search's texts, block influences, methods' plans and judgements as
lines of JSON, by plan. A plan of two methods is scored once, and an interrupted run continues.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

import gptailor
from benchmarks.heal_answers import Answers, answers_of
from benchmarks.heal_texts import SOURCES
from benchmarks.retention_texts import Amounts, Files, write_files
from benchmarks.search_texts import rows_of
from gptailor.evaluation.meter import Meter, Placement, Reading, Samples, context_length
from gptailor.evaluation.objectives.base import PreparedObjective
from gptailor.evaluation.scores import Outcomes, Score
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.evaluation.trial import Ask
from gptailor.lang.parse import read_objective
from gptailor.plan.plan import Plan


class NotMade(Exception):  # noqa: N818 (a method could not make its plan)
    """Reason that a method has no plan."""


@dataclass(frozen=True)
class Asked:
    """Settings that the figures depend on."""

    base: str
    variants: Mapping[str, str]
    data: str
    amounts: Amounts
    evaluations: int
    strategy: str
    bridge_tokens: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Found:
    """A method's plan as text, its cost in evaluations on all of the search's texts, and a note.

    `alone`: the plan's base is a model of the folder, not the family's.
    """

    plan: str
    evaluations: float = 0.0
    note: str = ""
    seconds: float = 0.0
    alone: bool = False


class Lab:
    """A family under test."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.folder, self.asked = folder, asked
        self.files: Files = write_files(
            folder / "texts", Path(asked.base), Path(asked.data), asked.amounts
        )
        self.tokenizer = AutoTokenizer.from_pretrained(asked.base)
        config = json.loads((Path(asked.base) / "config.json").read_text("utf-8"))
        self.layers: int = config["num_hidden_layers"]
        self.full = asked.amounts.seen * len(SOURCES)
        self.low = len(SOURCES)
        self._inner: list[float] = []
        self._plans = Journal(folder / "plans.jsonl")
        self._scores = Journal(folder / "scores.jsonl")
        self._judged = Journal(folder / "judged.jsonl")

    # --------------------------------------------------------------------------------------- plans

    def plan(self, *statements: str) -> Plan:
        """Return a plan of the family, without unused models."""
        words = set(" ".join(statements).replace(",", " ").replace(")", " ").split())
        heads = [f"model base = {json.dumps(self.asked.base)}"]
        heads += [
            f"model {name} = {source}" for name, source in self.models.items() if name in words
        ]
        return gptailor.loads("\n".join(["tailor 1", *heads, *statements]), folder=self.folder)

    @cached_property
    def models(self) -> dict[str, str]:
        """Return the variants' sources as a plan declares them."""
        found = {}
        for name, path in self.asked.variants.items():
            adapter = (Path(path) / "adapter_config.json").exists()
            found[name] = ("base + " if adapter else "") + json.dumps(path)
        return found

    @property
    def whole(self) -> str:
        """Return all positions as a plan writes them."""
        return f"L0..L{self.layers - 1}"

    def alone(self, model: str, *more: str) -> Plan:
        """Return the plan of one model's layers."""
        return self.plan(*([] if model == "base" else [f"{self.whole} from {model}"]), *more)

    def without(self, plan: Plan, positions: Sequence[int]) -> Plan:
        """Return a plan that also drops positions."""
        layers = tuple(one for one in plan.layers if one.position not in positions)
        drop = self.plan("drop " + ", ".join(f"L{p}" for p in sorted(positions)))
        return plan.model_copy(update={"layers": layers, "drops": drop.drops})

    def extended(self, text: str, *statements: str) -> Plan:
        """Return a plan with more statements."""
        return gptailor.loads("\n".join([text.rstrip(), *statements, ""]), folder=self.folder)

    @property
    def bridge(self) -> str:
        """Return the statement that bridges all gaps."""
        return f"bridge on {json.dumps(str(self.files.learned))} tokens {self.asked.bridge_tokens}"

    def heal(self, seed: int) -> str:
        """Return the statement that heals."""
        file, tokens = json.dumps(str(self.files.learned)), self.asked.amounts.tokens
        return f"heal on {file} tokens {tokens} seed {seed}"

    def made(self, key: str, make: Callable[[], Found]) -> Found:
        """Return a method's result, made once; its seconds include earlier stages."""
        if key not in self._plans.known:
            begun = time.perf_counter()
            self._inner.append(0.0)
            try:
                found = make()
            finally:
                inner = self._inner.pop()
            took = time.perf_counter() - begun
            if self._inner:
                self._inner[-1] += took
            self._plans.add(key, {**asdict(found), "seconds": found.seconds + took - inner})
        return Found(**self._plans.known[key])

    # -------------------------------------------------------------------------- the search's texts

    @cached_property
    def trials(self) -> Trials:
        """Return the models, loaded on first use."""
        names = ", ".join(self.asked.variants)
        plan = self.plan(f"{self.whole} from {names} by task_arithmetic(0.5)")
        bound, models, _ = opened(plan)
        wish = read_objective(f"nll({json.dumps(str(self.files.search))})")
        meter = Meter(self.place)
        return Trials(bound, models, objectives=[wish], meter=meter, fidelity=(self.low, self.full))

    @property
    def place(self) -> Placement:
        """Return the device of the models."""
        return Placement(self.asked.device, getattr(torch, self.asked.dtype))

    def scores(self, plans: Sequence[Plan], samples: int | None = None) -> list[float]:
        """Return nats a token of closed plans on the search's texts; NaN is a failure."""
        samples = samples or self.full
        keys = [f"{digest(plan)} {samples}" for plan in plans]
        fresh = {k: p for k, p in zip(keys, plans, strict=True) if k not in self._scores.known}
        names = list(fresh)
        for number, outcomes in self.trials.run(list(fresh.values()), samples, stage="bare"):
            one = outcomes[0]
            self._scores.add(names[number], one.value if isinstance(one, Score) else float("nan"))
        return [self._scores.known[key] for key in keys]

    def influence(self, plan: Plan) -> list[float]:
        """Return the block influence of each layer of a plan, on the search's texts."""
        key = f"{digest(plan)} influence"
        if key not in self._scores.known:
            self._scores.add(key, list(self.trials.block_influence(plan, self.full)))
        found: list[float] = self._scores.known[key]
        return found

    def least(self, plan: Plan, count: int) -> list[int]:
        """Return the layers of a plan with the least block influence."""
        influences = self.influence(plan)
        return sorted(range(len(influences)), key=lambda at: (influences[at], at))[:count]

    @cached_property
    def specialist(self) -> str:
        """Return the variant with the best score on the search's texts."""
        names = list(self.asked.variants)
        values = self.scores([self.alone(name) for name in names])
        return names[min(range(len(names)), key=values.__getitem__)]

    @cached_property
    def merge(self) -> tuple[str, Plan]:
        """Return the best uniform merge of all variants on the search's texts, and its method."""
        names = list(self.asked.variants)
        methods = [f"task_arithmetic({scale})" for scale in (round(1 / len(names), 3), 0.5, 0.7)]
        methods += ["task_arithmetic(1.0)", "ties(0.5)"]
        plans = [self.plan(f"{self.whole} from {', '.join(names)} by {how}") for how in methods]
        values = self.scores(plans)
        best = min(range(len(plans)), key=values.__getitem__)
        return methods[best], plans[best]

    # ---------------------------------------------------------------------------------- the judges

    def read(self, found: Found) -> Plan:
        """Return the plan of a method's result."""
        return gptailor.loads(found.plan, folder=self.folder)

    def seen(self, found: Found) -> float | None:
        """Return a plan's score on the search's texts; None for peers' models or repaired plans."""
        plan = self.read(found)
        if found.alone or plan.bridges or plan.heal:
            return None
        return self.scores([plan])[0]

    def forget(self, found: Found) -> None:
        """Remove a peer's model."""
        if found.alone:
            shutil.rmtree(self.read(found).models["base"].source, ignore_errors=True)

    def judged(self, found: Found) -> dict[str, Any]:
        """Judge a plan, with its bridges and healing, on held-out texts, questions and problems."""
        key = hashlib.sha256(found.plan.encode()).hexdigest()[:24]
        if key not in self._judged.known:
            self._judged.add(key, self._judge(found))
        judgement: dict[str, Any] = self._judged.known[key]
        return judgement

    @cached_property
    def objectives(self) -> list[PreparedObjective]:
        """Return the objectives: held-out text of each source, and each task's questions."""
        wishes = [f"nll({json.dumps(str(file))})" for file in self.files.held.values()]
        wishes += [f"multiple_choice({json.dumps(str(f))})" for f in self.files.choices.values()]
        base = self.trials.models["base"]
        positions = context_length(base.config)
        stated = [read_objective(wish) for wish in wishes]
        reading = Reading(base, positions, None, self.trials.plan)
        return self.trials.meter.objectives(stated, Samples(), reading, _no_reference)

    def _judge(self, found: Found) -> dict[str, Any]:
        plan, meter, models = self.read(found), self.trials.meter, self.trials.models
        if found.alone:
            _, models, _ = opened(plan)
            meter = Meter(self.place)
        repairs = meter.repairs(models)
        begun = time.perf_counter()
        repairs.contents(
            repairs.stitcher.table.resolved(plan)
        )  # bridged and healed; the result is kept for later use
        seconds = time.perf_counter() - begun
        answers: Answers = {}

        def on_live(model: PreTrainedModel) -> None:
            answers.update(answers_of(model, self.tokenizer, rows_of(self.files.problems)))

        [(_, outcomes)] = meter.run([Ask(models, plan, self.objectives, on_live=on_live)])
        return {**self._said(outcomes), "answers": answers, "made": seconds}

    def _said(self, outcomes: Outcomes) -> dict[str, dict[str, list[float]]]:
        rows = []
        for one in outcomes:
            if not isinstance(one, Score):
                raise NotMade(str(one))
            rows.append([one.value, one.stderr])
        count = len(self.files.held)
        return {
            "held": dict(zip(self.files.held, rows[:count], strict=True)),
            "choices": dict(zip(self.files.choices, rows[count:], strict=True)),
        }


class Journal:
    """Lines of a key and a value; incomplete lines are ignored."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Any] = {}
        if not file.exists():
            return
        text = file.read_bytes()
        if not text.endswith(b"\n"):
            text = text[: text.rfind(b"\n") + 1]
            file.write_bytes(text)
        for line in text.decode().splitlines():
            key, value = json.loads(line)
            self.known[key] = value

    def add(self, key: str, value: Any) -> None:
        """Append an entry."""
        self.known[key] = value
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([key, value]) + "\n")


def _no_reference(name: str, work: object) -> Sequence[torch.Tensor]:
    raise ValueError(f"nothing here compares with {name}")


def digest(plan: Plan) -> str:
    """Return the digest of a plan."""
    return hashlib.sha256(gptailor.format(plan).encode()).hexdigest()[:24]


def shown_layers(positions: Sequence[int]) -> str:
    """Return layers as a plan writes them, such as `L3, L12..L14`."""
    return ", ".join(_ranges(sorted(positions)))


def _ranges(positions: Sequence[int]) -> Iterator[str]:
    start = 0
    for i, at in enumerate(positions):
        if i + 1 == len(positions) or positions[i + 1] != at + 1:
            first = positions[start]
            yield f"L{first}" if first == at else f"L{first}..L{at}"
            start = i + 1
