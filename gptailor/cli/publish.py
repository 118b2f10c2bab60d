"""The command `publish`: a compiled folder as a repository of the Hub."""

from pathlib import Path

import click

from gptailor.cli import options
from gptailor.reporting.quantities import bytes_in_words

_EXAMPLE = """
\b
Example, first without and then with the upload:
  gptailor publish out my-name/my-model
  gptailor publish out my-name/my-model --upload
"""


@click.command("publish", short_help="Upload a compiled folder to the Hub.", epilog=_EXAMPLE)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--upload", is_flag=True, help="Upload. Without it nothing leaves this machine.")
@click.option("--private", is_flag=True, help="Make a missing repository private.")
@click.option("--message", default="Upload a model compiled by gptailor", show_default=True,
              metavar="TEXT", help="The commit's message.")  # fmt: skip
def publish_command(folder: Path, repo: str, upload: bool, private: bool, message: str) -> None:
    """Upload the compiled folder DIR to the repository ORG/NAME on the Hugging Face Hub.

    Without --upload the command prints the files and what readers would miss, such as a base that
    is only a folder of this machine. The repository is made if it is missing. The token is that of
    'hf auth login', or HF_TOKEN.
    """
    from gptailor.build.publish import publish

    made = publish(folder, repo, upload=upload, private=private, message=message)
    width = max(len(name) for name, _ in made.files)
    for name, size in made.files:
        options.say(f"  {name:<{width}}  {bytes_in_words(size)}")
    for note in made.notes:
        options.say(f"note: {note}", err=True)
    count = len(made.files)
    if made.url is None:
        options.say(f"{count} files, {bytes_in_words(made.size)}, for {repo}: nothing was uploaded")
        options.say("--upload uploads them")
    else:
        options.say(f"{count} files, {bytes_in_words(made.size)}, uploaded: {made.url}")
