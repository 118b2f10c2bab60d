"""Processes of a launcher heal one plan: they share its text and steps, and learn as one does."""

import os
import re
import socket
from pathlib import Path

import pytest
import torch

import gptailor
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.heal.learning import HealError
from gptailor.evaluation.fits.heal.process_group import ProcessGroup
from gptailor.plan.events import Event, Progress
from gptailor.prepare import prepare
from tests.support.healing import healed_layers, said
from tests.support.preloaded import Preloaded
from tests.support.tiny import letters, tiny_model

SHORT = 'drop L2\nheal on "text.txt" tokens 1024 rank 4'

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", tmp_path / "base", layers=4)
    (tmp_path / "text.txt").write_text(letters(1500))
    return tmp_path


RANK = """
import os, sys
rank, port, device, out = sys.argv[1:]
place = dict(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
os.environ |= {**place, "XDG_CACHE_HOME": os.path.abspath("cache")}
import torch
torch.set_num_threads(1)
from gptailor.evaluation.fits.heal import process_group
from tests.plugins.cluster import test_launched as work
if process_group.join():
"""
"""A process of two. The first one goes on after this."""

HEALING = f"""{RANK}
    work.heal_and_keep(device, out)
""".replace(
    "if process",
    """from gptailor.evaluation.fits.heal import text
text.AT_ONCE = 256  # two sequences at a time
if process""",
)

SHARING = f"""{RANK}
    with process_group.shared(getattr(work, out), torch.device(device), 2) as group:
        getattr(work, out)(group)
"""


def heal_and_keep(device: str, out: str) -> None:
    """Heal the plan here, and keep the result and the events in a file."""
    prepared = prepare(gptailor.load("plan.tailor"))
    events: list[Event] = []
    result = healed_layers(prepared, device=torch.device(device), on_event=events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    steps = [event.done for event in progress if event.what == "healing"]
    read = [event.done for event in progress if event.what == "reading"]
    torch.save(
        (
            result.tensors,
            result.result.numbers["start"],
            result.result.numbers["healed"],
            steps,
            read,
        ),
        out,
    )


def two_processes(
    preloaded: Preloaded, script: str, folder: Path, *arguments: str
) -> list[tuple[int | None, str, str]]:
    """Run a script in two processes of one group; return their exit codes and their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [preloaded.start(script, rank, port, *arguments, cwd=folder) for rank in range(2)]
    outputs = [process.communicate() for process in both]
    return [(process.returncode, *each) for process, each in zip(both, outputs, strict=True)]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
            ],
        ),
    ],
)
def test_two_processes_learn_as_one_does_with_the_same_steps(
    folder: Path, device: str, preloaded: Preloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(said(folder, SHORT))
    first, other = two_processes(preloaded, HEALING, folder, device, "kept.pt")
    assert first[0] == 0, first
    assert other == (0, "", "")
    tensors, start, healed, steps, read = torch.load(folder / "kept.pt")
    monkeypatch.setattr(train, "step_tokens", lambda tokens, processes=1: 256)
    alone = healed_layers(prepared, device=torch.device(device))
    assert steps == [0, 1, 2, 3, 4]
    assert read == [0, 512, 1024, 1024, 1152], "two chunks at a time"
    assert healed == pytest.approx(alone.result.numbers["healed"], rel=1e-5)
    assert healed < start == pytest.approx(alone.result.numbers["start"], rel=1e-5)
    for index, own in alone.tensors.items():
        for name, tensor in own.items():
            torch.testing.assert_close(tensors[index][name], tensor, rtol=1e-4, atol=1e-5)


def refuse(group: ProcessGroup) -> None:
    """The second process refuses, and the first one waits for it."""
    if not group.first:
        raise HealError("C809", "the second process refuses")
    group.gathered(0)


def die(group: ProcessGroup) -> None:
    """The second process ends, as if its memory had not sufficed."""
    if not group.first:
        os._exit(3)
    group.gathered(0)


def fail(group: ProcessGroup) -> None:
    """The first process fails, and the second one waits for it."""
    if group.first:
        raise HealError("C809", "the first process fails")
    group.gathered(0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("work", "codes", "speaks", "message"),
    [
        ("refuse", (1, 1), 1, "the second process refuses"),
        ("die", (1, 3), 0, "another process of the group ended; if it had too little memory"),
        ("fail", (1, 1), 0, "the first process fails"),
    ],
)
def test_an_error_of_any_process_ends_all_with_one_message(
    preloaded: Preloaded,
    tmp_path: Path,
    work: str,
    codes: tuple[int, int],
    speaks: int,
    message: str,
) -> None:
    result = two_processes(preloaded, SHARING, tmp_path, "cpu", work)
    assert tuple(code for code, _, _ in result) == codes
    assert message in result[speaks][2]
    assert result[1 - speaks][1] == ""
    assert not {"Traceback", "rror:"} & set(re.findall("Traceback|rror:", result[1 - speaks][2]))
