"""The command `report`: a page about a search, a plan or a model, and its pictures."""

from pathlib import Path

import click

from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines
from gptailor.reporting.quantities import bytes_in_words

_REPORT_EXAMPLE = """
\b
Examples:
  gptailor report run -o report.html
  gptailor report cut.tailor -o cut.html --pictures pictures
  gptailor report ./models/cut -o cut.html --prompt "Once upon a time"
"""


@click.command("report", short_help="Make a page about a search, a plan or a model.",
               epilog=_REPORT_EXAMPLE)  # fmt: skip
@click.argument("target", metavar="RUN|PLAN|DIR", type=click.Path(allow_dash=True))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The page to write. It must not exist, unless --force is given.")  # fmt: skip
@click.option(
    "--force",
    is_flag=True,
    help="Replace an existing page, after the new page is complete, and existing pictures.",
)
@click.option("--pictures", type=click.Path(path_type=Path), metavar="DIR",
              help="Also write each chart as .svg and .png into this folder.")  # fmt: skip
@click.option("--prompt", default="Once upon a time", show_default=True, metavar="TEXT",
              help="The prompt that the base and the model continue.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=48, show_default=True, metavar="N",
              help="The maximum number of tokens of each continuation.")  # fmt: skip
@click.option("--no-continuations", is_flag=True, help="Don't continue the prompt.")
@options.MODEL
@options.FAMILY
def report_command(  # noqa: PLR0913 (one argument a flag)
    target: str,
    output: Path,
    *,
    force: bool,
    pictures: Path | None,
    prompt: str,
    tokens: int,
    no_continuations: bool,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
) -> None:
    """Make one page of HTML about a search's folder, a plan, or a model's folder.

    The page opens from disk without a network. It can be printed, and read on a phone. It has a
    light and a dark mode.

    The page of a search compares its result with the base, and shows all trials. Nothing is
    evaluated again. The page of a plan contains the map of its layers, its size, text and lock. If
    the models are available, the base and the result continue a prompt.

    The command needs altair and vl-convert-python: pip install 'gptailor[report]'.
    """
    from gptailor.plugins.report.report import report

    written = report(
        options.read_plan("-", families) if target == "-" else target,
        output,
        models=dict(models),
        families=families,
        prompt=None if no_continuations else prompt,
        tokens=tokens,
        pictures=pictures,
        force=force,
        on_event=RepairLines(),
    )
    options.say(f"{output}: written, {bytes_in_words(written.size)}")
    if pictures is not None:
        count = len(written.pictures) // 2
        options.say(f"{pictures}: {count} pictures written, each as .svg and .png")
