"""Spaces: every genome is a plan without faults, and says what its active genes say."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gptailor import loads
from gptailor.checks.plan import check_alone
from gptailor.lang.format import format_plan
from gptailor.lang.words import range_words
from gptailor.plan.faults import errors
from gptailor.plan.plan import CountRange, Plan, count_ends
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.plan.windows import stretch_of, window_count, windows_of
from gptailor.searching.space.decode import decode, plan_cut_words
from gptailor.searching.space.genome import Active, Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.space import Space, SpaceError, space_of
from gptailor.searching.space.table import active, canonical, exact, features, sample
from tests.searching.landscape import names_of
from tests.searching.space.encode import encode, shortest_form
from tests.support import strategies

HEAD = """tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
"""

SPACES = {
    "paper": (
        "drop any 3 of L0..L7\nL0..L7 from any of math, code by task_arithmetic(0.0..1.0)",
        8,
    ),
    "bits": ("drop any 2 of L1..L6", 8),
    "counts": (
        "drop any 1..3 of L0..L3\ndrop any 2 of L4..L6\n"
        "L1..L4 from any of math, code by task_arithmetic(0.0..1.0)",
        8,
    ),
    "maybe some": (
        "maybe drop any 1..2 of L0..L2\nmaybe drop L3\nL1 from one of base, math\n"
        'bridge L2 on "t" ridge 0.1..1.0',
        4,
    ),
    "window": (
        "drop window 2..3 of L0..L3, L5..L7\nL2..L6 from one of base, math\n"
        'bridge L4 on "t" ridge 0.1..1.0',
        9,
    ),
    "windows": (
        "maybe drop window 1..2 of L0..L2\ndrop window 2 of L3..L5\nmaybe drop any 1 of L6..L7\n"
        'maybe scale L4 by 0.5..2.0\nheal L0, L4 on "t"',
        9,
    ),
    "window of others": (
        "others from any of math, code by linear()\ndrop window 1..2 of L0..L3\n"
        "L2.mlp from one of base, math\nmaybe drop any 1 of L4..L5",
        7,
    ),
    "all but a window": ("drop window 1..3 of L0..L3\nmaybe drop L4", 5),
    "real": ("scale L2 by 0.5..2.0", 4),
    "logarithm": ('drop L2\nbridge on "t" ridge 0.0001..1.0', 4),
    "pick": ("L1 from one of base, math", 4),
    "tied": ("tied L0..L3 from any of math, code by ties(0.2..0.8)\nmaybe drop L2", 4),
    "tied drops": ("tied maybe drop L0..L3", 4),
    "all may go": ("maybe drop L0..L2\ndrop any 1 of L3..L4", 5),
    "maybe": (
        "maybe L0..L1 from one of base, math\nmaybe L2.mlp from any of base, math by linear()",
        4,
    ),
    "parts": (
        "maybe L0 from one of base, math\nmaybe L0.attn from base\nmaybe L0.attn.q from base\n"
        "L1.mlp from one of base, math\nmaybe L1.norms from base\nL1.mlp.up from base\n"
        'maybe L2 from base\nL2.mlp from any of base, math by linear()\nmaybe L2."*.q*" from base',
        4,
    ),
    "methods": (
        "L1 from any of base, math, code by "
        "one of (linear(0.1..0.9, 0.2, one of (0.3, 0.4)), slerpless)".replace(
            "slerpless", "task_arithmetic(0.0..1.0)"
        ),
        3,
    ),
    "gaps": ('maybe drop L1..L3\nmaybe bridge L1 on "t" ridge one of (0.1, 1.0)', 5),
    "healed": ('maybe drop L1..L3\nheal L1..L2 from math on "t" rank full', 5),
    "scales": ("maybe scale L1 by one of (0.5, 2)\nmaybe drop L1", 3),
    "let": (
        "let mix = 0.0..1.0\nL0..L2 from math, code by slerp(mix)\nmaybe drop L0..L2\n"
        "maybe merge(L3 base, L3 math, mix)",
        4,
    ),
    "curve": (
        "let mix = one of 0.2, 0.4\nL0..L3 from math, code by slerp(curve(0, mix, 1))\n"
        "drop any 4 of L0..L4",
        5,
    ),
    "others": (
        "others from any of math, code by task_arithmetic(0.0..1.0)\nmaybe drop L1\n"
        "L2.mlp from one of base, math\nmaybe L0.attn from base",
        4,
    ),
    "tied others": (
        "tied maybe others from one of base, math\nL2 from one of base, code\nmaybe drop L1",
        4,
    ),
    "maybe others": (
        "maybe others.mlp from math, code by slerp(curve(0, 1))\nwhole from code\nL1 from base",
        4,
    ),
    "whole": (
        "whole from one of base, math\nothers.mlp from code\nL1.mlp from one of base, math",
        3,
    ),
    "tied whole": ("tied whole from any of math, code by linear()\nmaybe L1 from base", 3),
    "branches": (
        "maybe L1 from one of base, math\nmaybe L1.mlp from one of base, code\nL1.attn from base",
        3,
    ),
    "made": (
        "model mix = any of math, code by one of (linear(), task_arithmetic(0.0..1.0))\n"
        "model two = one of mix, math\nmodel three = two, mix by slerp(0.0..1.0)\n"
        "L1 from one of base, two\nL2..L3 from any of mix, three by linear()\nmaybe drop L2\n"
        'maybe drop L0\nheal L0 from two on "t"',
        4,
    ),
    "rest": ("embed from one of base, math\nnorm from any of math, code by linear()", 2),
    "block": ('repeat L1..L3 times 1..3\nmaybe drop L1..L3\nmaybe bridge on "t"', 5),
    "blocks": (
        "maybe repeat window 1..3 of L1..L4, L6..L7 times 1..2\nmaybe repeat L8\ndrop any 1 of "
        "L8..L10\nL2 from one of base, math",
        11,
    ),
    "stack": (
        "stack { maybe L0..L3 one of base, math; maybe L2 code; limit 2 layers }",
        4,
    ),
    "all tied stack": ("stack { tied maybe L0..L2 base; tied maybe L1..L3 base }", 4),
    "tied stack": (
        "stack { L0 base; tied maybe L1..L3 one of base, math; tied maybe L0..L1 code; "
        "limit 3 layers }",
        4,
    ),
    "fixed stack": ("stack { L0 base; maybe L1..L2 code; L3 one of math, code }", 4),
}


def space(name: str) -> Space:
    text, layers = SPACES[name]
    return space_of(loads(HEAD + text), layers)


# ------------------------------------------------------------------------------ what must hold


@dataclass(frozen=True)
class Change:
    """A genome with one gene another, or a bit of a set swapped; and whether that one is active."""

    genome: Genome
    active: bool


def changes(space: Space, genome: Genome, says: Active) -> Iterator[Change]:
    """Each gene changed alone."""
    bits, picks, reals = (np.array(genes) for genes in genome)
    for i, bit in enumerate(space.bits):
        other = bits.copy()
        other[i] = not other[i]
        if bit.group >= 0:
            mates = [j for j, one in enumerate(space.bits) if one.group == bit.group]
            low, high = space.table.low[bit.group], space.table.high[bit.group]
            if not low <= other[mates].sum() <= high:
                swap = next((j for j in mates if bits[j] != bits[i]), None)
                if swap is None:
                    continue
                other[swap] = not other[swap]
        yield Change(Genome(other, picks, reals), bool(says.bits[i]))
    for i, pick in enumerate(space.picks):
        other = picks.copy()
        other[i] = (other[i] + 1) % len(pick.options)
        yield Change(Genome(bits, other, reals), bool(says.picks[i]))
    for i, real in enumerate(space.reals):
        if real.high - real.low < 1e-9 * max(1e-290, abs(real.low), abs(real.high)):
            continue  # hardly a number between them
        other = reals.copy()
        other[i] = other[i] + 0.25 if other[i] < 0.5 else other[i] - 0.25
        yield Change(Genome(bits, picks, other), bool(says.reals[i]))


def check(space: Space, genome: Genome) -> None:
    """All that holds of every genome of every space."""
    plan = decode(space, genome)
    assert not errors(check_alone(plan)), format_plan(plan)
    assert not open_choices(plan)
    assert loads(format_plan(plan)) == plan
    assert remains(plan, space.layers)
    settled = canonical(space.table, genome)
    assert decode(space, settled) == plan
    assert shortest_form(plan) == plan
    again = encode(space, plan)
    assert decode(space, again) == plan
    seen = features(space.table, settled)
    assert np.isfinite(seen).all()
    assert np.abs(np.asarray(seen)).max(initial=0) <= 1
    for change in changes(space, genome, active(space.table, genome)):
        assert (decode(space, change.genome) != plan) == change.active


def remains(plan: Plan, layers: int) -> bool:
    if plan.stack is not None:
        return bool(plan.stack.items)
    return len(plan.drops) < layers


def drawn(space: Space, seed: int) -> Genome:
    """Any genome at all, inactive genes too."""
    chance, table = np.random.default_rng(seed), space.table
    return Genome(
        exact(table, chance.random(len(table.group)) - 0.5),
        chance.integers(0, table.options, dtype=np.int32),
        chance.random(len(table.at_reals), dtype=np.float32),
    )


@pytest.mark.parametrize("name", SPACES)
def test_every_genome_gives_the_plan_of_its_active_genes(name: str) -> None:
    chosen_space = space(name)
    for seed in range(12):
        check(chosen_space, drawn(chosen_space, seed))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=strategies.plans(), seed=st.integers(0, 2**31 - 1), beyond=st.sampled_from([1, 2, 50]))
def test_the_space_of_any_plan_decodes_and_encodes(plan: Plan, seed: int, beyond: int) -> None:
    named = [entry.position for entry in (*plan.layers, *plan.drops, *plan.scales)]
    named += [position for _, choice in drops_by_choice(plan) for position in choice.among]
    named += [bridge.after for bridge in plan.bridges if bridge.after is not None]
    named += plan.heal.layers if plan.heal is not None else ()
    named += [stretch_of(repeat)[1] for repeat in plan.repeats]
    layers = max(named, default=0) + beyond
    plan = shallow(plan, layers)
    dropped = {drop.position for drop in plan.drops if not drop.maybe}
    chosen = sum(count_ends(choice.count)[1] for _, choice in drops_by_choice(plan))
    assume(len(dropped) + chosen < layers)
    if not open_choices(plan):
        with pytest.raises(SpaceError, match="no open choices"):
            space_of(plan, layers)
        return
    space = space_of(plan, layers)
    check(space, drawn(space, seed))
    check(space, Genome(*(genes[0] for genes in sample(space.table, key_of(seed), 1))))


def shallow(plan: Plan, layers: int) -> Plan:
    """Without what would be said of each of very many layers."""
    return plan if layers < 40 else plan.model_copy(update={"others": (), "whole": None})


# --------------------------------------------------------------------------------- single facts


@pytest.mark.parametrize("kept", ["L0; L0; L0; L0; L1", "L0; L0; L0; L0; L0; L1", "L0; L0; L0; L0"])
def test_only_the_last_possible_item_of_equal_stack_items_is_used(kept: str) -> None:
    """The first of them is there only if all later ones have a place without it."""
    open_, closed = (
        loads(HEAD + "stack { " + "; ".join(f"{space} base" for space in items.split("; ")) + " }")
        for items in ("maybe L0; L0; L0; L0; L0; maybe L1", kept)
    )
    space = space_of(open_, 2)
    assert decode(space, encode(space, closed)) == shortest_form(closed)


def test_the_papers_space_is_two_lines() -> None:
    text = "drop any 10 of L0..L39\nL0..L39 from any of math, code by task_arithmetic(0.0..1.0)"
    space = space_of(loads(HEAD + text), 40)
    assert (len(space.bits), len(space.picks), len(space.reals)) == (40 + 80, 0, 40)
    assert len(names_of(space)) == 160
    assert names_of(space)[:2] == ["drop L0", "drop L1"]
    assert {"L3 has math", "L3 task_arithmetic weight"} <= set(names_of(space))


@given(plan=strategies.plans())
@settings(max_examples=20, deadline=None)
def test_no_two_genes_share_a_name(plan: Plan) -> None:
    plan = shallow(plan, 20_000)
    assume(open_choices(plan))
    space = space_of(plan, 20_000)
    assert names_of(space)


def test_samples_are_uniform_and_of_the_right_size() -> None:
    chosen_space = space("paper")
    dropped = sample(chosen_space.table, key_of(3), 4000).bits[:, :8]
    assert (dropped.sum(1) == 3).all()
    assert np.abs(dropped.mean(0) - 3 / 8).max() < 0.03


def test_each_size_is_sampled_equally_often() -> None:
    chosen_space = space("counts")
    population = sample(chosen_space.table, key_of(3), 3000)
    sizes = population.bits[:, :4].sum(1)
    assert np.abs(np.bincount(sizes, minlength=5) / 3000 - [0, 1 / 3, 1 / 3, 1 / 3, 0]).max() < 0.03
    assert (population.bits[:, 4:7].sum(1) == 2).all()


def test_exact_respects_the_bounds_of_a_set() -> None:
    space = space_of(loads(HEAD + "drop any 1..2 of L0..L3"), 10)

    def taken(*scores: float) -> list[int]:
        return exact(space.table, np.array(scores)).astype(int).tolist()

    assert taken(0.1, 0.9, -1.0, 0.5) == [0, 1, 0, 1], "of three no more than two"
    assert taken(-0.1, -0.9, -1.0, -0.5) == [1, 0, 0, 0], "no fewer than one"
    assert taken(0.1, -0.9, -1.0, -0.5) == [1, 0, 0, 0]
    sized = exact(space.table, np.array([-3.0, -1.0, -2.0, -4.0]), np.array([2]))
    assert sized.tolist() == [0, 1, 1, 0]


def windows_by_hand(low: int, high: int, among: set[int]) -> set[frozenset[int]]:
    """Each set of neighbours of this many positions, found by trying all ends."""
    ends = range(max(among) + 2)
    result = (frozenset(range(a, b)) for a in ends for b in ends if a < b)
    return {window for window in result if low <= len(window) <= high and window <= among}


@given(st.sets(st.integers(0, 11), min_size=1), st.integers(1, 12), st.integers(0, 3))
def test_windows_are_all_sets_of_neighbours(among: set[int], low: int, more: int) -> None:
    count = low if more == 0 else CountRange(between=(low, low + more))
    results = list(windows_of(count, sorted(among)))
    assert window_count(count, sorted(among)) == len(results)
    sets = {frozenset(range(first, last + 1)) for first, last in results}
    assert len(sets) == len(results)
    assert sets == windows_by_hand(low, low + more, among)


def drops_by_name(space: Space, genome: Genome) -> set[int]:
    """The dropped layers, read from the genes' names: nothing is decoded."""
    chosen = {bit.name: bool(on) for bit, on in zip(space.bits, genome.bits, strict=True)}
    results = set()
    for pick, value in zip(space.picks, genome.picks, strict=True):
        if pick.name.startswith("drop window") and chosen.get(f"{pick.name} at all", True):
            first, _, last = pick.labels[value].partition("..")
            results |= set(range(int(first[1:]), int((last or first)[1:]) + 1))
    for choice in space.plan.drop_any:
        listed = [at for at in choice.among if chosen[f"drop L{at}"]]
        name = f"drop any L{choice.among[0]}..L{choice.among[-1]} at all"
        if not choice.maybe or chosen[name]:
            results |= {*listed}
    return results | {drop.position for drop in space.plan.drops if not drop.maybe}


@pytest.mark.parametrize("name", ["counts", "window", "windows", "window of others"])
def test_dropped_layers_are_named_by_their_genes(name: str) -> None:
    chosen_space = space(name)
    population = sample(chosen_space.table, key_of(11), 60)
    for n in range(60):
        genome = Genome(*(genes[n] for genes in population))
        dropped = {drop.position for drop in decode(chosen_space, genome).drops}
        assert dropped == drops_by_name(chosen_space, genome)


def test_a_window_is_one_gene_with_its_drops_as_features() -> None:
    space = space_of(loads(HEAD + "drop window 2..4 of L1..L6"), 8)
    assert names_of(space) == ["drop window L1..L6"]
    [pick] = space.picks
    assert pick.labels[:2] == ("L1..L2", "L2..L3")
    assert len(pick.options) == 5 + 4 + 3
    assert space.table.at_features.tolist() == [1, 2, 3, 4, 5, 6]
    value = pick.labels.index("L3..L5")
    genome = space.table.defaults._replace(picks=np.array([value], np.int32))
    assert features(space.table, genome).tolist() == [0, 0, 1, 1, 1, 0]
    assert format_plan(decode(space, genome)).endswith("drop L3..L5\n")
    beside = {pick.labels[v] for v in space.table.beside[value] if v >= 0}
    assert beside == {"L2..L4", "L4..L6", "L2..L5", "L3..L6", "L4..L5", "L3..L4"}


def test_a_plan_with_drops_outside_a_window_is_refused() -> None:
    space = space_of(loads(HEAD + "drop window 2..3 of L1..L4, L6..L8"), 9)
    for drops in ("L1", "L1, L3", "L1..L4", "L4, L6", "L1..L2, L7..L8"):
        with pytest.raises(SpaceError, match="no closed choices give its drops"):
            encode(space, loads(HEAD + f"drop {drops}"))
    counted = space_of(loads(HEAD + "maybe drop any 2..3 of L1..L4"), 9)
    for drops in ("L1", "L1..L4", "L2..L3, L6"):
        with pytest.raises(SpaceError, match="no closed choices give its drops"):
            encode(counted, loads(HEAD + f"drop {drops}"))
    assert not decode(counted, encode(counted, loads(HEAD))).drops


def test_exact_chooses_the_highest_of_each_set() -> None:
    space = space_of(loads(HEAD + "drop any 2 of L0..L3\ndrop any 1 of L5..L6\nmaybe drop L8"), 10)
    scores = np.array([0.1, 0.9, -1.0, 0.5, -3.0, -2.0, -0.1], np.float32)
    assert np.asarray(exact(space.table, scores)).tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_reals_have_few_digits_and_include_both_ends() -> None:
    [real] = space("real").reals
    assert [real.value(share) for share in (0.0, 1 / 3, 1.0)] == [0.5, 1.0, 2.0]
    assert real.value(0.1234567) == 0.685
    [ridge] = space("logarithm").reals
    assert ridge.log
    assert ridge.value(0.5) == 0.01
    assert ridge.share(0.01) == pytest.approx(0.5)


def test_a_plan_from_elsewhere_is_refused() -> None:
    chosen_space = space("bits")
    with pytest.raises(SpaceError, match="no closed choices give its drops"):
        encode(chosen_space, loads(HEAD + "drop L1..L3"))
    with pytest.raises(SpaceError, match="no closed choices give its layers"):
        encode(chosen_space, loads(HEAD + "drop L1, L4\nL0 from math"))
    assert decode(
        chosen_space, encode(chosen_space, loads(HEAD + "drop L1, L4\nL0 from base"))
    ).models.keys() == {"base"}


def test_different_spaces_have_different_digests() -> None:
    text, layers = SPACES["bits"]
    plan = loads(HEAD + text)
    same = loads(HEAD + f"{text}\nsearch {{\n  trials 3\n}}")
    assert space_of(plan, layers).digest == space_of(same, layers).digest
    others = [space_of(plan, layers + 1), space_of(loads(HEAD + "drop any 3 of L1..L6"), layers)]
    assert len({space_of(plan, layers).digest, *(other.digest for other in others)}) == 3


def test_features_of_one_kind_are_paired_with_their_neighbours() -> None:
    """Weights that are 2 and second weights are one kind; a seed's results depend on this."""
    result = space_of(
        loads(
            HEAD
            + """L0 from math by linear(one of (1, 2))
L1 from base, math by linear(one of (1, 2), 0.1..2.0)
L2 from math by linear(one of (2, 3))
L3.attn from base, math by linear(0.5, one of (0.3, 0.4))
L3.mlp from math by linear(one of (2, 3))
L4 from base, math by linear(0.0..1.0, 0.1..2.0)
maybe drop L5..L6
"""
        ),
        8,
    )
    pairs = [[0, 1], [3, 12], [6, 10], [7, 11], [10, 14], [12, 6]]
    assert np.asarray(result.table.pairs).tolist() == pairs


def test_the_cut_of_a_plan_is_in_words() -> None:
    space = space_of(
        loads(
            'tailor 1\nmodel base = "./base"\nlet n = one of (16384, 24576)\n'
            'vocabulary n on "a.jsonl"\nwidth 1024..1536 step 256 on "a.jsonl"\n'
            'experts 4 on "a.jsonl"\ndrop any 2 of L1..L9\n'
        ),
        12,
    )
    genomes = [drawn(space, seed) for seed in range(64)]
    words = {tuple(plan_cut_words(space, genome, "bare").rsplit(", ", 2)[1:]) for genome in genomes}
    sizes = [(n, width) for n in (16384, 24576) for width in (1024, 1280, 1536)]
    assert words == {(f"vocabulary {n}", f"width {width}") for n, width in sizes}
    uncut = {plan_cut_words(space, genome, "uncut") for genome in genomes}
    assert uncut == {"vocabulary 16384", "vocabulary 24576"}, "MLPs and layers stay"
    dropped = [drop.position for drop in decode(space, genomes[0]).drops]
    assert plan_cut_words(space, genomes[0], "bare").startswith(
        f"{range_words(dropped)} dropped, v"
    )
