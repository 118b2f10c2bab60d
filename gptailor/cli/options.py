"""The arguments and options that several commands share, and plans as they are named there."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import click

from gptailor.cli.terminal import say
from gptailor.plan.faults import Fault, PlanError, errors

if TYPE_CHECKING:
    from gptailor.plan.plan import Plan


@final
class Rebinding(click.ParamType[tuple[str, Path]]):
    """`NAME=PATH`."""

    name = "NAME=PATH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """The name and the path; a usage error if there aren't both."""
        name, equal, path = str(value).partition("=")
        if not (equal and name and path):
            self.fail(f"'{value}' is not NAME=PATH", param, ctx)
        return name, Path(os.path.expanduser(path))  # noqa: PTH111 (raises without a home)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


@final
class ByteSize(click.ParamType[int]):
    """A number of bytes: `5GB`, `500MB`, `2GiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes; a usage error if it is no size."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value), re.IGNORECASE)
        unit = _UNITS.get(found[2].upper()) if found else None
        size = int(float(found[1]) * unit) if found and unit else 0
        if size <= 0:
            self.fail(f"'{value}' is no size such as 5GB or 500MiB", param, ctx)
        return size


PLAN_ARGUMENT = click.argument("plan", metavar="PLAN", type=click.Path(allow_dash=True))
PLANS = click.argument(
    "plans", metavar="PLAN...", nargs=-1, required=True, type=click.Path(allow_dash=True)
)
MODEL = click.option(
    "models",
    "--model",
    type=Rebinding(),
    multiple=True,
    help="Take another folder for a model of the plan. May be given several times.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Where models live: cpu, cuda or cuda:1.",
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="What models compute in. Without it: each in its own.",
)
MEMORY = click.option(
    "--memory",
    type=ByteSize(),
    metavar="SIZE",
    help="The most bytes of weights on the device; layers are streamed.",
)


# --------------------------------------------------------- plans: files, or - for standard input


def shown_name(name: str) -> str:
    """What a plan's file is called in messages."""
    return "<stdin>" if name == "-" else name


def bytes_of(name: str) -> bytes:
    """A file's bytes, or those of standard input."""
    if name == "-":
        return sys.stdin.buffer.read()
    return Path(name).read_bytes()


def plan_text(name: str) -> str:
    """A file's text; PlanError if it is not UTF-8."""
    raw = bytes_of(name)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        from gptailor.lang.parse import read_bytes  # noqa: PLC0415

        raise PlanError(read_bytes(raw, shown_name(name), Path())[1]) from None


def parsed(name: str) -> "tuple[Plan | None, list[Fault]]":
    """The plan of a file, if it can be read, and its faults by itself."""
    from gptailor.lang.parse import read_bytes  # noqa: PLC0415

    return read_bytes(
        bytes_of(name), shown_name(name), Path() if name == "-" else Path(name).parent
    )


def read_plan(name: str) -> "Plan":
    """The plan of a file; PlanError if it has faults."""
    plan, faults = parsed(name)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


def faults_of(name: str, models: dict[str, Path], *, alone: bool) -> list[Fault]:
    """The faults of a file's plan, against its models too if it has none alone."""
    plan, faults = parsed(name)
    if plan is None or errors(faults) or alone:
        return faults
    from gptailor.prepare import check  # noqa: PLC0415

    return check(plan, models)


def known_layer_count(plan: "Plan", models: dict[str, Path]) -> tuple[int, bool]:
    """The base's number of layers, and whether it is known; else as many as the plan names."""
    from gptailor.checkpoint.models import open_models, rebind  # noqa: PLC0415
    from gptailor.plan.plan import Plan  # noqa: PLC0415

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


def rewrite(name: str, made: str, text: str) -> None:
    """Write the text in place, whole or not at all; standard input goes to standard output."""
    if name == "-":
        say(made, newline=False)
        return
    if made == text:
        return
    import tempfile  # noqa: PLC0415 (few plans are rewritten)

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
    say(f"{name}: rewritten")


def write_plan(plan: "Plan", output: Path | None) -> None:
    """Print a plan, or write it into a new file."""
    from gptailor.lang.format import format_plan  # noqa: PLC0415

    text = format_plan(plan)
    if output is None:
        say(text, newline=False)
        return
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    say(f"{output}: written")
