"""Which of gptailor's own files run: in a plain compile, in one of two models, in one trial.

A file counts if one of its functions is called; that it is imported does not make it count. So the
number is that of the files which somebody opens to follow what happens. Models are tiny ones,
written to a folder that goes again.

    python benchmarks/trace.py            # all counts, and the files
    python benchmarks/trace.py compile    # one of them
"""

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator
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
            files = FLOWS[flow](Path(folder))
            print(f"{flow}: {len(files)} files")
            print("".join(f"  {file}\n" for file in files))


def models(folder: Path) -> None:
    """Two tiny models, and a text for trials, in a folder."""
    from tests.tiny import tiny_model  # imports transformers

    for seed, name in enumerate(("base", "math")):
        if not (folder / name).exists():
            tiny_model("llama", folder / name, seed=seed)
    (folder / "text.txt").write_text("the quick brown fox jumps over it. " * 400, "utf-8")


def traced_compile(folder: Path, plan: str = PLAN) -> list[str]:
    """The files that run when a plan is read and compiled, none of whose layers is computed."""
    from gptailor.build.compile import compile
    from gptailor.lang.parse import load

    (folder / "plan.tailor").write_text(plan, encoding="utf-8")
    with tracing() as files:
        compile(load(folder / "plan.tailor"), folder / "out", force=True)
    return sorted(files)


def traced_trial(folder: Path) -> list[str]:
    """The files that run in trials of a search: from when they are asked for to their scores."""
    from gptailor.lang.parse import loads
    from gptailor.search.search import Asked, Scored, SearchEvent, search
    from gptailor.search.settings import Flags

    trials: list[set[str]] = []
    with tracing() as files:

        def on_event(event: SearchEvent) -> None:
            if isinstance(event, Asked):
                files.clear()
            if isinstance(event, Scored):
                trials.append(set(files))

        flags = Flags(trials=12, strategy="random", fidelity=(8, 8))
        search(loads(SPACE, folder=folder), folder / "run", flags, on_event=on_event)
    return sorted(trials[-1])


FLOWS = {
    "compile": traced_compile,
    "mix": partial(traced_compile, plan=MIXED),
    "trial": traced_trial,
}


@contextmanager
def tracing() -> Iterator[set[str]]:
    """A context in which files of the package are taken down, in all threads, as they run."""
    files: set[str] = set()

    def called(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            name = file.removeprefix(PACKAGE)
            if name not in files and not _imports(frame):
                files.add(name)

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame belongs to the import of a module of the package."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "<module>" and code.co_filename.startswith(PACKAGE):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
