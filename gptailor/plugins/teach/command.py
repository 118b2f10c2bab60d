"""The command `teach`: a file of a teacher's predictions of texts."""

from pathlib import Path

import click

from gptailor.cli.event_lines import RepairLines
from gptailor.cli.options import DEVICE, MEMORY, MODEL, say
from gptailor.reporting.quantities import bytes_in_words

_EXAMPLE = """
\b
Example, and a plan that learns from the file:
  gptailor teach big-model text.jsonl -o taught.parquet --tokens 1000000
  heal on "taught.parquet"
"""


@click.command(
    "teach", short_help="Write a teacher's predictions of texts to a file.", epilog=_EXAMPLE
)
@click.argument("teacher", metavar="TEACHER", type=click.Path(allow_dash=True))
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The file to write. Its name ends in .parquet.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), metavar="N",
              help="The number of tokens of all texts together. Default: at most "
              "200,000.")  # fmt: skip
@click.option("--length", type=click.IntRange(min=1), metavar="N",
              help="The number of tokens of a sequence. Default: 512, or the model's "
              "maximum.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="The seed that draws the order of the texts' rows.")  # fmt: skip
@MODEL
@DEVICE
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
    help="The dtype that the teacher computes in. Default: bfloat16 where the device is fast in "
    "it, otherwise float32; float32 for a mixture of experts.",
)  # fmt: skip
@MEMORY
@click.option(
    "--force", is_flag=True, help="Replace an existing file, after the new file is complete."
)
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
    """Write the predictions of TEACHER after each token of each TEXT.

    TEACHER is a plan, a model's folder, a GGUF file or a Hub id. Each TEXT is a file in a format
    that healing reads. For each token, the file has the 128 most probable next tokens with their
    log-probabilities. A token takes 768 bytes with a vocabulary of 49,152.

    The file is a Parquet dataset in the format of DistillKit. Other trainers can read it. A plan
    learns from it with 'heal on "FILE"'. The teacher then doesn't run again, and needn't be on the
    machine. The same command continues an interrupted run.
    """
    from gptailor.plan.optional_packages import require

    require("parquet", "gptailor teach")

    from gptailor.plugins.teach.teach import teach

    written = teach(
        teacher, texts, output, models=dict(models), tokens=tokens, length=length, seed=seed,
        device=device, dtype=dtype, memory=memory,
        force=force, on_event=RepairLines(opening=""),
    )  # fmt: skip
    say(
        f"{written.file}: {written.sequences:,} sequences of {written.length:,} tokens, with "
        f"{written.kept} predictions after each token, {bytes_in_words(written.bytes)}"
    )
