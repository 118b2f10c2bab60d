"""The trials of a search as an Optuna study, read by Optuna itself."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.search import EXPORTERS
from gptailor.plugins.optuna_export.export import _frozen
from gptailor.searching.run_reading import read_run
from tests.searching.landscape import ACCURACY, NLL, names_of, setting
from tests.searching.written_run import run_of
from tests.support.said import in_process
from tests.support.tiny import tiny_model


def exported(run: Path) -> optuna.Study:
    """The study of a RUN as anybody reads it."""
    file = run.parent / "study.journal"
    EXPORTERS["optuna"](file)(run)
    backend = JournalFileBackend(str(file))
    return optuna.load_study(study_name="gptailor", storage=optuna.storages.JournalStorage(backend))


def test_optuna_reads_the_exported_study(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    ledger = run_of(run, trials=12, fails=lambda plan: plan.drops[0].position == 0)
    result = exported(run)
    assert result.metric_names == ["nll"]
    assert result.directions[0].name == "MINIMIZE"
    assert len(result.trials) == len(ledger.trials)
    assert {exported_trial.state.name for exported_trial in result.trials} == {
        "COMPLETE",
        "PRUNED",
        "FAIL",
    }
    best = min((t for t in ledger.trials if t.full and t.values), key=lambda t: t.values or ())
    assert result.best_value == (best.values or ())[0]
    for exported_trial, trial in zip(result.trials, ledger.trials, strict=True):
        assert exported_trial.user_attrs.get("values") == (trial.values and list(trial.values))
        if trial.values and not trial.full:
            assert exported_trial.intermediate_values == {trial.samples: trial.values[0]}
        taken = exported_trial.datetime_complete - exported_trial.datetime_start
        assert taken.total_seconds() == pytest.approx(trial.seconds, abs=0.01)
        space, genome = setting().space, trial.request.genome
        assert set(exported_trial.params) < set(names_of(space))
        for gene, bit in zip(space.bits, genome.bits, strict=True):
            if gene.group >= 0 and bit:
                assert exported_trial.params[f"drop L{gene.at}"] is True
                assert not [
                    name for name in exported_trial.params if name.startswith(f"L{gene.at} ")
                ]


@pytest.mark.filterwarnings("ignore:Some regimes")  # of a few trials
def test_optunas_importances_work_as_they_are(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    run_of(run, trials=12)
    importances = optuna.importance.get_param_importances(
        exported(run),
        evaluator=optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False),
    )
    assert set(importances) <= set(names_of(setting().space))
    assert "drop L0" in importances


def test_several_objectives_keep_their_directions(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    run_of(run, (NLL, ACCURACY), trials=8)
    result = exported(run)
    assert [item.name for item in result.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert result.metric_names == ["nll", "accuracy"]


def test_an_export_replaces_an_earlier_one_and_no_other_file(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    run_of(run, trials=4)
    assert len(exported(run).trials) == len(exported(run).trials)
    (tmp_path / "mine.txt").write_text("mine")
    for place in (tmp_path / "mine.txt", run):
        with pytest.raises(CheckpointError, match="C301"):
            EXPORTERS["optuna"](place)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_trial_that_was_given_up_is_pruned_at_its_last_sample(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    told = next(trial for trial in run_of(run, trials=4).trials if trial.values)
    given_up = replace(told, stopped=8, share=8 / 64)
    frozen = _frozen(given_up, setting().space)
    assert frozen.state.name == "PRUNED"
    assert frozen.intermediate_values == {8: (told.values or ())[0]}


@pytest.mark.slow
def test_the_command_writes_the_study_of_its_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With several objectives, and not into a file of something else."""
    tiny_model("llama", tmp_path / "base", layers=4)
    (tmp_path / "space.tailor").write_text(
        'tailor 1\nmodel base = "./base"\ndrop any 1 of L0..L3\n'
    )
    rows = [{"text": f"a cat and {n} dogs"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    run = in_process(capsys)
    wishes = ["-O", 'nll("rows.jsonl")', "-O", 'kl("rows.jsonl")', "--trials", "4"]
    command = ["search", "space.tailor", "-o", "run", *wishes, "--no-live", "--export"]
    refused = run(*command, "mine.txt")
    assert (refused.code, (tmp_path / "run").exists()) == (3, False)
    assert "C301" in refused.err
    assert run(*command, "four.journal").code == 0
    reading = read_run(tmp_path / "run")
    storage = optuna.storages.JournalStorage(JournalFileBackend("four.journal"))
    study = optuna.load_study(storage=storage, study_name="gptailor")
    assert len(study.trials) == len(reading.ledger.trials)
    assert len(study.best_trials) >= len(reading.front)
