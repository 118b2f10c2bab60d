"""Fits of closed plans: their kinds, their costs, and a plan with the results of fits."""

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NoReturn, final

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from transformers import PreTrainedConfig

from gptailor.checkpoint.cache_folder import kept_home
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.families.layout import name_of
from gptailor.evaluation.fits.bridge.states import (
    CalibrationText,
    Pass,
    calibration_text,
    plan_encoder,
)
from gptailor.evaluation.fits.kept_tensors import KeptTensors, TensorStore, environment
from gptailor.evaluation.live.content_keys import Content, ModelContents, not_finite
from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration
from gptailor.methods import rounding
from gptailor.plan.events import FitResult, OnEvent, Progress, seconds_left
from gptailor.plan.faults import CodedError
from gptailor.plan.plan import Plan, TextFit, has_predictions
from gptailor.plan.registry import BRIDGE_TOKENS, HEAL_TOKENS
from gptailor.plan.resolved import Gap, Resolved, Slot
from gptailor.prepare import Prepared, calibration_path
from gptailor.program.compile import compile_plan
from gptailor.program.program import Output
from gptailor.program.sources import Checked, output_tokenizer

LayerResult = dict[str, Tensor]
"""Tensors that a layer was measured or fitted to, by names."""
LayerChanges = Mapping[int, Mapping[str, Tensor]]
"""Tensors of the output's layers by their numbers, then by their names within a layer."""


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """A closed plan and its models with the results of fits, by their places.

    `checked` has the experts that stay. `changes` are fitted tensors on the CPU by the words of
    fits, in their order of effect.
    """

    checked: Checked
    results: Mapping[str, FitResult] = field(default_factory=dict)
    changes: Mapping[str, LayerChanges] = field(default_factory=dict)

    @property
    def resolved(self) -> Resolved:
        """The plan with the experts that stay."""
        return self.checked.resolved

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The changed tensors by their names in the output."""
        return {
            name_of(self.checked.base.layout, index, name): tensor
            for changes in self.changes.values()
            for index, changed in changes.items()
            for name, tensor in changed.items()
        }

    def contents(self, stitcher: Stitcher) -> ModelContents:
        """Return the contents of the plan's live model with the changed tensors."""
        contents = stitcher.contents(self.resolved)
        for changes in self.changes.values():
            contents = stitcher.table.with_fitted(contents, changes)
        return contents

    @cached_property
    def chosen(self) -> dict[str, Output]:
        """The outputs of the experts that stay, by their names."""
        if self.resolved.kept_experts is None:
            return {}
        outputs = compile_plan(self.checked, repaired=False).program.outputs
        return {output.spec.name: output for output in outputs}

    def having(self, changes: LayerChanges, *results: FitResult) -> "Fitted":
        """Return the plan with more results of one fit, and the tensors that it changed."""
        return replace(
            self,
            results={**self.results, **{result.at: result for result in results}},
            changes={**self.changes, results[0].word: changes},
        )


def in_dtype(tensor: Tensor, dtype: str, error: CodedError) -> Tensor:
    """Return a fitted tensor in a dtype, rounded once, on the CPU.

    Raises the error where the dtype can't hold a value.
    """

    def refuse(_: int) -> NoReturn:
        raise error

    rounded: Tensor = rounding.rounded(tensor, dtype, refuse)
    return rounded.contiguous().cpu()


@final
class BridgeError(CodedError):
    """A gap can't be bridged, an MLP narrowed, or a layer measured."""


@contextmanager
def naming_errors(what: str, undone: ModelContents) -> Iterator[None]:
    """Name the fit in a BridgeError, and the stored tensor with NaN or infinity, if any."""
    try:
        yield
    except BridgeError as error:
        message = f"{what}: {error.message}"
        if error.code == "C807" and (broken := not_finite(undone)) is not None:
            message += f": {broken}"
        raise BridgeError(error.code, message, error.help) from None


class KeptFits:
    """Fits and measurements over a stitcher's models, kept for other plans and on this machine.

    With `anew` no result of an earlier process is reused.
    """

    folder: ClassVar[str]
    """The name of the folder of kept results."""

    def __init__(self, stitcher: Stitcher, *, anew: bool = False) -> None:
        self.stitcher = stitcher
        self.anew = anew
        self.table = stitcher.table
        self.place = stitcher.device if stitcher.memory is None else torch.device("cpu")
        self.layout = self.table.models["base"].layout
        self.kept = TensorStore(kept_home() / self.folder, anew=anew)
        self._texts: dict[Hashable, CalibrationText] = {}

    def text(
        self,
        plan: Plan,
        statement: str,
        fit: TextFit | Gap,
        default: int,
        inputs: int,
    ) -> CalibrationText:
        """Return the text that a fit reads, once: as many tokens as the plan names, or `default`.

        Raises CalibrationError (C806) for a text with fewer tokens than the fit has `inputs`, or
        than the plan names.
        """
        owner, path = output_tokenizer(plan, self.table.models), calibration_path(plan, fit.on)
        key = (path, fit.tokens, default, owner.name, owner.token_cut)
        if key not in self._texts:
            exactly = None if fit.tokens is None else statement
            self._texts[key] = calibration_text(
                path, fit.tokens or default, plan_encoder(plan, self.table.models), exactly=exactly
            )
        text = self._texts[key]
        if text.tokens < inputs:
            message = f"the text has {text.tokens:,} tokens, and '{statement}' needs at least"
            use = "is fitted on {:,} inputs" if statement != "experts" else "compares {:,} experts"
            help_ = f"it {use.format(inputs)}; ten times as many tokens are better"
            raise CalibrationError("C806", f"{message} {inputs:,}", path, help=help_)
        return text

    def key(
        self,
        contents: ModelContents,
        settings: Sequence[object],
        text: CalibrationText,
        layers: Iterable[bytes],
    ) -> str:
        """Return a hash of everything that decides a fit on the states of some contents.

        `layers` are the bytes that identify layers, besides the instructions.
        """
        devices = self.stitcher.device.type, self.place.type
        parts = contents.instructions, tuple(settings), devices, environment()
        key = hashlib.sha256(repr(parts).encode())
        for part in layers:
            key.update(part)
        for batch in text.batches:
            key.update(repr(batch.tokens.shape).encode())
            key.update(batch.tokens.numpy().tobytes() + batch.real.numpy().tobytes())
        return key.hexdigest()[:32]

    def by_layer(  # noqa: PLR0913 (a plan, its text, and the measurement)
        self,
        contents: ModelContents,
        slots: Sequence[Slot],
        text: CalibrationText,
        words: tuple[str, str],
        measure: Callable[[Pass, Content], LayerResult],
        on_event: OnEvent,
        *,
        opening: Mapping[str, float] | None = None,
        settings: Sequence[object] = (),
        workspace: int = 0,
        read: Callable[[Content, LayerResult], LayerResult] = lambda _, kept: kept,
    ) -> list[LayerResult]:
        """Return the result of each layer of a plan, made in one pass or kept.

        `slots` are the layers. `measure` receives the next layer's content and runs the layer; it
        takes `workspace` bytes on the device. `words` name the part of a layer in errors, and the
        work in the events of `Progress`. The numbers of an `opening` stand in an event before the
        first layer. `settings` are further ones that decide the results. Memory keeps the results
        of `read`.
        """
        layers = contents.layers

        def measured() -> Iterator[LayerResult]:
            walk = Pass(self.stitcher.live(contents), text.batches, self.place)
            begun = time.monotonic()
            for number, slot in enumerate(slots):
                layer = f"layer {number}" if slot.position is None else f"L{slot.position}"
                with naming_errors(f"the {words[0]} of {layer}", contents):
                    yield measure(walk, layers[number])
                left = seconds_left(begun, number + 1, len(layers))
                on_event(Progress(words[1], number + 1, len(layers), seconds_left=left))

        def make() -> KeptTensors:
            if opening is not None:
                on_event(Progress(words[1], 0, len(layers), numbers=opening))
            self.stitcher.reserve(workspace)
            try:
                return _joined(measured())
            finally:
                self.stitcher.reserve(0)

        def read_all(kept: KeptTensors) -> KeptTensors:
            return _joined(map(read, layers, _parted(kept, len(layers))))

        key = self.key(contents, settings, text, (layer.fitted_digest for layer in layers))
        return _parted(self.kept(key, make, read_all), len(layers))


def _joined(layers: Iterable[LayerResult]) -> KeptTensors:
    """Return the results of all layers as one."""
    named = ((f"{at} {name}", t) for at, layer in enumerate(layers) for name, t in layer.items())
    return KeptTensors(dict(named), {})


def _parted(joined: KeptTensors, count: int) -> list[LayerResult]:
    """Return the results of each of `count` layers that were joined."""
    parts: list[LayerResult] = [{} for _ in range(count)]
    for name, tensor in joined.tensors.items():
        at, _, own = name.partition(" ")
        parts[int(at)][own] = tensor
    return parts


# ---------------------------------------------------------------------------------------- the cost

BRIDGE_PASSES = 2
"""How often the text of bridging is read: by the whole plan and by the cut plan."""
_HEAL_PASSES = 5
_BYTES, _PREDICTION_BYTES = 3, 512
"""The fewest bytes of a token: in texts that people write, and of its prediction."""


def heal_passes(plan: Plan) -> int:
    """Return how often the texts of healing are read.

    The teacher reads them, the student forward, and twice as much back. One more pass stands for
    held-out sequences and all that isn't a product. With a smaller vocabulary the teacher reads
    them twice. Its answers are made once for all plans, and don't count.
    """
    return _HEAL_PASSES + (plan.vocabulary is not None)


def read_tokens(plan: Plan, text: str, tokens: object) -> int:
    """Return how many tokens of a text are read, at most as many as its bytes can hold."""
    path = calibration_path(plan, text)
    each = _PREDICTION_BYTES if has_predictions(text) else _BYTES
    most = path.stat().st_size // each if path.is_file() else 0
    return min(tokens if isinstance(tokens, int) else 0, most)


def healed_tokens(plan: Plan) -> int:
    """Return about how many tokens a plan's healing learns from; 0 without healing."""
    if plan.heal is None:
        return 0
    wanted = plan.heal.tokens or HEAL_TOKENS
    if any(text.answers is not None for text in plan.heal.on):
        return wanted
    return min(wanted, sum(read_tokens(plan, text.file, wanted) for text in plan.heal.on))


def bridged_tokens(plan: Plan) -> int:
    """Return about how many tokens the longest text of a plan's bridges has."""
    counts = (read_tokens(plan, b.on, b.tokens or BRIDGE_TOKENS) for b in plan.bridges)
    return max(counts, default=0)


@final
@dataclass(frozen=True)
class RepairEstimate:
    """The estimated cost of a plan's cuts, of its bridges or of its healing.

    `what` is `choosing experts`, `narrowing`, `bridging`, `healing` or `importance matrix`. `bytes`
    are the bytes on the device, weights included. `inner` is the name of an inner plan, if it is
    one's.
    """

    what: str
    tokens: int
    seconds: float
    bytes: int
    inner: str = ""


@final
@dataclass(frozen=True, eq=False)
class PlanSizes:
    """The sizes that the cost of a prepared plan's fits depends on; `memory` bounds the device."""

    prepared: Prepared
    device: torch.device
    memory: int | None

    @property
    def plan(self) -> Resolved:
        """The plan with everything derived from it."""
        return self.prepared.resolved

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of the base's language model."""
        return configuration(language_config(self.prepared.models["base"].config))

    @property
    def width(self) -> int:
        """The entries of a hidden state."""
        return int(self.config.get_text_config().hidden_size)

    @cached_property
    def layers(self) -> list[int]:
        """The parameters of each layer of the plan with nothing dropped."""
        undone = Stitcher(self.prepared.models, device=self.device).contents(self.plan.undone)
        return [sum(output.spec.elements for output in layer.outputs) for layer in undone.layers]

    def states(self, tokens: int) -> int:
        """Return the bytes of the base in float32, and of the hidden states of both passes."""
        return 4 * self.prepared.base_size.parameters + 2 * 4 * tokens * self.width

    def estimate(
        self, what: str, tokens: int, work: float, size: int, dtype: torch.dtype = torch.float32
    ) -> RepairEstimate:
        """Return the estimate of some work: the tokens read, operations in a dtype, and bytes."""
        seconds = work / _speed(self.width, dtype, self.device)
        return RepairEstimate(what, tokens, seconds, min(size, self.memory or size))


_ROWS = 1024
_CALIBRATION = 0.3
"""Seconds of measuring the speed."""


def _speed(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations a second of products of matrices on a device."""
    left = torch.ones(_ROWS, width, dtype=dtype, device=device)
    right = torch.ones(width, 4 * width, dtype=dtype, device=device)
    factors, threads = {"left": left, "right": right}, torch.get_num_threads()
    product = Timer("left @ right", globals=factors, num_threads=threads)
    seconds = product.blocked_autorange(min_run_time=_CALIBRATION).mean
    return 2 * _ROWS * width * 4 * width / seconds


# ------------------------------------------------------------------------------------------- a fit


class Fit(KeptFits, ABC):
    """A fit of closed plans over a stitcher's models; its results change tensors.

    While a plan is fitted, the stitcher leaves room for the sums.
    """

    wide: ClassVar[bool] = True
    """True if the models compute in float32 in place of the live models' dtype."""

    @staticmethod
    @abstractmethod
    def cost(sizes: PlanSizes) -> RepairEstimate:
        """Estimate the cost of this fit for a closed plan that has it."""

    @abstractmethod
    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan that has this fit with its result too, and report new ones' progress.

        Raises CalibrationError for a text that doesn't serve, BridgeError or HealError for a plan
        that can't be fitted.
        """
