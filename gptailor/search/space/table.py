"""A space as arrays, and what can be asked of genomes without their plans: one, or a population.

Everything that depends on a genome is a truth: a *literal* (a bit, its negation, an option that
is picked, ...), a *clause* (literals that all hold) or a *row* (clauses of which one holds). There
is a row for each gene, which says whether the gene is active, and one for each mark, a feature that
is there or not. *Wide* rows are made first and are literals for the others.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from gptailor.plan.sites import Subject
from gptailor.plan.windows import Window
from gptailor.search.space import genome as g
from gptailor.search.space.hash_random import Key, uniform

Ints = Int[ndarray, "..."]
_Packed = UInt8[ndarray, "l n8"]
"""Truths of a population, a row each, eight genomes a byte."""


@final
class ConditionRows(NamedTuple):
    """Conditions: `clauses` are numbers of literals, `rows` numbers of clauses; both padded."""

    clauses: Int[ndarray, " q w"]
    rows: Int[ndarray, " rows u"]


@final
class Limits(NamedTuple):
    """What genomes may have at most: sums over features, a row a limit, and what these may be."""

    weights: Float[ndarray, " l f"]
    room: Float[ndarray, " l"]


@final
class Table(NamedTuple):
    """The arrays of a space.

    `group` is the number of the set that a bit belongs to, -1 without one; of set g at least
    `low[g]` bits are on and at most `high[g]`, which differ for the sets of `ranged`. `options` is
    how many options a pick has. `at_bits`, `at_picks` and `at_reals` are the genes' positions, -1
    for what has none. `defaults` is what inactive genes are. `pairs` are numbers of features of one
    kind at neighbouring positions, `at_features` the features' positions.

    `pick_option` is the number of a pick's first option among those of all picks. Of a window that
    is an option, `first` and `last` are the ends, and `beside` the values of the options that
    begin or end one position further on or back: -1 pads. `inside_pick` and `inside_at` are the
    windows' positions that may be inside.
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
    drops: Int[ndarray, " d"]  # features that say that a layer leaves
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
    members: Int[ndarray, " s m"]  # bits of each `any of`; -1 pads
    items: Int[ndarray, " i"]  # the bit of each item of a stack with a limit; -1: none
    room: Int[ndarray, ""]  # how many of those items there is room for
    wide: ConditionRows
    rest: ConditionRows
    limits: Limits | None = None


def active(table: Table, genome: g.Genome) -> g.Active:
    """Which genes change the plan. Those of a set all do, or none does."""
    b, c = len(table.group), len(table.options)
    rows = _rows(table, genome)
    return g.Active(rows[..., :b], rows[..., b : b + c], rows[..., b + c : _genes(table)])


def canonical(table: Table, genome: g.Genome) -> g.Genome:
    """The genome with its inactive genes at their defaults: the same plan."""
    for _ in range(2):  # an inactive `maybe` that goes off takes what is inside it along
        genome = g.Genome(*map(np.where, active(table, genome), genome, table.defaults))
    return genome


def features(table: Table, genome: g.Genome) -> Float[ndarray, "*n f"]:
    """What takes effect of a canonical genome: marks of 0 or 1, then reals in -1..1, 0 inactive."""
    rows = _rows(table, genome)
    genes = _genes(table)
    gates = rows[..., genes - len(table.at_reals) : genes]
    reals = np.where(gates, 2 * np.asarray(genome.reals) - 1, 0.0)
    return np.concatenate([rows[..., genes:], reals], axis=-1, dtype=np.float32)


_ALIKE = 1 / 8
"""Features that differ by less say the same: a sixteenth of what a real may be."""


def coarse(found: Float[ndarray, "*n f"]) -> Float[ndarray, "*n f"]:
    """Features with reals by sixteenths of their range, so that those of like plans are equal."""
    rounded: ndarray = np.round(found / _ALIKE) * _ALIKE
    return rounded


def distinct(table: Table, genomes: Sequence[g.Genome]) -> list[int]:
    """The numbers of the canonical genomes that are unlike all before them that are.

    Like ones make the same choices, and their reals are less than a sixteenth of the range apart.
    """
    kept: list[int] = []
    found = np.stack([features(table, genome) for genome in genomes]) if genomes else np.empty(0)
    for number, row in enumerate(found):
        if not (np.abs(found[kept] - row) < _ALIKE).all(axis=1).any():
            kept.append(number)
    return kept


def allowed(table: Table, genome: g.Genome) -> Bool[ndarray, "*n"]:
    """Which canonical genomes are within the table's limits."""
    if table.limits is None:
        return np.ones(np.asarray(genome.bits).shape[:-1], np.bool_)
    found = features(table, genome) @ table.limits.weights.T
    inside: ndarray = (found <= table.limits.room).all(axis=-1)
    return inside


def exact(
    table: Table, scores: Float[ndarray, "*n b"], sizes: Int[ndarray, "*n g"] | None = None
) -> Bool[ndarray, "*n b"]:
    """Of each set the bits with the highest scores; others where positive.

    A set has as many as `sizes` say. Without them it has those with positive scores, but no fewer
    than it must have, and no more than it may.
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


def drawn_sizes(table: Table, shares: Float[ndarray, "*n v"]) -> Int[ndarray, "*n g"]:
    """A size for each set, by a number in 0..1 for each whose size is open: every size alike."""
    more = (table.high - table.low)[table.ranged]
    sizes = np.broadcast_to(table.low, (*shares.shape[:-1], len(table.low))).copy()
    sizes[..., table.ranged] += np.minimum(np.floor(shares * (more + 1)).astype(np.int32), more)
    return sizes


def sample(table: Table, key: Key, many: int) -> g.Genome:
    """Random canonical genomes: every size, every set of a size, every option, every real alike."""
    ends = np.cumsum([len(table.group), len(table.options), len(table.at_reals)])
    numbers = uniform(key, (many, int(ends[-1]) + len(table.ranged)))
    bits, picks, reals, sizes = np.split(numbers, ends, axis=1)
    drawn = g.Genome(
        exact(table, bits - 0.5, drawn_sizes(table, sizes)),
        np.floor(picks * table.options).astype(np.int32),
        reals,
    )
    return canonical(table, drawn)


def _genes(table: Table) -> int:
    return len(table.group) + len(table.options) + len(table.at_reals)


def _rows(table: Table, genome: g.Genome) -> Bool[ndarray, "*n rows"]:
    lead = np.shape(genome.bits)[:-1]
    many = int(np.prod(lead))
    bits, picks = (np.reshape(genes, (many, np.shape(genes)[-1])) for genes in genome[:2])
    literals = _literals(table, bits.T, picks.T)
    wide = _holds(table.wide, literals)
    rows = _holds(table.rest, np.concatenate([literals, wide]))
    return np.unpackbits(rows, axis=1, count=many).T.astype(bool).reshape(*lead, len(rows))


def _holds(rows: ConditionRows, literals: _Packed) -> UInt8[ndarray, "rows n8"]:
    clauses = np.bitwise_and.reduce(literals[rows.clauses], axis=1)
    found: ndarray = np.bitwise_or.reduce(clauses[rows.rows], axis=1)
    return found


def _literals(table: Table, bits: Bool[ndarray, "b n"], picks: Int[ndarray, "c n"]) -> _Packed:
    """False, True, bits and their negations, options, subsets of two or more, and so on.

    Then positions inside of windows, those that are not, and items with room.
    """
    known = np.zeros((2, bits.shape[1]), bool)
    known[TRUE] = True
    picked = picks[table.option_pick] == table.option_value[:, None]
    padded = np.concatenate([bits, known[:1]])
    several = padded[table.members].sum(1) >= 2
    option = (table.pick_option[:, None] + picks)[table.inside_pick]
    at = table.inside_at[:, None]
    inside = (table.first[option] <= at) & (at <= table.last[option])
    on = padded[table.items]
    there = np.cumsum(on, axis=0) - on < table.room
    truths = np.concatenate([known, bits, ~bits, picked, several, inside, ~inside, there])
    return np.packbits(truths, axis=1)


FALSE, TRUE = 0, 1


# ------------------------------------------------------------------------------- from genes to rows


_MANY = 4
"""Rows of more clauses, or with more literals in one, are wide."""


def _condition_rows(
    whens: Sequence[g.Condition], genes: g.Genes
) -> tuple[ConditionRows, ConditionRows]:
    """The wide conditions, each once, and all of them in order, for which those are literals."""
    options = [len(pick.options) for pick in genes.picks]
    bits, inside = len(genes.bits), len(genes.inside)
    many = [2, bits, bits, sum(options), len(genes.subsets), inside, inside, len(genes.items)]
    kinds = ("bit", "not", "option", "several", "inside", "outside", "room", "wide")
    starts = np.cumsum(many).tolist()  # as `_literals` has them
    start = dict(zip(kinds, starts, strict=True))
    before = np.cumsum([0, *options]).tolist()

    def place(one: g.Literal) -> int:
        if one.kind == "option":
            return int(start["option"] + before[one.number] + one.value)
        kind = one.kind if one.value else {"bit": "not", "inside": "outside"}[one.kind]
        return int(start[kind] + one.number)

    def rows(conditions: Sequence[g.Condition]) -> ConditionRows:
        numbers: dict[g.Clause, int] = {}
        ordered = (sorted(one, key=lambda clause: sorted(map(repr, clause))) for one in conditions)
        each = [[numbers.setdefault(clause, len(numbers) + 1) for clause in one] for one in ordered]
        clauses = [[place(one) for one in sorted(clause, key=repr)] for clause in numbers]
        return ConditionRows(_padded([[FALSE], *clauses], TRUE), _padded(each, 0))

    long = (one for one in whens if max(len(one), *map(len, one), 0) > _MANY)
    wide = {when: n for n, when in enumerate(dict.fromkeys(long))}
    rest = [frozenset([frozenset([g.Literal("wide", wide[when])])]) if when in wide else when
            for when in whens]  # fmt: skip
    return rows(list(wide)), rows(rest)


def _padded(rows: Sequence[Sequence[int]], by: int) -> np.ndarray:
    found = np.full((len(rows), max(1, 0, *map(len, rows))), by, np.int32)
    for line, row in zip(found, rows, strict=True):
        line[: len(row)] = row
    return found


@final
class _Feature(NamedTuple):
    """What may take effect at a position: a gene, an option of one, or that a subset is merged."""

    about: Hashable
    at: int
    when: g.Condition


def table_of(genes: g.Genes) -> Table:
    """The arrays of a space with these genes."""
    options = [len(pick.options) for pick in genes.picks]
    marks = _marks(genes)
    reals = [_Feature(_about(real.subject), real.at, real.when) for real in genes.reals]
    found: list[g.Gene | _Feature] = [*genes.bits, *genes.picks, *genes.reals, *marks]
    wide, rest = _condition_rows([one.when for one in found], genes)
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
        drops=_ints([i for i, one in enumerate(marks) if one.about == _about(Subject("drop"))]),
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
        members=_padded(genes.subsets, len(genes.bits)),
        items=_ints(genes.items),
        room=np.array(genes.room, np.int32),
        wide=wide,
        rest=rest,
    )


def _window_options(pick: g.Pick) -> list[Window]:
    """The windows that a pick's options are; any for those that are none."""
    found = ((one if isinstance(one, tuple) else (0, 0)) for one in pick.options)
    return [(int(first), int(last)) for first, last in found]


_BESIDE = ((-1, -1), (1, 1), (-1, 0), (0, 1), (1, 0), (0, -1))
"""A window moved, made longer, made shorter: what its first and last position become."""


def _beside(picks: Sequence[g.Pick]) -> np.ndarray:
    """The values of the windows beside each option, -1 where there is none."""
    rows = []
    for pick in picks:
        value = {one: v for v, one in enumerate(pick.options)} if pick.windows else {}
        for first, last in _window_options(pick):
            rows.append([value.get((first + a, last + b), -1) for a, b in _BESIDE])
    width = len(_BESIDE) if any(pick.windows for pick in picks) else 0
    return np.array(rows, np.int32).reshape(len(rows), len(_BESIDE))[:, :width]


def _marks(genes: g.Genes) -> list[_Feature]:
    marks = [
        _Feature(_about(gene.subject), gene.at, g.every(gene.when, g.bit(i)))
        for i, gene in enumerate(genes.bits)
    ]
    for n, (window, at) in enumerate(genes.inside):
        when = g.every(genes.picks[window].when, g.inside(n))
        block = genes.picks[window].subject.role == "block"
        marks.append(_Feature(_about(Subject("block" if block else "drop")), at, when))
    for i, pick in enumerate(genes.picks):
        if pick.windows:
            continue  # what counts is which positions are inside
        marks += [
            _Feature(_about(pick.subject, label), pick.at, g.every(pick.when, g.option(i, v)))
            for v, label in enumerate(pick.labels)
        ]
    return marks + [_Feature("merged", at, when) for at, when in genes.merged]


def _about(subject: Subject, *label: str) -> Hashable:
    """What makes features one kind; a `weight` that is 2 and the second `weight` are, too."""
    number = [str(subject.number)] if subject.number else []
    return replace(subject, number=0), *number, *label


def _pairs(features: Sequence[_Feature]) -> np.ndarray:
    """Numbers of features of one kind at positions next to each other; of drops, two apart too."""
    places = {(one.about, one.at): i for i, one in enumerate(features) if one.at >= 0}
    found = [
        (i, places[about, at + step])
        for (about, at), i in places.items()
        for step in ((1, 2) if about == _about(Subject("drop")) else (1,))
        if (about, at + step) in places
    ]
    return np.array(found, np.int32).reshape(len(found), 2)


def _ints(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int32)
