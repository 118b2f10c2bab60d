"""What objectives are measured in: a tokenizer, a folder, how many samples, and the reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar, final

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gptailor.evaluate.calibration import order
from gptailor.evaluate.work import Work

Reference: TypeAlias = Callable[[str, Work], Sequence[Tensor]]
"""Runs a work on the model of that name in the plan, which is as it is: one result a request."""

_Row = TypeVar("_Row")


@final
@dataclass(frozen=True)
class ObjectiveContext:
    """What the objectives of a plan or a space share.

    `positions` is the longest text that the models take, in tokens (`None`: no end), `samples` the
    most that will be asked for (`None`: all that there are).
    """

    tokenizer: PreTrainedTokenizerBase
    folder: Path
    samples: int | None = None
    seed: int = 0
    reference: Reference | None = None
    positions: int | None = None

    def path(self, name: str) -> Path:
        """A file that a plan names."""
        return self.folder / Path(name).expanduser()

    def drawn(self, rows: Sequence[_Row]) -> list[_Row]:
        """The samples, in the order in which fidelities take them."""
        return [rows[number] for number in order(len(rows), self.seed)[: self.samples]]
