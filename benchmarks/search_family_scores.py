"""The landscape of `benchmarks/search_family.py`: scores of SmolLM2 and its fine-tunes, cut."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
import torch

import gptailor
from benchmarks.search_texts import SEEN, write_texts
from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.scores import Outcomes, Score
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.lang.format import format_plan
from gptailor.lang.parse import read_objective
from gptailor.plan.plan import Bridge, Plan
from gptailor.searching.run.schedule import Start, next_stage
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.starts.compositions import wholes
from gptailor.searching.starts.stages import Starts

ADAPTERS = Path(__file__).parents[1] / "examples" / "family"
MODELS = {"math": "arithmetic", "code": "python", "chat": "conversation"}
"""Names of the fine-tunes in plans, and in the demo."""
LAYERS, CUT = 30, 7

# --------------------------------------------------------------------------------------- the scores


class Family:
    """The landscape: scores of closed plans and of genomes, kept on disk."""

    name = "family"
    optimum = None

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        base = given.model.resolve()
        self.files = write_texts(folder, base, given.general, given.maths)
        head = [f'model base = "{base}"']
        head += [f'model {name} = base + "{ADAPTERS / of}"' for name, of in MODELS.items()]
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
        """Return the models, loaded on first use."""
        bound, models, _ = opened(self.plan)
        wishes = [read_objective(f'nll("{file}")') for file in self.files]
        meter = Meter(Placement(dtype=self.dtype))
        return Trials(bound, models, objectives=wishes, meter=meter, fidelity=(1, SEEN))

    def _recall(self) -> None:
        """Read the scores of other processes."""
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
        """Return the scores of closed plans, `[n]`; `how` is a number of texts, or `"held"`.

        The suffix ` bridged 8192` adds bridges with this number of calibration tokens.
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
        samples = None if which == "held" else int(which)
        return self.trials.run(plans, samples, stage="bridged" if tokens else "bare")

    def _note(self, key: str, how: str, value: float) -> None:
        self._known[key, how] = value
        with self._scores.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([key, how, value]) + "\n")

    # ----------------------------------------------------------------------------- as a landscape

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the scores of genomes on a share of the texts."""
        return self.scores(self.plans(population), str(samples(share)))

    def plans(self, population: Genome) -> list[Plan]:
        """Return the plans of genomes."""
        return [decode(self.space, Genome(*genes)) for genes in zip(*population, strict=True)]

    def cost(self, share: float) -> float:
        """Return the cost of a trial, in evaluations at full fidelity."""
        return samples(share) / SEEN

    def true(self, population: Genome) -> np.ndarray:
        """Return the scores of genomes on all texts of the search."""
        return self.observed(population)

    def evaluate(self, plans: Sequence[Plan]) -> np.ndarray:
        """Return the scores of closed plans on all texts of the search."""
        return self.scores(plans, str(SEEN))

    @cached_property
    def uncut(self) -> dict[int, float]:
        """Return the base's scores by the number of texts."""
        base = [wholes(self.space)["base"]]
        return {count: float(self.scores(base, str(count))[0]) for count in range(1, SEEN + 1)}

    @cached_property
    def told(self) -> list[Start]:
        """Return all starting plans with their results, in order."""
        stages = Starts(self.space, self.influence, cheapest=1 / SEEN).stages()
        found: list[Start] = []
        stage = next_stage(stages, None)
        while stage:
            results = [self._result(one) for one in stage]
            found += results
            stage = next_stage(stages, results)
        return found

    def _result(self, one: Start) -> Start:
        (value,) = self.observed(Genome(*(genes[None] for genes in one.genome)), one.share)
        return one._replace(share=samples(one.share) / SEEN, losses=(float(value),))

    @property
    def starts(self) -> Genome:
        """Return the starting plans with a full evaluation."""
        full = [one.genome for one in self.told if one.share == 1]
        return Genome(*(np.stack(genes) for genes in zip(*full, strict=True)))

    @cached_property
    def prior(self) -> np.ndarray:
        """Return the block influence of the base's layers."""
        return np.array(self.influence["base"])

    @cached_property
    def influence(self) -> dict[str, tuple[float, ...]]:
        """Return the block influence, kept in the scores' folder."""
        file = self._scores.with_name("influence.json")
        if not file.exists():
            found = {
                name: self.trials.block_influence(plan, SEEN)
                for name, plan in wholes(self.space).items()
            }
            file.write_text(json.dumps(found))
        return {name: tuple(them) for name, them in json.loads(file.read_text()).items()}


def samples(share: float) -> int:
    """Return the number of samples of each domain."""
    return min(max(round(share * SEEN), 1), SEEN)


def _mean(outcomes: Outcomes) -> float:
    """Return the mean over domains, or NaN if a domain has no score."""
    return mean(one.value if isinstance(one, Score) else float("nan") for one in outcomes)
