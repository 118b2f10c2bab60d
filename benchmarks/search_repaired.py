"""Compare a search's result with plans written by hand, all repaired alike, over several seeds.

    python benchmarks/search_repaired.py --data DATA --seeds 0 1 2
    python benchmarks/search_repaired.py --family .second

Plans drop seven of thirty layers; each other layer is a merge of any of the fine-tunes. The family
is the demo's, or from `benchmarks/second_family.py`. Plans are bridged and healed. Each seed is one
search in its own folder; an interrupted search continues. The repaired plans of each search are
then judged on held-out texts: the final plan (best.tailor), the plan with the best score (found),
and rival plans written by hand. Losses are nats a token, the mean over domains.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402 (the folder above is found first)

import gptailor  # noqa: E402
from benchmarks.cut_scores import DROPPED, Family, family_of, parser_of  # noqa: E402
from gptailor.evaluation.scores import Score  # noqa: E402
from gptailor.searching.run.origin import origin_words  # noqa: E402
from gptailor.searching.run.trials import FINAL  # noqa: E402
from gptailor.searching.run_reading import read_run  # noqa: E402
from gptailor.searching.summary import best_recipe  # noqa: E402

BASE, RECIPE = "base, uncut", "best recipe, uncut"
HANDED, FOUND = "handed over", "found"


@dataclass(frozen=True)
class Judged:
    """A plan of a search: its name in the table, its scores on the search's and held-out texts."""

    name: str
    plan: str
    search: float
    held: float


def space_text(family: Family, tokens: int, trials: int) -> str:
    """Return the search space."""
    lines = family.model_lines()
    learned, seen = json.dumps(str(family.learned)), json.dumps(str(family.search))
    rows = len(family.search.read_text("utf-8").splitlines())
    lines += [
        f"others from any of {', '.join(family.adapters)} by task_arithmetic(0.0..1.0)",
        f"drop any {DROPPED} of L0..L29",
        f"bridge on {learned} tokens 4096",
        f"heal on {learned} tokens {tokens}",
        f"search {{ minimize nll({seen}); fidelity {rows // 3}..{rows}; trials {trials} }}",
    ]
    return "\n".join(lines) + "\n"


def searched(folder: Path, space: str, seed: int) -> Path:
    """Run or continue the search of a seed; return its folder."""
    place, run = folder / "space.tailor", folder / f"run-{seed}"
    place.write_text(space, "utf-8")
    command = ("-m", "gptailor", "search", str(place), "-o", str(run), "--seed", str(seed))
    subprocess.run((sys.executable, *command, "--dtype", "bfloat16"), check=True)
    return run


def held_out(text: str, folder: Path, family: Family) -> float:
    """Return a plan's mean loss over the held-out domains; its paths start at a folder."""
    objectives = [f"nll({json.dumps(str(file))})" for file in family.held.values()]
    results = gptailor.evaluate(
        gptailor.loads(text, folder=folder), objectives, dtype=torch.bfloat16
    ).results
    scores = [result.outcome for result in results]
    return mean(o.value if isinstance(o, Score) else float("nan") for o in scores)


def judged(run: Path, family: Family, known: dict[str, float]) -> Iterator[Judged]:
    """Yield the repaired plans of a search, judged on held-out texts; `known` scores are kept."""
    reading = read_run(run)
    assert reading.verdict is not None, "a plan has a score"
    best, found = reading.verdict.best, reading.verdict.found
    of_cuts = best_recipe(reading.ledger)
    for trial in reading.ledger.trials:
        final = trial.request.phase == FINAL or trial in (best, found)
        recipe = trial is of_cuts
        if not (final or recipe) or trial.values is None:
            continue
        text = reading.text(trial)
        if text not in known:
            known[text] = held_out(text, run, family)
        row = (text, trial.values[0], known[text])
        yield Judged(RECIPE if recipe else origin_words(trial.request.origin), *row)
        if trial is best:
            yield Judged(HANDED, *row)
        if trial is found:
            yield Judged(FOUND, *row)


def table(
    rows: Mapping[int, Sequence[Judged]], base: float, models: Sequence[str]
) -> Iterator[str]:
    """Return the held-out losses of each seed, and the gains over the rivals."""
    seeds = list(rows)
    yield f"| plan, held-out nats | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |"
    yield "|---|" + "--:|" * (len(seeds) + 1)
    yield f"| {BASE} | {' | '.join([f'{base:.3f}'] * (len(seeds) + 1))} |"
    names = dict.fromkeys(row.name for of_seed in rows.values() for row in of_seed)
    for name in sorted(names, key=(RECIPE, HANDED, FOUND).__contains__, reverse=True):
        values = [
            min((row.held for row in of_seed if row.name == name), default=None)
            for of_seed in rows.values()
        ]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        known = [value for value in values if value is not None]
        whole = f"{mean(known):.3f}" if len(known) == len(values) else ""
        yield f"| {name} | {' | '.join(cells)} | {whole} |"
    for name in (HANDED, FOUND):
        yield from gains(name, rows, models)


def gains(name: str, rows: Mapping[int, Sequence[Judged]], models: Sequence[str]) -> Iterator[str]:
    """Return how much better a plan is than the best rivals, with the error over seeds."""
    own = [min(row.held for row in of_seed if row.name == name) for of_seed in rows.values()]
    rivals = {
        "the best single model's window": lambda row: (
            row.name in {f"best window on {model}" for model in ("base", *models)}
        ),
        "the best rival on held-out texts": lambda row: row.name.startswith(
            ("best window", "block influence")
        ),
    }
    for what, chosen in rivals.items():
        theirs = [
            min((row.held for row in of_seed if chosen(row)), default=float("nan"))
            for of_seed in rows.values()
        ]
        won = [other - value for other, value in zip(theirs, own, strict=True)]
        error = f" ± {stdev(won) / len(won) ** 0.5:.3f}" if len(won) > 1 else ""
        yield f"\nThe plan {name} is better than {what} by {mean(won):.3f}{error} nats."


def main() -> None:
    """Search with each seed, judge, and print the table."""
    parser = parser_of(__doc__, ".repaired")
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds, each of one search (0 1 2)")
    add("--trials", type=int, default=28, help="trials of a search (28)")
    options = parser.parse_args()
    family = family_of(options)
    space = space_text(family, options.tokens, options.trials)
    store = options.folder / "held.json"
    known: dict[str, float] = json.loads(store.read_text()) if store.exists() else {}
    rows: dict[int, list[Judged]] = {}
    for seed in options.seeds:
        rows[seed] = []
        for row in judged(searched(options.folder, space, seed), family, known):
            rows[seed].append(row)
            store.write_text(json.dumps(known, indent=1))
            print(f"seed {seed} {row.name}: {row.search:.3f}, held out {row.held:.3f}", flush=True)
    alone = f"tailor 1\nmodel base = {json.dumps(str(options.model.resolve()))}\n"
    base = held_out(alone, options.folder, family)
    print("", *table(rows, base, list(family.adapters)), sep="\n")


if __name__ == "__main__":
    main()
