"""Narrower MLPs of plans: the neurons that stay, and the output projections fitted for them.

Each layer is fitted on the hidden states of the whole plan, in one pass. So plans with other drops
share the fits. Fits on the states of a narrow plan gave a higher loss (docs/width.md).
"""

import math
from dataclasses import replace
from functools import partial
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from gptailor.checkpoint.families.layout import projection
from gptailor.checkpoint.families.width import Neurons, neurons_in
from gptailor.evaluation.fits.bridge.fit import (
    FittedTokens,
    Statistics,
    add_tokens,
    fit_key,
    fold_fit,
    measured_layers,
    solve,
)
from gptailor.evaluation.fits.bridge.states import CalibrationText, Pass, regressors
from gptailor.evaluation.fits.fit import Fit, Fitted, fit_texts
from gptailor.evaluation.fits.kept_tensors import KeptTensors
from gptailor.evaluation.fits.width.neurons import kept_neurons, sums_of_kept, working_size
from gptailor.evaluation.live import content_keys
from gptailor.plan.events import FitResult, OnEvent, Progress
from gptailor.plan.registry import WIDTH_RIDGE, WIDTH_TOKENS
from gptailor.plan.resolved import ClosedCut
from gptailor.program.layer_cuts import layer_cuts
from gptailor.program.program import Output
from gptailor.program.sources import Checked


@final
class Narrower(Fit):
    """Narrows the MLPs of plans."""

    folder = "narrowed"

    @staticmethod
    def wanted(checked: Checked) -> bool:
        """Return whether a plan has narrower MLPs."""
        return "width" in layer_cuts(checked)

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with narrow MLPs, of the layers that are dropped too.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a layer without a
        fit.
        """
        resolved = fitted.resolved
        cut = resolved.cuts["width"]
        undone = self.table.contents(resolved.undone)
        width, hidden = self._sides(undone.layers[0])
        text = self.texts.of(
            resolved.declared, cut.on, cut.tokens or WIDTH_TOKENS, width,
            named=cut.tokens is not None, statement="width",
        )  # fmt: skip
        layers = undone.layers

        def narrowed() -> KeptTensors:
            on_event(Progress("narrowing", 0, len(layers), numbers={"size": cut.size}))
            walk = Pass(self.stitcher.live(undone), text.batches, self.place)
            slots, words = resolved.undone.kept, ("MLP", "narrowing")
            fit = partial(self._fit, cut, text)
            self.stitcher.reserve(working_size(width, hidden))
            try:
                fits = list(measured_layers(walk, undone, slots, words, fit, on_event))
            finally:
                self.stitcher.reserve(0)
            named = ((n, *item) for n, fit in enumerate(fits) for item in fit.tensors.items())
            tensors = {f"{number} {name}": tensor for number, name, tensor in named}
            shares = {str(n): fit.numbers["held_out"] for n, fit in enumerate(fits)}
            return KeptTensors(tensors, shares)

        def read(kept: KeptTensors) -> KeptTensors:
            tensors: dict[str, Tensor] = {}
            for number, content in enumerate(layers):
                own = self._tensors(content, _of_layer(kept, number))
                tensors |= {f"{number} {name}": tensor for name, tensor in own.items()}
            return KeptTensors(tensors, kept.numbers)

        settings = cut.size, _ridge(cut), *self.devices
        found = self.kept(fit_key(undone, settings, text), narrowed, read)
        own = tuple(_of_layer(found, number) for number in range(len(layers)))
        recovered = math.fsum(found.numbers.values()) / len(layers)
        texts = fit_texts((text.digest, text.tokens))
        result = FitResult("width", "width", texts, {"recovered": recovered})
        changes = {i: own[number] for i, number in enumerate(resolved.undone_numbers)}
        return replace(fitted.having(changes, result), narrowed=own)

    def _fit(
        self, cut: ClosedCut, text: CalibrationText, walk: Pass, content: content_keys.Content
    ) -> KeptTensors:
        """Return a layer's neurons that stay, its output projection, and the share `held_out`."""
        ridge = _ridge(cut)
        output = self._down(content)
        name, down = output.spec.name, self.stitcher.tensors.of_layer(content, output)
        neurons = neurons_in(self.layout, name, down.shape)
        assert neurons is not None, "an output projection"
        rows = down.to(device=walk.device, dtype=torch.float64).movedim(neurons.axis, 0)
        sums = Statistics(len(rows), 0, walk.device)
        seen = walk.watched(lambda layer: regressors(layer, self.layout))
        pairs = ((last()[real], after[real]) for last, after, real in seen)
        sampled = add_tokens(sums, text, ((x, x[:, :0], after) for x, after in pairs))
        kept = kept_neurons(sums, rows, cut.size, ridge)
        solution = solve(sums_of_kept(sums, rows, kept), ridge)
        held_out = solution.held_out([_without(tokens, rows, kept) for tokens in sampled])
        narrow = {name: _sliced(down, neurons, kept.to(down.device))}
        folded = fold_fit(solution.change, narrow, self.layout, {name: output.spec.dtype})
        return KeptTensors({**folded, _KEPT: kept.cpu()}, {"held_out": held_out})

    def _tensors(self, content: content_keys.Content, fit: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a narrow layer that differ from those of the whole one."""
        tensors = dict(fit)
        kept = tensors.pop(_KEPT)
        for output in content.outputs:
            name, neurons = output.spec.name, None
            if name not in tensors:
                neurons = neurons_in(self.layout, name, output.spec.shape)
            if neurons is not None:
                made = self.stitcher.tensors.of_layer(content, output)
                tensors[name] = _sliced(made, neurons, kept.to(made.device)).cpu()
        return tensors

    def _down(self, content: content_keys.Content) -> Output:
        """Return the weight of a layer's output projection."""
        [down] = [
            output
            for output in content.outputs
            if projection(self.layout, output.spec.name) == "mlp" and len(output.spec.shape) == 2
        ]
        return down

    def _sides(self, content: content_keys.Content) -> tuple[int, int]:
        """Return the neurons of a layer's MLP, and the entries of its output."""
        first, second = self._down(content).spec.shape
        return (first, second) if self.layout.transposed else (second, first)


_KEPT = "kept"
"""The name of the neurons that stay, in a file of fits."""


def _of_layer(kept: KeptTensors, number: int) -> dict[str, Tensor]:
    """Return the tensors of a layer, by their names within it."""
    named = ((name.split(" "), tensor) for name, tensor in kept.tensors.items())
    return {name: tensor for (layer, name), tensor in named if layer == str(number)}


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
