"""The live view of a search's events, as a terminal receives it."""

import io
import re
from contextlib import redirect_stderr

import pytest

import gptailor
from gptailor.cli.search_view import VIEWS
from gptailor.evaluation.scores import Failure
from gptailor.plan.faults import Fault
from gptailor.plugins.live.screen import Screen
from gptailor.searching.run.origin import StrategyPlan
from gptailor.searching.run.records import Aim
from gptailor.searching.run.schedule import Budget
from gptailor.searching.run.trials import SEARCH, Ledger, Trial, TrialRequest
from gptailor.searching.search import (
    Asked,
    Begun,
    Doing,
    Estimated,
    Scored,
    SearchEvent,
    Started,
    Warned,
)
from gptailor.searching.space.space import space_of
from tests.searching.space.encode import encode

PLAN = 'tailor 1\nmodel base = "./base"\ndrop any 2 of L0..L7\nheal on "t.jsonl"\n'
SPACE = space_of(gptailor.loads(PLAN), 8)
CLOSED = PLAN.replace("drop any 2 of L0..L7", "drop L2; drop L5")


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


def begun() -> Begun:
    ledger = Ledger((Aim("nll", "minimize", "base"),), 8)
    ledger.references[8] = (1.5,)
    return Begun(ledger, Budget(16, 8, 8, "finalists", heals=True, wanted=1), SPACE, 3.0)


def test_it_is_the_view_of_searches_on_terminals() -> None:
    assert VIEWS.get("terminal") is Screen


def test_a_scored_trial_is_the_best_and_the_last() -> None:
    search = begun()
    genome = encode(SPACE, gptailor.loads(CLOSED))
    request = TrialRequest(SEARCH, 0, 0, StrategyPlan(strategy="surrogate"), genome, 8, "bare", 0)
    trial = Trial(0, request, "0", 1.0, (2.0,), (0.1,))
    failed = Trial(1, request, "1", 1.0, None, None, Failure("search", "no memory"))
    search.ledger.add(trial)
    shown = shown_after(search, Estimated(16.0, 10.0, 8), Scored(trial))
    assert "1/16  1 trial " in shown
    assert re.search(r"nll +1\.5 +2 ± 0\.1 +2 ± 0\.1\n", shown)
    assert "best        trial 0 (surrogate); 0.5 lost\n" in shown
    assert "last        trial 0 (surrogate)\n" in shown
    assert "then        healing " in shown
    assert "b b · b b · b b" in shown
    search.ledger.add(failed)
    shown = shown_after(search, Scored(failed))
    assert re.search(r"nll +1\.5 +2 ± 0\.1 +failed\n", shown)
    assert "besides     1 failed" in shown
    assert "best        trial 0 (surrogate); 0.5 lost\n" in shown


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Doing("measuring", 3, 24), "measuring: 3 of 24"),
        (Asked(), "working out what to try next"),
        (Started(1, 8), "evaluating 1 plan on 8 samples"),
        (Started(3, 8), "evaluating 3 plans on 8 samples"),
        (Warned([Fault("C101", "an old file", severity="warning")]), "warning[C101]: an old file"),
    ],
)
def test_the_view_has_what_is_done_now(event: SearchEvent, said: str) -> None:
    assert said in shown_after(begun(), event)
