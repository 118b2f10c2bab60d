"""The output's layers one by one: what each is made of, and what became of every position."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptailor.diagnostics import Place
from gptailor.plan import Item, LayerOf, Merge, Part, Plan, Recipe, Take, Value

PARTS: tuple[Part, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class Made:
    """What a layer, or a part of one, is made of, and where the plan says so (empty: nowhere)."""

    recipe: Recipe
    at: Place = ()
    maybe: bool = False


@dataclass(frozen=True)
class Slot:
    """A position of the base, or an item of a stack, and what becomes of it.

    `made` has one entry for the whole layer (None) or one for each part. `divisor` is the product
    of the scales of the layers before it, by which its residual branches' outputs are divided.
    """

    position: int | None
    made: dict[Part | None, Made]
    dropped: Literal["no", "yes", "maybe"] = "no"
    scale: Value | None = None
    divisor: float = 1.0

    def part(self, part: Part) -> Made:
        """What a part is made of: its own recipe, or the whole layer's."""
        return self.made[part] if part in self.made else self.made[None]

    @property
    def own(self) -> bool:
        """Whether the plan says nothing of it: the base's own layer."""
        return self.dropped == "no" and all(not made.at for made in self.made.values())


def own(position: int) -> Take:
    """The base's own layer."""
    return Take(take=LayerOf(model="base", layer=position))


def slots(plan: Plan, count: int) -> list[Slot]:
    """All positions of a base with that many layers, dropped ones too, or the items of a stack."""
    if plan.stack is not None:
        return [_item(i, item) for i, item in enumerate(plan.stack.items)]
    decided: dict[int, dict[Part | None, Made]] = {}
    for i, layer in enumerate(plan.layers):
        made = Made(layer.recipe, ("layers", i), layer.maybe)
        decided.setdefault(layer.position, {}).setdefault(layer.part, made)
    drops = _drops(plan)
    scales = {scale.position: scale.factor for scale in plan.scales}
    found = []
    divisor = 1.0
    for position in range(count):
        made_of = _filled(decided.get(position, {}), position)
        dropped = drops.get(position, "no")
        scale = scales.get(position) if dropped != "yes" else None
        found.append(Slot(position, made_of, dropped, scale, divisor))
        divisor *= scale if isinstance(scale, int | float) else 1.0
    return found


def kept(plan: Plan, count: int) -> list[Slot]:
    """The output's layers of a closed plan, in order."""
    return [slot for slot in slots(plan, count) if slot.dropped == "no"]


def _item(i: int, item: Item) -> Slot:
    at: Place = ("stack", "items", i)
    made: dict[Part | None, Made] = {None: Made(item.recipe, at, item.maybe)}
    return Slot(None, made, "maybe" if item.maybe else "no")


def _drops(plan: Plan) -> dict[int, Literal["no", "yes", "maybe"]]:
    drops: dict[int, Literal["no", "yes", "maybe"]] = {}
    for choice in plan.drop_any:
        drops |= dict.fromkeys(choice.among, "maybe")
    for drop in plan.drops:
        drops[drop.position] = "maybe" if drop.maybe else "yes"
    return drops


def _filled(made: dict[Part | None, Made], position: int) -> dict[Part | None, Made]:
    """With the base's own for what is not decided."""
    if not made:
        return {None: Made(own(position))}
    if None in made:
        return {None: made[None]}
    return {part: made.get(part, Made(own(position))) for part in PARTS}


def sources(recipe: Recipe) -> Iterator[tuple[str, int | None]]:
    """The model and layer of each source of a closed recipe."""
    layers: tuple[LayerOf, ...] = ()
    if isinstance(recipe, Take):
        layers = (recipe.take,)
    elif isinstance(recipe, Merge):
        layers = recipe.merge
    for layer in layers:
        if isinstance(layer.model, str):
            yield layer.model, layer.layer
