"""What the grammar's rules stand for: lark's trees into the nodes of `tree`, spans and all."""

import math
from dataclasses import dataclass, replace
from typing import Any

from lark import Token, Tree
from lark.tree import Meta

from gptailor.diagnostics import Span
from gptailor.lang import tree
from gptailor.plan import LARGEST_LAYER


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


def number_of(token: Token) -> tree.Fixed:
    """A number as it was written: an integer if it has no point and no exponent."""
    digits = str(token)
    value: int | float = float(digits)
    if math.isfinite(value) and digits.lstrip("+-").isdigit():
        value = int(digits)
    return tree.Fixed(value, _span(token))


def _layer(token: Token) -> tree.LayerWord:
    """A layer's number; above the largest there is, the next one, which the lowering refuses."""
    digits = token[1:].lstrip("0") or "0"
    known = len(digits) <= len(str(LARGEST_LAYER))
    return tree.LayerWord(int(digits) if known else LARGEST_LAYER + 1, _span(token))


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

    def name(self, meta: Meta, children: list[Token]) -> tree.Word:
        return tree.Word(str(children[0]), _span(children[0]))

    where = name

    def string(self, meta: Meta, children: list[Token]) -> tree.String:
        return tree.String(str(children[0])[1:-1], _span(children[0]))

    # --- numbers

    def fixed(self, meta: Meta, children: list[Token]) -> tree.Fixed:
        return number_of(children[0])

    def interval(self, meta: Meta, children: list[Token]) -> tree.Between:
        return tree.Between(number_of(children[0]), number_of(children[1]), _of(meta))

    def one_numbers(self, meta: Meta, children: list[Token]) -> tree.OneNumber:
        return tree.OneNumber(tuple(number_of(child) for child in children), _of(meta))

    # --- layers and models

    def range(self, meta: Meta, children: list[Any]) -> tree.Range:
        words = [_layer(child) for child in children if isinstance(child, Token)]
        part = children[-1] if isinstance(children[-1], tree.Word) else None
        return tree.Range(words[0], words[-1], part, _of(meta))

    def part(self, meta: Meta, children: list[tree.Word]) -> tree.Word:
        return children[0]

    def layers(self, meta: Meta, children: list[tree.Range]) -> tree.Layers:
        return tree.Layers(tuple(children), _of(meta))

    def models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("all", tuple(children), _of(meta))

    def one_models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("one", tuple(children), _of(meta))

    def any_models(self, meta: Meta, children: list[tree.Word]) -> tree.Names:
        return tree.Names("any", tuple(children), _of(meta))

    def origin(self, meta: Meta, children: list[Any]) -> tree.From:
        return tree.From(children[0], children[1] if len(children) > 1 else None, _of(meta))

    def layer_of(self, meta: Meta, children: list[Any]) -> tree.Picked:
        pick = children[1]
        if isinstance(pick, tree.Word):
            pick = tree.Names("all", (pick,), pick.span)
        return tree.Picked(children[0], pick, _of(meta))

    # --- methods

    def argument(self, meta: Meta, children: list[Any]) -> tree.ArgumentNode:
        return tree.ArgumentNode(
            children[0] if len(children) > 1 else None, children[-1], _of(meta)
        )

    last_argument = argument

    def method(self, meta: Meta, children: list[Any]) -> tree.CallNode:
        return tree.CallNode(children[0], tuple(children[1:]), _of(meta))

    def one_by(self, meta: Meta, children: list[tree.CallNode]) -> tree.OneCall:
        return tree.OneCall(tuple(children), _of(meta))

    def share(self, meta: Meta, children: list[Any]) -> list[Any]:
        return children

    def merge(self, meta: Meta, children: list[Any]) -> tree.Merging:
        picked = tuple(child for child in children if isinstance(child, tree.Picked))
        shares = next((tuple(child) for child in children if isinstance(child, list)), ())
        by = children[-1] if isinstance(children[-1], tree.CallNode | tree.OneCall) else None
        return tree.Merging(picked, shares, by, _of(meta))

    # --- statements

    def version(self, meta: Meta, children: list[Token]) -> tree.Version:
        return tree.Version(number_of(children[0]))

    def direct(self, meta: Meta, children: list[tree.String]) -> tuple[None, tree.String]:
        return None, children[0]

    def adapter(self, meta: Meta, children: list[Any]) -> tuple[tree.Word, tree.String]:
        return children[0], children[1]

    def revision(self, meta: Meta, children: list[tree.String]) -> tree.String:
        return children[0]

    def model(self, meta: Meta, children: list[Any]) -> tree.Declare:
        on, source = children[1]
        return tree.Declare(children[0], source, on, children[2] if len(children) > 2 else None)

    def dtype(self, meta: Meta, children: list[tree.Word]) -> tree.Dtype:
        return tree.Dtype(children[0])

    def rest(self, meta: Meta, children: list[Any]) -> tree.RestNode:
        return tree.RestNode(children[0], children[1])

    def take(self, meta: Meta, children: list[Any]) -> tree.Select:
        return tree.Select(children[0], children[1])

    def place(self, meta: Meta, children: list[Any]) -> tree.PlaceNode:
        if isinstance(children[1], tree.Merging):
            return tree.PlaceNode(children[0], children[1])
        picked = self.layer_of(meta, children[1:])
        return tree.PlaceNode(children[0], replace(picked, span=picked.layers.span.to(_of(meta))))

    item_place = place

    def merge_here(self, meta: Meta, children: list[tree.Merging]) -> tree.MergeHere:
        return tree.MergeHere(children[0])

    def item_take(self, meta: Meta, children: list[Any]) -> tree.ItemTake:
        return tree.ItemTake(self.layer_of(meta, children))

    def drop(self, meta: Meta, children: list[tree.Layers]) -> tree.Dropping:
        return tree.Dropping(children[0])

    def drop_any(self, meta: Meta, children: list[Any]) -> tree.DroppingAny:
        return tree.DroppingAny(number_of(children[0]), children[1])

    def scale(self, meta: Meta, children: list[Any]) -> tree.Scaling:
        return tree.Scaling(children[0], children[1])

    def after(self, meta: Meta, children: list[Token]) -> tree.LayerWord:
        return _layer(children[0])

    def setting(self, meta: Meta, children: list[Any]) -> tuple[tree.Word, tree.Numeral]:
        return tree.Word(str(children[0]), _span(children[0])), children[1]

    def bridge(self, meta: Meta, children: list[Any]) -> tree.BridgeNode:
        after = children.pop(0) if isinstance(children[0], tree.LayerWord) else None
        return tree.BridgeNode(after, children[0], tuple(children[1:]))

    def limit(self, meta: Meta, children: list[Token]) -> tree.Limit:
        return tree.Limit(number_of(children[0]))

    def objective(self, meta: Meta, children: list[Any]) -> tree.ObjectiveNode:
        return tree.ObjectiveNode(tree.Word(str(children[0]), _span(children[0])), children[1])

    def fidelity(self, meta: Meta, children: list[Token]) -> tree.BudgetNode:
        return _budget("fidelity", meta, children)

    def trials(self, meta: Meta, children: list[Token]) -> tree.BudgetNode:
        return _budget("trials", meta, children)

    def seed(self, meta: Meta, children: list[Token]) -> tree.BudgetNode:
        return _budget("seed", meta, children)

    def stack(self, meta: Meta, children: list[Any]) -> tree.Block:
        return _whole_block("stack", meta, children)

    def search(self, meta: Meta, children: list[Any]) -> tree.Block:
        return _whole_block("search", meta, children)


_BUILDER = _Builder()


def _budget(name: str, meta: Meta, children: list[Token]) -> tree.BudgetNode:
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return tree.BudgetNode(tree.Word(name, span), tuple(number_of(child) for child in children))


def _whole_block(name: str, meta: Meta, children: list[Any]) -> tree.Block:
    """A block that was parsed with its file at once: without comments."""
    marked = [child if isinstance(child, Marked) else Marked(child) for child in children]
    statements = tuple(tree.Statement(m.body, _of(meta), m.tied, m.maybe) for m in marked)
    span = Span(meta.start_pos, meta.start_pos + len(name))
    return tree.Block(tree.Word(name, span), statements, ())
