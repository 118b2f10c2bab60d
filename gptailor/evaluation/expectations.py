"""`gptailor test`: measure the expectations of plans, and compare the values with their bounds."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, final

import torch

from gptailor.checks.texts import text_errors_as_faults, text_faults
from gptailor.evaluation.evaluate import (
    common_piece_bytes,
    measurable,
    reading_of,
    reference_results,
    step_count,
)
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.objectives.base import Forward, PreparedObjective
from gptailor.evaluation.objectives.size_and_speed import size_score
from gptailor.evaluation.objectives.tokens import tokenizer_digest, tokenizer_model
from gptailor.evaluation.samples import Samples, StatedObjective
from gptailor.evaluation.scores import Failure, Outcome, Score, paired_difference
from gptailor.evaluation.session import Placement, Reading, Session
from gptailor.evaluation.speed import latency_score, speeds
from gptailor.evaluation.targets import Target, as_list, base_of, find_targets
from gptailor.lang.words import bounded_words, measure_words
from gptailor.plan.arguments import NotNegative, Positive
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import Fault, PlanError, TailorError, listed, locate
from gptailor.plan.plan import Expectation, Objective, Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.prepare import ModelPaths, ready
from gptailor.program.devices import device_of, dtype_of
from gptailor.reporting.expectations import ExpectationResult, difference_words
from gptailor.reporting.measure import SURE, Estimate
from gptailor.reporting.quantities import byte_count

LEAST_SAMPLES = 2
"""The least samples of an expectation: one sample has no error."""


def evaluate_expectations(  # noqa: PLR0913 (a verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    *,
    models: ModelPaths | None = None,
    samples: Annotated[int, LEAST_SAMPLES] | None = None,
    seed: NotNegative = 0,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
    on_event: OnEvent = ignore_events,
) -> tuple[ExpectationResult, ...]:
    """Evaluate the expectations of plans, and return a result for each of them, in order.

    A target is a plan or its file, or a compiled folder. `models` gives other folders for the
    plans' names. `samples`, 2 or more, bounds the samples that `seed` draws. `dtype` and `memory`
    are those of `evaluate`. Each plan, and each model of a bound, is evaluated once on each text.

    An error of one model gives results without a value. Raises PlanError for faults of plans and
    for unusable texts, TailorError or OSError for a missing device, model or file.
    """
    place = Placement(device, dtype_of(dtype), byte_count(memory))
    found = find_targets(
        as_list(targets), models or {}, device=device, memory=place.memory, on_event=on_event
    )
    if not any(target.origin.expects for target in found):
        names = listed(f"'{target.name}'" for target in found)
        raise TailorError(
            f"{names} has no expectation: write 'expect nll(\"text.txt\") <= 1.1 * base'"
        )
    drawn = Samples(Path(), samples, seed)
    return Expectations(found, drawn, place, on_event).results()


@final
@dataclass(eq=False)
class _Measured:
    """One measure of one target, and its outcome once it is measured.

    `number` is the place of the first expectation that needs it.
    """

    target: Target
    number: int
    stated: StatedObjective
    samples: Samples
    piece_bytes: int | None
    outcome: Outcome | None = None

    @property
    def reading(self) -> Reading:
        """Return how the target's texts are read."""
        return reading_of(self.target, self.piece_bytes)


@final
class _Row(NamedTuple):
    """An expectation of a target, its place in the plan, and the model of its bound."""

    target: Target
    number: int
    entry: Expectation
    bounding: Target | None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The target, and the model of the bound."""
        return (self.target,) if self.bounding is None else (self.target, self.bounding)

    @property
    def piece_bytes(self) -> int | None:
        """The bytes of a piece if losses count by bytes: with a cut vocabulary, or with two."""
        digests = {tokenizer_digest(tokenizer_model(t.prepared)) for t in self.targets}
        cut = self.target.prepared.checked.token_cut is not None
        return common_piece_bytes(self.targets) if cut or len(digests) > 1 else None


@final
class Expectations:
    """One evaluation of expectations. The constructor reads the texts, but no weights.

    Raises PlanError for an unusable text, and ObjectiveError for a wrong argument.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        samples: Samples,
        place: Placement,
        on_event: OnEvent = ignore_events,
    ) -> None:
        device_of(str(place.device))  # a missing device is no target's failure
        _refuse_texts(targets)
        self.on_event = on_event
        self.session = Session(place, on_event)
        self.samples = samples
        self.rows = [row for target in targets for row in _rows(target)]
        for row in self.rows:
            for target in row.targets:
                self.session.family(target.prepared.models)
        self._measured: dict[Hashable, _Measured] = {}
        for row in self.rows:
            for target in row.targets if OBJECTIVES[row.entry.name].by == "samples" else ():
                stated, samples = _stated(row.entry), self._samples(target)
                measured = _Measured(target, row.number, stated, samples, row.piece_bytes)
                self._measured.setdefault(self._key(row, target), measured)
        self._groups = [(group, self._prepared(group[0])) for group in self._grouped()]
        for group, objectives in self._groups:
            for measured, objective in zip(group[0], objectives, strict=True):
                _refuse_one_sample(measured, objective)

    def results(self) -> tuple[ExpectationResult, ...]:
        """Measure all values, each once, and compare them."""
        self._measure()
        return tuple(self._result(row) for row in self.rows)

    # ------------------------------------------------------------------------------ what is read

    def _key(self, row: _Row, target: Target) -> Hashable:
        """Return a key that is equal for equal measures of equal models."""
        stated = _stated(row.entry)
        reading = reading_of(target, row.piece_bytes).key([stated])
        return target.content, self._samples(target), measure_words(stated[0]), reading

    def _samples(self, target: Target) -> Samples:
        origin = target.origin.origin
        return self.samples._replace(folder=Path() if origin is None else origin.folder)

    def _prepared(self, of_target: Sequence[_Measured]) -> list[PreparedObjective]:
        """Return the objectives of a target with their samples, drawn once for all alike."""
        target, samples = of_target[0].target, of_target[0].samples
        reference = partial(reference_results, self.session, target)
        stated = [each.stated for each in of_target]
        with text_errors_as_faults(target.origin):
            return self.session.objectives(stated, samples, of_target[0].reading, reference)

    def _grouped(self) -> list[list[list[_Measured]]]:
        """Return the measures of each target, grouped by shared samples and layers."""
        by_target: dict[Hashable, list[_Measured]] = {}
        for measured in self._measured.values():
            reading = measured.reading.key([measured.stated])
            key = measured.target.content, measured.samples, reading
            by_target.setdefault(key, []).append(measured)
        groups: dict[Hashable, list[list[_Measured]]] = {}
        for of_target in by_target.values():
            target, stated = of_target[0].target, [each.stated for each in of_target]
            words = tuple(measure_words(objective) for objective, _ in stated)
            family = self.session.family(target.prepared.models)
            alike = family, of_target[0].samples, words, of_target[0].reading.key(stated)
            groups.setdefault(alike, []).append(of_target)
        return list(groups.values())

    # ---------------------------------------------------------------------------- what is measured

    def _measure(self) -> None:
        """Run the targets, each once."""
        total = sum(len(group) * step_count(objectives) for group, objectives in self._groups)
        done = count(1)
        self.on_event(Progress("evaluating", 0, total))

        def step(words: str) -> None:
            self.on_event(Progress("evaluating", next(done), total, words))

        for group, objectives in self._groups:
            self._run(group, objectives, step)

    def _run(
        self,
        group: Sequence[Sequence[_Measured]],
        prepared: Sequence[PreparedObjective],
        step: Callable[[str], None],
    ) -> None:
        forward = any(isinstance(objective, Forward) for objective in prepared)
        targets = [of_target[0].target for of_target in group]

        def on_step(number: int, _model: object, objective: str) -> None:
            if objective or forward:
                step(targets[number].name + (f": {objective}" if objective else ""))

        outcomes = self.session.run(
            targets[0].prepared.models,
            [target.prepared.plan for target in targets],
            list(map(measurable, prepared)),
            latency=lambda number: Score(math.nan, math.inf, 0),  # none is asked for
            on_step=on_step,
        )
        for number, found in outcomes:
            for measured, outcome in zip(group[number], found, strict=True):
                measured.outcome = outcome

    def _outcomes(self, row: _Row) -> tuple[Outcome, Outcome | None]:
        """Return the outcome of a row's target, and that of the model of its bound."""
        if OBJECTIVES[row.entry.name].by == "clock":
            return self._latencies(row)
        beside = None if row.bounding is None else self._outcome(row, row.bounding)
        return self._outcome(row, row.target), beside

    def _outcome(self, row: _Row, target: Target) -> Outcome:
        if OBJECTIVES[row.entry.name].by == "headers":
            return attempt(partial(_size, target, row.entry))
        outcome = self._measured[self._key(row, target)].outcome
        assert outcome is not None, "all is measured before"
        return outcome

    def _latencies(self, row: _Row) -> tuple[Outcome, Outcome | None]:
        """Return the latencies of a target and of the model of its bound, measured by turns."""

        def measured() -> tuple[Score, Score | None]:
            live, *other = (
                self.session.stitch(target.prepared.models, target.prepared.plan).model
                for target in row.targets
            )
            speed, beside = speeds(live, other[0] if other else None)
            return latency_score(speed), None if beside is None else latency_score(beside)

        found = attempt(measured)
        return (found, None) if isinstance(found, Failure) else found

    # ------------------------------------------------------------------------------- what is found

    def _result(self, row: _Row) -> ExpectationResult:
        entry, words = row.entry, bounded_words(row.entry)
        score, beside = self._outcomes(row)
        compared = _compared(entry, score, beside)
        verdict = _verdict(entry, compared)
        value = None if isinstance(score, Failure) else Estimate(score.value, score.stderr)
        result = ExpectationResult(
            row.target.name, words, verdict, value, compared.bound, compared.difference,
            compared.reason,
        )  # fmt: skip
        if result.passed:
            return result
        at, why = ("expects", row.number), difference_words(result)
        origin = row.target.origin.origin
        settings = "" if origin is None else origin.source.settings
        of = f"the expectation {words}" + (f" with {settings}" if settings else "")
        if verdict == "fail":
            missed = Fault("M501", f"{of} is not met: {why}", at)
        else:
            missed = Fault("M502", f"{of} has no score: {why}", at)
        [fault] = locate([missed], origin)
        return replace(result, fault=fault)


def _refuse_texts(targets: Sequence[Target]) -> None:
    """Raise PlanError with all missing texts of expectations."""
    plans = (target.origin.model_copy(update={"search": None}) for target in targets)
    if faults := [f for plan in plans for f in text_faults(plan) if f.at[0] == "expects"]:
        raise PlanError(faults)


def _refuse_one_sample(measured: _Measured, objective: PreparedObjective) -> None:
    """Raise PlanError (M502) for a text with a single sample."""
    if objective.size < LEAST_SAMPLES:
        message = f"expected at least 2 samples for '{objective.name}', got {objective.size}"
        help_ = "one sample has no standard error: give a longer text"
        fault = Fault("M502", message, ("expects", measured.number), help_)
        raise PlanError(locate([fault], measured.target.origin.origin))


def _rows(target: Target) -> list[_Row]:
    bounding: dict[str, Target] = {}
    for entry in target.origin.expects:
        if (name := entry.bound.of) is not None and name not in bounding:
            own = target.base if name == "base" else None
            own = own or target.fit_inner(ready(base_of(target.origin, name)))
            bounding[name] = Target(name, own, target.origin, target.base)
    return [
        _Row(target, number, entry, None if entry.bound.of is None else bounding[entry.bound.of])
        for number, entry in enumerate(target.origin.expects)
    ]


def _stated(entry: Expectation) -> StatedObjective:
    """Return the measure of an expectation, in the direction that is better."""
    direction = OBJECTIVES[entry.name].direction or "maximize"
    return Objective(direction=direction, name=entry.name, arguments=entry.arguments), False


def _size(target: Target, entry: Expectation) -> Score:
    """Return a size of a target's output, from headers. Raises ObjectiveError if it is unknown."""
    prepared = target.prepared
    return size_score(entry.objective, prepared.compiled, prepared.models["base"])


@final
class _Compared(NamedTuple):
    """The bound of an expectation, and the difference from it; or the reason against one."""

    bound: float | None = None
    difference: Estimate | None = None
    reason: str = ""


def _compared(entry: Expectation, score: Outcome, beside: Outcome | None) -> _Compared:
    """Compare a score with a number, or sample by sample with a share of another score."""
    times = 1.0 if entry.bound.number is None else float(entry.bound.number)
    if isinstance(score, Failure):
        return _Compared(reason=score.message)
    if isinstance(beside, Failure):
        return _Compared(reason=f"'{entry.bound.of}': {beside.message}")
    if beside is None:
        return _finite(times, score.value - times, score.stderr)
    bound = times * beside.value
    if score.each is None or beside.each is None:
        stderr = math.hypot(score.stderr, times * beside.stderr) if times else score.stderr
        return _finite(bound, score.value - bound, stderr)
    if score.each.counts != beside.each.counts:
        reason = f"its samples have other tokens than those of '{entry.bound.of}'"
        return _Compared(bound, reason=reason)
    paired = paired_difference(score.each, beside.each, times)
    return _finite(bound, paired.value, paired.stderr)


def _finite(bound: float, value: float, stderr: float) -> _Compared:
    if math.isnan(value) or math.isnan(stderr):
        return _Compared(bound, reason="the value and its bound are infinite")
    return _Compared(bound, Estimate(value, stderr))


def _verdict(entry: Expectation, compared: _Compared) -> Literal["pass", "tie", "fail", "unknown"]:
    """Return the verdict: a bound is missed if the difference is beyond two standard errors.

    A difference without a known error, as that of a latency, is compared as it is.
    """
    if compared.difference is None:
        return "unknown"
    value, stderr = compared.difference
    beyond = value if entry.sign.startswith("<") else -value
    if math.isfinite(stderr) and stderr > 0 and abs(beyond) <= SURE * stderr:
        return "tie"
    missed = beyond > 0 or (beyond == 0 and entry.sign in ("<", ">"))
    return "fail" if missed else "pass"
