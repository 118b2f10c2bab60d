"""How the suite itself runs: the same twice, whatever starts it, and never for ever."""

import ast
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support import seeded
from tests.support.seeded import seed
from tests.support.thorough import LEFT_OUT, ONE_IN, PAGES, THOROUGH, is_left_out

ROOT = Path(__file__).parents[2]


def ignore_interrupts() -> None:
    """Do as a shell does before it starts a background job of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_pytest(
    *arguments: object, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=ROOT,
        preexec_fn=before,
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def test_draws_depend_on_the_test_alone(request: pytest.FixtureRequest) -> None:
    first = random.random(), torch.rand(3).tolist()
    seed(request.node.nodeid)
    assert (random.random(), torch.rand(3).tolist()) == first


def test_the_seed_determines_the_order_and_files_stay_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"tests/{file}.py::test_{n}" for file in "abc" for n in range(4)]
    orders = []
    for number in ("1", "2", "1"):
        monkeypatch.setattr(seeded, "ORDER", number)
        orders.append(sorted(names, key=seeded.order))
    assert orders[0] == orders[2] != orders[1]
    for made in orders:
        assert set(made) == set(names)
        assert len([*groupby(made, lambda name: name.partition("::")[0])]) == 3
    within = [[name for name in made if "a.py" in name] for made in orders]
    assert within[0] != within[1]


@pytest.fixture(scope="module")
def number() -> float:
    return random.random()


def test_a_shared_fixture_draws_by_its_own_name(number: float) -> None:
    seed("tests/architecture/test_suite.py::number[0]")
    assert random.random() == number


def test_hypothesis_draws_new_examples_in_thorough_runs_only() -> None:
    assert settings().derandomize is not THOROUGH


@cache
def functions_of(file: str) -> set[str]:
    """The names of a file's functions."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_tests_that_are_left_out_exist() -> None:
    named = [(file, name.partition("[")[0]) for file, names in LEFT_OUT.items() for name in names]
    named += [(file, test) for file, tests in ONE_IN.items() for test in tests]
    for file, test in [*named, *((file, "") for file in PAGES)]:
        if file.startswith("plugins/") and not (ROOT / "tests" / file).parent.exists():
            continue  # the plugin was removed
        assert test in {"", *functions_of(file)}, file


def test_some_cases_of_a_test_are_left_out() -> None:
    file, test = "checkpoint/test_hostile.py", "test_the_command_line_reports_a_hostile_file"
    kept = [n for n in range(128) if not is_left_out(file, f"{test}[a]", n)]
    assert kept == [0, 64]
    assert is_left_out("checks/test_sizes.py", f"{LEFT_OUT['checks/test_sizes.py'][0]}", 0)
    assert not is_left_out(
        "checks/test_sizes.py", "test_an_oversized_plan_is_one_error[sources]", 3
    )


@pytest.mark.slow
def test_a_test_that_writes_to_the_home_fails(tmp_path: Path) -> None:
    (tmp_path / "test_writes.py").write_text(
        "import os, subprocess\nfrom pathlib import Path\n\n"
        "def test_here():\n    (Path.home() / 'here').write_text('')\n\n"
        "def test_in_another_process():\n"
        "    subprocess.run('mkdir ~/.cache; touch ~/.cache/there', shell=True, check=True)\n\n"
        "def test_in_its_cache():\n    Path(os.environ['XDG_CACHE_HOME']).mkdir(parents=True)\n"
    )
    configuration = ("-c", ROOT / "pyproject.toml", "-p", "tests.conftest", "-p", "no:xdist")
    done = run_pytest(*configuration, tmp_path)
    assert "3 passed, 2 errors" in done.stdout
    assert "a test wrote to the home" in done.stdout
    for name, file in (("test_here", "'here'"), ("test_in_another_process", "'.cache/there'")):
        assert f"ERROR at teardown of {name}" in done.stdout
        assert file in done.stdout


@pytest.mark.slow
def test_interrupts_are_tested_where_the_caller_ignores_them() -> None:
    tests = "tests/checkpoint/write/test_tensors.py::test_an_interrupt_stops_the_other_threads"
    done = run_pytest(tests, before=ignore_interrupts)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_test_that_hangs_ends_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    (tmp_path / "test_hangs.py").write_text(
        "import threading\n\n"
        "def waits_elsewhere():\n    threading.Event().wait()\n\n"
        "def test_hangs():\n"
        "    threading.Thread(target=waits_elsewhere).start()\n"
        "    threading.Event().wait()\n"
    )
    configuration = ("-c", ROOT / "pyproject.toml", "-o", "faulthandler_timeout=0.5")
    done = run_pytest(*configuration, "-p", "no:xdist", tmp_path)
    assert done.returncode != 0
    assert "in waits_elsewhere" in done.stderr
    assert "in test_hangs" in done.stderr
