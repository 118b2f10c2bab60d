"""`gptailor test`: passes, ties and failures; how people and CI systems read them."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import gptailor
from gptailor.cli import main as cli
from gptailor.evaluation.scores import Failure
from gptailor.evaluation.trial import AskedTogether
from gptailor.plan.faults import PlanError
from tests.support.said import Run, in_process, reading
from tests.support.tiny import tiny_model, tiny_models, write_rows
from tests.support.tiny_bytes import model

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L1 from math
drop L3
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expectations")
    tiny_models(folder, "base", "math")
    write_rows(folder / "rows.jsonl", [{"text": f"{n} cats " * (3 + n % 4)} for n in range(24)])
    write_rows(folder / "one.jsonl", [{"text": "the cat sat on the mat"}])
    questions = [{"query": f"{n}:", "choices": ["so", "no"], "gold": n % 2} for n in range(8)]
    write_rows(folder / "questions.jsonl", questions)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path) -> Run:
    """Run `gptailor test` in the world's folder."""
    monkeypatch.chdir(world)
    return partial(reading(in_process(capsys), monkeypatch), "test")


def plan(folder: Path, name: str, *expected: str, text: str = PLAN) -> str:
    (folder / name).write_text(text + "".join(f"expect {line}\n" for line in expected))
    return name


def scores(folder: Path, target: str) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The nll of a target, its error, and the sums and counts of its samples."""
    result = gptailor.evaluate(folder / target, 'nll("rows.jsonl")', folder=folder)
    score = result.results[0].outcome
    return score.value, score.stderr, np.array(score.each.sums), np.array(score.each.counts)


def test_the_command_has_a_help(run: Run) -> None:
    result = run("--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: gptailor test")
    assert result.out == run("-h").out


def test_a_pass_a_tie_and_a_failure_by_a_number(run: Run, world: Path) -> None:
    value, error, *_ = scores(world, plan(world, "bare.tailor"))
    bounds = (value + 3 * error, value + error, value - error, value - 3 * error)
    names = ("met", "hardly", "almost", "missed")
    for name, bound in zip(names, bounds, strict=True):
        plan(world, f"{name}.tailor", f'nll("rows.jsonl") <= {bound!r}')
    outcome = run(*(f"{name}.tailor" for name in names), "--format", "json")
    assert outcome.code == 1
    result = json.loads(outcome.out)
    assert [row["target"] for row in result] == [f"{name}.tailor" for name in names]
    assert [row["verdict"] for row in result] == ["pass", "tie", "tie", "fail"]
    assert [row["passed"] for row in result] == [True, True, True, False]
    for row, bound in zip(result, bounds, strict=True):
        assert (row["value"], row["stderr"], row["bound"]) == (value, error, bound)
        assert row["difference"] == pytest.approx(value - bound)
        assert row["difference_stderr"] == error
    assert run("met.tailor", "hardly.tailor").code == 0


def test_a_share_of_a_models_score_is_compared_sample_by_sample(run: Run, world: Path) -> None:
    value, _, sums, counts = scores(world, plan(world, "bare.tailor"))
    base, _, base_sums, _ = scores(world, "base")
    n, times = len(counts), 1.25
    residuals = (sums - value * counts - times * (base_sums - base * counts)) / counts.sum()
    error = float(np.sqrt(n / (n - 1) * (residuals**2).sum()))
    name = plan(world, "share.tailor", f'nll("rows.jsonl") <= {times} * base')
    [row] = json.loads(run(name, "--format", "json").out)
    assert row["bound"] == pytest.approx(times * base)
    assert row["difference"] == pytest.approx(value - times * base)
    assert row["difference_stderr"] == pytest.approx(error)
    exact = (value + 3 * error) / base  # by another error than the paired one it isn't sure
    lines = [f'nll("rows.jsonl") {sign} {share!r} * base'
             for share in (exact, (value - 3 * error) / base) for sign in ("<", ">")]  # fmt: skip
    result = json.loads(run(plan(world, "near.tailor", *lines), "--format", "json").out)
    assert [row["verdict"] for row in result] == ["pass", "fail", "fail", "pass"]


def test_a_plan_that_is_its_base_is_as_good_and_not_better(run: Run, world: Path) -> None:
    text = 'tailor 1\nmodel base = "./base"\n'
    lines = (f'nll("rows.jsonl") {sign} base' for sign in ("<=", ">=", "<"))
    name = plan(world, "same.tailor", *lines, text=text)
    result = json.loads(run(name, "--format", "json").out)
    assert [row["verdict"] for row in result] == ["pass", "pass", "fail"]
    assert [row["difference"] for row in result] == [0, 0, 0]


def test_sizes_are_exact_and_times_are_compared_as_they_are(run: Run, world: Path) -> None:
    counts = gptailor.evaluate(world / plan(world, "bare.tailor"), "parameters()").subjects[0].size
    many, kept = counts.parameters, counts.kv_cache
    name = plan(world, "size.tailor", f"parameters() <= {many}", f"parameters() < {many}",
                "parameters() < base", f"kv_cache() >= {kept}", "kv_cache() <= 0.8 * base",
                "latency() <= 1e9 * base", "latency() <= 1e-9")  # fmt: skip
    outcome = run(name, "--format", "json")
    result = json.loads(outcome.out)
    verdicts = ["pass", "fail", "pass", "pass", "pass", "pass", "fail"]
    assert [row["verdict"] for row in result] == verdicts
    assert [row["stderr"] for row in result] == [0, 0, 0, 0, 0, None, None]
    assert result[1]["difference"] == 0
    assert not outcome.err.count("/"), "sizes and times are no steps of an evaluation"


def test_a_folder_and_a_gguf_file_are_tested_by_name(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model(tmp_path / "base", layers=4)
    write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} cats " * 9} for n in range(6)])
    text = 'tailor 1\nmodel base = "./base"\ndrop L3\n'
    lines = ('nll("rows.jsonl") <= 9 * base', "bytes(gguf=q8_0) <= 1M", "bytes() <= 1M")
    name = plan(tmp_path, "cut.tailor", *lines, text=text)
    (tmp_path / "deeper").mkdir()
    out = tmp_path / "deeper" / "out"
    gptailor.compile(tmp_path / name, out, gguf=["q8_0"])
    file = out.with_name("out-Q8_0.gguf")
    result = run(out, file, tmp_path / name, "--format", "json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)
    targets = (str(target) for target in (out, file, tmp_path / name))
    assert [row["target"] for row in rows] == [target for target in targets for _ in lines]
    losses, files, sizes = ([row["value"] for row in rows[at::3]] for at in range(3))
    assert files == [file.stat().st_size] * 3
    assert sizes == [sizes[0], file.stat().st_size, sizes[0]]
    assert losses[0] == losses[2]
    assert losses[1] != losses[0], "the file's own weights, quantised"
    plan(tmp_path, name, "bytes(gguf=q8_0) <= 1k", text=text)
    gptailor.compile(tmp_path / name, file, quantize="q8_0", force=True)
    failed = run(file)
    assert failed.code == 1
    assert "bytes(gguf=q8_0) <= 1k: FAIL: " in failed.out


def test_each_model_is_evaluated_once(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, tuple[str, ...]]] = []

    def counted(self: AskedTogether) -> Any:
        names = (each.name for each in self.objectives if not isinstance(each, Failure))
        ran.append((len(self.asks), tuple(names)))
        return whole(self)

    whole = AskedTogether.outcomes
    monkeypatch.setattr(AskedTogether, "outcomes", counted)
    nll, choice = 'nll("rows.jsonl")', 'multiple_choice("questions.jsonl")'
    one = plan(world, "one.tailor", f"{nll} <= 2 * base", f"{nll} <= 3 * base",
               f"{choice} >= 0 * base", f"{nll} <= 9 * math")  # fmt: skip
    two = plan(world, "two.tailor", f"{nll} <= 3 * base", f"{choice} >= 0 * base", text=(
        PLAN.replace("L1 from math", "L2 from math")))  # fmt: skip
    result = run(one, two)
    assert result.code == 0, result.err
    assert sorted(ran) == [(1, (nll,)), (3, (nll, choice))]  # math; both plans, and the base
    assert result.err.count("base") == 1


def test_people_read_a_table(run: Run, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    value, error, *_ = scores(world, plan(world, "bare.tailor"))
    tie = f'nll("rows.jsonl") <= {value:.2f}'
    name = plan(world, "p.tailor", "parameters() <= 1k", tie, 'nll("rows.jsonl") <= 99')
    assert abs(round(value, 2) - value) < 2 * error
    result = run(name)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0] == "p.tailor"
    assert lines[1].split() == ["measured", "bound", "verdict"]
    assert lines[2].split()[-2:] == ["1,000", "FAIL"]
    assert lines[3].endswith("pass (a tie)")
    assert lines[4].endswith("99.00         pass") or lines[4].split()[-1] == "pass"
    assert "parameters() <= 1k: FAIL: " in result.out
    assert f"{tie}: pass (a tie: " in result.out
    assert lines[-1] == "2 passed, 1 of them a tie; 1 failed"
    assert max(map(len, lines)) <= 80


def test_a_ci_system_reads_junit(run: Run, world: Path) -> None:
    one = plan(world, "a&b.tailor", "parameters() <= 1k", 'nll("rows.jsonl") <= 99')
    two = plan(world, "q.tailor", 'kl("rows.jsonl", from=math) <= 99')
    (world / "r.xml").write_text("an older one")
    assert run(one, two, "--junit", "r.xml").code == 1
    root = ElementTree.parse(world / "r.xml").getroot()
    suites = [dict(suite.attrib) for suite in root]
    counts = {"tests": "2", "failures": "1", "errors": "0"}
    assert suites[0] == {"name": "a&b.tailor", **counts}
    assert suites[1] == {"name": "q.tailor", "tests": "1", "failures": "0", "errors": "0"}
    cases = root.findall("./testsuite/testcase")
    names = ["parameters() <= 1k", 'nll("rows.jsonl") <= 99', 'kl("rows.jsonl", from=math) <= 99']
    assert [case.get("name") for case in cases] == names
    failure = cases[0].find("failure")
    assert failure is not None
    assert str(failure.get("message")).endswith(" above the bound")
    assert all(case.find("failure") is None for case in cases[1:])
    assert run(one, "--junit", "none/r.xml").code == 3


def test_github_shows_a_failure_at_its_line(run: Run, world: Path) -> None:
    name = plan(world, "g.tailor", 'nll("rows.jsonl") <= 99', "parameters() <= 1k")
    result = run(name, "--format", "github")
    assert result.code == 1
    marked = [line for line in result.out.splitlines() if line.startswith("::")]
    assert len(marked) == 1
    where = "::error file=g.tailor,line=7,col=1,endLine=7,endColumn=26,title=M501::"
    assert marked[0].startswith(f"{where}the expectation parameters() <= 1k is not met: ")
    gone = plan(world, "g.tailor", 'nll("gone.jsonl") <= 99')
    result = run(gone, "--format", "github")
    assert (result.code, result.err) == (1, "")
    assert result.out.startswith("::error file=g.tailor,line=6,col=12,")
    assert "title=C801::the text can't be read" in result.out


def test_json_has_the_code_and_line_of_a_fault(run: Run, world: Path) -> None:
    name = plan(world, "j.tailor", "parameters() <= 1k")
    [row] = json.loads(run(name, "--format", "json").out)
    fault = row["fault"]
    assert (fault["code"], fault["file"], fault["line"]) == ("M501", "j.tailor", 6)
    gone = plan(world, "j.tailor", 'nll("gone.jsonl") <= 99')
    result = run(gone, "--format", "json")
    [fault] = json.loads(result.out)
    assert (result.code, fault["code"], fault["line"], fault["column"]) == (1, "C801", 6, 12)


def test_a_compiled_folder_has_the_expectations_of_its_plan(run: Run, world: Path) -> None:
    name = plan(world, "made.tailor", 'nll("rows.jsonl") <= 9 * base', "parameters() < base")
    out = world / "deep" / "out"
    gptailor.compile(gptailor.load(world / name), out)
    live, folder = (json.loads(run(target, "--format", "json").out) for target in (name, out))
    for row in (*live, *folder):
        del row["target"], row["expectation"]
    assert live == folder
    assert 'expect nll("../../rows.jsonl") <= 9 * base' in (out / "plan.tailor").read_text()
    assert cli.run(["diff", name, str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "## Expectations" in card
    assert '- `nll("rows.jsonl") <= 9 * base`' in card
    assert str(world) not in card


def test_a_missing_or_short_text_is_named(run: Run, world: Path) -> None:
    gone = plan(world, "gone.tailor", 'nll("gone.jsonl") <= 9', 'kl("none.jsonl") <= 9')
    result = run(gone, "--junit", "not.xml")
    assert result.code == 1
    assert result.out == ""
    assert result.err.count("error[C801]") == 2
    assert "gone.tailor:6:12" in result.err
    small = plan(world, "small.tailor", 'nll("one.jsonl") <= 9')
    result = run(small, "--junit", "not.xml")
    assert result.code == 1
    assert "error[M502]: expected at least 2 samples for 'nll(\"one.jsonl\")', got 1" in result.err
    assert "small.tailor:6:1" in result.err
    assert not (world / "not.xml").exists()


def test_a_missing_score_fails_the_expectation(run: Run, world: Path) -> None:
    file = tiny_model("llama", world / "broken", layers=5) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"].fill_(math.nan)
    save_file(tensors, file, {"format": "pt"})
    file = tiny_model("llama", world / "other", layers=5) / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["pre_tokenizer"] = {"type": "Whitespace"}
    file.write_text(json.dumps(tokens))
    text = f'{PLAN}model broken = "./broken"\nmodel other = "./other"\n'
    lines = ['nll("rows.jsonl") <= 99', 'nll("rows.jsonl") <= 9 * broken',
             'nll("rows.jsonl") <= 9 * other']  # fmt: skip
    result = run(plan(world, "u.tailor", *lines, text=text), "--junit", "u.xml")
    assert result.code == 3
    assert f"{lines[1]}: FAIL: 'broken': nll(" in result.out
    assert result.out.endswith(
        "2 passed; 1 failed\n"
    )  # losses compared with 'other' count by bytes
    errors = ElementTree.parse(world / "u.xml").findall(".//error")
    assert len(errors) == 1
    failing = run(plan(world, "u.tailor", *lines, "parameters() <= 1", text=text))
    assert failing.code == 1
    assert failing.out.endswith("2 passed; 2 failed\n")


def test_wrong_arguments_exit_with_2(run: Run, world: Path) -> None:
    result = run(plan(world, "bare.tailor"))
    assert result.code == 2
    assert "no plan has an expectation" in result.err
    assert run("bare.tailor", "--samples", "1").code == 2
    assert run().code == 2
    both = run(plan(world, "p.tailor", "parameters() <= 1M"), "bare.tailor")
    assert both.code == 0
    assert "bare.tailor: no expectations" in both.err
    assert run(plan(world, "open.tailor", "parameters() <= 1M", text=f"{PLAN}maybe drop L2\n")
               ).code == 1  # fmt: skip
    assert run("-", stdin=f"{PLAN}expect parameters() <= 1M\n").code == 0


def test_other_models_and_numbers(run: Run, world: Path) -> None:
    line = 'kl("rows.jsonl", from=math) <= 1e-9'
    text = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nlet mix = 0.5\n'
    text += "whole from base, math by slerp(mix)\n"
    name = plan(world, "set.tailor", line, text=text)
    result = run(name, "--set", "mix=0.0,1.0", "--format", "json")
    assert [row["passed"] for row in json.loads(result.out)] == [False, True]
    assert run(name, "--set", "mix=0.0", "--model", f"math={world / 'base'}").code == 0


def test_expectations_are_evaluated_in_python(world: Path) -> None:
    declared = gptailor.load(world / plan(world, "py.tailor", 'nll("rows.jsonl") <= 99'))
    [result] = gptailor.evaluate_expectations(declared, samples=8)
    assert isinstance(result, gptailor.ExpectationResult)
    assert result.passed
    assert result.fault is None
    with pytest.raises(PlanError):
        gptailor.evaluate_expectations(world / plan(world, "py.tailor", 'nll("none") <= 99'))


def test_each_plan_is_compared_with_its_own_model_of_a_name(run: Run, world: Path) -> None:
    tiny_model("llama", world / "third", seed=7, layers=5)
    names = []
    for folder in ("base", "third"):
        text = PLAN.replace('"./math"', f'"./{folder}"')
        line = 'kl("rows.jsonl", from=math) <= 2 * base'
        names.append(plan(world, f"of_{folder}.tailor", line, text=text))
    alone = [json.loads(run(name, "--format", "json").out)[0]["bound"] for name in names]
    both = [row["bound"] for row in json.loads(run(*names, "--format", "json").out)]
    assert both == alone
    assert both[0] != both[1]


def test_a_report_of_results_never_replaces_a_plan(run: Run, world: Path) -> None:
    name = plan(world, "kept.tailor", "parameters() < base")
    before = (world / name).read_text()
    result = run(name, "--junit", name)
    assert result.code == 3
    assert "error[C302]: is a plan to test" in result.err
    assert (world / name).read_text() == before


def test_the_lock_ignores_models_of_expectations_alone(world: Path) -> None:
    lock = gptailor.lock(gptailor.load(world / plan(world, "locked.tailor")))
    rival = PLAN + 'model rival = "./math"\n'
    more = gptailor.load(world / plan(world, "more.tailor", "parameters() < rival", text=rival))
    assert gptailor.lock(more).plan == lock.plan
    used = PLAN + 'model rival = "./math"\nL2 from rival\n'
    other = gptailor.load(world / plan(world, "used.tailor", "parameters() < rival", text=used))
    assert gptailor.lock(other).plan != lock.plan


def test_an_impossible_gguf_plan_is_refused_by_its_drops(run: Run, tmp_path: Path) -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    model(tmp_path / "base", "gemma3_text", layers=6, layer_types=kinds)
    text = 'tailor 1\nmodel base = "./base"\ndrop L1\n'
    plan(tmp_path, "p", "bytes(gguf=q8_0) <= 1M", text=text)
    code, output, _ = run(str(tmp_path / "p"))
    assert code == 3
    words = " ".join(output.split())
    assert "FAIL: [C306] without L1 its sliding layers aren't periodic, as llama.cpp's" in words
    assert "'gemma3' must: sFssF; drop or reorder layers so" in words
    assert "\\n" not in output
