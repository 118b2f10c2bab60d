"""Objectives with their samples, drawn once for all plans that read texts alike."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.forward.requests import Request, Work
from gptailor.evaluate.live.template import configuration
from gptailor.evaluate.objectives import (
    Forward,
    Generative,
    ObjectiveContext,
    ObjectiveError,
    PreparedObjective,
    Reference,
    agree_on_direction,
    prepare_objective,
)
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.tokens import tokenizer_digest, tokenizer_model, tokenizer_of
from gptailor.evaluate.outcome import Failure
from gptailor.evaluate.targets import Target
from gptailor.plan.plan import Objective

_MOST_SEEN = 1024
"""Samples of an objective that a search sees at most, where nobody says how many."""
_SEEN_SHARE = 0.75
"""Of a file's samples those that a search sees then, at most."""
NOTHING_HELD = Failure("error", "no samples are left that the search doesn't see")


@final
@dataclass(frozen=True)
class Wish:
    """An objective, and whether its direction was said: then it has to be the metric's."""

    objective: Objective
    directed: bool = False


@final
@dataclass(frozen=True)
class Samples:
    """Where an evaluation's samples come from: a folder for relative paths, how many, a seed."""

    folder: Path = field(default_factory=Path)
    count: int | None = None
    seed: int = 0


def prepare_wishes(
    wishes: Sequence[Wish],
    samples: Samples,
    tokenizer_model: Opened,
    *,
    reference: Reference,
    positions: int | None,
) -> list[PreparedObjective]:
    """The objectives with their samples, as the tokenizer of `tokenizer_model` reads them.

    `reference` runs the model that `kl` compares with, `positions` is the longest text in tokens.
    Raises CalibrationError for a file, ObjectiveError for an argument or a direction.
    """
    context = ObjectiveContext(
        tokenizer_of(tokenizer_model),
        samples.folder,
        samples.count,
        samples.seed,
        reference,
        positions,
    )
    found = [prepare_objective(wish.objective, context) for wish in wishes]
    for wish, prepared in zip(wishes, found, strict=True):
        if wish.directed:
            agree_on_direction(wish.objective, prepared)
    return found


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest text that a model of this configuration takes, in tokens; None: it has no end."""
    found = getattr(configuration(config).get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def no_reference(name: str, why: str) -> ObjectiveError:
    """Why `kl` has nothing to compare with."""
    return ObjectiveError(f"'kl' compares with the model '{name}': {why}")


# ---------------------------------------------------------------------------- of an evaluation


@final
class TargetObjectives:
    """The prepared objectives of each target.

    `run` runs a work on the model of that name of a target's plan, as it is.
    """

    def __init__(
        self,
        wishes: Sequence[Wish],
        samples: Samples,
        run: Callable[[Target, str, Work], Sequence[Tensor]],
    ) -> None:
        self.wishes = wishes
        self.samples = samples
        self.run = run
        self._known: dict[Hashable, list[PreparedObjective]] = {}
        self._names_models = any("from" in wish.objective.arguments for wish in wishes)

    def of(self, target: Target) -> list[PreparedObjective]:
        """The objectives as they are measured on a target.

        Raises CalibrationError for a file, ObjectiveError for an argument, TailorError where there
        is no tokenizer.
        """
        key = self.key(target)
        if key not in self._known:
            self._known[key] = prepare_wishes(
                self.wishes,
                self.samples,
                tokenizer_model(target.prepared),
                reference=lambda name, work: self.run(target, name, work),
                positions=context_length(target.prepared.compiled.config),
            )
        return self._known[key]

    def key(self, target: Target) -> Hashable:
        """Equal for targets that are measured on the same samples."""
        others: Hashable = None
        if self._names_models:
            origin = target.origin.origin
            models = tuple((name, str(model)) for name, model in target.origin.models.items())
            others = (None if origin is None else origin.folder, models)
        positions = context_length(target.prepared.compiled.config)
        tokenizer = tokenizer_digest(tokenizer_model(target.prepared))
        return tokenizer, positions, target.identity_of_base, others


# ------------------------------------------------------------------------------------ of a search


@final
@dataclass(frozen=True)
class Parts:
    """The objectives on the samples that a search sees, and on those that it doesn't."""

    seen: tuple[PreparedObjective, ...]
    held: tuple[PreparedObjective | Failure, ...]

    def texts(self, samples: int) -> list[Work]:
        """The texts that models read for the objectives, as works that aren't scored."""
        return [Work(_requests(objective, samples), surprise) for objective in self.seen]


def parts_by_tokenizer(
    wishes: Sequence[Wish],
    samples: Samples,
    tokenizer_models: Mapping[str, Opened],
    base: Opened,
    reference: Reference,
) -> tuple[int, dict[str, Parts]]:
    """How many samples a search sees, and its objectives for each of some tokenizers.

    `samples.count` is how many it is to see; twice as many are drawn, and the rest held out.
    Raises ObjectiveError where an objective has fewer, and as `prepare_wishes`.
    """
    drawn = {
        key: prepare_wishes(
            wishes,
            replace(samples, count=2 * (samples.count or _MOST_SEEN)),
            model,
            reference=reference,
            positions=context_length(base.config),
        )
        for key, model in tokenizer_models.items()
    }
    full = _seen(samples.count, [one for these in drawn.values() for one in these])
    return full, {key: _parted(these, full) for key, these in drawn.items()}


def _seen(count: int | None, objectives: Sequence[PreparedObjective]) -> int:
    if count is None:
        return max(1, min(_MOST_SEEN, *(int(_SEEN_SHARE * one.size) for one in objectives)))
    for one in objectives:
        if one.size < count:
            many = "1 sample" if one.size == 1 else f"{one.size} samples"
            message = f"the fidelity goes up to {count} samples, and '{one.name}' has {many}"
            raise ObjectiveError(message)
    return count


def _parted(objectives: Sequence[PreparedObjective], full: int) -> Parts:
    """The first samples, and as many of those after them as there are."""
    return Parts(
        tuple(one.part(0, full) for one in objectives),
        tuple(
            one.part(full, min(one.size, 2 * full)) if one.size > full else NOTHING_HELD
            for one in objectives
        ),
    )


def _requests(objective: PreparedObjective, samples: int) -> Sequence[Request]:
    if isinstance(objective, Forward):
        return objective.requests(samples)
    assert isinstance(objective, Generative)
    prompts = objective.prompts(samples)
    return [Request(prompt.tokens, 1) for prompt in prompts if len(prompt.tokens) > 1]
