"""Plans with fewer experts compiled, locked, verified and searched."""

import shutil
from pathlib import Path

import pytest

import gptailor
from gptailor.evaluation.fits.repair import stitch
from tests.support.cut_plans import write, write_texts
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    tiny_model("qwen3_moe", folder / "base", num_experts=6)
    write_texts(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


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
    result = gptailor.search(
        write(folder, f"{cut}\nmaybe drop any 1 of L1..L4\n{search}"), folder / "run"
    )
    assert result.best is not None
    assert gptailor.load(folder / "run" / "best.tailor").experts is not None
