"""Measure a compile into a folder of an earlier plan against a compile into a new folder.

    python benchmarks/update.py

The command makes two random bfloat16 models in the shape of TinyLlama. A plan merges all layers.
Then one layer's number changes. In turns the changed plan is compiled into the old folder, which
is an update, and into a new one. The inputs and the old output are removed from the page cache
before each run, so that the kernel counts all bytes that come from the disk. It prints medians of
seconds and of bytes read and written, and their ratios. Use a folder on a disk. Linux only.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.compile_runs import Bench, make_models, tell
from benchmarks.measured import Failed, cool, run, weights_size

LAYERS = 22
CHANGED = 3
SHARE, OTHER_SHARE = 0.5, 0.4


class Cost(NamedTuple):
    """Seconds of a run, and the bytes that it read from the disk and wrote."""

    seconds: float
    read: int
    written: int


def plan_text(models: Path, share: float) -> str:
    """Return the plan in which the changed layer has this share; all other layers have `SHARE`."""
    others = [f"L0..L{CHANGED - 1}", f"L{CHANGED + 1}..L{LAYERS - 1}"]
    lines = ["tailor 1", *(f'model {name} = "{models / name}"' for name in ("base", "math"))]
    lines += [f"{where} from math by task_arithmetic({SHARE})" for where in others]
    lines += [f"L{CHANGED} from math by task_arithmetic({share})"]
    return "\n".join(lines) + "\n"


def disk_bytes() -> tuple[int, int]:
    """Return the bytes that this process and its ended children read from a disk and wrote."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    counts = {name: int(number) for name, _, number in (line.partition(":") for line in lines)}
    return counts["read_bytes"], counts["write_bytes"]


def measured(bench: Bench, plan: Path, out: Path, inputs: Sequence[Path]) -> Cost:
    """Compile a plan into a folder, new or of the plan before."""
    cool([*inputs, *([out] if out.exists() else [])])
    before = disk_bytes()
    done = run(bench.ours(plan, out), bench.log)
    after = disk_bytes()
    return Cost(done.seconds, after[0] - before[0], after[1] - before[1])


def compare(bench: Bench) -> None:
    """Print the table."""
    models = make_models(bench, ("base", "math"), LAYERS)
    inputs, plan = [models / "base", models / "math"], bench.folder / "plan.tailor"
    updated, anew = bench.folder / "updated", bench.folder / "anew"
    costs: dict[str, list[Cost]] = {"into a new folder": [], "update": []}
    for turn in range(bench.rounds):
        tell(f"round {turn + 1}")
        plan.write_text(plan_text(models, SHARE), encoding="utf-8")
        run(bench.ours(plan, updated), bench.log)
        plan.write_text(plan_text(models, OTHER_SHARE), encoding="utf-8")
        costs["update"].append(measured(bench, plan, updated, inputs))
        costs["into a new folder"].append(measured(bench, plan, anew, inputs))
        for file in anew.glob("*.safetensors"):
            if file.read_bytes() != (updated / file.name).read_bytes():
                raise Failed(f"{file.name} differs after an update")
        size = weights_size(anew)
        shutil.rmtree(updated)
        shutil.rmtree(anew)
    print(f"{LAYERS} layers, {size / 1e9:.2f} GB of output, one layer changed\n")
    print("| compile | seconds | read | written |\n|---|--:|--:|--:|")
    for name, found in costs.items():
        seconds, read, written = (median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {seconds:.1f} | {read / 1e9:.2f} GB | {written / 1e9:.2f} GB |")


def main(arguments: Sequence[str]) -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3, help="runs of each command (3)")
    add("--scale", type=float, default=1.0, help="scale of the models' widths (1)")
    add("--folder", type=Path, help="folder for files (the system's temporary folder)")
    add("--gptailor", default=str(Path(sys.executable).parent / "gptailor"), metavar="COMMAND",
        help="gptailor (the one beside this Python)")  # fmt: skip
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gptailor-bench-", dir=given.folder) as folder:
        rounds = given.rounds
        bench = Bench(
            Path(folder), given.gptailor, None, given.scale, rounds, rounds, True, None
        )  # fmt: skip
        try:
            compare(bench)
        except Failed as failure:
            sys.exit(str(failure))


if __name__ == "__main__":
    main(sys.argv[1:])
