"""RUN read: what is there, what is left alone, and refusals."""

import json
import shutil
from pathlib import Path

import pytest

from gptailor.checkpoint.files import CheckpointError
from gptailor.searching.folder import Folder
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import RunReading
from tests.searching import landscape, written_run
from tests.searching.written_run import run_of

run = written_run.run


def test_a_search_that_goes_on_is_left_alone(run: tuple[Path, Ledger]) -> None:
    journal = run[0] / "journal.jsonl"
    before = journal.read_bytes()
    torn = before + b'{"trial":{"num'
    journal.write_bytes(torn)
    try:
        assert len(RunReading(run[0]).ledger.trials) == len(run[1].trials)
        assert journal.read_bytes() == torn
        assert {path.name for path in run[0].iterdir()} == {"run.json", "journal.jsonl"}
    finally:
        journal.write_bytes(before)


def test_a_run_of_another_version_is_one_message(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["aims"]
    (tmp_path / "run.json").write_text(json.dumps({**record, "version": "0.1.9"}))
    with pytest.raises(
        CheckpointError, match=r"gptailor '0.1.9'.*'aims': field required"
    ) as caught:
        RunReading(tmp_path)
    assert caught.value.code == "C903"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("tailor 1\nmodel", "has an open plan that can't be used"),
        (f"{landscape.BASE}drop any 1 of L0..L7\n", "has trial 0 of another space"),
    ],
)
def test_a_space_that_trials_are_not_of_is_refused(tmp_path: Path, space: str, said: str) -> None:
    run_of(tmp_path, trials=6)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "space": space}))
    with pytest.raises(CheckpointError, match="C903") as caught:
        RunReading(tmp_path)
    assert said in caught.value.message


def test_a_run_of_the_former_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"version": "0.1.0"}')
    (tmp_path / "study.journal").write_text('{"op_code":0}\n')
    for read in (RunReading, lambda run: Folder(run).__enter__()):
        with pytest.raises(
            CheckpointError, match=r"of an earlier release.*'study\.journal'"
        ) as caught:
            read(tmp_path)
        assert caught.value.code == "C902"
        assert "name a new RUN" in caught.value.help


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("run.json", None, "holds no search"),
        ("run.json", b"{", "is damaged: expected JSON"),
        ("journal.jsonl", None, "has no journal.jsonl"),
        ("journal.jsonl", b"", "has no journal.jsonl with a line"),
        ("journal.jsonl", b"[]\n", "line 1 of the journal is damaged"),
    ],
)
def test_what_holds_no_search_is_one_message(
    tmp_path: Path, name: str, raw: bytes | None, message: str
) -> None:
    run_of(tmp_path, trials=2)
    if raw is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        RunReading(tmp_path)


def test_a_summary_of_another_version_is_one_message(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "summary.json").write_text('{"objectives": []}')
    with pytest.raises(CheckpointError, match=r"summary\.json") as caught:
        RunReading(tmp_path)
    assert "is damaged: 'version': field required" in caught.value.message


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"holds '{name}', which leads out of it"):
        RunReading(folder)
