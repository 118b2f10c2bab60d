"""A task of lm-evaluation-harness: found by it, its requests made by it, its metric computed by it.

lm-eval is an optional dependency, imported when a task is asked for.
"""

import contextlib
import importlib
import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

from gptailor.evaluate import outcome as score
from gptailor.evaluate.objectives.base import Direction, ObjectiveContext, ObjectiveError
from gptailor.evaluate.objectives.datasets import order
from gptailor.evaluate.outcome import Score
from gptailor.plan.faults import TailorError, listed, nearest

FEWSHOT_SEED = 1234
"""lm-eval's own: a prompt's examples are those that it takes, whatever a search's seed is."""

GROUPS = 64
"""Groups of samples that are left out in turn to find an error, at most."""

_RequestKind = Literal["loglikelihood", "loglikelihood_rolling", "generate_until"]
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
    def kind(self) -> _RequestKind:
        """What is asked of the model."""
        kind: _RequestKind = self.instances[0][0].request_type
        return kind

    @property
    def direction(self) -> Direction:
        """Which way the metric is better, as lm-eval has it."""
        higher = self.task.higher_is_better().get(self.metric)
        return "minimize" if higher is False else "maximize"

    def score(self, answers: Answers) -> Score:
        """The task's metric of the first samples, given the model's answers to each."""
        values = self._values(answers)
        metrics = importlib.import_module("lm_eval.api.metrics")
        aggregate = self.task.aggregation()[self.metric]
        if aggregate is metrics.mean:
            return score.mean([float(value) for value in values])
        value = float(aggregate(values))
        if len(values) < 2 or not math.isfinite(value):
            return Score(value, math.inf, len(values))
        count = min(len(values), GROUPS)
        groups = range(count)
        parts = [[v for i, v in enumerate(values) if i % count != g] for g in groups]
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
        return [self._value(instances) for instances in used]

    def _value(self, instances: Sequence[Any]) -> Any:
        responses = [one.filtered_resps[self.filter] for one in instances]
        found = self.task.process_results(instances[0].doc, responses)
        if self.metric not in found:
            raise ObjectiveError(_no_metric(self.task, self.metric, list(found)))
        return found[self.metric]


def find(name: str, metric: str | None, setting: ObjectiveContext) -> HarnessTask:
    """The task of that name, or in that YAML file, its requests made once for all plans.

    `metric` is lm-eval's `acc_norm,none`; without a filter's name it is the first filter's, and
    without a metric the task's first. The samples are a seeded choice of the task's documents, in
    the order in which fidelities take them; their number decides the examples in few-shot prompts.
    Raises ObjectiveError, or TailorError where lm-eval isn't installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise TailorError(
            "the objective 'lm_eval' needs a package that isn't installed: "
            "pip install 'gptailor[eval]'"
        )
    with _quiet():
        task = _loaded(name, setting.folder)
        wanted, filter_ = _metric(task, metric)
        numbers = _numbers(name, task, setting)
        return HarnessTask(task, numbers, _instances(task, numbers), wanted, filter_)


def _loaded(name: str, folder: Path) -> Any:
    """The one task that is meant."""
    if Path(name).suffix in (".yaml", ".yml"):
        path = folder / Path(name).expanduser()
        if not path.is_file():
            raise ObjectiveError(f"lm-eval's task '{name}': there is no such file")
        manager, wanted = _manager(own=False), str(path)
    else:
        manager, wanted = _manager(own=True), name
        if name not in manager.all_tasks:
            close = nearest(name, manager.all_subtasks)
            raise ObjectiveError(
                f"lm-eval knows no task '{name}'" + (f": {close}" if close else "")
            )
        if name not in manager.all_subtasks:
            raise ObjectiveError(f"lm-eval's '{name}' is several tasks; name one of them")
    try:
        tasks = list(manager.load(wanted)["tasks"].values())
    except Exception as error:  # a task is anybody's code and data
        raise ObjectiveError(
            f"lm-eval can't load the task '{name}': {_first_line(error)}"
        ) from error
    if len(tasks) != 1:
        raise ObjectiveError(f"lm-eval's '{name}' is several tasks; name one of them")
    return tasks[0]


@cache
def _manager(*, own: bool) -> Any:
    """lm-eval's index of tasks, its own ones among them or not: reading those takes seconds."""
    return importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=own)


def _metric(task: Any, wanted: str | None) -> tuple[str, str]:
    """The metric and the filter."""
    metrics, filters = list(task.aggregation()), [one.name for one in task._filters]
    metric, _, filter_ = (wanted or metrics[0]).partition(",")
    if metric not in metrics:
        raise ObjectiveError(_no_metric(task, metric, metrics))
    if filter_ and filter_ not in filters:
        known = listed(f"'{one}'" for one in filters)
        raise ObjectiveError(
            f"lm-eval's '{task.task_name}' has no filter '{filter_}': it has {known}"
        )
    return metric, filter_ or filters[0]


def _no_metric(task: Any, metric: str, metrics: Sequence[str]) -> str:
    known = listed(f"'{one}'" for one in metrics)
    return f"lm-eval's '{task.task_name}' returns no metric '{metric}': it returns {known}"


def _numbers(name: str, task: Any, setting: ObjectiveContext) -> tuple[int, ...]:
    """The documents that are samples."""
    try:
        size = len(task.eval_docs)
    except Exception as error:  # a task is anybody's code and data
        raise _no_requests(name, error) from error
    return tuple(order(size, setting.seed)[: setting.samples])


def _instances(task: Any, numbers: Sequence[int]) -> tuple[tuple[Any, ...], ...]:
    """The requests of each sample."""
    if not numbers:
        return ()
    try:
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(samples=frozenset(numbers))
    except Exception as error:  # a task is anybody's code and data
        raise _no_requests(task.task_name, error) from error
    found: dict[int, list[Any]] = {number: [] for number in numbers}
    ascending = sorted(numbers)
    for instance in task.instances:
        found[ascending[instance.doc_id]].append(instance)  # counted among those chosen
    return tuple(tuple(sorted(of, key=lambda one: one.idx)) for of in found.values())


def _no_requests(name: str, error: Exception) -> ObjectiveError:
    return ObjectiveError(f"lm-eval can't make requests of '{name}': {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval draws progress bars of what takes no time."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
