"""Compare searches of cuts that a bridge repairs, on a real model; each trial is bridged.

    python benchmarks/search_bridged.py --model DIR --learned calibration.jsonl \\
        --search prose.jsonl maths.jsonl --held other_prose.jsonl other_maths.jsonl

A plan drops some layers of one model, and a bridge closes the gaps. The search minimises the mean
of the nats a token on its texts. All searchers begin with the starting plans of `search`,
whose cost counts. The plan that each has found is also judged on held-out texts, of other sources.
The folder keeps every score, so an interrupted run continues, and searchers share scores. A kept
score has its full cost for each searcher.
"""

import argparse
import json
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
from benchmarks.search import Course, run  # noqa: E402
from benchmarks.search_landscapes import joined  # noqa: E402
from benchmarks.search_peers import Factory, peers  # noqa: E402
from gptailor.evaluation.meter import Meter, Placement  # noqa: E402
from gptailor.evaluation.scores import Score  # noqa: E402
from gptailor.evaluation.space_trials import Trials, opened  # noqa: E402
from gptailor.lang.parse import read_objective  # noqa: E402
from gptailor.searching.measuring import gap_errors_of  # noqa: E402
from gptailor.searching.run.origin import origin_words  # noqa: E402
from gptailor.searching.run.schedule import Start, next_stage  # noqa: E402
from gptailor.searching.space.decode import decode_for  # noqa: E402
from gptailor.searching.space.genome import Genome  # noqa: E402
from gptailor.searching.space.space import Space, space_of, with_gap_errors  # noqa: E402
from gptailor.searching.starts.compositions import wholes  # noqa: E402
from gptailor.searching.starts.stages import Starts  # noqa: E402

SEARCHERS = ("surrogate", "EvoPress, unstaged", "Optuna GP", "Optuna TPE", "one-shot")
MARKS = (28, 60, 120)


class Bridged:
    """The landscape of the bridged cuts of one model; scores are kept on disk."""

    optimum = None

    def __init__(self, given: argparse.Namespace, evaluations: int) -> None:
        self.given, self.room = given, evaluations / 2
        given.folder.mkdir(parents=True, exist_ok=True)
        self.kept = given.folder / "scores.jsonl"
        lines = self.kept.read_text("utf-8").splitlines() if self.kept.exists() else []
        self.known: dict[str, list[float]] = dict(map(json.loads, lines))

    @property
    def name(self) -> str:
        """Return the model and the cut."""
        return f"{self.given.model.name}, {self.given.dropped} layers dropped"

    def trials(self, texts: Sequence[Path], samples: int) -> Trials:
        """Return the model with some texts."""
        plan, models, _ = opened(gptailor.loads(self.text))
        wishes = [read_objective(f"nll({json.dumps(str(file.resolve()))})") for file in texts]
        meter = Meter(Placement(dtype=torch.bfloat16))
        return Trials(plan, models, objectives=wishes, meter=meter, fidelity=(samples, samples))

    @cached_property
    def seen(self) -> Trials:
        """Return the model with the search's texts."""
        return self.trials(self.given.search, self.given.samples)

    @cached_property
    def unseen(self) -> Trials:
        """Return the model with the held-out texts, of four times as many samples."""
        return self.trials(self.given.held, 4 * self.given.samples)

    @property
    def text(self) -> str:
        """Return the open plan."""
        given = self.given
        return (
            f"tailor 1\nmodel base = {json.dumps(str(given.model.resolve()))}\n"
            f"drop any {given.dropped} of L1..L{given.last}\n"
            f"bridge on {json.dumps(str(given.learned.resolve()))} tokens {given.tokens}\n"
        )

    @cached_property
    def measured(self) -> Mapping[str, Any]:
        """Return the block influence, and the errors of a bridge over each gap."""
        file = self.given.folder / "measured.json"
        if not file.exists():
            uncut = wholes(self.plain)["base"]
            found = {
                "influence": list(self.seen.block_influence(uncut, self.given.samples)),
                "gaps": gap_errors_of(self.seen, uncut, self.given.dropped),
            }
            file.write_text(json.dumps(found), "utf-8")
        kept: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        return kept

    @cached_property
    def plain(self) -> Space:
        """Return the space without the measured gaps."""
        return space_of(self.seen.plan, self.seen.models["base"].layout.count)

    @cached_property
    def space(self) -> Space:
        """Return the space with the measured gaps."""
        return with_gap_errors(self.plain, self.measured["gaps"])

    @property
    def prior(self) -> np.ndarray:
        """Return the block influence of each layer."""
        return np.array(self.measured["influence"])

    def losses(self, population: Genome, *, held: bool = False) -> np.ndarray:
        """Return the mean losses of bridged plans on the search's texts, or on held-out texts."""
        found = []
        for genome in zip(*map(np.asarray, population), strict=True):
            cut = " ".join(str(self.space.bits[i].at) for i in np.flatnonzero(genome[0]))
            key = f"{'held' if held else 'search'} {cut}"
            if key not in self.known:
                plan = decode_for(self.space, Genome(*genome), "bridged")
                trials = self.unseen if held else self.seen
                [(_, outcomes)] = trials.run([plan], trials.full, stage="bridged")
                self.known[key] = [o.value if isinstance(o, Score) else np.nan for o in outcomes]
                with self.kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.known[key]]) + "\n")
            found.append(float(np.mean(self.known[key])))
        return np.array(found)

    def observed(self, population: Genome, share: float = 1.0) -> np.ndarray:
        """Return the mean losses on the search's texts."""
        return self.losses(population)

    def true(self, population: Genome) -> np.ndarray:
        """Return the same: a searcher's plan is judged by what it saw, and then held out."""
        return self.observed(population)

    def cost(self, share: float) -> float:
        """Return the cost of a trial, in evaluations."""
        return 1.0

    @cached_property
    def started(self) -> list[Start]:
        """Return the distinct starting plans of a search with this room, with their losses."""
        stages = Starts(self.space, {"base": self.measured["influence"]}, room=self.room).stages()
        done: list[Start] = []
        stage = next_stage(stages, None)
        while stage:
            values = self.observed(joined([one.genome for one in stage]))
            pairs = zip(stage, values, strict=True)
            results = [one._replace(losses=(float(value),)) for one, value in pairs]
            known = {one.genome.bits.tobytes() for one in done}
            fresh = {one.genome.bits.tobytes(): one for one in results}
            done += [one for bits, one in fresh.items() if bits not in known]
            stage = next_stage(stages, results)
        return done

    @property
    def starts(self) -> Genome:
        """Return the starting plans."""
        return joined([one.genome for one in self.started])


def rows(courses: Mapping[str, Sequence[Course]], held: Mapping[str, list[float]]) -> Iterator[str]:
    """Yield a line for each searcher: each seed's loss, and the median held out."""
    yield "| searcher | loss by seed | median | held out, median |"
    yield "|---|---|--:|--:|"
    for name, all_of in courses.items():
        found = [float(course.value[-1]) for course in all_of]
        cells = " ".join(f"{value:.3f}" for value in found)
        middle, other = map(statistics.median, (found, held[name]))
        yield f"| {name} | {cells} | {middle:.3f} | {other:.3f} |"


def main() -> None:
    """Search, and print a table for each number of evaluations."""
    given = arguments().parse_args()
    for evaluations in given.evaluations:
        landscape = Bridged(given, evaluations)
        factories: dict[str, Factory] = peers({}, evaluations)
        courses: dict[str, list[Course]] = {name: [] for name in given.peers}
        held: dict[str, list[float]] = {name: [] for name in given.peers}
        for seed in range(given.seeds):
            for name in given.peers:
                course = run(landscape, factories[name], seed, evaluations)
                courses[name].append(course)
                held[name].append(float(landscape.losses(joined([course.found]), held=True)[0]))
                print(f"  {name}, seed {seed}: {course.value[-1]:.4f}", file=sys.stderr, flush=True)
        print(f"\n{landscape.name}, {evaluations} evaluations\n")
        best = min(landscape.started, key=lambda one: one.losses)
        count = len(landscape.started)
        print(
            f"{count} starting plans; the best: {origin_words(best.origin)}, {best.losses[0]:.3f}"
        )
        print("", *rows(courses, held), sep="\n", flush=True)


def arguments() -> argparse.ArgumentParser:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="the base")
    add("--learned", type=Path, required=True, metavar="FILE", help="the bridge's text")
    add("--search", type=Path, nargs="+", required=True, metavar="FILE", help="the search's texts")
    add("--held", type=Path, nargs="+", required=True, metavar="FILE", help="held-out texts")
    add("--folder", type=Path, default=ROOT / ".bridged", metavar="DIR", help="kept scores")
    add("--dropped", type=int, default=7, help="layers that each plan drops (7)")
    add("--last", type=int, default=28, help="the last layer that may be dropped (28)")
    add("--samples", type=int, default=2, help="samples of each text (2); held out, four times")
    add("--tokens", type=int, default=2048, help="tokens of each bridge (2048)")
    add("--evaluations", type=int, nargs="+", default=MARKS, help="evaluations of a search")
    add("--seeds", type=int, default=3, help="searches of each searcher (3)")
    add("--peers", nargs="+", default=SEARCHERS, help="searchers")
    return parser


if __name__ == "__main__":
    main()
