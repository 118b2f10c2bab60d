"""The tree of a `.tailor` text: the text as written, with the span of every word.

A node comes from the grammar's rule of the same name (lark's `ast_utils`): its fields are the
rule's parts in order, and an absent `[part]` is None. A list's node has one field. A rule without a
node is a statement, with the rule's parts; its function in `lower.py` names them.
"""

import math
import sys
from abc import ABC
from decimal import Decimal
from typing import Any, ClassVar, dataclass_transform, final

from lark import Token, Transformer, Tree, ast_utils, v_args
from lark.tree import Meta

from gptailor.plan.bounds import LARGEST_LAYER
from gptailor.plan.faults import Span
from gptailor.plan.search_block import UNITS


@dataclass_transform(eq_default=False)
class _Fields:
    """An object made of its fields, as a dataclass is; a dataclass's code is made at start-up."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = (*cls._fields, *cls.__annotations__)

    def __init__(self, *parts: Any, **named: Any) -> None:
        fields = zip(self._fields[: len(parts)], parts, strict=True)
        self.__dict__.update(fields, **named)


class TreeNode(_Fields, ast_utils.Ast, ABC):
    """A part of the text."""

    span: Span


@final
class Word(TreeNode):
    """A name or keyword."""

    text: str


@final
class String(TreeNode):
    """A text in double quotes, without them."""

    text: str


@final
class Fixed(TreeNode):
    """A number. `value` is infinite where the digits exceed a float."""

    value: int | float


@final
class LayerWord(TreeNode):
    """`L12`. Above the largest number that a layer may have, `number` is the next one."""

    number: int


# ------------------------------------------------------------- numbers, layers, models, methods


@final
class Between(TreeNode):
    """`0.0..1.0`."""

    low: Fixed
    high: Fixed


@final
class SizesNode(TreeNode):
    """`16384..49152 step 4096`."""

    low: Fixed
    high: Fixed
    step: Fixed | None


@final
class OneNumber(TreeNode, ast_utils.AsList):
    """`one of (0.3, 0.5)`."""

    options: tuple[Fixed, ...]


@final
class Curving(TreeNode):
    """`curve(0.0, mix, 1.0)`, `curve(0, 1) over L0..L31`; `name` stands for `curve`."""

    name: Word
    knots: "tuple[Fixed | Between | OneNumber | Word, ...]"
    over: "Range | None"


Numeral = Fixed | Between | OneNumber | Curving


@final
class EachSource(TreeNode, ast_utils.AsList):
    """`(0.5, 0.3..0.7)`: a number for each source."""

    numbers: tuple[Numeral | Word, ...]


@final
class Range(TreeNode):
    """`L0..L9.mlp`, `L3."*.q_proj.*"`, or one layer; a part is one word, a pattern in quotes."""

    first: LayerWord
    end: LayerWord | None
    part: Word | None = None

    @property
    def last(self) -> LayerWord:
        """Return the end, or the one layer."""
        return self.end or self.first


@final
class Layers(TreeNode, ast_utils.AsList):
    """`L0..L4, L7`."""

    ranges: tuple[Range, ...]


@final
class AllOf(TreeNode, ast_utils.AsList):
    """`math, code`: one model, or all of several."""

    names: tuple[Word, ...]


@final
class OneOf(TreeNode, ast_utils.AsList):
    """`one of math, code`."""

    names: tuple[Word, ...]


@final
class AnyOf(TreeNode, ast_utils.AsList):
    """`any of math, code`."""

    names: tuple[Word, ...]


@final
class ArgumentNode(TreeNode):
    """An argument as it was given."""

    name: Word | None
    value: Numeral | EachSource | String | Word


@final
class CallNode(TreeNode):
    """A method or an objective with its arguments."""

    name: Word
    arguments: tuple[ArgumentNode, ...]


@final
class OneCall(TreeNode, ast_utils.AsList):
    """`by one of slerp(0.3), linear()`."""

    options: tuple[CallNode, ...]


@final
class From(TreeNode):
    """`math, code by linear()`."""

    models: AllOf | OneOf | AnyOf
    by: CallNode | OneCall | None


# -------------------------------------------------------------------------------------- statements


@final
class Picked(TreeNode):
    """`L12 code`: layers of a model; an item of a stack by itself."""

    layers: Layers
    model: Word | OneOf


@final
class Merging(TreeNode):
    """`merge(L12 code, L12 chat, 0.5) by …`; a statement by itself."""

    sources: tuple[Picked, ...]
    shares: tuple[Numeral | Word, ...]
    by: CallNode | OneCall | None


@final
class SettingNode(TreeNode):
    """`tokens 65536`, `rank full`."""

    name: Word
    value: Numeral | Word


@final
class AnswersNode(TreeNode):
    """`answers("prompts", tokens=256, temperature=0.7)`."""

    file: String
    settings: tuple[SettingNode, ...]


@final
class HealTextNode(TreeNode):
    """`"text" from math weight 2`, `answers("prompts") from code`."""

    text: String | AnswersNode
    teacher: Word | None
    weight: Numeral | None


@final
class BoundNode(TreeNode):
    """`40000`, `110M`, `0.75 * base` or `base`."""

    number: Fixed | None
    of: Word | None = None


@final
class Statement(TreeNode):
    """A statement: its rule, the rule's parts in order, and its marks and comments.

    A recipe by itself is an `item`. A `block` has its name, its statements, and the comments before
    the brace that closes. Comments are the comments on lines before a statement, and the comment
    behind it.
    """

    rule: str
    parts: tuple[Any, ...]
    tied: Word | None = None
    maybe: Word | None = None
    above: tuple[str, ...] = ()
    behind: str = ""


@final
class File(TreeNode):
    """A whole text."""

    statements: tuple[Statement, ...]
    closing: tuple[str, ...]  # comments after the last statement


# ------------------------------------------------------------------------------- from lark's tree


def _span(place: Token | Meta) -> Span:
    return Span(place.start_pos or 0, place.end_pos or 0)


@final
class _Builder(Transformer[Token, Any]):
    """Makes nodes that the rules' names don't decide: words, and rules of several parts."""

    def NUMBER(self, token: Token) -> Fixed:  # noqa: N802 (the terminal's name)
        """Return a number, an integer if it has no point and no exponent."""
        value: int | float = float(token)
        digits = token.lstrip("+-")
        if math.isfinite(value) and digits.isdigit():
            value = int(digits.lstrip("0") or "0") * (-1 if token[0] == "-" else 1)
        return Fixed(_span(token), value)

    def LAYER(self, token: Token) -> LayerWord:  # noqa: N802
        digits = token[1:].lstrip("0") or "0"
        possible = len(digits) <= len(str(LARGEST_LAYER))
        return LayerWord(_span(token), int(digits) if possible else LARGEST_LAYER + 1)

    def SIZE(self, token: Token) -> Fixed:  # noqa: N802
        """Return a number from `1.3G`, an integer if nothing is left of it behind the point."""
        if not math.isfinite(float(token[:-1])):
            return Fixed(_span(token), math.inf)
        exact = Decimal(token[:-1]) * UNITS[token[-1]]
        value: int | float = float(exact)
        if math.isfinite(value) and exact == int(exact):
            value = int(exact)
        return Fixed(_span(token), value)

    def STRING(self, token: Token) -> String:  # noqa: N802
        return String(_span(token), str(token)[1:-1])

    def __default_token__(self, token: Token) -> Word:
        return Word(_span(token), str(token))

    arguments = settings = shares = heal_texts = tuple

    @v_args(meta=True)
    def part(self, meta: Meta, children: list[Any]) -> Word:
        words = [f'"{w.text}"' if isinstance(w, String) else w.text for w in children if w]
        return Word(_span(meta), ".".join(words))

    @v_args(meta=True)
    def merge(self, meta: Meta, children: list[Any]) -> Merging:
        *sources, shares, by = children
        return Merging(_span(meta), tuple(sources), shares or (), by)

    @v_args(meta=True)
    def curve(self, meta: Meta, children: list[Any]) -> Curving:
        name, *knots, over = children
        return Curving(_span(meta), name, tuple(knots), over)

    @v_args(meta=True)
    def overlay(self, meta: Meta, children: list[Any]) -> Statement:
        tied, maybe, body = children
        if not isinstance(body, Statement):
            body = Statement(_span(meta), "item", (body,))
        body.tied, body.maybe = tied, maybe
        return body

    def __default__(self, data: str, children: list[Any], meta: Meta) -> Statement:
        return Statement(_span(meta), str(data), tuple(children))


def _with_span(*, inline: bool, meta: bool) -> Any:
    """Return lark's wrapper that makes a node of a rule's parts."""

    def make(node: Any, _rule: str, children: list[Any], meta: Meta) -> Any:
        return node(_span(meta), *(children if inline else [tuple(children)]))

    return v_args(wrapper=make)


_TO_NODES = ast_utils.create_transformer(sys.modules[__name__], _Builder(), _with_span)


def statement_of(parsed: "Tree[Token]", span: Span) -> Statement:
    """Return the statement of a rule's tree, without its comments."""
    statement: Statement = _TO_NODES.transform(parsed)
    statement.span = span
    return statement
