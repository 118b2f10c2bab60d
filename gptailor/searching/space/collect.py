"""Genes that close a plan's open sites, and the conditions under which they count."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

from gptailor.plan import plan as p
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import may_overlap, rank
from gptailor.plan.resolved import own
from gptailor.plan.sites import (
    SEVERAL,
    Site,
    drops_by_choice,
    entries,
    enumerated,
    named_models,
    names_in,
    recipes,
    shared_place,
    sites,
)
from gptailor.plan.windows import window_words
from gptailor.searching.space import genome as g

_WORDS: dict[type[p.Open], str] = {
    p.Layer: "",
    p.LayerBelow: "",
    p.Drop: "drop ",
    p.DropAny: "drop any ",
    p.DropWindow: "drop window ",
    p.Repeat: "repeat ",
    p.RepeatWindow: "repeat window ",
    p.Scale: "scale ",
    p.Bridge: "bridge ",
}
"""The words before the positions in entries' names; `others` and `whole` have their own."""


@final
class Collecting:
    """The genes of all open sites, and the condition under which each gene counts.

    The sites of tied entries share their genes. A shared gene counts where it counts at any site.

    `sizes` has the least and the greatest number of bits that are on, for each set. `inside` has a
    window pick and a position for each position that the pick's windows may contain. `items` has
    the bit of each `maybe` item of a stack. `room` is the greatest number of such items. `merged`
    has, for each subset, its position and the condition that two members or more are chosen.
    `stays` has the condition under which a closed plan has each entry, unless its position leaves,
    and `leaves` the condition under which each position leaves.
    """

    def __init__(self, plan: p.Plan, layers: int) -> None:
        self.plan = plan
        self.layers = layers
        self.sites = tuple(s for s in sites(plan) if s.open and s.subject.role != "tokens")
        self.bits: list[g.Bit] = []
        self.picks: list[g.Pick] = []
        self.reals: list[g.Real] = []
        self.sizes = [p.count_ends(choice.count) for choice in plan.drop_any]
        self.merged: dict[Place, tuple[int, g.Condition]] = {}
        self._entries = dict(entries(plan))
        self._under = [at for at, e in entries(plan) if isinstance(e, p.Others | p.Whole)]
        self._parts: dict[int, list[tuple[Place, str | None]]] = {}
        for i, layer in enumerate(plan.layers):
            self._parts.setdefault(layer.position, []).append((("layers", i), layer.part))
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
        self.inside = [
            (self.numbers(site.place)[0], position)
            for site in self.sites
            if isinstance(site.value, p.DropWindow | p.RepeatWindow)
            for position in site.value.among
        ]
        self._drops = {
            position: when
            for at, entry in enumerated(plan, "drops", "drop_any", "windows")
            for position, when in self._leaving(at, entry)
        }
        maybe = [drop.position for drop in plan.drops if drop.maybe]
        chosen = (p.count_ends(choice.count)[1] for _, choice in drops_by_choice(plan))
        certain = len(plan.drops) + sum(chosen)
        self.keeper = maybe[-1] if maybe and certain >= layers else None
        for site in self.sites:
            self._set_conditions(site)
        self.stays = {at: self._stays(at) for at in self._entries}
        self.leaves = [self._goes(position) for position in range(layers)]

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

    def _entry_name(self, site: Site) -> str:
        """Return the name of a choice's entry in its genes' names.

        Tied entries have one name, with their first and their last position.
        """
        at, entry = site.entry, self._entries.get(site.entry)
        if entry is None:
            numbered = site.subject.role == "let"
            return f"model {at[1]}" if at else str(site.place[1 if numbered else 0])
        if isinstance(entry, p.Item):
            return f"item {at[-1]}" if entry.tied is None else f"items tied {entry.tied}"
        positions, words = entry.positions, ""
        if positions and entry.tied is not None:
            alike = [
                e for of, e in self._entries.items() if of[0] == at[0] and e.tied == entry.tied
            ]
            words = f"L{alike[0].positions[0]}..L{alike[-1].positions[0]}"
        elif positions:
            words = window_words((positions[0], positions[-1]))
        part = f".{entry.part}" if isinstance(entry, p.Layer | p.Others) and entry.part else ""
        return f"{_WORDS.get(type(entry), at[0])}{words}{part}".rstrip()

    def _takes_effect(self, at: Place) -> g.Condition:
        """Return the condition under which an entry takes effect."""
        entry = self._entries.get(at)
        if entry is None:
            return self._needed(str(at[1])) if at else g.ALWAYS
        return g.every(self._place(at), self._on(at))

    def _on(self, at: Place) -> g.Condition:
        """Return the condition that the `maybe` of an entry, if it has one, is decided for it."""
        entry = self._entries[at]
        if entry.maybe and isinstance(entry, p.Item):
            return self._item_kept(at)
        return self._has((*at, "maybe"), 0)

    def _needed(self, name: str) -> g.Condition:
        """Return the condition under which the plan needs a model.

        A model that another needed model is made of is needed, too.
        """
        if name not in self._needing:
            conditions = [
                self._needed(n) for n, model in self.plan.models.items() if model.on == name
            ]
            for at, recipe in recipes(self.plan):
                conditions += [
                    g.every(self._takes_effect(at[:-1]), when)
                    for source, when in self._taken(at, recipe)
                    if source.model == name
                ]
            if (heal := self.plan.heal) is not None and name in heal.named_teachers:
                conditions.append(g.some(map(self._kept, heal.layers)) if heal.layers else g.ALWAYS)
            self._needing[name] = g.some(conditions)
        return self._needing[name]

    def _taken(self, at: Place, recipe: p.Recipe) -> Iterator[tuple[p.LayerOf, g.Condition]]:
        """Yield the layers that an active recipe may take, each with its condition."""
        for place, model, layer in named_models(recipe):
            source = p.LayerOf(model=model, layer=layer)
            yield source, self._has((*at, *place[:-2]), place[-1])

    def _place(self, at: Place) -> g.Condition:
        """Return the condition under which an entry has a place: a layer that stays, or a gap."""
        entry = self._entries[at]
        if isinstance(entry, p.Repeat):  # while a layer of the block stays
            return g.some(map(self._kept, range(entry.first, entry.last + 1)))
        if not isinstance(entry, p.Bridge):  # without a position it always has a place
            return self._kept(self._position(at))
        gaps = range(self.layers - 1) if entry.after is None else [entry.after]
        return g.some(g.every(self._kept(n), self._goes(n + 1)) for n in gaps)

    # ------------------------------------------------------------------------------- of a choice

    def _when(self, site: Site, k: int) -> g.Condition:
        """Return the condition under which a gene of a choice counts: its only gene, or bit `k`."""
        role = site.subject.role
        if isinstance(site.value, p.DropAny | p.DropWindow):
            return self._on(site.entry)
        if role in ("drop", "cut"):  # the layer that has to stay drops only with another
            keeps = self._position(site.entry) == self.keeper
            return self._others_kept() if keeps else g.ALWAYS
        if role == "item":
            return self._item_counts(self._maybe.index(int(site.entry[-1])))
        if role in ("otherwise", "scaled", "bridged", "repeated"):
            return g.every(self._place(site.entry), self._differs(site.entry))
        if role == "let":
            uses = (s for s in sites(self.plan) if site.place[1] in names_in(s.value))
            return g.some(map(self._counts, uses))
        when, value = self._counts(site), site.value
        if isinstance(value, p.Subset) and self._own(site.entry) == p.LayerOf(
            model=value.any_of[k], layer=value.layer
        ):
            others = (self._has(site.place, i) for i in range(len(value.any_of)) if i != k)
            when = g.every(when, g.some(others))  # the base's own alone is the same as no member
        return when

    def _counts(self, site: Site) -> g.Condition:
        """Return the condition under which the value at a site takes effect."""
        return g.every(self._takes_effect(site.entry), *(self._has(*given) for given in site.when))

    def _has(self, place: Place, value: int | str) -> g.Condition:
        """Return the condition that a choice has a value or a member: always if it's no choice."""
        if (shared := self._shared(place)) not in self._genes_at:
            return g.ALWAYS
        genes, numbers = self._genes_at[shared]
        if value == SEVERAL:
            return g.several(numbers)
        if isinstance(genes[numbers[0]], g.Pick):
            return g.GeneFact("option", numbers[0], int(value))
        return g.GeneFact("bit", numbers[int(value)])

    def _own(self, at: Place) -> p.LayerOf:
        """Return the base's own layer or tensor at an entry's place."""
        entry = self._entries.get(at)
        return own(entry.position if isinstance(entry, p.Layer) else None).take

    def _differs(self, at: Place) -> g.Condition:
        """Return the condition under which an entry changes the plan.

        Either the entry or an entry below it is not the base's own.
        """
        layer = self._entries[at]
        if not isinstance(layer, p.Layer) or isinstance(layer.recipe, p.Merge):
            return g.ALWAYS
        taken = self._taken((*at, "recipe"), layer.recipe)
        alone = g.some(when for source, when in taken if source != self._own(at))
        coarser = [
            place
            for place, part in self._parts[layer.position]
            if rank(part) < rank(layer.part) and may_overlap(part, layer.part)
        ]
        return g.some([alone, *map(self._stays, (*coarser, *self._under))])

    def _stays(self, at: Place) -> g.Condition:
        """Return the condition under which a closed plan has an entry that has its position."""
        place = self._place(at) if isinstance(self._entries[at], p.Bridge) else g.ALWAYS
        return g.every(place, self._on(at), self._differs(at))

    # ------------------------------------------------------------------------ positions and items

    def _leaving(self, at: Place, entry: p.Open) -> Iterator[tuple[int, g.Condition]]:
        """Yield each position that a drop may take, and the condition under which it leaves."""
        facts: list[g.Condition] = [g.ALWAYS]
        if isinstance(entry, p.DropAny):
            facts = [g.GeneFact("bit", n) for n in self.numbers(at)]
        elif isinstance(entry, p.DropWindow):
            [pick] = self.numbers(at)
            facts = [g.GeneFact("inside", n) for n, (of, _) in enumerate(self.inside) if of == pick]
        for position, fact in zip(entry.positions, facts, strict=True):
            yield position, g.every(fact, self._on(at))

    def _others_kept(self) -> g.Condition:
        return g.some(self._kept(p) for p in range(self.layers) if p != self.keeper)

    def _kept(self, position: int) -> g.Condition:
        return g.none(self._goes(position))

    def _goes(self, position: int) -> g.Condition:
        goes = self._drops.get(position, g.NEVER)
        return g.every(goes, self._others_kept()) if position == self.keeper else goes

    def _item_kept(self, at: Place) -> g.Condition:
        n = self._maybe.index(int(at[-1]))
        kept = g.every(g.GeneFact("bit", self.items[n]), g.GeneFact("room", n))
        empty = g.none(*(g.GeneFact("bit", number) for number in self.items))
        return g.some([kept, empty]) if self._fixed_items == n == 0 else kept

    def _item_counts(self, n: int) -> g.Condition:
        """Return the condition under which the `maybe` of an item counts: the stack has room.

        Where all items are `maybe`, an empty stack keeps the first item. So the first item's bit
        counts only with another item's bit.
        """
        first, room = self.items[0], g.GeneFact("room", n)
        if self._fixed_items or self.items[n] != first or (n and self.room > 1):
            return room
        others = (g.GeneFact("bit", other) for other in self.items if other != first)
        return g.NEVER if n else g.every(room, g.some(others))
