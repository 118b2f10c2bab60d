"""Layers' tensors on the device: all of them, or as many as fit."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from operator import methodcaller
from typing import final

import torch
from torch import Tensor, nn

from gptailor.evaluation.live.content_keys import Content, size_of
from gptailor.evaluation.live.template import ModelTemplate
from gptailor.plan.faults import TailorError

LayerTensors = dict[str, Tensor]
"""A layer's parameters and buffers by their names within its module."""
Make = Callable[[Content], LayerTensors]
Move = Callable[[Tensor], Tensor]
"""Puts a tensor where it waits."""


@final
class ResidentLayers:
    """Layers that stay on the device within `room` bytes, the first that come.

    A pass goes through its layers in turn. If the latest layers stayed, the next pass would find no
    layer that it needs. So only layers that the latest model lacks make room for others.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.layers: dict[Content, LayerTensors] = {}
        self._needed: Collection[Content] = ()

    @property
    def bytes(self) -> int:
        """The bytes of all layers."""
        return sum(size_of(layer.values()) for layer in self.layers.values())

    def limit(self, room: int, needed: Collection[Content]) -> None:
        """Change the room; the latest model has these layers."""
        self.room, self._needed = room, needed
        while self.bytes > room:
            del self.layers[next(iter(self.layers))]

    def offer(self, content: Content, layer: LayerTensors) -> None:
        """Keep the layer if there is room, or if layers that are not needed can make room."""
        size = size_of(layer.values())
        if content in self.layers or size > self.room:
            return
        while self.bytes + size > self.room:
            other = next((each for each in self.layers if each not in self._needed), None)
            if other is None:
                return
            del self.layers[other]
        self.layers[content] = layer


HOST_SHARE = 0.7
"""The share of the host's free memory for pinned copies of a CUDA device's layers."""
PEER_SHARE = 0.9
"""The share of other devices' free memory for copies of layers."""

Arrival = tuple[LayerTensors, torch.cuda.Event | None]


@final
class LayerStream:
    """Brings layers to the device within `memory` bytes; some stay, the others come and go.

    The others have room for two layers: one runs while the next one is copied. Layers wait in the
    memory of the `peers`, other devices with a number of bytes each, while there is room. Beside a
    CUDA device they then wait in free pinned host memory. Without room they are read and made
    again by the `make` that comes with the layer's content.
    """

    def __init__(
        self,
        device: torch.device,
        memory: int,
        peers: Sequence[tuple[torch.device, int]] = (),
    ) -> None:
        self.device = device
        self.memory = memory
        self.reserved = 0
        """Bytes of `memory` that a fit's sums take; models can't use them."""
        self.layers = 0
        """Bytes that layers may take."""
        self.largest = 0
        self.resident = ResidentLayers(0)
        cuda = device.type == "cuda"
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        peer_rooms = [
            (methodcaller("to", place, non_blocking=True), ResidentLayers(room))
            for place, room in peers
        ]
        host = ResidentLayers(int(free * HOST_SHARE) if cuda else 0)
        self.waiting: list[tuple[Move, ResidentLayers]] = [*peer_rooms, (_pinned, host)]
        self._side = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._coming: dict[Content, Future[Arrival]] = {}
        self._here: dict[Content, LayerTensors] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="gptailor-layers")

    def expect(self, contents: Collection[Content], fixed: int, largest: int) -> None:
        """Reserve room for a model of these layers and `fixed` bytes outside them on the device.

        Raises TailorError if its largest layer doesn't fit in addition to them.
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
        self.resident.limit(max(0, self.layers - 2 * self.largest), contents)

    # ------------------------------------------------------------------------------ come and go

    def enter(self, content: Content, make: Make) -> LayerTensors:
        """Return the layer's tensors on the device, ready for computation."""
        present = self.resident.layers.get(content) or self._here.get(content)
        if present is not None:
            return present
        coming = self._coming.pop(content, None)
        layer, event = coming.result() if coming is not None else self._bring(content, make)
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for tensor in layer.values():
                tensor.record_stream(current)
        self.resident.offer(content, layer)
        self._here[content] = layer
        return layer

    def leave(self, content: Content) -> None:
        """Free the memory of a layer that has run, unless the layer is resident."""
        self._here.pop(content, None)

    def prefetch(self, content: Content, make: Make, *, ahead: bool) -> None:
        """Begin to bring the layer, if there is room for a second layer.

        With `ahead` another thread may make it.
        """
        if content in self._coming:
            return
        self._coming.clear()  # left by a pass that broke off
        present = content in self.resident.layers or content in self._here
        room = len(self._here) < 2 and self.resident.bytes + 2 * self.largest <= self.layers
        waits = any(content in place.layers for _, place in self.waiting)
        if not present and room and (waits or ahead):
            self._coming[content] = self._worker.submit(self._bring, content, make)

    # -------------------------------------------------------------------------------- one layer

    def _bring(self, content: Content, make: Make) -> Arrival:
        """Return the layer on the device, with the event that ends its copy on a CUDA device."""
        candidates = (place.layers.get(content) for _, place in self.waiting)
        waiting = next((layer for layer in candidates if layer is not None), None)
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            if waiting is None:
                layer = self._make_layer(content, make)
            else:
                layer = {n: t.to(self.device, non_blocking=True) for n, t in waiting.items()}
        return layer, None if self._side is None else self._side.record_event()

    def _make_layer(self, content: Content, make: Make) -> LayerTensors:
        """Make the layer again, and keep a copy in the first place with room."""
        layer = make(content)
        size = size_of(layer.values())
        for move, place in self.waiting:
            if place.bytes + size <= place.room:
                place.offer(content, {name: move(tensor) for name, tensor in layer.items()})
                break
        return layer


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.cpu().pin_memory()


def peers_of(device: torch.device, gpus: int) -> list[tuple[torch.device, int]]:
    """Return other GPUs where layers may wait, each with the bytes that it may hold.

    `gpus` counts the device too. Raises TailorError if the machine has fewer.
    """
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus > count:
        raise TailorError(f"expected {gpus} GPUs for the layers, got {count}")
    own = device.index if device.index is not None else torch.cuda.current_device()
    peers = [torch.device("cuda", n) for n in range(count) if n != own][: gpus - 1]
    return [(peer, int(PEER_SHARE * torch.cuda.mem_get_info(peer)[0])) for peer in peers]


@final
class StreamedLayer:
    """A layer of a live model: its module is filled while it is used, and hollow otherwise.

    The module's hooks refer to the layer, so the layer has no reference to its module.
    """

    def __init__(
        self,
        stream: LayerStream,
        module: nn.Module,
        content: Content,
        following: Content | None,
        template: ModelTemplate,
    ) -> None:
        self.content = content
        self.following = following
        self.template = template
        self.stream = stream
        self._uses = 0
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    @contextmanager
    def held(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the layer's module, ready to run, while the next layer begins to come."""
        self._enter(module)
        try:
            yield module
        finally:
            self._leave(module)

    def _enter(self, module: nn.Module, _arguments: object = None) -> None:
        if not self._uses:
            make, following = self.template.layer, self.following
            module.load_state_dict(self.stream.enter(self.content, make), assign=True)
            if following is not None:
                self.stream.prefetch(following, make, ahead=self.template.direct[following.kind])
        self._uses += 1

    def _leave(self, module: nn.Module, *_call: object) -> None:
        self._uses = max(0, self._uses - 1)  # a hook before ours may have failed
        if not self._uses:
            module.load_state_dict(self.template.hollow[self.content.kind], assign=True)
            self.stream.leave(self.content)
