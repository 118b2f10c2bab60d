"""The objective `lm_eval` in plans: read, checked and written without lm-eval and torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptailor
from gptailor.evaluation.result import EvaluationResult
from gptailor.evaluation.scores import Result, Score, TargetSize
from gptailor.lang.parse import read_objective
from gptailor.lang.words import measure_words
from gptailor.plan.output_size import OutputSize
from gptailor.plan.registry import OBJECTIVES
from gptailor.program.packages import search_packages
from tests.support.said import in_process

HEAD = 'tailor 1\nmodel base = "./base"\nmaybe drop L1\n'
PLAN = HEAD + 'search { maximize lm_eval(metric="acc,none", task="arc") }\n'


def test_arguments_of_lm_eval_are_sorted() -> None:
    assert '  maximize lm_eval("arc", metric="acc,none")\n' in gptailor.format(PLAN)
    assert gptailor.loads(f'{HEAD}expect lm_eval("arc") >= 0.9 * base\n').expects[0].bound.of


def test_without_a_direction_it_is_maximised() -> None:
    result, stated = read_objective('lm_eval("arc")')
    assert (result.direction, stated, measure_words(result)) == (
        "maximize",
        False,
        'lm_eval("arc")',
    )
    assert read_objective('minimize lm_eval("arc")')[0].direction == "minimize"


@pytest.mark.parametrize(
    ("text", "code"), [("lm_eval()", "P604"), ('lm_eval("arc", metrc="acc")', "P603")]
)
def test_a_wrong_argument_is_a_fault(text: str, code: str) -> None:
    with pytest.raises(gptailor.PlanError) as caught:
        read_objective(text)
    assert [fault.code for fault in caught.value.faults] == [code]


def test_a_task_may_be_a_file() -> None:
    task, metric = OBJECTIVES["lm_eval"].arguments
    assert [task.is_file(name) for name in ("own.yaml", "own.yml", "arc")] == [True, True, False]
    assert not metric.is_file("own.yaml")


def test_the_objective_belongs_to_gptailor() -> None:
    plan = gptailor.loads(PLAN)
    assert plan.search is not None
    assert search_packages(plan, plan.search.objectives, "random") == ()
    with pytest.raises(ValueError, match="the objective 'lm_eval' is gptailor's own"):
        gptailor.objective("lm_eval", direction="minimize")(len)


def test_a_larger_score_is_a_share_of_the_bases() -> None:
    for direction, share in (("maximize", True), ("minimize", False)):
        outcome = Score(0.5, 0.1, 8)
        result = Result("p", 'lm_eval("arc", metric="acc")', direction, outcome, retained=0.5)
        size = TargetSize("p", OutputSize(10, 40, 8, 2))
        lines = EvaluationResult((result,), (size,)).lines(80)
        assert ("of the base's score" in lines) is share


def checked(folder: Path, before: str, after: str) -> subprocess.CompletedProcess[str]:
    """The plan's check in a process of its own, between two statements."""
    (folder / "p.tailor").write_text(PLAN)
    script = f"""
import sys
from gptailor.cli.main import run
{before}
code = run(["check", "--alone", "p.tailor"])
{after}
sys.exit(code)
"""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, text=True, capture_output=True, check=False
    )


def test_a_check_imports_neither_lm_eval_nor_torch(tmp_path: Path) -> None:
    after = "assert not {'lm_eval', 'torch', 'numpy'} & sys.modules.keys()"
    done = checked(tmp_path, "", after)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_plugin_it_is_an_unknown_objective(tmp_path: Path) -> None:
    done = checked(tmp_path, "from gptailor.plan import doors; doors._points = lambda *_: []", "")
    assert done.returncode == 1
    assert re.findall(r"error.*", done.stderr) == ["error[P601]: there is no objective 'lm_eval'"]


def test_a_misspelt_objective_has_a_suggestion(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.tailor").write_text(PLAN.replace("lm_eval", "lm_evil"))
    result = in_process(capsys)("check", "--alone", tmp_path / "p.tailor")
    assert "did you mean 'lm_eval'" in result.err
