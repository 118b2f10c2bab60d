"""Targets of an evaluation: plans, compiled folders and plain models, each with its base.

A folder, a GGUF file or a Hub id is a plan with that base and nothing else. The base of a compiled
folder or GGUF file is the base that its plan names, if that is available. The base of a plain model
is the base that the caller gives, or else the model itself.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, final

from gptailor.checkpoint.models import Opened, rebind
from gptailor.evaluation.fits.inner_plans import with_inner_fits
from gptailor.lang.plan_of import ReadTarget, model_plan, read_target
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import (
    Fault,
    PlanError,
    TailorError,
    listed,
)
from gptailor.plan.model_dependencies import needed
from gptailor.plan.plan import LayerOf, Plan, Take
from gptailor.plan.resolved import undone
from gptailor.prepare import ModelPaths, Prepared, ready
from gptailor.program.nested_models import whole_plan

if TYPE_CHECKING:
    import torch

FitInner = Callable[[Prepared], Prepared]
"""Returns a prepared plan with the fits of its inner plans, as `with_inner_fits` does."""


@final
@dataclass(frozen=True, eq=False)
class Target:
    """A plan that is ready to be stitched, with the name that the caller gave.

    `origin` is the plan that names the other models: the target's own, or a compiled model's.
    `base` is the plan of the base alone; None for an unknown or missing base. A `bare` target is a
    model without a known plan, so that no plan names its base. `fit_inner` made the fits of plans
    that are its models.
    """

    name: str
    prepared: Prepared
    origin: Plan
    base: Prepared | None
    bare: bool = False
    fit_inner: FitInner = with_inner_fits

    @property
    def plain(self) -> bool:
        """Return whether the target is its own base."""
        return self.base is self.prepared

    @cached_property
    def content(self) -> Hashable:
        """A key that is equal for targets that are one unchanged model, under any names.

        It then equals `identity_of_base` of the targets on this model. Other targets have own keys.
        """
        plan = self.prepared.plan.model_copy(update={"expects": (), "gguf": ()})
        alone = plan == Plan(models=plan.models) and len(plan.models) == 1
        if not (self.plain or alone):
            return id(self.prepared)
        return identity(self.prepared.models["base"])

    @cached_property
    def identity_of_base(self) -> tuple[str, ...] | None:
        """The identity of the base's files."""
        return None if self.base is None else identity(self.base.models["base"])


def identity(opened: Opened) -> tuple[str, ...]:
    """Return the identity of a model's files, equal for two plans with the same files.

    Folders with links to the same weights may have other configurations, so they differ. Nested
    plans with the same files also differ by their tensors, and models with a union of tokenizers by
    the models that it unites.
    """
    paths = (opened.checkpoint.folder, *opened.checkpoint.files)
    files = (str(path.resolve()) for path in paths)
    recipe = repr(sorted(opened.checkpoint.tensors.items())) if opened.checkpoint.nested else ""
    united = repr([identity(model) for model in opened.united or ()])
    return (opened.layout.prefix, *files, recipe, united)


def as_list(targets: Sequence[str | Path | Plan] | str | Path | Plan) -> list[str | Path | Plan]:
    """Return the targets, or one target, as a list. Raises ValueError for an empty list."""
    if not targets:
        raise ValueError("'targets': expected a target, got none")
    return [targets] if isinstance(targets, str | Path | Plan) else list(targets)


def find_targets(
    targets: Sequence[str | Path | Plan],
    models: ModelPaths,
    families: Sequence[str | Path] = (),
    *,
    device: "torch.device | str" = "cpu",
    memory: int | None = None,
    on_event: OnEvent = ignore_events,
) -> list[Target]:
    """Return all targets, ready; `models` replaces the folders of models by name.

    `families` are family files that their models may need. Plans that differ under one name get
    numbers. The fits of plans that are models are made on a device, in `memory`; `on_event`
    receives their progress.

    Raises PlanError for a plan with faults and for an unknown name, OSError for a missing file, and
    TailorError if a folder or the Hub fails.
    """
    fit_inner = partial(with_inner_fits, device=device, memory=memory, on_event=on_event)
    plans = []
    for name, plan, origin in map(read_target, targets):
        extended = plan.with_families(families) if families else plan
        declared = origin.with_families(families) if families and origin is not None else origin
        plans.append((name, extended, extended if origin is plan else declared))
    origins = [origin if origin is not None else plan for _, plan, origin in plans]
    defined = {name for plan in origins for name in plan.models}
    for name in models:
        if name.partition(".")[0] not in defined:
            names = listed(f"'{name}'" for name in sorted(defined))
            message = f"no target has a model '{name}'"
            raise PlanError([Fault("M105", message, help=f"their models are {names}")])
    return [
        _target(name, plan, origin, models, fit_inner)
        for name, plan, origin in _numbered(plans, targets)
    ]


def _numbered(
    found: Sequence[ReadTarget], targets: Sequence[str | Path | Plan]
) -> Iterator[ReadTarget]:
    """Yield targets as read; plans that differ under one name get numbers: `<text> #2`."""
    plans = [
        (target, target.origin and target.origin.folder) if isinstance(target, Plan) else None
        for target in targets
    ]
    alike: dict[str, list[object]] = {}
    for (name, *_), plan in zip(found, plans, strict=True):
        if plan is not None and plan not in alike.setdefault(name, []):
            alike[name].append(plan)
    for (name, read, origin), plan in zip(found, plans, strict=True):
        number = alike[name].index(plan) + 1 if plan and len(alike[name]) > 1 else None
        yield f"{name} #{number}" if number else name, read, origin


def with_uncut(targets: Sequence[Target], models: ModelPaths) -> list[Target]:
    """Return the targets, each with its uncut plan behind it: the same plan without its drops.

    Uncut plans are neither bridged nor healed. A plan that is its base uncut has no second target,
    and several targets with one uncut plan share it. Raises the errors of `find_targets`.
    """
    found, seen = list[Target](), list[tuple[Plan, Path | None]]()
    for target in targets:
        found.append(target)
        uncut = undone(target.origin)
        known = uncut, uncut.origin and uncut.origin.folder
        if target.bare or uncut == target.origin or known in seen:
            continue
        seen.append(known)
        own = _target(f"{target.name}, uncut", uncut, None, models, target.fit_inner)
        found += [] if own.plain else [own]
    return found


def base_of(plan: Plan, name: str = "base") -> Plan:
    """Return a plan of one of this plan's models, unchanged, with the models that it needs."""
    if any(plan.models[model].made is not None for model in needed(plan, [name])):
        return unchanged(plan, name)
    models = {"base": plan.models[name]}
    below = "base"
    while (on := models[below].on) is not None and on in plan.models:
        names = (name for n in count() if (name := f"under{n or ''}") not in plan.models)
        free = on if on not in models else next(names)
        models[below] = models[below].model_copy(update={"on": free})
        models[free] = plan.models[on]
        below = free
    return Plan(models=models).read_from(plan.origin)


def unchanged(plan: Plan, name: str) -> Plan:
    """Return the plan `whole from NAME` with this plan's models under their own names."""
    return whole_plan(plan, Take(take=LayerOf(model=name))).read_from(plan.origin)


def _target(
    name: str, plan: Plan, origin: Plan | None, models: ModelPaths, fit_inner: FitInner
) -> Target:
    base: Prepared | None
    if origin is plan:
        base = prepared = fit_inner(ready(plan))
        if (base_path := models.get("base")) is not None:
            alone = model_plan(str(Path(base_path).absolute())).read_from(plan.origin)
            base = fit_inner(ready(alone))
        same = identity(base.models["base"]) == identity(prepared.models["base"])
        own = prepared if same else base
        return Target(name, prepared, plan, own, bare=True, fit_inner=fit_inner)
    prepared = fit_inner(ready(plan, models=_paths_of(models, plan) if origin is None else None))
    declared = plan if origin is None else origin
    base_plan = base_of(declared)
    paths = _paths_of(models, base_plan)
    try:
        base = fit_inner(ready(base_plan, models=paths))
    except TailorError:
        if origin is None or paths:
            raise
        base = None  # a compiled model's base may be away
    if origin is None and base is not None:
        bare = prepared.plan.model_copy(update={"expects": (), "gguf": ()})
        base = prepared if base.plan == bare else base
    folders = {n: Path(path) for n, path in _paths_of(models, declared).items()}
    return Target(name, prepared, rebind(declared, folders)[0], base, fit_inner=fit_inner)


def _paths_of(models: ModelPaths, plan: Plan) -> ModelPaths:
    return {name: path for name, path in models.items() if name.partition(".")[0] in plan.models}


def warnings(targets: Sequence[Target]) -> list[Fault]:
    """Return the warnings of the targets' plans, once for all plans of one file."""
    found: dict[tuple[str, str, str | None], Fault] = {}
    for target in targets:
        for fault in target.prepared.warnings:
            file = fault.source and fault.source.name
            found.setdefault((fault.code, fault.message, file), fault)
    return list(found.values())


def names(targets: Sequence[Target]) -> list[str]:
    """Return the names of models that an objective may compare the targets with."""
    return sorted({name for target in targets for name in target.origin.models})
