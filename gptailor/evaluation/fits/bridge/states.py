"""Hidden states around some layers, of the whole plan and of the cut plan itself.

Layers run in the outer loop and batches in the inner one, so that a streamed layer loads once.
Hidden states are kept for all batches, on the device or on the host; the inputs of a fit are not.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from gptailor.checkpoint.datasets import (
    CalibrationError,
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
from gptailor.checks.bridges import last_projection
from gptailor.checks.texts import FEWER_TOKENS
from gptailor.evaluation.forward.recording import record_calls
from gptailor.evaluation.live.content_keys import Content, ContentTable, ModelContents
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder, Tokens, tokenizer_of
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.prepare import calibration_path
from gptailor.program.output_tokenizer import output_tokenizer

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
    path: Path, count: int, encoder: TokenEncoder, *, exactly: str | None = None
) -> CalibrationText:
    """Take `count` tokens of a file's text, all of them if it has fewer.

    The statement `exactly` refuses a text that has fewer.

    Rows are drawn in an order that depends on their number alone. Each row is cut into sequences of
    `_BRIDGE_WINDOW` tokens. A sequence begins with the tokenizer's opening special tokens, which
    count too. In a file that isn't JSON lines, the sequences are drawn after the cut.
    Raises CalibrationError: C806 for a text that is too short, and those of `read_rows`.
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


@final
class FitTexts:
    """The calibration texts of fits over some models, each read once."""

    def __init__(self, models: Mapping[str, Opened]) -> None:
        self._models = models
        self._positions = position_count(configuration(models["base"].config))
        self._texts: dict[Hashable, CalibrationText] = {}

    def of(
        self,
        plan: Plan,
        on: str,
        tokens: int,
        inputs: int,
        *,
        named: bool,
        statement: str,
    ) -> CalibrationText:
        """Return `tokens` of the text that a statement of a plan names.

        Raises CalibrationError (C806) for a text with fewer tokens than the fit has `inputs`, and,
        if the plan has `named` their number, with fewer than that.
        """
        owner = output_tokenizer(plan, self._models)
        path = calibration_path(plan, on)
        key = (path, tokens, named, owner.name, owner.token_cut)
        if key not in self._texts:
            encoder = TokenEncoder(tokenizer_of(owner), self._positions)
            exactly = statement if named else None
            self._texts[key] = calibration_text(path, tokens, encoder, exactly=exactly)
        text = self._texts[key]
        if text.tokens < inputs:
            message = f"the text has {text.tokens:,} tokens, and '{statement}' needs at least"
            experts = statement == "experts"
            what = f"it {'compares' if experts else 'is fitted on'} {inputs:,} "
            what += "experts" if experts else "inputs"
            help_ = f"{what}; ten times as many tokens are a good start"
            raise CalibrationError("C806", f"{message} {inputs:,}", path, help=help_)
        return text


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
"""The cut plan's content for each layer of the whole plan, fitted before; None: dropped."""
_Watched = TypeVar("_Watched")
OnLayer = Callable[[int, float], None]
"""Receives the number of layers that are done, and the estimated seconds of the others."""


class Pass:
    """One pass of a live model through its layers, from the first on, over some batches.

    `place` is where all states wait.
    """

    def __init__(self, whole: Stitched, batches: Sequence[Sequences], place: torch.device) -> None:
        self.whole = whole
        self.batches = batches
        self.place = place
        self.at = 0
        """The number of the layer that comes next."""
        self.device = whole.model.device
        tokens = (batch.tokens.to(self.device) for batch in batches)
        begun, self.calls = record_calls(whole, tokens)
        self.full: States = [hidden.to(place) for hidden in begun]

    @torch.no_grad()
    def watched(
        self, watch: Callable[[nn.Module], AbstractContextManager[_Watched]]
    ) -> Iterator[tuple[_Watched, Tensor, Tensor]]:
        """Run the next layer on each batch while `watch` observes the layer.

        Yield its observation, the states after the layer, and which of them are of real tokens.
        """
        with self.whole.layer(self.at) as layer, watch(layer) as observed:
            for number, before in enumerate(self.full):
                after = self._run(layer, self.at, number, before)
                self.full[number] = after.to(self.place)
                yield observed, after, self.batches[number].real.to(self.device)
        self.at += 1

    def _run(self, layer: nn.Module, position: int, number: int, before: Tensor) -> Tensor:
        return self.calls[number][position].of(layer, before.to(self.device))


@final
class Walk(Pass):
    """One pass through the layers of a whole plan and, behind it, of the cut plan.

    `undone` is the plan with nothing cut. `narrow` is that plan with layers as the cut plan has
    them: with narrower MLPs or fewer experts. `live` makes a model of contents, whose hidden states
    are on `device`.
    """

    def __init__(
        self,
        undone: ModelContents,
        narrow: ModelContents,
        table: ContentTable,
        live: Callable[[ModelContents], Stitched],
        batches: Sequence[Sequences],
        place: torch.device,
    ) -> None:
        super().__init__(live(undone), batches, place)
        self.undone = undone
        self.narrow = narrow
        self.table = table
        self.layout = table.models["base"].layout
        self.live = live
        self.own: States | None = None
        """The plan's own states; None as long as they are the same."""
        self.behind = 0
        """The number of the layer that comes next for the plan's own states."""
        self._begun = 0.0, 0
        """The time at which the way to a fit began, and the layer that came next."""

    @torch.no_grad()
    def pairs(
        self, start: int, end: int, own: OwnContents, on_layer: OnLayer
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go on to before layer `end`, and yield X, R and T of each batch for a fit of `start`.

        The fit changes the MLP of the layer `start`. Fits come in order; `own` has the earlier
        ones. The plan's own states wait before the layer `start`.
        """
        self._begun = time.monotonic(), self.at
        self._to(start, own, end, on_layer)
        states = self.own = list(self.full) if self.own is None else self.own
        while self.at < end:
            self._through(self.at, self.undone.layers[self.at], self.full)
            self._advance(end, on_layer)
        content = own[start]
        assert content is not None
        with self._layer(start, content) as layer, regressors(layer, self.layout) as last:
            for number, before in enumerate(states):
                after = self._run(layer, start, number, before)
                real = self.batches[number].real.to(self.device)
                target, x = self.full[number].to(self.device)[real], last()[real]
                yield x, target - after[real], target

    # ----------------------------------------------------------------------------------- positions

    def _advance(self, end: int, on_layer: OnLayer) -> None:
        self.at += 1
        begun, first = self._begun
        passed = (time.monotonic() - begun) / (self.at - first)
        on_layer(self.at, passed * (end - self.at))

    def _to(self, position: int, own: OwnContents, end: int, on_layer: OnLayer) -> None:
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
            self._advance(end, on_layer)
        self.behind = self.at

    def _through(self, position: int, content: Content, *streams: States) -> None:
        with self._layer(position, content) as layer:
            for states in streams:
                for number, before in enumerate(states):
                    states[number] = self._run(layer, position, number, before).to(self.place)

    @contextmanager
    def _layer(self, position: int, content: Content) -> Iterator[nn.Module]:
        live, number = self.whole, position
        if content.kind != self.undone.layers[position].kind:
            live, number = self.live(self.table.alone(self.narrow, position, content)), 0
        elif content is not self.undone.layers[position]:
            layers = list(self.undone.layers)
            layers[position] = content
            live = self.live(replace(self.undone, layers=tuple(layers)))
        with live.layer(number) as layer:
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
    with layer.register_forward_pre_hook(enter), hook:
        yield lambda: caught[0] * multiplier if multiplier != 1.0 else caught[0]


def mlp(layer: nn.Module, layout: Layout) -> nn.Module:
    """Return the module of a live layer's MLP branch, which holds the branch's projections."""
    names = [name for name, _ in layer.named_parameters() if projection(layout, name) == "mlp"]
    holders = {name.partition(".")[0] for name in names}
    if len(holders) != 1:
        raise TailorError(f"a layer of model type '{layout.model_type}' has no one MLP branch")
    return layer.get_submodule(holders.pop())
