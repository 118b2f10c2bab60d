"""Find the block that is best to repeat: a search beside a full scan of equal cost.

    python examples/smollm2.py .demo/smollm2
    python -m benchmarks.blocks --model .demo/smollm2 --run .demo/blocks

The text consists of the paragraphs of this project's pages, ordered by digest. The full scan is the
method of RYS: it scores every block on as many samples as the search's budget allows and takes the
best. Both results and the base are scored on held-out paragraphs. The difference to the base is
computed sample by sample.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import gptailor
from gptailor.evaluation.scores import PerSample, Score, paired_difference
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.evaluation.targets import base_of
from gptailor.lang.parse import read_objective
from gptailor.lang.words import repeat_words
from gptailor.plan.plan import CountRange, Plan, Repeat
from gptailor.plan.windows import windows_of
from gptailor.searching.settings import Flags

DOCS = Path(__file__).parents[1] / "docs"
HELD = 48
"""Number of held-out paragraphs."""


def write_rows(folder: Path, size: int) -> list[Path]:
    """Write paragraphs of equal length for the search, and held-out ones."""
    found = [
        part[:size]
        for page in sorted(DOCS.glob("*.md"))
        for part in page.read_text(encoding="utf-8").split("\n\n")
        if len(part) >= size and part[:1].isalpha()
    ]
    found.sort(key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    files = [folder / "seen.jsonl", folder / "unseen.jsonl"]
    for file, rows in zip(files, (found[HELD:], found[:HELD]), strict=True):
        lines = (json.dumps({"text": row}) + "\n" for row in rows)
        file.write_text("".join(lines), encoding="utf-8")
    return files


def scores(plan: Plan, file: Path, plans: Sequence[Plan], samples: int) -> list[PerSample]:
    """Return the scores of each plan on the first samples of a text, sample by sample."""
    bound, models, _ = opened(plan)
    wish = read_objective(f'nll("{file}")')
    trials = Trials(bound, models, objectives=[wish], fidelity=(1, samples))
    wanted = min(samples, trials.full)
    rows: dict[int, PerSample] = {}
    for index, outcomes in trials.run(plans, wanted, stage="bare"):
        [outcome] = outcomes
        if not isinstance(outcome, Score) or outcome.each is None:
            raise SystemExit(f"plan {index} has no score: {outcome}")
        rows[index] = outcome.each
    return [rows[index] for index in range(len(plans))]


def searched(plan: Plan, run: Path, given: argparse.Namespace) -> tuple[Plan, float]:
    """Return the plan of a search, and its cost in evaluations of all samples."""
    begun = time.perf_counter()
    found = gptailor.search(plan, run, Flags(trials=given.trials))
    seconds, scan, cost = (
        time.perf_counter() - begun,
        found.summary.blocks,
        found.summary.cost,
    )
    if found.best is None or scan is None:
        raise SystemExit("the search found nothing")
    best = gptailor.load(found.best)
    print(f"search: {cost:g} evaluations of {given.full} samples, {seconds:.0f} s")
    print(f"  its scan: {scan.scanned} of {scan.of} blocks on {scan.samples} samples,"
          f" {scan.better} better than the base")  # fmt: skip
    print(f"  found: {', '.join(map(repeat_words, best.repeats)) or 'the base'}", flush=True)
    return best, cost


def scanned_in_full(base: Plan, seen: Path, budget: float, given: argparse.Namespace) -> Plan:
    """Return the best of all blocks, each scored on an equal part of a budget of samples."""
    count = CountRange(between=(1, given.longest))
    windows = windows_of(count, range(given.first, given.last + 1))
    blocks = [
        base.model_copy(update={"repeats": (Repeat(first=first, last=last),)})
        for first, last in sorted(windows, key=lambda one: one[::-1])
    ]
    samples = max(1, round(budget / len(blocks)))
    begun = time.perf_counter()
    values = [one.score().value for one in scores(base, seen, [*blocks, base], samples)]
    order = sorted(range(len(blocks)), key=values.__getitem__)
    better = sum(value < values[-1] for value in values[:-1])
    print(f"full scan: {len(blocks)} blocks on {samples} samples,"
          f" {time.perf_counter() - begun:.0f} s; {better} better than the base")  # fmt: skip
    for i in order[:3]:
        print(f"  {repeat_words(blocks[i].repeats[0])}: {values[i] - values[-1]:+.4f}", flush=True)
    return blocks[order[0]]


def main() -> None:
    """Search, scan and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--first", type=int, default=6)
    parser.add_argument("--last", type=int, default=23)
    parser.add_argument("--longest", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--full", type=int, default=32, help="samples of a full evaluation")
    parser.add_argument("--low", type=int, default=2, help="samples of the search's scan")
    parser.add_argument("--size", type=int, default=320, help="characters of a paragraph")
    given = parser.parse_args()
    folder: Path = given.run.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    seen, unseen = write_rows(folder, given.size)
    plan = gptailor.loads(
        f'tailor 1\nmodel base = "{given.model.resolve()}"\n'
        f"maybe repeat window 1..{given.longest} of L{given.first}..L{given.last}\n"
        f'search {{ minimize nll("{seen}"); fidelity {given.low}..{given.full}; seed 0 }}\n'
    )
    base = base_of(plan)
    best, cost = searched(plan, folder / "search", given)
    block = scanned_in_full(base, seen, cost * given.full, given)
    three = scores(base, unseen, [base, best, block], HELD)
    print(f"held out, {len(three[0].sums)} paragraphs: the base {three[0].score().value:.4f}")
    for name, one in (("search", three[1]), ("full scan", three[2])):
        by = paired_difference(one, three[0])
        print(f"  {name}: {one.score().value:.4f}, {by.value:+.4f} ± {by.stderr:.4f}", flush=True)


if __name__ == "__main__":
    main()
