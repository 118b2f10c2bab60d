"""What came of a search as JSON: the base, starting plans, random ones, what was found."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

from gptailor.search.ledger import Ledger
from gptailor.search.record import BESIDE, RANDOM, STARTS, Trial
from gptailor.searching.held_out import HeldOut

ENOUGH = 12
"""Random plans from which it can be said what more of them would reach."""
SHOWN = 8
"""Starting plans that a summary has at most."""


def search_summary(ledger: Ledger, held: HeldOut, about: dict[str, Any]) -> dict[str, Any]:
    """The whole; `about` is what the search was of and how it ended."""
    best = ledger.best()
    return {
        **about,
        "objectives": [aim._asdict() for aim in ledger.aims],
        "trials": len(ledger.trials),
        "cost": round(ledger.cost(), 3),
        "hits": ledger.hits,
        "failed": sum(trial.values is None for trial in ledger.trials),
        "seconds": round(math.fsum(trial.seconds for trial in ledger.trials), 1),
        "base": _base(ledger, held),
        "best": None if best is None else _row(best, ledger, held),
        "front": [_row(trial, ledger, held) for trial in ledger.front()],
        "starts": [_row(trial, ledger, held) for trial in best_starts(ledger)],
        "random": _random(ledger, held),
    }


def best_starts(ledger: Ledger) -> list[Trial]:
    """Starting plans at full fidelity, the best first; each plan once."""
    left = [t for t in ledger.of(STARTS) if t.full and t.values is not None and t.same_as is None]
    found: list[Trial] = []
    while left and len(found) < SHOWN and (best := ledger.best(left)) is not None:
        found.append(best)
        left.remove(best)
    return found


def best_random(ledger: Ledger) -> Trial | None:
    """The best random plan: of random search if there was one, else of the few in the budget."""
    drawn = _drawn(ledger)
    return ledger.best(drawn) if drawn else None


def _drawn(ledger: Ledger) -> list[Trial]:
    beside = [t for t in ledger.of(BESIDE) if t.same_as is None]
    return beside or [t for t in ledger.of(RANDOM) if t.same_as is None]


def _base(ledger: Ledger, held: HeldOut) -> dict[str, Any]:
    values = ledger.references.get(ledger.full)
    return {"values": None if values is None else list(values), "held": held.of(None)}


def _row(trial: Trial, ledger: Ledger, held: HeldOut) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "origin": trial.wanted.origin,
        "samples": trial.wanted.samples,
        "bridged": trial.wanted.bridged,
        "values": None if trial.values is None else list(trial.values),
        "stderrs": _finite(trial.stderrs),
        "retained": _finite(ledger.retained(trial)),
        "held": held.of(trial),
    }


def _finite(numbers: Sequence[float] | None) -> list[float | None] | None:
    """JSON has neither NaN nor infinity."""
    return None if numbers is None else [n if math.isfinite(n) else None for n in numbers]


def _random(ledger: Ledger, held: HeldOut) -> dict[str, Any]:
    drawn = _drawn(ledger)
    best = best_random(ledger)
    return {
        "trials": len(drawn),
        "whole": bool(ledger.of(BESIDE)),
        "best": None if best is None else _row(best, ledger, held),
        "expected": expected(ledger, drawn),
    }


def expected(ledger: Ledger, drawn: Sequence[Trial]) -> float | None:
    """The worst retained share that the best of as many random plans as the search cost would have.

    By a normal law through those that were drawn: an estimate for little money, while random
    search itself would cost as much again.
    """
    shares = [min(ledger.retained(trial)) for trial in drawn if trial.values is not None]
    if len(shares) < ENOUGH or ledger.of(BESIDE):
        return None
    count = max(ledger.cost(), 1.0)
    quantile = NormalDist().inv_cdf((count - 0.375) / (count + 0.25))  # Blom, 1958
    return fmean(shares) + quantile * stdev(shares)
