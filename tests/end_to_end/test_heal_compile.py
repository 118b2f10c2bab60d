"""Healed plans compiled, locked, verified, killed; equal to the live model."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.repair import stitch
from gptailor.output.lock import read_lock
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.program.program import program_lines
from tests.support.healing import two_models
from tests.support.preloaded import Child, Preloaded
from tests.support.tiny import letters, tiny_model
from tests.support.vocabularies import write_byte_level

HEAL = 'heal on "text.txt" tokens 1024 rank 4'
CUT = f"drop L2; {HEAL}"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models(tmp_path_factory.mktemp("healed"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copied = Path(shutil.copytree(made, tmp_path / "work"))
    write(copied, CUT)
    return copied


def write(folder: Path, text: str) -> Plan:
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{text}  # win\n')
    return gptailor.load(folder / "plan.tailor")


def plan_of(folder: Path) -> Plan:
    return gptailor.load(folder / "plan.tailor")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("heal", "first"), [("rank 4", 0), ("rank full", 0), ("rank 4", 2)])
def test_exactly_the_marked_tensors_change(folder: Path, heal: str, first: int) -> None:
    layers = "" if not first else "L3 "
    plan = write(folder, f'drop L2; heal {layers}on "text.txt" tokens 1024 {heal}')
    program = prepare(plan).compiled.program
    gptailor.compile(plan, folder / "out")
    bare = stitch(write(folder, "drop L2")).state_dict()
    result = tensors(folder / "out")
    changed = {name for name, tensor in result.items() if not torch.equal(tensor, bare[name])}
    assert changed == program.fitted
    assert min(int(name.split(".")[2]) for name in changed) == first
    assert ("model.layers.2.input_layernorm.weight" in changed) == (heal == "rank full")
    lines = program_lines(program)
    marked = [line for line in lines if f", {heal}, 'text.txt')" in line and "heal(copy " in line]
    assert len(marked) == len(changed)


def test_a_bridge_is_fitted_first_and_three_losses_are_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, f'drop L2; bridge on "text.txt" tokens 800 ridge 0.01; {HEAL}')
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["compile", str(folder / "plan.tailor"), "-o", str(folder / "out")]) == 0
    output = capsys.readouterr()
    line = (
        r"healed on 1,024 tokens: ([\d.]+) nats a token from the teacher, bridged ([\d.]+), "
        r"healed ([\d.]+) \(on 128 tokens held out, so few that the numbers are rough\)"
    )
    result = re.search(line, output.out)
    assert result is not None
    bare, bridged, healed = (float(group) for group in result.groups())
    assert healed <= bridged < bare
    answers = output.out[output.out.index('\n\nanswers to "The sky is blue because":') :]
    names = re.findall(r"^  (\S+):", answers, re.MULTILINE)
    assert [Path(name).name for name in names] == ["base", "out"]
    learns = r"healing 3 layers: .* numbers learn from 1,024 tokens, .* in addition"
    assert re.search(learns, output.err)
    assert re.search(
        r"healing: step \d+ of \d+, loss [\d.]+, held out [\d.]+, \d+ s left", output.err
    )
    lines = program_lines(prepare(plan_of(folder)).compiled.program)
    [line] = [line for line in lines if line.startswith("model.layers.1.mlp.down_proj.weight ")]
    assert "= heal(bridge(copy base/model.safetensors#model.layers.1.mlp.down_proj" in line
    live = stitch(plan_of(folder)).state_dict()
    assert equal(tensors(folder / "out"), {n: live[n] for n in tensors(folder / "out")})


# ------------------------------------------------------------------------------- lock and verify


@pytest.fixture(scope="module")
def compiled(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled and healed folder next to its models."""
    work = tmp_path_factory.mktemp("compiled")
    shutil.copytree(made, work, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(work / "cache"))
        return gptailor.compile(write(work, CUT), work / "out").folder


@pytest.mark.parametrize(("by", "result"), [(1e-4, "verified"), (0.05, "differs")])
def test_a_healed_tensor_is_verified_to_a_tolerance(
    compiled: Path, folder: Path, by: float, result: str
) -> None:
    shutil.copytree(compiled, folder / "out")
    healed_tensors, name = tensors(folder / "out"), "model.layers.0.self_attn.q_proj.weight"
    noise = torch.randn(healed_tensors[name].shape, generator=torch.Generator().manual_seed(0))
    healed_tensors[name] += by * healed_tensors[name].norm() / noise.norm() * noise
    save_file(healed_tensors, folder / "out" / "model.safetensors", metadata={"format": "pt"})
    assert gptailor.verify(folder / "out").result == result


def test_the_lock_has_the_files_of_the_teacher(folder: Path) -> None:
    plan = write(folder, f'model other = "./other"; drop L2; {HEAL.replace("on", "from other on")}')
    lock = gptailor.compile(plan, folder / "out", locking=True).lock
    assert lock is not None
    assert "model.safetensors" in lock.models["other"].files
    file = folder / "other" / "model.safetensors"
    content = {name: 2 * tensor for name, tensor in load_file(file).items()}
    save_file(content, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'model\.safetensors' of model 'other'") as caught:
        gptailor.compile(plan, folder / "again", locked=lock)
    assert caught.value.code == "C704"


def test_several_texts_and_teachers_are_locked_each(folder: Path) -> None:
    (folder / "b.txt").write_text(letters(1500, seed=2))
    on = 'heal on "text.txt" from other, "b.txt" weight 2 tokens 1536 rank 4'
    plan = write(folder, f'model other = "./other"; drop L2; {on}')
    lock = gptailor.compile(plan, folder / "out", locking=True).lock
    assert lock is not None
    texts = {name: text.tokens for name, text in lock.texts.items()}
    assert texts == {"heal 1": 512, "heal 2": 1024}
    assert "model.safetensors" in lock.models["other"].files
    lock.write(folder / "plan.tailor.lock")
    assert read_lock(folder / "plan.tailor.lock") == lock
    copied = (folder / "out" / "plan.tailor").read_text()
    assert 'on "../text.txt" from other, "../b.txt" weight 2 tokens 1536 rank 4' in copied
    assert gptailor.verify(folder / "out").result == "verified"
    (folder / "b.txt").write_text(letters(1500, seed=3))
    with pytest.raises(CheckpointError, match="calibration text of 'heal' differs") as caught:
        gptailor.compile(plan, folder / "again", locked=lock)
    assert caught.value.path == folder / "b.txt"


def test_a_gguf_file_has_the_healed_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = pytest.importorskip("gguf")
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 384}
    write_byte_level(tiny_model("llama", tmp_path / "base", layers=3, **sizes))
    (tmp_path / "text.txt").write_text(letters(1500))
    plan = write(tmp_path, 'drop L1; heal on "text.txt" tokens 1024 rank 4')
    gptailor.compile(plan, tmp_path / "out")
    gptailor.compile(plan, tmp_path / "out.gguf", quantize="f32", locking=True)
    ours = tensors(tmp_path / "out")["model.layers.1.mlp.down_proj.weight"]
    base = tensors(tmp_path / "base")["model.layers.2.mlp.down_proj.weight"]
    reader = gguf.GGUFReader(str(tmp_path / "out.gguf"))
    [result] = [tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight"]
    assert torch.equal(torch.from_numpy(result.data.copy()), ours)
    assert not torch.equal(ours, base)
    assert run(["verify", str(tmp_path / "out.gguf")]) == 0
    assert "healing 2 layers: " in capsys.readouterr().err


# ------------------------------------------------------------------------------------ processes


SCRIPT = """
import os, sys, time, torch, gptailor
os.environ["XDG_CACHE_HOME"] = sys.argv[4]
from gptailor.evaluation.fits.heal import train
from gptailor.plan.events import Progress
torch.set_num_threads(1)
train._SAVE_SECONDS = -1.0
def on_event(event):
    if isinstance(event, Progress) and event.what == "healing":
        print(event.done, file=sys.stderr, flush=True)
        time.sleep(float(sys.argv[3]))
gptailor.compile(gptailor.load(sys.argv[1]), sys.argv[2], on_event=on_event)
"""


def test_two_processes_and_a_resumed_one_give_the_same_bytes(
    folder: Path, preloaded: Preloaded
) -> None:
    def started(output: str, seconds: float) -> Child:
        arguments = folder / "plan.tailor", folder / output, seconds, folder / f"cache-{output}"
        return preloaded.start(SCRIPT, *arguments, cwd=folder)

    process = started("out", 0.05)
    while "\n3\n" not in f"\n{process.error()}" and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "out").exists()
    for name, begins in (("out", (3, 4)), ("one", (0,)), ("two", (0,))):
        again = started(name, 0)
        _, errors = again.communicate()
        assert again.returncode == 0, errors
        steps = [int(line) for line in errors.splitlines() if line.isdigit()]
        assert steps[0] in begins
        assert steps == list(range(steps[0], 9))
    assert equal(tensors(folder / "out"), tensors(folder / "one"))
    assert equal(tensors(folder / "two"), tensors(folder / "one"))


COMMAND = """
import os, sys
os.environ |= dict(word.split("=") for word in sys.argv[1].split())
from gptailor.cli.main import main
from gptailor.evaluation.fits.heal import train
train._SAVE_SECONDS = -1.0
sys.argv[:2] = ["gptailor"]
main()
"""
"""The command line in an environment."""


def started_together(preloaded: Preloaded, folder: Path, output: str) -> list[Child]:
    """Start a compilation in two processes, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = f"WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}"
    place += f" XDG_CACHE_HOME={folder / output}-cache OMP_NUM_THREADS=1"
    arguments = "compile", folder / "plan.tailor", "-o", folder / output
    return [
        preloaded.start(COMMAND, f"RANK={rank} {place}", *arguments, cwd=folder)
        for rank in range(2)
    ]


def test_processes_that_start_together_heal_together_and_the_first_one_writes(
    folder: Path, preloaded: Preloaded
) -> None:
    for text, healed in ((CUT, True), ("drop L2", False)):
        write(folder, text)
        first, other = started_together(preloaded, folder, f"out-{healed}")
        (output, errors), silence = first.communicate(), other.communicate()
        assert (first.returncode, other.returncode, silence) == (0, 0, ("", "")), errors
        assert ("healed on 1,024 tokens" in output) is healed
        assert ("healing: step 4 of 4" in errors) is healed, "two sequences a step"
        assert "3 layers (the base has 4)" in output
        assert (folder / f"out-{healed}" / "model.safetensors").exists()


def test_a_killed_process_ends_all_with_one_message(folder: Path, preloaded: Preloaded) -> None:
    (folder / "text.txt").write_text(letters(20_000))
    write(folder, CUT.replace("1024", "16384"))
    first, other = started_together(preloaded, folder, "out")
    while "healing: " not in first.error() and first.poll() is None:
        time.sleep(0.002)
    other.send_signal(signal.SIGKILL)
    _, errors = first.communicate()
    other.communicate()
    assert (first.returncode, other.returncode) == (3, -signal.SIGKILL), errors
    assert errors.count("error: ") == 1
    assert "error: another process of the group ended; if it had too little memory" in errors
    assert "Traceback" not in errors
    assert not (folder / "out").exists()


@pytest.mark.slow
@pytest.mark.thorough
def test_torchrun_starts_processes_that_heal_together(folder: Path, preloaded: Preloaded) -> None:
    for process in started_together(preloaded, folder, "one"):
        process.communicate()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["--nproc-per-node", "2", "-m", "gptailor", "compile", "plan.tailor", "-o", "out"]
    place = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, *command], cwd=folder, env=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("healed on 1,024 tokens") == 1
    assert equal(tensors(folder / "out"), tensors(folder / "one"))


def test_lock_and_verify_print_the_progress_of_healing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(folder / "plan.tailor")
    commands = (["lock", plan], ["compile", plan, "-o", "out"], ["verify", "out"], ["lock", plan])
    for command in commands:  # lock and verify learn anew
        assert run([word if word != "out" else str(folder / "out") for word in command]) == 0
        output = capsys.readouterr().err
        if command[0] != "compile":  # compile knows the result by then
            assert re.search(r"healing 3 layers: .* numbers learn from 1,024 tokens", output), (
                output
            )
            assert "healing: step" in output


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "options", "code", "says"),
    [
        ('drop L2; heal on "text.txt" tokens 1408 rank 4', [], "C806",  # a fault of the plan
         "has 1,408 tokens in whole sequences of 128, and 'heal' needs 1,536"),
        (CUT, ["--memory", "1000"], "C811", "1,000 bytes are too few for healing"),
        (CUT.replace("rank 4", "rank full"), ["--memory", "30MB"], "C811", "all its weights"),
    ],
)  # fmt: skip
def test_an_impossible_healing_is_one_message_and_writes_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    options: list[str],
    code: str,
    says: str,
) -> None:
    write(folder, text)
    out = str(folder / "out")
    ended = run(["compile", str(folder / "plan.tailor"), "-o", out, *options])
    assert ended == (1 if code == "C806" else 3)
    output = capsys.readouterr().err
    assert f"error[{code}]: " in output
    assert says in output
    assert "Traceback" not in output
    assert not (folder / "out").exists()


def test_a_loss_that_isnt_a_number_stops_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 1e30)
    assert run(["compile", str(folder / "plan.tailor"), "-o", str(folder / "out")]) == 3
    output = capsys.readouterr().err
    assert re.search(
        r"error\[C809\]: 'heal' diverges: the loss is not finite at step \d of 8", output
    )
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("kind", "rank", "says"),
    [
        ("mixtral", "full", "with all experts' weights as one tensor"),
        ("lara_mini", "4", "computes with it in a different form"),
    ],
)
def test_check_reports_a_family_that_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rank: str, says: str
) -> None:
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").touch()
    write(tmp_path, f'drop L2; heal on "text.txt" rank {rank}')
    assert run(["check", str(tmp_path / "plan.tailor"), "--format", "json"]) == 1
    [fault] = json.loads(capsys.readouterr().out)
    assert fault["code"] == "M222"
    assert says in fault["message"]


def test_a_plan_that_drops_nothing_is_compiled_as_it_is(folder: Path) -> None:
    written = gptailor.compile(write(folder, HEAL), folder / "out")
    assert not written.fits
    assert equal(tensors(folder / "out"), tensors(folder / "base"))
