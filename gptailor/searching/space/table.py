"""A space as arrays. They evaluate a genome or a population without plans.

A *truth* is about a genome: a bit is on or off, an option is picked. A *joint* of other truths is a
truth, too. Each gene has a truth that tells whether the gene is active. Each mark, a feature that
is 0 or 1, is a truth.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from gptailor.plan.sites import Subject
from gptailor.plan.windows import Window
from gptailor.searching.space import genome as g
from gptailor.searching.space.collect import Collecting
from gptailor.searching.space.hash_random import Key, uniform


@final
class Limits(NamedTuple):
    """Limits of genomes: weights of a sum over features, and its greatest value, a row a limit."""

    weights: Float[ndarray, " l f"]
    room: Float[ndarray, " l"]


@final
class Table(NamedTuple):
    """The arrays of a space.

    `group` is the number of the set that a bit belongs to, -1 without a set. In set g at least
    `low[g]` and at most `high[g]` bits are on. `ranged` are the sets with an open size. `options`
    is the number of options of each pick. `at_bits`, `at_picks` and `at_reals` are the genes'
    positions, -1 without a position. `defaults` are the values of inactive genes. `pairs` are
    numbers of features of one kind at neighbouring positions. `at_features` are the features'
    positions.

    `pick_option` is the number of a pick's first option among all picks' options. `first` and
    `last` are the ends of an option that is a window. `beside` has the options that begin or end
    one position further on or back, padded with -1. `inside_pick` and `inside_at` are the picks and
    the positions that their windows may contain. `items` are the bits of a stack's `maybe` items,
    and `room` is the greatest number of them that are on.

    `joints` are truths made of truths before them, in groups that are computed at once: the kind of
    the joints, their numbers, and the numbers of the truths of each joint.
    `truths` has the truth of each gene and then of each mark, -1 for never. `closing` has the truth
    that a closed plan has an entry, for each entry, and then that a position leaves. `gap_errors`
    are the measured errors of a bridge over gaps of 1, 2, … layers that begin at each position.
    """

    group: Int[ndarray, " b"]
    low: Int[ndarray, " g"]
    high: Int[ndarray, " g"]
    ranged: Int[ndarray, " v"]
    options: Int[ndarray, " c"]
    at_bits: Int[ndarray, " b"]
    at_picks: Int[ndarray, " c"]
    at_reals: Int[ndarray, " r"]
    at_features: Int[ndarray, " f"]
    drops: Int[ndarray, " d"]  # features of dropped layers
    pairs: Int[ndarray, " p two"]
    defaults: g.Genome
    option_pick: Int[ndarray, " o"]
    option_value: Int[ndarray, " o"]
    pick_option: Int[ndarray, " c"]
    first: Int[ndarray, " o"]
    last: Int[ndarray, " o"]
    beside: Int[ndarray, " o k"]
    inside_pick: Int[ndarray, " w"]
    inside_at: Int[ndarray, " w"]
    items: Int[ndarray, " i"]
    room: int
    joints: tuple[tuple[str, Int[ndarray, " g"], Int[ndarray, "g k"]], ...]
    truths: Int[ndarray, " rows"]
    closing: Int[ndarray, " e"]
    limits: Limits | None = None
    gap_errors: Float[ndarray, "layers widest"] | None = None


def active(table: Table, genome: g.Genome) -> g.Active:
    """Return which genes change the plan. A set's genes are all active, or all inactive."""
    return g.Active(*np.split(_rows(table, genome, table.truths), _ends(table), axis=-1)[:3])


def canonical(table: Table, genome: g.Genome) -> g.Genome:
    """Return the genome of the same plan with its inactive genes at their defaults."""
    for _ in range(2):  # an inactive `maybe` that turns off makes its inner genes inactive
        genome = g.Genome(*map(np.where, active(table, genome), genome, table.defaults))
    return genome


def features(table: Table, genome: g.Genome) -> Float[ndarray, "*n f"]:
    """Return the features of a canonical genome.

    Marks of 0 or 1 come first, then reals in -1..1. An inactive real is 0.
    """
    *_, gates, marks = np.split(_rows(table, genome, table.truths), _ends(table), axis=-1)
    reals = np.where(gates, 2 * np.asarray(genome.reals) - 1, 0.0)
    return np.concatenate([marks, reals], axis=-1, dtype=np.float32)


def gap_features(table: Table, effects: Float[ndarray, "n f"]) -> Float[ndarray, "n k"]:
    """Return features of the gaps that a bridge closes, by the features of genomes.

    These are the number of gaps, the sum of their errors, and the sum of the logarithms of their
    errors, each relative to its mean over all measured gaps. The array has no columns if the table
    has no `gap_errors`. A gap wider than all measured gaps has the error of the widest gap at its
    place.
    """
    errors = table.gap_errors
    if errors is None:
        return np.zeros((len(effects), 0), np.float32)
    layers, widest = errors.shape
    dropped = np.zeros((len(effects), layers), np.bool_)
    dropped[:, table.at_features[table.drops]] = effects[:, table.drops] > 0
    width = np.zeros((len(effects), layers + 1), np.int32)
    for at in reversed(range(layers)):
        width[:, at] = np.where(dropped[:, at], width[:, at + 1] + 1, 0)
    begins = dropped & ~np.pad(dropped, ((0, 0), (1, 0)))[:, :-1]
    error = errors[np.arange(layers), np.clip(width[:, :-1], 1, widest) - 1]
    each = np.ones_like(error), error / errors.mean(), np.log(error) - np.log(errors).mean()
    sums = [np.where(begins, one, 0).sum(axis=1) for one in each]
    return np.asarray(np.stack(sums, axis=1) / widest, np.float32)


def closing(table: Table, genome: g.Genome) -> Bool[ndarray, "*n e"]:
    """Return whether the closed plan has each entry, and then whether each position leaves."""
    return _rows(table, genome, table.closing)


_ALIKE = 1 / 8
"""The difference below which features count as equal: a sixteenth of a real's range."""


def coarse(rows: Float[ndarray, "*n f"]) -> Float[ndarray, "*n f"]:
    """Return features with reals rounded to sixteenths of their range, equal for like plans."""
    return np.asarray(np.round(rows / _ALIKE) * _ALIKE)


def distinct(table: Table, genomes: Sequence[g.Genome]) -> list[int]:
    """Return the numbers of the canonical genomes that differ from all kept genomes before them.

    Like genomes make the same choices, and their reals differ by less than a sixteenth of the
    range.
    """
    kept: list[int] = []
    stacked = map(np.stack, zip(*genomes, strict=True))
    rows = features(table, g.Genome(*stacked)) if genomes else np.empty(0)
    for number, row in enumerate(rows):
        if not (np.abs(rows[kept] - row) < _ALIKE).all(axis=1).any():
            kept.append(number)
    return kept


def allowed(table: Table, genome: g.Genome) -> Bool[ndarray, "*n"]:
    """Return which canonical genomes are within the table's limits."""
    if table.limits is None:
        return np.ones(np.asarray(genome.bits).shape[:-1], np.bool_)
    sums = features(table, genome) @ table.limits.weights.T
    return np.asarray((sums <= table.limits.room).all(axis=-1))


def exact(
    table: Table, scores: Float[ndarray, "*n b"], sizes: Int[ndarray, "*n g"] | None = None
) -> Bool[ndarray, "*n b"]:
    """Return the bits with the highest scores of each set, and positive bits outside of sets.

    `sizes` are the numbers of bits of the sets. Without `sizes` a set has its bits with positive
    scores, within its limits.
    """
    chosen = scores > 0
    for number, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
        members = np.flatnonzero(table.group == number)
        order = np.argsort(-scores[..., members], axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1, kind="stable")
        if sizes is None:
            inside = (rank < low) | ((rank < high) & chosen[..., members])
        else:
            inside = rank < sizes[..., number, None]
        chosen[..., members] = inside
    return chosen


def sample(table: Table, key: Key, count: int) -> g.Genome:
    """Draw random canonical genomes: sizes, sets of a size, options and reals are uniform."""
    ends = _ends(table)
    numbers = uniform(key, (count, int(ends[-1]) + len(table.ranged)))
    bits, picks, reals, shares = np.split(numbers, ends, axis=1)
    more = (table.high - table.low)[table.ranged]
    sizes = np.broadcast_to(table.low, (count, len(table.low))).copy()
    sizes[:, table.ranged] += np.minimum(np.floor(shares * (more + 1)).astype(np.int32), more)
    options = np.floor(picks * table.options).astype(np.int32)
    return canonical(table, g.Genome(exact(table, bits - 0.5, sizes), options, reals))


def _ends(table: Table) -> Int[ndarray, " three"]:
    """Return the ends of bits, of picks and of reals among all genes."""
    return np.cumsum([len(table.group), len(table.options), len(table.at_reals)])


def _rows(
    table: Table, genome: g.Genome, wanted: Int[ndarray, " rows"]
) -> Bool[ndarray, "*n rows"]:
    """Return the wanted truths of a genome or a population."""
    bits, picks = map(np.atleast_2d, genome[:2])
    facts = _facts(table, bits.T, picks.T)
    count = len(facts) + sum(len(numbers) for _, numbers, _ in table.joints)
    truths = np.zeros((count + 1, facts.shape[1]), np.uint8)
    truths[: len(facts)] = facts
    for kind, numbers, of in table.joints:
        join = np.bitwise_and if kind == "every" else np.bitwise_or
        joined = join.reduce(truths[of], axis=1)
        truths[numbers] = ~joined if kind == "none" else joined
    rows = np.unpackbits(truths[wanted], axis=1, count=len(bits)).T.astype(bool)
    return rows.reshape(*np.shape(genome.bits)[:-1], rows.shape[1])


def _facts(
    table: Table, bits: Bool[ndarray, "b n"], picks: Int[ndarray, "c n"]
) -> UInt8[ndarray, "l n8"]:
    """Return the facts of a population, in the order of `_joints`, a byte for eight genomes.

    These are bits, options, positions inside of windows, and items with room.
    """
    picked = picks[table.option_pick] == table.option_value[:, None]
    option = (table.pick_option[:, None] + picks)[table.inside_pick]
    at = table.inside_at[:, None]
    inside = (table.first[option] <= at) & (at <= table.last[option])
    on = bits[table.items]
    with_room = np.cumsum(on, axis=0) - on < table.room
    return np.packbits(np.concatenate([bits, picked, inside, with_room]), axis=1)


# ------------------------------------------------------------------------------- from genes to rows


def _joints(
    whens: Sequence[g.Condition], genes: Collecting
) -> tuple[tuple[tuple[str, ndarray, ndarray], ...], list[int]]:
    """Return the joints in conditions, and the number of each condition's truth.

    A group has joints of one kind, depth and length.
    """
    options = [0, *accumulate(len(pick.options) for pick in genes.picks)]
    ends = [0, *accumulate([len(genes.bits), options[-1], len(genes.inside), len(genes.items)])]
    start = dict(zip(("bit", "option", "inside", "room"), ends, strict=False))
    known: dict[g.Condition, tuple[int, int]] = {}
    groups: dict[tuple[int, str, int], dict[int, list[int]]] = {}

    def truth(condition: g.Condition) -> tuple[int, int]:
        """Return the number of a condition's truth, and its depth."""
        if isinstance(condition, g.GeneFact):
            first = options[condition.number] if condition.kind == "option" else condition.number
            return start[condition.kind] + first + condition.value, 0
        if condition not in known:
            parts = [*map(truth, condition.of)]
            depth = 1 + max((below for _, below in parts), default=0)
            known[condition] = number, _ = ends[-1] + len(known), depth
            group = groups.setdefault((depth, condition.kind, len(parts)), {})
            group[number] = [part for part, _ in parts]
        return known[condition]

    rows = [truth(when)[0] for when in whens]
    grouped = (
        (kind, _ints([*group]), np.array([*group.values()], np.int32))
        for (_, kind, _), group in sorted(groups.items())
    )
    return tuple(grouped), rows


@final
class _Feature(NamedTuple):
    """A feature at a position: a gene, an option of a pick, or the merging of a subset."""

    about: Hashable
    at: int
    when: g.Condition


def table_of(genes: Collecting) -> Table:
    """Return the arrays of a space with these genes."""
    options = [len(pick.options) for pick in genes.picks]
    marks = _marks(genes)
    reals = [_Feature(_about(real.subject), real.at, real.when) for real in genes.reals]
    conditional: list[g.Gene | _Feature] = [*genes.bits, *genes.picks, *genes.reals, *marks]
    whens = [gene.when for gene in conditional]
    joints, truths = _joints([*whens, *genes.stays.values(), *genes.leaves], genes)
    windows = [window for pick in genes.picks for window in _window_options(pick)]
    return Table(
        group=_ints([gene.group for gene in genes.bits]),
        low=_ints([low for low, _ in genes.sizes]),
        high=_ints([high for _, high in genes.sizes]),
        ranged=_ints([i for i, (low, high) in enumerate(genes.sizes) if low < high]),
        options=_ints(options),
        at_bits=_ints([gene.at for gene in genes.bits]),
        at_picks=_ints([gene.at for gene in genes.picks]),
        at_reals=_ints([gene.at for gene in genes.reals]),
        at_features=_ints([feature.at for feature in (*marks, *reals)]),
        drops=_ints([i for i, mark in enumerate(marks) if mark.about == _about(Subject("drop"))]),
        pairs=_pairs([*marks, *reals]),
        defaults=g.Genome(
            np.array([gene.default for gene in genes.bits], bool),
            _ints([gene.default for gene in genes.picks]),
            np.full(len(genes.reals), 0.5, np.float32),
        ),
        option_pick=_ints([i for i, n in enumerate(options) for _ in range(n)]),
        option_value=_ints([v for n in options for v in range(n)]),
        pick_option=_ints(np.cumsum([0, *options])[:-1].tolist()),
        first=_ints([first for first, _ in windows]),
        last=_ints([last for _, last in windows]),
        beside=_beside(genes.picks),
        inside_pick=_ints([pick for pick, _ in genes.inside]),
        inside_at=_ints([at for _, at in genes.inside]),
        items=_ints(genes.items),
        room=genes.room,
        joints=joints,
        truths=_ints(truths[: len(whens)]),
        closing=_ints(truths[len(whens) :]),
    )


def _window_options(pick: g.Pick) -> list[Window]:
    """Return the windows of a pick's options, with (0, 0) for options that aren't windows."""
    ends = ((option if isinstance(option, tuple) else (0, 0)) for option in pick.options)
    return [(int(first), int(last)) for first, last in ends]


_BESIDE = ((-1, -1), (1, 1), (-1, 0), (0, 1), (1, 0), (0, -1))
"""Steps of a window's first and last position: moved, made longer, made shorter."""


def _beside(picks: Sequence[g.Pick]) -> np.ndarray:
    """Return the values of the windows next to each option, padded with -1."""
    value = {
        (number, option): v
        for number, pick in enumerate(picks)
        if pick.windows
        for v, option in enumerate(pick.options)
    }
    rows = [
        [value.get((number, (first + a, last + b)), -1) for a, b in _BESIDE]
        for number, pick in enumerate(picks)
        for first, last in _window_options(pick)
    ]
    return np.array(rows, np.int32).reshape(len(rows), len(_BESIDE))


def _marks(genes: Collecting) -> list[_Feature]:
    """Return the features that are 0 or 1: bits, positions in windows, options, and merges."""
    bits = [
        _Feature(_about(gene.subject), gene.at, g.every(gene.when, g.GeneFact("bit", i)))
        for i, gene in enumerate(genes.bits)
    ]
    inside = [
        _Feature(
            _about(Subject("block" if genes.picks[window].subject.role == "block" else "drop")),
            at,
            g.every(genes.picks[window].when, g.GeneFact("inside", n)),
        )
        for n, (window, at) in enumerate(genes.inside)
    ]
    options = [
        _Feature(
            _about(pick.subject, label), pick.at, g.every(pick.when, g.GeneFact("option", i, v))
        )
        for i, pick in enumerate(genes.picks)
        if not pick.windows  # `inside` has the marks of windows
        for v, label in enumerate(pick.labels)
    ]
    merged = [_Feature("merged", at, when) for at, when in genes.merged.values()]
    return [*bits, *inside, *options, *merged]


def _about(subject: Subject, *label: str) -> Hashable:
    """Return the kind of a feature. Option 2 of `weight` has the kind of the second `weight`."""
    number = [str(subject.number)] if subject.number else []
    return replace(subject, number=0), *number, *label


def _pairs(features: Sequence[_Feature]) -> np.ndarray:
    """Return pairs of features of one kind at neighbouring positions.

    Drops that are two positions apart are pairs, too.
    """
    places = {(f.about, f.at): i for i, f in enumerate(features) if f.at >= 0}
    pairs = [
        (i, places[about, at + step])
        for (about, at), i in places.items()
        for step in ((1, 2) if about == _about(Subject("drop")) else (1,))
        if (about, at + step) in places
    ]
    return np.array(pairs, np.int32).reshape(len(pairs), 2)


def _ints(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int32)
