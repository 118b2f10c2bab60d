"""The command line: arguments to calls, results to exit codes. The only module that prints.

Exit codes: 0 done, 1 the plan has faults, 2 usage, 3 the world failed (file, disk, memory).
Whatever needs time to import is imported by the command that needs it.
"""

import difflib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gptailor
from gptailor.diagnostics import Fault, PlanError, TailorError, errors, show, to_github, to_json

if TYPE_CHECKING:
    from gptailor.api import Prepared
    from gptailor.plan import Plan

MOST_SHOWN = 100
"""Faults that are shown to people; machines get all."""


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


class _Rebinding(click.ParamType[tuple[str, Path]]):
    """`NAME=PATH`."""

    name = "NAME=PATH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        name, equal, path = str(value).partition("=")
        if not (equal and name and path):
            self.fail(f"'{value}' is not NAME=PATH", param, ctx)
        return name, Path(os.path.expanduser(path))  # noqa: PTH111 (raises without a home)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


class _Size(click.ParamType[int]):
    """A number of bytes: `5GB`, `500MB`, `2GiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value), re.IGNORECASE)
        unit = _UNITS.get(found[2].upper()) if found else None
        size = int(float(found[1]) * unit) if found and unit else 0
        if size <= 0:
            self.fail(f"'{value}' is no size such as 5GB or 500MiB", param, ctx)
        return size


_PLAN = click.argument("plan", metavar="PLAN", type=click.Path(allow_dash=True))
_PLANS = click.argument(
    "plans", metavar="PLAN...", nargs=-1, required=True, type=click.Path(allow_dash=True)
)
_MODEL = click.option(
    "models",
    "--model",
    type=_Rebinding(),
    multiple=True,
    help="Take another folder for a model of the plan. May be given several times.",
)

# --------------------------------------------------------------------------------------- commands


@cli.command("compile", short_help="Write the model that a plan declares.")
@_PLAN
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to write. It must not exist, unless --force is given.")  # fmt: skip
@_MODEL
@click.option("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16, over the plan's.")
@click.option("--shard-size", type=_Size(), default="5GB", show_default=True,
              help="The most bytes of one weights file.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the folder, once the new one is whole.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def compile_(  # noqa: PLR0913, PLR0917 (one argument a flag)
    plan: str,
    output: Path,
    models: tuple[tuple[str, Path], ...],
    dtype: str | None,
    shard_size: int,
    force: bool,
    dry_run: bool,
) -> None:
    """Write the model that PLAN declares as a Hugging Face folder.

    The folder appears whole or not at all. It holds the weights, config.json, the tokenizer,
    a model card and the plan. PLAN may be - for standard input.
    """
    from gptailor import api  # noqa: PLC0415

    prepare = api.prepare if dry_run else api.ready
    prepared = prepare(_read(plan), models=dict(models), dtype=dtype, shard_size=shard_size)
    _report(prepared.warnings)
    if dry_run:
        _print_dry_run(prepared, output)
        return
    with _progress(prepared.size) as advance:
        written = api.write(prepared, output, force=force, progress=advance)
    before = prepared.counts["layers"][0]
    _say(
        f"{written.folder}: {written.layers} layers (the base has {before}), "
        f"{_millions(written.parameters)} parameters, {_bytes(written.size)}"
    )


@cli.command(short_help="Check plans, alone and against their models.")
@_PLANS
@_MODEL
@click.option("--alone", is_flag=True, help="Check the plans by themselves, without their models.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="For people, for programs, or as GitHub annotations.",
)
def check(
    plans: tuple[str, ...], models: tuple[tuple[str, Path], ...], alone: bool, form: str
) -> None:
    """Check plans, by themselves and against the headers of their models.

    All faults are reported, each once. Ends with 1 if there are any; warnings are none.
    """
    faults: list[Fault] = []
    for name in plans:
        found = _faults_of(name, dict(models), alone=alone)
        faults += found
        if form == "text" and not errors(found):
            _report(found)
            _say(f"{_shown(name)}: no faults")
        elif form == "text":
            _report(found)
    if form == "json":
        _say(to_json(faults))
    elif form == "github":
        for fault in faults:
            _say(to_github(fault))
    sys.exit(1 if errors(faults) else 0)


@cli.command(short_help="Write plans in their canonical form.")
@_PLANS
@click.option(
    "--check", "checking", is_flag=True, help="Write nothing; end with 1 if a plan differs."
)
@click.option("--diff", "diffing", is_flag=True, help="Write nothing; show what would change.")
def fmt(plans: tuple[str, ...], checking: bool, diffing: bool) -> None:
    """Write plans in their canonical form, comments kept.

    A plan from standard input (-) is written to standard output.
    """
    from gptailor.diagnostics import Source  # noqa: PLC0415
    from gptailor.lang.format import format_text  # noqa: PLC0415

    changed = 0
    faults: list[Fault] = []
    for name in plans:
        text = _text(name)
        made, found = format_text(Source(_shown(name), text.removeprefix("\ufeff")))
        faults += found
        if made is None:
            continue
        changed += made != text
        if diffing:
            before, after = (t.splitlines(keepends=True) for t in (text, made))
            _say("".join(difflib.unified_diff(before, after, name, name)), newline=False)
        elif checking and made != text:
            _say(f"{_shown(name)}: not in canonical form")
        elif not checking:
            _rewrite(name, made, text)
    _report(faults)
    sys.exit(1 if errors(faults) or (changed and (checking or diffing)) else 0)


@cli.command("show", short_help="Show a plan's layers as a map.")
@_PLAN
@_MODEL
@click.option("--program", is_flag=True, help="Print how each tensor of the output is made.")
def show_(plan: str, models: tuple[tuple[str, Path], ...], program: bool) -> None:
    """Show the layers of PLAN as a map: one cell a layer, a colour a model.

    Positions are the base's layer numbers, those of a stack the output's.
    """
    from gptailor.report import screen  # noqa: PLC0415

    read = _read(plan)
    if program:
        from gptailor import api  # noqa: PLC0415
        from gptailor.program.program import lines  # noqa: PLC0415

        prepared = api.prepare(read, models=dict(models))
        _report(prepared.warnings)
        _say("\n".join(lines(prepared.compiled.program)))
        return
    count, known = _layer_count(read, dict(models))
    for line in screen.plan_map(_shown(plan), read, count, known=known, width=_width()):
        _say(line)


@cli.command(short_help="Say what differs between two plans.")
@click.argument("first", metavar="A", type=click.Path(allow_dash=True))
@click.argument("second", metavar="B", type=click.Path(allow_dash=True))
def diff(first: str, second: str) -> None:
    """Say in words what differs between two plans, layer by layer.

    Ends with 0 if they say the same, with 1 if not.
    """
    from gptailor.report.difference import differences  # noqa: PLC0415

    a, b = _read(first), _read(second)
    count = max(_layer_count(plan, {})[0] for plan in (a, b))
    found = differences(a, b, count)
    _say("\n".join(found) if found else "the plans say the same")
    sys.exit(1 if found else 0)


@cli.command()
def schema() -> None:
    """Print the JSON schema of a plan."""
    from gptailor.plan import Plan  # noqa: PLC0415

    _say(json.dumps(Plan.model_json_schema(), indent=2))


@cli.command("json", short_help="Print a plan as JSON.")
@_PLAN
def json_(plan: str) -> None:
    """Print PLAN as JSON, which all commands read too."""
    _say(_read(plan).model_dump_json(indent=2, exclude_defaults=True))


@cli.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes gptailor's words in SHELL.

    For bash: gptailor completion bash > ~/.local/share/bash-completion/completions/gptailor
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    made = get_completion_class(shell)
    assert made is not None
    _say(made(cli, {}, "gptailor", "_GPTAILOR_COMPLETE").source())


# ------------------------------------------------------------------------------------ reading plans


def _shown(name: str) -> str:
    return "<stdin>" if name == "-" else name


def _bytes_of(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    return Path(name).read_bytes()


def _text(name: str) -> str:
    raw = _bytes_of(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        from gptailor.lang.reading import read_bytes  # noqa: PLC0415

        raise PlanError(read_bytes(raw, _shown(name), Path())[1]) from None


def _parsed(name: str) -> "tuple[Plan | None, list[Fault]]":
    from gptailor.lang.reading import read_bytes  # noqa: PLC0415

    return read_bytes(_bytes_of(name), _shown(name), Path() if name == "-" else Path(name).parent)


def _read(name: str) -> "Plan":
    plan, faults = _parsed(name)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


def _faults_of(name: str, models: dict[str, Path], *, alone: bool) -> list[Fault]:
    plan, faults = _parsed(name)
    if plan is None or errors(faults) or alone:
        return faults
    from gptailor import api  # noqa: PLC0415

    return api.check(plan, models)


def _layer_count(plan: "Plan", models: dict[str, Path]) -> tuple[int, bool]:
    """The base's number of layers, and whether it is known; else as many as the plan names."""
    from gptailor.check.opening import open_models, rebind  # noqa: PLC0415
    from gptailor.plan import Plan  # noqa: PLC0415

    plan, faults = rebind(plan, models)
    if faults:
        raise PlanError(faults)
    base = {name: model for name, model in plan.models.items() if name == "base"}
    alone = Plan(models=base)
    opened, _ = open_models(alone.read_from(plan.origin) if plan.origin else alone)
    if "base" in opened:
        return opened["base"].layout.count, True
    named = [layer.position for layer in plan.layers]
    named += [drop.position for drop in plan.drops]
    named += [scale.position for scale in plan.scales]
    named += [position for choice in plan.drop_any for position in choice.among]
    return max(named, default=-1) + 1, False


def _rewrite(name: str, made: str, text: str) -> None:
    """Write the text in place, whole or not at all; standard input goes to standard output."""
    if name == "-":
        _say(made, newline=False)
        return
    if made == text:
        return
    path = Path(name).resolve()
    handle, side = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(made)
        Path(side).chmod(path.stat().st_mode & 0o7777)
        Path(side).replace(path)
    except BaseException:
        Path(side).unlink(missing_ok=True)
        raise
    _say(f"{name}: rewritten")


# ----------------------------------------------------------------------------------------- showing


def _report(faults: Iterable[Fault]) -> None:
    """Faults for people, on standard error."""
    faults = list(faults)
    for fault in faults[:MOST_SHOWN]:
        _say(_coloured(fault) + "\n", err=True)
    if len(faults) > MOST_SHOWN:
        _say(f"… and {len(faults) - MOST_SHOWN} more faults", err=True)


def _coloured(fault: Fault) -> str:
    first, _, rest = show(fault).partition("\n")
    label, _, message = first.partition(": ")
    colour = "red" if fault.severity == "error" else "yellow"
    head = click.style(label, fg=colour, bold=True) + click.style(f": {message}", bold=True)
    return head + (f"\n{rest}" if rest else "")


def _print_dry_run(prepared: "Prepared", output: Path) -> None:
    from gptailor.outline import slots  # noqa: PLC0415
    from gptailor.report import describe, screen  # noqa: PLC0415

    (layers_before, layers), (before, after) = prepared.counts.values()
    _say(f"would write {output}: {layers} layers (the base has {layers_before})")
    shards = len(prepared.shards)
    files = "1 file" if shards == 1 else f"{shards} files"
    rows = [
        describe.Row("parameters", f"{after:,} (the base has {before:,})"),
        describe.Row("weights", f"{prepared.size:,} bytes in {files}"),
        *describe.rows(slots(prepared.plan, prepared.models["base"].layout.count)),
    ]
    for line in screen.table(rows, _width()):
        _say(line)


def _width() -> int:
    """The terminal's columns; 80 where there is none."""
    return shutil.get_terminal_size().columns


def _say(text: str, *, newline: bool = True, err: bool = False) -> None:
    """Print; colours are for terminals, and for people who don't mind them."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    try:
        click.echo(text, nl=newline, err=err, color=False if plain else None)
    except BrokenPipeError:
        raise _ReaderLeft from None


class _ReaderLeft(Exception):  # noqa: N818 (no error: `gptailor schema | head`)
    """Nobody reads what is printed any more. Click would make it exit code 1."""


def _progress(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    from gptailor.report.progress import bar  # noqa: PLC0415

    return bar(total)


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


def _bytes(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


# -------------------------------------------------------------------------------------- exit codes


def main() -> None:
    """Run the command line, and end with its exit code."""
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
    except _ReaderLeft:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except PlanError as error:
        _report(error.faults)
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
    return _fail(text if text.startswith("error") else f"error: {text}", 3)


def _fail(message: str, code: int) -> int:
    _say(message, err=True)
    return code
