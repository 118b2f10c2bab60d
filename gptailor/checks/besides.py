"""What is said of a plan besides other faults: models, layers and texts that aren't there."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opener, folder_of, is_local, is_plan, used
from gptailor.checks.models import check_positions
from gptailor.plan.faults import Fault, Place, PlanError, locate
from gptailor.plan.layers import may_be_healed
from gptailor.plan.plan import Model, Objective, Plan, Requirement, is_at_url
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.walk import drops_by_choice


def check_besides(plan: Plan, declared: Mapping[str, Model]) -> list[Fault]:
    """Of a plan that has faults by itself: local models that can't be opened, layers beyond them.

    The Hub is asked nothing for such a plan.
    """
    opener = Opener(plan, declared)
    opened = {
        name: opener.model(name) for name in sorted(used(plan)) if _is_folder(plan.models[name])
    }
    found = {name: model for name, model in opened.items() if model is not None}
    return locate(opener.faults + check_positions(plan, found), plan.origin)


def _is_folder(model: Model) -> bool:
    alone = model.made is None and model.on is None and not is_plan(model)
    return alone and is_local(model.source) and not is_at_url(model.source)


def refuse_absent_texts(plan: Plan) -> None:
    """Raise PlanError (C801) where a text of a bridge or of healing is no file; none is read."""
    if absent := _absent(plan, _learned(plan)):
        raise PlanError(absent)


def absent_files(plan: Plan, *, whole: bool = True) -> list[Fault]:
    """A fault for each of these, and for what objectives and requirements of a search read.

    Where the plan isn't `whole`, what it drops may stand in what was not read.
    """
    return _absent(plan, [*_learned(plan, whole=whole), *_judged(plan)])


def _absent(plan: Plan, texts: Iterable[tuple[Place, Path]]) -> list[Fault]:
    found = []
    seen: set[Path] = set()
    for at, path in texts:
        if path in seen or path.is_file():
            continue
        seen.add(path)
        why = "is no file" if path.exists() else "can't be read: No such file or directory"
        found.append(Fault("C801", f"the text {why} ({path})", at))
    return locate(found, plan.origin)


def _learned(plan: Plan, *, whole: bool = True) -> Iterator[tuple[Place, Path]]:
    """The texts that are read; not those of a bridge without a gap, or of nothing to heal."""
    dropping = not whole or bool(plan.drops) or any(True for _ in drops_by_choice(plan))
    for i, bridge in enumerate(plan.bridges):
        if bridge.on and dropping:
            yield ("bridges", i, "on"), folder_of(plan, bridge.on)
    if plan.heal is not None and plan.heal.on and (not whole or may_be_healed(plan)):
        yield ("heal", "on"), folder_of(plan, plan.heal.on)


def _judged(plan: Plan) -> Iterator[tuple[Place, Path]]:
    folder = plan.origin.folder if plan.origin else Path()
    search, wishes = plan.search, list[tuple[str, int, Objective | Requirement]]()
    if search is not None:
        wishes += [("objectives", i, one) for i, one in enumerate(search.objectives)]
        wishes += [("requires", i, one) for i, one in enumerate(search.requires)]
    for name, i, wish in wishes:
        spec = OBJECTIVES.get(wish.name)
        for argument in spec.arguments if spec is not None else ():
            file = wish.arguments.get(argument.name)
            if argument.kind == "path" and isinstance(file, str) and file:
                yield ("search", name, i), folder / expanded(file)
