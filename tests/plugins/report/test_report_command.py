"""`gptailor report`: the page of a plan and of a folder, pictures, refusals."""

import html
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

import gptailor
from gptailor.plan import optional_packages
from gptailor.plugins.report import charts
from gptailor.reporting.layer_cells import HUES
from gptailor.reporting.quantities import shown_number
from gptailor.searching.results import SearchResult
from gptailor.searching.run.records import HandedNote
from gptailor.searching.run_reading import read_run
from tests.searching.landscape import study_of
from tests.searching.written_run import ended, run_of
from tests.support.colours import contrast
from tests.support.said import Run, in_process

PLAN = """\
# The plan of the test.
tailor 1
model base = "./base"
model math = "./math"
L0..L1 = merge(L0..L1 base, L0..L1 math, 0.25)
drop L3
"""


@pytest.fixture
def world(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan and its models, where commands run."""
    for name in ("base", "math"):
        shutil.copytree(family / name, tmp_path / name)
    (tmp_path / "cut.tailor").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return in_process(capsys)


def sections(page: str) -> dict[str, str]:
    """The HTML of each section by its anchor."""
    results = re.findall(r'<section id="([\w-]+)".*?</section>', page, re.DOTALL)
    parts = re.findall(r"<section id=.*?</section>", page, re.DOTALL)
    return dict(zip(results, parts, strict=True))


def drawn(page: str) -> dict[str, dict]:
    """The specifications of the charts by their anchors."""
    [text] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    return json.loads(text)


def test_the_command_has_a_help(run: Run) -> None:
    result = run("report", "--help")
    assert result.code == 0
    assert result.out.startswith("Usage: gptailor report")
    assert run("report", "-h").out == result.out


def test_a_report_of_a_search_and_of_a_plan(world: Path) -> None:
    (world / "run").mkdir()
    run_of(world / "run")
    reading = read_run(world / "run")
    result = SearchResult("interrupted", reading, None, world / "run")
    page = gptailor.report(result, "run.html", prompt=None)
    assert page.size == len((world / "run.html").read_bytes())
    assert "Every trial" in (world / "run.html").read_text()
    one = gptailor.report(gptailor.loads(PLAN, folder=world), "plan.html", prompt="a", tokens=2)
    assert "merge(L0..L1 base, L0..L1 math, 0.25)" in one.file.read_text()
    with pytest.raises(gptailor.TailorError, match="exists already"):
        gptailor.report(gptailor.loads(PLAN, folder=world), "plan.html")


def test_expectations_have_a_section(run: Run, world: Path) -> None:
    (world / "cut.tailor").write_text(f"{PLAN}expect parameters() < base\n")
    assert run("report", "cut.tailor", "-o", "cut.html", "--no-continuations").code == 0
    result = sections((world / "cut.html").read_text("utf-8"))
    assert "parameters() &lt; base" in result["expectations"]
    assert "gptailor test cut.tailor" in html.unescape(result["expectations"])


def test_the_report_of_a_plan_has_map_size_text_lock_and_command(run: Run, world: Path) -> None:
    assert run("lock", "cut.tailor").code == 0
    outcome = run(
        "report", "cut.tailor", "-o", "cut.html", "--no-continuations", "--pictures", "pics"
    )
    assert outcome.code == 0
    page = (world / "cut.html").read_text()
    result = sections(page)
    assert [*result] == ["map", "size", "says", "plan", "lock", "tensors", "again"]
    assert html.escape(PLAN) in result["plan"]
    prepared = gptailor.prepare.prepare(gptailor.load(world / "cut.tailor"))
    assert f"{prepared.compiled.program.parameters:,}" in result["size"]
    lock = json.loads((world / "cut.tailor.lock").read_text())
    assert all(value["sha256"] in result["tensors"] for value in lock["tensors"].values())
    assert "gptailor compile cut.tailor -o DIR --locked" in result["again"]
    assert page.count("window.vegaEmbed=") == 1
    values = [row for rows in drawn(page)["map"]["datasets"].values() for row in rows]
    shares = {row["where"]: row["shares"] for row in values if "shares" in row}
    assert shares["L1"] == "base 75.0 %, math 25.0 %"
    assert shares["L3"] == ""
    assert {path.name for path in (world / "pics").iterdir()} == {"map.svg", "map.png"}
    assert ET.parse(world / "pics" / "map.svg").getroot().tag.endswith("svg")
    assert "var(" not in (world / "pics" / "map.svg").read_text()
    assert (world / "pics" / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("one_thread", "brief_answers")
def test_the_report_has_continuations_of_base_and_result(run: Run, world: Path) -> None:
    asked = ("--prompt", "a cat <b>", "--tokens", "5")
    assert run("report", "cut.tailor", "-o", "cut.html", *asked).code == 0
    says = sections((world / "cut.html").read_text())["says"]
    spoken = run("generate", "base", "cut.tailor", "a cat <b>", "--tokens", "5", "--format", "json")
    texts = [item["text"] for item in json.loads(spoken.out)]
    prompt = html.escape("a cat <b>")
    for name, text in zip(("base", "this model"), texts, strict=True):
        end = f'<span class="prompt">{prompt}</span>{html.escape(text)}</blockquote>'
        assert f"<h3>{name}</h3>\n<blockquote>{end}" in says


def test_the_report_of_a_folder_has_its_plan(run: Run, world: Path) -> None:
    assert run("compile", "cut.tailor", "-o", "out", "--lock").code == 0
    assert run("report", "out", "-o", "out.html", "--no-continuations").code == 0
    result = sections((world / "out.html").read_text())
    assert "# The plan of the test." in result["plan"]
    assert "gptailor verify out" in result["again"]
    assert "tensors" in result
    shutil.rmtree(world / "base")
    assert run("report", "out", "-o", "alone.html", "--tokens", "3").code == 0
    alone = sections((world / "alone.html").read_text())
    numbers = re.findall(r"<td>([\d,]+)</td>", result["size"])
    assert re.findall(r"<td>([\d,]+)</td>", alone["size"]) == numbers[1::2]
    assert "<h3>this model</h3>" in alone["says"]
    assert html.escape("The base is missing.") in alone["says"]


def test_the_report_of_a_foreign_model_has_no_command(run: Run, world: Path) -> None:
    assert run("report", "math", "-o", "math.html", "--no-continuations").code == 0
    result = sections((world / "math.html").read_text())
    assert "again" not in result
    assert "6 of base" in result["map"]


def test_the_report_of_an_open_plan_has_its_known_parts(run: Run, world: Path) -> None:
    (world / "open.tailor").write_text(
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'
        "drop any 1 of L1..L4\nothers from one of base, math\n"
    )
    assert run("report", "open.tailor", "-o", "open.html").code == 0
    result = sections((world / "open.html").read_text())
    assert "the plan leaves 7 choices open" in result["size"]
    assert "the plan leaves 7 choices open" in result["says"]


def test_missing_models_are_reported(run: Run, world: Path) -> None:
    shutil.rmtree(world / "base")
    assert run("report", "cut.tailor", "-o", "cut.html").code == 0
    result = sections((world / "cut.html").read_text())
    assert "there is no such folder" in result["says"]
    assert "there is no such folder" in result["size"]
    assert "may have more layers than the plan names" in result["map"]


def test_pictures_and_the_plan_itself_are_not_written_over(run: Run, world: Path) -> None:
    (world / "pics").mkdir()
    (world / "pics" / "map.png").write_text("mine")
    silent = ("--no-continuations", "--pictures", "pics")
    result = run("report", "cut.tailor", "-o", "cut.html", *silent)
    assert (result.code, "pics/map.png" in result.err, "--force" in result.err) == (3, True, True)
    assert not (world / "cut.html").exists()
    assert (world / "pics" / "map.png").read_text() == "mine"
    assert run("report", "cut.tailor", "-o", "cut.html", *silent, "--force").code == 0
    assert (world / "pics" / "map.png").read_bytes().startswith(b"\x89PNG")
    for force in ([], ["--force"]):
        result = run("report", "cut.tailor", "-o", "./cut.tailor", "--no-continuations", *force)
        assert (result.code, "is the input of this report" in result.err) == (3, True)
    assert (world / "cut.tailor").read_text() == PLAN


def test_faults_of_the_best_plan_are_reported(run: Run, world: Path) -> None:
    (folder := world / "run").mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "best.tailor").write_text("tailor 1\nwhatever\n")
    result = run("report", str(folder), "-o", "run.html", "--no-continuations")
    assert (result.code, "best.tailor:2" in result.err) == (1, True)
    assert not (world / "run.html").exists()


def test_the_report_of_a_search_has_its_result_and_all_trials(run: Run, world: Path) -> None:
    (world / "run").mkdir()
    ledger = run_of(world / "run", trials=8)
    killed = run("report", "run", "-o", "killed.html")
    assert killed.code == 0
    page = (world / "killed.html").read_text()
    assert "it was ended before it wrote one" in page
    assert {"trials", "progress"} <= sections(page).keys()
    assert "scores" not in sections(page)

    (world / "run" / "best.tailor").write_text(PLAN.replace("./", "../"))
    ended(world / "run", ledger, held=0.125)
    reading = read_run(world / "run")
    assert reading.verdict is not None
    trial = reading.verdict.best
    best = trial.scores
    assert best is not None
    assert run("report", "run", "-o", "run.html", "--no-continuations").code == 0
    result = sections((world / "run.html").read_text())
    assert [*result][:3] == ["scores", "map", "size"]
    assert [*result][-3:] == ["plan", "lock", "again"]
    [value], [error] = best.values, best.stderrs
    assert f"<td>{shown_number(value, error)}</td>" in result["scores"]
    assert "gptailor compile run/best.tailor -o DIR" in result["again"]
    values = [row for rows in drawn((world / "run.html").read_text())["scores"]["datasets"].values()
              for row in rows if row["plan"] == "found"]  # fmt: skip
    assert [(row["value"], row["low"], row["high"]) for row in values] == [
        (value, value - error, value + error),
        (value + 0.125, value + 0.125 - 0.05, value + 0.125 + 0.05),
    ]
    in_vain = "Healing changed nothing"
    assert in_vain not in result["map"]
    number = len(reading.ledger.trials)
    healed = replace(trial.request, phase="final", stage="healed", asked_after=number)
    study_of(world / "run").add(replace(trial, number=number, request=healed))
    ended(world / "run", read_run(world / "run").ledger)
    assert run("report", "run", "-o", "vain.html", "--no-continuations").code == 0
    assert in_vain in sections((world / "vain.html").read_text())["map"]

    shutil.rmtree(world / "base")
    assert run("report", "run", "-o", "gone.html").code == 0
    gone = sections((world / "gone.html").read_text())
    assert "As the search wrote it down" in gone["size"]
    assert len(gone["map"].split('<th scope="row">')) == 9  # 8 layers, as run.json says


def test_a_resumed_search_keeps_the_files_of_its_end(run: Run, tmp_path: Path) -> None:
    ledger, page = run_of(tmp_path, trials=4), tmp_path / "page.html"
    ended(tmp_path, ledger)
    study, last = study_of(tmp_path), ledger.trials[-1]
    study.note("handed", HandedNote(best=last.number, curve=()))
    again = replace(last.request, ask=99)
    study.add(replace(last, number=len(ledger.trials), request=again))
    assert run("report", str(tmp_path), "-o", str(page)).code == 0
    words = page.read_text()
    assert "summary.md</code> and the plans in its folder belong to that end" in words
    assert "no summary" not in words


def test_a_journal_without_sizes_costs_the_report_its_trials_alone(run: Run, world: Path) -> None:
    (world / "run").mkdir()
    ended(world / "run", run_of(world / "run", trials=4))
    journal = world / "run" / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if '"sizes"' not in line]
    journal.write_text("\n".join(kept) + "\n")
    (world / "run" / "best.tailor").write_text(PLAN.replace("./", "../"))
    assert run("report", "run", "-o", "run.html", "--no-continuations").code == 0
    result = sections((world / "run.html").read_text())
    assert "has a plan without a size" in result["trials"]
    assert {"map", "size", "plan"} <= result.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.tailor", "-o", "new.html"), 3, "missing.tailor"),
        (("cut.tailor", "-o", "old.html"), 3, "exists already"),
        (("cut.tailor", "-o", "base"), 3, "is not a regular file"),
        (("cut.tailor", "-o", "nowhere/new.html"), 3, "there is no such folder"),
        (("cut.tailor", "-o", "new.html", "--model", "code=./math"), 1, "'code'"),
        (("broken.tailor", "-o", "new.html"), 1, "S1"),
    ],
)
def test_invalid_arguments_are_reported_and_nothing_is_written(
    run: Run, world: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (world / "old.html").write_text("old")
    (world / "broken.tailor").write_text("tailor 1\nmodel base\n")
    there = sorted(world.iterdir())
    result = run("report", *arguments)
    assert (result.code, sorted(world.iterdir())) == (code, there)
    assert message in result.err
    assert (world / "old.html").read_text() == "old"
    assert run("report", "cut.tailor", "-o", "old.html", "--force", "--no-continuations").code == 0
    assert (world / "old.html").read_text().startswith("<!doctype html>")


def test_missing_packages_are_named(run: Run, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None)
    result = run("report", "cut.tailor", "-o", "cut.html")
    assert result.code == 3
    assert "a report needs" in result.err
    assert "gptailor[report]" in result.err
    assert not (world / "cut.html").exists()


@pytest.mark.parametrize("colour", HUES)
def test_colours_stand_out_on_both_papers(colour: str) -> None:
    """Marks need a contrast of 3 (WCAG 1.4.11)."""
    assert min(contrast(colour, paper) for paper in ("#ffffff", "#14171b")) >= 3


def test_colours_mix_as_light_does() -> None:
    assert charts.mixed({"#ff0000": 2.0}) == "#ff0000"
    assert charts.mixed({"#000000": 1.0, "#ffffff": 1.0}) == "#bababa"
