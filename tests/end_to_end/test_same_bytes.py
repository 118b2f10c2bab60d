"""The same plan and inputs make the same files, byte for byte, whatever the process is like."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from gptailor.plan.registry import METHODS

METHOD = {
    "linear": "math, code by linear(0.3, 0.6)",
    "slerp": "math, code by slerp(0.3)",
    "task_arithmetic": "math, code by task_arithmetic(0.7)",
    "ties": "math, code by ties(0.5, 0.9)",
    "dare": "math, code by dare(0.5, 1.0, 7)",
    "dare_ties": "math, code by dare_ties(weight=(1.0, 0.4), rescale=l1)",
    "breadcrumbs": "math, code by breadcrumbs(0.8, 0.05)",
    "breadcrumbs_ties": "math, code by breadcrumbs_ties(density=(0.8, 0.5), gamma=0.05)",
    "della_linear": "math, code by della_linear(epsilon=0.2, rescale=l1)",
    "della": "math, code by della(density=(0.6, 0.5))",
    "sce": "math, code by sce(density=0.6)",
    "ram": "math, code by ram(epsilon=0.01)",
    "ram_plus": "math, code by ram_plus(epsilon=0.01)",
    "model_stock": "math, code by model_stock(by=row)",
    "karcher": "math, code, base by karcher()",
    "nuslerp": "math, code by nuslerp(weight=(0.3, 0.6), of=task_vectors, by=column)",
    "multislerp": "math, code, base by multislerp(weight=(0.3, 0.6, 0.2))",
    "nearswap": "math, code by nearswap(t=0.01)",
    "arcee_fusion": "math, code by arcee_fusion()",
}
_SLOTS = [f"L{layer}.{part}" for layer in (0, 1, 2, 3, 5) for part in ("attn", "mlp")]
PLANS = [
    (f"{dtype}{first}", dtype, list(METHOD.values())[first : first + len(_SLOTS)])
    for dtype in ("float32", "bfloat16")
    for first in range(0, len(METHOD), len(_SLOTS))
]
"""Name, dtype and methods of each plan."""

CHILD = """
import json, sys
import gptailor
import torch
torch.set_num_threads(int(sys.argv[1]))
for plan, output, options in json.loads(sys.argv[2]):
    gptailor.compile(gptailor.load(plan), output, compute=gptailor.ComputeOptions(**options))
"""


def plan_text(dtype: str, methods: list[str]) -> str:
    """Methods, copies, a scale, and casts where the dtype isn't the models'."""
    lines = ['tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./code"']
    lines += [f"{at} from {by}" for at, by in zip(_SLOTS, methods, strict=False)]
    lines += ["L4 from code", "scale L1 by 0.9", "embed from math, code by slerp(0.5)"]
    return "\n".join([*lines, f"dtype {dtype}", ""])


@pytest.fixture(scope="module")
def models(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models in a folder of their own, with a plan for each dtype."""
    folder = tmp_path_factory.mktemp("same")
    for name in ("base", "math", "code"):
        shutil.copytree(family / name, folder / name)
    write_plans(folder)
    return folder


def write_plans(folder: Path) -> None:
    for name, dtype, methods in PLANS:
        (folder / f"{name}.tailor").write_text(plan_text(dtype, methods))


def made(folder: Path, cores: int, seed: str, **options: object) -> dict[str, str]:
    """The digests of all files that a fresh process makes, of all plans."""
    output = folder / "out"
    plans = [
        (str(folder / f"{name}.tailor"), str(output / name), {"shard_size": 20_000, **options})
        for name, _, _ in PLANS
    ]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(cores)}
    subprocess.run(
        [sys.executable, "-c", CHILD, str(cores), json.dumps(plans)],
        check=True,
        env=environment,
    )
    results = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }
    for path in sorted(output.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return results


@cache
def made_of_whole_files(models: Path) -> dict[str, str]:
    """On one core, by one thread; what else is made is compared with it."""
    return made(models, 1, "1", threads=1)


def test_every_method_is_compared() -> None:
    assert METHOD.keys() == METHODS.keys()


@pytest.mark.slow
def test_processes_and_threads_change_no_byte(models: Path) -> None:
    first = made_of_whole_files(models)
    assert len(first) > 12
    assert made(models, 2, "2", threads=2) == first
    assert made(models, 1, "random", threads=3) == first
    assert made(models, 2, "3") == first


@pytest.mark.slow
def test_shards_of_the_sources_change_no_byte(models: Path, tmp_path: Path) -> None:
    """Nor does the order of the tensors in them."""
    for name in ("base", "math", "code"):
        reshard(models / name, tmp_path / name)
    write_plans(tmp_path)
    assert made(tmp_path, 2, "0") == made_of_whole_files(models)


def reshard(source: Path, folder: Path) -> None:
    """The same checkpoint in three files, every third tensor in each, the last first."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors, reverse=True)
    places = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.slow
def test_the_number_of_threads_is_an_option(models: Path) -> None:
    plan = str(models / f"{PLANS[0][0]}.tailor")
    digests = []
    for threads in ("1", "2"):
        output = models / "new"
        subprocess.run(
            [sys.executable, "-c", "from gptailor.cli.main import main; main()", "compile", plan,
             "-o", str(output), "--force", "--threads", threads],
            check=True,
            capture_output=True,
        )  # fmt: skip
        digests.append(hashlib.sha256((output / "model.safetensors").read_bytes()).digest())
    assert digests[0] == digests[1]
