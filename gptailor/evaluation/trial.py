"""Trials: stitch plans, run them forward, generate text, and score the results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias, final

from torch import Tensor
from transformers import PreTrainedModel

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.evaluator import Evaluator, attempt
from gptailor.evaluation.live.content_keys import ModelContents, not_finite
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.objectives.base import Forward, PreparedObjective
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.size_and_speed import OfPlan, size_score
from gptailor.evaluation.scores import Failure, Outcome, Outcomes, Race, Score, race_counts
from gptailor.plan.plan import Plan
from gptailor.program.compile import compile_plan
from gptailor.program.sources import Checked

Objectives: TypeAlias = Sequence[PreparedObjective | Failure]
"""Objectives that score plans; a failure in an objective's place applies to all plans."""


@final
class Ask(NamedTuple):
    """A closed plan to be scored with its opened models, by objectives.

    `latency` measures its latency, for an objective that asks for it. `name` begins the words of a
    step. `on_live` receives the live model after its forward pass.
    """

    models: Mapping[str, Opened]
    plan: Plan
    objectives: Objectives
    latency: Callable[[], Score] | None = None
    name: str = ""
    on_live: Callable[[PreTrainedModel], None] = lambda model: None


@final
@dataclass(frozen=True)
class AskedTogether:
    """Asks by their numbers, whose plans share layers, objectives and samples.

    `samples` is the number of first samples, or None for all. In a `race` a losing plan has scores
    of the samples that showed its loss. `on_step` receives a plan's name after its forward pass,
    and again with an objective's name after the text for it is generated.
    """

    repairs: Repairs
    evaluator: Evaluator
    asks: Mapping[int, Ask]
    objectives: Objectives
    samples: int | None
    race: Race | None
    on_step: Callable[[str], None]

    def outcomes(self) -> Iterator[tuple[int, Outcomes]]:
        """Yield each plan's number, and a score or a failure for each objective.

        Plans that begin alike run one after another, and share layers and hidden states.
        """
        if all(isinstance(objective, OfPlan) for objective in self.objectives):
            yield from ((number, self._outcomes(number, None, {})) for number in self.asks)
            return
        table = self.repairs.stitcher.table
        made = {
            number: attempt(partial(self.repairs.contents, table.resolved(ask.plan)))
            for number, ask in self.asks.items()
        }
        yield from self._failures(made)
        contents = {n: result for n, result in made.items() if isinstance(result, ModelContents)}
        for number, outcomes in self._scored(contents):
            yield number, self._explained(outcomes, contents[number])

    def _scored(self, contents: Mapping[int, ModelContents]) -> Iterator[tuple[int, Outcomes]]:
        """Score the live models of plans' contents."""
        stitcher = self.repairs.stitcher
        forward = [each for each in self.objectives if isinstance(each, Forward)]
        forward_only = len(forward) == len(self.objectives)
        for group in stitcher.together(contents):
            made = {number: attempt(partial(stitcher.live, contents[number])) for number in group}
            yield from self._failures(made)
            live = {n: result for n, result in made.items() if isinstance(result, Stitched)}
            if self.race is not None and self.samples is not None and forward_only:
                yield from self._raced(live, forward, self.samples, self.race)
            else:
                for number, measured in self._measured(live):
                    yield number, self._outcomes(number, live[number], measured)
            del made, live  # before the next group is stitched

    def _failures(self, made: Mapping[int, object]) -> Iterator[tuple[int, Outcomes]]:
        """Yield the outcomes of plans that can't be stitched."""
        failures = {n: result for n, result in made.items() if isinstance(result, Failure)}
        return ((number, self._outcomes(number, why, {})) for number, why in failures.items())

    def _measured(
        self, live: Mapping[int, Stitched]
    ) -> Iterator[tuple[int, Mapping[int, Sequence[Tensor] | Failure]]]:
        """Yield each plan's number and its forward pass's measurements, by objectives' numbers.

        After a failure each objective's work runs alone, to find the one that fails.
        """
        works = {
            at: objective.work(self.samples)
            for at, objective in enumerate(self.objectives)
            if isinstance(objective, Forward)
        }
        if not works:
            yield from ((number, {}) for number in live)
            return
        for number, result in self.evaluator.run_all(live, list(works.values())):
            if not isinstance(result, Failure):
                yield number, dict(zip(works, result, strict=True))
            elif len(works) == 1:
                yield number, dict.fromkeys(works, result)
            else:
                alone = {at: self.evaluator.run(live[number], [work]) for at, work in works.items()}
                yield number, {n: r if isinstance(r, Failure) else r[0] for n, r in alone.items()}

    def _raced(
        self, live: Mapping[int, Stitched], objectives: Sequence[Forward], samples: int, race: Race
    ) -> Iterator[tuple[int, Outcomes]]:
        """Yield the outcomes of plans that run against rivals, on all samples or the first ones.

        All plans run on their first samples. Then the plans that have not lost run on the next
        samples. Plans that begin alike share hidden states.
        """
        works = [objective.work(samples) for objective in objectives]
        tensors: dict[int, list[list[Tensor]]] = {number: [[] for _ in works] for number in live}
        for part, count in enumerate((*race_counts(samples), samples)):
            if not count:
                continue
            running = {number: live[number] for number in tensors}
            for number, result in self.evaluator.run_all(running, [w.parts[part] for w in works]):
                if isinstance(result, Failure):
                    del tensors[number]
                    yield number, (result,) * len(objectives)
                    continue
                for earlier, more in zip(tensors[number], result, strict=True):
                    earlier.extend(more)
                outcomes = tuple(
                    attempt(partial(objective.score, results))
                    for objective, results in zip(objectives, tensors[number], strict=True)
                )
                scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
                each = tuple(score.each for score in scores if score.each is not None)
                failed = len(scores) < len(outcomes)
                if count == samples or failed or (len(each) == len(outcomes) and race.lost(each)):
                    del tensors[number]
                    yield number, outcomes

    def _outcomes(
        self,
        number: int,
        live: Stitched | Failure | None,
        measured: Mapping[int, Sequence[Tensor] | Failure],
    ) -> Outcomes:
        """Return the outcomes of a live model or of its failure; only sizes need neither."""
        ask = self.asks[number]
        if isinstance(live, Stitched):
            ask.on_live(live.model)
            if any(isinstance(objective, Forward) for objective in ask.objectives):
                self.on_step(ask.name)
        outcomes: list[Outcome] = []
        for at, objective in enumerate(self.objectives):
            if isinstance(objective, OfPlan):
                outcome: Outcome = attempt(partial(_of_plan, ask, objective))
            elif isinstance(objective, Failure):
                outcome = objective
            elif not isinstance(live, Stitched):
                assert live is not None, "only sizes are asked for"
                outcome = live
            elif isinstance(objective, Generative):
                outcome = attempt(partial(objective.evaluate, live.model, self.samples))
                self.on_step(f"{ask.name}: {objective.name}")
            else:
                assert isinstance(objective, Forward)
                result = measured[at]
                outcome = (
                    result
                    if isinstance(result, Failure)
                    else attempt(partial(objective.score, result))
                )
            outcomes.append(outcome)
        return tuple(outcomes)

    def _explained(self, outcomes: Outcomes, contents: ModelContents) -> Outcomes:
        """Name the objective whose predictions are NaN, and the stored tensor that isn't finite."""
        if not any(isinstance(each, Failure) and each.reason == "nan" for each in outcomes):
            return outcomes
        why = not_finite(contents) or "all stored tensors are finite"
        return tuple(
            Failure("nan", f"{objective.name}: {outcome.message}; {why}")
            if isinstance(outcome, Failure)
            and outcome.reason == "nan"
            and not isinstance(objective, Failure)
            else outcome
            for outcome, objective in zip(outcomes, self.objectives, strict=True)
        )


def _of_plan(ask: Ask, objective: OfPlan) -> Score:
    """Return the score of a plan that needs no text. Raises TailorError if it has none."""
    if objective.by == "clock":
        assert ask.latency is not None, "it can be measured"
        return ask.latency()
    checked = Checked.of(ask.plan, ask.models)
    return size_score(objective.stated, compile_plan(checked), checked.base)
