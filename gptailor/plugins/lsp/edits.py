"""Changes of a text for an editor: its canonical form, and new names."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import final

from gptailor.lang.format import format_text
from gptailor.lang.tree import Statement
from gptailor.plan.faults import Span, TailorError
from gptailor.plan.registry import WORDS
from gptailor.plugins.lsp.names import Occurrence
from gptailor.plugins.lsp.plan_text import PlanText
from gptailor.plugins.lsp.remedies import Edit, edited
from gptailor.plugins.lsp.text import EditedText


def canonical_edits(text: PlanText) -> list[Edit]:
    """Return the edits of lines that make a text canonical; [] for faulty texts and JSON."""
    canonical, _ = (None, []) if text.is_json else format_text(text.source)
    if canonical is None:
        return []
    before, after = text.text.splitlines(keepends=True), canonical.splitlines(keepends=True)
    starts = [0]
    for line in before:
        starts.append(starts[-1] + len(line))
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [
        Edit(Span(starts[a], starts[b]), "".join(after[c:d]))
        for tag, a, b, c, d in changes
        if tag != "equal"
    ]


# ------------------------------------------------------------------------------------------- names


@final
class RenameError(TailorError):
    """A name that can't be changed, with the reason."""


def nameable(text: EditedText, offset: int) -> Occurrence:
    """Return the model or the number at an offset that may have another name."""
    word = text.word_at(offset)
    if word is None or not word.named:
        raise RenameError("only models and numbers can be renamed")
    if text.declaration(word) is None:
        raise RenameError(f"the {word.kind} '{word.text}' is not declared")
    if (word.kind, word.text) == ("model", "base"):
        raise RenameError("the model that gives the positions is always named 'base'")
    return word


def renamed(text: EditedText, offset: int, name: str) -> list[Edit]:
    """Return the edits that give a model or a number another name everywhere."""
    word = nameable(text, offset)
    if name == word.text:
        return []
    if not re.fullmatch(r"[^\W\d]\w*", name):
        raise RenameError("use letters, digits and '_', and don't begin with a digit")
    if re.fullmatch(r"L\d+", name):
        raise RenameError(f"'{name}' is the name of a layer")
    if name in WORDS:
        raise RenameError(f"'{name}' is a reserved word")
    plan = text.plan
    for kind, declared in (("model", plan.models), ("number", plan.numbers)) if plan else ():
        if name in declared:
            raise RenameError(f"there is a {kind} '{name}' already")
    _all_read(text, word, name)
    edits = [Edit(use.span, name) for use in text.uses(word)]
    _only_renamed(text, word, name, edits)
    return edits


def _all_read(text: PlanText, word: Occurrence, name: str) -> None:
    """Raise RenameError if an unreadable statement contains the old or the new name."""
    read = list(_read_spans(text.tree.statements))
    names = re.compile(rf"(?<!\w)(?:{word.text}|{name})(?!\w)")
    for match in names.finditer(text.text):
        line = text.source.position(match.start())[0]
        if any(span.start <= match.start() < span.end for span in read):
            continue
        piece, _ = text.piece_at(match.start() + 1)
        if piece is not None:
            raise RenameError(
                f"line {line} has a fault and contains '{match[0]}'; correct it first"
            )


def _read_spans(statements: Iterable[Statement]) -> Iterator[Span]:
    """Yield the spans of all readable statements, including statements within blocks."""
    for statement in statements:
        if statement.rule != "block":
            yield statement.span
            continue
        _, inner, _ = statement.parts
        start = min([one.span.start for one in inner] or [statement.span.end])
        yield Span(statement.span.start, start)
        yield from _read_spans(inner)


def _only_renamed(text: PlanText, word: Occurrence, name: str, edits: Sequence[Edit]) -> None:
    """Raise RenameError if the edits change more than the name."""
    after = PlanText(text.path, edited(text.text, edits))
    expected = [
        (use.kind, name if (use.kind, use.text) == (word.kind, word.text) else use.text)
        for use in text.words
    ]
    if [(use.kind, use.text) for use in after.words] != expected or len(after.faults) > len(
        text.faults
    ):
        raise RenameError(f"the name '{name}' would change the meaning of the plan")
