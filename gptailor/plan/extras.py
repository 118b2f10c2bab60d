"""What the light install leaves out: packages that an extra brings, and what is said without one.

`pip install 'gptailor[torch]'` installs what is missing wherever gptailor itself came from: pip
keeps the gptailor that is there already.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import final

from gptailor.plan.faults import TailorError, listed

EXTRAS = {
    "torch": ("torch", "transformers"),
    "search": ("torch", "transformers", "jax", "optax", "optuna"),
    "eval": ("torch", "transformers", "lm_eval"),
    "gguf": ("torch", "transformers", "gguf"),
    "report": ("altair", "vl_convert"),
    "lsp": ("pygls", "lsprotocol"),
    "ray": ("ray",),
    "cluster": ("ray", "fsspec"),
}
"""The modules that each extra is for."""

_BESIDE = {"jaxtyping": "torch", "numpy": "torch", "safetensors": "torch", "sentencepiece": "gguf"}
"""Modules that an extra brings as well."""

DISTRIBUTIONS = {"lm_eval": "lm-eval", "vl_convert": "vl-convert-python"}
"""Packages that aren't called as their modules are."""


@final
class MissingPackageError(TailorError):
    """A package isn't installed that an extra of gptailor brings."""

    def __init__(self, modules: Sequence[str], extra: str, what: str) -> None:
        names = listed(DISTRIBUTIONS.get(module, module) for module in modules)
        super().__init__(f"{what} needs {names}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """`pip install 'gptailor[torch]'`."""
    return f"pip install 'gptailor[{extra}]'"


def require(extra: str, what: str = "this") -> None:
    """Raise MissingPackageError unless an extra's packages are installed; nothing is imported."""
    if missing := [module for module in EXTRAS[extra] if find_spec(module) is None]:
        raise MissingPackageError(missing, extra, what)


def missing_package(error: ModuleNotFoundError, what: str = "this") -> MissingPackageError | None:
    """What is to be said of a failed import; None where no extra brings the module."""
    module = (error.name or "").partition(".")[0]
    extras = (extra for extra, modules in EXTRAS.items() if module in modules)
    extra = next(extras, _BESIDE.get(module))
    return None if extra is None else MissingPackageError([module], extra, what)


@contextmanager
def packages_needed(what: str = "this") -> Iterator[None]:
    """Raise MissingPackageError where an import fails for want of a package of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, what)) is not None:
            raise missing from error
        raise
