"""Tables of `benchmarks/compile.py`: ratios next to their targets, and the machine."""

import os
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.compile_cases import MB, Case
from benchmarks.measured import Run, own_peak

START = 0.5
"""Target: most seconds until the first byte is written."""
FLAT = 1.1
"""Target: highest ratio of the largest model's memory to the smallest's."""

Runs = Mapping[str, Sequence[Run]]
"""A case's runs by tool."""


def row(case: Case, runs: Runs) -> str:
    """Return a line of the table of ratios."""
    seconds = {who: statistics.median(r.seconds for r in of) for who, of in runs.items()}
    peak = {who: statistics.median(r.peak for r in of) for who, of in runs.items()}
    ours, targets = seconds["gptailor"], case.targets
    ratio, limit = ours / seconds["cp"], targets.copies
    cells = [
        case.name,
        f"{ratio:.2f}" + ("" if limit is None else mark(ratio <= limit, f"≤ {limit:g}")),
        f"{ours / seconds['cp, sync']:.2f}",
        f"{peak['gptailor'] / MB:.0f} MB"
        + mark(peak["gptailor"] <= targets.peak, f"≤ {targets.peak // MB}"),
    ]
    cells.insert(3, f"{seconds['script'] / ours:.1f} ×" if "script" in runs else "")
    if "mergekit" in runs:
        faster = seconds["mergekit"] / ours
        cells.insert(4, f"{faster:.1f} ×" + mark(faster >= targets.faster, f"≥ {targets.faster:g}"))
        cells.append(f"{peak['mergekit'] / MB:.0f} MB")
    return line(cells)


def head(*, peer: bool) -> str:
    """Return the head of the table of ratios."""
    cells = ["plan", "time / `cp`", "time / `cp` and `sync`", "faster than a script", "peak memory"]
    if peer:
        cells.insert(4, "faster than mergekit")
        cells.append("mergekit's peak")
    return line(cells) + "\n" + line(["---"] * len(cells))


def spread_head() -> str:
    """Return the head of the table of seconds."""
    cells = ["plan", "command", "median seconds", "fastest … slowest", "of all cores"]
    return line(cells) + "\n" + line(["---"] * len(cells))


def spread(name: str, who: str, runs: Sequence[Run]) -> str:
    """Return a line of the table of seconds; core seconds show disturbance by other processes."""
    seconds = [run.seconds for run in runs]
    times = f"{min(seconds):.2f} … {max(seconds):.2f}"
    cores = statistics.median(run.cpu for run in runs)
    return line([name, who, f"{statistics.median(seconds):.2f}", times, f"{cores:.2f}"])


def start_rows(found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Return the table of starts."""
    yield line(["command", "median", "fastest … slowest"])
    yield line(["---"] * 3)
    for name, seconds in found.items():
        median = statistics.median(seconds)
        said = mark(median <= START, f"≤ {START}") if name.startswith("gptailor") else ""
        times = f"{min(seconds):.3f} … {max(seconds):.3f} s"
        yield line([f"`{name}`", f"{median:.3f} s{said}", times])


def peak_rows(found: Mapping[float, Mapping[str, int]]) -> Iterator[str]:
    """Return the table of memory by size."""
    yield line(["plan", *(f"{size:g} GB" for size in found), "largest / smallest model"])
    yield line(["---"] * (len(found) + 2))
    for name in next(iter(found.values())):
        peak = [of[name] for of in found.values()]
        ratio = peak[-1] / peak[0]
        figures = [f"{bytes_ / MB:.0f} MB" for bytes_ in peak]
        yield line([name, *figures, f"{ratio:.2f}" + mark(ratio <= FLAT, f"≤ {FLAT:g}")])


def mark(met: bool, target: str) -> str:
    """Return a target, marked as met or not met."""
    return f" ({target} {'✓' if met else '✗ not met'})"


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def machine(folder: Path) -> str:
    """Return cores, processor, memory, and the disk of a folder."""
    cpu = next(
        (text.partition(": ")[2] for text in Path("/proc/cpuinfo").read_text().splitlines()
         if text.startswith("model name")), "unknown processor",
    )  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    asked = ["df", "--output=fstype,source", str(folder)]
    disk = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[-2:]
    copier = subprocess.run(["cp", "--version"], capture_output=True, text=True, check=True)
    about = f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GB of memory, {disk[0]} on {disk[1]}"
    ours = f"the measuring process takes {own_peak() / MB:.0f} MB itself, below which no peak shows"
    return f"{about}; {copier.stdout.splitlines()[0]}; {ours}"
