"""Small changes of a genome, by position: what makes a plan another one like it.

A `Neighbourhood` says which genes of a table are alike; it is made once. Every move takes one
genome and random numbers, and keeps every set at a size that it may have.
"""

from functools import partial
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gptailor.search.space.genome import Active, Genome
from gptailor.search.space.table import Table, active, exact
from gptailor.search.strategies.hash_random import Seed, scrambled, uniform

_GeneArray = Array | np.ndarray
GeneNumbers = Int[Array, " n"]
Mask = Bool[Array | np.ndarray, " n"]

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


@final
class Neighbours(NamedTuple):
    """Of the genes of one kind: where they are, and which are each other's like elsewhere.

    `line` is equal for genes that are the same thing at other positions ("has math"); `before` and
    `after` are the next ones of the line, a gene without one being its own.
    """

    at: GeneNumbers
    line: GeneNumbers
    before: GeneNumbers
    after: GeneNumbers


Neighbourhood = tuple[Neighbours, Neighbours, Neighbours]
"""Those of bits, picks and reals."""


def neighbourhood(table: Table) -> Neighbourhood:
    """What the moves know of a table."""
    bits = _neighbours(jnp.asarray(table.at_bits), jnp.asarray(table.group))
    picks = _neighbours(jnp.asarray(table.at_picks), jnp.asarray(table.options))
    at = jnp.asarray(table.at_reals)
    return bits, picks, _neighbours(at, jnp.zeros_like(at))


def _neighbours(at: GeneNumbers, kind: GeneNumbers) -> Neighbours:
    """A line is a kind, and the how-manieth of the kind's genes at a position."""
    index = jnp.arange(len(at), dtype=jnp.int32)
    same = (at[:, None] == at[None, :]) & (kind[:, None] == kind[None, :])
    slot = jnp.sum(same & (index[None, :] < index[:, None]), axis=1)
    alike = (slot[:, None] == slot[None, :]) & (kind[:, None] == kind[None, :])
    alike &= (at[:, None] >= 0) & (at[None, :] >= 0)
    alike |= index[:, None] == index[None, :]
    line = jnp.min(jnp.where(alike, index[None, :], len(at)), axis=1, initial=len(at))
    away = at[None, :] - at[:, None]
    sides = [_nearest(alike & (away * step > 0), jnp.abs(away)) for step in (-1, 1)]
    return Neighbours(at, line, *(jnp.where(side < 0, index, side) for side in sides))


def _nearest(mask: Bool[Array, "n n"], away: Int[Array, "n n"]) -> GeneNumbers:
    """For each row the nearest of those in the mask, -1 without any."""
    if mask.shape[1] == 0:
        return jnp.zeros(0, jnp.int32)
    nearest = jnp.argmin(jnp.where(mask, away, _FAR), axis=1)
    return jnp.where(jnp.any(mask, axis=1), nearest, -1).astype(jnp.int32)


def filled(around: Neighbourhood, genome: Genome, active: Active) -> Genome:
    """The genome with what its nearest active likes have in the place of its inactive genes.

    So a position that comes back takes what is beside it, and not the base's layer.
    """

    def kind(near: Neighbours, gene: _GeneArray, there: Mask) -> Array:
        away = jnp.abs(near.at[None, :] - near.at[:, None])
        alike = (near.line[:, None] == near.line[None, :]) & there[None, :]
        nearest = _nearest(alike, away)
        return jnp.where(there | (nearest < 0), gene, gene[nearest])

    return Genome(*map(kind, around, genome, active))


# ------------------------------------------------------------------------------------------ moves


def choose(mask: Mask, share: Float[Array, ""]) -> Int[Array, ""]:
    """One of the places where a mask holds, each alike, by a number in 0..1.

    The place with the highest of pseudo-random numbers: cheaper than counting, one pass.
    """
    seed = jax.lax.bitcast_convert_type(share, jnp.uint32)
    numbers = scrambled(scrambled(jnp.arange(len(mask), dtype=jnp.uint32)) ^ seed) >> 1
    return jnp.argmax(jnp.where(mask, numbers.astype(jnp.int32), -1))


@final
class MoveSite(NamedTuple):
    """Where a move takes place: which genes may change, and its random numbers in 0..1."""

    table: Table
    group: GeneNumbers
    options: GeneNumbers
    active: Active
    chance: Float[Array, " five"]
    normal: Float[Array, ""]


def swap(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A bit of a set goes off and another of the same set goes on.

    It goes anywhere, or hops to the nearest free place on one side, or takes the run that it is in
    along: the run's last bit goes to before its first.
    """
    inside = choose(genome.bits & (site.group >= 0) & site.active.bits, site.chance[0])
    mates = site.group == site.group[inside]
    free = ~genome.bits & mates
    away = (around[0].at - around[0].at[inside]) * jnp.where(site.chance[1] < 0.5, -1, 1)
    ahead, behind = _first(free, away), _first(free, -away)
    bound = jnp.where(free[behind] & (away[behind] < 0), away[behind], -_FAR)
    run = genome.bits & mates & (away > bound)
    last = jnp.argmin(jnp.where(run, away, _FAR))
    on = jnp.where(site.chance[2] < SHIFT, last, inside)
    off = jnp.where(site.chance[2] > 1 - _JUMP, choose(free, site.chance[3]), ahead)
    fits = genome.bits[on] & ~genome.bits[off] & mates[off] & (site.group[on] >= 0)
    places = jnp.arange(len(mates))
    bits = genome.bits & ~(fits & (places == on)) | (fits & (places == off))
    return genome._replace(bits=bits)


def resize(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A set whose size is open has one bit more or less, half of them at the end of a run."""
    more, fewer = _resizable(site, genome)
    add = jnp.where(site.chance[1] < 0.5, jnp.any(more), ~jnp.any(fewer))
    where = jnp.where(add, more, fewer)
    near = around[0]
    ends = where & ((genome.bits[near.before] == add) & (near.before != jnp.arange(len(where))))
    ends |= where & ((genome.bits[near.after] == add) & (near.after != jnp.arange(len(where))))
    ends = jnp.where(add, ends, where & ~(genome.bits[near.before] & genome.bits[near.after]))
    where = jnp.where((site.chance[2] < 0.5) & jnp.any(ends), ends, where)
    number = choose(where, site.chance[0])
    return genome._replace(bits=jnp.where(jnp.arange(len(where)) == number, add, genome.bits))


def _resizable(site: MoveSite, genome: Genome) -> tuple[Mask, Mask]:
    """Bits that may go on, and bits that may go off, by the sizes of their sets."""
    low, high = jnp.asarray(site.table.low), jnp.asarray(site.table.high)
    inside = (site.group >= 0) & site.active.bits
    size = jax.ops.segment_sum(genome.bits & inside, site.group, len(low))
    more = inside & ~genome.bits & (size < high)[site.group]
    return more, inside & genome.bits & (size > low)[site.group]


def flip(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A bit of no set turns over; maybe its neighbours become what it is then."""
    number = choose((site.group < 0) & site.active.bits, site.chance[0])
    where = _spread(around[0], site, number) & (site.group < 0)
    return genome._replace(bits=jnp.where(where, ~genome.bits[number], genome.bits))


def repick(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """Another option; maybe for neighbours too."""
    number = choose((site.options > 1) & site.active.picks, site.chance[0])
    step = 1 + jnp.floor(site.chance[1] * (site.options[number] - 1)).astype(jnp.int32)
    option = (genome.picks[number] + step) % jnp.maximum(site.options[number], 1)
    where = _spread(around[1], site, number)
    return genome._replace(picks=jnp.where(where, option, genome.picks))


def slide(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A window begins or ends one position further on or back."""
    windows = _windows(site.table) & site.active.picks
    number = choose(windows, site.chance[0])
    option = jnp.asarray(site.table.pick_option)[number] + genome.picks[number]
    beside = jnp.asarray(site.table.beside)[option]
    value = beside[choose(beside >= 0, site.chance[1])]
    there = (jnp.arange(len(windows)) == number) & windows[number] & (value >= 0)
    return genome._replace(picks=jnp.where(there, value, genome.picks))


def _windows(table: Table) -> Mask:
    """Which picks are of windows."""
    return jnp.zeros(len(table.options), bool).at[jnp.asarray(table.inside_pick)].set(True)


def nudge(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A real takes a small or a large step; maybe its neighbours become what it is then."""
    number = choose(site.active.reals, site.chance[0])
    step = site.normal * jnp.where(site.chance[1] < 0.5, *_NUDGES)
    value = jnp.clip(genome.reals[number] + step, 0.0, 1.0)
    where = _spread(around[2], site, number)
    return genome._replace(reals=jnp.where(where, value, genome.reals))


def copy(around: Neighbourhood, site: MoveSite, genome: Genome) -> Genome:
    """A position takes all that a neighbour has, but for the sets."""
    places = jnp.concatenate([near.at for near in around])
    open_ = jnp.concatenate([site.active.bits & (site.group < 0), *site.active[1:]])
    place = places[choose(open_ & (places >= 0), site.chance[0])]
    backwards = site.chance[1] < 0.5

    def kind(near: Neighbours, gene: _GeneArray, free: Bool[Array, "..."]) -> Array:
        source = jnp.where(backwards, near.before, near.after)
        return jnp.where((near.at == place) & free, gene[source], gene)

    return Genome(*map(kind, around, genome, (site.group < 0, jnp.array(True), jnp.array(True))))


_MOVES = (
    (swap, 3.0),
    (flip, 2.0),
    (repick, 2.0),
    (nudge, 1.0),
    (copy, 1.0),
    (resize, 2.0),
    (slide, 3.0),
)
"""The moves, and how often each is made beside the others where it can be."""
_CHANCES = 7
"""Numbers in 0..1 that a move takes."""


def one_move(
    table: Table,
    around: Neighbourhood,
    genome: Genome,
    active: Active,
    chance: Float[Array, " seven"],
) -> Genome:
    """The genome after one of the moves that it allows, by random numbers in 0..1."""
    group, options = jnp.asarray(table.group), jnp.asarray(table.options)
    normal = jax.scipy.special.ndtri(chance[5])
    site = MoveSite(table, group, options, active, chance[:5], normal)
    inside = (group >= 0) & active.bits
    sets = jnp.any(inside & ~genome.bits) & jnp.any(inside & genome.bits)
    free = jnp.any((group < 0) & active.bits)
    picks, reals = jnp.any((options > 1) & active.picks), jnp.any(active.reals)
    has = [*map(len, genome[:1] + genome), True, len(table.ranged), len(table.inside_pick)]
    no = jnp.array(False)
    sizes = jnp.any(jnp.stack(_resizable(site, genome))) if len(table.ranged) else no
    windows = jnp.any(_windows(table) & active.picks) if len(table.inside_pick) else no
    can = jnp.stack([sets, free, picks, reals, free | picks | reals, sizes, windows])
    odds = jnp.where(can, jnp.array([odds for _, odds in _MOVES]), 0.0)
    sums = jnp.tril(jnp.ones((len(odds), len(odds)))) @ odds
    number = jnp.minimum(jnp.sum(sums <= chance[6] * sums[-1]), len(odds) - 1)
    branches = [
        partial(move, around, site) if there else lambda same: same
        for (move, _), there in zip(_MOVES, has, strict=True)
    ]
    found: Genome = jax.lax.switch(number, branches, genome)
    return found


def crossed(
    table: Table,
    around: Neighbourhood,
    one: Genome,
    other: Genome,
    chance: Float[Array, " two_b"],
) -> Genome:
    """The one genome with the other's genes at a stretch of positions, its sets of a size.

    `chance` are two numbers in 0..1 and one for each bit.
    """
    places = jnp.concatenate([near.at for near in around])
    ends = jnp.sort(places[(chance[:2] * len(places)).astype(jnp.int32)])

    def kind(near: Neighbours, mine: _GeneArray, theirs: _GeneArray) -> Array:
        return jnp.where((near.at >= ends[0]) & (near.at <= ends[1]), theirs, mine)

    mixed = Genome(*map(kind, around, one, other))
    wanted = jnp.where(mixed.bits, 1.0, -1.0)
    scores = wanted + 0.5 * chance[2:] + (one.bits & other.bits)
    scores = jnp.where(jnp.asarray(table.group) >= 0, scores, wanted)
    return mixed._replace(bits=exact(table, scores))


def _first(mask: Mask, away: Int[Array, " n"]) -> Int[Array, ""]:
    """The nearest of those in the mask with a way above 0; any gene where there is none."""
    return jnp.argmin(jnp.where(mask & (away > 0), away, _FAR))


def _spread(near: Neighbours, site: MoveSite, number: Int[Array, ""]) -> Mask:
    """A gene, and maybe those of its line beside it."""
    reach = jnp.floor(_REACH * jnp.maximum(site.chance[2] - _ONLY_ONE, 0) / (1 - _ONLY_ONE) + 1)
    reach = jnp.where(site.chance[2] < _ONLY_ONE, 0, reach)
    inside = jnp.abs(near.at - near.at[number]) <= reach
    itself = jnp.arange(len(near.at)) == number
    return itself | (inside & (near.line == near.line[number]))


def bred(
    table: Table,
    around: Neighbourhood,
    parents: Genome,
    often: Int[Array, " c"],
    seeds: tuple[Seed, Seed],
    most: int,
) -> Genome:
    """A mutant for each of `often`, which says by how many moves (`most` at most).

    Parents take turns. One mutant in `_CROSSED` has two of them. Not canonical.
    """
    many, (move, cross) = len(often), seeds
    alive = jax.vmap(partial(active, table))(parents)
    whole = jax.vmap(partial(filled, around))(parents, alive)
    ranks = jnp.arange(many) % len(parents.bits)
    chosen, mixed = some_rows(whole, ranks), many // _CROSSED
    if mixed:
        chance = uniform(cross, (mixed, 3 + len(table.group)))
        mates = some_rows(whole, (chance[:, 0] * len(parents.bits)).astype(jnp.int32))
        first = jax.tree.map(lambda gene: gene[:mixed], chosen)
        pairs = jax.vmap(partial(crossed, table, around))(first, mates, chance[:, 1:])
        chosen = jax.tree.map(lambda every, new: every.at[:mixed].set(new), chosen, pairs)
    lively = jax.tree.map(lambda mask: mask[ranks], alive)
    chances = uniform(move, (many, most, _CHANCES))
    return jax.vmap(partial(_mutant, table, around))(chosen, lively, often, chances)


_CROSSED = 8
"""One mutant in so many has two parents."""


def step_counts(seed: Seed, many: int, more: float | Float[Array, ""]) -> Int[Array, " c"]:
    """One step, and a geometric number of others, `more` in the mean."""
    return 1 + jnp.floor(jnp.log(uniform(seed, (many,))) / jnp.log(more / (1 + more))).astype(
        jnp.int32
    )


def some_rows(genomes: Genome, which: Int[Array, " k"]) -> Genome:
    """Some of a population."""
    return Genome(*(jnp.asarray(gene)[which] for gene in genomes))


def where(mask: Bool[Array, " k"], one: Genome, other: Genome) -> Genome:
    """Genomes of the one population or of the other."""
    return Genome(*(jnp.where(mask[:, None], a, b) for a, b in zip(one, other, strict=True)))


def joined_populations(one: Genome, other: Genome) -> Genome:
    """Both populations."""
    return Genome(*(jnp.concatenate([a, b]) for a, b in zip(one, other, strict=True)))


def _mutant(
    table: Table,
    around: Neighbourhood,
    genome: Genome,
    alive: Active,
    often: Int[Array, ""],
    chances: Float[Array, "most seven"],
) -> Genome:
    def step(held: Genome, one: tuple[Array, Array]) -> tuple[Genome, None]:
        changed = one_move(table, around, held, alive, one[1])
        return jax.tree.map(partial(jnp.where, one[0] < often), changed, held), None

    return jax.lax.scan(step, genome, (jnp.arange(len(chances)), chances))[0]
