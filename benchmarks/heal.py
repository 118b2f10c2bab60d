"""What bridges and healing win back of the loss that a cut costs, variant by variant.

    python benchmarks/heal.py                                   # SmolLM2, three windows of seven
    python benchmarks/heal.py --drop L12..L18 --seeds 3 \\
        --variant 'bridge on TEXT; heal on TEXT tokens 200000'

A variant is the statements that stand beside the drop in a plan; TEXT is the calibration file. Each
seed draws another order of it. All are compiled by gptailor's command line and judged by
`gptailor eval` on held-out text that nothing has seen; the share is that of the cut's loss won
back, (bare - found) / (bare - uncut). Aims, as a mean of domains: 70 % with 50,000 tokens, 78 %
with 200,000. Seconds and peak memory are those of whole processes, so compare them with their
neighbours in the same table. docs/healing.md has the figures that the defaults were chosen by.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.bridge import Bench, layers, line, measured, share, with_texts
from benchmarks.bridge_texts import EXAMPLES

CUTS = ("L12..L18", "L5..L11", "L20..L26")
TOKENS = 50_000
VARIANTS = (
    "",
    "bridge on TEXT",
    f"heal on TEXT tokens {TOKENS}",
    f"bridge on TEXT; heal on TEXT tokens {TOKENS}",
    f"bridge on TEXT; heal on TEXT tokens {TOKENS} rank 16",
    f"bridge on TEXT; heal on TEXT tokens {TOKENS} rank full",
)
"""The first one is the bare cut."""


def statements(variant: str, calibration: Path, seed: int) -> list[str]:
    """The lines of a plan that a variant stands for."""
    text = variant.replace("TEXT", json.dumps(str(calibration)))
    if "heal " in text and " seed " not in text:
        text = f"{text} seed {seed}"
    return [one.strip() for one in text.split(";") if one.strip()]


def rows(bench: Bench, cut: str, uncut: Mapping[str, float]) -> Iterator[str]:
    """A line of the table for each variant and seed, as it comes."""
    bare: Mapping[str, float] | None = None
    out = bench.folder / "out"
    given = bench.given
    for variant in ("", *(one for one in given.variant or VARIANTS if one)):
        for seed in range(given.seeds if "heal" in variant else 1):
            lines = [f"drop {cut}", *statements(variant, bench.calibration, seed)]
            took = bench.compiled(given.model, lines, out)
            losses = bench.losses(out)
            shutil.rmtree(out)
            bare = bare or losses
            shares = [share(losses[name], bare[name], uncut[name]) for name in uncut]
            cells = [
                f"{losses[name]:.3f} ({100 * won:.0f} %)"
                for name, won in zip(uncut, shares, strict=True)
            ]
            name = variant.replace(" on TEXT", "") or "bare"
            said = f"{name}, seed {seed}" if given.seeds > 1 and "heal" in variant else name
            times = f"{took.seconds:.0f} s", f"{took.peak / 1e6:.0f} MB"
            yield line(cut, said, *cells, f"{100 * mean(shares):.1f} %", *times)


def compare(bench: Bench) -> None:
    """Print the table, a line as soon as it is known."""
    heads = ("cut", "variant", *bench.held_out, "won back", "time", "peak memory")
    print(line(*heads), line(*["---"] * len(heads)), sep="\n", flush=True)
    uncut = bench.losses(bench.given.model)
    print(line("", "uncut", *(f"{loss:.3f}" for loss in uncut.values()), "", "", ""), flush=True)
    for cut in bench.given.drop or CUTS:
        for row in rows(bench, cut, uncut):
            print(row, flush=True)


def cut(text: str) -> str:
    """`L20..L26` or `L3,L12..L14`, if it is one."""
    layers(text)
    return ", ".join(part.strip() for part in text.split(","))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=EXAMPLES.parent / ".demo" / "smollm2", metavar="DIR",
        help="the base; SmolLM2 is made where it isn't there (.demo/smollm2)")  # fmt: skip
    add("--drop", type=cut, action="append", metavar="LAYERS",
        help=f"a cut, again for more ({', '.join(CUTS)})")  # fmt: skip
    add("--variant", action="append", metavar="STATEMENTS",
        help="apart by ';', with TEXT for the calibration file; again for more")  # fmt: skip
    add("--seeds", type=int, default=1, metavar="N", help="of each variant that heals (1)")
    return with_texts(parser, arguments)


if __name__ == "__main__":
    measured(parsed(sys.argv[1:]), compare)
