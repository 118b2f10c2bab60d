"""Compare searches on a real landscape: cuts of SmolLM2 and the demo's three fine-tunes.

    python benchmarks/search_family.py --folder .family             # texts of the project
    python benchmarks/search_family.py --folder .family --general wiki.txt --maths gsm8k.jsonl

A plan drops seven of thirty layers; every other layer is a merge of any of the fine-tunes. The
search minimises the mean of the nats a token on general text, maths and code. It sees 3 × 3 texts
of 128 tokens; 3 × 24 other texts are held out. All strategies begin with the same starting plans,
which count as costs. The folder keeps every score, and an interrupted run continues. A kept score
has its full cost for each strategy, but isn't computed again.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import torch  # noqa: E402 (the folder above is found first)
from transformers.utils import logging  # noqa: E402

from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.search_family_scores import Family  # noqa: E402
from benchmarks.search_runs import run  # noqa: E402
from benchmarks.search_texts import SEEN  # noqa: E402
from gptailor.searching.run.origin import origin_words  # noqa: E402
from gptailor.searching.space.decode import decode  # noqa: E402
from gptailor.searching.space.genome import Genome  # noqa: E402

BRIDGE_TOKENS = 8192
AT = (40, 60, 80, 100, 200)
STRATEGIES = ("surrogate", "EvoPress", "Optuna TPE", "random")


def table(rows: Mapping[str, Mapping[int, list[float]]], budget: int) -> Iterator[str]:
    """Return medians and spreads over seeds."""
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
    """Run every strategy with every seed, the first seed first; then score the plans held out."""
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
    print(f"\nThe best plan by the number of evaluations, median of {given.seeds} seeds\n")
    print(*table(rows, given.evaluations), sep="\n")
    plans = {origin_words(one.origin): one.genome for one in family.told if one.share == 1} | found
    show(family, plans, bridged=given.bridged)


def show(family: Family, genomes: Mapping[str, Genome], *, bridged: bool) -> None:
    """Print scores of plans on the search's and on held-out texts, bare and bridged."""
    heads = ["plan", "search", "held out", *(["held out, bridged"] if bridged else [])]
    print("", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name, genome in genomes.items():
        plan = [decode(family.space, genome)]
        ways = [str(SEEN), "held", *([f"held bridged {BRIDGE_TOKENS}"] if bridged else [])]
        cells = [f"{family.scores(plan, how)[0]:.4f}" for how in ways]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".family", metavar="DIR", help="scores and texts")
    add_model(parser)
    add("--general", type=Path, metavar="FILE", help="articles, or rows of text")
    add("--maths", type=Path, metavar="FILE", help="rows of question and answer")
    add("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    add("--strategies", nargs="+", default=STRATEGIES)
    add("--smac", metavar="PYTHON", help="a Python with SMAC3, for this peer")
    add("--seeds", type=int, default=3)
    add(
        "--evaluations",
        type=int,
        default=200,
        help="evaluations, with starting plans",
    )
    add("--bridged", action="store_true", help="add held-out scores of bridged plans (minutes)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the comparison."""
    given = parsed(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    model_folder(given.model)
    given.folder.mkdir(parents=True, exist_ok=True)
    compare(Family(given.folder.resolve(), given), given)


if __name__ == "__main__":
    main(sys.argv[1:])
