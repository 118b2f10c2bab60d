"""A study on disk: trials that are whole or not there, that Optuna's own tools read."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from pydantic import ValidationError

from gptailor.checkpoint.files import CheckpointError
from gptailor.evaluation.scores import Failure, PerSample
from gptailor.searching.run import study as study_module
from gptailor.searching.run.notes import TrialNote
from gptailor.searching.run.origin import (
    BestWindow,
    BlockInfluenceCut,
    BridgedCut,
    EarlierOrigin,
    GreedyRemoval,
    ModelAlone,
    NothingDropped,
    PlanLayers,
    RandomPlan,
    StrategyPlan,
    UniformMerge,
    WindowCut,
)
from gptailor.searching.run.study import Naming, Study, agree, mend, open_study
from gptailor.searching.run.trials import (
    SEARCH,
    Trial,
    TrialRequest,
    genome_from_json,
    genome_to_json,
)
from gptailor.searching.space.genome import Genome
from tests.searching.landscape import ACCURACY, KL, NLL, SearchSetting, setting, study_of
from tests.support.preloaded import Preloaded


@pytest.fixture(scope="module")
def chosen() -> SearchSetting:
    return setting()


@pytest.fixture(scope="module")
def three() -> SearchSetting:
    return setting(aims=(NLL, ACCURACY, KL))


def genome_of(chosen: SearchSetting) -> Genome:
    return chosen.starts.genomes[0]


def trial(chosen: SearchSetting, number: int = 0, **changes: Any) -> Trial:
    origin = StrategyPlan(strategy="drifting")
    request = TrialRequest(SEARCH, number, 0, origin, genome_of(chosen), 64, "bare", number)
    many = len(chosen.aims)
    said = {
        "number": number,
        "request": request,
        "plan": "0" * 64,
        "share": 1.0,
        "values": tuple(1.5 + i for i in range(many)),
        "stderrs": (0.25,) * many,
    }
    return Trial(**(said | changes))


def journal(folder: Path) -> optuna.Study:
    """The study as anybody reads it."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name="gptailor", storage=optuna.storages.JournalStorage(backend))


def fields(told: Trial) -> list[Any]:
    request = told.request._replace(genome=genome_to_json(told.request.genome))
    return [request, *(value for name, value in vars(told).items() if name != "request")]


# ------------------------------------------------------------------------------------------- trials


def test_trials_come_back_as_they_were_told(tmp_path: Path, chosen: SearchSetting) -> None:
    whole = trial(chosen, 0, seconds=1.25)
    low = trial(chosen, 1, share=0.25)
    low = trial(chosen, 1, share=0.25, request=low.request._replace(samples=16, stage="healed"))
    failed = trial(chosen, 2, values=None, stderrs=None, failure=Failure("memory", "no room"))
    one = trial(chosen, 3, stderrs=(math.inf,))
    hit = trial(chosen, 4, same_as=0)
    each = PerSample((1.5, 0.25, math.inf), (2, 1, 7))
    sampled = trial(chosen, 5, per_sample=(each,))
    study = study_of(tmp_path, chosen)
    for told in (whole, low, failed, one, hit, sampled):
        study.add(told)
    again = study_of(tmp_path, chosen).trials()
    assert list(map(fields, again)) == list(map(fields, (whole, low, failed, one, hit, sampled)))


def test_older_trials_say_whether_they_were_bridged(
    tmp_path: Path, chosen: SearchSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, chosen)
    new = study_module._attributes

    def old(told: Trial) -> dict[str, Any]:
        said = new(told)
        return {**said, "bridged": said.pop("stage") == "bridged"}

    monkeypatch.setattr(study_module, "_attributes", old)
    bare = trial(chosen, 0)
    bridged = trial(chosen, 1, request=trial(chosen, 1).request._replace(stage="bridged"))
    for told in (bare, bridged):
        study.add(told)
    again = study_of(tmp_path, chosen).trials()
    assert [one.request.stage for one in again] == ["bare", "bridged"]


def test_an_unknown_stage_is_of_no_search(tmp_path: Path, chosen: SearchSetting) -> None:
    study = study_of(tmp_path, chosen)
    study.add(trial(chosen, 0, request=trial(chosen, 0).request._replace(stage="blessed")))
    with pytest.raises(CheckpointError, match="line 3 of the journal is damaged") as caught:
        study_of(tmp_path, chosen).trials()
    assert caught.value.code == "C903"


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


def test_optuna_reads_what_it_knows(tmp_path: Path, chosen: SearchSetting) -> None:
    study = study_of(tmp_path, chosen)
    study.add(trial(chosen, 0, seconds=2.0))
    low = trial(chosen, 1, share=0.25)
    study.add(trial(chosen, 1, share=0.25, request=low.request._replace(samples=16)))
    study.add(trial(chosen, 2, values=None, stderrs=None, failure=Failure("nan", "no number")))
    found = journal(tmp_path)
    states = [one.state.name for one in found.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL"]
    assert found.metric_names == ["nll"]
    assert found.directions[0].name == "MINIMIZE"
    assert found.best_trial.number == 0
    assert found.best_value == 1.5
    assert found.trials[1].intermediate_values == {16: 1.5}
    assert found.trials[2].user_attrs["failure"] == "nan: no number"
    taken = found.trials[0].datetime_complete - found.trials[0].datetime_start
    assert taken.total_seconds() == pytest.approx(2.0, abs=0.01)


def test_parameters_are_the_genes_that_say_something(tmp_path: Path, chosen: SearchSetting) -> None:
    space, genome = chosen.space, genome_of(chosen)
    study_of(tmp_path, chosen).add(trial(chosen))
    [found] = journal(tmp_path).trials
    assert set(found.params) < set(space.names)
    dropped = [gene.at for gene, bit in zip(space.bits, genome.bits, strict=True)
               if gene.group >= 0 and bit]  # fmt: skip
    for position in dropped:
        assert found.params[f"drop L{position}"] is True
        assert not [name for name in found.params if name.startswith(f"L{position} ")]
    reals = {gene.name: gene for gene in space.reals}
    for name in reals.keys() & found.params.keys():
        assert isinstance(found.distributions[name], optuna.distributions.FloatDistribution)
        assert 0 <= found.params[name] <= 1


@pytest.mark.filterwarnings("ignore:Some regimes")  # of four trials
def test_optunas_plots_and_importances_work_as_they_are(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    study = study_of(tmp_path, chosen)
    for number, genome in enumerate(chosen.starts.genomes):
        request = trial(chosen, number).request._replace(genome=genome)
        study.add(trial(chosen, number, request=request, values=(2.0 - number / 4,)))
    found = journal(tmp_path)
    importances = optuna.importance.get_param_importances(
        found, evaluator=optuna.importance.PedAnovaImportanceEvaluator(evaluate_on_local=False)
    )
    assert set(importances) <= set(chosen.space.names)
    assert "drop L0" in importances


def test_several_objectives_keep_their_directions(tmp_path: Path, three: SearchSetting) -> None:
    study = study_of(tmp_path, three)
    study.add(trial(three))
    low = trial(three, 1, share=0.25)
    study.add(low)
    found = journal(tmp_path)
    assert [one.name for one in found.directions] == ["MINIMIZE", "MAXIMIZE", "MINIMIZE"]
    assert found.metric_names == ["nll", "accuracy", "kl"]
    assert [one.number for one in found.best_trials] == [0]
    assert found.trials[1].user_attrs["values"] == list(low.values)
    assert fields(study_of(tmp_path, three).trials()[1]) == fields(low)


def test_a_database_holds_the_same(tmp_path: Path, chosen: SearchSetting) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study_of(url, chosen, "mine").add(trial(chosen))
    [again] = study_of(url, chosen, "mine").trials()
    assert fields(again) == fields(trial(chosen))
    assert study_of(url, chosen, "other").trials() == []


# -------------------------------------------------------------------------------- torn, or not ours


@pytest.mark.parametrize("keep", [1, 100, -1])
def test_the_torn_end_of_a_killed_write_is_removed(
    tmp_path: Path, chosen: SearchSetting, keep: int
) -> None:
    """Optuna reads past it, but would put the next line right behind it."""
    study = study_of(tmp_path, chosen)
    study.add(trial(chosen))
    path = tmp_path / "study.journal"
    whole = path.read_bytes()
    study.add(trial(chosen, 1))
    torn = path.read_bytes()[len(whole) :][:keep]
    path.write_bytes(whole + torn)
    (tmp_path / "study.journal.lock").symlink_to("study.journal")
    again = study_of(tmp_path, chosen)
    assert path.read_bytes() == whole
    assert list(map(fields, again.trials())) == [fields(trial(chosen))]
    again.add(trial(chosen, 1))
    assert len(journal(tmp_path).trials) == 2


def test_without_mending_optuna_would_fail(tmp_path: Path, chosen: SearchSetting) -> None:
    """`mend` is needed as long as this fails; if Optuna mends by itself, `mend` can go."""
    study_of(tmp_path, chosen)
    path = tmp_path / "study.journal"
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    journal(tmp_path).set_user_attr("a", 1)
    with pytest.raises(ValueError, match="delimiter"):
        journal(tmp_path).set_user_attr("b", 2)


def test_mending_what_is_whole_changes_nothing(tmp_path: Path, chosen: SearchSetting) -> None:
    mend(tmp_path / "study.journal")
    assert not (tmp_path / "study.journal").exists()
    study_of(tmp_path, chosen).add(trial(chosen))
    before = (tmp_path / "study.journal").read_bytes()
    mend(tmp_path / "study.journal")
    assert (tmp_path / "study.journal").read_bytes() == before


@pytest.mark.parametrize(
    "raw", [b"not a journal\n{}\n", b"\xff\xfe\n[]\n", b'{"op_code": 99}\n{"a": 1}\n', b"[]\n{}\n"]
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, chosen: SearchSetting, raw: bytes
) -> None:
    (tmp_path / "study.journal").write_bytes(raw)
    with pytest.raises(CheckpointError, match="line 1 of the journal is damaged") as caught:
        study_of(tmp_path, chosen).trials()
    assert caught.value.code == "C903"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[:40] + b"\x00" + line[41:], "expected JSON"),
        (lambda line: line[: len(line) // 2], "expected JSON"),
        (lambda line: line.replace(b'"op_code":4', b'"op_code":44'), ""),
        (lambda line: line.replace(b'"seconds":', b'"seconds":"long","was":'), "'seconds'"),
        (lambda line: line.replace(b'"datetime_start":"20', b'"datetime_start":"x'), "isoformat"),
    ],
)
def test_a_damaged_line_is_named_and_the_search_goes_on_without_it(
    tmp_path: Path, chosen: SearchSetting, damage: Callable[[bytes], bytes], message: str
) -> None:
    study = study_of(tmp_path, chosen)
    for number in range(5):
        study.add(trial(chosen, number))
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines()
    lines[4] = damage(lines[4])
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(CheckpointError, match="line 5 of the journal is damaged") as caught:
        study_of(tmp_path, chosen)
    assert message in caught.value.message
    assert "'head -n 4'" in caught.value.help
    path.write_bytes(b"\n".join(lines[:4]) + b"\n")
    assert len(study_of(tmp_path, chosen).trials()) == 2


def test_trials_of_somebody_else_are_refused(tmp_path: Path, chosen: SearchSetting) -> None:
    study_of(tmp_path, chosen)
    journal(tmp_path).add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(CheckpointError, match="has a damaged trial 0: 'phase': field required"):
        study_of(tmp_path, chosen).trials()


def test_a_study_of_other_directions_is_refused(
    tmp_path: Path, chosen: SearchSetting, three: SearchSetting
) -> None:
    study_of(tmp_path, three)
    with pytest.raises(CheckpointError, match="its objectives were 'm") as caught:
        study_of(tmp_path, chosen)
    assert caught.value.code == "C902"
    gone = [f"'{a.direction} {a.name}'" for a in three.aims if a not in chosen.aims]
    assert all(one in caught.value.message for one in gone), caught.value.message


def test_a_study_of_more_directions_than_names_is_refused(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    study_of(tmp_path, chosen)
    path = tmp_path / "study.journal"
    path.write_text(path.read_text().replace('"directions":[1]', '"directions":[1,1]'))
    with pytest.raises(CheckpointError, match=r"C902.*its objectives were"):
        study_of(tmp_path, chosen)


def test_an_evaluation_that_is_there_twice_is_refused(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    study = study_of(tmp_path, chosen)
    study.add(trial(chosen, 0))
    study.add(trial(chosen, 1, request=trial(chosen, 0).request))
    with pytest.raises(CheckpointError, match="two searches"):
        study_of(tmp_path, chosen).trials()


def test_a_folder_that_is_not_there_is_one_message(tmp_path: Path, chosen: SearchSetting) -> None:
    with pytest.raises(CheckpointError, match="No such file") as caught:
        study_of(tmp_path / "gone", chosen)
    assert caught.value.code == "C303"
    with pytest.raises(CheckpointError) as caught:
        study_of("sqlite:////gone/gone.db", chosen)
    assert caught.value.code == "C903"
    with pytest.raises(CheckpointError) as caught:
        study_of("nonsense", chosen)
    assert caught.value.code == "C903"


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
        "study = study_of(folder, chosen)\n"
        "study.add(trial(chosen, 0))\n"
        "size = (folder / 'study.journal').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))\n"
        "try:\n"
        "    study.add(trial(chosen, 1))\n"
        "except CheckpointError as error:\n"
        "    print(error.code, error.message)\n"
    )
    child = preloaded.start(script, tmp_path, cwd=tmp_path)
    output, errors = child.communicate()
    assert child.returncode == 0, errors
    assert output == "C303 cannot be written: File too large\n"
    study = study_of(tmp_path, chosen)
    assert list(map(fields, study.trials())) == [fields(trial(chosen))]
    study.add(trial(chosen, 1))
    assert len(study_of(tmp_path, chosen).trials()) == 2


# ------------------------------------------------------------------------------- what it is held to

WORDS = {
    "space": "the space is another",
    "seed": "the seed was {}",
    "models": "other files of {}",
    "objectives": "the objectives were {}",
}
IDENTITY = {
    "space": "a" * 64,
    "seed": 3,
    "models": {"base": "1", "math": "2"},
    "objectives": "minimize b; maximize c",
}


def held(folder: Path, chosen: SearchSetting, version: str = "", **changes: Any) -> Study:
    study = study_of(folder, chosen)
    agree(study, IDENTITY | changes, WORDS, version)
    return study


def test_a_study_agrees_with_what_it_was_begun_with(tmp_path: Path, chosen: SearchSetting) -> None:
    held(tmp_path, chosen).add(trial(chosen))
    held(tmp_path, chosen)
    assert journal(tmp_path).user_attrs == IDENTITY


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": "b" * 64}, "the space is another"),
        ({"seed": 4}, "the seed was '3', and now '4'"),
        ({"models": {"base": "1", "math": "3"}}, "other files of 'math'"),
        ({"models": {"base": "1"}}, "other files of 'math'"),
        (
            {"objectives": "minimize a; minimize b"},
            "the objectives were 'maximize c', and now 'minimize a'",
        ),
        ({"objectives": "maximize c"}, "the objectives were 'minimize b' too"),
        ({"objectives": "minimize b; maximize c; d"}, "the objectives were without 'd'"),
        ({"objectives": "maximize c; minimize b"}, "the objectives were in another order"),
        ({"seed": 4, "space": ""}, "the space is another; the seed was '3', and now '4'"),
    ],
)
def test_what_differs_is_refused_in_words(
    tmp_path: Path, chosen: SearchSetting, changes: dict[str, Any], said: str
) -> None:
    held(tmp_path, chosen).add(trial(chosen))
    with pytest.raises(CheckpointError) as caught:
        held(tmp_path, chosen, **changes)
    assert caught.value.code == "C902"
    assert said in caught.value.message


def test_a_search_that_died_before_it_said_all_goes_on(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    study = study_of(tmp_path, chosen)
    study.note("space", IDENTITY["space"])
    held(tmp_path, chosen)
    assert journal(tmp_path).user_attrs == IDENTITY


def test_trials_without_a_word_of_what_they_are_of_are_refused(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    study_of(tmp_path, chosen).add(trial(chosen))
    with pytest.raises(CheckpointError, match="lost a line before line 3: the search's space") as c:
        held(tmp_path, chosen)
    assert (c.value.code, c.value.path) == ("C903", tmp_path / "study.journal")
    assert "version" not in f"{c.value.message} {c.value.help}"
    assert "copy" in c.value.help
    with pytest.raises(CheckpointError, match="without its space") as c:
        held(tmp_path, chosen, version="0.1.0")
    assert c.value.help == "gptailor '0.1.0' began it: go on with that, or name another RUN"


@pytest.mark.parametrize("lost", range(1, 7))
def test_a_journal_without_one_line_goes_on_or_is_refused(
    tmp_path: Path, chosen: SearchSetting, lost: int
) -> None:
    held(tmp_path, chosen).add(trial(chosen))
    path = tmp_path / "study.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7, "the study, the names of its objectives, four notes and a trial"
    path.write_bytes(b"".join(lines[: lost - 1] + lines[lost:]))
    if lost == 2:
        assert len(held(tmp_path, chosen).trials()) == 1, "the objectives' names are written anew"
        return
    before = path.read_bytes()
    place = "line 1 of the journal is damaged" if lost == 1 else "lost a line before line 6"
    with pytest.raises(CheckpointError, match=place) as caught:
        held(tmp_path, chosen)
    assert caught.value.code == "C903"
    assert "another RUN" in caught.value.help
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", ["lines", "file"])
def test_a_search_whose_journal_is_lost_is_not_begun_anew(
    tmp_path: Path, chosen: SearchSetting, lost: str
) -> None:
    path = tmp_path / "study.journal"
    if lost == "lines":
        path.touch()
    with pytest.raises(CheckpointError, match="holds no study 'gptailor'") as caught:
        open_study(path, "gptailor", chosen.aims, Naming(chosen.space), begun=True)
    assert (caught.value.code, caught.value.path) == ("C903", path)
    assert "run.json" in caught.value.message
    assert "another RUN" in caught.value.help


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


def noted(folder: Path, told: Trial, chosen: SearchSetting) -> dict[str, Any]:
    """Return a study's attributes of a trial."""
    study_of(folder, chosen).add(told)
    [frozen] = journal(folder).get_trials()
    return dict(frozen.user_attrs)


@pytest.mark.parametrize("words", ORIGINS)
def test_an_origin_is_noted_as_data_with_its_words_beside(
    tmp_path: Path, chosen: SearchSetting, words: str
) -> None:
    told = trial(chosen)
    told = replace(told, request=told.request._replace(origin=ORIGINS[words]))
    note = noted(tmp_path, told, chosen)
    assert note["origin_words"] == words
    assert note["origin"]["kind"] == ORIGINS[words].kind
    [again] = study_of(tmp_path, chosen).trials()
    assert again.request.origin == ORIGINS[words]


def test_the_words_of_an_earlier_release_are_read_as_words_alone(
    tmp_path: Path, chosen: SearchSetting
) -> None:
    note = {**noted(tmp_path, trial(chosen), chosen), "origin": "best bridged cut"}
    assert TrialNote.model_validate(note).origin == EarlierOrigin(words="best bridged cut")


@pytest.mark.parametrize("origin", [{"kind": "guess"}, {"kind": "window"}, {}, 3, "a\x1b[2J"])
def test_a_damaged_origin_is_refused(tmp_path: Path, chosen: SearchSetting, origin: object) -> None:
    note = {**noted(tmp_path, trial(chosen), chosen), "origin": origin}
    with pytest.raises(ValidationError):
        TrialNote.model_validate(note)
