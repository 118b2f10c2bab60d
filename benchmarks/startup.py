"""Measure the start of gptailor's quick commands, compared with an empty Python and mergekit.

All commands run in turns, so other load on the machine slows all of them. Medians are compared.

    python benchmarks/startup.py --runs 15 --mergekit /path/to/venv/bin/python
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

Command = Sequence[str]

GPTAILOR = (sys.executable, "-c", "from gptailor.cli.main import main; main()")
PLAN = """\
tailor 1

model base = "org/base"
model math = "org/math"
model code = "org/code"

L0..L9 from math
L10.mlp from code
merge(L11 math, L11 code, 0.5)
L12..L20 from base, math by ties(density=0.6)
L21 = L22 code

drop L30..L34

scale L25 by 0.9
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="runs of each command (15)")
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python with mergekit")
    given = parser.parse_args()
    if given.runs < 1:
        parser.error("--runs: at least one run is needed")
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.tailor"
        plan.write_text(PLAN, encoding="utf-8")
        timed((*GPTAILOR, "fmt", str(plan)))
        print_table(measured(commands(str(plan), given.mergekit), given.runs))


def commands(plan: str, mergekit: str | None) -> dict[str, Command]:
    """Return the commands by the name of their row; the first one is the reference."""
    found: dict[str, Command] = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "gptailor --help": (*GPTAILOR, "--help"),
        "gptailor check --alone": (*GPTAILOR, "check", "--alone", plan),
        "gptailor fmt --check": (*GPTAILOR, "fmt", "--check", plan),
    }
    if mergekit is not None:
        script = "from mergekit.scripts.run_yaml import main; main()"
        found["mergekit-yaml --help"] = (mergekit, "-c", script, "--help")
    return found


def measured(rows: Mapping[str, Command], runs: int) -> dict[str, list[float]]:
    """Return the seconds of each run, after one run that fills the caches."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(runs + 1):
        for name, command in rows.items():
            seconds = timed(command)
            if turn:
                times[name].append(seconds)
    return times


def timed(command: Command) -> float:
    """Return the seconds of a command, and exit if it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    start = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def print_table(times: Mapping[str, Sequence[float]]) -> None:
    """Print the median, the spread and the ratio to the first row."""
    medians = {name: statistics.median(found) for name, found in times.items()}
    first = next(iter(medians.values()))
    print("| command | median | fastest … slowest | × python |")
    print("|---|---:|---:|---:|")
    for name, found in times.items():
        median = f"{1000 * medians[name]:.0f} ms"
        spread = f"{1000 * min(found):.0f} … {1000 * max(found):.0f} ms"
        print(f"| `{name}` | {median} | {spread} | {medians[name] / first:.1f} |")


if __name__ == "__main__":
    main()
