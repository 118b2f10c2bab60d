"""The commands `compile`, `lock` and `verify`: a plan into a folder, its lock and its check."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines, healed_in_words, received_by
from gptailor.report.quantities import bytes_in_words, millions

if TYPE_CHECKING:
    from gptailor.build.lock import Lock


@final
class QuantisedType(click.ParamType[str]):
    """A type of a GGUF file's matrices."""

    name = "TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the type unchanged; a usage error, with the reason, for an unsupported one."""
        from gptailor.checkpoint.formats.gguf.kinds import quantised_kind

        try:
            quantised_kind(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


@click.command("compile", short_help="Write the model that a plan declares.")
@options.PLAN_ARGUMENT
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to write, or a file for llama.cpp if it ends in .gguf. It must not "
              "exist, unless --force is given.")  # fmt: skip
@options.MODEL
@options.FAMILY
@click.option("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16, over the plan's.")
@click.option("--quantize", type=QuantisedType(), metavar="TYPE",
              help="Of a .gguf file's matrices: q8_0, q5_1, q5_0, q4_1, q4_0, bf16, f16 or f32. "
              "Without it: the plan's dtype.")  # fmt: skip
@click.option("--shard-size", type=options.ByteSize(), default="5GB", show_default=True,
              help="The most bytes of one weights file.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Replace the output, if it is a model, once the new one is whole.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--lock", is_flag=True, help="Make the plan's lock, beside it and in the folder.")
@click.option("--locked", is_flag=True,
              help="Refuse whatever differs from the plan's lock.")  # fmt: skip
@click.option("--lock-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the lock is, or goes. Without it: PLAN.lock.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="Tensors that are written at once. Without it: as many as cores.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE",
              help="What merges, bridges and heals: cpu, cuda or cuda:1.")  # fmt: skip
@click.option("--memory", type=options.ByteSize(), metavar="SIZE",
              help="The most bytes on the device for bridging and healing.")  # fmt: skip
def compile_command(  # noqa: PLR0913 (one argument a flag)
    plan: str,
    output: Path,
    *,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    dtype: str | None,
    force: bool,
    dry_run: bool,
    lock: bool,
    locked: bool,
    lock_file: Path | None,
    quantize: str | None,
    **means: Any,
) -> None:
    """Write the model that PLAN declares as a Hugging Face folder, or as one GGUF file.

    The folder appears whole or not at all. It holds the weights, config.json, the tokenizer,
    a model card and the plan. PLAN may be - for standard input.

    An output called NAME.gguf is a file that llama.cpp loads, tokenizer and chat template
    included, with the plan in its metadata. It needs the package gguf; docs/models.md says which
    models can be written so.

    With --lock the digests of all inputs and outputs are written down; with --locked the same
    inputs are taken and the same bytes made, or the compilation is refused. See 'gptailor lock'.
    """
    if quantize is not None and output.suffix.lower() != ".gguf":
        raise click.UsageError("--quantize is for an output called NAME.gguf")
    new_lock, held_to = lock_flags(plan, lock=lock, locked=locked, file=lock_file, dry_run=dry_run)
    from gptailor.build.compile import ComputeOptions, compile
    from gptailor.build.lock_recording import at_locked_commits
    from gptailor.prepare import prepare, ready

    declared = options.read_plan(plan, families)
    declared = at_locked_commits(declared, held_to) if held_to else declared
    make = prepare if dry_run else ready
    compute = ComputeOptions(**means)
    prepared = make(declared, models=dict(models), dtype=dtype, shard_size=compute.shard_size)
    options.report(prepared.warnings)
    if dry_run:
        planned = compile(
            prepared, output, quantize=quantize, force=force, locked=held_to, dry_run=True,
            compute=compute,
        )  # fmt: skip
        options.print_dry_run(prepared, planned)
        _say_notes(planned.notes)
        return
    options.keep_memory()
    with options.bytes_bar(prepared.size) as advance:
        written = compile(
            prepared, output, quantize=quantize, force=force, locked=held_to, locking=lock,
            compute=compute, on_event=received_by(advance, RepairLines(every_gap=True, ends=False)),
        )  # fmt: skip
    for after, bridge in written.bridges.items():
        share = (
            f"; it recovers {bridge.held_out:.1%} of the missing state on text left out"
            if math.isfinite(bridge.held_out)
            else ""
        )
        options.say(f"bridge after {after}: fitted on {bridge.tokens:,} tokens{share}")
    if written.healed is not None:
        options.say(healed_in_words(written.healed.end))
    _say_notes(written.notes)
    before = prepared.base_size.layers
    options.say(
        f"{written.folder}: {written.layers} layers (the base has {before}), "
        f"{millions(written.parameters)} parameters, {bytes_in_words(written.size)}"
    )
    if new_lock is not None and written.lock is not None:
        written.lock.write(new_lock)
        options.say(f"{new_lock}: {locked_in_words(written.lock)}")


def _say_notes(notes: Iterable[str]) -> None:
    for note in notes:
        options.say(f"note: {note}", err=True)


def lock_file(plan: str, path: Path | None) -> Path:
    """Return the path of a plan's lock: the given one, else the file beside the plan."""
    if path is not None:
        return path
    if plan == "-":
        raise click.UsageError("a plan from standard input has no lock beside it; name its file")
    from gptailor.build.lock import SUFFIX

    return Path(plan + SUFFIX)


def lock_flags(
    plan: str, *, lock: bool, locked: bool, file: Path | None, dry_run: bool
) -> "tuple[Path | None, Lock | None]":
    """Return the path for a new lock, and the lock to hold to, by the flags of `compile`.

    Raises a usage error for flags that exclude each other.
    """
    if lock and locked:
        raise click.UsageError("--lock makes a lock, --locked holds to one; give one of them")
    if file is not None and not (lock or locked):
        raise click.UsageError("--lock-file names a file for --lock or --locked; give one of them")
    if not (lock or locked):
        return None, None
    if lock and dry_run:
        raise click.UsageError("--dry-run makes no lock; 'gptailor lock' makes one of a plan alone")
    path = lock_file(plan, file)
    if lock:
        return path, None
    from gptailor.build.lock import read_lock

    return None, read_lock(path)


@click.command("lock", short_help="Write down what a plan is made from, and what comes out.")
@options.PLAN_ARGUMENT
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="The file to write, or - to print. Without it: PLAN.lock.")  # fmt: skip
@options.MODEL
@options.FAMILY
@click.option("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16, over the plan's.")
def lock_command(
    plan: str,
    output: Path | None,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    dtype: str | None,
) -> None:
    """Write the lock of PLAN: digests of all files that it reads and of each tensor it makes.

    The tensors are computed, and not kept. 'gptailor compile PLAN -o DIR --locked' then takes the
    same inputs and makes the same bytes, or refuses. An old lock is replaced.
    """
    from gptailor.build.lock_recording import lock
    from gptailor.build.output import work
    from gptailor.prepare import ready

    path = lock_file(plan, output)
    prepared = ready(options.read_plan(plan, families), models=dict(models), dtype=dtype)
    options.report(prepared.warnings)
    with options.bytes_bar(work(prepared), "locking") as advance:
        new_lock = lock(prepared, on_event=received_by(advance, RepairLines(every_gap=True)))
    if str(path) == "-":
        options.say(new_lock.text(), newline=False)
        return
    new_lock.write(path)
    options.say(f"{path}: {locked_in_words(new_lock)}")


def locked_in_words(lock: "Lock") -> str:
    """Return the content of a lock in words: `12 files of 2 models, 57 tensors`."""
    files = sum(len(model.files) for model in lock.models.values())
    models = "1 model" if len(lock.models) == 1 else f"{len(lock.models)} models"
    return f"{files} files of {models}, {len(lock.tensors)} tensors"


@click.command("verify", short_help="Say whether a compiled folder is what its plan gives.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@options.MODEL
@options.FAMILY
@click.option("--tensors-only", is_flag=True,
              help="Compare the tensors with the lock, and leave the models alone.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="For people, or for programs.")  # fmt: skip
def verify_command(
    folder: Path,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    tensors_only: bool,
    form: str,
) -> None:
    """Say whether the folder DIR, or a GGUF file, is what its plan and its lock say.

    Its tensors and other files are compared with the lock, the models' files too, and then with
    what the plan makes, which is computed again and not kept. Without a lock only with that.

    Ends with 0 if all is so, with 1 if something differs, and with 3 if nothing is known to differ
    but something could not be compared, as where a model is gone.
    """
    from gptailor.build.verify import Verification

    verification = Verification(
        folder, models=dict(models), families=families, tensors_only=tensors_only
    )
    with options.bytes_bar(verification.work, "verifying") as advance:
        result = verification.run(received_by(advance, RepairLines(every_gap=True)))
    if form == "json":
        record = {
            "folder": str(result.folder),
            "result": result.result,
            "compared": result.compared,
            "differences": [
                {"kind": difference.kind, "name": difference.name, "model": difference.model,
                 "file": difference.path and str(difference.path), "message": difference.message}
                for difference in result.differences
            ],
            "unverified": result.unverified,
        }  # fmt: skip
        options.say(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        for difference in result.differences[: options.MOST_SHOWN]:
            options.say(f"differs: {difference.message}")
        if len(result.differences) > options.MOST_SHOWN:
            options.say(f"… and {len(result.differences) - options.MOST_SHOWN} more differences")
        for reason in result.unverified:
            options.say(f"could not be verified: {reason}")
        count = len(result.differences)
        ends = {
            "verified": "verified",
            "differs": "1 difference" if count == 1 else f"{count} differences",
            "unverified": "no difference found, but not all could be verified",
        }
        compared = f"; compared: {', '.join(result.compared)}" if result.compared else ""
        options.say(f"{result.folder}: {ends[result.result]}{compared}")
    sys.exit({"verified": 0, "differs": 1, "unverified": 3}[result.result])
