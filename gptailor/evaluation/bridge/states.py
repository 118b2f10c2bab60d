"""Hidden states on both sides of a gap, of the undropped plan and of the plan itself.

Layers run in the outer loop and batches in the inner one, so that a streamed layer loads once.
Hidden states are kept for all batches, on the device or on the host; the inputs of a fit are not.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from gptailor.checkpoint.datasets import (
    Exchange,
    Passage,
    order,
    read_texts,
    too_short,
    whole_text,
)
from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.checks.bridges import last_projection
from gptailor.checks.texts import FEWER_TOKENS
from gptailor.evaluation.forward.recording import record_calls, wraps
from gptailor.evaluation.forward.requests import LiveModel
from gptailor.evaluation.live.content_keys import Content, ModelContents
from gptailor.evaluation.objectives.tokens import TokenEncoder, Tokens
from gptailor.plan.events import GapStep, OnEvent, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plan.resolved import Gap

_BRIDGE_WINDOW = 512
"""Tokens of a sequence, special ones included, unless the model takes fewer."""
BRIDGE_BATCH_TOKENS = 4096
"""Tokens that go through a layer at once, padding included."""


@final
@dataclass(frozen=True)
class Sequences:
    """Token rows, padded on the right, and which of them are tokens of the text."""

    tokens: Int64[Tensor, " batch length"]
    real: Bool[Tensor, " batch length"]


@final
@dataclass(frozen=True, eq=False)
class CalibrationText:
    """The batches of a file's text, where it is, its digest, and how many tokens there are."""

    path: Path
    batches: tuple[Sequences, ...]
    digest: FileDigest
    tokens: int


def calibration_text(
    path: Path, count: int, encoder: TokenEncoder, *, exactly: bool = False
) -> CalibrationText:
    """Take `count` tokens of a file's text; without `exactly` all of them if it has fewer.

    Rows are drawn in an order that depends on their number alone. Each row is cut into sequences of
    `_BRIDGE_WINDOW` tokens. A sequence begins with the tokenizer's opening special tokens, which
    count too. In a file that isn't JSON lines, the sequences are drawn after the cut.
    Raises CalibrationError: C806 for a text that is too short, and those of `read_texts`.
    """
    rows = read_texts(path)
    digest = of_file(path)
    sequences: list[Tokens] = []
    missing = count
    for sequence in _sequences(rows, encoder):
        sequences.append(sequence[:missing])
        missing -= len(sequences[-1])
        if not missing:
            break
    if missing and exactly:
        raise too_short(path, f"{count - missing:,} tokens", "'bridge'", count, FEWER_TOKENS)
    return CalibrationText(path, tuple(_batches(sequences)), digest, count - missing)


def _sequences(rows: Sequence[Passage | Exchange], encoder: TokenEncoder) -> Iterator[Tokens]:
    room = min(_BRIDGE_WINDOW, encoder.positions or _BRIDGE_WINDOW) - len(encoder.opening)
    for row in (rows[number] for number in order(len(rows), 0)):
        tokens = encoder.plain(whole_text(row))
        starts = range(0, len(tokens), room)
        drawn = starts if row.line is not None else [starts[at] for at in order(len(starts), 0)]
        yield from (encoder.opening + tokens[at : at + room] for at in drawn)


def _batches(sequences: Sequence[Tokens]) -> Iterator[Sequences]:
    ordered = sorted(sequences, key=lambda tokens: (-len(tokens), tokens))
    while ordered:
        length = len(ordered[0])
        count = max(1, BRIDGE_BATCH_TOKENS // length)
        rows, ordered = ordered[:count], ordered[count:]
        padded = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        ends = torch.tensor([len(row) for row in rows])
        yield Sequences(padded, torch.arange(length) < ends[:, None])


States = list[Tensor]
"""Hidden states of each batch, [batch, length, width]."""
OwnContents = Sequence[Content | None]
"""The plan's content for each layer of the undropped plan, earlier gaps bridged; None: dropped."""


@final
class Walk:
    """One pass through the layers, from the first on, over some batches.

    `undone` is the plan with nothing dropped; `live` makes a model of contents, whose hidden states
    are on `device`. `place` is where all states wait. Each layer reports `GapStep`.
    """

    def __init__(
        self,
        undone: ModelContents,
        live: Callable[[ModelContents], LiveModel],
        layout: Layout,
        batches: Sequence[Sequences],
        place: torch.device,
        on_event: OnEvent = ignore_events,
    ) -> None:
        self.undone = undone
        self.layout = layout
        self.live = live
        self.place = place
        self.on_event = on_event
        self.at = 0
        """The number of the layer that comes next."""
        self.whole = live(undone)
        self.device = self.whole.model.device
        with self.whole.layer(0) as layer:
            wrapped = wraps(self.whole.model, layer)
        tokens = (batch.tokens.to(self.device) for batch in batches)
        begun, self.calls = record_calls(self.whole.model, tokens, wraps=wrapped)
        self.batches = batches
        self.full: States = [hidden.to(place) for hidden in begun]
        self.own: States | None = None
        """The plan's own states; None as long as they are the same."""
        self.behind = 0
        """The number of the layer that comes next for the plan's own states."""
        self._begun = 0.0, 0
        """The time at which the way to a gap began, and the layer that came next."""

    @torch.no_grad()
    def pairs(self, gap: Gap, own: OwnContents) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go on to the gap's end, and yield X, R and T of each batch for the bridge's fit.

        Gaps come in order; `own` has the earlier ones bridged. The plan's own states wait before
        the layer that this bridge changes.
        """
        self._begun = time.monotonic(), self.at
        self._to(gap.start, own, gap)
        states = self.own = list(self.full) if self.own is None else self.own
        while self.at < gap.end:
            self._through(self.at, self.undone.layers[self.at], self.full)
            self._advance(gap)
        content = own[gap.start]
        assert content is not None
        with self._layer(gap.start, content) as layer, regressors(layer, self.layout) as last:
            for number, before in enumerate(states):
                after = self._run(layer, gap.start, number, before)
                real = self.batches[number].real.to(self.device)
                target, x = self.full[number].to(self.device)[real], last()[real]
                yield x, target - after[real], target

    # ----------------------------------------------------------------------------------- positions

    def _advance(self, gap: Gap) -> None:
        self.at += 1
        begun, first = self._begun
        passed = (time.monotonic() - begun) / (self.at - first)
        self.on_event(GapStep(gap, self.at, gap.end, passed * (gap.end - self.at)))

    def _to(self, position: int, own: OwnContents, gap: Gap) -> None:
        while self.own is not None and self.behind < self.at:
            if (late := own[self.behind]) is not None:
                self._through(self.behind, late, self.own)
            self.behind += 1
        while self.at < position:
            undone, content = self.undone.layers[self.at], own[self.at]
            if content is undone:  # one layer for both
                self._through(self.at, undone, *([] if self.own is None else [self.own]), self.full)
            else:
                self.own = list(self.full) if self.own is None else self.own
                if content is not None:
                    self._through(self.at, content, self.own)
                self._through(self.at, undone, self.full)
            self._advance(gap)
        self.behind = self.at

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


_MULTIPLIERS = ("residual_multiplier", "residual_scale")
"""Attributes of layers with a multiplier between a branch and the sum: Granite, MiniCPM 3."""


@contextmanager
def regressors(layer: nn.Module, layout: Layout) -> Iterator[Callable[[], Tensor]]:
    """Catch the inputs of a bridge's fit while the layer before the gap runs.

    The regressors are the inputs of the last projection of the MLP branch, or the output of a
    branch of experts. They include a multiplier between the branch and the sum (Granite's). Yield a
    function that returns the regressors of the last run, [batch, length, width_in]. Raises
    TailorError for a layer without one MLP.
    """
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    last = last_projection(layout, shapes)
    multiplier = next(
        (float(getattr(layer, each)) for each in _MULTIPLIERS if hasattr(layer, each)), 1.0
    )
    caught: list[Tensor] = []
    shape: list[int] = []

    def catch(value: Any) -> None:
        states: Tensor = value[0] if isinstance(value, tuple) else value
        caught[:] = [states.reshape(*shape, states.shape[-1])]  # OPT has no batches within a layer

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        shape[:] = args[0].shape[:-1]

    if last is None:
        hook = mlp(layer, layout).register_forward_hook(lambda _, __, output: catch(output))
    else:
        module = layer.get_submodule(last.name)
        hook = module.register_forward_pre_hook(lambda _, inputs: catch(inputs))
    entering = layer.register_forward_pre_hook(enter)
    try:
        yield lambda: caught[0] * multiplier if multiplier != 1.0 else caught[0]
    finally:
        entering.remove()
        hook.remove()


def mlp(layer: nn.Module, layout: Layout) -> nn.Module:
    """Return the module of a live layer's MLP branch, which holds the branch's projections."""
    names = [name for name, _ in layer.named_parameters() if projection(layout, name) == "mlp"]
    holders = {name.partition(".")[0] for name in names}
    if len(holders) != 1:
        raise TailorError(f"a layer of model type '{layout.model_type}' has no one MLP branch")
    return layer.get_submodule(holders.pop())
