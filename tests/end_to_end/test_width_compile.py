"""Plans with narrower MLPs compiled, locked, verified and searched."""

import json
import re
import shutil
from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from gptailor.evaluation.fits.repair import stitch
from gptailor.output.lock import read_lock
from gptailor.plan.faults import PlanError
from gptailor.prepare import prepare
from gptailor.program.program import program_lines
from tests.support.cut_plans import write, write_texts
from tests.support.tiny import letters, tiny_model

NARROW = {
    f"model.layers.{layer}.mlp.{role}_proj.weight"
    for layer in range(5)
    for role in ("gate", "up", "down")
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrowed")
    tiny_model("llama", folder / "base")
    write_texts(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def test_a_folder_is_locked_and_verified(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = write(folder, 'width 16 on "text.txt" tokens 600\ndrop L2')
    assert run(["compile", "plan.tailor", "-o", "out", "--lock"]) == 0
    out = capsys.readouterr()
    assert "narrowing 6 MLPs to 16 neurons" in out.err
    [line] = [line for line in out.out.splitlines() if line.startswith("width: ")]
    pattern = r"width: fitted on 600 tokens; the fits recover (-?\d+\.\d%) of the error"
    found = re.match(pattern, line)
    assert found is not None
    card = (folder / "out" / "README.md").read_text()
    assert f"| 16 | `text.txt` | 600 | 0.1 | {found[1]} |" in card
    assert json.loads((folder / "out" / "config.json").read_text())["intermediate_size"] == 16
    lock = read_lock(folder / "plan.tailor.lock")
    assert lock.width is not None
    assert lock.width.tokens == 600
    assert {name for name, tensor in lock.tensors.items() if tensor.sketch} == NARROW
    assert prepare(plan).compiled.program.fitted == NARROW
    assert gptailor.verify(folder / "out").result == "verified"
    (folder / "text.txt").write_text(letters(900, seed=1))
    with pytest.raises(CheckpointError, match="calibration text of 'width'") as caught:
        gptailor.compile(plan, folder / "again", locked=lock)
    assert caught.value.code == "C704"
    assert not (folder / "again").exists()


def test_the_program_has_the_width_of_each_tensor(folder: Path) -> None:
    program = prepare(write(folder, 'width 16 on "text.txt"')).compiled.program
    lines = dict(line.split(" ", 1) for line in program_lines(program))
    down = lines["model.layers.1.mlp.down_proj.weight"]
    assert down == (
        "F32[16,16] = width(copy base/model.safetensors#model.layers.1.mlp.down_proj.weight, "
        "16, 'text.txt')"
    )


def test_a_search_chooses_a_width(folder: Path) -> None:
    search = 'search { minimize nll("rows.jsonl"); require parameters() <= 12000; trials 3 }'
    plan = write(folder, f'width 8..24 step 8 on "text.txt" tokens 400\n{search}')
    found = gptailor.search(plan, folder / "run")
    best = gptailor.load(folder / "run" / "best.tailor")
    assert best.width is not None
    assert best.width.size in {8, 16}
    assert found.best is not None
    assert stitch(best).config.intermediate_size == best.width.size


def test_a_short_text_is_refused_before_anything_is_written(folder: Path) -> None:
    (folder / "text.txt").write_text(letters(20))
    plan = write(folder, 'width 16 on "text.txt"')
    with pytest.raises(PlanError, match=r"C806.*fewer than 24 tokens for 'width'") as caught:
        gptailor.compile(plan, folder / "out")
    assert [fault.code for fault in caught.value.faults] == ["C806"]
    with pytest.raises(PlanError, match="20 tokens, and 'width' needs at least 24"):
        stitch(plan)
    assert not (folder / "out").exists()
