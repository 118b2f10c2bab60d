"""The command `publish`: a compiled folder as a repository of the Hub."""

from functools import partial
from pathlib import Path

import click

from gptailor.cli import options
from gptailor.reporting.quantities import bytes_in_words

_EXAMPLE = """
\b
Example, first without and then with the upload:
  gptailor publish out my-name/my-model --license apache-2.0 --show-card
  gptailor publish out my-name/my-model --license apache-2.0 --upload
"""


_FORM = "NAME=ORG/NAME:TASK"


@click.command("publish", short_help="Upload a compiled folder to the Hub.", epilog=_EXAMPLE)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--upload", is_flag=True,
              help="Upload. Without it the command is a dry run: nothing leaves this "
              "machine.")  # fmt: skip
@click.option("--private", is_flag=True, help="Make a missing repository private.")
@click.option("--title", metavar="TEXT", help="The model card's title.")
@click.option("--license", "license_", metavar="ID",
              help="The card's licence, as the Hub names it: apache-2.0, mit, llama3.2, "
              "other.")  # fmt: skip
@click.option("--language", "languages", multiple=True, metavar="CODE",
              help="A language of the model, such as en. May be given several times.")  # fmt: skip
@click.option("--dataset", "datasets", multiple=True, metavar="ID",
              help="A dataset that the model was bridged, healed or trained on. May be given "
              "several times.")  # fmt: skip
@click.option("--base-model", "base_models", multiple=True, metavar="ORG/NAME",
              help="A model of the Hub that it was made from, in place of the known ones. May be "
              "given several times.")  # fmt: skip
@click.option("--include", multiple=True, metavar="PATTERN",
              help="Also upload files of DIR that compile didn't write, such as 'images/*.png'. "
              "May be given several times.")  # fmt: skip
@click.option("--scores", type=click.Path(path_type=Path), metavar="FILE",
              help="The JSON of 'gptailor eval DIR -O … --format json'. The card has a table and "
              "the model-index of these scores.")  # fmt: skip
@click.option("--benchmark", "benchmarks", multiple=True, metavar="NAME=ORG/NAME:TASK",
              type=options.InWords(_FORM, partial(options.assignment, _FORM)),
              help="The dataset on the Hub of a measured task or file, for the repository's "
              ".eval_results. May be given several times.")  # fmt: skip
@click.option("--show-card", is_flag=True, help="Print the model card too.")
@click.option("--message", default="Upload a model compiled by gptailor", show_default=True,
              metavar="TEXT", help="The commit's message.")  # fmt: skip
def publish_command(  # noqa: PLR0913 (one argument a flag)
    folder: Path,
    repo: str,
    *,
    upload: bool,
    private: bool,
    title: str | None,
    license_: str | None,
    languages: tuple[str, ...],
    datasets: tuple[str, ...],
    base_models: tuple[str, ...],
    include: tuple[str, ...],
    scores: Path | None,
    benchmarks: tuple[tuple[str, str], ...],
    show_card: bool,
    message: str,
) -> None:
    """Upload the compiled folder DIR to the repository ORG/NAME on the Hugging Face Hub.

    Without --upload the command prints the files and missing facts, such as a licence, or a base on
    the Hub. The command makes a missing repository. The token is from 'hf auth login' or HF_TOKEN.

    The options --title to --scores change the published model card. The folder's card stays as it
    is. --benchmark writes .eval_results.
    """
    from gptailor.checkpoint.files import escaped
    from gptailor.plugins.publish.publish import CardFacts, publish

    if benchmarks and scores is None:
        raise click.UsageError("--benchmark needs scores: give them by --scores FILE")
    facts = CardFacts(title, license_, languages, datasets, base_models)
    made = publish(
        folder, repo, facts=facts, include=include, scores=scores, benchmarks=dict(benchmarks),
        upload=upload, private=private, message=message,
    )  # fmt: skip
    if show_card:
        options.say(made.card)
    rows = [(escaped(name), size) for name, size in made.files]
    width = max(len(name) for name, _ in rows)
    for name, size in rows:
        options.say(f"  {name:<{width}}  {bytes_in_words(size)}")
    for note in made.notes:
        options.say(f"note: {note}", err=True)
    count = len(made.files)
    if made.url is None:
        options.say(f"{count} files, {bytes_in_words(made.size)}, for {repo}: nothing was uploaded")
        options.say("--upload uploads them")
    else:
        options.say(f"{count} files, {bytes_in_words(made.size)}, uploaded: {made.url}")
