"""A search's trials: the scores of closed plans of one open plan.

plan, models, _ = opened(gptailor.load("space.tailor"))
trials = Trials(plan, models, objectives=[(objective, True) for objective in objectives])
for index, outcomes in trials.run(plans, samples, stage="bare"):
    ...
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened, folder_of, is_local
from gptailor.checks.texts import few_samples, text_errors_as_faults
from gptailor.evaluation.fits.repair import fit, fitted_inside
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.meter import (
    Meter,
    Placement,
    Reading,
    Samples,
    StatedObjective,
    context_length,
    no_reference,
)
from gptailor.evaluation.objectives.base import PreparedObjective
from gptailor.evaluation.objectives.likelihood import piece_bytes, surprise
from gptailor.evaluation.objectives.size_and_speed import OfPlan
from gptailor.evaluation.objectives.tokens import tokenizer_digest
from gptailor.evaluation.scores import Failure, Outcomes, Race
from gptailor.evaluation.speed import Latencies
from gptailor.evaluation.targets import base_of, identity
from gptailor.evaluation.trial import Ask
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import Fault, PlanError, errors
from gptailor.plan.model_dependencies import undecided_models
from gptailor.plan.plan import Layer, LayerOf, Plan, SizeCut, Take
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.sites import named_models, sizes_of
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
from gptailor.program.sources import output_tokenizer

_MOST_SEEN = 1024
"""The most samples of an objective that a search sees by default."""
_SEEN_SHARE = 0.75
"""The largest share of a file's samples that a search sees by default."""
NOTHING_HELD = Failure("error", "no samples remain beyond those of the search")


def opened(
    plan: Plan,
    models: ModelPaths | None = None,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    """Return an open plan, all its models with fetched weights, and its warnings.

    `models` gives other folders for the plan's names. The fits of plans that are its models are
    made on a device, in `memory`; `on_event` receives their progress. Raises PlanError with all
    faults.
    """
    loaded = open_plan(plan, models)
    loaded.sound()
    plan, headers = loaded.plan, loaded.models
    if fetched(headers, [file for model in headers.values() for file in model.checkpoint.files]):
        loaded = open_plan(pinned(plan, commits_of(plan, headers), headers), None)
    make = partial(fit, device=device, memory=memory, on_event=on_event)
    plan = fitted_inside(loaded.plan, loaded.models, make, on_event)
    loaded = loaded if plan is loaded.plan else open_plan(plan, None)
    return loaded.plan, loaded.models, loaded.faults


def _tokenizers_of(plan: Plan, models: Mapping[str, Opened]) -> Iterator[Opened]:
    """Yield the models with the tokenizers of an open plan's outputs.

    The vocabularies of a plan that cuts one include the whole vocabulary: the base is scored by it.
    """
    recipe = plan.rest("tokenizer")
    names = ["base"] if recipe is None else [name for _, name, _ in named_models(recipe)]
    cuts: list[SizeCut | None] = [None]
    if (cut := plan.vocabulary) is not None:
        cuts += [cut.model_copy(update={"size": size}) for size in sizes_of(plan, cut.size)]
    for name in names:
        tokenizer = Take(take=LayerOf(model=name)) if recipe is not None else plan.tokenizer
        for each in cuts:
            closed = plan.model_copy(update={"tokenizer": tokenizer, "vocabulary": each})
            yield output_tokenizer(closed, models)


def _key(tokenizer_model: Opened) -> Hashable:
    """Return a key of a model's tokenizer in a space."""
    return tokenizer_model.name, tokenizer_model.token_cut


@final
class Trials:
    """Scores of closed plans of one open plan. Models are loaded once.

    Relative paths of `objectives` start at `folder`. `seed` draws the order of each objective's
    samples, and a search sees the first ones. Their number is the larger of `fidelity`; without
    it, three quarters of the smallest file, at most 1024. At most as many of the following samples
    are held out. `meter` scores the plans; the default is a new one on the CPU.

    Raises PlanError for a file that the plan names, also for one with fewer samples than `fidelity`
    goes up to (C815), CalibrationError for any other file, ObjectiveError for an argument,
    TailorError for a missing device.
    """

    def __init__(  # noqa: PLR0913 (a search's parts, each by its name)
        self,
        plan: Plan,
        models: Mapping[str, Opened],
        *,
        objectives: Sequence[StatedObjective],
        folder: Path = Path(),
        meter: Meter | None = None,
        fidelity: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.models = models
        self.meter = meter or Meter(Placement())
        self.meter.repairs(models)  # a missing device is reported before a faulty text
        self.stated = tuple(objectives)
        stitch = partial(self.meter.stitch, models)
        self.latencies = Latencies(stitch, models, base_of(plan))
        self.folder = folder
        self._digests: dict[Hashable, str] = {}
        distinct: dict[str, Opened] = {}
        for model in _tokenizers_of(plan, models):
            digest = self._digests[_key(model)] = tokenizer_digest(model)
            distinct.setdefault(digest, model)
        self.by_byte = len(distinct) > 1
        most = None if fidelity is None else fidelity[1]
        samples = Samples(self.folder, 2 * (most or _MOST_SEEN), seed)
        with text_errors_as_faults(plan):
            drawn = {digest: self._drawn(samples, model) for digest, model in distinct.items()}
            self.full = self._count(most, [each for some in drawn.values() for each in some])
        full, each = self.full, drawn.items()
        self._seen = {key: tuple(o.part(0, full) for o in some) for key, some in each}
        self._held: dict[str, tuple[PreparedObjective | Failure, ...]] = {
            key: tuple(
                o.part(full, 2 * full) if o.size > full or isinstance(o, OfPlan) else NOTHING_HELD
                for o in some
            )
            for key, some in each
        }

    def _drawn(self, samples: Samples, tokenizer_model: Opened) -> Sequence[PreparedObjective]:
        """Return the objectives on twice the samples that a search sees, in a model's tokens."""
        base = self.models["base"]
        positions = context_length(base.config)
        piece = piece_bytes([positions]) if self.by_byte else None
        reading = Reading(tokenizer_model, positions, identity(base), self.plan, piece)
        reference = partial(self._reference, tokenizer_model)
        return self.meter.objectives(self.stated, samples, reading, reference)

    def _count(self, count: int | None, drawn: Sequence[PreparedObjective]) -> int:
        """Return the number of samples that a search sees.

        Raises PlanError (C815), at the plan's fidelity, for an objective with fewer.
        """
        sampled = [each for each in drawn if not isinstance(each, OfPlan)]
        if count is None:
            return max(1, min(_MOST_SEEN, *(int(_SEEN_SHARE * each.size) for each in sampled)))
        if few := [each for each in sampled if each.size < count]:
            raise PlanError([few_samples(self.plan, count, few[0].name, few[0].size)])
        return count

    def _digest(self, plan: Plan) -> str:
        """Return the digest of a plan's tokenizer, which identifies its samples."""
        return self._digests[_key(output_tokenizer(plan, self.models))]

    @property
    def objectives(self) -> tuple[tuple[str, str, str], ...]:
        """Each objective's name, direction, and normalisation."""
        return tuple(
            (objective.name, objective.direction, objective.normalise) for objective in self.seen
        )

    @property
    def seen(self) -> Sequence[PreparedObjective]:
        """The objectives on the samples that a search sees, by the first tokenizer."""
        return next(iter(self._seen.values()))

    @property
    def helds(self) -> tuple[int, ...]:
        """The number of held-out samples of each objective.

        If one objective has no such sample, all have 0, because plans are compared on all
        objectives together.
        """
        sizes = [
            [held.size for held in of_tokenizer if not isinstance(held, Failure)]
            for of_tokenizer in self._held.values()
        ]
        if any(len(of_tokenizer) < len(self.seen) for of_tokenizer in sizes):
            return (0,) * len(self.seen)
        return tuple(map(min, zip(*sizes, strict=True)))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that objectives, cuts, bridges and healing read, each once.

        A chat template in a file counts too.
        """
        paths = [
            self.folder / expanded(str(objective.arguments[argument.name]))
            for objective, _ in self.stated
            for argument in OBJECTIVES[objective.name].arguments
            if argument.name in objective.arguments
            and argument.is_file(str(objective.arguments[argument.name]))
        ]
        plan = self.plan.model_copy(update={"gguf": ()})  # no trial reads the texts of its files
        paths += [calibration_path(plan, text) for _, text in plan.calibration_texts]
        template = self.plan.chat_template
        if isinstance(template, str) and is_local(template):
            paths.append(folder_of(self.plan, template))
        return tuple(dict.fromkeys(paths))

    @property
    def reference_models(self) -> Mapping[str, Opened]:
        """The models that objectives compare with, and that no plan takes anything of."""
        names = (objective.arguments.get("from") for objective, _ in self.stated)
        return {
            name: self._model(name)
            for name in dict.fromkeys(map(str, filter(None, names)))
            if name in self.plan.models and name not in self.models
        }

    def run(
        self, plans: Sequence[Plan], samples: int | None, *, stage: Stage, race: Race | None = None
    ) -> Iterator[tuple[int, Outcomes]]:
        """Yield each plan's number and outcomes on the first samples, as soon as it is scored.

        Without a number of samples plans are scored on all held-out ones. In a `race` a losing plan
        has outcomes on the samples that showed its loss. Without one, or if an objective generates
        text, all samples are used.

        Plans that begin alike share layers, within one call and with the plans of the last call. A
        plan's failure is its outcome. `stage` decides whether plans are bridged and healed. Plans
        are healed one after another.
        """
        asks = []
        for plan in plans:
            digest, asked = self._digest(plan), at_stage(plan, stage)
            objectives = self._held[digest] if samples is None else self._seen[digest]
            latency = partial(self.latencies.score, at_stage(asked, "bare"))
            asks.append(Ask(self.models, asked, objectives, latency))
        return self.meter.run(asks, samples, race=race, alone=stage == "healed")

    def block_influence(self, plan: Plan, samples: int) -> tuple[float, ...]:
        """Return the block influence of each layer of a closed plan without bridges and healing."""
        live = self.meter.repairs(self.models).stitcher.stitch(at_stage(plan, "bare"))
        works = [
            Work(objective.requests(samples), surprise)
            for objective in self._seen[self._digest(plan)]
            if not isinstance(objective, OfPlan)
        ]
        return self.meter.evaluator.block_influence(live, works)

    def _reference(self, tokenizer_model: Opened, name: str, work: Work) -> Sequence[Tensor]:
        repairs = self.meter.repairs(self.models)
        if name != "base":  # opened as a base, for its own configuration and number of layers
            alone = {"base": replace(self._model(name), name="base")}
            repairs = self.meter.place.repairs(alone)  # released after this
        return self.meter.reference(repairs, base_of(self.plan), tokenizer_model, name, work)

    def _model(self, name: str) -> Opened:
        """Return a model that an objective names, opening it if no plan takes a part of it."""
        if name not in self.plan.models:
            raise no_reference(name, "the plan has no such model")
        if name in undecided_models(self.plan):
            raise no_reference(name, "it has choices, so it isn't one model")
        if name in self.models:
            return self.models[name]
        taking = Layer(position=0, recipe=Take(take=LayerOf(model=name, layer=0)))
        user = self.plan.model_copy(update={"layers": (taking,)})
        opened_models, faults = open_all_models(user)
        if errors(faults):
            raise PlanError(faults)
        make = partial(fit, device=self.meter.place.device, memory=self.meter.place.memory)
        return open_all_models(fitted_inside(user, opened_models, make))[0][name]
