"""RUN read: its contents, ignored files, and refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.output_size import OutputSize
from gptailor.searching.folder import folder_at
from gptailor.searching.run.records import HandedNote, RequiredNote, ResultNote, RunSizes
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.trials import Ledger
from gptailor.searching.run_reading import read_run
from gptailor.searching.space.decode import decode
from tests.searching import landscape, written_run
from tests.searching.written_run import ACCURACY, LAYERS, NLL, run_of

run = written_run.run


def test_reading_leaves_a_running_search_unchanged(run: tuple[Path, Ledger]) -> None:
    journal = run[0] / "journal.jsonl"
    before = journal.read_bytes()
    torn = before + b'{"trial":{"num'
    journal.write_bytes(torn)
    try:
        assert len(read_run(run[0]).ledger.trials) == len(run[1].trials)
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
        read_run(tmp_path)
    assert caught.value.code == "C903"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("tailor 1\nmodel", "has an open plan that can't be used"),
        (f"{landscape.BASE}drop any 1 of L0..L7\n", "has trial 0 of another space"),
    ],
)
def test_a_space_that_trials_are_not_of_is_refused(
    tmp_path: Path, space: str, message: str
) -> None:
    run_of(tmp_path, trials=6)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "space": space}))
    with pytest.raises(CheckpointError, match="C903") as caught:
        read_run(tmp_path)
    assert message in caught.value.message


def test_a_run_of_the_former_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"version": "0.1.0"}')
    (tmp_path / "study.journal").write_text('{"op_code":0}\n')
    for read in (read_run, lambda run: folder_at(run).__enter__()):
        with pytest.raises(
            CheckpointError, match=r"of an earlier release.*'study\.journal'"
        ) as caught:
            read(tmp_path)
        assert caught.value.code == "C902"
        assert "name a new RUN" in caught.value.help


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("run.json", None, "is not the folder of a search"),
        ("run.json", b"{", "is damaged: expected JSON"),
        ("journal.jsonl", None, "has no trials in journal.jsonl"),
        ("journal.jsonl", b"", "has no trials in journal.jsonl yet"),
        ("journal.jsonl", b"[]\n", "line 1 of the journal is damaged"),
    ],
)
def test_a_folder_without_a_search_is_one_message(
    tmp_path: Path, name: str, raw: bytes | None, message: str
) -> None:
    run_of(tmp_path, trials=2)
    if raw is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_run(tmp_path)


SIZE = OutputSize(6_000_000, 12_000_000, 64, 6)
RESULT = ResultNote(ended="budget", held=(8,), required=None, left_out=(), beyond=())


def test_a_resumed_search_has_no_result(tmp_path: Path) -> None:
    ledger, study = run_of(tmp_path, trials=2), landscape.study_of(tmp_path)
    study.note("sizes", RunSizes(base=SIZE, plans={t.plan: SIZE for t in ledger.trials}))
    study.note("result", RESULT)
    reading = read_run(tmp_path)
    assert reading.notes.result == RESULT
    assert reading.verdict is not None
    assert reading.verdict.found is reading.ledger.best()
    last = ledger.trials[-1]
    key = replace(last.request, ask=99)
    study.add(replace(last, number=len(ledger.trials), request=key))
    assert read_run(tmp_path).notes.result is None


def test_requirements_apply_to_the_front_and_the_best_plan(tmp_path: Path) -> None:
    ledger, study = run_of(tmp_path, trials=12), landscape.study_of(tmp_path)
    whole = [t for t in ledger.candidates() if t is not ledger.best()]
    required = RequiredNote(evaluated=2, whole=True, met=(whole[0].number,), nearest=None, rows=())
    study.note("sizes", RunSizes(base=SIZE, plans={t.plan: SIZE for t in ledger.trials}))
    study.note("result", RESULT.model_copy(update={"required": required}))
    reading = read_run(tmp_path)
    assert [trial.number for trial in reading.front] == [whole[0].number]
    assert reading.verdict is not None
    assert reading.verdict.best.number == whole[0].number
    unmet = required.model_copy(update={"met": (), "nearest": whole[0].number})
    study.note("result", RESULT.model_copy(update={"required": unmet}))
    assert read_run(tmp_path).verdict is None


@pytest.mark.parametrize(
    ("name", "note", "message"),
    [
        ("result", RESULT.model_copy(update={"held": (8, 8)}), "2 scores of held-out samples"),
        ("handed", HandedNote(best=99, curve=()), "names trial 99, but has only"),
    ],
)
def test_a_result_of_other_trials_is_refused(
    tmp_path: Path, name: str, note: Any, message: str
) -> None:
    run_of(tmp_path, trials=2)
    landscape.study_of(tmp_path).note(name, note)
    with pytest.raises(CheckpointError, match=message):
        read_run(tmp_path)


def test_a_result_without_sizes_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path, trials=2)
    landscape.study_of(tmp_path).note("result", RESULT)
    with pytest.raises(CheckpointError, match="has a plan without a size"):
        _ = read_run(tmp_path).verdict


def test_each_trial_is_as_the_study_has_it(run: tuple[Path, Ledger]) -> None:
    reading, space = read_run(run[0]), landscape.space()
    assert len(reading.ledger.trials) == len(run[1].trials) > 40
    [base] = run[1].references[64]
    for shown, recorded in zip(reading.ledger.trials, run[1].trials, strict=True):
        assert (shown.number, shown.values, shown.stderrs, shown.share) == (
            recorded.number, recorded.values, recorded.stderrs, recorded.share
        )  # fmt: skip
        assert reading.text(shown) == gptailor.format(decode(space, recorded.request.genome))
        assert reading.layers(shown) == LAYERS - 2
        lost = reading.ledger.loss(shown)
        assert lost is not None
        if recorded.full:
            assert recorded.values is not None
            assert lost.value == pytest.approx(recorded.values[0] - base)
        assert reading.held_loss(shown) is None, "nothing is held out"


def test_a_held_out_loss_is_relative_to_the_base(tmp_path: Path) -> None:
    ledger = run_of(tmp_path, trials=2)
    notes = {"base": Scores((2.0,), (0.1,)), ledger.trials[0].plan: Scores((2.5,), (0.1,))}
    landscape.study_of(tmp_path).note("held_out", notes)
    lost = read_run(tmp_path).held_loss(ledger.trials[0])
    assert lost == (0.5, pytest.approx(0.1))


def test_a_loss_over_several_objectives_is_a_mean_of_shares(tmp_path: Path) -> None:
    run_of(tmp_path, (NLL, ACCURACY), trials=12)
    ledger = read_run(tmp_path).ledger
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
    reading = read_run(tmp_path)
    sizes = [reading.sizes.get(trial.plan) for trial in reading.ledger.trials]
    assert {size.parameters for size in sizes if size} == {6_000_000}  # as large as others


@pytest.mark.parametrize("name", ["run.json", "journal.jsonl"])
def test_a_link_out_of_run_is_refused(run: tuple[Path, Ledger], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(CheckpointError, match=f"contains '{name}', a link out of the folder"):
        read_run(folder)
