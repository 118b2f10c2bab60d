"""Closed plans cut, bridged and healed, live or as tensors to write: `stitch`, `fit`."""

import gc
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.checkpoint.families.layout import name_of
from gptailor.checks.texts import text_errors_as_faults
from gptailor.evaluation.bridge.fit import Bridger, FittedBridge
from gptailor.evaluation.expert_chooser import ChosenExperts, ExpertChooser
from gptailor.evaluation.heal.heal import HealedLayers, Healer
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.width.fit import FittedWidth, Narrower, narrows
from gptailor.lang.parse import plan_or_file
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Gap, Resolved
from gptailor.prepare import Prepared, calibration_path, ready
from gptailor.program.compile import compile_plan
from gptailor.program.devices import dtype_of
from gptailor.program.mixtures import expert_cut
from gptailor.program.program import Output
from gptailor.reporting.quantities import byte_count

_Fitter = TypeVar("_Fitter", ExpertChooser, Narrower, Bridger)


@final
class Repairs:
    """The fits and the healing of closed plans over the models of a stitcher.

    Fits are kept for plans that begin alike, and the healing of the last plan. `on_event` receives
    the progress. With `anew` no earlier fit or healing is reused.
    """

    def __init__(
        self,
        stitcher: Stitcher,
        on_event: OnEvent = ignore_events,
        *,
        anew: bool = False,
    ) -> None:
        self.stitcher = stitcher
        self.on_event = on_event
        self.anew = anew
        self._float32: Stitcher | None = None
        self._fitters: dict[Hashable, Any] = {}
        self._healed: tuple[Hashable, HealedLayers] | None = None

    def stitch(self, plan: Plan) -> Stitched:
        """Return the live model of a closed plan, narrowed, bridged and healed.

        Raises as `Stitcher.stitch`, `narrowed`, `bridges` and `healed`.
        """
        return self.stitcher.live(self.contents(self.stitcher.table.resolved(plan)))

    @torch.no_grad()
    def contents(self, resolved: Resolved) -> ModelContents:
        """Return the contents of a closed plan's live model, narrowed, bridged and healed.

        Raises as `stitch`.
        """
        table = self.stitcher.table
        resolved = with_kept_experts(resolved, self.experts(resolved))
        narrowed = self.narrowed(resolved)
        contents = table.with_fitted(self.stitcher.contents(resolved), by_index(resolved, narrowed))
        bridges = self.bridges(resolved, narrowed)
        for gap, bridge in bridges:
            contents = table.with_fitted(contents, {gap.index: bridge.tensors})
        healed = self.healed(resolved, narrowed, bridges)
        return table.with_fitted(contents, healed.tensors if healed else {})

    @torch.no_grad()
    def experts(self, resolved: Resolved) -> ChosenExperts | None:
        """Return the experts of a closed plan that stay; None for a plan that keeps all.

        Raises CalibrationError for an unusable text, BridgeError for states that aren't finite.
        """
        fewer = expert_cut(self.stitcher.table.checked(resolved))
        if fewer is None:
            return None
        with torch.inference_mode(mode=False):
            return self._fitter(ExpertChooser, resolved).choose(resolved, fewer[0], self.on_event)

    @torch.no_grad()
    def narrowed(self, resolved: Resolved) -> FittedWidth | None:
        """Return the narrow MLPs of a closed plan, fitted as `bridges` are; None without any.

        Raises CalibrationError for an unusable text, BridgeError for a layer without a fit.
        """
        if "width" not in resolved.cuts or not narrows(self.stitcher.contents(resolved)):
            return None
        with torch.inference_mode(mode=False):
            return self._fitter(Narrower, resolved).fit(resolved, self.on_event)

    @torch.no_grad()
    def bridges(
        self, resolved: Resolved, narrowed: FittedWidth | None
    ) -> list[tuple[Gap, FittedBridge]]:
        """Return the bridges of a closed plan, fitted in float32 whatever the live models' dtype.

        Raises CalibrationError for an unusable text, BridgeError for a gap that can't be closed.
        """
        if not resolved.gaps:
            return []
        layers = narrowed.layers if narrowed is not None else ()
        with torch.inference_mode(mode=False):
            return list(self._fitter(Bridger, resolved).bridges(resolved, layers, self.on_event))

    def _fitter(self, kind: Callable[..., _Fitter], resolved: Resolved) -> _Fitter:
        """Return the fitter of a kind that computes this plan in float32.

        It shares the live models, if they do so too.
        """
        stitcher = self._float32_stitcher(resolved.undone)
        key = kind, stitcher is self.stitcher
        if key not in self._fitters:
            self._fitters[key] = kind(stitcher, anew=self.anew)
        fitter: _Fitter = self._fitters[key]
        return fitter

    def _float32_stitcher(self, resolved: Resolved) -> Stitcher:
        """Return the stitcher if this plan's model computes in float32, else another that does."""
        stitcher = self.stitcher
        if stitcher.computing_dtype(stitcher.contents(resolved)) == torch.float32:
            return stitcher
        if self._float32 is None:
            models, device, memory = stitcher.table.models, stitcher.device, stitcher.memory
            self._float32 = Stitcher(models, device=device, dtype=torch.float32, memory=memory)
        return self._float32

    @torch.no_grad()
    def healed(
        self,
        resolved: Resolved,
        narrowed: FittedWidth | None,
        bridges: Sequence[tuple[Gap, FittedBridge]],
    ) -> HealedLayers | None:
        """Return a closed plan's healed layers after these fits; None without healing.

        Raises CalibrationError for an unusable text, HealError for a plan that can't learn.
        """
        if resolved.healing is None:
            return None
        plan = resolved.declared  # equal plans in two folders have different texts
        key = plan, tuple(calibration_path(plan, file) for _, file in plan.calibration_texts)
        if self._healed is None or self._healed[0] != key:
            bridged = {gap.index: bridge.tensors for gap, bridge in bridges}
            models, device = self.stitcher.table.models, self.stitcher.device
            healer = Healer(models, device, self.stitcher.memory, anew=self.anew)
            narrow = by_index(resolved, narrowed)
            healed = healer.heal(resolved, narrow, bridged, self.on_event)
            self._healed = key, healed
            self.on_event(self._healed[1].end)
        return self._healed[1]


def with_kept_experts(resolved: Resolved, chosen: ChosenExperts | None) -> Resolved:
    """Return a plan with the experts that stay; the plan itself without a choice."""
    return resolved if chosen is None else replace(resolved, kept_experts=chosen.kept)


def by_index(resolved: Resolved, narrowed: FittedWidth | None) -> dict[int, Mapping[str, Tensor]]:
    """Return the tensors of narrow MLPs by the numbers of the output's layers."""
    if narrowed is None:
        return {}
    return {i: narrowed.layers[number] for i, number in enumerate(resolved.undone_numbers)}


def stitch(
    plan: Plan | str | Path,
    *,
    models: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
) -> PreTrainedModel:
    """Return the live model of a closed plan or its file, in eval mode; nothing is written.

    On the CPU it equals the compiled and reloaded folder bit for bit. Of a vision-language model it
    is the language model, without towers, as transformers has causal ones. `models` gives other
    folders for the plan's names; `dtype` is the model's, such as `bfloat16`, by default that of
    its configuration. `memory` bounds the bytes of weights on the device, through which layers are
    then streamed; it may be a text such as `2GB`.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the
    environment fails: a missing device, memory that holds no layer.
    """
    prepared = ready(plan_or_file(plan), models=models)
    room = byte_count(memory)
    stitcher = Stitcher(prepared.models, device=device, dtype=dtype_of(dtype), memory=room)
    with text_errors_as_faults(prepared.plan):
        return Repairs(stitcher).stitch(prepared.plan).model


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """The tensors that fits and healing change, by their names in the output, and each fit.

    `bridges` are named by the layer before the gap: `L19`; `healed` is None without healing,
    `width` without narrower MLPs, and `experts` without fewer experts. `chosen` are the outputs of
    the experts that stay.
    """

    tensors: Mapping[str, Shaped[Tensor, "..."]]
    bridges: Mapping[str, FittedBridge]
    healed: HealedLayers | None = None
    width: FittedWidth | None = None
    experts: ChosenExperts | None = None
    chosen: Mapping[str, Output] = field(default_factory=dict)


def fit(
    prepared: Prepared,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
    anew: bool = False,
) -> Fitted:
    """Choose the experts of a prepared plan, narrow its MLPs, fit its bridges, then heal it.

    Nothing is written. A plan without all four is left alone. Fits are made by models in float32,
    whatever dtype they are stored in; `memory` bounds the bytes on the device. `on_event` receives
    the progress.

    The same text and plan give the same tensors on one machine with the same numbers of threads and
    processes. So an earlier healing on this machine is reused, unless `anew` is set.

    Raises CalibrationError for an unusable text, BridgeError for a gap that can't be closed,
    HealError for a plan that can't learn, TailorError if the environment fails.
    """
    if not prepared.repaired:
        return Fitted({}, {})

    def repairs() -> Repairs:
        models = prepared.models
        stitcher = Stitcher(models, device=device, dtype=torch.float32, memory=memory)
        return Repairs(stitcher, on_event, anew=anew)

    layout = prepared.models["base"].layout
    experts = repairs().experts(prepared.resolved)
    resolved = with_kept_experts(prepared.resolved, experts)
    gc.collect()
    narrowed = repairs().narrowed(resolved)
    gc.collect()  # frees its weights before the next ones load to the device
    bridges = repairs().bridges(resolved, narrowed)
    gc.collect()
    healed = repairs().healed(resolved, narrowed, bridges)
    changes = [
        *by_index(resolved, narrowed).items(),
        *((gap.index, bridge.tensors) for gap, bridge in bridges),
        *(healed.tensors.items() if healed else ()),
    ]
    tensors = {
        name_of(layout, index, name): tensor
        for index, changed in changes
        for name, tensor in changed.items()
    }
    fitted_bridges = {f"L{gap.after}": bridge for gap, bridge in bridges}
    chosen: dict[str, Output] = {}
    if experts is not None:
        compiled = compile_plan(replace(prepared.checked, resolved=resolved), repaired=False)
        chosen = {output.spec.name: output for output in compiled.program.outputs}
    return Fitted(tensors, fitted_bridges, healed, narrowed, experts, chosen)
