"""Collect gptailor's messages from its sources into docs/messages.md.

python docs/messages.py            # paste
python docs/messages.py --check    # end with 1 if the page isn't current
"""

import ast
import html
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docs.generated import write_or_check
from gptailor.plan.fault_pages import fault_pages

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "messages.md"
BLOCK = re.compile(r"(<!-- messages: (\w+) -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)
CODE = re.compile(r"[SPMC]\d{3}")
WITHOUT_CODE = (
    "TailorError",
    "ClusterError",
    "ConversionError",
    "MissingPackageError",
    "MethodError",
    "ObjectiveError",
    "RenameError",
    "SearchError",
    "SpaceError",
    "StrategyError",
    "WishError",
)
"""Classes of errors without a code."""


class Said(NamedTuple):
    """A message with `…` for each variable part, and its code if it has one."""

    text: str
    code: str


def pasted(page: str) -> str:
    """Return the page with the current messages of the sources between its markers."""
    said = _all_messages()
    tables = {
        "coded": [_row(one) for one in sorted(said, key=lambda one: (one.code, one)) if one.code],
        "uncoded": [f"| {_cell(one.text)} |" for one in said if not one.code],
    }
    heads = {
        "coded": "| message | code |\n|---|---|\n",
        "uncoded": "| message |\n|---|\n",
    }

    def filled(found: re.Match[str]) -> str:
        return f"{found[1]}{heads[found[2]]}" + "\n".join(tables[found[2]]) + f"\n{found[3]}"

    return BLOCK.sub(filled, page)


def _all_messages() -> list[Said]:
    """Return each message once, sorted by its text.

    A code without a message in the sources has its title in docs/faults.md.
    """
    found = {message for path in sources() for message in messages(path)}
    known = {message.code for message in found}
    found |= {Said(title, code) for code, title in titles().items() if code not in known}
    return sorted(found)


def titles() -> dict[str, str]:
    """Return the title of each code in docs/faults.md, from its heading or its row of a table."""
    return {
        code: re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", page.title)
        for code, page in fault_pages().items()
    }


def sources() -> list[Path]:
    """Return the source files of the package."""
    return sorted((ROOT / "gptailor").rglob("*.py"))


def messages(path: Path) -> Iterator[Said]:
    """Yield the messages of a file: calls with a code, and errors without one."""
    text = path.read_text(encoding="utf-8")
    if not CODE.search(text) and not any(name in text for name in WITHOUT_CODE):
        return
    tree = ast.parse(text)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Module)]
    for scope in functions:
        calls = [n for n in _own(scope) if isinstance(n, ast.Call)]
        for call in calls:
            name = ast.unparse(call.func).rpartition(".")[2]
            at = next((i for i, one in enumerate(call.args) if _is_code(one)), None)
            if at is not None and at + 1 < len(call.args):
                code, told = ast.literal_eval(call.args[at]), call.args[at + 1]
            elif name in WITHOUT_CODE and call.args:
                code, told = "", call.args[0]
            else:
                continue
            for text in _texts(told, scope, call.lineno):
                if not CODE.fullmatch(text):
                    yield Said(text, code)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, without the nodes of inner functions."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef):
            yield child
            yield from _own(child)


def _is_code(node: ast.expr) -> bool:
    value = node.value if isinstance(node, ast.Constant) else None
    return isinstance(value, str) and CODE.fullmatch(value) is not None


def _texts(node: ast.expr, scope: ast.AST, line: int) -> list[str]:
    """Return the possible texts of an expression; empty if they are known only at run time."""
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, scope, line), *_texts(node.orelse, scope, line)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
        text = re.sub(r"(… ?)+…", "…", "".join(map(str, parts)))
        return [text] if len(re.findall(r"[a-z]{3,}", text)) > 1 else []
    if isinstance(node, ast.Name):
        told = [
            one
            for one in _own(scope)
            if isinstance(one, ast.Assign) and one.lineno < line
            if any(isinstance(t, ast.Name) and t.id == node.id for t in one.targets)
        ]
        return _texts(max(told, key=lambda one: one.lineno).value, scope, line) if told else []
    return []


def _row(message: Said) -> str:
    return f"| {_cell(message.text)} | [{message.code}]({_anchor(message.code)}) |"


def _anchor(code: str) -> str:
    """Return the link to a code's explanation: its heading, or the heading above its table."""
    if code not in _headings():
        sys.exit(f"docs/faults.md doesn't explain {code}")
    slug = re.sub(r"[^\w\- ]", "", _headings()[code].lower()).replace(" ", "-")
    return f"faults.md#{slug}"


@cache
def _headings() -> dict[str, str]:
    """Return the heading of each code in docs/faults.md, or the heading above its table."""
    found: dict[str, str] = {}
    heading = ""
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines():
        heading = re.sub(r"^#+ ", "", line) if line.startswith("#") else heading
        if code := re.match(r"(?:### |\| )([SPMC]\d{3}) ", line):
            found[code[1]] = heading
    return found


def _cell(text: str) -> str:
    """Escape a text for a cell of a table."""
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0 or "|" in text:
        parts = ["`".join(parts)]
    for number in range(0, len(parts), 2):  # the parts between are code
        whole = html.escape(parts[number], quote=False)
        parts[number] = re.sub(r"([\\`*_~|[\]])", r"\\\1", whole)
    return "`".join(parts)


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
