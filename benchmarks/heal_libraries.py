"""Should healing use PEFT, TRL, accelerate, datasets and transformers' schedule?

    pip install peft trl accelerate datasets
    python benchmarks/heal_libraries.py --model .demo/smollm2 --rounds 5

Each part of healing does the same work twice, once with gptailor's code and once with a library:

- changes: low-rank changes of all projections (PEFT's `LoraConfig`, the same factors at first)
- loss: the divergence from a teacher, with its gradient (TRL's `generalized_jsd_loss`, which takes
  all logits of the teacher; healing keeps the likeliest tokens, so the values differ a little)
- sums: the sum of gradients over two processes (accelerate's `reduce`)
- texts: rows of JSON lines in a drawn order (`datasets.load_dataset`, empty cache)
- rates: the rates of 96 steps (transformers' `get_cosine_schedule_with_warmup`)

A process does one part with one code. The processes take turns. The table has the medians of the
CPU time and of the memory above that before the work, each as a ratio library / gptailor, and how
the values differ.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.models import add_model, model_folder  # noqa: E402 (the folder above is found first)

RANK, LAYERS, STEPS = 64, (12, 13, 14), 8
"""The rank of the changes, the changed layers, and the steps that are timed after a first one."""
ROWS, WIDTH, VOCABULARY, KEPT = 512, 576, 49_152, 64
"""Predictions of a step, the sizes of the head, and the teacher's tokens that healing keeps."""
TEXTS, ROW_LENGTH = 20_000, 600
"""Rows of the file of text, and the characters of each."""
SUMS, SUMMED = 40, 4_000_000
"""Sums of gradients, and the numbers of each."""
CODES: Final = ("gptailor", "library")
PARTS: Final = {
    "changes": "PEFT",
    "loss": "TRL",
    "sums": "accelerate",
    "texts": "datasets",
    "rates": "transformers",
}

Measured = dict[str, Any]
"""`seconds`, `bytes`, and the `values` to compare."""


def peak() -> int:
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(work: Callable[[], Any], times: int = 1) -> Measured:
    """Do the work some times; return the median of its seconds, and its last values."""
    before, seconds, values = peak(), [], None
    for _ in range(times):
        begun = time.process_time()
        values = work()
        seconds.append(time.process_time() - begun)
    return {"seconds": median(seconds), "bytes": peak() - before, "values": values}


# -------------------------------------------------------------------------------------- the parts


def changes(library: bool, model: Path) -> Measured:
    """Train low-rank changes; the values are the losses of the steps and a merged tensor's errors.

    An error is a number that isn't the bfloat16 number nearest to W + BA.
    """
    import torch
    from transformers import AutoModelForCausalLM

    live = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    live.requires_grad_(False)
    tokens = torch.randint(0, VOCABULARY, (2, 512), generator=torch.Generator().manual_seed(1))
    train = _peft if library else _own_changes
    parameters, merged = train(live)
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses: list[float] = []

    def step() -> list[float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = live.model(tokens).last_hidden_state
        loss = hidden.float().pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss))
        return losses

    step()
    found = measured(step, STEPS)
    found["values"] = {"losses": losses, "not nearest": merged()}
    return found


def _own_changes(live: Any) -> tuple[list[Any], Callable[[], float]]:
    """Add the changes of healing to a model; return their parameters, and the share of errors."""
    import torch

    from gptailor.evaluation.fits.fit import in_dtype
    from gptailor.evaluation.fits.heal.learning import HealError, LowRankChanges

    layers = {number: live.model.layers[number] for number in LAYERS}
    names = {
        number: {f"{name}.weight": f"{name}.weight" for name in _projections(layer)}
        for number, layer in layers.items()
    }
    learning = LowRankChanges(layers, names, RANK, 0, torch.device("cpu"))

    def not_nearest() -> float:
        name = next(iter(names[LAYERS[0]]))
        weight = layers[LAYERS[0]].get_parameter(name)
        wide = learning.folded(LAYERS[0], name, weight)
        return _wrong(in_dtype(wide, "BF16", HealError("C809", "no such value")), wide)

    return list(learning.parameters.values()), not_nearest


def _peft(live: Any) -> tuple[list[Any], Callable[[], float]]:
    """Add PEFT's changes to a model, with the factors that healing would draw."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    targets = _projections(live.model.layers[0])
    config = LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        target_modules=[f"layers.{n}.{name}" for n in LAYERS for name in targets],
    )
    inject_adapter_in_model(config, live)
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in LAYERS:
        for name in targets:
            module = live.model.layers[number].get_submodule(name)
            first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
            drawn = torch.randn(first.shape, generator=generator) / math.sqrt(first.shape[1])
            first.data = drawn
            second.data = second.data.float()
            found += [first, second]

    def not_nearest() -> float:
        module = live.model.layers[LAYERS[0]].get_submodule(targets[0])
        first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
        wide = module.base_layer.weight.float() + second.detach() @ first.detach()
        module.merge()
        return _wrong(module.base_layer.weight, wide)

    return found, not_nearest


def _projections(layer: Any) -> list[str]:
    import torch

    return [name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]


def _wrong(rounded: Any, wide: Any) -> float:
    return float((rounded != wide.to(rounded.dtype)).float().mean())


def loss(library: bool, _model: Path) -> Measured:
    """Compute the divergence of a step's predictions, and its gradient by the hidden states."""
    import torch

    generator = torch.Generator().manual_seed(2)
    head = 6 * torch.randn(VOCABULARY, WIDTH, generator=generator) / math.sqrt(WIDTH)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    near = hidden + 0.1 * torch.randn(ROWS, WIDTH, generator=generator)
    if library:
        return measured(_trl_loss(head, hidden, near), 3)
    from gptailor.evaluation.fits.heal.train import LOGIT_BYTES, head_loss

    step = LOGIT_BYTES // (4 * VOCABULARY)
    kept = [_likeliest(part @ head.T) for part in near.split(step)]
    tokens, logs = (torch.cat(parts) for parts in zip(*kept, strict=True))

    def own() -> list[float]:
        total, slope = head_loss(lambda rows: rows @ head.T, hidden, tokens, logs, step)
        return [float(total) / ROWS, float(slope.norm())]

    return measured(own, 3)


def _likeliest(logits: Any) -> tuple[Any, Any]:
    """Return the likeliest tokens, and their log-probabilities; all other tokens' comes last."""
    import torch

    logs, tokens = torch.log_softmax(logits, dim=1).topk(KEPT)
    rest = torch.log1p(-logs.exp().sum(dim=1, keepdim=True).clamp(max=1 - 1e-7))
    return tokens, torch.cat([logs, rest], dim=1)


def _trl_loss(head: Any, hidden: Any, near: Any) -> Callable[[], list[float]]:
    from trl.experimental.gkd import GKDTrainer

    teacher = near @ head.T

    def step() -> list[float]:
        rows = hidden.detach().requires_grad_(True)
        total = GKDTrainer.generalized_jsd_loss(rows @ head.T, teacher, beta=0.0, reduction="sum")
        total.backward()
        return [float(total) / ROWS, float(rows.grad.norm())]

    return step


def sums(library: bool, _model: Path) -> Measured:
    """Add up gradients of two processes; the values are a sum of the first process."""
    with tempfile.NamedTemporaryFile() as result:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
                   "--no-python", sys.executable, __file__, "--part", "sums-inside",
                   "--code", CODES[library], "--result", result.name]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        return dict(json.loads(Path(result.name).read_text("utf-8")))


def sums_inside(library: bool, _model: Path) -> Measured | None:
    """Add up in one of the two processes; the first one returns its measurements."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    generator = torch.Generator().manual_seed(rank)
    gradient = torch.randn(SUMMED, generator=generator)
    if library:
        from accelerate import PartialState
        from accelerate.utils import reduce

        PartialState(cpu=True)

        def add_up(tensor: Any) -> Any:
            return reduce(tensor, reduction="sum")

    else:
        from gptailor.evaluation.fits.heal.process_group import ProcessGroup

        dist.init_process_group("gloo")
        group = ProcessGroup(rank, 2)

        def add_up(tensor: Any) -> Any:
            group.add_up([tensor])
            return tensor

    def work() -> float:
        return float(add_up(gradient.clone()).double().sum())

    found = measured(work, SUMS)
    dist.barrier()
    dist.destroy_process_group()
    return None if rank else found


def texts(library: bool, _model: Path) -> Measured:
    """Read all rows of a file in a drawn order; the values are the rows' lengths together."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        letters = random.Random(3)
        with file.open("w", encoding="utf-8") as out:
            for _ in range(TEXTS):
                text = "".join(letters.choices("abcdefghij ", k=ROW_LENGTH))
                out.write(json.dumps({"text": text}) + "\n")
        if library:
            import datasets

            datasets.disable_progress_bars()

            def read() -> int:
                rows = datasets.load_dataset(
                    "json", data_files=str(file), split="train", cache_dir=f"{folder}/cache"
                )
                return sum(len(row["text"]) for row in rows.shuffle(seed=0))

        else:
            from gptailor.checkpoint.datasets import Passage, StoredTexts, order

            def read() -> int:
                rows = StoredTexts(file)
                return sum(
                    len(row.text)
                    for row in rows.read(order(len(rows), 0))
                    if isinstance(row, Passage)
                )

        return measured(read)


def rates(library: bool, _model: Path) -> Measured:
    """Return the rates of 96 steps as shares of the highest."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from gptailor.evaluation.fits.heal.train import _share

    if not library:
        return measured(lambda: [_share(step, 96) for step in range(96)])
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, 9, 96)

    def steps() -> list[float]:
        found = []
        for _ in range(96):
            found.append(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
        return found

    return measured(steps)


# ----------------------------------------------------------------------------------------- tables

WORK: Final[dict[str, Callable[[bool, Path], Measured | None]]] = {
    "changes": changes,
    "loss": loss,
    "sums": sums,
    "texts": texts,
    "rates": rates,
    "sums-inside": sums_inside,
}


def one(part: str, code: str, model: Path) -> Measured:
    """Measure a part with one code in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--part", part, "--code", code,
               "--model", str(model)]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{part} with {code}: {ended.stderr.strip()}")
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def same(own: Any, other: Any) -> str:
    """Return how two parts' values differ."""
    if own == other:
        return "equal"
    if isinstance(own, dict):
        return "; ".join(f"{name}: {same(own[name], other[name])}" for name in own)
    pairs = list(zip(own, other, strict=True)) if isinstance(own, list) else [(own, other)]
    largest = max(abs(a - b) for a, b in pairs)
    return f"by at most {largest:.2g} ({pairs[0][0]:.6g}, library {pairs[0][1]:.6g})"


def table(model: Path, rounds: int) -> None:
    """Print the table."""
    print("| part | library | time | memory | values |\n|---|---|--:|--:|---|")
    for part, library in PARTS.items():
        found: dict[str, list[Measured]] = {code: [] for code in CODES}
        for _ in range(rounds):
            for code in CODES:
                found[code].append(one(part, code, model))
        ratios = []
        for field in ("seconds", "bytes"):
            own, other = (median(run[field] for run in found[code]) for code in CODES)
            unit = f"{own:.3g} s" if field == "seconds" else f"{own / 2**20:.0f} MiB"
            ratios.append(f"{other / own:.2f} ({unit})" if own else "-")
        values = same(*(found[code][0]["values"] for code in CODES))
        print(f"| {part} | {library} | {ratios[0]} | {ratios[1]} | {values} |", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Print the table, or measure one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_model(parser)
    add("--rounds", type=int, default=5, help="processes of each code (5)")
    add("--part", choices=WORK, help=argparse.SUPPRESS)
    add("--code", choices=CODES, help=argparse.SUPPRESS)
    add("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.part:
        table(model_folder(options.model), options.rounds)
        return 0
    found = WORK[options.part](options.code == "library", options.model)
    text = json.dumps(found)
    if options.result and found:
        options.result.write_text(text, encoding="utf-8")
    if not options.result:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
