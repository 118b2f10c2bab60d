"""The command `shrink`: from a goal to a plan."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines
from gptailor.plan.events import Progress
from gptailor.reporting.quantities import bytes_from_words, count_from_words

if TYPE_CHECKING:
    from gptailor.plugins.shrink.results import ShrinkResult

_LEAST = 10_000
"""Bytes below which a number without a unit is taken for a mistake."""
_EXAMPLE = """
\b
Examples:
  gptailor shrink ./models/base --to 100MB --text mine.jsonl -o small.gguf
  gptailor shrink ./models/base --faster 1.25
  gptailor shrink ./models/base ./models/code --parameters 110M
"""


def _model_size(text: str) -> int:
    """Return a number of bytes. Raises ValueError for fewer than any model has: a missing unit."""
    size = bytes_from_words(text)
    if size < _LEAST and text.strip().isdigit():
        raise ValueError(f"{text} bytes is smaller than any model: write {text}MB or {text}GB")
    return size


_MODEL_SIZE = options.InWords("SIZE", _model_size)


@click.command(
    "shrink", short_help="Write a plan that makes a model smaller or faster.", epilog=_EXAMPLE
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--to", type=_MODEL_SIZE, metavar="SIZE",
              help="The maximum size of the output, such as 100MB: of the GGUF file, or of the "
              "folder if the architecture has no GGUF files.")  # fmt: skip
@click.option("--parameters", type=options.InWords("COUNT", count_from_words), metavar="COUNT",
              help="The maximum number of parameters: 110M.")  # fmt: skip
@click.option("--memory", type=_MODEL_SIZE, metavar="SIZE",
              help="The maximum size of weights and KV cache together, with 4,096 tokens in the "
              "cache, or the model's maximum.")  # fmt: skip
@click.option("--faster", type=click.FloatRange(min=1, min_open=True), metavar="TIMES",
              help="The minimum decoding speed, as a multiple of the model's: "
              "1.25.")  # fmt: skip
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="A text to fit and measure on, plain or JSON lines. May be given several times. "
              "Default: a small text of gptailor's own.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUTPUT",
              help="Also compile the plan: a folder, or a file that ends in .gguf.")  # fmt: skip
@click.option("--quick", "effort", flag_value="quick",
              help="Measure few plans on little text, without an importance matrix.")  # fmt: skip
@click.option("--thorough", "effort", flag_value="thorough",
              help="Measure more plans on more text, and heal the best cut.")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE",
              help="The plan to write. Default: MODEL-shrunk.tailor.")  # fmt: skip
@options.DEVICE
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def shrink_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    models: tuple[str, ...],
    to: int | None,
    parameters: int | None,
    memory: int | None,
    faster: float | None,
    texts: tuple[Path, ...],
    output: Path | None,
    effort: str | None,
    plan: Path | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the ways to make MODEL smaller, and write the plan that loses least.

    Give one goal or several: --to, --parameters, --memory, --faster. The ways are GGUF types with
    fewer bits, a smaller vocabulary, fewer layers, narrower MLPs, fewer experts, and pairs of them.
    Several models of one architecture are also merged.

    Each plan is compared with the uncut model on held-out rows of the text. The table has the best
    plan of each kind, and the whole model in fewer bits. The plan, an open plan for 'gptailor
    search' and the texts are written to the working folder.

    The same command continues an interrupted one. The exit code is 1 if no plan meets the goal.
    """
    if to is None and parameters is None and memory is None and faster is None:
        raise click.UsageError("name a goal, such as --to 100MB or --faster 1.25")
    from gptailor.plugins.shrink.shrink import effort_of, shrink  # imports slow modules

    try:
        result = shrink(
            models, to=to, parameters=parameters, memory=memory, faster=faster, text=texts,
            output=output, plan=plan, effort=effort_of(effort), device=device, force=force,
            on_event=_on_event,
        )  # fmt: skip
    except KeyboardInterrupt:
        options.say("finished measurements are kept: the same command continues", err=True)
        raise
    if as_json:
        options.say(result.record())
    else:
        for line in result.lines(options.width(), options.output_encoding()):
            options.say_drawn(line)
        for line in _next_steps(result, output):
            options.say(line)
    if result.chosen is None and not result.already:
        sys.exit(1 if result.loss is not None or result.impossible else 3)


_repairs = RepairLines(ends=False)


def _on_event(event: object) -> None:
    """Print a line for each measured model, and the lines of long fits."""
    match event:
        case Progress("shrinking", 0, _, words):
            options.say(words, err=True)
        case Progress("shrinking", done, total, words):
            options.say(f"{done}/{total} {words}", err=True)
        case Progress("healing" | "reading" | "importance matrix"):
            _repairs(event)


def _next_steps(result: "ShrinkResult", output: Path | None) -> list[str]:
    """Return the files that were written, and what to do next."""
    if result.plan is None or result.chosen is None:
        return []
    plan, space = result.files[:2]
    model = output or plan.with_suffix(".gguf" if result.chosen.candidate.kind else "")
    steps = [f"wrote {plan} and {space.name}, with their texts"]
    if output is None:
        steps.append(f"  gptailor compile {plan} -o {model}")
    steps += [
        f'  gptailor generate {model} "Hello" --chat    # talk with it',
        f"  gptailor test {plan}    # hold it to its figures",
        f"  gptailor search {space} -o {plan.stem}-run",
    ]
    if result.chosen.candidate.cuts:
        steps.append("  the commented line 'heal' in the plan trains it for minutes: uncomment it")
    return steps
