"""What can be judged: plans, compiled folders, plain models. Each with the base that it is held to.

A folder, a GGUF file or a Hub id is the plan whose base it is and that says nothing else. What a
compiled folder is held to is the base that its `plan.tailor` names, if that is there; what a model
by itself is held to is the base that is named for it, and else itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import final

from gptailor.checkpoint.files import expanded, is_gguf
from gptailor.checkpoint.models import Opened, rebind
from gptailor.lang.parse import load
from gptailor.plan.faults import Fault, PlanError, TailorError, errors, listed
from gptailor.plan.model_dependencies import needed
from gptailor.plan.plan import LayerOf, Model, Plan, Take
from gptailor.prepare import ModelPaths, Prepared, ready
from gptailor.program.nested_models import whole_plan

_PLAN = "plan.tailor"
"""What a compiled folder's plan is called."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PLAN_ENDINGS = frozenset([".tailor", ".json"])


@final
@dataclass(frozen=True, eq=False)
class Target:
    """A plan that is ready to be stitched, by the name that it was asked for by.

    `origin` is the plan that says what other models there are: its own, or a compiled folder's.
    `base` is the plan of the base alone; None where nobody knows it or it isn't there. `bare` is a
    model that no plan is known of, which says nothing of a base.
    """

    name: str
    prepared: Prepared
    origin: Plan
    base: Prepared | None
    bare: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is its own base."""
        return self.base is self.prepared

    @cached_property
    def identity_of_base(self) -> tuple[str, ...] | None:
        """Which files the base is."""
        return None if self.base is None else identity(self.base.models["base"])


def identity(opened: Opened) -> tuple[str, ...]:
    """Which files a model is: equal for those of two plans that name the same.

    What is nested in a plan is told apart by how it is made of them too.
    """
    files = (str(file.resolve()) for file in opened.checkpoint.files)
    made = repr(sorted(opened.checkpoint.tensors.items())) if opened.checkpoint.nested else ""
    return (opened.layout.prefix, *files, made)


def find_targets(
    targets: Sequence[str | Path | Plan],
    models: ModelPaths,
    families: Sequence[str | Path] = (),
) -> list[Target]:
    """All targets, ready; `models` gives other folders for the names of their plans.

    `families` are family files that their models may be of.

    Raises PlanError for a plan with faults and for a name that no target has, OSError for a file
    that isn't there, TailorError where a folder or the Hub fails.
    """
    plans = [_with_families(read_target(target), families) for target in targets]
    origins = [origin if origin is not None else plan for _, plan, origin in plans]
    known = {name for plan in origins for name in plan.models}
    for name in models:
        if name.partition(".")[0] not in known:
            there = listed(f"'{one}'" for one in sorted(known))
            message = f"no target has a model '{name}' to rebind"
            raise PlanError([Fault("M105", message, help=f"their models are {there}")])
    return [_target(name, plan, origin, models) for name, plan, origin in plans]


def base_of(plan: Plan, name: str = "base") -> Plan:
    """The plan that says a model of this plan as it is, and nothing else but what that is on."""
    if any(plan.models[one].made is not None for one in needed(plan, [name])):
        made = whole_plan(plan, Take(take=LayerOf(model=name)))
        return made.read_from(plan.origin) if plan.origin else made
    found = {"base": plan.models[name]}
    below = "base"
    while (on := found[below].on) is not None and on in plan.models:
        names = (name for n in count() if (name := f"under{n or ''}") not in plan.models)
        free = on if on not in found else next(names)
        found[below] = found[below].model_copy(update={"on": free})
        found[free] = plan.models[on]
        below = free
    made = Plan(models=found)
    return made.read_from(plan.origin) if plan.origin else made


def _target(name: str, plan: Plan, origin: Plan | None, models: ModelPaths) -> Target:
    if origin is None:
        prepared = ready(plan, models=_named(models, plan))
        base = ready(base_of(plan), models=_named(models, base_of(plan)))
        return Target(name, prepared, plan, prepared if base.plan == prepared.plan else base)
    prepared = ready(plan)
    if origin is plan:
        named, base = models.get("base"), prepared
        if named is not None:
            alone = _alone(str(Path(named).absolute()))
            base = ready(alone.read_from(plan.origin) if plan.origin else alone)
        same = identity(base.models["base"]) == identity(prepared.models["base"])
        return Target(name, prepared, plan, prepared if same else base, bare=True)
    folders = {name: Path(path) for name, path in _named(models, origin).items()}
    return Target(name, prepared, rebind(origin, folders)[0], _there(origin, models))


def _there(origin: Plan, models: ModelPaths) -> Prepared | None:
    """The base of a compiled folder; None where it is gone, unless it was given by hand."""
    plan = base_of(origin)
    own = _named(models, plan)
    try:
        return ready(plan, models=own)
    except TailorError:
        if own:
            raise
        return None


def _named(models: ModelPaths, plan: Plan) -> ModelPaths:
    return {name: path for name, path in models.items() if name.partition(".")[0] in plan.models}


_Read = tuple[str, Plan, Plan | None]


def read_target(target: str | Path | Plan) -> _Read:
    """A target's name, its plan, and for a model's folder the plan that it was compiled from.

    For a model that nobody compiled that is its own plan.
    """
    if isinstance(target, Plan):
        return (target.origin.source.name if target.origin else "<plan>"), target, None
    name, path = str(target), expanded(target)
    if path.is_dir() or (path.is_file() and is_gguf(path)):
        plan = _alone(str(path.absolute()))
        try:
            return name, plan, load(path / _PLAN)
        except (OSError, PlanError):  # nobody compiled it, or its plan can't be read
            return name, plan, plan
    if not path.exists() and HUB_ID.fullmatch(name) and path.suffix not in PLAN_ENDINGS:
        plan = _alone(name)
        return name, plan, plan
    return name, load(path), None


def _alone(source: str) -> Plan:
    """The plan of a model as it is."""
    return Plan(models={"base": Model(source=source)})


def _with_families(read: _Read, families: Sequence[str | Path]) -> _Read:
    """The same, its plans knowing of these family files."""
    name, plan, origin = read
    if not families:
        return read
    known = plan.with_families(families)
    if origin is plan:
        return name, known, known
    return name, known, None if origin is None else origin.with_families(families)


def warnings(targets: Sequence[Target]) -> list[Fault]:
    """What the targets' plans are warned of."""
    found = [fault for target in targets for fault in target.prepared.warnings]
    return [fault for fault in found if not errors([fault])]


def names(targets: Sequence[Target]) -> list[str]:
    """The models' names that an objective may compare the targets with."""
    return sorted({name for target in targets for name in target.origin.models})
