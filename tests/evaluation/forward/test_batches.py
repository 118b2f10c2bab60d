"""Requests as batches: each prediction once, from its own text, whatever else is asked."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.evaluation.forward.requests import PADDING, Batch, Request, Work, pack
from tests.evaluation.lent import likelihood


@st.composite
def asked(draw: st.DrawFn) -> Request:
    tokens = draw(st.lists(st.integers(0, 2), min_size=2, max_size=12))  # texts often begin alike
    return Request(tuple(tokens), draw(st.integers(1, len(tokens) - 1)))


WORKS = st.lists(st.lists(asked(), max_size=8), max_size=3)
EDGES = st.none() | st.integers(1, 12)


def packed(
    works: Sequence[Sequence[Request]], size: int, edge: int | None = None
) -> tuple[Batch, ...]:
    return pack([Work(requests, likelihood) for requests in works], size, edge)


@settings(max_examples=40)
@given(WORKS, st.integers(1, 60), EDGES)
def test_each_prediction_is_made_once_from_its_text(
    works: list[list[Request]], size: int, edge: int | None
) -> None:
    results = set()
    for batch in packed(works, size, edge):
        length = batch.tokens.shape[1]
        assert batch.wanted.tolist() == sorted(set(batch.wanted.tolist()))
        for share in batch.shares:
            assert share.pick.tolist() == sorted(share.pick.tolist())
            places = batch.wanted[share.pick].tolist()
            rows = [(request, position) for request in works[share.work]
                    for position in range(request.first, len(request.tokens))]  # fmt: skip
            told = zip(share.numbers.tolist(), share.targets.tolist(), strict=True)
            for place, (row, target) in zip(places, told, strict=True):
                request, position = rows[row]
                text = batch.tokens[place // length, : place % length + 1].tolist()
                assert text == list(request.tokens[:position])
                assert target == request.tokens[position]
                results.add((share.work, row))
    wanted = [(w, n) for w, one in enumerate(works) for n in range(sum(r.predicted for r in one))]
    assert sorted(results) == wanted


@settings(max_examples=40)
@given(WORKS, st.integers(1, 60), EDGES)
def test_batches_have_rows_of_similar_length_and_the_longest_come_first(
    works: list[list[Request]], size: int, edge: int | None
) -> None:
    made = packed(works, size, edge)
    lengths = [batch.tokens.shape[1] for batch in made]
    assert lengths == sorted(lengths, reverse=True)
    for batch in made:
        assert len(batch.tokens) == 1 or batch.tokens.numel() <= size
        texts = [(batch.wanted % batch.tokens.shape[1]).max() + 1]
        assert edge is None or max(texts) <= edge or batch.tokens.shape[1] > edge


@settings(max_examples=40)
@given(WORKS, st.integers(1, 60), st.randoms(use_true_random=False))
def test_batches_do_not_depend_on_the_order(
    works: list[list[Request]], size: int, random: object
) -> None:
    turned = [requests[::-1] for requests in works][::-1]
    one, other = packed(works, size), packed(turned, size)
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left.tokens, right.tokens)
        assert torch.equal(left.wanted, right.wanted)


def test_a_text_and_its_beginning_are_one_row() -> None:
    choices = [Request((7, 8, 9, last), 3) for last in range(4)]  # one letter each
    beginning = [Request((7, 8, 9), 1), Request((7, 8, 9, 1, 2), 4)]
    made = packed([choices, beginning], 100)
    assert [batch.tokens.tolist() for batch in made] == [[[7, 8, 9, 1]]]


def test_a_beginning_on_the_other_side_of_the_edge_has_its_own_row() -> None:
    made = packed([[Request((7, 8, 9), 1), Request((7, 8, 9, 1, 2), 4)]], 100, edge=3)
    assert [batch.tokens.tolist() for batch in made] == [[[7, 8, 9, 1]], [[7, 8]]]


@pytest.mark.parametrize("count", [1, 10, 200])
def test_padding_is_bounded(count: int) -> None:
    requests = [Request((*range(3 + n), n), 1) for n in range(count)]
    requests = [Request((n, *request.tokens), 1) for n, request in enumerate(requests)]
    for batch in packed([requests], 2000):
        own = sum(len(set(row)) for row in batch.tokens.tolist())
        assert batch.tokens.numel() - own <= max(PADDING, batch.tokens.numel() / 8) + len(
            batch.tokens
        )
