"""The command `generate`: plans, compiled folders and models go on from a prompt, side by side."""

import json
import sys
import textwrap
from pathlib import Path

import click

from gptailor.cli.compile import told_of_healing
from gptailor.cli.options import DEVICE, DTYPE, FAMILY, MEMORY, MODEL, read_plan, report, say, width

_GENERATE_EXAMPLE = """
\b
Example, with a plan beside the base that it cuts:
  gptailor generate ./models/base cut.tailor "Once upon a time" --tokens 9
"""


@click.command("generate", short_help="Let plans and models speak.", epilog=_GENERATE_EXAMPLE)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True,
                type=click.Path(allow_dash=True))  # fmt: skip
@click.argument("prompt", metavar="PROMPT")
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N",
              help="The most that each says.")  # fmt: skip
@click.option("--chat", is_flag=True, help="The prompt is a user's, in each chat template.")
@MODEL
@FAMILY
@DEVICE
@DTYPE
@MEMORY
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="For people, or for programs.")  # fmt: skip
def generate_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    targets: tuple[str, ...],
    prompt: str,
    tokens: int,
    chat: bool,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    form: str,
) -> None:
    """Say what each TARGET makes of PROMPT: a plan, a compiled folder, any model by itself.

    Plans are stitched in memory, bridged and healed as they say; nothing is written. Each says its
    likeliest token at each step. Ends with 3 if a target can't.
    """
    from gptailor.evaluate import targets as targeting  # noqa: PLC0415

    given = [read_plan(name) if name == "-" else name for name in targets]
    found = targeting.find_targets(given, dict(models), families)
    report(targeting.warnings(found))
    import torch  # noqa: PLC0415 (seconds, and what is wrong with the texts was said before)

    from gptailor.evaluate.answers import answers  # noqa: PLC0415
    from gptailor.evaluate.outcome import Failure  # noqa: PLC0415
    from gptailor.evaluate.trial import Placement  # noqa: PLC0415

    place = Placement(device, None if dtype is None else getattr(torch, dtype), memory)
    said: list[dict[str, str]] = []
    failed = False
    for name, text in answers(
        found, prompt, tokens, place, chat=chat, on_healing=told_of_healing()
    ):
        failed |= isinstance(text, Failure)
        what = {"failure": text.message} if isinstance(text, Failure) else {"text": text}
        said.append({"target": name, **what})
        if form == "text":
            say(click.style(name, bold=True))
            shown = f"failed: {text.message}" if isinstance(text, Failure) else text
            for line in shown.strip("\n").splitlines() or ["(nothing)"]:
                say(textwrap.fill(line, max(20, width()), initial_indent="  ",
                                  subsequent_indent="  "))  # fmt: skip
    if form == "json":
        say(json.dumps(said, ensure_ascii=False, indent=2))
    sys.exit(3 if failed else 0)
