"""The session that scores plans: loaded models and prepared objectives, shared by all plans.

`eval` scores targets in a session, and a search scores the plans of one space in another. A
session loads the models of each family of plans once, and draws an objective's samples once.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple, final

import torch
from torch import Tensor

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.dtype import quick_dtype
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.evaluator import Evaluator, attempt
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.objectives.base import PreparedObjective, Reference
from gptailor.evaluation.objectives.size_and_speed import OfPlan, size_score
from gptailor.evaluation.objectives.tokens import tokenizer_digest
from gptailor.evaluation.rival_scores import Race
from gptailor.evaluation.samples import Samples, StatedObjective, no_reference, prepare_objectives
from gptailor.evaluation.scores import Failure, Score
from gptailor.evaluation.speed import Latencies
from gptailor.evaluation.targets import identity
from gptailor.evaluation.trial import (
    Objectives,
    OnStep,
    Outcomes,
    failures,
    ignore_steps,
    run_trials,
)
from gptailor.lang.words import objective_words
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared
from gptailor.program.compile import compile_plan
from gptailor.program.devices import device_of
from gptailor.program.sources import Checked

_PREFIX_BYTES = 2**30
"""Bytes of hidden states that are kept where plans part, so that a common beginning runs once."""
_LIVE_FAMILIES = 2
"""Families whose models stay loaded: a target's, and its base's."""


@final
class Placement(NamedTuple):
    """The device, dtype and memory of live models.

    If there are several `gpus`, one computes, and the others hold waiting layers. Without a dtype
    models have the one that is quick on the device, or with `own` that of their configuration.
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


@final
class Reading(NamedTuple):
    """A plan's tokenizer, context length, and models to compare with.

    `tokenizer_model` has the tokenizer, and `positions` is the longest text in tokens. `base`
    identifies the base. An objective's `from` names a model of the plan `origin`. With
    `piece_bytes` losses count by bytes, to be compared between vocabularies.
    """

    tokenizer_model: Opened
    positions: int | None
    base: Hashable
    origin: Plan
    piece_bytes: int | None = None

    def key(self, stated: Sequence[StatedObjective]) -> Hashable:
        """Return a key that is equal for plans with the same samples of these objectives."""
        origin_key: Hashable = None
        if any("from" in objective.arguments for objective, _ in stated):
            origin = self.origin.origin
            models = tuple((name, str(model)) for name, model in self.origin.models.items())
            numbers = str(sorted(self.origin.numbers.items()))
            origin_key = (None if origin is None else origin.folder, models, numbers)
        digest = tokenizer_digest(self.tokenizer_model)
        return digest, self.positions, self.base, origin_key, self.piece_bytes


@final
class Session:
    """Loaded models, one `Repairs` a family of plans, and objectives prepared once for all plans.

    A family's plans are on one base, and their names for other models don't contradict each other.
    All live families share the memory of `place`. `on_event` receives how plans are bridged and
    healed.
    """

    def __init__(self, place: Placement, on_event: OnEvent = ignore_events) -> None:
        self.place = place
        self.on_event = on_event
        self._families: list[dict[str, Opened]] = []
        self._homes: dict[int, tuple[Mapping[str, Opened], int]] = {}  # by id; they have no hash
        self._live: dict[int, Repairs] = {}
        self._objectives: dict[Hashable, list[PreparedObjective]] = {}
        self._latencies: dict[int, Latencies] = {}

    @cached_property
    def evaluator(self) -> Evaluator:
        """Return the evaluator of all plans. Raises TailorError for a missing device."""
        return Evaluator(cache=_PREFIX_BYTES, device=device_of(str(self.place.device)))

    # ------------------------------------------------------------------------------ live models

    def family(self, models: Mapping[str, Opened]) -> int:
        """Return the number of the family of a plan with these models.

        Families are best where `family` is called for all plans before the first is stitched.
        """
        if id(models) in self._homes:
            return self._homes[id(models)][1]
        agreeing = (
            number
            for number, family in enumerate(self._families)
            if all(identity(models[n]) == identity(family[n]) for n in models.keys() & family)
        )
        home = next(agreeing, len(self._families))
        if home == len(self._families):
            self._families.append({})
        self._families[home] = {**models, **self._families[home]}
        self._homes[id(models)] = models, home
        return home

    def repairs(self, models: Mapping[str, Opened]) -> Repairs:
        """Return the repairs over the family of a plan with these models.

        Raises as `Stitcher` does.
        """
        home = self.family(models)
        repairs = self._live.pop(home, None)
        if repairs is None:
            while len(self._live) >= _LIVE_FAMILIES:
                del self._live[next(iter(self._live))]
            memory = self.place.memory
            if memory is not None:
                memory //= min(_LIVE_FAMILIES, len(self._families))
            place = self.place._replace(memory=memory)
            repairs = place.repairs(self._families[home], self.on_event)
        self._live[home] = repairs
        return repairs

    def stitch(self, models: Mapping[str, Opened], plan: Plan) -> Stitched:
        """Return the live model of a closed plan with these models. Raises as `Repairs.stitch`."""
        return self.repairs(models).stitch(plan)

    # ------------------------------------------------------------------------------- objectives

    def objectives(
        self,
        stated: Sequence[StatedObjective],
        samples: Samples,
        reading: Reading,
        reference: Reference,
    ) -> list[PreparedObjective]:
        """Return objectives with their samples as a plan reads them, prepared once for its like.

        Raises as `prepare_objectives` and the tokenizer do.
        """
        words = tuple((objective_words(objective), directed) for objective, directed in stated)
        key = words, samples, reading.key(stated)
        if key not in self._objectives:
            self._objectives[key] = prepare_objectives(
                stated, samples, reading.tokenizer_model, reference, reading.positions,
                reading.piece_bytes,
            )  # fmt: skip
        return self._objectives[key]

    def reference(self, repairs: Repairs, plan: Plan, name: str, work: Work) -> Sequence[Tensor]:
        """Return the results of a work on the plan of `name`, the model to compare with.

        Raises ObjectiveError if that fails.
        """
        results = self.evaluator.run(repairs.stitch(plan), [work])
        if isinstance(results, Failure):
            raise no_reference(name, results.message)
        return results[0]

    def latencies(self, models: Mapping[str, Opened], base: Plan) -> Latencies:
        """Return the latencies of a family's plans, measured beside the plan `base`."""
        home = self.family(models)
        if home not in self._latencies:
            self._latencies[home] = Latencies(partial(self.stitch, models), models, base)
        return self._latencies[home]

    # ----------------------------------------------------------------------------------- trials

    def run(  # noqa: PLR0913 (a trial's parts, each by its name)
        self,
        models: Mapping[str, Opened],
        plans: Sequence[Plan],
        objectives: Objectives,
        samples: int | None = None,
        *,
        latency: Callable[[int], Score],
        on_step: OnStep = ignore_steps,
        race: Race | None = None,
        prepared: Sequence[Prepared] = (),
    ) -> Iterator[tuple[int, Outcomes]]:
        """Score closed plans of one family, as `run_trials` does.

        `latency` returns a plan's latency by its number. Sizes are those of the `prepared` plans,
        if they are given.
        """
        repairs = attempt(partial(self.repairs, models))
        if isinstance(repairs, Failure):
            return failures(dict.fromkeys(range(len(plans)), repairs), objectives)
        family = self._families[self.family(models)]

        def of_plans(number: int, objective: OfPlan) -> Score:
            if objective.by == "clock":
                return latency(number)
            if prepared:
                own = prepared[number]
                return size_score(objective.stated, own.compiled, own.models["base"])
            checked = Checked.of(plans[number], family)
            return size_score(objective.stated, compile_plan(checked), checked.base)

        return run_trials(
            repairs, self.evaluator, plans, objectives, samples,
            on_step=on_step, race=race, of_plans=of_plans,
        )  # fmt: skip
