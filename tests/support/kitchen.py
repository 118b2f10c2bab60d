"""Models, adapters and texts for the recipes of pages, in one folder."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.support.tiny_adapter import adapter
from tests.support.tiny_bytes import model

LAYERS = 16


def lay_out(folder: Path) -> Path:
    """Make four models, two adapters of the base, and texts, all of chance."""
    (folder / "models").mkdir()
    for seed, name in enumerate(("base", "math", "code", "chat")):
        model(folder / "models" / name, layers=LAYERS, seed=seed)
    (folder / "adapters").mkdir()
    place = "base_model.model.model.layers.{}.mlp.down_proj.lora_{}.weight"
    for seed, name in enumerate(("tuned", "terse")):
        draw = torch.Generator().manual_seed(seed)
        tensors = {
            place.format(layer, side): 0.1 * torch.randn(shape, generator=draw)
            for layer in range(LAYERS)
            for side, shape in (("A", (4, 96)), ("B", (64, 4)))
        }
        adapter(folder / "adapters" / name, tensors, target_modules=["down_proj"])
    (folder / "data").mkdir()
    for name in ("calibration", "data/held_out", "data/maths", "data/code"):
        rows = [{"text": f"{name}: {n} cats and {n * n} dogs " * (2 + n % 3)} for n in range(40)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quiz = [{"query": f"{n} cats", "choices": [" ran", " sat"], "gold": n % 2} for n in range(40)]
    (folder / "data" / "quiz.jsonl").write_text("\n".join(map(json.dumps, quiz)))
    return folder


def files_and_commands(page: str) -> Iterator[tuple[str, str, list[str]]]:
    """The blocks of a page in order: a file's name and text, or what stands behind `$ `."""
    block = r"^```(\w+) ?([^\n]*)\n((?s:.*?))^```"
    for language, name, text in re.findall(block, page, re.MULTILINE):
        if language == "console":
            yield "", "", re.findall(r"^\$ (.*)$", text, re.MULTILINE)
        elif name:
            yield name, text, []
