"""RUN read: what is there, what is left alone, and refusals."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gptailor.checkpoint.files import CheckpointError
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import RunReading
from tests.searching import written_run
from tests.searching.written_run import named_storage, run_of

run = written_run.run


def test_a_search_that_goes_on_is_left_alone(run: tuple[Path, Ledger]) -> None:
    journal = run[0] / "study.journal"
    before = journal.read_bytes()
    torn = before + b'{"op_code": 4, "stud'
    journal.write_bytes(torn)
    try:
        assert len(RunReading(run[0]).ledger.trials) == len(run[1].trials)
        assert journal.read_bytes() == torn
        assert {path.name for path in run[0].iterdir()} == {
            "run.json", "space.tailor", "study.journal"
        }  # fmt: skip
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
    assert (caught.value.code, "writes it anew" in caught.value.help) == ("C903", True)


def test_a_run_without_its_space_has_trials_without_plans(tmp_path: Path) -> None:
    run_of(tmp_path, trials=6)
    (tmp_path / "space.tailor").unlink()
    reading = RunReading(tmp_path)
    rows = [reading.row(trial) for trial in reading.ledger.trials]
    assert rows
    assert all((row["plan"], row["layers"]) == ("", None) for row in rows)
    assert any("RUN has no space.tailor" in one for one in reading.missing)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("run.json", None, "holds no search"),
        ("run.json", b"{", "is damaged: expected JSON"),
        ("study.journal", None, "has no study.journal"),
        ("study.journal", b"", "has no study.journal with a line"),
        ("study.journal", b"[]\n", "line 1 of the journal is damaged"),
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


@pytest.mark.parametrize(
    "scheme", ["sqlite", "sqlite+pysqlite", "sqlite+pysqlcipher", "postgresql"]
)
@pytest.mark.parametrize("journal", [True, False])
def test_a_storage_that_run_json_names_is_never_opened(
    run: tuple[Path, Ledger], tmp_path: Path, scheme: str, journal: bool
) -> None:
    victim = tmp_path / "victim.db"
    with closing(sqlite3.connect(victim)) as database:
        database.execute("create table mine (a)")
        database.commit()
    before = victim.read_bytes()
    for name in ("victim.db", "new.db"):
        folder = tmp_path / f"run-{name}"
        named_storage(run[0], folder, f"{scheme}:///{tmp_path}/{name}")
        if journal:
            assert len(RunReading(folder).ledger.trials) == len(run[1].trials)
            continue
        (folder / "study.journal").unlink()
        with pytest.raises(CheckpointError, match="names a storage, which is not opened") as caught:
            RunReading(folder)
        assert "--storage URL" in caught.value.help
    assert victim.read_bytes() == before
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"victim.db", "run-victim.db", "run-new.db"}


@pytest.mark.parametrize("name", ["run.json", "study.journal", "space.tailor"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"holds '{name}', which leads out of it"):
        RunReading(folder)
