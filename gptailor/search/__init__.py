"""An open plan's choices closed by trials; called, the package is the verb `search.search`.

So `gptailor.search(plan, run)` stands beside the other verbs, though the package has that name.
"""

import sys
from types import ModuleType
from typing import Any, final

__all__ = [
    "object_storage",
    "pick",
    "run",
    "run_files",
    "run_report",
    "search",
    "settings",
    "space",
]


@final
class _Verb(ModuleType):
    """A module that may be called."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        from gptailor.plan.optional_packages import require  # importing the package is free

        require("search", "a search")
        from gptailor.search.search import search  # imports JAX

        return search(*given, **named)


sys.modules[__name__].__class__ = _Verb
