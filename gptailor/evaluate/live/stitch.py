"""A plan as a live module: layers by reference, what is merged made on the device, nothing written.

The module is made from the plan's Program, so that it equals the compiled and reloaded folder: the
tensors bit for bit, and on the CPU in float32 the logits too, where the folder's tensors begin at
addresses as torch's own do. (transformers maps files into memory as they are; some of the CPU's
kernels round otherwise there, by 1e-7.)
"""

import os
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
from gptailor.checkpoint.models import Opened
from gptailor.evaluate.bridge.fit import Bridger, Fitted, FittedBridge, Told
from gptailor.evaluate.forward.prefix_cache import _order_by_beginning
from gptailor.evaluate.live.contents import Anatomist, Anatomy, Content, piece
from gptailor.evaluate.live.layer_cache import Everything, LayerTensors, Lent, Streaming, lend
from gptailor.evaluate.live.template import Named, Shell, decoder_layers
from gptailor.evaluate.live.weights import TensorMaker, size_of
from gptailor.plan.faults import TailorError
from gptailor.plan.layers import Gap, gaps, kept
from gptailor.plan.plan import Plan
from gptailor.plan.walk import named_models
from gptailor.prepare import Prepared, ready
from gptailor.program.program import Combine
from gptailor.program.run import device_of

MERGED_SHARE = 0.25
"""Of the device's memory, what cached merged layers take at most where nothing else is said."""
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
    lent: tuple[Lent, ...] = field(default=(), repr=False)

    def layer(self, index: int) -> AbstractContextManager[nn.Module]:
        """The layer of that number, ready on the device as long as the context lasts.

        Where layers are streamed, the next one begins to come.
        """
        if self.lent:
            return self.lent[index].held()
        return nullcontext(decoder_layers(self.model)[index])


@final
class Stitcher:
    """The models of a plan or of a space, loaded once, and live models of their layers.

    Weights are read when a plan first uses them. `dtype` is the live models'; without it they have
    the one that their configuration names, as transformers has it. `memory` is how many bytes of
    weights may be on the device; without it all that has been used stays. `merged` is how many
    bytes of merged layers are kept for other plans, eight models' without it, a quarter of the
    device's memory at most; with `memory` they are layers like all others.

    Raises TailorError for a device that isn't there and for quantised models.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        merged: int | None = None,
    ) -> None:
        for name, model in models.items():
            if model.layout.quantised is not None:
                raise TailorError(f"'{name}' is quantised, and can't be stitched in memory")
        self.device = device_of(str(device))
        self.dtype = dtype
        self.memory = memory
        self._anatomist = Anatomist(models)
        self._base = models["base"]
        self._tensors = TensorMaker(self.device, keep=memory is None)
        self._shells: OrderedDict[Hashable, Shell] = OrderedDict()
        self._homes: dict[tuple[str, str], Shell] = {}
        self._bridger: Bridger | None = None
        self._everything: Everything | None = None
        self._streaming: Streaming | None = None
        self.merged = self._enough() if merged is None else merged
        if memory is None:
            self._everything = Everything(self._make, self.merged)
        else:
            self._streaming = Streaming(self._make, self._ahead, self.device, memory)

    def _enough(self) -> int:
        base = sum(tensor.spec.size for tensor in self._base.checkpoint.tensors.values())
        return min(_quarter(self.device), MERGED_MODELS * base)

    @torch.no_grad()
    def stitch(self, plan: Plan) -> Stitched:
        """The live model of a closed plan that has no faults against the models.

        In eval mode, without gradients, its gaps bridged. Raises CheckpointError where a file is
        not what its header said, OverflowFault where a merge overflows, TailorError where `memory`
        holds no layer or a model that the plan uses isn't among those given; and as `bridges`.
        """
        return self.live(self.anatomy(plan))

    @torch.no_grad()
    def anatomy(self, plan: Plan) -> Anatomy:
        """What the live model of a closed plan is made of, its gaps bridged. Raises as `stitch`."""
        self._check(plan)
        anatomy = self._anatomist.anatomy(plan)
        layers = list(anatomy.layers)
        for gap, bridge in self.bridges(plan):
            layers[gap.index] = self._anatomist.bridged(layers[gap.index], bridge.tensors)
        return replace(anatomy, layers=tuple(layers))

    def together(self, anatomies: Sequence[Anatomy]) -> Iterator[list[int]]:
        """Their numbers in groups that may be live at once, those that begin alike together.

        What a group has of its own, merged layers and what surrounds layers, takes as many bytes as
        are kept of merged layers; with `memory` a group has one surrounding, which counts in it.
        """
        group: list[int] = []
        pieces: dict[Hashable, int] = {}
        for number in _order_by_beginning([(_start(one), *one.layers) for one in anatomies]):
            own = self._own(anatomies[number])
            size = sum((pieces | own).values())
            over = len(pieces | own) > 1 if self._streaming is not None else size > self.merged
            if group and over:
                yield group
                group, pieces = [], {}
            group.append(number)
            pieces |= own
        if group:
            yield group

    def _own(self, anatomy: Anatomy) -> dict[Hashable, int]:
        """The bytes that a plan's live model doesn't have from the models, by what they are."""
        made = sum(output.spec.size for output in anatomy.rest if isinstance(output.make, Combine))
        found: dict[Hashable, int] = {_surrounding(anatomy): made}
        if self._streaming is None:
            found |= {content: content.made for content in anatomy.layers}
        return found

    @torch.no_grad()
    def bridges(self, plan: Plan, told: Told = lambda _: None) -> list[tuple[Gap, FittedBridge]]:
        """The bridges of a closed plan, fitted in float32 whatever the live models' dtype.

        They are kept for plans that begin alike. `told` is told of each gap that is fitted. Raises
        CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be closed.
        """
        found = gaps(plan, self._base.layout.count)
        if not found:
            return []
        with torch.inference_mode(mode=False):
            return list(self._fitter(plan).bridges(plan, found, told))

    def _fitter(self, plan: Plan) -> Bridger:
        """This stitcher's own, if its models are float32; else that of another whose are."""
        if self._bridger is None:
            if self._shell(self._anatomist.anatomy(plan)).model.dtype == torch.float32:
                place = self.device if self._streaming is None else torch.device("cpu")
                self._bridger = Bridger(
                    self._anatomist, self.live, self._tensors, place, self._reserve
                )
            else:
                wide = Stitcher(
                    self._anatomist.models,
                    device=self.device,
                    dtype=torch.float32,
                    memory=self.memory,
                )
                self._bridger = wide._fitter(plan)
        return self._bridger

    def _reserve(self, size: int) -> None:
        if self._streaming is not None:
            self._streaming.reserved = size

    @torch.no_grad()
    def live(self, anatomy: Anatomy) -> Stitched:
        """The live model of what `anatomy` gave."""
        with torch.inference_mode(mode=False):
            shell = self._shell(anatomy)
            self._homes |= {(content.kind, content.dtype): shell for content in anatomy.layers}
            if self._streaming is not None:
                return self._streamed(anatomy, shell, self._streaming)
            assert self._everything is not None
            layers: list[Named] = [self._everything.get(c) for c in anatomy.layers]
            return _stitched(anatomy, shell.model_of(anatomy, layers))

    def _check(self, plan: Plan) -> None:
        """All models that the plan uses are there: a checked plan's are those that it uses."""
        slots = kept(plan, self._base.layout.count)
        recipes = [made.recipe for slot in slots for made in slot.made.values()]
        recipes += [r for r in (plan.embed, plan.norm, plan.head, plan.tokenizer) if r is not None]
        used = {name for recipe in recipes for _, name, _ in named_models(recipe)}
        if missing := sorted(used - self._anatomist.models.keys()):
            raise TailorError(f"'{missing[0]}' is not among the models that were opened")

    def _streamed(self, anatomy: Anatomy, shell: Shell, streaming: Streaming) -> Stitched:
        empty = [shell.hollow(content) for content in anatomy.layers]
        streaming.expect(
            len(empty), shell.size, max(size_of(list(layer.values())) for layer in empty)
        )
        model = shell.model_of(anatomy, empty)
        modules = list(decoder_layers(model))
        return _stitched(anatomy, model, lend(modules, anatomy.layers, empty, streaming))

    def _shell(self, anatomy: Anatomy) -> Shell:
        """What surrounds the layers; of those that no plan uses some stay, the latest."""
        key = _surrounding(anatomy)
        if key not in self._shells:
            self._shells[key] = Shell(anatomy, self._base, self._tensors, self.dtype)
        self._shells.move_to_end(key)
        room = self.merged // SURROUNDINGS if self._streaming is None else 0
        while len(self._shells) > 1 and sum(one.size for one in self._shells.values()) > room:
            self._shells.popitem(last=False)
        return self._shells[key]

    def _make(self, content: Content) -> LayerTensors:
        with torch.inference_mode(mode=False), torch.no_grad():
            return self._home(content).layer(content)

    def _ahead(self, content: Content) -> bool:
        return self._home(content).direct(content)

    def _home(self, content: Content) -> Shell:
        """The latest shell that has a layer of its kind: a layer is the same in all of them."""
        return self._homes[content.kind, content.dtype]


def _surrounding(anatomy: Anatomy) -> Hashable:
    return (anatomy.key, *map(piece, (anatomy.begin, anatomy.end, anatomy.others)))


def _start(anatomy: Anatomy) -> Hashable:
    return anatomy.dtype, piece(anatomy.begin), piece(anatomy.others)


def _stitched(anatomy: Anatomy, model: PreTrainedModel, lent: tuple[Lent, ...] = ()) -> Stitched:
    head = anatomy.begin if anatomy.tied else ()
    end = (anatomy.dtype, piece(head), piece(anatomy.end))
    return Stitched(model, _start(anatomy), anatomy.layers, end, lent)


def _quarter(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * MERGED_SHARE)
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MERGED_SHARE)


def stitch(
    plan: Plan,
    *,
    models: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
) -> PreTrainedModel:
    """The model that a closed plan declares, live and in eval mode, without writing it anywhere.

    On the CPU it equals the compiled and reloaded folder bit for bit. `models` gives other folders
    for the plan's names; `dtype` is the model's, else the one its configuration names; `memory`
    bounds the bytes of weights on the device, through which layers are then streamed.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the world
    fails: a device that isn't there, a quantised model, memory that holds no layer.
    """
    prepared = ready(plan, models=models)
    stitcher = Stitcher(prepared.models, device=device, dtype=dtype, memory=memory)
    return stitcher.stitch(prepared.plan).model


def fit(
    prepared: Prepared,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    told: Told = lambda _: None,
) -> Fitted:
    """Fit the bridges of a prepared plan; nothing is written, and without gaps nothing is done.

    The models run in float32, whatever dtype they are stored in; `memory` bounds the bytes of
    weights on the device, and of the sums that a fit is made from. `told` is told of each gap when
    its turn comes. The same text and plan give the same tensors in any process on one machine with
    the same number of threads.

    Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
    closed, TailorError if the world fails.
    """
    gaps = prepared.gaps
    if not gaps:
        return Fitted({}, {})
    stitcher = Stitcher(prepared.models, device=device, dtype=torch.float32, memory=memory)
    layout = prepared.models["base"].layout
    tensors: dict[str, Tensor] = {}
    bridges: dict[str, FittedBridge] = {}
    for gap, bridge in stitcher.bridges(prepared.plan, told):
        bridges[f"L{gap.after}"] = bridge
        named = bridge.tensors.items()
        tensors |= {name_of(layout, gap.index, rest): tensor for rest, tensor in named}
    return Fitted(tensors, bridges)
