"""How a search prints its steps and the remaining time."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pytest

import gptailor
from gptailor.cli import main as cli
from gptailor.cli.search_view import VIEWS, Lines, estimate, stages_words
from gptailor.plan.events import Progress
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.origin import BestWindow, StrategyPlan, UniformMerge
from gptailor.searching.run.records import Aim
from gptailor.searching.run.trials import FINAL, SEARCH, Ledger, Trial, TrialRequest
from gptailor.searching.search import Begun, Estimated, OnSearchEvent, Scored
from gptailor.searching.space.space import space_of
from tests.searching.space.encode import encode

PLAN = """\
tailor 1
model base = "./base"
drop any 2 of L0..L7
bridge on "t.jsonl"
heal on "t.jsonl"
"""
CLOSED = PLAN.replace("drop any 2 of L0..L7", "drop L2; drop L5")


class Course:
    """A search that is told of at moments of our own, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, repair: float | None) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.ledger = Ledger((Aim("nll", "minimize", "base"),), 8)
        self.ledger.references[8] = (1.5,)
        self.lines = Lines()
        self.space = space_of(gptailor.loads(PLAN), 8)
        self.genome = encode(self.space, gptailor.loads(CLOSED))
        budget = Budget(16, 8, 8, "finalists", heals=True, wanted=1)
        self.lines(Begun(self.ledger, budget, self.space, repair))
        self.lines(Estimated(16.0, 10.0, 8))

    def score(self, seconds: float, phase: str = SEARCH) -> None:
        self.now += seconds
        number = len(self.ledger.trials)
        stage = "healed" if phase == FINAL else "bare"
        request = TrialRequest(
            phase, number, 0, StrategyPlan(strategy="surrogate"), self.genome, 8, stage, number
        )
        trial = Trial(number, request, str(number), 1.0, (2.0,), (0.1,))
        self.ledger.add(trial)
        self.lines(Scored(trial))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def all_said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_estimate_has_bridging_and_healing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Course(monkeypatch, 3.0)
    assert all_said(capsys).endswith(
        "16 evaluations of 8 samples at 10 s, as the base took: about 2:40; then bridging and"
        " healing 2 plans at most: about 1:00; evaluating finalists and held-out scores come on top"
    )
    Course(monkeypatch, None)
    assert "then bridging and healing 2 plans at most; evaluating" in all_said(capsys)
    words = estimate(Estimated(16.0, 10.0, 8), "healing 2 plans", Budget(16, 8, 8, "each"))
    assert "; then healing 2 plans; bridging each cut comes on top; evaluating" in words


def test_a_budget_below_the_required_evaluations_is_reported() -> None:
    few = Budget(1, 8, 8, "finalists", heals=True, wanted=1, measured=2.5)
    assert few.evaluations == 2.5 + 1 + 1 + 2, "one starting plan, a random one, two healed ones"
    assert Budget(200, 8, 8, measured=2.5).evaluations == 200
    words = estimate(Estimated(4.0, 10.0, 8), "", few)
    more = (
        "measurements, one starting plan and finalists take more than 'trials 1', so the strategy"
    )
    assert words.startswith("4 evaluations of 8 samples at 10 s, as the base took: about 0:40; ")
    assert f"{more} gets no trial" in words
    tight = Budget(4, 8, 8, "finalists", heals=True, wanted=1)
    assert tight.left == 0
    said = estimate(Estimated(4.0, 10.0, 8), "", tight)
    assert "; the strategy gets no trial: starting plans take all 4" in said
    assert "strategy" not in estimate(Estimated(4.0, 10.0, 8), "", Budget(200, 8, 8))


def test_each_line_estimates_the_time_left_from_past_trials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    course = Course(monkeypatch, 3.0)
    course.score(20)
    line = said(capsys)
    assert line == "1/16  0: L2, L5 dropped; nll 2 ± 0.1, best; 6:00 left", (
        "15 trials of 20 s, two repairs of 30 s"
    )
    course.score(10)
    assert said(capsys).endswith("; 4:30 left"), "14 trials of 15 s, two repairs of 30 s"
    course.score(100, FINAL)
    assert said(capsys).endswith("; 4:40 left"), "12 trials of 15 s, one repair of 100 s"


def test_repairs_of_unknown_cost_are_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    course = Course(monkeypatch, None)
    course.score(20)
    assert said(capsys).endswith("; 5:00 left, then repairs")
    course.score(100, FINAL)
    assert said(capsys).endswith("; 6:00 left")


def test_a_trial_is_a_line_however_much_it_drops() -> None:
    space = space_of(gptailor.loads(PLAN.replace("any 2 of L0..L7", "any 13 of L0..L27")), 28)
    closed = "".join(f"drop L{number}\n" for number in range(0, 26, 2))
    genome = encode(space, gptailor.loads(PLAN.replace("drop any 2 of L0..L7\n", closed)))
    ledger = Ledger((Aim("nll", "minimize", "base"), Aim("kl", "minimize", "spread")), 8)
    ledger.references[8] = (1.5, 1.0)
    window = BestWindow(of=UniformMerge(models=("math", "code"), coefficient=0.6))
    with redirect_stderr(io.StringIO()) as stream:
        lines = Lines()
        lines(Begun(ledger, Budget(16, 8, 8), space, None))
        for number, samples in enumerate((8, 8, 8)):
            request = TrialRequest(SEARCH, 0, number, window, genome, samples, "bare", number)
            trial = Trial(number, request, str(number), 1.0, (2.0, 3.0 + number), (0.1, 0.2))
            ledger.add(trial)
            lines(Scored(trial))
    said = stream.getvalue().splitlines()[-3:]
    assert max(map(len, said)) <= 80
    assert [line.split()[:3] for line in said] == [
        [f"{n + 1}/16", f"{n}:", "L0,"] for n in range(3)
    ]
    assert all(" …; " in line for line in said)


def test_healing_of_a_second_plan_is_announced_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    course = Course(monkeypatch, 3.0)
    for _ in range(2):
        course.lines(Progress("searching", 0, 0, "healing 6 layers"))
        course.lines(Progress("searching", 0, 0, "healing 6 layers"))
        course.score(100, FINAL)
    assert capsys.readouterr().err.count("healing 6 layers\n") == 2


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(16, 8, 8), "cuts are scored bare"),
        (Budget(16, 8, 8, "each"), "cuts are scored bridged"),
        (
            Budget(40, 8, 8, "finalists"),
            "cuts are scored bare; then the best 4 plans and starting plans, bridged",
        ),
        (
            Budget(16, 8, 8, "each", heals=True, separate=True),
            "plans are scored first with nothing dropped; cuts are scored bridged;"
            " then the best plan and starting plans, healed",
        ),
    ],
)
def test_the_stages_are_named_before_the_first_trial(budget: Budget, words: str) -> None:
    assert stages_words(budget) == words


MEASURING = Progress("searching", 1, 2, "measuring")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def view_of_a_plugin() -> Iterator[OnSearchEvent]:
    yield lambda event: print("viewed", event, file=sys.stderr)


@pytest.mark.parametrize(
    ("plugin", "stream", "options", "expected"),
    [
        (True, Terminal, [], f"viewed {MEASURING}\n"),
        (True, Terminal, ["--no-live"], "measuring: 1 of 2\n"),
        (True, io.StringIO, [], "measuring: 1 of 2\n"),
        (False, Terminal, [], "measuring: 1 of 2\n"),
    ],
)
def test_a_terminal_has_the_view_of_a_plugin_and_everything_else_has_lines(
    plugin: bool, stream: type[io.StringIO], options: list[str], expected: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def search(*_: object, on_event: OnSearchEvent, **__: object) -> None:
        on_event(MEASURING)
        raise KeyboardInterrupt

    monkeypatch.setattr("gptailor.searching.search.search", search)
    monkeypatch.setattr("gptailor.cli.search.keep_memory", lambda: None)
    monkeypatch.setattr("gptailor.plan.doors._points", lambda *_: [])
    monkeypatch.setattr(VIEWS, "_problems", {})
    monkeypatch.delitem(VIEWS, "terminal", raising=False)
    if plugin:
        monkeypatch.setitem(VIEWS, "terminal", view_of_a_plugin)
    (tmp_path / "p.tailor").write_text(PLAN + 'search { minimize nll("t.jsonl") }\n')
    monkeypatch.setattr(sys, "stderr", stream())
    code = cli.run(["search", str(tmp_path / "p.tailor"), "-o", str(tmp_path / "run"), *options])
    assert isinstance(sys.stderr, io.StringIO)
    assert (code, sys.stderr.getvalue()) == (
        130, f"{expected}interrupted; the results are kept, and the same command continues\n"
    )  # fmt: skip
