"""Bridges: the gaps that drops leave, closed by least squares, the fit folded into weights.

`Statistics` holds the sums over tokens that a bridge is fitted from, and `solve` is the fit.
`fit_normed` is the fit of a branch that ends in a norm.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, final

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from gptailor.checkpoint.families.layout import Layout, is_bridged, post_norm
from gptailor.checks.repairs import last_projection
from gptailor.evaluation.fits.bridge.states import CalibrationText, KeptStates, Walk
from gptailor.evaluation.fits.fit import (
    BridgeError,
    Fit,
    Fitted,
    PlanSizes,
    RepairEstimate,
    bridged_tokens,
    in_dtype,
    naming_errors,
)
from gptailor.evaluation.fits.kept_tensors import KeptTensors
from gptailor.evaluation.live import content_keys
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration
from gptailor.plan.events import FitResult, OnEvent, Progress
from gptailor.plan.registry import BRIDGE_TOKENS, GAP_FITS
from gptailor.plan.resolved import Gap
from gptailor.program.packages import fit_provider
from gptailor.program.program import Output

CHUNK = 1024
"""Tokens that are widened to float64 at once."""
GRAM_COLUMNS = 512
"""Columns of XᵀΩX that are summed at once: the half below the diagonal is left out."""


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
        """Return the bytes of the sums, including the bytes of `solve`."""
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

    A token with a T of zero has the weight 0, because its error has no size to be compared with.
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


def _foreign_change(
    name: str,
    widths: tuple[int, int],
    device: torch.device,
    pairs: Iterable[tuple[Tensor, Tensor, Tensor]],
    ridge: float,
) -> Float[Tensor, " width_in width_out"]:
    """Return the change C of a package's fit of a gap, in float64.

    Raises BridgeError (C808) if the fit raises an error or returns no finite matrix of this shape.
    """
    who = f"the fit '{name}' of {GAP_FITS.package(name)}"

    def called(function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            message = f"{who} raised {type(error).__name__}: {error}".partition("\n")[0]
            raise BridgeError("C808", message) from error

    fit = called(GAP_FITS[name], *widths, device)
    for x, missing, target in pairs:
        called(fit.add, x, missing, target)
    change = called(fit.change, ridge)
    shape = tuple(getattr(change, "shape", ()))
    if not isinstance(change, Tensor) or shape != widths:
        got = f"got {type(change).__name__} {list(shape)}"
        raise BridgeError("C808", f"{who}: expected a tensor of the shape {list(widths)}, {got}")
    if not bool(change.isfinite().all()):
        raise BridgeError("C808", f"{who} returned NaN or infinity")
    return change.to(device=device, dtype=torch.float64)


# ------------------------------------------------------------------- branches that end in a norm

NORMED_ROUNDS = 6
"""Rounds of a fit: the projection, then the norm's factors."""
HELD_OUT = 8
"""One of this many blocks of tokens is left out of the fits. It compares the rounds."""
HELD_OUT_BLOCK = 128
"""Tokens of a block, at most."""
GAIN_DAMPING = 1e-3
"""The least square of a factor that a direction is divided by, as a share of their mean."""


@final
@dataclass(frozen=True, eq=False)
class NormedBranch:
    """The end of a branch that adds g ⊙ N(xA): the projection A, the factors g, N's epsilon.

    N gives each token the RMS 1, so A decides a direction only.
    """

    projection: Float64[Tensor, " width_in width_out"]
    gain: Float64[Tensor, " width_out"]
    epsilon: float

    def normed(self, x: Float[Tensor, " n width_in"]) -> Float64[Tensor, " n width_out"]:
        """Return N(xA)."""
        out = torch.cat([part.to(self.gain) @ self.projection for part in torch.split(x, CHUNK)])
        return out * (out.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()

    def error(self, tokens: FittedTokens) -> float:
        """Return the weighted squared distance between the added and the wished part of tokens."""
        x, wished, omega = tokens
        apart = wished.to(self.gain) - self.gain * self.normed(x)
        return float(omega.to(self.gain) @ apart.square().sum(-1))


def fit_normed(
    tokens: FittedTokens, start: NormedBranch, ridge: float
) -> tuple[NormedBranch, dict[str, float]]:
    """Fit a branch to the part R that it should add. Also return the shares that this explains.

    A round fits A to the direction of R/g, then g to R. The result is the branch of the round with
    the least error on the held-out tokens, or the start. The shares are of the start's error, on
    all tokens and on the held-out tokens. Raises BridgeError as `Statistics` and `solve` do.
    """
    x, wished, omega = tokens
    places = torch.arange(len(x), device=x.device)
    block = max(1, min(HELD_OUT_BLOCK, len(x) // HELD_OUT))
    left_out = places // block % HELD_OUT == HELD_OUT - 1
    held = x[left_out], wished[left_out], omega[left_out]
    x, wished, omega = x[~left_out], wished[~left_out], omega[~left_out]
    branch, errors, factors = start, [(start.error(held), start)], None
    for _ in range(NORMED_ROUNDS):
        squares = branch.gain.square()
        damped = branch.gain / (squares + GAIN_DAMPING * squares.mean())
        wanted = wished * damped.to(wished)
        wanted /= wanted.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
        if factors is None:
            sums = Statistics(x.shape[1], wished.shape[1], x.device)
            sums.add(x, wanted, omega)
            factors = solve(sums, ridge)
            projection = factors.change
        else:
            parts = zip(*(torch.split(each, CHUNK) for each in (x, wanted, omega)), strict=True)
            cross = sum((part * weigh[:, None]).T @ lack.double() for part, lack, weigh in parts)
            projection = torch.cholesky_solve(cross / factors.scale, factors.lower) / factors.scale
        branch = NormedBranch(projection, branch.gain, start.epsilon)
        normed = branch.normed(x)
        sizes = omega @ normed.square()
        gain = (omega @ (normed * wished)) / sizes.clamp_min(1e-30)
        branch = NormedBranch(projection, gain, start.epsilon)
        errors.append((branch.error(held), branch))
    least, best = min(errors, key=lambda each: each[0])
    shares = {
        "explained": (best.error(tokens), start.error(tokens)),
        "held_out": (least, errors[0][0]),
    }
    return best, {
        name: 1 - left / whole if whole else 0.0 for name, (left, whole) in shares.items()
    }


# -------------------------------------------------------------------------------------- the bridges


def carriers(layout: Layout, content: content_keys.Content) -> dict[str, Output]:
    """Return a layer's tensors that a bridge changes, by their names."""
    outputs = {output.spec.name: output for output in content.outputs}
    return {name: o for name, o in outputs.items() if is_bridged(layout, name)}


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
        folded[name] = _rounded(name, wide, dtypes[name])
    return folded


def _rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    """Return a fitted tensor rounded to its dtype. Raises BridgeError (C807)."""
    error = BridgeError("C807", f"the fitted '{name}' has values that {dtype} can't represent")
    return in_dtype(tensor, dtype, error)


LEFT_OUT_TOKENS = 1024
"""Tokens of the sequences that are left out in turn, for `held_out`."""


@final
class Bridger(Fit):
    """Fits the bridges of plans. The beginnings that plans have in common are fitted once."""

    folder = "bridged"

    def __init__(self, stitcher: Stitcher, *, anew: bool = False) -> None:
        super().__init__(stitcher, anew=anew)
        self._states: dict[CalibrationText, KeptStates] = defaultdict(KeptStates)

    @staticmethod
    def cost(sizes: PlanSizes) -> RepairEstimate:
        """Estimate the cost of passes of both plans up to the last gap, and of a fit's sums."""
        tokens, layers, gaps = bridged_tokens(sizes.plan.declared), sizes.layers, sizes.plan.gaps
        passed = sum(layers[: gaps[-1].end]) + sum(layers[gaps[0].start : gaps[-1].start])
        size = sizes.states(tokens) + Statistics.size(4 * sizes.width, sizes.width)
        return sizes.estimate("bridging", tokens, 2 * passed * tokens, size)

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with the fits of its gaps.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
        closed.
        """
        resolved, gaps = fitted.resolved, fitted.resolved.gaps
        changes, results = dict[int, Mapping[str, Tensor]](), list[FitResult]()
        undone = self.table.contents(resolved.undone)
        own = fitted.contents(self.stitcher)
        sizes = [self._widths(own.layers[gap.index]) for gap in gaps]
        texts = [
            self.text(resolved.declared, "bridge", gap, BRIDGE_TOKENS, width)
            for gap, (width, _) in zip(gaps, sizes, strict=True)
        ]
        self.stitcher.reserve(max(Statistics.size(*size) for size in sizes))

        @lru_cache(maxsize=1)
        def walk_of(text: CalibrationText) -> Walk:
            return Walk(undone, self.stitcher.live, text.batches, self.place, self._states[text])

        try:
            for gap, text in zip(gaps, texts, strict=True):
                make = partial(self._fit, partial(walk_of, text), gap, own, text, on_event)
                fit = self.kept(self._gap_key(undone, own, gap, text), make)
                changes[gap.index] = fit.tensors
                own = self.table.with_fitted(own, {gap.index: fit.tensors})
                results.append(FitResult("bridge", f"L{gap.after}", (text.read,), fit.numbers))
        finally:
            self.stitcher.reserve(0)
        return fitted.having(changes, *results)

    def _fit(
        self,
        walk_of: Callable[[], Walk],
        gap: Gap,
        own: content_keys.ModelContents,
        text: CalibrationText,
        on_event: OnEvent,
    ) -> KeptTensors:
        on_event(Progress("bridging", 0, gap.end, gap.name))
        walk, content = walk_of(), own.layers[gap.index]
        outputs, device = carriers(self.layout, content), self.stitcher.device
        widths, numbers = self._widths(content), dict[str, float]()
        with naming_errors(gap.name, walk.undone):
            pairs = walk.pairs(gap, own, self.layout, on_event)
            dtypes = {name: output.spec.dtype for name, output in outputs.items()}
            unbridged = {
                name: self.stitcher.tensors.of_layer(content, o) for name, o in outputs.items()
            }
            if any(post_norm(self.layout, name) for name in outputs):
                return self._fit_normed(pairs, unbridged, dtypes, gap.ridge)
            if gap.by is not None:
                change = _foreign_change(gap.by, widths, device, pairs, gap.ridge)
            else:
                sums = Statistics(*widths, device)
                sampled = add_tokens(sums, text, pairs)
                solution = solve(sums, gap.ridge)
                change, explained = solution.change, solution.explained
                numbers = {"explained": explained, "held_out": solution.held_out(sampled)}
            tensors = fold_fit(change, unbridged, self.layout, dtypes)
        return KeptTensors(tensors, numbers)

    def _fit_normed(
        self,
        pairs: Iterable[tuple[Tensor, Tensor, Tensor]],
        unbridged: Mapping[str, Tensor],
        dtypes: Mapping[str, str],
        ridge: float,
    ) -> KeptTensors:
        """Return the changed tensors of a branch that ends in a norm, and the fit's numbers."""
        waiting = ([part.to(self.place) for part in batch] for batch in pairs)
        x, missing, target = map(torch.cat, zip(*waiting, strict=True))
        config = configuration(self.table.models["base"].config)
        # The branch may be multiplied before the sum (HyperCLOVA X), and so is X.
        multiplier = float(getattr(config, "residual_multiplier", 1.0))
        [norm] = [name for name in unbridged if post_norm(self.layout, name)]
        offset = 1.0 if post_norm(self.layout, norm) == "divide_offset" else 0.0
        wide = {name: t.to(x.device, torch.float64) for name, t in unbridged.items()}
        weight, bias = (
            next((n for n in wide if n != norm and n.endswith(end)), "")
            for end in (".weight", ".bias")
        )
        x = x / multiplier
        rows = [wide[weight].T]
        if bias:
            x, rows = nn.functional.pad(x, (0, 1), value=1.0), [*rows, wide[bias][None]]
        start = NormedBranch(
            torch.cat(rows), multiplier * (offset + wide[norm]), config.rms_norm_eps
        )
        wished = missing + (start.gain * start.normed(x)).to(missing)
        best, numbers = fit_normed((x, wished, weights(target)), start, ridge)
        made = {
            weight: best.projection[: wide[weight].shape[1]].T,
            norm: best.gain / multiplier - offset,
        }
        if bias:
            made[bias] = best.projection[-1]
        return KeptTensors(
            {name: _rounded(name, t, dtypes[name]) for name, t in made.items()}, numbers
        )

    def _gap_key(
        self,
        undone: content_keys.ModelContents,
        own: content_keys.ModelContents,
        gap: Gap,
        text: CalibrationText,
    ) -> str:
        """Return a hash of everything that decides a gap's fit."""
        before = replace(undone, layers=undone.layers[: gap.end])
        settings = gap.start, gap.end, gap.ridge, fit_provider(gap.by)
        layers = (
            content_keys.instructions(layer.outputs).encode() + layer.fitted_digest
            for layer in own.layers[: gap.index + 1]
        )
        return self.key(before, settings, text, layers)

    def _widths(self, content: content_keys.Content) -> tuple[int, int]:
        """Return the widths of the inputs and outputs of a bridge after this layer.

        The bridge's inputs are the inputs of the branch's last projection, or the outputs of a
        branch of experts.
        """
        shapes = {output.spec.name: output.spec.shape for output in content.outputs}
        hidden = int(configuration(self.table.models["base"].config).hidden_size)
        last = last_projection(self.layout, shapes)
        return (hidden if last is None else last.inputs), hidden


def add_tokens(
    sums: Statistics, text: CalibrationText, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> list[FittedTokens]:
    """Add the tokens of each batch's X, R and T to the sums, and return some sequences' sums.

    The returned sequences have about `LEFT_OUT_TOKENS` tokens.
    """
    sampled = list[FittedTokens]()
    every = -(-text.tokens // LEFT_OUT_TOKENS)
    seen = 0
    for batch, (x, residual, target) in zip(text.batches, pairs, strict=True):
        omega = weights(target)
        sums.add(x, residual, omega)
        numbers = range(-seen % every, len(batch.tokens), every)
        ends = [0, *batch.real.sum(1).cumsum(0).tolist()]
        for number in numbers:
            rows = slice(ends[number], ends[number + 1])
            own, lack, root = (part[rows].to("cpu", copy=True) for part in (x, residual, omega))
            sampled.append((own, lack, root))
        seen += len(batch.tokens)
    return sampled
