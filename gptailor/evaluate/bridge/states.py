"""Hidden states on both sides of a gap: of the plan with nothing dropped, and of the plan's own.

Layers run in the outer loop and batches in the inner one, so that a streamed layer comes once.
Hidden states are kept for all batches, on the device or on the host; what a fit is made of never.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checks.bridges import last_projection
from gptailor.evaluate.bridge.least_squares import Statistics, weights
from gptailor.evaluate.bridge.text import Sequences
from gptailor.evaluate.forward.recording import Calls, wraps
from gptailor.evaluate.forward.requests import LiveModel
from gptailor.evaluate.live.contents import Anatomy, Content
from gptailor.plan.faults import TailorError
from gptailor.plan.layers import Gap

States = list[Tensor]
"""Hidden states of each batch, [batch, length, width]."""
OwnContents = Sequence[Content | None]
"""For each position what the plan has there, earlier gaps bridged; None: it is dropped."""


@final
class Walk:
    """Goes through the positions once, from the first on, over some batches.

    `undone` is the plan with nothing dropped; `live` makes a model of contents, whose hidden states
    are on `device`. `place` is where all states wait.
    """

    def __init__(
        self,
        undone: Anatomy,
        live: Callable[[Anatomy], LiveModel],
        layout: Layout,
        batches: Sequence[Sequences],
        place: torch.device,
    ) -> None:
        self.undone = undone
        self.layout = layout
        self.live = live
        self.place = place
        self.at = 0
        """The position whose layer comes next."""
        self.whole = live(undone)
        self.device = self.whole.model.device
        with self.whole.layer(0) as layer:
            wrapped = wraps(self.whole.model, layer)
        calls = Calls(self.whole.model, wraps=wrapped)
        begun = [calls.record(batch.tokens.to(self.device)) for batch in batches]
        self.calls = [how for _, how in begun]
        self.real = [batch.real for batch in batches]
        self.full: States = [hidden.to(place) for hidden, _ in begun]
        self.own: States | None = None
        """The plan's own states; None as long as they are the same."""
        self.behind = 0
        """The position whose layer comes next for the plan's own states."""

    @torch.no_grad()
    def statistics(self, gap: Gap, own: OwnContents) -> Statistics:
        """Go on to the gap's end, and sum up what its bridge is fitted from.

        Gaps come in order; `own` has the earlier ones bridged. The plan's own states wait before
        the layer that this bridge changes. Raises BridgeError (C807).
        """
        self._to(gap.after, own)
        mine = self.own = list(self.full) if self.own is None else self.own
        self._over(gap)
        content = own[gap.after]
        assert content is not None
        summed: Statistics | None = None
        with self._layer(gap.after, content) as layer, Regressors(layer, self.layout) as caught:
            for number, before in enumerate(mine):
                after = self._run(layer, gap.after, number, before)
                real = self.real[number].to(self.device)
                target, x = self.full[number].to(self.device)[real], caught.last()[real]
                if summed is None:
                    summed = Statistics(x.shape[-1], target.shape[-1], self.device)
                summed.add(x, target - after[real], weights(target))
        assert summed is not None
        return summed

    # ----------------------------------------------------------------------------------- positions

    def _to(self, position: int, own: OwnContents) -> None:
        """Both streams up to a position's layer."""
        while self.own is not None and self.behind < self.at:
            if (late := own[self.behind]) is not None:
                self._through(self.behind, late, self.own)
            self.behind += 1
        while self.at < position:
            self._both(own[self.at])
        self.behind = self.at

    def _both(self, content: Content | None) -> None:
        """Both streams through the next position, together where it has one layer for both."""
        there = self.undone.layers[self.at]
        if content is there:
            self._through(self.at, there, *([] if self.own is None else [self.own]), self.full)
        else:
            if self.own is None:
                self.own = list(self.full)
            if content is not None:
                self._through(self.at, content, self.own)
            self._through(self.at, there, self.full)
        self.at += 1

    def _over(self, gap: Gap) -> None:
        """The states of the plan with nothing dropped up to the gap's end."""
        while self.at < gap.until:
            self._through(self.at, self.undone.layers[self.at], self.full)
            self.at += 1

    def _through(self, position: int, content: Content, *streams: States) -> None:
        with self._layer(position, content) as layer:
            for states in streams:
                for number, before in enumerate(states):
                    states[number] = self._run(layer, position, number, before).to(self.place)

    def _run(self, layer: nn.Module, position: int, number: int, before: Tensor) -> Tensor:
        return self.calls[number][position].of(layer, before.to(self.device))

    @contextmanager
    def _layer(self, position: int, content: Content) -> Iterator[nn.Module]:
        live = self.whole
        if content is not self.undone.layers[position]:
            layers = list(self.undone.layers)
            layers[position] = content
            live = self.live(replace(self.undone, layers=tuple(layers)))
        with live.layer(position) as layer:
            yield layer


@final
class Regressors:
    """What a bridge over a gap after a layer is fitted on, caught while the layer runs.

    The inputs of the projection that its MLP branch ends with; the branch's output where that is
    one of experts. A multiplier between the branch and the sum (Granite's) is in them. Raises
    TailorError for a layer whose MLP can't be found.
    """

    def __init__(self, layer: nn.Module, layout: Layout) -> None:
        shapes = {name: tensor.shape for name, tensor in layer.named_parameters()}
        last = last_projection(layout, shapes)
        self.inputs = last is not None
        """Whether they are a projection's inputs."""
        self._module = mlp(layer, layout) if last is None else layer.get_submodule(last.name)
        self._multiplier = float(getattr(layer, "residual_multiplier", 1.0))
        self._caught: Tensor | None = None

    def __enter__(self) -> "Regressors":
        if self.inputs:
            self._hook = self._module.register_forward_pre_hook(self._before)
        else:
            self._hook = self._module.register_forward_hook(self._after)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _before(self, module: nn.Module, arguments: Any) -> None:
        self._caught = arguments[0]

    def _after(self, module: nn.Module, arguments: Any, made: Any) -> None:
        self._caught = made[0] if isinstance(made, tuple) else made

    def last(self) -> Float[Tensor, " batch length width_in"]:
        """Those of the last run."""
        assert self._caught is not None
        return self._caught * self._multiplier if self._multiplier != 1.0 else self._caught


def mlp(layer: nn.Module, layout: Layout) -> nn.Module:
    """The module of a live layer that is its MLP branch: it holds the branch's projections."""
    names = [name for name, _ in layer.named_parameters() if projection(layout, name) == "mlp"]
    holders = {name.partition(".")[0] for name in names}
    if len(holders) != 1:
        raise TailorError(f"a layer of model type '{layout.model_type}' has no one MLP branch")
    return layer.get_submodule(holders.pop())
