"""Hidden states on both sides of a gap: of the plan with nothing dropped, and of the plan's own.

Layers run in the outer loop and batches in the inner one, so that a streamed layer comes once.
Hidden states are kept for all batches, on the device or on the host; an MLP branch's outputs never.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptailor.checkpoint.layout import Layout, projection
from gptailor.diagnostics import TailorError
from gptailor.evaluate.bridge_statistics import Statistics
from gptailor.evaluate.bridge_text import Sequences
from gptailor.evaluate.contents import Anatomy, Content
from gptailor.evaluate.recording import Calls, wraps
from gptailor.evaluate.work import Live
from gptailor.outline import Gap

States = list[Tensor]
"""Hidden states of each batch, [batch, length, width]."""
Own = Sequence[Content | None]
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
        live: Callable[[Anatomy], Live],
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
        self.counted = [batch.counted for batch in batches]
        self.full: States = [hidden.to(place) for hidden, _ in begun]
        self.own: States | None = None
        """The plan's own states; None as long as they are the same."""

    @torch.no_grad()
    def statistics(self, gap: Gap, own: Own) -> Statistics:
        """Go on to the gap's end, and sum up what its bridge is fitted from.

        The plan's own states stay before the gap's first layer. Raises BridgeError (C807).
        """
        mine = self._to(gap.after, own)
        self._over(gap)
        content = own[gap.after]
        assert content is not None
        summed: Statistics | None = None
        with self._layer(gap.after, content) as layer, Branch(layer, self.layout) as branch:
            for number, before in enumerate(mine):
                after = self._run(layer, gap.after, number, before)
                rest = self.full[number].to(self.device) - after
                counted = self.counted[number].to(self.device)
                if summed is None:
                    summed = Statistics(after.shape[-1], self.device)
                added = branch.output()
                summed.add(added[counted], rest[counted])
                summed.add_first(added[:, 0], rest[:, 0])
        assert summed is not None
        self.own = mine
        return summed

    @torch.no_grad()
    def cross(self, gap: Gap, bridged: Content) -> None:
        """Take the plan's own states through the layer before the gap, bridged by now."""
        assert self.own is not None
        self.own = self._through(gap.after, bridged, self.own)

    # ----------------------------------------------------------------------------------- positions

    def _to(self, position: int, own: Own) -> States:
        """Both streams up to a position's layer; the plan's own states there."""
        while self.at < position:
            there, content = self.undone.layers[self.at], own[self.at]
            if self.own is not None and content is not None:
                self.own = self._through(self.at, content, self.own)
            elif self.own is None and content is not there:
                kept = self.full
                self.own = kept if content is None else self._through(self.at, content, kept)
            self.full = self._through(self.at, there, self.full)
            self.at += 1
        return self.full if self.own is None else self.own

    def _over(self, gap: Gap) -> None:
        """The states of the plan with nothing dropped up to the gap's end."""
        while self.at < gap.until:
            self.full = self._through(self.at, self.undone.layers[self.at], self.full)
            self.at += 1

    def _through(self, position: int, content: Content, states: States) -> States:
        with self._layer(position, content) as layer:
            return [
                self._run(layer, position, number, before).to(self.place)
                for number, before in enumerate(states)
            ]

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
class Branch:
    """What a layer's MLP branch adds to the hidden state, caught while the layer runs.

    A multiplier between the branch and the sum (Granite's) counts. Raises TailorError for a layer
    whose MLP can't be found.
    """

    def __init__(self, layer: nn.Module, layout: Layout) -> None:
        self._mlp = mlp(layer, layout)
        self._multiplier = float(getattr(layer, "residual_multiplier", 1.0))
        self._caught: Tensor | None = None

    def __enter__(self) -> "Branch":
        self._hook = self._mlp.register_forward_hook(self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _take(self, module: nn.Module, arguments: Any, made: Any) -> None:
        found = made[0] if isinstance(made, tuple) else made
        self._caught = found.clone()  # Falcon adds the attention's output to it in place

    def output(self) -> Float[Tensor, " batch length width"]:
        """That of the last run."""
        assert self._caught is not None
        return self._caught * self._multiplier if self._multiplier != 1.0 else self._caught


def mlp(layer: nn.Module, layout: Layout) -> nn.Module:
    """The module of a live layer that is its MLP branch: it holds the branch's projections."""
    names = [name for name, _ in layer.named_parameters() if projection(layout, name) == "mlp"]
    holders = {name.partition(".")[0] for name in names}
    if len(holders) != 1:
        raise TailorError(f"a layer of model type '{layout.model_type}' has no one MLP branch")
    return layer.get_submodule(holders.pop())
