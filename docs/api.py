"""Write the signatures and first sentences of the public names into docs/api.md.

python docs/api.py            # write
python docs/api.py --check    # end with 1 if the page isn't current
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent, wrap
from typing import Any

from docs.generated import write_or_check

PAGE = Path(__file__).with_suffix(".md")
GROUPS = {
    "plans": (
        "gptailor",
        "load loads check show LayerMap diff format import_mergekit export_mergekit Plan Fault",
    ),
    "models": (
        "gptailor",
        "compile ComputeOptions CompileResult lock Lock verify VerifyResult publish "
        "CardFacts PublishResult stitch",
    ),
    "scores": (
        "gptailor",
        "evaluate EvaluationResult generate GeneratedText evaluate_expectations ExpectationResult",
    ),
    "searches": ("gptailor", "search SearchResult Flags Resources report ReportResult"),
    "tensors": ("gptailor", "merge extract_lora ExtractResult"),
    "shrink": ("gptailor", "shrink ShrinkResult"),
    "teach": ("gptailor", "teach TeachResult"),
    "events": ("gptailor.plan.events", "OnEvent Event BytesDone Progress FitResult FitText"),
    "search events": (
        "gptailor.searching.search",
        "SearchEvent OnSearchEvent Warned Estimated Begun Scored",
    ),
    "errors": (
        "gptailor",
        "PlanError TailorError CheckpointError CalibrationError ConversionError "
        "ConversionWarning WishError SearchError MissingPackageError",
    ),
    "extensions": ("gptailor", "merge_method Parameter objective strategy Strategy GapFit"),
}
"""The names of each block of the page, and the module that has them."""
PARAMETERS = re.compile(r"(<!-- PARAMETERS -->\n).*?(<!-- END -->\n)", re.DOTALL)
BLOCK = re.compile(r"(<!-- ([a-z ]+) -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)
SHARED = (
    "models: ModelPaths = None",
    "force: bool = False",
    "device: torch.device | str = 'cpu'",
    "dtype: str | torch.dtype = None",
    "memory: Positive | str = None",
    "on_event: OnEvent = ignore_events",
)
"""Parameters of many functions: the page has them once, and then only their names."""
INTERNAL = {
    ("Lock", "gguf_of_type"),
    ("Lock", "with_sources"),
    ("ConversionError", "of_all"),
    ("CheckpointError", "place"),
    ("CalibrationError", "place"),
    ("Parameter", "admits"),
    ("Parameter", "bounds"),
    ("FitResult", "in_vain"),
}
"""Methods that the page leaves out: gptailor itself calls them, or the page's text has them."""
LONGEST = 100
"""Columns of a line."""


def pasted(page: str) -> str:
    """Return the page with the current text of each group of names between its markers."""

    def current(found: re.Match[str]) -> str:
        module, names = GROUPS[found[2]]
        try:
            texts = "\n\n".join(described(module, name) for name in names.split())
        except (AttributeError, ImportError):
            return found[0]  # of a plugin whose folder was removed
        return f"{found[1]}\n```python\n{texts}\n```\n\n{found[3]}"

    page = BLOCK.sub(current, page)
    shared = "\n".join(map(quoted, SHARED))
    return PARAMETERS.sub(lambda found: f"{found[1]}\n```python\n{shared}\n```\n\n{found[2]}", page)


def described(place: str, name: str) -> str:
    """Return the text about a function, a class or a type.

    The page says once that a path may be a text, and that a default of None is also a type.
    """
    thing = getattr(importlib.import_module(place), name)
    if isinstance(thing, type) or inspect.isfunction(thing):
        place = inspect.unwrap(thing).__module__
    tree = ast.parse(inspect.getsource(importlib.import_module(place)))
    found = {named(node): node for node in tree.body}
    return short("\n".join(written(found[name], thing)))


def short(text: str) -> str:
    """Leave out the facts that the page has once: texts as paths, and None as a type."""
    return text.replace("str | Path", "Path").replace(" | None = None", " = None")


def named(node: ast.AST) -> str:
    """Return the name that a statement defines; empty for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = node.target if isinstance(node, ast.AnnAssign) else None
    return target.id if isinstance(target, ast.Name) else ""


def written(node: ast.AST, thing: Any) -> Iterator[str]:
    """Yield a function's signature, a class with fields and methods, or the text of a type."""
    if isinstance(node, ast.FunctionDef):
        yield from of_function(node)
        yield indent(summary(node), "    ")
    elif isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        yield f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        lines = of_class(node, fields="Closed" not in bases, methods=thing.__name__ != "Plan")
        yield from (indent(line, "    ") if line else "" for line in lines)
    else:
        yield ast.unparse(node).replace(": TypeAlias", "")


def of_class(node: ast.ClassDef, *, fields: bool, methods: bool) -> Iterator[str]:
    """Yield the summary, the public `fields` and the `methods` of a class, if asked for.

    Nobody but gptailor makes its errors, so they are shown without their `__init__`.
    """
    yield summary(node)
    for each in node.body:
        if fields and isinstance(each, ast.AnnAssign) and not named(each).startswith("_"):
            yield declared(each)
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or (node.name, method.name) in INTERNAL:
            continue
        if method.name == "__init__" and not node.name.endswith("Error"):
            lines = [*of_function(method)]
            yield from (*lines[:-1], f"{lines[-1]} ...")
        elif methods and not method.name.startswith("_"):
            yield from of_property(method) if is_property(method) else ("", *written(method, None))


def is_property(method: ast.FunctionDef) -> bool:
    """Return whether a method is a property, which the page shows as a field."""
    return bool({*map(ast.unparse, method.decorator_list)} & {"property", "cached_property"})


def of_property(method: ast.FunctionDef) -> Iterator[str]:
    """Yield `name: type` of a property, and its sentence."""
    yield f"{method.name}: {quoted(ast.unparse(method.returns))}" if method.returns else method.name
    yield summary(method)


def declared(node: ast.AnnAssign) -> str:
    """Return `name: type = default` of a field."""
    default = node.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) in ("field", "Field"):
        given = {word.arg: word.value for word in default.keywords}
        default = given.get("default")
        if "default_factory" in given:
            default = ast.Dict([], [])
    line = f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
    return quoted(f"{line} = {ast.unparse(default)}" if default else line)


def summary(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the first sentence of a docstring, as a docstring."""
    paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z`])|:$", paragraph)[0]
    if re.match("Return (?!whether)", sentence):  # the signature shows it
        sentence = sentence[7].upper() + sentence[8:]
    return "\n".join(wrap(f'"""{sentence}"""', LONGEST))


def quoted(line: str) -> str:
    """Return a line of code with double quotes, as in the source."""
    return line if '"' in line else line.replace("'", '"')


def of_function(node: ast.FunctionDef) -> Iterator[str]:
    """Yield a function's parameters, in a line each if they are long, and its result."""
    for decorator in node.decorator_list:
        if ast.unparse(decorator) == "classmethod":
            yield "@classmethod"
    returns = f" -> {quoted(ast.unparse(node.returns))}" if node.returns else ""
    given = [quoted(each) for each in parameters(node.args)]
    line = f"def {node.name}({', '.join(given)}){returns}:"
    if len(line) <= LONGEST - 10:
        yield line
        return
    yield f"def {node.name}("
    yield from (f"    {each}," for each in given)
    yield f"){returns}:"


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
        text = parameter(argument, given)
        yield argument.arg if short(text) in SHARED else text
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    """Return `name: type = default`."""
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


if __name__ == "__main__":
    write_or_check(PAGE, pasted)
