"""Runs of `benchmarks/compile.py`: the tools and `cp` in turns, starts, peak memory."""

import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import mergekit_peer
from benchmarks.compile_cases import Case, Document
from benchmarks.measured import (
    Failed,
    Run,
    cool,
    first_write,
    run,
    size_of,
    touch,
    warm,
    weights_size,
)
from benchmarks.tinyllama import Shape, layers_for

HERE = Path(__file__).parent
PEER_OPTIONS = ((), ("--lazy-unpickle", "--low-cpu-memory"), ("--async-write",))
"""Options of mergekit to try; the fastest are used."""
SCRIPTED = ("passthrough", "linear", "task_arithmetic", "slerp")
"""Methods of `benchmarks/plain_merge.py`."""
STARTS = 7
"""Number of runs of each command in the table of starts."""


@dataclass(frozen=True)
class Bench:
    """The commands and the folder of a measurement."""

    folder: Path
    gptailor: str
    mergekit: Path | None
    scale: float
    rounds: int
    peer_rounds: int
    cold: bool
    options: Sequence[str] | None
    """Options of mergekit; None before they are known."""

    @property
    def cache(self) -> str:
        """Return the state of the page cache in words."""
        return "cold" if self.cold else "warm"

    @property
    def log(self) -> Path:
        """Return the path of the last command's output."""
        return self.folder / "log"

    def ours(self, plan: Path, out: Path) -> list[str]:
        """Return gptailor's command."""
        return [self.gptailor, "compile", str(plan), "--output", str(out)]

    def theirs(self, plan: Path, out: Path) -> list[str]:
        """Return mergekit's command."""
        assert self.mergekit is not None
        return mergekit_peer.command(self.mergekit, plan, out, *(self.options or ()))

    def scripted(self, made: Document, document: Path, out: Path) -> list[str] | None:
        """Return the command of the plain script; None for a method that it hasn't."""
        if made["merge_method"] not in SCRIPTED:
            return None
        return [sys.executable, str(HERE / "plain_merge.py"), str(document), str(out)]

    def timed(self, command: Sequence[str], reads: Sequence[Path]) -> Run:
        """Run a command after a sync, with its input in the page cache or not.

        Before the run, memory of three times the first input's size is touched.
        """
        os.sync()
        (cool if self.cold else warm)(reads)
        touch(3 * size_of(reads[0]), self.log)
        return run(command, self.log)


def make_models(bench: Bench, names: Sequence[str], layers: int) -> Path:
    """Write the models in another process, because this one must stay small."""
    folder = bench.folder / "models"
    size = Shape(layers, bench.scale).size
    need(bench, (len(names) + 2) * size)  # and an output, and its copy
    tell(f"writing {len(names)} models of {size / 1e9:.2f} GB")
    command = [sys.executable, str(HERE / "random_models.py"), str(folder), "--models", *names]
    run([*command, "--layers", str(layers), "--scale", str(bench.scale)], bench.log)
    return folder


def write_plans(bench: Bench, case: Case, layers: int, models: Path) -> tuple[Path, Path]:
    """Write the case's plan and mergekit's configuration."""
    ours, theirs = bench.folder / "plan.tailor", bench.folder / "plan.yml"
    ours.write_text(case.plan(layers, models), encoding="utf-8")
    theirs.write_text(json.dumps(case.document(layers, models)), encoding="utf-8")
    return ours, theirs


def measure(bench: Bench, case: Case, layers: int, models: Path) -> dict[str, list[Run]]:
    """Return a case's runs by tool; the tools run in turns."""
    plan, document = write_plans(bench, case, layers, models)
    reads = [models / name for name in case.models]
    out, copy = bench.folder / "out", bench.folder / "copy"
    found: dict[str, list[Run]] = defaultdict(list)
    for turn in range(bench.rounds):
        tell(f"{case.name}, round {turn + 1}")
        found["gptailor"].append(bench.timed(bench.ours(plan, out), reads))
        size = weights_size(out)
        for name, command in copies(out, copy).items():
            found[name].append(bench.timed(command, [out]))
            shutil.rmtree(copy)
        shutil.rmtree(out)
        if (script := bench.scripted(case.document(layers, models), document, out)) is not None:
            found["script"].append(bench.timed(script, reads))
            check_alike(size, weights_size(out))
            shutil.rmtree(out)
        if bench.mergekit is not None and turn < bench.peer_rounds:
            found["mergekit"].append(bench.timed(bench.theirs(document, out), reads))
            check_alike(size, weights_size(out))
            shutil.rmtree(out)
    return found


def copies(out: Path, copy: Path) -> dict[str, list[str]]:
    """Return the commands that copy a folder."""
    names = str(out), str(copy)
    return {
        "cp": ["cp", "-r", *names],
        "cp, sync": ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', *names],
    }


def check_alike(ours: int, theirs: int) -> None:
    """Check that both outputs have equal sizes except for headers."""
    if abs(ours - theirs) > max(0.01 * ours, 100_000):
        raise Failed(f"gptailor wrote {ours:,} bytes of weights, mergekit {theirs:,}")


def with_best_options(bench: Bench, some: Sequence[Case], layers: int, models: Path) -> Bench:
    """Return the bench with the options that make mergekit fastest in a few cases."""
    if bench.mergekit is None:
        print("mergekit is skipped: --mergekit is missing\n")
        return bench
    if bench.options is None:
        tries = {
            options: sum(
                once(replace(bench, options=options), case, layers, models) for case in some
            )
            for options in PEER_OPTIONS
        }
        bench = replace(bench, options=min(tries, key=lambda options: tries[options]))
        tried = (f"{' '.join(o) or 'none'} {seconds:.1f} s" for o, seconds in tries.items())
        print(f"options of mergekit tried: {', '.join(tried)}")
    print(f"mergekit's options: {' '.join(bench.options or ()) or 'none'}\n")
    return bench


def once(bench: Bench, case: Case, layers: int, models: Path) -> float:
    """Return the seconds of mergekit for a case."""
    tell(f"{case.name}, mergekit with options {' '.join(bench.options or ()) or 'none'}")
    _, document = write_plans(bench, case, layers, models)
    out = bench.folder / "out"
    took = bench.timed(bench.theirs(document, out), [models / name for name in case.models])
    shutil.rmtree(out)
    return took.seconds


def starts(bench: Bench, case: Case) -> dict[str, list[float]]:
    """Return seconds until a plan's first byte, and until an empty Python and mergekit start."""
    layers = layers_for(case.size)
    models = make_models(bench, case.models, layers)
    plan, _ = write_plans(bench, case, layers, models)
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(STARTS):
        tell(f"starts, round {turn + 1}")
        out = bench.folder / f"start-{turn}" / "out"
        out.parent.mkdir()
        found["python -c pass"].append(run([sys.executable, "-c", "pass"], bench.log).seconds)
        seconds = first_write(bench.ours(plan, out), out, bench.log)
        found["gptailor compile, first byte"].append(seconds)
        shutil.rmtree(out.parent)
        if bench.mergekit is not None:
            command = [str(bench.mergekit.parent / "mergekit-yaml"), "--help"]
            found["mergekit-yaml --help"].append(run(command, bench.log).seconds)
    shutil.rmtree(models)
    return found


def peaks(bench: Bench, size: float, chosen: Iterable[Case]) -> dict[str, int]:
    """Return peak memory by case and size of models in GB; `code` is a link to `math`."""
    layers = layers_for(1e9 * size)
    models = make_models(bench, ("base", "math"), layers)
    shutil.copytree(models / "math", models / "code", copy_function=os.link)
    out = bench.folder / "out"
    found = {}
    for case in (case for case in chosen if case.grows):
        plan, _ = write_plans(bench, case, layers, models)
        found[case.name] = run(bench.ours(plan, out), bench.log).peak
        shutil.rmtree(out)
    shutil.rmtree(models)
    return found


def profile(bench: Bench, case: Case, layers: int, models: Path) -> str:
    """Return the profile of a case."""
    plan, _ = write_plans(bench, case, layers, models)
    out = bench.folder / "out"
    command = [sys.executable, str(HERE / "compile_profile.py"), str(plan), str(out)]
    bench.timed(command, [models / name for name in case.models])
    shutil.rmtree(out)
    return f"\n{case.name}, within gptailor: {bench.log.read_text(encoding='utf-8')}"


def need(bench: Bench, size: float) -> None:
    """End this program if the disk lacks room."""
    free = shutil.disk_usage(bench.folder).free
    if free < size * 1.05:
        raise Failed(f"{bench.folder}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free")


def tell(message: str) -> None:
    """Print progress on standard error."""
    print(f"… {message}", file=sys.stderr, flush=True)
