"""Plans that begin alike: the tree of their layers, with hidden states where plans part.

A node stands for the common beginning of some plans: batches, a start, and the first k layers.
Nodes where plans have parted may keep the hidden states of all batches, within a budget of bytes.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import final

from torch import Tensor

from gptailor.evaluation.live.content_keys import size_of

PATHS = 128
"""Plans whose layers are remembered, to find where later plans part from them."""

LayerPath = tuple[Hashable, ...]


@final
class PrefixNode:
    """The common first `depth` layers of some plans."""

    def __init__(self, parent: "PrefixNode | None", key: Hashable) -> None:
        self.parent = parent
        self.key = key
        self.depth: int = -2 if parent is None else parent.depth + 1  # batches, start, then layers
        self.children: dict[Hashable, PrefixNode] = {}
        self.ends = 0
        """Remembered plans that end here."""
        self.ahead = 0
        """Plans through this node that have not begun."""
        self.state: list[Tensor] | None = None
        self.used = 0

    def line(self) -> "Iterator[PrefixNode]":
        """Yield this node and its ancestors, up to the root."""
        node: PrefixNode | None = self
        while node is not None:
            yield node
            node = node.parent

    @property
    def parts(self) -> bool:
        """Return whether several plans continue from this node or end at it."""
        return len(self.children) + self.ends > 1

    def saving(self) -> int:
        """Return the layers that the state spares, over the plans that have not begun."""
        above = (node.depth for node in self.line() if node is not self and node.state is not None)
        return self.ahead * (self.depth - next(above, 0))


@final
class PrefixCache:
    """Hidden states where plans part, within `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.root = PrefixNode(None, None)
        self._clock = 0
        self._held: list[PrefixNode] = []
        self._leaves: deque[PrefixNode] = deque()

    def clear(self) -> None:
        """Drop all states, but remember which plans have run and which will run."""
        while self._held:
            self._drop(self._held[-1])

    def expect(self, paths: Iterable[LayerPath]) -> list[PrefixNode]:
        """Add plans that will run, and return their leaves."""
        leaves = []
        for path in paths:
            leaf = self.root
            for key in path:
                leaf = leaf.children.get(key) or leaf.children.setdefault(
                    key, PrefixNode(leaf, key)
                )
            leaf.ends += 1
            for node in leaf.line():
                node.ahead += 1
            leaves.append(leaf)
        self._leaves.extend(leaves)
        return leaves

    def begin(self, leaf: PrefixNode) -> None:
        """Note that the plan of the leaf runs now, or never will."""
        for node in leaf.line():
            node.ahead -= 1

    def trim(self) -> None:
        """Forget plans that ran long ago."""
        while len(self._leaves) > PATHS and not self._leaves[0].ahead:
            old = self._leaves.popleft()
            old.ends -= 1
            self._prune(old)

    def latest(self, leaf: PrefixNode) -> tuple[int, list[Tensor] | None]:
        """Return the most layers that a kept state spares the plan, and that state."""
        for node in leaf.line():
            if node.state is not None:
                self._clock += 1
                node.used = self._clock
                return node.depth, list(node.state)
        return 0, None

    def offer(self, leaf: PrefixNode, depth: int, hidden: Sequence[Tensor]) -> None:
        """Keep the plan's hidden states after `depth` layers, if plans part there and it pays."""
        node = next(node for node in leaf.line() if node.depth == depth)
        size = size_of(hidden)
        if depth < 1 or node.state is not None or not node.parts or not self._make_room(node, size):
            return
        node.state = list(hidden)
        self._clock += 1
        node.used = self._clock
        self.bytes += size
        self._held.append(node)

    def _make_room(self, node: PrefixNode, size: int) -> bool:
        if size > self.budget:
            return False
        while self.bytes + size > self.budget:
            least = min(self._held, key=lambda held: (held.saving(), held.used))
            if least.saving() > node.saving():
                return False
            self._drop(least)
        return True

    def _drop(self, node: PrefixNode) -> None:
        assert node.state is not None
        self.bytes -= size_of(node.state)
        node.state = None
        self._held.remove(node)
        self._prune(node)

    def _prune(self, node: PrefixNode) -> None:
        for at in list(node.line()):
            bare = not (at.children or at.ends or at.ahead or at.state is not None)
            if at.parent is None or not bare:
                return
            del at.parent.children[at.key]


def in_order(paths: Mapping[int, LayerPath]) -> list[int]:
    """Return the paths' numbers, with equal beginnings together and stable otherwise."""
    ranks: dict[Hashable, int] = {}
    lines = {n: [ranks.setdefault(key, len(ranks)) for key in path] for n, path in paths.items()}
    return sorted(paths, key=lines.__getitem__)
