"""Importance matrices: the mean square of each column of the inputs of a plan's matrices on a text.

The plan is the finished one, cut, bridged and healed. As with llama.cpp's `llama-imatrix`, the
matrices of layers have entries, and the embedding and the head have no entries.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gptailor.checkpoint.datasets import too_short
from gptailor.checkpoint.families.layout import name_of
from gptailor.evaluation.fits.bridge.states import (
    CalibrationText,
    Pass,
    calibration_text,
    plan_encoder,
)
from gptailor.evaluation.fits.fit import BridgeError, Fitted, KeptFits, LayerResult
from gptailor.evaluation.live.content_keys import Content
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.registry import IMPORTANCE_TOKENS, LEAST_IMPORTANCE_TOKENS
from gptailor.prepare import Prepared

ImportanceMatrix = Mapping[str, Float[Tensor, " columns"]]
"""The importance of each matrix's columns in float32 on the CPU, by the tensors' names."""


def importance_text(prepared: Prepared, path: Path) -> CalibrationText:
    """Return `IMPORTANCE_TOKENS` tokens of a text as `bridge` draws them, or all of a shorter one.

    Raises CalibrationError: C806 for a text of fewer than `LEAST_IMPORTANCE_TOKENS` tokens, and the
    errors of `read_rows`.
    """
    encoder = plan_encoder(prepared.plan, prepared.models)
    text = calibration_text(path, IMPORTANCE_TOKENS, encoder)
    if text.tokens < LEAST_IMPORTANCE_TOKENS:
        needs = "an importance matrix"
        raise too_short(path, f"{text.tokens:,} tokens", needs, LEAST_IMPORTANCE_TOKENS)
    return text


@torch.no_grad()
def importance_matrix(  # noqa: PLR0913 (a text, and the means of fits)
    prepared: Prepared,
    text: CalibrationText,
    fitted: Fitted | None,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> ImportanceMatrix:
    """Run a prepared plan with its fitted tensors on a text, and return the importance of columns.

    The model computes in float32; `memory` bounds the bytes on the device. An earlier matrix on
    this machine is reused, unless `anew` is set. `on_event` receives the progress of a new one.

    Raises BridgeError (C807) for hidden states that aren't finite, TailorError if the environment
    fails.
    """
    stitcher = Stitcher(prepared.models, device=device, dtype=torch.float32, memory=memory)
    contents = (fitted or Fitted(prepared.checked)).contents(stitcher)
    words = "importance matrix", "importance matrix"
    with torch.inference_mode(mode=False):
        layers = _Importance(stitcher, anew=anew).by_layer(
            contents, prepared.resolved.kept, text, words, _columns_of, on_event
        )
    layout = prepared.models["base"].layout
    return {
        name_of(layout, number, name): columns
        for number, layer in enumerate(layers)
        for name, columns in layer.items()
    }


@final
class _Importance(KeptFits):
    folder = "importance"


def _columns_of(walk: Pass, content: Content) -> LayerResult:
    """Run the next layer, and return the mean square of each column of its matrices' inputs."""
    names = [output.spec.name for output in content.outputs]
    sums: dict[str, Tensor] = {}
    count = 0
    for inputs, _, real in walk.watched(partial(_inputs_of_matrices, names=names)):
        count += int(real.sum())
        squares: dict[int, Tensor] = {}  # queries, keys and values have the same inputs
        for name, x in inputs.items():
            if id(x) not in squares:
                squares[id(x)] = x[real].square().sum(0, dtype=torch.float64)
            sums[name] = sums.get(name, 0.0) + squares[id(x)]
    means = {name: (total / count).float().cpu() for name, total in sums.items()}
    if not all(bool(torch.isfinite(mean).all()) for mean in means.values()):
        raise BridgeError("C807", "hidden states are not finite (NaN or infinity)")
    return means


@contextmanager
def _inputs_of_matrices(
    layer: nn.Module, names: list[str]
) -> Iterator[Mapping[str, Float[Tensor, "batch length columns"]]]:
    """Observe the linear modules of a live layer that have weights of these names.

    Yield the inputs of the last run by the weights' names.
    """
    seen: dict[str, Tensor] = {}

    def catch(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[name] = inputs[0]

    with ExitStack() as hooks:
        for name in names:
            module = layer.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.Linear) and name.endswith(".weight"):
                hooks.enter_context(module.register_forward_pre_hook(partial(catch, name)))
        yield seen
