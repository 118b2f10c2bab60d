"""`gptailor import` and `gptailor export`, as a person types them."""

import re
from pathlib import Path

import pytest

import gptailor
from gptailor.cli.main import run
from gptailor.lang.importers import IMPORTERS
from tests.support.tiny import tiny_model

YAML = """\
merge_method: task_arithmetic
base_model: ./base
models:
- model: ./math
  parameters: {weight: 0.25}
dtype: float32
"""


def test_the_commands_are_found_by_their_doors(capsys: pytest.CaptureFixture[str]) -> None:
    assert IMPORTERS["mergekit"].options
    assert IMPORTERS.is_own("mergekit")
    assert run(["--help"]) == 0
    share = capsys.readouterr().out.partition("Share:\n")[2].partition("\n\n")[0]
    assert re.search(r"^  export +Convert a plan to another tool's format\.$", share, re.MULTILINE)
    assert run(["export", "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: gptailor export [OPTIONS] PLAN\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", tmp_path / name, seed=seed, layers=3)
    (tmp_path / "merge.yml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_imported_plan_compiles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plans").mkdir()
    assert run(["import", "merge.yml", "-o", "plans/merge.tailor"]) == 0
    text = (folder / "plans" / "merge.tailor").read_text()
    assert 'model math = "../math"' in text
    assert "whole from math by task_arithmetic(0.25)" in text
    assert gptailor.format(text) == text
    assert run(["compile", "plans/merge.tailor", "-o", "out"]) == 0
    assert run(["export", "plans/merge.tailor"]) == 0
    assert "merge_method: task_arithmetic" in capsys.readouterr().out


def test_an_existing_plan_is_not_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "merge.tailor").write_text("precious")
    (folder / "merge.yml").write_text(YAML + "parameters: {int8_mask: true}\n")
    assert run(["import", "merge.yml"]) == 0
    assert "note: " in capsys.readouterr().err
    assert run(["import", "merge.yml", "-o", "merge.tailor"]) == 3
    assert (folder / "merge.tailor").read_text() == "precious"
    help_ = "--force replaces it"
    message = f"error[C301]: exists already\n --> merge.tailor\n  = help: {help_}\n"
    assert capsys.readouterr().err == message  # no notes before it
    assert run(["import", "merge.yml", "-o", "merge.tailor", "--force"]) == 0
    assert "whole from math" in (folder / "merge.tailor").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.yml", "models: [{model: a}]\nmerge_methd: linear\n", "merge_method"),
        ("no.yml", "models: [", "no.yml:1: invalid YAML"),
    ],
)
def test_an_invalid_file_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (folder / name).write_text(text)
    assert run(["import", name, "-o", "new.tailor"]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "new.tailor").exists()


def test_an_export_refuses_statements_that_mergekit_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = folder / "scaled.tailor"
    plan.write_text('tailor 1\nmodel base = "./base"\nscale L0 by 0.5\n')
    assert run(["export", str(plan)]) == 1
    assert "scale" in capsys.readouterr().err


def test_import_finds_the_base_by_a_folder_with_its_configuration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "known").mkdir()
    (folder / "known" / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
    slices = "sources: [{model: a/NAME, layer_range: [0, 2]}]"
    text = f"slices: [{{{slices}}}, {{{slices}}}]\nmerge_method: passthrough\nlamda: 1\n"
    (folder / "hub.yml").write_text(text.replace("NAME", "x", 1).replace("NAME", "y"))
    assert run(["import", "hub.yml", "--base", "known"]) == 0
    output = capsys.readouterr()
    assert "head from y" in output.out
    assert "note: hub.yml:3: lamda: mergekit ignores the unknown key 'lamda'" in output.err
    assert run(["import", "hub.yml", "--model", "base=known", "--strict"]) == 1
    assert "hub.yml:3: lamda" in capsys.readouterr().err
    (folder / "hub.yml").write_text((folder / "hub.yml").read_text() + "mu: 1\n")
    assert run(["import", "hub.yml", "--model", "base=known", "--strict"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "error"]


def test_a_missing_file_is_refused_as_a_file_of_mergekit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ties.yml").write_text(YAML)
    (tmp_path / "half").mkdir()
    assert run(["import", "tie.yml"]) == 3
    assert capsys.readouterr().err == (
        "error[C201]: expected a file of mergekit, 'tie.yml' is missing\n"
        "  = help: did you mean 'ties.yml'?\n"
    )
    assert run(["import", "half"]) == 3
    assert capsys.readouterr().err == (
        "error[C201]: expected a file of mergekit, 'half' is a folder\n"
        "  = help: name the YAML file\n"
    )


def test_import_names_a_missing_base_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = YAML.replace("weight: 0.25", "weight: [{filter: mlp, value: 1}, {value: 0}]")
    (tmp_path / "merge.yml").write_text(text.replace("./base", "../kit/base"))
    assert run(["import", "merge.yml"]) == 1
    assert "(there is no folder ../kit/base here)" in capsys.readouterr().err
