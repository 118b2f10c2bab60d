"""Several processes heal one plan: they share its text and each step, and learn as one does."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gptailor.evaluation.heal import heal as healing_module
from gptailor.evaluation.heal import teacher, train
from gptailor.evaluation.heal.heal import Healer
from gptailor.evaluation.heal.learning import HealError
from gptailor.evaluation.heal.process_group import ProcessGroup, SharedWork, run_together
from gptailor.evaluation.heal.text import step_tokens
from gptailor.plan.events import Event, HealStep, OnEvent, TeacherRead
from gptailor.plan.faults import TailorError
from gptailor.prepare import prepare
from tests.healing import CPU, said
from tests.tiny import letters, tiny_model

SHORT = 'drop L2\nheal on "text.txt" tokens 1024 rank 4'

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", tmp_path / "base", layers=4)
    (tmp_path / "text.txt").write_text(letters(1500))
    return tmp_path


def test_shares_are_all_numbers_in_order() -> None:
    parts = [ProcessGroup(rank, 3).share(10, 15) for rank in range(3)]
    assert parts == [(10, 11), (11, 13), (13, 15)]
    assert ProcessGroup().share(10, 15) == (10, 15)


def test_long_texts_have_longer_steps_for_several_processes() -> None:
    assert [step_tokens(12_288, count) for count in (1, 4)] == [128, 128]
    assert [step_tokens(1_000_000, count) for count in (1, 4)] == [1024, 4096]


@dataclass(frozen=True)
class InSmallChunks:
    """The work of a healing whose teacher reads two sequences at a time."""

    work: SharedWork

    def __call__(self, group: ProcessGroup, on_event: OnEvent) -> None:
        teacher.AT_ONCE = 256
        self.work(group, on_event)


@pytest.mark.parametrize(
    "device",
    [
        CPU,
        pytest.param(
            torch.device("cuda"),
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs"),
            ],
        ),
    ],
)
def test_two_processes_learn_as_one_does_with_the_same_steps(
    folder: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_in_small_chunks(work: SharedWork, *others: Any) -> None:
        run_together(InSmallChunks(work), *others)

    prepared = prepare(said(folder, SHORT))
    events: list[Event] = []
    monkeypatch.setattr(healing_module, "run_together", run_in_small_chunks)
    both = Healer(prepared.models, device, None, torch.float32, anew=True, processes=2)
    found = both.heal(prepared.resolved, {}, {}, events.append)
    monkeypatch.setattr(train, "step_tokens", lambda tokens, processes=1: 256)
    one = Healer(prepared.models, device, None, torch.float32, anew=True)
    alone = one.heal(prepared.resolved, {}, {})
    assert [event.done for event in events if isinstance(event, HealStep)] == [0, 1, 2, 3, 4]
    read = [event.done for event in events if isinstance(event, TeacherRead)]
    assert read == [0, 512, 1024, 1024, 1152], "two chunks at a time"
    assert found.healed == pytest.approx(alone.healed, rel=1e-5)
    assert found.healed < found.start == pytest.approx(alone.start, rel=1e-5)
    for index, tensors in alone.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(found.tensors[index][name], tensor, rtol=1e-4, atol=1e-5)


def refuse(group: ProcessGroup, on_event: OnEvent) -> None:
    """The second process refuses, and the first one waits for it."""
    if not group.first:
        raise HealError("C809", "the second process refuses")
    group.gathered(0)


def die(group: ProcessGroup, on_event: OnEvent) -> None:
    """The second process ends, as if its memory had not sufficed."""
    if not group.first:
        os._exit(3)
    group.gathered(0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("work", "kind", "message"),
    [
        (refuse, HealError, "the second process refuses"),
        (die, TailorError, "process 2 of 2 on cpu ended with exit code 3; if its memory"),
    ],
)
def test_an_error_of_any_process_is_raised_and_ends_all(
    work: SharedWork, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_together(work, CPU, 2)
