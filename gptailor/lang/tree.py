"""The tree of a `.tailor` text: what was written, with the span of every word."""

import math
from dataclasses import dataclass, replace
from typing import Any

from lark import Token, Tree
from lark.tree import Meta

from gptailor.plan.faults import Span
from gptailor.plan.plan import LARGEST_LAYER


@dataclass(frozen=True, slots=True)
class Word:
    """A name or keyword."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class String:
    """A text in double quotes, without them."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Fixed:
    """A number. `value` is infinite where the digits say more than a float holds."""

    value: int | float
    span: Span


@dataclass(frozen=True, slots=True)
class Between:
    """`0.0..1.0`."""

    low: Fixed
    high: Fixed
    span: Span


@dataclass(frozen=True, slots=True)
class OneNumber:
    """`one of (0.3, 0.5)`."""

    options: tuple[Fixed, ...]
    span: Span


Numeral = Fixed | Between | OneNumber


@dataclass(frozen=True, slots=True)
class LayerWord:
    """`L12`."""

    number: int
    span: Span


@dataclass(frozen=True, slots=True)
class Range:
    """`L0..L9.mlp`, or one layer."""

    first: LayerWord
    last: LayerWord
    part: Word | None
    span: Span


@dataclass(frozen=True, slots=True)
class Layers:
    """`L0..L4, L7`."""

    ranges: tuple[Range, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Names:
    """Models: all of these, one of them, or any of them."""

    how: str  # "all", "one" or "any"
    names: tuple[Word, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ArgumentNode:
    """An argument as it was given."""

    name: Word | None
    value: Numeral | String | Word
    span: Span


@dataclass(frozen=True, slots=True)
class CallNode:
    """A method or an objective with its arguments."""

    name: Word
    arguments: tuple[ArgumentNode, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class OneCall:
    """`one of slerp(0.3), linear()`."""

    options: tuple[CallNode, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class From:
    """`math, code by linear()`."""

    models: Names
    by: CallNode | OneCall | None
    span: Span


@dataclass(frozen=True, slots=True)
class Picked:
    """`L12 code`: layers of a model."""

    layers: Layers
    model: Names
    span: Span


@dataclass(frozen=True, slots=True)
class Merging:
    """`merge(L12 code, L12 chat, 0.5) by …`."""

    sources: tuple[Picked, ...]
    shares: tuple[Numeral, ...]
    by: CallNode | OneCall | None
    span: Span


# -------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class Version:
    """`tailor 1`."""

    number: Fixed


@dataclass(frozen=True, slots=True)
class Declare:
    """`model NAME = SOURCE @ REVISION`, or `model NAME = ON + SOURCE`."""

    name: Word
    source: String
    on: Word | None
    revision: String | None


@dataclass(frozen=True, slots=True)
class Dtype:
    """`dtype bfloat16`."""

    name: Word


@dataclass(frozen=True, slots=True)
class RestNode:
    """`embed from chat`."""

    where: Word
    origin: From


@dataclass(frozen=True, slots=True)
class Select:
    """`L0..L9 from math`."""

    layers: Layers
    origin: From


@dataclass(frozen=True, slots=True)
class PlaceNode:
    """`L12 = L14 chat`, `L12 = merge(…)`."""

    layers: Layers
    source: Picked | Merging


@dataclass(frozen=True, slots=True)
class MergeHere:
    """`merge(L12 code, L12 chat, 0.5)`."""

    merge: Merging


@dataclass(frozen=True, slots=True)
class Dropping:
    """`drop L30..L39`."""

    layers: Layers


@dataclass(frozen=True, slots=True)
class DroppingAny:
    """`drop any 10 of L0..L39`."""

    count: Fixed
    layers: Layers


@dataclass(frozen=True, slots=True)
class Scaling:
    """`scale L12 by 0.9`."""

    layers: Layers
    factor: Numeral


@dataclass(frozen=True, slots=True)
class BridgeNode:
    """`bridge L11 on "text" tokens 65536 ridge 0.1`."""

    after: LayerWord | None
    on: String
    settings: tuple[tuple[Word, Numeral], ...]


@dataclass(frozen=True, slots=True)
class ItemTake:
    """An item of a stack: `L0..L15 base`."""

    picked: Picked


@dataclass(frozen=True, slots=True)
class Limit:
    """`limit 50 layers`."""

    count: Fixed


@dataclass(frozen=True, slots=True)
class ObjectiveNode:
    """`minimize nll("text")`."""

    direction: Word
    measure: CallNode


@dataclass(frozen=True, slots=True)
class BudgetNode:
    """`fidelity 64..1024`, `trials 500`, `seed 0`."""

    name: Word
    numbers: tuple[Fixed, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`stack { … }` or `search { … }`."""

    name: Word
    statements: "tuple[Statement, ...]"
    closing: tuple[str, ...]  # comments before the brace that closes


Body = (
    Version
    | Declare
    | Dtype
    | RestNode
    | Select
    | PlaceNode
    | MergeHere
    | Dropping
    | DroppingAny
    | Scaling
    | BridgeNode
    | ItemTake
    | Limit
    | ObjectiveNode
    | BudgetNode
    | Block
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with its comments: those on lines before it, and the one behind it."""

    body: Body
    span: Span
    tied: Span | None = None
    maybe: Span | None = None
    above: tuple[str, ...] = ()
    behind: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A whole text."""

    statements: tuple[Statement, ...]
    closing: tuple[str, ...]  # comments after the last statement


@dataclass(frozen=True, slots=True)
class Marked:
    """A body with the words before it."""

    body: Any
    tied: Span | None = None
    maybe: Span | None = None


def _span(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


def _of(meta: Meta) -> Span:
    return Span(meta.start_pos, meta.end_pos)


def number_of(token: Token) -> Fixed:
    """A number as it was written: an integer if it has no point and no exponent."""
    digits = str(token)
    value: int | float = float(digits)
    if math.isfinite(value) and digits.lstrip("+-").isdigit():
        value = int(digits)
    return Fixed(value, _span(token))


def _layer(token: Token) -> LayerWord:
    """A layer's number; above the largest there is, the next one, which the lowering refuses."""
    digits = token[1:].lstrip("0") or "0"
    known = len(digits) <= len(str(LARGEST_LAYER))
    return LayerWord(int(digits) if known else LARGEST_LAYER + 1, _span(token))


def built(node: "Tree[Token]") -> Any:
    """The node that a rule's tree stands for, made from the leaves up."""
    children = [built(child) if isinstance(child, Tree) else child for child in node.children]
    return getattr(_BUILDER, node.data)(node.meta, children)


class _Builder:
    """The grammar's rules as nodes; a rule's name is its method's."""

    def start(self, meta: Meta, children: list[Any]) -> list[Any]:
        return children

    def overlay(self, meta: Meta, children: list[Any]) -> Marked:
        marks = {child.type: _span(child) for child in children[:-1]}
        return Marked(children[-1], marks.get("TIED"), marks.get("MAYBE"))

    item = overlay
    item.__doc__ = None

    def name(self, meta: Meta, children: list[Token]) -> Word:
        return Word(str(children[0]), _span(children[0]))

    where = name

    def string(self, meta: Meta, children: list[Token]) -> String:
        return String(str(children[0])[1:-1], _span(children[0]))

    # --- numbers

    def fixed(self, meta: Meta, children: list[Token]) -> Fixed:
        return number_of(children[0])

    def interval(self, meta: Meta, children: list[Token]) -> Between:
        return Between(number_of(children[0]), number_of(children[1]), _of(meta))

    def one_numbers(self, meta: Meta, children: list[Token]) -> OneNumber:
        return OneNumber(tuple(number_of(child) for child in children), _of(meta))

    # --- layers and models

    def range(self, meta: Meta, children: list[Any]) -> Range:
        words = [_layer(child) for child in children if isinstance(child, Token)]
        part = children[-1] if isinstance(children[-1], Word) else None
        return Range(words[0], words[-1], part, _of(meta))

    def part(self, meta: Meta, children: list[Word]) -> Word:
        return children[0]

    def layers(self, meta: Meta, children: list[Range]) -> Layers:
        return Layers(tuple(children), _of(meta))

    def models(self, meta: Meta, children: list[Word]) -> Names:
        return Names("all", tuple(children), _of(meta))

    def one_models(self, meta: Meta, children: list[Word]) -> Names:
        return Names("one", tuple(children), _of(meta))

    def any_models(self, meta: Meta, children: list[Word]) -> Names:
        return Names("any", tuple(children), _of(meta))

    def origin(self, meta: Meta, children: list[Any]) -> From:
        return From(children[0], children[1] if len(children) > 1 else None, _of(meta))

    def layer_of(self, meta: Meta, children: list[Any]) -> Picked:
        pick = children[1]
        if isinstance(pick, Word):
            pick = Names("all", (pick,), pick.span)
        return Picked(children[0], pick, _of(meta))

    # --- methods

    def argument(self, meta: Meta, children: list[Any]) -> ArgumentNode:
        return ArgumentNode(children[0] if len(children) > 1 else None, children[-1], _of(meta))

    last_argument = argument

    def method(self, meta: Meta, children: list[Any]) -> CallNode:
        return CallNode(children[0], tuple(children[1:]), _of(meta))

    def one_by(self, meta: Meta, children: list[CallNode]) -> OneCall:
        return OneCall(tuple(children), _of(meta))

    def share(self, meta: Meta, children: list[Any]) -> list[Any]:
        return children

    def merge(self, meta: Meta, children: list[Any]) -> Merging:
        picked = tuple(child for child in children if isinstance(child, Picked))
        shares = next((tuple(child) for child in children if isinstance(child, list)), ())
        by = children[-1] if isinstance(children[-1], CallNode | OneCall) else None
        return Merging(picked, shares, by, _of(meta))

    # --- statements

    def version(self, meta: Meta, children: list[Token]) -> Version:
        return Version(number_of(children[0]))

    def direct(self, meta: Meta, children: list[String]) -> tuple[None, String]:
        return None, children[0]

    def adapter(self, meta: Meta, children: list[Any]) -> tuple[Word, String]:
        return children[0], children[1]

    def revision(self, meta: Meta, children: list[String]) -> String:
        return children[0]

    def model(self, meta: Meta, children: list[Any]) -> Declare:
        on, source = children[1]
        return Declare(children[0], source, on, children[2] if len(children) > 2 else None)

    def dtype(self, meta: Meta, children: list[Word]) -> Dtype:
        return Dtype(children[0])

    def rest(self, meta: Meta, children: list[Any]) -> RestNode:
        return RestNode(children[0], children[1])

    def take(self, meta: Meta, children: list[Any]) -> Select:
        return Select(children[0], children[1])

    def place(self, meta: Meta, children: list[Any]) -> PlaceNode:
        if isinstance(children[1], Merging):
            return PlaceNode(children[0], children[1])
        picked = self.layer_of(meta, children[1:])
        return PlaceNode(children[0], replace(picked, span=picked.layers.span.to(_of(meta))))

    item_place = place

    def merge_here(self, meta: Meta, children: list[Merging]) -> MergeHere:
        return MergeHere(children[0])

    def item_take(self, meta: Meta, children: list[Any]) -> ItemTake:
        return ItemTake(self.layer_of(meta, children))

    def drop(self, meta: Meta, children: list[Layers]) -> Dropping:
        return Dropping(children[0])

    def drop_any(self, meta: Meta, children: list[Any]) -> DroppingAny:
        return DroppingAny(number_of(children[0]), children[1])

    def scale(self, meta: Meta, children: list[Any]) -> Scaling:
        return Scaling(children[0], children[1])

    def after(self, meta: Meta, children: list[Token]) -> LayerWord:
        return _layer(children[0])

    def setting(self, meta: Meta, children: list[Any]) -> tuple[Word, Numeral]:
        return Word(str(children[0]), _span(children[0])), children[1]

    def bridge(self, meta: Meta, children: list[Any]) -> BridgeNode:
        after = children.pop(0) if isinstance(children[0], LayerWord) else None
        return BridgeNode(after, children[0], tuple(children[1:]))

    def limit(self, meta: Meta, children: list[Token]) -> Limit:
        return Limit(number_of(children[0]))

    def objective(self, meta: Meta, children: list[Any]) -> ObjectiveNode:
        return ObjectiveNode(Word(str(children[0]), _span(children[0])), children[1])

    def fidelity(self, meta: Meta, children: list[Token]) -> BudgetNode:
        return _budget("fidelity", meta, children)

    def trials(self, meta: Meta, children: list[Token]) -> BudgetNode:
        return _budget("trials", meta, children)

    def seed(self, meta: Meta, children: list[Token]) -> BudgetNode:
        return _budget("seed", meta, children)

    def stack(self, meta: Meta, children: list[Any]) -> Block:
        return _whole_block("stack", meta, children)

    def search(self, meta: Meta, children: list[Any]) -> Block:
        return _whole_block("search", meta, children)


_BUILDER = _Builder()


def _budget(name: str, meta: Meta, children: list[Token]) -> BudgetNode:
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return BudgetNode(Word(name, span), tuple(number_of(child) for child in children))


def _whole_block(name: str, meta: Meta, children: list[Any]) -> Block:
    """A block that was parsed with its file at once: without comments."""
    marked = [child if isinstance(child, Marked) else Marked(child) for child in children]
    statements = tuple(Statement(m.body, _of(meta), m.tied, m.maybe) for m in marked)
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return Block(Word(name, span), statements, ())
