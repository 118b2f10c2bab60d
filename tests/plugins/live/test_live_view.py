"""The live view of a search, on a screen of so many columns."""

import io

import pytest
from rich.console import Console

import gptailor
from gptailor.plugins.live.live_view import LiveView, ScoreLine, Shown, Standing

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L1 from math
L2 from base, math by linear()
drop L4..L5
"""


def standing(**changes: object) -> Standing:
    shown = Shown("trial 7 (surrogate)", "78.3 % of the base's", plan(), 8)
    said = {
        "trials": 12,
        "spent": 9.5,
        "budget": 40,
        "hits": 2,
        "failed": 1,
        "per_minute": 30.0,
        "left": 61.0,
        "last": "trial 11 (surrogate), 16 samples, given up of 64",
        "best": shown,
        "start": "trial 3 (best window on math)",
        "front": 3,
        "objectives": (
            ScoreLine("nll general", "2.954", "3.912 ± 0.11", "3.785 ± 0.11", "4.1 ± 0.25"),
            ScoreLine("nll math", "1.201", "1.912 ± 0.051", "1.785 ± 0.049", "1.9 ± 0.12"),
        ),
        "stopped": 4,
    }
    return Standing(**(said | changes))  # type: ignore[arg-type]


def plan() -> gptailor.Plan:
    return gptailor.loads(PLAN)


def drawn(standing: Standing, width: int, height: int = 25) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    live = LiveView(console)
    live.say("evaluating 4 plans on 64 samples")
    live.show(standing)
    console.print(live)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_says_what_people_want_to_know_and_fits(width: int) -> None:
    lines = drawn(standing(), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for said in ("9.5/40", "12 trials", "30/min", "trial 7", "best start", "3 plans",
                 "b m ◆ b · · b b", "evaluating 4 plans", "1:01 left",
                 "4 given up early, 2 known before, 1 failed", "3.785 ± 0.11", "1.9 ± 0.12",
                 "given up of 64"):  # fmt: skip
        assert said in text, said


def test_shares_are_drawn_where_the_screen_is_high_enough() -> None:
    lines = drawn(standing(), 80)
    assert [line for line in lines if "▄" in line] == ["b █   ▄ █     █ █", "m   █ ▄"]
    low = drawn(standing(), 80, height=16)
    assert len(low) <= 16
    assert not any("▄" in line for line in low)


def test_before_anything_is_known() -> None:
    lines = drawn(standing(best=None, start="", last="", left=None, trials=0, spent=0.0), 80)
    assert "0/40" in lines[0]
    assert "left" not in lines[0]
