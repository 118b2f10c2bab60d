"""gptailor: a declarative plan compiler for language models.

The verbs of the command line, in Python: `load` a plan, `check` it, `compile` it into a model
folder, `lock` it, `verify` such a folder, `format` it, `stitch` it into a live model, `judge` it.
Names are imported when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gptailor.version import VERSION

if TYPE_CHECKING:
    from gptailor.build.compile import Written, compile
    from gptailor.build.lock import Lock
    from gptailor.build.record import lock
    from gptailor.build.verify import Verified, verify
    from gptailor.evaluate.judge import judge
    from gptailor.evaluate.live.stitch import stitch
    from gptailor.evaluate.outcome import Judgement
    from gptailor.lang.format import format
    from gptailor.lang.parse import load, loads
    from gptailor.plan.faults import Fault, PlanError, TailorError
    from gptailor.plan.plan import Plan
    from gptailor.prepare import check

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
    "check": "gptailor.prepare",
    "compile": "gptailor.build.compile",
    "format": "gptailor.lang.format",
    "judge": "gptailor.evaluate.judge",
    "load": "gptailor.lang.parse",
    "loads": "gptailor.lang.parse",
    "lock": "gptailor.build.record",
    "stitch": "gptailor.evaluate.live.stitch",
    "verify": "gptailor.build.verify",
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
