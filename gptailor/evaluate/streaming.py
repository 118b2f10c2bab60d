"""Layers that come to the device when they run, and leave it after: models larger than it."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import torch

from gptailor.diagnostics import TailorError
from gptailor.evaluate.contents import Content
from gptailor.evaluate.residence import LayerTensors, Make, Resident
from gptailor.evaluate.tensors import size_of

HOST_SHARE = 0.7
"""Of the host's free memory, what pinned copies of layers may take beside a CUDA device."""

Arrival = tuple[LayerTensors, torch.cuda.Event | None]


@final
class Streaming:
    """Lends layers within `memory` bytes on the device: some stay, the others come and go.

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
        self.resident = Resident(0)
        cuda = device.type == "cuda"
        self.host = Resident(_free() if cuda else 0)
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
        there = self.resident.has(content) or content in self._here
        room = len(self._here) < 2 and self.resident.bytes + 2 * self.largest <= self.layers
        if not there and room and (self.host.has(content) or self.ahead(content)):
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
                self._put_by(content, layer)
            else:
                layer = {n: t.to(self.device, non_blocking=True) for n, t in waiting.items()}
            return layer, self._side.record_event()

    def _put_by(self, content: Content, layer: LayerTensors) -> None:
        if self.host.bytes + size_of(list(layer.values())) <= self.host.room:
            self.host.offer(content, {n: t.cpu().pin_memory() for n, t in layer.items()})


def _free() -> int:
    """Bytes that may be pinned."""
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * HOST_SHARE)
