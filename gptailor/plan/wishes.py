"""What a plan's `search` block says: objectives, requirements, and the budget."""

from typing import Literal, final

from pydantic import Field

from gptailor.plan.numbers import Closed, Pair, Several


@final
class Objective(Closed):
    """What a search wants: a measure, a direction, the measure's arguments by name."""

    direction: Literal["minimize", "maximize"]
    name: str
    arguments: dict[str, int | float | str] = Field(default={})


@final
class Bound(Closed):
    """What a measure may be: a number, `times` a model's own measure, or that measure itself."""

    number: int | float | None = None
    of: str | None = None


@final
class Requirement(Closed):
    """What a plan has to keep to: `require parameters() <= 0.75 * base`."""

    name: str
    sign: Literal["<=", ">="]
    bound: Bound
    arguments: dict[str, int | float | str] = Field(default={})


@final
class Search(Closed):
    """Objectives and budget of a search."""

    objectives: Several[Objective] = ()
    requires: Several[Requirement] = ()
    fidelity: Pair[int] | None = None
    trials: int | None = None
    seed: int | None = None
