"""What happens in a trial: a plan is stitched, run forward, and made to write; that is scored.

`run_trials` does it for `eval` and for `search`; `Trials` is what a search asks of it:

    plan, models, _ = opened(gptailor.load("space.tailor"))
    for index, outcomes in Trials(plan, models).run(plans, samples, stage="bare"):
        ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened
from gptailor.evaluate.dtype import quick_dtype
from gptailor.evaluate.forward.evaluator import Evaluator, attempt
from gptailor.evaluate.forward.requests import Work
from gptailor.evaluate.live.contents import ModelContents, not_finite
from gptailor.evaluate.live.stitch import Stitched, Stitcher
from gptailor.evaluate.objectives.base import Forward, ObjectiveError, PreparedObjective
from gptailor.evaluate.objectives.generate import Generative
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.of_plan import OfPlan, OfPlans, size_score
from gptailor.evaluate.objectives.tokens import tokenizer_digest
from gptailor.evaluate.outcome import Failure, Outcome, Score
from gptailor.evaluate.race import raced
from gptailor.evaluate.repair import Repairs
from gptailor.evaluate.rivals import Race
from gptailor.evaluate.samples import (
    Parts,
    Samples,
    StatedObjective,
    no_reference,
    parts_by_tokenizer,
)
from gptailor.evaluate.speed import Latencies
from gptailor.evaluate.targets import base_of
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.needed import undecided_models
from gptailor.plan.plan import Layer, LayerOf, Plan, Take
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import Stage, at_stage
from gptailor.plan.walk import named_models
from gptailor.prepare import (
    ModelPaths,
    calibration_path,
    commits_of,
    fetched,
    open_all_models,
    open_plan,
    pinned,
)
from gptailor.program.compile import compile_plan
from gptailor.program.sources import Checked, tokenizer_owner

PREFIX_BYTES = 2**30
"""Bytes of hidden states where plans part: their common beginning runs once."""

Outcomes: TypeAlias = tuple[Outcome, ...]
"""A score for each objective, or why there is none."""

Objectives: TypeAlias = Sequence[PreparedObjective | Failure]
"""What plans are scored by; a failure in an objective's place is that of all plans."""

OnStep: TypeAlias = Callable[[int, PreTrainedModel, str], None]
"""Told a plan's number and live model after its forward pass, and again after the text that is made
for an objective, with the objective's name."""


def run_trials(  # noqa: PLR0913 (what a trial is of, and who hears of it)
    repairs: Repairs,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    objectives: Objectives,
    samples: int | None = None,
    *,
    on_step: OnStep = lambda number, model, objective: None,
    race: Race | None = None,
    of_plans: OfPlans | None = None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score closed plans by the first samples of all objectives: each as soon as it is there.

    Yields the plan's number, and a score or a failure for each objective. Plans that begin alike
    run one after another, and share layers and hidden states. In a `race` one that has lost has
    scores of the samples that this took. What needs no samples is asked `of_plans`.
    """
    read = [one for one in objectives if not isinstance(one, OfPlan)]
    if len(read) == len(objectives):
        yield from _read_trials(repairs, evaluator, plans, read, samples, on_step, race)
        return
    found: Iterable[tuple[int, Outcomes]] = ((number, ()) for number in range(len(plans)))
    if read:
        found = _read_trials(repairs, evaluator, plans, read, samples, on_step, None)
    assert of_plans is not None, "something measures what isn't read"
    for number, outcomes in found:
        left = iter(outcomes)
        yield (
            number,
            tuple(
                attempt(partial(of_plans, number, one)) if isinstance(one, OfPlan) else next(left)
                for one in objectives
            ),
        )


def _read_trials(  # noqa: PLR0913, PLR0917 (as above)
    repairs: Repairs,
    evaluator: Evaluator,
    plans: Sequence[Plan],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score plans by what they say of texts."""
    contents = {n: attempt(partial(repairs.contents, plan)) for n, plan in enumerate(plans)}
    yield from failures(contents, objectives)
    stitcher = repairs.stitcher
    made = {number: one for number, one in contents.items() if isinstance(one, ModelContents)}
    for number, outcomes in _live_trials(
        stitcher, evaluator, made, objectives, samples, on_step, race
    ):
        yield number, _explained(outcomes, objectives, made[number])


def _explained(outcomes: Outcomes, objectives: Objectives, contents: ModelContents) -> Outcomes:
    """Name the objective whose predictions are NaN, and the stored tensor that is not finite."""
    if not any(isinstance(one, Failure) and one.reason == "nan" for one in outcomes):
        return outcomes
    why = not_finite(contents) or "all stored tensors are finite"
    return tuple(
        Failure("nan", f"{objective.name}: {outcome.message}; {why}")
        if isinstance(outcome, Failure)
        and outcome.reason == "nan"
        and not isinstance(objective, Failure)
        else outcome
        for outcome, objective in zip(outcomes, objectives, strict=True)
    )


def _live_trials(  # noqa: PLR0913, PLR0917 (as above)
    stitcher: Stitcher,
    evaluator: Evaluator,
    made: Mapping[int, ModelContents],
    objectives: Objectives,
    samples: int | None,
    on_step: OnStep,
    race: Race | None,
) -> Iterator[tuple[int, Outcomes]]:
    """Score plans whose pieces are known."""
    forward = [one for one in objectives if isinstance(one, Forward)]
    numbers = list(made)
    for group in stitcher.together(list(made.values())):
        stitched = {numbers[at]: attempt(partial(stitcher.live, made[numbers[at]])) for at in group}
        yield from failures(stitched, objectives)
        live = {number: one for number, one in stitched.items() if isinstance(one, Stitched)}
        if race is not None and samples is not None and len(forward) == len(objectives):
            yield from raced(evaluator, live, forward, samples, race)
            live.clear()
        for number, measured in _forward(evaluator, live, objectives, samples):
            done = partial(on_step, number)
            yield number, _outcomes(objectives, live[number].model, samples, measured, done)
        del stitched, live  # before the next ones are made


def failures(found: Mapping[int, object], objectives: Objectives) -> Iterator[tuple[int, Outcomes]]:
    """The outcomes of plans of which there is no live model."""
    for number, why in found.items():
        if isinstance(why, Failure):
            yield number, tuple(one if isinstance(one, Failure) else why for one in objectives)


def _forward(
    evaluator: Evaluator, live: Mapping[int, Stitched], objectives: Objectives, samples: int | None
) -> Iterator[tuple[int, Mapping[int, Sequence[Tensor] | Failure]]]:
    """What one forward pass of each plan measures for each objective, by their numbers.

    After a failure each objective's work runs alone, to know whose it is.
    """
    works = {n: one.work(samples) for n, one in enumerate(objectives) if isinstance(one, Forward)}
    if not works:
        yield from ((number, {}) for number in live)
        return
    numbers = list(live)
    for at, result in evaluator.run_all(list(live.values()), list(works.values())):
        if not isinstance(result, Failure):
            yield numbers[at], dict(zip(works, result, strict=True))
        elif len(works) == 1:
            yield numbers[at], dict.fromkeys(works, result)
        else:
            alone = {n: evaluator.run(live[numbers[at]], [work]) for n, work in works.items()}
            yield numbers[at], {n: r if isinstance(r, Failure) else r[0] for n, r in alone.items()}


def _outcomes(
    objectives: Objectives,
    model: PreTrainedModel,
    samples: int | None,
    measured: Mapping[int, Sequence[Tensor] | Failure],
    done: Callable[[PreTrainedModel, str], None],
) -> Outcomes:
    done(model, "")
    outcomes: list[Outcome] = []
    for number, objective in enumerate(objectives):
        if isinstance(objective, Failure):
            outcomes.append(objective)
        elif isinstance(objective, Generative):
            outcomes.append(attempt(partial(objective.judge, model, samples)))
            done(model, objective.name)
        else:
            assert isinstance(objective, Forward)
            found = measured[number]
            score = objective.score
            outcomes.append(found if isinstance(found, Failure) else attempt(partial(score, found)))
    return tuple(outcomes)


# ------------------------------------------------------------------------------- a search's trials


@final
class Placement(NamedTuple):
    """Where models live: a device, a dtype if one is asked for, and bytes of weights at most.

    Of several `gpus` the others hold layers that wait. Without a dtype models have the one that is
    quick there, or each its `own`.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    memory: int | None = None
    gpus: int = 1
    own: bool = False

    def repairs(self, models: Mapping[str, Opened], on_event: OnEvent = ignore_events) -> Repairs:
        """Return the repairs over the models there. Raises TailorError as `Stitcher` does."""
        device, dtype, memory, gpus, own = self
        dtype = dtype or (None if own else quick_dtype(models, device))
        stitcher = Stitcher(models, device=device, dtype=dtype, memory=memory, gpus=gpus)
        return Repairs(stitcher, on_event)


def opened(
    plan: Plan, models: ModelPaths | None = None
) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    """An open plan with all its models, their weights fetched from the Hub, and its warnings.

    `models` gives other folders for the plan's names. Raises PlanError with all faults.
    """
    first = open_plan(plan, models)
    first.sound()
    plan, known = first.plan, first.models
    if fetched(known, [file for model in known.values() for file in model.checkpoint.files]):
        first = open_plan(pinned(plan, commits_of(plan, known), known), None)
    return first.plan, first.models, first.faults


@final
class Trials:
    """Scores of closed plans of one open plan, whose models are loaded once.

    `objectives` are those of the plan's `search` block without others; relative paths of others
    start at `folder`. Of each objective's samples, in the order that `seed` draws them in, a
    search sees the first: as many as `fidelity` goes up to; without it, three quarters of the
    smallest file's, at most 1024. What comes after them, as many at most, is held out. `on_event`
    receives how plans are bridged and healed.

    Raises CalibrationError for a file, ObjectiveError for an argument and for a file with fewer
    samples than `fidelity` goes up to, TailorError for a device that isn't there.
    """

    def __init__(  # noqa: PLR0913 (what a search is of, each by its name)
        self,
        plan: Plan,
        models: Mapping[str, Opened],
        *,
        objectives: Sequence[StatedObjective] | None = None,
        folder: Path | None = None,
        place: Placement | None = None,
        fidelity: tuple[int, int] | None = None,
        seed: int = 0,
        on_event: OnEvent = ignore_events,
    ) -> None:
        self.plan = plan
        self.models = models
        self.place = place or Placement()
        self.repairs = self.place.repairs(models, on_event)
        self.evaluator = Evaluator(cache=PREFIX_BYTES, device=self.repairs.stitcher.device)
        if objectives is None:
            folder = plan.origin.folder if plan.origin else None
            inside = plan.search.objectives if plan.search else ()
            objectives = [(one, True) for one in inside]
        self.stated = tuple(objectives)
        self.latencies = Latencies(self.repairs.stitcher, models, base_of(plan))
        self.folder = folder or Path()
        if not self.stated:
            raise ObjectiveError("there is no objective to search by")
        recipe = plan.rest("tokenizer")
        names = ["base"] if recipe is None else [name for _, name, _ in named_models(recipe)]
        self._digests = {name: tokenizer_digest(models[name]) for name in names}
        distinct = {digest: models[name] for name, digest in reversed(self._digests.items())}
        self.full, self._parts = parts_by_tokenizer(
            self.stated,
            Samples(self.folder, None if fidelity is None else fidelity[1], seed),
            {digest: distinct[digest] for digest in self._digests.values()},
            models["base"],
            self._reference,
        )

    def _of(self, plan: Plan) -> Parts:
        return self._parts[self._digests[tokenizer_owner(plan, self.models).name]]

    @property
    def objectives(self) -> tuple[tuple[str, str, str], ...]:
        """Each objective's name, direction, and by what it is made comparable with others."""
        return tuple((one.name, one.direction, one.normalise) for one in self.seen)

    @property
    def seen(self) -> Sequence[PreparedObjective]:
        """The objectives on the samples that a search sees, by the first of the tokenizers."""
        return next(iter(self._parts.values())).seen

    @property
    def helds(self) -> tuple[int, ...]:
        """How many samples are held out of each objective."""
        sizes = [
            [0 if isinstance(one, Failure) else one.size for one in parts.held]
            for parts in self._parts.values()
        ]
        return tuple(map(min, zip(*sizes, strict=True)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that objectives, bridges and healing read, each once."""
        found = [
            self.folder / expanded(str(objective.arguments[argument.name]))
            for objective, _ in self.stated
            for argument in OBJECTIVES[objective.name].arguments
            if argument.kind == "path" and argument.name in objective.arguments
        ]
        texts = [bridge.on for bridge in self.plan.bridges]
        texts += [] if self.plan.heal is None else [self.plan.heal.on]
        found += [calibration_path(self.plan, text) for text in texts]
        return tuple(dict.fromkeys(found))

    def run(
        self, plans: Sequence[Plan], samples: int, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, Outcomes]]:
        """Each plan's number and outcomes on the first samples, as soon as they are there.

        In a `race` these are the samples that it took to see that a plan has lost; without one,
        and where an objective has text made, all of them.

        Plans that begin alike share layers, within one call and with those of the last ones. What
        goes wrong with one is its outcome. `stage` says whether plans are bridged and healed; those
        that are healed come one after another.
        """
        if not 1 <= samples <= self.full:
            raise ValueError(f"a trial has 1 to {self.full} samples, not {samples}")
        return self._run(plans, stage, samples, race)

    def held_out(self, plans: Sequence[Plan], *, stage: Stage) -> Iterator[tuple[int, Outcomes]]:
        """The same on all samples that the search never sees."""
        return self._run(plans, stage, None)

    def block_influence(self, plan: Plan, samples: int) -> tuple[float, ...]:
        """The block influence of each layer of a closed plan, neither bridged nor healed."""
        live = self.repairs.stitcher.stitch(at_stage(plan, "bare"))
        seen = (one for one in self._of(plan).seen if not isinstance(one, OfPlan))
        works = [Work(one.requests(samples), surprise) for one in seen]
        return self.evaluator.block_influence(live, works)

    def _run(
        self, plans: Sequence[Plan], stage: Stage, samples: int | None, race: Race | None = None
    ) -> Iterator[tuple[int, Outcomes]]:
        """Those with one tokenizer after the others, which have other works; None: what is held."""
        by_parts: dict[int, list[int]] = {}
        parts = [self._of(plan) for plan in plans]
        for number, one in enumerate(parts):
            by_parts.setdefault(id(one), []).append(number)
        for numbers in by_parts.values():
            objectives = parts[numbers[0]].held if samples is None else parts[numbers[0]].seen
            groups = [[n] for n in numbers] if stage == "healed" else [numbers]
            for group in groups:
                chosen = [at_stage(plans[n], stage) for n in group]
                of_plans = partial(self._of_plan, chosen)
                found = run_trials(
                    self.repairs, self.evaluator, chosen, objectives, samples,
                    race=race, of_plans=of_plans,
                )  # fmt: skip
                yield from ((group[at], outcomes) for at, outcomes in found)

    def _of_plan(self, plans: Sequence[Plan], number: int, objective: OfPlan) -> Score:
        """A size by headers, or the latency."""
        if objective.by == "headers":
            checked = Checked.of(plans[number], self.models)
            return size_score(objective, compile_plan(checked), checked.base.layout)
        return self.latencies.score(at_stage(plans[number], "bare"))

    def _reference(self, name: str, work: Work) -> Sequence[Tensor]:
        repairs = self.repairs
        if name != "base":  # as a base: its configuration and its number of layers are its own
            repairs = self.place.repairs({"base": replace(self._model(name), name="base")})
        found = self.evaluator.run(repairs.stitch(base_of(self.plan)), [work])
        if isinstance(found, Failure):
            raise no_reference(name, found.message)
        return found[0]

    def _model(self, name: str) -> Opened:
        """A model that an objective names, though no plan takes anything of it."""
        if name not in self.plan.models:
            raise no_reference(name, "the plan has none of that name")
        if name in undecided_models(self.plan):
            raise no_reference(name, "it has choices, and isn't one model")
        if name in self.models:
            return self.models[name]
        taking = Layer(position=0, recipe=Take(take=LayerOf(model=name, layer=0)))
        user = self.plan.model_copy(update={"layers": (taking,)})
        found, faults = open_all_models(user)
        if errors(faults):
            raise PlanError(faults)
        return found[name]
