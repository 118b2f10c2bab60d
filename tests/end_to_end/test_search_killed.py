"""A search that is killed at any moment, again and again, ends as if nothing had happened."""

import random
import signal
import time
from pathlib import Path

import pytest

from gptailor.searching.run.study import Study
from tests.searching.landscape import record, study_of
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
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def lines(folder: Path) -> int:
    """The whole lines of the journal."""
    path = folder / "journal.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def calm(preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("calm")
    ran(preloaded, folder)
    return study_of(folder)


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
        torn += not (tmp_path / "journal.jsonl").read_bytes().endswith(b"\n")
        if draw.random() < 0.5:  # as a machine that loses power leaves it
            path = tmp_path / "journal.jsonl"
            path.write_bytes(path.read_bytes() + b'{"trial":{"number":4,"requ')
    else:
        pytest.fail("it never ends")
    assert kills >= 3
    again = study_of(tmp_path)
    assert repr(record(again.trials)) == repr(record(calm.trials))
    assert again.typed == calm.typed
