"""Measure the growth of planning time with the number of tensors, without reading weights.

    python benchmarks/scale.py

The command writes models with sparse files as weights. In a warm process it times `check`, the dry
run of `compile` (with shards of 100 MB) and `show --program` on a plan that merges, moves, scales
and drops. A model of twice the size should take twice the time; a ratio far above 2 shows quadratic
growth. Further tables have plans with one statement for each layer, compilation of many tiny
tensors, and large public models. The last column is the process's peak memory, reset before each
row.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import gptailor
from gptailor.prepare import prepare
from gptailor.program.program import program_lines
from tests.support.hollow import (
    LLAMA_2_70B,
    LLAMA_3_70B,
    QWEN_3_30B,
    Shapes,
    llama,
    qwen3_moe,
    write_hollow,
)

SHARD = 100_000_000
NAMES = ("base", "math", "code")
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}

Made = tuple[dict[str, Any], Shapes]


@dataclass(frozen=True)
class Row:
    """The name of a plan, the number of a model's tensors, and the seconds of each command."""

    name: str
    tensors: int
    seconds: tuple[float, ...]
    peak: int


def ranges(count: int) -> str:
    """Return a plan of few statements: a merge of half the layers, moves, a scale, a drop."""
    half = count // 2
    return (
        f"L0..L{half - 1} from math, code by ties(0.5)\n"
        f"L{half}.mlp from code\nscale L1 by 0.9\ndrop L{count - 1}\n"
    )


def statements(count: int) -> str:
    """Return a plan with a statement for each layer; every second statement merges."""
    said = (f"L{i} from math" if i % 2 else f"merge(L{i} math, L{i} code, 0.{i % 9 + 1})"
            for i in range(count))  # fmt: skip
    return "\n".join(said) + "\n"


def moves(count: int) -> str:
    """Return a plan without arithmetic."""
    return f"L0..L{count // 2} from math\ndrop L{count - 1}\n"


def write(folder: Path, made: Made, body: Callable[[int], str], shards: int) -> Path:
    """Write three models and a plan of them; return the plan's path."""
    config, shapes = made
    for name in NAMES:
        write_hollow(folder / name, config, shapes, shards)
    declared = "".join(f'model {name} = "./{name}"\n' for name in NAMES)
    plan = folder / "plan.tailor"
    plan.write_text("tailor 1\n" + declared + body(config["num_hidden_layers"]))
    return plan


def planned(plan: Path) -> Iterable[Callable[[], object]]:
    """Return the commands that read only headers."""
    return (
        lambda: gptailor.check(gptailor.load(plan)),
        lambda: prepare(gptailor.load(plan), shard_size=SHARD),
        lambda: program_lines(prepare(gptailor.load(plan)).compiled.program),
    )


def compiled(plan: Path) -> Iterable[Callable[[], object]]:
    """Return compilation into one file, and into hundreds of files."""
    out = plan.with_name("out")
    return (
        lambda: gptailor.compile(gptailor.load(plan), out, force=True),
        lambda: gptailor.compile(
            gptailor.load(plan),
            out,
            force=True,
            compute=gptailor.ComputeOptions(shard_size=100_000),
        ),
    )


def measure(
    name: str,
    make: Made,
    *,
    body: Callable[[int], str] = ranges,
    verbs: Callable[[Path], Iterable[Callable[[], object]]] = planned,
    rounds: int = 3,
) -> Row:
    """Return the best time of each command in a few rounds, on one family of models."""
    folder = Path(tempfile.mkdtemp(prefix="gptailor-scale-"))
    try:
        plan = write(folder, make, body, max(2, len(make[1]) // 1000))
        _reset_peak()
        seconds = tuple(min(_timed(verb) for _ in range(rounds)) for verb in verbs(plan))
        return Row(name, len(make[1]), seconds, _peak())
    finally:
        shutil.rmtree(folder)


def _timed(verb: Callable[[], object]) -> float:
    start = time.perf_counter()
    verb()
    return time.perf_counter() - start


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Return the peak resident bytes of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def table(heads: Sequence[str], rows: Iterable[Row], *, ratios: bool = True) -> None:
    """Print rows as they finish, each time with its ratio to the last row's."""
    print(f"\n{'':<34}{'tensors':>9}" + "".join(f"{head:>20}" for head in heads) + f"{'peak':>10}")
    before: tuple[float, ...] = ()
    for row in rows:
        shown = [f"{s:9.3f} s" for s in row.seconds]
        if ratios and before:
            shown = [
                f"{text}  ×{s / b:5.2f}"
                for text, s, b in zip(shown, row.seconds, before, strict=True)
            ]
        before = row.seconds
        cells = "".join(f"{text:>20}" for text in shown)
        print(f"{row.name:<34}{row.tensors:>9,}{cells}{row.peak / 2**20:7.0f} MB", flush=True)


def doubled(least: int, times: int) -> list[int]:
    """Return a number and its doubles."""
    return [least * 2**i for i in range(times)]


def main(arguments: Sequence[str]) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best counts (3)")
    parser.add_argument("--doublings", type=int, default=5, help="doublings of the sizes (5)")
    given = parser.parse_args(arguments)
    rounds, times = given.rounds, given.doublings
    gptailor.loads('tailor 1\nmodel base = "./base"\n')  # makes the parser
    verbs = ("check", "dry run", "show --program")
    table(verbs, (
        measure(f"llama of {n} layers", llama(num_hidden_layers=n, **TINY), rounds=rounds)
        for n in doubled(110, times)
    ))  # fmt: skip
    table(verbs, (
        measure(f"qwen 3 moe of {n} layers", _moe(n), rounds=rounds)
        for n in doubled(3, times)
    ))  # fmt: skip
    table(verbs, (
        measure(f"a statement a layer, {n} layers", llama(num_hidden_layers=n, **TINY),
                body=statements, rounds=rounds)
        for n in doubled(110, times)
    ))  # fmt: skip
    table(("compile, one file", "compile, 100 kB each"), (
        measure(f"llama of {n} layers", llama(num_hidden_layers=n, **TINY),
                body=moves, verbs=compiled, rounds=rounds)
        for n in doubled(110, times)
    ))  # fmt: skip
    large = {
        "llama 2 70B": llama(**LLAMA_2_70B),
        "llama 3 70B": llama(**LLAMA_3_70B),
        "qwen 3 30B, 128 experts": qwen3_moe(**QWEN_3_30B),
    }
    table(verbs, (measure(n, made, rounds=rounds) for n, made in large.items()), ratios=False)


def _moe(layers: int) -> Made:
    return qwen3_moe(**{**QWEN_3_30B, "num_hidden_layers": layers})


if __name__ == "__main__":
    main(sys.argv[1:])
