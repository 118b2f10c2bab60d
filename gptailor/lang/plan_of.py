"""The plan that an argument names: a text, a compiled folder or GGUF file, a model, or a Hub id."""

import re
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, expanded, is_gguf
from gptailor.checkpoint.folder import CONFIG
from gptailor.checkpoint.formats.gguf.header import PLAN_KEY, read_gguf
from gptailor.lang.parse import load, loads
from gptailor.plan.faults import PLAN_FILE, SEARCH_SETTINGS, PlanError, PlanFolderError
from gptailor.plan.plan import Model, Plan

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

ReadTarget = tuple[str, Plan, Plan | None]
"""A name, its plan, and the plan that compiled it."""


def read_target(target: str | Path | Plan) -> ReadTarget:
    """Return a target's name, its plan, and the plan that compiled it if it is a model.

    A model that no plan compiled has its own plan instead. Raises PlanFolderError for the folder of
    a search, and the errors of `load`.
    """
    if isinstance(target, Plan):
        return target_name(target), target, None
    name, path = str(target), expanded(target)
    if "\n" in name:  # a plan's text, which is too long for a path
        return name, load(name), None
    if (path / SEARCH_SETTINGS).is_file() and not (path / CONFIG).exists():
        raise PlanFolderError(path)
    if path.is_dir() or (path.is_file() and is_gguf(path)):
        plan = model_plan(str(path.absolute()))
        try:
            place = path.resolve() if path.is_symlink() else path  # its plan's paths start there
            return name, plan, load(place / PLAN_FILE) if path.is_dir() else _plan_in(place)
        except (OSError, CheckpointError, PlanError):  # not compiled, or its plan can't be read
            return name, plan, plan
    if not path.exists() and HUB_ID.fullmatch(name) and path.suffix not in (".tailor", ".json"):
        plan = model_plan(name)
        return name, plan, plan
    return name, load(path), None


def _plan_in(file: Path) -> Plan:
    """Return the plan in the metadata of a GGUF file. Raises as `read_gguf` and `loads` do."""
    return loads(str(read_gguf(file).facts.get(PLAN_KEY, "")), str(file), file.parent)


def plan_of(target: str | Path | Plan) -> tuple[str, Plan]:
    """Return a target's name and its plan; for a compiled model, the plan that made it.

    Raises the errors of `load`.
    """
    name, plan, origin = read_target(target)
    return name, plan if origin is None else origin


def target_name(target: str | Plan) -> str:
    """Return a target's name in tables; a plan has the name of its text."""
    if isinstance(target, str):
        return target
    return target.origin.source.label if target.origin else "<plan>"


def model_plan(source: str) -> Plan:
    """Return the plan of an unchanged model."""
    return Plan(models={"base": Model(source=source)})
