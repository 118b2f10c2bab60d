"""The scan of blocks that may be repeated: each block alone, at low fidelity, and its result.

Blocks are sorted by their last layers. Neighbouring plans then begin with the same layers, and the
prefix cache runs these layers once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from gptailor.plan.plan import CountRange, RepeatWindow
from gptailor.plan.windows import Window
from gptailor.reporting.summary import BlockScan, MappedBlock
from gptailor.searching.run.trials import STARTS, Ledger, Trial
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import canonical


@final
@dataclass(frozen=True)
class BlockChoice:
    """A `repeat window` of a space: its pick and the genes beside it, -1 for a missing gene."""

    pick: int
    windows: tuple[Window, ...]
    maybe: int
    times: int

    @property
    def options(self) -> Sequence[int]:
        """The options' numbers in the order of a scan: by the last layer, then by the first."""
        return sorted(range(len(self.windows)), key=lambda v: self.windows[v][::-1])


def block_choices(space: Space) -> list[BlockChoice]:
    """Return the windows that may be repeated."""
    choices = []
    for i, repeat in enumerate(space.plan.repeats):
        if isinstance(repeat, RepeatWindow):
            at = ("repeats", i)
            [pick] = space.index[at]
            options = tuple(o for o in space.picks[pick].options if isinstance(o, tuple))
            maybe = space.index[*at, "maybe"][0] if repeat.maybe else -1
            ranged = isinstance(repeat.times, CountRange)
            times = space.index[*at, "times"][0] if ranged else -1
            choices.append(BlockChoice(pick, options, maybe, times))
    return choices


def with_block(
    space: Space, genome: Genome, choice: BlockChoice, option: int, times: int = 0
) -> Genome:
    """Return the canonical genome with a repeated block; `times` is the number of an option."""
    bits, picks = np.array(genome.bits), np.array(genome.picks)
    if choice.maybe >= 0:
        bits[choice.maybe] = True
    picks[choice.pick] = option
    if choice.times >= 0:
        picks[choice.times] = times
    repeated = canonical(space.table, Genome(bits, picks, np.array(genome.reals)))
    return Genome(*(np.asarray(genes) for genes in repeated))


def always_again(space: Space) -> tuple[Window, ...]:
    """Return the blocks that each plan of the space repeats, as they are by default."""
    return tuple(
        choice.windows[space.picks[choice.pick].default]
        for choice in block_choices(space)
        if choice.maybe < 0
    )


@final
@dataclass(frozen=True)
class Scan:
    """The blocks that a scan tries, each as a choice and its option, and the number left out."""

    blocks: list[tuple[BlockChoice, int]]
    left_out: int


def scan_of(space: Space, most: int) -> Scan:
    """Return the scanned blocks: all, or `most` of them, evenly spread over lengths and places.

    Their order lets plans share the most layers.
    """
    choices = block_choices(space)
    every = [(n, option) for n, choice in enumerate(choices) for option in choice.options]
    by_length = sorted(every)  # options are sorted by length, then by place
    kept = by_length
    if len(every) > most:
        chosen = np.linspace(0, len(every) - 1, max(most, 0)).round().astype(int).tolist()
        kept = [by_length[number] for number in dict.fromkeys(chosen)]
    kept_blocks = set(kept)
    blocks = [(choices[n], option) for n, option in every if (n, option) in kept_blocks]
    return Scan(blocks, len(every) - len(blocks))


# ------------------------------------------------------------------------------------- the result


def scanned(space: Space, ledger: Ledger) -> BlockScan | None:
    """Return the scan of the first window: starting plans that differ in a block alone.

    Return None without a scan. The change is a share of the first objective of the uncut base on
    the same samples. A change below 0 is better in any direction of the objective.
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
            key = b"".join(
                np.asarray(genes).tobytes() for genes in (genome.bits, picks, genome.reals)
            )
            alike[trial.samples, key].append(trial)
    most = max(alike.items(), key=lambda item: (len(item[1]), -item[0][0]), default=None)
    if most is None or len(most[1]) < 2:
        return None
    (samples, _), trials = most
    sign = 1 if ledger.aims[0].direction == "minimize" else -1
    [base, *_] = ledger.references[samples]
    by_window: dict[Window, MappedBlock] = {}
    for trial in trials:
        assert trial.values is not None
        first, last = choice.windows[int(trial.request.genome.picks[choice.pick])]
        change = sign * (trial.values[0] - base) / (abs(base) or 1.0)
        by_window.setdefault((first, last), MappedBlock(first, last, trial.values[0], change))
    blocks = sorted(by_window.values(), key=lambda block: (block.change, block.first, block.last))
    return BlockScan(
        measure=ledger.aims[0].name,
        samples=samples,
        scanned=len(blocks),
        of=len(choice.windows),
        better=sum(block.change < 0 for block in blocks),
        blocks=tuple(blocks),
    )
