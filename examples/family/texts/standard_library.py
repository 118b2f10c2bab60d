"""Python: the standard library of the interpreter that runs, as source and as functions to write.

A module is held out or not by the checksum of its name, the same on every machine; the text itself
is that of the running Python's version.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from zlib import crc32

from . import Text

APART = {
    "__phello__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
WINDOW = 900  # characters of a stretch of source, some 256 tokens
SHORTEST, LONGEST = 120, 1000  # characters of a function


def texts(count: int, held_out: bool) -> list[Text]:
    """Return `count` texts, stretches of source and functions by turns."""
    rng = Random("python held out" if held_out else "python")
    sources = [file.read_text("utf-8") for file in modules(held_out)]
    stretches = [text for source in sources for text in windows(source)]
    written = [text for source in sources for text in functions(source)]
    rng.shuffle(stretches)
    rng.shuffle(written)
    paired = [text for pair in zip(stretches, written, strict=False) for text in pair]
    if len(paired) < count:
        raise ValueError(
            f"this Python's library has {len(paired)} texts where {count} are asked for"
        )
    return paired[:count]


def modules(held_out: bool) -> list[Path]:
    """Return the library's source files on one side of the split: one name in six is held out."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
    return [
        file
        for file in files
        if not APART.intersection(file.relative_to(root).parts)
        and (crc32(file.relative_to(root).parts[0].removesuffix(".py").encode()) % 6 == 0)
        == held_out
        and 2_000 <= file.stat().st_size <= 150_000
    ]


def windows(source: str) -> Iterator[Text]:
    """Cut a module into stretches that begin and end with a line."""
    stretch = ""
    for line in source.splitlines(keepends=True):
        stretch += line
        if len(stretch) >= WINDOW:
            yield Text("", stretch[: 2 * WINDOW])
            stretch = ""


def functions(source: str) -> Iterator[Text]:
    """Yield each documented function of a module as a request for it."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.col_offset:
            continue
        about = ast.get_docstring(node)
        code = _segment(lines, node)
        if about and code and SHORTEST <= len(code) <= LONGEST:
            first = " ".join(about.split("\n\n")[0].split())
            yield Text(f"Write a Python function `{node.name}`. {first}", f"```python\n{code}\n```")


def _segment(lines: list[str], node: ast.FunctionDef) -> str:
    """Return a function's source; `ast.get_source_segment` would split the module each time."""
    *before, last = lines[node.lineno - 1 : node.end_lineno]
    return "\n".join([*before, last.encode()[: node.end_col_offset].decode()])
