"""`gptailor search`: the found plan scores and compiles as printed; bad input is one message."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import chdir, nullcontext, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import pytest

import gptailor
from gptailor.cli import main as cli
from gptailor.plan.registry import STRATEGIES
from gptailor.program.compile import Compiled
from gptailor.program.sources import Checked
from gptailor.reporting.quantities import shown_number
from gptailor.searching import results
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import FINAL
from gptailor.searching.run_reading import RunReading, read_run
from gptailor.searching.search import Scored, SearchEvent
from gptailor.searching.search import search as find
from gptailor.searching.settings import Flags
from gptailor.searching.summary import Verdict, best_starts, drawn_plans, numbers_at_bounds
from tests.searching import landscape  # noqa: F401 (compiles once for all tests)
from tests.support.preloaded import Child, Preloaded
from tests.support.said import Run, Said, in_process
from tests.support.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "brief_answers")]

SPACE = """\
tailor 1
model base = "./base"
model math = "./math"
drop any 2 of L1..L4
L0..L5 from one of base, math
"""
CUTS = "".join(SPACE.splitlines(keepends=True)[:-1]).replace('model math = "./math"\n', "")
HEALED = 'bridge on "text.txt" tokens 2048\nheal on "text.txt" tokens 2048\n'
WISHES = """
search {
  minimize nll("rows.jsonl")
  fidelity 4..12
  trials 8
}
"""

LIMITED = """
import resource, signal, sys
sys.dont_write_bytecode = True
import jax
jax.config.update("jax_enable_compilation_cache", False)  # it would write too
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=6)
    rows = [{"text": f"a cat and {n} dogs " * (1 + n % 3)} for n in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions = [{"query": f"{n}:", "choices": ["so", "no"], "gold": n % 2} for n in range(20)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (folder / "space.tailor").write_text(SPACE + WISHES)
    (folder / "bare.tailor").write_text(SPACE)
    (folder / "healed.tailor").write_text(SPACE + HEALED + WISHES)
    text = "".join(f"the {n} cats sat on {n * n} mats and looked at the dog. " for n in range(400))
    (folder / "text.txt").write_text(text)
    (folder / "few.txt").write_text("a cat")
    (folder / "closed.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L2\n' + WISHES)
    return folder


class Search:
    """The command `search`."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self.request = request
        self.folder = folder

    def begin(self, *arguments: object, before: str = "") -> Child:
        """Start it in a process of its own; `before` is a script that runs first."""
        script = (
            f"import sys\n{before}\n"
            "from gptailor.cli.main import run\n"
            "sys.exit(run(['search', *sys.argv[1:]]))\n"
        )
        preloaded: Preloaded = self.request.getfixturevalue("preloaded")
        return preloaded.start(script, *arguments, cwd=self.folder)

    def __call__(self, *arguments: object, code: int = 0, before: str = "") -> Said:
        """Run it to its end, in this process if nothing runs `before`."""
        if before:
            process = self.begin(*arguments, before=before)
            out, err = process.communicate()
            result = Said(process.returncode or 0, out, err)
        else:
            told, errors = StringIO(), StringIO()
            with chdir(self.folder), redirect_stdout(told), redirect_stderr(errors):
                ended = cli.run(["search", *map(str, arguments)])
            result = Said(ended, told.getvalue(), errors.getvalue())
        assert result.code == code, result.err
        assert "Traceback" not in result.err, result.err
        return result


@pytest.fixture(scope="module")
def search(request: pytest.FixtureRequest, world: Path) -> Search:
    return Search(request, world)


@pytest.fixture(scope="module")
def found(search: Search) -> Said:
    """One whole search, in `world/run`."""
    return search("space.tailor", "-o", "run", "--strategy", "random")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path) -> Run:
    """Run a command in the world's folder, in this process."""
    monkeypatch.chdir(world)
    return in_process(capsys)


def verdict_of(run: RunReading) -> Verdict:
    """Return the verdict on a plan that was found."""
    assert run.verdict is not None
    return run.verdict


def commands(run: Path) -> list[str]:
    """Return the commands that the summary's page names."""
    lines = (run / "summary.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    gptailor")]


# ----------------------------------------------------------------------------- the results


def test_the_folder_holds_all_that_was_promised(found: Said, world: Path) -> None:
    names = {path.name for path in (world / "run").iterdir()}
    assert names == {
        ".lock", "best.tailor", "best.tailor.lock",
        "start.tailor", "front", "run.json", "journal.jsonl", "summary.md",
    }  # fmt: skip
    reading = read_run(world / "run")
    assert reading.ledger.cost() <= 8
    assert reading.end.ended == "budget"
    settings = json.loads((world / "run" / "run.json").read_text())
    assert settings["strategy"] == "random"
    assert settings["trials"] == 8
    assert settings["fidelity"] == "4..12"


def test_progress_is_lines_and_results_a_table(found: Said) -> None:
    assert len(re.findall(r"^\S+/8  \d+: .*L\d.* dropped", found.err, re.MULTILINE)) > 8
    assert max(map(len, found.out.partition("    gptailor")[0].splitlines())) <= 80
    assert re.search(r"^  start \d+: L\d.* dropped", found.out, re.MULTILINE)
    assert re.search(r"^  base ", found.out, re.MULTILINE)
    assert "12 samples, 8 held out" in found.out
    assert "run/best.tailor" in found.out


def test_the_printed_command_gives_the_recorded_score(found: Said, run: Run, world: Path) -> None:
    """By the very command that the summary names."""
    best = verdict_of(read_run(world / "run")).best
    words = re.findall(r"'[^']*'|\S+", commands(world / "run")[0])
    again = run(*(word.strip("'") for word in words[1:]), "--format", "json", "--no-speed")
    assert again.code == 0, again.err
    [result] = json.loads(again.out)["results"]
    assert ((result["score"],), (result["stderr"],)) == (best.values, best.stderrs)


def test_the_best_plan_compiles_to_its_lock_from_anywhere(
    found: Said, run: Run, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    best = world / "run" / "best.tailor"
    compiled = run("compile", best, "-o", tmp_path / "out", "--locked")
    assert compiled.code == 0, compiled.err
    assert run("verify", tmp_path / "out").code == 0


def test_found_plans_are_canonical_and_name_their_trial(found: Said, run: Run, world: Path) -> None:
    [front] = (world / "run" / "front").iterdir()
    best = world / "run" / "best.tailor"
    assert run("fmt", "--check", best, front).code == 0
    reading = read_run(world / "run")
    number = verdict_of(reading).best.number
    text = best.read_text()
    assert f"trial {number} of {len(reading.ledger.trials)}" in text
    assert "seed 0" in text
    assert 'nll("rows.jsonl"): ' in text
    assert "2 dropped" in text
    assert 'model base = "../base"' in text
    assert front.name == f"trial-{number:04}.tailor"
    assert 'model base = "../../base"' in front.read_text()
    ones = [gptailor.load(path) for path in (best, front)]
    assert ones[0].layers == ones[1].layers
    assert ones[0].search is None
    assert gptailor.check(ones[0]) == []


def test_a_run_has_the_scores_of_base_and_starts_for_its_summary(found: Said, world: Path) -> None:
    reading = read_run(world / "run")
    verdict, starts = verdict_of(reading), best_starts(reading.ledger)
    assert reading.ledger.references[12]
    assert reading.held_scores(None)
    assert reading.held_scores(verdict.best)
    assert starts
    assert all(map(reading.held_scores, starts))
    [drawn] = drawn_plans(reading.ledger)
    best = min(trial.values[0] for trial in starts if trial.values)
    assert verdict.best.values is not None
    assert verdict.best.values[0] <= best
    page = (world / "run" / "summary.md").read_text()
    assert page.startswith("# space.tailor\n")
    assert page.count("\n| ") == len({*starts, verdict.found, verdict.best, drawn}) + 2


def test_the_same_command_ends_at_once_and_changes_nothing(
    found: Said, run: Run, world: Path
) -> None:
    before = {p: p.read_bytes() for p in (world / "run").rglob("*") if p.is_file()}
    again = run("search", "space.tailor", "-o", "run", "--strategy", "random")
    assert again.code == 0, again.err
    assert again.out == found.out
    assert {p: p.read_bytes() for p in (world / "run").rglob("*") if p.is_file()} == before


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1"], "its seed was '0', now '1'"),
        (["--strategy", "surrogate"], "its strategy was 'random', now 'surrogate'"),
        (["--trials", "4"], "it began with 8 trials"),
        (
            ["--fidelity", "4..10"],
            "its samples, from cheapest to full, were '4..12', now '4..10'",
        ),
        (["--fidelity", "6"], "were '4..12', now '6..6'"),
        (["-O", 'perplexity("rows.jsonl")'], "its objectives were"),
        (["--dtype", "bfloat16"], "its models computed in"),
        (["--no-race"], "its races were 'on', now 'off'"),
        (["--model", "math=base"], "the files of 'math' differ"),
    ],
)
def test_a_folder_of_another_search_is_refused(
    found: Said, run: Run, world: Path, arguments: list[str], message: str
) -> None:
    before = (world / "run" / "run.json").read_text()
    wanted = ["--strategy", "random", *arguments]
    refused = run("search", "space.tailor", "-o", "run", *wanted)
    assert refused.code == 3
    assert "error[C902]" in refused.err
    assert message in refused.err
    assert (world / "run" / "run.json").read_text() == before


def test_another_text_or_space_is_refused(
    found: Said, run: Run, world: Path, tmp_path: Path
) -> None:
    text = SPACE.replace('"./', f'"{world}/').replace("any 2", "any 3") + WISHES
    (tmp_path / "space.tailor").write_text(text.replace('"rows', f'"{world}/rows'))
    refused = run("search", tmp_path / "space.tailor", "-o", "run", "--strategy", "random")
    assert refused.code == 3
    assert "the plan has other choices" in refused.err
    rows = (world / "rows.jsonl").read_text()
    try:
        (world / "rows.jsonl").write_text(rows.replace("dogs", "pigs"))
        refused = run("search", "space.tailor", "-o", "run", "--strategy", "random")
    finally:
        (world / "rows.jsonl").write_text(rows)
    assert refused.code == 3
    assert "the text in 'rows.jsonl' differs" in refused.err


def test_a_search_in_place_of_its_space_is_named(found: Said, run: Run) -> None:
    refused = run("search", "run", "-o", "space.tailor")
    assert refused.code == 3
    assert "error[C201]: 'run' is the folder of a search" in refused.err
    assert "'gptailor search SPACE -o run' continues the search" in refused.err


def test_two_searches_on_one_folder_are_refused(found: Said, run: Run, world: Path) -> None:
    import fcntl

    with (world / "run" / ".lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = run("search", "space.tailor", "-o", "run", "--strategy", "random")
    assert refused.code == 3
    assert "error[C901]: another search uses this folder" in refused.err


@pytest.mark.parametrize(
    ("plan", "arguments", "code", "message"),
    [
        ("closed.tailor", [], 1, "the plan has no open choices"),
        ("bare.tailor", [], 1, "the search has no objective"),
        ("gone.tailor", [], 3, "gone.tailor"),
        ("space.tailor", ["--strategy", "surogate"], 1, "did you mean 'surrogate'?"),
        (
            "space.tailor",
            ["--strategy", "evolution"],
            1,
            "there is no strategy 'evolution'; the strategies are surrogate",
        ),
        (
            "space.tailor",
            ["--prefer", "kl"],
            1,
            'must match exactly one objective of: 1 nll("',
        ),
        ("space.tailor", ["--prefer", "2"], 1, "must match exactly one"),
        ("space.tailor", ["--bridge", "each"], 1, "--bridge needs a plan"),
        (
            "space.tailor",
            ["--finalists", "2"],
            1,
            "--finalists needs a plan with",
        ),
        ("healed.tailor", ["--finalists", "5"], 1, "expected 1 to 4 finalists for 8 trials, got 5"),
        ("healed.tailor", ["--finalists", "0"], 2, "finalists"),
        ("space.tailor", ["--fidelity", "9..2"], 2, "such as 64..1024, got '9..2'"),
        ("space.tailor", ["--fidelity", "0"], 2, "such as 64..1024, got '0'"),
        ("space.tailor", ["--trials", "0"], 2, "trials"),
        ("space.tailor", ["--dtype", "int8"], 2, "int8"),
        ("bare.tailor", ["-O", 'nl("rows.jsonl")'], 1, "did you mean 'nll'?"),
        (
            "bare.tailor",
            ["-O", 'nll("rows.jsonl")', "-O", 'nll("rows.jsonl")'],
            1,
            'nll("rows.jsonl") is given twice',
        ),
        (
            "bare.tailor",
            ["-O", 'nll("rows.jsonl")', "-O", 'nll("./rows.jsonl")'],
            1,
            'nll("./rows.jsonl") is given twice',
        ),
        ("bare.tailor", ["-O", 'kl("rows.jsonl", from=code)'], 1, "'code' is not declared"),
    ],
)
def test_bad_input_is_reported_before_anything_is_loaded(
    run: Run, world: Path, plan: str, arguments: list[str], code: int, message: str
) -> None:
    refused = run("search", plan, "-o", "new", *arguments)
    assert refused.code == code, refused.err
    assert message in refused.err
    assert refused.out == ""
    assert not (world / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fidelity", "4..21"], 1, "goes up to 21 samples, but 'nll(\"rows.jsonl\")' has 20"),
        (["-O", 'nll("gone.jsonl")'], 3, "gone.jsonl"),
        (["--device", "cuda:99"], 3, "cuda:99"),
        (["--model", "code=base"], 1, "'code'"),
        (["--export", "rows.jsonl"], 3, "error[C301]"),
    ],
)
def test_a_missing_requirement_is_one_message_and_leaves_no_folder(
    run: Run, world: Path, arguments: list[str], code: int, message: str
) -> None:
    refused = run("search", "space.tailor", "-o", "new", *arguments)
    assert refused.code == code, refused.err
    assert message in refused.err
    assert not (world / "new").exists()


def test_a_folder_that_is_not_of_a_search_is_refused(run: Run, world: Path) -> None:
    refused = run("search", "space.tailor", "-o", "base")
    assert refused.code == 3
    assert "error[C902]: expected the folder of a search, got one with 'config.json'" in refused.err
    assert not (world / "base" / ".lock").exists()
    refused = run("search", "space.tailor", "-o", "rows.jsonl")
    assert refused.code == 3
    assert "expected a folder for the search" in refused.err


# ------------------------------------------------------------------------------- what else it does


def test_starts_of_named_coefficients_have_each_model_alone_and_bounds_are_reported(
    search: Search, world: Path
) -> None:
    text = (
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nmodel code = "./math"\n'
        "let m = 0.0..1.0\nlet c = 0.0..1.0\n"
        "others from math, code by task_arithmetic(weight=(m, c))\n"
    )
    (world / "named.tailor").write_text(text)
    wishes = ["-O", 'nll("rows.jsonl")', "--strategy", "random", "--trials", "16"]
    result = search("named.tailor", "-o", "named", *wishes)
    reading = read_run(world / "named")
    origins = {origin_words(trial.request.origin) for trial in best_starts(reading.ledger)}
    assert {"base", "math", "code", "uniform merge", "uniform merge by 1"} <= origins
    plan = gptailor.loads((world / "named" / "best.tailor").read_text())
    ends = {f"let {name}": value for name, value in plan.numbers.items() if value in (0, 1)}
    numbers = numbers_at_bounds(reading.space, verdict_of(reading).best)
    assert {name: value for name, value, _ in numbers} == ends
    assert ("at a bound of their interval" in " ".join(result.out.split())) == bool(ends)


def test_several_objectives_have_a_front(search: Search, world: Path) -> None:
    """Their files named from the current folder."""
    wishes = ["-O", 'nll("rows.jsonl")', "-O", 'multiple_choice("questions.jsonl")']
    wishes += ["-O", 'kl("rows.jsonl")', "--prefer", "nll", "--strategy", "random"]
    result = search("bare.tailor", "-o", "several", *wishes, "--trials", "10")
    reading = read_run(world / "several")
    assert [aim.name for aim in reading.ledger.aims] == [wishes[i] for i in (1, 3, 5)]
    assert [aim.scale for aim in reading.ledger.aims] == ["base", "base", "spread"]
    verdict = verdict_of(reading)
    front = sorted(path.name for path in (world / "several" / "front").iterdir())
    handed = {*reading.front, *(reading.ledger.trials[point.trial] for point in reading.curve)}
    handed |= {verdict.found, verdict.best}
    assert front == sorted(f"trial-{trial.number:04}.tailor" for trial in handed)
    values = [trial.values[0] for trial in reading.front if trial.values]
    assert verdict.found.values is not None
    assert verdict.found.values[0] == min(values)
    assert "kl(" in result.out


def test_the_printed_eval_command_has_the_dtype_of_the_search(
    search: Search, run: Run, world: Path
) -> None:
    flags = ["--strategy", "random", "--trials", "4", "--dtype", "bfloat16"]
    search("space.tailor", "-o", "short", *flags)
    [score, _] = commands(world / "short")
    assert score.endswith(" --dtype bfloat16")
    judged = run(*shlex.split(score)[1:], "--no-speed", "--format", "json")
    [result] = json.loads(judged.out)["results"]
    assert (result["score"],) == verdict_of(read_run(world / "short")).best.values


def test_control_c_keeps_everything_and_the_same_command_resumes(
    search: Search, run: Run, world: Path
) -> None:
    command = ("space.tailor", "--strategy", "random", "--trials", "30", "-o")
    process = search.begin(*command, "stopped")
    while "/30  6: " not in process.error() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "the same command continues" in err
    assert "interrupted" in out
    begun = read_run(world / "stopped")
    assert begun.end.ended == "interrupted"
    assert begun.ledger.cost() < 30
    assert gptailor.check(gptailor.load(world / "stopped" / "best.tailor")) == []
    [_, makes] = commands(world / "stopped")
    assert f"    {makes}" in out.splitlines()
    assert run(*shlex.split(makes.replace("DIR", "of-stopped"))[1:]).code == 0
    again = search(*command, "stopped")
    assert f"going on after {len(begun.ledger.trials)} trials" in again.err
    calm = search(*command, "resting")
    outs = [re.sub(r"trials? in [\d:]+", "", " ".join(item.out.split())) for item in (again, calm)]
    assert outs[0].replace("stopped/", "resting/") == outs[1]
    plans = [(world / name / "best.tailor").read_text() for name in ("stopped", "resting")]
    assert plans[0] == plans[1]


def test_a_dry_run_estimates_and_writes_nothing(search: Search, world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    result = search("healed.tailor", "--dry-run", "--trials", "40")
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    words = " ".join(result.err.split())
    for part in (
        "starting plans, as the budget allows: block influence on base, block influence on math,"
        " 3 of 3 windows up to ",
        "evaluations for starting plans and measurements, 7 for finalists, and the rest of 40 for",
        "memory for weights: ",
        "plans are scored first with nothing dropped; cuts are scored bridged",
        "40 evaluations of 12 samples at ",
        "then bridging and healing 7 plans at most: about ",
    ):
        assert part in words
    assert result.out == ""


def test_a_search_needs_its_folder(search: Search) -> None:
    result = search("healed.tailor", "--trials", "40", code=2)
    assert result.err.endswith("give the search's folder: -o RUN\n")


def test_plans_of_an_interrupted_search_are_reported_as_unrepaired(world: Path, run: Run) -> None:
    def stop(event: SearchEvent) -> None:
        if isinstance(event, Scored) and event.trial.full:
            raise KeyboardInterrupt

    space = gptailor.loads(CUTS + HEALED + WISHES, folder=world)
    flags = Flags(strategy="random", bridge="finalists", trials=8)
    begun = find(space, "unhealed", flags, on_event=stop)
    assert begun.best is not None
    plan = gptailor.load(begun.best)
    assert plan.heal is not None
    assert plan.bridges
    without = "interrupted before it repaired plans: the scores are without repair"
    assert without in begun.best.read_text()
    summary = (world / "unhealed" / "summary.md").read_text()
    assert "It was interrupted before the best plans were healed" in summary
    assert "were healed at the end" not in summary
    picked = run("pick", "unhealed", "--layers", "4", "-o", "picked.tailor")
    assert picked.out.rstrip().endswith(" before it is repaired")
    assert without in (world / "picked.tailor").read_text()
    assert gptailor.load(world / "picked.tailor").heal is not None


@pytest.mark.parametrize("swallowed", [False, True])
def test_control_c_while_the_best_plan_is_locked_keeps_everything(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch, swallowed: bool
) -> None:
    """Also where a library's callback prints an error, and forgets it."""
    name = f"unlocked-{swallowed}"
    command = ("search", "space.tailor", "--strategy", "random", "--trials", "4", "-o", name)

    def interrupted(best: Path) -> None:
        with suppress(KeyboardInterrupt) if swallowed else nullcontext():
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(results, "lock_beside", interrupted)
        for _ in ("fresh", "going on after all trials"):
            result = run(*command)
            assert result.code == 130, result.err
            assert "all trials are kept, and the same command continues" in result.err
            assert re.match(r"\d plans tried in 0:\d\d; interrupted, ", result.out)
            assert read_run(world / name).end.ended == "interrupted"
            assert commands(world / name)[1] == f"gptailor compile {name}/best.tailor -o DIR"
            assert "--locked" not in (world / name / "summary.md").read_text()
            assert not (world / name / "best.tailor.lock").exists()
    assert run(*command).code == 0
    assert (world / name / "best.tailor.lock").exists()


def test_a_full_disk_is_one_message_and_the_same_command_resumes(
    search: Search, world: Path
) -> None:
    command = ("space.tailor", "--strategy", "random", "-o", "full")
    stopped = search(*command, code=3, before=LIMITED)
    assert "error[C303]: cannot be written: File too large" in stopped.err
    assert "all earlier trials are kept; run the same command to continue" in stopped.err
    again = search(*command)
    assert "going on after" in again.err
    assert "Found plan: " in again.out


def test_bridged_trials_score_as_their_plans_do(search: Search, run: Run, world: Path) -> None:
    bridged = SPACE + 'bridge on "text.txt" tokens 2048\n' + WISHES
    (world / "bridged.tailor").write_text(bridged)
    search("bridged.tailor", "-o", "fitted", "--strategy", "random")
    reading = read_run(world / "fitted")
    found = verdict_of(reading).best
    assert found.request.stage == "bridged"
    assert reading.record.bridge == "finalists"
    best = world / "fitted" / "best.tailor"
    assert [bridge.on for bridge in gptailor.load(best).bridges] == ["../text.txt"]
    score = commands(world / "fitted")[0]
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", score)]
    again = run(*words[1:], "--format", "json", "--no-speed")
    [result] = json.loads(again.out)["results"]
    assert (result["score"],) == pytest.approx(found.values, rel=1e-6)
    assert run("compile", best, "-o", world / "bridged", "--locked").code == 0


def caching(folder: Path) -> str:
    """Where a process keeps files that it can make again."""
    return f"import os\nos.environ['XDG_CACHE_HOME'] = {str(folder)!r}"


def test_finalists_are_healed_once_and_have_the_scores_of_their_plans(
    search: Search, run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = caching(world / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    trials = ("--trials", "16", "--finalists", "2")
    command = ("healed.tailor", "-o", "repaired", "--strategy", "random", *trials)
    began = search(*command, before=kept)
    line = r"/16  \d+: L[^;]+; nll [\d.]+ → [\d.]+ ± \S+ healed"
    assert len(re.findall(line, began.err)) == 3
    assert began.err.count("healing: step 16 of 16") == 3, "for the trials and what was held out"
    healing = r"healing \d layers: .*\n(?:healing: .*\n)+healed on 2,\d+ tokens: .* held out.*\)\n"
    assert len(re.findall(healing, began.err)) == 3, "each from its beginning to what it came to"
    assert "bridging the gap" in began.err
    then = r"; then bridging and healing 4 plans at most: about \d+:\d\d; bridging each cut comes"
    assert re.search(then, " ".join(began.err.split()))
    assert re.search(r"^\S+/16  \d+: L.*; \d+:\d\d left$", began.err, re.MULTILINE)
    reading = read_run(world / "repaired")
    found, final = verdict_of(reading).best, reading.ledger.of(FINAL)
    assert (reading.record.heals, reading.record.finalists) == (True, 2)
    assert found.request.stage == "healed"
    assert found in final
    for trial in final:
        before = reading.ledger.before(trial)
        assert before is not None
        assert before.values is not None
        name = rf"^  \w+ {trial.number}: L.* {shown_number(before.values[0])} → "
        assert re.search(name, began.out, re.MULTILINE)
        assert before.values != trial.values
    again = search(*command, before=kept)
    assert "healing: step" not in again.err
    assert again.out == began.out
    best = world / "repaired" / "best.tailor"
    plan = gptailor.load(best)
    assert plan.heal is not None
    assert [*(bridge.on for bridge in plan.bridges), *(text.file for text in plan.heal.on)] == [
        "../text.txt",
        "../text.txt",
    ]
    assert "healed." in best.read_text().splitlines()[0]
    score = commands(world / "repaired")[0]
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", score)]
    judged = run(*words[1:], "--format", "json", "--no-speed")
    assert judged.code == 0, judged.out
    assert "healing: reuses an earlier result" in judged.err
    [result] = json.loads(judged.out)["results"]
    assert (result["score"],) == pytest.approx(found.values, rel=1e-6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "elsewhere"))
    made = run("compile", best, "-o", world / "mended", "--locked")
    assert made.code == 0, "what was learned before is what is learned anew"
    assert "healing: step 16 of 16" in made.err


def test_a_text_that_is_too_short_fails_the_finalists_alone(search: Search, world: Path) -> None:
    short = SPACE + 'heal on "few.txt" tokens 4096\n' + WISHES
    (world / "short.tailor").write_text(short)
    done = search("short.tailor", "-o", "too-short", "--strategy", "random")
    assert "healed): failed: error: error[C80" in " ".join(done.out.split())
    assert verdict_of(read_run(world / "too-short")).best.request.stage == "bare"
    assert gptailor.load(world / "too-short" / "best.tailor").heal is None


def test_the_help_lists_the_strategies_of_the_registry(run: Run) -> None:
    own = [name for name in STRATEGIES if name in STRATEGIES.own]
    assert own[0] == "surrogate"
    output = " ".join(run("search", "--help").out.split())
    assert f"{', '.join(own)}, or a package's. Default: surrogate." in output


def test_help_and_faults_of_the_plan_import_neither_jax_nor_torch(world: Path) -> None:
    script = (
        "import sys; from gptailor.cli.main import run; code = run(sys.argv[1:])\n"
        "print(code, *{n.partition('.')[0] for n in sys.modules}, file=sys.stderr)"
    )
    for arguments in (["--help"], ["closed.tailor", "-o", "new"], ["bare.tailor", "-o", "new"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "search", *arguments],
            cwd=world,
            text=True,
            capture_output=True,
            check=True,
        )
        names = set(done.stderr.splitlines()[-1].split())
        assert names.isdisjoint({"torch", "jax", "optuna", "numpy", "rich", "ray"})


def test_a_package_that_is_missing_is_named(world: Path) -> None:
    script = (
        "import sys; sys.modules['optax'] = None\n"
        "from gptailor.cli.main import run; sys.exit(run(['search', 'space.tailor', '-o', 'new']))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=world, text=True, capture_output=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "error: a search needs optax: pip install 'gptailor[search]'\n"
    assert not (world / "new").exists()


# ------------------------------------------------------------------------------ picking, and draws


@pytest.fixture(scope="module")
def sized(search: Search, world: Path) -> Said:
    """A search over several sizes, in `world/sized`."""
    text = SPACE.replace("drop any 2", "drop any 1..3") + WISHES.replace("trials 8", "trials 14")
    (world / "sized.tailor").write_text(text)
    return search("sized.tailor", "-o", "sized", "--strategy", "random")


def test_one_search_gives_the_curve_of_quality_over_size(
    sized: Said, run: Run, world: Path
) -> None:
    reading = read_run(world / "sized")
    assert [aim.name for aim in reading.ledger.aims] == ['nll("rows.jsonl")', "parameters()"]
    assert sized.err.count("plans have several sizes") == 1
    answers = sized.out[sized.out.index('answers to "The sky is blue because":') :].splitlines()
    names = [line.partition(":")[0] for line in answers[1:] if line[2] != " "]
    assert names == ["  base", "  sized/best.tailor"]
    curve = reading.curve
    assert [point.size.layers for point in curve] == sorted(point.size.layers for point in curve)
    losses = [point.lost for point in curve]
    assert losses == sorted(losses, reverse=True)
    for point in curve:
        plan = gptailor.load(world / "sized" / point.file)
        assert 6 - len(plan.drops) == point.size.layers
        shown = run("show", world / "sized" / point.file).out
        assert f"{point.size.parameters:,}" in shown
        held = reading.held_scores(reading.ledger.trials[point.trial])
        assert held is not None
        assert held.values[1] == point.size.parameters
    if len(curve) > 1:
        assert "quality over size" in sized.out
        assert "- quality over size: " in (world / "sized" / "summary.md").read_text()


def test_sizes_are_not_reported_before_an_error(sized: Said, search: Search, world: Path) -> None:
    result = search("sized.tailor", "-o", "sized", "--seed", "9", "--strategy", "random", code=3)
    assert "another search" in result.err
    assert "several sizes" not in result.err


def test_pick_writes_the_plan_within_a_bound(sized: Said, run: Run, world: Path) -> None:
    curve = read_run(world / "sized").curve
    (folder := world / "elsewhere").mkdir(exist_ok=True)
    for point in curve:
        for bound in (["--layers", point.size.layers], ["--parameters", point.size.parameters]):
            picked = run("pick", "sized", *bound)
            assert picked.code == 0, picked.err
            assert f"{point.file}: {point.size.layers} layers" in picked.err
            assert (
                gptailor.loads(picked.out).drops
                == gptailor.load(world / "sized" / point.file).drops
            )
        file = folder / f"{point.size.layers}.tailor"
        file.unlink(missing_ok=True)
        written = run("pick", "sized", "--layers", point.size.layers, "-o", file)
        assert written.code == 0, written.err
        assert file.read_text().startswith("# Found by gptailor search: trial ")
        assert 'model base = "../base"' in file.read_text()
        assert run("check", file).code == 0
        assert run("fmt", "--check", file).code == 0
    again = run("pick", "sized", "--layers", curve[-1].size.layers, "-o", file)
    assert (again.code, again.out) == (3, "")
    assert "error[C301]: exists already" in again.err
    assert "--force replaces it" in again.err
    content = file.read_text()
    file.write_text("old")
    assert run("pick", "sized", "--layers", point.size.layers, "-o", file, "--force").code == 0
    assert file.read_text() == content


def test_pick_respects_the_size_of_a_gguf_file(
    sized: Said, run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = run("pick", "sized", "--gguf", "q4_0=1G")
    assert refused.code == 3
    assert "llama.cpp has only BPE" in refused.err, "the models' tokenizer is of words"

    def size(checked: Checked, compiled: Compiled, kind: str) -> int:
        return compiled.program.size // {"Q4_0": 4, "Q8_0": 2}[kind]

    monkeypatch.setattr("gptailor.evaluation.gguf_contents.gguf_size", size)
    for point in read_run(world / "sized").curve:
        most = point.size.bytes // 4
        picked = run("pick", "sized", "--gguf", f"q4_0={most}B", "--gguf", "q8_0=1G")
        assert picked.code == 0, picked.err
        assert f"{point.file}: {point.size.layers} layers" in picked.err
        assert " in q4_0, " in picked.err
        assert " in q8_0, " in picked.err
    nearest = run("pick", "sized", "--gguf", "q4_0=1k")
    assert nearest.code == 1
    assert "the nearest is front/" in nearest.err


def test_the_best_plan_is_picked_with_its_lock(
    found: Said, run: Run, world: Path, tmp_path: Path
) -> None:
    picked = run("pick", "run", "--layers", 4, "-o", tmp_path / "best.tailor")
    assert picked.code == 0, picked.err
    compiled = run("compile", tmp_path / "best.tailor", "-o", tmp_path / "out", "--locked")
    assert compiled.code == 0, compiled.err
    lock = (tmp_path / "best.tailor.lock").read_text()
    assert run("lock", tmp_path / "best.tailor").code == 0
    assert (tmp_path / "best.tailor.lock").read_text() == lock, "it is the search's, moved"


def test_a_plan_is_picked_without_numpy(sized: Said, world: Path) -> None:
    script = (
        "import sys; from gptailor.cli.main import run; code = run(sys.argv[1:])\n"
        "print(code, *{n.partition('.')[0] for n in sys.modules}, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "pick", "sized", "--layers", "9"]
    done = subprocess.run(command, cwd=world, text=True, capture_output=True, check=True)
    code, *names = done.stderr.splitlines()[-1].split()
    assert code == "0"
    assert {*names}.isdisjoint({"torch", "jax", "numpy"})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["sized", "--layers", "1"],
            1,
            "no plan in 'sized' meets these limits; the nearest is front/",
        ),
        (["sized", "--memory", "1k"], 1, "the nearest is front/"),
        (["sized"], 2, "give a limit: --parameters"),
        (["sized", "--layers", "1", "--loss", "2"], 1, "at most 2 nats; write 2% for a share"),
        (["sized", "--loss", "much"], 2, "expected a loss such as 2% or 0.05, got 'much'"),
        (["sized", "--parameters", "0"], 2, "got '0'"),
        (["sized", "--gguf", "q4_0"], 2, "expected TYPE=SIZE, got 'q4_0'"),
        (["sized", "--gguf", "q9=1M"], 2, "expected the GGUF type f32, "),
        (["sized", "--gguf", "q4_0=much"], 2, "expected a size such as 5GB or 500MiB, got 'much'"),
        (["sized", "--parameters", "1,00"], 2, "got '1,00'"),
        (["sized", "--parameters", "1,000"], 1, "the nearest is front/"),
        (["sized", "--parameters", "0.000001G"], 1, "the nearest is front/"),
        (["base", "--layers", "3"], 3, "error[C903]: has no plans of a search yet"),
        (["gone", "--layers", "3"], 3, "error[C903]"),
    ],
)
def test_an_impossible_pick_is_reported(
    sized: Said, run: Run, arguments: list[str], code: int, message: str
) -> None:
    refused = run("pick", *arguments)
    assert refused.code == code
    assert message in refused.err
    assert refused.out == ""


def test_a_loss_has_its_own_unit_where_it_has_no_share(search: Search, run: Run) -> None:
    arguments = ["-O", 'kl("rows.jsonl")', "--strategy", "random", "--trials", "3"]
    search("bare.tailor", "-o", "spread", *arguments)
    refused = run("pick", "spread", "--loss", "2%")
    assert refused.code == 1
    assert "give --loss in their own" in refused.err
    assert run("pick", "spread", "--loss", "99").code == 0


def test_a_draft_is_searched_by_its_acceptance(search: Search, world: Path) -> None:
    arguments = ["-O", 'acceptance("rows.jsonl")', "--strategy", "random", "--trials", "3"]
    search("bare.tailor", "-o", "draft", *arguments)
    reading = read_run(world / "draft")
    [aim] = reading.ledger.aims
    assert (aim.direction, aim.scale) == ("maximize", "base")
    result = verdict_of(reading).found.values
    assert result == max(trial.values for trial in reading.front if trial.values)
    assert 0 < result[0] < 1
    assert reading.ledger.references[reading.ledger.full] == (1.0,)


def test_the_verdict_is_in_the_summary_and_on_the_screen(found: Said, world: Path) -> None:
    reading = read_run(world / "run")
    verdict = verdict_of(reading)
    first = " ".join(found.out.partition("\n\n")[0].split())
    assert first in (world / "run" / "summary.md").read_text().splitlines()
    assert f"Found plan: trial {verdict.found.number} (L" in first
    assert re.search(r" nats (lost|won), on 8 held-out samples\. ", first)
    assert verdict.held
    assert reading.ledger.loss_unit == "nats"
    better = verdict.gain is not None and verdict.gain.sure
    assert better is ("Better than" in first)
    if better:
        assert verdict.best is verdict.found
    assert "%" not in found.out
