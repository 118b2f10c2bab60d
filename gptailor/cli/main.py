"""The command line: arguments become calls, and their results become exit codes.

Exit codes: 0 done, 1 faults of the plan, 2 invalid usage, 3 failure of a file, the disk or memory.
A command, and the slow imports that it needs, are loaded only for its call.
"""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import final

import click

from gptailor.plan.doors import Door

_COMMANDS = {
    "compile": ("compile", "Write", "Write the model that a plan declares."),
    "fmt": ("plans", "Write", "Write plans in their canonical form."),
    "import": ("plans", "Write", "Convert another tool's file to a plan."),
    "check": ("plans", "Look", "Check plans by themselves and against their models."),
    "show": ("plans", "Look", "Show a plan's layers as a map."),
    "json": ("plans", "Look", "Print a plan as JSON."),
    "explain": ("plans", "Look", "Explain a code of a message, such as P601."),
    "eval": ("eval", "Measure", "Evaluate plans and models."),
    "generate": ("eval", "Measure", "Continue a prompt with plans and models."),
    "search": ("search", "Search", "Search a plan's open choices for the best plan."),
    "pick": ("search", "Search", "Select a plan of a search by its size or its loss."),
    "lock": ("compile", "Share", "Record the digests of a plan's inputs and outputs."),
    "verify": ("compile", "Share", "Compare a compiled folder with its plan and its lock."),
    "schema": ("plans", "Set up", "Print the JSON schema of a plan, or of a family's file."),
}
"""Each command's module, which defines `NAME_command`, its group in the help, and its line."""

_INSTEAD = {
    **dict.fromkeys(
        ("quantize", "quantise", "gguf"),
        "'gptailor compile PLAN -o out.gguf --quantize q4_k_m' writes it (docs/howto/compile.md)",
    ),
    **dict.fromkeys(
        ("prune", "compress", "reduce", "drop"),
        "write 'drop L9..L12' in a plan, or 'drop any 4 of L2..L27' and search it (docs/search.md)",
    ),
    **dict.fromkeys(
        ("distill", "distil", "heal", "finetune", "train"),
        "write 'heal on \"text.txt\"' in a plan, and compile it (docs/healing.md)",
    ),
    **dict.fromkeys(
        ("merge", "stitch"),
        "write 'L0..L9 from math' or 'merge(…)' in a plan, and compile it (docs/cookbook.md); "
        "'gptailor import merge.yml -o plan.tailor' makes a plan of a mergekit file",
    ),
    **dict.fromkeys(
        ("mergekit", "mergekit-yaml", "mergekit-multi"),
        "'gptailor import merge.yml -o plan.tailor' makes a plan of a mergekit file, and "
        "'gptailor compile plan.tailor -o out' writes the model (docs/mergekit.md)",
    ),
}
"""The remedy for a command that other tools have and gptailor lacks, by its name."""
_SYNONYMS = {
    "shrink": ("quantize", "quantise", "prune", "compress", "reduce", "distill", "distil"),
    "compile": ("build", "make", "write"),
    "eval": ("evaluate", "benchmark", "score", "measure"),
    "generate": ("run", "chat", "ask", "complete", "try"),
    "check": ("validate", "lint"),
    "publish": ("upload", "push"),
}
"""Other tools' words for commands. A command that isn't installed is not named."""

_FLAGS = {
    "--allow-crimes": "models of another architecture are refused by name (M205)",
    "--copy-tokenizer": "remove it; the tokenizer is always part of the output",
    "--cuda": "use 'compile --device cuda'",
    "--lora-merge-cache": "remove it; adapters are added as tensors are read",
    "--out-shard-size": "use 'compile --shard-size 5GB', in bytes",
    "--random-seed": "write 'seed=' of the method in the plan",
    "--trust-remote-code": "remove it; gptailor never runs a repository's code",
    # options of release 0.2
    "--candidate": "'python examples/paper_plans.py FILE -o PLAN' reads the results of the paper",
    "--compare-random": "search with '--strategy random' into another folder",
    "--repeat-calibration": "search again with another '--seed' into another folder",
    "--storage": "RUN has all trials; '--export FILE' of 'search' writes them as an Optuna study",
    "--study-name": "the study that '--export FILE' writes is named 'gptailor'",
}
"""The remedy for an option that mergekit-yaml or release 0.2 has and gptailor lacks."""

COMMANDS: Door[click.Command] = Door("commands", "command", click.Command, {})
"""The commands of plugins."""


@final
class _Commands(click.Group):
    """Commands that are imported on demand. The help imports no command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *COMMANDS.installed()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            if problem := COMMANDS.problem(cmd_name):
                raise click.ClickException(f"the command '{cmd_name}': {problem}")
            return COMMANDS.get(cmd_name)
        module = importlib.import_module(f"gptailor.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from gptailor.plan.faults import nearest

            names = self.list_commands(ctx)
            helps = [f"see 'gptailor {n} --help'" for n in names if args[0] in _SYNONYMS.get(n, ())]
            helps.append(_INSTEAD.get(args[0]) or ("" if helps else nearest(args[0], names)))
            help_ = ". ".join(f"{text[:1].upper()}{text[1:]}" for text in helps if text)
            raise click.UsageError(f"{error.message} {help_}".rstrip(), ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        about = {name: (group, line) for name, (_, group, line) in _COMMANDS.items()}
        about |= {name: _about(name, module) for name, module in COMMANDS.installed().items()}
        width = max(map(len, about))
        for heading in dict.fromkeys(group for group, _ in about.values()):
            lines = {name: line for name, (group, line) in about.items() if group == heading}
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{n:{width}}" if line else n, line) for n, line in lines.items()]
                )


def _about(name: str, module: str) -> tuple[str, str]:
    """Return the group and the help's line of a plugin's command: `Plugins` and no line by default.

    gptailor's own plugins have both in `__commands__`.
    """
    about = "Plugins", ""
    if module.startswith("gptailor.plugins."):
        with suppress(ModuleNotFoundError):  # the folder of a plugin was removed
            plugin = importlib.import_module(module.rpartition(".")[0])
            about = getattr(plugin, "__commands__", {}).get(name, about)
    return about


def _say_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        import gptailor

        click.echo(f"gptailor, version {gptailor.__version__}")
        context.exit()


def _print_failures_at_the_end(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        context.call_on_close(_print_failures)


def _print_failures() -> None:
    import traceback

    for failure in Door.failures:
        traceback.print_exception(failure)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", "-V", is_flag=True, is_eager=True, expose_value=False,
              callback=_say_version, help="Show the version and exit.")  # fmt: skip
@click.option("--verbose", "-v", is_flag=True, is_eager=True, expose_value=False,
              callback=_print_failures_at_the_end,
              help="Print the tracebacks of plugins that can't be imported.")  # fmt: skip
def cli() -> None:
    """Cut, stitch and merge language models by a plan.

    A plan is a text file. It combines layers of models into a new model. Compiling the plan writes
    a Hugging Face model folder.

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
    """Run the command line, and exit with its code. SIGTERM stops it as Ctrl-C does, with 143."""
    gc.set_threshold(_OBJECTS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line with these arguments, and return the exit code."""
    try:
        cli.main(list(arguments), prog_name="gptailor", standalone_mode=False)
    except click.ClickException as error:
        _with_remedy(error, arguments).show()
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException as error:
        if (code := _ended(error)) is None:
            raise
        return code
    return 0


def _with_remedy(error: click.ClickException, arguments: Sequence[str]) -> click.ClickException:
    """Return an error with the remedy for an option of mergekit's or of 0.2, or for no `-o`."""
    remedy = _FLAGS.get(error.option_name, "") if isinstance(error, click.NoSuchOption) else ""
    bare = len(arguments) == 3 and arguments[0] == "compile"
    if bare and isinstance(error, click.MissingParameter):
        remedy = f"write: gptailor compile {' -o '.join(arguments[1:])}"
    if not remedy or not isinstance(error, click.UsageError):
        return error
    text = (error.message or error.format_message()).rstrip(".")
    return click.UsageError(f"{text}; {remedy}", error.ctx)


def _ended(error: BaseException) -> int | None:
    """Print a command's error, and return the exit code, or None for a bug in the program."""
    from gptailor.cli.options import ReaderLeft, say, say_faults
    from gptailor.plan.faults import PlanError, TailorError
    from gptailor.plan.optional_packages import missing_package

    match error:
        case ReaderLeft():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        case PlanError():
            say_faults(error.faults)
            return 1
        case KeyboardInterrupt() | click.Abort():
            message, code = "interrupted", 130
        # an interrupt becomes a SchemaError while pydantic builds
        case _ if type(error).__name__ == "SchemaError" and "KeyboardInterrupt" in str(error):
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
        case _:
            return None
    say(message, err=True)
    return code
