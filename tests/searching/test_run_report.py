"""RUN read for a report: its trials and losses against another computation, and refusals."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.plan import Plan
from gptailor.reporting.run_report import RunReport
from gptailor.reporting.summary import Aim
from gptailor.searching.run.journal import JournalLines, journal_lines
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.schedule import Budget
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_report import run_report
from gptailor.searching.space.decode import decode
from tests.reporting.test_search_table import BEGUN
from tests.searching import landscape

NLL, ACCURACY = landscape.NLL._replace(unit="nats"), landscape.ACCURACY
LAYERS = 8


def run_of(
    folder: Path,
    aims: tuple[Aim, ...] = (NLL,),
    trials: int = 40,
    fails: Callable[[Plan], bool] = lambda plan: False,
) -> Ledger:
    """Write a RUN as a search leaves it that was killed; what was told."""
    chosen = landscape.setting(aims=aims, budget=Budget(trials, 16, 64))
    evaluator = landscape.Counting(aims, fails=fails)
    found = landscape.search(folder, chosen, evaluator)
    found.study.note("samples", "16..64")
    found.run()
    (folder / "space.tailor").write_text(landscape.TEXT)
    record = {
        **BEGUN,
        "objectives": [f"{aim.direction} {aim.name}" for aim in aims],
        "aims": [aim._asdict() for aim in aims],
        "layers": LAYERS,
        "strategy": "drifting",
        "trials": trials,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return found.ledger


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    """A RUN of one objective."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_of(folder)


@pytest.fixture(scope="module")
def report(run: tuple[Path, Ledger]) -> RunReport:
    """Return the report of the run."""
    return run_report(run[0])


def losses(ledger: Ledger) -> dict[int, float]:
    """Return the losses of trials on all samples, once for each evaluation."""
    [base] = ledger.references[64]
    return {
        t.number: t.values[0] - base
        for t in ledger.trials
        if t.values is not None and t.samples == 64 and t.same_as is None
    }


def test_each_trial_is_as_the_study_has_it(report: RunReport, run: tuple[Path, Ledger]) -> None:
    space = landscape.space()
    assert len(report.trials) == len(run[1].trials) > 40
    for shown, told in zip(report.trials, run[1].trials, strict=True):
        assert (shown.number, shown.values, shown.stderrs) == (
            told.number, told.values, told.stderrs
        )  # fmt: skip
        assert shown.origin == origin_words(told.request.origin)
        assert shown.share == told.share
        assert shown.text == gptailor.format(decode(space, told.request.genome))
        assert shown.layers == LAYERS - 2
    known = losses(run[1])
    shown_losses = {t.number: t.loss for t in report.trials if t.full}
    assert shown_losses == pytest.approx(known)
    assert report.loss_unit == "nats"


def test_what_is_not_there_is_said(report: RunReport) -> None:
    assert any("hasn't come to its end" in one for one in report.missing)
    assert report.summary is None


def test_a_loss_over_several_objectives_is_a_mean_of_shares(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, (NLL, ACCURACY), trials=12)
    report = run_report(tmp_path)
    assert report.loss_unit == "% of the base's score"
    base = ledger.references[64]
    full = next(t for t in report.trials if t.full)
    assert full.values is not None
    wanted = 50 * ((full.values[0] / base[0] - 1) + (1 - full.values[1] / base[1]))
    assert full.loss == pytest.approx(wanted)


def test_a_search_that_goes_on_is_left_alone(run: tuple[Path, Ledger]) -> None:
    journal = run[0] / "study.journal"
    before = journal.read_bytes()
    torn = before + b'{"op_code": 4, "stud'
    journal.write_bytes(torn)
    try:
        assert len(run_report(run[0]).trials) == len(run[1].trials)
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
        run_report(tmp_path)
    assert (caught.value.code, "writes it anew" in caught.value.help) == ("C903", True)


def test_a_run_without_its_space_has_trials_without_plans(tmp_path: Path) -> None:
    run_of(tmp_path, trials=6)
    (tmp_path / "space.tailor").unlink()
    report = run_report(tmp_path)
    assert all(trial.text is None and trial.layers is None for trial in report.trials)
    assert any("RUN has no space.tailor" in one for one in report.missing)


def test_sizes_are_those_that_were_written_down(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=6)
    size = {"parameters": 6_000_000, "bytes": 12_000_000, "kv_cache": 64, "layers": 6}
    said = {"base": {**size, "parameters": 8_000_000}, "plans": {ledger.trials[0].plan: size}}
    (tmp_path / "sizes.json").write_text(json.dumps(said))
    report = run_report(tmp_path)
    assert {t.size.parameters for t in report.trials if t.size} == {6_000_000}  # as large as others
    assert report.base is not None
    assert report.base.parameters == 8_000_000


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
        run_report(tmp_path)


def test_a_summary_of_another_version_is_one_message(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "summary.json").write_text('{"objectives": []}')
    with pytest.raises(CheckpointError, match=r"summary\.json") as caught:
        run_report(tmp_path)
    assert "is damaged: 'version': field required" in caught.value.message


def test_plans_that_were_handed_over_have_their_text_without_the_space(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    (tmp_path / "space.tailor").unlink()
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "trial-0001.tailor").write_text("tailor 1\n")
    texts = [trial.text for trial in run_report(tmp_path).trials]
    assert texts[1] == "tailor 1\n"
    assert texts.count(None) == len(texts) - 1


def named_storage(run: Path, folder: Path, storage: str) -> None:
    """Write a copy of a RUN whose `run.json` names a storage."""
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "storage": storage}))


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
            assert len(run_report(folder).trials) == len(run[1].trials)
            continue
        (folder / "study.journal").unlink()
        with pytest.raises(CheckpointError, match="names a storage, which is not opened") as caught:
            run_report(folder)
        assert "--storage URL" in caught.value.help
    assert victim.read_bytes() == before
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"victim.db", "run-victim.db", "run-new.db"}


def test_a_database_that_the_user_names_is_only_read(
    run: tuple[Path, Ledger], tmp_path: Path
) -> None:
    file = tmp_path / "st%udy {a}.db"
    lines = journal_lines((run[0] / "study.journal").read_bytes(), run[0])
    optuna.copy_study(
        from_study_name="gptailor",
        from_storage=JournalStorage(JournalLines(lines)),
        to_storage=RDBStorage(f"sqlite:///file:{quote(str(file))}?uri=true"),
        to_study_name="copied",
    )
    before = file.read_bytes()
    folder = tmp_path / "run"
    named_storage(run[0], folder, "sqlite:///other.db")
    (folder / "study.journal").unlink()
    url = f"sqlite:///{file}"
    report = run_report(folder, storage=url, study="copied")
    assert [trial.values for trial in report.trials] == [trial.values for trial in run[1].trials]
    with pytest.raises(CheckpointError, match="holds no study"):
        run_report(folder, storage=url)
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {file.name, "run"}


def test_a_database_without_a_study_stays_as_it_is(
    run: tuple[Path, Ledger], tmp_path: Path
) -> None:
    file = tmp_path / "mine.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table mine (a)")
        database.commit()
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="C903"):
        run_report(run[0], storage=f"sqlite:///{file}")
    with pytest.raises(CheckpointError, match="there is no such database"):
        run_report(run[0], storage=f"sqlite:///{tmp_path}/new.db")
    with pytest.raises(CheckpointError, match="opened to read only") as caught:
        run_report(run[0], storage="postgresql://me:secret@nowhere/db")
    assert "secret" not in str(caught.value)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]


@pytest.mark.parametrize("name", ["run.json", "study.journal", "space.tailor"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"holds '{name}', which leads out of it"):
        run_report(folder)
