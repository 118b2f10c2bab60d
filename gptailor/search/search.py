"""The verb: `search` closes an open plan's choices, and keeps all that it did in a folder."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, final, runtime_checkable

import jax

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.evaluate.targets import base_of
from gptailor.evaluate.trial import opened
from gptailor.lang.format import objective_words
from gptailor.plan.faults import Fault, TailorError
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths
from gptailor.report.search import markdown
from gptailor.search.evaluate import TrialsJudge, aims_of, judge_of, movable, starts_of, trials_of
from gptailor.search.folder import (
    BEST,
    IDENTITY_WORDS,
    SETTINGS,
    SUMMARY,
    Digests,
    Folder,
    digests_of_models,
    digests_of_texts,
    refuse_other,
)
from gptailor.search.held_out import HeldOut, held_out, recalled
from gptailor.search.interrupt import Interrupt
from gptailor.search.loop import SearchLoop, SearchSetting, Watch
from gptailor.search.results import (
    Emitting,
    best_random,
    best_starts,
    commands,
    lock_best,
    search_summary,
)
from gptailor.search.run.schedule import Budget
from gptailor.search.run.study import Naming, Study, StudyObjective, agree, open_study
from gptailor.search.run.trials import Trial
from gptailor.search.run.workers import Alone, Workers
from gptailor.search.settings import Flags, Resources, Settings, settings
from gptailor.search.space.space import space_of
from gptailor.search.strategies import strategy_of

Ended = Literal["budget", "exhausted", "interrupted"]


@runtime_checkable
class View(Watch, Protocol):
    """Sees a search: what it does besides trials, and each trial."""

    def warned(self, faults: list[Fault]) -> None:
        """The plan was read, with these warnings."""

    def doing(self, what: str) -> None:
        """Something that isn't a trial takes a while."""

    def searching(self, search: SearchLoop) -> None:
        """Trials begin, or go on."""


@final
class Unseen:
    """Nobody looks."""

    def warned(self, faults: list[Fault]) -> None:
        """Nothing."""

    def doing(self, what: str) -> None:
        """Nothing."""

    def searching(self, search: SearchLoop) -> None:
        """Nothing."""

    def asking(self) -> None:
        """Nothing."""

    def began(self, plans: int, samples: int) -> None:
        """Nothing."""

    def told(self, trial: Trial) -> None:
        """Nothing."""


@final
@dataclass(frozen=True)
class _Interruptible:
    """Hands on what happens to a view; each time is one at which Ctrl-C counts."""

    view: View
    interrupt: Interrupt

    def asking(self) -> None:
        self.interrupt.check()
        self.view.asking()

    def began(self, plans: int, samples: int) -> None:
        self.interrupt.check()
        self.view.began(plans, samples)

    def told(self, trial: Trial) -> None:
        self.view.told(trial)
        self.interrupt.check()

    def doing(self, what: str) -> None:
        self.interrupt.check()
        self.view.doing(what)


@final
@dataclass(frozen=True)
class Searched:
    """What a search left: why it ended, its summary, and its best plan's file if there is one."""

    ended: Ended
    summary: Mapping[str, Any]
    best: Path | None


def search(
    plan: Plan,
    run: str | Path,
    flags: Flags | None = None,
    *,
    models: ModelPaths | None = None,
    where: Resources | None = None,
    view: View | None = None,
) -> Searched:
    """Close the choices of an open plan by trials; all that comes of it is in the folder `run`.

    `models` gives other folders for the plan's names. A folder with a study of the same search goes
    on; one of another is refused. Ctrl-C ends a search with everything kept.

    Raises PlanError for faults of the plan and of objectives, WishError where there is nothing to
    search or to search for, SearchError where nothing has a score, CheckpointError for the folder
    (C901 to C903, C303), TailorError or OSError for what concerns all trials.
    """
    chosen = settings(plan, flags or Flags())
    with Folder(Path(run)) as folder, jax.default_device(jax.devices("cpu")[0]):
        return _Run(
            plan, folder, chosen, models or {}, where or Resources(), view or Unseen()
        ).run()


@final
class _Run:
    """One search, from its plan to its files."""

    def __init__(
        self,
        plan: Plan,
        folder: Folder,
        chosen: Settings,
        models: ModelPaths,
        where: Resources,
        view: View,
    ) -> None:
        self.name = plan.origin.source.name if plan.origin else "<plan>"
        self.folder = folder
        self.chosen = chosen
        self.where = where
        self.view = view
        refuse_other(folder, self._record())
        self.plan, self.models, faults = opened(plan, models)
        view.warned(faults)
        self.space = space_of(self.plan, self.models["base"].layout.count)
        view.doing("loading")
        self.trials = trials_of(self.plan, self.models, chosen, where)
        self.base = base_of(self.plan)
        low = chosen.fidelity[0] if chosen.fidelity else self.trials.full
        self.budget = Budget(
            chosen.trials,
            low,
            self.trials.full,
            chosen.bridging,  # type: ignore[arg-type] # one of its literals
            chosen.compare_random,
        )
        self.study = self._study()
        folder.put_json(SETTINGS, self._record())

    def _record(self) -> dict[str, Any]:
        where = self.where
        return {
            "version": gptailor.__version__,
            "plan": self.name,
            **self.chosen.record(),
            "device": where.device,
            "dtype": where.dtype,
            "storage": where.storage,
            "study": where.study,
        }

    def _study(self) -> Study:
        """The study, which is of this search."""
        measures = [StudyObjective(name, how) for name, how, _ in self.trials.objectives]  # type: ignore[arg-type] # a literal
        storage = self.where.storage or self.folder.journal
        study = open_study(storage, self.where.study, measures, Naming(self.space))
        agree(study, self._identity(self.models), IDENTITY_WORDS)
        return study

    def _identity(self, models: Mapping[str, Opened]) -> dict[str, Any]:
        self.view.doing("reading the models' digests")
        digests = Digests(self.folder)
        chosen = self.chosen
        return {
            "space": self.space.digest,
            "models": digests_of_models(models, digests),
            "data": digests_of_texts(self.trials.files, digests),
            "objectives": "; ".join(map(objective_words, chosen.objectives)),
            "samples": f"{self.budget.low}..{self.budget.full}",
            "seed": chosen.seed,
            "strategy": chosen.strategy,
            "bridge": chosen.bridge or "nothing",
            "dtype": self.where.dtype or "their own dtypes",
        }

    # -------------------------------------------------------------------------------- its course

    def run(self) -> Searched:
        """Search, then write down what was found; after Ctrl-C only what is quick to say."""
        with Interrupt() as interrupt, self._workers() as workers:
            watch = _Interruptible(self.view, interrupt)
            found = self._search(workers, watch)
            try:
                ended: Ended = found.run()
                held = self._held_out(found, watch)
            except KeyboardInterrupt:
                interrupt.caught()
                ended, held = "interrupted", recalled(self.study)
        return self._emit(found, ended, held)

    def _search(self, workers: Workers, watch: _Interruptible) -> SearchLoop:
        try:
            starts = starts_of(self.space, self.trials, self.budget, self.study, watch.doing)
        except ValueError as error:  # of a forward pass without numbers
            raise TailorError(f"the models can't be measured: {error}") from error
        setting = SearchSetting(
            space=self.space,
            base=self.base,
            aims=aims_of(self.trials),
            strategy=strategy_of(self.chosen.strategy),
            starts=starts,
            budget=self.budget,
            seed=self.chosen.seed,
            prefer=self.chosen.prefer,
        )
        found = SearchLoop(setting, self.study, workers, watch)
        self.view.searching(found)
        return found

    def _workers(self) -> AbstractContextManager[Workers]:
        """This process, or a cluster's."""
        where = self.where
        if where.ray is None:
            return nullcontext(Alone(TrialsJudge(self.trials)))
        try:
            from gptailor.search.run.ray_workers import RayWorkers  # noqa: PLC0415 (an extra)
        except ImportError as error:
            message = "--ray needs the package ray: pip install 'gptailor[ray]'"
            raise TailorError(message) from error
        self.view.doing("beginning workers")
        make = partial(judge_of, movable(self.plan), self.chosen.movable(), where)
        return RayWorkers(make, where.ray, where.workers, gpus=where.device != "cpu")

    def _held_out(self, found: SearchLoop, watch: _Interruptible) -> HeldOut:
        ledger = found.ledger
        chosen = [ledger.best(), best_random(ledger), *best_starts(ledger), *ledger.front()]
        wanted = [trial for trial in chosen if trial is not None]
        run = partial(held_out, self.study, self.space, self.trials, self.base)
        return run(wanted, watch.doing)

    def _emit(self, found: SearchLoop, ended: Ended, held: HeldOut) -> Searched:
        ledger = found.ledger
        emitting = Emitting(self.folder, self.space, ledger, self.name, self.chosen.seed)
        best = emitting.best()
        emitting.front()
        about = {
            **self._record(),
            "ended": ended,
            "samples": self.budget.full,
            "held": list(self.trials.helds),
            "best_file": str(self.folder.path / BEST),
            "commands": commands(best, self.chosen, self.budget.full) if best else [],
        }
        said = search_summary(ledger, held, about)
        self.folder.put_json(f"{SUMMARY}.json", said)
        self.folder.put(f"{SUMMARY}.md", markdown(said))
        if best is not None and ended != "interrupted":
            self._lock(best)
        return Searched(ended, said, best)

    def _lock(self, best: Path) -> None:
        self.view.doing("locking the best plan")
        try:
            lock_best(best)
        except CheckpointError as error:
            if error.code == "C303":
                raise
            message = f"the best plan can't be locked: {error.message}"
            raise CheckpointError(error.code, message, error.path, error.help) from error
