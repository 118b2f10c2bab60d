"""A search that is killed at any moment, again and again, ends as if nothing had happened."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from gptailor.searching.run.study import Study
from tests.searching.landscape import setting, study_of
from tests.support.preloaded import Preloaded

MOST = 40
"""Runs after which it has to be over."""


SEARCH = """
import sys
from pathlib import Path
from tests.searching.landscape import Counting, search, setting
search(Path(sys.argv[1]), setting(), Counting(seconds=0.01)).run()
"""


def ran(preloaded: Preloaded, folder: Path) -> None:
    process = preloaded.start(SEARCH, folder, cwd=folder)
    _, said = process.communicate()
    assert process.returncode == 0, said


def lines(folder: Path) -> int:
    """The whole lines of the journal."""
    path = folder / "study.journal"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def content(study: Study) -> list[dict[str, Any]]:
    """Return a study's content without times."""
    found = []
    for one in study._study.get_trials(deepcopy=False):
        attributes = {name: said for name, said in one.user_attrs.items() if name != "seconds"}
        found.append(
            {
                "number": one.number,
                "state": one.state.name,
                "values": one.values,
                "params": one.params,
                "distributions": one.distributions,
                "intermediate": one.intermediate_values,
                "attributes": attributes,
            }
        )
    return found


@pytest.fixture(scope="module")
def calm(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("calm")
    ran(preloaded, folder)
    return study_of(folder, setting())


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_study(
    preloaded: Preloaded, calm: Study, tmp_path: Path
) -> None:
    """Each run is let write a few lines, and is killed a moment later, wherever it is then."""
    draw = random.Random(7)
    kills = torn = 0
    for _ in range(MOST):
        process = preloaded.start(SEARCH, tmp_path, cwd=tmp_path)
        before, more = lines(tmp_path), draw.randrange(1, 8)
        while process.poll() is None and lines(tmp_path) < before + more:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        torn += not (tmp_path / "study.journal").read_bytes().endswith(b"\n")
        if draw.random() < 0.5:  # as a machine that loses power leaves it
            path = tmp_path / "study.journal"
            path.write_bytes(path.read_bytes() + b'{"op_code":4,"worker_id":"0-1","study_')
    else:
        pytest.fail("it never ends")
    assert kills >= 3
    again = study_of(tmp_path, setting())
    assert content(again) == content(calm)
    assert again.notes == calm.notes
    assert again._study.user_attrs == calm._study.user_attrs
    assert again._study.metric_names == calm._study.metric_names
