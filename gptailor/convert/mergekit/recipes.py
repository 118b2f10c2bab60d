"""What mergekit makes each tensor of, as recipes of a plan's layers, parts, and the rest."""

from collections.abc import Iterator
from dataclasses import dataclass

from gptailor.convert.mergekit.config import Slice
from gptailor.convert.mergekit.mixture import Ingredient, Mixture
from gptailor.convert.mergekit.parameters import ParameterBlocks, Spot
from gptailor.convert.mergekit.reading import Reading
from gptailor.convert.mergekit.tensors import is_norm
from gptailor.convert.note import Unsayable
from gptailor.plan.faults import Place
from gptailor.plan.layers import PARTS
from gptailor.plan.plan import LayerOf, Merge, Part, Recipe, Take

_BASELESS = ("slerp", "linear", "karcher", "passthrough")
_SHARED = "a plan decides a branch with its norms"
_FORGOTTEN = (
    "where the first slice has fewer sources than the last, mergekit forgets some for the "
    "final norm and the head; here they have them all"
)


@dataclass(frozen=True)
class MadeLayer:
    """An output layer: the layer numbers of its sources, and the recipe of each part."""

    numbers: frozenset[int]
    parts: dict[Part, Recipe]
    at: Place

    @property
    def whole(self) -> Recipe | None:
        """The one recipe of both parts, if they have one."""
        first, *others = self.parts.values()
        return first if all(other == first for other in others) else None


@dataclass(frozen=True)
class _Row:
    """A layer of a slice: how far into the slice, its number in the output, its gradients' t."""

    piece: Slice
    offset: int
    number: int

    @property
    def t(self) -> float:
        """0 at the slice's first layer, 1 at its last; 1 for a slice of one."""
        return self.offset / (self.piece.length - 1) if self.piece.length > 1 else 1.0


def layers(reading: Reading) -> Iterator[MadeLayer]:
    """The output's layers in order."""
    number = 0
    for piece in reading.config.slices:
        for offset in range(piece.length):
            row = _Row(piece, offset, number)
            numbers = frozenset(source.start + offset for source in piece.sources)
            yield MadeLayer(numbers, {part: _part(reading, row, part) for part in PARTS}, piece.at)
            number += 1


def ends(reading: Reading) -> dict[str, Recipe]:
    """Embedding, norm and head: of the first and the last slice, where gradients start."""
    first, last = reading.config.slices[0], reading.config.slices[-1]
    if len(first.sources) < len(last.sources):
        reading.note((*last.at, "sources"), _FORGOTTEN)
    found = {}
    for where, piece in (("embed", first), ("norm", last), ("head", last)):
        if where == "head" and reading.tensors.tied:
            continue
        names = getattr(reading.tensors, where)
        recipes = [_recipe(reading, piece, None, Spot(name, 0.0), name) for name in names]
        if any(recipe != recipes[0] for recipe in recipes):
            message = f"the tensors of '{where}' are merged differently"
            raise reading.document.error(reading.filtered(piece), message)
        if recipes and recipes[0] != Take(take=LayerOf(model="base")):
            found[where] = recipes[0]
    return found


def _part(reading: Reading, row: _Row, part: Part) -> Recipe:
    """The one recipe of a part: its projections agree, its norms follow."""
    recipes = {}
    for rest in reading.tensors.parts[part]:
        spot = Spot(reading.tensors.name(row.number, rest), row.t)
        recipes[rest] = _recipe(reading, row.piece, row.offset, spot, rest)
    first, *others = [rest for rest in recipes if not is_norm(rest)] or list(recipes)
    for rest, recipe in recipes.items():
        if recipe == recipes[first]:
            continue
        at = reading.filtered(row.piece)
        if rest in others:
            message = f"'{first}' and '{rest}' are merged differently; {_SHARED}, as one"
            raise reading.document.error(at, message)
        message = f"'{rest}' has a value of its own, and gets what '{first}' gets: {_SHARED}"
        reading.note(at, message)
    return recipes[first]


def _recipe(reading: Reading, piece: Slice, offset: int | None, spot: Spot, rest: str) -> Recipe:
    """What one tensor is made of: `rest`, in a layer of the slice if there is an `offset`.

    A source's parameters are those of the source's own tensor, the slice's of the output's.
    """
    method = reading.method
    settings = ParameterBlocks(reading.document, (piece.scope, *reading.config.scopes))
    sources = []
    for source in piece.sources:
        number = None if offset is None else source.start + offset
        there = Spot(rest if number is None else reading.tensors.name(number, rest), spot.t)
        given = {name: settings.of(source, name, there) for name in method.by_source}
        layer = LayerOf(model=reading.names[source.model], layer=number)
        sources.append(Ingredient(layer, reading.is_base(piece, source), given))
    shared = {name: settings.shared(name, spot) for name in method.shared}
    try:
        recipe = method.recipe(Mixture(reading.config.method, sources, shared))
    except Unsayable as why:
        raise reading.document.error(piece.at, f"{why} ('{spot.tensor}')") from None
    of_base = reading.config.method not in _BASELESS and isinstance(recipe, Merge)
    if of_base and (piece.base or reading.config.base) != reading.base:
        message = f"a plan has one base, '{reading.base}', and this slice has another"
        raise reading.document.error((*piece.at, "base_model"), message)
    return reading.met(recipe)
