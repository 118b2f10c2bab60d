"""A search's results as files in its folder: best plan, front, lock, and the summary."""

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.generate import GeneratedText
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.lang.words import measure_words
from gptailor.output.lock import SUFFIX
from gptailor.plan.arguments import NotNegative, Positive, checked
from gptailor.plan.faults import TailorError, listed
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.search_block import with_file
from gptailor.program.packages import names_of_process
from gptailor.program.sources import token_cut_of
from gptailor.reporting.layer_view import made_words
from gptailor.reporting.measure import finite_or_none, shared_unit
from gptailor.reporting.model_card import FOUND
from gptailor.reporting.quantities import (
    argument,
    byte_count,
    count_from_words,
    loss_from_words,
    shown_number,
)
from gptailor.reporting.records import data_frame, html_table
from gptailor.searching.folder import FRONT, START, Folder
from gptailor.searching.pick import BEST, Bounds, file_bound, lock_beside, pick, seen_from
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import CurvePoint, Ended, HandedNote, front_file
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_files import SUMMARY, file_inside
from gptailor.searching.run_reading import RunReading
from gptailor.searching.search_text import headline, loss_words, markdown, stage_words
from gptailor.searching.settings import Settings
from gptailor.searching.space.decode import expecting, without_unused
from gptailor.searching.summary import curve


@final
@dataclass(frozen=True)
class SearchResult:
    """Why a search ended, all that RUN has, its best plan's file if there is one, and its folder.

    `summary` has the `verdict` with the `found` and the `best` trial, the `front`, the `curve` of
    quality over size, and all trials in its `ledger`. `commands` score and compile the best plan; a
    comment in them tells which names no installed package provides.
    `answers` are the base's and the best plan's answers to one prompt, if they were requested.
    """

    ended: Ended
    summary: RunReading = field(repr=False)
    best: Path | None
    run: str | Path
    commands: tuple[str, ...] = ()
    answers: tuple[GeneratedText, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """Return the summary's first sentences, and the best plan's file."""
        return "\n".join(filter(None, (headline(self.summary), str(self.best or ""))))

    @property
    def plan(self) -> Plan:
        """The best plan; paths are absolute. Raises TailorError if no plan has a score."""
        if self.best is None:
            raise TailorError("the search found no plan with a score")
        return loads(format_plan(seen_from(load(self.best), None)), str(self.best))

    def records(self) -> list[dict[str, Any]]:
        """Return a row for each trial in their order, by column.

        `number`, `phase` and `origin` tell where the trial is from, `plan` describes it in a line.
        `samples` is the number that it was scored on. Each objective has its score and its error
        under `NAME` and `NAME stderr`. `loss` is the loss compared with the base. A missing value
        is None.
        """
        return [self.summary.row(trial) for trial in self.summary.ledger.trials]

    def to_pandas(self) -> Any:
        """Return the rows of `records` as a table of pandas.

        Raises MissingPackageError without pandas.
        """
        return data_frame(self.records())

    def _repr_html_(self) -> str:
        """Return the summary's first sentences, and the trials as a table of a notebook."""
        rows = self.records()
        left_out = {"phase", "origin", "samples", "layers", "seconds"}
        columns = [name for name in rows[0] if name not in left_out] if rows else []
        return f"<p>{escape(headline(self.summary))}</p>{html_table(rows, columns)}"

    @checked
    def pick(
        self,
        *,
        parameters: Positive | str | None = None,
        memory: Positive | str | None = None,
        context: NotNegative = 0,
        layers: Positive | None = None,
        loss: str | float | None = None,
        gguf: Mapping[str, Positive | str] | None = None,
    ) -> Plan:
        """Return the best plan within bounds, as `gptailor pick` does; paths are absolute.

        `parameters` may be a text such as `110M`. `memory` bounds the bytes of the weights and of
        the KV cache of one text of `context` tokens, also as a text such as `2GB`. `loss` bounds
        the loss compared with the base: `"2%"` of its scores, or 0.05 nats. `gguf` bounds the bytes
        of GGUF files by their types: `{"q4_k_m": "100M"}`. Raises TailorError if no plan meets the
        bounds, ValueError without a bound, for a text that isn't a number and for an unknown type.
        """
        if (parameters, memory, layers, loss) == (None,) * 4 and not gguf:
            raise ValueError("expected a limit: parameters, memory, layers, gguf or loss")
        most = (
            None
            if parameters is None
            else argument("parameters", count_from_words, str(parameters))
        )
        lost = {} if loss is None else dict([argument("loss", loss_from_words, str(loss))])
        files = tuple(argument("gguf", file_bound, *bound) for bound in (gguf or {}).items())
        bounds = Bounds(most, byte_count(memory), context, layers, **lost, gguf=files)
        found = pick(self.run, bounds, None)
        if not found.kept:
            size = found.point.size
            nearest = f"{size.parameters:,} parameters, {size.layers} layers"
            raise TailorError(f"no plan meets these limits; the nearest has {nearest}")
        return loads(found.text, f"<trial {found.point.trial} of {self.run}>")

    @checked
    def plan_of(self, trial: NotNegative) -> Plan:
        """Return the plan of a trial by its `number` in `records`; paths are absolute.

        Raises ValueError for a number without a trial.
        """
        trials = self.summary.ledger.trials
        if trial >= len(trials):
            raise ValueError(f"'trial': expected a number below {len(trials)}, got {trial}")
        plan = expecting(self.summary.handed(trials[trial]), self.summary.space.plan)
        return loads(format_plan(seen_from(plan, None)), f"<trial {trial} of {self.run}>")

    @property
    def influence(self) -> Mapping[str, Sequence[float]]:
        """The block influence of each layer, by the name of the measured plan, such as `base`.

        It is 1 minus the mean cosine of the hidden states before and after a layer. It is empty
        where the search measured no layers.
        """
        return self.summary.notes.measured.found.influence or {}


_LOCKING = "locking the best plan"


def put_results(
    folder: Folder,
    run: RunReading,
    models: Mapping[str, Opened],
    chosen: Settings,
    on_progress: Callable[[str], None],
) -> SearchResult:
    """Write a search's results into its folder, and return them.

    The best plan is the plan that was found, or a simpler one that is no worse
    (`searching/summary.py`). Without scores the best plan is missing. The best starting plan, which
    needs no search, is a part of the results too. The front has the plans that no other one
    betters, the best plan of each size, and the plan that is nearest to the requirements. The
    commands score and compile the best plan.

    An interrupted search doesn't lock the best plan, since that takes a while. The lock of another
    best plan is removed then, and the printed command compiles without a lock. A first Ctrl-C here
    makes the search an interrupted one, also in the journal.
    """
    ledger, place, end = run.ledger, folder.place, run.end
    try:
        judged, handed = run.verdict, _handed_over(run)
        trial = None if judged is None else judged.best
        below = None if place is None else place / FRONT
        best = _put_best(folder, None if trial is None else _text(run, models, trial, place))
        for start in run.starts[:1]:
            folder.put(START, _text(run, models, start, place))
        plans = {*run.front, *(ledger.trials[point.trial] for point in handed.curve)}
        plans |= set() if judged is None else {judged.found, judged.best}
        if end.required is not None and end.required.nearest is not None:
            plans.add(ledger.trials[end.required.nearest])
        _put_front(folder, {front_file(t.number): _text(run, models, t, below) for t in plans})
        commands = () if best is None else _commands(best, run, chosen)
        folder.put(SUMMARY, markdown(run, commands, handed.curve))
        (folder.path / "summary.json").unlink(missing_ok=True)  # of an earlier release
        run.study.note("handed", handed)
        if best is not None and end.ended != "interrupted":
            on_progress(_LOCKING)
            lock_beside(best)
            on_progress(_LOCKING)  # where a Ctrl-C that was swallowed meanwhile is raised again
        folder.send()
    except KeyboardInterrupt:
        if end.ended == "interrupted":
            raise
        run.study.note("result", end.model_copy(update={"ended": "interrupted"}))
        return put_results(folder, run, models, chosen, on_progress)
    return SearchResult(end.ended, run, best, folder.shown, commands)


def _handed_over(run: RunReading) -> HandedNote:
    """Return the best plan of each size; the plan that is handed over stands for the plan found.

    The mean loss is by all objectives that aren't sizes. Its `share` of the base's scores is None
    where an objective has no share, as `kl`, and its `nats` where the objectives have no common
    unit.
    """
    ledger, verdict = run.ledger, run.verdict
    aims = [ledger.aims[number] for number in ledger.rated]
    by_base, unit = all(aim.scale == "base" for aim in aims), shared_unit(aim.unit for aim in aims)
    points = []
    for point, size in curve(ledger, run.size):
        trial = point
        if verdict is not None and point is verdict.found and run.size(verdict.best) == size:
            trial = verdict.best
        lost, mean = ledger.loss(trial), ledger.loss(trial, ledger.rated) if unit else None
        assert lost is not None, "a plan of the curve has a score"
        share = ledger.mean_loss(trial, ledger.rated) if by_base else None
        points.append(
            CurvePoint(
                trial=trial.number,
                size=size,
                lost=lost.value,
                share=share,
                nats=mean and mean.value,
                unrepaired=run.unrepaired(trial),
            )
        )
    best = None if verdict is None else verdict.best.number
    return HandedNote(best=best, curve=tuple(points))


def _put_best(folder: Folder, text: str | None) -> Path | None:
    """Write the best plan's file. Another plan's lock is removed first: no lock is wrong."""
    if text is None or text.encode() != file_inside(folder.path, BEST):
        (folder.path / (BEST + SUFFIX)).unlink(missing_ok=True)
    if text is not None:
        return folder.put(BEST, text)
    (folder.path / BEST).unlink(missing_ok=True)
    return None


def _put_front(folder: Folder, texts: Mapping[str, str]) -> None:
    for old in (folder.path / FRONT).glob("trial-*.tailor"):
        if f"{FRONT}/{old.name}" not in texts:
            old.unlink()
    for name, text in texts.items():
        folder.put(name, text)


def _text(run: RunReading, models: Mapping[str, Opened], trial: Trial, place: Path | None) -> str:
    """Return a trial's plan as it is handed over; paths are seen from a folder, or absolute."""
    plan = without_vain_cut(run.handed(trial), models)
    comment = "".join(f"# {line}\n" for line in _comment(run, trial, plan))
    return comment + format_plan(seen_from(expecting(plan, run.space.plan), place))


def without_vain_cut(plan: Plan, models: Mapping[str, Opened]) -> Plan:
    """Return a closed plan without a `vocabulary` statement that changes nothing."""
    if plan.vocabulary is None or token_cut_of(plan, models) is not None:
        return plan
    return without_unused(plan.model_copy(update={"vocabulary": None}))


def _comment(run: RunReading, trial: Trial, plan: Plan) -> Iterable[str]:
    ledger, record = run.ledger, run.record
    before, stage = ledger.before(trial), stage_words(trial, ledger)
    earlier = None if before is None else before.values
    origin, repair = origin_words(trial.request.origin), f", {stage}" if stage else ""
    yield (
        f"{FOUND} trial {trial.number} of {len(ledger.trials)} "
        f"({origin}), seed {record.seed}{repair}."
    )
    yield f"Space: {record.plan}, sha256 {run.space.digest[:16]}."
    scores = zip(ledger.aims, trial.values or (), trial.stderrs or (), strict=True)
    for i, (aim, value, error) in enumerate(scores):
        score = shown_number(value, finite_or_none(error))
        was = "" if earlier is None else f", before {shown_number(earlier[i])}"
        yield f"{aim.name}: {score}{was}, {trial.request.samples} samples."
    if (lost := ledger.loss(trial)) is not None:
        yield f"{loss_words(lost, ledger.loss_unit)} compared with the base."
    if run.unrepaired(trial):
        yield "The search was interrupted before it repaired plans: the scores are without repair."
    made = made_words(Resolved(plan, run.space.layers))
    yield f"{made[:1].upper()}{made[1:]}."


def _commands(best: Path, run: RunReading, chosen: Settings) -> tuple[str, ...]:
    """Return the commands that score and compile the best plan, for the current folder.

    The score is the search's: on the same samples and device, in the same dtype.
    """
    record, space = run.record, run.space
    families = space.plan.origin.families if space.plan.origin else ()
    where = [word for family in families for word in ("--family", os.path.relpath(family))]
    where += [] if record.device == "cpu" else ["--device", record.device]
    kind = [] if record.dtype is None else ["--dtype", record.dtype]
    drawn = ["--samples", str(record.full), "--seed", str(chosen.seed)]
    lock_there = run.end.ended != "interrupted" or best.with_name(best.name + SUFFIX).exists()
    locked = ["--locked"] if lock_there else []
    wishes = [_seen_from_here(objective, chosen.folder) for objective in chosen.objectives]
    asked = " ".join(f"-O {shlex.quote(measure_words(wish))}" for wish in wishes)
    file = shlex.quote(str(best))
    return (
        f"gptailor eval {file} {asked} {shlex.join([*drawn, *where, *kind])}"
        + _in_python("evaluate", names_of_process(space.plan, wishes)),
        f"gptailor compile {file} {shlex.join(['-o', 'DIR', *where, *locked])}"
        + _in_python("compile", names_of_process(space.plan)),
    )


def _in_python(function: str, names: Sequence[str]) -> str:
    """Return a shell's comment on a command with names that no installed package provides."""
    words = f"  # in Python, by gptailor.{function}: no installed package has {listed(names, 'or')}"
    return words if names else ""


def _seen_from_here(objective: Objective, folder: Path) -> Objective:
    """Return the objective with its file's path relative to the current folder."""
    return with_file(objective, lambda file: os.path.relpath(folder / expanded(file)))
