"""A text into pieces, one for each statement, with their comments; brackets matched on the way.

Each piece is parsed by itself, so that a fault in one never hides the next.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import final

from gptailor.plan.bounds import MOST_FAULTS
from gptailor.plan.faults import Fault, Source, Span

_LEXEME = re.compile(
    r"""(?P<comment>\#[^\r\n]*) | (?P<string>"[^"\r\n]*") | (?P<quote>") | (?P<newline>\r?\n)
      | (?P<semicolon>;) | (?P<open>[({]) | (?P<close>[)}]) | (?P<blank>[ \t]+)
      | (?P<text>[^\#"\r\n;(){} \t]+|\r)""",
    re.VERBOSE,
)

_OPEN = {
    "(": ("'(' is never closed", "close it with ')'"),
    "{": ("'{' is never closed", "close it with '}'"),
    '"': ("the text in quotes doesn't end on its line",
          "close it with '\"'; a text can't contain quotes or line ends"),
}  # fmt: skip
"""Message and help for each opening sign that is not closed."""


@final
@dataclass(slots=True)
class Piece:
    """A statement's stretch of text; a block has the pieces inside its braces."""

    start: int
    end: int
    above: list[str] = field(default_factory=list)
    behind: str = ""
    block: "Pieces | None" = None
    brace: int = -1  # offset of the opening brace
    broken: bool = False  # has a fault already, and can't be parsed


@final
@dataclass(slots=True)
class Pieces:
    """The pieces of a file or block, the comments after the last of them, and the end."""

    items: list[Piece]
    closing: list[str]
    end: int
    closed: bool = True


_Lexemes = Sequence[re.Match[str]]


def split(source: Source) -> tuple[Pieces, list[Fault]]:
    """Return the pieces of a text, and faults for brackets and quotes that are not closed."""
    lexemes = [*_LEXEME.finditer(source.text)]
    matched, faults = _match_brackets(lexemes)
    return _Splitter(source.text, lexemes, matched).pieces(until_brace=False), faults


def _match_brackets(lexemes: _Lexemes) -> tuple[set[re.Match[str]], list[Fault]]:
    """Return the brackets that have a partner, and a fault for each that is never closed."""
    stack: list[re.Match[str]] = []
    unclosed: list[re.Match[str]] = []
    matched: set[re.Match[str]] = set()
    braces = 0  # how many of the stack are braces
    for lexeme in lexemes:
        bracket = lexeme.group()
        if lexeme.lastgroup == "open":
            stack.append(lexeme)
            braces += bracket == "{"
        elif lexeme.lastgroup == "close":
            while bracket == "}" and braces and stack[-1].group() == "(":
                unclosed.append(stack.pop())
            if stack and stack[-1].group() == {")": "(", "}": "{"}[bracket]:
                matched |= {stack.pop(), lexeme}
                braces -= bracket == "}"
    opened = chain(unclosed, stack, (each for each in lexemes if each.lastgroup == "quote"))
    open_ = ((opening, *_OPEN[opening.group()]) for opening in islice(opened, MOST_FAULTS + 1))
    return matched, [Fault("S104", message, span=Span(*opening.span()), help=help_)
                     for opening, message, help_ in open_]  # fmt: skip


@final
class _Splitter:
    """Walks the lexemes once; a block is a recursion of one level, since blocks don't nest."""

    def __init__(self, text: str, lexemes: _Lexemes, matched: Set[re.Match[str]]) -> None:
        self.text = text
        self.lexemes, self.matched = lexemes, matched
        self.at = 0

    def pieces(self, *, until_brace: bool) -> Pieces:
        """Return the pieces up to the end of the text, or to the brace that closes this block."""
        items: list[Piece] = []
        comments: list[str] = []
        ended_on: Piece | None = None  # the last piece, while its line goes on
        while self.at < len(self.lexemes):
            lexeme = self.lexemes[self.at]
            if until_brace and self._is(lexeme, "}"):
                self.at += 1
                return Pieces(items, comments, lexeme.end())
            if lexeme.lastgroup in ("newline", "semicolon", "blank"):
                ended_on = None if lexeme.lastgroup == "newline" else ended_on
                self.at += 1
            elif lexeme.lastgroup == "comment":
                self.at += 1
                words = lexeme.group().rstrip()
                if ended_on is not None and not comments and not ended_on.behind:
                    ended_on.behind = words
                else:
                    comments.append(words)
            else:
                ended_on = self._piece(comments, inside=until_brace)
                items.append(ended_on)
                comments = []
        return Pieces(items, comments, len(self.text), closed=not until_brace)

    def _is(self, lexeme: re.Match[str], bracket: str) -> bool:
        return lexeme in self.matched and lexeme.group() == bracket

    def _piece(self, above: list[str], *, inside: bool) -> Piece:
        """Return one statement: up to a newline or `;` outside parentheses."""
        piece = Piece(self.lexemes[self.at].start(), self.lexemes[self.at].start(), list(above))
        depth = 0
        while self.at < len(self.lexemes):
            lexeme = self.lexemes[self.at]
            at_end = lexeme.lastgroup in ("comment", "newline", "semicolon")
            if depth == 0 and (at_end or (inside and self._is(lexeme, "}"))):
                break
            self.at += 1
            if lexeme.lastgroup == "comment":
                piece.above.append(lexeme.group().rstrip())
            elif lexeme.lastgroup not in ("blank", "newline"):
                piece.end = lexeme.end()
            brace = lexeme.group() == "{"
            if brace and not inside and piece.block is None:
                piece.brace = lexeme.start()
                piece.block = self.pieces(until_brace=True)
                piece.end = piece.block.end
            elif lexeme in self.matched:
                depth += 1 if lexeme.lastgroup == "open" else -1
            elif lexeme.lastgroup in ("quote", "open"):
                piece.broken = True
        return piece
