"""From lark's tree of a statement to ours."""

import math
from decimal import Decimal
from typing import Any, final

from lark import Token, Transformer, Tree, ast_utils, v_args
from lark.tree import Meta

from gptailor.lang import tree
from gptailor.plan.bounds import LARGEST_LAYER
from gptailor.plan.faults import Span
from gptailor.plan.search_block import UNITS


def _span(place: Token | Meta) -> Span:
    return Span(place.start_pos or 0, place.end_pos or 0)


@final
class _Builder(Transformer[Token, Any]):
    """Makes nodes that the rules' names don't decide: words, and rules of several parts."""

    def NUMBER(self, token: Token) -> tree.Fixed:  # noqa: N802 (the terminal's name)
        """Return a number, an integer if it has no point and no exponent."""
        value: int | float = float(token)
        digits = token.lstrip("+-")
        if math.isfinite(value) and digits.isdigit():
            value = int(digits.lstrip("0") or "0") * (-1 if token[0] == "-" else 1)
        return tree.Fixed(_span(token), value)

    def LAYER(self, token: Token) -> tree.LayerWord:  # noqa: N802
        digits = token[1:].lstrip("0") or "0"
        possible = len(digits) <= len(str(LARGEST_LAYER))
        return tree.LayerWord(_span(token), int(digits) if possible else LARGEST_LAYER + 1)

    def SIZE(self, token: Token) -> tree.Fixed:  # noqa: N802
        """Return a number from `1.3G`, an integer if nothing is left of it behind the point."""
        if not math.isfinite(float(token[:-1])):
            return tree.Fixed(_span(token), math.inf)
        exact = Decimal(token[:-1]) * UNITS[token[-1]]
        value: int | float = float(exact)
        if math.isfinite(value) and exact == int(exact):
            value = int(exact)
        return tree.Fixed(_span(token), value)

    def STRING(self, token: Token) -> tree.String:  # noqa: N802
        return tree.String(_span(token), str(token)[1:-1])

    def __default_token__(self, token: Token) -> tree.Word:
        return tree.Word(_span(token), str(token))

    arguments = settings = shares = heal_texts = tuple

    @v_args(meta=True)
    def part(self, meta: Meta, children: list[Any]) -> tree.Word:
        words = [f'"{w.text}"' if isinstance(w, tree.String) else w.text for w in children if w]
        return tree.Word(_span(meta), ".".join(words))

    @v_args(meta=True)
    def merge(self, meta: Meta, children: list[Any]) -> tree.Merging:
        *sources, shares, by = children
        return tree.Merging(_span(meta), tuple(sources), shares or (), by)

    @v_args(meta=True)
    def curve(self, meta: Meta, children: list[Any]) -> tree.Curving:
        name, *knots, over = children
        return tree.Curving(_span(meta), name, tuple(knots), over)

    @v_args(meta=True)
    def bound(self, meta: Meta, children: list[Any]) -> tree.BoundNode:
        number = next((child for child in children if isinstance(child, tree.Fixed)), None)
        of = next((child for child in children if isinstance(child, tree.Word)), None)
        return tree.BoundNode(_span(meta), number, of)

    @v_args(meta=True)
    def overlay(self, meta: Meta, children: list[Any]) -> tree.Statement:
        tied, maybe, body = children
        return tree.Statement(_span(meta), body, tied, maybe)


def _with_span(*, inline: bool, meta: bool) -> Any:
    """Return lark's wrapper that makes a node of a rule's parts."""

    def make(node: Any, _rule: str, children: list[Any], meta: Meta) -> Any:
        return node(_span(meta), *(children if inline else [tuple(children)]))

    return v_args(wrapper=make)


_TO_NODES = ast_utils.create_transformer(tree, _Builder(), _with_span)


def statement_of(parsed: "Tree[Token]", span: Span) -> tree.Statement:
    """Return the statement of a rule's tree, without its comments."""
    node = _TO_NODES.transform(parsed)
    if not isinstance(node, tree.Statement):
        return tree.Statement(span, node)
    node.span = span
    return node
