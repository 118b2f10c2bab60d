"""Objectives with samples in tokens, ready to evaluate plans."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

from torch import Tensor

from gptailor.checkpoint import datasets
from gptailor.checkpoint.files import expanded
from gptailor.evaluation.forward.requests import Measure, Request, Work
from gptailor.evaluation.objectives.tokens import EncodingError, TokenEncoder
from gptailor.evaluation.scores import Score, race_counts
from gptailor.lang.words import measure_words
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.reporting.measure import AimDirection, ScaleBy


@final
class ObjectiveError(TailorError):
    """An objective that can't be prepared as requested."""

    exit_code = 1


@dataclass(frozen=True)
class PreparedObjective(ABC):
    """An objective with its samples; `Forward` or `Generative`, or `OfPlan` without samples.

    `name` is the plan's text: `kl("text.txt")`. `normalise` names the scale that makes several
    objectives comparable: the base's own score, or the spread of the plans that a search starts
    with.
    """

    name: str
    direction: AimDirection
    normalise: ScaleBy
    samples: tuple[Any, ...]

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def part(self, start: int, stop: int) -> "PreparedObjective":
        """Return the same objective on the samples from `start` up to `stop` alone."""
        return replace(self, samples=self.samples[start:stop])

    @abstractmethod
    def requests(self, samples: int) -> Sequence[Request]:
        """Return the texts of the first samples that a forward pass reads."""


class Forward(PreparedObjective):
    """An objective that one forward pass measures."""

    @property
    @abstractmethod
    def measure(self) -> Measure:
        """The numbers that are kept of each prediction."""

    @abstractmethod
    def score(self, results: Sequence[Tensor]) -> Score:
        """Return the score of the results of `work`, [predicted, k] for each request."""

    @final
    def work(self, samples: int | None = None) -> Work:
        """Return the first samples' requests to a forward pass; at most all samples."""
        count = self.size if samples is None else min(samples, self.size)
        if count not in self._works:
            cuts = tuple(len(self.requests(n)) if n else 0 for n in race_counts(count))
            self._works[count] = Work(self.requests(count), self.measure, cuts)
        return self._works[count]

    @cached_property
    def _works(self) -> dict[int, Work]:
        return {}


Reference: TypeAlias = Callable[[str, Work], Sequence[Tensor]]
"""Runs a work on the plan's unchanged model of that name; one result a request."""

_Row = TypeVar("_Row")
_Line = TypeVar("_Line", bound=datasets.Passage | datasets.Exchange | datasets.Question)
_Encoded = TypeVar("_Encoded")


@final
@dataclass(frozen=True)
class ObjectiveContext:
    """The inputs that the objectives of a plan or a space share.

    `encoder` reads texts as tokens. `samples` is the largest number of samples in use (`None`:
    all). With `piece_bytes` losses count by bytes, in
    pieces of at most this many, since the models have different vocabularies. With `cut` the plan's
    vocabulary has fewer tokens than its models have.
    """

    encoder: TokenEncoder
    folder: Path
    samples: int | None = None
    seed: int = 0
    reference: Reference | None = None
    piece_bytes: int | None = None
    cut: bool = False

    def file(self, objective: Objective) -> Path:
        """Return the path of the file that an objective names."""
        return self.folder / expanded(str(objective.arguments["file"]))

    def drawn(self, rows: Sequence[_Row]) -> list[_Row]:
        """Return the samples, in the order in which fidelities take them."""
        return [rows[number] for number in datasets.order(len(rows), self.seed)[: self.samples]]


def traits_of(
    objective: Objective, normalise: ScaleBy = "base"
) -> tuple[str, AimDirection, ScaleBy]:
    """Return an objective's name in a plan, its direction, and `normalise`.

    The direction is the objective's own, or else the plan's. A `PreparedObjective` begins with
    these three.
    """
    direction: AimDirection = OBJECTIVES[objective.name].direction or objective.direction
    return measure_words(objective), direction, normalise


def encoded(
    path: Path, rows: Sequence[_Line], encode: Callable[[_Line], _Encoded]
) -> tuple[_Encoded, ...]:
    """Encode the rows of a file as tokens. Raises CalibrationError (C805) for an invalid row."""
    entries = []
    for row in rows:
        try:
            entries.append(encode(row))
        except EncodingError as error:
            raise datasets.CalibrationError(
                "C805", str(error), path, row.line, error.help
            ) from None
    return tuple(entries)
