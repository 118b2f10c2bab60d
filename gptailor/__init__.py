"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check` it, `compile` it into a model
folder, `lock` it, `verify` such a folder, `format` it, `stitch` it into a live model, `judge` it.
Names are imported when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gptailor.version import VERSION

if TYPE_CHECKING:
    from gptailor.build.compile import Written, check, compile, format, load, loads, lock, verify
    from gptailor.build.lock import Lock
    from gptailor.build.verify import Verified
    from gptailor.evaluate.judge import judge
    from gptailor.evaluate.live.stitch import stitch
    from gptailor.evaluate.outcome import Judgement
    from gptailor.plan.faults import Fault, PlanError, TailorError
    from gptailor.plan.plan import Plan

__version__ = VERSION

_HOMES = {
    "Fault": "gptailor.plan.faults",
    "Judgement": "gptailor.evaluate.outcome",
    "Lock": "gptailor.build.lock",
    "Plan": "gptailor.plan.plan",
    "PlanError": "gptailor.plan.faults",
    "TailorError": "gptailor.plan.faults",
    "Verified": "gptailor.build.verify",
    "Written": "gptailor.build.compile",
    "check": "gptailor.build.compile",
    "compile": "gptailor.build.compile",
    "format": "gptailor.build.compile",
    "judge": "gptailor.evaluate.judge",
    "load": "gptailor.build.compile",
    "loads": "gptailor.build.compile",
    "lock": "gptailor.build.compile",
    "stitch": "gptailor.evaluate.live.stitch",
    "verify": "gptailor.build.compile",
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
