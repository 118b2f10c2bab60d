"""Hidden states around some layers, of the whole plan and of the cut plan itself.

Layers run in the outer loop and batches in the inner one, so that a streamed layer loads once.
Hidden states are kept for all batches, on the device or on the host; the inputs of a fit are not.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from gptailor.checkpoint.datasets import (
    Exchange,
    Passage,
    order,
    read_rows,
    too_short,
    whole_text,
)
from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.files import refuse_changed, stamps
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.checks.repairs import last_projection
from gptailor.checks.texts import FEWER_TOKENS
from gptailor.evaluation.forward.recording import record_calls
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder, Tokens, tokenizer_of
from gptailor.evaluation.recently_used import RecentlyUsed
from gptailor.plan.events import FitText, OnEvent, Progress, seconds_left
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Gap
from gptailor.program.sources import output_tokenizer

_BRIDGE_WINDOW = 512
"""Tokens of a sequence, special ones included, unless the model takes fewer."""
BRIDGE_BATCH_TOKENS = 4096
"""Tokens that go through a layer at once, padding included."""
_KEPT_STATES = 2**29
"""Bytes of hidden states that are kept for other plans."""
KeptStates: TypeAlias = RecentlyUsed[Hashable, Sequence[Tensor]]
"""The hidden states of each batch after the first layers of models, by the keys of these layers."""


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

    @property
    def read(self) -> FitText:
        """The text in a fit's result."""
        return FitText(self.digest.size, self.digest.sha256, self.tokens)


def calibration_text(
    path: Path, count: int, encoder: TokenEncoder, *, exactly: str | None = None
) -> CalibrationText:
    """Take `count` tokens of a file's text, all of them if it has fewer.

    The statement `exactly` refuses a text that has fewer.

    Rows are drawn in an order that depends on their number alone. Each row is cut into sequences of
    `_BRIDGE_WINDOW` tokens. A sequence begins with the tokenizer's opening special tokens, which
    count too. In a file that isn't JSON lines, the sequences are drawn after the cut.
    Raises CalibrationError: C806 for a text that is too short, and the errors of `read_rows`.
    """
    stamped = stamps([path])
    rows, digest = read_rows(path, "text"), of_file(path)
    refuse_changed(stamped)
    sequences: list[Tokens] = []
    missing = count
    for sequence in _sequences(rows, encoder):
        sequences.append(sequence[:missing])
        missing -= len(sequences[-1])
        if not missing:
            break
    if missing and exactly is not None:
        raise too_short(path, f"{count - missing:,} tokens", f"'{exactly}'", count, FEWER_TOKENS)
    return CalibrationText(path, tuple(_batches(sequences)), digest, count - missing)


def plan_encoder(plan: Plan, models: Mapping[str, Opened]) -> TokenEncoder:
    """Return the encoder of a plan's tokens, for texts as long as its base takes."""
    positions = position_count(configuration(language_config(models["base"].config)))
    return TokenEncoder(tokenizer_of(output_tokenizer(plan, models)), positions)


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


_Watched = TypeVar("_Watched")


@final
class Pass:
    """One pass of a live model through its layers, from the first on, over some batches.

    `place` is where all states wait. `kept` has states of other passes over these batches.
    """

    def __init__(
        self,
        live: Stitched,
        batches: Sequence[Sequences],
        place: torch.device,
        kept: KeptStates | None = None,
    ) -> None:
        self.live = live
        self.batches = batches
        self.place = place
        self.kept = KeptStates() if kept is None else kept
        self.at = 0
        """The number of the layer that comes next."""
        self.device = live.model.device
        tokens = (batch.tokens.to(self.device) for batch in batches)
        begun, self.calls = record_calls(live, tokens)
        self.states = [hidden.to(place) for hidden in begun]
        """The hidden states of each batch, [batch, length, width]."""

    @torch.no_grad()
    def watched(
        self, watch: Callable[[nn.Module], AbstractContextManager[_Watched]], *, stay: bool = False
    ) -> Iterator[tuple[_Watched, Tensor, Tensor]]:
        """Run the next layer on each batch while `watch` observes the layer.

        Yield its observation, the states after the layer, and which of them are of real tokens.
        The pass goes on to the layer after it, or stays before it.
        """
        with self.live.layer(self.at) as layer, watch(layer) as observed:
            for number, before in enumerate(self.states):
                after = self.calls[number][self.at].of(layer, before.to(self.device))
                if not stay:
                    self.states[number] = after.to(self.place)
                yield observed, after, self.batches[number].real.to(self.device)
        self.at += not stay

    def run(self) -> None:
        """Run the next layer, or take the kept states after it."""
        after = self.at + 1

        def states() -> Sequence[Tensor]:
            for _ in self.watched(nullcontext):
                pass
            return self.states

        key = self.live.start, self.live.layers[:after]
        found = self.kept.of(key, states, lambda found: sum(each.nbytes for each in found))
        self.states, self.at = list(found), after
        self.kept.forget(_KEPT_STATES)


@final
class Walk:
    """One pass through the layers of a whole plan and, behind it, of the cut plan.

    `undone` is the plan with nothing cut. `live` makes a model from contents. Its hidden states
    wait in `place`; hidden states in `kept` are used again.
    """

    def __init__(
        self,
        undone: ModelContents,
        live: Callable[[ModelContents], Stitched],
        batches: Sequence[Sequences],
        place: torch.device,
        kept: KeptStates,
    ) -> None:
        self.undone = undone
        self.live = live
        self.whole = Pass(live(undone), batches, place, kept)
        self.own: Pass | None = None
        """The plan's own pass; None as long as its states are the same."""

    def pairs(
        self, gap: Gap, own: ModelContents, layout: Layout, on_event: OnEvent
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go on to the gap's end, and yield X, R and T of each batch for a fit of the gap.

        The fit changes the MLP of the layer before the gap. Fits come in order; `own` has the
        earlier ones. The plan's own states wait before that layer.
        """
        whole, begun, first = self.whole, time.monotonic(), self.whole.at
        while whole.at < gap.end:
            inside = whole.at >= gap.start
            if self.own is None and (
                inside or own.layers[whole.at] is not self.undone.layers[whole.at]
            ):
                self.own = Pass(self.live(own), whole.batches, whole.place, whole.kept)
                self.own.states, self.own.at = list(whole.states), whole.at
            whole.run()
            left = seconds_left(begun, whole.at - first, gap.end - first)
            on_event(Progress("bridging", whole.at, gap.end, gap.name, left))
        assert self.own is not None, "a gap has layers"
        self.own.live = self.live(own)
        while self.own.at < gap.index:
            self.own.run()
        watched = self.own.watched(partial(regressors, layout=layout), stay=True)
        for (last, after, real), states in zip(watched, whole.states, strict=True):
            target = states.to(whole.device)[real]
            yield last()[real], target - after[real], target


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
    with layer.register_forward_pre_hook(enter), hook:
        yield lambda: caught[0] * multiplier if multiplier != 1.0 else caught[0]


def mlp(layer: nn.Module, layout: Layout) -> nn.Module:
    """Return the module of a live layer's MLP branch, which holds the branch's projections."""
    names = [name for name, _ in layer.named_parameters() if projection(layout, name) == "mlp"]
    holders = {name.partition(".")[0] for name in names}
    if len(holders) != 1:
        raise TailorError(f"a layer of model type '{layout.model_type}' has no single MLP branch")
    return layer.get_submodule(holders.pop())
