"""Architectures as data: `FAMILY_OF` reads the file of a model type, `gptailor/families/TYPE.json`.

The truth is in transformers' `models/*/modeling_*.py` and in the checkpoints on the Hub;
`tests/checkpoint/families/test_families.py` compares each file with it. Other packages use
`compatibility`, `family`, `family_file`, `layer_config`, `layout`, `lookup`, `quantised` and
`vision`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from gptailor.checkpoint.families.family import Family

FOLDER = Path(__file__).parents[2] / "families"
"""The files of the release's families."""


@final
class _Families(Mapping[str, "Family"]):
    """Families by model type; a file is read once its family is needed."""

    @cached_property
    def _types(self) -> dict[str, None]:
        names = sorted(os.listdir(FOLDER))  # noqa: PTH208 (faster)
        return {name.removesuffix(".json"): None for name in names}

    def __getitem__(self, model_type: str) -> "Family":
        if model_type not in self._types:
            raise KeyError(model_type)
        return _released(model_type)

    def __contains__(self, model_type: object) -> bool:
        return model_type in self._types

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)


@cache
def _released(model_type: str) -> "Family":
    from gptailor.checkpoint.families.family import Family  # it reads no file

    return Family.trusted(json.loads((FOLDER / f"{model_type}.json").read_bytes()))


FAMILY_OF: Mapping[str, "Family"] = _Families()
"""By the `model_type` of a configuration."""

__all__ = [
    "compatibility",
    "family",
    "family_file",
    "layer_config",
    "layer_rules",
    "layout",
    "lookup",
    "mixture",
    "quantised",
    "vision",
    "width",
]
