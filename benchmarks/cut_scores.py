"""Compare scores of cuts and recipes by their rank correlation with the healed plans.

    python benchmarks/cut_scores.py --data DATA                    # the demo's family
    python benchmarks/cut_scores.py --family .second --tokens 50000
    python benchmarks/cut_scores.py --data DATA --recipes

One merge of the fine-tunes is cut in fifteen ways, by seven layers each: windows, spread layers,
mixtures of both, random layers. The family is the demo's, or from `benchmarks/second_family.py`.
Each cut is scored bare and bridged on a search's texts, then healed and judged on held-out texts.
The table has Spearman's rank correlation of each score with the healed plans. With `--recipes`
fourteen merges of three fine-tunes have one cut, and are also scored with nothing dropped. The
folder keeps the scores, and an interrupted run continues.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final, TypeAlias

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import gptailor  # noqa: E402 (the folder above is found first)
from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.retention_texts import Amounts, write_files  # noqa: E402
from gptailor.evaluation.scores import Score  # noqa: E402

LAYERS, DROPPED = 30, 7
AMOUNTS: Final = Amounts(seen=4, held=12, questions=1, problems=1, continuations=1, tokens=0)
"""Numbers of texts of each source; questions and problems aren't used."""
UNIFORM: Final = 0.6
"""The coefficient of each fine-tune in the merge for the comparison of cuts."""
WINDOW: Final = tuple(range(12, 19))
"""The cut for the comparison of recipes."""

Compared: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[int]]]
"""Plans by name: the coefficients of the three fine-tunes, and the dropped layers."""


def cuts(seed: int) -> dict[str, tuple[int, ...]]:
    """Return cuts of seven layers by name."""
    found = {f"L{first}..L{first + 6}": tuple(range(first, first + 7))
             for first in (4, 8, 12, 16, 20, 22)}  # fmt: skip
    found |= {
        "seven singles": (8, 10, 12, 14, 16, 18, 20),
        "late singles": (13, 16, 19, 21, 23, 25, 27),
        "three pairs and one": (6, 7, 12, 13, 18, 19, 24),
        "six and one": (12, 13, 14, 15, 16, 17, 25),
        "four and three singles": (3, 4, 5, 6, 14, 17, 25),
        "two threes and one": (10, 12, 13, 14, 16, 17, 18),
    }
    drawn = random.Random(seed)
    for number in (1, 2, 3):
        found[f"random {number}"] = tuple(sorted(drawn.sample(range(1, LAYERS - 1), DROPPED)))
    return found


def recipes() -> dict[str, tuple[float, float, float]]:
    """Return the coefficients of merges of the three fine-tunes, by name."""
    uniform = [(weight,) * 3 for weight in (0.3, 0.45, 0.6, 0.8, 1.0)]
    strong = [(1.0, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 0.3, 1.0)]
    mixed = [(0.9, 0.6, 0.6), (0.6, 0.9, 0.6), (0.6, 0.6, 0.9), (0.8, 0.6, 0.4), (0.4, 0.6, 0.8)]
    return {
        " ".join(f"{weight:g}" for weight in weights): weights
        for weights in (*uniform, *strong, *mixed, (0.0, 0.0, 1.0))
    }


@dataclass(frozen=True)
class Family:
    """The base's folder, the folders of its fine-tunes' adapters by name, and the texts.

    `search` has the search's texts, `learned` the texts of bridge and healing, `held` files of
    held-out texts by source.
    """

    base: Path
    adapters: Mapping[str, Path]
    search: Path
    learned: Path
    held: Mapping[str, Path]

    def model_lines(self) -> list[str]:
        """Return the first lines of a plan of the family."""
        lines = ["tailor 1", f"model base = {json.dumps(str(self.base.resolve()))}"]
        for name, adapter in self.adapters.items():
            lines.append(f"model {name} = base + {json.dumps(str(adapter.resolve()))}")
        return lines


def parser_of(description: str | None, folder: str) -> argparse.ArgumentParser:
    """Return a parser of the options for the texts, the model and the healing."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / folder, metavar="DIR", help="texts and results")
    add_model(parser)
    family = parser.add_mutually_exclusive_group(required=True)
    family.add_argument("--data", type=Path, metavar="DIR",
        help="folder of public texts, for the demo's family")  # fmt: skip
    family.add_argument("--family", type=Path, metavar="DIR",
        help="adapters and texts of benchmarks/second_family.py")  # fmt: skip
    add("--tokens", type=int, default=12_288, help="tokens of each healing (12288)")
    return parser


def family_of(options: argparse.Namespace) -> Family:
    """Make the folder, the model and the texts if they are missing; return the family."""
    options.folder.mkdir(parents=True, exist_ok=True)
    model_folder(options.model)
    folder = options.family or ROOT / "examples" / "family"
    configs = sorted(folder.glob("*/adapter_config.json"))
    adapters = {config.parent.name: config.parent for config in configs}
    if options.family is None:
        files = write_files(options.folder / "texts", options.model, options.data, AMOUNTS)
        return Family(options.model, adapters, files.search, files.learned, files.held)
    texts = (options.family / "texts").resolve()
    held = {name: texts / f"held-{name}.jsonl" for name in adapters}
    return Family(options.model, adapters, texts / "search.jsonl", texts / "learned.jsonl", held)


def plan_text(
    family: Family,
    weights: Sequence[float],
    cut: Sequence[int],
    stage: str,
    tokens: int,
) -> str:
    """Return the plan of a merge and a cut at a stage of its repair."""
    cut = () if stage == "uncut" else cut
    lines = family.model_lines()
    shares = ", ".join(f"{weight:g}" for weight in weights)
    lines.append(f"whole from {', '.join(family.adapters)} by task_arithmetic(weight=({shares}))")
    lines += ["drop " + ", ".join(f"L{position}" for position in cut)] if cut else []
    text = json.dumps(str(family.learned))
    lines += [f"bridge on {text} tokens 4096"] if stage != "bare" and cut else []
    lines += [f"heal on {text} tokens {tokens}"] if stage == "healed" and cut else []
    return "\n".join(lines) + "\n"


def losses(text: str, family: Family) -> dict[str, float]:
    """Return a plan's nats a token on the search's texts, and the mean over held-out domains."""
    files = family.search, *family.held.values()
    objectives = [f"nll({json.dumps(str(file))})" for file in files]
    outcomes = [r.outcome for r in gptailor.evaluate(gptailor.loads(text), objectives).results]
    values = [o.value if isinstance(o, Score) else float("nan") for o in outcomes]
    return {"search": values[0], "held": mean(values[1:])}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation of two lists of numbers."""
    one, other = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef(one, other)[0, 1])


def table(known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Return the losses of each plan at each stage, and the correlations with the last stage."""
    yield f"| plan | {' | '.join(known)} |"
    yield "|---|" + "--:|" * len(known)
    order = sorted(known["healed"], key=lambda name: known["healed"][name]["held"])
    for name in order:
        yield f"| {name} | " + " | ".join(f"{known[s][name]['held']:.3f}" for s in known) + " |"
    healed = [known["healed"][name]["held"] for name in order]
    for stage in list(known)[:-1]:
        by = spearman([known[stage][name]["search"] for name in order], healed)
        yield f"\nRank correlation of {stage} (search's texts) with healed (held out): {by:.2f}"


def main() -> None:
    """Score all cuts at all stages, and print the table."""
    parser = parser_of(__doc__, ".cuts")
    add = parser.add_argument
    add("--recipes", action="store_true", help="compare merges of one cut, not cuts of one merge")
    add("--seed", type=int, default=7, help="the seed of the random cuts")
    options = parser.parse_args()
    family = family_of(options)
    compared: Compared = {
        name: ((UNIFORM,) * len(family.adapters), cut) for name, cut in cuts(options.seed).items()
    }
    stages = ["bare", "bridged", "healed"]
    if options.recipes:
        compared = {name: (weights, WINDOW) for name, weights in recipes().items()}
        stages = ["uncut", "bridged", "healed"]
    of = "recipes" if options.recipes else "scores"
    if options.recipes and len(family.adapters) != 3:
        parser.error(f"--recipes needs three fine-tunes, and {options.family} has another number")
    names = "-".join(family.adapters)
    store = options.folder / f"{of}-{names}-{options.tokens}-{options.seed}.json"
    known = json.loads(store.read_text()) if store.exists() else {stage: {} for stage in stages}
    for name, (weights, cut) in compared.items():
        for stage in stages:
            if name not in known[stage]:
                text = plan_text(family, weights, cut, stage, options.tokens)
                known[stage][name] = losses(text, family)
                store.write_text(json.dumps(known, indent=1))
                print(f"{stage} {name}: {known[stage][name]['held']:.3f}", flush=True)
    print("", *table(known), sep="\n")


if __name__ == "__main__":
    main()
