"""A search's results as files in its folder: best plan, front, lock, and the summary."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Literal, final

from gptailor.checkpoint.files import expanded
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.lang.words import measure_words
from gptailor.output.lock import SUFFIX
from gptailor.plan.arguments import NotNegative, Positive, checked
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.search_block import with_file
from gptailor.reporting.layer_view import made_words
from gptailor.reporting.quantities import (
    byte_count,
    count_from_words,
    loss_from_words,
    shown_number,
)
from gptailor.reporting.records import data_frame, html_table
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.curve import curve
from gptailor.searching.folder import FRONT, START, Folder
from gptailor.searching.pick import BEST, Bounds, lock_beside, pick, seen_from
from gptailor.searching.run.comparison import Scores
from gptailor.searching.run.records import Ended, NumberAtBound, RunSizes, SearchSummary, front_file
from gptailor.searching.run.trials import RECIPES, Ledger, Trial
from gptailor.searching.run_files import SUMMARY, file_inside
from gptailor.searching.search_text import headline, loss_words, markdown, stage_words
from gptailor.searching.space.decode import decode, expecting, plan_at_stage
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active
from gptailor.searching.starts.recipes import has_recipe
from gptailor.searching.summary import SearchEnd, best_starts, search_summary
from gptailor.searching.verdict import Verdict, held_key, scores_in, scores_of, verdict


@final
@dataclass(frozen=True)
class SearchResult:
    """Why a search ended, its summary, its best plan's file if there is one, and its folder."""

    ended: Ended
    summary: SearchSummary = field(repr=False)
    best: Path | None
    run: str | Path

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
        `samples` are those that it was scored on. Each objective has its score and its error under
        `NAME` and `NAME stderr`. `loss` is the loss beside the base. A missing value is None.
        """
        from gptailor.searching.run_reading import RunReading

        reading = RunReading(self.run)
        return [reading.row(trial) for trial in reading.ledger.trials]

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
    ) -> Plan:
        """Return the best plan within bounds, as `gptailor pick` does; paths are absolute.

        `parameters` may be a text such as `110M`. `memory` bounds the bytes of the weights and of
        the KV cache of one text of `context` tokens, also as a text such as `2GB`. `loss` bounds
        the loss beside the base: `"2%"` of its scores, or 0.05 nats. Raises TailorError if no plan
        keeps to the bounds, ValueError for a text that is no number.
        """
        most = count_from_words(parameters) if isinstance(parameters, str) else parameters
        lost = {} if loss is None else dict([loss_from_words(str(loss))])
        found = pick(self.run, Bounds(most, byte_count(memory), context, layers, **lost), None)
        if not found.kept:
            nearest = f"{found.row.parameters:,} parameters, {found.row.layers} layers"
            raise TailorError(f"no plan keeps to these bounds; the nearest has {nearest}")
        return loads(found.text)


_LOCKING = "locking the best plan"


def put_results(
    folder: Folder, end: SearchEnd, on_progress: Callable[[str], None]
) -> tuple[Path | None, SearchSummary]:
    """Write a search's results into its folder; return the best plan's file and the summary.

    There is no best plan where no plan has a score. It is the plan that was found, or a simpler one
    that is no worse (`searching/verdict.py`). Beside it is the best starting plan, which needs no
    search. The front has the plans that no other one betters, the best plan of each size, and the
    plan that is nearest to the requirements.

    An interrupted search doesn't lock the best plan, since that takes a while. The lock of another
    best plan is removed then, and the printed command compiles without a lock. A first Ctrl-C here
    makes the search an interrupted one, also in the summary.
    """
    ledger, place = end.ledger, folder.place
    try:
        judged = verdict_on_best(end)
        trial = None if judged is None else judged.best
        below = None if place is None else place / FRONT
        best = _put_best(folder, None if trial is None else _text(end, trial, place))
        for start in best_starts(ledger)[:1]:
            folder.put(START, _text(end, start, place))
        handed = {*ledger.front(), *(trial for trial, _ in curve(ledger, end.sizes))}
        handed |= set() if judged is None else {judged.found, judged.best}
        if end.required is not None and end.required.nearest is not None:
            handed.add(ledger.trials[end.required.nearest])
        _put_front(folder, {front_file(t.number): _text(end, t, below) for t in handed})
        summary = search_summary(
            end,
            judged,
            commands=[] if best is None else _commands(best, end),
            at_bounds=[] if trial is None else [*numbers_at_bounds(end.space, trial)],
        )
        sizes = RunSizes(base=end.sizes.of_plan(end.base), plans=dict(end.sizes.known))
        end.study.note("sizes", sizes)
        folder.put_json(f"{SUMMARY}.json", summary.model_dump(mode="json"))
        folder.put(f"{SUMMARY}.md", markdown(summary))
        if best is not None and end.ended != "interrupted":
            on_progress(_LOCKING)
            lock_beside(best)
            on_progress(_LOCKING)  # where a Ctrl-C that was swallowed meanwhile is raised again
        folder.send()
    except KeyboardInterrupt:
        if end.ended == "interrupted":
            raise
        return put_results(folder, replace(end, ended="interrupted"), on_progress)
    return best, summary


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


def numbers_at_bounds(space: Space, trial: Trial) -> Iterator[NumberAtBound]:
    """Yield the numbers of a trial's plan that are at an end of their interval.

    A low end of 0 is left out: a model then has no share, and a wider interval would hardly help.
    """
    says = active(space.table, trial.request.genome).reals
    for real, share, counts in zip(space.reals, trial.request.genome.reals, says, strict=True):
        value = real.value(float(share))
        ends = (real.low, real.high) if real.low else (real.high,)
        if counts and real.low < real.high and value in ends:
            bound: Literal["low", "high"] = "low" if value == real.low else "high"
            yield NumberAtBound(name=escaped_control(real.name), value=value, bound=bound)


def verdict_on_best(end: SearchEnd) -> Verdict | None:
    """Return the verdict on the best trial, by held-out samples where all plans have them.

    There is no verdict where all plans were evaluated, and none meets the requirements.
    """
    ledger, held = end.ledger, end.study.typed.held_out
    if end.required is not None and end.required.whole and not end.required.met:
        return None

    def on_held(trial: Trial | None) -> Scores | None:
        return scores_in(held.get(held_key(trial)))

    def own(trial: Trial | None) -> Scores | None:
        return None if trial is None else scores_of(trial)

    best, unseen = ledger.best(), on_held(None)
    by_held_out = unseen is not None and best is not None and on_held(best) is not None
    texts = [o.arguments.get("file", n) for n, o in enumerate(end.chosen.objectives)]
    uncut = unseen.values if by_held_out and unseen else ledger.references.get(ledger.full)
    return verdict(
        ledger,
        ledger.comparison(uncut, samples=texts),
        on_held if by_held_out else own,
        lambda trial: decode(end.space, trial.request.genome),
        lambda trial: end.sizes.of(trial).parameters,
        end.sizes.of_plan(end.base).parameters,
        held=by_held_out,
        uncut=lambda trial: _uncut_scores(end.space, ledger, trial),
    )


def _uncut_scores(space: Space, ledger: Ledger, trial: Trial) -> Scores | None:
    """Return the scores of a trial's recipe with nothing dropped, on all samples, if known."""
    recipes = (other for other in ledger.of(RECIPES) if other.full)
    alike = [r for r in recipes if has_recipe(space, trial.request.genome, r.request.genome)]
    best = ledger.best(alike)
    return None if best is None else scores_of(best)


def _text(end: SearchEnd, trial: Trial, place: Path | None) -> str:
    """Return a trial's plan as evaluated, with a comment; paths from a folder, or absolute."""
    plan = plan_at_stage(end.space, trial.request.genome, trial.request.stage)
    comment = "".join(f"# {line}\n" for line in _comment(end, trial, plan))
    return comment + format_plan(seen_from(expecting(plan, end.space.plan), place))


def _comment(end: SearchEnd, trial: Trial, plan: Plan) -> Iterable[str]:
    ledger, record, row = end.ledger, end.record, end.row(trial)
    stage = stage_words(row.stage, row.before, row.values)
    yield (
        f"Found by gptailor search: trial {trial.number} of {len(ledger.trials)} "
        f"({row.origin}), seed {record.seed}{f', {stage}' if stage else ''}."
    )
    yield f"Space: {record.plan}, sha256 {end.space.digest[:16]}."
    scores = zip(ledger.aims, row.values or (), row.stderrs or (), strict=True)
    for i, (aim, value, error) in enumerate(scores):
        was = "" if row.before is None else f", before {shown_number(row.before[i])}"
        yield f"{aim.name}: {shown_number(value, error)}{was}, {row.samples} samples."
    if row.lost is not None:
        yield f"{loss_words(row.lost, row.lost_stderr, ledger.loss_unit)} beside the base."
    made = made_words(Resolved(plan, end.space.layers))
    yield f"{made[:1].upper()}{made[1:]}."


def _commands(best: Path, end: SearchEnd) -> list[str]:
    """Return the commands that score and compile the best plan, for the current folder.

    The score is the search's: on the same samples and device, in the same dtype.
    """
    record, chosen, space = end.record, end.chosen, end.space
    families = space.plan.origin.families if space.plan.origin else ()
    where = [word for family in families for word in ("--family", os.path.relpath(family))]
    where += [] if record.device == "cpu" else ["--device", record.device]
    kind = [] if record.dtype is None else ["--dtype", record.dtype]
    drawn = ["--samples", str(record.full), "--seed", str(chosen.seed)]
    lock_there = end.ended != "interrupted" or best.with_name(best.name + SUFFIX).exists()
    locked = ["--locked"] if lock_there else []
    wishes = [_seen_from_here(objective, chosen.folder) for objective in chosen.objectives]
    asked = " ".join(f"-O {shlex.quote(measure_words(wish))}" for wish in wishes)
    file = shlex.quote(str(best))
    return [
        f"gptailor eval {file} {asked} {shlex.join([*drawn, *where, *kind])}",
        f"gptailor compile {file} {shlex.join(['-o', 'DIR', *where, *locked])}",
    ]


def _seen_from_here(objective: Objective, folder: Path) -> Objective:
    """Return the objective with its file's path relative to the current folder."""
    return with_file(objective, lambda file: os.path.relpath(folder / expanded(file)))
