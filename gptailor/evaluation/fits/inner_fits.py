"""The fits of plans that are models of other plans: made once, and kept in files by content.

A file has the tensors of the inner plan's compiled folder, except those that it copies from its
models. So a plan on it is what a plan on that folder would be.
"""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from gptailor.checkpoint.cache_folder import copies_folder
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.checks.texts import refuse_unusable_texts, text_errors_as_faults
from gptailor.evaluation.fits.fit import Fitted
from gptailor.evaluation.fits.kept_tensors import (
    KEPT_BYTES,
    KeptTensors,
    TensorStore,
    read_tensors,
)
from gptailor.evaluation.live.content_keys import TensorMaker
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.fitted_plan import FittedPlan
from gptailor.plan.model_dependencies import entries_inside, of_inner_plans
from gptailor.plan.plan import Plan
from gptailor.prepare import Prepared, commits_of, pinned, ready, reopened
from gptailor.program.devices import CPU
from gptailor.program.fits import texts_read, vocabulary_result
from gptailor.program.program import Copy


def fitted_inside(
    plan: Plan,
    models: Mapping[str, Opened],
    fit: Callable[[Prepared], Fitted],
    on_event: OnEvent = ignore_events,
    *,
    anew: bool = False,
) -> Plan:
    """Return a plan, open or closed, with the fits of its inner plans; itself without any.

    `fit` makes all fits of a plan, and `anew` makes those again that are known. They are made in
    the order of the chain, and each has an event before it.
    """
    fitted: dict[str, FittedPlan] = {}
    commits = commits_of(plan, models)
    for name, model in [*models.items()][::-1]:  # those inside others come first
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

    The newest files stay, those of the last day, and those `needed`. Raises CheckpointError (C305)
    if it can't be written.
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
