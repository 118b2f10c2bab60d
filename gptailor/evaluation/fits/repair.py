"""Closed plans cut, bridged and healed, live or as tensors to write, and their cost.

The fits of plans that are models of other plans are made once, and kept in files by content. A file
has the tensors of the inner plan's compiled folder, except the tensors that it copies from its
models. So a plan on it equals a plan on that folder.
"""

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import final

import torch
from transformers import PreTrainedModel

from gptailor.checkpoint.cache_folder import copies_folder
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.checks.texts import refuse_unusable_texts, text_errors_as_faults
from gptailor.evaluation.fits.fit import Fit, Fitted, PlanSizes, RepairEstimate
from gptailor.evaluation.fits.kept_tensors import (
    KEPT_BYTES,
    KeptTensors,
    TensorStore,
    read_tensors,
)
from gptailor.evaluation.live.content_keys import ModelContents, TensorMaker
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.lang.parse import plan_or_file
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.fitted_plan import FittedPlan
from gptailor.plan.model_dependencies import entries_inside, of_inner_plans
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.prepare import Prepared, commits_of, pinned, ready, reopened
from gptailor.program.devices import CPU, device_of, dtype_of
from gptailor.program.fits import FITS, fits_of, texts_read, vocabulary_result
from gptailor.program.program import Copy
from gptailor.program.sources import Checked
from gptailor.reporting.quantities import byte_count


def makers(checked: Checked) -> Iterator[type[Fit]]:
    """Yield the classes that make the fits of a closed plan, in their order of effect."""
    found = fits_of(checked)
    for fit in FITS:
        if fit.maker is not None and found.get(fit.word):
            yield resolve_name(fit.maker)


@final
class Repairs:
    """The fits and the healing of closed plans over the models of a stitcher.

    Fits are kept for plans that begin alike, and the healing of the last plan. `on_event` receives
    the progress and the results. With `anew` no earlier fit or healing is reused.
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
        self._fits: dict[Hashable, Fit] = {}

    def stitch(self, plan: Plan) -> Stitched:
        """Return the live model of a closed plan, narrowed, bridged and healed.

        Raises as `Stitcher.stitch` and `run`.
        """
        return self.stitcher.live(self.contents(self.stitcher.table.resolved(plan)))

    @torch.no_grad()
    def contents(self, resolved: Resolved) -> ModelContents:
        """Return the contents of a closed plan's live model, narrowed, bridged and healed.

        Raises as `stitch`.
        """
        return self.fitted(resolved).contents(self.stitcher)

    def fitted(self, resolved: Resolved) -> Fitted:
        """Return a closed plan with the results of all its fits. Raises as `run`."""
        fitted = Fitted(self.stitcher.table.checked(resolved))
        for kind in makers(fitted.checked):
            fitted = self.run(kind, fitted)
        return fitted

    @torch.no_grad()
    def run(self, kind: type[Fit], fitted: Fitted) -> Fitted:
        """Return a plan with the result of one more of its fits.

        Raises CalibrationError for an unusable text, BridgeError for a layer or gap without a fit,
        HealError for a plan that can't learn.
        """
        stitcher = self._float32_stitcher(fitted.resolved.undone) if kind.wide else self.stitcher
        key = kind, stitcher is self.stitcher
        with torch.inference_mode(mode=False):
            if key not in self._fits:
                self._fits[key] = kind(stitcher, anew=self.anew)
            found = self._fits[key].run(fitted, self.on_event)
        for at, result in found.results.items():
            if at not in fitted.results:
                self.on_event(result)
        return found

    def _float32_stitcher(self, resolved: Resolved) -> Stitcher:
        """Return the stitcher if this plan's model computes in float32, else another that does."""
        stitcher = self.stitcher
        if stitcher.computing_dtype(stitcher.contents(resolved)) == torch.float32:
            return stitcher
        if self._float32 is None:
            models, device, memory = stitcher.table.models, stitcher.device, stitcher.memory
            self._float32 = Stitcher(models, device=device, dtype=torch.float32, memory=memory)
        return self._float32


def stitch(
    plan: Plan | str | Path,
    *,
    models: Mapping[str, str | Path] | None = None,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
) -> PreTrainedModel:
    """Return the live model of a closed plan or its file, in eval mode; nothing is written.

    On the CPU it equals the compiled and reloaded folder bit for bit. For a vision-language model
    it is the language model, without towers, as transformers has causal ones. `models` gives other
    folders for the plan's names; `dtype` is the model's, such as `bfloat16`, by default the
    configuration's dtype. `memory` bounds the bytes of weights on the device, through which layers
    are then streamed; it may be a text such as `2GB`. The parameters have `requires_grad=False`;
    `model.requires_grad_(True)` makes them learn. `evaluate` takes plans and folders, no live
    model.

    Raises PlanError, with all faults, if the plan can't be compiled, and TailorError if the
    environment fails: a missing device, memory that holds no layer.
    """
    room = byte_count(memory)
    prepared = ready(plan_or_file(plan), models=models)
    prepared = with_fits_inside(prepared, partial(fit, device=device, memory=room))
    stitcher = Stitcher(prepared.models, device=device, dtype=dtype_of(dtype), memory=room)
    with text_errors_as_faults(prepared.plan):
        return Repairs(stitcher).stitch(prepared.plan).model


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
    fitted = Fitted(prepared.checked)
    for kind in makers(fitted.checked):
        fitted = Repairs(
            Stitcher(prepared.models, device=device, dtype=torch.float32, memory=memory),
            on_event,
            anew=anew,
        ).run(kind, fitted)
    return fitted


def repair_estimates(
    prepared: Prepared,
    *,
    device: str = "cpu",
    memory: int | None = None,
    importance_tokens: int = 0,
) -> list[RepairEstimate]:
    """Estimate time and memory of a prepared plan's fits and healing, and of its inner plans'.

    No weight is read.

    With `importance_tokens` an importance matrix of this many tokens counts too.

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


def fitted_inside(
    plan: Plan,
    models: Mapping[str, Opened],
    fit: Callable[[Prepared], Fitted],
    on_event: OnEvent = ignore_events,
    *,
    anew: bool = False,
) -> Plan:
    """Return a plan, open or closed, with the fits of its inner plans; itself without any.

    `fit` makes all fits of a plan, and `anew` makes known fits again. They are made in the order of
    the chain, and each has an event before it.
    """
    fitted: dict[str, FittedPlan] = {}
    commits = commits_of(plan, models)
    for name, model in [*models.items()][::-1]:  # inner plans come first
        inner = model.inner
        if inner is None or not inner.plan.is_fitted or (inner.fitted and not anew):
            continue
        on_event(Progress("fitting", 0, 1, f"{name} ({inner.file.name})"))
        made = ready(of_inner_plans(inner.plan, "fitted", entries_inside(fitted, name)))
        with text_errors_as_faults(made.plan):
            refuse_unusable_texts(made.checked)
            fits = fit(made)
        fitted[name] = _fitted_plan(inner.file, made, fits)
        commits |= {f"{name}.{n}": commit for n, commit in made.commits.items()}
    if not fitted:
        return plan
    return of_inner_plans(pinned(plan, commits, models), "fitted", fitted)


def with_fits_inside(
    prepared: Prepared,
    fit: Callable[[Prepared], Fitted],
    on_event: OnEvent = ignore_events,
    *,
    anew: bool = False,
) -> Prepared:
    """Return a prepared plan with the fits of its inner plans, as `fitted_inside` makes them."""
    plan = fitted_inside(prepared.plan, prepared.models, fit, on_event, anew=anew)
    return prepared if plan is prepared.plan else reopened(prepared, plan)


def _fitted_plan(plan: Path, made: Prepared, fits: Fitted) -> FittedPlan:
    """Return an inner plan of a file with these fits."""
    maker, tensors = TensorMaker(CPU, keep=False), dict(fits.tensors)
    for output in made.compiled.program.outputs:
        name = output.spec.name
        if name not in tensors and not isinstance(output.make, Copy):
            tensors[name] = maker.make(fits.chosen.get(name, output))
    file = _kept_file(KeptTensors(tensors, {}), made.read_files)
    texts = texts_read({**fits.results, **vocabulary_result(made.checked)})
    return FittedPlan(plan, file, frozenset({*fits.tensors, *made.refitted}), texts)


def _kept_file(kept: KeptTensors, needed: Collection[Path]) -> Path:
    """Return the file of the tensors, which is named by their content and never changed.

    The newest files, the files of the last day and the `needed` files stay. Raises CheckpointError
    (C305) if it can't be written.
    """
    key = kept.digest("inner plan")
    store = TensorStore(copies_folder() / "inner", max(KEPT_BYTES, kept.size))
    file = store.folder / f"{key}.safetensors"
    if read_tensors(file, key) is None:
        since = time.time() - 86_400  # another process may read a file of the last day
        young = (other for other in store.folder.glob("*") if other.stat().st_mtime > since)
        store.put(key, kept, needed={*needed, *young})
    if not file.is_file():
        message = f"a plan inside the plan takes {kept.size:,} bytes, which can't be written"
        raise CheckpointError("C305", message, file, "free some space, or set XDG_CACHE_HOME")
    return file
