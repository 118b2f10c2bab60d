"""The live view of a search's events, as a terminal receives it."""

import io
import re
from contextlib import redirect_stderr

import pytest
from rich.console import Console

import gptailor
from gptailor.cli.search_view import VIEWS
from gptailor.evaluation.scores import Failure
from gptailor.plan.events import Progress
from gptailor.plan.faults import Fault
from gptailor.plugins.live.screen import Screen
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import BestWindow, ModelAlone, StrategyPlan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import SEARCH, STARTS, Ledger, Trial, TrialRequest
from gptailor.searching.search import (
    Begun,
    Estimated,
    Scored,
    SearchEvent,
    Warned,
)
from gptailor.searching.space.space import space_of
from tests.searching.space.encode import encode

PLAN = 'tailor 1\nmodel base = "./base"\ndrop any 2 of L0..L7\nheal on "t.jsonl"\n'
SPACE = space_of(gptailor.loads(PLAN), 8)
CLOSED = PLAN.replace("drop any 2 of L0..L7", "drop L2; drop L5")
GENOME = encode(SPACE, gptailor.loads(CLOSED))
MIXED = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nL1 from base, math by linear()\n'
SURROGATE = StrategyPlan(strategy="surrogate")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "30")):
        monkeypatch.setenv(name, value)


def shown_after(*events: SearchEvent) -> str:
    """Return the text that a terminal received, without its escape sequences."""
    with redirect_stderr(Terminal()) as terminal, Screen() as screen:
        for event in events:
            screen(event)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return re.sub(r" +$", "", text, flags=re.MULTILINE)


def scoring(plans: int, samples: int) -> Progress:
    return Progress("scoring", 0, plans, numbers={"samples": samples})


def begun() -> Begun:
    ledger = Ledger((Aim("nll", "minimize", "base"),), 8)
    ledger.references[8] = (1.5,)
    return Begun(ledger, Budget(16, 8, 8, "finalists", heals=True, wanted=1), SPACE, 3.0)


AIMS = (
    Aim("nll general", "minimize", "base", unit="nats"),
    Aim("nll math", "minimize", "base", unit="nats"),
)


def drawn(width: int, height: int = 25, trials: int = 3) -> list[str]:
    """Return the lines of a search with a start, a better trial, and one that is given up."""
    space = space_of(gptailor.loads(f"{MIXED}drop any 2 of L2..L7\n"), 8)
    genome = encode(space, gptailor.loads(f"{MIXED}drop L2; drop L5\n"))
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    screen = Screen(console)
    ledger = Ledger(AIMS, 64)
    ledger.references |= {64: (2.954, 1.201), 16: (2.954, 1.201)}
    screen(Begun(ledger, Budget(40, 16, 64), space, None))
    window = BestWindow(of=ModelAlone(model="math"))
    for number, origin in enumerate((window, SURROGATE, SURROGATE)[:trials]):
        last = number == 2
        request = TrialRequest(
            STARTS if number == 0 else SEARCH, 0, number, origin, genome, 64, "bare", number
        )
        values, errors = (3.9 - number / 10, 1.9 - number / 10), (0.11, 0.049)
        trial = Trial(
            number, request, str(number), 0.25 if last else 1.0, values, errors,
            stopped=16 if last else None,
        )  # fmt: skip
        ledger.add(trial)
        screen(Scored(trial))
    screen(scoring(4, 64))
    console.print(screen)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_shows_the_state_and_fits_its_width(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for expected in ("2.25/40", "3 trials", "best start  0: L2, L5 dropped, math",
                 "best        1: L2, L5 dropped; ", "nats lost", "last        2: L2, L5 dropped",
                 "16 samples, given up", "1 plan", "1 given up early", "b ◆ · b b · b b",
                 "evaluating 4 plans", "3.8 ± 0.11", "1.7 ± 0.049"):  # fmt: skip
        assert expected in text, expected


def test_shares_are_drawn_where_the_screen_is_high_enough() -> None:
    assert [line for line in drawn(80) if "▄" in line] == ["b █ ▄   █ █   █ █", "m   ▄"]
    low = drawn(80, height=15)
    assert len(low) <= 15
    assert not any("▄" in line for line in low)


def test_the_screen_is_drawn_before_the_first_trial() -> None:
    lines = drawn(80, trials=0)
    assert "0/40" in lines[0]
    assert "left" not in lines[0]


def test_the_screen_is_the_view_of_searches_on_terminals() -> None:
    assert VIEWS.get("terminal") is Screen


def test_a_scored_trial_is_the_best_and_the_last() -> None:
    search = begun()
    request = TrialRequest(SEARCH, 0, 0, SURROGATE, GENOME, 8, "bare", 0)
    trial = Trial(0, request, "0", 1.0, (2.0,), (0.1,))
    failed = Trial(1, request, "1", 1.0, None, None, Failure("search", "no memory"))
    search.ledger.add(trial)
    shown = shown_after(search, Estimated(16.0, 10.0, 8), Scored(trial))
    assert "1/16  1 trial " in shown
    assert re.search(r"nll +1\.5 +2 ± 0\.1 +2 ± 0\.1\n", shown)
    assert "best        0: L2, L5 dropped; 33.3 ± 6.7 % lost\n" in shown
    assert "last        0: L2, L5 dropped\n" in shown
    assert "then        healing " in shown
    assert "b b · b b · b b" in shown
    search.ledger.add(failed)
    shown = shown_after(search, Scored(failed))
    assert re.search(r"nll +1\.5 +2 ± 0\.1 +failed\n", shown)
    assert "besides     1 failed" in shown
    assert "best        0: L2, L5 dropped; 33.3 ± 6.7 % lost\n" in shown


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Progress("searching", 3, 24, "measuring"), "measuring: 3 of 24"),
        (Progress("asking", 0, 0), "choosing the next plans"),
        (scoring(1, 8), "evaluating 1 plan on 8 samples"),
        (scoring(3, 8), "evaluating 3 plans on 8 samples"),
        (Warned([Fault("C101", "an old file", severity="warning")]), "warning[C101]: an old file"),
    ],
)
def test_the_screen_shows_the_current_activity(event: SearchEvent, expected: str) -> None:
    assert expected in shown_after(begun(), event)
