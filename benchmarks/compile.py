"""Measure time and memory of compiling, compared with `cp` of the output and mergekit.

    python benchmarks/compile.py --mergekit /path/to/a/venv/bin/python

The command makes random bfloat16 models in the shape of TinyLlama (22 layers, 2.2 GB; 15 layers for
ties). In turns it compiles plans with gptailor, with a plain script of safetensors and torch, and
with mergekit, and copies gptailor's output with `cp` as the limit. It prints medians as ratios next
to their targets. gptailor syncs its output, and the others don't, so a second ratio compares with
`cp` followed by `sync FILE`. Peak memory is resident memory, including mapped files. With `--folder
/dev/shm` no disk takes part. Linux only.
"""

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.compile_cases import Case, cases
from benchmarks.compile_runs import (
    Bench,
    make_models,
    measure,
    peaks,
    profile,
    starts,
    with_best_options,
)
from benchmarks.compile_tables import (
    head,
    machine,
    peak_rows,
    row,
    spread,
    spread_head,
    start_rows,
)
from benchmarks.measured import Failed
from benchmarks.mergekit_peer import add_peer_option
from benchmarks.tinyllama import layers_for


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_peer_option(parser, required=False)
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="runs of each command (3)")
    add("--peer-rounds", type=int, help="rounds with mergekit (all)")
    add("--peer-options", type=shlex.split, help="options of mergekit (the fastest)")
    add("--case", action="append", metavar="WORD", help="only cases with this word in their names")
    add("--sizes", type=float, nargs="*", default=[1, 2, 4, 8], metavar="GB",
        help="models for memory against size (1 2 4 8)")  # fmt: skip
    add("--scale", type=float, default=1.0, help="scale of the models' widths (1)")
    add("--folder", type=Path, help="folder for files (the system's temporary folder)")
    add("--cold", action="store_true",
        help="remove input files from the page cache before each run")  # fmt: skip
    add("--profile", action="store_true", help="also print where gptailor's time goes")
    add("--gptailor", default=str(Path(sys.executable).parent / "gptailor"), metavar="COMMAND",
        help="gptailor (the one beside this Python)")  # fmt: skip
    given = parser.parse_args(arguments)
    least = min(given.rounds, given.peer_rounds or given.rounds, *given.sizes, 1)
    if least < 1 or given.peer_rounds == 0 or given.scale <= 0:
        parser.error("rounds and sizes are 1 or more, and --scale is above 0")
    if given.folder is not None and not given.folder.is_dir():
        parser.error(f"--folder: {given.folder} is no folder")
    return given


def compare(bench: Bench, chosen: Sequence[Case], *, profiled: bool) -> None:
    """Print the table of ratios, each line as soon as it is known; then seconds and profiles."""
    seconds: list[str] = []
    profiles: list[str] = []
    for layers, some in groupby(chosen, lambda case: layers_for(case.size)):
        group = list(some)
        names = dict.fromkeys(name for case in group for name in case.models)
        models = make_models(bench, tuple(names), layers)
        if not seconds:
            bench = with_best_options(bench, group[:2], layers, models)
            print(head(peer=bench.mergekit is not None), flush=True)
        for case in group:
            runs = measure(bench, case, layers, models)
            print(row(case, runs), flush=True)
            seconds += [spread(case.name, who, of) for who, of in runs.items()]
            profiles += [profile(bench, case, layers, models)] if profiled else []
        shutil.rmtree(models)
    print("\n".join(["", spread_head(), *seconds, *profiles]), flush=True)


def measure_all(bench: Bench, given: argparse.Namespace) -> None:
    """Print all tables."""
    chosen = [case for case in cases() if any(word in case.name for word in given.case or [""])]
    if not chosen:
        raise Failed(f"no case is called {' or '.join(given.case)}")
    print(f"{machine(bench.folder)}\n{bench.rounds} rounds, page cache {bench.cache}\n", flush=True)
    compare(bench, chosen, profiled=given.profile)
    moved = cases()[0]
    if moved.name in {case.name for case in chosen}:
        print("\n".join(["", *start_rows(starts(bench, moved))]), flush=True)
    if given.sizes and any(case.grows for case in chosen):
        found = {size: peaks(bench, size, chosen) for size in sorted(given.sizes)}
        print("\n".join(["", *peak_rows(found)]), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Measure in a temporary folder."""
    given = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="gptailor-bench-", dir=given.folder) as folder:
        bench = Bench(
            Path(folder),
            given.gptailor,
            given.mergekit,
            given.scale,
            given.rounds,
            given.rounds if given.peer_rounds is None else given.peer_rounds,
            given.cold,
            given.peer_options,
        )
        try:
            measure_all(bench, given)
        except Failed as failure:
            sys.exit(str(failure))


if __name__ == "__main__":
    main(sys.argv[1:])
