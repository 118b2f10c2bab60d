"""Bridges: the gaps that drops leave, closed by least squares, the fit folded into weights.

`Statistics` holds the sums over tokens that a bridge is fitted from, and `solve` is the fit.
"""

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import ClassVar, Generic, NoReturn, TypeVar, final

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.checks.bridges import last_projection
from gptailor.evaluation.bridge.states import (
    CalibrationText,
    FitTexts,
    OwnContents,
    Sequences,
    Walk,
)
from gptailor.evaluation.kept_tensors import (
    KEPT_BYTES,
    KeptTensors,
    TensorStore,
    environment,
    kept_home,
)
from gptailor.evaluation.live import content_keys
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration
from gptailor.evaluation.recently_used import RecentlyUsed
from gptailor.methods import rounding
from gptailor.plan.events import GapBegun, GapBridged, GapStep, OnEvent, ignore_events
from gptailor.plan.faults import CodedError
from gptailor.plan.layers import Slot, bridge_over
from gptailor.plan.resolved import Gap, Resolved

CHUNK = 1024
"""Tokens that are widened to float64 at once."""
GRAM_COLUMNS = 512
"""Columns of XᵀΩX that are summed at once: the half below the diagonal is left out."""


@final
class BridgeError(CodedError):
    """A gap can't be bridged, or an MLP narrowed."""


@final
class Statistics:
    """Weighted sums in float64 over tokens: of the inputs X of a fit, and of its targets R.

    X has `width_in` entries a token, R has `width_out`. R = T − Y − M is the difference that the
    hidden state before the gap lacks to the state after it. `gram` is the upper triangle of XᵀΩX,
    and `cross` is XᵀΩR. `squares` is the weighted sum of R's squares. `count` counts the tokens.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Float64[Tensor, "..."]:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.gram = zeros(width_in, width_in)
        self.cross = zeros(width_in, width_out)
        self.squares = zeros()

    @staticmethod
    def size(width_in: int, width_out: int) -> int:
        """Return the bytes of the sums, including those of `solve`."""
        return 8 * width_in * (width_in + width_out)

    def add(
        self,
        x: Float[Tensor, " n width_in"],
        residual: Float[Tensor, " n width_out"],
        weights: Float64[Tensor, " n"],
    ) -> None:
        """Add tokens to the sums. Raises BridgeError (C807) for NaN and infinity."""
        for at in range(0, len(x), CHUNK):
            chunk = slice(at, at + CHUNK)
            root = weights[chunk].sqrt()[:, None]
            wide, lack = x[chunk].double() * root, residual[chunk].double() * root
            for column in range(0, wide.shape[1], GRAM_COLUMNS):
                block = slice(column, column + GRAM_COLUMNS)
                self.gram[block, column:].addmm_(wide[:, block].T, wide[:, column:])
            self.cross.addmm_(wide.T, lack)
            self.squares.add_(lack.square_().sum())
        self.count += len(x)
        if not bool(torch.isfinite(self.squares + self.gram.diagonal().sum())):
            raise BridgeError("C807", "hidden states are not finite (NaN or infinity)")


def weights(target: Float[Tensor, " n width_out"]) -> Float64[Tensor, " n"]:
    """Return Ω: 1/|T|² of each token, so that errors count as in the next norm.

    A token with a T of zero has the weight 0, as there is no size to compare an error with.
    """
    squares = target.double().square().sum(-1)
    return torch.where(squares > 0, squares.reciprocal(), 0.0)


FittedTokens = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"], Float64[Tensor, " _"]]
"""X, R and Ω of some tokens: [tokens, width_in], [tokens, width_out], [tokens]."""


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A fit: the matrix C in R ≈ XC, and the share of R's weighted squares that XC explains.

    XᵀΩX + λI equals SLLᵀS, with S the diagonal matrix of `scale` and L the lower half of `lower`.
    """

    change: Float64[Tensor, " width_in width_out"]
    explained: float
    lower: Float64[Tensor, " width_in width_in"]
    scale: Float64[Tensor, " width_in 1"]

    def held_out(self, sequences: Sequence[FittedTokens]) -> float:
        """Return the share that is explained of sequences when the fit leaves each out in turn.

        The residual of a sequence without which C is fitted is (I − H)⁻¹(R − XC), for
        H = X (XᵀΩX + λI)⁻¹ Xᵀ of its own rows, weighted by √Ω. λ stays the same. So no second fit
        is needed (Allen's PRESS statistic, by blocks). Return NaN if a fit without some sequence
        has no solution, which a ridge of 0 may cause.
        """
        left = whole = 0.0
        for x, residual, omega in sequences:
            root = omega.sqrt()[:, None]
            wide, lack = ((part.double() * root).to(self.lower.device) for part in (x, residual))
            half = torch.linalg.solve_triangular(self.lower, wide.T / self.scale, upper=False)
            kept = torch.eye(len(wide), dtype=wide.dtype, device=wide.device) - half.T @ half
            residuals, failed = torch.linalg.solve_ex(kept, lack - wide @ self.change)
            left += math.nan if int(failed) else float(residuals.square().sum())
            whole += float(lack.square().sum())
        return 1 - left / whole if whole else 0.0


def solve(statistics: Statistics, ridge: float) -> Solution:
    """Solve C = (XᵀΩX + λI)⁻¹ XᵀΩR, with λ = ridge × the median of XᵀΩX's diagonal.

    The median leaves out entries of X that are always zero, and C is zero there. The factors and C
    overwrite the sums. Raises BridgeError (C808) where XᵀΩX + λI has no inverse.
    """
    diagonal = statistics.gram.diagonal()
    positive = diagonal[diagonal > 0]
    damping = ridge * (float(positive.median()) if len(positive) else 1.0)
    diagonal.add_(damping)
    scale = diagonal.sqrt()[:, None]  # so that large entries leave small ones their digits
    lower = statistics.gram.div_(scale).div_(scale.T).T  # by columns, as LAPACK works in place
    failed = torch.zeros((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    own = lower.diagonal()
    least = own.max() * len(own) ** 0.5 * torch.finfo(torch.float32).eps  # digits of X; NaN: none
    if int(failed) or not bool(own.min() > least):
        message = (
            f"the fit has no unique solution: its {len(lower)} inputs depend on each other over "
            f"{statistics.count:,} tokens"
        )
        raise BridgeError("C808", message, "give a ridge above 0, or more tokens of other text")
    half = torch.linalg.solve_triangular(
        lower, statistics.cross.div_(scale), upper=False, out=statistics.cross
    )
    gain = float(half.square().sum())  # of the damped fit: tr(CᵀXᵀΩR)
    change = torch.linalg.solve_triangular(lower.T, half, upper=True, out=half).div_(scale)
    squares = float(statistics.squares)
    gain += damping * float(torch.linalg.vector_norm(change)) ** 2
    return Solution(change, gain / squares if squares else 0.0, lower, scale)


# -------------------------------------------------------------------------------------- the bridges


def carriers(layout: Layout, content: content_keys.Content) -> list[str]:
    """Return the names of a layer's tensors that are the last projections of its MLP branch."""
    names = [output.spec.name for output in content.outputs]
    return [name for name in names if projection(layout, name) == "mlp"]


def fold_fit(
    change: Float64[Tensor, " width_in width_out"],
    projections: Mapping[str, Shaped[Tensor, "..."]],
    layout: Layout,
    dtypes: Mapping[str, str],
) -> dict[str, Shaped[Tensor, "..."]]:
    """Fold the change C into a branch's projections, so that the branch also adds XC.

    Where X are the inputs of the only last projection, a weight A (h = Ax + b) becomes A + Cᵀ, and
    b stays. Where X are the summed outputs of experts, each expert's A (the last two axes) becomes
    WᵀA and its b becomes Wᵀb, with W = I + C. Weights that are stored as (inputs, outputs) are
    transposed. The results are on the CPU, rounded once to `dtypes` (safetensors' names).
    Raises BridgeError (C807) where a dtype can't hold a value.
    """
    last = last_projection(layout, {name: tensor.shape for name, tensor in projections.items()})
    folded = {}
    for name, tensor in projections.items():
        wide = tensor.to(device=change.device, dtype=change.dtype)
        if last is None:
            after = tensor.dim() > 1 and layout.transposed
            wide = wide + (wide @ change if after else change.T @ wide)
        elif wide.dim() > 1:
            wide = wide + (change if layout.transposed else change.T)
        refuse = partial(_refuse, name, dtypes[name])
        result = rounding.rounded(wide, dtypes[name], refuse)
        folded[name] = result.contiguous().cpu()
    return folded


def _refuse(name: str, dtype: str, _: int) -> NoReturn:
    raise BridgeError("C807", f"'{name}' fitted has values that {dtype} can't hold")


@contextmanager
def naming_errors(what: str, undone: content_keys.ModelContents) -> Iterator[None]:
    """Name what is fitted in a BridgeError, and the stored tensor with NaN or infinity, if any."""
    try:
        yield
    except BridgeError as error:
        message = f"{what}: {error.message}"
        if error.code == "C807" and (broken := content_keys.not_finite(undone)) is not None:
            message += f": {broken}"
        raise BridgeError(error.code, message, error.help) from None


def _own_bytes(content: content_keys.Content | None, whole: content_keys.Content) -> bytes:
    """Return the bytes that a layer of a plan is known by, beside the undropped plan's."""
    if content is None or content is whole:
        return b"dropped" if content is None else b"undone"
    return content_keys.instructions(content.outputs).encode() + content.fitted_bytes


_Measured = TypeVar("_Measured")


def measured_layers(
    contents: content_keys.ModelContents,
    slots: Sequence[Slot],
    what: str,
    measure: Callable[[int], _Measured],
    on_step: Callable[[int, int, float], object],
) -> Iterator[_Measured]:
    """Yield the measurement of each layer of a plan, in order; `slots` are the layers.

    `what` names the part of a layer in errors. `on_step` receives the layers that are done, their
    total, and the estimated seconds for the others.
    """
    begun, total = time.monotonic(), len(contents.layers)
    for number, slot in enumerate(slots):
        layer = f"layer {number}" if slot.position is None else f"L{slot.position}"
        with naming_errors(f"the {what} of {layer}", contents):
            measured = measure(number)
        each = (time.monotonic() - begun) / (number + 1)
        on_step(number + 1, total, each * (total - number - 1))
        yield measured


def fit_key(
    contents: content_keys.ModelContents,
    settings: tuple[object, ...],
    text: CalibrationText,
    more: Iterable[bytes] = (),
) -> str:
    """Return a hash of everything that decides a fit on the states of some contents."""
    key = hashlib.sha256(repr((contents.instructions, settings, environment())).encode())
    for part in chain(more, text.token_bytes()):
        key.update(part)
    return key.hexdigest()[:32]


_SHARES = ("explained", "held_out")
"""The notes of a kept fit."""
LEFT_OUT_TOKENS = 1024
"""Tokens of the sequences that are left out in turn, for `held_out`."""
KEPT_FITS = 2**31
"""Bytes of fitted tensors that are kept for other plans."""


@final
@dataclass(frozen=True, eq=False)
class FittedBridge:
    """A gap's fit: the tensors of the layer before it, by their names within the layer, on the CPU.

    `digest` is that of the calibration file, and `tokens` counts the tokens of the fit. `explained`
    is the share of the squared distance to the hidden states without a gap that the bridge removes;
    each token's distance is relative to the length of its state. `held_out` is the same share of
    some sequences, each removed by a fit that leaves the sequence out.
    """

    tensors: Mapping[str, Tensor]
    digest: FileDigest
    tokens: int
    explained: float
    held_out: float


_Fit = TypeVar("_Fit")


class Fitter(Generic[_Fit]):
    """Fits plans over a stitcher's models, which compute in float32.

    Fits are kept for other plans, and on this machine in the folder `kept_in`. With `anew` no kept
    fit is reused. While a plan is fitted, the stitcher leaves room for the sums.
    """

    kept_in: ClassVar[str]

    def __init__(self, stitcher: Stitcher, *, anew: bool = False) -> None:
        self.table = stitcher.table
        self.live = stitcher.live
        self.tensors = stitcher.tensors
        self.device = stitcher.device
        self.place = stitcher.device if stitcher.memory is None else torch.device("cpu")
        self.reserve = stitcher.reserve
        self.base = self.table.models["base"]
        self._texts = FitTexts(self.table.models)
        self._fits: RecentlyUsed[Hashable, _Fit] = RecentlyUsed()
        self._store = None if anew else TensorStore(kept_home() / self.kept_in, KEPT_BYTES)


@final
class Bridger(Fitter[FittedBridge]):
    """Fits the bridges of plans. The beginnings that plans have in common are fitted once."""

    kept_in = "bridged"

    @cached_property
    def _hidden(self) -> int:
        return int(configuration(self.base.config).hidden_size)

    def bridges(
        self,
        resolved: Resolved,
        narrowed: Sequence[Mapping[str, Tensor]],
        on_event: OnEvent = ignore_events,
    ) -> Iterator[tuple[Gap, FittedBridge]]:
        """Yield the fits of a closed plan's gaps in order, and report new fits.

        `narrowed` are the tensors of narrow MLPs of the plan with nothing dropped; () without any.
        Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
        closed.
        """
        gaps = resolved.gaps
        undone = undropped = self.table.contents(resolved.undone)
        if narrowed or resolved.kept_experts is not None:
            undropped = self.table.contents(resolved.undropped)
        if narrowed:
            undropped = self.table.with_fitted(undropped, dict(enumerate(narrowed)))
        own: list[content_keys.Content | None] = [None] * len(undone.layers)
        for number in resolved.undone_numbers:
            own[number] = undropped.layers[number]
        sizes = [self._widths(_before(gap, own)) for gap in gaps]
        texts = [self._text(resolved, *pair) for pair in zip(gaps, sizes, strict=True)]
        self.reserve(max(Statistics.size(*size) for size in sizes))
        try:
            walk: Walk | None = None
            for gap, text in zip(gaps, texts, strict=True):
                start = content_keys.piece((*undone.begin, *undone.others))
                layers = (undone.layers[: gap.end], tuple(own[: gap.start + 1]))
                key = (start, *layers, text, gap.ridge)
                bridge = self._fits.get(key)
                if bridge is None:
                    kept_key = self._kept_key(undone, own, gap, text)
                    bridge = self._kept(kept_key, text)
                    if bridge is None:
                        on_event(GapBegun(gap))
                        if walk is None or walk.batches is not text.batches:
                            walk = Walk(
                                undone, undropped, self.table, self.live, text.batches, self.place
                            )
                        bridge = self._fit(walk, gap, own, text, on_event)
                        self._keep(kept_key, bridge)
                        on_event(GapBridged(gap, bridge.tokens, bridge.explained, bridge.held_out))
                    self._fits.put(key, bridge, content_keys.size_of(bridge.tensors.values()))
                own[gap.start] = self.table.fitted(_before(gap, own), bridge.tensors)
                yield gap, bridge
        finally:
            self.reserve(0)
        self._fits.forget(KEPT_FITS, 0)

    def _fit(
        self, walk: Walk, gap: Gap, own: OwnContents, text: CalibrationText, on_event: OnEvent
    ) -> FittedBridge:
        def on_layer(done: int, seconds_left: float) -> None:
            on_event(GapStep(gap, done, gap.end, seconds_left))

        content = _before(gap, own)
        names = carriers(self.base.layout, content)
        outputs = {out.spec.name: out for out in content.outputs if out.spec.name in names}
        sums = Statistics(*self._widths(content), walk.device)
        with naming_errors(gap.name, walk.undone):
            pairs = walk.pairs(gap.start, gap.end, own, on_layer)
            sampled = add_tokens(sums, text, pairs)
            solution = solve(sums, gap.ridge)
            held_out = solution.held_out(sampled)
            unbridged = {name: self.tensors.of_layer(content, o) for name, o in outputs.items()}
            dtypes = {name: output.spec.dtype for name, output in outputs.items()}
            tensors = fold_fit(solution.change, unbridged, self.base.layout, dtypes)
        return FittedBridge(tensors, text.digest, text.tokens, solution.explained, held_out)

    def _kept_key(
        self,
        undone: content_keys.ModelContents,
        own: OwnContents,
        gap: Gap,
        text: CalibrationText,
    ) -> str:
        """Return a hash of everything that decides a gap's fit."""
        before = replace(undone, layers=undone.layers[: gap.end])
        settings = gap.start, gap.end, gap.ridge, self.device.type, self.place.type
        pairs = zip(own[: gap.start + 1], undone.layers, strict=False)
        return fit_key(before, settings, text, (_own_bytes(*pair) for pair in pairs))

    def _kept(self, key: str, text: CalibrationText) -> FittedBridge | None:
        """Return the fit of that key, if this machine has it."""
        if self._store is None or (kept := self._store.get(key)) is None:
            return None
        shares = (float(kept.notes[name]) for name in _SHARES)
        return FittedBridge(kept.tensors, text.digest, text.tokens, *shares)

    def _keep(self, key: str, fit: FittedBridge) -> None:
        if self._store is not None:
            notes = {name: repr(getattr(fit, name)) for name in _SHARES}
            self._store.put(key, KeptTensors(fit.tensors, notes))

    def _widths(self, content: content_keys.Content) -> tuple[int, int]:
        """Return the widths of the inputs and outputs of a bridge after this layer.

        The bridge's inputs are those of the branch's last projection, or the outputs of a branch of
        experts.
        """
        shapes = {output.spec.name: output.spec.shape for output in content.outputs}
        last = last_projection(self.base.layout, shapes)
        return (self._hidden if last is None else last.inputs), self._hidden

    def _text(self, resolved: Resolved, gap: Gap, widths: tuple[int, int]) -> CalibrationText:
        """Return the gap's text. Raises CalibrationError (C806) if it has too few tokens."""
        plan = resolved.declared
        number = bridge_over(plan, gap.after)
        named = number is not None and plan.bridges[number].tokens is not None
        return self._texts.of(plan, gap.on, gap.tokens, widths[0], named=named, statement="bridge")


def add_tokens(
    sums: Statistics, text: CalibrationText, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> list[FittedTokens]:
    """Add the tokens of each batch's X, R and T to the sums, and return those of some sequences.

    The returned sequences have about `LEFT_OUT_TOKENS` tokens.
    """
    sampled = list[FittedTokens]()
    every = -(-text.tokens // LEFT_OUT_TOKENS)
    seen = 0
    for batch, (x, residual, target) in zip(text.batches, pairs, strict=True):
        omega = weights(target)
        sums.add(x, residual, omega)
        numbers = range(-seen % every, len(batch.tokens), every)
        sampled += _sequences(batch, (x, residual, omega), numbers)
        seen += len(batch.tokens)
    return sampled


def _sequences(
    batch: Sequences, fitted: FittedTokens, numbers: Sequence[int]
) -> Iterator[FittedTokens]:
    """Yield copies of the tokens of some of the batch's sequences, on the CPU."""
    ends = [0, *batch.real.sum(1).cumsum(0).tolist()]
    for number in numbers:
        rows = slice(ends[number], ends[number + 1])
        x, residual, omega = (part[rows].to("cpu", copy=True) for part in fitted)
        yield x, residual, omega


def _before(gap: Gap, own: OwnContents) -> content_keys.Content:
    content = own[gap.start]
    assert content is not None
    return content
