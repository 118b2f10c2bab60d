"""What is said of an architecture that GGUF files are read of, and what it may ask of a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, final

from gptailor.checkpoint.formats.gguf_names import REST_STEMS


class FileFacts(Protocol):
    """What a file says: numbers by their keys, and what is counted of them.

    `stems` are the tensors that each layer has; `biased` are those of its projections with a bias.
    """

    hidden: int
    heads: int
    kv: int
    head: int
    layers: int
    wide: int
    stems: Mapping[str, str]
    biased: frozenset[str]

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise what is wrong."""

    def fact(self, key: str) -> object:
        """What is said."""

    def count(self, key: str, default: int | None = None) -> int:
        """A fact that is a positive whole number."""

    def real(self, key: str, default: float | None = None) -> float:
        """A fact that is a positive number."""

    def rope(self) -> dict[str, Any]:
        """The rotary embeddings."""


@final
@dataclass(frozen=True)
class ReadArchitecture:
    """An architecture of GGUF's: its model, and what differs from the others here."""

    model_type: str
    model_class: str
    stems: Mapping[str, str]
    """The tensors of a layer, after `prefix` and the layer's number."""
    rest: Mapping[str, str] = field(default_factory=lambda: REST_STEMS)
    prefix: str = "model.layers."
    optional: tuple[frozenset[str], ...] = ()
    """Tensors of a layer that are all there, or none of them."""
    biased: tuple[frozenset[str], ...] = (frozenset(),)
    """The projections that have biases: one of these."""
    norm_biases: bool = False
    """Whether norms have biases, but for those of heads."""
    epsilon: str = "rms_norm_eps"
    """The configuration's key for what norms are steadied by."""
    head_norms: str = "one"
    """A norm of queries or keys is `one` for all heads, `flat` over all, or for `each` head."""
    square: bool = False
    """Whether heads are as wide together as the stream; the configuration says no width then."""
    rotated: str = "all"
    """What is rotated of each head: `all`, `some` or `none` of it."""
    permuted: bool = False
    """Whether rows of queries and keys are in llama.cpp's order."""
    grouped: bool = False
    """Whether fused queries, keys and values belong in groups, which llama.cpp has sorted."""
    transposed: bool = False
    """Whether a layer's matrices are, in the model."""
    shifted: bool = False
    """Whether norms are stored with 1 added to them."""
    says: frozenset[str] = frozenset()
    """The keys that it knows besides those of all."""
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    """The configuration's usual keys that are called otherwise, or aren't there."""
    settings: Callable[[FileFacts], dict[str, Any]] = lambda facts: {}
    """What a configuration says besides what all have."""
