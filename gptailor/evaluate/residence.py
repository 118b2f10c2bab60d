"""Which layers' tensors are on the device: all of them, or as many as fit."""

from collections import OrderedDict
from collections.abc import Callable
from typing import final

from torch import Tensor

from gptailor.evaluate.contents import Content
from gptailor.evaluate.tensors import size_of

LayerTensors = dict[str, Tensor]
"""A layer's parameters and buffers by their names within its module."""
Make = Callable[[Content], LayerTensors]


@final
class Everything:
    """All layers stay. Of those that are computed only as many as `merged` bytes hold.

    One that is computed counts with the bytes that are its own. What falls out of the cache lives
    on in the models that have it.
    """

    def __init__(self, make: Make, merged: int) -> None:
        self.make = make
        self.merged = merged
        self.bytes = 0
        self._kept: dict[Content, LayerTensors] = {}
        self._merged: OrderedDict[Content, LayerTensors] = OrderedDict()

    def get(self, content: Content) -> LayerTensors:
        """The layer's tensors: the same each time, while they are kept."""
        if not content.merged:
            if content not in self._kept:
                self._kept[content] = self.make(content)
            return self._kept[content]
        if content in self._merged:
            self._merged.move_to_end(content)
            return self._merged[content]
        made = self.make(content)
        self._merged[content] = made
        self.bytes += content.made
        while self.bytes > self.merged:
            oldest, _ = self._merged.popitem(last=False)
            self.bytes -= oldest.made
        return made


@final
class Resident:
    """Layers that stay on the device within `room` bytes, the first that come.

    A pass goes through its layers in turn: keeping the latest would mean that none is there when
    it is wanted again. So what is there stays, until it has not been used for two passes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.bytes = 0
        self._layers: dict[Content, LayerTensors] = {}
        self._used: dict[Content, int] = {}
        self._clock = 0
        self.passing = 1
        """Layers of the largest model so far."""

    def limit(self, room: int, layers: int) -> None:
        """Change the room; a model has this many layers."""
        self.room = room
        self.passing = max(self.passing, layers)
        for each in sorted(self._used, key=lambda content: self._used[content]):
            if self.bytes <= room:
                break
            self._drop(each)

    def get(self, content: Content) -> LayerTensors | None:
        """The layer, if it is there."""
        self._clock += 1
        found = self._layers.get(content)
        if found is not None:
            self._used[content] = self._clock
        return found

    def has(self, content: Content) -> bool:
        """Whether the layer is there."""
        return content in self._layers

    def offer(self, content: Content, layer: LayerTensors) -> None:
        """Keep the layer if there is room, or will be without those that are out of use."""
        size = size_of(list(layer.values()))
        if content in self._layers or size > self.room:
            return
        old = [c for c, used in self._used.items() if self._clock - used > 2 * self.passing]
        for each in old:
            if self.bytes + size <= self.room:
                break
            self._drop(each)
        if self.bytes + size <= self.room:
            self._layers[content] = layer
            self._used[content] = self._clock
            self.bytes += size

    def _drop(self, content: Content) -> None:
        self.bytes -= size_of(list(self._layers.pop(content).values()))
        del self._used[content]
