"""Trials: the closed plans of a space, scored on what a search sees and on what it never sees.

plan, models = opened(gptailor.load("space.tailor"))
trials = Trials(plan, models, seed=0)
for index, outcomes in trials.run(plans, trials.full, bridged=False):
    ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from torch import Tensor

from gptailor.checkpoint.models import Opened, open_models
from gptailor.evaluate.forward.evaluator import Evaluator, block_influence
from gptailor.evaluate.forward.requests import Results, Work
from gptailor.evaluate.judge import CACHE, Placement
from gptailor.evaluate.live.contents import Anatomy
from gptailor.evaluate.live.stitch import Stitched, Stitcher
from gptailor.evaluate.objectives import Forward, Judged, ObjectiveError, PreparedObjective
from gptailor.evaluate.objectives.tokens import digest
from gptailor.evaluate.outcome import Failure, Outcome, Score
from gptailor.evaluate.samples import (
    Parts,
    Samples,
    Wish,
    context_length,
    no_reference,
    parted,
    prepare_wishes,
    seen_of,
    wanted,
)
from gptailor.evaluate.scoring import AskedWorks, guarded, scored, unstitched
from gptailor.evaluate.targets import base_of
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.plan import Layer, LayerOf, Plan, Take
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.walk import named_models
from gptailor.prepare import ModelPaths, calibration_path, checked, commits_of, fetched, pinned
from gptailor.program.sources import Checked

Outcomes = tuple[Outcome, ...]
"""A score for each objective, or why there is none."""
NOTHING_HELD = Failure("error", "no samples are left that the search doesn't see")


def opened(
    plan: Plan, models: ModelPaths | None = None
) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    """An open plan with all its models, their weights fetched from the Hub, and its warnings.

    `models` gives other folders for the plan's names. Raises PlanError with all faults.
    """
    plan, found, faults = checked(plan, models)
    if errors(faults):
        raise PlanError(faults)
    if fetched(found, [file for model in found.values() for file in model.checkpoint.files]):
        plan, found, faults = checked(pinned(plan, commits_of(plan, found)), None)
    return plan, found, faults


@final
class Trials:
    """Scores of closed plans of one open plan, whose models are loaded once.

    `objectives` are those of the plan's `search` block without others; relative paths of others
    start at `folder`. Of each objective's samples, in the order that `seed` draws them in, a
    search sees the first: as many as `fidelity` goes up to; without it, three quarters of the
    smallest file's, at most 1024. What comes after them, as many at most, is held out.

    Raises CalibrationError for a file, ObjectiveError for an argument and for a file with fewer
    samples than `fidelity` goes up to, TailorError for a device that isn't there.
    """

    def __init__(  # noqa: PLR0913 (what a search is of, each by its name)
        self,
        plan: Plan,
        models: Mapping[str, Opened],
        *,
        objectives: Sequence[Wish] | None = None,
        folder: Path | None = None,
        place: Placement | None = None,
        fidelity: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.models = models
        self.place = place or Placement()
        self.seed = seed
        self.stitcher = self._stitcher(models)
        self.evaluator = Evaluator(cache=CACHE, device=self.stitcher.device)
        if objectives is None:
            folder = plan.origin.folder if plan.origin else None
            inside = plan.search.objectives if plan.search else ()
            objectives = [Wish(one, directed=True) for one in inside]
        self.wishes = tuple(objectives)
        self.folder = folder or Path()
        if not self.wishes:
            raise ObjectiveError("there is no objective to search by")
        self._digests: dict[str, str] = {}
        self._parts = self._parted(None if fidelity is None else fidelity[1])

    # ------------------------------------------------------------------------------------- samples

    def _parted(self, most: int | None) -> dict[str, Parts]:
        """The samples by tokenizer, of which the plans may have several."""
        drawn: dict[str, list[PreparedObjective]] = {}
        for name in self._tellers():
            key = self._digests[name] = digest(self.models[name])
            if key not in drawn:
                drawn[key] = self._prepared(self.models[name], wanted(most))
        sizes = [(one.name, one.size) for these in drawn.values() for one in these]
        self.full = seen_of(sizes, most)
        return {key: parted(these, self.full) for key, these in drawn.items()}

    def _tellers(self) -> list[str]:
        """The models whose tokenizer a plan of the space may have."""
        recipe = self.plan.tokenizer
        return ["base"] if recipe is None else [name for _, name, _ in named_models(recipe)]

    def _prepared(self, tokenizer_model: Opened, samples: int) -> list[PreparedObjective]:
        return prepare_wishes(
            self.wishes,
            Samples(self.folder, samples, self.seed),
            tokenizer_model,
            reference=self._reference,
            positions=context_length(self.models["base"].config),
        )

    def _of(self, plan: Plan) -> Parts:
        return self._parts[self._digests[Checked(plan, dict(self.models)).tokenizer_model.name]]

    @property
    def objectives(self) -> tuple[tuple[str, str, str], ...]:
        """Each objective's name, direction, and by what it is made comparable with others."""
        first = next(iter(self._parts.values()))
        return tuple((one.name, one.direction, one.normalise) for one in first.seen)

    @property
    def held(self) -> int:
        """How many samples are held out, of the objective that has the most; 0: there are none."""
        return max(self.helds)

    @property
    def helds(self) -> tuple[int, ...]:
        """How many samples are held out of each objective."""
        sizes = [
            [one.size if one is not None else 0 for one in parts.held]
            for parts in self._parts.values()
        ]
        return tuple(map(min, zip(*sizes, strict=True)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that objectives and bridges read, each once."""
        found = [
            self.folder / Path(str(wish.objective.arguments[argument.name])).expanduser()
            for wish in self.wishes
            for argument in OBJECTIVES[wish.objective.name].arguments
            if argument.kind == "path" and argument.name in wish.objective.arguments
        ]
        found += [calibration_path(self.plan, bridge.on) for bridge in self.plan.bridges]
        return tuple(dict.fromkeys(found))

    # -------------------------------------------------------------------------------------- scores

    def run(
        self, plans: Sequence[Plan], samples: int, *, bridged: bool
    ) -> Iterator[tuple[int, Outcomes]]:
        """Each plan's number and outcomes on the first samples, as soon as they are there.

        Plans that begin alike share layers, within one call and with those of the last ones. What
        goes wrong with one is its outcome. A plan's bridges are left out unless it is `bridged`.
        """
        if not 1 <= samples <= self.full:
            raise ValueError(f"a trial has 1 to {self.full} samples, not {samples}")
        return self._all(plans, bridged, lambda parts: parts.seen, samples)

    def held_out(self, plans: Sequence[Plan], *, bridged: bool) -> Iterator[tuple[int, Outcomes]]:
        """The same on all samples that the search never sees."""
        return self._all(plans, bridged, lambda parts: parts.held, None)

    def influence(self, plan: Plan, samples: int) -> tuple[float, ...]:
        """The block influence of each layer of a closed plan, bridges left out."""
        live = self.stitcher.stitch(_bare(plan))
        return block_influence(self.evaluator, live, self._of(plan).texts(samples))

    def _all(
        self,
        plans: Sequence[Plan],
        bridged: bool,
        which: Callable[[Parts], Sequence[PreparedObjective | None]],
        samples: int | None,
    ) -> Iterator[tuple[int, Outcomes]]:
        """Those with one tokenizer after the others: they have other works."""
        by_parts: dict[int, list[int]] = {}
        parts = [self._of(plan) for plan in plans]
        for number, one in enumerate(parts):
            by_parts.setdefault(id(one), []).append(number)
        for numbers in by_parts.values():
            objectives = which(parts[numbers[0]])
            run = _Run(self.stitcher, self.evaluator, objectives, samples)
            chosen = [plans[n] if bridged else _bare(plans[n]) for n in numbers]
            for index, outcomes in run.outcomes(chosen):
                yield numbers[index], outcomes

    # ---------------------------------------------------------------------------------- references

    def _reference(self, name: str, work: Work) -> Sequence[Tensor]:
        """What a model of the plan says of a work, as it is."""
        stitcher = self.stitcher
        if name != "base":  # as a base: its configuration and its number of layers are its own
            stitcher = self._stitcher({"base": replace(self._model(name), name="base")})
        found = self.evaluator.run(stitcher.stitch(base_of(self.plan)), [work])
        if isinstance(found, Failure):
            raise no_reference(name, found.message)
        return found[0]

    def _model(self, name: str) -> Opened:
        """A model that an objective names, though no plan takes anything of it."""
        if name in self.models:
            return self.models[name]
        if name not in self.plan.models:
            raise no_reference(name, "the plan has none of that name")
        taking = Layer(position=0, recipe=Take(take=LayerOf(model=name, layer=0)))
        user = self.plan.model_copy(update={"layers": (taking,)})
        found, faults = open_models(user)
        if errors(faults):
            raise PlanError(faults)
        return found[name]

    def _stitcher(self, models: Mapping[str, Opened]) -> Stitcher:
        place = self.place
        return Stitcher(models, device=place.device, dtype=place.dtype, memory=place.memory)


def _bare(plan: Plan) -> Plan:
    return plan.model_copy(update={"bridges": ()}) if plan.bridges else plan


@final
class _Run:
    """Some plans by some objectives; None is one without samples."""

    def __init__(
        self,
        stitcher: Stitcher,
        evaluator: Evaluator,
        objectives: Sequence[PreparedObjective | None],
        samples: int | None,
    ) -> None:
        self.stitcher = stitcher
        self.evaluator = evaluator
        self.objectives = objectives
        self.samples = samples
        self.asked: AskedWorks = {
            number: (objective, objective.work(samples))
            for number, objective in enumerate(objectives)
            if isinstance(objective, Forward)
        }

    def outcomes(self, plans: Sequence[Plan]) -> Iterator[tuple[int, Outcomes]]:
        """Of each plan."""
        anatomies: dict[int, Anatomy] = {}
        for number, plan in enumerate(plans):
            try:
                anatomies[number] = self.stitcher.anatomy(plan)
            except Exception as error:  # noqa: BLE001 (a trial's failure is a value, whatever it was)
                yield number, self._failed(unstitched(error))
        numbers = list(anatomies)
        for group in self.stitcher.together(list(anatomies.values())):
            yield from self._group({numbers[i]: anatomies[numbers[i]] for i in group})

    def _group(self, anatomies: Mapping[int, Anatomy]) -> Iterator[tuple[int, Outcomes]]:
        """Of those that are live at once."""
        live: dict[int, Stitched] = {}
        for number, anatomy in anatomies.items():
            try:
                live[number] = self.stitcher.live(anatomy)
            except Exception as error:  # noqa: BLE001 (a trial's failure is a value, whatever it was)
                yield number, self._failed(unstitched(error))
        numbers = list(live)
        for index, result in self._forward([live[number] for number in numbers]):
            yield numbers[index], self._outcomes(live[numbers[index]], result)

    def _forward(self, population: Sequence[Stitched]) -> Iterator[tuple[int, Results | Failure]]:
        if not self.asked:
            return ((index, []) for index in range(len(population)))
        works = [work for _, work in self.asked.values()]
        return self.evaluator.run_all(population, works)

    def _outcomes(self, stitched: Stitched, result: Results | Failure) -> Outcomes:
        found = scored(self.evaluator, stitched, self.asked, result)
        for number, objective in enumerate(self.objectives):
            if objective is None:
                found[number] = NOTHING_HELD
            elif isinstance(objective, Judged):
                found[number] = guarded(self._saying(objective, stitched))
        return tuple(found[number] for number in range(len(self.objectives)))

    def _saying(self, objective: Judged, stitched: Stitched) -> Callable[[], Score]:
        return lambda: objective.judge(stitched.model, self.samples)

    def _failed(self, why: Failure) -> Outcomes:
        return tuple(NOTHING_HELD if one is None else why for one in self.objectives)
