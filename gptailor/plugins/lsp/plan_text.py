"""A plan's text with its words, statements and faults, for editors and for `check --fix`."""

import re
from functools import cached_property
from pathlib import Path

from gptailor.lang import tree
from gptailor.lang.parse import parse, read_json, read_text
from gptailor.lang.split import Piece, Pieces, split
from gptailor.plan.faults import Fault, Source, Span
from gptailor.plan.plan import Plan
from gptailor.plugins.lsp.names import Occurrence, occurrences


class PlanText:
    """One version of a text, with its plan. Relative paths start at its file's folder."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        shown = " " + text[1:] if text[:1] == "\ufeff" else text  # a mark that isn't a character
        self.source = Source(str(path), shown)

    @property
    def text(self) -> str:
        """The text, with a blank in place of a byte-order mark."""
        return self.source.text

    @property
    def folder(self) -> Path:
        """The folder at which relative paths start."""
        return self.path.parent

    @property
    def is_json(self) -> bool:
        """Return whether the text is a plan in JSON, without words of the language."""
        return self.text.lstrip()[:1] == "{"

    @cached_property
    def _reading(self) -> tuple[Plan | None, list[Fault]]:
        return (read_json if self.is_json else read_text)(self.source, self.folder)

    @property
    def plan(self) -> Plan | None:
        """The plan of the statements that could be read."""
        return self._reading[0]

    @property
    def faults(self) -> list[Fault]:
        """The faults of the plan by itself."""
        return self._reading[1]

    @cached_property
    def tree(self) -> tree.File:
        """The statements that could be read."""
        if self.is_json:
            return tree.File(Span(0, 0), (), ())
        origin = self.plan.origin if self.plan is not None else None
        parsed: tree.File | None = origin.tree if origin is not None else None
        return parsed if parsed is not None else parse(self.source)[0]

    @cached_property
    def words(self) -> tuple[Occurrence, ...]:
        """All words of the statements that could be read."""
        return occurrences(self.tree)

    @cached_property
    def pieces(self) -> Pieces:
        """The stretches of all statements, even unreadable statements."""
        return split(self.source)[0]

    def piece_at(self, offset: int) -> tuple[Piece | None, str]:
        """Return the statement at an offset, or before it in its line, and its grammar rule.

        Without a statement, return the rule of a new statement: `statement`, `item` or `wish`.
        """
        return self._piece(self.pieces, offset, "statement")

    def _piece(self, pieces: Pieces, offset: int, start: str) -> tuple[Piece | None, str]:
        for piece in pieces.items:
            block = piece.block
            if block is not None and piece.brace < offset <= block.end - block.closed:
                head = self.text[piece.start : piece.brace].strip()
                inner = {"stack": "item", "search": "wish"}.get(head, "statement")
                return self._piece(block, offset, inner)
            ended = self.text[piece.end : offset]
            if piece.start < offset and (offset <= piece.end or re.fullmatch(r"[ \t]*", ended)):
                return piece, start
        return None, start
