"""Plans with fewer experts compiled, locked, verified and searched."""

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
from tests.support.cut_plans import write, write_texts
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    tiny_model("qwen3_moe", folder / "base", num_experts=6)
    write_texts(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def test_a_folder_is_locked_and_verified(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = write(folder, 'experts 3 on "text.txt" tokens 600\ndrop L2')
    assert run(["compile", "plan.tailor", "-o", "out", "--dry-run"]) == 0
    assert re.search(r"choosing experts +about .* for \d+ tokens", capsys.readouterr().out)
    assert run(["compile", "plan.tailor", "-o", "out", "--lock"]) == 0
    out = capsys.readouterr()
    assert "comparing the experts of 6 layers, of which 3 stay" in out.err
    [line] = [line for line in out.out.splitlines() if line.startswith("experts: ")]
    pattern = r"experts: 3 of a layer stay, chosen on 600 tokens; they have (\d+\.\d%) of the"
    found = re.match(pattern, line)
    assert found is not None
    card = (folder / "out" / "README.md").read_text()
    assert f"| 3 | `text.txt` | 600 | {found[1]} |" in card
    config = json.loads((folder / "out" / "config.json").read_text())
    assert {config.get(key, 3) for key in ("num_experts", "num_local_experts")} == {3}
    lock = read_lock(folder / "plan.tailor.lock")
    assert lock.experts is not None
    assert lock.experts.tokens == 600
    assert not any(tensor.sketch for tensor in lock.tensors.values())
    assert gptailor.verify(folder / "out").result == "verified"
    again = gptailor.compile(plan, folder / "again", locked=lock)
    assert list(again.fits) == ["experts"]
    assert gptailor.lock(plan).tensors == lock.tensors
    assert run(["compile", "plan.tailor", "-o", "out"]) == 0
    assert "nothing changed" in capsys.readouterr().out
    (folder / "text.txt").write_text(letters(900, seed=1))
    with pytest.raises(CheckpointError, match="calibration text of 'experts'") as caught:
        gptailor.compile(plan, folder / "third", locked=lock)
    assert caught.value.code == "C704"


def test_a_search_chooses_a_number_of_experts(folder: Path) -> None:
    search = 'search { minimize nll("rows.jsonl"); trials 3 }'
    cut = 'experts 2..6 step 2 on "text.txt" tokens 400'
    plan = write(folder, f"{cut}\ndrop any 1 of L1..L4\n{search}")
    gptailor.search(plan, folder / "run")
    best = gptailor.load(folder / "run" / "best.tailor")
    assert best.experts is not None
    assert best.experts.size in {2, 4, 6}
    assert stitch(best).config.num_local_experts == best.experts.size


def test_a_search_with_a_fixed_number_of_experts(folder: Path) -> None:
    search = 'search { minimize nll("rows.jsonl"); trials 2 }'
    cut = 'experts 2 on "text.txt" tokens 400'
    found = gptailor.search(
        write(folder, f"{cut}\nmaybe drop any 1 of L1..L4\n{search}"), folder / "run"
    )
    assert found.best is not None
    assert gptailor.load(folder / "run" / "best.tailor").experts is not None
