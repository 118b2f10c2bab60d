"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check` it, `compile` it into a model
folder, `lock` it, `verify` such a folder, `format` it, `stitch` it into a live model, `judge` it.
Names are imported when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gptailor.version import VERSION

if TYPE_CHECKING:
    from gptailor.api import Written, check, compile, format, load, loads, lock, verify
    from gptailor.checkpoint.lock import Lock
    from gptailor.diagnostics import Fault, PlanError, TailorError
    from gptailor.evaluate.judgement import Judgement
    from gptailor.evaluate.judging import judge
    from gptailor.evaluate.stitch import stitch
    from gptailor.plan import Plan
    from gptailor.verifying import Verified

__version__ = VERSION

_HOMES = {
    "Fault": "gptailor.diagnostics",
    "Judgement": "gptailor.evaluate.judgement",
    "Lock": "gptailor.checkpoint.lock",
    "Plan": "gptailor.plan",
    "PlanError": "gptailor.diagnostics",
    "TailorError": "gptailor.diagnostics",
    "Verified": "gptailor.verifying",
    "Written": "gptailor.api",
    "check": "gptailor.api",
    "compile": "gptailor.api",
    "format": "gptailor.api",
    "judge": "gptailor.evaluate.judging",
    "load": "gptailor.api",
    "loads": "gptailor.api",
    "lock": "gptailor.api",
    "stitch": "gptailor.evaluate.stitch",
    "verify": "gptailor.api",
}

__all__ = [
    "Fault",
    "Judgement",
    "Lock",
    "Plan",
    "PlanError",
    "TailorError",
    "Verified",
    "Written",
    "__version__",
    "check",
    "compile",
    "format",
    "judge",
    "load",
    "loads",
    "lock",
    "stitch",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gptailor' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
