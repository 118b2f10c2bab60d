"""`lm_eval`: tasks of lm-evaluation-harness, run by our forward pass."""

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
from gptailor.evaluate.forward.requests import Measure, Request, Rows
from gptailor.evaluate.objectives import base
from gptailor.evaluate.objectives.generate import Generative
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.tokens import EncodingError, Prompt, TokenEncoder
from gptailor.evaluate.scores import Score, mean
from gptailor.plan.faults import listed, nearest
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import Objective

FEWSHOT_SEED = 1234
"""lm-eval's own: a prompt's examples are those that it takes, whatever a search's seed is."""

GROUPS = 64
"""Groups of samples that are left out in turn to find an error, at most."""

Answers = Sequence[Sequence[object]]
"""For each sample, for each of its instances: what the model's answer was."""


@final
@dataclass(frozen=True, eq=False)
class HarnessTask:
    """A task with its instances by sample, and the metric and the filter that are wanted of it.

    `numbers` are those of the samples among the task's documents.
    """

    task: Any
    numbers: tuple[int, ...]
    instances: tuple[tuple[Any, ...], ...]
    metric: str
    filter: str

    def part(self, start: int, stop: int) -> "HarnessTask":
        """The task on some of its samples: few-shot prompts are those of these samples alone."""
        numbers = self.numbers[start:stop]
        with _quiet():
            return replace(self, numbers=numbers, instances=_instances(self.task, numbers))

    @property
    def kind(self) -> str:
        """What is asked of the model, as lm-eval has it: `generate_until`, say."""
        return str(self.instances[0][0].request_type)

    @property
    def direction(self) -> base.Direction:
        """Which way the metric is better, as lm-eval has it."""
        higher = self.task.higher_is_better().get(self.metric)
        return "minimize" if higher is False else "maximize"

    def score(self, answers: Answers) -> Score:
        """The task's metric of the first samples, given the model's answers to each."""
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
        spread = math.fsum((one - center) ** 2 for one in without)
        return Score(value, math.sqrt((count - 1) / count * spread), len(values))

    def _values(self, answers: Answers) -> list[Any]:
        """What the task makes of each sample's answers, before they are aggregated."""
        used = self.instances[: len(answers)]
        for instances, given in zip(used, answers, strict=True):
            for instance, answer in zip(instances, given, strict=True):
                instance.resps = [answer] * (instance.repeats or 1)
                instance.filtered_resps = {}
        self.task._instances = [one for instances in used for one in instances]
        self.task.apply_filters()
        values = []
        for instances in used:
            responses = [one.filtered_resps[self.filter] for one in instances]
            found = self.task.process_results(instances[0].doc, responses)
            if self.metric not in found:
                raise _no_metric(self.task, self.metric, list(found))
            values.append(found[self.metric])
        return values


def prepare_lm_eval(objective: Objective, context: base.ObjectiveContext) -> base.PreparedObjective:
    """`lm_eval(task, metric)`: the task of that name, or in that YAML file.

    `metric` is lm-eval's `acc_norm,none`; without a filter's name it is the first filter's, and
    without a metric the task's first. The samples are a seeded choice of the task's documents, in
    the order in which fidelities take them; their number decides the examples in few-shot prompts.
    Raises ObjectiveError, or MissingPackageError where lm-eval isn't installed.
    """
    require("eval", "the objective 'lm_eval'")
    name, metric = str(objective.arguments["task"]), objective.arguments.get("metric")
    with _quiet():
        harness = _loaded(name, context.folder)
        wanted, filter_ = _metric(harness, None if metric is None else str(metric))
        with _refused("make requests of", name):
            numbers = tuple(context.drawn(range(len(harness.eval_docs))))
        task = HarnessTask(harness, numbers, _instances(harness, numbers), wanted, filter_)
    return _measured(base.traits_of(objective)[0], task, context.encoder)


def _measured(name: str, task: HarnessTask, encoder: TokenEncoder) -> "Likelihoods | Generated":
    if task.kind == "generate_until":
        prompts = tuple(tuple(_prompt(one, encoder) for one in of) for of in task.instances)
        return Generated(name, task.direction, "base", prompts, encoder, task)
    texts = tuple(tuple(_texts(task, one, encoder) for one in of) for of in task.instances)
    return Likelihoods(name, task.direction, "base", texts, encoder, task)


def _loaded(name: str, folder: Path) -> Any:
    if Path(name).suffix in (".yaml", ".yml"):
        path = folder / expanded(name)
        if not path.is_file():
            raise base.ObjectiveError(f"lm-eval's task '{name}': there is no such file")
        manager, wanted = _manager(own=False), str(path)
    else:
        manager, wanted = _manager(own=True), name
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_subtasks)
            more = f": {close}" if close else ""
            raise base.ObjectiveError(f"lm-eval knows no task '{name}'{more}")
        if name not in manager.all_subtasks:
            raise base.ObjectiveError(f"lm-eval's '{name}' is several tasks; name one of them")
    with _refused("load the task", name):
        tasks = list(manager.load(wanted)["tasks"].values())
    if len(tasks) != 1:
        raise base.ObjectiveError(f"lm-eval's '{name}' is several tasks; name one of them")
    return tasks[0]


@cache
def _manager(*, own: bool) -> Any:
    """lm-eval's index of tasks, its own ones among them or not: reading those takes seconds."""
    return importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=own)


def _metric(task: Any, wanted: str | None) -> tuple[str, str]:
    metrics, filters = list(task.aggregation()), [one.name for one in task._filters]
    metric, _, filter_ = (wanted or metrics[0]).partition(",")
    if metric not in metrics:
        raise _no_metric(task, metric, metrics)
    if filter_ and filter_ not in filters:
        known = listed(f"'{one}'" for one in filters)
        words = f"lm-eval's '{task.task_name}' has no filter '{filter_}': it has {known}"
        raise base.ObjectiveError(words)
    return metric, filter_ or filters[0]


def _no_metric(task: Any, metric: str, metrics: Sequence[str]) -> base.ObjectiveError:
    known = listed(f"'{one}'" for one in metrics)
    words = f"lm-eval's '{task.task_name}' returns no metric '{metric}': it returns {known}"
    return base.ObjectiveError(words)


def _instances(task: Any, numbers: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    if not numbers:
        return ()
    with _refused("make requests of", task.task_name):
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(samples=frozenset(numbers))
    found: dict[int, list[Any]] = {number: [] for number in numbers}
    ascending = sorted(numbers)
    for instance in task.instances:
        found[ascending[instance.doc_id]].append(instance)  # counted among those chosen
    return tuple(tuple(sorted(of, key=lambda one: one.idx)) for of in found.values())


@contextlib.contextmanager
def _refused(what: str, name: str) -> Iterator[None]:
    """Errors become ObjectiveErrors: a task is anybody's code and data."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise base.ObjectiveError(f"lm-eval can't {what} '{name}': {first}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval draws progress bars of what takes no time."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


_LONGEST_WINDOW = 2048
"""Tokens of a window where a model takes any number, as lm-eval has it."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
NEW_TOKENS = 256
"""Tokens that are made where a task doesn't say, as lm-eval has it."""


@final
@dataclass(frozen=True, eq=False)
class Likelihoods(base.Forward):
    """A task of log-likelihoods, whole texts' among them; a sample is a document.

    It has for each of its instances the texts whose log-likelihoods add up.
    """

    samples: tuple[tuple[tuple[Request, ...], ...], ...]
    encoder: TokenEncoder
    task: HarnessTask

    @property
    def measure(self) -> Measure:
        """The logarithm of each token's probability, and whether it is the likeliest."""
        return likelihood

    def requests(self, samples: int) -> Sequence[Request]:
        """All texts of the first documents."""
        return [text for of in self.samples[:samples] for texts in of for text in texts]

    def part(self, start: int, stop: int) -> base.PreparedObjective:
        """Some documents, their requests made as if there were no others."""
        return _measured(self.name, self.task.part(start, stop), self.encoder)

    def score(self, results: Sequence[Tensor]) -> Score:
        """The task's metric of the first documents."""
        left, counted = iter(results), 0
        answers: list[list[object]] = []
        for of in self.samples:
            if counted >= len(results):
                break
            answers.append([self._answer(list(islice(left, len(texts)))) for texts in of])
            counted += sum(map(len, of))
        return self.task.score(answers)

    def _answer(self, found: Sequence[Tensor]) -> object:
        likely = sum(float(one[:, 0].double().sum()) for one in found)
        if self.task.kind == "loglikelihood_rolling":
            return likely
        return likely, all(bool(one[:, 1].all()) for one in found)


@final
@dataclass(frozen=True, eq=False)
class Generated(Generative):
    """A task of texts that the model makes, greedily; a sample is a document."""

    samples: tuple[tuple[Prompt, ...], ...]
    task: HarnessTask

    def part(self, start: int, stop: int) -> base.PreparedObjective:
        """Some documents, their requests made as if there were no others."""
        return _measured(self.name, self.task.part(start, stop), self.encoder)

    def prompts(self, samples: int | None) -> Sequence[Prompt]:
        """What the model is asked of the first documents."""
        return [prompt for of in self.samples[:samples] for prompt in of]

    def score(self, texts: Sequence[str]) -> Score:
        """The task's metric of the first documents."""
        said = iter(texts)
        answers = (list(islice(said, len(of))) for of in self.samples)
        return self.task.score(list(takewhile(bool, answers)))


def likelihood(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
) -> Float[Tensor, " n 2"]:
    """The logarithm of each token's probability, and 1 where no token is likelier."""
    first = (logits.argmax(dim=1) == targets).to(logits.dtype)
    return torch.stack([-surprise(logits, targets, rows)[:, 0], first], dim=1)


def _texts(task: HarnessTask, instance: Any, encoder: TokenEncoder) -> tuple[Request, ...]:
    try:
        if task.kind == "loglikelihood_rolling":
            return tuple(_windows(instance.args[0], encoder))
        return (encoder.request(*instance.args[:2]),)
    except EncodingError as error:
        name, number = instance.task_name, instance.doc_id
        raise base.ObjectiveError(f"document {number} of lm-eval's '{name}': {error}") from None


def _windows(text: str, encoder: TokenEncoder) -> Iterator[Request]:
    """Windows of which each predicts its own tokens, the last one from more of those before."""
    tokens = encoder.encode(text)
    size = encoder.positions or _LONGEST_WINDOW
    whole = (*encoder.prompt("")[:1], *tokens)  # predicted is all after the first
    for start in range(0, len(tokens), size):
        stop = min(start + size, len(tokens))
        begin = 0 if start == 0 else stop - size
        yield Request(whole[begin : stop + 1], start - begin + 1)


def _prompt(instance: Any, encoder: TokenEncoder) -> Prompt:
    context, settings = instance.args[:2]
    task = f"lm-eval's '{instance.task_name}'"
    if settings.get("do_sample") or settings.get("num_beams", 1) != 1:
        words = f"{task} draws its answers at random, or by beams; a search's are greedy"
        raise base.ObjectiveError(words)
    said = [settings[name] for name in _LENGTHS if settings.get(name) is not None]
    most, stops = int(said[0]) if said else NEW_TOKENS, settings.get("until") or []
    try:
        tokens = encoder.prompt(context)
    except EncodingError as error:
        raise base.ObjectiveError(f"{task}: {error}") from None
    if encoder.positions is not None:
        if most >= encoder.positions:
            words = f"{task} makes {most} tokens, and the model takes {encoder.positions} in all"
            raise base.ObjectiveError(words)
        tokens = tokens[most - encoder.positions :]
    return Prompt(tokens, most, tuple([stops] if isinstance(stops, str) else stops))
