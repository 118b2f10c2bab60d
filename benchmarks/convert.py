"""Compare mergekit's output of a configuration with the output of the imported plan.

    python benchmarks/convert.py --mergekit /path/to/a/venv/bin/python

The command writes a base and three variants (six layers of Llama, hidden size 16, untied, float32).
mergekit merges each configuration of tests/plugins/mergekit/yaml in its own environment, and
gptailor imports and compiles the same file. The table has the largest difference, its tensors and
its cause. With --families mergekit also cuts a layer out of models of other families; that table
has its exit code, its output's configuration and its weights.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

import gptailor
from gptailor.plugins.mergekit.importer import from_mergekit

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.mergekit_peer import add_peer_option, merge, run_mergekit, tensors_of
from tests.support.tiny import tiny_model

Tensors = dict[str, Tensor]

CONFIGURATIONS = Path(__file__).parent.parent / "tests" / "plugins" / "mergekit" / "yaml"
LAYERS = 6
VARIANTS = ("one", "two", "three")
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "olmo")
WHY = {
    "bfloat16": "mergekit computes in bfloat16, gptailor in float32",
    "dare": "other draws, and other rescaling",
    "forgotten": "mergekit forgets the head's second source",
}
"""Causes of differences above float32's rounding error."""


def write_family(folder: Path) -> None:
    """Write a base, and variants in similar directions from it."""
    tiny_model("llama", folder / "base", layers=LAYERS)
    base = load_file(folder / "base" / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    common = {name: _noise(tensor, generator) for name, tensor in base.items()}
    for name in VARIANTS:
        tiny_model("llama", folder / name, layers=LAYERS)
        variant = {
            n: (t + 0.3 * (common[n] + _noise(t, generator))).contiguous() for n, t in base.items()
        }
        save_file(variant, folder / name / "model.safetensors", metadata={"format": "pt"})


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator) * tensor.std()


@dataclass(frozen=True)
class Compared:
    """The difference of two models, and its tensors."""

    largest: float
    steps: float
    unlike: tuple[str, ...]


def compare(ours: Tensors, theirs: Tensors) -> Compared:
    """Return the largest difference, absolute and in steps of the dtype at the larger value."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors: {sorted(ours.keys() ^ theirs.keys())}")
    largest, steps = 0.0, 0.0
    unlike = set()
    for name, tensor in ours.items():
        ours_, theirs_ = tensor.double(), theirs[name].double()
        difference = (ours_ - theirs_).abs()
        step = torch.finfo(tensor.dtype).eps * float(ours_.abs().max())
        largest, steps = (
            max(largest, float(difference.max())),
            max(steps, float(difference.max()) / step),
        )
        if float(difference.max()) > 4 * step:
            unlike.add(re.sub(r"layers\.\d+", "layers.*", name))
    return Compared(largest, steps, tuple(sorted(unlike)))


def both(python: Path, plan: Path, folder: Path) -> tuple[Tensors, Tensors, int]:
    """Return gptailor's tensors, mergekit's, and the number of notes of the import."""
    text = plan.read_text(encoding="utf-8")
    imported, notes = from_mergekit(text, plan.name, root=folder, folder=folder)
    models = {name: folder / model.source for name, model in imported.models.items()}
    gptailor.compile(imported, folder / f"ours-{plan.stem}", models=models)
    merge(python, plan, folder / f"theirs-{plan.stem}", folder)
    ours, theirs = (tensors_of(folder / f"{who}-{plan.stem}") for who in ("ours", "theirs"))
    return ours, theirs, len(notes)


def rows(python: Path, folder: Path) -> Iterator[str]:
    """Yield one line of the table for each configuration."""
    yield "| configuration | max abs difference | in eps | unlike tensors | notes | why |"
    yield "|---|---|---|---|---|---|"
    for plan in sorted(CONFIGURATIONS.glob("*.yml")):
        ours, theirs, notes = both(python, plan, folder)
        found = compare(ours, theirs)
        why = WHY.get(plan.stem, "the same" if found.largest == 0 else "rounding of float32")
        unlike = f"{len(found.unlike)} kinds" if len(found.unlike) > 2 else ", ".join(found.unlike)
        numbers = f"{found.largest:.1e} | {found.steps:.1f}"
        yield f"| {plan.stem} | {numbers} | {unlike} | {notes} | {why} |"


def cut(python: Path, family: str, folder: Path) -> str:
    """Return a line for a family: mergekit's result of cutting a layer in the middle."""
    layers = 8
    tiny_model(family, folder / family, layers=layers)
    ranges = ([0, 3], [4, layers])
    pieces = [{"sources": [{"model": f"./{family}", "layer_range": r}]} for r in ranges]
    plan = folder / f"{family}.yml"
    plan.write_text(json.dumps({"slices": pieces, "merge_method": "passthrough"}))
    out = folder / f"out-{family}"
    done = run_mergekit(python, plan, out, folder)
    counts = _layers_of_weights(out)
    config = out / "config.json"
    said = "none"
    if config.exists():
        about = json.loads(config.read_text())
        types = about.get("layer_types")
        said = f"{about.get('num_hidden_layers')} layers"
        said += f", {len(types)} layer_types" if types else ""
    last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:]
    message = last[0][:110] if done.returncode else ""
    ours = _ours(family, folder)
    return f"| {family} | {done.returncode} | {counts} | {said} | {ours} | {message} |"


def _layers_of_weights(folder: Path) -> int:
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {int(m[1]) for n in opened.keys() if (m := re.search(r"layers\.(\d+)\.", n))}  # noqa: SIM118
    return len(found)


def _ours(family: str, folder: Path) -> str:
    text = f'tailor 1\nmodel base = "{folder / family}"\ndrop L3\n'
    written = gptailor.compile(gptailor.loads(text), folder / f"ours-{family}")
    return f"{written.layers} layers"


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_peer_option(parser, required=True)
    parser.add_argument(
        "--families", action="store_true", help="also cut models of other families by mergekit"
    )
    given = parser.parse_args(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        write_family(Path(folder))
        for line in rows(given.mergekit, Path(folder)):
            print(line, flush=True)
        if given.families:
            print("\n| family | exit code | layers of weights | its configuration | gptailor | |")
            print("|---|---|---|---|---|---|")
            for family in FAMILIES:
                print(cut(given.mergekit, family, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
