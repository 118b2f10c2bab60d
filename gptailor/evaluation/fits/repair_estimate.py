"""The cost of bridging and healing a plan, estimated before anything is computed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING, final

import torch
from torch.utils.benchmark import Timer
from transformers import PreTrainedConfig

from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration
from gptailor.plan.plan import Plan, has_predictions
from gptailor.plan.registry import BRIDGE_TOKENS, HEAL_TOKENS
from gptailor.plan.resolved import Resolved
from gptailor.prepare import Prepared, calibration_path
from gptailor.program.devices import device_of
from gptailor.program.fits import FITS
from gptailor.program.sources import Checked

if TYPE_CHECKING:
    from gptailor.evaluation.fits.fit import Fit

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
    ) -> "RepairEstimate":
        """Return the estimate of some work: the tokens read, operations in a dtype, and bytes."""
        seconds = work / _speed(self.width, dtype, self.device)
        return RepairEstimate(what, tokens, seconds, min(size, self.memory or size))


def makers(checked: Checked) -> "Iterator[type[Fit]]":
    """Yield the classes that make the fits of a closed plan, in their order of effect."""
    for fit in FITS:
        if fit.maker is not None and fit.find(checked):
            yield resolve_name(fit.maker)


@final
@dataclass(frozen=True)
class RepairEstimate:
    """The estimated cost of a plan's cuts, of its bridges or of its healing.

    `what` is `choosing experts`, `narrowing`, `bridging`, `healing` or `importance matrix`. `bytes`
    are those on the device, weights included. `inner` is the name of an inner plan, if it is one's.
    """

    what: str
    tokens: int
    seconds: float
    bytes: int
    inner: str = ""


def repair_estimates(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    importance_tokens: int = 0,
) -> list[RepairEstimate]:
    """Estimate time and memory of a prepared plan's fits and healing, and of its inner plans'.

    No weight is read.

    With `importance_tokens` an importance matrix of so many tokens counts too.

    A pass through a layer takes two operations for each parameter and token. The speed of the
    device is measured by products of matrices that are as wide as the model. `memory` bounds the
    bytes on a device. Processes that were started together share the time of healing on GPUs; on a
    CPU they share its cores.
    """
    sizes = PlanSizes(prepared, device_of(device), memory)
    found = [
        replace(cost, inner=name)
        for name, inner in prepared.inner_plans.items()
        for cost in repair_estimates(inner, device=device, memory=memory)
        if not cost.inner
    ]
    found += [kind.cost(sizes) for kind in makers(prepared.checked)]
    if importance_tokens:
        own = prepared.output_size.parameters
        size = 4 * own + 4 * importance_tokens * sizes.width
        work = 2 * own * importance_tokens
        found.append(sizes.estimate("importance matrix", importance_tokens, work, size))
    return found


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
