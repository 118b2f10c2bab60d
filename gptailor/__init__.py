"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check` it, `compile` it into a model
folder, `format` it. Names are imported when they are first used, so that importing the package
costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptailor.api import Written, check, compile, format, load, loads
    from gptailor.diagnostics import Fault, PlanError, TailorError
    from gptailor.plan import Plan

__version__ = "0.1.0"

_HOMES = {
    "Fault": "gptailor.diagnostics",
    "Plan": "gptailor.plan",
    "PlanError": "gptailor.diagnostics",
    "TailorError": "gptailor.diagnostics",
    "Written": "gptailor.api",
    "check": "gptailor.api",
    "compile": "gptailor.api",
    "format": "gptailor.api",
    "load": "gptailor.api",
    "loads": "gptailor.api",
}

__all__ = [
    "Fault",
    "Plan",
    "PlanError",
    "TailorError",
    "Written",
    "__version__",
    "check",
    "compile",
    "format",
    "load",
    "loads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gptailor' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
