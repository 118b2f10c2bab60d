"""A text, a JSON document or bytes into a plan: parse, lower, and check the plan alone."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pydantic

from gptailor.checks.plan import check_alone
from gptailor.lang import tree
from gptailor.lang.lower import has_version, lower
from gptailor.lang.parse import decode_source, parse
from gptailor.plan.faults import Fault, Origin, PlanError, Source, Span, errors, listed, locate
from gptailor.plan.plan import Objective, Plan
from gptailor.plan.registry import OBJECTIVES


def read_text(source: Source, folder: Path) -> tuple[Plan, list[Fault]]:
    """The plan of a text and all faults that it has by itself. Paths are relative to `folder`."""
    file, syntax = parse(source)
    plan, faults = lower(file, source, folder)
    if not has_version(file) and not syntax:
        fault = Fault("P101", "the file doesn't say its language version", span=Span(0, 0),
                      help="write 'tailor 1' as its first statement")  # fmt: skip
        faults.append(fault)
    found = syntax + faults + check_alone(plan, whole=not syntax)
    located = locate(found, plan.origin)
    return plan, [f if f.span else replace(f, span=Span(0, 0)) for f in located]


def read_json(source: Source, folder: Path) -> tuple[Plan | None, list[Fault]]:
    """The plan of a JSON document, and all faults that it has by itself."""
    try:
        plan = Plan.model_validate_json(source.text)
    except pydantic.ValidationError as error:
        faults = [
            Fault("S107", f"{e['msg'][:1].lower()}{e['msg'][1:]}", tuple(e["loc"]), source=source)
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        return None, faults
    plan = plan.read_from(Origin(source, folder))
    return plan, locate(check_alone(plan), plan.origin)


def read_bytes(raw: bytes, name: str, folder: Path) -> tuple[Plan | None, list[Fault]]:
    """The plan of a file's bytes: Tailor, or JSON if it starts with a brace."""
    try:
        source = decode_source(raw, name)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"byte {error.start} (line {line}) is not UTF-8"
        return None, [Fault("S106", message, source=Source(name, ""), help="save it as UTF-8")]
    if source.text.lstrip()[:1] == "{":
        return read_json(source, folder)
    return read_text(source, folder)


def load(path: str | Path) -> Plan:
    """The plan of a file. Raises PlanError, with all its faults, if it has any; OSError as open."""
    path = Path(path)
    plan, faults = read_bytes(path.read_bytes(), str(path), path.parent)
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


def loads(text: str, name: str = "<text>", folder: str | Path = ".") -> Plan:
    """The plan of a text; raises PlanError, with all its faults, if it has any."""
    # Half of a surrogate pair has no UTF-8; its bytes are then refused like a file's.
    plan, faults = read_bytes(text.encode("utf-8", "surrogatepass"), name, Path(folder))
    if plan is None or errors(faults):
        raise PlanError(faults)
    return plan


__all__ = ["load", "loads", "read_bytes", "read_json", "read_text"]

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
