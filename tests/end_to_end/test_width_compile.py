"""Plans with narrower MLPs compiled, locked, verified and searched."""

import shutil
from pathlib import Path

import pytest

import gptailor
from gptailor.evaluation.fits.repair import stitch
from gptailor.prepare import prepare
from gptailor.program.program import program_lines
from tests.support.cut_plans import write, write_texts
from tests.support.tiny import tiny_model

NARROW = {
    f"model.layers.{layer}.mlp.{role}_proj.weight"
    for layer in range(5)
    for role in ("gate", "up", "down")
}

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrowed")
    tiny_model("llama", folder / "base")
    write_texts(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


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
    result = gptailor.search(plan, folder / "run")
    best = gptailor.load(folder / "run" / "best.tailor")
    assert best.width is not None
    assert best.width.size in {8, 16}
    assert result.best is not None
    assert stitch(best).config.intermediate_size == best.width.size
