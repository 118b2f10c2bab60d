"""The meter: live models, objectives with their samples, and latencies, for all plans together.

`eval` and `test` score targets by one meter, and a search the plans of one space by another. A
meter loads the models of each family of plans once, and draws an objective's samples once.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.forward.evaluator import Evaluator, attempt
from gptailor.evaluation.forward.requests import Work
from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives import agree_on_direction, prepare_objective
from gptailor.evaluation.objectives.base import (
    Forward,
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    Reference,
)
from gptailor.evaluation.objectives.generate import Generative
from gptailor.evaluation.objectives.likelihood import piece_bytes
from gptailor.evaluation.objectives.tokens import (
    TokenEncoder,
    tokenizer_digest,
    tokenizer_model,
    tokenizer_of,
)
from gptailor.evaluation.recently_used import RecentlyUsed
from gptailor.evaluation.scores import Failure, Outcomes, Race, Speed
from gptailor.evaluation.speed import speeds
from gptailor.evaluation.targets import Target, base_of, identity
from gptailor.evaluation.trial import Ask, AskedTogether
from gptailor.lang.words import objective_words
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective, Plan
from gptailor.prepare import ready
from gptailor.program.devices import device_of, dtype_of, quick_dtype
from gptailor.program.sources import with_token_cut
from gptailor.reporting.quantities import byte_count

StatedObjective: TypeAlias = tuple[Objective, bool]
"""An objective, and whether its direction was stated; a stated one must be the metric's."""


@final
class Samples(NamedTuple):
    """The source of an evaluation's samples: a folder for relative paths, a number, a seed."""

    folder: Path = Path()
    most: int | None = None
    seed: int = 0


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the longest text that a model takes, in tokens; None means no limit."""
    return position_count(configuration(language_config(config)))


def no_reference(name: str, why: str) -> ObjectiveError:
    """Return the error for a model that scores can't be compared with."""
    return ObjectiveError(f"can't compare with the model '{name}': {why}")


_PREFIX_BYTES = 2**30
"""Bytes of hidden states that are kept where plans part, so that a common beginning runs once."""
_LIVE_FAMILIES = 2
"""Families of models that stay loaded: a target's, and its base's."""


@final
class Placement(NamedTuple):
    """The device, dtype and memory of live models.

    If there are several `gpus`, one computes, and the others hold waiting layers. Without a dtype
    models have the one that is quick on the device, or with `own` their configuration's.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    memory: int | None = None
    gpus: int = 1
    own: bool = False

    @classmethod
    def of(
        cls, device: torch.device | str, dtype: str | torch.dtype | None, memory: int | str | None
    ) -> "Placement":
        """Return a placement; dtype and memory may be words. Raises ValueError."""
        return cls(device, dtype_of(dtype), byte_count(memory))

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

    @classmethod
    def of(cls, target: Target, piece: int | None = None) -> "Reading":
        """Return how a target's texts are read: in pieces of bytes, or by its tokens.

        Raises TailorError without a tokenizer.
        """
        tokenizer, positions = tokenizer_model(target.prepared), _positions(target)
        return cls(tokenizer, positions, target.identity_of_base, target.origin, piece)

    def key(self, stated: Sequence[StatedObjective]) -> Hashable:
        """Return a key that is equal for plans with the same samples of these objectives."""
        origin_key = ""
        if any("from" in objective.arguments for objective, _ in stated):
            folder = self.origin.origin and self.origin.origin.folder
            numbers = sorted(self.origin.numbers.items())
            origin_key = repr((folder, self.origin.models, numbers))
        digest = tokenizer_digest(self.tokenizer_model)
        return digest, self.positions, self.base, origin_key, self.piece_bytes


@final
class Meter:
    """Loaded models, one `Repairs` a family of plans, and objectives prepared once for all plans.

    A family's plans are on one base, and their names for other models don't contradict each other.
    All live families share the memory of `place`. `on_event` receives how plans are bridged and
    healed.
    """

    def __init__(self, place: Placement, on_event: OnEvent = ignore_events) -> None:
        self.place = place
        self.on_event = on_event
        self._families: list[dict[str, Opened]] = []
        self._live: RecentlyUsed[int, Repairs] = RecentlyUsed()
        self._objectives: dict[Hashable, list[PreparedObjective]] = {}

    @cached_property
    def evaluator(self) -> Evaluator:
        """Return the evaluator of all plans. Raises TailorError for a missing device."""
        return Evaluator(cache=_PREFIX_BYTES, device=device_of(str(self.place.device)))

    # ------------------------------------------------------------------------------ live models

    def family(self, models: Mapping[str, Opened]) -> int:
        """Return the number of the family of a plan with these models.

        Families are best where `family` is called for all plans before the first is stitched.
        """
        for number, family in enumerate(self._families):
            pairs = ((models[name], family[name]) for name in models.keys() & family)
            if all(one is other or identity(one) == identity(other) for one, other in pairs):
                self._families[number] = {**models, **family}
                return number
        self._families.append(dict(models))
        return len(self._families) - 1

    def repairs(self, models: Mapping[str, Opened]) -> Repairs:
        """Return the repairs over the family of a plan with these models.

        Raises as `Stitcher` does.
        """
        home = self.family(models)
        return self._live.of(home, partial(self._loaded, self._families[home]))

    def _loaded(self, models: Mapping[str, Opened]) -> Repairs:
        self._live.forget(_LIVE_FAMILIES - 1, 0)  # before the next models load
        memory = self.place.memory
        if memory is not None:
            memory //= min(_LIVE_FAMILIES, len(self._families))
        return self.place._replace(memory=memory).repairs(models, self.on_event)

    def stitch(self, models: Mapping[str, Opened], plan: Plan) -> Stitched:
        """Return the live model of a closed plan with these models. Raises as `Repairs.stitch`."""
        return self.repairs(models).stitch(plan)

    def speeds(self, targets: Iterable[Target]) -> list[Speed]:
        """Return the speeds of targets, measured by turns."""
        prepared = (target.prepared for target in targets)
        return speeds(*(self.stitch(each.models, each.plan).model for each in prepared))

    # ------------------------------------------------------------------------------- objectives

    def objectives(
        self,
        stated: Sequence[StatedObjective],
        samples: Samples,
        reading: Reading,
        reference: Reference,
    ) -> list[PreparedObjective]:
        """Return objectives with their samples as a plan reads them, prepared once for its like.

        `reference` runs the models that `kl` and `acceptance` compare with. Raises CalibrationError
        for a file, ObjectiveError for an argument or a direction, TailorError for the tokenizer.
        """
        words = tuple((objective_words(objective), directed) for objective, directed in stated)
        key = words, samples, reading.key(stated)
        if key not in self._objectives:
            model, positions, _, _, piece = reading
            cut, encoder = model.token_cut is not None, TokenEncoder(tokenizer_of(model), positions)
            context = ObjectiveContext(encoder, *samples, reference, piece, cut)
            prepared = [prepare_objective(objective, context) for objective, _ in stated]
            for (objective, directed), found in zip(stated, prepared, strict=True):
                if directed:
                    agree_on_direction(objective, found)
            self._objectives[key] = prepared
        return self._objectives[key]

    def of_target(
        self,
        target: Target,
        stated: Sequence[StatedObjective],
        samples: Samples,
        piece_bytes: int | None,
    ) -> list[PreparedObjective]:
        """Return objectives as they are measured on a target, prepared once for its like.

        Raises CalibrationError for a file, ObjectiveError for an argument, TailorError for a
        missing tokenizer.
        """
        reading = Reading.of(target, piece_bytes)
        return self.objectives(stated, samples, reading, partial(self._of_target, target))

    def _of_target(self, target: Target, name: str, work: Work) -> Sequence[Tensor]:
        """Return the results of a work on the model that a target's objective compares with."""
        if name == "base" and target.bare and target.plain:
            bare = f"'{target.name}' is a model, not a plan"
            named = "give its base by --model base=FOLDER"
            raise no_reference(name, f"{bare}; {named}")
        if name not in target.origin.models:
            raise no_reference(name, f"'{target.name}' has no such model")
        if name == "base" and target.base is None:
            raise no_reference(name, f"the base of '{target.name}' is missing")
        prepared = target.base if name == "base" else None
        prepared = prepared or target.fit_inner(ready(base_of(target.origin, name)))
        repairs, tokenizer = self.repairs(prepared.models), tokenizer_model(target.prepared)
        return self.reference(repairs, prepared.plan, tokenizer, name, work)

    def reference(
        self, repairs: Repairs, plan: Plan, tokenizer: Opened, name: str, work: Work
    ) -> Sequence[Tensor]:
        """Return the results of a work on the plan of `name`, the model to compare with.

        A smaller vocabulary of `tokenizer` is the reference's too, so that distributions are over
        the same tokens. Raises ObjectiveError if it has another model's, and if the work fails.
        """
        if tokenizer.token_cut is not None and tokenizer.name != name:
            raise no_reference(name, f"the output has tokens of '{tokenizer.name}'")
        live = repairs.stitch(with_token_cut(plan, tokenizer.token_cut))
        results = self.evaluator.run(live, [work])
        if isinstance(results, Failure):
            raise no_reference(name, results.message)
        return results[0]

    # ----------------------------------------------------------------------------------- trials

    def run(
        self,
        asks: Sequence[Ask],
        samples: int | None = None,
        *,
        race: Race | None = None,
        alone: bool = False,
        forgiving: bool = False,
        on_step: Callable[[str], None] = lambda words: None,
    ) -> Iterator[tuple[int, Outcomes]]:
        """Score closed plans, and yield each one's number and outcomes as soon as it is scored.

        Plans of one family with the same objectives share layers and hidden states; with `alone`
        each is scored by itself. A missing reference is an error, or a failure if `forgiving`. The
        other arguments are the same as in `AskedTogether`.
        """
        groups: dict[Hashable, dict[int, Ask]] = {}
        for number, ask in enumerate(asks):
            alike = self.family(ask.models), id(ask.objectives)
            groups.setdefault(alike, {})[number] = ask
        for group in groups.values():
            for some in [{number: ask} for number, ask in group.items()] if alone else [group]:
                yield from self._together(some, samples, race, forgiving, on_step)

    def _together(
        self,
        asks: Mapping[int, Ask],
        samples: int | None,
        race: Race | None,
        forgiving: bool,
        on_step: Callable[[str], None],
    ) -> Iterator[tuple[int, Outcomes]]:
        """Score the plans of one family by the same objectives; their models are released then."""
        models, _, objectives, *_ = next(iter(asks.values()))
        if forgiving:
            objectives = [*map(_measurable, objectives)]
        repairs = attempt(partial(self.repairs, models))
        if isinstance(repairs, Failure):
            failed = (o if isinstance(o, Failure) else repairs for o in objectives)
            return iter(dict.fromkeys(asks, tuple(failed)).items())
        return AskedTogether(
            repairs, self.evaluator, asks, objectives, samples, race, on_step
        ).outcomes()


def _measurable(objective: PreparedObjective | Failure) -> PreparedObjective | Failure:
    """Return the objective, or a failure if its reference is missing."""
    try:
        if isinstance(objective, Forward):
            objective.work()
    except TailorError as error:
        return Failure("error", str(error))
    return objective


def common_piece_bytes(targets: Sequence[Target], *, by_byte: bool = False) -> int | None:
    """Return the bytes of a piece of text that all targets take, or None to count by tokens.

    Losses count `by_byte`, and wherever the targets have several vocabularies. Raises TailorError.
    """
    digests = {tokenizer_digest(tokenizer_model(target.prepared)) for target in targets}
    return piece_bytes(map(_positions, targets)) if by_byte or len(digests) > 1 else None


def _positions(target: Target) -> int | None:
    """Return the model's context length. Raises TailorError, which names the target."""
    try:
        return context_length(target.prepared.compiled.config)
    except TailorError as error:
        raise TailorError(f"'{target.name}': {error}") from error


def steps_of(
    on_event: OnEvent, asked: Iterable[Sequence[PreparedObjective]], more: int = 0
) -> Callable[[str], None]:
    """Return a function that reports a step of targets with these objectives, and `more` steps.

    A target has a step for the forward pass of all its scores, and one for each generation.
    """
    total, done = more, count(1)
    for objectives in asked:
        total += any(isinstance(objective, Forward) for objective in objectives)
        total += sum(isinstance(objective, Generative) for objective in objectives)
    on_event(Progress("evaluating", 0, total))

    def step(words: str) -> None:
        on_event(Progress("evaluating", next(done), total, words))

    return step
