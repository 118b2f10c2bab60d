"""What each tensor of the output is made of: a configuration's parameters read tensor by tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from gptailor.convert.mergekit import amounts
from gptailor.convert.mergekit.amounts import Mix, NeedsNumbers
from gptailor.convert.mergekit.config import SliceBlock
from gptailor.convert.mergekit.parameters import value_at
from gptailor.convert.mergekit.reading import Reading
from gptailor.convert.note import ConversionError, Note, Unsayable
from gptailor.plan.registry import METHODS

_FUSED = (
    "mergekit merges all experts of a layer as one tensor, gptailor each by itself, which is not "
    "the same by '{}'"
)
_TOWERS = "the base reads images too: mergekit merges its towers, a plan copies the base's"
_UNKNOWN = (
    "the base's configuration isn't known: were it a mixture of experts, or read images, mergekit "
    "would merge it otherwise"
)
_BY_ENTRY = ("linear", "task_arithmetic", "ram")
"""Methods that see no more of a tensor than one entry of each source."""


@final
@dataclass(frozen=True)
class MadeLayer:
    """An output layer: its slice, its number within it, and the recipes of its tensors.

    The tensors go by their names within the layer; one without a name stands for all.
    """

    piece: SliceBlock
    offset: int
    mixes: Mapping[str, Mix]

    @property
    def layers(self) -> frozenset[int]:
        """The layer numbers of the sources."""
        return frozenset(source.layer_range[self.offset] for source in self.piece.sources)

    @property
    def t(self) -> float:
        """How far through its slice it is: 0 at the first layer, 1 at the last and only one."""
        return self.offset / (self.piece.length - 1) if self.piece.length > 1 else 1.0


def made_layers(reading: Reading) -> Iterator[MadeLayer]:
    """The output's layers, in order."""
    number = 0
    for piece in reading.slices:
        for offset in range(piece.length):
            layer = MadeLayer(piece, offset, {})
            names = reading.tensor_names
            rests = ("",) if names is None else tuple(names.inner)
            found = {rest: mix_of(reading, layer, rest, number) for rest in rests}
            yield MadeLayer(piece, offset, found)
            number += 1


def mix_of(
    reading: Reading, layer: MadeLayer, rest: str, number: int | None, t: float | None = None
) -> Mix:
    """The recipe of one tensor, of a layer or of none (`number` None): with gradients, or at `t`.

    A source's parameters are those of the source's own tensor, the slice's of the output's. What
    can't be said is kept as an error, and any recipe comes back. Raises NeedsNumbers where a
    gradient has no words and the slice's layers aren't counted yet.
    """
    try:
        try:
            return _read(reading, layer, rest, number, t)
        except NeedsNumbers:
            if number is not None and not reading.counted:
                raise
            return _read(reading, layer, rest, number, layer.t if number is not None else 0.0)
    except ConversionError as error:
        reading.errors.append(error)
        return Mix(("base",))


def _read(
    reading: Reading, layer: MadeLayer, rest: str, number: int | None, t: float | None
) -> Mix:
    method, piece = reading.method, layer.piece
    base = piece.base_model or reading.config.base_model
    blocks, names = (piece, *reading.blocks), reading.tensor_names
    sources = []
    for source in piece.sources:
        inner = None if number is None else source.layer_range[layer.offset]
        tensor, every = names.name(inner, rest) if names else rest, (source, *blocks)
        given = {name: value_at(name, tensor, t, every, method) for name in method.by_source}
        sources.append(amounts.Ingredient(reading.names[source.model], source.model == base, given))
    tensor = names.name(number, rest) if names else rest
    shared = {name: value_at(name, tensor, t, blocks, method) for name in method.shared}
    try:
        mix = method.read(amounts.Mixture(method.name, sources, shared))
        if mix.method:
            reading.merges = True
            _check(reading, layer, mix)
    except Unsayable as why:
        raise piece.error(str(why)) from None
    return mix


def _check(reading: Reading, layer: MadeLayer, mix: Mix) -> None:
    """Raise for a merge that is another here than in mergekit."""
    piece, known = layer.piece, reading.base.known
    base = piece.base_model or reading.config.base_model
    if mix.method not in METHODS:
        raise Unsayable(f"'{mix.method}' has no equivalent")
    if METHODS[mix.method].takes_base(dict(mix.arguments)):
        if base != reading.reference:
            message = f"a plan has one base, '{reading.reference}', and this slice has another"
            raise piece.error(message, "base_model")
        _check_layers(reading, layer, mix)
    if known is None and mix.method not in _BY_ENTRY:
        reading.notes.append(Note("", _UNKNOWN))
    if known is not None and known.towers:
        raise piece.error(_TOWERS)
    fused = known is not None and known.names is not None and known.names.fused
    if fused and mix.method not in _BY_ENTRY:
        help_ = "linear and task_arithmetic are the same either way"
        raise piece.error(_FUSED.format(reading.method.name), help=help_)


def _check_layers(reading: Reading, layer: MadeLayer, mix: Mix) -> None:
    numbers = {reading.names[s.model]: s.layer_range[layer.offset] for s in layer.piece.sources}
    ours = numbers["base"]
    for model in mix.models:
        if numbers[model] != ours:
            what = f"L{numbers[model]} {model} against L{ours} of the base"
            name = reading.method.name
            raise Unsayable(f"'{name}' takes {what}; a plan takes task vectors layer by layer")
