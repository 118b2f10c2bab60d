"""Small changes of genomes, by position: what makes a plan another one like it.

A `Neighbourhood` says which genes of a table are alike; it is made once. Every move takes a
population and random numbers, one change for each genome, and keeps every set at a size
that it may have.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from gptailor.search.space.genome import Active, Genome
from gptailor.search.space.hash_random import Key, uniform
from gptailor.search.space.table import Table, active, exact

_Genes = Shaped[ndarray, "n g"]
_Numbers = Int[ndarray, " n"]
_Mask = Bool[ndarray, "n g"]
_Square = Int[ndarray, "g g"]

_NUDGES = (0.05, 0.25)
"""How far a real is nudged: the deviation of a small step, and of a large one."""
_REACH = 8
"""How many positions to each side a change may spread to, at most."""
_ONLY_ONE = 0.6
"""How often it doesn't spread."""
SHIFT, _JUMP = 1 / 3, 1 / 3
"""How often the bit of a set takes its run along, and how often it goes anywhere."""
_FAR = 1 << 30
"""More than any position."""
_CROSSED = 8
"""One mutant in so many has two parents."""
_CHANCES = 7
"""Numbers in 0..1 that a move takes."""


@final
class Neighbours(NamedTuple):
    """Of the genes of one kind: where they are, and which are each other's like elsewhere.

    `line` is equal for genes that are the same thing at other positions ("has math"); `before` and
    `after` are the next ones of the line, a gene without one being its own. `away` is how far each
    two of a line are apart, `_FAR` for others.
    """

    at: _Numbers
    line: _Numbers
    before: _Numbers
    after: _Numbers
    away: _Square


Neighbourhood = tuple[Neighbours, Neighbours, Neighbours]
"""Those of bits, picks and reals."""


def neighbourhood(table: Table) -> Neighbourhood:
    """What the moves know of a table."""
    bits = _neighbours(table.at_bits, table.group)
    picks = _neighbours(table.at_picks, table.options)
    return bits, picks, _neighbours(table.at_reals, np.zeros_like(table.at_reals))


def _neighbours(at: _Numbers, kind: _Numbers) -> Neighbours:
    """A line is a kind, and the how-manieth of the kind's genes at a position."""
    index = np.arange(len(at), dtype=np.int32)
    of_kind = kind[:, None] == kind[None, :]
    same = of_kind & (at[:, None] == at[None, :])
    slot = np.tril(same, -1).sum(axis=1)
    alike = of_kind & (slot[:, None] == slot[None, :]) & (at[:, None] >= 0) & (at[None, :] >= 0)
    alike |= np.eye(len(at), dtype=bool)
    line = np.argmax(alike, axis=1).astype(np.int32) if len(at) else index
    steps = at[None, :] - at[:, None]
    sides = [
        _nearest(np.where(alike & (steps * side > 0), np.abs(steps), _FAR)) for side in (-1, 1)
    ]
    before, after = (np.where(side < 0, index, side) for side in sides)
    return Neighbours(at, line, before, after, np.where(alike, np.abs(steps), _FAR))


def _nearest(away: Int[ndarray, "... g h"]) -> Int[ndarray, "... g"]:
    """For each row the nearest, -1 where all are far."""
    if away.shape[-1] == 0:
        return np.zeros(away.shape[:-1], np.int32)
    nearest = np.argmin(away, axis=-1)
    there = np.take_along_axis(away, nearest[..., None], axis=-1)[..., 0] < _FAR
    return np.where(there, nearest, -1).astype(np.int32)


def filled(around: Neighbourhood, genome: Genome, active: Active) -> Genome:
    """Genomes with what the nearest active likes have in the place of their inactive genes.

    So a position that comes back takes what is beside it, and not the base's layer.
    """

    def kind(near: Neighbours, gene: _Genes, there: _Mask) -> _Genes:
        row, number = np.nonzero(~there)
        nearest = _nearest(np.where(there[row], near.away[number], _FAR))
        found, fills = gene.copy(), nearest >= 0
        found[row[fills], number[fills]] = gene[row[fills], nearest[fills]]
        return found

    return Genome(*map(kind, around, genome, active))


# ------------------------------------------------------------------------------------------ moves


def choose(mask: _Mask, share: Float[ndarray, " n"]) -> _Numbers:
    """Of each row one of the places where a mask holds, each alike, by numbers in 0..1."""
    counts = np.cumsum(mask, axis=1, dtype=np.int32)
    if not mask.shape[1]:
        return np.zeros(len(mask), np.int64)
    found: ndarray = np.argmax(counts > np.floor(share * counts[:, -1])[:, None], axis=1)
    return found


@final
class MoveSites(NamedTuple):
    """Where moves take place: which genes may change, and random numbers in 0..1 for each."""

    table: Table
    group: _Numbers
    options: _Numbers
    active: Active
    chance: Float[ndarray, "n seven"]


def swap(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A bit of a set goes off and another of the same set goes on.

    It goes anywhere, or hops to the nearest free place on one side, or takes the run that it is in
    along: the run's last bit goes to before its first.
    """
    bits, chance = genome.bits, site.chance.T
    inside = choose(bits & (site.group >= 0) & site.active.bits, chance[0])
    mates = site.group == site.group[inside][:, None]
    free = ~bits & mates
    at = around[0].at
    away = (at - at[inside][:, None]) * np.where(chance[1] < 0.5, -1, 1)[:, None]
    ahead, behind = _first(free, away), _first(free, -away)
    rows = np.arange(len(bits))
    stop = away[rows, behind]
    bound = np.where(free[rows, behind] & (stop < 0), stop, -_FAR)
    run = bits & mates & (away > bound[:, None])
    last = np.argmin(np.where(run, away, _FAR), axis=1)
    on = np.where(chance[2] < SHIFT, last, inside)
    off = np.where(chance[2] > 1 - _JUMP, choose(free, chance[3]), ahead)
    fits = bits[rows, on] & ~bits[rows, off] & mates[rows, off] & (site.group[on] >= 0)
    changed = bits.copy()
    changed[rows[fits], on[fits]] = False
    changed[rows[fits], off[fits]] = True
    return genome._replace(bits=changed)


def resize(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A set whose size is open has one bit more or less, half of them at the end of a run."""
    bits, near = genome.bits, around[0]
    more, fewer = _resizable(site.table, bits, site.active.bits)
    add = np.where(site.chance[:, 1] < 0.5, more.any(1), ~fewer.any(1))[:, None]
    where, index = np.where(add, more, fewer), np.arange(bits.shape[1])
    before, after = bits[:, near.before], bits[:, near.after]
    ends = (before == add) & (near.before != index) | (after == add) & (near.after != index)
    ends = where & np.where(add, ends, ~(before & after))
    at_ends = ends.any(1) & (site.chance[:, 2] < 0.5)
    number = choose(np.where(at_ends[:, None], ends, where), site.chance[:, 0])
    changed = bits.copy()
    changed[np.arange(len(bits)), number] = add[:, 0]
    return genome._replace(bits=changed)


def _resizable(table: Table, bits: _Mask, active: _Mask) -> tuple[_Mask, _Mask]:
    """Bits that may go on, and bits that may go off, by the sizes of their sets."""
    more, fewer = np.zeros_like(bits), np.zeros_like(bits)
    for number in table.ranged:
        inside = (table.group == number) & active
        size = (bits & inside).sum(axis=1, keepdims=True)
        more |= inside & ~bits & (size < table.high[number])
        fewer |= inside & bits & (size > table.low[number])
    return more, fewer


def flip(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A bit of no set turns over; maybe its neighbours become what it is then."""
    number = choose((site.group < 0) & site.active.bits, site.chance[:, 0])
    where = _spread(around[0], site, number) & (site.group < 0)
    turned = ~genome.bits[np.arange(len(number)), number]
    return genome._replace(bits=np.where(where, turned[:, None], genome.bits))


def repick(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """Another option; maybe for neighbours too."""
    number = choose((site.options > 1) & site.active.picks, site.chance[:, 0])
    options = site.options[number]
    step = 1 + np.floor(site.chance[:, 1] * (options - 1)).astype(np.int32)
    option = (genome.picks[np.arange(len(number)), number] + step) % np.maximum(options, 1)
    where = _spread(around[1], site, number)
    return genome._replace(picks=np.where(where, option[:, None], genome.picks).astype(np.int32))


def slide(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A window begins or ends one position further on or back."""
    windows, rows = _windows(site.table) & site.active.picks, np.arange(len(genome.picks))
    number = choose(windows, site.chance[:, 0])
    beside = site.table.beside[site.table.pick_option[number] + genome.picks[rows, number]]
    value = beside[rows, choose(beside >= 0, site.chance[:, 1])]
    there = windows[rows, number] & (value >= 0)
    picks = genome.picks.copy()
    picks[rows[there], number[there]] = value[there]
    return genome._replace(picks=picks)


def _windows(table: Table) -> Bool[ndarray, " c"]:
    """Which picks are of windows."""
    return np.isin(np.arange(len(table.options)), table.inside_pick)


def nudge(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A real takes a small or a large step; maybe its neighbours become what it is then."""
    number = choose(site.active.reals, site.chance[:, 0])
    small, angle = site.chance[:, 1] < 0.5, site.chance[:, 3]
    normal = np.sqrt(-2 * np.log(site.chance[:, 5])) * np.cos(2 * np.pi * angle)
    step = normal * np.where(small, *_NUDGES)
    value = np.clip(genome.reals[np.arange(len(number)), number] + step, 0.0, 1.0)
    where = _spread(around[2], site, number)
    reals = np.where(where, value[:, None], genome.reals).astype(np.float32)
    return genome._replace(reals=reals)


def copy(around: Neighbourhood, site: MoveSites, genome: Genome) -> Genome:
    """A position takes all that a neighbour has, but for the sets."""
    places = np.concatenate([near.at for near in around])
    open_ = np.concatenate([site.active.bits & (site.group < 0), *site.active[1:]], axis=1)
    place = places[choose(open_ & (places >= 0), site.chance[:, 0])]
    backwards = (site.chance[:, 1] < 0.5)[:, None]

    def kind(near: Neighbours, gene: _Genes, free: Bool[ndarray, "..."]) -> _Genes:
        taken = np.where(backwards, gene[:, near.before], gene[:, near.after])
        return np.where((near.at == place[:, None]) & free, taken, gene)

    return Genome(*map(kind, around, genome, (site.group < 0, np.array(True), np.array(True))))


_Move = Callable[[Neighbourhood, MoveSites, Genome], Genome]
_MOVES: tuple[tuple[_Move, float], ...] = (
    (swap, 3.0),
    (flip, 2.0),
    (repick, 2.0),
    (nudge, 1.0),
    (copy, 1.0),
    (resize, 2.0),
    (slide, 3.0),
)
"""The moves, and how often each is made beside the others where it can be."""


def one_move(
    table: Table,
    around: Neighbourhood,
    genome: Genome,
    active: Active,
    chance: Float[ndarray, "n seven"],
) -> Genome:
    """The genomes after one each of the moves that they allow, by random numbers in 0..1."""
    group, options = table.group, table.options
    inside = (group >= 0) & active.bits
    sets = (inside & ~genome.bits).any(1) & (inside & genome.bits).any(1)
    free = ((group < 0) & active.bits).any(1)
    picks, reals = ((options > 1) & active.picks).any(1), active.reals.any(1)
    sizes = np.any(_resizable(table, genome.bits, active.bits), axis=(0, 2))
    windows = (_windows(table) & active.picks).any(1)
    able = [sets, free, picks, reals, free | picks | reals, sizes, windows]
    can = np.stack(able, axis=1)
    sums = np.cumsum(np.where(can, [odds for _, odds in _MOVES], 0.0), axis=1)
    moved = (sums <= chance[:, 6:] * sums[:, -1:]).sum(axis=1)
    found = Genome(*(gene.copy() for gene in genome))
    for number, (move, _) in enumerate(_MOVES):
        rows = np.flatnonzero((moved == number) & can[:, number])
        if len(rows):
            alive = Active(*(mask[rows] for mask in active))
            site = MoveSites(table, group, options, alive, chance[rows])
            for gene, new in zip(found, move(around, site, some_rows(genome, rows)), strict=True):
                gene[rows] = new
    return found


def crossed(
    table: Table,
    around: Neighbourhood,
    one: Genome,
    other: Genome,
    chance: Float[ndarray, "n two_b"],
) -> Genome:
    """Genomes with another's genes at a stretch of positions, sets of sizes that they may have.

    `chance` are two numbers in 0..1 and one for each bit.
    """
    places = np.concatenate([near.at for near in around])
    ends = np.sort(places[(chance[:, :2] * len(places)).astype(np.int32)], axis=1)

    def kind(near: Neighbours, mine: _Genes, theirs: _Genes) -> _Genes:
        return np.where((near.at >= ends[:, :1]) & (near.at <= ends[:, 1:]), theirs, mine)

    mixed = Genome(*map(kind, around, one, other))
    wanted = np.where(mixed.bits, 1.0, -1.0)
    scores = wanted + 0.5 * chance[:, 2:] + (one.bits & other.bits)
    return mixed._replace(bits=exact(table, np.where(table.group >= 0, scores, wanted)))


def _first(mask: _Mask, away: Int[ndarray, "n g"]) -> _Numbers:
    """The nearest of those in the mask with a way above 0; any gene where there is none."""
    found: ndarray = np.argmin(np.where(mask & (away > 0), away, _FAR), axis=1)
    return found


def _spread(near: Neighbours, site: MoveSites, number: _Numbers) -> _Mask:
    """A gene, and maybe those of its line beside it."""
    chance = site.chance[:, 2]
    reach = np.floor(_REACH * np.maximum(chance - _ONLY_ONE, 0) / (1 - _ONLY_ONE) + 1)
    reach = np.where(chance < _ONLY_ONE, 0, reach)
    found: ndarray = near.away[number] <= reach[:, None]
    return found


def bred(
    table: Table,
    around: Neighbourhood,
    parents: Genome,
    often: _Numbers,
    chance: tuple[Key, Key],
    most: int,
) -> Genome:
    """A mutant for each of `often`, which says by how many moves (`most` at most).

    Parents take turns. One mutant in `_CROSSED` has two of them. Not canonical.
    """
    many, (move, cross) = len(often), chance
    alive = active(table, parents)
    whole = filled(around, parents, alive)
    ranks = np.arange(many) % len(parents.bits)
    found, mixed = some_rows(whole, ranks), many // _CROSSED
    if mixed:
        numbers = uniform(cross, (mixed, 3 + len(table.group)))
        mates = some_rows(whole, (numbers[:, 0] * len(parents.bits)).astype(np.int32))
        first = Genome(*(gene[:mixed] for gene in found))
        for gene, new in zip(
            found, crossed(table, around, first, mates, numbers[:, 1:]), strict=True
        ):
            gene[:mixed] = new
    chances = uniform(move, (many, most, _CHANCES))
    for step in range(most):
        rows = np.flatnonzero(often > step)
        lively = Active(*(mask[ranks[rows]] for mask in alive))
        moved = one_move(table, around, some_rows(found, rows), lively, chances[rows, step])
        for gene, new in zip(found, moved, strict=True):
            gene[rows] = new
    return found


def step_counts(key: Key, many: int, more: float) -> _Numbers:
    """One step, and a geometric number of others, `more` in the mean."""
    found: ndarray = 1 + np.floor(np.log(uniform(key, (many,))) / np.log(more / (1 + more))).astype(
        np.int32
    )
    return found


def some_rows(genomes: Genome, which: Int[ndarray, " k"]) -> Genome:
    """Some of a population."""
    return Genome(*(np.asarray(gene)[which] for gene in genomes))


def where(mask: Bool[ndarray, " k"], one: Genome, other: Genome) -> Genome:
    """Genomes of the one population or of the other."""
    return Genome(*(np.where(mask[:, None], a, b) for a, b in zip(one, other, strict=True)))


def joined_populations(*some: Genome) -> Genome:
    """All of some populations."""
    return Genome(*(np.concatenate(genes) for genes in zip(*some, strict=True)))
