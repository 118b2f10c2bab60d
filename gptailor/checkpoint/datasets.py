"""Read the files of objectives into rows: text, and JSON lines with common fields.

A file named `.jsonl`, `.ndjson` or `.json` has a JSON object on each line. Blank lines are skipped,
and unknown fields are ignored. Any other file is one text. All files are UTF-8.
"""

import hashlib
import json
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import quoted, reason
from gptailor.plan.faults import CodedError, listed, nearest_path
from gptailor.plan.plan import NO_TEXT, has_predictions
from gptailor.plan.registry import RowForm

LINES = frozenset([".jsonl", ".ndjson", ".json"])
"""Endings of files with a JSON object on each line."""

_EXAMPLES: Mapping[RowForm, str] = {
    "text": '{"text": "…"}, or with "prompt" and "response", or with "context" and "answer"',
    "choice": '{"query": "…", "choices": ["…", "…"], "gold": 0}',
    "answer": '{"context": "…", "answer": "…"}',
    "chat": '{"text": "…"}, or with "prompt" and "response", or with "messages"',
    "prompt": '{"prompt": "…"}, or with "messages", or with "text"',
    "opening": '{"prompt": "…"}, or with "messages", or with "text" or "context"',
}
_PROMPTS = frozenset(["prompt", "opening"])
"""Forms of rows that plain text doesn't have."""


@final
class CalibrationError(CodedError):
    """An unusable calibration file: a stable code, the fault and its place."""

    def __init__(
        self, code: str, message: str, path: Path, line: int | None = None, help: str = ""
    ) -> None:
        super().__init__(code, message, help)
        self.args = code, message, path, line, help  # as pickle hands them over
        self.path, self.line = path, line

    @property
    def place(self) -> str:
        """The path for people, and the line."""
        return quoted(str(self.path))[1:-1] + ("" if self.line is None else f":{self.line}")


def too_short(path: Path, size: str, user: str, needed: int, help: str = "") -> CalibrationError:
    """Return the error (C806) for a text with fewer tokens than a bridge or healing needs."""
    message = f"the text has {size}, and {user} needs {needed:,}"
    return CalibrationError("C806", message, path, help=help or "give more text")


@final
@dataclass(frozen=True)
class Passage:
    """A text in which all tokens count."""

    text: str
    line: int | None = None


@final
@dataclass(frozen=True)
class Exchange:
    """A context and its continuation, with other continuations that are right too."""

    context: str
    continuation: str
    aliases: tuple[str, ...] = ()
    line: int | None = None


@final
@dataclass(frozen=True)
class Question:
    """Pairs of context and continuation; the pair with number `gold` is right.

    `choices` are the texts in which the pairs differ, as in the row.
    """

    pairs: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int
    line: int | None = None


@final
@dataclass(frozen=True)
class Chat:
    """Messages in order, each with its role and its content."""

    messages: tuple[Mapping[str, str], ...]
    line: int | None = None

    @property
    def asked(self) -> "Chat":
        """The chat without an answer at its end."""
        answered = self.messages[-1]["role"] == "assistant"
        return Chat(self.messages[:-1], self.line) if answered else self


TextOrChat = Passage | Exchange | Chat


def each_row(path: Path, form: RowForm) -> Iterator[Any]:
    """Yield the rows of a file by their form, or the one text of a file that isn't JSON lines.

    A row of text has `text`, or `prompt` and `response`, or `context` and `answer`; a row of chats
    may also have `messages`, each with a `role` and a `content`. A row of choices has `query` and
    `choices`, or `context_options` and `continuation` for Winograd schemas, and `gold`, the number
    of the right choice, from 0. A row of answers has `context` and `answer`, and `aliases` are
    other right answers. Raises CalibrationError.
    """
    for _, row in _placed_rows(path, form):
        yield row


def read_rows(path: Path, form: RowForm) -> list[Any]:
    """Read all rows of a file, as `each_row` yields them. Raises CalibrationError."""
    return list(each_row(path, form))


def _passage(path: Path) -> Passage:
    """Read a file that isn't JSON lines."""
    _refuse_predictions(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise _no_utf8(path, error.start) from None
    if not text.strip():
        raise CalibrationError("C802", "the file has no text", path)
    return Passage(text)


@final
class StoredTexts:
    """The rows of a file of texts and chats, in any order. Only their places are in memory.

    All rows are read once and checked. `kinds` are their types. A file that isn't JSON lines is
    one `whole` text. Raises CalibrationError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = path.suffix.lower() not in LINES
        self.kinds: set[type[TextOrChat]] = set()
        self._places, self._lines = array("q"), array("q")
        for place, row in _placed_rows(path, "chat"):
            self.kinds.add(type(row))
            self._places.append(place)
            self._lines.append(row.line or 0)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._places)

    def read(self, numbers: Iterable[int]) -> Iterator[TextOrChat]:
        """Yield the rows with these numbers."""
        if self.whole:
            yield _passage(self.path)
            return
        try:
            with self.path.open("rb") as file:
                for number in numbers:
                    file.seek(self._places[number])
                    text = file.readline().splitlines()[0].decode("utf-8")
                    yield _row(self.path, self._lines[number], text, "chat")
        except OSError as error:
            raise _unreadable(self.path, error) from None
        except (UnicodeDecodeError, IndexError):
            raise CalibrationError(
                "C801", "the file changed while it was read", self.path
            ) from None


_LONGEST_FIRST_ROW = 2**20
"""Characters of a first row, at most, that is judged before the file is used."""


def check_first_row(path: Path, form: RowForm, *, answered: bool = False) -> None:
    """Raise CalibrationError (C801 to C804) if a file's first row has another form.

    With `answered` the row must have an answer. Plain text has no rows, and no other row is read. A
    very long row raises nothing, and neither does one that isn't UTF-8.
    """
    has_rows = path.suffix.lower() in LINES
    if not has_rows and form in _PROMPTS:
        raise _no_prompts(path, form)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            lines = iter(partial(file.readline, _LONGEST_FIRST_ROW), "") if has_rows else ()
            filled = ((n, line) for n, line in enumerate(lines, 1) if line.strip())
            number, text = next(filled, (0, ""))
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        return  # reported with its offset when the file is read
    if not has_rows or len(text) == _LONGEST_FIRST_ROW:
        return
    if not text:
        raise _no_rows(path)
    row = _row(path, number, text, form)
    if answered:
        require_answer(path, row)


def require_answer(path: Path, row: object) -> None:
    """Raise CalibrationError (C804) for a row without an answer, which `loss answers` needs."""
    if isinstance(row, Exchange) or (isinstance(row, Chat) and row.asked != row):
        return
    message = "the row has no answer, which 'loss answers' needs"
    help_ = 'give rows such as {"prompt": "…", "response": "…"}, or remove \'loss answers\''
    raise CalibrationError("C804", message, path, getattr(row, "line", None), help_)


def order(size: int, seed: int) -> list[int]:
    """Return the numbers below `size` in the order in which samples are drawn.

    The order depends on the seed and the number alone, in every version of Python. A lower fidelity
    has the first samples of a higher fidelity.
    """
    lots = [hashlib.blake2b(f"{seed}:{n}".encode(), digest_size=8).digest() for n in range(size)]
    return sorted(range(size), key=lots.__getitem__)


def joined_text(context: str, continuation: str) -> str:
    """Return the continuation after the context, with a blank before it if neither has one."""
    apart = not context or context[-1].isspace() or continuation[:1].isspace()
    return continuation if apart else f" {continuation}"


def whole_text(row: Passage | Exchange) -> str:
    """Return all text of a row: a passage, or a context and its continuation."""
    if isinstance(row, Passage):
        return row.text
    return row.context + joined_text(row.context, row.continuation)


# --------------------------------------------------------------------------------------- the rows


@final
class _RowError(Exception):
    """A fault of a row."""


def _text_row(row: Mapping[str, Any], line: int) -> Passage | Exchange:
    if "text" not in row and "prompt" in row and "response" in row:
        return Exchange(_text(row, "prompt"), _filled(row, "response"), (), line)
    if "text" not in row and "context" in row and "answer" in row:
        return _exchange(row, line)
    return Passage(_filled(row, "text"), line)


def _text_or_chat(row: Mapping[str, Any], line: int) -> Passage | Exchange | Chat:
    if "text" not in row and "messages" in row and not {"prompt", "context"} & row.keys():
        return Chat(_messages(row), line)
    return _text_row(row, line)


def _prompt(row: Mapping[str, Any], line: int) -> Passage | Chat:
    if "messages" in row:
        asked = Chat(_messages(row), line).asked
        if not asked.messages:
            raise _RowError("'messages' has an answer without a question")
        return asked
    return Passage(_filled(row, "prompt" if "prompt" in row else "text"), line)


def _opening(row: Mapping[str, Any], line: int) -> Passage | Chat:
    """Return a chat to be answered, or a text to be continued unchanged."""
    if "messages" in row:
        return _prompt(row, line)
    if "prompt" in row:
        return Chat(({"role": "user", "content": _filled(row, "prompt")},), line)
    return Passage(_filled(row, "text" if "text" in row else "context"), line)


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    entries = _field(row, "messages")
    if not isinstance(entries, list) or not entries:
        raise _RowError("'messages' must be a list of messages")
    if not all(isinstance(entry, dict) for entry in entries):
        raise _RowError("a message must be an object with 'role' and 'content'")
    return tuple({"role": _filled(e, "role"), "content": _text(e, "content")} for e in entries)


def _exchange(row: Mapping[str, Any], line: int) -> Exchange:
    aliases = _texts(row, "aliases") if row.get("aliases") else ()
    return Exchange(_text(row, "context"), _filled(row, "answer"), aliases, line)


def _question(row: Mapping[str, Any], line: int) -> Question:
    if "context_options" in row:
        choices, continuation = _texts(row, "context_options"), _filled(row, "continuation")
        pairs = [(choice, continuation) for choice in choices]
    else:
        query, choices = _text(row, "query"), _texts(row, "choices")
        pairs = [(query, choice) for choice in choices]
    gold = _field(row, "gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise _RowError(f"'gold' must be a whole number from 0 to {len(choices) - 1}")
    if len(choices) < 2:
        raise _RowError("expected at least two choices, got one")
    return Question(tuple((c, joined_text(c, a)) for c, a in pairs), choices, gold, line)


def _field(row: Mapping[str, Any], field: str) -> Any:
    if field not in row:
        fields = listed(quoted(name) for name in list(row)[:8])
        more = f"; it has {fields}" if fields else "; it is empty"
        raise _RowError(f"the row has no '{field}'{more}")
    return row[field]


def _text(row: Mapping[str, Any], field: str) -> str:
    return _checked(_field(row, field), f"'{field}'")


def _filled(row: Mapping[str, Any], field: str) -> str:
    if not (text := _text(row, field)):
        raise _RowError(f"'{field}' is empty")
    return text


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    entries = _field(row, field)
    if not isinstance(entries, list) or not entries:
        raise _RowError(f"'{field}' must be a list of texts")
    texts = tuple(_checked(text, f"an entry of '{field}'") for text in entries)
    if "" in texts:
        raise _RowError(f"an entry of '{field}' is empty")
    return texts


def _checked(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _RowError(f"{what} is not a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _RowError(f"{what} is not valid text: half a surrogate pair")
    return value


_READERS: Mapping[RowForm, Callable[[Mapping[str, Any], int], object]] = {
    "text": _text_row, "chat": _text_or_chat, "prompt": _prompt, "choice": _question,
    "answer": _exchange, "opening": _opening,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- files


def _unreadable(path: Path, error: OSError) -> CalibrationError:
    help_ = nearest_path(path) if isinstance(error, FileNotFoundError) else ""
    return CalibrationError("C801", f"can't be read: {reason(error)}", path, help=help_)


def _no_rows(path: Path) -> CalibrationError:
    return CalibrationError("C802", "the file has no rows", path)


def _no_prompts(path: Path, form: RowForm) -> CalibrationError:
    help_ = f"name a file such as prompts.jsonl; a row is {_EXAMPLES[form]}"
    return CalibrationError("C803", "prompts must be JSON Lines", path, help=help_)


def _row(path: Path, line: int, text: str, form: RowForm) -> Any:
    row = _object(path, line, text, _EXAMPLES[form])
    try:
        return _READERS[form](row, line)
    except _RowError as error:
        help_ = f"a row is {_EXAMPLES[form]}"
        raise CalibrationError("C804", str(error), path, line, help_) from None


def _placed_rows(path: Path, form: RowForm) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file, each after its place in bytes. Raises CalibrationError.

    A file that isn't JSON lines has one row, its text.
    """
    if path.suffix.lower() not in LINES and form not in {"choice", "answer"}:
        if form in _PROMPTS:
            raise _no_prompts(path, form)
        yield 0, _passage(path)
        return
    empty = True
    for place, line, text in _placed_lines(path):
        if text.strip():
            yield place, _row(path, line, text, form)
            empty = False
    if empty:
        raise _no_rows(path)


def _placed_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield the lines of a file, each after its place in bytes and its number, from 1."""
    _refuse_predictions(path)
    number, place = 0, 0
    try:
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:
                place = len(BOM_UTF8)
            begin = place
            file.seek(place)
            for lines in file:  # bytes have fewer line breaks than texts
                for line in lines.splitlines(keepends=True):
                    number += 1
                    try:
                        yield place, number, line.decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise _no_utf8(path, place - begin + error.start) from None
                    place += len(line)
    except OSError as error:
        raise _unreadable(path, error) from None


def _object(path: Path, line: int, text: str, example: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
        if isinstance(row, dict):
            return row
        message = "the line is not a JSON object"
    except ValueError as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        message = f"the line is not JSON: {why}"
    except RecursionError:
        message = "the line is nested too deeply"
    raise CalibrationError(
        "C803", message, path, line, f"each line must be an object such as {example}"
    )


def _refuse_predictions(path: Path) -> None:
    if has_predictions(path.name):
        raise CalibrationError("C803", NO_TEXT, path, help="name the file of the text")


def _no_utf8(path: Path, place: int) -> CalibrationError:
    return CalibrationError("C801", f"not UTF-8: invalid byte at offset {place}", path)
