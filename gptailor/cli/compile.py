"""The commands `compile`, `lock` and `verify`: a plan's folder, its lock, and their check."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import click

from gptailor.cli import options
from gptailor.cli.event_lines import bar_or_lines
from gptailor.cli.memory import keep_memory
from gptailor.plan.doors import Door
from gptailor.plan.faults import PlanFolderError, TailorError, listed
from gptailor.plan.optional_packages import require
from gptailor.reporting.measure import excess
from gptailor.reporting.quantities import bytes_from_words, bytes_in_words, duration, millions

if TYPE_CHECKING:
    from gptailor.output.compile import CompileResult, ComputeOptions
    from gptailor.output.lock import Lock
    from gptailor.prepare import Prepared


OUTPUT_TRIALS: Door[Callable[..., Iterator[str]]] = Door("trials", "trial", FunctionType, {})
"""Functions that try a written model, and yield lines for people: `talk`, that of `--try`."""


def _quantised_type(text: str) -> str | None:
    """Return a type of a GGUF file's matrices. Raises ValueError for an unknown one."""
    from gptailor.checkpoint.formats.gguf.kinds import quantised_kind

    return quantised_kind(text)


def _shard_size(text: str) -> int:
    """Return the bytes of a shard. Raises ValueError for another text, and below 1 MB."""
    size = bytes_from_words(text)
    if size < SMALLEST_SHARD:
        raise ValueError(
            f"expected at least 1MB, in bytes, got '{text}'; mergekit's --out-shard-size counts "
            "parameters"
        )
    return size


SMALLEST_SHARD = 10**6
"""The least bytes of `--shard-size`: tensors have a file each below it."""
_SHARD_SIZE = options.InWords("SIZE", _shard_size)
_TYPE = options.InWords("TYPE", _quantised_type)


def _no_folder(context: click.Context, _: click.Parameter, plan: str) -> str:
    """Refuse a folder as the plan, before a missing option."""
    if Path(plan).is_dir() and not context.resilient_parsing:
        error = PlanFolderError(Path(plan))
        root = context.find_root().command
        has_shrink = isinstance(root, click.Group) and "shrink" in root.list_commands(context)
        if has_shrink and "tailor 1" in error.help:
            error.help += f"\n  Or without a plan: gptailor shrink {shlex.quote(plan)}"
        raise error
    return plan


@click.command("compile", short_help="Write the model that a plan declares.")
@click.argument("plan", metavar="PLAN", type=click.Path(allow_dash=True), callback=_no_folder)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to write, or a file for llama.cpp if the name ends in .gguf. An "
              "output that gptailor wrote from this plan is updated; any other must not "
              "exist.")  # fmt: skip
@options.MODEL
@options.SET
@options.FAMILY
@options.OUTPUT_DTYPE
@click.option("--quantize", type=_TYPE, metavar="TYPE",
              help="The type of a .gguf file: q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, "
              "q4_k_s, iq4_nl, q4_1, q4_0, q3_k_l, q3_k_m, q3_k_s, bf16, f16 or f32. Default: the "
              "type of the plan's 'gguf', or the plan's dtype.")  # fmt: skip
@click.option("--gguf", type=_TYPE, multiple=True, metavar="TYPE",
              help="Also write a .gguf file of this type beside the folder: DIR-Q4_K_M.gguf. "
              "May be repeated.")  # fmt: skip
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="TEXT",
              help="Weigh the errors of quantised GGUF files by an importance matrix: the mean "
              "squares of the inputs of the finished plan's matrices on 16,384 tokens of this "
              "calibration text.")  # fmt: skip
@click.option("--shard-size", type=_SHARD_SIZE, default="5GB", show_default=True,
              help="The maximum number of bytes of a weights file, at least 1MB.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Replace any model at the output, after the new model is complete, and compute "
              "all tensors. A folder with other files is refused.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the planned output, and write nothing.")
@click.option("--try", "tried", is_flag=True,
              help="Let the output and its base answer three short prompts, and print whether "
              "answers end, loop and follow the chat template.")  # fmt: skip
@click.option(
    "--lock",
    is_flag=True,
    help="Write the plan's lock beside the plan and into the folder or the GGUF file, which grows.",
)
@click.option("--locked", is_flag=True,
              help="Refuse any difference from the plan's lock.")  # fmt: skip
@click.option("--lock-file", type=click.Path(path_type=Path), metavar="FILE",
              help="The lock's file, for --lock or --locked. Default: PLAN.lock.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="The number of tensors to write at once. Default: the number of "
              "cores.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE",
              help="The device that merges, bridges and heals: cpu, cuda or cuda:1.")  # fmt: skip
@click.option("--memory", type=options.BYTE_SIZE, metavar="SIZE",
              help="The maximum size on the device for bridging and healing. Default: no "
              "limit.")  # fmt: skip
def compile_command(  # noqa: PLR0913 (one argument a flag)
    plan: str,
    output: Path,
    *,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    dtype: str | None,
    force: bool,
    dry_run: bool,
    tried: bool,
    lock: bool,
    locked: bool,
    lock_file: Path | None,
    quantize: str | None,
    gguf: tuple[str, ...],
    imatrix: Path | None,
    **means: Any,
) -> None:
    """Write the model that PLAN declares as a Hugging Face folder, or as one GGUF file.

    The folder appears complete or not at all. It contains the weights, config.json, the tokenizer,
    a model card and the plan. PLAN may be - for standard input. After bridging or healing, the base
    and the output answer one short prompt, and an answer that ends at once or loops is marked.
    After a cut or a stack without either, the command that continues a prompt is printed.

    If the folder contains an older output of the plan, unchanged tensors are copied from it, and
    the changed parts are printed. A folder of another plan, or with files changed by hand, is
    refused.

    An output called NAME.gguf is a file for llama.cpp. It includes the tokenizer and the chat
    template. Its metadata contains the plan. It needs the package gguf. docs/models.md lists the
    models that can be written as GGUF. --gguf writes such files beside the folder. Bridges are
    fitted and layers healed once for all outputs.

    With a statement such as 'gguf q4_k_m' in the plan, -o DIR also writes that file beside the
    folder, and -o NAME.gguf writes only that file. --quantize, --gguf and --imatrix replace all
    'gguf' statements of the plan.

    --lock records the digests of all inputs and outputs. A GGUF file contains its lock, and
    --dry-run --lock prints its size with it. --locked makes the same bytes from the same inputs, or
    refuses to compile. See 'gptailor lock'.
    """
    _refuse_flags(output, quantize, gguf, imatrix)
    if tried:
        _refuse_trial(dry_run=dry_run)
    if _started_together() and not _is_first():
        return
    new_lock, held_to = lock_flags(plan, lock=lock, locked=locked, file=lock_file)
    from gptailor.output.compile import (
        ComputeOptions,
        compile,
        prepared_as_locked,
        with_chosen_files,
    )
    from gptailor.reporting.fit_words import fit_in_words

    declared, compute = options.read_plan(plan, families, lets), ComputeOptions(**means)
    prepared = prepared_as_locked(
        declared, held_to, dict(models), dtype, compute.shard_size, dry_run=dry_run
    )
    options.say_faults(prepared.warnings)
    prepared = with_chosen_files(prepared, quantize, gguf, imatrix)
    if dry_run:
        planned = compile(
            prepared, output, quantize=quantize, gguf=gguf, imatrix=imatrix, force=force,
            locked=held_to, locking=lock, dry_run=True, compute=compute,
        )  # fmt: skip
        print_dry_run(prepared, planned)
        _say_update(planned, before=True)
        _say_notes(planned)
        _say_unmet(prepared, planned, lock=lock)
        return
    keep_memory()
    is_file = output.suffix.lower() == ".gguf"
    size = prepared.size * (1 if is_file else 1 + len(gguf) + len(prepared.plan.gguf))
    with bar_or_lines("writing", size, every_gap=True, ends=False) as on_event:
        written = compile(
            prepared, output, quantize=quantize, gguf=gguf, imatrix=imatrix, force=force,
            locked=held_to, locking=lock, compute=compute, on_event=on_event,
        )  # fmt: skip
    for fit in written.fits.values():
        options.say_sentences(fit_in_words(fit))
    _say_update(written)
    _say_notes(written)
    before = prepared.base_size.layers
    size_words = f"{written.size:,} bytes" if is_file else bytes_in_words(written.size)
    options.say_sentences(
        f"{written.folder}: {written.layers} layers (the base has {before}), "
        f"{millions(written.parameters)} parameters, {size_words}"
    )
    for file in written.gguf:
        options.say_sentences(f"{file.folder}: {file.size:,} bytes")
    _say_unmet(prepared, written, lock=written.lock is not None)
    if new_lock is not None and written.lock is not None:
        written.lock.write(new_lock)
        options.say_sentences(f"{new_lock}: {locked_in_words(written.lock)}")
    _say_speech(prepared, written.folder, compute, tried=tried)


def _refuse_flags(
    output: Path, quantize: str | None, gguf: Sequence[str], imatrix: Path | None
) -> None:
    """Raise a usage error for flags that don't suit the output."""
    if quantize is not None and output.suffix.lower() != ".gguf":
        raise click.UsageError("--quantize needs an output NAME.gguf")
    if gguf and output.suffix.lower() == ".gguf":
        raise click.UsageError("--gguf needs an output folder; for NAME.gguf use --quantize")
    if imatrix is not None and quantize is None and not gguf:
        raise click.UsageError("--imatrix needs --gguf or --quantize")


def _refuse_trial(*, dry_run: bool) -> None:
    """Raise a usage error for `--try` without an output, TailorError for missing packages."""
    if dry_run:
        raise click.UsageError("--try needs a written output, but --dry-run writes nothing")
    require("torch", "--try")
    OUTPUT_TRIALS.required("talk", "--try", "talk")


def _say_speech(
    prepared: "Prepared", output: Path, compute: "ComputeOptions", *, tried: bool
) -> None:
    """Print how a written output talks, or the command that shows it."""
    if tried:
        for line in OUTPUT_TRIALS["talk"](output, compute, options.width()):
            options.say_drawn(line)
    elif prepared.repaired:
        _say_answers(output, compute)
    else:
        _say_command(prepared, output)


def _say_answers(output: Path, compute: "ComputeOptions") -> None:
    """Print short answers of an output and its base, if both can be loaded."""
    from gptailor.evaluation.generate import short_answers_of
    from gptailor.evaluation.meter import Meter, Placement

    with suppress(TailorError):
        place = Placement.of(compute.device, None, compute.memory)
        options.say_answers(short_answers_of(output, Meter(place)))


def _say_command(prepared: "Prepared", output: Path) -> None:
    """Print the command that continues a prompt with an output of other layers than its base's."""
    if prepared.plan.stack is not None or len(prepared.resolved.kept) != prepared.resolved.count:
        options.say(
            f"read what it writes: gptailor generate {shlex.quote(str(output))} "
            '"The sky is blue because"'
        )


def _started_together() -> bool:
    """Return whether torchrun or another launcher started this command in several processes."""
    names = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return names <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1"


def _is_first() -> bool:
    """Return whether this process compiles; the others heal with it, and are done then."""
    require("torch", "healing in several processes")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is one message
    from gptailor.evaluation.fits.heal.process_group import join, leave

    click.get_current_context().call_on_close(leave)
    return join()


def _say_update(result: "CompileResult", *, before: bool = False) -> None:
    """Print the changes to the output that was there, a line for each part.

    The lines are about the future if they come `before` the writing.
    """
    if (update := result.update) is None:
        return
    nothing = "" if update.changes else "; nothing changed in the plan"
    for change, part in update.changes:
        options.say_drawn(f"  {change} {part}")
    computed, copied = bytes_in_words(update.computed), bytes_in_words(update.copied)
    if update.whole:
        would = "would be written" if before else "written"
        options.say_sentences(f"{result.folder.name}: {would} again{nothing}")
    elif before:
        options.say_sentences(f"would compute {computed} and copy {copied}{nothing}")
    else:
        options.say_sentences(f"computed: {computed}; copied: {copied}{nothing}")


def _say_notes(result: "CompileResult") -> None:
    """Print the notes on all outputs, each once, with the names of the files if it isn't on all."""
    files: dict[str, list[str]] = {}
    for each in (result, *result.gguf):
        for note in each.notes:
            files.setdefault(note, []).append(each.folder.name)
    for note, names in files.items():
        named = f"{listed(names)}: " if len(names) < len(result.gguf) else ""
        options.say(f"note: {named}{note}", err=True)


def _say_unmet(prepared: "Prepared", result: "CompileResult", *, lock: bool) -> None:
    """Print the expectations that a size of an output misses, if their bound is a number.

    A `lock` is in the GGUF files.
    """
    from gptailor.lang.words import bounded_words

    size = prepared.output_size
    sizes = {("parameters", ""): ("it", size.parameters), ("bytes", ""): ("it", size.bytes)}
    for file in (result, *result.gguf):
        sizes["bytes", file.file_type or "no type"] = (file.folder.name, file.size)
    for entry in prepared.plan.expects:
        kind = str(entry.arguments.get("gguf", "")).upper()
        if entry.bound.of is not None or (entry.name, kind) not in sizes:
            continue
        what, has = sizes[entry.name, kind]
        if excess(entry.sign, has, float(entry.bound.number or 0)) > 0:
            help_ = (
                "the file is smaller without --lock; 'gptailor lock' writes a lock next to the plan"
            )
            options.say(
                f"warning: 'expect {bounded_words(entry)}' isn't met: {what} has {has:,} "
                + (entry.name if not kind else "bytes")
                + f"\n  = help: {help_}" * bool(lock and kind),
                err=True,
            )


def lock_file(plan: str, path: Path | None) -> Path:
    """Return the path of a plan's lock: the given path, or the file beside the plan."""
    if path is not None:
        return path
    if plan == "-":
        raise click.UsageError("a plan from standard input has no lock; name its file")
    from gptailor.output.lock import SUFFIX

    return Path(plan + SUFFIX)


def lock_flags(
    plan: str, *, lock: bool, locked: bool, file: Path | None
) -> "tuple[Path | None, Lock | None]":
    """Return the path for a new lock, and the lock to comply with, from the flags of `compile`.

    Raises a usage error for flags that exclude each other.
    """
    if lock and locked:
        raise click.UsageError("give --lock to write a lock, or --locked to check one, not both")
    if file is not None and not (lock or locked):
        raise click.UsageError("--lock-file needs --lock or --locked")
    if not (lock or locked):
        return None, None
    from gptailor.output.lock import read_lock, refuse_other_file

    path = lock_file(plan, file)
    if not lock:
        return None, read_lock(path)
    refuse_other_file(path)
    return path, None


@click.command("lock", short_help="Record the digests of a plan's inputs and outputs.")
@options.PLAN_ARGUMENT
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="The file to write, or - to print the lock. Default: PLAN.lock.")  # fmt: skip
@options.MODEL
@options.SET
@options.FAMILY
@options.OUTPUT_DTYPE
def lock_command(
    plan: str,
    output: Path | None,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    dtype: str | None,
) -> None:
    """Write the lock of PLAN: digests of all files that it reads and of each tensor it makes.

    The command computes the tensors, and keeps only their digests. After that, 'gptailor compile
    PLAN -o DIR --locked' makes the same bytes from the same inputs, or refuses. An old lock is
    replaced.
    """
    from gptailor.output.compile import lock
    from gptailor.output.inputs import work
    from gptailor.output.lock import refuse_other_file
    from gptailor.prepare import ready

    path = lock_file(plan, output)
    if str(path) != "-":
        refuse_other_file(path)
    prepared = ready(options.read_plan(plan, families, lets), models=dict(models), dtype=dtype)
    options.say_faults(prepared.warnings)
    with bar_or_lines("locking", work(prepared), every_gap=True) as on_event:
        new_lock = lock(prepared, on_event=on_event)
    if str(path) == "-":
        options.say(new_lock.text(), newline=False)
        return
    new_lock.write(path)
    options.say_sentences(f"{path}: {locked_in_words(new_lock)}")


def locked_in_words(lock: "Lock") -> str:
    """Return the content of a lock in words: `12 files of 2 models, 57 tensors`."""
    files = sum(len(model.files) for model in lock.models.values())
    models = "1 model" if len(lock.models) == 1 else f"{len(lock.models)} models"
    return f"{files} files of {models}, {len(lock.tensors)} tensors"


@click.command("verify", short_help="Compare a compiled folder with its plan and its lock.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@options.MODEL
@options.FAMILY
@click.option("--tensors-only", is_flag=True,
              help="Compare the tensors with the lock, without the models.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="text for people, json for programs.")  # fmt: skip
def verify_command(
    folder: Path,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
    tensors_only: bool,
    form: str,
) -> None:
    """Compare the folder DIR, or a GGUF file, with its plan and its lock.

    The command compares the tensors, the other files, and the models' files with the lock. Then it
    computes the plan's output again, compares it, and discards it. Without a lock, it makes only
    the second comparison.

    The exit code is 0 if everything was compared and nothing differs. It is 1 if something differs.
    It is 3 if nothing is known to differ, but something could not be compared, for example because
    a model is missing.
    """
    from gptailor.output.verify import Verification

    verification = Verification(
        folder, models=dict(models), families=families, tensors_only=tensors_only
    )
    with bar_or_lines("verifying", verification.work, every_gap=True) as on_event:
        result = verification.run(on_event)
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
            options.say_sentences(f"differs: {difference.message}")
        if len(result.differences) > options.MOST_SHOWN:
            options.say(f"… and {len(result.differences) - options.MOST_SHOWN} more differences")
        for reason in result.unverified:
            options.say_sentences(f"can't be verified: {reason}")
        count = len(result.differences)
        ends = {
            "verified": "verified",
            "differs": "1 difference" if count == 1 else f"{count} differences",
            "unverified": "no difference found, but not all could be verified",
        }
        compared = f"; compared: {', '.join(result.compared)}" if result.compared else ""
        options.say_sentences(f"{result.folder}: {ends[result.result]}{compared}")
    sys.exit({"verified": 0, "differs": 1, "unverified": 3}[result.result])


def print_dry_run(prepared: "Prepared", planned: "CompileResult") -> None:
    """Print the output that a dry run planned: sizes, each position, all other parts, and costs."""
    from gptailor.reporting.layer_view import Row, layer_rows, short_rows
    from gptailor.reporting.show import other_rows, table

    base, size = prepared.base_size, prepared.output_size
    options.say_sentences(
        f"would write {planned.folder}: {size.layers} layers (the base has {base.layers})"
    )
    files = "1 file" if len(planned.shards) == 1 else f"{len(planned.shards)} files"
    rows = [
        Row("parameters", f"{size.parameters:,} (the base has {base.parameters:,})"),
        Row("weights", f"{planned.size:,} bytes in {files}"),
        *(Row("GGUF", f"{file.size:,} bytes in {file.folder.name}") for file in planned.gguf),
    ]
    for name, plan in [*prepared.inner_plans.items(), ("", prepared)]:
        rows += [Row(name, f"{len(plan.resolved.kept)} layers of its own plan")] if name else []
        rows += [*short_rows(layer_rows(plan.resolved.slots)), *other_rows(plan.resolved)]
    rows += [
        Row(f"{cost.what} {cost.inner}".rstrip(),
            f"about {duration(cost.seconds)} and {bytes_in_words(cost.bytes)} of memory for "
            f"{cost.tokens:,} tokens, estimated; a kept result takes no time")
        for cost in planned.estimates
    ]  # fmt: skip
    for line in table(rows, options.width()):
        options.say_drawn(line)
