"""Packages that the light install leaves out, the extras that bring them, and the message without
them.

`pip install 'gptailor[torch]'` installs the missing packages wherever gptailor itself came from:
pip keeps the installed gptailor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import final

from gptailor.plan.faults import TailorError, listed

EXTRAS = {
    "torch": ("torch", "transformers"),
    "search": ("torch", "transformers", "jax", "optax"),
    "optuna": ("optuna",),
    "eval": ("torch", "transformers", "lm_eval"),
    "parquet": ("torch", "transformers", "pyarrow"),
    "gguf": ("torch", "transformers", "gguf"),
    "report": ("altair", "vl_convert"),
    "lsp": ("pygls", "lsprotocol"),
    "pandas": ("pandas",),
    "ray": ("ray",),
    "cluster": ("ray", "fsspec"),
}
"""Modules that each extra brings and its commands need."""

_BESIDE = {
    "array_api_compat": "torch", "safetensors": "torch", "tokenizers": "torch",
    "sentencepiece": "gguf",
}  # fmt: skip
"""Further modules of an extra."""

DISTRIBUTIONS = {"lm_eval": "lm-eval", "vl_convert": "vl-convert-python"}
"""Names of packages that differ from their modules' names."""


@final
class MissingPackageError(TailorError):
    """A package of an extra that is not installed."""

    def __init__(self, modules: Sequence[str], extra: str, what: str) -> None:
        names = listed(DISTRIBUTIONS.get(module, module) for module in modules)
        super().__init__(f"{what} needs {names}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra, `pip install 'gptailor[torch]'`."""
    return f"pip install 'gptailor[{extra}]'"


def require(extra: str, what: str = "this") -> None:
    """Raise MissingPackageError unless an extra's packages are installed; nothing is imported."""
    if missing := _missing(extra):
        raise MissingPackageError(missing, extra, what)


def installed(extra: str) -> bool:
    """Return whether an extra's packages are installed; nothing is imported."""
    return not _missing(extra)


def _missing(extra: str) -> list[str]:
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def missing_package(error: ModuleNotFoundError, what: str = "this") -> MissingPackageError | None:
    """Return the error for a failed import, or None if no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    extras = (extra for extra, modules in EXTRAS.items() if module in modules)
    extra = next(extras, _BESIDE.get(module))
    return None if extra is None else MissingPackageError([module], extra, what)


@contextmanager
def packages_needed(what: str = "this") -> Iterator[None]:
    """Raise MissingPackageError for a failed import of a module that an extra brings."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, what)) is not None:
            raise missing from error
        raise
