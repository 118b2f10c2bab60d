"""`lm_eval`: tasks of lm-evaluation-harness, run by gptailor's forward pass."""

import contextlib
import importlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.checkpoint.files import expanded
from gptailor.evaluation.forward.requests import Measure, Request
from gptailor.evaluation.objectives import base
from gptailor.evaluation.objectives.generate import GenerativeTexts
from gptailor.evaluation.objectives.likelihood import surprise
from gptailor.evaluation.objectives.tokens import EncodingError, Prompt, TokenEncoder
from gptailor.evaluation.scores import Score, mean
from gptailor.plan.faults import listed, nearest
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.measure import AimDirection

FEWSHOT_SEED = 1234
"""lm-eval's own seed of a prompt's examples; they don't depend on a search's seed."""

GROUPS = 64
"""The most groups of samples that a jackknife estimate of the error leaves out in turn."""

Answers = Sequence[Sequence[object]]
"""The model's answer to each instance of each sample."""


@final
@dataclass(frozen=True, eq=False)
class HarnessTask:
    """A task with its instances by sample, and its metric and filter.

    `numbers` are the samples' numbers among the task's documents.
    """

    task: Any
    numbers: tuple[int, ...]
    instances: tuple[tuple[Any, ...], ...]
    metric: str
    filter: str

    def part(self, start: int, stop: int) -> "HarnessTask":
        """Return the task on some samples; few-shot prompts have only these samples' examples."""
        numbers = self.numbers[start:stop]
        with _quiet():
            return replace(self, numbers=numbers, instances=_instances(self.task, numbers))

    @property
    def kind(self) -> str:
        """lm-eval's name of the request to the model: `generate_until`, for example."""
        return str(self.instances[0][0].request_type)

    @property
    def direction(self) -> AimDirection:
        """The better direction of the metric, by lm-eval."""
        higher = self.task.higher_is_better().get(self.metric)
        return "minimize" if higher is False else "maximize"

    def score(self, answers: Answers) -> Score:
        """Return the task's metric of the first samples, given the model's answers to each."""
        values = self._values(answers)
        metrics = importlib.import_module("lm_eval.api.metrics")
        aggregate = self.task.aggregation()[self.metric]
        if aggregate is metrics.mean:
            return mean([float(value) for value in values])
        value = float(aggregate(values))
        if len(values) < 2 or not math.isfinite(value):
            return Score(value, math.inf, len(values))
        count = min(len(values), GROUPS)
        parts = ([v for i, v in enumerate(values) if i % count != g] for g in range(count))
        without = [float(aggregate(part)) for part in parts]
        center = math.fsum(without) / count
        spread = math.fsum((part_value - center) ** 2 for part_value in without)
        return Score(value, math.sqrt((count - 1) / count * spread), len(values))

    def _values(self, answers: Answers) -> list[Any]:
        """Return the metric of each sample's answers, before aggregation."""
        used = self.instances[: len(answers)]
        for instances, sample_answers in zip(used, answers, strict=True):
            for instance, answer in zip(instances, sample_answers, strict=True):
                instance.resps = [answer] * (instance.repeats or 1)
                instance.filtered_resps = {}
        self.task._instances = [instance for instances in used for instance in instances]
        self.task.apply_filters()
        values = []
        for instances in used:
            responses = [instance.filtered_resps[self.filter] for instance in instances]
            metrics = self.task.process_results(instances[0].doc, responses)
            if self.metric not in metrics:
                raise _no_metric(self.task, self.metric, list(metrics))
            values.append(metrics[self.metric])
        return values


def prepare_lm_eval(objective: Objective, context: base.ObjectiveContext) -> base.PreparedObjective:
    """Prepare `lm_eval(task, metric)` for the task of that name, or in that YAML file.

    `metric` is lm-eval's `acc_norm,none`. The default filter is the task's first filter, and the
    default metric its first metric. The samples are a seeded choice of the task's documents, in the
    order in which fidelities take them. Their number determines the examples in few-shot prompts.

    Raises ObjectiveError, or MissingPackageError if lm-eval is missing.
    """
    require("eval", "the objective 'lm_eval'")
    name, argument = str(objective.arguments["task"]), objective.arguments.get("metric")
    with _quiet():
        harness = _load_task(name, context.folder)
        metric, filter_ = _metric(harness, None if argument is None else str(argument))
        with _refused("make requests of", name):
            numbers = tuple(context.drawn(range(len(harness.eval_docs))))
        task = HarnessTask(harness, numbers, _instances(harness, numbers), metric, filter_)
    return _objective_of(base.traits_of(objective)[0], task, context.encoder)


def _objective_of(name: str, task: HarnessTask, encoder: TokenEncoder) -> "Likelihoods | Generated":
    if task.kind == "generate_until":
        prompts = tuple(
            tuple(_prompt(instance, encoder) for instance in instances)
            for instances in task.instances
        )
        return Generated(name, task.direction, "base", prompts, encoder, task)
    texts = tuple(
        tuple(_texts(task, instance, encoder) for instance in instances)
        for instances in task.instances
    )
    return Likelihoods(name, task.direction, "base", texts, encoder, task)


def _load_task(name: str, folder: Path) -> Any:
    task, _ = OBJECTIVES["lm_eval"].arguments
    if task.is_file(name):
        path = folder / expanded(name)
        if not path.is_file():
            raise base.ObjectiveError(f"lm-eval's task '{name}': there is no such file")
        manager, spec = _manager(own=False), str(path)
    else:
        manager, spec = _manager(own=True), name
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_subtasks)
            more = f": {close}" if close else ""
            raise base.ObjectiveError(f"lm-eval has no task '{name}'{more}")
        if name not in manager.all_subtasks:
            raise base.ObjectiveError(f"lm-eval's '{name}' is a group of tasks; name one of them")
    with _refused("load the task", name):
        tasks = list(manager.load(spec)["tasks"].values())
    if len(tasks) != 1:
        raise base.ObjectiveError(f"lm-eval's '{name}' is a group of tasks; name one of them")
    return tasks[0]


@cache
def _manager(*, own: bool) -> Any:
    """Return lm-eval's index of tasks; reading its own tasks (`own`) takes seconds."""
    return importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=own)


def _metric(task: Any, argument: str | None) -> tuple[str, str]:
    metrics, filters = list(task.aggregation()), [each.name for each in task._filters]
    metric, _, filter_ = (argument or metrics[0]).partition(",")
    if metric not in metrics:
        raise _no_metric(task, metric, metrics)
    if filter_ and filter_ not in filters:
        names = listed(f"'{name}'" for name in filters)
        words = f"lm-eval's '{task.task_name}' has no filter '{filter_}': it has {names}"
        raise base.ObjectiveError(words)
    return metric, filter_ or filters[0]


def _no_metric(task: Any, metric: str, metrics: Sequence[str]) -> base.ObjectiveError:
    names = listed(f"'{name}'" for name in metrics)
    words = f"lm-eval's '{task.task_name}' returns no metric '{metric}': it returns {names}"
    return base.ObjectiveError(words)


def _instances(task: Any, numbers: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    if not numbers:
        return ()
    with _refused("make requests of", task.task_name):
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(samples=frozenset(numbers))
    by_number: dict[int, list[Any]] = {number: [] for number in numbers}
    ascending = sorted(numbers)
    for instance in task.instances:
        number = ascending[instance.doc_id]  # `doc_id` counts the chosen documents
        by_number[number].append(instance)
    return tuple(tuple(sorted(of, key=lambda item: item.idx)) for of in by_number.values())


@contextlib.contextmanager
def _refused(what: str, name: str) -> Iterator[None]:
    """Turn errors into ObjectiveErrors, since a task is foreign code and data."""
    try:
        yield
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise base.ObjectiveError(f"lm-eval can't {what} '{name}': {message}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide lm-eval's progress bars of short steps."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


_LONGEST_WINDOW = 2048
"""lm-eval's number of tokens in a window for a model without a limit."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
NEW_TOKENS = 256
"""lm-eval's number of generated tokens for a task without a number."""


@final
@dataclass(frozen=True, eq=False)
class Likelihoods(base.Forward):
    """A task of log-likelihoods, also of whole texts; a sample is a document.

    A sample has, for each of its instances, the texts with log-likelihoods to add up.
    """

    samples: tuple[tuple[tuple[Request, ...], ...], ...]
    encoder: TokenEncoder
    task: HarnessTask

    @property
    def measure(self) -> Measure:
        """The logarithm of each token's probability, and whether the token is the likeliest."""
        return likelihood

    def requests(self, samples: int) -> Sequence[Request]:
        """Return all texts of the first documents."""
        return [text for of in self.samples[:samples] for texts in of for text in texts]

    def part(self, start: int, stop: int) -> base.PreparedObjective:
        """Return the objective on some documents, with requests made from these alone."""
        return _objective_of(self.name, self.task.part(start, stop), self.encoder)

    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the task's metric of the first documents."""
        remaining, counted = iter(results), 0
        answers: list[list[object]] = []
        for of in self.samples:
            if counted >= len(results):
                break
            answers.append([self._answer(list(islice(remaining, len(texts)))) for texts in of])
            counted += sum(map(len, of))
        return self.task.score(answers)

    def _answer(self, tensors: Sequence[Tensor]) -> object:
        likely = sum(float(tensor[:, 0].double().sum()) for tensor in tensors)
        if self.task.kind == "loglikelihood_rolling":
            return likely
        return likely, all(bool(tensor[:, 1].all()) for tensor in tensors)


@final
@dataclass(frozen=True, eq=False)
class Generated(GenerativeTexts):
    """A task of texts that the model generates greedily; a sample is a document."""

    samples: tuple[tuple[Prompt, ...], ...]
    task: HarnessTask

    def part(self, start: int, stop: int) -> base.PreparedObjective:
        """Return the objective on some documents, with requests made from these alone."""
        return _objective_of(self.name, self.task.part(start, stop), self.encoder)

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """Return the prompts of the first documents."""
        return [prompt for of in self.samples[:samples] for prompt in of]

    def score(self, texts: Sequence[str]) -> Score:
        """Return the task's metric of the first documents."""
        remaining = iter(texts)
        answers = (list(islice(remaining, len(of))) for of in self.samples)
        return self.task.score(list(takewhile(bool, answers)))


def likelihood(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], numbers: Int64[Tensor, " n"]
) -> Float[Tensor, " n 2"]:
    """Return the logarithm of each token's probability, and 1 for a likeliest token, else 0."""
    first = (logits.argmax(dim=1) == targets).to(logits.dtype)
    return torch.stack([-surprise(logits, targets, numbers)[:, 0], first], dim=1)


def _texts(task: HarnessTask, instance: Any, encoder: TokenEncoder) -> tuple[Request, ...]:
    try:
        if task.kind == "loglikelihood_rolling":
            return tuple(_windows(instance.args[0], encoder))
        return (encoder.request(*instance.args[:2]),)
    except EncodingError as error:
        name, number = instance.task_name, instance.doc_id
        raise base.ObjectiveError(f"document {number} of lm-eval's '{name}': {error}") from None


def _windows(text: str, encoder: TokenEncoder) -> Iterator[Request]:
    """Yield windows that each predict their own tokens; the last has a longer context."""
    tokens = encoder.encode(text)
    size = encoder.positions or _LONGEST_WINDOW
    opened = (*encoder.prompt("")[:1], *tokens)  # all tokens but the first are predicted
    for start in range(0, len(tokens), size):
        stop = min(start + size, len(tokens))
        begin = 0 if start == 0 else stop - size
        yield Request(opened[begin : stop + 1], start - begin + 1)


def _prompt(instance: Any, encoder: TokenEncoder) -> Prompt:
    context, settings = instance.args[:2]
    task = f"lm-eval's '{instance.task_name}'"
    if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
        words = f"{task} needs sampling or beam search, but gptailor generates greedily"
        raise base.ObjectiveError(words)
    lengths = [settings[name] for name in _LENGTHS if settings.get(name) is not None]
    most, stops = int(lengths[0]) if lengths else NEW_TOKENS, settings.get("until") or []
    try:
        tokens = encoder.prompt(context)
    except EncodingError as error:
        raise base.ObjectiveError(f"{task}: {error}") from None
    if encoder.positions is not None:
        if most >= encoder.positions:
            words = (
                f"{task} generates {most} tokens, but the model takes {encoder.positions} in all"
            )
            raise base.ObjectiveError(words)
        tokens = tokens[most - encoder.positions :]
    return Prompt(tokens, most, tuple([stops] if isinstance(stops, str) else stops))
