"""The commands `search` and `pick`: the best plan of an open plan's choices."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import click

from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines
from gptailor.cli.memory import keep_memory
from gptailor.cli.options import read_plan, say
from gptailor.plan.doors import Door
from gptailor.plan.events import Progress
from gptailor.plan.optional_packages import require
from gptailor.reporting.quantities import (
    bytes_in_words,
    count_from_words,
    loss_from_words,
    millions,
)

if TYPE_CHECKING:
    from gptailor.searching.run.records import CurvePoint

_SEARCH_EXAMPLE = """
\b
Example. The same command continues an interrupted search:
  gptailor search space.tailor -o run --trials 200
  gptailor compile run/best.tailor -o out --locked
"""


EXPORTERS: Door[Callable[[Path], Callable[[str | Path], None]]] = Door(
    "exporters", "exporter", FunctionType, {}
)
"""Functions that get a file for `--export`, and return one that writes RUN's trials into it."""


def _sample_range(text: str) -> tuple[int, int]:
    """Return both ends of a range of samples, `64..1024`, or a number for both."""
    match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise ValueError(f"expected a number or range of samples such as 64..1024, got '{text}'")
    return low, high


@click.command(
    "search", short_help="Search a plan's open choices for the best plan.", epilog=_SEARCH_EXAMPLE
)
@options.PLAN_ARGUMENT
@click.option("-o", "--output", "--run", "run", type=click.Path(), metavar="RUN",
              help="The search's folder, or a URL such as s3://bucket/run. An existing search "
                   "there continues. Needed, except with --dry-run.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), metavar="N",
              help="The budget: the cost of N trials on all samples. Default: 200.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), metavar="N",
              help="The seed of samples and strategy. Default: 0.")  # fmt: skip
@click.option(
    "--strategy", metavar="NAME", help="surrogate, random, or a package's. Default: surrogate."
)
@click.option("-O", "--objective", "objectives", multiple=True, metavar="OBJECTIVE",
              help="An objective that replaces the objectives of the search block. May be given "
                   "several times.")  # fmt: skip
@click.option("--prefer", metavar="OBJECTIVE",
              help="The objective, or its number, that selects the best plan. Default: the mean of "
                   "all.")  # fmt: skip
@click.option("--fidelity", type=options.InWords("A..B", _sample_range),
              help="The number of samples of a trial, from the cheapest trial (A) to all "
                   "samples (B). May be a single number.")  # fmt: skip
@click.option("--bridge", type=click.Choice(["each", "from-full", "finalists"]),
              help="The trials that are bridged. Default: each if the plan heals, or else "
                   "finalists.")  # fmt: skip
@click.option("--finalists", type=click.IntRange(min=1), metavar="N",
              help="The number of best plans that are bridged and healed at the end. Default: a "
                   "tenth of --trials, at most 5.")  # fmt: skip
@click.option("--no-race", "race", is_flag=True, flag_value=False, default=True,
              help="Score each trial on all its samples, even if it is surely worse after "
                   "some.")  # fmt: skip
@options.MODEL
@options.SET
@options.FAMILY
@options.DEVICE
@options.DTYPE
@options.MEMORY
@click.option("--gpus-per-worker", type=click.IntRange(min=1), default=1, metavar="N",
              help="The number of GPUs of a worker. One GPU computes, and the other GPUs hold "
                   "layers. Default: 1.")  # fmt: skip
@click.option("--export", type=click.Path(path_type=Path), metavar="FILE",
              help="Also write the trials as an Optuna study, a journal that optuna-dashboard "
                   "reads.")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Print the stages of the search, its cost, time and memory, and write nothing. "
                   "The base is scored to measure the time.")  # fmt: skip
@click.option("--no-live", is_flag=True, help="Print plain lines on a terminal too.")
def search_command(  # noqa: C901, PLR0913, PLR0917 (one argument a flag)
    plan: str,
    run: str | None,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    dry_run: bool,
    no_live: bool,
    export: Path | None,
    **values: Any,
) -> None:
    """Search the open choices of PLAN for the best plan, by trials.

    A trial scores one plan without open choices. The first trials are starting plans, which need no
    search. The folder RUN contains the best plan, the front of several objectives, a lock, a
    summary and the journal of all trials.

    An option has precedence over the plan's search block. Relative paths in --objective start at
    the current folder.

    Ctrl-C stops the search, and keeps everything. The same command continues an interrupted search.
    With a larger --trials, it continues a finished search. A RUN of another search is refused.
    """
    from gptailor.searching.settings import SIZE, Flags, Resources, settings

    if values["gpus_per_worker"] > 1 and not values["device"].startswith("cuda"):
        raise click.UsageError("--gpus-per-worker needs --device cuda")
    if run is None and not dry_run:
        raise click.UsageError("give the search's folder: -o RUN")

    flags = Flags(**{name: values[name] for name in Flags.__dataclass_fields__})
    where = Resources(**{n: values[n] for n in Resources.__dataclass_fields__ if n in values})
    declared = read_plan(plan, families, lets)
    chosen = settings(declared, flags)  # errors are reported before seconds of imports
    require("search", "a search")
    _set_up_jax()
    from gptailor.cli.search_view import VIEWS, Lines
    from gptailor.searching.search import Begun, SearchEvent, forecast, search
    from gptailor.searching.search_text import summary_lines

    if run is None or dry_run:
        forecast(declared, flags, dict(models), where, Lines())
        return
    if export is not None:
        exported = EXPORTERS.required("optuna", "--export", "optuna_export")(export)
    keep_memory()
    screen = VIEWS.get("terminal") if not no_live and sys.stderr.isatty() else None
    with nullcontext(Lines()) if screen is None else screen() as view:
        repairs = RepairLines(lambda line: view(Progress("searching", 0, 0, line)))

        def on_event(event: SearchEvent) -> None:
            if isinstance(event, Begun) and chosen.objectives[-1] is SIZE:
                say("plans have several sizes, so parameters() is added as an objective",
                    err=True)  # fmt: skip
            repairs(event)
            view(event)

        try:
            result = search(
                declared, run, flags,
                models=dict(models), where=where, answers=True, on_event=on_event,
            )  # fmt: skip
        except KeyboardInterrupt:
            message = "interrupted; the results are kept, and the same command continues"
            say(message, err=True)
            sys.exit(130)
    if export is not None:
        exported(run)
    encoding = options.output_encoding()
    for line in summary_lines(result.summary, options.width(), encoding, result.commands):
        options.say_drawn(line)
    options.say_answers(result.answers)
    if result.ended == "interrupted":
        say("interrupted; all trials are kept, and the same command continues", err=True)
        sys.exit(130)
    required = result.summary.end.required
    if required is not None and not required.met:
        say("no plan meets the requirements, so there is no best plan", err=True)
        sys.exit(1)


if (add_options := options.OPTIONS.get("search")) is not None:
    add_options(search_command)


def _set_up_jax() -> None:
    """Set JAX up on the CPU, for models on any device, with a cache of compiled code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from gptailor.checkpoint.cache_folder import cache_folder

    if (kept := cache_folder()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept / "jax"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


# ------------------------------------------------------------------------------------------ picking


def _gguf_bound(text: str) -> tuple[str, int]:
    """Return the type and the most bytes of GGUF files: `q4_k_m=100M`. Raises ValueError."""
    from gptailor.searching.pick import file_bound

    return file_bound(*options.assignment("TYPE=SIZE", text))


_PICK_EXAMPLE = """
\b
Examples. Without -o the plan is printed:
  gptailor pick run --parameters 110M -o small.tailor
  gptailor pick run --loss 2% | gptailor show -
  gptailor pick run --gguf q4_k_m=100M -o small.tailor
"""


@click.command("pick", short_help="Select a plan of a search by its size or its loss.",
               epilog=_PICK_EXAMPLE)  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option("--parameters", type=options.InWords("COUNT", count_from_words), metavar="COUNT",
              help="The maximum number of parameters: 110M, 1.5B, 1,500,000.")  # fmt: skip
@click.option("--memory", type=options.BYTE_SIZE, metavar="SIZE",
              help="The maximum number of bytes for the weights and the KV cache of one "
                   "text.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=0), default=4096, show_default=True,
              metavar="N", help="The number of tokens of that text.")  # fmt: skip
@click.option(
    "--layers", type=click.IntRange(min=1), metavar="N", help="The maximum number of layers."
)
@click.option("--gguf", type=options.InWords("TYPE=SIZE", _gguf_bound), multiple=True,
              metavar="TYPE=SIZE", help="The maximum size of the plan's GGUF file of a type, such "
              "as q4_k_m=100M. May be given several times.")  # fmt: skip
@click.option("--loss", type=options.InWords("LOSS", loss_from_words), metavar="LOSS",
              help="The maximum loss against the base, on the mean of the objectives: 2% of the "
                   "base's scores, or 0.05 (nats).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PLAN",
              help="The plan to write. Default: standard output.")  # fmt: skip
@options.OUTPUT_FORCE
def pick_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    run: str,
    parameters: int | None,
    memory: int | None,
    context: int,
    layers: int | None,
    gguf: tuple[tuple[str, int], ...],
    loss: tuple[str, float] | None,
    output: Path | None,
    force: bool,
) -> None:
    """Select the best plan of RUN, a search's folder, within the given limits.

    A search with plans of several sizes has the best plan of each size. These plans are the curve
    of quality over size in RUN's summary. The command selects the plan with the smallest loss. With
    --loss alone it selects the smallest plan. If no plan meets the limits, the exit code is 1, and
    the command names the nearest plan.
    """
    if (parameters, memory, layers, loss) == (None,) * 4 and not gguf:
        raise click.UsageError("give a limit: --parameters, --memory, --layers, --gguf or --loss")
    from gptailor.searching.pick import Bounds, pick, put_picked

    lost = {} if loss is None else dict([loss])
    if "nats" in lost:
        say(
            f"--loss: at most {lost['nats']:g} nats; write 2% for a share of the base's scores",
            err=True,
        )
    bounds = Bounds(parameters, memory, context, layers, **lost, gguf=gguf)
    picked = pick(run, bounds, (output or Path("plan")).absolute().parent)
    kinds = (kind.lower() for kind, _ in gguf)
    words = _picked_words(picked.point, dict(zip(kinds, picked.files, strict=True)))
    if not picked.kept:
        say(f"error: no plan in '{run}' meets these limits; the nearest is {words}", err=True)
        sys.exit(1)
    if output is None:
        say(picked.text, newline=False)
        say(words, err=True)
        return
    put_picked(picked, output, force=force)
    say(f"{output}: {words}")


def _picked_words(point: "CurvePoint", files: Mapping[str, int]) -> str:
    """Return `front/trial-0012.tailor: 24 layers, 110.2 M parameters, 220.4 MB, 0.04 nats lost`.

    `files` are the bytes of GGUF files by their types: `88.1 MB in q4_k_m`.
    """
    size = point.size
    count, weights = millions(size.parameters), bytes_in_words(size.bytes)
    weights += "".join(f", {bytes_in_words(size)} in {kind}" for kind, size in files.items())
    lost, form = (point.share, "{:.1%}") if point.nats is None else (point.nats, "{:.3g} nats")
    loss = "" if lost is None else f", {form.format(abs(lost))} {'lost' if lost >= 0 else 'won'}"
    before = " before it is repaired" * point.unrepaired
    return f"{point.file}: {size.layers} layers, {count} parameters, {weights}{loss}{before}"
