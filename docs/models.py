"""Paste a table into docs/models.md: causal language models of transformers.

python docs/models.py            # paste
python docs/models.py --check    # end with 1 if the page isn't current

The page uses the tables that `tests/checkpoint/families` tests. These tests also compare the layers
of each family with transformers, and find missing types.
"""

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from docs.generated import write_or_check  # noqa: E402 (after the path)

PAGE = Path(__file__).with_suffix(".md")


def pasted(text: str, name: str, table: str) -> str:
    """Return the page with a table between the markers of its name."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not (begin and end):
        sys.exit(f"{PAGE.name} has no place for the {name}")
    return f"{before}{begin}{table}{end}{after}"


def types() -> str:
    """Return the number of all types, and a table of the types without a family."""
    from transformers import __version__
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES,
    )

    from gptailor.checkpoint.families import FAMILY_OF
    from gptailor.checkpoint.families.refused import REFUSED
    from gptailor.checkpoint.families.vision import WRAPPERS

    families = [name for name in NAMES if name in FAMILY_OF]
    towers = [name for name in NAMES if name in WRAPPERS]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name in NAMES:
        if name not in FAMILY_OF and name not in WRAPPERS:
            why = REFUSED.get(
                name, "it stores its language model beside other models, in its own form"
            )
            reasons[why].append(name)
    rows = sorted(reasons.items(), key=lambda row: (-len(row[1]), row[1]))
    lines = [
        f"There are {len(NAMES)} types of transformers {'.'.join(__version__.split('.')[:2])} "
        f"in this list. {len(families)} have a family. {len(towers)} are cut by the layers of "
        f"their language model. {len(NAMES) - len(families) - len(towers)} are refused:",
        "",
        "| refused | reason |",
        "|---|---|",
        *(f"| {', '.join(f'`{name}`' for name in names)} | {why} |" for why, names in rows),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    write_or_check(PAGE, lambda text: pasted(text, "types", types()))
