"""One objective by itself, as a `search` block has it but for its direction: `nll("text")`."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from gptailor.diagnostics import Fault, PlanError, Source, Span, errors, listed
from gptailor.lang import tree
from gptailor.lang.parse import parse
from gptailor.lang.reading import read_text
from gptailor.plan import Objective
from gptailor.registry import OBJECTIVES

DIRECTIONS = ("minimize", "maximize")


def read_objective(
    text: str, models: Iterable[str] = ("base",), *, name: str = "<objective>"
) -> tuple[Objective, bool]:
    """The objective of a text, and whether the text says its direction.

    Without one it has the direction that is better; where only a metric knows that, it is
    `maximize`. `models` are the names that `kl` may compare with, `name` what messages call the
    text. Raises PlanError with faults that have their places in the text.
    """
    word = re.match(r"\s*(\w*)", text)
    first = word[1] if word else ""
    spec = OBJECTIVES.get(first)
    direction = "" if first in DIRECTIONS else f"{(spec and spec.direction) or 'maximize'} "
    declared = "".join(f'model {model} = "."\n' for model in dict.fromkeys(("base", *models)))
    before = f"tailor 1\n{declared}search {{\n{direction}"
    source = Source(name, f"{before}{text}\n}}")
    shown = Source(name, text)
    if not _stands_alone(source):
        faults = list(_inside(errors(read_text(source, Path())[1]), shown, len(before)))
        raise PlanError(faults or [_none(shown)])
    plan, faults = read_text(source, Path())
    if found := list(_inside(errors(faults), shown, len(before))):
        raise PlanError(found)
    assert plan.search is not None
    return plan.search.objectives[0], not direction


def _stands_alone(source: Source) -> bool:
    """Whether the text is one objective, which neither ends the block nor goes on after it."""
    file, faults = parse(source)
    body = file.statements[-1].body if file.statements else None
    return (
        not faults
        and isinstance(body, tree.Block)
        and body.name.text == "search"
        and len(body.statements) == 1
        and isinstance(body.statements[0].body, tree.ObjectiveNode)
    )


def _none(shown: Source) -> Fault:
    known = listed(OBJECTIVES, "or")
    return Fault(
        "P601",
        "that is not one objective",
        span=Span(0, max(1, len(shown.text))),
        source=shown,
        help=f"write one of {known}, as in nll(\"text.txt\")",
    )  # fmt: skip


def _inside(faults: Iterable[Fault], shown: Source, start: int) -> Iterator[Fault]:
    """The faults as the text alone has them; those of what stands around it are none."""
    end = len(shown.text)
    for fault in faults:
        span = fault.span
        if span is None or span.end <= start or span.start > start + end:
            continue
        begin = min(max(0, span.start - start), max(0, end - 1))
        moved = Span(begin, max(begin + 1, min(span.end - start, end)))
        yield replace(fault, span=moved, source=shown, also=())
