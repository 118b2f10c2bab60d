"""The `search` block of a plan: objectives, requirements, and the budget."""

from collections.abc import Iterator
from posixpath import normpath
from typing import Any, Literal, final

from pydantic import Field, model_validator

from gptailor.plan.faults import Place
from gptailor.plan.numbers import Closed, Pair, Several, built

UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
"""Suffixes of a bound's number."""


@final
class Objective(Closed):
    """An objective of a search: a measure, a direction, the measure's arguments by name."""

    direction: Literal["minimize", "maximize"]
    name: str
    arguments: dict[str, int | float | str] = Field(default={})


@final
class Bound(Closed):
    """A bound of a measure: a number, a number times a model's own measure, or that measure."""

    number: int | float | None = None
    of: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if isinstance(value, dict) and not {"number", "of"} & value.keys():
            raise ValueError("a bound has a number, a model, or both")
        return value


@final
class Requirement(Closed):
    """A requirement on a plan: `require parameters() <= 0.75 * base`."""

    name: str
    sign: Literal["<=", ">="]
    bound: Bound
    arguments: dict[str, int | float | str] = Field(default={})

    @property
    def objective(self) -> Objective:
        """Return the measure as an objective that wants the bound's better side."""
        direction: Literal["minimize", "maximize"] = "minimize" if self.sign == "<=" else "maximize"
        return built(Objective, direction=direction, name=self.name, arguments=self.arguments)


@final
class Search(Closed):
    """Objectives and budget of a search."""

    objectives: Several[Objective] = ()
    requires: Several[Requirement] = ()
    fidelity: Pair[int] | None = None
    trials: int | None = None
    seed: int | None = None


def compared_models(search: Search | None) -> Iterator[tuple[Place, str]]:
    """Yield the models that a search compares with, and the places that name them."""
    for place, objective in measured(search):
        if isinstance(model := objective.arguments.get("from"), str):
            yield (*place, "arguments", "from"), model
    for i, required in enumerate(search.requires if search is not None else ()):
        if required.bound.of is not None:
            yield ("search", "requires", i, "bound", "of"), required.bound.of


def measured(search: Search | None) -> Iterator[tuple[Place, Objective]]:
    """Yield all measures of a search, and their places: objectives, and requirements."""
    if search is not None:
        for i, objective in enumerate(search.objectives):
            yield ("search", "objectives", i), objective
        for i, required in enumerate(search.requires):
            yield ("search", "requires", i), required.objective


def with_plain_path(wish: Objective | Requirement) -> Objective | Requirement:
    """Return the wish with the shortest form of its text's path, so that equal wishes compare
    equal.
    """
    file = wish.arguments.get("file")
    if not isinstance(file, str):
        return wish
    return wish.model_copy(update={"arguments": {**wish.arguments, "file": normpath(file)}})
