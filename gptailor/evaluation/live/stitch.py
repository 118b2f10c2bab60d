"""A plan as a live module: shared layers, merges computed on the device, nothing written.

The module is made from the plan's Program, so that it equals the compiled and reloaded folder: the
tensors bit for bit, and on the CPU in float32 the logits too, where the folder's tensors begin at
addresses as torch's own do. (transformers maps files into memory as they are; some of the CPU's
kernels round otherwise there, by 1e-7.)
"""

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import final

import torch
from torch import nn
from transformers import PreTrainedModel

from gptailor.checkpoint.models import Opened, dequantised_model
from gptailor.evaluation.live import layer_cache
from gptailor.evaluation.live.content_keys import (
    Content,
    ContentTable,
    ModelContents,
    TensorMaker,
    piece,
    size_of,
)
from gptailor.evaluation.live.language import language_model
from gptailor.evaluation.live.template import ModelTemplate, NamedTensors, decoder_layers
from gptailor.evaluation.recently_used import RecentlyUsed
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.program.devices import device_of, memory_of

MERGED_SHARE = 0.25
"""The default largest share of the device's memory for cached merged layers."""
WEIGHTS_SHARE = 0.6
"""The default share of the computing GPU's memory for weights, if there are several GPUs."""
MERGED_MODELS = 8
"""The largest cache of merged layers, in base sizes; a search's next plans resemble the last."""
SURROUNDINGS = 4
"""The share of the bytes of merged layers that may go to embeddings and heads: one in this many."""


@final
@dataclass(frozen=True, eq=False)
class Stitched:
    """A plan's live model, and the keys of its pieces.

    If two models of one `Stitcher` have an equal `start` and equal first k `layers`, their hidden
    states after k layers are equal, bit for bit.

    `model` is a separate transformers model with its own hooks. Its tensors are shared with other
    models, so don't write into them. If memory is bounded, a layer is hollow (on the `meta` device)
    except while it runs.
    """

    model: PreTrainedModel
    start: Hashable
    layers: tuple[Hashable, ...]
    streamed: tuple[layer_cache.StreamedLayer, ...] = field(default=(), repr=False)

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """Return the layer of that number, ready on the device as long as the context lasts.

        If layers are streamed, the next layer starts to load.
        """
        module = decoder_layers(self.model)[index]
        return self.streamed[index].held(module) if self.streamed else nullcontext(module)


@final
class Stitcher:
    """The models of a plan or of a space, loaded once, and live models of their layers.

    A stitcher owns the weights on its device. Nothing that it owns refers to it, so the weights
    leave the device with the last reference to the stitcher and its live models.

    Weights are read when a plan first uses them. `dtype` is the live models' dtype, by default
    their configuration's, as in transformers. `memory` bounds the bytes of weights on the device;
    without it all used weights stay. `merged` bounds the bytes of merged layers that are kept for
    other plans: eight times the base's size, at most a quarter of the device's memory. With
    `memory` merged layers are cached like all layers. Only the language model of a model with
    towers is used.

    If there are several `gpus`, one computes, and the others hold waiting layers. The results equal
    one GPU's, bit for bit.

    `gptailor.evaluation.fits` adds bridges and healing. Quantised models are dequantised as they
    are read. Raises TailorError for a missing device, and CheckpointError for
    a quantised model that can't be read.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        gpus: int = 1,
    ) -> None:
        models = {
            name: language_model(
                model if model.layout.quantised is None else dequantised_model(model)
            )
            for name, model in models.items()
        }
        self.device = device_of(str(device))
        peers = layer_cache.peers_of(self.device, gpus) if gpus > 1 else ()
        if peers and memory is None:
            memory = int(WEIGHTS_SHARE * memory_of(self.device))
        self.dtype = dtype
        self.memory = memory
        self.table = ContentTable(models)
        self.tensors = TensorMaker(self.device, keep=memory is None)
        self._templates: RecentlyUsed[Hashable, ModelTemplate] = RecentlyUsed()
        self._plain: RecentlyUsed[Content, NamedTensors] = RecentlyUsed()
        self._merged: RecentlyUsed[Content, NamedTensors] = RecentlyUsed()
        base = sum(tensor.spec.size for tensor in models["base"].checkpoint.tensors.values())
        self.merged = min(int(MERGED_SHARE * memory_of(self.device)), MERGED_MODELS * base)
        self._stream = (
            None if memory is None else layer_cache.LayerStream(self.device, memory, peers)
        )

    def stitch(self, plan: Plan) -> Stitched:
        """Return the live model of a closed plan that has no faults against the models.

        It is in eval mode, without gradients. Raises CheckpointError where a file contradicts its
        header, OverflowFault where a merge overflows, TailorError where `memory` holds no layer or
        a model that the plan uses isn't among those given.
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
        """Leave this many bytes of a bounded memory free of weights."""
        if self._stream is not None:
            self._stream.reserved = size

    @torch.no_grad()
    def live(self, contents: ModelContents) -> Stitched:
        """Return the live model of a plan's contents."""
        with torch.inference_mode(mode=False):
            template = self._template(contents)
            if self._stream is not None:
                empty = [template.hollow[content.kind] for content in contents.layers]
                largest = max(size_of(layer.values()) for layer in empty)
                self._stream.expect(contents.layers, template.size, largest)
                model = template.model_of(contents, empty)
                following = (*contents.layers[1:], None)
                parts = zip(decoder_layers(model), contents.layers, following, strict=True)
                streamed = tuple(
                    layer_cache.StreamedLayer(self._stream, *part, template) for part in parts
                )
            else:
                layers = [self._layer(template, content) for content in contents.layers]
                model, streamed = template.model_of(contents, layers), ()
            return Stitched(model, contents.start, contents.layers, streamed)

    def _template(self, contents: ModelContents) -> ModelTemplate:
        """Return the template around the layers. The latest unused templates stay, if they fit."""
        key = (contents.key, *map(piece, (contents.begin, contents.end, contents.others)))
        make = partial(ModelTemplate, contents, self.table.models["base"], self.tensors, self.dtype)
        template = self._templates.of(key, make, attrgetter("size"))
        self._templates.forget(self.merged // SURROUNDINGS if self._stream is None else 0)
        return template

    def _layer(self, template: ModelTemplate, content: Content) -> NamedTensors:
        """Return a layer's tensors, the same objects while they are kept.

        All plain layers stay, and merged layers within `merged` bytes. A merged layer counts with
        the bytes that it alone takes, and stays in memory while a model uses it.
        """
        kept = self._merged if content.made else self._plain
        layer = kept.of(content, partial(template.layer, content), lambda _: content.made)
        self._merged.forget(self.merged, 0)
        return layer
