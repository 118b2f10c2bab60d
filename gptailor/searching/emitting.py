"""The plans that a search hands over, as files in its folder: the best one, the front, locks."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.checkpoint.lock import SUFFIX
from gptailor.folder import used_plan
from gptailor.lang.format import format_plan
from gptailor.lang.reading import load
from gptailor.lang.words import objective as in_words
from gptailor.lang.words import ranges
from gptailor.locking import measured
from gptailor.outline import slots
from gptailor.plan import Objective, Plan
from gptailor.prepared import prepare, ready
from gptailor.registry import OBJECTIVES
from gptailor.report.describe import plan_summary
from gptailor.report.search_summary import percent, shown_number
from gptailor.search.decode import decode
from gptailor.search.ledger import Ledger
from gptailor.search.record import Trial
from gptailor.search.space import Space
from gptailor.searching.folder import BEST, FRONT, Folder
from gptailor.searching.settings import Settings

_COMMENT_COLUMNS = 100
"""Columns of a comment."""


@final
@dataclass(frozen=True)
class Emitting:
    """Writes plans into a folder. `name` is what the searched plan is called, `seed` its seed."""

    folder: Folder
    space: Space
    ledger: Ledger
    name: str
    seed: int

    def best(self) -> Path | None:
        """The best plan, if any has a score."""
        trial = self.ledger.best()
        return None if trial is None else self.folder.put(BEST, self.text(trial, self.folder.path))

    def front(self) -> list[Path]:
        """The plans that no other one betters, named by their trials; those of before go."""
        trials = self.ledger.front()
        names = {f"{FRONT}/trial-{trial.number:04}.tailor": trial for trial in trials}
        for old in (self.folder.path / FRONT).glob("trial-*.tailor"):
            if f"{FRONT}/{old.name}" not in names:
                old.unlink()
        place = self.folder.path / FRONT
        return [self.folder.put(name, self.text(trial, place)) for name, trial in names.items()]

    def text(self, trial: Trial, place: Path) -> str:
        """A trial's plan as it was evaluated, its paths as seen from a folder, and a comment."""
        plan = decode(self.space, trial.wanted.genome)
        if not trial.wanted.bridged:
            plan = plan.model_copy(update={"bridges": ()})
        used = used_plan(prepare(plan), place)
        seen = plan.model_copy(update={"models": used.models, "bridges": used.bridges})
        comment = "".join(f"# {line}\n" for line in self._comment(trial, plan))
        return comment + format_plan(seen)

    def _comment(self, trial: Trial, plan: Plan) -> Iterable[str]:
        ledger, wanted = self.ledger, trial.wanted
        bridged = ", bridged" if wanted.bridged else ""
        yield (
            f"Found by gptailor search: trial {trial.number} of {len(ledger.trials)} "
            f"({wanted.origin}), seed {self.seed}{bridged}."
        )
        yield f"Space: {self.name}, sha256 {self.space.digest[:16]}."
        scores = zip(ledger.aims, trial.values or (), trial.stderrs or (), strict=True)
        shares = ledger.retained(trial)
        for i, (aim, value, error) in enumerate(scores):
            of = f", {percent(shares[i])} of the base's" if aim.scale == "base" else ""
            samples = f", {wanted.samples} samples"
            yield f"{aim.name}: {shown_number(value, error)}{of}{samples}."
        yield f"{_first_upper(plan_summary(slots(plan, self.space.layers)))}{_cut(plan)}."


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cut(plan: Plan) -> str:
    dropped = [drop.position for drop in plan.drops]
    return f"; cut: {ranges(dropped)}" if dropped else ""


def lock_best(plan: Path) -> Path:
    """The lock of a plan's file, beside it: of all that it reads, and of each tensor it makes."""
    path = plan.with_name(plan.name + SUFFIX)
    measured(ready(load(plan))).write(path)
    return path


def commands(best: Path, chosen: Settings, samples: int) -> list[str]:
    """What scores the best plan again, and what makes a model of it, said in the current folder."""
    wishes = [_seen_from_here(one, chosen.folder) for one in chosen.objectives]
    asked = " ".join(f"-O {shlex.quote(in_words(one).partition(' ')[2])}" for one in wishes)
    file = shlex.quote(str(best))
    return [
        f"gptailor eval {file} {asked} --samples {samples} --seed {chosen.seed}",
        f"gptailor compile {file} -o DIR --locked",
    ]


def _seen_from_here(objective: Objective, folder: Path) -> Objective:
    """The objective with its files' paths from the current folder on."""
    spec = OBJECTIVES[objective.name]
    paths = [one.name for one in spec.arguments if one.kind == "path"]
    moved = {
        name: os.path.relpath(folder / Path(str(objective.arguments[name])).expanduser())
        for name in paths
        if name in objective.arguments
    }
    return objective.model_copy(update={"arguments": {**objective.arguments, **moved}})
