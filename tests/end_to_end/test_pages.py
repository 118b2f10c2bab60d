"""Pages with copies of other sources: mergekit's files next to plans, and pictures."""

import json
import re
from pathlib import Path

import pytest

import gptailor
from docs import pictures
from gptailor.cli import main as cli
from gptailor.plan.plan import Plan

DOCS = Path(__file__).parents[2] / "docs"
FILES = dict(
    re.findall(
        r"^```\w+ (\S+)\n((?s:.*?))^```",
        (DOCS / "mergekit.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)
PAIRS = sorted(name.removesuffix(".yml") for name in FILES if name.endswith(".yml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four models of sixteen layers; only their configurations are read."""
    config = {"model_type": "llama", "num_hidden_layers": 16, "tie_word_embeddings": False}
    for name in ("base", "math", "code", "chat"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", PAIRS)
def test_a_file_of_mergekit_becomes_the_plan_next_to_it(name: str, folder: Path) -> None:
    (folder / f"{name}.yml").write_text(FILES[f"{name}.yml"])
    assert cli.run(["import", f"{name}.yml", "-o", "made.tailor"]) == 0
    beside = gptailor.loads(FILES[f"{name}.tailor"], folder=folder)
    assert gptailor.format(gptailor.load("made.tailor")) == gptailor.format(beside)


def test_the_page_has_six_pairs_or_more() -> None:
    assert len(PAIRS) >= 6


def test_the_pictures_are_of_the_plan_on_the_first_page() -> None:
    assert isinstance(pictures.page_plan(), Plan)
    for name, draw in pictures.DRAWN.items():
        drawn = draw()
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == drawn, (
            "python docs/pictures.py draws it"
        )


def test_the_readme_and_the_first_page_have_one_plan() -> None:
    pages = [(DOCS / "index.md"), DOCS.parent / "README.md"]
    plans = [
        re.search(r"^```tailor[^\n]*\n((?s:.*?))^```", page.read_text("utf-8"), re.M)
        for page in pages
    ]
    assert plans[0] is not None
    assert plans[1] is not None
    assert plans[0][1] == plans[1][1]


def numbers(value: object) -> list[float]:
    """All numbers in some figures, without a heat map's."""
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("name", ["repaired", "healing", "search", "results"])
def test_a_chart_shows_figures_of_the_page_that_they_are_from(name: str) -> None:
    figures = json.loads((DOCS / "pictures" / f"{name}.json").read_text(encoding="utf-8"))
    place = re.search(r"(docs|benchmarks)/\S+\.md", figures["what"])
    assert place is not None
    page = (DOCS.parent / place[0]).read_text(encoding="utf-8")
    result = numbers(figures)
    assert result
    for number in result:
        assert re.search(rf"\b{number}(?!\d)|\b{number}0\b", page), number
    assert (DOCS / "pictures" / f"{name}.svg").exists()
