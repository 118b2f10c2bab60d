"""Narrower MLPs of plans: the neurons that stay, and the output projections fitted for them.

Each layer is fitted on the hidden states of the whole plan, in one pass. So plans with other drops
share the fits. Fits on the states of a narrow plan gave a higher loss (docs/width.md).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from gptailor.checkpoint.families.layout import projection
from gptailor.checkpoint.families.width import Neurons, neurons_in
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.evaluation.bridge.fit import (
    KEPT_FITS,
    FittedTokens,
    Fitter,
    Statistics,
    add_tokens,
    fit_key,
    fold_fit,
    measured_layers,
    solve,
)
from gptailor.evaluation.bridge.states import CalibrationText, Walk
from gptailor.evaluation.kept_tensors import KeptTensors
from gptailor.evaluation.live import content_keys
from gptailor.evaluation.width.neurons import kept_neurons, sums_of_kept, working_size
from gptailor.plan.events import NarrowingBegun, NarrowingEnd, NarrowingStep, OnEvent, ignore_events
from gptailor.plan.registry import WIDTH_RIDGE, WIDTH_TOKENS
from gptailor.plan.resolved import ClosedCut, Resolved
from gptailor.program.program import Narrowed, Output


@final
@dataclass(frozen=True, eq=False)
class FittedWidth:
    """The narrow MLPs of a plan with nothing dropped.

    `layers` has each layer's tensors by their names within it, on the CPU. `digest` is that of the
    calibration file, and `tokens` counts the tokens of the fit. `held_out` has for each layer the
    share of the squared error of leaving neurons out that the fit removes from sequences that it
    left out.
    """

    layers: tuple[Mapping[str, Tensor], ...]
    digest: FileDigest
    tokens: int
    held_out: tuple[float, ...]

    @property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(content_keys.size_of(layer.values()) for layer in self.layers)

    @property
    def recovered(self) -> float:
        """The mean of `held_out`."""
        return math.fsum(self.held_out) / len(self.held_out)


@final
@dataclass(frozen=True, eq=False)
class _LayerFit:
    """A layer's neurons that stay, its fitted output projection, and the share of `FittedWidth`."""

    kept: Int64[Tensor, " count"]
    down: Mapping[str, Tensor]
    held_out: float


@final
class Narrower(Fitter[FittedWidth]):
    """Narrows the MLPs of plans."""

    kept_in = "narrowed"

    def fit(self, resolved: Resolved, on_event: OnEvent = ignore_events) -> FittedWidth:
        """Return the narrow MLPs of a closed plan with a width, and report a new fit.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a layer without a
        fit.
        """
        cut = resolved.cuts["width"]
        undone = self.table.contents(resolved.undone)
        width, hidden = self._sides(undone.layers[0])
        text = self._texts.of(
            resolved.declared, cut.on, cut.tokens or WIDTH_TOKENS, width,
            named=cut.tokens is not None, statement="width",
        )  # fmt: skip
        start = content_keys.piece((*undone.begin, *undone.others))
        key = (start, undone.layers, text, cut.size, _ridge(cut))
        fitted = self._fits.get(key)
        if fitted is None:
            kept_key = self._kept_key(undone, cut, text)
            fits = self._kept(kept_key, len(undone.layers))
            if fits is None:
                on_event(NarrowingBegun(len(undone.layers), cut.size))
                self.reserve(working_size(width, hidden))
                try:
                    fits = list(self._layers(resolved, undone, text, on_event))
                finally:
                    self.reserve(0)
                self._keep(kept_key, fits)
            pairs = zip(undone.layers, fits, strict=True)
            layers = tuple(self._tensors(content, fit) for content, fit in pairs)
            held_out = tuple(fit.held_out for fit in fits)
            fitted = FittedWidth(layers, text.digest, text.tokens, held_out)
            self._fits.put(key, fitted, fitted.size)
            self._fits.forget(KEPT_FITS)
            on_event(NarrowingEnd(cut.size, text.tokens, fitted.recovered))
        return fitted

    def _layers(
        self,
        resolved: Resolved,
        undone: content_keys.ModelContents,
        text: CalibrationText,
        on_event: OnEvent,
    ) -> Iterator[_LayerFit]:
        cut = resolved.cuts["width"]
        walk = Walk(undone, undone, self.table, self.live, text.batches, self.place)

        def fit(number: int) -> _LayerFit:
            return self._fit(walk, undone.layers[number], cut, text)

        def step(done: int, total: int, seconds_left: float) -> None:
            on_event(NarrowingStep(done, total, seconds_left))

        return measured_layers(undone, resolved.undone.kept, "MLP", fit, step)

    def _fit(
        self, walk: Walk, content: content_keys.Content, cut: ClosedCut, text: CalibrationText
    ) -> _LayerFit:
        ridge = _ridge(cut)
        output = self._down(content)
        name, down = output.spec.name, self.tensors.of_layer(content, output)
        neurons = neurons_in(self.base.layout, name, down.shape)
        assert neurons is not None, "an output projection"
        rows = down.to(device=walk.device, dtype=torch.float64).movedim(neurons.axis, 0)
        sums = Statistics(len(rows), 0, walk.device)
        sampled = add_tokens(sums, text, ((x, x[:, :0], after) for x, after in walk.inputs()))
        kept = kept_neurons(sums, rows, cut.size, ridge)
        solution = solve(sums_of_kept(sums, rows, kept), ridge)
        held_out = solution.held_out([_without(tokens, rows, kept) for tokens in sampled])
        narrow = {name: _sliced(down, neurons, kept.to(down.device))}
        folded = fold_fit(solution.change, narrow, self.base.layout, {name: output.spec.dtype})
        return _LayerFit(kept.cpu(), folded, held_out)

    def _tensors(self, content: content_keys.Content, fit: _LayerFit) -> dict[str, Tensor]:
        """Return the tensors of a narrow layer that differ from those of the whole one."""
        tensors = dict(fit.down)
        for output in content.outputs:
            name, neurons = output.spec.name, None
            if name not in tensors:
                neurons = neurons_in(self.base.layout, name, output.spec.shape)
            if neurons is not None:
                made = self.tensors.of_layer(content, output)
                tensors[name] = _sliced(made, neurons, fit.kept.to(made.device)).cpu()
        return tensors

    def _down(self, content: content_keys.Content) -> Output:
        """Return the weight of a layer's output projection."""
        [down] = [
            output
            for output in content.outputs
            if projection(self.base.layout, output.spec.name) == "mlp"
            and len(output.spec.shape) == 2
        ]
        return down

    def _sides(self, content: content_keys.Content) -> tuple[int, int]:
        """Return the neurons of a layer's MLP, and the entries of its output."""
        first, second = self._down(content).spec.shape
        return (first, second) if self.base.layout.transposed else (second, first)

    # ---------------------------------------------------------------------------------- on the disk

    def _kept_key(
        self, undone: content_keys.ModelContents, cut: ClosedCut, text: CalibrationText
    ) -> str:
        """Return a hash of everything that decides the fits."""
        settings = cut.size, _ridge(cut), self.device.type, self.place.type
        return fit_key(undone, settings, text)

    def _kept(self, key: str, layers: int) -> list[_LayerFit] | None:
        """Return the fits of that key, if this machine has them."""
        if self._store is None or (kept := self._store.get(key)) is None:
            return None
        fits = []
        for number in range(layers):
            parts = {
                name.partition(" ")[2]: tensor
                for name, tensor in kept.tensors.items()
                if name.startswith(f"{number} ")
            }
            neurons = parts.pop(_KEPT)
            fits.append(_LayerFit(neurons, parts, float(kept.notes[str(number)])))
        return fits

    def _keep(self, key: str, fits: Sequence[_LayerFit]) -> None:
        if self._store is None:
            return
        tensors = {
            f"{number} {name}": tensor
            for number, fit in enumerate(fits)
            for name, tensor in {**fit.down, _KEPT: fit.kept}.items()
        }
        notes = {str(number): repr(fit.held_out) for number, fit in enumerate(fits)}
        self._store.put(key, KeptTensors(tensors, notes))


_KEPT = "kept"
"""The name of the neurons that stay, in a file of fits."""


def narrows(contents: content_keys.ModelContents) -> bool:
    """Return whether MLPs of these contents are narrower than the model's."""
    return any(isinstance(output.make, Narrowed) for c in contents.layers for output in c.outputs)


def _ridge(cut: ClosedCut) -> float:
    return WIDTH_RIDGE if cut.ridge is None else cut.ridge


def _without(tokens: FittedTokens, rows: Tensor, kept: Tensor) -> FittedTokens:
    """Return the tokens of a fit of the neurons that stay."""
    x, _, omega = tokens
    leaving = torch.ones(len(rows), dtype=torch.bool)
    leaving[kept.cpu()] = False
    return x[:, kept.cpu()], x[:, leaving].double() @ rows.cpu()[leaving], omega


def _sliced(tensor: Tensor, neurons: Neurons, kept: Int64[Tensor, " count"]) -> Tensor:
    """Return a tensor with the neurons that stay alone."""
    width = tensor.shape[neurons.axis] // neurons.copies
    numbers = torch.cat([kept + copy * width for copy in range(neurons.copies)])
    return tensor.index_select(neurons.axis, numbers).contiguous()
