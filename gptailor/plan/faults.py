"""Faults of a plan, their places, and how they are shown: `Source`, `Span`, `Fault`, `Origin`."""

import bisect
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from errno import EISDIR, ENOENT
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, final

from gptailor.plan.bounds import MOST_COMPARED, MOST_FAULTS
from gptailor.plan.fitted_plan import FittedPlan

Place = tuple[str | int, ...]
"""Field names and indices that lead to a place in a `Plan`, as pydantic writes them."""

_LONGEST_COMPARED = 200
"""Characters of a misspelt name for which a known one is suggested."""
_MOST_NAMED = 3
"""Files that a message names."""
_SHOWN_COLUMNS = 100
"""Columns of a source line that are shown; a longer line is cut around its caret."""


@final
@dataclass(frozen=True)
class Source:
    """A text, its name, and the values that were set in it, as messages show them: `mix=0.7`."""

    name: str
    text: str = field(repr=False)
    settings: str = ""

    @property
    def label(self) -> str:
        """Return the name with the settings: `cut.tailor with mix=0.7`."""
        return f"{self.name} with {self.settings}" if self.settings else self.name

    @cached_property
    def starts(self) -> list[int]:
        """Return the offset of each line's first character."""
        return [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Return line and column of an offset, both counted from 1."""
        line = bisect.bisect_right(self.starts, offset) - 1
        return line + 1, offset - self.starts[line] + 1

    def line(self, number: int) -> str:
        """Return the text of a line (from 1), without its end."""
        start = self.starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")


@final
@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source: offsets in characters, the end not included."""

    start: int
    end: int

    def to(self, other: "Span") -> "Span":
        """Return the span from the start of this one to the end of the other."""
        return Span(self.start, other.end)


@final
@dataclass(frozen=True)
class Also:
    """A second place that a fault points at, and its label."""

    label: str
    at: Place = ()
    span: Span | None = None


@final
@dataclass(frozen=True)
class Fault:
    """One fault of a plan: a stable code, a message, a place, and a remedy.

    `code` is one of faults.md, `message` one line that names the thing, `help` what to do
    where there is a remedy. `at` is the place in the plan (names and positions from its root
    inward), `span` that in the text `source`, in characters, if the plan has one; `also` are other
    places that it has to do with. A `severity` of `warning` stops nothing.
    """

    code: str
    message: str
    at: Place = ()
    help: str = ""
    also: tuple[Also, ...] = ()
    severity: Literal["error", "warning"] = "error"
    span: Span | None = None
    source: Source | None = None

    def __str__(self) -> str:
        return to_text(self)


class TailorError(Exception):
    """An error outside of plans: a file, a disk, memory, a cluster. Its text names the thing.

    All errors that gptailor raises have this class; `exit_code` is the command's exit status.
    Files that can't be used are a `CheckpointError`, with a `code` of faults.md; foreign files
    that Tailor can't express a `ConversionError`; texts that can't be read a `CalibrationError`; a
    search that can't run as asked a `WishError`, and one that can't go on a `SearchError`; packages
    of an extra that are missing a `MissingPackageError`. All are names of `gptailor`.
    """

    exit_code = 3


class CodedError(TailorError):
    """A refusal with a stable code, its reason, its place if it has one, and a remedy."""

    def __init__(self, code: str, message: str, help: str = "") -> None:
        super().__init__(code, message, help)
        self.code, self.message, self.help = code, message, help

    @property
    def place(self) -> str:
        """The place for people; empty for an error that concerns no file."""
        return ""

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.message}"]
        lines += [f" --> {self.place}"] if self.place else []
        return "\n".join(lines + ([f"  = help: {self.help}"] if self.help else []))


@final
class MissingPlanError(CodedError, FileNotFoundError):
    """The file of a plan is missing. It is also the error that `open` raises."""

    def __init__(self, path: Path) -> None:
        message = f"expected a plan's file, '{path}' is missing"
        if "\n" in str(path) or str(path).startswith(("tailor 1", "{")):
            message, help_ = "expected a plan's file, got a plan's text", "use gptailor.loads"
        elif '("' in str(path):
            help_ = "it is an objective, and targets come first: evaluate(targets, objectives)"
        else:
            plans = sorted(path.parent.glob("*.tailor"))[:MOST_COMPARED]
            near = _closest(path.stem[:_LONGEST_COMPARED], tuple(plan.stem for plan in plans))
            help_ = (
                f"did you mean '{path.with_name(near)}.tailor'?"
                if near
                else "name a file such as cut.tailor; relative paths start at the current folder"
            )
        super().__init__("C201", message, help_)
        self.errno, self.strerror, self.filename = ENOENT, self.message, str(path)
        self.args = (path,)  # as pickle hands it over


SEARCH_SETTINGS, SEARCH_BEST, PLAN_FILE = "run.json", "best.tailor", "plan.tailor"
"""The settings and the best plan in a search's folder, and the plan in a compiled folder."""


@final
class PlanFolderError(CodedError, IsADirectoryError):
    """A folder stands in place of a plan's file. It is also the error that `open` raises."""

    def __init__(self, path: Path) -> None:
        if (path / SEARCH_SETTINGS).is_file():
            message = f"'{path}' is the folder of a search, expected a plan or a model"
            help_ = f"its best plan is {path / SEARCH_BEST}; 'gptailor search SPACE -o {path}' "
            help_ += "continues the search" if (path / SEARCH_BEST).exists() else "writes it"
        elif (path / PLAN_FILE).is_file():
            message = f"expected a plan's file, got the compiled folder '{path}'"
            help_ = f"name {path / PLAN_FILE}"
        else:
            message = f"expected a plan's file, got the folder '{path}'"
            help_ = "name a file such as cut.tailor"
            if (path / "config.json").is_file():
                source = path if path.is_absolute() or path.parts[:1] == ("..",) else f"./{path}"
                help_ = (
                    "it is a model. A plan of these two lines keeps all of it:\n\n"
                    f'    tailor 1\n    model base = "{source}"\n\n'
                    "  Save them as plan.tailor, then: gptailor compile plan.tailor -o out"
                )
        super().__init__("C201", message, help_)
        self.errno, self.strerror, self.filename = EISDIR, self.message, str(path)
        self.args = (path,)  # as pickle hands it over


class PlanError(TailorError):
    """A plan has faults: all of them are in `faults`, in the order of the text, warnings too.

    Its text is the command's output: each fault with its code, its line and what to do.
    """

    exit_code = 1

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n\n".join(to_text(fault) for fault in self.faults))


@final
@dataclass(frozen=True)
class Origin:
    """The text that a plan was read from, and the span of each of its places.

    `spans` holds, for a place (an entry of the plan), the spans of the places inside it, relative
    to it; the entry's own is at `()`, its whole statement's at `STATEMENT`. Entries that came from
    one statement share equal parts. `families` are files of families that were given with it.
    `inner` are other checkpoints for models of plans that are models here (`deep.math`), `commits`
    the source, revision and commit of models on the Hub, `fitted` the fits of such plans. `tree` is
    the text as `gptailor.lang` read it, with comments. `places` are the places of the declared
    plan, for a plan that is written out.
    """

    source: Source
    folder: Path
    spans: Mapping[Place, Mapping[Place, Span]] = field(default_factory=dict)
    families: tuple[Path, ...] = ()
    inner: Mapping[str, Path] = field(default_factory=dict)
    commits: Mapping[str, tuple[str, str | None, str]] = field(default_factory=dict)
    fitted: Mapping[str, FittedPlan] = field(default_factory=dict)
    tree: Any = field(default=None, compare=False, repr=False)
    places: Mapping[Place, Place] = field(default_factory=dict)

    def span(self, at: Place) -> Span | None:
        """Return the span of a place, or of the nearest place around it."""
        at = declared_place(at, self.places)
        for length in range(len(at), 0, -1):
            inside = self.spans.get(at[:length])
            for end in range(len(at), length - 1, -1) if inside else ():
                if (span := inside.get(at[length:end])) is not None:  # type: ignore[union-attr]
                    return span
        return None

    def statement(self, at: Place) -> Span | None:
        """Return the span of the statement that a place came from."""
        at = declared_place(at, self.places)
        for length in range(len(at), 0, -1):
            if (inside := self.spans.get(at[:length])) is not None:
                return inside.get(STATEMENT) or inside.get(())
        return None


def declared_place(at: Place, places: Mapping[Place, Place]) -> Place:
    """Return the place in a declared plan of a place in the plan written out."""
    length = next((n for n in (2, 1) if at[:n] in places), 0)
    return (*places[at[:length]], *at[length:]) if length else at


TOO_LARGE = "P116"
"""The code of a plan that is larger than the limits in `plan/bounds.py`."""
TOO_MANY = "S108"
"""The code of a plan with more errors than are looked for."""

STATEMENT: Place = ("statement",)
TARGET: Place = ("target",)


def locate(faults: Iterable[Fault], origin: Origin | None) -> list[Fault]:
    """Give each fault its span in the text, sort them as the text has them, drop duplicates.

    After `MOST_FAULTS` errors no further fault is taken, and the first fault says so.
    """
    unique: dict[object, Fault] = {}
    left = MOST_FAULTS
    for fault in faults if origin is None else (_located(fault, origin) for fault in faults):
        words = _words(fault, origin)
        key = fault.code, fault.message, words, fault.at if words is None else ()
        left -= key not in unique and fault.severity == "error" and fault.code != TOO_MANY
        if left < 0:
            return [_too_many(origin), *_in_order(unique.values())]
        again = key in unique and unique[key].span != fault.span  # another layer of one range
        unique[key] = replace(fault, span=words) if again else fault
    return _in_order(unique.values())


def _words(fault: Fault, origin: Origin | None) -> Span | None:
    """Return the words that a fault is about: the whole range, if it is about a layer of one."""
    entry = fault.at[:2]
    if origin is None or not entry or fault.span != origin.span(entry):
        return fault.span
    return origin.span((*entry, *TARGET)) or fault.span


def _in_order(faults: Iterable[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda f: f.span.start if f.span else -1)


def _too_many(origin: Origin | None) -> Fault:
    message = f"the plan has more than {MOST_FAULTS:,} errors; the check stopped there"
    fault = Fault(TOO_MANY, message, help="correct the listed errors first")
    return fault if origin is None else replace(fault, span=Span(0, 0), source=origin.source)


def _located(fault: Fault, origin: Origin) -> Fault:
    also = tuple(replace(other, span=other.span or origin.span(other.at)) for other in fault.also)
    span = fault.span or origin.span(fault.at)
    return replace(fault, span=span, also=also, source=fault.source or origin.source)


def errors(faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults that stop a plan: all but the warnings."""
    return [fault for fault in faults if fault.severity == "error"]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a help text that names the nearest known name, or nothing.

    A name is compared with the first `MOST_COMPARED` known ones of about its length. With the same
    first letter it may be a bit less like.
    """
    if len(name) > _LONGEST_COMPARED:
        return ""
    similar = (k for k in names if 3 * len(name) <= 7 * len(k) and 3 * len(k) <= 7 * len(name))
    compared = tuple(islice(similar, MOST_COMPARED))
    alike = tuple(known for known in compared if known[:1] == name[:1])
    closest = _closest(name, compared) or _closest(name, alike, cutoff=0.57)
    return f"did you mean '{closest}'?" if closest else ""


def nearest_path(path: Path) -> str:
    """Return a help text that names the nearest file or folder to a missing one, or nothing."""
    try:
        names = {entry.name for entry in islice(path.parent.iterdir(), MOST_COMPARED)}
    except OSError:
        return ""
    others = names - {path.name}  # a broken link has the name of the missing file
    near = "" if len(path.name) > _LONGEST_COMPARED else _closest(path.name, tuple(sorted(others)))
    return f"did you mean '{path.with_name(near)}'?" if near else ""


@lru_cache(maxsize=256)
def _closest(name: str, compared: tuple[str, ...], cutoff: float = 0.6) -> str:
    """Return the name that is most like this one, or nothing."""
    return next(iter(difflib.get_close_matches(name, compared, n=1, cutoff=cutoff)), "")


def listed(names: Iterable[str], last: str = "and") -> str:
    """Return `a, b and c`."""
    items = list(names)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def first_names(names: Sequence[str]) -> str:
    """Return the first names in words, with the number of further names; empty for no names."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return listed(names[:_MOST_NAMED]) + more if names else ""


# --------------------------------------------------------------------------- faults over positions


@final
@dataclass(frozen=True)
class Hit:
    """A rule broken at one position: the number, its place, and the place it collides with."""

    position: int
    at: Place
    other: Place | None = None


def joined_faults(
    origin: Origin | None, hits: Iterable[Hit], fault: Fault, label: str = ""
) -> Iterator[Fault]:
    """Yield one fault for each run of hits from one range.

    The message of `fault` follows the name of one position: "is …".
    """
    groups: list[list[Hit]] = []
    for hit in hits:
        if groups and _belongs(origin, groups[-1][-1], hit):
            groups[-1].append(hit)
        else:
            groups.append([hit])
    for group in groups:
        first, last = group[0], group[-1]
        many = last.position != first.position
        name = f"L{first.position}..L{last.position}" if many else f"L{first.position}"
        message = fault.message.replace("is", "are", 1) if many else fault.message
        also = (Also(label, last.other, _target(origin, last.other, many)),) if last.other else ()
        span = _target(origin, last.at, many)
        yield replace(fault, message=f"{name} {message}", at=last.at, also=also, span=span)


def _target(origin: Origin | None, at: Place, many: bool) -> Span | None:
    return None if origin is None else origin.span((*at, *TARGET) if many else at)


def _belongs(origin: Origin | None, last: Hit, hit: Hit) -> bool:
    """Return whether two hits are neighbours and came from the same words."""
    if hit.position not in (last.position, last.position + 1):
        return False
    if origin is None:
        return True
    ranges = [origin.span((*h.at, *TARGET)) for h in (last, hit)]
    others = [origin.statement(h.other) if h.other else None for h in (last, hit)]
    return ranges[0] == ranges[1] and others[0] == others[1]


# ------------------------------------------------------------------------------------ how it looks


def to_text(fault: Fault) -> str:
    """Return a fault for people: code and message, the line with a caret under the words, help."""
    head = f"{fault.severity}[{fault.code}]: {fault.message}"
    if fault.span is None or fault.source is None:
        place = " at ".join(n for n in (fault.source and fault.source.label, dotted(fault.at)) if n)
        lines = [head, f" --> {place}" if place else "", fault.help and f"  = help: {fault.help}"]
        return "\n".join(line for line in lines if line)
    source = fault.source
    spans = [(fault.span, "")] + [(a.span, a.label) for a in fault.also if a.span is not None]
    gutter = len(str(max(source.position(span.start)[0] for span, _ in spans)))
    pad = " " * gutter
    line, column = source.position(fault.span.start)
    out = [head, f"{pad}--> {source.label}:{line}:{column}", f"{pad} |"]
    for n, (span, label) in enumerate(spans):
        if n:
            out.append(f"{pad} :")
        out += _excerpt(source, span, label, gutter)
    if fault.help:
        out.append(f"{pad} = help: {fault.help}")
    return "\n".join(out)


def _excerpt(source: Source, span: Span, label: str, gutter: int) -> list[str]:
    """Return the span's line, and a line with carets under its words."""
    number, column = source.position(span.start)
    text = source.line(number)
    length = max(1, min(span.end - span.start, len(text) - column + 1))
    start = 0
    if len(text) > _SHOWN_COLUMNS:
        start = max(0, min(column - 1 - _SHOWN_COLUMNS // 3, len(text) - _SHOWN_COLUMNS))
        length = min(length, _SHOWN_COLUMNS - (column - 1 - start)) or 1
    columns = text[start : start + _SHOWN_COLUMNS]
    shown = "".join(c if c.isprintable() else " " for c in columns)  # tabs are one column, too
    before = "…" if start else ""
    after = "…" if start + _SHOWN_COLUMNS < len(text) else ""
    indent = " " * (len(before) + column - 1 - start)
    carets = f"{indent}{'^' * length} {label}".rstrip()
    return [f"{number:>{gutter}} | {before}{shown}{after}", f"{' ' * gutter} | {carets}"]


def dotted(at: Place) -> str:
    """Return a place as text: `slices[0].sources[1].model`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in at).lstrip(".")


def to_json(faults: Iterable[Fault]) -> str:
    """Return faults for machines: a JSON list of objects."""
    return json.dumps([fault_record(fault) for fault in faults], ensure_ascii=False, indent=2)


def fault_record(fault: Fault) -> dict[str, object]:
    """Return the JSON of a fault: code, message, help, place, and the file's lines and columns."""
    also = [{"label": a.label, **_where(fault.source, a.span)} for a in fault.also]
    return {
        "code": fault.code,
        "severity": fault.severity,
        "message": fault.message,
        "place": list(fault.at),
        "help": fault.help,
        "also": also,
        **_where(fault.source, fault.span),
    }


def _where(source: Source | None, span: Span | None) -> dict[str, object]:
    if source is None or span is None:
        return {"file": source.name if source else None}
    numbers = (*source.position(span.start), *source.position(span.end))
    names = ("line", "column", "end_line", "end_column")
    return {"file": source.name} | dict(zip(names, numbers, strict=True))


def to_github(fault: Fault) -> str:
    """Return a fault as an annotation of a pull request (a GitHub Actions workflow command)."""
    where = ""
    if fault.source is not None and fault.span is not None:
        line, column = fault.source.position(fault.span.start)
        end_line, end_column = fault.source.position(fault.span.end)
        where = f"file={_escaped(fault.source.name, ':,')},line={line},col={column}"
        where += f",endLine={end_line},endColumn={end_column},"
    message = fault.message + (f" ({fault.help})" if fault.help else "")
    return f"::{fault.severity} {where}title={fault.code}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    return text.translate({ord(c): f"%{ord(c):02X}" for c in "%\r\n" + more})
