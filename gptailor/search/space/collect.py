"""From an open plan to its genes: a walk over all that may be a choice."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar, final

from gptailor.plan.layers import own
from gptailor.plan.plan import (
    REST,
    By,
    Interval,
    Item,
    LayerOf,
    Merge,
    MethodCall,
    OneOfModels,
    OneOfNumbers,
    Open,
    Plan,
    Recipe,
    Subset,
    Take,
    Value,
)
from gptailor.plan.registry import METHODS
from gptailor.search.space.condition import (
    ALWAYS,
    NEVER,
    Condition,
    bit,
    every,
    option,
    room,
    several,
    some,
)
from gptailor.search.space.genes import Bit, GenePath, Pick, Real

_GeneKind = TypeVar("_GeneKind", Bit, Pick, Real)


@final
@dataclass
class Collected:
    """What a plan leaves open: genes, subsets as their members' bits, and a stack's items.

    `merged` says when a subset has two members or more, and at which position.
    """

    bits: list[Bit] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)
    reals: list[Real] = field(default_factory=list)
    index: dict[GenePath, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    subsets: list[list[int]] = field(default_factory=list)
    merged: dict[GenePath, tuple[int, Condition]] = field(default_factory=dict)
    items: list[int] = field(default_factory=list)
    room: int = 0
    keeper: int | None = None


@final
@dataclass(frozen=True)
class _Where:
    """Whose choice it is: the owner's path, what it is called, its position, when it counts."""

    path: GenePath
    name: str
    at: int
    when: Condition
    base: Recipe | None = None
    """The base's own at that place, which a recipe may come to."""

    def inside(self, *path: str | int, when: Condition | None = None) -> "_Where":
        """A place further in."""
        return replace(self, path=(*self.path, *path), when=self.when if when is None else when)


def collect(plan: Plan, layers: int) -> Collected:
    """The genes of an open plan over a base of that many layers."""
    return _Walk(plan, layers).found()


def owner(kind: str, number: int, entry: Open) -> GenePath:
    """Whose the choices of an entry are: a whole statement's where it is `tied`."""
    return (kind, number) if entry.tied is None else (kind, "tied", entry.tied)


def own_of(position: int | None) -> Take:
    """The base's own layer there; without a position, the base's own tensor."""
    return Take(take=LayerOf(model="base")) if position is None else own(position)


@final
class _Walk:
    def __init__(self, plan: Plan, layers: int) -> None:
        self.plan = plan
        self.layers = layers
        self.all = Collected()
        self._drop_bits: dict[int, int] = {}
        self._subset_numbers: dict[GenePath, int] = {}
        self._fixed = {drop.position for drop in plan.drops if not drop.maybe}

    def found(self) -> Collected:
        for where in REST:
            if (recipe := self.plan.rest(where)) is not None:
                place = _Where((where,), where, -1, ALWAYS, own_of(None))
                self._recipe(place, recipe)
        self._drops()
        self._layers()
        self._scales()
        self._bridges()
        if self.plan.stack is not None:
            self._stack(self.plan.stack.items, self.plan.stack.limit)
        return self.all

    # ------------------------------------------------------------------------------ what is dropped

    def _drops(self) -> None:
        for g, choice in enumerate(self.plan.drop_any):
            self.all.sizes.append(choice.count)
            for position in choice.among:
                made = Bit(f"drop L{position}", "drop", position, ALWAYS, group=g)
                self._drop_bits[position] = self._bit(("drop_any", g, position), made)
        maybe = [(i, drop) for i, drop in enumerate(self.plan.drops) if drop.maybe]
        certain = len(self._fixed) + sum(self.all.sizes) + len(maybe)
        if certain >= self.layers and maybe:
            self.all.keeper = maybe[-1][1].position
        for i, entry in maybe:
            path = (*owner("drops", i, entry), "maybe")
            name = self._said(f"drop L{entry.position}", entry, self.plan.drops)
            made = Bit(name, "drop", entry.position, NEVER)
            self._drop_bits[entry.position] = self._bit(path, made)
        for i, entry in maybe:
            self._also(owner("drops", i, entry), self._drop_counts(entry.position))

    def _drop_counts(self, position: int) -> Condition:
        """When a `maybe drop` makes a difference: always, but for the layer that has to stay."""
        return self._others_kept if position == self.all.keeper else ALWAYS

    @cached_property
    def _others_kept(self) -> Condition:
        others = (p for p in range(self.layers) if p != self.all.keeper)
        return some(self._kept(p) for p in others)

    @cached_property
    def _others_dropped(self) -> Condition:
        others = (p for p in range(self.layers) if p != self.all.keeper)
        return every(*(self._dropped(p) for p in others))

    def _kept(self, position: int) -> Condition:
        if position in self._fixed:
            return NEVER
        if position not in self._drop_bits:
            return ALWAYS
        stays = bit(self._drop_bits[position], on=False)
        return some([stays, self._others_dropped]) if position == self.all.keeper else stays

    def _dropped(self, position: int) -> Condition:
        if position in self._fixed:
            return ALWAYS
        if position not in self._drop_bits:
            return NEVER
        goes = bit(self._drop_bits[position])
        return every(goes, self._others_kept) if position == self.all.keeper else goes

    # ------------------------------------------------------------------------------ the statements

    def _layers(self) -> None:
        for i, layer in enumerate(self.plan.layers):
            part = f".{layer.part}" if layer.part else ""
            name = self._said(f"L{layer.position}{part}", layer, self.plan.layers, part)
            place = _Where(
                owner("layers", i, layer),
                name,
                layer.position,
                self._kept(layer.position),
                own_of(layer.position),
            )
            if layer.maybe:
                differs = self._differs(place, layer.recipe)
                maybe = Bit(f"{name} otherwise", f"otherwise{part}", layer.position, differs)
                number = self._bit((*place.path, "maybe"), maybe)
                place = replace(place, when=every(place.when, bit(number)))
            self._recipe(place, layer.recipe)

    def _differs(self, place: _Where, recipe: Recipe) -> Condition:
        """When a recipe is not just the base's own, should the position stay."""
        if isinstance(recipe, Merge):
            return place.when
        self._recipe(replace(place, when=NEVER), recipe)  # so that its genes have numbers
        if isinstance(recipe, Subset):
            bits = self._members(place, recipe)
            there = [bit(n) for name, n in bits.items() if not _is_own(name, recipe, place)]
            return every(place.when, some(there))
        model = recipe.take.model
        if isinstance(model, str):
            return NEVER if recipe == place.base else place.when
        pick = self.all.index[*place.path, "take", "model"]
        others = [
            option(pick, v)
            for v, name in enumerate(model.one_of)
            if Take(take=LayerOf(model=name, layer=recipe.take.layer)) != place.base
        ]
        return every(place.when, some(others))

    def _scales(self) -> None:
        for i, scale in enumerate(self.plan.scales):
            name = self._said(f"scale L{scale.position}", scale, self.plan.scales)
            kept = self._kept(scale.position)
            place = _Where(owner("scales", i, scale), name, scale.position, kept)
            place = self._maybe(place, scale.maybe, "scaled")
            self._value(place.inside("factor"), scale.factor, "by")

    def _bridges(self) -> None:
        for i, bridge in enumerate(self.plan.bridges):
            after = bridge.after
            place = _Where(
                ("bridges", i),
                "bridge" if after is None else f"bridge L{after}",
                -1 if after is None else after,
                self._any_gap if after is None else self._gap(after),
            )
            place = self._maybe(place, bridge.maybe, "bridged")
            if bridge.ridge is not None:
                self._value(place.inside("ridge"), bridge.ridge, "ridge")

    @cached_property
    def _any_gap(self) -> Condition:
        return some(map(self._gap, range(self.layers - 1)))

    def _gap(self, after: int) -> Condition:
        if after + 1 not in self._fixed and after + 1 not in self._drop_bits:
            return NEVER
        return every(self._kept(after), self._dropped(after + 1))

    def _stack(self, items: tuple[Item, ...], limit: int | None) -> None:
        fixed = sum(not item.maybe for item in items)
        self.all.room = len(items) if limit is None else limit - fixed
        for i, item in enumerate(items):
            path = owner("items", i, item)
            place = _Where(path, self._said(f"item {i}", item, items), i, ALWAYS)
            if item.maybe:
                path = (*path, "maybe")
                self.all.items.append(self._bit(path, Bit(f"{place.name} is in", "item", i, NEVER)))
        maybe = [i for i, item in enumerate(items) if item.maybe]
        for n, i in enumerate(maybe):
            self._also(owner("items", i, items[i]), every(room(n), self._item_counts(n, fixed)))
        for i, item in enumerate(items):
            when = ALWAYS
            if item.maybe:
                n = maybe.index(i)
                there = every(bit(self.all.items[n]), room(n))
                when = some([there, self._none_on]) if fixed == n == 0 else there
            path = owner("items", i, item)
            self._recipe(_Where(path, self._said(f"item {i}", item, items), i, when), item.recipe)

    @cached_property
    def _none_on(self) -> Condition:
        return every(*(bit(n, on=False) for n in dict.fromkeys(self.all.items)))

    def _item_counts(self, n: int, fixed: int) -> Condition:
        """The first item stays where no other does, with it alone of what it is tied to."""
        mine = self.all.items[0]
        if fixed or self.all.items[n] != mine:
            return ALWAYS
        if n:
            return ALWAYS if self.all.room > 1 else NEVER
        return some(bit(other) for other in dict.fromkeys(self.all.items) if other != mine)

    def _maybe(self, place: _Where, maybe: bool, kind: str) -> _Where:
        if not maybe:
            return place
        made = Bit(f"{place.name} at all", kind, place.at, place.when)
        number = self._bit((*place.path, "maybe"), made)
        return replace(place, when=every(place.when, bit(number)))

    @staticmethod
    def _said(name: str, entry: Open, entries: tuple[Open, ...], part: str = "") -> str:
        """An entry's name; with `tied`, that of the statement."""
        if entry.tied is None:
            return name
        tied = [one for one in entries if one.tied == entry.tied]
        ends = [getattr(one, "position", None) for one in (tied[0], tied[-1])]
        if ends[0] is None:
            return f"{name.split(maxsplit=1)[0]}s tied {entry.tied}"
        before, _, _ = name.rpartition("L")
        return f"{before}L{ends[0]}..L{ends[1]}{part}"

    # ------------------------------------------------------------------------------------- recipes

    def _recipe(self, place: _Where, recipe: Recipe) -> None:
        if isinstance(recipe, Take):
            self._model(place.inside("take"), recipe.take, "takes")
            return
        if isinstance(recipe, Subset):
            self._subset(place, recipe)
            return
        for k, source in enumerate(recipe.merge):
            self._model(place.inside("merge", k), source, f"source {k + 1}")
        if recipe.share is not None:
            self._value(place.inside("share"), recipe.share, "share")
        if recipe.by is not None:
            self._by(place.inside("by"), recipe.by, {})

    def _model(self, place: _Where, source: LayerOf, said: str) -> None:
        if isinstance(source.model, OneOfModels):
            names = source.model.one_of
            other = next((i for i, name in enumerate(names) if name != "base"), 0)
            gene = Pick(f"{place.name} {said}", said, place.at, place.when, names, names, other)
            self._add((*place.path, "model"), gene, self.all.picks)

    def _subset(self, place: _Where, recipe: Subset) -> None:
        bits = self._members(place, recipe)
        for name, number in bits.items():
            if _is_own(name, recipe, place):  # alone it is what none is
                others = some(bit(n) for n in bits.values() if n != number)
                self._also_when(number, every(place.when, others))
            else:
                self._also_when(number, place.when)
        subset = self._subset_numbers[place.path]
        when = every(place.when, several(subset))
        at, known = self.all.merged.get(place.path, (place.at, NEVER))
        self.all.merged[place.path] = at, some([known, when])
        if recipe.by is not None:
            chosen = {k: bits[name] for k, name in enumerate(recipe.any_of)}
            self._by(place.inside("by", when=when), recipe.by, chosen)

    def _members(self, place: _Where, recipe: Subset) -> Mapping[str, int]:
        first = next((name for name in recipe.any_of if name != "base"), recipe.any_of[0])
        bits = {}
        for name in recipe.any_of:
            made = Bit(
                f"{place.name} has {name}", f"has {name}", place.at, NEVER, default=name == first
            )
            bits[name] = self._bit((*place.path, "any_of", name), made)
        if place.path not in self._subset_numbers:
            self._subset_numbers[place.path] = len(self.all.subsets)
            self.all.subsets.append(list(bits.values()))
        return bits

    def _by(self, place: _Where, by: By, chosen: Mapping[int, int]) -> None:
        if isinstance(by, MethodCall):
            self._call(place, by, chosen)
            return
        labels = tuple(call.name for call in by.one_of)
        if len(set(labels)) < len(labels):
            labels = tuple(f"{name} {v}" for v, name in enumerate(labels))
        gene = Pick(f"{place.name} by", "by", place.at, place.when, by.one_of, labels)
        number = self._add((*place.path, "one_of"), gene, self.all.picks)
        for v, call in enumerate(by.one_of):
            when = every(place.when, option(number, v))
            self._call(place.inside("one_of", v, when=when), call, chosen)

    def _call(self, place: _Where, call: MethodCall, chosen: Mapping[int, int]) -> None:
        method = METHODS[call.name]
        for name, value in call.arguments.items():
            said = f"{call.name} {name}"
            if not isinstance(value, tuple):
                self._value(place.inside("arguments", name), value, said)
                continue
            variadic = method.variadic is not None and len(value) > 1
            for k, one in enumerate(value):
                when = every(place.when, bit(chosen[k])) if variadic and chosen else None
                inner = place.inside("arguments", name, k, when=when)
                self._value(inner, one, f"{said} {k + 1}" if len(value) > 1 else said)

    def _value(self, place: _Where, value: Value, said: str) -> None:
        name = f"{place.name} {said}"
        if isinstance(value, Interval):
            low, high = map(float, value.interval)
            real = Real(name, said, place.at, place.when, low, high)
            self._add(place.path, real, self.all.reals)
        elif isinstance(value, OneOfNumbers):
            labels = tuple(map(repr, value.one_of))
            gene = Pick(name, said, place.at, place.when, value.one_of, labels)
            self._add(place.path, gene, self.all.picks)

    # ------------------------------------------------------------------------------------ the genes

    def _bit(self, path: GenePath, gene: Bit) -> int:
        return self._add(path, gene, self.all.bits)

    def _add(self, path: GenePath, gene: _GeneKind, genes: list[_GeneKind]) -> int:
        """The gene's number; one that is there already counts in more places."""
        if path not in self.all.index:
            self.all.index[path] = len(genes)
            genes.append(gene)
            return len(genes) - 1
        number = self.all.index[path]
        known = genes[number]
        genes[number] = replace(known, when=some([known.when, gene.when]))
        return number

    def _also(self, path: GenePath, when: Condition) -> None:
        self._also_when(self.all.index[*path, "maybe"], when)

    def _also_when(self, number: int, when: Condition) -> None:
        known = self.all.bits[number]
        self.all.bits[number] = replace(known, when=some([known.when, when]))


def _is_own(name: str, recipe: Subset, place: _Where) -> bool:
    return Take(take=LayerOf(model=name, layer=recipe.layer)) == place.base
