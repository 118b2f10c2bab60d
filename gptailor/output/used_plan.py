"""The plan beside an output, its paths as seen from there, and that on its card, without paths."""

import os
from collections.abc import Callable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from gptailor.checkpoint.families import vision
from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened, folder_of, is_local, is_remote
from gptailor.evaluation.tokenizer_files import template_file
from gptailor.lang.format import format_file, format_plan
from gptailor.plan.faults import Origin
from gptailor.plan.plan import Model, Plan, is_at_url
from gptailor.plan.search_block import with_file
from gptailor.prepare import Prepared, all_declared, declaring


def used_plan_text(prepared: Prepared, place: Path) -> str:
    """Return the plan as it was used, with its comments, its paths as seen from a folder."""
    return commented_text(used_plan(prepared, place), prepared.plan.origin)


def commented_text(plan: Plan, origin: Origin | None) -> str:
    """Return the text of a plan with the comments of the text that it was read from."""
    commented = origin.tree if origin is not None else None
    return format_plan(plan) if commented is None else format_file(commented, plan)


def used_plan(prepared: Prepared, target: Path | None) -> Plan:
    """Return the plan with the used models and dtype, its paths as seen from the target.

    The search is left out: nothing is left to choose. Without a target the paths are absolute. A
    dtype that would change the configuration, because
    the base's is silent or says another, is left out unless the plan names it.
    """
    plan = plan_seen_from(prepared.plan, prepared.models, prepared.commits, target)
    plan = plan.model_copy(update={"search": None})
    dtype, config = prepared.dtype, prepared.compiled.config
    if dtype is None or vision.with_dtype(config, dtype) != config:
        return plan
    return plan.model_copy(update={"dtype": dtype})


def plan_seen_from(
    plan: Plan, opened: Mapping[str, Opened], commits: Mapping[str, str], target: Path | None
) -> Plan:
    """Return a plan, open or closed, with the opened models, its paths as seen from the target."""
    models = {name: _seen_from(plan, opened, commits, name, target) for name in plan.models}
    return _renamed(
        plan,
        models,
        lambda file: path_from(target, _place(plan, file)),
        lambda file: _source(target, _place(plan, file)),
    )


def without_paths(plan: Plan, ids: Mapping[str, str]) -> Plan:
    """Return a plan with names in place of this machine's paths; `ids` are names of models.

    Any other name is the last part of its path, with a number before it if another path has it too.
    A search, which has paths as written, is left out.
    """
    names: dict[str, str] = {}

    def name_of(path: str) -> str:
        written = path_from(None, _place(plan, path))
        if written not in names:
            last, taken = Path(written).name, set(names.values())
            possible = chain([last], (f"{number}-{last}" for number in count(2)))
            names[written] = next(name for name in possible if name not in taken)
        return names[written]

    models = {
        name: model
        if is_remote(model) or model.made is not None or is_at_url(model.source)
        else model.model_copy(update={"source": ids.get(name) or f"./{name_of(model.source)}"})
        for name, model in plan.models.items()
    }
    plan = plan.model_copy(update={"search": None})
    return _renamed(plan, models, name_of, lambda file: f"./{name_of(file)}")


def _renamed(
    plan: Plan,
    models: Mapping[str, Model],
    name_of: Callable[[str], str],
    template_of: Callable[[str], str],
) -> Plan:
    """Return a plan with other declarations of its models, and other names of its files."""
    used: dict[str, Any] = {
        "models": models,
        "expects": tuple(with_file(entry, name_of) for entry in plan.expects),
    }
    if template_file(plan) is not None:
        used["chat_template"] = template_of(str(plan.chat_template))
    return plan.with_calibration_texts(name_of).model_copy(update=used)


def used_models(prepared: Prepared, target: Path | None) -> dict[str, Model]:
    """Return the used models as seen from the target; an inner plan's are named `deep.math`.

    Without a target the paths are absolute.
    """
    names = all_declared(prepared.plan.models, prepared.models)
    plan, opened, commits = prepared.plan, prepared.models, prepared.commits
    return {name: _seen_from(plan, opened, commits, name, target) for name in names}


def _seen_from(
    outermost: Plan,
    opened: Mapping[str, Opened],
    commits: Mapping[str, str],
    name: str,
    target: Path | None,
) -> Model:
    """Return a model's declaration for the target: paths from there, revisions resolved."""
    plan, _, short = declaring(outermost, opened, name)
    model = plan.models[short]
    if model.made is not None or is_at_url(model.source):
        return model
    if not is_local(model.source):
        commit = commits.get(name, model.revision)
        return model.model_copy(update={"revision": commit})
    return model.model_copy(update={"source": _source(target, _place(plan, model.source))})


def _source(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target, in the form that a plan has for local paths."""
    shown = path_from(target, path)
    return shown if shown.startswith((".", "/")) else f"./{shown}"


def path_from(target: Path | None, path: Path) -> str:
    """Return a path as seen from the target; the absolute path without a target. Links stay."""
    written = Path(os.sep)
    for part in path.absolute().parts[1:]:
        # `..` after a link is the parent of the folder that the link leads to
        before = written.resolve() if part == ".." and written.is_symlink() else written
        written = before.parent if part == ".." else before / part
    return str(written) if target is None else os.path.relpath(written, target.resolve())


def _place(plan: Plan, file: str) -> Path:
    """Return the path that a plan names, from the plan's folder without links."""
    return folder_of(plan, ".").resolve() / expanded(file)
