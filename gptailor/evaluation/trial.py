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
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.live.content_keys import ModelContents, cause_of_nan
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
    """Asks by their numbers. Their plans share layers, objectives and samples.

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
        sizes_alone = all(isinstance(objective, OfPlan) for objective in self.objectives)
        resolved = self.repairs.stitcher.table.resolved
        contents: dict[int, ModelContents] = {}
        for number, ask in self.asks.items():
            made = (
                None if sizes_alone else attempt(partial(self.repairs.contents, resolved(ask.plan)))
            )
            if isinstance(made, ModelContents):
                contents[number] = made
            else:
                yield number, self._outcomes(number, made, {})
        for number, outcomes in self._scored(contents):
            yield number, self._explained(outcomes, contents[number])

    def _scored(self, contents: Mapping[int, ModelContents]) -> Iterator[tuple[int, Outcomes]]:
        """Yield the numbers and outcomes of plans by their contents, as soon as each is scored.

        In a race all plans run on their first samples. Then the plans that have not lost run on the
        next samples.
        """
        works = {
            at: objective.work(self.samples)
            for at, objective in enumerate(self.objectives)
            if isinstance(objective, Forward)
        }
        racing = self.race is not None and len(works) == len(self.objectives)
        looks: list[tuple[int | None, Sequence[Work]]] = [(self.samples, list(works.values()))]
        if racing and self.samples is not None:
            counts = (*race_counts(self.samples), self.samples)
            parts = zip(*(work.parts for work in works.values()), strict=True)
            looks = [look for look in zip(counts, parts, strict=True) if look[0]]
        known: dict[int, dict[int, list[Tensor]]] = {n: {at: [] for at in works} for n in contents}
        stitch = self.repairs.stitcher.live
        for count, asked in looks:
            running = {number: contents[number] for number in known}
            for number, live, result in self.evaluator.run_all(running, asked, stitch):
                measured: Mapping[int, Sequence[Tensor] | Failure] = known[number]
                if not isinstance(result, Failure):
                    for at, tensors in zip(works, result, strict=True):
                        known[number][at].extend(tensors)
                elif isinstance(live, Stitched) and len(works) > 1 and not racing:
                    measured = self._alone(live, works)
                else:
                    measured = dict.fromkeys(works, result)
                outcomes = self._outcomes(number, live, measured)
                if count == self.samples or self._ended(outcomes):
                    del known[number]
                    yield number, outcomes
                del live  # before the next plan is stitched

    def _alone(
        self, live: Stitched, works: Mapping[int, Work]
    ) -> Mapping[int, Sequence[Tensor] | Failure]:
        """Return the measurements of each work, run by itself to find the failing work."""
        alone = {at: self.evaluator.run(live, [work]) for at, work in works.items()}
        return {at: r if isinstance(r, Failure) else r[0] for at, r in alone.items()}

    def _ended(self, outcomes: Outcomes) -> bool:
        """Return whether a plan has failed, or has lost its race."""
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        each = tuple(score.each for score in scores if score.each is not None)
        if len(scores) < len(outcomes):
            return True
        return len(each) == len(outcomes) and self.race is not None and self.race.lost(each)

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
        """Name the objective with NaN predictions, and the stored tensor that isn't finite."""
        if not any(isinstance(each, Failure) and each.reason == "nan" for each in outcomes):
            return outcomes
        why = cause_of_nan(contents, self.repairs.stitcher.computing_dtype(contents))
        return tuple(
            Failure("nan", f"{objective.name}: {outcome.message}; {why}")
            if isinstance(outcome, Failure)
            and outcome.reason == "nan"
            and not isinstance(objective, Failure)
            else outcome
            for outcome, objective in zip(outcomes, self.objectives, strict=True)
        )


def _of_plan(ask: Ask, objective: OfPlan) -> Score:
    """Return the score of a plan that needs no text. Raises TailorError without such a score."""
    if objective.stated.name == "latency":
        assert ask.latency is not None, "it can be measured"
        return ask.latency()
    checked = Checked.of(ask.plan, ask.models)
    return size_score(objective.stated, checked, compile_plan(checked))
