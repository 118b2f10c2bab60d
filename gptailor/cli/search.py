"""The command `search`: closes an open plan's choices by trials."""

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines, received_by
from gptailor.cli.options import keep_memory, read_plan, say
from gptailor.plan.optional_packages import require
from gptailor.report.quantities import bytes_in_words, millions

if TYPE_CHECKING:
    from gptailor.report.summary import SizeRow

_SEARCH_EXAMPLE = """
\b
Example; the same command goes on where it was interrupted:
  gptailor search space.tailor -o run --trials 200
  gptailor compile run/best.tailor -o out --locked
"""


@final
class _SampleRange(click.ParamType[tuple[int, int]]):
    """`64..1024`, or one number for both ends."""

    name = "A..B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return both ends; a usage error unless the range ascends from 1 or more."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", str(value))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high:
            self.fail(f"'{value}' is no number or range of samples such as 64..1024", param, ctx)
        return low, high


@click.command("search", short_help="Close a plan's choices by trials.", epilog=_SEARCH_EXAMPLE)
@options.PLAN_ARGUMENT
@click.option("-o", "--output", "--run", "run", required=True, type=click.Path(), metavar="RUN",
              help="The search's folder, or a URL such as s3://bucket/run; one that is there "
                   "goes on.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), metavar="N",
              help="The budget, in evaluations on all samples. Without it: 200.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), metavar="N",
              help="Of samples and strategy. Without it: 0.")  # fmt: skip
@click.option("--strategy", metavar="NAME",
              help="surrogate (as without it), evolution, distribution or random.")  # fmt: skip
@click.option("-O", "--objective", "objectives", multiple=True, metavar="OBJECTIVE",
              help="Instead of the search block's; may be given several times.")  # fmt: skip
@click.option("--prefer", metavar="OBJECTIVE",
              help="The objective, or its number, that says which plan is the best.")  # fmt: skip
@click.option("--fidelity", type=_SampleRange(),
              help="Samples of a trial, from the cheapest to all; or one number.")  # fmt: skip
@click.option("--bridge", type=click.Choice(["each", "from-full", "finalists"]),
              help="Which trials are bridged. Without it: each, if the plan heals; "
                   "else the finalists.")  # fmt: skip
@click.option("--finalists", type=click.IntRange(min=1), metavar="N",
              help="How many of the best are bridged and healed in the end, as the plan says. "
                   "Without it: a tenth of --trials, at most 5.")  # fmt: skip
@click.option("--compare-random", is_flag=True,
              help="Random search at the same cost, on top of the budget.")  # fmt: skip
@click.option("--no-race", "race", is_flag=True, flag_value=False, default=True,
              help="Score trials on all samples, also those that lost after some.")  # fmt: skip
@click.option("--repeat-calibration", type=click.IntRange(min=0), default=0, metavar="N",
              help="Search on N other draws of the samples too, and say how far what is found "
                   "agrees. Each costs as much again.")  # fmt: skip
@options.MODEL
@options.FAMILY
@options.DEVICE
@options.DTYPE
@options.MEMORY
@click.option("--storage", metavar="URL",
              help="A storage of Optuna's, instead of a journal in RUN.")  # fmt: skip
@click.option("--study-name", "study", default="gptailor", show_default=True, metavar="NAME",
              help="What the study is called in the storage.")  # fmt: skip
@click.option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]",
              help="Evaluate on a Ray cluster; without an address on a local one.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Of the cluster. Without it: its GPUs, or its machines.")  # fmt: skip
@click.option("--gpus-per-worker", type=click.IntRange(min=1), default=1, metavar="N",
              help="One of them computes, the others hold layers. Without it: 1.")  # fmt: skip
@click.option("--no-live", is_flag=True, help="Plain lines on a terminal too.")
def search_command(
    plan: str,
    run: str,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    no_live: bool,
    **values: Any,
) -> None:
    """Close the choices that PLAN leaves open, by trials of what it could be.

    The folder RUN holds the best plan, the front of several objectives, a lock, a summary and the
    study, which optuna-dashboard reads. Starting plans that people make without a search come
    first. Flags win over the plan's search block; relative paths in --objective start at the
    current folder.

    Ctrl-C ends it with everything kept. The same command goes on where it ended, with a larger
    --trials beyond that; a RUN of another search is refused.
    """
    from gptailor.search.settings import (
        Flags,
        Resources,
        settings,
        wants_size_too,
    )

    if values["workers"] is not None and values["ray"] is None:
        raise click.UsageError("--workers are those of a Ray cluster; give --ray too")

    if values["gpus_per_worker"] > 1 and not values["device"].startswith("cuda"):
        raise click.UsageError("--gpus-per-worker are CUDA devices; give --device cuda too")

    flags = Flags(**{name: values[name] for name in Flags.__dataclass_fields__})
    where = Resources(**{name: values[name] for name in Resources.__dataclass_fields__})
    declared = read_plan(plan, families)
    chosen = settings(declared, flags)  # what is wrong is said before seconds of imports
    if wants_size_too(declared, flags, chosen):
        say("plans are of several sizes, so that parameters() is an objective too", err=True)
    require("search", "a search")
    _set_up_jax()
    from gptailor.cli.search_view import Lines, Screen
    from gptailor.report.search_text import summary_lines
    from gptailor.search.search import Doing, search

    keep_memory()
    with Screen() if not no_live and sys.stderr.isatty() else nullcontext(Lines()) as view:
        repairs = RepairLines(lambda line: view(Doing(line)))
        try:
            result = search(
                declared, run, flags,
                models=dict(models), where=where, on_event=received_by(repairs, view),
            )  # fmt: skip
        except KeyboardInterrupt:
            message = "interrupted; what was found is kept, and the same command goes on"
            say(message, err=True)
            sys.exit(130)
    for line in summary_lines(result.summary, options.width(), options.output_encoding()):
        options.say_drawn(line)
    if result.ended == "interrupted":
        say("interrupted; all trials are kept, and the same command goes on", err=True)
        sys.exit(130)
    required = result.summary.required
    if required is not None and not required.met:
        say("no plan meets what is required, so that there is no best one", err=True)
        sys.exit(1)


def _set_up_jax() -> None:
    """Set JAX up on the CPU, for models on any device, with a cache of compiled code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from gptailor.checkpoint.files import cache_folder

    if (kept := cache_folder()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept / "jax"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


# ------------------------------------------------------------------------------------------ picking


@final
class _Count(click.ParamType[int]):
    """A number of parameters: `110M`, `1.5B` or `1.5G`, `1,500,000`."""

    name = "COUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; a usage error unless it is above 0."""
        if isinstance(value, int):
            return value
        grouped = re.fullmatch(r"\d{1,3}(,\d{3})+", str(value))
        text = str(value).replace(",", "") if grouped else str(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbgt]?)", text, re.IGNORECASE)
        units = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
        count = round(float(match[1]) * units[match[2].lower()]) if match else 0
        if count <= 0:
            self.fail(f"'{value}' is no number of parameters such as 110M or 1.5B", param, ctx)
        return count


@final
class _Loss(click.ParamType[tuple[str, float]]):
    """`2%` of the base's scores, or `0.05` in the objectives' own unit."""

    name = "LOSS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """Return the unit and the number."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*(%?)", str(value))
        if match is None:
            self.fail(f"'{value}' is no loss such as 2% or 0.05", param, ctx)
        return ("share", float(match[1]) / 100) if match[2] else ("nats", float(match[1]))


_PICK_EXAMPLE = """
\b
Example; without -o the plan is printed:
  gptailor pick run --parameters 110M -o small.tailor
  gptailor pick run --loss 2% | gptailor show -
"""


@click.command("pick", short_help="Take one plan of a search, by its size or what it loses.",
               epilog=_PICK_EXAMPLE)  # fmt: skip
@click.argument("run", metavar="RUN")
@click.option("--parameters", type=_Count(), metavar="COUNT",
              help="The most parameters: 110M, 1.5B, 1,500,000.")  # fmt: skip
@click.option("--memory", type=options.ByteSize(), metavar="SIZE",
              help="The most bytes for the weights and the KV cache of one text.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=0), default=4096, show_default=True,
              metavar="N", help="Tokens of that text.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), metavar="N", help="The most layers.")
@click.option("--loss", type=_Loss(), metavar="LOSS",
              help="The most that is lost beside the base, on the mean of the objectives: 2% of "
                   "its scores, or 0.05 (nats).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PLAN",
              help="The plan to write; standard output without it.")  # fmt: skip
def pick_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    run: str,
    parameters: int | None,
    memory: int | None,
    context: int,
    layers: int | None,
    loss: tuple[str, float] | None,
    output: Path | None,
) -> None:
    """Take the best plan of RUN, a search's folder, that keeps to what is said.

    A search whose plans are of several sizes has the best plan of each: the curve of quality over
    size in RUN's summary. Of these is taken the one that loses least, or with --loss alone the
    smallest. Ends with 1 if none keeps to it, and says which one comes nearest.
    """
    if (parameters, memory, layers, loss) == (None,) * 4:
        raise click.UsageError("say what to keep to: --parameters, --memory, --layers or --loss")
    from gptailor.search.pick import Bounds, pick, put_picked

    lost = {} if loss is None else dict([loss])
    bounds = Bounds(parameters, memory, context, layers, **lost)
    picked = pick(run, bounds, (output or Path("plan")).absolute().parent)
    words = _picked_words(picked.row)
    if not picked.kept:
        say(f"error: no plan in '{run}' keeps to that; the nearest is {words}", err=True)
        sys.exit(1)
    if output is None:
        say(picked.text, newline=False)
        say(words, err=True)
        return
    put_picked(picked, output)
    say(f"{output}: {words}")


def _picked_words(row: "SizeRow") -> str:
    """Return `front/trial-0012.tailor: 24 layers, 110.2 M parameters, 220.4 MB, 0.041 lost`."""
    count, weights = millions(row.parameters), bytes_in_words(row.bytes)
    if row.nats is not None:
        loss = f", {abs(row.nats):.3g} {'lost' if row.nats >= 0 else 'won'}"
    elif row.share is not None:
        loss = f", {abs(row.share):.1%} {'lost' if row.share >= 0 else 'won'}"
    else:
        loss = ""
    return f"{row.file}: {row.layers} layers, {count} parameters, {weights}{loss}"
