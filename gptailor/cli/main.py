"""The command line: turns arguments into calls, and their ends into exit codes.

Exit codes: 0 done, 1 the plan has faults, 2 usage, 3 the world failed (file, disk, memory).
A command, and the slow imports it needs, are loaded only when it is called.
"""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import final

import click

_COMMANDS = {
    "check": ("plans", "Check plans, alone and against their models."),
    "compile": ("compile", "Write the model that a plan declares."),
    "completion": ("completion", "Print or install a shell's completion script."),
    "diff": ("plans", "Say what differs between two plans."),
    "eval": ("eval", "Say how good plans and models are."),
    "export": ("plans", "Say a plan in another tool's words."),
    "extract-lora": ("extract", "Make a LoRA adapter of what differs in two models."),
    "family": ("family", "Learn a new architecture from transformers, and prove it."),
    "fmt": ("plans", "Write plans in their canonical form."),
    "generate": ("eval", "Let plans and models speak."),
    "import": ("plans", "Make a plan of another tool's file."),
    "json": ("plans", "Print a plan as JSON."),
    "lock": ("compile", "Write down what a plan is made from, and what comes out."),
    "lsp": ("plans", "Serve an editor: faults, completion, names, as you type."),
    "pick": ("search", "Take one plan of a search, by its size or what it loses."),
    "report": ("report", "Make a page about a search, a plan or a model."),
    "schema": ("plans", "Print the JSON schema of a plan."),
    "search": ("search", "Close a plan's choices by trials."),
    "show": ("plans", "Show a plan's layers as a map."),
    "teach": ("teach", "Write a teacher's predictions of texts."),
    "verify": ("compile", "Say whether a compiled folder is what its plan gives."),
}
"""The module of each command, in which it is `NAME_command`, and its line in the help."""


@final
class _Commands(click.Group):
    """Commands that are imported on demand; the help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"gptailor.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in _COMMANDS.items()])


def _say_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        import gptailor

        click.echo(f"gptailor, version {gptailor.__version__}")
        context.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", "-V", is_flag=True, is_eager=True, expose_value=False,
              callback=_say_version, help="Show the version and exit.")  # fmt: skip
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


_OBJECTS = 50_000
"""Net new objects before a collection of garbage.

Python's default is 700. The imports of torch and transformers make hundreds of thousands of objects
and no garbage, and looking for it took a tenth of their time.
"""


def main() -> None:
    """Run the command line, and end with its exit code; SIGTERM ends it as Ctrl-C does, by 143."""
    gc.set_threshold(_OBJECTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line with these arguments; return the exit code."""
    try:
        cli.main(list(arguments), prog_name="gptailor", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        if (code := _ended(error)) is None:
            raise
        return code
    return 0


_NAME_ANOTHER = "\n  = help: name another file, or remove this one first"


def _hides_an_interrupt(error: BaseException) -> bool:
    """Return whether pydantic made a SchemaError of an interrupt, as it does while it builds."""
    return type(error).__name__ == "SchemaError" and "KeyboardInterrupt" in str(error)


def _ended(error: BaseException) -> int | None:
    """Print how a command ended, and return the exit code; None for a bug in the program."""
    from gptailor.cli.options import ReaderLeft, report, say
    from gptailor.plan.faults import PlanError, TailorError
    from gptailor.plan.optional_packages import missing_package

    match error:
        case ReaderLeft():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        case PlanError():
            report(error.faults)
            return 1
        case KeyboardInterrupt() | click.Abort():
            message, code = "interrupted", 130
        case _ if _hides_an_interrupt(error):
            message, code = "interrupted", 130
        case TailorError():
            text = str(error)
            message, code = text if text.startswith("error") else f"error: {text}", error.exit_code
        case ModuleNotFoundError() if (missing := missing_package(error)) is not None:
            message, code = f"error: {missing}", missing.exit_code
        case MemoryError():
            message, code = "error: there is not enough memory", 3
        case OSError():
            place = f"'{error.filename}': " if error.filename else ""
            message, code = f"error: {place}{error.strerror or error}", 3
            message += _NAME_ANOTHER * isinstance(error, FileExistsError)
        case _:
            return None
    say(message, err=True)
    return code
