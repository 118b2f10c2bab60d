"""A text, a JSON document or bytes into a plan: parse, lower, and check the plan alone."""

from dataclasses import replace
from pathlib import Path

import pydantic

from gptailor.checks.alone import check_alone
from gptailor.diagnostics import Fault, Origin, PlanError, Source, Span, errors, locate
from gptailor.lang.lower import has_version, lower
from gptailor.lang.parse import decode_source, parse
from gptailor.plan import Plan


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


__all__ = ["load", "loads", "read_text", "read_bytes", "read_json"]
