"""The cost of bridging and healing a plan, estimated before anything is computed."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch.utils.benchmark import Timer

from gptailor.evaluation.dtype import healing_dtype
from gptailor.evaluation.fits.bridge.fit import Statistics
from gptailor.evaluation.fits.heal.process_group import processes
from gptailor.evaluation.fits.heal.sources import open_predictions
from gptailor.evaluation.fits.heal.text import sequence_length
from gptailor.evaluation.fits.heal.train import HealingMemory
from gptailor.evaluation.fits.narrower import working_size
from gptailor.evaluation.live.language import language_config
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.plan.plan import Plan, has_predictions
from gptailor.plan.registry import BRIDGE_TOKENS, EXPERT_TOKENS, HEAL_TOKENS, WIDTH_TOKENS
from gptailor.prepare import Prepared, calibration_path
from gptailor.program.devices import device_of
from gptailor.program.layer_cuts import layer_cuts

BRIDGE_PASSES = 2
"""How often the text of bridging is read: by the whole plan and by the cut plan."""
_HEAL_PASSES = 5
_CUTS = {"width": ("narrowing", WIDTH_TOKENS), "experts": ("choosing experts", EXPERT_TOKENS)}
"""The work of each cut of layers, and its tokens by default."""
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
    plan, where = prepared.plan, device_of(device)
    parameters = prepared.base_size.parameters
    config = configuration(language_config(prepared.models["base"].config))
    width = int(config.get_text_config().hidden_size)
    found = [
        replace(cost, inner=name)
        for name, inner in prepared.inner_plans.items()
        for cost in repair_estimates(inner, device=device, memory=memory)
        if not cost.inner
    ]

    def add(
        what: str, tokens: int, operations: float, size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        seconds = operations / _speed(width, dtype, where)
        found.append(RepairEstimate(what, tokens, seconds, min(size, memory or size)))

    def states(tokens: int) -> int:
        return 4 * parameters + 2 * 4 * tokens * width

    cuts = layer_cuts(prepared.checked)
    layers = _layer_sizes(prepared, where) if cuts or prepared.resolved.gaps else []
    for word, (own, cut) in cuts.items():
        what, default = _CUTS[word]
        tokens = read_tokens(plan, cut.on, cut.tokens or default)
        solving, sums = (own * own, working_size(own, width)) if word == "width" else (0, 0)
        operations = 2 * tokens * (sum(layers) + len(layers) * solving)
        add(what, tokens, operations, states(tokens) + sums)
    if prepared.resolved.gaps:
        tokens = bridged_tokens(plan)
        first, last = prepared.resolved.gaps[0], prepared.resolved.gaps[-1]
        passed = sum(layers[: last.end]) + sum(layers[first.start : last.start])
        size = states(tokens) + Statistics.size(4 * width, width)
        add("bridging", tokens, 2 * passed * tokens, size)
    if prepared.resolved.healing is not None:
        tokens, dtype = healed_tokens(plan), healing_dtype(prepared.models, where)
        shared = 1 if where.type == "cpu" else processes()
        work = 2 * parameters * tokens * heal_passes(plan) / shared
        contents = Stitcher(prepared.models, device=where, dtype=dtype).contents(prepared.resolved)
        predicted = [text.file for text in prepared.resolved.healing.texts if text.predicted]
        lengths = [open_predictions(calibration_path(plan, file)).length for file in predicted]
        length = sequence_length(position_count(config), tokens, lengths)
        planned = replace(prepared.resolved.healing, tokens=tokens)
        size = HealingMemory(contents, planned, dtype, length, memory).bytes
        add("healing", tokens, work, dtype.itemsize * parameters + size, dtype)
    if importance_tokens:
        own = prepared.output_size.parameters
        size = 4 * own + 4 * importance_tokens * width
        add("importance matrix", importance_tokens, 2 * own * importance_tokens, size)
    return found


def _layer_sizes(prepared: Prepared, where: torch.device) -> list[int]:
    """Return the parameters of each layer of the plan with nothing dropped."""
    undone = Stitcher(prepared.models, device=where).contents(prepared.resolved.undone)
    return [sum(output.spec.elements for output in layer.outputs) for layer in undone.layers]


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
