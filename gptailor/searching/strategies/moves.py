"""Small changes of genomes, by position. A move turns a plan into a similar plan.

A `Neighbourhood` contains the like genes of a table. It is computed once. A move takes a population
and random numbers, and changes each genome once. The sizes of sets stay allowed.
"""

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from gptailor.searching.space.genome import Active, Genome
from gptailor.searching.space.hash_random import Key, uniform
from gptailor.searching.space.table import Table, active, exact

_Genes = Shaped[ndarray, "n g"]
_Numbers = Int[ndarray, " n"]
_Mask = Bool[ndarray, "n g"]

_NUDGES = (0.05, 0.25)
"""The deviations of a real's small step and large step."""
_REACH = 8
"""The most positions to each side that a change may spread to."""
_ONLY_ONE = 0.6
"""The share of changes that don't spread."""
SHIFT, _JUMP = 1 / 3, 1 / 3
"""The share of swaps that shift a run, and the share that move a bit to any position."""
_FAR = 1 << 30
"""A distance above all positions."""
_CROSSED = 8
"""The number of mutants for each mutant with two parents."""
_CHANCES = 7
"""The number of random numbers in 0..1 that a move takes."""


@final
class Neighbours(NamedTuple):
    """Positions and like genes of the genes of one kind.

    A line has the genes of the same thing at different positions ("has math"). `before` and `after`
    are the next genes of the line. A gene without a next gene is its own. `away` is the distance of
    each two genes of a line, `_FAR` for all other pairs.
    """

    at: _Numbers
    before: _Numbers
    after: _Numbers
    away: Int[ndarray, "g g"]


Neighbourhood = tuple[Neighbours, Neighbours, Neighbours]
"""The neighbours of bits, of picks and of reals."""


def neighbourhood(table: Table) -> Neighbourhood:
    """Return the neighbourhood of a table's genes."""
    return (
        _neighbours(table.at_bits, table.group),
        _neighbours(table.at_picks, table.options),
        _neighbours(table.at_reals, np.zeros_like(table.at_reals)),
    )


def _neighbours(at: _Numbers, kind: _Numbers) -> Neighbours:
    """Return the neighbours of genes with these positions and kinds.

    A line joins the k-th genes of a kind at all positions.
    """
    index = np.arange(len(at), dtype=np.int32)
    of_kind = kind[:, None] == kind[None, :]
    same = of_kind & (at[:, None] == at[None, :])
    slot = np.tril(same, -1).sum(axis=1)
    alike = of_kind & (slot[:, None] == slot[None, :]) & (at[:, None] >= 0) & (at[None, :] >= 0)
    alike |= np.eye(len(at), dtype=bool)
    steps = at[None, :] - at[:, None]
    sides = [
        _nearest(np.where(alike & (steps * side > 0), np.abs(steps), _FAR)) for side in (-1, 1)
    ]
    before, after = (np.where(side < 0, index, side) for side in sides)
    return Neighbours(at, before, after, np.where(alike, np.abs(steps), _FAR))


def _nearest(away: Int[ndarray, "... g h"]) -> Int[ndarray, "... g"]:
    """Return the nearest gene of each row, -1 if all genes are far."""
    if away.shape[-1] == 0:
        return np.zeros(away.shape[:-1], np.int32)
    nearest = np.argmin(away, axis=-1)
    near = np.take_along_axis(away, nearest[..., None], axis=-1)[..., 0] < _FAR
    return np.where(near, nearest, -1).astype(np.int32)


def filled(around: Neighbourhood, genome: Genome, active: Active) -> Genome:
    """Return genomes with the nearest active like gene in the place of each inactive gene.

    So a position that becomes active is like its neighbours, and not like the base's layer.
    """

    def kind(near: Neighbours, gene: _Genes, alive: _Mask) -> _Genes:
        row, number = np.nonzero(~alive)
        nearest = _nearest(np.where(alive[row], near.away[number], _FAR))
        result, fills = gene.copy(), nearest >= 0
        result[row[fills], number[fills]] = gene[row[fills], nearest[fills]]
        return result

    return Genome(*map(kind, around, genome, active))


# ------------------------------------------------------------------------------------------ moves


def choose(mask: _Mask, share: Float[ndarray, " n"]) -> _Numbers:
    """Pick one true column per row, uniformly, using numbers in [0, 1)."""
    counts = np.cumsum(mask, axis=1, dtype=np.int32)
    if not mask.shape[1]:
        return np.zeros(len(mask), np.int64)
    return np.asarray(np.argmax(counts > np.floor(share * counts[:, -1])[:, None], axis=1))


@final
class MoveSites(NamedTuple):
    """Places of moves: the genes that may change, and random numbers in 0..1 for each genome."""

    table: Table
    around: Neighbourhood
    active: Active
    chance: Float[ndarray, "n seven"]


def swap(site: MoveSites, genome: Genome) -> Genome:
    """Turn a bit of a set off and another bit of the same set on.

    The bit moves to any free place, or to the nearest free place on one side. Or its run shifts:
    the run's last bit moves to the place before its first bit.
    """
    bits, chance, group = genome.bits, site.chance.T, site.table.group
    inside = choose(bits & (group >= 0) & site.active.bits, chance[0])
    mates = group == group[inside][:, None]
    free = ~bits & mates
    at = site.around[0].at
    away = (at - at[inside][:, None]) * np.where(chance[1] < 0.5, -1, 1)[:, None]
    ahead, behind = _first(free, away), _first(free, -away)
    rows = np.arange(len(bits))
    stop = away[rows, behind]
    bound = np.where(free[rows, behind] & (stop < 0), stop, -_FAR)
    run = bits & mates & (away > bound[:, None])
    last = np.argmin(np.where(run, away, _FAR), axis=1)
    on = np.where(chance[2] < SHIFT, last, inside)
    off = np.where(chance[2] > 1 - _JUMP, choose(free, chance[3]), ahead)
    fits = bits[rows, on] & ~bits[rows, off] & mates[rows, off] & (group[on] >= 0)
    changed = bits.copy()
    changed[rows[fits], on[fits]] = False
    changed[rows[fits], off[fits]] = True
    return genome._replace(bits=changed)


def resize(site: MoveSites, genome: Genome) -> Genome:
    """Turn one more bit on or off in a set of open size, half of the time at the end of a run."""
    bits, near = genome.bits, site.around[0]
    more, fewer = _resizable(site.table, bits, site.active.bits)
    add = np.where(site.chance[:, 1] < 0.5, more.any(1), ~fewer.any(1))[:, None]
    allowed, index = np.where(add, more, fewer), np.arange(bits.shape[1])
    before, after = bits[:, near.before], bits[:, near.after]
    ends = (before == add) & (near.before != index) | (after == add) & (near.after != index)
    ends = allowed & np.where(add, ends, ~(before & after))
    at_ends = ends.any(1) & (site.chance[:, 2] < 0.5)
    number = choose(np.where(at_ends[:, None], ends, allowed), site.chance[:, 0])
    changed = bits.copy()
    changed[np.arange(len(bits)), number] = add[:, 0]
    return genome._replace(bits=changed)


def _resizable(table: Table, bits: _Mask, active: _Mask) -> tuple[_Mask, _Mask]:
    """Return the bits that may turn on, and the bits that may turn off, by the sets' sizes."""
    more, fewer = np.zeros_like(bits), np.zeros_like(bits)
    for number in table.ranged:
        inside = (table.group == number) & active
        size = (bits & inside).sum(axis=1, keepdims=True)
        more |= inside & ~bits & (size < table.high[number])
        fewer |= inside & bits & (size > table.low[number])
    return more, fewer


def of_other_sizes(table: Table, parents: Genome) -> Genome:
    """Return all genomes with one more or one less bit in a set of open size."""
    more, fewer = _resizable(table, parents.bits, active(table, parents).bits)
    row, bit = np.nonzero(more | fewer)
    mutants = some_rows(parents, row)
    mutants.bits[np.arange(len(row)), bit] ^= True
    return mutants


def flip(site: MoveSites, genome: Genome) -> Genome:
    """Toggle a bit outside of sets. Its neighbours may get the same value."""
    number = choose((site.table.group < 0) & site.active.bits, site.chance[:, 0])
    return _spread(site, genome, 0, number, ~genome.bits[np.arange(len(number)), number])


def repick(site: MoveSites, genome: Genome) -> Genome:
    """Pick another option. Its neighbours may get the same option."""
    number = choose((site.table.options > 1) & site.active.picks, site.chance[:, 0])
    options = site.table.options[number]
    step = 1 + np.floor(site.chance[:, 1] * (options - 1)).astype(np.int32)
    option = (genome.picks[np.arange(len(number)), number] + step) % np.maximum(options, 1)
    return _spread(site, genome, 1, number, option)


def slide(site: MoveSites, genome: Genome) -> Genome:
    """Move an end of a window, or both ends, by one position."""
    windows, rows = _windows(site.table) & site.active.picks, np.arange(len(genome.picks))
    number = choose(windows, site.chance[:, 0])
    beside = site.table.beside[site.table.pick_option[number] + genome.picks[rows, number]]
    value = beside[rows, choose(beside >= 0, site.chance[:, 1])]
    fits = windows[rows, number] & (value >= 0)
    picks = genome.picks.copy()
    picks[rows[fits], number[fits]] = value[fits]
    return genome._replace(picks=picks)


def _windows(table: Table) -> Bool[ndarray, " c"]:
    """Return a mask of the picks of windows."""
    return np.isin(np.arange(len(table.options)), table.inside_pick)


def nudge(site: MoveSites, genome: Genome) -> Genome:
    """Move a real by a small or a large step. Its neighbours may get the same value."""
    number = choose(site.active.reals, site.chance[:, 0])
    small, angle = site.chance[:, 1] < 0.5, site.chance[:, 3]
    normal = np.sqrt(-2 * np.log(site.chance[:, 5])) * np.cos(2 * np.pi * angle)
    step = normal * np.where(small, *_NUDGES)
    value = np.clip(genome.reals[np.arange(len(number)), number] + step, 0.0, 1.0)
    return _spread(site, genome, 2, number, value)


def copy(site: MoveSites, genome: Genome) -> Genome:
    """Copy all genes of a neighbouring position to a position, except bits of sets."""
    free_bits = site.table.group < 0
    places = np.concatenate([near.at for near in site.around])
    open_ = np.concatenate([site.active.bits & free_bits, *site.active[1:]], axis=1)
    place = places[choose(open_ & (places >= 0), site.chance[:, 0])]
    backwards = (site.chance[:, 1] < 0.5)[:, None]

    def kind(near: Neighbours, gene: _Genes, free: Bool[ndarray, "..."]) -> _Genes:
        source = np.where(backwards, gene[:, near.before], gene[:, near.after])
        return np.where((near.at == place[:, None]) & free, source, gene)

    return Genome(*map(kind, site.around, genome, (free_bits, np.array(True), np.array(True))))


_MOVES: tuple[tuple[Callable[[MoveSites, Genome], Genome], float], ...] = (
    (swap, 3.0),
    (flip, 2.0),
    (repick, 2.0),
    (nudge, 1.0),
    (copy, 1.0),
    (resize, 2.0),
    (slide, 3.0),
)
"""The moves, and the odds of each possible move."""


def one_move(site: MoveSites, genome: Genome) -> Genome:
    """Return the genomes after one possible move each."""
    table, around, active, chance = site
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
    result = Genome(*(gene.copy() for gene in genome))
    for number, (move, _) in enumerate(_MOVES):
        rows = np.flatnonzero((moved == number) & can[:, number])
        if len(rows):
            alive = Active(*(mask[rows] for mask in active))
            changed = move(MoveSites(table, around, alive, chance[rows]), some_rows(genome, rows))
            for gene, new in zip(result, changed, strict=True):
                gene[rows] = new
    return result


def crossed(
    table: Table,
    around: Neighbourhood,
    first: Genome,
    second: Genome,
    chance: Float[ndarray, "n two_b"],
) -> Genome:
    """Return genomes with a second genome's genes at a stretch of positions.

    Sets keep allowed sizes. `chance` has two numbers in 0..1 and one number for each bit.
    """
    places = np.concatenate([near.at for near in around])
    ends = np.sort(places[(chance[:, :2] * len(places)).astype(np.int32)], axis=1)

    def kind(near: Neighbours, own: _Genes, mate: _Genes) -> _Genes:
        return np.where((near.at >= ends[:, :1]) & (near.at <= ends[:, 1:]), mate, own)

    mixed = Genome(*map(kind, around, first, second))
    weights = np.where(mixed.bits, 1.0, -1.0)
    scores = weights + 0.5 * chance[:, 2:] + (first.bits & second.bits)
    return mixed._replace(bits=exact(table, np.where(table.group >= 0, scores, weights)))


def _first(mask: _Mask, away: Int[ndarray, "n g"]) -> _Numbers:
    """Return the nearest gene of the mask with a distance above 0, or any gene without one."""
    return np.asarray(np.argmin(np.where(mask & (away > 0), away, _FAR), axis=1))


def _spread(
    site: MoveSites, genome: Genome, kind: int, number: _Numbers, value: Shaped[ndarray, " n"]
) -> Genome:
    """Return genomes with a new value of a gene, and maybe of neighbouring genes of its line."""
    chance = site.chance[:, 2]
    reach = np.floor(_REACH * np.maximum(chance - _ONLY_ONE, 0) / (1 - _ONLY_ONE) + 1)
    reach = np.where(chance < _ONLY_ONE, 0, reach)
    where = site.around[kind].away[number] <= reach[:, None]
    genes = np.where(where, value[:, None], genome[kind]).astype(genome[kind].dtype)
    return genome._replace(**{Genome._fields[kind]: genes})


def bred(
    table: Table, around: Neighbourhood, parents: Genome, count: int, chance: tuple[Key, Key]
) -> Genome:
    """Return `count` mutants, each after one move. Parents take turns.

    One mutant of `_CROSSED` has two parents. Mutants are not canonical.
    """
    move, cross = chance
    alive = active(table, parents)
    complete = filled(around, parents, alive)
    ranks = np.arange(count) % len(parents.bits)
    mixed = count // _CROSSED
    numbers = uniform(cross, (mixed, 3 + len(table.group)))
    mates = some_rows(complete, (numbers[:, 0] * len(parents.bits)).astype(np.int32))
    first = some_rows(complete, ranks[:mixed])
    mutants = joined_populations(
        crossed(table, around, first, mates, numbers[:, 1:]), some_rows(complete, ranks[mixed:])
    )
    alive = Active(*(mask[ranks] for mask in alive))
    return one_move(MoveSites(table, around, alive, uniform(move, (count, _CHANCES))), mutants)


def some_rows(genomes: Genome, which: Int[ndarray, " k"]) -> Genome:
    """Return some genomes of a population."""
    return Genome(*(np.asarray(gene)[which] for gene in genomes))


def joined_populations(*some: Genome) -> Genome:
    """Return one population of all genomes."""
    return Genome(*(np.concatenate(genes) for genes in zip(*some, strict=True)))
