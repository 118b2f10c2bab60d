"""Bridges: the gaps that drops leave, closed by least squares, the fit folded into weights.

`Statistics` are what a bridge is fitted from, as sums over tokens, and `solve` is the fit.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, final

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from gptailor.checkpoint.families.layout import Layout, projection
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.checks.bridges import last_projection
from gptailor.evaluate.bridge.states import CalibrationText, OwnContents, Walk, calibration_text
from gptailor.evaluate.live import content_keys
from gptailor.evaluate.live.stitch import Stitcher
from gptailor.evaluate.live.template import configuration, position_count
from gptailor.evaluate.objectives.datasets import CalibrationError
from gptailor.evaluate.objectives.tokens import TokenEncoder, tokenizer_of
from gptailor.methods import rounding
from gptailor.plan.events import GapBegun, GapBridged, OnEvent, ignore_events
from gptailor.plan.faults import CodedError
from gptailor.plan.layers import bridge_over
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Gap, Resolved
from gptailor.prepare import calibration_path
from gptailor.program.load import TORCH_DTYPES
from gptailor.program.sources import tokenizer_owner

CHUNK = 1024
"""Tokens that are widened to float64 at once."""
GRAM_COLUMNS = 512
"""Columns of XᵀΩX that are summed at once: the half below the diagonal is left out."""


@final
class BridgeError(CodedError):
    """A gap can't be bridged."""


@final
class Statistics:
    """Weighted sums in float64 over tokens: of what a fit is made of, X, and what it is to make, R.

    X has `width_in` entries a token, R = T − Y − M, what the hidden state before the gap lacks of
    the one after it, `width_out`. `gram` is XᵀΩX, its upper triangle alone, `cross` XᵀΩR, `rest`
    the sum of all R's squares by their weights, `count` the number of tokens.
    """

    def __init__(self, width_in: int, width_out: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Float64[Tensor, "..."]:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.count = 0
        self.gram = zeros(width_in, width_in)
        self.cross = zeros(width_in, width_out)
        self.rest = zeros()

    @staticmethod
    def size(width_in: int, width_out: int) -> int:
        """Bytes that the sums take, those of `solve` included."""
        return 8 * width_in * (width_in + width_out)

    def add(
        self,
        x: Float[Tensor, " n width_in"],
        rest: Float[Tensor, " n width_out"],
        weights: Float64[Tensor, " n"],
    ) -> None:
        """Take some more tokens into the sums. Raises BridgeError (C807) for what is no number."""
        for at in range(0, len(x), CHUNK):
            some = slice(at, at + CHUNK)
            root = weights[some].sqrt()[:, None]
            wide, lack = x[some].double() * root, rest[some].double() * root
            for column in range(0, wide.shape[1], GRAM_COLUMNS):
                block = slice(column, column + GRAM_COLUMNS)
                self.gram[block, column:].addmm_(wide[:, block].T, wide[:, column:])
            self.cross.addmm_(wide.T, lack)
            self.rest.add_(lack.square_().sum())
        self.count += len(x)
        if not bool(torch.isfinite(self.rest + self.gram.diagonal().sum())):
            raise BridgeError("C807", "hidden states are no numbers (NaN or infinite)")


def weights(target: Float[Tensor, " n width_out"]) -> Float64[Tensor, " n"]:
    """Ω: 1/|T|² of each token, so that errors count as the next norm sees them.

    A token whose T is zero weighs nothing: it has no size that an error could be compared with.
    """
    squares = target.double().square().sum(-1)
    return torch.where(squares > 0, squares.reciprocal(), 0.0)


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A fit: what R is to be X times, and the share of R's weighted squares that XC takes away."""

    change: Float64[Tensor, " width_in width_out"]
    explained: float


def solve(statistics: Statistics, ridge: float) -> Solution:
    """C = (XᵀΩX + λI)⁻¹ XᵀΩR, with λ = ridge × the median of XᵀΩX's diagonal.

    Entries of X that are always zero are left out of the median, and C is zero there. The sums are
    used up: their memory is that of the factors and of C. Raises BridgeError (C808) where
    XᵀΩX + λI has no inverse.
    """
    diagonal = statistics.gram.diagonal()
    there = diagonal[diagonal > 0]
    damping = ridge * (float(there.median()) if len(there) else 1.0)
    diagonal.add_(damping)
    scale = diagonal.sqrt()[:, None]  # so that large entries leave small ones their digits
    lower = statistics.gram.div_(scale).div_(scale.T).T  # by columns, as LAPACK works in place
    failed = torch.zeros((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    own = lower.diagonal()
    least = own.max() * len(own) ** 0.5 * torch.finfo(torch.float32).eps  # digits of X; NaN: none
    if int(failed) or not bool(own.min() > least):
        message = (
            f"the {len(lower)} inputs of the fit depend on each other over "
            f"{statistics.count:,} tokens, so that it has no one solution"
        )
        raise BridgeError("C808", message, "give a ridge above 0, or more tokens of other text")
    half = torch.linalg.solve_triangular(
        lower, statistics.cross.div_(scale), upper=False, out=statistics.cross
    )
    gain = float(half.square().sum())  # of the damped fit: tr(CᵀXᵀΩR)
    change = torch.linalg.solve_triangular(lower.T, half, upper=True, out=half).div_(scale)
    whole = float(statistics.rest)
    gain += damping * float(torch.linalg.vector_norm(change)) ** 2
    return Solution(change, gain / whole if whole else 0.0)


# -------------------------------------------------------------------------------------- the bridges


def carriers(layout: Layout, content: content_keys.Content) -> list[str]:
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
        refuse = partial(_refuse, name, dtypes[name])
        result = rounding.rounded(wide, TORCH_DTYPES[dtypes[name]], refuse)
        made[name] = result.contiguous().cpu()
    return made


def _refuse(name: str, dtype: str, _: int) -> NoReturn:
    raise BridgeError("C807", f"'{name}' bridged has values that {dtype} can't hold")


_KEPT_FITS = 2**31
"""Bytes of fitted tensors that are kept for other plans."""


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
    """Fits the bridges of plans over a stitcher's models, which compute in float32.

    The beginnings that plans have in common are fitted once. While a plan is fitted, the stitcher
    leaves room for the sums.
    """

    def __init__(self, stitcher: Stitcher) -> None:
        self.table = table = stitcher.table
        self.live = stitcher.live
        self.tensors = stitcher.tensors
        self.place = stitcher.device if stitcher.memory is None else torch.device("cpu")
        self.reserve = stitcher.reserve
        self.layout = table.models["base"].layout
        self._config = configuration(table.models["base"].config)
        self._texts: dict[tuple[Hashable, ...], CalibrationText] = {}
        self._fits: OrderedDict[Hashable, FittedBridge] = OrderedDict()

    def bridges(
        self, resolved: Resolved, on_event: OnEvent = ignore_events
    ) -> Iterator[tuple[Gap, FittedBridge]]:
        """The fits of a closed plan's gaps, the first gap first; new fits are reported.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
        closed.
        """
        gaps, plan = resolved.gaps, resolved.declared
        whole = self.table.contents(resolved.undone)
        own: list[content_keys.Content | None] = [None] * len(whole.layers)
        for number in resolved.undone_numbers:
            own[number] = whole.layers[number]
        sizes = [self._widths(_before(gap, own)) for gap in gaps]
        texts = [self._text(plan, gap, size[0]) for gap, size in zip(gaps, sizes, strict=True)]
        self.reserve(max(Statistics.size(*size) for size in sizes))
        try:
            walk: Walk | None = None
            for gap, text in zip(gaps, texts, strict=True):
                start = content_keys.piece((*whole.begin, *whole.others))
                layers = (whole.layers[: gap.end], tuple(own[: gap.start + 1]))
                key = (start, *layers, text, gap.ridge)
                if key not in self._fits:
                    on_event(GapBegun(gap))
                    if walk is None or walk.batches is not text.batches:
                        walk = Walk(whole, self.live, self.layout, text.batches, self.place)
                    new = self._fits[key] = self._fit(walk, gap, own, text)
                    on_event(GapBridged(gap, new.tokens, new.explained))
                self._fits.move_to_end(key)
                known = self._fits[key]
                own[gap.start] = self.table.bridged(_before(gap, own), known.tensors)
                yield gap, known
        finally:
            self.reserve(0)
        size = sum(content_keys.size_of(bridge.tensors.values()) for bridge in self._fits.values())
        while size > _KEPT_FITS:
            _, oldest = self._fits.popitem(last=False)
            size -= content_keys.size_of(oldest.tensors.values())

    def _fit(self, walk: Walk, gap: Gap, own: OwnContents, text: CalibrationText) -> FittedBridge:
        content = _before(gap, own)
        names = carriers(self.layout, content)
        outputs = {one.spec.name: one for one in content.outputs if one.spec.name in names}
        summed = Statistics(*self._widths(content), walk.device)
        try:
            for x, rest, target in walk.pairs(gap, own):
                summed.add(x, rest, weights(target))
            solution = solve(summed, gap.ridge)
            made = {name: self.tensors.make(output) for name, output in outputs.items()}
            dtypes = {name: output.spec.dtype for name, output in outputs.items()}
            tensors = fold_fit(solution.change, made, self.layout, dtypes)
        except BridgeError as error:
            message = f"{gap.name}: {error.message}"
            if (
                error.code == "C807"
                and (broken := content_keys.not_finite(walk.undone)) is not None
            ):
                message += f": {broken}"
            raise BridgeError(error.code, message, error.help) from None
        return FittedBridge(tensors, text.digest, text.tokens, solution.explained)

    def _widths(self, content: content_keys.Content) -> tuple[int, int]:
        """The entries of what a bridge after this layer is fitted on, and of what it makes.

        The inputs of the branch's last projection; of a branch of experts, its outputs.
        """
        shapes = {output.spec.name: output.spec.shape for output in content.outputs}
        last, hidden = last_projection(self.layout, shapes), int(self._config.hidden_size)
        return (hidden if last is None else last.inputs), hidden

    def _text(self, plan: Plan, gap: Gap, inputs: int) -> CalibrationText:
        """The gap's text. Raises CalibrationError (C806) where a fit on `inputs` takes more.

        A number of tokens that the plan names has to be there, as for `heal`.
        """
        owner = tokenizer_owner(plan, self.table.models)
        path = calibration_path(plan, gap.on)
        named = bridge_over(plan, gap.after)
        exactly = named is not None and plan.bridges[named].tokens is not None
        key = (path, gap.tokens, exactly, owner.name)
        if key not in self._texts:
            encoder = TokenEncoder(tokenizer_of(owner), position_count(self._config))
            self._texts[key] = calibration_text(path, gap.tokens, encoder, exactly=exactly)
        text = self._texts[key]
        if text.tokens < inputs:
            message = f"the text has {text.tokens:,} tokens, and a bridge needs at least {inputs:,}"
            help_ = f"it is fitted on {inputs:,} inputs; ten times as many tokens are a good start"
            raise CalibrationError("C806", message, path, help=help_)
        return text


def _before(gap: Gap, own: OwnContents) -> content_keys.Content:
    content = own[gap.start]
    assert content is not None
    return content
