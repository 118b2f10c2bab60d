"""A search's results as files in its folder: best plan, front, lock, and the summary."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal, final

from gptailor.checkpoint.files import expanded
from gptailor.lang.format import format_plan
from gptailor.lang.parse import load, loads
from gptailor.lang.words import measure_words, range_words
from gptailor.output.lock import SUFFIX
from gptailor.plan.arguments import NotNegative, Positive, checked
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.search_block import with_file
from gptailor.reporting.layer_view import layer_views, plan_summary
from gptailor.reporting.quantities import (
    byte_count,
    count_from_words,
    loss_from_words,
    shown_number,
)
from gptailor.reporting.records import data_frame, html_table
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.curve import Sizes, curve
from gptailor.searching.folder import FRONT, SIZES, START, Folder
from gptailor.searching.pick import BEST, Bounds, lock_beside, pick, seen_from
from gptailor.searching.run.comparison import Scores
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import NumberAtBound, RunSizes, SearchSummary, front_file
from gptailor.searching.run.trials import RECIPES, Ledger, Trial
from gptailor.searching.run_files import SUMMARY
from gptailor.searching.score_requirements import EvaluatedRequirements
from gptailor.searching.search_text import (
    beside_base,
    beside_base_words,
    markdown,
    stage_words,
    verdict_words,
)
from gptailor.searching.settings import Settings
from gptailor.searching.space.decode import decode, expecting, plan_at_stage
from gptailor.searching.space.focus import has_recipe
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active
from gptailor.searching.summary import best_starts, search_summary
from gptailor.searching.verdict import (
    HeldOut,
    Verdict,
    held_key,
    scores_in,
    scores_of,
    verdict,
)

Ended = Literal["budget", "exhausted", "interrupted"]
"""The reason why trials ended; `exhausted`: the strategy finds nothing new any more."""


@final
@dataclass(frozen=True)
class SearchResult:
    """Why a search ended, its summary, its best plan's file if there is one, and its folder."""

    ended: Ended
    summary: SearchSummary = field(repr=False)
    best: Path | None
    run: str | Path

    def __str__(self) -> str:
        """Return the verdict, and the best plan's file."""
        return "\n".join(filter(None, (verdict_words(self.summary), str(self.best or ""))))

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
        from gptailor.searching.run_reading import RunReading  # reads the study, with Optuna

        reading = RunReading(self.run)
        return [reading.row(trial) for trial in reading.ledger.trials]

    def to_pandas(self) -> Any:
        """Return the rows of `records` as a table of pandas.

        Raises MissingPackageError without pandas.
        """
        return data_frame(self.records())

    def _repr_html_(self) -> str:
        """Return the verdict, and the trials as a table of a notebook."""
        rows = self.records()
        left_out = {"phase", "origin", "samples", "layers", "seconds"}
        columns = [name for name in rows[0] if name not in left_out] if rows else []
        return f"<p>{escape(verdict_words(self.summary))}</p>{html_table(rows, columns)}"

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


def put_results(  # noqa: PLR0913, PLR0917 (all parts of a search's end)
    folder: Folder,
    space: Space,
    ledger: Ledger,
    held: HeldOut,
    about: Mapping[str, Any],
    chosen: Settings,
    sizes: Sizes,
    base: Plan,
    on_progress: Callable[[str], None],
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
    try:
        verdict_of_best = verdict_on_best(space, ledger, held, chosen, sizes, base, about)
        trial, place = None if verdict_of_best is None else verdict_of_best.best, folder.place
        below = None if place is None else place / FRONT
        text = partial(_text, space, ledger, about)
        best = _put_best(folder, None if trial is None else text(trial, place))
        for start in best_starts(ledger)[:1]:
            folder.put(START, text(start, place))
        places = [trial for trial, _ in curve(ledger, sizes)]
        names = {_file(trial): trial for trial in (*ledger.front(), *places)}
        handed = [] if verdict_of_best is None else [verdict_of_best.found, verdict_of_best.best]
        required: EvaluatedRequirements | None = about["required"]
        nearest = None if required is None else required.nearest
        handed += [] if nearest is None else [ledger.trials[nearest]]
        names |= {_file(trial): trial for trial in handed}
        _put_front(folder, {name: text(trial, below) for name, trial in names.items()})
        commands = [] if best is None else _commands(best, chosen, space, about)
        more = {
            "best_file": escaped_control(f"{folder.shown}/{BEST}"),
            "commands": tuple(commands),
            "at_bounds": () if trial is None else tuple(numbers_at_bounds(space, trial)),
        }
        summary = search_summary(ledger, held, {**about, **more}, verdict_of_best, sizes, space)
        run_sizes = RunSizes(base=sizes.of_plan(base), plans=dict(sizes.known))
        folder.put_json(SIZES, run_sizes.model_dump(mode="json"))
        folder.put_json(f"{SUMMARY}.json", summary.document())
        folder.put(f"{SUMMARY}.md", markdown(summary))
        if best is not None and about["ended"] != "interrupted":
            on_progress(_LOCKING)
            lock_beside(best)
            on_progress(_LOCKING)  # where a Ctrl-C that was swallowed meanwhile is raised again
        folder.send()
    except KeyboardInterrupt:
        if about["ended"] == "interrupted":
            raise
        about = {**about, "ended": "interrupted"}
        return put_results(folder, space, ledger, held, about, chosen, sizes, base, on_progress)
    return best, summary


def _put_best(folder: Folder, text: str | None) -> Path | None:
    """Write the best plan's file. Another plan's lock is removed first: no lock is wrong."""
    if text is None or text != folder.get_text(BEST):
        (folder.path / (BEST + SUFFIX)).unlink(missing_ok=True)
    if text is not None:
        return folder.put(BEST, text)
    (folder.path / BEST).unlink(missing_ok=True)
    return None


def _put_front(folder: Folder, texts: Mapping[str, str]) -> None:
    for old in (folder.path / FRONT).glob("trial-*.tailor"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        folder.put(f"{FRONT}/{name}", text)


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


def _file(trial: Trial) -> str:
    return front_file(trial.number).removeprefix(f"{FRONT}/")


def verdict_on_best(  # noqa: PLR0913, PLR0917 (as above)
    space: Space,
    ledger: Ledger,
    held: HeldOut,
    chosen: Settings,
    sizes: Sizes,
    base: Plan,
    about: Mapping[str, Any],
) -> Verdict | None:
    """Return the verdict on the best trial, by held-out samples where all plans have them.

    There is no verdict where all plans were evaluated, and none meets the requirements.
    """
    required: EvaluatedRequirements | None = about["required"]
    if required is not None and required.whole and not required.met:
        return None

    def on_held(trial: Trial | None) -> Scores | None:
        return scores_in(held.get(held_key(trial)))

    def own(trial: Trial | None) -> Scores | None:
        return None if trial is None else scores_of(trial)

    best = ledger.best()
    by_held_out = on_held(None) is not None and best is not None and on_held(best) is not None
    unseen = on_held(None)
    uncut = unseen.values if by_held_out and unseen else ledger.references.get(ledger.full)
    measure = ledger.comparison(uncut, samples=chosen.texts)
    large = sizes.of_plan(base).parameters
    return verdict(
        ledger,
        measure,
        on_held if by_held_out else own,
        lambda trial: decode(space, trial.request.genome),
        lambda trial: sizes.of(trial).parameters,
        large,
        held=by_held_out,
        uncut=lambda trial: _uncut_scores(space, ledger, trial),
    )


def _uncut_scores(space: Space, ledger: Ledger, trial: Trial) -> Scores | None:
    """Return the scores of a trial's recipe with nothing dropped, on all samples, if known."""
    recipes = (other for other in ledger.of(RECIPES) if other.full)
    alike = [r for r in recipes if has_recipe(space, trial.request.genome, r.request.genome)]
    best = ledger.best(alike)
    return None if best is None else scores_of(best)


def _text(
    space: Space, ledger: Ledger, about: Mapping[str, Any], trial: Trial, place: Path | None
) -> str:
    """Return a trial's plan as evaluated, with a comment; paths from a folder, or absolute."""
    plan = plan_at_stage(space, trial.request.genome, trial.request.stage)
    comment = "".join(f"# {line}\n" for line in _comment(space, ledger, about, trial, plan))
    return comment + format_plan(seen_from(expecting(plan, space.plan), place))


def _comment(
    space: Space, ledger: Ledger, about: Mapping[str, Any], trial: Trial, plan: Plan
) -> Iterable[str]:
    request = trial.request
    base, earlier = ledger.references.get(request.samples), ledger.before(trial)
    before = None if earlier is None else earlier.values
    stage = stage_words(request.stage, before, trial.values)
    yield (
        f"Found by gptailor search: trial {trial.number} of {len(ledger.trials)} "
        f"({origin_words(request.origin)}), seed {about['seed']}{f', {stage}' if stage else ''}."
    )
    yield f"Space: {about['plan']}, sha256 {space.digest[:16]}."
    scores = zip(ledger.aims, trial.values or (), trial.stderrs or (), strict=True)
    for i, (aim, value, error) in enumerate(scores):
        beside = beside_base(aim, value, None if base is None else base[i])
        share_words = beside_base_words(beside, " of the base's")
        of = f", {share_words}" if share_words else ""
        was = "" if before is None else f", before {shown_number(before[i])}"
        yield f"{aim.name}: {shown_number(value, error)}{of}{was}, {request.samples} samples."
    summary = plan_summary(layer_views(Resolved(plan, space.layers)))
    dropped = [drop.position for drop in plan.drops]
    cut = f"; cut: {range_words(dropped)}" if dropped else ""
    yield f"{summary[:1].upper()}{summary[1:]}{cut}."


def _commands(best: Path, chosen: Settings, space: Space, about: Mapping[str, Any]) -> list[str]:
    """Return the commands that score and compile the best plan, for the current folder.

    The score is the search's: on the same samples and device, in the same dtype.
    """
    families = space.plan.origin.families if space.plan.origin else ()
    where = [word for family in families for word in ("--family", os.path.relpath(family))]
    where += [] if about["device"] == "cpu" else ["--device", about["device"]]
    kind = [] if about["dtype"] is None else ["--dtype", about["dtype"]]
    drawn = ["--samples", str(about["samples"]), "--seed", str(chosen.seed)]
    lock_there = about["ended"] != "interrupted" or best.with_name(best.name + SUFFIX).exists()
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
