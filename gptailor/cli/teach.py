"""The command `teach`: a teacher's predictions of texts, as a file."""

from pathlib import Path

import click

from gptailor.cli.event_lines import RepairLines
from gptailor.cli.options import DEVICE, DTYPE, MEMORY, MODEL, say
from gptailor.report.quantities import bytes_in_words

_EXAMPLE = """
\b
Example, and a plan that learns from the file:
  gptailor teach big-model text.jsonl -o taught.parquet --tokens 1000000
  heal on "taught.parquet"
"""


@click.command("teach", short_help="Write a teacher's predictions of texts.", epilog=_EXAMPLE)
@click.argument("teacher", metavar="TEACHER", type=click.Path(allow_dash=True))
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The file to write; its name ends in .parquet.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), metavar="N",
              help="Tokens of all texts together. Without it: at most 200,000.")  # fmt: skip
@click.option("--length", type=click.IntRange(min=1), metavar="N",
              help="Tokens of a sequence. Without it: 512, or the model's most.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Draws the order of the texts' rows.")  # fmt: skip
@MODEL
@DEVICE
@DTYPE
@MEMORY
@click.option("--force", is_flag=True, help="Replace the file, once the new one is whole.")
def teach_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    teacher: str,
    texts: tuple[Path, ...],
    output: Path,
    tokens: int | None,
    length: int | None,
    seed: int,
    models: tuple[tuple[str, Path], ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    force: bool,
) -> None:
    """Write what TEACHER predicts after each token of each TEXT.

    TEACHER is a plan, a model's folder, a GGUF file or a Hub id. Each TEXT is a file such as
    healing reads. After each token the 128 likeliest next tokens are kept, with their
    log-probabilities: 768 bytes with a vocabulary of 49,152.

    The file is a Parquet dataset in the format of DistillKit, and other trainers can read it. A
    plan learns from it by 'heal on "FILE"': the teacher doesn't run again, and needn't be on the
    machine. The same command goes on where it was interrupted.
    """
    from gptailor.plan.optional_packages import require

    require("parquet", "gptailor teach")
    import torch

    from gptailor.evaluate.heal.teach import teach

    written = teach(
        teacher, texts, output, models=dict(models), tokens=tokens, length=length, seed=seed,
        device=device, dtype=None if dtype is None else getattr(torch, dtype), memory=memory,
        force=force, on_event=RepairLines(opening=""),
    )  # fmt: skip
    say(
        f"{written.file}: {written.sequences:,} sequences of {written.length:,} tokens, with "
        f"{written.kept} predictions after each token, {bytes_in_words(written.bytes)}"
    )
