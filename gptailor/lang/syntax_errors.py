"""A syntax fault in words: what was expected, what was found, and the likely remedy."""

import re
import unicodedata

import lark

from gptailor.plan.faults import Fault, Source, Span, listed, nearest

_WORDS = {
    "LAYER": "a layer such as L12",
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a text in double quotes",
    "$END": "the end of the statement",
    "__ANON_0": "'..'",
    "SEMICOLON": "';'",
    "EQUAL": "'='",
    "PLUS": "'+'",
    "AT": "'@'",
    "COMMA": "','",
    "LPAR": "'('",
    "RPAR": "')'",
    "DOT": "'.'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
}

_STARTS = {
    "statement": [
        "tailor",
        "model",
        "dtype",
        "embed",
        "norm",
        "head",
        "tokenizer",
        "merge",
        "drop",
        "scale",
        "bridge",
        "maybe",
        "tied",
        "stack",
        "search",
    ],
    "item": ["merge", "maybe", "tied", "limit"],
    "wish": ["minimize", "maximize", "fidelity", "trials", "seed"],
}

_LISTED = {
    "statement": "a statement starts with a layer, or with one of ",
    "item": "an item of a stack starts with a layer, or with one of ",
    "wish": "a line of a search block starts with one of ",
}

_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"'[^']*'?"), "a text stands in double quotes"),
    (re.compile(r"//?|--|/\*"), "a comment starts with '#'"),
    (re.compile(r"\.\d"), "a number has a digit on both sides of its point, as in 0.5"),
    (re.compile(r"\r(?!\n)"), "lines end with a line feed, with or without a carriage return"),
)


def fault(source: Source, error: lark.UnexpectedInput, piece: Span, start: str) -> Fault:
    """The fault for what lark says of a piece of text that was to be a statement, item or wish."""
    span = _span(source, error, piece)
    found = source.text[span.start : span.end]
    if span.start == piece.start and found and _first(start, found):
        return _unknown_start(found, span, start)
    if isinstance(error, lark.UnexpectedCharacters) and not found[:1].isascii():
        named = unicodedata.name(found[0], "no name")
        message = f"the character U+{ord(found[0]):04X} ({named}) has no meaning here"
        return Fault("S103", message, span=span, help=_hint(source, span))
    wanted = listed(_wanted(error), "or") or "nothing more"
    said = f"'{_short(found)}'" if found else "the end of the statement"
    return Fault(
        "S101",
        f"expected {wanted}, found {said}",
        span=span,
        help=_hint(source, span) or _remedy(error, source, span, piece, start),
    )


def _first(start: str, found: str) -> bool:
    return found not in _STARTS[start] and not re.fullmatch(r"L\d+", found)


def _unknown_start(found: str, span: Span, start: str) -> Fault:
    words = _STARTS[start]
    help_ = nearest(found, words) or next((h for p, h in _HINTS if p.match(found)), "")
    if re.fullmatch(r"l\d+", found):
        help_ = f"did you mean '{found.upper()}'?"
    if not help_:
        help_ = _LISTED[start] + listed((f"'{word}'" for word in words), "or")
    noun = {"statement": "statement", "item": "item of a stack", "wish": "line of a search block"}
    return Fault("S102", f"no {noun[start]} starts with '{_short(found)}'", span=span, help=help_)


def _span(source: Source, error: lark.UnexpectedInput, piece: Span) -> Span:
    """The words that were not expected; at the end of a piece its last character."""
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return Span(piece.end, piece.end)
    if token is not None:
        return Span(token.start_pos, token.end_pos)
    at = error.pos_in_stream or piece.start
    word = re.compile(r"'[^'\r\n]*'?|[\w.-]+|\S|\s").match(source.text, at, piece.end)
    return Span(at, word.end() if word else at + 1)


def _wanted(error: lark.UnexpectedInput) -> list[str]:
    """What could have stood there, the most telling first, at most six."""
    if isinstance(error, lark.UnexpectedToken):
        names = set(error.accepts or error.expected)
    else:
        names = set(getattr(error, "allowed", None) or ())
    names -= {"_NL", "COMMENT", "__IGNORE_0", "SEMICOLON"}
    words = [_WORDS.get(name, f"'{name.lower()}'") for name in names]
    order = sorted(words, key=lambda word: (word.startswith("'"), word.startswith("the end"), word))
    return order if len(order) <= 6 else [*order[:5], "something else"]


def _hint(source: Source, span: Span) -> str:
    return next((help_ for p, help_ in _HINTS if p.match(source.text, span.start)), "")


def _remedy(
    error: lark.UnexpectedInput, source: Source, span: Span, piece: Span, start: str
) -> str:
    """What to do, where the words before and after say what was meant."""
    wanted = _wanted(error)
    before = source.text[piece.start : span.start].rstrip()
    found = source.text[span.start : span.end]
    if "'..'" in wanted and found[:1] in ("-", ":", "…") and re.search(r"L\d+$", before):
        return "a range is written L0..L9"
    if wanted == ["'('"] and re.search(r"\bby\s+(one\s+of\s+)?\w+$", before):
        return "a method has parentheses: " + before.split()[-1] + "()"
    if before.endswith(".") and found[:1].isdigit():
        return "a number has a digit on both sides of its point, as in 0.5"
    if found == "from" and start == "item":
        return "an item of a stack is written without 'from', as in L0..L9 math"
    if found == "." and before[-1:].isdigit():
        return "a number has a digit on both sides of its point, as in 5.0"
    return nearest(found, [word.strip("'") for word in wanted if word[:1] == "'"])


def _short(text: str) -> str:
    text = text if len(text) <= 40 else text[:37] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
