"""Compare gptailor with other ways to cut a share of the layers of a family of models.

    python benchmarks/retention.py --data DATA --page benchmarks/notes/retention.md
    python benchmarks/retention.py --data DATA --page benchmarks/notes/retention.md --only-page

The family is SmolLM2-135M and the demo's three fine-tunes of it. A cell is a share of the layers, a
method and a seed. The method chooses a plan by the search's texts only, and heals on other texts of
the same four sources. The judges are the same as in `benchmarks/heal.py`: held-out texts of these
sources, texts of four other sources, and generated answers (sums, code, continuations). Questions
with choices judge too. The folder keeps the cells: an interrupted run continues, and a later call
adds shares, methods and seeds. Deterministic methods have one seed.

The order is: the dense models, the first share with all methods, the other shares, other seeds.

On one core, with 3 texts, 32 evaluations, 16,384 tokens, 5 held-out texts and 20 questions, a
search takes 2 to 3 minutes, with bridges about 13, a LoRA 2, a healing 2, and the judgement of a
plan 1. The defaults, as in the paper, take days. `--smoke` takes 15 seconds, on tiny random models.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import torch  # noqa: E402 (the folder above is found first)
from transformers.utils import logging  # noqa: E402

from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.retention_lab import Asked, Found, Journal, Lab, NotMade  # noqa: E402
from benchmarks.retention_methods import METHODS, UNCUT, Method, made  # noqa: E402
from benchmarks.retention_page import cells_of, page, put  # noqa: E402
from benchmarks.retention_texts import Amounts  # noqa: E402
from gptailor.plan.faults import TailorError  # noqa: E402
from gptailor.plan.registry import STRATEGIES  # noqa: E402

FAMILY = {"math": "arithmetic", "code": "python", "chat": "conversation"}
"""Names of the demo's fine-tunes in plans."""
SHARES = (25, 10, 37, 20)
SMOKE = {
    "evaluations": 4, "strategy": "random", "texts": 2, "held": 2, "questions": 3, "tokens": 1024,
    "bridge_tokens": 512, "problems": 2, "continuations": 2, "shares": [34], "seeds": 1,
    "dtype": "float32", "threads": 1,
}  # fmt: skip
Key = tuple[int, str, int]

# ----------------------------------------------------------------------------------------- cells


def keys(given: argparse.Namespace) -> Iterator[Key]:
    """Yield the keys of the cells in their order: share, method, seed."""
    yield from ((0, name, 0) for name in UNCUT)
    for seed in range(given.seeds):
        for share in given.shares:
            for name in given.methods:
                if seed == 0 or METHODS[name].seeded:
                    yield share, name, seed


def measure(lab: Lab, cells: Journal, given: argparse.Namespace) -> int:
    """Make and judge missing cells, and print a line for each; return the number of failures."""
    failed = 0
    for share, name, seed in keys(given):
        key = f"{share} {name} {seed}"
        if key in cells.known:
            continue
        method, begun = (UNCUT | METHODS)[name], time.perf_counter()
        count = lab.layers * share // 100
        try:
            cell = judged(lab, method, made(lab, name, count, seed))
        except (NotMade, TailorError) as failure:
            if not share:
                sys.exit(str(failure))  # a failure of the dense models affects all cells
            failed += 1
            print(f"{share:>3} % {method.words}, seed {seed}: {failure}", flush=True)
            continue
        about = {"share": share, "count": count, "method": name, "seed": seed}
        cells.add(key, {**about, **cell})
        took = time.perf_counter() - begun
        print(f"{share:>3} % {method.words}, seed {seed}: {took:.0f} s", flush=True)
        if given.page:
            show(cells, given)
    return failed


def judged(lab: Lab, method: Method, found: Found) -> dict[str, Any]:
    """Return the contents of a plan's cell without its key."""
    said = lab.judged(found)
    lab.forget(found)
    return {
        "words": method.words,
        "seen": lab.seen(found),
        **{name: said[name] for name in ("held", "choices", "answers")},
        "evaluations": found.evaluations,
        "seconds": found.seconds + said["made"],
        "note": found.note,
    }


def show(cells: Journal, given: argparse.Namespace) -> None:
    """Print the tables, or write them into the page."""
    words = {name: method.words for name, method in (UNCUT | METHODS).items()}
    known = cells_of(cells.known.values(), words)
    if given.page:
        put(known, given.page, given.command)
    else:
        print("", page(known), sep="\n")


# ------------------------------------------------------------------------------------ the questions


def asked(given: argparse.Namespace, base: Path, variants: Mapping[str, Path]) -> Asked:
    """Return the settings that the figures depend on."""
    amounts = Amounts(
        given.texts, given.held, given.questions, given.problems, given.continuations, given.tokens
    )
    return Asked(
        str(base.resolve()),
        {name: str(path.resolve()) for name, path in variants.items()},
        str(given.data.resolve()),
        amounts,
        given.evaluations,
        given.strategy,
        given.bridge_tokens,
        given.device,
        given.dtype,
    )


def agree(folder: Path, wanted: Asked) -> None:
    """Write the settings into a new folder. Exit if an existing folder has other settings."""
    file, said = folder / "asked.json", json.loads(json.dumps(asdict(wanted)))
    if file.exists():
        known = json.loads(file.read_text("utf-8"))
        if differ := sorted(name for name in said if known.get(name) != said[name]):
            sys.exit(f"{folder} has cells of other settings ({', '.join(differ)}); name another")
    file.write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def family(given: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """Return the base and its variants, and make missing ones."""
    if given.smoke:
        from tests.support.tiny import tiny_model

        folder = given.folder / "family"
        for seed, name in enumerate(("base", *FAMILY)):
            if not (folder / name).exists():
                tiny_model(
                    "llama", folder / name, seed=seed, layers=6, max_position_embeddings=4096
                )
        return folder / "base", {name: folder / name for name in FAMILY}
    model_folder(given.model)
    return given.model, {name: ROOT / "examples" / "family" / of for name, of in FAMILY.items()}


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".retention", metavar="DIR",
        help="cells, plans, scores (.retention)")  # fmt: skip
    add_model(parser)
    add("--data", type=Path, required=True, metavar="DIR",
        help="public data: text/, math/, code/, chat/, choice/")  # fmt: skip
    add("--shares", nargs="+", type=int, default=list(SHARES), metavar="PERCENT",
        help="shares of the layers to cut, in order (25 10 37 20)")  # fmt: skip
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
        help=f"methods: {', '.join(METHODS)} (all)")  # fmt: skip
    add("--seeds", type=int, default=3, metavar="N", help="seeds of random methods (3)")
    add("--evaluations", type=int, default=200, metavar="N",
        help="evaluations of each search on all its texts (200)")  # fmt: skip
    add("--strategy", choices=list(STRATEGIES), default=next(iter(STRATEGIES)),
        help="strategy of gptailor's searches (%(default)s)")  # fmt: skip
    add("--texts", type=int, default=6, metavar="N", help="texts of a domain for a search (6)")
    add("--held", type=int, default=48, metavar="N", help="held-out texts of a source (48)")
    add("--questions", type=int, default=400, metavar="N", help="questions of each task (400)")
    add("--tokens", type=int, default=200_000, metavar="N",
        help="tokens for healing and for a LoRA (200000)")  # fmt: skip
    add("--bridge-tokens", type=int, default=32_768, metavar="N",
        help="calibration tokens of bridges and ReplaceMe (32768)")  # fmt: skip
    add("--problems", type=int, default=40, metavar="N",
        help="generated answers of each kind (40)")  # fmt: skip
    add("--continuations", type=int, default=20, metavar="N",
        help="continuations that are searched for loops (20)")  # fmt: skip
    add("--device", default="cpu")
    add("--dtype", choices=["float32", "bfloat16"], default=None,
        help="dtype of forward passes (bfloat16 if the device has it)")  # fmt: skip
    add("--threads", type=int, metavar="N", help="CPU threads (torch's own choice)")
    add("--page", type=Path, metavar="FILE",
        help="a page with markers for the tables; the plot is written beside it")  # fmt: skip
    add("--only-page", action="store_true", help="show finished cells; measure nothing")
    add("--smoke", action="store_true", help="run everything once, on tiny models")
    if "--smoke" in arguments:
        parser.set_defaults(**SMOKE)
    given = parser.parse_args(arguments)
    wrong = [share for share in given.shares if not 0 < share < 100]
    if wrong or min(given.seeds, given.texts, given.held, given.questions) < 1:
        parser.error("expected shares above 0 and below 100, and other numbers of at least 1")
    given.dtype = given.dtype or _native(given.device)
    given.command = _told(arguments)
    return given


def _told(arguments: Sequence[str]) -> str:
    """Return the command for a page, without paths of this machine."""
    said, left = [], iter(arguments)
    for one in left:
        if one in ("--folder", "--model"):
            next(left)
        elif one == "--data":
            next(left)
            said += [one, "DATA"]
        elif one != "--only-page":
            said.append(one)
    return shlex.join(["python", "benchmarks/retention.py", *said])


def _native(device: str) -> str:
    wide = device == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return "float32" if wide else "bfloat16"


def main(arguments: Sequence[str]) -> int:
    """Measure, and show the finished cells, also after an interruption."""
    given = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder = given.folder.resolve()
    cells = Journal(given.folder / "cells.jsonl")
    failed = 0
    try:
        if not given.only_page:
            wanted = asked(given, *family(given))
            agree(given.folder, wanted)
            failed = measure(Lab(given.folder, wanted), cells, given)
    finally:
        show(cells, given)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
