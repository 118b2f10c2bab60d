"""The cost of healing, compared with plain passes of transformers over the same tokens.

    python benchmarks/heal_cost.py                            # SmolLM2, seven of thirty layers out
    python benchmarks/heal_cost.py --drop L5..L11 --tokens 16384 --rounds 5
    python benchmarks/heal_cost.py --model /models/7b --device cuda

A round is one teacher's forward over the tokens, one forward and backward of the cut model, both by
transformers with the loss on whole logits and gradients of all its layers' weights, and one healing
from the first token to the folded weights, held-out text and optimiser included. All are in the
same process and dtype and take turns; of the ratios healing / (forward + forward and backward) the
median counts, by the clock and by CPU seconds. The aim is 1.1. On a GPU the most memory is said.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import gptailor
from benchmarks.bridge_texts import write_texts
from benchmarks.models import add_model, model_folder
from benchmarks.search_texts import texts_of
from gptailor.evaluation.fits.repair import Repairs
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.space_trials import opened
from gptailor.plan.plan import Plan

AIM = 1.1
LENGTH, STEP = 512, 1024
"""Tokens of a sequence and of a step of the plain passes: the most that healing has."""


def sequences(model: str, file: Path, tokens: int) -> Tensor:
    """The text's first tokens, [n, 512]."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids: list[int] = []
    for text in texts_of(file):
        ids += tokenizer.encode(text)
        if len(ids) >= tokens:
            return torch.tensor(ids[: tokens // LENGTH * LENGTH]).reshape(-1, LENGTH)
    sys.exit(f"{file} has {len(ids)} tokens, not {tokens}")


@torch.no_grad()
def forward(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """The likeliest tokens' log-probabilities: a teacher that is asked once."""
    return torch.log_softmax(model(batch).logits.float(), -1).topk(128).values


def there_and_back(model: PreTrainedModel, batch: Tensor) -> None:
    """The loss and the gradients of the layers' weights."""
    model(input_ids=batch, labels=batch).loss.backward()
    model.zero_grad(set_to_none=True)


def plain(
    model: PreTrainedModel, ids: Tensor, run: Callable[[PreTrainedModel, Tensor], object]
) -> None:
    """One pass over all tokens, a step's at a time."""
    for batch in ids.split(STEP // LENGTH):
        run(model, batch.to(model.device))
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of all cores."""
    clock, cores = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cores


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Print a line a round, and the medians."""
    base, kind = str(model_folder(given.model).resolve()), getattr(torch, given.dtype)
    calibration = given.calibration or write_texts(folder)[0]
    text = json.dumps(str(calibration.resolve()))
    heads = f"tailor 1\nmodel base = {json.dumps(base)}\ndrop {given.drop}\n"
    bare, whole = (
        gptailor.loads(heads),
        gptailor.loads(f"{heads}heal on {text} tokens {given.tokens}"),
    )
    gptailor.compile(bare, folder / "cut")
    load = AutoModelForCausalLM.from_pretrained
    teacher = load(base, dtype=kind).to(given.device).eval().requires_grad_(False)
    student = load(folder / "cut", dtype=kind).to(given.device).eval().requires_grad_(False)
    student.model.layers.requires_grad_(True)
    ids = sequences(base, calibration, given.tokens)
    plan, models, _ = opened(whole)

    def heal(plan: Plan = plan) -> None:
        stitcher = Stitcher(models, device=given.device, dtype=kind)
        Repairs(stitcher, anew=True).fitted(stitcher.table.resolved(plan))

    plain(student, ids[:2], there_and_back)
    ratios = []
    print(
        "| round | teacher | there and back | healing | ratio | of CPU seconds |\n"
        + "| --: " * 6
        + "|"
    )
    for number in range(given.rounds):
        asked = timed(lambda: plain(teacher, ids, forward))
        taught = timed(lambda: plain(student, ids, there_and_back))
        healed = timed(heal)
        pair = [h / (a + t) for a, t, h in zip(asked, taught, healed, strict=True)]
        ratios.append(pair)
        print(f"| {number + 1} | {asked[0]:.1f} s | {taught[0]:.1f} s | {healed[0]:.1f} s "
              f"| {pair[0]:.2f} | {pair[1]:.2f} |", flush=True)  # fmt: skip
    clock, cores = (median(one) for one in zip(*ratios, strict=True))
    print(
        f"healing takes {clock:.2f} times the plain passes, {cores:.2f} of CPU seconds (aim {AIM})"
    )
    if given.device.startswith("cuda"):
        print(f"most memory: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_model(parser)
    add("--calibration", type=Path, metavar="FILE",
        help="JSON Lines with texts, or prompts and responses (texts of the project)")  # fmt: skip
    add("--drop", default="L12..L18", metavar="LAYERS", help="the cut (L12..L18)")
    add("--tokens", type=int, default=8192, metavar="N", help="that are learned from (8192)")
    add("--rounds", type=int, default=3, metavar="N", help="(3)")
    add("--device", default="cpu", metavar="DEVICE")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the products")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as made:
        compare(parsed(sys.argv[1:]), Path(made))
