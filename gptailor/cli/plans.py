"""Plans as the command line names them: files, or - for standard input."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptailor.cli.terminal import say
from gptailor.plan.faults import Fault, PlanError, errors

if TYPE_CHECKING:
    from gptailor.plan.plan import Plan


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
