"""The fits of a plan that is a model of another plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.plan.events import FitText


@final
@dataclass(frozen=True)
class FittedPlan:
    """An inner plan's output after its fits, as far as it isn't copied from its models.

    `plan` is the plan's file, and `file` has the tensors, in the dtypes of the compiled folder.
    `decided` are the names of the tensors that texts decide. `texts` are the texts that were read,
    by their names in `Prepared.texts`.
    """

    plan: Path
    file: Path
    decided: frozenset[str]
    texts: Mapping[str, FitText]
