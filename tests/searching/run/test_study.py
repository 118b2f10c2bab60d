"""A study on disk: trials and decisions that are whole or not there."""

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptailor.checkpoint.files import CheckpointError
from gptailor.evaluation.scores import Failure, PerSample
from gptailor.searching.identity import refuse_other
from gptailor.searching.run.journal import JOURNAL, JournalFile
from gptailor.searching.run.origin import (
    BestWindow,
    BlockInfluenceCut,
    BridgedCut,
    GreedyRemoval,
    ModelAlone,
    NothingDropped,
    PlanLayers,
    RandomPlan,
    StrategyPlan,
    UniformMerge,
    WindowCut,
    origin_words,
)
from gptailor.searching.run.records import RunRecord
from gptailor.searching.run.scores import Scores
from gptailor.searching.run.study import Study, open_study
from gptailor.searching.run.trials import SEARCH, Ledger, Trial, TrialRequest
from gptailor.searching.space.genome import Genome, genome_from_json, genome_to_json
from tests.searching.landscape import ACCURACY, NLL, SearchSetting, setting, study_of
from tests.searching.written_run import record_of
from tests.support.preloaded import Preloaded


@pytest.fixture(scope="module")
def chosen() -> SearchSetting:
    return setting()


def genome_of(chosen: SearchSetting) -> Genome:
    return chosen.starts.genomes[0]


def trial(chosen: SearchSetting, number: int = 0, **changes: Any) -> Trial:
    origin = StrategyPlan(strategy="drifting")
    request = TrialRequest(SEARCH, number, 0, origin, genome_of(chosen), 64, "bare", number)
    many = len(chosen.aims)
    fields = {
        "number": number,
        "request": request,
        "plan": "0" * 64,
        "share": 1.0,
        "values": tuple(1.5 + i for i in range(many)),
        "stderrs": (0.25,) * many,
    }
    return Trial(**(fields | changes))


def content(trial: Trial) -> list[Any]:
    request = replace(trial.request, genome=genome_of(setting()))
    asked = [getattr(request, item.name) for item in fields(request) if item.name != "genome"]
    kept = [getattr(trial, item.name) for item in fields(trial) if item.name != "request"]
    return [asked, genome_to_json(trial.request.genome), kept]


# ------------------------------------------------------------------------------------------- trials


def test_recorded_trials_are_read_back(tmp_path: Path, chosen: SearchSetting) -> None:
    whole = trial(chosen, 0, seconds=1.25)
    low = trial(chosen, 1, share=0.25)
    low = trial(chosen, 1, share=0.25, request=replace(low.request, samples=16, stage="healed"))
    failed = trial(chosen, 2, values=None, stderrs=None, failure=Failure("memory", "no room"))
    one = trial(chosen, 3, stderrs=(math.inf,))
    hit = trial(chosen, 4, same_as=0)
    each = PerSample((1.5, 0.25, math.inf), (2, 1, 7))
    sampled = trial(chosen, 5, per_sample=(each,), stopped=3)
    study = study_of(tmp_path)
    for recorded in (whole, low, failed, one, hit, sampled):
        study.add(recorded)
    again = study_of(tmp_path).trials
    assert [*map(content, again)] == [*map(content, (whole, low, failed, one, hit, sampled))]


def test_a_note_is_read_back_and_written_once(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    study.note("bases", {64: Scores((2.0,), (math.inf,))})
    study.note("held_out", {"base": Scores((2.0,), (0.5,))})
    before = (tmp_path / JOURNAL).read_bytes()
    for of in (study, study_of(tmp_path)):
        of.note("held_out", {"base": Scores((2.0,), (0.5,))})
    assert (tmp_path / JOURNAL).read_bytes() == before
    again = study_of(tmp_path)
    assert again.typed == study.typed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "blessed"}, "'trial.request.stage'"),
        ({"origin": {"kind": "guess"}}, "'trial.request.origin'"),
        ({"origin": {"kind": "window"}}, "'trial.request.origin.window.dropped'"),
        ({"origin": "best bridged cut"}, "'trial.request.origin'"),
        ({"origin": {"kind": "strategy", "strategy": "a\x1b[2J"}}, "control character"),
        ({"genome": {"bits": "2", "picks": [], "reals": []}}, "'bits'"),
        ({"genome": {"bits": "1", "picks": [], "reals": [2.0]}}, "'reals.0'"),
        ({"genome": "01"}, "'trial.request.genome'"),
        ({"asked_after": 3}, "with a higher number than the trials before it"),
        ({"more": 1}, "'trial.request.more': unexpected keyword"),
    ],
)
def test_a_damaged_trial_is_refused(
    tmp_path: Path, chosen: SearchSetting, changes: dict[str, Any], message: str
) -> None:
    study_of(tmp_path).add(trial(chosen))
    first, line = (tmp_path / JOURNAL).read_text().splitlines()
    record = json.loads(line)
    record["trial"]["request"] |= changes
    (tmp_path / JOURNAL).write_text(f"{first}\n{json.dumps(record)}\n")
    with pytest.raises(CheckpointError, match="line 2 of the journal is damaged") as caught:
        study_of(tmp_path)
    assert caught.value.code == "C903"
    assert message in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("bits", [0, 5])
def test_a_genome_is_exact_as_json(bits: int) -> None:
    draw = np.random.default_rng(bits)
    genome = Genome(
        draw.random(bits) < 0.5,
        draw.integers(0, 4, bits).astype(np.int32),
        draw.random(bits).astype(np.float32),
    )
    again = genome_from_json(json.loads(json.dumps(genome_to_json(genome))))
    for mine, theirs in zip(genome, again, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


# -------------------------------------------------------------------------------- torn, or not ours


@pytest.mark.parametrize("keep", [1, 100, -1])
def test_the_torn_end_of_a_killed_write_is_removed(
    tmp_path: Path, chosen: SearchSetting, keep: int
) -> None:
    study = study_of(tmp_path)
    study.add(trial(chosen))
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    study.add(trial(chosen, 1))
    torn = path.read_bytes()[len(whole) :][:keep]
    path.write_bytes(whole + torn)
    again = study_of(tmp_path)
    assert path.read_bytes() == whole
    assert [*map(content, again.trials)] == [content(trial(chosen))]
    again.add(trial(chosen, 1))
    assert len(study_of(tmp_path).trials) == 2


@pytest.mark.parametrize(
    "raw",
    [b"not a journal\n{}\n", b"\xff\xfe\n[]\n", b'{"op_code": 99}\n', b"[]\n{}\n", b"{}\n"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(raw)
    with pytest.raises(CheckpointError, match="line 1 of the journal is damaged") as caught:
        study_of(tmp_path)
    assert caught.value.code == "C903"
    assert (tmp_path / JOURNAL).read_bytes() == raw


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[:40] + b"\x00" + line[41:], "expected JSON"),
        (lambda line: line[: len(line) // 2], "expected JSON"),
        (lambda line: line.replace(b'"seconds":', b'"seconds":"long","was":'), "'trial.seconds'"),
        (lambda line: line.replace(b'"share":1.0', b'"share":NaN'), "'trial.share'"),
        (lambda line: line.replace(b'"number":3', b'"number":4'), "expected trial 3, got trial 4"),
        (lambda line: line.replace(b'"ask":3', b'"ask":2'), "two searches"),
        (lambda line: b"[" * 10_000, "expected JSON"),
    ],
)
def test_a_damaged_line_is_named_and_skipped(
    tmp_path: Path, chosen: SearchSetting, damage: Callable[[bytes], bytes], message: str
) -> None:
    study = study_of(tmp_path)
    for number in range(5):
        study.add(trial(chosen, number))
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines()
    lines[4] = damage(lines[4])
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(CheckpointError, match="line 5 of the journal is damaged") as caught:
        study_of(tmp_path)
    assert message in caught.value.message
    assert "'head -n 4'" in caught.value.help
    path.write_bytes(b"\n".join(lines[:4]) + b"\n")
    assert len(study_of(tmp_path).trials) == 3


def test_a_journal_in_no_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file") as caught:
        study_of(tmp_path / "gone")
    assert caught.value.code == "C303"


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_loses_nothing(
    preloaded: Preloaded, tmp_path: Path, chosen: SearchSetting
) -> None:
    script = (
        "import resource, sys, signal\n"
        "sys.dont_write_bytecode = True  # half a `.pyc` would stay for others\n"
        "from pathlib import Path\n"
        "from tests.searching.landscape import setting, study_of\n"
        "from tests.searching.run.test_study import trial\n"
        "from gptailor.checkpoint.files import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "chosen, folder = setting(), Path(sys.argv[1])\n"
        "study = study_of(folder)\n"
        "study.add(trial(chosen, 0))\n"
        "size = (folder / 'journal.jsonl').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))\n"
        "try:\n"
        "    study.add(trial(chosen, 1))\n"
        "except CheckpointError as error:\n"
        "    print(error.code, error.message, error.help, sep='; ')\n"
    )
    child = preloaded.start(script, tmp_path, cwd=tmp_path)
    output, errors = child.communicate()
    assert child.returncode == 0, errors
    kept = "all earlier trials are kept; run the same command to continue"
    assert output == f"C303; cannot be written: File too large; {kept}\n"
    study = study_of(tmp_path)
    assert [*map(content, study.trials)] == [content(trial(chosen))]
    study.add(trial(chosen, 1))
    assert len(study_of(tmp_path).trials) == 2


def test_a_trial_without_the_bases_score_is_refused(tmp_path: Path, chosen: SearchSetting) -> None:
    study = study_of(tmp_path)
    study.note("bases", {16: Scores((2.0,), (0.1,))})
    study.add(trial(chosen))
    with pytest.raises(CheckpointError, match="has trial 0 on 64 samples, but no score of the"):
        study_of(tmp_path).recall(Ledger(chosen.aims, 64), chosen.space)


# ------------------------------------------------------------------------------- its settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digests": {"space": "b", "models": {}, "data": {}}}, "the plan has other choices"),
        ({"seed": 4}, "its seed was '0', now '4'"),
        (
            {"digests": {"space": "a", "models": {"base": "1", "math": "3"}, "data": {}}},
            "the files of 'base', 'math' differ",
        ),
        ({"digests": {"space": "a", "models": {}, "data": {"a.txt": "1"}}}, "text in 'a.txt'"),
        (
            {"objectives": ["minimize nll", "minimize b"]},
            "its objectives were 'maximize c', now 'minimize b'",
        ),
        ({"objectives": ["maximize c"] * 2}, "its objectives were 'minimize nll' too"),
        ({"objectives": ["maximize c", "minimize nll"]}, "its objectives were in another order"),
        ({"seed": 4, "race": False}, "seed was '0', now '4'; its races were 'on', now 'o"),
        ({"trials": 39}, "it began with 40 trials, now fewer"),
    ],
)
def test_a_different_search_is_refused_with_the_differences(
    changes: dict[str, Any], message: str
) -> None:
    space = setting().space
    record = record_of((NLL, ACCURACY), 40, space) | {
        "objectives": ["minimize nll", "maximize c"],
        "digests": {"space": "a", "models": {}, "data": {}},
    }
    before = RunRecord.model_validate_json(json.dumps(record))
    refuse_other(before, before, Path("run"))
    refuse_other(None, before, Path("run"))
    refuse_other(before, before.model_copy(update={"trials": 41}), Path("run"))
    now = RunRecord.model_validate_json(json.dumps(record | changes))
    with pytest.raises(CheckpointError) as caught:
        refuse_other(before, now, Path("run"))
    assert caught.value.code == "C902"
    assert message in caught.value.message


def opened(folder: Path, *, begun: bool) -> Study:
    return open_study(JournalFile(folder / JOURNAL), begun=begun)


@pytest.mark.parametrize("lost", range(1, 4))
def test_a_journal_without_one_line_is_refused(
    tmp_path: Path, chosen: SearchSetting, lost: int
) -> None:
    study = study_of(tmp_path)
    study.note("bases", {64: Scores((2.0,), (0.1,))})
    for number in range(2):
        study.add(trial(chosen, number))
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4, "the version, the base and two trials"
    path.write_bytes(b"".join(lines[: lost - 1] + lines[lost:]))
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        study_of(tmp_path).recall(Ledger(chosen.aims, 64), chosen.space)
    assert caught.value.code == "C903"
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", ["lines", "file"])
def test_a_search_without_its_journal_is_not_started_again(tmp_path: Path, lost: str) -> None:
    if lost == "lines":
        (tmp_path / JOURNAL).touch()
    with pytest.raises(CheckpointError, match="is empty") as caught:
        opened(tmp_path, begun=True)
    assert (caught.value.code, caught.value.path) == ("C903", tmp_path / JOURNAL)
    assert "run.json" in caught.value.message
    assert "another folder" in caught.value.help


def test_a_search_without_its_record_is_not_started_again(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    opened(tmp_path, begun=False)
    opened(tmp_path, begun=False).add(trial(chosen))
    with pytest.raises(CheckpointError, match=r"run.json' with .* is missing"):
        opened(tmp_path, begun=False)


# --------------------------------------------------------------------------------- origins

MATH = ModelAlone(model="math")
MERGED = UniformMerge(models=("math", "code"), every=True, coefficient=0.6)
ORIGINS = {
    "the plan's layers": PlanLayers(),
    "uniform merge by 0.6, L1..L2 again": PlanLayers(of=MERGED, again=((1, 2),)),
    "the stack's layers of math": PlanLayers(of=MATH, stack=True),
    "block influence on math, 1 layer": BlockInfluenceCut(of=MATH, layers=1),
    "greedy removal on uniform merge of math and code": GreedyRemoval(
        of=UniformMerge(models=("math", "code"))
    ),
    "math, nothing dropped": NothingDropped(of=MATH),
    "window L3, L5 on math": WindowCut(of=MATH, dropped=(3, 5)),
    "best window of 3": BestWindow(layers=3),
    "second bridged cut": BridgedCut(rank=2),
    "random": RandomPlan(),
    "surrogate": StrategyPlan(strategy="surrogate"),
}


@pytest.mark.parametrize("words", ORIGINS)
def test_an_origin_is_noted_as_data(tmp_path: Path, chosen: SearchSetting, words: str) -> None:
    recorded = trial(chosen)
    study_of(tmp_path).add(
        replace(recorded, request=replace(recorded.request, origin=ORIGINS[words]))
    )
    [again] = study_of(tmp_path).trials
    assert again.request.origin == ORIGINS[words]
    assert origin_words(again.request.origin) == words
