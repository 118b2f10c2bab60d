"""Count the causal language models of transformers in docs/models.md.

python docs/models.py            # paste
python docs/models.py --check    # end with 1 if the page isn't current

The page uses the tables that `tests/checkpoint/families` tests. These tests also compare the layers
of each family with transformers, and find missing types.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from docs.generated import write_or_check  # noqa: E402 (after the path)

PAGE = Path(__file__).with_suffix(".md")


def pasted(text: str, name: str, table: str) -> str:
    """Return the page with a text between the markers of its name."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not (begin and end):
        sys.exit(f"{PAGE.name} has no place for the {name}")
    return f"{before}{begin}{table}{end}{after}"


def types() -> str:
    """Return the number of all types, and of the types with and without a family."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES,
    )

    from gptailor.checkpoint.families import FAMILY_OF
    from gptailor.checkpoint.families.vision import WRAPPERS

    families = [name for name in NAMES if name in FAMILY_OF]
    towers = [name for name in NAMES if name in WRAPPERS]
    refused = {*NAMES} - {*FAMILY_OF} - {*WRAPPERS}
    version = ".".join(__version__.split(".")[:2])
    return (
        f"There are {len(NAMES)} types of transformers {version} with a causal language model. "
        f"{len(families)} have a family. {len(towers)} are cut by the layers of their language "
        f"model. The other {len(refused)} are refused, with a message that has the reason.\n\n"
    )


if __name__ == "__main__":
    write_or_check(PAGE, lambda text: pasted(text, "types", types()))
