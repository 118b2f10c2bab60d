"""The shared parts of commands: arguments, options, the reading of plans, and printing."""

import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, final

import click

from gptailor.checkpoint.files import expanded
from gptailor.plan.bounds import MOST_BYTES
from gptailor.plan.doors import Door
from gptailor.plan.faults import Fault, PlanError, errors, listed, to_text
from gptailor.reporting.quantities import bytes_from_words
from gptailor.reporting.terminal_encoding import escaped_control, in_encoding, wrapped

if TYPE_CHECKING:
    from gptailor.evaluation.generate import GeneratedText
    from gptailor.plan.plan import Plan


OPTIONS: Door[Callable[[click.Command], None]] = Door("options", "options", FunctionType, {})
"""Functions of plugins that add options to a command, by the command's name: `search`."""


_Value = TypeVar("_Value")


@final
class InWords(click.ParamType[_Value]):
    """A value that `read` makes of an option's text. A ValueError of it is a usage error."""

    def __init__(self, name: str, read: Callable[[str], _Value]) -> None:
        self.name, self.read = name, read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> _Value:
        """Return the value of a text."""
        try:
            return self.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def assignment(form: str, text: str) -> tuple[str, str]:
    """Return both sides of `NAME=…`. Raises ValueError, which names the form, for one side."""
    name, _, value = text.partition("=")
    if not (name.strip() and value):
        raise ValueError(f"expected {form}, got '{text}'")
    return name.strip(), value


def _rebinding(text: str) -> tuple[str, Path]:
    name, path = assignment("NAME=PATH", text)
    return name, expanded(path)


def _number_setting(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a `let`, and its values: `mix=0.3,0.5`."""
    name, numbers = assignment("NAME=VALUE", text)
    values = tuple(each.strip() for each in re.split(r",(?![^(]*\))", numbers))
    if not all(values):
        raise ValueError(f"expected NAME=VALUE, got '{text}'")
    if len(set(values)) < len(values):
        raise ValueError(f"'{text}' has a value twice")
    return name, values


REBINDING = InWords("NAME=PATH", _rebinding)
BYTE_SIZE = InWords("SIZE", bytes_from_words)

Lets = tuple[tuple[str, tuple[str, ...]], ...]
"""The values of `--set` by the names of `let`s."""


def one_value_each(lets: Lets) -> dict[str, str]:
    """Return the value of each name. Raise a usage error for several values."""
    for name, values in lets:
        if len(values) > 1:
            message = f"--set {name}={','.join(values)} has {len(values)} values; give one"
            raise click.UsageError(message + ", or compare several with 'gptailor eval'")
    return {name: values[0] for name, values in _by_name(lets).items()}


def _by_name(lets: Lets) -> dict[str, tuple[str, ...]]:
    """Return the values of each name. Raise a usage error for a name that comes twice."""
    if len(named := dict(lets)) < len(lets):
        raise click.UsageError("--set has one number twice; give all its values to one --set")
    return named


PLAN_ARGUMENT = click.argument("plan", metavar="PLAN", type=click.Path(allow_dash=True))
PLANS = click.argument(
    "plans", metavar="PLAN...", nargs=-1, required=True, type=click.Path(allow_dash=True)
)
MODEL = click.option(
    "models",
    "--model",
    type=REBINDING,
    multiple=True,
    help="Use another folder for a model of the plan. May be given several times.",
)
SET = click.option(
    "lets",
    "--set",
    type=InWords("NAME=VALUE", _number_setting),
    multiple=True,
    help="Replace the value of a 'let' of the plan. May be given several times.",
)
FAMILY = click.option(
    "families",
    "--family",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="A file that 'gptailor family' wrote. May be given several times.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="The device of the models: cpu, cuda or cuda:1.",
)
_DTYPES = click.Choice(["float32", "float16", "bfloat16"])
OUTPUT_DTYPE = click.option(
    "--dtype",
    type=_DTYPES,
    metavar="DTYPE",
    help="float32, float16 or bfloat16. Default: the plan's dtype.",
)
DTYPE = click.option(
    "--dtype",
    type=_DTYPES,
    help="The dtype that models compute in. Default: each model's own dtype, or float32 on a "
    "processor with slow 16-bit multiplication.",
)
SEED = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="The seed that draws the samples.",
)
MEMORY = click.option(
    "--memory",
    type=BYTE_SIZE,
    metavar="SIZE",
    help="The maximum size of weights on the device, such as 8GB. Layers are streamed. Default: no "
    "limit.",
)


# --------------------------------------------------------- plans: files, or - for standard input


def shown_name(name: str) -> str:
    """Return the name of a plan's file in messages."""
    return "<stdin>" if name == "-" else name


def bytes_of(name: str) -> bytes:
    """Return the bytes of a file or of standard input, at most one byte beyond a plan's limit."""
    if name == "-":
        return sys.stdin.buffer.read(MOST_BYTES + 1)
    from gptailor.lang.parse import file_bytes

    return file_bytes(Path(name))


def plan_text(name: str) -> str:
    """Return a file's text. Raise PlanError if it is not UTF-8, or too large."""
    raw = bytes_of(name)
    with suppress(UnicodeDecodeError):
        if len(raw) <= MOST_BYTES:
            return raw.decode("utf-8")
    from gptailor.lang.parse import read_bytes

    raise PlanError(read_bytes(raw, shown_name(name), Path())[1])


@cache
def _freeze_once() -> None:
    """Exempt all present objects from later searches for garbage."""
    gc.freeze()


def parsed(name: str, lets: Lets = ()) -> "tuple[Plan | None, list[Fault]]":
    """Return the plan of a file, if it can be read, and its faults without its models."""
    numbers = one_value_each(lets)
    collects = gc.isenabled()
    gc.disable()  # imports and plans stay alive; a search for garbage in them takes a sixth longer
    try:
        from gptailor.lang.parse import read_bytes

        folder = Path() if name == "-" else Path(name).parent
        return read_bytes(bytes_of(name), shown_name(name), folder, numbers)
    finally:
        _freeze_once()
        if collects:
            gc.enable()


def read_plan(name: str, families: tuple[Path, ...] = (), lets: Lets = ()) -> "Plan":
    """Return the plan of a file, with the given family files. Raise PlanError for faults."""
    plan, faults = parsed(name, lets)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan.with_families(families) if families else plan


MOST_SWEPT = 100
"""Plans that a sweep makes without being told to."""


def swept(targets: Iterable[str], lets: Lets, *, many: bool | None = None) -> "list[str | Plan]":
    """Return the targets, each plan's file as a plan for each combination of values.

    Folders and models stay as they are. Raise a usage error for more than `MOST_SWEPT` plans,
    unless `many`, and if no target is a plan's file.
    """
    from gptailor.lang.parse import loads

    named = _by_name(lets)
    points = [dict(zip(named, values, strict=True)) for values in product(*named.values())]
    files = [name for name in targets if name == "-" or Path(name).is_file()]
    plans = [name for name in files if Path(name).suffix != ".gguf"]
    if lets and not plans:
        names = listed(f"'{name}'" for name in targets)
        raise click.UsageError(f"--set expects the file of a plan, got {names}")
    if (count := len(plans) * len(points)) > MOST_SWEPT and not many:
        help_ = f"give fewer values, for at most {MOST_SWEPT} plans"
        if many is not None:
            help_ = "add --many-plans to evaluate them all"
        raise click.UsageError(f"--set makes {count} plans; {help_}")
    found: list[str | Plan] = []
    for name in targets:
        if name == "-" or (lets and name in plans):
            text, folder = plan_text(name), Path() if name == "-" else Path(name).parent
            found += [loads(text, shown_name(name), folder, let=point) for point in points]
        else:
            found.append(name)
    return found


OUTPUT_FORCE = click.option("--force", is_flag=True, help="Replace an existing file.")


# --------------------------------------------------------------------------------- printed texts

MOST_SHOWN = 100
"""The maximum number of faults shown to people. Programs get all faults."""


def say_faults(faults: Iterable[Fault]) -> None:
    """Print faults for people, on standard error."""
    faults = list(faults)
    for fault in faults[:MOST_SHOWN]:
        first, _, details = to_text(fault).partition("\n")
        label, _, message = _folded(first, sys.stderr).partition(": ")
        colour = "red" if fault.severity == "error" else "yellow"
        head = click.style(label, fg=colour, bold=True) + click.style(f": {message}", bold=True)
        say(head + (f"\n{details}" if details else "") + "\n", err=True)
    if len(faults) > MOST_SHOWN:
        say(f"… and {len(faults) - MOST_SHOWN} more faults", err=True)


def width() -> int:
    """Return the number of columns of the terminal, or 80 without a terminal."""
    import shutil

    return shutil.get_terminal_size().columns


def say(text: str, *, newline: bool = True, err: bool = False) -> None:
    """Print a text. Use colours only on terminals, and not with NO_COLOR.

    Sentences on standard error (`err`) break between words on a terminal.
    """
    text = _folded(text, sys.stderr) if err else text
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    stream = sys.stderr if err else sys.stdout
    above = stream if hasattr(stream, "rich_proxied_file") else None  # a bar is drawn below it
    try:
        click.echo(text, file=above, nl=newline, err=err, color=False if plain else None)
    except BrokenPipeError:
        raise ReaderLeft from None


def say_sentences(text: str) -> None:
    """Print sentences. On a terminal their lines break between words."""
    say(_folded(text, sys.stdout))


_DRAWN = re.compile(r"\s*(\d+ +\||$)|\s+(?!\s|= help)|.*\x1b")
"""A line that isn't a sentence, such as the excerpt of a plan, or that has colours."""


def _folded(text: str, stream: TextIO) -> str:
    """Return a text with sentences wrapped to the terminal's width; drawn lines stay."""
    if not stream.isatty():
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        later = " " * (line.index("= help") + len("= help: ") if "= help: " in line else 2)
        lines += [line] if _DRAWN.match(line) else wrapped(line, width(), later=later)
    return "\n".join(lines)


def say_drawn(text: str) -> None:
    """Print a drawing. Replace characters that the terminal's encoding lacks."""
    say(in_encoding(text, output_encoding()))


def say_answers(answers: "Sequence[GeneratedText]") -> None:
    """Print short answers to one prompt after a blank line, and the signs of ruined models."""
    from gptailor.evaluation.generate import SHORT_PROMPT

    if answers:
        say(f'\nanswers to "{SHORT_PROMPT}":')
    for answer in answers:
        sign = f"({answer.sign})" if answer.sign else ""
        words = escaped_control(" ".join(f"{answer.target}: {answer.text} {sign}".split()))
        say_drawn("\n".join(wrapped(words, width(), "  ", "    ")))


def output_encoding() -> str:
    """Return the encoding of standard output, in small letters."""
    return str(getattr(sys.stdout, "encoding", None) or "utf-8").lower()


@final
class ReaderLeft(Exception):  # noqa: N818 (no error: `gptailor schema | head`)
    """A closed standard output. Click would turn a BrokenPipeError into exit code 1."""
