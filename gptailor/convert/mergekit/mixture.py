"""What a merge method of mergekit is: a row of the table of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from gptailor.convert.mergekit.amounts import Mix, Mixture
from gptailor.plan.plan import Recipe

SaidParameters = tuple[list[dict[str, Any]], dict[str, Any]]
"""A recipe's parameters: a block for each model of a slice, and the slice's."""


@final
@dataclass(frozen=True)
class MergekitMethod:
    """A method of mergekit."""

    name: str
    by_source: tuple[str, ...]
    """The parameters that each source has for itself."""
    shared: tuple[str, ...]
    """The parameters that a slice has."""
    read: Callable[[Mixture], Mix]
    """The recipe that gives the same tensor; Unsayable if none does."""
    write: Callable[[Recipe, Sequence[str]], SaidParameters] | None = None
    """The parameters that a recipe is in a slice of these models; None where tensors differ."""
    base: Literal["none", "first", "beside", "optional"] = "none"
    """The base_model: not read, the first of a slice's two sources, or one beside the sources, that
    has to be there or may be.
    """
    differs: str = ""
    """What is different in each merge by it."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Parameters that have another default than in other methods."""

    @property
    def base_beside(self) -> bool:
        """Whether the base stands beside the sources of what is written."""
        return self.base in ("beside", "optional")

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that it reads."""
        return self.by_source + self.shared
