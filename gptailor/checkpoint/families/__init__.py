"""Architectures as data: `FAMILY_OF` reads the file of a model type, `gptailor/families/TYPE.json`.

The truth is in transformers' `models/*/modeling_*.py` and in the checkpoints on the Hub;
`tests/checkpoint/families/test_families.py` compares each file with it. Other packages use
`compatibility`, `family`, `family_file`, `layer_config`, `layout`, `quantised` and
`vision`.
"""

import json
import os
from collections import UserDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from gptailor.checkpoint.families.family import Family

FOLDER = Path(__file__).parents[2] / "families"
"""The files of the release's families."""


@final
class _Families(UserDict[str, Any]):
    """Families by model type; a file is read once its family is needed."""

    def __getitem__(self, model_type: str) -> "Family":
        if self.data[model_type] is None:
            from gptailor.checkpoint.families.family import Family  # it reads no file

            document = json.loads((FOLDER / f"{model_type}.json").read_bytes())
            self.data[model_type] = Family.trusted(document)
        family: Family = self.data[model_type]
        return family


FAMILY_OF: Mapping[str, "Family"] = _Families(
    {name.removesuffix(".json"): None for name in sorted(os.listdir(FOLDER))}  # noqa: PTH208 (faster)
)
"""By the `model_type` of a configuration."""

__all__ = [
    "compatibility",
    "family",
    "family_file",
    "layer_config",
    "layer_rules",
    "layout",
    "mixture",
    "quantised",
    "vision",
    "width",
]
