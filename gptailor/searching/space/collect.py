"""Genes that close a plan's open sites, and the conditions under which they count."""

from collections.abc import Iterator, Sequence
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
from gptailor.searching.space import genome as g


def own_of(position: int | None) -> p.Take:
    """Return the base's layer at a position. Without a position, return the base's own tensor."""
    return p.Take(take=p.LayerOf(model="base")) if position is None else own(position)


@final
class Collecting:
    """The genes of all open sites, and the condition under which each gene counts.

    The sites of tied entries share their genes. A shared gene counts where it counts at any site.

    `sizes` has the least and the greatest number of bits that are on, for each set. `inside` has a
    window pick and a position for each position that the pick's windows may contain. `items` has
    the bit of each `maybe` item of a stack. `room` is the greatest number of such items. `merged`
    has, for each subset, its position and the condition that two members or more are chosen.
    """

    def __init__(self, plan: p.Plan, layers: int) -> None:
        self.plan = plan
        self.layers = layers
        self.sites = tuple(s for s in sites(plan) if s.open and s.subject.role != "tokens")
        self.bits: list[g.Bit] = []
        self.picks: list[g.Pick] = []
        self.reals: list[g.Real] = []
        self.sizes = [p.count_ends(choice.count) for choice in plan.drop_any]
        self.inside: list[tuple[int, int]] = []
        self.merged: dict[Place, tuple[int, g.Condition]] = {}
        self._entries = dict(entries(plan))
        self._shared = shared_place(plan)
        self._genes_at: dict[Place, tuple[list[Any], tuple[int, ...]]] = {}
        self._needing: dict[str, g.Condition] = {}
        kinds: dict[type, list[Any]] = {g.Bit: self.bits, g.Pick: self.picks, g.Real: self.reals}
        for site in self.sites:
            if (place := self._shared(site.place)) not in self._genes_at:
                added = g.genes_of(site, self._entry_name(site), self._position(site.entry))
                same_kind = kinds[type(added[0])]
                numbers = range(len(same_kind), len(same_kind) + len(added))
                self._genes_at[place] = same_kind, tuple(numbers)
                same_kind += added
        items = plan.stack.items if plan.stack else ()
        self._maybe = [i for i, item in enumerate(items) if item.maybe]
        self.items = [self.numbers(("stack", "items", i, "maybe"))[0] for i in self._maybe]
        self._fixed_items = len(items) - len(self._maybe)
        limit = plan.stack.limit if plan.stack else None
        self.room = len(items) if limit is None else limit - self._fixed_items
        self._drops: dict[int, g.Condition] = {}
        for site in self.sites:
            if site.subject.role in ("drop", "window", "block"):
                self._drops |= self._by_choice(site)
        fixed = {drop.position for drop in plan.drops if not drop.maybe}
        self._drops |= dict.fromkeys(fixed, g.ALWAYS)
        maybe = [drop.position for drop in plan.drops if drop.maybe]
        chosen = (p.count_ends(choice.count)[1] for _, choice in drops_by_choice(plan))
        certain = len(fixed) + len(maybe) + sum(chosen)
        self.keeper = maybe[-1] if maybe and certain >= layers else None
        for site in self.sites:
            self._set_conditions(site)

    def numbers(self, place: Place) -> tuple[int, ...]:
        """Return the numbers of the genes that close the choice at a place."""
        return self._genes_at[self._shared(place)][1]

    def _set_conditions(self, site: Site) -> None:
        """Let the genes of a choice count at its site, too."""
        place = self._shared(site.place)
        genes, numbers = self._genes_at[place]
        for k, number in enumerate(numbers):
            when = g.some([genes[number].when, self._when(site, k)])
            genes[number] = replace(genes[number], when=when)
        if isinstance(site.value, p.Subset):
            at, before = self.merged.get(place, (self._position(site.entry), g.NEVER))
            when = g.every(self._takes_effect(site.entry), g.several(numbers))
            self.merged[place] = at, g.some([before, when])

    # ------------------------------------------------------------------------------ of an entry

    def _position(self, at: Place) -> int:
        entry = self._entries.get(at)
        if isinstance(entry, p.Item):
            return int(at[-1])
        position = entry.after if isinstance(entry, p.Bridge) else getattr(entry, "position", None)
        return -1 if position is None else int(position)

    def _entry_name(self, site: Site) -> str:  # noqa: PLR0911 (a case for each entry)
        """Return the name of a choice's entry in its genes' names.

        Tied entries have one name, with their first and their last position.
        """
        at = site.entry
        match entry := self._entries.get(at):
            case None if at[:1] == ("models",):
                return f"model {at[1]}"
            case None:
                return str(site.place[1 if site.subject.role == "let" else 0])
            case p.Others(part=str(part)):
                return f"others.{part}"
            case p.Item(tied=tied):
                return f"item {at[-1]}" if tied is None else f"items tied {tied}"
            case p.Bridge(after=after):
                return "bridge" if after is None else f"bridge L{after}"
            case p.DropAny(among=among) | p.DropWindow(among=among):
                kind = "any" if isinstance(entry, p.DropAny) else "window"
                return f"drop {kind} {window_words((among[0], among[-1]))}"
            case p.Repeat() | p.RepeatWindow():
                window = isinstance(entry, p.RepeatWindow)
                return f"repeat {'window ' * window}{window_words(stretch_of(entry))}"
            case p.Others() | p.Whole():
                return str(at[0])
        places = [at]
        if entry.tied is not None:
            mates = [p for p, e in self._entries.items() if p[0] == at[0] and e.tied == entry.tied]
            places = [mates[0], mates[-1]]
        prefix = {"drops": "drop ", "scales": "scale "}.get(str(at[0]), "")
        part = f".{entry.part}" if isinstance(entry, p.Layer) and entry.part else ""
        return prefix + "..".join(f"L{self._position(place)}" for place in places) + part

    def _takes_effect(self, at: Place) -> g.Condition:
        """Return the condition under which an entry takes effect."""
        entry = self._entries.get(at)
        if entry is None:
            return self._needed(str(at[1])) if at else g.ALWAYS
        if isinstance(entry, p.Item):
            return self._item_kept(at) if entry.maybe else g.ALWAYS
        return g.every(self._place(at), self._on(at))

    def _on(self, at: Place) -> g.Condition:
        """Return the condition that the `maybe` of an entry, if it has one, is decided for it."""
        maybe = self._entries[at].maybe
        return g.GeneFact("bit", self.numbers((*at, "maybe"))[0]) if maybe else g.ALWAYS

    def _needed(self, name: str) -> g.Condition:
        """Return the condition under which the plan needs a model.

        A model that another needed model is made of is needed, too.
        """
        if name not in self._needing:
            conditions = [
                self._needed(n) for n, model in self.plan.models.items() if model.on == name
            ]
            for at, recipe in plan_sites.recipes(self.plan):
                conditions += [
                    g.every(self._takes_effect(at[:-1]), *self._chosen(at, recipe, place))
                    for place, model, _ in plan_sites.named_models(recipe)
                    if model == name
                ]
            if (heal := self.plan.heal) is not None and name in heal.named_teachers:
                conditions.append(g.some(map(self._kept, heal.layers)) if heal.layers else g.ALWAYS)
            self._needing[name] = g.some(conditions)
        return self._needing[name]

    def _chosen(self, at: Place, recipe: p.Recipe, place: Place) -> Iterator[g.Condition]:
        """Yield the conditions under which an active recipe takes the model at a place in it."""
        if isinstance(recipe, p.Subset):
            yield g.GeneFact("bit", self.numbers(at)[int(place[-1])])
        elif place[-2] == "one_of":
            yield g.GeneFact("option", self.numbers((*at, *place[:-2]))[0], int(place[-1]))

    def _place(self, at: Place) -> g.Condition:
        """Return the condition under which an entry has a place: a layer that stays, or a gap."""
        entry = self._entries[at]
        if isinstance(entry, p.Repeat):  # while a layer of the block stays
            return g.some(map(self._kept, range(entry.first, entry.last + 1)))
        if isinstance(entry, p.RepeatWindow):
            return g.ALWAYS
        if not isinstance(bridge := entry, p.Bridge):
            return self._kept(self._position(at))
        gaps = range(self.layers - 1) if bridge.after is None else [bridge.after]
        return g.some(g.every(self._kept(n), self._goes(n + 1)) for n in gaps)

    # ------------------------------------------------------------------------------- of a choice

    def _when(self, site: Site, k: int) -> g.Condition:
        """Return the condition under which a gene of a choice counts: its only gene, or bit `k`."""
        role = site.subject.role
        if isinstance(site.value, p.DropAny | p.DropWindow):
            return self._on(site.entry)
        if role in ("drop", "cut"):  # the layer that has to stay drops only beside another
            keeps = self._position(site.entry) == self.keeper
            return self._others_kept if keeps else g.ALWAYS
        if role == "item":
            n = self._maybe.index(int(site.entry[-1]))
            return g.every(g.GeneFact("room", n), self._item_counts(n))
        if role in ("otherwise", "scaled", "bridged", "repeated"):
            return g.every(self._place(site.entry), self._differs(site.entry))
        if role == "let":
            uses = (s for s in sites(self.plan) if site.place[1] in names_in(s.value))
            return g.some(map(self._counts, uses))
        when, value = self._counts(site), site.value
        if isinstance(value, p.Subset) and k in self._own_members(
            site.entry, value.any_of, value.layer
        ):
            others = (n for i, n in enumerate(self.numbers(site.place)) if i != k)
            # the base's own alone is the same as no member
            when = g.every(when, g.some(g.GeneFact("bit", n) for n in others))
        return when

    def _counts(self, site: Site) -> g.Condition:
        """Return the condition under which the value at a site takes effect."""
        return g.every(self._takes_effect(site.entry), *map(self._holds, site.when))

    def _holds(self, premise: Given) -> g.Condition:
        place, value = premise
        shared = self._shared(place)
        genes, numbers = self._genes_at[shared]
        if value == SEVERAL:
            return g.several(numbers)
        picked = isinstance(genes[numbers[0]], g.Pick)
        return (
            g.GeneFact("option", numbers[0], value) if picked else g.GeneFact("bit", numbers[value])
        )

    def _own(self, at: Place) -> p.Take | None:
        """Return the base's own layer or tensor at an entry's place."""
        entry = self._entries.get(at)
        return own_of(entry.position if isinstance(entry, p.Layer) else None)

    def _own_members(self, at: Place, models: Sequence[str], layer: int | None) -> list[int]:
        """Return the numbers of the models whose layer is the base's own at an entry's place."""
        members = [p.Take(take=p.LayerOf(model=name, layer=layer)) for name in models]
        return [k for k, member in enumerate(members) if member == self._own(at)]

    def _differs(self, at: Place) -> g.Condition:
        """Return the condition under which an entry changes the plan.

        Either the entry or an entry below it is not the base's own.
        """
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
        """Return the condition under which a closed plan has the entry."""
        return g.every(self._on(at), self._differs(at))

    def _differs_alone(self, at: Place, layer: p.Layer) -> g.Condition:
        """Return the condition under which a layer's recipe is not just the base's own."""
        recipe = layer.recipe
        if isinstance(recipe, p.Subset):
            own_members = self._own_members(at, recipe.any_of, recipe.layer)
            numbers = self.numbers((*at, "recipe"))
            return g.some(
                g.GeneFact("bit", n) for k, n in enumerate(numbers) if k not in own_members
            )
        if isinstance(recipe, p.Merge) or isinstance(recipe.take.model, str):
            return g.NEVER if recipe == self._own(at) else g.ALWAYS
        [pick] = self.numbers((*at, "recipe", "take", "model"))
        models = recipe.take.model.one_of
        own_options = self._own_members(at, models, recipe.take.layer)
        others = (v for v in range(len(models)) if v not in own_options)
        return g.some(g.GeneFact("option", pick, v) for v in others)

    # ------------------------------------------------------------------------ positions and items

    def _by_choice(self, site: Site) -> Iterator[tuple[int, g.Condition]]:
        """Yield each position that a choice may drop, and the condition under which it leaves."""
        entry, numbers = self._entries[site.entry], self.numbers(site.place)
        facts = [g.GeneFact("bit", n) for n in numbers]
        if isinstance(entry, p.DropWindow | p.RepeatWindow):
            first = len(self.inside)
            self.inside += [(numbers[0], position) for position in entry.among]
            facts = [g.GeneFact("inside", n) for n in range(first, len(self.inside))]
        if not isinstance(entry, p.RepeatWindow):
            for position, fact in zip(entry.positions, facts, strict=True):
                yield position, g.every(fact, self._on(site.entry))

    @cached_property
    def _others_kept(self) -> g.Condition:
        return g.some(self._kept(p) for p in range(self.layers) if p != self.keeper)

    def _kept(self, position: int) -> g.Condition:
        return g.none(self._goes(position))

    def _goes(self, position: int) -> g.Condition:
        goes = self._drops.get(position, g.NEVER)
        return g.every(goes, self._others_kept) if position == self.keeper else goes

    def _item_kept(self, at: Place) -> g.Condition:
        n = self._maybe.index(int(at[-1]))
        kept = g.every(g.GeneFact("bit", self.items[n]), g.GeneFact("room", n))
        empty = g.none(*(g.GeneFact("bit", number) for number in self.items))
        return g.some([kept, empty]) if self._fixed_items == n == 0 else kept

    def _item_counts(self, n: int) -> g.Condition:
        """Return the condition under which the `maybe` of an item counts.

        Where all items are `maybe`, an empty stack keeps the first item. So the first item's bit
        counts only beside another item's bit.
        """
        first = self.items[0]
        if self._fixed_items or self.items[n] != first:
            return g.ALWAYS
        if n:
            return g.ALWAYS if self.room > 1 else g.NEVER
        return g.some(
            g.GeneFact("bit", other) for other in dict.fromkeys(self.items) if other != first
        )
