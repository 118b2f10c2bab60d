"""Two plans side by side: `diff`."""

import os
from collections import Counter
from pathlib import Path

from gptailor.checkpoint.files import expanded, is_gguf
from gptailor.checkpoint.models import folder_of, is_local
from gptailor.lang.plan_of import model_plan, plan_of
from gptailor.plan.faults import listed
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plan.search_block import with_file
from gptailor.plugins.diff.difference import difference_map, differences
from gptailor.prepare import Prepared
from gptailor.reporting.known_layers import resolved_by_headers
from gptailor.reporting.show import gguf_words, prepared_from_headers
from gptailor.reporting.terminal_encoding import wrapped


def diff(first: str | Path | Plan, second: str | Path | Plan) -> list[str]:
    """Return the differences of two plans in words, a line for each; empty if they are equal.

    A plan may also be its file, a compiled folder (the plan that it was compiled from), or a
    model's folder. Raises PlanError for faults of the plans by themselves, and OSError for a
    missing file.
    """
    return differences(*comparable(plan_of(first)[1], plan_of(second)[1]))


def comparable(a: Plan, b: Plan) -> tuple[Resolved, Resolved]:
    """Return two plans over one base depth, with folders seen alike, so that they compare."""
    count = max(resolved_by_headers(plan, {})[0].count for plan in (a, b))
    whole = (plan.model_copy(update={"vocabulary": None}) for plan in (a, b))
    made = [prepared_from_headers(plan, {})[0] for plan in whole]  # no tokenizer is read
    tied = [frozenset[str]() if one is None else one.resolved.tied for one in made]
    a, b = _in_dtype_of(a, b, made[0]), _in_dtype_of(b, a, made[1])
    if a.origin is None or b.origin is None or a.origin.folder != b.origin.folder:
        a, b = _seen_from_here(a), _seen_from_here(b)  # one model is one path
    return Resolved(a, count, tied[0]), Resolved(b, count, tied[1])


def diff_lines(
    first: tuple[str, Plan], second: tuple[str, Plan], width: int
) -> tuple[list[str], bool]:
    """Return the lines of both maps and of the differences, and whether there are any."""
    sides = comparable(first[1], second[1])
    words = differences(*sides)
    lines = []
    if drawn := list(difference_map(*sides, width)):
        lines = [f"1: {first[0]}", f"2: {second[0]}", "", *drawn, ""]
    files = [_file_words(name) for name, _ in (first, second)]
    compared = [" → ".join(files)] if all(files) and any("GGUF" in each for each in files) else []
    for line in (words or ["the plans are equal"]) + compared:
        lines += wrapped(line, width, "", "  ")
    return lines, bool(words)


def _file_words(name: str) -> str:
    """Return the size and the types of a GGUF file or a model's folder; empty for a plan's file."""
    path = expanded(name)
    if is_gguf(path) and path.is_file():
        return gguf_words(path)
    made = prepared_from_headers(model_plan(str(path.absolute())), {})[0] if path.is_dir() else None
    if made is None:
        return ""
    tensors = [tensor.spec for tensor in made.models["base"].checkpoint.tensors.values()]
    kinds = Counter(spec.dtype for spec in tensors).most_common()
    counted = listed([f"{count} {kind}" for kind, count in kinds])
    return f"folder: {sum(spec.size for spec in tensors):,} bytes; tensors: {counted}"


def _in_dtype_of(plan: Plan, other: Plan, prepared: Prepared | None) -> Plan:
    """Return the plan with the other's dtype, if it names no dtype and its output has this one."""
    alike = prepared is not None and prepared.dtype == other.dtype
    return plan.model_copy(update={"dtype": other.dtype}) if alike and not plan.dtype else plan


def _seen_from_here(plan: Plan) -> Plan:
    """Return the plan with its paths as seen from the current folder, without links."""
    models = dict(plan.models)
    for name, model in models.items():
        if model.made is None and is_local(model.source):
            path = os.path.relpath(os.path.realpath(folder_of(plan, model.source)))
            source = path if path.startswith(".") else f"./{path}"
            models[name] = model.model_copy(update={"source": source})

    def text(file: str) -> str:
        return os.path.relpath(os.path.realpath(folder_of(plan, file)))

    seen: dict[str, object] = {"models": models}
    seen["expects"] = tuple(with_file(entry, text) for entry in plan.expects)
    if isinstance(plan.chat_template, str) and is_local(plan.chat_template):
        seen["chat_template"] = f"./{text(plan.chat_template)}"
    return plan.with_calibration_texts(text).model_copy(update=seen)
