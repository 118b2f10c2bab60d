"""The samples of a search: what it sees, the first of which a trial uses, and what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from gptailor.evaluate.objectives import (
    Forward,
    Judged,
    ObjectiveError,
    PreparedObjective,
)
from gptailor.evaluate.objectives.text import surprise
from gptailor.evaluate.work import Request, Work

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
