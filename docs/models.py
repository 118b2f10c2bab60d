"""Every causal language model of transformers and what becomes of it, pasted into docs/models.md.

python docs/models.py            # paste
python docs/models.py --check    # end with 1 if the page isn't current

That a family's layers compute what they should, and that no type is missing, is what
`tests/checkpoint/families` holds; this page is made of the same tables.
"""

import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- types -->\n", "<!-- end of types -->\n"


def main() -> None:
    """Paste, or check."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{PAGE.name} has no place for the types")
    current = f"{before}{begin}{types()}{end}{after}"
    if "--check" in sys.argv[1:]:
        sys.exit(int(text != current))
    PAGE.write_text(current, encoding="utf-8")


def types() -> str:
    """A count of all types, and a table of those that are no family."""
    from transformers import __version__  # noqa: PLC0415 (seconds)
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 (seconds)
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES,
    )

    from gptailor.checkpoint.families import FAMILY_OF  # noqa: PLC0415
    from gptailor.checkpoint.families.refused import REFUSED  # noqa: PLC0415
    from gptailor.checkpoint.families.vision import WRAPPERS  # noqa: PLC0415

    families = [name for name in NAMES if name in FAMILY_OF]
    towers = [name for name in NAMES if name in WRAPPERS]
    reasons: dict[str, list[str]] = defaultdict(list)
    for name in NAMES:
        if name not in FAMILY_OF and name not in WRAPPERS:
            why = REFUSED.get(
                name, "it keeps its language model beside others, in a way of its own"
            )
            reasons[why].append(name)
    rows = sorted(reasons.items(), key=lambda row: (-len(row[1]), row[1]))
    lines = [
        f"Of {len(NAMES)} types of transformers {'.'.join(__version__.split('.')[:2])} "
        f"{len(families)} are families, {len(towers)} are cut by their "
        f"language model's layers, and {len(NAMES) - len(families) - len(towers)} are refused:",
        "",
        "| refused | because |",
        "|---|---|",
        *(f"| {', '.join(f'`{name}`' for name in names)} | {why} |" for why, names in rows),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
