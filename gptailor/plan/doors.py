"""Tables that installed packages may extend: methods, objectives, strategies, commands and others.

A package names an entry in an entry-point group, such as `gptailor.methods`. A table looks there
for a name that it lacks, and imports the module of this one entry. Nothing is loaded from a plan, a
model folder, RUN or the working folder.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast, final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_Value = TypeVar("_Value")


@final
class Package(NamedTuple):
    """The provider of an entry: an installed distribution, or a module of this process."""

    name: str
    version: str
    installed: bool = True

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@final
class Door(dict[str, _Value], Generic[_Value]):
    """A table of the core, with entries of installed packages and of this process.

    Iteration yields the core's entries and the loaded entries. A look-up of another name reads the
    entry points of `gptailor.GROUP`. `kind` is the entry's noun in messages, and `form` the type of
    its value.
    """

    all: ClassVar[list["Door[Any]"]] = []
    failures: ClassVar[list[Exception]] = []
    """The errors of failed imports. `gptailor -v` prints their tracebacks."""

    def __init__(self, group: str, kind: str, form: type, own: Mapping[str, _Value]) -> None:
        super().__init__(own)
        self.group, self.kind, self.form = f"gptailor.{group}", kind, form
        self.own = frozenset(own)
        self._modules: dict[str, str] = {}
        self._problems: dict[str, str] = {}
        self.all.append(self)

    def __missing__(self, name: str) -> _Value:
        if name not in self._problems:
            self._problems[name] = self._load(name)
        if self._problems[name] or not super().__contains__(name):
            raise KeyError(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: Any = None) -> _Value | None:  # type: ignore[override]
        """Return an entry, or the default for an unknown name."""
        try:
            return self[name]
        except KeyError:
            value: _Value | None = default
            return value

    def problem(self, name: str) -> str:
        """Return the reason why an installed entry can't be used; empty for any other name."""
        return "" if name in self else self._problems[name]

    def installed(self) -> dict[str, str]:
        """Return the module of each entry of installed packages. No module is imported."""
        found: dict[str, str] = {}
        for _, text in _entry_point_files():
            section = text.partition(f"[{self.group}]\n")[2].partition("\n[")[0]
            for line in filter(None, section.splitlines()):
                name, _, target = line.partition("=")
                found[name.strip()] = target.partition(":")[0].strip()
        return {name: found[name] for name in sorted(found.keys() - self.own)}

    def names(self) -> list[str]:
        """Return the names of all entries: the core's, then others. No module is imported."""
        return [*dict.fromkeys([*self, *self.installed()])]

    def is_own(self, name: str) -> bool:
        """Return whether an entry belongs to the core, or to a plugin in gptailor's own package."""
        points = () if name in self.own else _points(self.group, name)
        return name in self.own or any(_package(point).name == "gptailor" for point in points)

    def add(self, name: str, value: _Value, module: str) -> None:
        """Register an entry of this process. The same module may replace it.

        Raises ValueError for an invalid name, a name of gptailor's own, and a name of another
        module.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            words = f"expected a name in lower case, such as 'my_{self.kind}', got {name!r}"
        elif self.is_own(name):
            words = f"the {self.kind} {name!r} is gptailor's own"
        elif self._modules.setdefault(name, module) != module:
            words = f"the module {self._modules[name]!r} has a {self.kind} {name!r}, too"
        else:
            self._problems.pop(name, None)
            self[name] = value
            return
        raise ValueError(f"{words}: choose another name")

    def package(self, name: str) -> Package | None:
        """Return the provider of an entry; None for an entry of gptailor's own."""
        if self.is_own(name) or name not in self:
            return None
        if points := _points(self.group, name):
            return _package(points[0])
        module = self._modules[name]
        version = getattr(sys.modules.get(module), "__version__", "unversioned")
        return Package(module, str(version), installed=False)

    def required(self, name: str, what: str, plugin: str) -> _Value:
        """Return an entry that `what` needs. Raises TailorError, which names the plugin."""
        if (value := self.get(name)) is None:
            from gptailor.plan.faults import TailorError  # used late

            reason = self.problem(name) or "it is not installed"
            raise TailorError(f"{what} needs the plugin '{plugin}': {reason}")
        return value

    def _load(self, name: str) -> str:
        """Load an installed package's entry if there is one. Return the reason if that fails."""
        points = _points(self.group, name)
        if not points:
            return ""
        packages = [*map(_package, points)]
        if len(points) > 1:
            return f"{' and '.join(map(str, sorted(packages)))} provide it: uninstall one of them"
        try:
            value: Any = points[0].load()
        except Exception as error:  # noqa: BLE001 (a package's code may raise anything)
            self.failures.append(error)
            _forget(points[0].module)
            first = f"{type(error).__name__}: {error}".partition("\n")[0]
            return f"{packages[0]} provides it and can't be imported: {first}"
        if not isinstance(value, self.form):
            got = f"got {type(value).__name__} at '{points[0].value}'"
            return f"{packages[0]}: expected a {self.form.__name__}, {got}"
        declared = getattr(value, "name", name) if hasattr(value, "function") else name
        if declared != name:
            got = f"got the name {declared!r} at '{points[0].value}'"
            return f"{packages[0]}: expected the {self.kind} {name!r}, {got}"
        self[name] = cast(_Value, value)
        return ""


def _forget(module: str) -> None:
    """Remove the entries that a module registered before its import failed."""
    for door in Door.all:
        for name in [name for name, owner in door._modules.items() if owner == module]:
            del door._modules[name]
            door.pop(name, None)


def _package(point: "EntryPoint") -> Package:
    assert point.dist is not None
    return Package(point.dist.name, point.dist.version)


def _entry_point_files() -> Iterator[tuple[Path, str]]:
    """Yield the readable files of entry points, and their texts, in a fifth of importlib's time."""
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):  # a folder of `sys.path` that can't be listed
            for path in sorted(Path(folder).glob("*-info/entry_points.txt")):
                with suppress(OSError):
                    if path.is_file():
                        yield path, path.read_text("utf-8", errors="replace")


@cache
def _points(group: str, name: str) -> "Sequence[EntryPoint]":
    """Return the entry points of a name, gptailor's own first, or other packages' entry points.

    A look-up takes some ms among 130 distributions, and a compilation asks eight times. A package
    that is installed later counts in the next process, like the code of one that is loaded.
    """
    from importlib import metadata  # its import takes longer than a check

    found: dict[str, list[EntryPoint]] = {}
    for path, text in _entry_point_files():
        if f"[{group}]" in text and name in text:
            package = metadata.PathDistribution(path.parent)
            with suppress(UnicodeError):
                points = package.entry_points.select(group=group, name=name)
                if points and (own_name := package.metadata["Name"]):
                    found.setdefault(own_name, [*points])  # the first on the path is imported
    return found.get("gptailor") or [point for points in found.values() for point in points]
