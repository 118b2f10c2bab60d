"""The teacher's predictions: compact, computed once, in memory without room on the disk."""

import errno
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gptailor.evaluation.fits.heal import text
from gptailor.evaluation.fits.heal.learning import NotFiniteError
from gptailor.evaluation.fits.heal.teacher import Predictions
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.plan.events import Progress
from gptailor.prepare import prepare
from tests.support.healing import CPU, Asked, said
from tests.support.tiny import tiny_model

TOKENS = torch.randint(3, 60, (7, 12), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("teacher") / "base").parent


def expected(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        made: torch.Tensor = model(TOKENS[:, :-1]).logits.log_softmax(-1)
    return made.flatten(0, 1)


@pytest.mark.parametrize("kept", [5, 64, 128])
def test_the_most_probable_tokens_are_kept_and_the_rest_is_summed(
    folder: Path, tmp_path: Path, kept: int
) -> None:
    made = Predictions(tmp_path / "here", TOKENS, 64, kept)
    received: list[tuple[int, int]] = []
    made.learn(Asked(folder), CPU, lambda event: received.append((event.done, event.total)))
    assert received == [(0, 84), (84, 84)]
    likely, tokens = expected(folder).topk(min(kept, 64))
    found_tokens, result = made.of(0, 7)
    assert torch.equal(found_tokens, tokens.int())
    torch.testing.assert_close(result[:, : likely.shape[1]], likely, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.exp().sum(-1), torch.ones(77))
    assert result.shape[1] == (6 if kept == 5 else 64)
    assert torch.equal(made.of(2, 4)[1], result[22:44])
    files = sum(file.stat().st_size for file in (tmp_path / "here").glob("teacher.[tl]o*"))
    assert files == 77 * 4 * (found_tokens.shape[1] + result.shape[1])


def test_the_teacher_is_asked_once_and_resumes_after_an_interrupt(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "AT_ONCE", 24)
    asked, events = Asked(folder), list[tuple[int, bool]]()

    def interrupt(event: Progress) -> None:
        events.append((event.done, event.reused))
        if len(events) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Predictions(tmp_path, TOKENS, 64).learn(asked, CPU, interrupt)
    again = Predictions(tmp_path, TOKENS, 64)
    again.learn(asked, CPU, lambda event: events.append((event.done, event.reused)))
    assert events[:3] == [(0, False), (24, False), (48, False)]
    assert events[3:] == [(48, True), (48, False), (72, False), (84, False)]
    likely, _ = expected(folder).sort(descending=True)
    torch.testing.assert_close(again.of(0, 7)[1], likely, atol=1e-5, rtol=1e-5)
    known = list[Progress]()
    Predictions(tmp_path, TOKENS, 64).learn(asked, CPU, known.append)
    assert (asked.times, known) == (2, [Progress("reading", 84, 84, reused=True)])


def damaged(file: Path, how: str) -> None:
    raw = bytearray(file.read_bytes())
    if how == "flip":
        raw[len(raw) // 3] ^= 16
    elif how == "empty":
        raw.clear()
    elif how == "zeros":
        raw[:] = bytes(len(raw))
    else:
        del raw[len(raw) // 2 :]
    file.write_bytes(raw)


@pytest.mark.parametrize("name", ["teacher.json", "teacher.tokens", "teacher.logs"])
@pytest.mark.parametrize("how", ["flip", "empty", "zeros", "short"])
def test_damaged_predictions_are_computed_again(
    folder: Path, tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "AT_ONCE", 24)
    whole = Predictions(tmp_path, TOKENS, 64)
    whole.learn(Asked(folder), CPU)
    expected = [part.clone() for part in whole.of(0, 7)]
    digest = whole.digest
    del whole
    damaged(tmp_path / name, how)
    again, asked, counts = Predictions(tmp_path, TOKENS, 64), Asked(folder), list[int]()
    again.learn(asked, CPU, lambda event: counts.append(event.done))
    assert asked.times == 1
    assert counts[0] == (24 if name != "teacher.json" and how in ("flip", "short") else 0)
    assert all(map(torch.equal, again.of(0, 7), expected))
    assert again.digest == digest
    Predictions(tmp_path, TOKENS, 64).learn(asked, CPU)
    assert asked.times == 1


def test_predictions_of_another_text_are_not_taken(folder: Path, tmp_path: Path) -> None:
    asked = Asked(folder)
    for tokens in (TOKENS, TOKENS.flip(0), TOKENS.flip(0)):
        Predictions(tmp_path, tokens, 64).learn(asked, CPU)
    assert asked.times == 2


def test_predictions_stay_in_memory_if_the_disk_is_full(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = Predictions(tmp_path / "here", TOKENS, 64)
    made.learn(Asked(folder), CPU)
    assert not list((tmp_path / "here").iterdir())
    likely, _ = expected(folder).sort(descending=True)
    torch.testing.assert_close(made.of(0, 7)[1], likely, atol=1e-5, rtol=1e-5)
    asked = Asked(folder)
    Predictions(tmp_path / "here", TOKENS, 64).learn(asked, CPU)
    assert asked.times == 1, "nothing was kept that could be taken for predictions"


def test_a_teacher_that_predicts_no_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = said(folder, "")
    live = Stitcher(prepare(plan).models).stitch(plan)
    with torch.no_grad():
        live.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="its teacher's predictions are NaN"):
        Predictions(tmp_path, TOKENS, 64).learn(lambda: live, CPU)
