"""The habits of docs/architecture.md, held over the source: names, classes, arrows."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gptailor"
MOST_FLOORS = 13

BASES_OF_PLUGINS = {"PlanText"}
"""Classes that only plugins derive from."""
ABSTRACT = {"ABC", "Protocol", "Enum", "StrEnum", "IntEnum", "TypedDict", "NamedTuple"}


def module_of(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> Mapping[str, ast.Module]:
    """The package's modules, parsed."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_a_public_name_has_one_definition() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees().items():
        for name in defined(tree):
            if not name.startswith("_"):
                homes[name].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def named(node: ast.expr) -> str:
    """The last word of a decorator or a base."""
    node = node.func if isinstance(node, ast.Call) else node
    node = node.value if isinstance(node, ast.Subscript) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@cache
def classes() -> list[tuple[str, ast.ClassDef]]:
    """All classes, each with its module."""
    return [
        (module, node)
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def test_a_class_is_final_or_abstract() -> None:
    bases = {named(base) for _, node in classes() for base in node.bases}
    loose = [
        f"{module}.{node.name}"
        for module, node in classes()
        if "final" not in map(named, node.decorator_list)
        and not ABSTRACT & set(map(named, node.bases))
        and node.name not in bases | BASES_OF_PLUGINS  # it is there for its descendants
    ]
    assert loose == []


def test_no_class_derives_from_a_final_class() -> None:
    """A class of ours that has descendants has something for them to say, or is an error's kind."""
    final = {node.name for _, node in classes() if "final" in map(named, node.decorator_list)}
    bases = {named(base) for _, node in classes() for base in node.bases}
    assert final & bases == set()


# --------------------------------------------------------------------------------------- arrows


def imports(tree: ast.Module, known: Mapping[str, object]) -> set[str]:
    """The modules of ours that a module imports, at its top or later."""
    results = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                results.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            results |= {alias.name for alias in node.names}
    return results & known.keys()


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Who imports whom, benchmarks too."""
    known: dict[str, ast.Module] = dict(trees())
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        known[module_of(path)] = ast.parse(path.read_text(encoding="utf-8"))
    return {name: frozenset(imports(tree, known) - {name}) for name, tree in known.items()}


def test_no_import_cycles() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(arrows()[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in arrows():
        visit(name, ())


def room(module: str) -> str:
    """The package that a module is of: the whole of it is one room of the house."""
    return ".".join(module.split(".")[:2])


def test_the_package_has_few_layers() -> None:
    below: dict[str, set[str]] = defaultdict(set)
    for name, others in arrows().items():
        below[room(name)] |= {room(other) for other in others} - {room(name)}

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(other) for other in below[name]), default=0)

    outside = {name for name in below if name.startswith("benchmarks.")}
    floors = {name: floor(name) for name in below}
    top = max(n for name, n in floors.items() if name not in outside)
    assert top + 1 <= MOST_FLOORS, floors  # benchmarks stand on top as one


def doors() -> Iterator[tuple[str, frozenset[str]]]:
    """Each package with the modules that it hands to others."""
    for path in sorted(PACKAGE.rglob("__init__.py")):
        if path.parent == PACKAGE:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and named(node.targets[0]) == "__all__":
                yield module_of(path), frozenset(ast.literal_eval(node.value))
                break
        else:
            pytest.fail(f"{path} has no __all__")


def test_importers_use_the_public_modules_of_a_package() -> None:
    """Importers outside a package use only the modules that its `__all__` names."""
    strangers = [
        f"{name} -> {other}"
        for package, door in doors()
        for name, others in arrows().items()
        if not name.startswith((f"{package}.", "benchmarks.")) and name != package
        for other in sorted(others)
        if other.startswith(f"{package}.")
        and other.removeprefix(f"{package}.").split(".")[0] not in door
    ]
    assert strangers == []
