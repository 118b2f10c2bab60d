"""The size of a model: the one record of it, in memory and in a search's files."""

from typing import Annotated, NamedTuple, final

from pydantic import Field

from gptailor.plan.plan import LARGEST_LAYER

MOST = 2**53
"""The largest count in a record: every larger one is damage, and a float holds those below."""

Tally = Annotated[int, Field(ge=0, le=MOST)]
LayerCount = Annotated[int, Field(ge=0, le=LARGEST_LAYER + 1)]


@final
class OutputSize(NamedTuple):
    """The size of a model that a plan gives, or of its base.

    `parameters` are the entries of all stored tensors, each once, and `bytes` their bytes.
    `kv_cache` is the bytes of one token in the KV cache, over all layers; None is unknown.
    """

    parameters: Tally
    bytes: Tally
    kv_cache: Tally | None
    layers: LayerCount
