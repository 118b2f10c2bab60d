"""Close an open plan's choices by trials. Calling the package calls the verb `search.search`.

So `gptailor.search(plan, run)` stands beside the other verbs, though the package has that name.
"""

import sys
from types import ModuleType
from typing import Any, final

__all__ = [
    "object_storage",
    "pick",
    "results",
    "run",
    "run_files",
    "run_report",
    "search",
    "settings",
    "space",
]


@final
class _Verb(ModuleType):
    """A callable module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from gptailor.plan.optional_packages import require  # importing the package is free

        require("search", "a search")
        from gptailor.search.search import search  # imports JAX

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
