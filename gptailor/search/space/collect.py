"""Which genes a plan's open sites are closed by, and when each of them counts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, final

from gptailor.plan import plan as p
from gptailor.plan import sites as plan_sites
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import may_overlap, rank
from gptailor.plan.layers import own
from gptailor.plan.sites import (
    SEVERAL,
    Given,
    Site,
    drops_by_choice,
    entries,
    names_in,
    shared_place,
    sites,
)
from gptailor.plan.windows import stretch_of, window_words
from gptailor.search.space import genome as g


def own_of(position: int | None) -> p.Take:
    """The base's own layer there; without a position, the base's own tensor."""
    return p.Take(take=p.LayerOf(model="base")) if position is None else own(position)


@final
class Collecting:
    """Numbers the genes of all open sites, then says when each counts.

    Sites of tied entries are closed by the same genes, which count where one of them does.
    """

    def __init__(self, plan: p.Plan, layers: int) -> None:
        self.plan = plan
        self.layers = layers
        self.sites = tuple(s for s in sites(plan) if s.open and s.subject.role != "tokens")
        self._entries = dict(entries(plan))
        self._shared = shared_place(plan)
        self._found: dict[type, list[Any]] = {g.Bit: [], g.Pick: [], g.Real: []}
        self._made: dict[Place, tuple[list[Any], tuple[int, ...]]] = {}
        self._needing: dict[str, g.Condition] = {}
        for site in self.sites:
            if (place := self._shared(site.place)) not in self._made:
                made = g.genes_of(site, self._called(site), self._position(site.entry))
                genes = self._found[type(made[0])]
                self._made[place] = genes, tuple(range(len(genes), len(genes) + len(made)))
                genes += made
        subsets = (self._shared(s.place) for s in self.sites if isinstance(s.value, p.Subset))
        self._subsets = {place: n for n, place in enumerate(dict.fromkeys(subsets))}
        items = plan.stack.items if plan.stack else ()
        self._maybe = [i for i, item in enumerate(items) if item.maybe]
        self._items = [self.numbers(("stack", "items", i, "maybe"))[0] for i in self._maybe]
        self._fixed_items = len(items) - len(self._maybe)
        limit = plan.stack.limit if plan.stack else None
        self._room = len(items) if limit is None else limit - self._fixed_items
        self._fixed = {drop.position for drop in plan.drops if not drop.maybe}
        self._inside: list[tuple[int, int]] = []
        self._drops: dict[int, tuple[g.Condition, g.Condition]] = {}
        for site in (one for one in self.sites if one.subject.role in ("drop", "window", "block")):
            if isinstance(site.value, p.RepeatWindow):
                pick = self.numbers(site.place)[0]
                self._inside += [(pick, position) for position in site.value.among]
            else:
                self._drops |= self._by_choice(site)
        maybe = [drop.position for drop in plan.drops if drop.maybe]
        chosen = (p.count_ends(one.count)[1] for _, one in drops_by_choice(plan))
        certain = len(self._fixed) + len(maybe) + sum(chosen)
        self.keeper = maybe[-1] if maybe and certain >= layers else None

    def numbers(self, place: Place) -> tuple[int, ...]:
        """The numbers of the genes that the choice at a place is closed by."""
        return self._made[self._shared(place)][1]

    def genes(self) -> g.Genes:
        """All genes, each with its condition."""
        merged: dict[Place, tuple[int, g.Condition]] = {}
        for site in self.sites:
            place = self._shared(site.place)
            genes, numbers = self._made[place]
            for k, number in enumerate(numbers):
                when = g.some([genes[number].when, self._when(site, k)])
                genes[number] = replace(genes[number], when=when)
            if isinstance(site.value, p.Subset):
                at, known = merged.get(place, (self._position(site.entry), g.NEVER))
                when = g.every(self._there(site.entry), g.several(self._subsets[place]))
                merged[place] = at, g.some([known, when])
        return g.Genes(
            tuple(self._found[g.Bit]),
            tuple(self._found[g.Pick]),
            tuple(self._found[g.Real]),
            tuple(p.count_ends(choice.count) for choice in self.plan.drop_any),
            tuple(self.numbers(place) for place in self._subsets),
            tuple(self._inside),
            tuple(self._items),
            self._room,
            tuple(merged.values()),
        )

    # ------------------------------------------------------------------------------ of an entry

    def _position(self, at: Place) -> int:
        entry = self._entries.get(at)
        if isinstance(entry, p.Item):
            return int(at[-1])
        position = entry.after if isinstance(entry, p.Bridge) else getattr(entry, "position", None)
        return -1 if position is None else int(position)

    def _called(self, site: Site) -> str:
        """The name of a choice's entry in those of its genes; with `tied`, the statement's."""
        at = site.entry
        entry = self._entries.get(at)
        if entry is None:
            if at[:1] == ("models",):
                return f"model {at[1]}"
            return str(site.place[1 if site.subject.role == "let" else 0])
        if not hasattr(entry, "position"):
            return _named_alone(entry, at)
        tied = [self._position(at)]
        if entry.tied is not None:
            mates = [p for p, e in self._entries.items() if p[0] == at[0] and e.tied == entry.tied]
            tied = [self._position(mates[0]), self._position(mates[-1])]
        before = {"drops": "drop ", "scales": "scale "}.get(str(at[0]), "")
        part = f".{entry.part}" if isinstance(entry, p.Layer) and entry.part else ""
        return before + "..".join(f"L{position}" for position in tied) + part

    def _there(self, at: Place) -> g.Condition:
        """When an entry takes effect."""
        entry = self._entries.get(at)
        if entry is None:
            return self._used(str(at[1])) if at else g.ALWAYS
        if isinstance(entry, p.Item):
            return self._item_there(at) if entry.maybe else g.ALWAYS
        place = self._place(at)
        return g.every(place, g.bit(self.numbers((*at, "maybe"))[0])) if entry.maybe else place

    def _used(self, name: str) -> g.Condition:
        """When a model is one that the plan needs, as what another is made of too."""
        if name not in self._needing:
            found = [self._used(n) for n, one in self.plan.models.items() if one.on == name]
            for at, recipe in plan_sites.recipes(self.plan):
                found += [
                    g.every(self._there(at[:-1]), *self._named(at, recipe, place))
                    for place, named, _ in plan_sites.named_models(recipe)
                    if named == name
                ]
            if (heal := self.plan.heal) is not None and heal.teacher == name:
                found.append(g.some(map(self._kept, heal.layers)) if heal.layers else g.ALWAYS)
            self._needing[name] = g.some(found)
        return self._needing[name]

    def _named(self, at: Place, recipe: p.Recipe, place: Place) -> Iterator[g.Condition]:
        """When a recipe that is there takes the model that it names at a place in it."""
        if isinstance(recipe, p.Subset):
            yield g.bit(self.numbers(at)[int(place[-1])])
        elif place[-2] == "one_of":
            yield g.option(self.numbers((*at, *place[:-2]))[0], int(place[-1]))

    def _place(self, at: Place) -> g.Condition:
        """When there is a place for an entry: a layer that stays, a gap."""
        entry = self._entries[at]
        if isinstance(entry, p.Repeat):  # while a layer of the block stays
            return g.some(map(self._kept, range(entry.first, entry.last + 1)))
        if isinstance(entry, p.RepeatWindow):
            return g.ALWAYS
        if not isinstance(bridge := entry, p.Bridge):
            return self._kept(self._position(at))
        gaps = range(self.layers - 1) if bridge.after is None else [bridge.after]
        return g.some(map(self._gap, gaps))

    # ------------------------------------------------------------------------------- of a choice

    def _when(self, site: Site, k: int) -> g.Condition:
        """When a choice says something: its only gene, or the bit number `k`."""
        role = site.subject.role
        if role in ("drop", "cut", "window"):
            return self._when_dropping(site)
        if role == "item":
            n = self._maybe.index(int(site.entry[-1]))
            return g.every(g.room(n), self._item_counts(n))
        if role in ("otherwise", "scaled", "bridged", "repeated"):
            place = self._place(site.entry)
            return g.every(place, self._differs(site.entry)) if role == "otherwise" else place
        if role == "let":
            return g.some(map(self._counts, self._uses.get(str(site.place[1]), ())))
        when = g.every(self._there(site.entry), *map(self._given, site.when))
        if isinstance(site.value, p.Subset) and k in self._own_members(site.entry, site.value):
            others = (n for i, n in enumerate(self.numbers(site.place)) if i != k)
            return g.every(when, g.some(map(g.bit, others)))  # alone it is what none is
        return when

    def _when_dropping(self, site: Site) -> g.Condition:
        """One makes a difference always where it is taken, but for the layer that has to stay."""
        if isinstance(site.value, p.DropAny | p.DropWindow):
            return self._taken(site.entry)
        keeps = self.keeper is not None and self._position(site.entry) == self.keeper
        return self._others_kept if keeps else g.ALWAYS

    def _counts(self, site: Site) -> g.Condition:
        """When what a site says is said at all."""
        return g.every(self._there(site.entry), *map(self._given, site.when))

    @cached_property
    def _uses(self) -> Mapping[str, Sequence[Site]]:
        """Where the names of numbers are used."""
        found: dict[str, list[Site]] = {}
        for site in sites(self.plan):
            for name in names_in(site.value):
                found.setdefault(name, []).append(site)
        return found

    def _given(self, given: Given) -> g.Condition:
        place, value = given
        shared = self._shared(place)
        genes, numbers = self._made[shared]
        if value == SEVERAL:
            return g.several(self._subsets[shared])
        picked = isinstance(genes[numbers[0]], g.Pick)
        return g.option(numbers[0], value) if picked else g.bit(numbers[value])

    def _own(self, at: Place) -> p.Take | None:
        """The base's own at an entry's place, which a recipe may come to."""
        entry = self._entries.get(at)
        return own_of(entry.position if isinstance(entry, p.Layer) else None)

    def _own_members(self, at: Place, subset: p.Subset) -> list[int]:
        own = self._own(at)
        members = (p.Take(take=p.LayerOf(model=name, layer=subset.layer)) for name in subset.any_of)
        return [k for k, member in enumerate(members) if member == own]

    def _differs(self, at: Place) -> g.Condition:
        """When an entry says something: it isn't the base's own, or what lies below isn't."""
        layer = self._entries[at]
        if not isinstance(layer, p.Layer):
            return g.ALWAYS
        below = [
            place
            for place, other in self._entries.items()
            if isinstance(other, p.Others | p.Whole)
            or (
                isinstance(other, p.Layer)
                and other.position == layer.position
                and rank(other.part) < rank(layer.part)
                and may_overlap(other.part, layer.part)
            )
        ]
        return g.some([self._differs_alone(at, layer), *map(self._stays, below)])

    def _stays(self, at: Place) -> g.Condition:
        """When a closed plan has the entry."""
        entry = self._entries[at]
        there = g.bit(self.numbers((*at, "maybe"))[0]) if entry.maybe else g.ALWAYS
        return g.every(there, self._differs(at))

    def _differs_alone(self, at: Place, layer: p.Layer) -> g.Condition:
        """When a layer's recipe is not just the base's own."""
        recipe = layer.recipe
        if isinstance(recipe, p.Subset):
            mine = self._own_members(at, recipe)
            numbers = self.numbers((*at, "recipe"))
            return g.some(g.bit(n) for k, n in enumerate(numbers) if k not in mine)
        if isinstance(recipe, p.Merge) or isinstance(recipe.take.model, str):
            return g.NEVER if recipe == self._own(at) else g.ALWAYS
        [pick] = self.numbers((*at, "recipe", "take", "model"))
        models = recipe.take.model.one_of
        others = (
            v
            for v, name in enumerate(models)
            if p.Take(take=p.LayerOf(model=name, layer=recipe.take.layer)) != self._own(at)
        )
        return g.some(g.option(pick, v) for v in others)

    # ------------------------------------------------------------------------ positions and items

    def _by_choice(self, site: Site) -> Iterator[tuple[int, tuple[g.Condition, g.Condition]]]:
        """Each position that a choice may drop, when it goes, and when it stays."""
        value, numbers = site.value, self.numbers(site.place)
        literal = g.bit
        among: Sequence[int] = (self._position(site.entry),)
        if isinstance(value, p.DropAny | p.DropWindow):
            among = value.among
        if isinstance(value, p.DropWindow):
            literal, first = g.inside, len(self._inside)
            self._inside += [(numbers[0], position) for position in among]
            numbers = tuple(range(first, len(self._inside)))
        taken, left = self._taken(site.entry), self._taken(site.entry, on=False)
        for position, n in zip(among, numbers, strict=True):
            stays = g.some([literal(n, False), left])
            yield position, (g.every(literal(n), taken), stays)

    def _taken(self, at: Place, on: bool = True) -> g.Condition:
        """When a choice of several drops is made at all, or isn't."""
        entry = self._entries[at]
        if isinstance(entry, p.DropAny | p.DropWindow) and entry.maybe:
            return g.bit(self.numbers((*at, "maybe"))[0], on)
        return g.ALWAYS if on else g.NEVER

    @cached_property
    def _others_kept(self) -> g.Condition:
        return g.some(self._kept(p) for p in range(self.layers) if p != self.keeper)

    @cached_property
    def _others_dropped(self) -> g.Condition:
        return g.every(*(self._dropped(p) for p in range(self.layers) if p != self.keeper))

    def _kept(self, position: int) -> g.Condition:
        if position in self._fixed:
            return g.NEVER
        if position not in self._drops:
            return g.ALWAYS
        _, stays = self._drops[position]
        return g.some([stays, self._others_dropped]) if position == self.keeper else stays

    def _dropped(self, position: int) -> g.Condition:
        if position in self._fixed:
            return g.ALWAYS
        if position not in self._drops:
            return g.NEVER
        goes, _ = self._drops[position]
        return g.every(goes, self._others_kept) if position == self.keeper else goes

    def _gap(self, after: int) -> g.Condition:
        if after + 1 not in self._fixed and after + 1 not in self._drops:
            return g.NEVER
        return g.every(self._kept(after), self._dropped(after + 1))

    def _item_there(self, at: Place) -> g.Condition:
        n = self._maybe.index(int(at[-1]))
        there = g.every(g.bit(self._items[n]), g.room(n))
        none = g.every(*(g.bit(number, on=False) for number in dict.fromkeys(self._items)))
        return g.some([there, none]) if self._fixed_items == n == 0 else there

    def _item_counts(self, n: int) -> g.Condition:
        """The first item stays where no other does, with it alone of those that it is tied to."""
        mine = self._items[0]
        if self._fixed_items or self._items[n] != mine:
            return g.ALWAYS
        if n:
            return g.ALWAYS if self._room > 1 else g.NEVER
        return g.some(g.bit(other) for other in dict.fromkeys(self._items) if other != mine)


def _named_alone(entry: p.Open, at: Place) -> str:
    """What an entry that has no position is called in the names of its genes."""
    match entry:
        case p.Others(part=str(part)):
            return f"others.{part}"
        case p.Item(tied=tied):
            return f"item {at[-1]}" if tied is None else f"items tied {tied}"
        case p.Bridge(after=after):
            return "bridge" if after is None else f"bridge L{after}"
        case p.DropAny(among=among) | p.DropWindow(among=among):
            what = "any" if isinstance(entry, p.DropAny) else "window"
            return f"drop {what} {window_words((among[0], among[-1]))}"
        case p.Repeat() | p.RepeatWindow():
            window = isinstance(entry, p.RepeatWindow)
            return f"repeat {'window ' * window}{window_words(stretch_of(entry))}"
        case _:
            return str(at[0])
