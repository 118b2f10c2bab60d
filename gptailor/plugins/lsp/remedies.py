"""Changes of a text that mend its faults, as the faults' helps suggest them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

from gptailor.plan.faults import Fault, Span, errors
from gptailor.plugins.lsp.plan_text import PlanText


@final
@dataclass(frozen=True, slots=True)
class Edit:
    """New words for a stretch of the text."""

    span: Span
    words: str


def edited(text: str, edits: Sequence[Edit]) -> str:
    """Return a text after edits that don't overlap."""
    for edit in sorted(edits, key=lambda edit: edit.span.start, reverse=True):
        text = text[: edit.span.start] + edit.words + text[edit.span.end :]
    return text


@final
@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that mends a fault: its title and edits; `sure` if no other change would do."""

    title: str
    edits: tuple[Edit, ...]
    fault: Fault
    sure: bool = True


def remedies(text: PlanText, faults: Sequence[Fault]) -> Iterator[Remedy]:
    """Yield the changes that faults' helps suggest, if they mend the fault.

    A fault against models can't be checked in the new text, so its change is never `sure`.
    """
    for fault in faults:
        if fault.span is None:
            continue
        for codes, help_, mend in _MENDS:
            hint = re.search(help_, fault.help) if re.match(codes, fault.code) else None
            remedy = None if hint is None else mend(text, fault, fault.span, hint)
            if remedy is not None and _mends(text, remedy):
                yield replace(remedy, sure=remedy.sure and fault in text.faults)
                break


_MOST_REMEDIES = 1000
"""Changes of one text, which each remove a fault."""


def fixed(text: PlanText) -> tuple[PlanText, list[str]]:
    """Return the text after all sure remedies of its faults, and their titles."""
    titles: list[str] = []
    for _ in range(_MOST_REMEDIES):
        sure = (remedy for remedy in remedies(text, text.faults) if remedy.sure)
        if (remedy := next(sure, None)) is None:
            break
        titles.append(remedy.title)
        text = PlanText(text.path, edited(text.text, remedy.edits))
    return text, titles


def _mends(text: PlanText, remedy: Remedy) -> bool:
    """Return whether the fault disappears without a new syntax fault.

    A fault against models, which are checked later, counts as mended if no other error appears.
    """
    after = PlanText(text.path, edited(text.text, remedy.edits))
    if remedy.fault not in text.faults:
        return len(errors(after.faults)) <= len(errors(text.faults))
    same = [_alike(fault) for fault in after.faults].count(_alike(remedy.fault))
    before = [_alike(fault) for fault in text.faults].count(_alike(remedy.fault))
    broken = [fault for fault in after.faults if fault.code.startswith("S")]
    was_broken = [fault for fault in text.faults if fault.code.startswith("S")]
    return same < before and len(broken) <= len(was_broken) - (remedy.fault in was_broken)


def _alike(fault: Fault) -> tuple[str, str]:
    return fault.code, fault.message


def _misspelled(text: PlanText, fault: Fault, span: Span, hint: re.Match[str]) -> Remedy:
    """Write the nearest name."""
    written = text.text[span.start : span.end]
    quoted = re.findall(r"'([^']+)'", fault.message)
    matches = (re.search(rf"(?<!\w){re.escape(word)}(?!\w)", written) for word in quoted)
    start, end = next((match.span() for match in matches if match), (0, len(written)))
    edit = Edit(Span(span.start + start, span.start + end), hint[1])
    return Remedy(f"change '{written[start:end]}' to '{hint[1]}'", (edit,), fault)


def _undeclared(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy | None:
    name = text.text[span.start : span.end]
    declared = [word for word in text.words if word.declares and word.kind == "model"]
    if not re.fullmatch(r"[^\W\d]\w*", name) or not declared:
        return None
    end = text.text.find("\n", declared[-1].span.end)
    at = len(text.text) if end < 0 else end
    edit = Edit(Span(at, at), f'\nmodel {name} = "./{name}"')
    return Remedy(f"declare the model '{name}'", (edit,), fault, sure=False)


def _no_version(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy:
    if span.end > span.start:  # it stands further down
        removal = Edit(Span(span.start, _line_end(text, span.end)), "")
        first = Edit(Span(0, 0), f"{text.text[span.start : span.end]}\n")
        return Remedy("move the version to the top", (first, removal), fault)
    return Remedy("write 'tailor 1' at the top", (Edit(Span(0, 0), "tailor 1\n"),), fault)


def _line_end(text: PlanText, offset: int) -> int:
    """Return the end of the line if only blanks are left of it, else the offset."""
    blanks = re.compile(r"[ \t]*(\r?\n)?").match(text.text, offset)
    return blanks.end() if blanks is not None else offset


def _missing_base(text: PlanText, fault: Fault, _: Span, hint: re.Match[str]) -> Remedy:
    version = re.match(r"(?:\s*#.*\n|\s*\n)*\s*tailor 1[ \t]*(#.*)?\n?", text.text)
    at = version.end() if version is not None else 0
    before = "\n" if at and text.text[at - 1] != "\n" else ""
    edit = Edit(Span(at, at), f"{before}{hint[1]}\n")
    return Remedy("declare the base", (edit,), fault, sure=False)


def _rewritten(text: PlanText, fault: Fault, span: Span, hint: re.Match[str]) -> Remedy | None:
    """Write a range in the right order."""
    written = text.text[span.start : span.end]
    wrong = re.search(r"L\d+\s*\.\.\s*L\d+|\S+\s*\.\.\s*\S+", written)
    if wrong is None:
        return None
    start = span.start + wrong.start()
    edit = Edit(Span(start, start + len(wrong[0])), hint[1])
    return Remedy(f"change '{wrong[0]}' to '{hint[1]}'", (edit,), fault)


def _quoted_anew(text: PlanText, fault: Fault, span: Span, hint: re.Match[str]) -> Remedy | None:
    """Write a folder with the sign that begins it."""
    source = re.search(r'"([^"]*)"', text.text[span.start : span.end])
    if source is None:
        return None
    edit = Edit(Span(span.start + source.start(1), span.start + source.end(1)), hint[1])
    return Remedy(f'change "{source[1]}" to "{hint[1]}"', (edit,), fault)


def _left_out(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy | None:
    """Remove a word without effect."""
    word = text.text[span.start : span.end]
    if fault.code == "P506" and word not in ("maybe", "tied"):
        return None
    end = span.end + len(text.text[span.end :]) - len(text.text[span.end :].lstrip(" \t"))
    return Remedy(f"remove '{word}'", (Edit(Span(span.start, end), ""),), fault)


def _unused(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy | None:
    statement = next(s for s in text.tree.statements if s.span.start <= span.start < s.span.end)
    if statement.behind:
        return None
    edit = Edit(Span(statement.span.start, _line_end(text, statement.span.end)), "")
    return Remedy("remove the number that is never used", (edit,), fault, sure=False)


def _no_method(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy:
    piece = text.piece_at(span.start + 1)[0]
    end = span.end if piece is None else piece.end
    edit = Edit(Span(end, end), " by linear()")
    return Remedy("merge 'by linear()'", (edit,), fault, sure=False)


def _not_closed(text: PlanText, fault: Fault, span: Span, hint: re.Match[str]) -> Remedy:
    line = re.compile(r"[^#\r\n]*").match(text.text, span.end)
    at = span.end + len(line[0].rstrip()) if line is not None else span.end
    return Remedy(f"close it with {hint[1]}", (Edit(Span(at, at), hint[1]),), fault)


_SYNTAX: tuple[tuple[str, re.Pattern[str], Callable[[str], str]], ...] = (
    ("have parentheses", re.compile(r"\b(\w+)(?=\s*$)"), lambda wrong: f"{wrong}()"),
    ("double quotes", re.compile(r"'[^'\r\n]*'|[“”„][^“”\"\r\n]*[“”\"]"), lambda s: f'"{s[1:-1]}"'),
    ("a range is written", re.compile(r"L\d+\s*(?:-|:|…|\u2013|to)\s*L?\d+"),
     lambda wrong: "..".join(f"L{n}" for n in re.findall(r"\d+", wrong))),
    ("both sides of its point", re.compile(r"(?<![\w.])\.\d+|(?<![\w.])\d+\.(?![\d.])"),
     lambda wrong: f"0{wrong}" if wrong[0] == "." else f"{wrong}0"),
    ("looks like a space", re.compile(r"[^\S \t\r\n]|[\u200b\ufeff]"), lambda _: " "),
    ("a comment starts with", re.compile(r"//|--|/\*"), lambda _: "#"),
)  # fmt: skip
"""A part of the help, the wrong characters, and their correction."""


def _syntax(text: PlanText, fault: Fault, span: Span, _: re.Match[str]) -> Remedy | None:
    """Follow a help on syntax that one change fulfils."""
    piece = text.piece_at(span.start + 1 if span.end > span.start else span.start)[0]
    if piece is None:
        return None
    for help_, wrong, right in _SYNTAX:
        if help_ not in fault.help:
            continue
        start, end = piece.start, span.start if "parentheses" in help_ else piece.end
        for match in wrong.finditer(text.text, start, end):
            words = right(match[0])
            edit = Edit(Span(*match.span()), words)
            remedy = Remedy(f"write {words.strip() or 'a space'}", (edit,), fault)
            if "parentheses" in help_ or match.end() >= span.start:
                return remedy
    return None


_MENDS: tuple[
    tuple[str, str, Callable[[PlanText, Fault, Span, re.Match[str]], Remedy | None]], ...
] = (
    ("", r"^did you mean '(.+)'\?$", _misspelled),
    ("P106", "^(?!did you mean)", _undeclared),
    ("P101", "", _no_version),
    ("", r'add a line such as (model base = "[^"]+")', _missing_base),
    ("", r"^write (\S+\.\.\S+|-?[\d.e+]+)$", _rewritten),
    ("", r'(?:begin the path of .*:|; write) "(\./[^"]+)"$', _quoted_anew),
    ("P50[67]", "", _left_out),
    ("P115", "", _unused),
    ("P307|P502", "", _no_method),
    ("S104", "^close it with '(.)'", _not_closed),
    ("S", "", _syntax),
)
"""The codes and the help that a change follows, as patterns, and the function that makes it."""
