"""Bridged plans compiled, locked, verified; equal to the live model."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from gptailor.evaluation.fits.repair import stitch
from gptailor.plan.events import Event, FitResult, Progress
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.program.program import program_lines
from gptailor.program.sketch import sketch
from tests.support.tiny import tiny_model

TEXT = "a stitch in time saves nine, said the tailor, and cut the thread. " * 30
TWO = 'drop L1, L3..L4; bridge on "text.txt" tokens 600 ridge 0.01'
BRIDGED = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bridged")
    tiny_model("llama", folder / "base")
    (folder / "text.txt").write_text(TEXT)
    write(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def write(folder: Path, text: str = TWO) -> Plan:
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{text}  # close\n')
    return gptailor.load(folder / "plan.tailor")


def plan_of(folder: Path) -> Plan:
    return gptailor.load(folder / "plan.tailor")


def test_the_compiled_folder_is_the_live_model(folder: Path) -> None:
    messages: list[str] = []
    plan = plan_of(folder)
    bridged: list[FitResult] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and not event.done:
            messages.append(event.at)
        elif isinstance(event, FitResult):
            bridged.append(event)

    written = gptailor.compile(plan, folder / "out", on_event=on_event)
    assert {result.at: result for result in bridged} == written.fits
    model, live = AutoModelForCausalLM.from_pretrained(folder / "out"), stitch(plan)
    for name, tensor in live.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert messages == ["the gap after L0", "the gap after L2"]
    bare = stitch(write(folder, "drop L1, L3..L4"))
    changed = [n for n, t in bare.state_dict().items() if not torch.equal(t, live.state_dict()[n])]
    assert changed == BRIDGED
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, live(tokens).logits, atol=1e-6, rtol=1e-5)
        assert (bare(tokens).logits - live(tokens).logits).abs().max() > 0.01


def test_the_folders_own_plan_makes_it_again(folder: Path) -> None:
    (folder / "deep").mkdir()
    gptailor.compile(plan_of(folder), folder / "deep" / "out")
    text = (folder / "deep" / "out" / "plan.tailor").read_text()
    assert 'bridge on "../../text.txt" tokens 600 ridge 0.01  # close' in text
    gptailor.compile(gptailor.load(folder / "deep" / "out" / "plan.tailor"), folder / "again")
    for name, tensor in load_file(folder / "again" / "model.safetensors").items():
        assert torch.equal(tensor, load_file(folder / "deep/out/model.safetensors")[name])


def test_the_program_marks_bridged_tensors(folder: Path) -> None:
    program = prepare(plan_of(folder)).compiled.program
    assert program.fitted == set(BRIDGED)
    [said] = [line for line in program_lines(program) if line.startswith(BRIDGED[1])]
    assert said.endswith("= bridge(copy base/model.safetensors#model.layers.2.mlp.down_proj.weight"
                         ", L2 to L5, 'text.txt')")  # fmt: skip


def altered(folder: Path, name: str, by: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] += by * tensors[name].norm() / noise.norm() * noise
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "by", "result"),
    [
        (BRIDGED[0], 1e-4, "verified"),
        (BRIDGED[0], 0.05, "differs"),
        ("model.layers.2.mlp.down_proj.weight", 1e-4, "differs"),
    ],
)
def test_a_bridge_is_verified_to_a_tolerance(
    folder: Path, name: str, by: float, result: str
) -> None:
    gptailor.compile(plan_of(folder), folder / "out")
    altered(folder / "out", name, by)
    verification = gptailor.verify(folder / "out")
    assert verification.result == result
    assert [difference.name for difference in verification.differences] == (
        [name] if result == "differs" else []
    )


def test_a_lock_of_other_rounding_holds(folder: Path) -> None:
    lock = gptailor.lock(plan_of(folder))
    near = lock.tensors[BRIDGED[0]]
    moved = near.model_copy(update={"sha256": "0" * 64})
    near_lock = lock.model_copy(update={"tensors": {**lock.tensors, BRIDGED[0]: moved}})
    assert gptailor.compile(plan_of(folder), folder / "out", locked=near_lock).lock is not None
    assert near.sketch is not None
    far = moved.model_copy(update={"sketch": tuple(1.1 * number for number in near.sketch)})
    far_lock = lock.model_copy(update={"tensors": {**lock.tensors, BRIDGED[0]: far}})
    with pytest.raises(CheckpointError, match="differs from the lock: the fitted values"):
        gptailor.compile(plan_of(folder), folder / "other", locked=far_lock)


def test_a_sketch_tells_how_far_tensors_are_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    a, noise = (torch.randn(1100, 1000, generator=generator) for _ in range(2))
    one, other = (torch.tensor(sketch(t)) for t in (a, a + 0.01 * noise))
    assert (one - other).norm() / one.norm() == pytest.approx(0.01, rel=0.5)
    assert sketch(a.bfloat16()) == sketch(a.bfloat16().float())


def test_a_dry_run_and_the_card_show_the_gaps(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(folder / "plan.tailor")
    assert run(["compile", name, "-o", str(folder / "out"), "--dry-run"]) == 0
    assert "L1          dropped, bridged over\n" in capsys.readouterr().out
    (folder / "text.txt").rename(folder / "kept.txt")
    assert run(["show", name]) == 0
    output = capsys.readouterr().out
    assert "─ bridged over" in output
    assert "  time and memory of bridging: 'gptailor compile --dry-run'\n" in output
    (folder / "kept.txt").rename(folder / "text.txt")
    gptailor.compile(plan_of(folder), folder / "out")
    card = (folder / "out" / "README.md").read_text()
    assert "B ─ B ─ ─ B" in card.upper()
    assert "| L3..L4 | dropped, bridged over |" in card


def test_the_command_prints_the_quality_of_each_fit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", str(folder / "plan.tailor"), "-o", str(folder / "out")]) == 0
    output = capsys.readouterr()
    fits = re.findall(
        r"^bridge after (L\d): fitted on 600 tokens; .* (-?\d+\.\d)%", output.out, re.M
    )
    assert [after for after, _ in fits] == ["L0", "L2"]
    assert "bridging the gap after L2" in output.err
    written = gptailor.compile(plan_of(folder), folder / "again")
    assert [f"{100 * fit.numbers['held_out']:.1f}" for fit in written.fits.values()] == [
        share for _, share in fits
    ]
    assert not gptailor.compile(write(folder, "drop L1"), folder / "bare").fits


@pytest.mark.parametrize(
    ("kind", "plan", "needed"),
    [
        ("llama", "drop L1", 24),
        ("gpt2", "drop L1", 64),
        ("mixtral", "drop L1", 16),
        ("qwen2_moe", "drop L1", 16),
        ("deepseek_v3", "drop L1", 24),  # L0 is dense
        ("deepseek_v3", "drop L2", 16),
        ("deepseek_v3", "drop L2; maybe drop L1", 24),
    ],
)
def test_a_fit_needs_as_many_tokens_as_inputs(
    tmp_path: Path, kind: str, plan: str, needed: int
) -> None:
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(TEXT)
    wanted = f'{plan}; bridge on "text.txt" tokens'
    [fault] = gptailor.check(write(tmp_path, f"{wanted} {needed - 1}"))
    assert (fault.code, fault.help) == (
        "M220",
        f"give at least {needed} tokens, one for each input of the fit; better {10 * needed}",
    )
    assert not gptailor.check(write(tmp_path, f"{wanted} {needed}"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('drop L1; bridge on "text.txt" tokens 23', "M220"),
        ('maybe drop L1; bridge on "text.txt"', "P801"),
        ('drop L1; bridge on "text.txt" ridge 0.1..0.2', "P801"),
    ],
)
def test_an_impossible_fit_is_refused_before_it_runs(folder: Path, text: str, code: str) -> None:
    with pytest.raises(PlanError) as caught:
        gptailor.compile(write(folder, text), folder / "out")
    assert [fault.code for fault in caught.value.faults if fault.severity == "error"] == [code]


def test_drops_that_cannot_be_undone_are_refused(tmp_path: Path) -> None:
    tiny_model("deepseek_v3", tmp_path / "base")
    (tmp_path / "text.txt").write_text(TEXT)
    plan = "L3 = L0 base; drop L1..L2"
    assert not gptailor.check(write(tmp_path, plan))
    [fault] = gptailor.check(write(tmp_path, f'{plan}; bridge on "text.txt"'))
    assert fault.code == "M217"
    assert "fitted to the plan without its drops" in fault.message
    [fault] = gptailor.check(write(tmp_path, f'{plan}; heal on "text.txt"'))
    assert fault.code == "M217"
    assert "learns from the plan without its drops" in fault.message
    (tmp_path / "taught.parquet").touch()
    assert not gptailor.check(write(tmp_path, f'{plan}; heal on "taught.parquet"'))
