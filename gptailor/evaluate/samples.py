"""Objectives with their samples for several targets: once for all that read texts alike."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.forward.requests import Request, Work
from gptailor.evaluate.live.template import configuration
from gptailor.evaluate.objectives import (
    Forward,
    Judged,
    ObjectiveError,
    PreparedObjective,
    Reference,
    agree_on_direction,
    prepare_objective,
)
from gptailor.evaluate.objectives.nll import surprise
from gptailor.evaluate.objectives.tokens import digest, tokenizer_model, tokenizer_of
from gptailor.evaluate.targets import Target
from gptailor.plan.plan import Objective

Run = Callable[[Target, str, Work], Sequence[Tensor]]
"""Runs a work on the model of that name of a target's plan, as it is."""


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


@final
class Preparing:
    """The prepared objectives of each target."""

    def __init__(self, wishes: Sequence[Wish], samples: Samples, run: Run) -> None:
        self.wishes = wishes
        self.samples = samples
        self.run = run
        self._known: dict[Hashable, list[PreparedObjective]] = {}
        self._names = any("from" in wish.objective.arguments for wish in wishes)

    def of(self, target: Target) -> list[PreparedObjective]:
        """The objectives as they are measured on a target.

        Raises CalibrationError for a file, ObjectiveError for an argument, TailorError where there
        is no tokenizer.
        """
        key = self.key(target)
        if key not in self._known:
            self._known[key] = self._prepared(target)
        return self._known[key]

    def key(self, target: Target) -> Hashable:
        """Equal for targets that are measured on the same samples."""
        base = None if target.base is None else target.identity_of_base
        others: Hashable = None
        if self._names:
            origin = target.origin.origin
            folder = None if origin is None else origin.folder
            models: Mapping[str, object] = target.origin.models
            others = (folder, tuple((name, str(model)) for name, model in models.items()))
        return digest(tokenizer_model(target.prepared)), longest_text(target), base, others

    def _prepared(self, target: Target) -> list[PreparedObjective]:
        return prepare_wishes(
            self.wishes,
            self.samples,
            tokenizer_model(target.prepared),
            reference=lambda name, work: self.run(target, name, work),
            positions=longest_text(target),
        )


def prepare_wishes(
    wishes: Sequence[Wish],
    samples: Samples,
    tokenizer_model: Opened,
    *,
    reference: Reference,
    positions: int | None,
) -> list[PreparedObjective]:
    """The objectives with their samples, as the tokenizer of `tokenizer_model` reads them.

    `reference` says what a model of that name makes of a work, `positions` is the longest text in
    tokens. Raises CalibrationError for a file, ObjectiveError for an argument or a direction.
    """
    tokenizer = tokenizer_of(tokenizer_model)
    found = [
        prepare_objective(
            wish.objective,
            tokenizer=tokenizer,
            folder=samples.folder,
            samples=samples.count,
            seed=samples.seed,
            reference=reference,
            positions=positions,
        )
        for wish in wishes
    ]
    for wish, prepared in zip(wishes, found, strict=True):
        if wish.directed:
            agree_on_direction(wish.objective, prepared)
    return found


def longest_text(target: Target) -> int | None:
    """The longest text that a target takes, in tokens; None where its configuration has no end."""
    return context_length(target.prepared.compiled.config)


def context_length(config: Mapping[str, Any]) -> int | None:
    """The same by a model's configuration."""
    found = getattr(configuration(config).get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def no_reference(name: str, why: str) -> ObjectiveError:
    """Why `kl` has nothing to compare with."""
    return ObjectiveError(f"'kl' compares with the model '{name}': {why}")


MOST = 1024
"""Samples of an objective that a search sees where nobody says how many."""
SEEN = 0.75
"""Of a file's samples those that a search sees then, at most."""


@final
@dataclass(frozen=True)
class Parts:
    """The objectives on what a search sees, and on what it doesn't; None where nothing is left."""

    seen: tuple[PreparedObjective, ...]
    held: tuple[PreparedObjective | None, ...]

    def texts(self, samples: int) -> list[Work]:
        """What the objectives ask models to read, for what isn't a score."""
        return [Work(_requests(objective, samples), surprise) for objective in self.seen]


def wanted(full: int | None) -> int:
    """How many samples of each objective to draw: twice those that are seen."""
    return 2 * (full or MOST)


def seen_of(sizes: Sequence[tuple[str, int]], full: int | None) -> int:
    """How many samples a search sees, of objectives that have so many.

    Raises ObjectiveError where there are fewer than it is to see.
    """
    if full is None:
        return max(1, min(MOST, *(int(SEEN * size) for _, size in sizes)))
    for name, size in sizes:
        if size < full:
            many = "1 sample" if size == 1 else f"{size} samples"
            message = f"the fidelity goes up to {full} samples, and '{name}' has {many}"
            raise ObjectiveError(message)
    return full


def parted(objectives: Sequence[PreparedObjective], full: int) -> Parts:
    """The first samples, and as many of those after them as there are."""
    held = [
        one.part(full, min(one.size, 2 * full)) if one.size > full else None for one in objectives
    ]
    return Parts(tuple(one.part(0, full) for one in objectives), tuple(held))


def _requests(objective: PreparedObjective, samples: int) -> Sequence[Request]:
    if isinstance(objective, Forward):
        return objective.requests(samples)
    assert isinstance(objective, Judged)
    prompts = objective.prompts(samples)
    return [Request(prompt.tokens, 1) for prompt in prompts if len(prompt.tokens) > 1]
