"""Compare each merge method with mergekit's method of that name, on tiny Llama checkpoints.

    python benchmarks/methods.py --mergekit /path/to/a/venv/bin/python

The command writes a base and three variants (2 layers, hidden size 16) in float32 and in bfloat16.
mergekit merges them in its own environment, and `combine_tensors` merges the same tensors. The
table has for each case the largest difference, the share of unequal entries, the cause, and the
largest value as the scale.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.mergekit_peer import add_peer_option, merge, tensors_of
from gptailor.plan.registry import METHODS
from gptailor.program.program import Arguments
from tests.support.merging import merge_tensors

Tensors = dict[str, Tensor]
Value = float | tuple[float, ...]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IN_BFLOAT16 = "mergekit subtracts, sums and rounds in bfloat16, gptailor in float32"
BY_INDEX = f"{IN_BFLOAT16}; of equal magnitudes mergekit cuts some, by index"
LINEAR = "mergekit is linear from cosθ 0.9995 on, gptailor from sinθ 1e-4"
VARIANTS = {"one": 0.01, "two": 0.01, "three": 0.01, "close": 0.0004}
"""The variants' distances from the base; the base's entries have a deviation of 0.02."""


@dataclass(frozen=True)
class Case:
    """One merge, as both tools express it."""

    method: str
    ours: Mapping[str, Value]
    theirs: Mapping[str, object]
    sources: tuple[str, ...]
    why: Mapping[str, str]
    title: str = ""
    base: str = "base"
    per_model: Mapping[str, Sequence[float]] | None = None
    peer: str = ""


def cases() -> list[Case]:
    """Return the methods of both tools, with options that make their formulas equal."""
    return [
        Case(
            "linear",
            {"weight": (0.3, 0.7)},
            {"normalize": False},
            ("one", "two"),
            {"float32": "mergekit fuses multiply and add", "bfloat16": "the same, rounded"},
            per_model={"weight": (0.3, 0.7)},
        ),
        Case(
            "slerp",
            {"t": 0.3},
            {"t": 0.3},
            ("one", "two"),
            {
                "float32": f"{LINEAR}: the norms' tensors",
                "bfloat16": "the same, rounded",
            },
            base="one",
        ),
        Case(
            "slerp",
            {"t": 0.3},
            {"t": 0.3},
            ("base", "close"),
            {
                "float32": LINEAR,
                "bfloat16": "the same, rounded",
            },
            title="slerp, close",
            base="base",
        ),
        Case(
            "task_arithmetic",
            {"weight": (0.6, 0.4)},
            {"normalize": False},
            ("one", "two"),
            {"float32": "the same", "bfloat16": IN_BFLOAT16},
            per_model={"weight": (0.6, 0.4)},
        ),
        Case(
            "ties",
            {"density": 0.5, "scale": 0.7},
            {"normalize": True, "int8_mask": False, "lambda": 0.7},
            ("one", "two", "three"),
            {"float32": "the same", "bfloat16": BY_INDEX},
            per_model={"weight": (1.0, 1.0, 1.0), "density": (0.5, 0.5, 0.5)},
        ),
        Case(
            "ties",
            {"density": 0.3, "scale": 1.0},
            {"normalize": True, "int8_mask": False},
            ("one", "two", "three"),
            {
                "float32": "mergekit keeps int(density·n) entries, gptailor round(density·n)",
                "bfloat16": BY_INDEX,
            },
            title="ties, density 0.3",
            per_model={"weight": (1.0, 1.0, 1.0), "density": (0.3, 0.3, 0.3)},
        ),
        Case(
            "breadcrumbs",
            {"density": 0.75, "gamma": 0.0625, "scale": 0.7},
            {"normalize": False, "lambda": 0.7},
            ("one", "two"),
            {"float32": "mergekit scales the sum, gptailor each task vector", "bfloat16": BY_INDEX},
            per_model={"weight": (1.0, 1.0), "density": (0.75, 0.75), "gamma": (0.0625, 0.0625)},
        ),
        Case(
            "dare",
            {"density": 0.5, "scale": 1.0, "seed": 0.0},
            {"normalize": False},
            ("one", "two"),
            dict.fromkeys(
                DTYPES,
                "other draws (mergekit's unseeded); it rescales to the L1 norm, not by 1/density",
            ),
            per_model={"weight": (1.0, 1.0), "density": (0.5, 0.5)},
            peer="dare_linear",
        ),
        Case(
            "model_stock",
            {},
            {"filter_wise": False},
            ("one", "two", "three"),
            {
                "float32": "mergekit steps away from the sources where the mean cosine is < 0",
                "bfloat16": f"as in float32; {IN_BFLOAT16}",
            },
        ),
        Case(
            "karcher",
            {},
            {"max_iter": 100, "tol": 1e-9},
            ("one", "two", "three"),
            {
                "float32": "mergekit iterates tensors in float32, gptailor coefficients in float64",
                "bfloat16": "mergekit rounds unit vectors and each iterate to bfloat16",
            },
        ),
    ]


def write_checkpoints(folder: Path, dtype: torch.dtype) -> dict[str, Tensors]:
    """Write a base and its variants as checkpoints; return the tensors by model and name."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, distance in {"base": 0.0, **VARIANTS}.items():
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(base[key] + distance * torch.randn_like(parameter))
        model.to(dtype).save_pretrained(folder / name)
        model.float()
    return {name: load_file(folder / name / "model.safetensors") for name in ("base", *VARIANTS)}


def configuration(case: Case, folder: Path, dtype: str) -> dict[str, object]:
    """Return mergekit's configuration of the merge (JSON is valid YAML)."""
    models: list[dict[str, object]] = []
    for i, name in enumerate(case.sources):
        parameters = {key: values[i] for key, values in (case.per_model or {}).items()}
        models.append({"model": str(folder / name), "parameters": parameters})
    document: dict[str, object] = {
        "merge_method": case.peer or case.method,
        "models": models,
        "parameters": dict(case.theirs),
        "dtype": dtype,
    }
    if METHODS[case.method].needs_base or case.method == "slerp":
        document["base_model"] = str(folder / case.base)
    return document


def merge_by_mergekit(python: Path, case: Case, folder: Path, dtype: str) -> Tensors:
    """Return the tensors merged by mergekit's command line."""
    plan, out = folder / "plan.yml", folder / f"out-{case.title or case.method}"
    plan.write_text(json.dumps(configuration(case, folder, dtype)))
    merge(python, plan, out, folder)
    return tensors_of(out)


def complete(case: Case) -> Arguments:
    """Return a case's arguments with the registry's defaults, one number for each source."""
    found: list[tuple[str, Any]] = []
    for parameter in METHODS[case.method].parameters:
        value = case.ours.get(parameter.name, parameter.default)
        each = (parameter.variadic or parameter.each) and isinstance(value, int | float)
        found.append((parameter.name, (value,) * len(case.sources) if each else value))
    return tuple(found)


def merge_by_gptailor(case: Case, models: Mapping[str, Tensors]) -> Tensors:
    """Return the tensors merged by gptailor's kernels."""
    arguments = complete(case)
    needs_base = METHODS[case.method].needs_base
    return {
        name: merge_tensors(
            case.method,
            arguments,
            theta if needs_base else None,
            [models[source][name] for source in case.sources],
            case.sources,
            name,
        )
        for name, theta in models["base"].items()
    }


def row(case: Case, dtype: str, ours: Tensors, theirs: Tensors) -> str:
    """Return one line of the table."""
    if set(ours) != set(theirs):
        raise SystemExit(f"{case.method}: other tensors: {sorted(set(ours) ^ set(theirs))}")
    differences = torch.cat([(ours[n].double() - theirs[n].double()).flatten() for n in ours])
    largest = max(float(tensor.abs().max()) for tensor in ours.values())
    share = float((differences != 0).double().mean())
    return (
        f"| {case.title or case.method} | {dtype} | {float(differences.abs().max()):.1e} "
        f"| {largest:.2f} | {share:.1%} | {case.why[dtype]} |"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_peer_option(parser, required=True)
    python: Path = parser.parse_args(arguments).mergekit
    print("| method | dtype | max abs difference | max abs value | unlike | why |")
    print("|---|---|---|---|---|---|")
    for name, dtype in DTYPES.items():
        with tempfile.TemporaryDirectory() as folder:
            models = write_checkpoints(Path(folder), dtype)
            for case in cases():
                theirs = merge_by_mergekit(python, case, Path(folder), name)
                print(row(case, name, merge_by_gptailor(case, models), theirs), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
