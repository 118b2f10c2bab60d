"""Faults of calibration texts that a plan names: missing ones, and those surely too short."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import folder_of
from gptailor.plan.faults import Fault, Place, PlanError, locate
from gptailor.plan.measures import measured
from gptailor.plan.plan import NO_TEXT, Plan, has_predictions
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.sites import drops_by_choice

FEWER_TOKENS = "give more text, or ask for fewer 'tokens'"
"""The remedy for a short text if the plan names the number of tokens."""


def refuse_absent_texts(plan: Plan) -> None:
    """Raise PlanError (C801, C803) for an unusable text of a bridge or healing; none is read."""
    if absent := _absent(plan, _learned(plan)):
        raise PlanError(absent)


def absent_files(plan: Plan, *, whole: bool = True) -> list[Fault]:
    """Return a fault for each unusable text of a bridge, healing or measure.

    If the plan isn't `whole`, its drops may stand in statements that were not read.
    """
    return [*_absent(plan, [*_learned(plan, whole=whole), *_judged(plan)]), *too_small(plan)]


_OPENED = 32
"""A sequence of a text has at least so many bytes for each special token that opens it."""


def too_small(plan: Plan) -> list[Fault]:
    """Return a fault (C806) for each text with fewer bytes than the tokens that the plan asks for.

    A token has at least a byte, beside the special tokens that open sequences. A text with more
    bytes may still be too short; its tokens are counted when it is used.
    """
    used = {at for at, _ in _learned(plan)}
    needed: list[tuple[Place, str, int, str]] = [
        (("bridges", i, "on"), bridge.on, bridge.tokens, "'bridge'")
        for i, bridge in enumerate(plan.bridges)
        if bridge.on and isinstance(bridge.tokens, int)
    ]
    if (heal := plan.heal) is not None and heal.tokens is not None:
        total = sum(text.weight for text in heal.on)
        for i, text in enumerate(heal.on):
            if text.answers is None and not text.predicted and text.weight > 0 and total > 0:
                share = int(heal.tokens * text.weight / total)
                needed.append((("heal", "on", i, "file"), text.file, share, "'heal'"))
    faults = []
    for at, name, tokens, user in needed:
        path = folder_of(plan, name)
        if at not in used or not path.is_file():
            continue
        if (size := path.stat().st_size) + size // _OPENED < tokens:
            message = f"the text has {size:,} bytes, so fewer than {tokens:,} tokens for {user}"
            faults.append(Fault("C806", f"{message} ({path})", at, FEWER_TOKENS))
    return locate(faults, plan.origin)


def _absent(plan: Plan, texts: Iterable[tuple[Place, Path]]) -> list[Fault]:
    """Return a fault for each missing text, each file once, and for predictions as a text."""
    faults = []
    reported: set[Path] = set()
    for at, path in texts:
        if path in reported:
            continue
        if has_predictions(path.name) and at[0] != "heal":
            faults.append(Fault("C803", NO_TEXT, at, "name the file of the text"))
            continue
        if path.is_file():
            continue
        reported.add(path)
        why = "is no file" if path.exists() else "can't be read: No such file or directory"
        faults.append(Fault("C801", f"the text {why} ({path})", at))
    return locate(faults, plan.origin)


def _learned(plan: Plan, *, whole: bool = True) -> Iterator[tuple[Place, Path]]:
    """Yield the texts that fits and healing read; not those of a bridge without a gap."""
    dropping = not whole or bool(plan.drops) or any(True for _ in drops_by_choice(plan))
    for i, bridge in enumerate(plan.bridges):
        if bridge.on and dropping:
            yield ("bridges", i, "on"), folder_of(plan, bridge.on)
    if plan.heal is not None and (not whole or plan.may_be_healed):
        for i, text in enumerate(plan.heal.on):
            if text.file:
                yield ("heal", "on", i, "file"), folder_of(plan, text.file)


def _judged(plan: Plan) -> Iterator[tuple[Place, Path]]:
    """Yield the texts that objectives, requirements and expectations read."""
    folder = plan.origin.folder if plan.origin else Path()
    for at, wish in measured(plan):
        spec = OBJECTIVES.get(wish.name)
        for argument in spec.arguments if spec is not None else ():
            file = wish.arguments.get(argument.name)
            if argument.kind == "path" and isinstance(file, str) and file:
                yield at, folder / expanded(file)
