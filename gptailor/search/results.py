"""What a search hands over, as files in its folder: best plan, front, lock, and the summary."""

import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from gptailor.build.lock import SUFFIX
from gptailor.build.output import used_plan
from gptailor.build.record import lock
from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load
from gptailor.lang.words import objective_words, range_words
from gptailor.plan.layers import slots
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.stage import at_stage
from gptailor.prepare import prepare
from gptailor.report.plan_map import plan_summary
from gptailor.report.scores import markdown, percent, shown_number
from gptailor.search.evaluate import HeldOut, held_key
from gptailor.search.folder import BEST, FRONT, START, SUMMARY, Folder
from gptailor.search.run.trials import (
    BESIDE,
    FINAL,
    RANDOM,
    STARTS,
    Ledger,
    Trial,
    json_numbers,
)
from gptailor.search.settings import Settings
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space


def put_results(  # noqa: PLR0913, PLR0917 (what a search has in the end)
    folder: Folder,
    space: Space,
    ledger: Ledger,
    held: HeldOut,
    about: Mapping[str, Any],
    chosen: Settings,
    on_progress: Callable[[str], None],
) -> tuple[Path | None, dict[str, Any]]:
    """The best plan's file, if any plan has a score, and the summary; the rest is in the folder.

    Beside it is the best starting plan, which is what people have without a search.

    A search that was interrupted doesn't lock the best plan, which takes a while; the lock of
    another best one goes then, and the command that is said compiles without it.
    """
    trial, place = ledger.best(), folder.place
    below = None if place is None else place / FRONT
    text = partial(_text, space, ledger, about)
    before = folder.get_text(BEST)
    best = None if trial is None else folder.put(BEST, text(trial, place))
    if folder.get_text(BEST) != before:
        (folder.path / (BEST + SUFFIX)).unlink(missing_ok=True)
    for start in _best_starts(ledger)[:1]:
        folder.put(START, text(start, place))
    names = {f"trial-{trial.number:04}.tailor": trial for trial in ledger.front()}
    for old in (folder.path / FRONT).glob("trial-*.tailor"):
        if old.name not in names:
            old.unlink()
    for name, one in names.items():
        folder.put(f"{FRONT}/{name}", text(one, below))
    commands = [] if best is None else _commands(best, chosen, space, about)
    files = {"best_file": f"{folder.shown}/{BEST}", "commands": commands}
    said = search_summary(ledger, held, {**about, **files})
    folder.put_json(f"{SUMMARY}.json", said)
    folder.put(f"{SUMMARY}.md", markdown(said))
    if best is not None and about["ended"] != "interrupted":
        on_progress("locking the best plan")
        _lock_best(best)
    folder.send()
    return best, said


def _text(
    space: Space, ledger: Ledger, about: Mapping[str, Any], trial: Trial, place: Path | None
) -> str:
    """A trial's plan as it was evaluated, with a comment; paths as seen from a folder, or whole."""
    plan = at_stage(decode(space, trial.request.genome), trial.request.stage)
    used = used_plan(prepare(plan), place)
    paths = {name: getattr(used, name) for name in ("models", "bridges", "heal", "chat_template")}
    seen = plan.model_copy(update=paths)
    comment = "".join(f"# {line}\n" for line in _comment(space, ledger, about, trial, plan))
    return comment + format_plan(seen)


def _comment(
    space: Space, ledger: Ledger, about: Mapping[str, Any], trial: Trial, plan: Plan
) -> Iterable[str]:
    request = trial.request
    stage = "" if request.stage == "bare" else f", {request.stage}"
    yield (
        f"Found by gptailor search: trial {trial.number} of {len(ledger.trials)} "
        f"({request.origin}), seed {about['seed']}{stage}."
    )
    yield f"Space: {about['plan']}, sha256 {space.digest[:16]}."
    scores = zip(ledger.aims, trial.values or (), trial.stderrs or (), strict=True)
    shares, earlier = ledger.retained(trial), ledger.before(trial)
    before = None if earlier is None else earlier.values
    for i, (aim, value, error) in enumerate(scores):
        of = f", {percent(shares[i])} of the base's" if aim.scale == "base" else ""
        was = "" if before is None else f", before {shown_number(before[i])}"
        yield f"{aim.name}: {shown_number(value, error)}{of}{was}, {request.samples} samples."
    summary = plan_summary(slots(plan, space.layers))
    dropped = [drop.position for drop in plan.drops]
    cut = f"; cut: {range_words(dropped)}" if dropped else ""
    yield f"{summary[:1].upper()}{summary[1:]}{cut}."


def _lock_best(plan: Path) -> None:
    """Write the lock of a plan's file beside it: of all that it reads and each tensor it makes."""
    try:
        lock(load(plan)).write(plan.with_name(plan.name + SUFFIX))
    except CheckpointError as error:
        if error.code == "C303":
            raise
        message = f"the best plan can't be locked: {error.message}"
        raise CheckpointError(error.code, message, error.path, error.help) from error


def _commands(best: Path, chosen: Settings, space: Space, about: Mapping[str, Any]) -> list[str]:
    """What scores the best plan again, and what makes a model of it, said in the current folder.

    It scores as the search did: on the same samples and device, in the same dtype.
    """
    families = space.plan.origin.families if space.plan.origin else ()
    where = [word for one in families for word in ("--family", os.path.relpath(one))]
    where += [] if about["device"] == "cpu" else ["--device", about["device"]]
    kind = [] if about["dtype"] is None else ["--dtype", about["dtype"]]
    drawn = ["--samples", str(about["samples"]), "--seed", str(chosen.seed)]
    lock_there = about["ended"] != "interrupted" or best.with_name(best.name + SUFFIX).exists()
    locked = ["--locked"] if lock_there else []
    wishes = [_seen_from_here(one, chosen.folder) for one in chosen.objectives]
    asked = " ".join(f"-O {shlex.quote(objective_words(one).partition(' ')[2])}" for one in wishes)
    file = shlex.quote(str(best))
    return [
        f"gptailor eval {file} {asked} {shlex.join([*drawn, *where, *kind])}",
        f"gptailor compile {file} {shlex.join(['-o', 'DIR', *where, *locked])}",
    ]


def _seen_from_here(objective: Objective, folder: Path) -> Objective:
    """The objective with its files' paths from the current folder on."""
    paths = {one.name for one in OBJECTIVES[objective.name].arguments if one.kind == "path"}
    moved = {
        name: os.path.relpath(folder / Path(str(value)).expanduser())
        for name, value in objective.arguments.items()
        if name in paths
    }
    return objective.model_copy(update={"arguments": {**objective.arguments, **moved}})


ENOUGH = 12
"""Random plans from which it can be said what more of them would reach."""
_SHOWN = 8
"""Starting plans that a summary has at most."""


def search_summary(ledger: Ledger, held: HeldOut, about: dict[str, Any]) -> dict[str, Any]:
    """The whole; `about` is what the search was of and how it ended."""
    row, drawn = partial(_row, ledger, held), _drawn(ledger)
    values = ledger.references.get(ledger.full)
    return {
        **about,
        "objectives": [aim._asdict() for aim in ledger.aims],
        "trials": len(ledger.trials),
        "cost": round(ledger.cost(), 3),
        "hits": ledger.hits,
        "failed": sum(trial.values is None for trial in ledger.trials),
        "seconds": round(math.fsum(trial.seconds for trial in ledger.trials), 1),
        "base": {
            "values": None if values is None else list(values),
            "held": held.get(held_key(None)),
        },
        "best": row(ledger.best()),
        "front": [row(trial) for trial in ledger.front()],
        "starts": [row(trial) for trial in _best_starts(ledger)],
        "final": [row(trial) for trial in ledger.of(FINAL)],
        "random": {
            "trials": len(drawn),
            "whole": bool(ledger.of(BESIDE)),
            "best": row(ledger.best(drawn)),
            "expected": expected(ledger, drawn),
        },
    }


def finalists(ledger: Ledger) -> list[Trial]:
    """The trials that a summary has: the best, the best random one, starting plans, the front."""
    best = ledger.best(), ledger.best(_drawn(ledger))
    return [t for t in (*best, *_best_starts(ledger), *ledger.front()) if t is not None]


def _best_starts(ledger: Ledger) -> list[Trial]:
    """Starting plans at full fidelity, the best first; each plan once."""
    whole = (t for t in ledger.of(STARTS) if t.full and t.values is not None and t.same_as is None)
    return ledger.ranked(whole, _SHOWN)


def _drawn(ledger: Ledger) -> list[Trial]:
    """The plans of random search if there was one, else the few random ones in the budget."""
    beside = [t for t in ledger.of(BESIDE) if t.same_as is None]
    return beside or [t for t in ledger.of(RANDOM) if t.same_as is None]


def _row(ledger: Ledger, held: HeldOut, trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    before = ledger.before(trial)
    return {
        "trial": trial.number,
        "origin": trial.request.origin,
        "samples": trial.request.samples,
        "seconds": round(trial.seconds, 1),
        "stage": trial.request.stage,
        "before": None if before is None or before.values is None else list(before.values),
        "values": None if trial.values is None else list(trial.values),
        "failure": None if trial.failure is None else str(trial.failure),
        "stderrs": json_numbers(trial.stderrs),
        "retained": json_numbers(ledger.retained(trial)),
        "held": held.get(held_key(trial)),
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
