"""The scan of blocks that may come again: each alone, at low fidelity, and what came of it.

Blocks come in the order of their last layers: the plans of neighbours begin alike up to there, so
that the layers before are run once for all of them (the prefix cache).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from gptailor.plan.plan import CountRange, RepeatWindow
from gptailor.plan.windows import Window
from gptailor.report.summary import BlockScan, MappedBlock
from gptailor.search.run.trials import STARTS, Ledger, Trial
from gptailor.search.space.genome import Genome
from gptailor.search.space.space import Space
from gptailor.search.space.table import canonical


@final
@dataclass(frozen=True)
class BlockChoice:
    """A `repeat window` of a space: its pick, and the genes beside it, -1 where there is none."""

    pick: int
    windows: tuple[Window, ...]
    maybe: int
    times: int

    @property
    def options(self) -> Sequence[int]:
        """The options' numbers in the order of a scan: by the last layer, then by the first."""
        return sorted(range(len(self.windows)), key=lambda v: self.windows[v][::-1])


def block_choices(space: Space) -> list[BlockChoice]:
    """The windows that may come again."""
    found = []
    for i, repeat in enumerate(space.plan.repeats):
        if isinstance(repeat, RepeatWindow):
            at = ("repeats", i)
            [pick] = space.index[at]
            options = tuple(one for one in space.picks[pick].options if isinstance(one, tuple))
            maybe = space.index[*at, "maybe"][0] if repeat.maybe else -1
            ranged = isinstance(repeat.times, CountRange)
            times = space.index[*at, "times"][0] if ranged else -1
            found.append(BlockChoice(pick, options, maybe, times))
    return found


def with_block(
    space: Space, genome: Genome, choice: BlockChoice, option: int, times: int = 0
) -> Genome:
    """The genome with that block coming again, canonical; `times` is the number of an option."""
    bits, picks = np.array(genome.bits), np.array(genome.picks)
    if choice.maybe >= 0:
        bits[choice.maybe] = True
    picks[choice.pick] = option
    if choice.times >= 0:
        picks[choice.times] = times
    made = canonical(space.table, Genome(bits, picks, np.array(genome.reals)))
    return Genome(*(np.asarray(genes) for genes in made))


def always_again(space: Space) -> tuple[Window, ...]:
    """Return the blocks that each plan of the space has again, as they are by default."""
    return tuple(
        choice.windows[space.picks[choice.pick].default]
        for choice in block_choices(space)
        if choice.maybe < 0
    )


@final
@dataclass(frozen=True)
class Scan:
    """The blocks that a scan tries, each a choice and its option, and how many it leaves out."""

    blocks: list[tuple[BlockChoice, int]]
    left_out: int


def scan_of(space: Space, most: int) -> Scan:
    """The blocks that are scanned: all, or as many as that, evenly spread over lengths and places.

    They are in the order in which the most layers are run once.
    """
    choices = block_choices(space)
    every = [(n, option) for n, choice in enumerate(choices) for option in choice.options]
    by_length = sorted(every, key=lambda one: (one[0], one[1]))  # options go by length, then place
    kept = by_length
    if len(every) > most:
        chosen = np.linspace(0, len(every) - 1, max(most, 0)).round().astype(int).tolist()
        kept = [by_length[number] for number in dict.fromkeys(chosen)]
    wanted = set(kept)
    blocks = [(choices[n], option) for n, option in every if (n, option) in wanted]
    return Scan(blocks, len(every) - len(blocks))


# ---------------------------------------------------------------------------------- what came of it


def scanned(space: Space, ledger: Ledger) -> BlockScan | None:
    """The scan of the first window, if there was one: starting plans that differ in a block alone.

    The change is that of the first objective, as a share of what the uncut base has on the same
    samples; below 0 is better, whatever the objective's direction.
    """
    choices = block_choices(space)
    if not choices or not ledger.aims:
        return None
    choice = choices[0]
    alike: dict[tuple[int, bytes], list[Trial]] = defaultdict(list)
    for trial in ledger.of(STARTS):
        genome = trial.request.genome
        if trial.values is not None and (choice.maybe < 0 or genome.bits[choice.maybe]):
            picks = np.array(genome.picks)
            picks[choice.pick] = 0
            key = b"".join(np.asarray(one).tobytes() for one in (genome.bits, picks, genome.reals))
            alike[trial.samples, key].append(trial)
    most = max(alike.items(), key=lambda one: (len(one[1]), -one[0][0]), default=None)
    if most is None or len(most[1]) < 2:
        return None
    samples = most[0][0]
    sign = 1 if ledger.aims[0].direction == "minimize" else -1
    [base, *_] = ledger.references[samples]
    found: dict[Window, MappedBlock] = {}
    for trial in most[1]:
        assert trial.values is not None
        first, last = choice.windows[int(trial.request.genome.picks[choice.pick])]
        change = sign * (trial.values[0] - base) / (abs(base) or 1.0)
        found.setdefault((first, last), MappedBlock(first, last, trial.values[0], change))
    blocks = sorted(found.values(), key=lambda block: (block.change, block.first, block.last))
    return BlockScan(
        measure=ledger.aims[0].name,
        samples=samples,
        scanned=len(blocks),
        of=len(choice.windows),
        better=sum(block.change < 0 for block in blocks),
        blocks=tuple(blocks),
    )
