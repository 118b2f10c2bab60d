"""The plan while it is gathered from its statements, each entry with the spans inside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from gptailor.lang import tree
from gptailor.plan import plan as p
from gptailor.plan.faults import Also, Fault, Origin, Place, Source, Span

_T = TypeVar("_T")
Spans = Mapping[Place, Span]

MOST_ENTRIES = 200_000
"""Positions that one file may name in all; more is a slip, and would fill the memory."""


@dataclass(slots=True)
class Placed(Generic[_T]):
    """An entry of the plan and the spans inside it."""

    entry: _T
    spans: Spans


@dataclass(slots=True)
class Draft:
    """What was gathered so far."""

    single: dict[str, Placed[Any]] = field(default_factory=dict)
    models: dict[str, Placed[p.Model]] = field(default_factory=dict)
    layers: list[Placed[p.Layer]] = field(default_factory=list)
    drops: list[Placed[p.Drop]] = field(default_factory=list)
    drop_any: list[Placed[p.DropAny]] = field(default_factory=list)
    scales: list[Placed[p.Scale]] = field(default_factory=list)
    bridges: list[Placed[p.Bridge]] = field(default_factory=list)
    items: list[Placed[p.Item]] = field(default_factory=list)
    objectives: list[Placed[p.Objective]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    groups: int = 0  # `tied` statements
    entries: int = 0  # positions named

    def fault(self, code: str, message: str, span: Span, help_: str = "", *also: Also) -> None:
        """Note a fault."""
        self.faults.append(Fault(code, message, span=span, help=help_, also=also))

    def once(self, name: str, value: object, span: Span, spans: Spans | None = None) -> None:
        """Note what can be said once; a fault if it was said before."""
        known = self.single.get(name)
        if known is not None:
            also = Also("first said here", span=known.spans[()])
            message = f"'{name}' is said twice"
            self.fault("P401", message, span, "keep one of the two", also)
            return
        self.single[name] = Placed(value, {**(spans or {}), (): span})

    def value(self, name: str) -> Any:
        """What was said once, or None."""
        placed = self.single.get(name)
        return placed.entry if placed else None

    def group(self, statement: tree.Statement) -> int | None:
        """The number of this statement's group, if it is tied."""
        if statement.tied is None:
            return None
        self.groups += 1
        return self.groups - 1

    # ------------------------------------------------------------------------------------ the plan

    def plan(self, source: Source, folder: Path) -> p.Plan:
        """The plan, knowing where it was read from."""
        spans: dict[Place, Spans] = {}
        for name, placed in self.single.items():
            spans[("search", name) if name in ("fidelity", "trials", "seed") else (name,)] = (
                placed.spans
            )
        for name, model in self.models.items():
            spans["models", name] = model.spans
        made = p.Plan(
            version=self.value("tailor") or 1,
            models={name: placed.entry for name, placed in self.models.items()},
            dtype=self.value("dtype"),
            **{name: self.value(name) for name in p.REST},
            layers=_sorted("layers", self.layers, p.layer_order, spans),
            drops=_sorted("drops", self.drops, p.position_order, spans),
            drop_any=_sorted("drop_any", self.drop_any, p.drop_any_order, spans),
            scales=_sorted("scales", self.scales, p.position_order, spans),
            bridges=_sorted("bridges", self.bridges, p.bridge_order, spans),
            stack=self._stack(spans),
            search=self._search(spans),
        )
        return made.read_from(Origin(source, folder, spans))

    def _stack(self, spans: dict[Place, Spans]) -> p.Stack | None:
        if "stack" not in self.single:
            return None
        for i, placed in enumerate(self.items):
            spans["stack", "items", i] = placed.spans
        items = p.retied(placed.entry for placed in self.items)
        if (limit := self.single.get("limit")) is not None:
            spans["stack", "limit"] = limit.spans
        return p.Stack(items=items, limit=self.value("limit"))

    def _search(self, spans: dict[Place, Spans]) -> p.Search | None:
        if "search" not in self.single:
            return None
        for i, placed in enumerate(self.objectives):
            spans["search", "objectives", i] = placed.spans
        return p.Search(
            objectives=tuple(placed.entry for placed in self.objectives),
            fidelity=self.value("fidelity"),
            trials=self.value("trials"),
            seed=self.value("seed"),
        )


def _sorted(
    name: str,
    entries: list[Placed[_T]],
    order: Callable[[_T], Any],
    spans: dict[Place, Spans],
) -> tuple[_T, ...]:
    """The entries in the plan's order; their spans are noted under the numbers they get."""
    entries = sorted(entries, key=lambda placed: order(placed.entry))
    for i, placed in enumerate(entries):
        spans[name, i] = placed.spans
    return tuple(placed.entry for placed in entries)
