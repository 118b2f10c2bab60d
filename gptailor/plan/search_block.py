"""The `search` block of a plan: objectives, requirements, and the budget; and expectations."""

from collections.abc import Callable
from posixpath import normpath
from typing import Any, Literal, TypeVar, final

from pydantic import Field, model_validator

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


class Expectation(Closed):
    """An expectation of a plan's output, which `gptailor test` evaluates: `expect nll("t") < 2`."""

    name: str
    sign: Literal["<=", ">=", "<", ">"]
    bound: Bound
    arguments: dict[str, int | float | str] = Field(default={})

    @property
    def objective(self) -> Objective:
        """Return the measure as an objective that wants the bound's better side."""
        below = self.sign.startswith("<")
        direction: Literal["minimize", "maximize"] = "minimize" if below else "maximize"
        return built(Objective, direction=direction, name=self.name, arguments=self.arguments)


@final
class Requirement(Expectation):
    """A requirement on a plan that a search finds: `require parameters() <= 0.75 * base`."""

    sign: Literal["<=", ">="]


@final
class Search(Closed):
    """Objectives and budget of a search."""

    objectives: Several[Objective] = ()
    requires: Several[Requirement] = ()
    fidelity: Pair[int] | None = None
    trials: int | None = None
    seed: int | None = None


_Measure = TypeVar("_Measure", Objective, Expectation, Objective | Expectation)


def with_file(wish: _Measure, file_of: Callable[[str], str]) -> _Measure:
    """Return the wish with another name of its text's file, if it reads a file."""
    file = wish.arguments.get("file")
    if not isinstance(file, str):
        return wish
    return wish.model_copy(update={"arguments": {**wish.arguments, "file": file_of(file)}})


PLANS_TYPE = "gguf"
"""The type of a GGUF file that stands for the type of a plan's only file: `bytes(gguf)`."""


def with_file_type(wish: _Measure, file_type: str) -> _Measure:
    """Return the wish with a type in place of `PLANS_TYPE`."""
    if wish.arguments.get("gguf") != PLANS_TYPE:
        return wish
    return wish.model_copy(update={"arguments": {**wish.arguments, "gguf": file_type}})


def with_plain_path(wish: _Measure) -> _Measure:
    """Return the wish with the shortest form of its text's path, so that equal wishes compare
    equal.
    """
    return with_file(wish, normpath)
