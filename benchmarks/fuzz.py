"""Fuzz the readers of files with atheris, guided by coverage.

    pip install atheris
    python benchmarks/fuzz.py --target header --runs 1000000 --seconds 60

The command needs atheris (3.0 here); the package and its tests don't. Each target runs in its own
process, from the valid and hostile files of `tests/hostile`. It ends after `--runs` executions or
`--seconds` seconds. The table has the executions, their rate, and the reached lines and branches.
After a crash, or an execution of more than 20 seconds or 2 GB, the exit code is 1. The command then
writes the input to a file and prints its name.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

NAMES = ("header", "source", "gguf", "pickle", "parser", "plan-json", "config")


def main() -> int:
    """Fuzz the targets one after another; return 1 if one crashed."""
    arguments = _arguments()
    if arguments.inside:
        _fuzz(arguments.target[0], Path(arguments.inside[0]), arguments.inside[1:])
    print(f"{'target':10} {'executions':>12} {'a second':>10} {'seconds':>8} {'reached':>8}")
    crashed = [name for name in arguments.target or NAMES if not _run(name, arguments)]
    return 1 if crashed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=NAMES, action="append", help="a target (all)")
    parser.add_argument("--runs", type=int, default=1_000_000, help="executions of each")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--crashes", type=Path, default=Path(), help="the folder for reproducers")
    parser.add_argument(
        "--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS
    )  # the process that fuzzes
    return parser.parse_args()


def _run(name: str, arguments: argparse.Namespace) -> bool:
    """Fuzz a target in its own process, and print its row; return whether it passed."""
    from tests.hostile.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        words = Path(folder, "words")
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        crash = arguments.crashes / f"crash-{name}"
        options = [
            f"-atheris_runs={arguments.runs}", f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed}", f"-dict={words}", "-max_len=8192", "-timeout=20",
            "-rss_limit_mb=2048", f"-exact_artifact_path={crash}", str(corpus),
        ]  # fmt: skip
        command = [sys.executable, __file__, "--target", name, "--inside", folder, *options]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    return _report(name, done, crash)


def _report(name: str, done: "subprocess.CompletedProcess[str]", crash: Path) -> bool:
    """Print the target's row, or its output and the reproducer's path."""
    said = done.stdout + done.stderr
    finished = re.search(r"Done (\d+) in (\d+) second|Done (\d+) runs in (\d+) second", said)
    if done.returncode or finished is None:
        print(f"{name}: failed; its bytes are in '{crash}'\n{said[-4000:]}", file=sys.stderr)
        return False
    runs, seconds = (int(number) for number in finished.groups() if number is not None)
    reached = re.findall(r"ft: (\d+)", said)
    rate = runs / max(1, seconds)
    print(f"{name:10} {runs:12,} {rate:10,.0f} {seconds:8} {reached[-1] if reached else '':>8}")
    return True


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Fuzz a target in this process; never return."""
    import atheris  # of this process only

    with atheris.instrument_imports(include=["gptailor", "json", "pickletools", "zipfile"]):
        from tests.hostile.targets import TARGETS

    target = TARGETS[name]
    place = folder / "work"
    place.mkdir()

    def once(raw: bytes) -> None:
        target.once(raw, place)

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
