"""Bridges: the gaps that drops leave, closed by least squares, the fit folded into weights."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor
from transformers import PreTrainedConfig

from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.checks.bridges import last_projection
from gptailor.evaluate.bridge.least_squares import BridgeError, Statistics, solve
from gptailor.evaluate.bridge.states import CalibrationText, OwnContents, Walk, calibration_text
from gptailor.evaluate.forward.requests import LiveModel
from gptailor.evaluate.live.contents import (
    Content,
    ContentTable,
    ModelContents,
    TensorMaker,
    piece,
    size_of,
)
from gptailor.evaluate.live.template import configuration
from gptailor.evaluate.objectives.tokens import tokenizer_of
from gptailor.plan.layers import Gap, kept
from gptailor.plan.plan import Plan
from gptailor.prepare import calibration_path
from gptailor.program.load import TORCH_DTYPES
from gptailor.program.sources import Checked


def carriers(layout: Layout, content: Content) -> list[str]:
    """The tensors of a layer that are the projections its MLP branch ends with."""
    names = [output.spec.name for output in content.outputs]
    return [name for name in names if projection(layout, name) == "mlp"]


def fold_fit(
    change: Float64[Tensor, " width_in width_out"],
    projections: Mapping[str, Shaped[Tensor, "..."]],
    layout: Layout,
    dtypes: Mapping[str, str],
) -> dict[str, Shaped[Tensor, "..."]]:
    """The projections of a branch that is to add XC too, C the change; rounded once, on the CPU.

    Where X are the inputs of its one last projection, a weight A (h = Ax + b) becomes A + Cᵀ, and b
    stays. Where they are the outputs of a branch of experts, a sum of theirs, each expert's A (the
    last two axes, whatever stands before them) becomes WᵀA and its b Wᵀb, W = I + C. Weights that
    are stored as (inputs, outputs) are transposed. `dtypes` are the results' by safetensors' names.
    Raises BridgeError (C807) where one can't hold a value.
    """
    last = last_projection(layout, {name: tensor.shape for name, tensor in projections.items()})
    made = {}
    for name, tensor in projections.items():
        wide = tensor.to(device=change.device, dtype=change.dtype)
        if last is None:
            after = tensor.dim() > 1 and layout.transposed
            wide = wide + (wide @ change if after else change.T @ wide)
        elif wide.dim() > 1:
            wide = wide + (change if layout.transposed else change.T)
        rounded = wide.to(TORCH_DTYPES[dtypes[name]])
        if not bool(torch.isfinite(rounded).all()):
            raise BridgeError("C807", f"'{name}' bridged has values that {dtypes[name]} can't hold")
        made[name] = rounded.contiguous().cpu()
    return made


_KEPT_FITS = 2**31
"""Bytes of fitted tensors that are kept for other plans."""

OnGap = Callable[[Gap], None]
"""Told of a gap before it is fitted."""


@final
@dataclass(frozen=True, eq=False)
class FittedBridge:
    """A gap's fit: the tensors of the layer before it, by their names within the layer, on the CPU.

    `digest` is the calibration file's, `tokens` how many were summed over. `explained` is the share
    of the squared distance to the hidden states without a gap, each token's relative to their
    length, that the bridge takes away there.
    """

    tensors: Mapping[str, Tensor]
    digest: FileDigest
    tokens: int
    explained: float


@final
class Bridger:
    """Fits the bridges of plans over some models; what plans have in common is fitted once.

    `live` makes a float32 model of contents, `tensors` are those of the models. `place` is where
    hidden states wait between layers. `reserve` is told how many bytes beside the models a fit
    takes on the device, and 0 when it is over.
    """

    def __init__(
        self,
        table: ContentTable,
        live: Callable[[ModelContents], LiveModel],
        tensors: TensorMaker,
        place: torch.device,
        reserve: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.table = table
        self.live = live
        self.tensors = tensors
        self.place = place
        self.reserve = reserve
        self.layout = table.models["base"].layout
        self._texts: dict[tuple[Hashable, ...], CalibrationText] = {}
        self._fits: OrderedDict[Hashable, FittedBridge] = OrderedDict()

    def bridges(
        self, plan: Plan, gaps: Sequence[Gap], on_gap: OnGap = lambda _: None
    ) -> Iterator[tuple[Gap, FittedBridge]]:
        """The fits of a closed plan's gaps, the first gap first; `on_gap` hears of each new one.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
        closed.
        """
        undone = self.table.contents(plan.model_copy(update={"drops": (), "bridges": ()}))
        own: list[Content | None] = [None] * len(undone.layers)
        for slot in kept(plan, len(undone.layers)):
            assert slot.position is not None
            own[slot.position] = undone.layers[slot.position]
        sizes = [self._widths(_before(gap, own)) for gap in gaps]
        texts = [self._text(plan, gap, size[0]) for gap, size in zip(gaps, sizes, strict=True)]
        self.reserve(max(Statistics.size(*size) for size in sizes))
        try:
            walk: Walk | None = None
            for gap, text in zip(gaps, texts, strict=True):
                start = piece((*undone.begin, *undone.others))
                layers = (undone.layers[: gap.until], tuple(own[: gap.after + 1]))
                key = (start, *layers, text, gap.ridge)
                if key not in self._fits:
                    on_gap(gap)
                    if walk is None or walk.batches is not text.batches:
                        walk = Walk(undone, self.live, self.layout, text.batches, self.place)
                    self._fits[key] = self._fit(walk, gap, own, text)
                self._fits.move_to_end(key)
                known = self._fits[key]
                own[gap.after] = self.table.bridged(_before(gap, own), known.tensors)
                yield gap, known
        finally:
            self.reserve(0)
        size = sum(size_of(bridge.tensors.values()) for bridge in self._fits.values())
        while size > _KEPT_FITS:
            _, oldest = self._fits.popitem(last=False)
            size -= size_of(oldest.tensors.values())

    def _fit(self, walk: Walk, gap: Gap, own: OwnContents, text: CalibrationText) -> FittedBridge:
        content = _before(gap, own)
        names = carriers(self.layout, content)
        outputs = {one.spec.name: one for one in content.outputs if one.spec.name in names}
        try:
            solution = solve(walk.statistics(gap, own), gap.ridge)
            made = {name: self.tensors.make(output) for name, output in outputs.items()}
            dtypes = {name: output.spec.dtype for name, output in outputs.items()}
            tensors = fold_fit(solution.change, made, self.layout, dtypes)
        except BridgeError as error:
            message = f"{gap.name}: {error.message}"
            raise BridgeError(error.code, message, error.help) from None
        return FittedBridge(tensors, text.digest, text.tokens, solution.explained)

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return configuration(self.table.models["base"].config)

    def _widths(self, content: Content) -> tuple[int, int]:
        """The entries of what a bridge after this layer is fitted on, and of what it makes.

        The inputs of the branch's last projection; of a branch of experts, its outputs.
        """
        shapes = {output.spec.name: output.spec.shape for output in content.outputs}
        last, hidden = last_projection(self.layout, shapes), int(self._config.hidden_size)
        return (hidden if last is None else last.inputs), hidden

    def _text(self, plan: Plan, gap: Gap, inputs: int) -> CalibrationText:
        """The gap's text. Raises CalibrationError where a fit on so many inputs takes more."""
        tokenizer_model = Checked(plan, self.table.models).tokenizer_model
        path = calibration_path(plan, gap.on)
        key = (path, gap.tokens, tokenizer_model.name)
        if key not in self._texts:
            self._texts[key] = calibration_text(
                path,
                gap.tokens,
                tokenizer=tokenizer_of(tokenizer_model),
                positions=getattr(self._config, "max_position_embeddings", None),
            )
        self._texts[key].refuse_few(inputs)
        return self._texts[key]


def _before(gap: Gap, own: OwnContents) -> Content:
    """The layer before a gap."""
    content = own[gap.after]
    assert content is not None
    return content


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """The tensors that bridges change, by their names in the output, and the fit of each gap.

    `bridges` are named by the layer before the gap: `L19`.
    """

    tensors: Mapping[str, Shaped[Tensor, "..."]]
    bridges: Mapping[str, FittedBridge]
