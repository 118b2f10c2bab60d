"""RUN read: what is there, what is left alone, and refusals."""

import json
import shutil
from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.searching.folder import folder_at
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import RunReading
from gptailor.searching.space.decode import decode
from tests.searching import landscape, written_run
from tests.searching.written_run import ACCURACY, LAYERS, NLL, run_of

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
    for read in (RunReading, lambda run: folder_at(run).__enter__()):
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


def test_each_trial_is_as_the_study_has_it(run: tuple[Path, Ledger]) -> None:
    reading, space = RunReading(run[0]), landscape.space()
    assert len(reading.ledger.trials) == len(run[1].trials) > 40
    [base] = run[1].references[64]
    for shown, told in zip(reading.ledger.trials, run[1].trials, strict=True):
        assert (shown.number, shown.values, shown.stderrs, shown.share) == (
            told.number, told.values, told.stderrs, told.share
        )  # fmt: skip
        assert reading.text(shown) == gptailor.format(decode(space, told.request.genome))
        assert reading.layers(shown) == LAYERS - 2
        lost = reading.ledger.loss(shown)
        assert lost is not None
        if told.full:
            assert told.values is not None
            assert lost.value == pytest.approx(told.values[0] - base)
        assert reading.held_loss(shown) is None, "nothing is held out"


def test_a_held_out_loss_is_beside_the_base(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=2)
    scores = {"values": [2.5], "stderrs": [0.1]}
    notes = {"base": {**scores, "values": [2.0]}, ledger.trials[0].plan: scores}
    landscape.study_of(tmp_path).note("held_out", notes)
    lost = RunReading(tmp_path).held_loss(ledger.trials[0])
    assert lost == (0.5, pytest.approx(0.1))


def test_a_loss_over_several_objectives_is_a_mean_of_shares(tmp_path: Path) -> None:
    run_of(tmp_path, (NLL, ACCURACY), trials=12)
    ledger = RunReading(tmp_path).ledger
    assert ledger.loss_unit == "% of the base's score"
    base = ledger.references[64]
    full = next(t for t in ledger.trials if t.full)
    assert full.values is not None
    wanted = 50 * ((full.values[0] / base[0] - 1) + (1 - full.values[1] / base[1]))
    lost = ledger.loss(full)
    assert lost is not None
    assert lost.value == pytest.approx(wanted)


def test_sizes_are_those_that_were_written_down(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=6)
    size = {"parameters": 6_000_000, "bytes": 12_000_000, "kv_cache": 64, "layers": 6}
    said = {"base": {**size, "parameters": 8_000_000}, "plans": {ledger.trials[0].plan: size}}
    landscape.study_of(tmp_path).note("sizes", said)
    reading = RunReading(tmp_path)
    sizes = [reading.sizes.get(trial.plan) for trial in reading.ledger.trials]
    assert {size.parameters for size in sizes if size} == {6_000_000}  # as large as others


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"holds '{name}', which leads out of it"):
        RunReading(folder)
