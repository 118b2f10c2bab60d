"""What healing takes on the device, known before it begins."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import final

import torch

from gptailor.evaluate.heal.learning import HealError
from gptailor.evaluate.heal.train import LOGIT_BYTES, STEP_TOKENS
from gptailor.evaluate.live.contents import Content, ModelContents
from gptailor.evaluate.live.template import configuration
from gptailor.plan.resolved import Healing
from gptailor.program.program import learning_tensors, projections

LOW_RANK_BYTES = 24
"""Bytes of a number of low rank: itself, its gradient, Adam's two means, the best so far, and what
a step of Adam makes for a moment."""
WHOLE_BYTES = 30
"""Of a number of the weights themselves: as before, and in the layer's dtype its gradient, the
value, and the one that it began with."""
HEADS_COPIES = 4
"""Logits, their gradient, and what is made between them."""
LAYER_COPIES = 8
"""Bytes of an input or output of a projection, twice in float32, or in more copies of fewer."""
SCORES_COPIES = 3
"""Attention's scores, what they become, and a gradient, in float32."""


@final
@dataclass(frozen=True)
class HealingMemory:
    """The student's memory on the device.

    `contents` are the output's, `dtype` that of its weights there, `length` a sequence's tokens.
    `limit` is how many bytes may be on the device, None all that there are: then a layer's
    intermediate values stay until the way back, with a limit those of one layer alone.
    """

    contents: ModelContents
    healing: Healing
    dtype: torch.dtype
    length: int
    limit: int | None = None

    @property
    def numbers(self) -> int:
        """How many numbers learn."""
        rank = self.healing.rank
        shapes = list(self._shapes())
        if rank is None:
            return sum(map(prod, shapes))
        return sum(min(rank, *shape) * sum(shape) for shape in shapes)

    @property
    def bytes(self) -> int:
        """Bytes beside the weights."""
        each = WHOLE_BYTES if self.healing.rank is None else LOW_RANK_BYTES
        return self.numbers * each + self._activations

    def weights(self) -> int | None:
        """How many bytes of weights may be on the device; None: all of them.

        The weights themselves learn on the device, all of them. Raises HealError (C811) where
        they, or what learns, don't fit.
        """
        if self.limit is None:
            return None
        least = self._least
        if self.bytes + least <= self.limit:
            return None if self.healing.rank is None else self.limit - self.bytes
        whole = "all its weights" if self.healing.rank is None else "its largest layer and its ends"
        message = (
            f"{self.limit:,} bytes can't hold the healing: {self.bytes:,} are what learns and what "
            f"it computes with, and {least:,} {whole}"
        )
        raise HealError("C811", message, self._remedy())

    def _remedy(self) -> str:
        ranks = range(1, min(max(self._sides()), self.healing.rank or LARGEST_RANK) + 1)
        low, high = 0, len(ranks)
        while low < high:  # the largest rank that fits
            middle = (low + high + 1) // 2
            if self._fits(middle):
                low = middle
            else:
                high = middle - 1
        needed = self.bytes + self._least
        if low:
            return f"rank {low} is the largest that fits, or give {needed:,} bytes"
        return f"no rank fits; give {needed:,} bytes"

    def _fits(self, rank: int) -> bool:
        other = replace(self, healing=replace(self.healing, rank=rank))
        return self.limit is None or other.bytes + other._least <= self.limit

    # ---------------------------------------------------------------------------- what is counted

    def _size(self, content: Content) -> int:
        return sum(output.spec.elements for output in content.outputs) * self.dtype.itemsize

    @property
    def _least(self) -> int:
        """Bytes of the weights that have to be there at once."""
        ends = sum(output.spec.elements for output in self.contents.rest) * self.dtype.itemsize
        sizes = [self._size(content) for content in self.contents.layers]
        return ends + (sum(sizes) if self.healing.rank is None else max(sizes))

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        """Of each tensor that learns."""
        for index in self.healing.indices:
            specs = {one.spec.name: one.spec for one in self.contents.layers[index].outputs}
            for name in learning_tensors(self.healing.rank, specs):
                yield specs[name].shape

    def _sides(self) -> list[int]:
        """The smaller sides of the projections of the layers that learn."""
        found = [1]
        for index in self.healing.indices:
            outputs = self.contents.layers[index].outputs
            found += projections({one.spec.name: one.spec for one in outputs}).values()
        return found

    @property
    def _activations(self) -> int:
        config = configuration(self.contents.config).get_text_config()
        tokens = max(STEP_TOKENS, self.length)
        count = len(self.contents.layers) - min(self.healing.indices)
        between = (count + 1) * tokens * int(config.hidden_size) * 4
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        scores = tokens * self.length * heads * 4 * SCORES_COPIES
        widths = [
            sum(sum(o.spec.shape) for o in content.outputs if len(o.spec.shape) == 2)
            for content in self.contents.layers[min(self.healing.indices) :]
        ]
        layers = [tokens * width * LAYER_COPIES + scores for width in widths]
        inside = sum(layers) if self.limit is None else max(layers)
        return between + inside + LOGIT_BYTES * HEADS_COPIES


LARGEST_RANK = 2**16
"""No projection has a higher one."""
