"""The commands that read plans and write texts: `check`, `fmt`, `show`, `diff`, `import`, …"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

import click

from gptailor.cli import options
from gptailor.plan.doors import Door
from gptailor.plan.faults import (
    CodedError,
    Fault,
    Source,
    errors,
    listed,
    nearest,
    nearest_path,
    to_github,
    to_json,
)

if TYPE_CHECKING:
    from gptailor.lang.importers import Importer
    from gptailor.plan.plan import Plan

FIXES: Door[Callable[[str], None]] = Door("fixes", "fix", FunctionType, {})
"""`text`, the function that corrects a plan's file for `check --fix`."""


@click.command("check", short_help="Check plans by themselves and against their models.")
@options.PLANS
@options.MODEL
@options.SET
@options.FAMILY
@click.option("--alone", is_flag=True, help="Check the plans by themselves, without their models.")
@click.option("--fix", is_flag=True,
              help="First correct the faults that have only one remedy, in the files.")  # fmt: skip
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="text for people, json for programs, github for GitHub annotations.",
)
def check_command(  # noqa: PLR0913 (one argument a flag)
    plans: tuple[str, ...],
    *,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    alone: bool,
    fix: bool,
    form: str,
) -> None:
    """Check plans, by themselves and against the headers of their models.

    The command reports all faults, each once. For an open plan it also prints the number of open
    choices and the budget of the search block. 'gptailor search --dry-run' estimates the time. The
    exit code is 1 if there are any faults. A warning is not a fault.
    """
    for name in plans if fix else ():
        FIXES.required("text", "--fix", "lsp")(name)
    faults: list[Fault] = []
    for name in plans:
        plan, plan_faults = faults_of(name, dict(models), families, lets, alone=alone)
        faults += plan_faults
        if form == "text":
            options.say_faults(plan_faults)
        if form == "text" and plan is not None and not errors(plan_faults):
            from gptailor.reporting.known_layers import left_open

            still = left_open(plan, dict(models), alone=alone)
            still += _search_words(plan) if still else ""
            options.say(f"{options.shown_name(name)}: no faults" + (f"; {still}" if still else ""))
    if form == "json":
        options.say(to_json(faults))
    elif form == "github":
        for fault in faults:
            options.say(to_github(fault))
    sys.exit(1 if errors(faults) else 0)


def _search_words(plan: "Plan") -> str:
    """Return the trials of a plan's search block, and how they score plans.

    Either may be missing. `, 9 trials: cuts without repair` is an example.
    """
    from gptailor.searching.space.roles import search_stages

    asked = None if plan.search is None else plan.search.trials
    trials = "" if asked is None else f", {asked} trial{'s' * (asked != 1)}"
    words = f"{trials}: {stages}" if (stages := search_stages(plan)) else trials
    return words + _few_trials(plan)


def _few_trials(plan: "Plan") -> str:
    """Return a warning if a plan's search block leaves the strategy no trial, else ''."""
    from gptailor.searching.run.budget import Budget
    from gptailor.searching.settings import Flags, settings
    from gptailor.searching.space.roles import separates

    if plan.search is None or not plan.search.objectives:
        return ""
    budget = replace(Budget.of(settings(plan, Flags()), 1), separate=separates(plan))
    return f"\nnote: {budget.shortage}" if budget.shortage else ""


@click.command("fmt", short_help="Write plans in their canonical form.")
@options.PLANS
@click.option(
    "--check",
    "checking",
    is_flag=True,
    help="Write nothing. The exit code is 1 if a plan differs.",
)
@click.option("--diff", "diffing", is_flag=True, help="Write nothing. Show the changes.")
def fmt_command(plans: tuple[str, ...], checking: bool, diffing: bool) -> None:
    """Write plans in their canonical form, with their comments.

    A plan from standard input (-) is written to standard output.
    """
    import difflib

    from gptailor.lang.format import format_text

    changed = 0
    faults: list[Fault] = []
    for name in plans:
        text = options.plan_text(name)
        formatted, text_faults = format_text(
            Source(options.shown_name(name), text.removeprefix("\ufeff"))
        )
        faults += text_faults
        if formatted is None:
            continue
        changed += formatted != text
        if diffing:
            before, after = (t.splitlines(keepends=True) for t in (text, formatted))
            options.say("".join(difflib.unified_diff(before, after, name, name)), newline=False)
        elif checking and formatted != text:
            options.say(f"{options.shown_name(name)}: not in canonical form")
        elif not checking:
            rewrite(name, formatted, text)
    options.say_faults(faults)
    sys.exit(1 if errors(faults) or (changed and (checking or diffing)) else 0)


@click.command("show", short_help="Show a plan's layers as a map.")
@options.PLAN_ARGUMENT
@options.MODEL
@options.SET
@options.FAMILY
@click.option(
    "--program", is_flag=True, help="Print the operations that make each tensor of the output."
)
@click.option(
    "--layers", is_flag=True, help="Print a row for each layer of a curve, with all digits."
)
def show_command(
    plan: str,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    program: bool,
    layers: bool,
) -> None:
    """Show the layers of PLAN as a map, with a cell for each layer and a colour for each model.

    PLAN may also be any model's folder or GGUF file. The map of a compiled model shows its plan.
    Below the map of a GGUF file are its size and the types of its tensors.

    Positions are the base's layer numbers. In a stack they are the output's layer numbers. The size
    of the output is below the map, if the plan has no open choices and its models are available.
    """
    from gptailor.reporting.show import shown_lines

    declared = read_plan_or_folder(plan, families, lets)
    if program:
        from gptailor.prepare import prepare
        from gptailor.program.program import program_lines

        prepared = prepare(declared, models=dict(models))
        options.say_faults(prepared.warnings)
        options.say("\n".join(program_lines(prepared.compiled.program)))
        return
    shown = shown_lines(
        options.shown_name(plan), declared, dict(models), width=options.width(), every_layer=layers
    )
    for line in shown:
        options.say_drawn(line)


@click.command("schema")
@click.option("--family", is_flag=True, help="The schema of a family's file.")
def schema_command(family: bool) -> None:
    """Print the JSON schema of a plan, or of a family's file.

    Editors use it to check and complete such files.
    """
    import gptailor
    from gptailor.plan.plan import SCHEMA_ID, Closed, Plan, json_schema

    what = "A plan of gptailor's as JSON, which `gptailor json` prints."
    form: type[Closed] = Plan
    name = SCHEMA_ID
    if family:
        from gptailor.checkpoint.families.family import Family

        what = "A family of models, which `gptailor family` writes and `--family` reads."
        form, name = Family, "urn:gptailor:family:1"
    options.say(json.dumps(json_schema(form, name, what, gptailor.__version__), indent=2))


@click.command("json", short_help="Print a plan as JSON.")
@options.PLAN_ARGUMENT
@options.SET
def json_command(plan: str, lets: options.Lets) -> None:
    """Print PLAN as JSON. All commands can read this JSON too."""
    options.say(options.read_plan(plan, (), lets).model_dump_json(indent=2, exclude_defaults=True))


@click.command("import", short_help="Convert another tool's file to a plan.")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("tool", "--from", default="mergekit", show_default=True, metavar="TOOL",
              help="The tool that wrote the file. Packages add further tools; the other options "
              "are for mergekit's files.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), metavar="N",
              help="The number of layers of the base.")  # fmt: skip
@click.option("--base", type=click.Path(path_type=Path), metavar="FOLDER",
              help="A folder with the base's config.json. It determines the layers, "
              "their tensors' names, and whether the head is tied. Default: the folder that "
              "FILE names, or the Hub.")  # fmt: skip
@click.option("models", "--model", type=options.REBINDING, multiple=True,
              help="The folder of a model, by the model's name in the plan or in the file. The "
              "command reads facts about the model there. May be given several times.")  # fmt: skip
@click.option("--strict", is_flag=True,
              help="Refuse keys and filters that mergekit ignores silently, and ranges that may "
              "exceed a model's layers.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PLAN",
              help="The plan to write. Default: standard output.")  # fmt: skip
@options.OUTPUT_FORCE
def import_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    file: str,
    tool: str,
    layers: int | None,
    base: Path | None,
    models: tuple[tuple[str, Path], ...],
    strict: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Convert a mergekit configuration, or a file that an installed package reads, to a plan.

    The command reports each part that differs or has no equivalent on standard error. It refuses
    parts that a plan can't express, and drops nothing silently. It assumes nothing about missing
    models.
    """
    from gptailor.checkpoint.write.output_file import refuse_output

    if output is not None:
        refuse_output(output, force=force)
    if file != "-" and not Path(file).is_file():
        got, help_ = "is missing", nearest_path(Path(file)) or "relative paths start at this folder"
        if Path(file).is_dir():
            got, help_ = "is a folder", "name the YAML file"
        raise CodedError("C201", f"expected a file of {tool}, '{file}' {got}", help_)
    text, name = options.plan_text(file), options.shown_name(file)
    folder = Path.cwd() if output is None else output.parent
    folders = dict(models) | ({} if base is None else {"base": base})
    given = {"layers": layers, "folder": folder, "models": folders, "strict": strict}
    importer = _importer(tool)
    plan, notes = importer.read(text, name, **(given if importer.options else {}))
    for note in notes:
        options.say(f"note: {note}", err=True)
    write_plan(plan, output)


def _importer(tool: str) -> "Importer":
    from gptailor.lang.importers import IMPORTERS

    if (importer := IMPORTERS.get(tool)) is not None:
        return importer
    tools = IMPORTERS.names()
    help_ = (
        IMPORTERS.problem(tool)
        or nearest(tool, tools)
        or (f"the tools are {listed(tools)}" if tools else "no importer is installed")
    )
    raise click.UsageError(f"there is no importer for '{tool}'; {help_}")


@click.command("explain", short_help="Explain a code of a message, such as P601.")
@click.argument("code")
def explain_command(code: str) -> None:
    """Explain the CODE of a message, such as P601: its meaning and the remedy.

    Codes of plans (S, P, M) have an example. The page Faults of the documentation has all codes.
    """
    from gptailor.plan.fault_pages import fault_pages

    pages = fault_pages()
    if (page := pages.get(code.upper())) is None:
        near = [known for known in pages if known[:2] == code.upper()[:2]]
        known = (
            f"the codes of this group are {', '.join(near)}" if near else "a code looks like P601"
        )
        raise click.UsageError(f"there is no code '{code}'; {known}")
    options.say(f"{code.upper()}: {page.title}" + (f"\n\n{page.plain}" if page.text else ""))


def read_plan_or_folder(
    name: str, families: tuple[Path, ...] = (), lets: options.Lets = ()
) -> "Plan":
    """Return the plan of a file, or of a model's folder or GGUF file.

    A compiled model has the plan that it was compiled from. The plan of any other model leaves the
    model unchanged.
    """
    path = Path(name)
    if name == "-" or not (path.is_dir() or path.suffix == ".gguf"):
        return options.read_plan(name, families, lets)
    if lets:
        raise click.UsageError(f"--set is for a plan's file, and {name} is a model")
    from gptailor.lang.plan_of import plan_of

    _, plan = plan_of(name)
    return plan.with_families(families) if families else plan


def faults_of(
    name: str,
    models: dict[str, Path],
    families: tuple[Path, ...] = (),
    lets: options.Lets = (),
    *,
    alone: bool,
) -> "tuple[Plan | None, list[Fault]]":
    """Return a file's plan, if it can be read, and its faults.

    Unless `alone` is true, a plan without faults is also checked against its models. Raises the
    errors of reading the file.
    """
    plan, faults = options.parsed(name, lets)
    if plan is None or alone:
        return plan, faults
    plan = plan.with_families(families) if families else plan
    from gptailor.prepare import check_read

    return plan, check_read(plan, models, faults if errors(faults) else None)


def rewrite(name: str, new_text: str, text: str, *, silent: bool = False) -> None:
    """Write the text in place, all or nothing. Print the text of standard input."""
    if name == "-":
        options.say(new_text, newline=False)
        return
    if new_text == text:
        return
    from gptailor.checkpoint.write.output_file import write_whole, writing

    path = Path(name).resolve()
    with writing(Path(name)):
        mode = path.stat().st_mode & 0o7777
        write_whole(path, new_text.encode(), Path(name))
        path.chmod(mode)
    if not silent:
        options.say(f"{name}: rewritten")


def write_plan(plan: "Plan", output: Path | None) -> None:
    """Print a plan, or write it into a file, in the place of an older one."""
    from gptailor.lang.format import format_plan

    text = format_plan(plan)
    if output is None:
        options.say(text, newline=False)
        return
    from gptailor.checkpoint.write.output_file import write_whole

    write_whole(output, text.encode(), output)
    options.say(f"{output}: written")
