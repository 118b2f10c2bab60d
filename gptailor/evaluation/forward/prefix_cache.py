"""Hidden states where plans part, so that a common beginning runs once.

A plan's path is its works, its start and its layers. After layers where the paths of known plans
part, the hidden states of all batches may be kept, within a budget of bytes.
"""

from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import takewhile
from typing import final

from torch import Tensor

from gptailor.evaluation.live.content_keys import size_of

PATHS = 128
"""Plans whose layers are remembered, to find where later plans part from them."""

LayerPath = tuple[Hashable, ...]
"""A plan's works, its start, and its layers; or the beginning of that."""
_BEFORE = 2
"""Entries of a path before its layers."""


@final
class PrefixCache:
    """Hidden states where plans part, within `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._begun: deque[LayerPath] = deque(maxlen=PATHS)
        """Plans that have run lately, the latest last."""
        self._ahead: list[LayerPath] = []
        """Plans that have not begun."""
        self._states: dict[LayerPath, list[Tensor]] = {}
        """States after beginnings, the latest used last."""

    @property
    def bytes(self) -> int:
        """The bytes of all states."""
        return sum(map(size_of, self._states.values()))

    def clear(self) -> None:
        """Drop all states, but remember which plans have run and which will run."""
        self._states.clear()

    def expect(self, paths: Collection[LayerPath]) -> None:
        """Add plans that will run."""
        self._ahead.extend(paths)

    def begin(self, path: LayerPath) -> None:
        """Note that a plan runs now, or never will. Plans that ran long ago are forgotten."""
        self._ahead.remove(path)
        self._begun.append(path)

    def partings(self, path: LayerPath) -> set[int]:
        """Return the layers' numbers after which other known plans part from the latest, or end."""
        others = [*self._ahead, *self._begun][:-1]
        return {_layers_alike(path, other) for other in others}

    def latest(self, path: LayerPath) -> tuple[int, list[Tensor] | None]:
        """Return the most layers that a kept state spares the plan, and that state."""
        for end in range(len(path), _BEFORE, -1):
            if (state := self._states.pop(path[:end], None)) is not None:
                self._states[path[:end]] = state
                return end - _BEFORE, list(state)
        return 0, None

    def offer(self, path: LayerPath, depth: int, hidden: Sequence[Tensor]) -> None:
        """Keep the plan's hidden states after `depth` layers, if that pays."""
        beginning, size = path[: _BEFORE + depth], size_of(hidden)
        if beginning in self._states or size > self.budget:
            return
        while self.bytes + size > self.budget:
            least = min(self._states, key=self._saving)
            if self._saving(least) > self._saving(beginning):
                return
            del self._states[least]
        self._states[beginning] = list(hidden)

    def _saving(self, beginning: LayerPath) -> int:
        """Return the layers that a state spares, over the plans that have not begun."""
        length = len(beginning)
        ahead = sum(path[:length] == beginning for path in self._ahead)
        shorter = (len(kept) for kept in self._states if kept == beginning[: len(kept)])
        above = max((kept for kept in shorter if kept < length), default=_BEFORE)
        return ahead * (length - above)


def _layers_alike(path: LayerPath, other: LayerPath) -> int:
    """Return the number of layers with which two plans begin; below 0 if they begin otherwise."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))
    return sum(1 for _ in alike) - _BEFORE


def in_order(paths: Mapping[int, LayerPath]) -> list[int]:
    """Return the paths' numbers, with equal beginnings together and stable otherwise."""
    ranks: dict[Hashable, int] = {}
    lines = {n: [ranks.setdefault(key, len(ranks)) for key in path] for n, path in paths.items()}
    return sorted(paths, key=lines.__getitem__)
