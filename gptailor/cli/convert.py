"""Another tool's file into a plan: whose it is, and where its paths start."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gptailor.cli.plans import plan_text, shown_name
from gptailor.convert.mergekit.importer import from_mergekit
from gptailor.convert.note import ConversionError, Note
from gptailor.convert.paper import from_paper

if TYPE_CHECKING:
    from gptailor.plan.plan import Plan


def imported(
    file: str,
    tool: str | None,
    layers: int | None,
    candidates: Sequence[str],
    output: Path | None,
) -> "tuple[Plan, list[Note]]":
    """The plan of a file, and what is to be said of it."""
    text = plan_text(file)
    if tool == "gptailor-paper" or (tool is None and text.lstrip()[:1] == "{"):
        return from_paper(_json(text, shown_name(file)), layers=layers, models=candidates)
    if candidates:
        raise ConversionError("a mergekit file names its models", help="leave --candidate out")
    root = Path.cwd()  # where mergekit has its relative paths start
    folder = output.parent if output is not None else root
    return from_mergekit(text, shown_name(file), layers, root=root, folder=folder)


def _json(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"this is no JSON: {error}", name=name) from error
