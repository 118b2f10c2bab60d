"""A plan as a live module: layers by reference, what is merged made on the device, nothing written.

The module is made from the plan's Program, so that it equals the compiled and reloaded folder: the
tensors bit for bit, and on the CPU in float32 the logits too, where the folder's tensors begin at
addresses as torch's own do. (transformers maps files into memory as they are; some of the CPU's
kernels round otherwise there, by 1e-7.)
"""

import gc
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gptailor.checkpoint.families.layout import name_of
from gptailor.checkpoint.models import Opened, dequantised_model
from gptailor.evaluate.bridge.fit import Bridger, Fitted, FittedBridge, OnGap
from gptailor.evaluate.forward.prefix_cache import in_order
from gptailor.evaluate.heal.heal import HealedLayers, Healer, OnHealing
from gptailor.evaluate.live import layer_cache
from gptailor.evaluate.live.contents import (
    Content,
    ContentTable,
    ModelContents,
    TensorMaker,
    piece,
    size_of,
)
from gptailor.evaluate.live.language import language_model
from gptailor.evaluate.live.template import ModelTemplate, NamedTensors, decoder_layers
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import REST, Plan
from gptailor.plan.resolved import Gap, Resolved
from gptailor.plan.walk import named_models
from gptailor.prepare import Prepared, ready
from gptailor.program.program import Combine, Output
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

    `on_healing` hears how a plan is bridged and healed when it is stitched; with `anew` nothing is
    taken of what was learned before. Quantised models are dequantised as they are read. Raises
    TailorError for a device that isn't there, and CheckpointError for a quantised model that can't
    be read.
    """

    def __init__(  # noqa: PLR0913 (where models live, each by its name)
        self,
        models: Mapping[str, Opened],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        merged: int | None = None,
        on_healing: OnHealing | None = None,
        anew: bool = False,
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
        self._table = ContentTable(models)
        self._base = models["base"]
        self._tensors = TensorMaker(self.device, keep=memory is None)
        self._templates: OrderedDict[Hashable, ModelTemplate] = OrderedDict()
        self._homes: dict[tuple[str, str], ModelTemplate] = {}  # the latest with such a layer
        self._bridger: Bridger | None = None
        self._on_healing = on_healing
        self._anew = anew
        self._healed: tuple[Plan, HealedLayers] | None = None
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

    @torch.no_grad()
    def stitch(self, plan: Plan) -> Stitched:
        """The live model of a closed plan that has no faults against the models.

        In eval mode, without gradients, its gaps bridged. Raises CheckpointError where a file is
        not what its header said, OverflowFault where a merge overflows, TailorError where `memory`
        holds no layer or a model that the plan uses isn't among those given; and as `bridges`.
        """
        return self.live(self.contents(plan))

    @torch.no_grad()
    def contents(self, plan: Plan) -> ModelContents:
        """What the live model of a closed plan is made of, bridged and healed.

        Raises as `stitch`.
        """
        self._check(plan)
        contents = self._table.contents(plan)
        layers = list(contents.layers)
        on = self._on_healing or OnHealing()
        bridges = self.bridges(plan, on.bridging)
        for gap, bridge in bridges:
            layers[gap.index] = self._table.bridged(layers[gap.index], bridge.tensors)
        healed = self.healed(plan, bridges, on)
        for index, tensors in healed.tensors.items() if healed else ():
            whole = {**layers[index].fitted, **tensors}
            layers[index] = self._table.bridged(layers[index], whole)
        return replace(contents, layers=tuple(layers))

    def bare(self, plan: Plan) -> ModelContents:
        """What a closed plan's live model is made of with neither bridges nor healing."""
        return self._table.contents(plan)

    def with_tensors(self, content: Content, fitted: Mapping[str, Tensor]) -> Content:
        """A layer with some tensors, on the CPU, in the place of its own."""
        return self._table.bridged(content, fitted)

    def make(self, output: Output) -> Tensor:
        """A tensor of a model, as in a compiled folder."""
        return self._tensors.make(output)

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
    def bridges(self, plan: Plan, on_gap: OnGap = lambda _: None) -> list[tuple[Gap, FittedBridge]]:
        """The bridges of a closed plan, fitted in float32 whatever the live models' dtype.

        They are kept for plans that begin alike. `on_gap` hears of each gap that is fitted. Raises
        CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be closed.
        """
        found = Resolved(plan, self._base.layout.count).gaps
        if not found:
            return []
        with torch.inference_mode(mode=False):
            return list(self._fitter(plan).bridges(plan, found, on_gap))

    @torch.no_grad()
    def healed(
        self,
        plan: Plan,
        bridges: Sequence[tuple[Gap, FittedBridge]],
        on: OnHealing | None = None,
    ) -> HealedLayers | None:
        """What a closed plan's layers learn, begun with these bridges; None where nothing does.

        The last plan's is kept. Raises CalibrationError for a text that doesn't serve, HealError
        for what can't learn.
        """
        wanted = Resolved(plan, self._base.layout.count).healing
        if wanted is None:
            return None
        if self._healed is None or self._healed[0] != plan:
            bridged = {gap.index: bridge.tensors for gap, bridge in bridges}
            models = self._table.models
            healer = Healer(models, self._another, self.device, self.memory, anew=self._anew)
            self._healed = plan, healer.heal(plan, wanted, bridged, on)
            if on is not None:
                on.healed(self._healed[1])
        return self._healed[1]

    def _another(
        self, models: Mapping[str, Opened], dtype: torch.dtype, memory: int | None
    ) -> "Stitcher":
        return Stitcher(models, device=self.device, dtype=dtype, memory=memory)

    def _fitter(self, plan: Plan) -> Bridger:
        """This stitcher's own, if its models are float32; else that of another whose are."""
        if self._bridger is None:
            if self._template(self._table.contents(plan)).model.dtype == torch.float32:
                place = self.device if self._stream is None else torch.device("cpu")
                self._bridger = Bridger(self._table, self.live, self._tensors, place, self._reserve)
            else:
                models, wide = self._table.models, torch.float32
                other = Stitcher(models, device=self.device, dtype=wide, memory=self.memory)
                self._bridger = other._fitter(plan)
        return self._bridger

    def _reserve(self, size: int) -> None:
        if self._stream is not None:
            self._stream.reserved = size

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

    def _check(self, plan: Plan) -> None:
        """All models that the plan uses are there: a checked plan's are those that it uses."""
        slots = Resolved(plan, self._base.layout.count).kept
        recipes = [made.recipe for slot in slots for made in slot.recipes.values()]
        recipes += [r for where in REST if (r := plan.rest(where)) is not None]
        used = {name for recipe in recipes for _, name, _ in named_models(recipe)}
        if missing := sorted(used - self._table.models.keys()):
            raise TailorError(f"'{missing[0]}' is not among the models that were opened")

    def _template(self, contents: ModelContents) -> ModelTemplate:
        """What surrounds the layers; of those that no plan uses some stay, the latest."""
        key = _surrounding(contents)
        if key not in self._templates:
            self._templates[key] = ModelTemplate(contents, self._base, self._tensors, self.dtype)
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


def stitch(
    plan: Plan,
    *,
    models: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
) -> PreTrainedModel:
    """The model that a closed plan declares, live and in eval mode, without writing it anywhere.

    On the CPU it equals the compiled and reloaded folder bit for bit. Of a vision-language model it
    is the language model, without towers, as transformers has causal ones. `models` gives other
    folders for the plan's names; `dtype` is the model's, else the one its configuration names;
    `memory` bounds the bytes of weights on the device, through which layers are then streamed.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails: a device that isn't there, memory that holds no layer.
    """
    prepared = ready(plan, models=models)
    stitcher = Stitcher(prepared.models, device=device, dtype=dtype, memory=memory)
    return stitcher.stitch(prepared.plan).model


def fit(
    prepared: Prepared,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    on_gap: OnGap = lambda _: None,
    on_healing: OnHealing | None = None,
    anew: bool = False,
) -> Fitted:
    """Fit the bridges of a prepared plan, then heal it; nothing is written.

    Without gaps and healing nothing is done. Bridges are fitted by models in float32, whatever
    dtype they are stored in; `memory` bounds the bytes on the device. `on_gap` hears of each gap
    when its turn comes, `on_healing` how healing goes on. The same text and plan give the same
    tensors in any process on one machine with the same number of threads; so what healing learned
    there before is taken as it was, unless all is to be made `anew`.

    Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
    closed, HealError for what can't learn, TailorError if the world fails.
    """
    if not prepared.gaps and prepared.healing is None:
        return Fitted({}, {})
    wide, models = torch.float32, prepared.models

    def stitcher() -> Stitcher:
        return Stitcher(models, device=device, dtype=wide, memory=memory, anew=anew)

    layout = prepared.models["base"].layout
    found = stitcher().bridges(prepared.plan, on_gap)
    gc.collect()  # its weights are gone before others come to the device
    tensors = {
        name_of(layout, gap.index, name): tensor
        for gap, bridge in found
        for name, tensor in bridge.tensors.items()
    }
    healed = stitcher().healed(prepared.plan, found, on_healing)
    for index, its in healed.tensors.items() if healed else ():
        tensors |= {name_of(layout, index, name): tensor for name, tensor in its.items()}
    return Fitted(tensors, {f"L{gap.after}": bridge for gap, bridge in found}, healed)
