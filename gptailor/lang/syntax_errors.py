"""Syntax faults in words: the expected, the found, and a remedy learned from examples.

`LESSONS` is the table: each remedy with samples of its use. It is searched in the way of lark's
`match_examples`: a text is like a sample if the parser has the same state.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal, final

import lark

from gptailor.plan.faults import Fault, Source, Span, listed, nearest


@final
@dataclass(frozen=True)
class Lesson:
    """A remedy, and samples with « » around the characters that it is for.

    `alike` names the condition on a text: the same characters, whatever was expected; the same
    place, whatever was found; or both. Any digit is like any other. `{word}` is the word before.
    """

    remedy: str
    alike: Literal["characters", "place", "both"]
    samples: tuple[str, ...]
    start: str = "statement"


_QUOTES = "write the text in double quotes"
_OBJECTIVE = 'an objective is written with its text in parentheses, as in nll("text.txt")'
_PERCENT = "a bound has no percent sign: 97 % of the base's score are 0.97 * base"
_POINT = "a number has a digit on both sides of its point, as in "
_UNIT = "a size is a number with k, M, G or T directly after it, without B: 160M, or 160000000"
_BYTES = (
    *(
        f"1 «{unit}»"
        for unit in ("MB", "M", "GB", "G", "KB", "kB", "K", "k", "MiB", "GiB", "bytes")
    ),
    *(f"«{count}{unit}»B" for count in ("1", "11", "111", "1111") for unit in "MGKk"),
)
"""Sizes with a unit that the language doesn't have."""

LESSONS = (
    Lesson(_QUOTES, "both", ("model a = «/»models/a", "model a = «.»/models/a", "model a = «~»/a")),
    Lesson(_QUOTES, "both", ("model a = org«/»name", "bridge on «/»t", "bridge on «.»/t")),
    Lesson(
        _QUOTES, "both", ("nll(«/»t)", "nll(«.»/t)", "nll(t«.»txt)", "nll(t«/»txt)"), "objective"
    ),
    Lesson(
        _OBJECTIVE,
        "both",
        ("data«/»t", "t«.»txt", "«/»data/t", "«.»/t", "«~»/t", '«"»t"', 'nll «"»t"'),
        "objective",
    ),
    Lesson(_OBJECTIVE, "both", ("minimize «/»t", "minimize «.»/t", 'minimize «"»t"'), "wish"),
    Lesson(_QUOTES, "characters", ("model a = «'»./a'", "bridge on «'»t'", "«'»a'")),
    Lesson(
        'write a text in straight double quotes: "…"',
        "characters",
        ("L1 from «“»math”", "model a = «”»a”", "model a = «„»a“", "bridge on «\u2018»a"),
    ),
    Lesson(
        "it is invisible or looks like a space; delete it",
        "characters",
        ("L1«\u00a0»from math", "«\u200b»L1 from math", "L1 from «\ufeff»math", "«\u2003»drop L1"),
    ),
    Lesson(
        "end lines with LF or CRLF",
        "characters",
        ("L1 from math«\r»L2 from math",),
    ),
    Lesson(
        "a comment starts with '#'",
        "characters",
        ("«/»/ why", "drop L1 «--» why", "tied «/*» a */"),
    ),
    Lesson(
        "a block is one range: write a statement for each",
        "both",
        ("repeat L1«,» L3", "repeat L1..L2«,» L4"),
    ),
    Lesson(
        "how often a block comes again is written 'times 2'",
        "both",
        ("repeat L1 «2»", "repeat L1..L2 «2»", "repeat window 2 of L1..L4 «2»"),
    ),
    Lesson(
        "a block's length needs a window: repeat window 3 of L1..L9",
        "both",
        ("repeat «3» of L1..L9", "repeat «any» 3 of L1..L9"),
    ),
    Lesson(
        "layers are written L9 or L9..L12; 'drop any 6 of L0..L29' lets a search choose 6 of them",
        "both",
        ("drop «9»..12", "drop «layers» 9-12", "drop «layer» 9"),
    ),
    Lesson(
        "layers are written L9 or L9..L12",
        "both",
        (
            "drop any 6 of «9»..12",
            "drop window 2 of «9»..12",
            "scale «9»..12 by 2",
            "heal «9»..12",
        ),
    ),
    Lesson(
        "the type is given to compile: gptailor compile PLAN -o out.gguf --quantize q4_k_m",
        "both",
        ("«quantize» q4_k_m",),
    ),
    Lesson('write model base = "./base"', "both", ('«base_model» = "./base"',)),
    Lesson(
        "numbers over the layers are curve(0, 1), and one for each source is (0.5, 0.5)",
        "both",
        (
            "L1 from a, b by slerp(«[»0, 1])",
            "L1 from a, b by slerp(t=«[»0, 1])",
            "L1 from a, b by linear(1, «[»0, 1])",
        ),
    ),
    Lesson("in a stack write the layers again", "both", ("«repeat» L1..L2",), "item"),
    Lesson(
        "'heal' and 'repeat' take whole layers",
        "both",
        ("heal L1«.»mlp", "heal L1..L2«.»attn", "repeat L1«.»mlp", "repeat L1..L2«.»attn"),
    ),
    Lesson(
        "'bridge' names one layer, the last one before the gap: bridge L13 on …",
        "both",
        ('bridge L14«..»L17 on "t"', 'bridge L14«,» L20 on "t"'),
    ),
    Lesson(_POINT + "0.5", "characters", ("scale L1 by «.5»", "L1 from a, b by slerp(t=«.5»)")),
    Lesson(_POINT + "5.0", "characters", ("scale L1 by «5.»", "L1 from a, b by slerp(t=«5.»)")),
    Lesson(
        "a range is written L0..L9",
        "both",
        (
            "L0«-»L9 from a",
            "L0«-9» from a",
            "drop L0«:»L9",
            "drop L0 «…» L9",
            "drop L0 «to» L9",
            "L0 «to» L9 from a",
            "scale L0«\u2013»L9 by 2",
            "L0..«9» from a",
            "drop L0..«9»",
            "repeat L0..«9»",
        ),
    ),
    Lesson(
        "write the layers that learn before 'on'",
        "both",
        ('heal on "t" «layers» L1',),
    ),
    Lesson(
        "write 'from' with a teacher before 'on', or directly after a text",
        "both",
        ('heal on "t" tokens 1 «from» math', 'heal on "t" weight 2 «from» math'),
    ),
    Lesson(
        "write all texts, each with its weight, before the settings",
        "both",
        (
            'heal on "t" tokens 1«,» "u"',
            'heal on "t" rank full«,» "u"',
            'heal on "t" loss all«,» "u"',
            'heal on "t" tokens 1 «weight» 2',
            'heal on "t" rank full «weight» 2',
        ),
    ),
    Lesson(
        'a teacher\'s answers are written answers("prompts.jsonl", tokens=256)',
        "place",
        (
            "heal on answers(«prompts»)",
            'heal on answers «"t"»',
            'heal on answers("t" «tokens»=9)',
            'heal on answers("t", «9»)',
            'heal on answers("t", tokens «9»)',
        ),
    ),
    Lesson(
        "the teacher is one model, without a choice",
        "both",
        (
            'heal from one «of» a, b on "t"',
            'heal from any «of» a on "t"',
            'heal from a«,» b on "t"',
        ),
    ),
    Lesson(
        "'others' has no layer numbers: write others from …",
        "both",
        ("others «=» merge(L0 a, L0 b)", "L0, «others» from a"),
    ),
    Lesson(
        "a count is a number or a range of them, as in 4..10",
        "both",
        ("drop any one of «(»4, 6) of L0..L9", "drop window one of «4», 6 of L0..L9"),
    ),
    Lesson(
        "a number is written out, as in 50000",
        "place",
        ('bridge on "t" tokens «5k»', 'heal on "t" tokens «5k»', 'heal on "t" rank «8k»'),
    ),
    Lesson("a number of tokens is written out, as in 65000", "place", ("vocabulary «65k»",)),
    Lesson("a number is written out, as in 200", "place", ("trials «2k»",), "wish"),
    Lesson("'let' names a number, an interval or 'one of (…)'", "both", ("let a = «b»",)),
    Lesson(
        "a curve's knots are numbers and names; a choice gets a name by 'let'",
        "both",
        ("L1 from a, b by slerp(curve(0, one of «0.5», 1))", "scale L1 by curve(a«(»0, 1), 1)"),
    ),
    Lesson("the weights themselves learn by 'rank full'", "both", ('heal on "t" «full»',)),
    Lesson(
        'parts of a layer are written L1.attn, L1.mlp.down, L1.norms or L1."*.q_proj.*"',
        "both",
        ("L1.«5» from math", 'L1.mlp.«"»*" from math', "L1.mlp.up«.»weight from math"),
    ),
    Lesson(
        "methods and objectives have parentheses: {word}()",
        "place",
        ("L1 from a, b by linear«»", "merge(L1 a, L1 b) by one of slerp«,» linear()"),
    ),
    Lesson(
        "an item of a stack is written without 'from', as in L0..L9 math",
        "both",
        ("L0..L9 «from» math",),
        "item",
    ),
    Lesson(
        "write '<=' or '>=' before the bound",
        "characters",
        ("require nll() «<» 1", "require nll() «>» 1"),
        "wish",
    ),
    Lesson(
        _UNIT,
        "both",
        tuple(f"require bytes() <= {size}" for size in _BYTES),
        "wish",
    ),
    Lesson(
        "a bound is a number, a model, or a number times a model, as in 1.1 * base",
        "both",
        ("require nll() <= base «*» 1", "require nll() <= base «+» 1", "require nll() <= «-»base"),
        "wish",
    ),
    Lesson(_PERCENT, "both", ("require nll() <= 97«%»",), "wish"),
    Lesson(
        "write a measure, then '<=', '>=', '<' or '>', then a bound",
        "both",
        (
            "expect nll() «=» 1",
            'expect nll("t") «=» 1',
            "expect nll() «==» 1",
            'expect nll("t") «==» 1',
            "expect nll()«»",
            'expect nll("t")«»',
        ),
    ),
    Lesson(
        _UNIT,
        "both",
        tuple(f"expect bytes() <= {size}" for size in _BYTES),
    ),
    Lesson(
        "a bound is a number, a model, or a number times a model, as in 1.1 * base",
        "both",
        ("expect nll() <= base «*» 1", "expect nll() < base «+» 1", "expect nll() > «-»base"),
    ),
    Lesson(_PERCENT, "both", ("expect nll() <= 97«%»", "expect nll() < 97«%»")),
    Lesson(
        "write 'expect' outside of the search block; in it write 'require'",
        "both",
        ("«expect» nll() < 1",),
        "wish",
    ),
    Lesson(
        "write 'require' in the search block; outside of it write 'expect'",
        "both",
        ("«require» nll() <= 1",),
    ),
    Lesson("write 'expect' outside of the stack", "both", ("«expect» nll() < 1",), "item"),
    Lesson("write 'heal' outside of the stack", "both", ('«heal» on "t"',), "item"),
    Lesson(
        'a GGUF file is written gguf q4_k_m, or gguf q4_k_m on "text.jsonl"; each is a statement',
        "both",
        (
            'gguf «"q4_k_m"»',
            "gguf «=» q4_k_m",
            "gguf q4_k_m«,» q8_0",
            'gguf q4_k_m «"t"»',
            'gguf q4_k_m on "t"«,» "u"',
            'gguf q4_k_m on "t" «tokens» 1',
        ),
    ),
    Lesson("write 'gguf' outside of the stack", "both", ("«gguf» q4_k_m",), "item"),
)
"""Remedies for texts with syntax faults: feature, documentation and test in one."""

_ORDER = (
    "tailor model let dtype embed norm head tokenizer chat_template merge others whole drop repeat "
    "scale vocabulary width experts bridge heal expect maybe tied stack search limit minimize "
    "maximize require fidelity trials seed gguf"
)
"""The order of the words that statements begin with, in messages; a new word comes last."""
_STARTS = {
    "statement": ("statement", "a layer, or with "),
    "item": ("item of a stack", "a layer, or with "),
    "wish": ("line of a search block", ""),
}
"""The noun of each start, and the help's first words."""

_WORDS = {
    "LAYER": "a layer such as L12",
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a text in double quotes",
    "SIZE": "a number such as 110M",
    "COMPARISON": "'<=' or '>='",
    "STRICT": "'<' or '>'",
    "$END": "the end of the statement",
}


def fault(
    source: Source, error: lark.UnexpectedInput, piece: Span, start: str, parser: lark.Lark
) -> Fault:
    """Return the fault for `parser`'s error in a piece of text that was to be a `start`."""
    span = _span(source, error, piece)
    actual = source.text[span.start : span.end]
    wanted, near = _wanted(error, actual, parser)
    remedy = _remedy(source, error, piece, span, parser)
    if span.start == piece.start and actual and start in _STARTS:
        (noun, layer), words = _STARTS[start], beginning(parser, start)
        if actual not in words and not re.fullmatch(r"L\d+", actual):
            if re.fullmatch(r"l\d+", actual):
                remedy = f"did you mean '{actual.upper()}'?"
            near = nearest(actual, words)
            article = "an" if noun[0] in "aeiou" else "a"
            every = f"{article} {noun} starts with {layer}one of "
            every += listed((f"'{word}'" for word in words), "or")
            message = f"no {noun} starts with '{_short(actual)}'"
            return Fault("S102", message, span=span, help=remedy or near or every)
    if isinstance(error, lark.UnexpectedCharacters) and not actual[:1].isascii():
        named = unicodedata.name(actual[0], "no name")
        message = f"the character U+{ord(actual[0]):04X} ({named}) is not allowed here"
        return Fault("S103", message, span=span, help=remedy)
    text = f"'{_short(actual)}'" if actual else "the end of the statement"
    message = f"expected {listed(wanted, 'or') or 'nothing more'}, found {text}"
    return Fault("S101", message, span=span, help=remedy or near)


_MERGEKIT = re.compile(r"^(slices|models|merge_method|base_model):", re.MULTILINE)
"""A line of each mergekit file, and of no plan."""


def mergekit_fault(source: Source, *, read: bool) -> Fault | None:
    """Return the one fault of a mergekit file in place of a plan; None for any other text.

    A YAML file is one unless a statement of it could be read.
    """
    found = _MERGEKIT.search(source.text)
    if found is None and (read or not source.name.endswith((".yml", ".yaml"))):
        return None
    file = "FILE" if source.name.startswith("<") else source.name
    return Fault(
        "S102",
        "expected a plan, got a mergekit file",
        span=Span(*found.span()) if found else Span(0, 0),
        help=f"convert it: gptailor import {file} -o plan.tailor",
    )


@functools.cache
def beginning(parser: lark.Lark, start: str) -> tuple[str, ...]:
    """Return the words that a `statement`, an `item` or a `wish` begins with."""
    begun = parser.parse_interactive("", start=start)
    accepted: set[str] = begun.accepts()  # type: ignore[no-untyped-call]
    words = sorted(parser.get_terminal(name).pattern.value for name in accepted - {"LAYER"})
    return tuple(sorted(words, key=[*_ORDER.split(), *words].index))


def start_of(text: str, at: int, parser: lark.Lark) -> str:
    """Return the word that a statement begins with; empty for an unknown word."""
    word = re.compile(r"\w*").match(text, at)
    first = word.group() if word else ""
    return first if first in beginning(parser, "statement") or re.match(r"L\d", first) else ""


def _span(source: Source, error: lark.UnexpectedInput, piece: Span) -> Span:
    """Return the span of the unexpected words; at the end of a piece, an empty one."""
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return Span(piece.end, piece.end)
    if token is not None:
        return Span(token.start_pos, token.end_pos)
    at = error.pos_in_stream or piece.start
    word = re.compile(r"'[^'\r\n]*'?|[\w.-]+|\S|\s").match(source.text, at, piece.end)
    return Span(at, word.end() if word else at + 1)


def _wanted(error: lark.UnexpectedInput, actual: str, parser: lark.Lark) -> tuple[list[str], str]:
    """Return the expected words, the most telling first, at most six, and a suggestion."""
    if isinstance(error, lark.UnexpectedToken):
        names = set(error.accepts or error.expected)
    else:
        names = set(getattr(error, "allowed", None) or ())
    names -= {"_NL", "COMMENT", "__IGNORE_0", "SEMICOLON", "RBRACE"}
    words = [
        _WORDS[name] if name in _WORDS else f"'{parser.get_terminal(name).pattern.value}'"
        for name in names
    ]
    order = sorted(words, key=lambda word: (word.startswith("'"), word.startswith("the end"), word))
    near = nearest(actual, [word.strip("'") for word in order if word[:1] == "'"])
    return order if len(order) <= 6 else [*order[:5], "something else"], near


def _short(text: str) -> str:
    text = text if len(text) <= 40 else text[:37] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


# ---------------------------------------------------------------------------------------- examples


@functools.cache
def _examples(parser: lark.Lark) -> list[tuple[Lesson, object, int, str]]:
    """Return for each sample its lesson, the parser's state, an offset, and the characters.

    The samples are parsed at the first fault. The offset is from the parser's place to the marked
    characters.
    """
    examples = []
    samples = ((lesson, sample) for lesson in LESSONS for sample in lesson.samples)
    for lesson, sample in samples:
        before, characters, after = re.split("[«»]", sample)
        text = before + characters + after
        try:
            parser.parse(text, start=lesson.start)
        except lark.UnexpectedInput as error:
            at = _span(Source("", text), error, Span(0, len(text))).start
            examples.append((lesson, _state(error), len(before) - at, _shape(characters)))
    return examples


def _remedy(
    source: Source, error: lark.UnexpectedInput, piece: Span, span: Span, parser: lark.Lark
) -> str:
    """Return the remedy of the first lesson with a sample like this text."""
    for lesson, state, offset, characters in _examples(parser):
        at = max(span.start + offset, 0)
        same = _shape(source.text[at : at + len(characters)]) == characters
        here = state == _state(error)
        if {"characters": same, "place": here, "both": same and here}[lesson.alike]:
            words = re.findall(r"\w+", source.text[piece.start : span.start])
            return lesson.remedy.replace("{word}", words[-1] if words else "")
    return ""


def _state(error: lark.UnexpectedInput) -> object:
    """Return the parser's state: the number of its table's row."""
    return getattr(error.state, "position", error.state)


def _shape(characters: str) -> str:
    return re.sub(r"\d", "0", characters)
