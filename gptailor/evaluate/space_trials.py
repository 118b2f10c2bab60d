"""A search's trials: the scores of closed plans of one open plan.

plan, models, _ = opened(gptailor.load("space.tailor"))
for index, outcomes in Trials(plan, models).run(plans, samples, stage="bare"):
    ...
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

from torch import Tensor

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened
from gptailor.evaluate.forward.requests import Work
from gptailor.evaluate.objectives.base import ObjectiveError, PreparedObjective
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.size_and_speed import OfPlan
from gptailor.evaluate.objectives.tokens import tokenizer_digest
from gptailor.evaluate.repair import Repairs
from gptailor.evaluate.rival_scores import Race
from gptailor.evaluate.samples import (
    Parts,
    Samples,
    StatedObjective,
    context_length,
    no_reference,
    parts_by_tokenizer,
)
from gptailor.evaluate.scores import Failure, Score
from gptailor.evaluate.session import Placement, Reading, Session
from gptailor.evaluate.targets import base_of, identity
from gptailor.evaluate.trial import Outcomes
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.model_dependencies import undecided_models
from gptailor.plan.plan import Layer, LayerOf, Plan, Take
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.sites import named_models
from gptailor.plan.stage import Stage, at_stage
from gptailor.prepare import (
    ModelPaths,
    calibration_path,
    commits_of,
    fetched,
    open_all_models,
    open_plan,
    pinned,
)
from gptailor.program.sources import tokenizer_owner


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
    smallest file's, at most 1024. What comes after them, as many at most, is held out. Plans are
    scored in `session`, else in a new one on the CPU.

    Raises CalibrationError for a file, ObjectiveError for an argument and for a file with fewer
    samples than `fidelity` goes up to, TailorError for a missing device.
    """

    def __init__(  # noqa: PLR0913 (what a search is of, each by its name)
        self,
        plan: Plan,
        models: Mapping[str, Opened],
        *,
        objectives: Sequence[StatedObjective] | None = None,
        folder: Path | None = None,
        session: Session | None = None,
        fidelity: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.models = models
        self.session = session or Session(Placement())
        self.session.repairs(models)  # a missing device is reported before a faulty text
        if objectives is None:
            folder = plan.origin.folder if plan.origin else None
            inside = plan.search.objectives if plan.search else ()
            objectives = [(one, True) for one in inside]
        self.stated = tuple(objectives)
        self.latencies = self.session.latencies(models, base_of(plan))
        self.folder = folder or Path()
        if not self.stated:
            raise ObjectiveError("there is no objective to search by")
        recipe = plan.rest("tokenizer")
        names = ["base"] if recipe is None else [name for _, name, _ in named_models(recipe)]
        self._digests = {name: tokenizer_digest(models[name]) for name in names}
        distinct = {digest: models[name] for name, digest in reversed(self._digests.items())}
        self.full, self._parts = parts_by_tokenizer(
            Samples(self.folder, None if fidelity is None else fidelity[1], seed),
            {digest: distinct[digest] for digest in self._digests.values()},
            self._prepare,
        )

    def _prepare(self, samples: Samples, tokenizer_model: Opened) -> Sequence[PreparedObjective]:
        base = self.models["base"]
        positions = context_length(base.config)
        reading = Reading(tokenizer_model, positions, identity(base), self.plan)
        return self.session.objectives(self.stated, samples, reading, self._reference)

    @property
    def repairs(self) -> Repairs:
        """Return the repairs over the models."""
        return self.session.repairs(self.models)

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
        return self.session.evaluator.block_influence(live, works)

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
                scored = self.session.run(
                    self.models, chosen, objectives, samples,
                    latency=partial(self._latency, chosen), race=race,
                )  # fmt: skip
                yield from ((group[at], outcomes) for at, outcomes in scored)

    def _latency(self, plans: Sequence[Plan], number: int) -> Score:
        return self.latencies.score(at_stage(plans[number], "bare"))

    def _reference(self, name: str, work: Work) -> Sequence[Tensor]:
        repairs = self.repairs
        if name != "base":  # as a base: its configuration and its number of layers are its own
            alone = {"base": replace(self._model(name), name="base")}
            repairs = self.session.place.repairs(alone)  # let go of after this
        return self.session.reference(repairs, base_of(self.plan), name, work)

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
