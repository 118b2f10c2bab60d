"""The command line: arguments to calls, results to exit codes. `command` has what they share.

Exit codes: 0 done, 1 the plan has faults, 2 usage, 3 the world failed (file, disk, memory).
Whatever needs time to import is imported by the command that needs it.
"""

import difflib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

import gptailor
from gptailor.cli.eval import eval_command
from gptailor.cli.lock import (
    asked,
    lock_command,
    locked_in_words,
    verify_command,
)
from gptailor.cli.options import MODEL, PLAN_ARGUMENT, PLANS, ByteSize
from gptailor.cli.plans import (
    faults_of,
    known_layer_count,
    plan_text,
    read_plan,
    rewrite,
    shown_name,
    write_plan,
)
from gptailor.cli.search import search_command
from gptailor.cli.terminal import (
    ReaderLeft,
    keep_memory,
    millions,
    print_dry_run,
    progress,
    report,
    say,
    size_in_words,
    width,
)
from gptailor.plan.faults import Fault, PlanError, TailorError, errors, to_github, to_json


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(gptailor.__version__, "--version", "-V", prog_name="gptailor")
def cli() -> None:
    """Cut, stitch and merge language models by a plan.

    A plan is a text file that says which layers of which models make a new one. Compiling it
    writes a Hugging Face model folder.

    \b
      tailor 1
      model base = "./models/base"
      model math = "./models/math"
      L0..L9 from math
      merge(L12 base, L12 math, 0.5)
      drop L20..L25
    """


@cli.command("compile", short_help="Write the model that a plan declares.")
@PLAN_ARGUMENT
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to write. It must not exist, unless --force is given.")  # fmt: skip
@MODEL
@click.option("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16, over the plan's.")
@click.option("--shard-size", type=ByteSize(), default="5GB", show_default=True,
              help="The most bytes of one weights file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the folder, once the new one is whole.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--lock", is_flag=True, help="Make the plan's lock, beside it and in the folder.")
@click.option("--locked", is_flag=True,
              help="Refuse whatever differs from the plan's lock.")  # fmt: skip
@click.option("--lock-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the lock is, or goes. Without it: PLAN.lock.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="Tensors that are written at once. Without it: as many as cores.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE",
              help="What merges large tensors and fits bridges: cpu, cuda or cuda:1.")  # fmt: skip
@click.option("--memory", type=ByteSize(), metavar="SIZE",
              help="The most bytes of weights on the device while bridges are fitted.")  # fmt: skip
def compile_(  # noqa: PLR0913, PLR0917 (one argument a flag)
    plan: str,
    output: Path,
    models: tuple[tuple[str, Path], ...],
    dtype: str | None,
    shard_size: int,
    force: bool,
    dry_run: bool,
    lock: bool,
    locked: bool,
    lock_file: Path | None,
    threads: int | None,
    device: str,
    memory: int | None,
) -> None:
    """Write the model that PLAN declares as a Hugging Face folder.

    The folder appears whole or not at all. It holds the weights, config.json, the tokenizer,
    a model card and the plan. PLAN may be - for standard input.

    With --lock the digests of all inputs and outputs are written down; with --locked the same
    inputs are taken and the same bytes made, or the compilation is refused. See 'gptailor lock'.
    """
    new_lock, held_to = asked(plan, lock=lock, locked=locked, given=lock_file, dry_run=dry_run)
    from gptailor.build.compile import compile  # noqa: PLC0415
    from gptailor.build.record import at_locked_commits, refuse_early  # noqa: PLC0415
    from gptailor.prepare import prepare, ready  # noqa: PLC0415

    wanted = at_locked_commits(read_plan(plan), held_to)
    make = prepare if dry_run else ready
    prepared = make(wanted, models=dict(models), dtype=dtype, shard_size=shard_size)
    report(prepared.warnings)
    if dry_run:
        refuse_early(prepared, held_to)
        print_dry_run(prepared, output)
        return
    keep_memory()
    with progress(prepared.size) as advance:
        written = compile(
            prepared,
            output,
            force=force,
            progress=advance,
            locked=held_to,
            locking=lock,
            threads=threads,
            device=device,
            memory=memory,
            bridging=lambda gap: say(f"bridging {gap.name}", err=True),
        )
    for after, bridge in written.bridges.items():
        share = f"{bridge.explained:.1%} of what was missing there"
        say(f"bridge after {after}: fitted on {bridge.tokens:,} tokens, it makes {share}")
    before = prepared.counts["layers"][0]
    say(
        f"{written.folder}: {written.layers} layers (the base has {before}), "
        f"{millions(written.parameters)} parameters, {size_in_words(written.size)}"
    )
    if new_lock is not None and written.lock is not None:
        written.lock.write(new_lock)
        say(f"{new_lock}: {locked_in_words(written.lock)}")


cli.add_command(lock_command)
cli.add_command(verify_command)
cli.add_command(eval_command)
cli.add_command(search_command)


@cli.command("check", short_help="Check plans, alone and against their models.")
@PLANS
@MODEL
@click.option("--alone", is_flag=True, help="Check the plans by themselves, without their models.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="For people, for programs, or as GitHub annotations.",
)
def check_(
    plans: tuple[str, ...], models: tuple[tuple[str, Path], ...], alone: bool, form: str
) -> None:
    """Check plans, by themselves and against the headers of their models.

    All faults are reported, each once. Ends with 1 if there are any; warnings are none.
    """
    faults: list[Fault] = []
    for name in plans:
        found = faults_of(name, dict(models), alone=alone)
        faults += found
        if form == "text" and not errors(found):
            report(found)
            say(f"{shown_name(name)}: no faults")
        elif form == "text":
            report(found)
    if form == "json":
        say(to_json(faults))
    elif form == "github":
        for fault in faults:
            say(to_github(fault))
    sys.exit(1 if errors(faults) else 0)


@cli.command(short_help="Write plans in their canonical form.")
@PLANS
@click.option(
    "--check", "checking", is_flag=True, help="Write nothing; end with 1 if a plan differs."
)
@click.option("--diff", "diffing", is_flag=True, help="Write nothing; show what would change.")
def fmt(plans: tuple[str, ...], checking: bool, diffing: bool) -> None:
    """Write plans in their canonical form, comments kept.

    A plan from standard input (-) is written to standard output.
    """
    from gptailor.lang.format import format_text  # noqa: PLC0415
    from gptailor.plan.faults import Source  # noqa: PLC0415

    changed = 0
    faults: list[Fault] = []
    for name in plans:
        text = plan_text(name)
        made, found = format_text(Source(shown_name(name), text.removeprefix("\ufeff")))
        faults += found
        if made is None:
            continue
        changed += made != text
        if diffing:
            before, after = (t.splitlines(keepends=True) for t in (text, made))
            say("".join(difflib.unified_diff(before, after, name, name)), newline=False)
        elif checking and made != text:
            say(f"{shown_name(name)}: not in canonical form")
        elif not checking:
            rewrite(name, made, text)
    report(faults)
    sys.exit(1 if errors(faults) or (changed and (checking or diffing)) else 0)


@cli.command("show", short_help="Show a plan's layers as a map.")
@PLAN_ARGUMENT
@MODEL
@click.option("--program", is_flag=True, help="Print how each tensor of the output is made.")
def show_(plan: str, models: tuple[tuple[str, Path], ...], program: bool) -> None:
    """Show the layers of PLAN as a map: one cell a layer, a colour a model.

    Positions are the base's layer numbers, those of a stack the output's.
    """
    from gptailor.report import plan_map as screen  # noqa: PLC0415

    wanted = read_plan(plan)
    if program:
        from gptailor.prepare import prepare  # noqa: PLC0415
        from gptailor.program.program import program_lines  # noqa: PLC0415

        prepared = prepare(wanted, models=dict(models))
        report(prepared.warnings)
        say("\n".join(program_lines(prepared.compiled.program)))
        return
    count, known = known_layer_count(wanted, dict(models))
    for line in screen.plan_map(shown_name(plan), wanted, count, known=known, width=width()):
        say(line)


@cli.command(short_help="Say what differs between two plans.")
@click.argument("first", metavar="A", type=click.Path(allow_dash=True))
@click.argument("second", metavar="B", type=click.Path(allow_dash=True))
def diff(first: str, second: str) -> None:
    """Say in words what differs between two plans, layer by layer.

    Ends with 0 if they say the same, with 1 if not.
    """
    from gptailor.report.difference import differences  # noqa: PLC0415

    a, b = read_plan(first), read_plan(second)
    count = max(known_layer_count(plan, {})[0] for plan in (a, b))
    found = differences(a, b, count)
    say("\n".join(found) if found else "the plans say the same")
    sys.exit(1 if found else 0)


@cli.command()
def schema() -> None:
    """Print the JSON schema of a plan."""
    from gptailor.plan.plan import Plan  # noqa: PLC0415

    say(json.dumps(Plan.model_json_schema(), indent=2))


@cli.command("json", short_help="Print a plan as JSON.")
@PLAN_ARGUMENT
def json_(plan: str) -> None:
    """Print PLAN as JSON, which all commands read too."""
    say(read_plan(plan).model_dump_json(indent=2, exclude_defaults=True))


@cli.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes gptailor's words in SHELL.

    For bash: gptailor completion bash > ~/.local/share/bash-completion/completions/gptailor
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    made = get_completion_class(shell)
    assert made is not None
    say(made(cli, {}, "gptailor", "_GPTAILOR_COMPLETE").source())


@cli.command("import", short_help="Make a plan of another tool's file.")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--from",
    "tool",
    type=click.Choice(["mergekit", "gptailor-paper"]),
    help="Whose file it is. Without it, JSON is the paper's and all else mergekit's.",
)
@click.option("--layers", type=click.IntRange(min=1), help="How many layers the base has.")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="SOURCE",
    help="A candidate of the paper's file, which doesn't name them; in order.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PLAN",
              help="The plan to write; standard output without it.")  # fmt: skip
def import_(
    file: str,
    tool: str | None,
    layers: int | None,
    candidates: tuple[str, ...],
    output: Path | None,
) -> None:
    """Make a plan of a mergekit configuration or of the GPTailor paper's search results.

    What differs, or has no equivalent, is said on standard error; what can't be said at all is
    refused. Nothing is dropped in silence.
    """
    from gptailor.cli.convert import imported  # noqa: PLC0415

    plan, notes = imported(file, tool, layers, candidates, output)
    for note in notes:
        say(f"note: {note}", err=True)
    write_plan(plan, output)


@cli.command(short_help="Say a plan in another tool's words.")
@PLAN_ARGUMENT
@MODEL
@click.option("--to", "tool", type=click.Choice(["mergekit"]), default="mergekit",
              show_default=True, help="Whose file to write.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), help="How many layers the base has.")
def export(plan: str, models: tuple[tuple[str, Path], ...], tool: str, layers: int | None) -> None:
    """Print the mergekit configuration that says what PLAN says, if mergekit can say it."""
    from gptailor.convert.mergekit.exporter import to_mergekit  # noqa: PLC0415

    del tool  # there is one
    wanted = read_plan(plan)
    if layers is None:
        count, known = known_layer_count(wanted, dict(models))
        layers = count if known else None
    say(to_mergekit(wanted, layers), newline=False)


# -------------------------------------------------------------------------------------- exit codes


def main() -> None:
    """Run the command line, and end with its exit code; SIGTERM ends it as Ctrl-C does, by 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911 (one for each way to end)
    """Run the command line with these arguments; the exit code."""
    try:
        cli.main(list(arguments), prog_name="gptailor", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return _fail("interrupted", 130)
    except click.ClickException as error:
        error.show()
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except ReaderLeft:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except PlanError as error:
        report(error.faults)
        return 1
    except (TailorError, OSError, MemoryError, KeyboardInterrupt) as error:
        return _world(error)
    return 0


def _world(error: BaseException) -> int:
    """The world failed: say it in one message."""
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted", 130)
    if isinstance(error, MemoryError):
        return _fail("error: there is not enough memory", 3)
    if isinstance(error, OSError):
        place = f"'{error.filename}': " if error.filename else ""
        return _fail(f"error: {place}{error.strerror or error}", 3)
    text = str(error)
    code = error.exit_code if isinstance(error, TailorError) else 3
    return _fail(text if text.startswith("error") else f"error: {text}", code)


def _fail(message: str, code: int) -> int:
    say(message, err=True)
    return code
