"""Tables for some of a space's choices: recipes with nothing dropped, and cuts of one recipe."""

import numpy as np
import pytest

from gptailor import loads
from gptailor.plan.resolved import undone
from gptailor.searching.space.decode import decode, plan_at_stage
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of
from gptailor.searching.space.roles import search_stages, separates
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.space.table import active, canonical, sample
from gptailor.searching.starts.recipes import cut_table, has_recipe, recipe_table, with_recipe
from tests.searching.space.test_space import HEAD, SPACES

REPAIR = '\nheal on "t"'
SEPARATE = {
    "paper": True,
    "bits": False,
    "counts": True,
    "maybe some": True,
    "window": True,
    "windows": True,
    "real": False,
    "pick": False,
    "tied": True,
}


def genomes(population: Genome) -> list[Genome]:
    """Return the genomes of a population."""
    return [Genome(*genes) for genes in zip(*population, strict=True)]


def repaired(name: str) -> Space:
    """Return a space with plans that are healed."""
    text, layers = SPACES[name]
    return space_of(loads(HEAD + text + ("" if "heal" in text else REPAIR)), layers)


@pytest.mark.parametrize(("name", "separate"), SEPARATE.items())
def test_recipes_are_compared_uncut_where_a_cut_is_repaired(name: str, separate: bool) -> None:
    assert separates(repaired(name).plan) == separate
    text, _ = SPACES[name]
    if "bridge" not in text and "heal" not in text:
        assert not separates(loads(HEAD + text)), "nothing repairs the cut"


@pytest.mark.parametrize(
    "size",
    ['let n = one of 256, 512\nwidth n on "c"', 'let r = 0.01..1.0\nbridge on "c" ridge r'],
)
def test_a_size_or_a_ridge_with_a_name_isnt_a_recipe(size: str) -> None:
    text = f"{HEAD}drop any 2 of L1..L6\n{size}{REPAIR}"
    assert not separates(loads(text))
    space = space_of(loads(f"{text}\nL0 from any of math, code by linear()"), 8)
    assert separates(space.plan)
    [named] = [gene for gene in (*space.picks, *space.reals) if gene.subject.role == "let"]
    recipe = Genome(*(item[0] for item in sample(space.table, key_of(1), 1)))
    drawn = genomes(sample(cut_table(space, recipe), key_of(2), 32))
    at = space.picks.index(named) if named in space.picks else space.reals.index(named)
    genes = 1 if named in space.picks else 2
    assert len({float(item[genes][at]) for item in drawn}) > 1, "it is searched with the cuts"


@pytest.mark.parametrize("name", [name for name, separate in SEPARATE.items() if separate])
def test_recipes_have_nothing_dropped_and_all_their_genes(name: str) -> None:
    space = repaired(name)
    table = recipe_table(space)
    population = sample(table, key_of(1), 32)
    texts = set()
    for genome in genomes(population):
        plan = decode(space, genome, cut=False)
        assert not plan.drops
        assert plan_at_stage(space, genome, "uncut") == undone(plan)
        texts.add(repr(plan))
        assert all(map(np.array_equal, canonical(table, genome), genome))
    assert len(texts) > 1, "recipes differ"
    free = active(table, population)
    roles = [bit.subject.role for bit in space.bits]
    drops = np.array([role in ("drop", "cut") for role in roles], bool)
    assert not free.bits[:, drops].any()
    assert not population.bits[:, drops].any()
    if name == "paper":
        assert free.bits[:, ~drops].all(), "no layer leaves, so every member counts"


@pytest.mark.parametrize("name", [name for name, separate in SEPARATE.items() if separate])
def test_cuts_keep_one_recipe(name: str) -> None:
    space = repaired(name)
    [recipe] = genomes(sample(recipe_table(space), key_of(2), 1))
    table = cut_table(space, recipe)
    whole = decode(space, recipe, cut=False)
    cuts = set()
    [other] = genomes(sample(recipe_table(space), key_of(5), 1))
    for genome in genomes(sample(table, key_of(3), 32)):
        plan = decode(space, genome)
        assert has_recipe(space, genome, recipe)
        assert has_recipe(space, genome, other) == (
            decode(space, with_recipe(space, genome, other)) == plan
        )
        assert plan_at_stage(space, genome, "uncut") == undone(whole), "its recipe is whole"
        kept = {layer.position for layer in whole.layers} - {d.position for d in plan.drops}
        assert {layer.position for layer in plan.layers} == kept
        cuts.add(tuple(drop.position for drop in plan.drops))
    assert len(cuts) > 1
    [one, another] = genomes(sample(space.table, key_of(4), 2))
    mixed = with_recipe(space, one, another)
    assert decode(space, mixed).drops == decode(space, one).drops
    assert decode(space, mixed, cut=False) == decode(space, another, cut=False)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("others from one of base, math", ""),
        ("drop any 2 of L0..L5", "cuts without repair"),
        ('drop any 2 of L0..L5\nbridge on "t"', "cuts without repair; the best are bridged"),
        ('drop any 2 of L0..L5\nheal on "t"', "cuts without repair; the best are healed"),
        (
            'others from one of base, math\ndrop any 2 of L0..L5\nbridge on "t"\nheal on "t"',
            "first plans with nothing dropped, then cuts with bridges; the best are healed",
        ),
    ],
)
def test_the_stages_of_a_search_in_words(text: str, stages: str) -> None:
    assert search_stages(loads(HEAD + text)) == stages
