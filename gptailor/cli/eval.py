"""The commands `eval` and `generate`: the scores and answers of plans, folders and models."""

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.checkpoint.files import expanded, open_regular
from gptailor.cli.event_lines import RepairLines, bar_or_lines
from gptailor.cli.options import (
    DEVICE,
    DTYPE,
    FAMILY,
    MEMORY,
    MODEL,
    SEED,
    SET,
    Lets,
    output_encoding,
    say,
    say_answers,
    say_drawn,
    say_faults,
    swept,
    width,
)
from gptailor.plan.faults import Fault, PlanError

if TYPE_CHECKING:
    from gptailor.evaluation.result import EvaluationResult
    from gptailor.plan.plan import Objective, Plan

_EVAL_EXAMPLE = """
\b
Example, with a plan and its compiled folder:
  gptailor eval cut.tailor out --objective 'nll("text.txt")' --samples 64
"""


@click.command("eval", short_help="Evaluate plans and models.", epilog=_EVAL_EXAMPLE)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True,
                type=click.Path(allow_dash=True))  # fmt: skip
@click.option("-O", "--objective", "objectives", multiple=True, required=True, metavar="OBJECTIVE",
              help='An objective, such as nll("text.txt"). May be given several '
              "times.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), metavar="N",
              help="The maximum number of samples of each objective. Default: all.")  # fmt: skip
@SEED
@MODEL
@SET
@FAMILY
@DEVICE
@DTYPE
@MEMORY
@click.option("--against", metavar="TARGET",
              help="The target to measure differences from. Default: each target's "
              "base.")  # fmt: skip
@click.option("--uncut", is_flag=True,
              help="Also evaluate each plan without its drops, as 'TARGET, uncut'.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json", "csv"]), default="text",
              show_default=True, help="text for people, json for programs, csv for "
              "spreadsheets.")  # fmt: skip
@click.option(
    "--each", is_flag=True, help="With --format json: also print each sample's sum and count."
)
@click.option(
    "--many-plans", is_flag=True, help="Evaluate more than 100 plans of --set with several values."
)
@click.option("--no-speed", is_flag=True, help="Don't measure the speed in tokens a second.")
def eval_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    targets: tuple[str, ...],
    objectives: tuple[str, ...],
    samples: int | None,
    seed: int,
    models: tuple[tuple[str, Path], ...],
    lets: Lets,
    families: tuple[Path, ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    against: str | None,
    uncut: bool,
    form: str,
    each: bool,
    many_plans: bool,
    no_speed: bool,
) -> None:
    """Evaluate each TARGET: a plan, a compiled folder, or any model's folder or Hub id.

    Plans are stitched in memory, and bridged and healed as they declare. Nothing is written.

    --set mix=0.3,0.5,0.7 evaluates each plan with each value of its 'let mix', and draws a chart.

    The command prints each objective's score with its standard error. It prints the difference from
    the base's score, measured sample by sample. It prints sizes and speeds beside the base's sizes
    and speeds, measured in the same run. At the end all models answer one short prompt, and an
    answer that ends at once or loops is marked.

    The base of a compiled model is the base that its plan names, unless the folder is itself the
    base of another target. The base of any other model is the base that --model base=DIR names, or
    else the base of the other targets. A model under several names is one target.

    Relative paths in objectives start at the current folder. The exit code is 3 if a target has no
    score.
    """
    from gptailor.evaluation import targets as targeting
    from gptailor.lang.plan_of import target_name

    if each and form != "json":
        raise click.UsageError("--each needs --format json")
    plans = swept(targets, lets, many=many_plans)
    if against is not None and against not in map(target_name, plans):
        plans.append(against)
    subjects = targeting.find_targets(
        plans, dict(models), families, device=device, memory=memory, on_event=RepairLines()
    )
    say_faults(targeting.warnings(subjects))
    subjects = targeting.with_uncut(subjects, dict(models)) if uncut else subjects
    wishes = _wishes(objectives, targeting.names(subjects))
    from gptailor.evaluation.evaluate import (
        EvaluationRun,  # takes seconds; faults of texts come before
    )
    from gptailor.evaluation.generate import short_answers
    from gptailor.evaluation.meter import Placement, Samples

    drawn = Samples(Path(), samples, seed)
    place = Placement.of(device, dtype, memory)
    with bar_or_lines("evaluating") as on_event:
        evaluation = EvaluationRun(subjects, wishes, drawn, place, on_event, against)
        result = evaluation.run(speed=not no_speed)
    if form == "json":
        say(result.to_json(each=each))
    elif form == "csv":
        say(result.to_csv(), newline=False)
    else:
        for line in result.lines(width(), output_encoding()):
            say_drawn(line)
        _print_sweep(result, plans, dict(lets))
        say_answers(short_answers([entry.target for entry in evaluation.all], evaluation.meter))
    sys.exit(3 if result.failed else 0)


def _wishes(texts: Sequence[str], models: Sequence[str]) -> "list[tuple[Objective, bool]]":
    """Return the objectives after a look at their files.

    Raise PlanError with the faults of all objectives, CalibrationError or CheckpointError for an
    unreadable file and for a first row of another form.
    """
    from gptailor.checkpoint.datasets import check_first_row
    from gptailor.lang.parse import read_objective
    from gptailor.lang.words import measure_words
    from gptailor.plan.registry import OBJECTIVES
    from gptailor.plan.search_block import with_plain_path

    wishes: list[tuple[Objective, bool]] = []
    faults: list[Fault] = []
    for text in texts:
        try:
            wishes.append(read_objective(text, models, name="--objective"))
        except PlanError as error:
            faults += error.faults
    if faults:
        raise PlanError(faults)
    plain = [with_plain_path(objective) for objective, _ in wishes]
    for number, (objective, _) in enumerate(wishes):
        if plain[number] in plain[:number]:
            message = f"the objective {measure_words(objective)} is given twice"
            raise click.UsageError(message)
        if isinstance(file := objective.arguments.get("file"), str):
            if (path := expanded(file)).exists():
                open_regular(path, "C801").close()
            argument = OBJECTIVES[objective.name].argument("file")
            check_first_row(path, "text" if argument is None else argument.rows)
    return wishes


def _print_sweep(
    result: "EvaluationResult",
    targets: "Sequence[str | Plan]",
    lets: Mapping[str, Sequence[str]],
) -> None:
    """Print a chart of each objective over the values of the one name that has several."""
    from gptailor.lang.plan_of import target_name

    varied = {name: values for name, values in lets.items() if len(values) > 1}
    if len(varied) != 1:
        return
    ((name, values),) = varied.items()
    plans = [target for target in targets if not isinstance(target, str)]
    files = dict.fromkeys(plan.origin.source.name for plan in plans if plan.origin is not None)
    scores = {(r.target, r.objective): r for r in result.results}
    for objective in dict.fromkeys(row.objective for row in result.results):
        for file in files:
            swept_plans = [p for p in plans if p.origin and p.origin.source.name == file]
            named = dict.fromkeys(map(target_name, swept_plans))
            results = [scores[target, objective] for target in named]
            points = [
                (value, getattr(result.outcome, "value", None))
                for value, result in zip(values, results, strict=False)
            ]
            say("")
            minimize = results[0].direction == "minimize"
            title = f"{objective} of {file} over '{name}'"
            for line in _chart_lines(title, points, width(), minimize=minimize):
                say_drawn(line)


_BAR = 40
"""The most columns of a chart's bar."""


def _chart_lines(
    title: str, points: Sequence[tuple[str, float | None]], width: int, *, minimize: bool
) -> Iterator[str]:
    """Yield a chart of scores by a setting's value; the best score is marked.

    Bars begin at the least score, because scores of one model differ little; the title names it.
    A score of None failed.
    """
    known = [score for _, score in points if score is not None]
    if not known:
        yield title
        return
    least, most = min(known), max(known)
    yield f"{title} (bars begin at {least:.4g})" if most > least else title
    best = least if minimize else most
    label = max(len(value) for value, _ in points)
    room = max(1, min(_BAR, width - label - 24))
    for value, score in points:
        if score is None:
            yield f"  {value:>{label}}  failed"
            continue
        share = (score - least) / (most - least) if most > least else 1.0
        bar = "█" * (1 + round(share * (room - 1)))
        yield f"  {value:>{label}}  {bar} {score:.4g}" + (" (best)" if score == best else "")


# ------------------------------------------------------------------------------------- generate

_GENERATE_EXAMPLE = """
\b
Example, with the base and a plan:
  gptailor generate ./models/base cut.tailor "Once upon a time" --tokens 9
"""


@click.command(
    "generate", short_help="Continue a prompt with plans and models.", epilog=_GENERATE_EXAMPLE
)
@click.argument("targets", metavar="TARGET...", nargs=-1, type=click.Path(allow_dash=True))
@click.argument("prompt", metavar="PROMPT")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
              help="The maximum number of tokens of each target.")  # fmt: skip
@click.option(
    "--chat",
    is_flag=True,
    help="Put the prompt into each model's chat template, as a user's message.",
)
@MODEL
@SET
@FAMILY
@DEVICE
@DTYPE
@MEMORY
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="text for people, json for programs.")  # fmt: skip
def generate_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    targets: tuple[str, ...],
    prompt: str,
    tokens: int,
    chat: bool,
    models: tuple[tuple[str, Path], ...],
    lets: Lets,
    families: tuple[Path, ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    form: str,
) -> None:
    """Continue PROMPT with each TARGET: a plan, a compiled folder, or any model by itself.

    Plans are stitched in memory, and bridged and healed as they declare. Nothing is written. Each
    step adds the most probable token. The exit code is 3 if a target fails.
    """
    from gptailor.evaluation import targets as targeting

    _refuse_misplaced(targets, prompt)
    plans = swept(targets, lets)
    subjects = targeting.find_targets(
        plans, dict(models), families, device=device, memory=memory, on_event=RepairLines()
    )
    say_faults(targeting.warnings(subjects))
    from gptailor.evaluation.generate import answers  # takes seconds; faults of texts come before
    from gptailor.evaluation.meter import Meter, Placement

    meter = Meter(Placement.of(device, dtype, memory), RepairLines())
    records: list[dict[str, str]] = []
    failed = False
    for answer in answers(subjects, prompt, tokens, meter, chat=chat):
        failed |= answer.failure is not None
        what = {"text": answer.text} if answer.failure is None else {"failure": answer.failure}
        records.append({"target": answer.target, **what})
        if form == "text":
            say(click.style(answer.target, bold=True))
            shown = answer.text if answer.failure is None else f"failed: {answer.failure}"
            invisible = f"({json.dumps(shown)} alone)" if shown else "(ends at once)"
            for line in shown.strip("\n").splitlines() or [invisible]:
                say(textwrap.fill(line, max(20, width()), initial_indent="  ",
                                  subsequent_indent="  "))  # fmt: skip
    if form == "json":
        say(json.dumps(records, ensure_ascii=False, indent=2))
    sys.exit(3 if failed else 0)


def _refuse_misplaced(targets: Sequence[str], prompt: str) -> None:
    """Raise a usage error for a target or a prompt alone, and for a prompt before the targets."""
    from gptailor.lang.plan_of import HUB_ID

    named = [Path(n).exists() or HUB_ID.fullmatch(n) is not None for n in (*targets, prompt)]
    if not targets or (named[-1] and not any(named[:-1])):
        raise click.UsageError(
            f"expected targets, then a prompt, got '{prompt}' {'last' if targets else 'alone'}; "
            'an example is: gptailor generate out "Once upon a time"'
        )
