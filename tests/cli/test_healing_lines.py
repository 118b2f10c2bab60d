"""The lines about healing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from gptailor.cli import event_lines
from gptailor.cli.event_lines import RepairLines
from gptailor.plan.events import FitResult, FitText, Progress


def healed(held: int, *losses: float) -> FitResult:
    numbers = dict(zip(("bare", "start", "healed"), losses, strict=True))
    return FitResult("heal", "heal", (FitText(9, "0" * 64, 4096),), {"held": held, **numbers})


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.9, 0.9, 0.2), "0.900 nats a token from the teacher, healed 0.200"),
        ((0.9, 0.4, 0.2), "0.900 nats a token from the teacher, bridged 0.400, healed 0.200"),
        (
            (0.9, 0.4, 0.4),
            "0.900 nats a token from the teacher, bridged 0.400; no step came nearer, so the layers"
            " stay as they were: 50,000 tokens are a good start",
        ),
        (
            (float("nan"), 0.4, 0.2),
            "0.400 nats a token from the teacher bridged, no numbers unbridged, healed 0.200",
        ),
    ],
)
def test_the_last_line_has_the_losses_of_healing(
    losses: tuple[float, float, float], expected: str
) -> None:
    messages: list[str] = []
    end = healed(1_000, *losses)
    RepairLines(messages.append)(end)
    RepairLines(messages.append, ends=False)(end)
    assert messages == [f"healed on 4,096 tokens: {expected} (on 1,000 tokens held out)"]


def test_a_small_held_out_set_is_reported() -> None:
    messages: list[str] = []
    RepairLines(messages.append)(healed(999, 0.9, 0.4, 0.2))
    assert messages[0].endswith("(on 999 tokens held out, so few that the numbers are rough)")


def test_a_result_that_is_used_again_has_no_second_line() -> None:
    messages: list[str] = []
    lines = RepairLines(messages.append)
    first, other = healed(640, 0.8, 0.4, 0.2), healed(640, 0.8, 0.4, 0.3)
    for end in (first, other, first):
        lines(end)
    assert len(messages) == 2
    assert messages[0] != messages[1]


def test_the_cost_of_answers_is_reported_before_they_are_made() -> None:
    messages: list[str] = []
    lines = RepairLines(messages.append)
    for done in (0, 100, 2048):
        lines(Progress("answering", done, 2048, "/data/prompts.jsonl"))
    assert messages == ["healing: the teacher answers 'prompts.jsonl', 0 of 2,048 tokens"]


def test_reused_predictions_of_a_teacher_have_one_line() -> None:
    messages: list[str] = []
    lines = RepairLines(messages.append)
    for done in (90, 100):
        lines(Progress("reading", done, 100, reused=True))
    assert messages == ["healing: reuses the teacher's earlier predictions"]


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (
            Progress("narrowing", 0, 30, numbers={"size": 1280}),
            ["narrowing 30 MLPs to 1,280 neurons", "narrowing: layer 7 of 30, 4 min left"],
        ),
        (
            Progress("comparing experts", 0, 48, numbers={"size": 96}),
            [
                "comparing the experts of 48 layers, keeping 96 in each",
                "comparing experts: layer 7 of 48, 7 min left",
            ],
        ),
        (
            Progress("bridging", 0, 19, "the gap after L11"),
            [
                "bridging the gap after L11",
                "bridging the gap after L11: layer 7 of 19, 2 min left",
            ],
        ),
    ],
)
def test_a_long_fit_reports_its_layers(
    begun: Progress, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(event_lines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    messages: list[str] = []
    lines = RepairLines(messages.append, every_gap=True)
    lines(begun)
    for layer in (1, 7, 8):
        lines(replace(begun, done=layer, seconds_left=10.0 * (begun.total - layer)))
    assert messages == expected


def test_an_importance_matrix_reports_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([11.0, 11.0, 12.0])
    monkeypatch.setattr(event_lines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    messages: list[str] = []
    lines = RepairLines(messages.append, every_gap=True)
    for layer in (3, 4):
        lines(Progress("importance matrix", layer, 30, seconds_left=20.0))
    assert messages == ["importance matrix: layer 3 of 30, 20 s left"]


def test_steps_of_healing_have_losses_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 105.0, 111.0, 111.0, 112.0])
    monkeypatch.setattr(event_lines, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    messages: list[str] = []
    lines = RepairLines(messages.append)
    lines(Progress("healing", 0, 9, numbers={"held_out": 0.5}))
    for done in (1, 5, 9):
        losses = {"loss": 0.25, "held_out": 0.125}
        lines(Progress("healing", done, 9, seconds_left=10.0 * (9 - done), numbers=losses))
    lines(Progress("healing", 0, 0, reused=True))
    assert messages == [
        "healing: step 0 of 9, held out 0.500",
        "healing: step 5 of 9, loss 0.250, held out 0.125, 40 s left",
        "healing: step 9 of 9, loss 0.250, held out 0.125, 0 s left",
        "healing: reuses an earlier result",
    ]
