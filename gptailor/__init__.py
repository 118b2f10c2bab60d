"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check` it, `compile` it into a model
folder, `lock` it, `verify` and `publish` such a folder, `format` it, `stitch` it into a live model,
`judge` it, `search` for what an open plan leaves open, `teach` others by its predictions,
`import_mergekit` and `export_mergekit`; and `merge` for tensors that are in memory. Names are
imported when they are first used, so that importing the package costs nothing; `__init__.pyi` tells
type checkers what they are.
"""

import importlib
from typing import Any

_HOMES = {
    "ComputeOptions": "build.compile",
    "GeneratedText": "evaluate.answers",
    "Extracted": "build.extract",
    "Fault": "plan.faults",
    "Flags": "search.settings",
    "LayerMap": "views.show",
    "Report": "views.report",
    "Judgement": "evaluate.scores",
    "Lock": "build.lock",
    "Plan": "plan.plan",
    "PlanError": "plan.faults",
    "Publication": "build.publish",
    "Resources": "search.settings",
    "Searched": "search.results",
    "TailorError": "plan.faults",
    "Verified": "build.verification",
    "Written": "build.compile",
    "WrittenPredictions": "evaluate.heal.teach",
    "check": "prepare",
    "diff": "views.show",
    "generate": "evaluate.answers",
    "show": "views.show",
    "compile": "build.compile",
    "export_mergekit": "convert.mergekit.exporter",
    "extract_lora": "build.extract",
    "format": "lang.format",
    "import_mergekit": "convert.mergekit.importer",
    "judge": "evaluate.judge",
    "load": "lang.parse",
    "loads": "lang.parse",
    "lock": "build.lock_recording",
    "merge": "build.state_dicts",
    "publish": "build.publish",
    "search": "search",  # the package, which may be called as its verb
    "stitch": "evaluate.repair",
    "teach": "evaluate.heal.teach",
    "verify": "build.verify",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 (`__getattr__` gives them)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'gptailor' has no attribute '{name}'")
    from gptailor.plan.optional_packages import packages_needed  # first used late

    with packages_needed(f"gptailor.{name}"):
        home = importlib.import_module(f"gptailor.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """Return the version in a checkout's `pyproject.toml`, else that of the installed package."""
    from importlib.metadata import version  # slower than all else here
    from pathlib import Path

    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        return version("gptailor")
    import tomllib

    declared: str = tomllib.loads(project.read_text("utf-8"))["project"]["version"]
    return declared
