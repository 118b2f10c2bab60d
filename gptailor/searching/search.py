"""The course of a search: `search` closes an open plan's choices, `search_steps` is its loop."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

import jax

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.generate import short_answers_of
from gptailor.evaluation.scores import Outcome, Score, race_counts
from gptailor.evaluation.space_trials import opened
from gptailor.evaluation.targets import base_of
from gptailor.lang.parse import plan_or_file
from gptailor.plan.arguments import Positive
from gptailor.plan.events import Event, Progress, ignore_events
from gptailor.plan.faults import Fault
from gptailor.plan.plan import Plan
from gptailor.prepare import ModelPaths
from gptailor.reporting.quantities import byte_count, bytes_in_words
from gptailor.searching.final_scores import Conditions, held_out
from gptailor.searching.folder import folder_at
from gptailor.searching.identity import record_of, refuse_other
from gptailor.searching.limits import Sizes, Within, size_bounds
from gptailor.searching.measuring import repair_cost, starts_of
from gptailor.searching.results import SearchResult, put_results
from gptailor.searching.run.asking import Asking
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.records import Ended, ResultNote, RunRecord, RunSizes
from gptailor.searching.run.schedule import Schedule, StartSource
from gptailor.searching.run.scores import Scores, read_outcomes
from gptailor.searching.run.study import Study, open_study
from gptailor.searching.run.trials import RECIPES, STARTS, Ledger, Trial
from gptailor.searching.run.workers import UnderWay, Workers, interruptible
from gptailor.searching.run_files import SETTINGS, RunFiles
from gptailor.searching.run_reading import RunReading
from gptailor.searching.settings import Flags, Resources, SearchError, settings
from gptailor.searching.space.decode import decode_for
from gptailor.searching.space.roles import separates
from gptailor.searching.space.space import Space, space_of
from gptailor.searching.starts.stages import Starts
from gptailor.searching.strategies import strategy_of
from gptailor.searching.summary import best_recipe, curve, finalists
from gptailor.searching.trial_evaluator import computing, trials_of, workers_of

_GIVE_UP_AFTER = 8
"""The number of trials without a single score that end a search."""


# ------------------------------------------------------------------------------------------ events


@final
class Warned(NamedTuple):
    """The plan was read, with these warnings."""

    faults: list[Fault]


@final
class Estimated(NamedTuple):
    """The uncut base is scored: the cost of the remaining trials, in evaluations and in seconds.

    `seconds` is the time of one evaluation at full fidelity, measured on the base.
    """

    evaluations: float
    seconds: float
    samples: int


@final
class Begun(NamedTuple):
    """Trials begin, or go on after the ledger's trials. `repair` is the result of `repair_cost`."""

    ledger: Ledger
    budget: Budget
    space: Space
    repair: float | None = None


@final
class Scored(NamedTuple):
    """A trial was written down."""

    trial: Trial


SearchEvent: TypeAlias = Warned | Estimated | Begun | Scored | Event
"""Events of a search, and of bridging and healing its plans."""
OnSearchEvent: TypeAlias = Callable[[SearchEvent], None]


# ---------------------------------------------------------------------------------------- the verb


def search(  # noqa: PLR0913 (the verb of the command line, and its flags)
    plan: Plan | str | Path,
    run: str | Path,
    flags: Flags | None = None,
    *,
    trials: Positive | None = None,
    models: ModelPaths | None = None,
    where: Resources | None = None,
    answers: bool = False,
    on_event: OnSearchEvent = ignore_events,
) -> SearchResult:
    """Close the choices of an open plan or its file by trials; write results into the folder `run`.

    `run` may also be a URL of object storage (`s3://bucket/run`).

    `flags` has further settings, and `trials` the one that is changed most.
    `models` gives other folders for the plan's names. A folder with a study of the same search goes
    on; a folder of another search is refused. Ctrl-C ends a search with everything kept, and skips
    slow results: the result's `ended` is then `interrupted`. KeyboardInterrupt is raised before
    the first trial alone. `on_event` receives each event, also of bridging and healing finalists
    here.

    Raises PlanError for faults of the plan and of objectives, WishError where there is nothing to
    search or to search for, SearchError where nothing has a score, CheckpointError for the folder
    (C901 to C903, C303), TailorError or OSError for errors that concern all trials.
    """
    plan = plan_or_file(plan)
    flags, where = flags or Flags(), where or Resources()
    flags = flags if trials is None else replace(flags, trials=trials)
    chosen = settings(plan, flags)
    with (
        folder_at(run) as folder,
        jax.default_device(jax.devices("cpu")[0]),
        interruptible(on_event) as tell,
    ):
        earlier = RunFiles(folder.path).record()
        plan, opened_models, where, space = _opened_space(plan, models, where, earlier, tell)
        sizes = Sizes(space, opened_models)
        bounds = size_bounds(space.plan, chosen.requires)
        within = Within(space, sizes, bounds) if bounds else None
        space = space if within is None else within.space
        tell(Progress("searching", 0, 0, "loading"))
        space_trials = trials_of(plan, opened_models, chosen, where, on_event)
        base, budget = base_of(plan), Budget.of(chosen, space_trials.full)
        conditions = Conditions(space_trials, chosen)
        tell(Progress("searching", 0, 0, "reading the models' digests"))
        record = record_of(plan, space, opened_models, space_trials, chosen, where, folder.place)
        refuse_other(earlier, record, Path(folder.shown))
        study = open_study(folder.journal, begun=earlier is not None)
        folder.put(SETTINGS, record.model_dump_json(indent=2) + "\n")
        ledger = Ledger(record.aims, budget.full, chosen.prefer)
        study.recall(ledger, space)

        def say(what: str, done: int = 0, total: int = 0) -> None:
            tell(Progress("searching", done, total, what))

        with workers_of(space_trials, chosen, where, say) as workers:
            starts, budget = starts_of(space, space_trials, budget, study, chosen, say)
            asking = Asking(
                strategy_of(chosen.strategy), starts.space, ledger, seed=chosen.seed,
                capacity=budget.capacity, prior=starts.influence.get("base"), within=within,
            )  # fmt: skip
            under_way = UnderWay(ledger, base, workers.count, races=chosen.race)
            tell(Begun(ledger, budget, space, repair_cost(space_trials, budget)))
            try:
                for event in search_steps(budget, starts, asking, under_way, study, workers):
                    tell(event)
                assert study.typed.ended is not None, "a search that is over is noted"
                ended: Ended = study.typed.ended.reason
                conditions.evaluate(study, space, ledger, sizes, say)
                compared = [*finalists(ledger, sizes.of), *filter(None, [best_recipe(ledger)])]
                held_out(study, space, space_trials, base, compared, say)
            except KeyboardInterrupt:
                ended = "interrupted"
        tried = {t.request.origin for t in ledger.of(RECIPES, STARTS)}
        result = ResultNote(
            ended=ended, held=space_trials.helds, required=conditions.about(study, ledger),
            **starts.untried(tried, within and within.holds),
        )  # fmt: skip
        curve(ledger, sizes.of)  # counts all plans that may be handed over
        study.note("sizes", RunSizes(base=sizes.of_plan(base), plans=dict(sizes.known)))
        study.note("result", result)
        reading = RunReading(folder.shown, record, study, space, ledger)
        found = put_results(folder, reading, opened_models, chosen, say)
        if answers and found.best and where.ray is None and found.ended != "interrupted":
            found = replace(found, answers=short_answers_of(found.best, space_trials.meter))
        return found


def _opened_space(
    plan: Plan,
    models: ModelPaths | None,
    where: Resources,
    earlier: RunRecord | None,
    on_event: OnSearchEvent,
) -> tuple[Plan, Mapping[str, Opened], Resources, Space]:
    """Return an open plan, its models, where they are computed, and its space."""
    plan, opened_models, faults = opened(
        plan, models, device=where.device, memory=byte_count(where.memory), on_event=on_event
    )
    on_event(Warned(faults))
    where = computing(where, opened_models, earlier)
    tied = {name for name, model in opened_models.items() if model.layout.tied}
    return plan, opened_models, where, space_of(plan, opened_models["base"].layout.count, tied)


def forecast(
    plan: Plan,
    flags: Flags,
    models: ModelPaths,
    where: Resources,
    on_event: OnSearchEvent,
) -> None:
    """Tell `on_event` the plans that a search would ask for, its time, and its memory.

    The base is scored on the samples of the cheapest trial, for the time. Nothing is written.
    Raises the errors of `search` for the plan, its texts and objectives.
    """
    chosen, memory = settings(plan, flags), byte_count(where.memory)
    plan, opened_models, where, space = _opened_space(plan, models, where, None, on_event)
    trials = trials_of(plan, opened_models, chosen, where, on_event)
    budget = replace(Budget.of(chosen, trials.full), separate=separates(plan))
    weights = sum(
        file.stat().st_size for model in opened_models.values() for file in model.checkpoint.files
    )
    starts = Starts(space).untried(())["left_out"]
    left = f"the rest of {budget.trials:,}" if budget.left >= 1 else f"none of {budget.trials:,}"
    for line in (
        f"starting plans, as the budget allows: {', '.join(starts)}",
        f"up to {budget.starts:.3g} evaluations for starting plans and measurements,"
        f" {budget.kept} for finalists, and {left} for the strategy",
        f"memory for weights: {bytes_in_words(min(weights, memory or weights))} at most"
        + "; 'gptailor compile --dry-run' of a plan prints the memory for healing" * budget.heals,
    ):
        on_event(Progress("searching", 0, 0, line))
    on_event(Begun(Ledger((), budget.full), budget, space, repair_cost(trials, budget)))
    for samples in (1, budget.low):  # weights are loaded first
        begun = time.perf_counter()
        list(trials.run([base_of(plan)], samples, stage="bare"))
    seconds = (time.perf_counter() - begun) * budget.full / budget.low
    on_event(Estimated(budget.evaluations, seconds, budget.full))


# ---------------------------------------------------------------------------------------- the loop


def search_steps(
    budget: Budget,
    starts: StartSource,
    asking: Asking,
    under_way: UnderWay,
    study: Study,
    workers: Workers,
) -> Iterator[SearchEvent]:
    """Ask, decode, evaluate, record and tell while there is budget.

    A search goes on after the trials in the study and the ledger. Its course depends on the
    arguments, the outcomes and the number of workers alone, unless a worker is stuck for so long
    that the study notes that it is `late`. Told trials are kept whatever happens. Raises
    SearchError where nothing has a score, and the errors of an evaluator or the disk.
    """
    about, ended = budget.record(), study.typed.ended
    if ended is not None and about == {name: getattr(ended, name) for name in about}:
        return
    # asks again all that was asked before
    schedule = Schedule(budget, starts, asking, under_way.workers)
    before = len(asking.ledger.trials)
    while True:
        while under_way.free:
            if not under_way.queue:
                yield Progress("asking", 0, 0)
                if not _ask(schedule, under_way):
                    break
            if under_way.queue:
                task = under_way.task()
                yield Progress("scoring", 0, len(task.plans), numbers={"samples": task.samples})
                workers.submit(task)
            yield from _recorded(budget, study, under_way, before)
        if not under_way.tasks:
            break
        _wait(schedule, under_way, study, workers)
        yield from _recorded(budget, study, under_way, before)
    reason = "exhausted" if schedule.exhausted(asking.ledger.trials) else "budget"
    study.note("ended", {**about, "reason": reason})


def _ask(schedule: Schedule, under_way: UnderWay) -> bool:
    """Ask for more; return whether there is anything to evaluate now.

    The cost of trials in a race is known when they are told. Until then requests beyond the budget
    wait.
    """
    space = schedule.asking.space
    while requests := schedule.next(idle=not under_way.waiting, waiting=under_way.asks):
        plans = ((r, decode_for(space, r.genome, r.stage)) for r in requests)
        beyond = under_way.fill(plans, schedule.room(requests))
        in_vain = schedule.retries and len(beyond) == len(requests)
        if beyond:
            schedule.leave(beyond, for_good=in_vain or not under_way.races)
        if len(beyond) < len(requests):
            return True
        if under_way.waiting:
            return False
    return False


def _wait(schedule: Schedule, under_way: UnderWay, study: Study, workers: Workers) -> None:
    """Wait for the first event; a free worker doesn't wait for a slow one for ever."""
    held_up = under_way.free and schedule.waits(under_way.asks)
    event = workers.next(under_way.longest() if held_up else None)
    if event is None:
        under_way.hurry()
        study.note("late", study.typed.late + 1)
    else:
        under_way.take(event)


def _recorded(
    budget: Budget, study: Study, under_way: UnderWay, before: int
) -> Iterator[Estimated | Scored]:
    """Record the known results, then yield them, after this many trials `before`."""
    ledger = under_way.ledger
    for samples, outcomes, seconds in under_way.measures():
        _measure(outcomes, samples, study, ledger)
        remaining = budget.evaluations - budget.measured - ledger.cost()
        yield Estimated(remaining, seconds * ledger.full / samples, ledger.full)
    for trial in under_way.told():
        study.add(trial)
        ledger.add(trial)
        yield Scored(trial)
        patient = len(ledger.trials) - before < min(_GIVE_UP_AFTER, budget.trials)
        if not patient and all(t.values is None for t in ledger.trials):
            reasons = Counter(str(t.failure) for t in ledger.trials if t.failure is not None)
            [(reason, count)] = reasons.most_common(1)
            many = len(ledger.trials)
            whose = f"none of the first {many} trials has" if many > 1 else "the first trial hasn't"
            message = f"{whose} a score, so the search stops; {count} of them: {reason}"
            raise SearchError(message)


def _measure(outcomes: Sequence[Outcome], samples: int, study: Study, ledger: Ledger) -> None:
    """Add the uncut base's scores on this many samples, which other plans' scores are shares of."""
    measured = read_outcomes(outcomes)
    if not isinstance(measured, Scores):
        raise SearchError(f"the base has no score: {measured}")
    scores = (outcome for outcome in outcomes if isinstance(outcome, Score))
    each = [score.each for score in scores if score.each is not None]
    noted = dict(study.typed.bases)
    for count in race_counts(samples) if len(each) == len(outcomes) else ():
        if count and count not in noted:  # for trials that are given up there
            firsts = [per_sample.score(count) for per_sample in each]
            noted[count] = Scores(tuple(s.value for s in firsts), tuple(s.stderr for s in firsts))
    noted[samples] = Scores(measured.values, measured.stderrs)
    study.note("bases", noted)
    ledger.references |= {count: base.values for count, base in noted.items()}
