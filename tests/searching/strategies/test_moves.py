"""Moves: their changes, and that a set and a window stay valid."""

import numpy as np
import pytest

from gptailor import loads
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import Key, key_of, uniform
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import active, sample
from gptailor.searching.strategies.moves import (
    MoveSites,
    bred,
    neighbourhood,
    resize,
    slide,
)

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"\n'
COUNTS = "drop any 2..5 of L0..L8\nmaybe drop any 1..2 of L9..L11"
WINDOWS = "drop window 2..4 of L0..L5, L7..L9\nmaybe drop window 2 of L10..L13"
MANY = 400


def space(text: str) -> Space:
    return space_of(loads(HEAD + text), 16)


def sites(of: Space, result: Genome, key: Key) -> MoveSites:
    table = of.table
    chance = uniform(key, (MANY, 7))
    return MoveSites(table, neighbourhood(table), active(table, result), chance)


def row(population: Genome, n: int) -> Genome:
    return Genome(*(gene[n] for gene in population))


def drops(of: Space, population: Genome, n: int) -> set[int]:
    return {drop.position for drop in decode(of, row(population, n)).drops}


def test_a_window_begins_or_ends_one_position_further_on_or_back() -> None:
    of = space(WINDOWS)
    before = sample(of.table, key_of(1), MANY)
    after = slide(sites(of, before, key_of(2)), before)
    steps = set()
    for n in range(MANY):
        changed = np.flatnonzero(before.picks[n] != after.picks[n])
        assert len(changed) <= 1
        for pick in changed:
            labels = [of.picks[pick].options[genome.picks[n][pick]] for genome in (before, after)]
            (a, b), (c, d) = labels
            steps.add((c - a, d - b))
    assert steps == {(-1, -1), (1, 1), (-1, 0), (0, 1), (1, 0), (0, -1)}


def test_a_move_leaves_an_unused_window() -> None:
    of = space("maybe drop window 2..3 of L0..L5\nmaybe drop L9")
    before = sample(of.table, key_of(1), MANY)
    after = slide(sites(of, before, key_of(2)), before)
    moved = (before.picks != after.picks).any(axis=1)
    taken = before.bits[:, [bit.subject.role for bit in of.bits].index("cut")]
    assert moved.any()
    assert not (moved & ~taken).any()


def test_a_move_changes_the_size_of_an_open_set_by_one() -> None:
    of = space(COUNTS)
    before = sample(of.table, key_of(3), MANY)
    after = resize(sites(of, before, key_of(4)), before)
    sizes = set()
    for n in range(MANY):
        one, other = drops(of, before, n), drops(of, after, n)
        assert len(one ^ other) == 1
        sizes.add(len(other & {*range(9)}))
        assert len(other & {9, 10, 11}) <= 2
    assert sizes == {2, 3, 4, 5}


@pytest.mark.parametrize("text", [COUNTS, WINDOWS, f"{COUNTS}\ndrop window 2 of L12..L15"])
def test_offspring_are_in_the_space(text: str) -> None:
    """After a move and a crossing counts are within bounds, and a window is one window."""
    of = space(f"{text}\nL0..L15 from any of math, code by linear()")
    parents = sample(of.table, key_of(5), 32)
    result = bred(of.table, neighbourhood(of.table), parents, MANY, (key_of(7), key_of(8)))
    for number, (low, high) in enumerate(zip(of.table.low, of.table.high, strict=True)):
        on = result.bits[:, of.table.group == number].sum(axis=1)
        assert ((low <= on) & (on <= high)).all()
    assert ((result.picks >= 0) & (result.picks < of.table.options)).all()
    assert any(drops(of, result, n) != drops(of, parents, n % 32) for n in range(MANY))
