"""The content of a search's summary file, for tests."""

from typing import Any

BEGUN: dict[str, Any] = {
    "version": "0.2.0", "plan": "space.tailor", "fidelity": None, "seed": 0,
    "strategy": "surrogate", "bridge": None, "prefer": None, "heals": False,
    "finalists": None, "race": True, "requires": [], "device": "cpu",
    "dtype": None, "packages": [], "layers": 26, "tied": [],
}  # fmt: skip
"""Settings at the beginning of the search."""


def row(value: float, origin: str = "surrogate", **changes: Any) -> dict[str, Any]:
    held = {"values": [value + 0.5], "stderrs": [0.01]}
    said = {"trial": 4, "origin": origin, "samples": 64, "stage": "bare", "values": [value],
            "stderrs": [0.02], "lost": value - 2, "seconds": 0.5,
            "before": None, "failure": None, "held": held, "cut": "", "recipe": "",
            "lost_stderr": 0.02, "held_lost": value - 1.75, "held_lost_stderr": 0.01}  # fmt: skip
    return said | changes


AIM = {
    "name": 'nll("a.txt")',
    "direction": "minimize",
    "scale": "base",
    "unit": "nats",
    "size": False,
}


WORSE = {"origin": "greedy removal", "trial": 2, "gain": -0.25, "stderr": 0.02}


def judged(**changes: Any) -> dict[str, Any]:
    against = {"origin": "greedy removal", "trial": 2, "gain": 0.25, "stderr": 0.02}
    base = {"gain": -0.5, "stderr": 0.1, "better": False, "no_larger": False}
    found = {"better": True, "worse": False, "against": against, "starts": 2,
             "held": True, "base": base}  # fmt: skip
    return found | changes


def document(**changes: Any) -> dict[str, Any]:
    """Return what a summary's file has, with some changes."""
    found: dict[str, Any] = {
        **BEGUN,
        "samples": 64,
        "late": 0,
        "required": None,
        "left_out": [],
        "beyond": [],
        "stopped": 0,
        "spared": 0.0,
        "seconds": 2.5,
        "ended": "budget",
        "objectives": [AIM],
        "deciding": [0],
        "loss_unit": "nats",
        "trials": 20,
        "cost": 12.5,
        "hits": 1,
        "failed": 2,
        "held": [30],
        "base": {"values": [2.0], "held": {"values": [2.25], "stderrs": [0.0]}},
        "best": row(2.5),
        "found": row(2.5),
        "verdict": judged(),
        "sizes": [],
        "measured": {"evaluations": 3.25, "seconds": 41.0, "base": 1.25},
        "front": [],
        "final": [],
        "recipe": None,
        "recipes": 0,
        "at_bounds": [],
        "repair": None,
        "starts": [
            row(2.75, "best window on math", trial=1, stage="bridged"),
            row(3.0, "greedy removal", trial=2),
        ],
        "random": {"trials": 5, "best": row(3.5, "random", trial=3), "expected": 10 / 3},
        "commands": ["gptailor eval run/best.tailor", "gptailor compile run/best.tailor -o DIR"],
    }
    return found | changes
