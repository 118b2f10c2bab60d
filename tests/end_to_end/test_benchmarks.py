"""The compile benchmark: its plans, its models, and its measurements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import gptailor
from benchmarks.compile_cases import Case, Targets, cases
from benchmarks.compile_tables import row
from benchmarks.measured import Failed, Run, cool, first_write, run, touch, warm
from benchmarks.tinyllama import Shape, layers_for
from tests.support.preloaded import Preloaded
from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[2]


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", script, *map(str, arguments)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "math", "code", "chat")):
        tiny_model("llama", folder / name, seed=seed, layers=8)
    return folder


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_both_tools_receive_the_same_plan(case: Case, models: Path, tmp_path: Path) -> None:
    ours = gptailor.loads(case.plan(8, models).replace("tailor 1\n", "tailor 1\ndtype bfloat16\n"))
    document = json.dumps(case.document(8, models))
    mergekit = pytest.importorskip("gptailor.plugins.mergekit.importer")
    theirs, _ = mergekit.from_mergekit(document, "plan.yml", root=models, folder=models)
    paths = {name: models / model.source for name, model in theirs.models.items()}
    gptailor.compile(ours, tmp_path / "ours")
    gptailor.compile(theirs, tmp_path / "theirs", models=paths)
    one, other = (load_file(tmp_path / who / "model.safetensors") for who in ("ours", "theirs"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_models_have_the_bytes_that_are_reported() -> None:
    assert Shape(22).size == pytest.approx(2.2e9, rel=0.01)
    assert Shape(15).size / 2 == pytest.approx(0.8e9, rel=0.02)
    assert layers_for(Shape(22).size) == 22
    assert layers_for(8e9) == pytest.approx(88, abs=1)


@pytest.mark.slow
def test_a_written_model_has_the_tensors_of_its_shape(preloaded: Preloaded, tmp_path: Path) -> None:
    wanted = ["--models", "base", "math", "--scale", "0.03", "--layers", "2"]
    code, _, errors = preloaded.run(ROOT / "benchmarks/random_models.py", tmp_path, *wanted)
    assert code == 0, errors
    with (
        safe_open(tmp_path / "base/model.safetensors", "pt") as base,
        safe_open(tmp_path / "math/model.safetensors", "pt") as math,
    ):
        for name, shape in Shape(2, 0.03).tensors.items():
            one, other = base.get_tensor(name), math.get_tensor(name)
            assert tuple(one.shape) == shape
            assert 0 < float((one - other).float().std()) < 0.005 < float(one.float().std())


def test_the_peak_is_the_processs_own(tmp_path: Path) -> None:
    child = "held = b'x' * 200_000_000; print(open('/proc/self/status').read())"
    script = (
        "import sys; from pathlib import Path; from benchmarks.measured import run;"
        "print(run([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2])).peak)"
    )
    log = tmp_path / "log"
    done = subprocess.run(python(script, child, log), capture_output=True, check=True, cwd=ROOT)
    output = next(line for line in log.read_text().splitlines() if line.startswith("VmHWM"))
    assert int(done.stdout) == pytest.approx(int(output.split()[1]) * 1024, rel=0.02)
    assert int(done.stdout) > 200_000_000


def test_preallocation_is_not_the_first_write(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path; side = Path(sys.argv[1]);"
        "side.mkdir(parents=True); os.write(1, b'hello');"
        "f = os.open(side / 'model.safetensors', os.O_CREAT | os.O_WRONLY);"
        "os.posix_fallocate(f, 0, 10_000_000); time.sleep(0.5);"
        "os.pwrite(f, b'x', 0); time.sleep(60)"
    )
    side = tmp_path / ".out.partial-1-a/new"
    seconds = first_write(python(script, side), tmp_path / "out", tmp_path / "log")
    assert 0.5 <= seconds < 5


def test_a_command_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="ended with 3"):
        run(python("import sys; print('no'); sys.exit(3)"), tmp_path / "log")
    with pytest.raises(Failed, match="before a first write"):
        first_write(python("pass"), tmp_path / "out", tmp_path / "log")
    with pytest.raises(Failed, match="can't be run"):
        run([str(tmp_path / "absent")], tmp_path / "log")


def test_files_may_be_read_once_or_forgotten(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    warm([tmp_path])
    cool([tmp_path])
    assert (tmp_path / "a").stat().st_size == 3_000_000


def test_memory_is_touched_and_freed(tmp_path: Path) -> None:
    touch(10_000_000, tmp_path / "log")
    touch(-1, tmp_path / "log")


def test_a_target_is_marked() -> None:
    case = cases()[0]
    assert case.targets == Targets(copies=1.2, faster=2, peak=300_000_000)
    ours, copy = Run(1.1, 1, 400_000_000), Run(1, 1, 1)
    line = row(case, {"gptailor": [ours], "cp": [copy], "cp, sync": [Run(2, 1, 1)]})
    assert "1.10 (≤ 1.2 ✓)" in line
    assert "400 MB (≤ 300 ✗ not met)" in line
    slow = row(case, {"gptailor": [Run(1.3, 1, 1)], "cp": [copy], "cp, sync": [copy],
                      "mergekit": [Run(2, 1, 1)]})  # fmt: skip
    assert "1.30 (≤ 1.2 ✗ not met)" in slow
    assert "1.5 × (≥ 2 ✗ not met)" in slow


@pytest.mark.slow
@pytest.mark.thorough
def test_the_command_prints_its_table_and_leaves_nothing(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks/compile.py")
    command = [sys.executable, script, "--scale", "0.03", "--rounds", "1", "--sizes"]
    command += ["--case", "linear", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| linear of two | " in done.stdout
    assert not list(tmp_path.iterdir())
