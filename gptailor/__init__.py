"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check`, `show` and `diff` it, `compile` it
into a model folder, `lock`, `verify` and `publish` such a folder, `format` a plan, `stitch` it into
a live model, `evaluate` it, `evaluate_expectations` of it, let it `generate`, `search` for what an
open plan leaves open, `shrink` a model to a goal, `report` about a search or a plan, `teach` others
by its predictions, `import_mergekit` and `export_mergekit`; and `merge` for tensors that are in
memory. `merge_method`,
`objective` and `strategy` register your own. Names are
imported when they are first used, so that importing the package costs nothing; `__init__.pyi` tells
type checkers their types.
"""

import importlib
from typing import Any

_HOMES = {
    "CalibrationError": "checkpoint.datasets",
    "CardFacts": "plugins.publish.publish",
    "CheckpointError": "checkpoint.files",
    "CompileResult": "output.compile",
    "ComputeOptions": "output.compile",
    "ConversionError": "lang.importers",
    "ConversionWarning": "plugins.mergekit.importer",
    "EvaluationResult": "evaluation.result",
    "ExpectationResult": "plugins.expect.results",
    "ExtractResult": "plugins.lora.extract",
    "Fault": "plan.faults",
    "Flags": "searching.settings",
    "GeneratedText": "evaluation.generate",
    "LayerMap": "reporting.show",
    "Lock": "output.lock",
    "MissingPackageError": "plan.optional_packages",
    "Plan": "plan.plan",
    "Parameter": "plan.registry",
    "GapFit": "evaluation.fits.bridge.gap_fit",
    "PlanError": "plan.faults",
    "PublishResult": "plugins.publish.publish",
    "ReportResult": "plugins.report.report",
    "Resources": "searching.settings",
    "SearchError": "searching.settings",
    "SearchResult": "searching.results",
    "ShrinkResult": "plugins.shrink.results",
    "Strategy": "searching.strategies.strategy",
    "TailorError": "plan.faults",
    "TeachResult": "plugins.teach.teach",
    "VerifyResult": "output.verify",
    "WishError": "searching.settings",
    "check": "prepare",
    "compile": "output.compile",
    "diff": "plugins.diff.compare",
    "evaluate": "evaluation.evaluate",
    "evaluate_expectations": "plugins.expect.expectations",
    "export_mergekit": "plugins.mergekit.exporter",
    "extract_lora": "plugins.lora.extract",
    "format": "lang.format",
    "generate": "evaluation.generate",
    "import_mergekit": "plugins.mergekit.importer",
    "load": "lang.parse",
    "loads": "lang.parse",
    "lock": "output.compile",
    "merge": "plugins.state_dicts.merge",
    "merge_method": "extend",
    "objective": "extend",
    "publish": "plugins.publish.publish",
    "report": "plugins.report.report",
    "search": "searching.search",
    "show": "reporting.show",
    "shrink": "plugins.shrink.shrink",
    "stitch": "evaluation.fits.repair",
    "strategy": "extend",
    "teach": "plugins.teach.teach",
    "verify": "output.verify",
}

_FORMER = {  # names of release 0.2
    "Extracted": ": it is named ExtractResult",
    "Judgement": ": it is named EvaluationResult",
    "Verified": ": it is named VerifyResult",
    "Written": ": it is named CompileResult",
    "judge": ": it is named evaluate",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 (`__getattr__` gives them)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return globals().setdefault(name, _version())  # found there from now on
    if name not in _HOMES:
        raise AttributeError(f"module 'gptailor' has no attribute '{name}'{_FORMER.get(name, '')}")
    from gptailor.plan.arguments import checked  # first used late
    from gptailor.plan.optional_packages import packages_needed, require

    if name == "search":
        require("search", "gptailor.search")  # names all that is missing
    home = f"gptailor.{_HOMES[name]}"
    try:
        with packages_needed(f"gptailor.{name}"):
            module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if not home.startswith(f"{error.name}."):
            raise
        plugin = home.split(".")[2]
        raise AttributeError(f"gptailor.{name} needs the plugin '{plugin}': install it") from None
    found = getattr(module, name)
    if isinstance(found, type):
        return found
    verb = checked(found)
    verb.__module__ = __name__  # where pickle finds it
    return globals().setdefault(name, verb)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    """Return the version in a checkout's `pyproject.toml`, else the installed package's version."""
    from importlib.metadata import version  # slower than all else here
    from pathlib import Path

    project = Path(__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        return version("gptailor")
    import tomllib

    declared: str = tomllib.loads(project.read_text("utf-8"))["project"]["version"]
    return declared
