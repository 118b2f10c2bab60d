"""Write the signatures and summaries of the public names into docs/api.md.

python docs/api.py            # write
python docs/api.py --check    # end with 1 if the page isn't current
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docs.generated import write_or_check

PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"(<!-- (gptailor[.\w]*) -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)
LONGEST = 88
"""Columns of a line of a signature."""


def pasted(page: str) -> str:
    """Return the page with the current signatures and summaries between its markers."""

    def current(found: re.Match[str]) -> str:
        try:
            lines = "\n".join(described(found[2]))
        except (AttributeError, ImportError):
            return found[0]  # of a plugin whose folder was removed
        return f"{found[1]}\n{lines}\n{found[3]}"

    return BLOCK.sub(current, page)


def described(path: str) -> Iterator[str]:
    """Yield the lines about a function, a class, a type, or all public names of a module."""
    place, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(place), name)
    if isinstance(thing, ModuleType):
        for each in source(thing).body:
            if (inner := named(each)) and not inner.startswith("_"):
                yield from written(f"{path}.{inner}", each, getattr(thing, inner))
        return
    if isinstance(thing, type) or inspect.isfunction(thing):
        place = inspect.unwrap(thing).__module__
    found = {named(node): node for node in source(importlib.import_module(place)).body}
    yield from written(path, found[name], thing)


def source(module: ModuleType) -> ast.Module:
    """Return the parsed source of a module."""
    return ast.parse(inspect.getsource(module))


def named(node: ast.AST) -> str:
    """Return the name that a statement defines; empty for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = node.target if isinstance(node, ast.AnnAssign) else None
    return target.id if isinstance(target, ast.Name) else ""


def written(path: str, node: ast.AST, thing: Any) -> Iterator[str]:
    """Yield a heading, the signature, the summary, and the methods of a class."""
    yield from (f"### `{path}`", "", "```python", *map(quoted, signature(node)), "```", "")
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield from (summary(node), "")
    if not isinstance(node, ast.ClassDef) or thing.__name__ == "Plan":
        return
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            yield from (f"#### `{node.name}.{method.name}`", "", "```python")
            yield from (
                *map(quoted, signature(method)),
                "```",
                "",
                summary(method),
                "",
            )


def summary(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])|:$", paragraph)[0]


def quoted(line: str) -> str:
    """Return a line of code with double quotes, as in the source."""
    return line if '"' in line else line.replace("'", '"')


def signature(node: ast.AST) -> Iterator[str]:
    """Yield a function's parameters and result, a class's fields, or the text of a type."""
    if isinstance(node, ast.FunctionDef):
        yield from of_function(node)
    elif isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        yield f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        shown = [ast.unparse(each) for each in fields if not named(each).startswith("_")]
        begins = (each for each in node.body if named(each) == "__init__")
        for begin in begins:
            assert isinstance(begin, ast.FunctionDef)
            shown += of_function(begin)
        yield from (f"    {line}" for line in shown or ["..."])
    else:
        yield ast.unparse(node).replace(": TypeAlias", "")


def of_function(node: ast.FunctionDef) -> Iterator[str]:
    """Yield a function's parameters, in a line each if they are long, and its result."""
    for decorator in node.decorator_list:
        if (kind := ast.unparse(decorator)) in {"property", "cached_property", "classmethod"}:
            yield f"@{kind}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({', '.join(parameters(node.args))}){returns}: ..."
    if len(line) <= LONGEST:
        yield line
        return
    yield f"def {node.name}("
    yield from (f"    {each}," for each in parameters(node.args))
    yield f"){returns}: ..."


def parameters(arguments: ast.arguments) -> Iterator[str]:
    """Yield each parameter with its annotation and its default."""
    positional = [*arguments.posonlyargs, *arguments.args]
    for number, argument in enumerate(positional):
        default = number - len(positional) + len(arguments.defaults)
        yield parameter(argument, arguments.defaults[default] if default >= 0 else None)
        if number + 1 == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, given in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield parameter(argument, given)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    """Return `name: type = default`."""
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
