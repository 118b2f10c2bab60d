"""A search's RUN read for a report: nothing is evaluated, written or locked, nor are models needed.

What isn't there is said in the report's `missing`. A search that goes on meanwhile isn't disturbed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import optuna
from optuna.storages import JournalStorage

from gptailor.checkpoint.files import CheckpointError
from gptailor.lang.format import format_plan
from gptailor.lang.parse import loads
from gptailor.lang.words import range_words
from gptailor.plan.extras import missing_package
from gptailor.plan.faults import TailorError
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.resolved import Resolved
from gptailor.plan.stage import at_stage
from gptailor.report.block_map import MappedBlock
from gptailor.report.layer_view import plan_summary
from gptailor.report.page.run_report import (
    LayerEffect,
    LayerState,
    ReportedObjective,
    ReportedSize,
    ReportedTrial,
    RunReport,
)
from gptailor.search.blocks import scanned
from gptailor.search.effects import (
    layer_states,
    learned_effects,
    seen_effects,
    window_losses,
)
from gptailor.search.folder import BLOCKS, FRONT, JOURNAL, SETTINGS, SIZES, SPACE
from gptailor.search.object_journal import JournalLines, ObjectJournal
from gptailor.search.object_storage import ObjectStorage, local_or_url
from gptailor.search.pick import SUMMARY
from gptailor.search.run.study import Study, quiet
from gptailor.search.run.trials import BESIDE, RANDOM, SEARCH, STARTS, Aim, Ledger, LossScale, Trial
from gptailor.search.space.decode import decode
from gptailor.search.space.space import Space, space_of
from gptailor.search.verdict import HELD_OUT, held_key, scores_in

_UNENDED = (
    "The search hasn't come to its end: there is no summary, no held-out score and no verdict. The"
    " same search command goes on."
)
_LEARNING = "surrogate"
"""The strategy whose model says what it learned."""


def run_report(run: str | Path, *, learned: bool = True) -> RunReport:
    """What a search's folder, or what lies at its URL, says.

    `learned` is whether the surrogate is fitted again too, which takes some seconds. Raises
    CheckpointError C903 for what holds no search, or none that can be read.
    """
    shown = local_or_url(run)
    try:
        return _Reading(shown).report(learned=learned)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        message = "is not as this version of gptailor writes it"
        help_ = "the same search command writes it anew"
        raise CheckpointError("C903", message, Path(shown), help_) from error


@final
class _Reading:
    """A RUN while it is read: `missing` grows by what isn't there."""

    def __init__(self, shown: str | Path) -> None:
        self.shown = shown
        self.path = Path(shown)
        self.storage = ObjectStorage(shown) if isinstance(shown, str) else None
        self.names = self.storage.names() if self.storage else []
        self.missing: list[str] = []
        record = self._json(SETTINGS)
        if record is None:
            raise self._error("holds no search", "name the RUN of a gptailor search")
        self.record = record
        self.summary = self._json(f"{SUMMARY}.json")
        if self.summary is None:
            self.missing.append(_UNENDED)
        self.study = self._study()
        self.ledger = self._ledger()
        self.space = self._space()

    # ------------------------------------------------------------------------------ what is on disk

    def _error(self, message: str, help_: str = "") -> CheckpointError:
        return CheckpointError("C903", message, self.path, help_)

    def _read(self, name: str) -> bytes | None:
        if self.storage is not None:
            return self.storage.get([name])[name] if name in self.names else None
        path = self.path / name
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise self._error(f"can't be read: {error.strerror}") from error

    def _json(self, name: str) -> dict[str, Any] | None:
        if (raw := self._read(name)) is None:
            return None
        try:
            found = json.loads(raw)
        except ValueError as error:
            raise self._error(f"has a broken {name}: {error}") from error
        if not isinstance(found, dict):
            raise self._error(f"has a broken {name}: that is no object")
        return found

    def _study(self) -> Study:
        where, name = self.record.get("storage"), self.record.get("study", "gptailor")
        try:
            with quiet():
                found = optuna.load_study(study_name=name, storage=self._storage_of(where))
            return Study(found, self.path, lambda genome: ({}, {}))
        except CheckpointError:
            raise
        except Exception as error:  # storages are of many makers, who raise what they like
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            message = f"has no study that can be read{f' in {where}' if where else ''}: {said}"
            message = re.sub(r"://[^/@\s]*@", "://…@", message)  # of whom pages are shown: nobody
            raise self._error(message) from error

    def _storage_of(self, where: str | None) -> JournalStorage | str:
        if where is not None:
            file = where.removeprefix("sqlite:///")
            if file != where and not Path(file).exists():  # Optuna would make an empty one
                raise self._error(f"has its study in {where}, which isn't here")
            return where
        if self.storage is not None:
            return JournalStorage(ObjectJournal(self.storage, JOURNAL))
        if (raw := self._read(JOURNAL)) is None:
            raise self._error(f"has no {JOURNAL}", "a search writes it with its first trial")
        return JournalStorage(JournalLines(raw))

    def _ledger(self) -> Ledger:
        full = int(str(self.study.notes.get("samples", "1")).rpartition("..")[2])
        wanted = self.record["objectives"]
        prefer = self.record.get("prefer")
        number = wanted.index(prefer) if prefer in wanted else None
        ledger = Ledger(self._aims(), full, number)
        self.study.recall(ledger)
        return ledger

    def _aims(self) -> tuple[Aim, ...]:
        """As the search wrote them down; older ones did so in the end."""
        said = self.record.get("aims") or (self.summary or {}).get("objectives")
        if said:
            return tuple(Aim(**one) for one in said)
        found = []
        for words in self.record["objectives"]:
            direction, _, name = words.partition(" ")
            spec = OBJECTIVES[name.partition("(")[0]]
            found.append(Aim(name, direction, "base", "", spec.unit, spec.by != "samples"))
        return tuple(found)

    def _space(self) -> Space | None:
        raw, layers = self._read(SPACE), self.record.get("layers")
        if raw is None or layers is None:
            self.missing.append(
                "The search is of a version that doesn't write down what it searches, as"
                " space.tailor: only plans that it handed over have a text here, and what layers do"
                " isn't known."
                " The same search command writes it, without another trial."
            )
            return None
        try:
            plan = loads(raw.decode(), folder=self.path, name=SPACE)
            space = space_of(plan, layers, self.record["tied"])
        except TailorError as error:
            self.missing.append(f"space.tailor can't be used: {error}")
            return None
        sizes = (len(space.bits), len(space.picks), len(space.reals))
        told = self.ledger.trials[:1]
        if told and tuple(map(len, told[0].request.genome)) != sizes:
            self.missing.append("space.tailor is of another search: its plans aren't shown.")
            return None
        return space

    # ---------------------------------------------------------------------------------- the report

    def report(self, *, learned: bool) -> RunReport:
        """All of it."""
        ledger, space = self.ledger, self.space
        plans = {} if space is None else _plans(space, ledger)
        scale = LossScale(ledger)
        losses = {t.number: loss for t in ledger.trials if (loss := scale.of(t)) is not None}
        sizes = self._sizes(plans)
        line = partial(self._trial, plans, scale, sizes)
        front = [row["trial"] for row in self.summary["front"]] if self.summary else None
        found = {digest: layer_states(plan.slots) for digest, plan in plans.items()}
        states = {digest: row for digest, row in found.items() if row is not None}
        whole = [
            t
            for t in ledger.of(STARTS, RANDOM, SEARCH, BESIDE)
            if t.full and t.same_as is None and t.number in losses
        ]
        scan = None if space is None else scanned(space, ledger)
        return RunReport(
            run=str(self.shown),
            record=self.record,
            objectives=self._objectives(),
            judging=ledger.judging,
            loss_unit=scale.unit,
            full=ledger.full,
            layers=self.record.get("layers"),
            base=self._base_size(),
            trials=[line(trial) for trial in ledger.trials],
            front=tuple(front if front is not None else [t.number for t in ledger.front()]),
            summary=self.summary,
            space=None if space is None else format_plan(space.plan),
            blocks=self._blocks() if scan is None else scan.blocks,
            blocks_about=self._blocks_about(None if scan is None else scan.samples),
            windows=[]
            if space is None
            else window_losses(space, whole, {t.number: losses[t.number][0] for t in whole}),
            effects=_effects(whole, states, losses),
            learned=self._learned() if learned else [],
            missing=tuple(self.missing),
        )

    def _objectives(self) -> list[ReportedObjective]:
        ledger, notes = self.ledger, self.study.notes.get(HELD_OUT, {})
        values = ledger.references.get(ledger.full)
        held = notes.get(held_key(None), {}).get("values")
        many = (self.summary or {}).get("held") or [0] * len(ledger.aims)
        return [
            ReportedObjective(
                aim.name, aim.short, aim.unit, aim.direction, aim.size,
                None if values is None else values[i], None if held is None else held[i], many[i],
            )
            for i, aim in enumerate(ledger.aims)
        ]  # fmt: skip

    def _sizes(self, plans: Mapping[str, Resolved]) -> dict[str, ReportedSize]:
        """Of each plan, by its digest: as written down, else as plans of as many layers have it."""
        said = (self._json(SIZES) or {}).get("plans", {})
        known = {digest: ReportedSize(**one) for digest, one in said.items()}
        if not said:  # of a version before
            for row in (self.summary or {}).get("sizes", ()):
                size = ReportedSize(**{name: row[name] for name in ReportedSize.__annotations__})
                known[self.ledger.trials[row["trial"]].plan] = size
        alike: dict[int, set[ReportedSize]] = {}
        for one in known.values():
            alike.setdefault(one.layers, set()).add(one)
        for digest, plan in plans.items():
            if digest not in known:
                count = len(plan.kept)
                [*same] = alike.get(count, ())
                known[digest] = same[0] if len(same) == 1 else ReportedSize(count)
        return known

    def _base_size(self) -> ReportedSize | None:
        said = (self._json(SIZES) or {}).get("base")
        if said is not None:
            return ReportedSize(**said)
        layers = self.record.get("layers")
        return None if layers is None else ReportedSize(layers)

    def _blocks(self) -> list[MappedBlock]:
        return [
            MappedBlock(**row) for row in (self._json(f"{BLOCKS}.json") or {}).get("blocks", ())
        ]

    def _blocks_about(self, samples: int | None) -> dict[str, Any] | None:
        said = self._json("blocks.json")
        if said is not None:
            return {"measure": said["measure"], "samples": said["samples"]}
        return (
            None if samples is None else {"measure": self.ledger.aims[0].name, "samples": samples}
        )

    def _learned(self) -> list[LayerEffect]:
        strategy = self.record.get("strategy")
        if self.space is None or not self.ledger.trials:
            return []
        if strategy != _LEARNING:
            self.missing.append(
                f"The search's strategy was {strategy}, which has no model of what layers do:"
                " effects are those of the trials alone."
            )
            return []
        measured = self.study.notes.get("measured", {}).get("found", {})
        prior = measured.get("block influence", {}).get("base")
        try:
            return learned_effects(self.space, self.ledger, prior)
        except ImportError as error:
            why = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
            self.missing.append(f"What the surrogate learned isn't shown: {why or error}.")
            return []

    def _trial(
        self,
        plans: Mapping[str, Resolved],
        scale: LossScale,
        sizes: Mapping[str, ReportedSize],
        trial: Trial,
    ) -> ReportedTrial:
        request, plan = trial.request, plans.get(trial.plan)
        unseen = self.study.notes.get(HELD_OUT, {})
        held, theirs = (scores_in(unseen.get(held_key(one))) for one in (trial, None))
        lost = scale.of(trial)
        apart = None
        if held is not None and theirs is not None:
            apart = scale.beside(held.values, held.stderrs, theirs.values)
        return ReportedTrial(
            number=trial.number,
            phase=request.phase,
            origin=request.origin,
            stage=request.stage,
            share=trial.share,
            samples=trial.samples,
            stopped=trial.stopped is not None,
            same_as=trial.same_as,
            values=trial.values,
            stderrs=trial.stderrs,
            failure=None if trial.failure is None else str(trial.failure),
            seconds=trial.seconds,
            loss=None if lost is None else lost[0],
            loss_error=None if lost is None else lost[1],
            size=sizes.get(trial.plan),
            made="" if plan is None else _made(plan),
            text=self._handed(trial)
            if plan is None
            else format_plan(at_stage(plan.declared, request.stage)),
            held=None if held is None else tuple(held.values),
            held_errors=None if held is None else tuple(held.stderrs),
            held_loss=None if apart is None else apart[0],
            held_loss_error=None if apart is None else apart[1],
        )

    def _handed(self, trial: Trial) -> str | None:
        """The text of a plan that the search handed over, with its comment."""
        raw = self._read(f"{FRONT}/trial-{trial.number:04}.tailor")
        return None if raw is None else raw.decode()


def _plans(space: Space, ledger: Ledger) -> dict[str, Resolved]:
    """The plans of trials, each once, by their digests."""
    found: dict[str, Resolved] = {}
    for trial in ledger.trials:
        if trial.plan not in found:
            plan = decode(space, trial.request.genome)
            found[trial.plan] = Resolved(plan, space.layers)
    return found


def _made(told: Resolved) -> str:
    """A line on a plan: `26 layers: 24 base, 2 merged; cut: L20..L23`."""
    dropped = [drop.position for drop in told.plan.drops]
    return plan_summary(told.slots) + f"; cut: {range_words(dropped)}" * bool(dropped)


def _effects(
    trials: Sequence[Trial],
    states: Mapping[str, list[LayerState]],
    losses: Mapping[int, tuple[float, float]],
) -> list[LayerEffect]:
    """Those of each plan once, on all samples and as it is before it is repaired."""
    known = [trial for trial in trials if trial.plan in states]
    return seen_effects([states[t.plan] for t in known], [losses[t.number][0] for t in known])
