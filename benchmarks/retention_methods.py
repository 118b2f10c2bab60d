"""Ways to cut a family's layers, as `benchmarks/retention.py` compares them: `METHODS`.

Those of one model cut the variant that is best on the search's texts. Peers are written from their
papers; what each sees is the search's texts (to choose layers) and those that are learned from.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gptailor
from benchmarks.retention_lab import Found, Lab, NotMade, shown_layers
from benchmarks.retention_peers import laco, lora, replaceme
from gptailor.plan.plan import Plan
from gptailor.search.settings import Flags, Resources

OFFSPRING, SURVIVORS = 8, 2
"""EvoPress' offspring on the first texts, and how many of them are tried on all."""
SWAPS = 3
"""Layers that an offspring exchanges, at most."""

Make = Callable[[Lab, int, int], Found]


@dataclass(frozen=True)
class Method:
    """A way to a plan without so many layers, by a seed if it draws anything."""

    words: str
    make: Make
    seeded: bool = False


# --------------------------------------------------------------------------------------- uncut


def base(lab: Lab, count: int, seed: int) -> Found:
    """The dense base."""
    return Found(gptailor.format(lab.alone("base")))


def specialist(lab: Lab, count: int, seed: int) -> Found:
    """The variant that is best on the search's texts."""
    return Found(
        gptailor.format(lab.alone(lab.specialist)), len(lab.asked.variants), lab.specialist
    )


def merge(lab: Lab, count: int, seed: int) -> Found:
    """The uniform merge that is best there."""
    how, plan = lab.merge
    return Found(gptailor.format(plan), 5, how)


# -------------------------------------------------------------------------------- cuts of one model


def drawn(lab: Lab, count: int, seed: int) -> Found:
    """Layers by chance, but the first."""
    return _without(lab, random.Random(seed).sample(range(1, lab.layers), count))


def least_influence(lab: Lab, count: int, seed: int) -> Found:
    """ShortGPT (arXiv 2403.03853): the layers that turn the hidden state least."""
    return _without(lab, lab.least(_whole(lab), count), 1)


def best_window(lab: Lab, count: int, seed: int) -> Found:
    """The neighbours that cost least on the search's texts."""
    whole = _whole(lab)
    windows = [range(first, first + count) for first in range(lab.layers - count + 1)]
    values = lab.scores([lab.without(whole, one) for one in windows])
    return _without(lab, windows[_least(values)], len(windows))


def greedy(lab: Lab, count: int, seed: int) -> Found:
    """SLEB (arXiv 2402.09025): one by one the layer that costs least, on the first texts."""
    whole, gone, tried = _whole(lab), [], 0
    for _ in range(count):
        left = [at for at in range(lab.layers) if at not in gone]
        values = lab.scores([lab.without(whole, [*gone, at]) for at in left], lab.low)
        gone.append(left[_least(values)])
        tried += len(left)
    return _without(lab, gone, tried * lab.low / lab.full)


def evopress(lab: Lab, count: int, seed: int) -> Found:
    """EvoPress (arXiv 2410.14649): a cut's offspring swap layers, tried in stages; nats, not KL.

    It begins with the best of some random cuts.
    """
    chance, whole = random.Random(seed), _whole(lab)

    def values(cuts: Sequence[Sequence[int]], samples: int) -> list[float]:
        nonlocal spent
        spent += len(cuts) * samples / lab.full
        return lab.scores([lab.without(whole, cut) for cut in cuts], samples)

    spent = 0.0
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
    """ShortGPT's cut of the best uniform merge."""
    _, whole = lab.merge
    cut = lab.least(whole, count)
    return Found(gptailor.format(lab.without(whole, cut)), 6, shown_layers(cut))


def prune_then_merge(lab: Lab, count: int, seed: int) -> Found:
    """Each variant without the layers of its own least influence; what stays is averaged in order.

    So layers of other positions may be merged.
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
    """The default search over the cuts of one model."""
    return _searched(lab, "cut", count, seed, f"{lab.whole} from {lab.specialist}")


def select(lab: Lab, count: int, seed: int) -> Found:
    """The same, and each layer any model's."""
    names = ", ".join(["base", *lab.asked.variants])
    return _searched(lab, "select", count, seed, f"{lab.whole} from one of {names}")


def select_and_merge(lab: Lab, count: int, seed: int) -> Found:
    """The same, and each layer merged of any of the variants: the paper's space."""
    return _searched(lab, "merged", count, seed, _any(lab))


def bridged(lab: Lab, count: int, seed: int) -> Found:
    """The same with a bridge: the search's best plans are bridged before one is chosen."""
    return _repaired(lab, "bridge", count, seed, lab.bridge)


def healed(lab: Lab, count: int, seed: int) -> Found:
    """The same with a bridge and healing."""
    return _repaired(lab, "heal", count, seed, lab.bridge, lab.heal(seed))


def _repaired(lab: Lab, name: str, count: int, seed: int, *statements: str) -> Found:
    """By a search that ends with so many finalists, or of what the search without them found."""
    if lab.asked.finalists == 0:
        found = made(lab, "merged", count, seed)
    else:
        found = _searched(lab, name, count, seed, _any(lab), *statements)
    text = gptailor.format(lab.extended(found.plan, *statements))
    return Found(text, found.evaluations, found.note, found.seconds)


def healed_heuristic(lab: Lab, count: int, seed: int) -> Found:
    """ShortGPT's cut, bridged and healed: what is owed to no search."""
    return _repaired_cut(lab, "shortgpt", count, seed)


def healed_window(lab: Lab, count: int, seed: int) -> Found:
    """The best window of one model, bridged and healed."""
    return _repaired_cut(lab, "window", count, seed)


def _repaired_cut(lab: Lab, name: str, count: int, seed: int) -> Found:
    found = made(lab, name, count, 0)
    text = gptailor.format(lab.extended(found.plan, lab.bridge, lab.heal(seed)))
    return Found(text, found.evaluations, found.note, found.seconds)


def _any(lab: Lab) -> str:
    names = ", ".join(lab.asked.variants)
    return f"{lab.whole} from any of {names} by task_arithmetic(0.0..1.0)"


def _searched(lab: Lab, name: str, count: int, seed: int, *statements: str) -> Found:
    """The best plan of a search, bare. A search that was broken off goes on in its folder."""
    space = lab.plan(*statements, f"drop any {count} of {lab.whole}")
    flags = Flags(
        objectives=(f"nll({json.dumps(str(lab.files.search))})",),
        fidelity=(lab.low, lab.full),
        trials=lab.asked.evaluations,
        seed=seed,
        strategy=lab.asked.strategy,
        finalists=lab.asked.finalists if space.bridges else None,
    )
    where = Resources(lab.asked.device, lab.asked.dtype)
    done = gptailor.search(space, lab.folder / f"search-{name}-{count}-{seed}", flags, where=where)
    if done.ended == "interrupted":  # the search keeps what it has and says so; this one ends
        raise KeyboardInterrupt
    if done.best is None:
        raise NotMade("no plan of the search has a score")
    best = gptailor.load(done.best)
    declared = {model: lab.alone(model).models[model] for model in best.models}
    bare = best.model_copy(update={"models": declared, "bridges": (), "heal": None})
    plan = gptailor.format(bare)
    return Found(plan, done.summary.cost, shown_layers([drop.position for drop in best.drops]))


# --------------------------------------------------------------------------------------- the table

UNCUT: Mapping[str, Method] = {
    "base": Method("dense base", base),
    "specialist": Method("best specialist, uncut", specialist),
    "merge": Method("best uniform merge, uncut", merge),
}

METHODS: Mapping[str, Method] = {
    "shortgpt": Method("ShortGPT (block influence)", least_influence),
    "window": Method("best window", best_window),
    "cut": Method("gptailor: cut", cut, seeded=True),
    "merged": Method("gptailor: cut, selection, merging", select_and_merge, seeded=True),
    "bridge": Method("gptailor: … and bridge", bridged, seeded=True),
    "heal": Method("gptailor: … and heal", healed, seeded=True),
    "lora": Method("ShortGPT + LoRA (PEFT)", lora, seeded=True),
    "shortgpt-heal": Method("ShortGPT + bridge and heal", healed_heuristic, seeded=True),
    "window-heal": Method("best window + bridge and heal", healed_window, seeded=True),
    "replaceme": Method("ReplaceMe", replaceme),
    "random": Method("random cut", drawn, seeded=True),
    "merge-prune": Method("merge, then prune", merge_then_prune),
    "prune-merge": Method("prune, then merge", prune_then_merge),
    "select": Method("gptailor: cut, selection", select, seeded=True),
    "evopress": Method("EvoPress", evopress, seeded=True),
    "laco": Method("LaCo (folding)", laco),
    "greedy": Method("greedy (SLEB)", greedy),
}
"""In the order in which they are measured: the most telling first."""


def made(lab: Lab, name: str, count: int, seed: int) -> Found:
    """A method's plan, made once and remembered."""
    return lab.made(
        f"{name} {count} {seed}", lambda: (UNCUT | METHODS)[name].make(lab, count, seed)
    )


def _whole(lab: Lab) -> Plan:
    return lab.alone(lab.specialist)


def _without(lab: Lab, positions: Sequence[int], evaluations: float = 0.0) -> Found:
    plan = lab.without(_whole(lab), positions)
    return Found(gptailor.format(plan), evaluations, shown_layers(positions))


def _least(values: Sequence[float]) -> int:
    """The number of the least of them that is a number."""
    return min(range(len(values)), key=lambda i: (values[i] != values[i], values[i]))
