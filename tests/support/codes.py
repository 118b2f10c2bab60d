"""The codes of faults that stand in the sources."""

import ast
import re
from functools import cache
from pathlib import Path

import gptailor


def codes_of(path: Path) -> set[str]:
    """All texts in a module that have the shape of a code, but for those in documentation."""
    text = path.read_text(encoding="utf-8")
    if not re.search(r"[SPMC]\d{3}", text):  # most have no code, and parsing takes its time
        return set()
    return {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[SPMC]\d{3}", node.value)
    }


@cache
def all_codes() -> frozenset[str]:
    """The codes in the whole package."""
    return frozenset().union(*map(codes_of, Path(gptailor.__file__).parent.rglob("*.py")))


def plan_codes() -> set[str]:
    """The codes of plans, not of checkpoint files."""
    return {code for code in all_codes() if code[0] != "C"}
