"""Which layers' tensors are on the device: all of them, or as many as fit."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from gptailor.evaluate.live.contents import Content, size_of
from gptailor.evaluate.live.template import NamedTensors, fill_module
from gptailor.plan.faults import TailorError

LayerTensors = dict[str, Tensor]
"""A layer's parameters and buffers by their names within its module."""
Make = Callable[[Content], LayerTensors]


@final
class LayerCache:
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
        if content not in self._merged:
            self._merged[content] = self.make(content)
            self.bytes += content.made
        made = self._merged[content]
        self._merged.move_to_end(content)
        while self.bytes > self.merged:
            oldest, _ = self._merged.popitem(last=False)
            self.bytes -= oldest.made
        return made


@final
class ResidentLayers:
    """Layers that stay on the device within `room` bytes, the first that come.

    A pass goes through its layers in turn: keeping the latest would mean that none is there when
    it is wanted again. So what is there stays, until it has not been used for two passes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.bytes = 0
        self._layers: dict[Content, tuple[LayerTensors, int]] = {}  # the latest used last, and when
        self._clock = 0
        self.passing = 1
        """Layers of the largest model so far."""

    def limit(self, room: int, layers: int) -> None:
        """Change the room; a model has this many layers."""
        self.room = room
        self.passing = max(self.passing, layers)
        while self.bytes > room:
            self._drop_oldest()

    def get(self, content: Content) -> LayerTensors | None:
        """The layer, if it is there."""
        self._clock += 1
        if content not in self._layers:
            return None
        layer, _ = self._layers.pop(content)
        self._layers[content] = layer, self._clock
        return layer

    def __contains__(self, content: Content) -> bool:
        return content in self._layers

    def offer(self, content: Content, layer: LayerTensors) -> None:
        """Keep the layer if there is room, or will be without those that are out of use."""
        size = size_of(layer.values())
        if content in self._layers or size > self.room:
            return
        while self.bytes + size > self.room:
            _, used = next(iter(self._layers.values()))
            if self._clock - used <= 2 * self.passing:
                return
            self._drop_oldest()
        self._layers[content] = layer, self._clock
        self.bytes += size

    def _drop_oldest(self) -> None:
        layer, _ = self._layers.pop(next(iter(self._layers)))
        self.bytes -= size_of(layer.values())


HOST_SHARE = 0.7
"""Of the host's free memory, what pinned copies of layers may take beside a CUDA device."""

Arrival = tuple[LayerTensors, torch.cuda.Event | None]


@final
class LayerStream:
    """Brings layers within `memory` bytes on the device: some stay, the others come and go.

    Two layers' room is for those that come and go: one runs while the next one's copy is under way.
    Beside a CUDA device layers wait in pinned host memory as far as that is free; else, and on the
    CPU, they are read and made anew. `ahead(content)` says whether one may be made by another
    thread.
    """

    def __init__(
        self, make: Make, ahead: Callable[[Content], bool], device: torch.device, memory: int
    ) -> None:
        self.make = make
        self.ahead = ahead
        self.device = device
        self.memory = memory
        self.reserved = 0
        """Bytes of `memory` that are for something else than models: the sums of a fit."""
        self.layers = 0
        """Bytes that layers may take."""
        self.largest = 0
        self.resident = ResidentLayers(0)
        cuda = device.type == "cuda"
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.host = ResidentLayers(int(free * HOST_SHARE) if cuda else 0)
        self._side = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._coming: dict[Content, Future[Arrival]] = {}
        self._here: dict[Content, LayerTensors] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="gptailor-layers")

    def expect(self, count: int, fixed: int, largest: int) -> None:
        """A model of `count` layers will run; outside them it has `fixed` bytes on the device.

        Raises TailorError if its largest layer doesn't fit beside them.
        """
        room = self.memory - self.reserved
        if fixed + largest > room:
            beside = f"a fit takes {self.reserved:,}, " if self.reserved else ""
            raise TailorError(
                f"{self.memory:,} bytes can't hold the model: {beside}{fixed:,} are outside its "
                f"layers, and its largest layer takes {largest:,}"
            )
        self.largest = max(self.largest, largest)
        self.layers = room - fixed
        self.resident.limit(max(0, self.layers - 2 * self.largest), count)
        self.host.limit(self.host.room, count)

    # ------------------------------------------------------------------------------ come and go

    def enter(self, content: Content) -> LayerTensors:
        """The layer's tensors on the device, ready to be computed with."""
        found = self.resident.get(content) or self._here.get(content)
        if found is not None:
            return found
        coming = self._coming.pop(content, None)
        layer, event = coming.result() if coming is not None else self._bring(content)
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in layer.values():
                tensor.record_stream(current)
        self.resident.offer(content, layer)
        self._here[content] = layer
        return layer

    def leave(self, content: Content) -> None:
        """The layer has run: its memory is free, if it isn't one of those that stay."""
        self._here.pop(content, None)

    def prefetch(self, content: Content) -> None:
        """Begin to bring the layer, if there is room for one that isn't running."""
        if content in self._coming:
            return
        self._coming.clear()  # left by a pass that broke off
        there = content in self.resident or content in self._here
        room = len(self._here) < 2 and self.resident.bytes + 2 * self.largest <= self.layers
        if not there and room and (content in self.host or self.ahead(content)):
            self._coming[content] = self._worker.submit(self._bring, content)

    # -------------------------------------------------------------------------------- one layer

    def _bring(self, content: Content) -> Arrival:
        """The layer on the device, and on a CUDA device when its copy is done."""
        if self._side is None:
            return self.make(content), None
        with torch.cuda.stream(self._side):
            waiting = self.host.get(content)
            if waiting is None:
                layer = self.make(content)
                if self.host.bytes + size_of(layer.values()) <= self.host.room:
                    self.host.offer(content, {n: t.cpu().pin_memory() for n, t in layer.items()})
            else:
                layer = {n: t.to(self.device, non_blocking=True) for n, t in waiting.items()}
            return layer, self._side.record_event()


def memory_of(device: torch.device) -> int:
    """All bytes of memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@final
class StreamedLayer:
    """A layer of a live model: its module, filled while it is used and hollow otherwise."""

    def __init__(
        self,
        stream: LayerStream,
        module: nn.Module,
        content: Content,
        hollow: NamedTensors,
        following: Content | None,
    ) -> None:
        self.module = module
        self.content = content
        self.hollow = hollow
        self.stream = stream
        self.following = following
        self._held = 0
        self._running = 0
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after, always_call=True)

    @contextmanager
    def held(self) -> Iterator[nn.Module]:
        """The layer, ready; the next one begins to come."""
        self._enter()
        self._held += 1
        try:
            yield self.module
        finally:
            self._held -= 1
            self._leave()

    def _before(self, module: nn.Module, arguments: Any) -> None:
        self._enter()
        self._running += 1

    def _after(self, module: nn.Module, arguments: Any, result: Any) -> None:
        if self._running:  # 0 if a hook before ours has failed
            self._running -= 1
            self._leave()

    def _enter(self) -> None:
        if not self._held + self._running:
            fill_module(self.module, self.stream.enter(self.content))
            if self.following is not None:
                self.stream.prefetch(self.following)

    def _leave(self) -> None:
        if not self._held + self._running:
            fill_module(self.module, self.hollow)
            self.stream.leave(self.content)


def stream_layers(
    modules: Sequence[nn.Module],
    contents: Sequence[Content],
    hollow: Sequence[NamedTensors],
    stream: LayerStream,
) -> tuple[StreamedLayer, ...]:
    """All layers of a model, each with the one that follows it."""
    made = zip(modules, contents, hollow, (*contents[1:], None), strict=True)
    return tuple(StreamedLayer(stream, *each) for each in made)
