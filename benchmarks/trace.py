"""Trace gptailor: the files used, function calls, and computations of a plan's derived data.

The flows are a plain compile, a compile of two models, and one trial of a search. A file counts if
a function of it is called; its import doesn't count. Models are tiny, in a temporary folder.

    python benchmarks/trace.py            # all flows, with their files
    python benchmarks/trace.py compile    # one of them
"""

import argparse
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKAGE = f"{ROOT / 'gptailor'}/"

PLAN = """\
tailor 1
model base = "./base"
drop L3..L4
"""
MIXED = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
drop L4
"""
SPACE = """\
tailor 1
model base = "./base"
model math = "./math"
L1 from one of base, math
merge(L2 base, L2 math, 0.0..1.0)
drop any 1 of L3..L4
search {
  minimize nll("text.txt")
}
"""


def main() -> None:
    """Trace, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flow", nargs="?", choices=FLOWS, help="only this one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models(Path(folder))
        for flow in [given.flow] if given.flow else FLOWS:
            calls = FLOWS[flow](Path(folder))
            files = sorted({file for file, _ in calls})
            print(f"{flow}: {len(files)} files, {calls.total():,} calls")
            counts = {name: sum(n for (_, f), n in calls.items() if f == name) for name in DERIVED}
            print("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
            print("".join(f"  {file}\n" for file in files))


def models(folder: Path) -> None:
    """Write two tiny models, and a text for trials, into a folder."""
    from tests.support.tiny import tiny_model  # imports transformers

    for seed, name in enumerate(("base", "math")):
        if not (folder / name).exists():
            tiny_model("llama", folder / name, seed=seed)
    (folder / "text.txt").write_text("the quick brown fox jumps over it. " * 400, "utf-8")


Calls = Counter[tuple[str, str]]
"""Calls by file and function."""

DERIVED = ("written_out", "slots_of", "_all_sites", "uses")
"""Functions that derive data from a plan."""


def traced_compile(folder: Path, plan: str = PLAN) -> Calls:
    """Return the calls of reading and compiling a plan that computes no layer."""
    from gptailor.lang.parse import load
    from gptailor.output.compile import compile

    (folder / "plan.tailor").write_text(plan, encoding="utf-8")
    with tracing() as calls:
        compile(load(folder / "plan.tailor"), folder / "out", force=True)
    return calls


def traced_trial(folder: Path) -> Calls:
    """Return the calls of the last trial of a search, from its request to its score."""
    from gptailor.lang.parse import loads
    from gptailor.plan.events import Progress
    from gptailor.searching.search import Scored, SearchEvent, search
    from gptailor.searching.settings import Flags

    trials: list[Calls] = []
    with tracing() as calls:

        def on_event(event: SearchEvent) -> None:
            if isinstance(event, Progress) and event.what == "asking":
                calls.clear()
            if isinstance(event, Scored):
                trials.append(calls.copy())

        flags = Flags(trials=12, strategy="random", fidelity=(8, 8))
        search(loads(SPACE, folder=folder), folder / "run", flags, on_event=on_event)
    return trials[-1]


FLOWS: Mapping[str, Callable[[Path], Calls]] = {
    "compile": traced_compile,
    "mix": partial(traced_compile, plan=MIXED),
    "trial": traced_trial,
}


@contextmanager
def tracing() -> Iterator[Calls]:
    """Count the calls of the package's functions in all threads."""
    calls: Calls = Counter()

    def called(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE) and not _imports(frame):
            calls[file.removeprefix(PACKAGE), frame.f_code.co_name] += 1

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to the import of a module of the package."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
