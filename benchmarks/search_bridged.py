"""Compare searches of cuts that a bridge repairs, on real models; each trial is bridged.

    python benchmarks/search_bridged.py SPACE.tailor --search prose.jsonl maths.jsonl \\
        --held other_prose.jsonl other_maths.jsonl

SPACE is an open plan with one list of drops and a bridge. The search minimises the mean of the nats
a token on its texts. All searchers begin with the starting plans of `search`, which count as costs.
If the number of drops is open (`drop any 3..8`), the result is the mean over the sizes: `surrogate`
searches them together, all others search for each size in turn with their share of the evaluations.
Found plans are compared with the best starting plans on held-out texts, of other sources, sample by
sample. The folder keeps every score, so an interrupted run continues, and searchers share scores. A
kept score has its full cost for each searcher. To save time, open numbers are rounded to quarters
of their range, so that plans share merges. On processors that are quick in bfloat16 trials and
bridges compute in it: on six cuts of SmolLM2-135M the loss on a text differed from that with
float32 by at most 0.010 nats.
"""

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402 (the folder above is found first)
import torch  # noqa: E402

import gptailor  # noqa: E402
from benchmarks.search import run  # noqa: E402
from benchmarks.search_landscapes import joined  # noqa: E402
from benchmarks.search_peers import CAPACITY, Factory, one_of, peers  # noqa: E402
from gptailor.evaluation.fits.bridge.fit import Bridger  # noqa: E402
from gptailor.evaluation.meter import Meter, Placement  # noqa: E402
from gptailor.evaluation.scores import PerSample, Score, paired_difference  # noqa: E402
from gptailor.evaluation.space_trials import Trials, opened  # noqa: E402
from gptailor.lang.parse import read_objective  # noqa: E402
from gptailor.plan.plan import Plan  # noqa: E402
from gptailor.program.devices import halves_are_quick  # noqa: E402
from gptailor.searching.measuring import gap_errors_of  # noqa: E402
from gptailor.searching.run.asking import by_spread, draw_weights  # noqa: E402
from gptailor.searching.run.origin import origin_words  # noqa: E402
from gptailor.searching.run.schedule import Start, next_stage  # noqa: E402
from gptailor.searching.space.decode import decode_for  # noqa: E402
from gptailor.searching.space.genome import Genome  # noqa: E402
from gptailor.searching.space.hash_random import folded, key_of  # noqa: E402
from gptailor.searching.space.space import Space, space_of, with_gap_errors  # noqa: E402
from gptailor.searching.starts.compositions import wholes  # noqa: E402
from gptailor.searching.starts.stages import Starts  # noqa: E402
from gptailor.searching.strategies import strategy_of  # noqa: E402

SEARCHERS = ("surrogate", "EvoPress, unstaged", "Optuna GP", "Optuna TPE")
MARKS = (28, 60, 120)
COUNT = re.compile(r"(?<=drop any )(\d+)(?:\.\.(\d+))?(?= of)")
"""The number of drops in a plan's text."""

PARTS = 4
"""The parts of an open number's range."""

PerText = list[PerSample]
"""A plan's nats on each text, sample by sample."""


class Scores:
    """Nats of bridged plans on some texts, by plan; they are kept in a file."""

    def __init__(self, plan: Plan, texts: Sequence[Path], samples: int, kept: Path) -> None:
        bound, models, _ = opened(plan)
        wishes = [read_objective(f"nll({json.dumps(str(file.resolve()))})") for file in texts]
        dtype = torch.bfloat16 if halves_are_quick("cpu") else torch.float32
        meter = Meter(Placement(dtype=dtype))
        self.trials = Trials(
            bound, models, objectives=wishes, meter=meter, fidelity=(samples, samples)
        )
        self.kept = kept
        lines = kept.read_text("utf-8").splitlines() if kept.exists() else []
        self.known: dict[str, PerText] = {
            key: [PerSample(tuple(sums), tuple(counts)) for sums, counts in texts]
            for key, texts in map(json.loads, lines)
        }

    def of(self, plan: Plan) -> PerText:
        """Return a plan's nats. Exits for a plan without a score."""
        key = plan.model_dump_json()
        if key not in self.known:
            [(_, outcomes)] = self.trials.run([plan], self.trials.full, stage="bridged")
            found = [one.each for one in outcomes if isinstance(one, Score) and one.each]
            if len(found) < len(outcomes):
                sys.exit(f"no score: {outcomes}")
            self.known[key] = found
            with self.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, [[one.sums, one.counts] for one in found]]) + "\n")
        return self.known[key]

    def loss(self, plan: Plan) -> float:
        """Return the mean of the nats on all texts."""
        return statistics.fmean(one.score().value for one in self.of(plan))


class Bridged:
    """The landscape of the bridged plans of a space, or of one of its sizes."""

    optimum = None

    def __init__(self, given: argparse.Namespace, scores: Scores, count: str, room: float) -> None:
        text = COUNT.sub(count, given.space.read_text("utf-8"))
        self.given, self.scores, self.count, self.room = given, scores, count, room
        self.plan = gptailor.loads(text, folder=given.space.parent)

    @property
    def name(self) -> str:
        """Return the space and its sizes."""
        return f"{self.given.space.name}, {self.count} layers dropped"

    @cached_property
    def measured(self) -> Mapping[str, Any]:
        """Return the block influence, and the errors of a bridge over each gap."""
        file = self.given.folder / "measured.json"
        if not file.exists():
            trials, uncut = self.scores.trials, wholes(self.plain)["base"]
            widest = max(int(end) for end in self.count.split(".."))
            found = {
                "influence": list(trials.block_influence(uncut, self.given.samples)),
                "gaps": gap_errors_of(trials, uncut, widest),
            }
            file.write_text(json.dumps(found), "utf-8")
        kept: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        return kept

    @cached_property
    def plain(self) -> Space:
        """Return the space without the measured gaps."""
        return space_of(self.plan, self.scores.trials.models["base"].layout.count)

    @cached_property
    def space(self) -> Space:
        """Return the space with the measured gaps."""
        return with_gap_errors(self.plain, self.measured["gaps"])

    @property
    def prior(self) -> np.ndarray:
        """Return the block influence of each layer."""
        return np.array(self.measured["influence"])

    def plan_of(self, genome: Genome) -> Plan:
        """Return the closed plan of a genome, with its open numbers rounded."""
        rounded = genome._replace(reals=np.round(np.asarray(genome.reals) * PARTS) / PARTS)
        return decode_for(self.space, rounded, "bridged")

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the mean losses on the search's texts."""
        plans = [self.plan_of(Genome(*genes)) for genes in zip(*population, strict=True)]
        return np.array([self.scores.loss(plan) for plan in plans])

    def true(self, population: Genome) -> np.ndarray:
        """Return the observed losses: they judge a plan, before held-out texts do."""
        return self.observed(population)

    def cost(self, share: float) -> float:
        """Return the cost of a trial, in evaluations."""
        return 1.0

    @cached_property
    def started(self) -> list[Start]:
        """Return the distinct starting plans of a search with this room, with their losses."""
        stages = Starts(self.space, {"base": self.measured["influence"]}, room=self.room).stages()
        done: dict[str, Start] = {}
        stage = next_stage(stages, None)
        while stage:
            values = self.observed(joined([one.genome for one in stage]))
            pairs = zip(stage, values, strict=True)
            results = [one._replace(losses=(float(value),)) for one, value in pairs]
            for one in results:
                done.setdefault(self.plan_of(one.genome).model_dump_json(), one)
            stage = next_stage(stages, results)
        return list(done.values())

    @property
    def starts(self) -> Genome:
        """Return the starting plans."""
        return joined([one.genome for one in self.started])

    def best(self, population: Genome) -> dict[int, Plan]:
        """Return the best plan of each size."""
        plans = [self.plan_of(Genome(*genes)) for genes in zip(*population, strict=True)]
        plans.sort(key=self.scores.loss, reverse=True)
        return {len(plan.drops): plan for plan in plans}


Found = Mapping[int, Plan]
"""The best plan of each size."""


class Comparison:
    """All searches of one space."""

    def __init__(self, given: argparse.Namespace) -> None:
        given.folder.mkdir(parents=True, exist_ok=True)
        plan = gptailor.load(given.space)
        seen, held = given.folder / "seen.jsonl", given.folder / "held.jsonl"
        self.given = given
        self.seen = Scores(plan, given.search, given.samples, seen)
        self.held = Scores(plan, given.held, given.held_samples, held)
        ends = COUNT.search(given.space.read_text("utf-8"))
        assert ends is not None, "a list of drops with its number: drop any 7 of L1..L28"
        self.count = ends[0]
        self.sizes = range(int(ends[1]), int(ends[2] or ends[1]) + 1)

    def landscape(self, count: str, evaluations: int) -> Bridged:
        """Return the landscape of some sizes."""
        return Bridged(self.given, self.seen, count, evaluations / 2)

    def found(self, name: str, factory: Factory, seed: int, evaluations: int) -> Found:
        """Return the plans that a searcher finds."""
        if name == "surrogate" and len(self.sizes) > 1:
            return together(self.landscape(self.count, evaluations), name, seed, evaluations)
        each = evaluations // len(self.sizes)
        found: dict[int, Plan] = {}
        for size in self.sizes:
            landscape = self.landscape(str(size), each)
            course = run(landscape, factory, seed, each)
            found |= landscape.best(joined([course.found]))
        return found

    def started(self, evaluations: int) -> Found:
        """Return the best starting plans."""
        landscape = self.landscape(self.count, evaluations)
        found = landscape.best(landscape.starts)
        for size in set(self.sizes) - set(found):
            alone = self.landscape(str(size), evaluations // len(self.sizes))
            found |= alone.best(alone.starts)
        return found

    def loss(self, found: Found) -> float:
        """Return the mean loss over the sizes, on the search's texts."""
        return statistics.fmean(self.seen.loss(found[size]) for size in self.sizes)

    def held_out(self, found: Found) -> PerText:
        """Return the nats on held-out texts, the mean over the sizes in each sample."""
        texts = zip(*(self.held.of(found[size]) for size in self.sizes), strict=True)
        return [
            PerSample(tuple(map(statistics.fmean, zip(*(o.sums for o in of), strict=True))), counts)
            for of in texts
            for counts in [of[0].counts]
        ]

    def difference(self, found: Found, other: Found) -> tuple[float, float]:
        """Return the held-out loss beyond another's, the mean over the texts, and its error."""
        pairs = zip(self.held_out(found), self.held_out(other), strict=True)
        each = [paired_difference(one, another) for one, another in pairs]
        error = math.sqrt(sum(one.stderr**2 for one in each)) / len(each)
        return statistics.fmean(one.value for one in each), error


def together(landscape: Bridged, name: str, seed: int, evaluations: int) -> Found:
    """Return the best plan of each size that a strategy finds by loss and size."""
    strategy, key, space = strategy_of(name), key_of(seed), landscape.space
    state = strategy.init(space.table, CAPACITY, key, 2, landscape.prior)
    population, tried = landscape.starts, list[Genome]()
    told = np.zeros((0, 2), np.float32)
    while True:
        rows = range(min(len(population.bits), evaluations - len(told)))
        population = joined([one_of(population, row) for row in rows])
        tried += [one_of(population, row) for row in rows]
        sizes = [len(landscape.plan_of(one_of(population, row)).drops) for row in rows]
        values = np.stack([landscape.observed(population), -np.array(sizes)], 1).astype(np.float32)
        told = np.concatenate([told, values])
        if len(told) >= evaluations:
            return landscape.best(joined(tried))
        ones = np.ones(len(values), np.float32)
        state = strategy.tell(space.table, state, population, values, ones)
        weights = by_spread(draw_weights(folded(key, len(told)), 2), told)
        population, _, state = strategy.ask(space.table, state, folded(key, -len(told)), weights)


def rows(compared: Comparison, found: Mapping[str, Sequence[Found]], start: Found) -> Iterator[str]:
    """Yield a line for each searcher, with the loss, and the held-out loss beyond the start's."""
    yield "| searcher | loss by seed | held out, beyond the best starting plan |"
    yield "|---|---|---|"
    yield f"| the best starting plan | {compared.loss(start):.3f} | |"
    for name, each in found.items():
        losses = " ".join(f"{compared.loss(one):.3f}" for one in each)
        pairs = (compared.difference(one, start) for one in each)
        beyond = ", ".join(f"{value:+.3f} ± {error:.3f}" for value, error in pairs)
        yield f"| {name} | {losses} | {beyond} |"


def main() -> None:
    """Search, and print a table for each number of evaluations."""
    given = arguments().parse_args()
    torch.set_num_threads(given.threads)
    Bridger.wide = False
    compared = Comparison(given)
    for evaluations in given.evaluations:
        factories = peers({}, evaluations)
        found: dict[str, list[Found]] = {name: [] for name in given.peers}
        start = compared.started(evaluations)
        for seed in range(given.seeds):
            for name in given.peers:
                one = compared.found(name, factories[name], seed, evaluations)
                found[name].append(one)
                loss = compared.loss(one)
                print(f"  {name}, seed {seed}: {loss:.4f}", file=sys.stderr, flush=True)
        landscape = compared.landscape(compared.count, evaluations)
        best = min(landscape.started, key=lambda one: one.losses)
        print(f"\n{landscape.name}, {evaluations} evaluations\n")
        count = len(landscape.started)
        print(f"{count} starting plans; the least loss: {origin_words(best.origin)}\n")
        print(*rows(compared, found, start), sep="\n", flush=True)


def arguments() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("space", type=Path, help="an open plan: drop any N of layers, and a bridge")
    add("--search", type=Path, nargs="+", required=True, metavar="FILE", help="the search's texts")
    add("--held", type=Path, nargs="+", required=True, metavar="FILE", help="held-out texts")
    add("--folder", type=Path, default=ROOT / ".bridged", metavar="DIR", help="kept scores")
    add("--samples", type=int, default=2, help="samples of each text (2)")
    add("--held-samples", type=int, default=16, help="held-out samples of each text (16)")
    add("--evaluations", type=int, nargs="+", default=MARKS, help="evaluations of a search")
    add("--seeds", type=int, default=3, help="searches of each searcher (3)")
    add("--threads", type=int, default=1, help="threads of torch (1)")
    add("--peers", nargs="+", default=SEARCHERS, help="searchers")
    return parser


if __name__ == "__main__":
    main()
