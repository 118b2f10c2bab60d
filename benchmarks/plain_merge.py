"""Merge models as a short script of one's own would: safetensors and torch, tensor by tensor.

    python benchmarks/plain_merge.py CONFIGURATION OUTPUT

The configuration is one of `benchmarks/compile_cases.py`, in mergekit's form: passthrough, linear,
task_arithmetic or slerp. Nothing is checked, and the tokenizer isn't copied.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Read = Callable[[str, str], Tensor]
"""Returns a model's tensor of a name."""


def main(document: Path, out: Path) -> None:
    """Merge and save."""
    plan = json.loads(document.read_text(encoding="utf-8"))
    slices = plan.get("slices", [{"sources": plan.get("models", [])}])
    folders = [source["model"] for part in slices for source in part["sources"]]
    folders += [plan["base_model"]] if "base_model" in plan else []
    folders = list(dict.fromkeys(folders))
    files = {f: safe_open(Path(f) / "model.safetensors", framework="pt") for f in folders}

    def read(folder: str, name: str) -> Tensor:
        tensor: Tensor = files[folder].get_tensor(name)
        return tensor

    out.mkdir()
    first = folders[0]
    if plan["merge_method"] == "passthrough":
        made = moved(plan, read, list(files[first].keys()))
    else:
        made = {name: merged(plan, read, name) for name in files[first].keys()}  # noqa: SIM118
    save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(Path(first) / "config.json", out)


def moved(plan: dict[str, Any], read: Read, names: list[str]) -> dict[str, Tensor]:
    """Return the layers of all slices, one after another, and the tensors outside of layers."""
    home = plan["slices"][0]["sources"][0]["model"]
    made = {name: read(home, name) for name in names if ".layers." not in name}
    at = 0
    for part in plan["slices"]:
        (source,) = part["sources"]
        for layer in range(*source["layer_range"]):
            for name in (name for name in names if f".layers.{layer}." in name):
                made[name.replace(f".{layer}.", f".{at}.", 1)] = read(source["model"], name)
            at += 1
    return made


def merged(plan: dict[str, Any], read: Read, name: str) -> Tensor:
    """Return one tensor, computed in float32."""
    sources = [(read(m["model"], name).float(), m["parameters"]) for m in plan["models"]]
    match plan["merge_method"]:
        case "linear":
            made = sum(tensor * given["weight"] for tensor, given in sources)
        case "task_arithmetic":
            base = read(plan["base_model"], name).float()
            made = base + sum((tensor - base) * given["weight"] for tensor, given in sources)
        case "slerp":
            (a, _), (b, _) = sources
            t = plan["parameters"]["t"]
            cosine = (a / a.norm() * (b / b.norm())).sum().clamp(-1, 1)
            angle = torch.arccos(cosine)
            made = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
        case method:
            raise SystemExit(f"the script has no {method}")
    assert isinstance(made, Tensor)
    return made.bfloat16()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
