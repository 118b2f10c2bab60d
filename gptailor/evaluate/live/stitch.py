"""A plan as a live module: layers by reference, what is merged made on the device, nothing written.

The module is made from the plan's Program, so that it equals the compiled and reloaded folder: the
tensors bit for bit, and on the CPU in float32 the logits too, where the folder's tensors begin at
addresses as torch's own do. (transformers maps files into memory as they are; some of the CPU's
kernels round otherwise there, by 1e-7.)
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from gptailor.checkpoint.models import Opened, dequantised_model
from gptailor.evaluate.forward.prefix_cache import in_order
from gptailor.evaluate.live import layer_cache
from gptailor.evaluate.live.content_keys import (
    Content,
    ContentTable,
    ModelContents,
    TensorMaker,
    piece,
    size_of,
)
from gptailor.evaluate.live.language import language_model
from gptailor.evaluate.live.template import ModelTemplate, NamedTensors, decoder_layers
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.program.program import Combine
from gptailor.program.run import device_of

MERGED_SHARE = 0.25
"""Of the device's memory, what cached merged layers take at most where nothing else is said."""
WEIGHTS_SHARE = 0.6
"""Of the memory of the one of several GPUs that computes, what weights take if nobody says."""
MERGED_MODELS = 8
"""So many times the base's size are enough: a search's next plans are like its last ones."""
SURROUNDINGS = 4
"""Other plans' embeddings and heads take such a part of what merged layers may, at most."""


@final
@dataclass(frozen=True, eq=False)
class Stitched:
    """A plan's live model, and what its pieces are.

    Of two of one `Stitcher` with an equal `start` and equal first k `layers`, the hidden states
    after k layers are the same, bit for bit; with all of that and `end` equal, the logits.

    `model` is a transformers model of its own: hooks on it touch no other; its tensors are shared
    with others and not to be written into. Where memory is bounded, its layers are hollow (on the
    `meta` device) but while they run.
    """

    model: PreTrainedModel
    start: Hashable
    layers: tuple[Hashable, ...]
    end: Hashable
    streamed: tuple[layer_cache.StreamedLayer, ...] = field(default=(), repr=False)

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """The layer of that number, ready on the device as long as the context lasts.

        Where layers are streamed, the next one begins to come.
        """
        if self.streamed:
            return self.streamed[index].held()
        return nullcontext(decoder_layers(self.model)[index])


@final
class Stitcher:
    """The models of a plan or of a space, loaded once, and live models of their layers.

    Weights are read when a plan first uses them. `dtype` is the live models'; without it they have
    the one that their configuration names, as transformers has it. `memory` is how many bytes of
    weights may be on the device; without it all that has been used stays. `merged` is how many
    bytes of merged layers are kept for other plans, eight models' without it, a quarter of the
    device's memory at most; with `memory` they are layers like all others. Of models with towers it
    takes the language model alone.

    Of several `gpus` one computes, and the others hold layers that wait: bits are those of one.

    Bridges and healing are left out; `gptailor.evaluate.repair` has them. Quantised models are
    dequantised as they are read. Raises TailorError for a missing device, and CheckpointError for
    a quantised model that can't be read.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        merged: int | None = None,
        gpus: int = 1,
    ) -> None:
        read = {
            name: model if model.layout.quantised is None else dequantised_model(model)
            for name, model in models.items()
        }
        models = {name: language_model(model) for name, model in read.items()}
        self.device = device_of(str(device))
        peers = layer_cache.peers_of(self.device, gpus) if gpus > 1 else ()
        if peers and memory is None:
            memory = int(WEIGHTS_SHARE * layer_cache.memory_of(self.device))
        self.dtype = dtype
        self.memory = memory
        self.table = ContentTable(models)
        self._base = models["base"]
        self.tensors = TensorMaker(self.device, keep=memory is None)
        self._templates: OrderedDict[Hashable, ModelTemplate] = OrderedDict()
        self._homes: dict[tuple[str, str], ModelTemplate] = {}  # the latest with such a layer
        self._cache: layer_cache.LayerCache | None = None
        self._stream: layer_cache.LayerStream | None = None
        if merged is None:
            base = sum(tensor.spec.size for tensor in self._base.checkpoint.tensors.values())
            merged = min(
                int(MERGED_SHARE * layer_cache.memory_of(self.device)), MERGED_MODELS * base
            )
        self.merged = merged
        if memory is None:
            self._cache = layer_cache.LayerCache(self._make, merged)
        else:
            self._stream = layer_cache.LayerStream(
                self._make, self._ahead, self.device, memory, peers
            )

    def stitch(self, plan: Plan) -> Stitched:
        """Return the live model of a closed plan that has no faults against the models.

        It is in eval mode, without gradients. Raises CheckpointError where a file is not what its
        header said, OverflowFault where a merge overflows, TailorError where `memory` holds no
        layer or a model that the plan uses isn't among those given.
        """
        return self.live(self.contents(self.table.resolved(plan)))

    def contents(self, resolved: Resolved) -> ModelContents:
        """Return the contents of a closed plan's live model, without bridges and healing.

        Raises TailorError where a model that the plan uses isn't among those given.
        """
        return self.table.contents(resolved)

    def computing_dtype(self, contents: ModelContents) -> torch.dtype:
        """Return the dtype of the live model of these contents."""
        return self._template(contents).model.dtype

    def reserve(self, size: int) -> None:
        """Leave so many bytes of a bounded memory free of weights."""
        if self._stream is not None:
            self._stream.reserved = size

    def together(self, several: Sequence[ModelContents]) -> Iterator[list[int]]:
        """Their numbers in groups that may be live at once, those that begin alike together.

        What a group has of its own, merged layers and what surrounds layers, takes as many bytes as
        are kept of merged layers; with `memory` a group has one surrounding, which counts in it.
        """
        group: list[int] = []
        pieces: dict[Hashable, int] = {}
        for number in in_order([(_start(one), *one.layers) for one in several]):
            rest = (one for one in several[number].rest if isinstance(one.make, Combine))
            own: dict[Hashable, int] = {
                _surrounding(several[number]): sum(one.spec.size for one in rest)
            }
            if self._stream is None:
                own |= {content: content.made for content in several[number].layers}
            size = sum((pieces | own).values())
            over = len(pieces | own) > 1 if self._stream is not None else size > self.merged
            if group and over:
                yield group
                group, pieces = [], {}
            group.append(number)
            pieces |= own
        if group:
            yield group

    @torch.no_grad()
    def live(self, contents: ModelContents) -> Stitched:
        """The live model of what `contents` gave."""
        with torch.inference_mode(mode=False):
            template = self._template(contents)
            self._homes |= {(content.kind, content.dtype): template for content in contents.layers}
            if self._stream is not None:
                empty = [template.hollow(content) for content in contents.layers]
                largest = max(size_of(layer.values()) for layer in empty)
                self._stream.expect(len(empty), template.size, largest)
                model = template.model_of(contents, empty)
                modules = list(decoder_layers(model))
                streamed = layer_cache.stream_layers(modules, contents.layers, empty, self._stream)
            else:
                assert self._cache is not None
                layers: list[NamedTensors] = [
                    self._cache.get(content) for content in contents.layers
                ]
                model, streamed = template.model_of(contents, layers), ()
            head = contents.begin if contents.tied else ()
            end = (contents.dtype, piece(head), piece(contents.end))
            return Stitched(model, _start(contents), contents.layers, end, streamed)

    def _template(self, contents: ModelContents) -> ModelTemplate:
        """What surrounds the layers; of those that no plan uses some stay, the latest."""
        key = _surrounding(contents)
        if key not in self._templates:
            self._templates[key] = ModelTemplate(contents, self._base, self.tensors, self.dtype)
        self._templates.move_to_end(key)
        room = self.merged // SURROUNDINGS if self._stream is None else 0
        while len(self._templates) > 1 and sum(one.size for one in self._templates.values()) > room:
            self._templates.popitem(last=False)
        return self._templates[key]

    def _make(self, content: Content) -> layer_cache.LayerTensors:
        with torch.inference_mode(mode=False), torch.no_grad():
            return self._homes[content.kind, content.dtype].layer(content)

    def _ahead(self, content: Content) -> bool:
        return self._homes[content.kind, content.dtype].direct(content)


def _surrounding(contents: ModelContents) -> Hashable:
    return (contents.key, *map(piece, (contents.begin, contents.end, contents.others)))


def _start(contents: ModelContents) -> Hashable:
    return contents.dtype, piece(contents.begin), piece(contents.others)
