"""The printer: a plan's entries as words, and the canonical form of a plan or of a text."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, final

from gptailor.lang import tree
from gptailor.lang.draft import Draft
from gptailor.lang.lower import lower, lower_statement
from gptailor.lang.parse import parse, plan_or_file
from gptailor.lang.words import (
    FORMS,
    groups,
    heal_lines,
    model_source,
    objective_words,
    rest_words,
    statement_words,
    text_fit_words,
    value_words,
)
from gptailor.plan import plan as p
from gptailor.plan import sites
from gptailor.plan.faults import Fault, PlanError, Source, errors

_Joined = Callable[[Sequence[Any]], list[list[Any]]]
"""Joins entries to statements."""

# --------------------------------------------------------------------------------- canonical forms

_SECTIONS = (
    "version", "models", "numbers", "output", "layers", "changes", "stack", "search", "expects",
)  # fmt: skip
_DTYPE = ("output", (0, ""))
_FILE_NAME = re.compile(r"[^\n]*\.(tailor|json)")
"""A text that is the name of a plan's file; no plan is such a text."""
_WIDTH = 100
"""Characters of a line, at most, where a statement can be broken."""


@final
@dataclass(slots=True)
class _Line:
    """A statement's canonical text, where it sorts, and its comments."""

    section: str
    key: Any
    text: str
    above: tuple[str, ...] = ()
    behind: str = ""

    def shown(self, indent: str = "") -> str:
        """Return the text with its comments."""
        text = self.text + (f"  {self.behind}" if self.behind else "")
        return "\n".join(indent + part for part in (*self.above, text))


def format_plan(plan: p.Plan) -> str:
    """Return the canonical text of a plan. Reading it gives the same plan."""
    lines = [_Line("version", 0, f"tailor {plan.version}"), *_lines(plan, groups)]
    names = [name for name in ("stack", "search") if getattr(plan, name) is not None]
    texts = {name: _block_text(name, [li for li in lines if li.section == name]) for name in names}
    blocks = [_Line(name, 0, text) for name, text in texts.items()]
    return _sheet([line for line in lines if line.section not in names] + blocks)


def format_text(source: Source) -> tuple[str | None, list[Fault]]:
    """Return the canonical form of a text, comments kept;

    None and the faults of an invalid text.
    """
    file, faults = parse(source)
    _, more = lower(file, source, Path())
    if errors(combined := faults + more):
        return None, combined
    return format_file(file), []


def format(plan: p.Plan | str | Path) -> str:
    """Return the canonical text of a plan, of a file, or of a text; the latter two with comments.

    A `str` is a text, except a name on one line that ends in `.tailor` or `.json`. Reading the
    result gives an equal plan, and formatting it again the same text.

    Raises PlanError where a text can't be read, and the errors of `load` for a file.
    """
    if not isinstance(plan, str) or _FILE_NAME.fullmatch(plan):
        read = plan_or_file(plan)
        tree_of = None if read is plan or read.origin is None else read.origin.tree
        return format_plan(read) if tree_of is None else format_file(tree_of)
    text, faults = format_text(Source("<text>", plan))
    if text is None:
        raise PlanError(faults)
    return text


def format_file(file: tree.File, used: p.Plan | None = None) -> str:
    """Return the canonical form of a tree that lowers without faults.

    The models, the dtype, the template, the bridges and the healing of `used` replace the text's,
    as in the copy of a plan in a compiled folder. A search and GGUF files that `used` lacks are
    left out.
    """
    others = [s for s in file.statements if s.rule != "block"]
    lines = [_block_of(s, *s.parts) for s in file.statements if s.rule == "block"]
    lines += _stated([s for s in others if not _commented(s)])
    for statement in filter(_commented, others):
        lines += _stated([statement])
    return _sheet(lines if used is None else _restated(lines, used), file.closing)


def _sheet(lines: Iterable[_Line], closing: Sequence[str] = ()) -> str:
    """Return the whole text, with an empty line between sections."""
    ordered = sorted(lines, key=lambda line: (_SECTIONS.index(line.section), line.key))
    sections = ["\n".join(line.shown() for line in group)
                for _, group in groupby(ordered, lambda line: line.section)]  # fmt: skip
    sections += ["\n".join(closing)] if closing else []
    return "\n\n".join(sections) + "\n" if sections else ""


def _restated(lines: list[_Line], used: p.Plan) -> list[_Line]:
    """Return the lines with the models, dtype, template and texts of `used`."""
    fixed = {
        (line.section, line.key): line.text
        for line in _lines(used, groups)
        if line.section in ("models", "output") or (line.section == "changes" and line.key[0] >= 5)
    }
    for line in lines:
        line.text = fixed.get((line.section, line.key), line.text)
    expected = sorted((li for li in lines if li.section == "expects"), key=lambda li: li.key)
    for line, entry in zip(expected, used.expects, strict=False):
        line.text = statement_words([entry])
    if _DTYPE not in [(line.section, line.key) for line in lines]:
        lines += [_Line(*_DTYPE, fixed[_DTYPE])] if _DTYPE in fixed else []
    return [
        line
        for line in lines
        if (line.section != "search" or used.search is not None)
        and (line.section != "output" or (line.section, line.key) in fixed)
    ]


def _commented(statement: tree.Statement) -> bool:
    """Return whether a statement has comments; such a statement is neither joined nor split."""
    return bool(statement.above or statement.behind)


def _stated(statements: Sequence[tree.Statement]) -> list[_Line]:
    """Return the lines of statements without comments, or of one with its own."""
    draft = Draft()
    for statement in statements:
        lower_statement(draft, statement)
    plan = draft.plan(Source("", ""), Path())
    alone = bool(statements) and _commented(statements[0])
    lines = list(
        _lines(plan, (lambda entries: [list(entries)] if entries else []) if alone else groups)
    )
    versions = [s.parts[0] for s in statements if s.rule == "version"]
    lines += [_Line("version", 0, f"tailor {number.value!r}") for number in versions]
    places = (s.span.start for s in statements if s.rule == "bounded")
    for line, place in zip((li for li in lines if li.section == "expects"), places, strict=True):
        line.key = place  # expectations stay in the text's order
    for line in lines if alone else ():
        line.above, line.behind = statements[0].above, statements[0].behind
    return lines


def _block_of(
    statement: tree.Statement,
    name: tree.Word,
    statements: Sequence[tree.Statement],
    closing: Sequence[str],
) -> _Line:
    """Return a block's line; inner statements without comments are joined."""
    runs: list[list[tree.Statement]] = []
    for inner in sorted(statements, key=lambda s: s.rule == "limit"):
        if not runs or _commented(inner) or _commented(runs[-1][0]):
            runs.append([])
        runs[-1].append(inner)
    lines: list[_Line] = []
    for run in runs:
        part = tree.Statement(statement.span, "block", (name, run, ()))
        part.above, part.behind = run[0].above, run[0].behind
        lines += _stated([part])
    text = _block_text(name.text, lines, closing)
    return _Line(name.text, 0, text, statement.above, statement.behind)


def _lines(plan: p.Plan, joined: _Joined) -> Iterator[_Line]:
    for name, model in plan.models.items():
        yield _Line("models", (name != "base", name), f"model {name} = {model_source(model)}")
    for name, value in plan.numbers.items():
        yield _Line("numbers", name, f"let {name} = {value_words(value)}")
    if plan.dtype is not None:
        yield _Line(*_DTYPE, f"dtype {plan.dtype}")
    for i, where in enumerate((*p.REST, "chat_template"), 1):
        if (recipe := getattr(plan, where)) is not None:
            yield _Line("output", (i, where), rest_words(where, recipe))
    yield from _entry_lines(plan, joined)
    fields = [*p.Plan.model_fields]
    for name, fit in plan.text_fits.items():
        yield _Line("changes", (5, fields.index(name)), f"{name} {text_fit_words(fit)}")
    if plan.heal is not None:
        yield _Line("changes", (7, ()), heal_lines(plan.heal, _WIDTH))
    yield from _block_lines(plan)


def _entry_lines(plan: p.Plan, joined: _Joined) -> Iterator[_Line]:
    """Yield the lines of the plan's entries, each in its section and with its order there."""
    kinds: dict[type[p.Closed], list[Any]] = {}
    for _, entry in (
        *sites.entries(plan),
        *sites.bounded_measures(plan),
        *sites.enumerated(plan, "gguf"),
    ):
        kinds.setdefault(type(entry), []).append(entry)
    for kind, several in kinds.items():
        form = FORMS[kind]
        for entries in joined(several) if form.joined else zip(several):
            key = form.order, p.normal_order(entries[0])
            yield _Line(form.section, key, statement_words(entries))


def _block_lines(plan: p.Plan) -> Iterator[_Line]:
    stack, search = plan.stack, plan.search
    if stack is not None and stack.limit is not None:
        yield _Line("stack", (1, ()), f"limit {stack.limit} layers")
    for objective in search.objectives if search else ():
        yield _Line("search", (0, ()), objective_words(objective))
    for i, name in enumerate(("fidelity", "trials", "seed"), 2):
        if (value := getattr(search, name, None)) is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            yield _Line("search", (i, ()), f"{name} {'..'.join(map(str, dict.fromkeys(numbers)))}")


def _block_text(name: str, lines: Iterable[_Line], closing: Sequence[str] = ()) -> str:
    inside = [line.shown("  ") for line in sorted(lines, key=lambda line: line.key)]
    inside += [f"  {comment}" for comment in closing]
    return "\n".join([f"{name} {{", *inside, "}"]) if inside else f"{name} {{ }}"
