"""Methods of cutting a family's layers, for `benchmarks/retention.py`: `METHODS`.

Methods for one model cut the variant with the best score on the search's texts. Peers are written
from their papers. Every method chooses layers by the search's texts, and learns from the texts for
healing.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gptailor
from benchmarks.retention_lab import Found, Lab, NotMade, shown_layers
from benchmarks.retention_peers import laco, lora, replaceme
from gptailor.plan.plan import Plan
from gptailor.searching.settings import Flags, Resources

OFFSPRING, SURVIVORS = 8, 2
"""EvoPress' number of offspring on the first texts, and of survivors on all texts."""
SWAPS = 3
"""Most layers that an offspring exchanges."""

Make = Callable[[Lab, int, int], Found]


@dataclass(frozen=True)
class Method:
    """A method of dropping a number of layers, with a seed if it is random."""

    words: str
    make: Make
    seeded: bool = False


# --------------------------------------------------------------------------------------- uncut


def base(lab: Lab, count: int, seed: int) -> Found:
    """Return the dense base."""
    return Found(gptailor.format(lab.alone("base")))


def specialist(lab: Lab, count: int, seed: int) -> Found:
    """Return the variant with the best score on the search's texts."""
    return Found(
        gptailor.format(lab.alone(lab.specialist)), len(lab.asked.variants), lab.specialist
    )


def merge(lab: Lab, count: int, seed: int) -> Found:
    """Return the best uniform merge on the search's texts."""
    how, plan = lab.merge
    return Found(gptailor.format(plan), 5, how)


# -------------------------------------------------------------------------------- cuts of one model


def drawn(lab: Lab, count: int, seed: int) -> Found:
    """Drop random layers, but not the first."""
    return _without(lab, random.Random(seed).sample(range(1, lab.layers), count))


def least_influence(lab: Lab, count: int, seed: int) -> Found:
    """Run ShortGPT (arXiv 2403.03853): drop the layers with the least block influence."""
    return _without(lab, lab.least(_whole(lab), count), 1)


def best_window(lab: Lab, count: int, seed: int) -> Found:
    """Drop the window with the least loss on the search's texts."""
    whole = _whole(lab)
    windows = [range(first, first + count) for first in range(lab.layers - count + 1)]
    values = lab.scores([lab.without(whole, one) for one in windows])
    return _without(lab, windows[_least(values)], len(windows))


def greedy(lab: Lab, count: int, seed: int) -> Found:
    """Run SLEB (arXiv 2402.09025): drop layer by layer with the least loss, on the first texts."""
    whole, gone, tried = _whole(lab), list[int](), 0
    for _ in range(count):
        left = [at for at in range(lab.layers) if at not in gone]
        values = lab.scores([lab.without(whole, [*gone, at]) for at in left], lab.low)
        gone.append(left[_least(values)])
        tried += len(left)
    return _without(lab, gone, tried * lab.low / lab.full)


def evopress(lab: Lab, count: int, seed: int) -> Found:
    """Run EvoPress (arXiv 2410.14649): offspring of a cut swap layers; nats replace KL.

    The first parent is the best of some random cuts. Offspring are scored in stages.
    """
    chance, whole, spent = random.Random(seed), _whole(lab), 0.0

    def values(cuts: Sequence[Sequence[int]], samples: int) -> list[float]:
        nonlocal spent
        spent += len(cuts) * samples / lab.full
        return lab.scores([lab.without(whole, cut) for cut in cuts], samples)

    first_cuts = [sorted(chance.sample(range(lab.layers), count)) for _ in range(OFFSPRING)]
    parent = first_cuts[_least(values(first_cuts, lab.low))]
    [value] = values([parent], lab.full)
    while spent + OFFSPRING * lab.low / lab.full + SURVIVORS <= lab.asked.evaluations:
        cuts = [_offspring(parent, lab.layers, chance) for _ in range(OFFSPRING)]
        first = values(cuts, lab.low)
        order = sorted(range(len(cuts)), key=first.__getitem__)[:SURVIVORS]
        better = values([cuts[i] for i in order], lab.full)
        best = _least(better)
        if better[best] <= value:
            parent, value = cuts[order[best]], better[best]
    return _without(lab, parent, spent)


def _offspring(parent: Sequence[int], layers: int, chance: random.Random) -> list[int]:
    gone = set(parent)
    for _ in range(min(chance.randint(1, SWAPS), chance.randint(1, SWAPS))):
        out = chance.choice(sorted(gone))
        left = [at for at in range(layers) if at not in gone]
        gone.symmetric_difference_update((out, chance.choice(left)))
    return sorted(gone)


# ------------------------------------------------------------------------------- merges and cuts


def merge_then_prune(lab: Lab, count: int, seed: int) -> Found:
    """Apply ShortGPT's cut to the best uniform merge."""
    _, whole = lab.merge
    cut = lab.least(whole, count)
    return Found(gptailor.format(lab.without(whole, cut)), 6, shown_layers(cut))


def prune_then_merge(lab: Lab, count: int, seed: int) -> Found:
    """Drop the layers of least influence from each variant, and average the others in order.

    So layers of different positions may be merged.
    """
    kept, said = [], []
    for name in lab.asked.variants:
        cut = lab.least(lab.alone(name), count)
        kept.append([f"L{at} {name}" for at in range(lab.layers) if at not in cut])
        said.append(f"{name} {shown_layers(cut)}")
    items = [f"merge({', '.join(them)}) by linear()" for them in zip(*kept, strict=True)]
    plan = lab.plan("stack {", *items, "}")
    return Found(gptailor.format(plan), len(kept), "; ".join(said))


# -------------------------------------------------------------------------------------- gptailor


def cut(lab: Lab, count: int, seed: int) -> Found:
    """Run the default search over the cuts of one model."""
    return _searched(lab, "cut", count, seed, f"{lab.whole} from {lab.specialist}")


def select(lab: Lab, count: int, seed: int) -> Found:
    """Run the default search over cuts, with a choice of model for each layer."""
    names = ", ".join(["base", *lab.asked.variants])
    return _searched(lab, "select", count, seed, f"{lab.whole} from one of {names}")


def select_and_merge(lab: Lab, count: int, seed: int) -> Found:
    """Run the default search over cuts and merges of each layer: the paper's space."""
    return _searched(lab, "merged", count, seed, _any(lab))


def bridged(lab: Lab, count: int, seed: int) -> Found:
    """Run this search with bridges: it compares bridged cuts."""
    return _repaired(lab, _searched(lab, "bridge", count, seed, _any(lab), lab.bridge), lab.bridge)


def healed(lab: Lab, count: int, seed: int) -> Found:
    """Heal the plan of the search with bridges.

    A search of a space with `heal` would heal its finalists and rivals too, and compare them.
    """
    return _repaired(lab, made(lab, "bridge", count, seed), lab.heal(seed))


def healed_heuristic(lab: Lab, count: int, seed: int) -> Found:
    """Bridge and heal ShortGPT's cut, without a search."""
    return _repaired(lab, made(lab, "shortgpt", count, 0), lab.bridge, lab.heal(seed))


def _repaired(lab: Lab, found: Found, *statements: str) -> Found:
    text = gptailor.format(lab.extended(found.plan, *statements))
    return Found(text, found.evaluations, found.note, found.seconds)


def _any(lab: Lab) -> str:
    names = ", ".join(lab.asked.variants)
    return f"{lab.whole} from any of {names} by task_arithmetic(0.0..1.0)"


def _searched(lab: Lab, name: str, count: int, seed: int, *statements: str) -> Found:
    """Return a search's best plan, bare. An interrupted search continues in its folder."""
    space = lab.plan(*statements, f"drop any {count} of {lab.whole}")
    flags = Flags(
        objectives=(f"nll({json.dumps(str(lab.files.search))})",),
        fidelity=(lab.low, lab.full),
        trials=lab.asked.evaluations,
        seed=seed,
        strategy=lab.asked.strategy,
        bridge="each" if space.bridges else None,
    )
    where = Resources(lab.asked.device, lab.asked.dtype)
    done = gptailor.search(space, lab.folder / f"search-{name}-{count}-{seed}", flags, where=where)
    if done.ended == "interrupted":  # the search keeps its results; this command ends
        raise KeyboardInterrupt
    if done.best is None:
        raise NotMade("no plan of the search has a score")
    best = gptailor.load(done.best)
    declared = {model: lab.alone(model).models[model] for model in best.models}
    plan = gptailor.format(best.model_copy(update={"models": declared, "bridges": ()}))
    return Found(
        plan, done.summary.ledger.cost(), shown_layers([drop.position for drop in best.drops])
    )


# --------------------------------------------------------------------------------------- the table

UNCUT: dict[str, Method] = {
    "base": Method("dense base", base),
    "specialist": Method("best specialist, uncut", specialist),
    "merge": Method("best uniform merge, uncut", merge),
}

METHODS: dict[str, Method] = {
    "shortgpt": Method("ShortGPT (block influence)", least_influence),
    "window": Method("best window", best_window),
    "cut": Method("gptailor: cut", cut, seeded=True),
    "merged": Method("gptailor: cut, selection, merging", select_and_merge, seeded=True),
    "bridge": Method("gptailor: … and bridge", bridged, seeded=True),
    "heal": Method("gptailor: … and heal", healed, seeded=True),
    "lora": Method("ShortGPT + LoRA (PEFT)", lora, seeded=True),
    "shortgpt-heal": Method("ShortGPT + bridge and heal", healed_heuristic, seeded=True),
    "replaceme": Method("ReplaceMe", replaceme),
    "random": Method("random cut", drawn, seeded=True),
    "merge-prune": Method("merge, then prune", merge_then_prune),
    "prune-merge": Method("prune, then merge", prune_then_merge),
    "select": Method("gptailor: cut, selection", select, seeded=True),
    "evopress": Method("EvoPress", evopress, seeded=True),
    "laco": Method("LaCo (folding)", laco),
    "greedy": Method("greedy (SLEB)", greedy),
}
"""Methods in the order of their measurement, the most informative first."""


def made(lab: Lab, name: str, count: int, seed: int) -> Found:
    """Return a method's plan, made once and kept."""
    return lab.made(
        f"{name} {count} {seed}", lambda: (UNCUT | METHODS)[name].make(lab, count, seed)
    )


def _whole(lab: Lab) -> Plan:
    return lab.alone(lab.specialist)


def _without(lab: Lab, positions: Sequence[int], evaluations: float = 0.0) -> Found:
    plan = lab.without(_whole(lab), positions)
    return Found(gptailor.format(plan), evaluations, shown_layers(positions))


def _least(values: Sequence[float]) -> int:
    """Return the index of the least value that isn't NaN."""
    return min(range(len(values)), key=lambda i: (values[i] != values[i], values[i]))
