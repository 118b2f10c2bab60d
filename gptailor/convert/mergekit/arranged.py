"""Recipes of tensors as statements: of everything, of the other layers' parts, of positions."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from gptailor.convert.mergekit.amounts import GivenAmount, Gradient, Mix, NeedsNumbers
from gptailor.convert.mergekit.bases import HOW_TO_SAY
from gptailor.convert.mergekit.names import TensorNames
from gptailor.convert.mergekit.reading import Reading
from gptailor.convert.mergekit.tensors import MadeLayer, made_layers, mix_of
from gptailor.convert.note import ConversionError, Unsayable
from gptailor.plan import plan as p
from gptailor.plan.parts import BRANCHES, NORMS

_OWN = Mix(("base",))
_STACK = "parts of a layer are merged differently, and an item of a stack is whole layers"
_FORGOTTEN = (
    "where the first slice has fewer sources than the last, mergekit forgets some for the "
    "final norm and the head; here they have them all"
)
_PATTERNS = (
    "{} are merged by recipes of their own, and a position has one pattern at most; name larger "
    "parts"
)

_Over = tuple[int, int] | None
_Parts = dict[str | None, Mix]


def statements(reading: Reading) -> dict[str, Any]:
    """What a plan says of its layers, embedding, norm and head; errors are the reading's."""
    first, last = reading.slices[0], reading.slices[-1]
    if len(first.sources) < len(last.sources):
        reading.notes.append(last.note(_FORGOTTEN, "sources"))
    ends = _ends(reading, 0.0)  # where mergekit has gradients start
    deep = len(reading.slices) == 1 and reading.covers_base
    try:
        made = list(made_layers(reading))
    except NeedsNumbers:
        reading.count_layers()
        made = list(made_layers(reading))
    if reading.errors:
        return {}
    alike = all(layer.mixes == made[0].mixes for layer in made)
    if deep and alike:
        return _of_everything(reading, made[0], ends)
    said = {where: _recipe(mix) for where, mix in ends.items() if mix != _OWN}
    return said | _of_positions(reading, made)


# ----------------------------------------------------------------------------- numbers and models


def _recipe(mix: Mix, layers: Callable[[str], int | None] = lambda _: None, over: _Over = None,
            ) -> p.Recipe:  # fmt: skip
    """A recipe of the plan, of the layers that each model has there."""
    sources = tuple(p.LayerOf(model=model, layer=layers(model)) for model in mix.models)
    if not mix.method:
        return p.Take(take=sources[0])
    arguments = {name: _argument(value, over) for name, value in mix.arguments}
    call = p.MethodCall(name=mix.method, arguments=arguments)
    return p.Merge(merge=sources, by=call)


def _argument(value: GivenAmount, over: _Over) -> Any:
    if isinstance(value, tuple):
        return tuple(_argument(one, over) for one in value)
    return p.Curve(curve=value.knots, over=over) if isinstance(value, Gradient) else value


def _curves(mix: Mix) -> bool:
    values = (one for _, value in mix.arguments
              for one in (value if isinstance(value, tuple) else (value,)))  # fmt: skip
    return any(isinstance(value, Gradient) for value in values)


def _at_the_end(mix: Mix) -> Mix:
    """With the last knots of its curves, which are what `whole` has in the final norm and head."""

    def last(value: GivenAmount) -> Any:
        if isinstance(value, tuple):
            return tuple(map(last, value))
        return value.knots[-1] if isinstance(value, Gradient) else value

    return replace(mix, arguments=tuple((name, last(value)) for name, value in mix.arguments))


# ---------------------------------------------------------------------------------------- the ends


_Ends = dict[str, Mix]


def _ends(reading: Reading, t: float | None) -> _Ends:
    """Embedding, norm and head: of the first and the last slice; without a head that is tied.

    Their gradients, or what these are at `t`.
    """
    first, last = reading.slices[0], reading.slices[-1]
    names, found = reading.tensor_names, dict[str, Mix]()
    for where, piece in (("embed", first), ("norm", last), ("head", last)):
        tensors = ("",) if names is None else getattr(names, where)
        layer = MadeLayer(piece, 0, {})
        mixes = [mix_of(reading, layer, name, None, t) for name in tensors]
        if any(mix != mixes[0] for mix in mixes):
            block, inside = reading.filtered(piece)
            message = f"the tensors of '{where}' are merged differently"
            reading.errors.append(block.error(message, *inside))
        found[where] = mixes[0]
    try:
        known = reading.base.known
        differ = found["head"] != found["embed"]
        if (known is not None and known.tied) or (differ and reading.tied(last)):
            del found["head"]
    except ConversionError as error:
        reading.errors.append(error)
    return found


# ------------------------------------------------------------------------------------------- layers


def _of_everything(reading: Reading, layer: MadeLayer, ends: _Ends) -> dict[str, Any]:
    """What is said of all layers at once, and of the whole model where its ends are the same."""
    said: dict[str, Any] = {}
    along, inner = _ends(reading, None), set(layer.mixes.values())
    whole = next(iter(inner)) if len(inner) == 1 else along["embed"]
    if whole not in along.values():
        whole = _OWN
    if whole != _OWN:
        said["whole"] = p.Whole(recipe=_recipe(whole))
    for where, mix in ends.items():
        late = where != "embed" and _curves(whole)
        if (mix != _at_the_end(whole)) if late else along.get(where, mix) != whole:
            said[where] = _recipe(mix)
    try:
        parts = _parts(reading.tensor_names, layer.mixes, whole)
    except Unsayable as why:
        block, inside = reading.filtered(layer.piece)
        raise block.error(str(why), *inside) from None
    said["others"] = tuple(p.Others(part=part, recipe=_recipe(mix)) for part, mix in parts.items())
    return said


def _of_positions(reading: Reading, made: Sequence[MadeLayer]) -> dict[str, Any]:
    """Layers and drops, if they stand in the base's order, at their numbers in it; else a stack."""
    count, names = reading.base.layers, reading.tensor_names
    positions = [next(iter(layer.layers)) for layer in made if len(layer.layers) == 1]
    ascending = len(positions) == len(made) and positions == sorted(set(positions))
    if count is None or not ascending or positions[-1] >= count:
        return {"stack": p.Stack(items=tuple(_item(reading, layer, count) for layer in made))}
    entries: list[p.Layer] = []
    for n, layer in zip(positions, made, strict=True):
        start = n - layer.offset
        over = (start, start + layer.piece.length - 1)
        try:
            parts = _parts(names, layer.mixes, _OWN)
        except Unsayable as why:
            block, inside = reading.filtered(layer.piece)
            raise block.error(str(why), *inside) from None
        for part, mix in parts.items():
            recipe = _recipe(mix, dict.fromkeys(mix.models, n).get, over)
            entries.append(p.Layer(position=n, part=part, recipe=recipe))
    drops = tuple(p.Drop(position=n) for n in range(count) if n not in positions)
    return {"layers": tuple(entries), "drops": drops}


def _item(reading: Reading, layer: MadeLayer, count: int | None) -> p.Item:
    mixes = set(layer.mixes.values())
    if len(mixes) > 1:
        raise layer.piece.error(_STACK, help=HOW_TO_SAY if count is None else "")
    numbers = {reading.names[s.model]: s.layer_range[layer.offset] for s in layer.piece.sources}
    over = (layer.offset, layer.piece.length - 1)
    return p.Item(recipe=_recipe(mixes.pop(), numbers.get, over))


# -------------------------------------------------------------------------------------------- parts


def _parts(names: TensorNames | None, mixes: Mapping[str, Mix], default: Mix) -> _Parts:
    """The fewest parts of a layer that give each tensor its recipe, coarse ones first.

    `default` is what tensors get that none of them holds. Raises Unsayable where more than one
    pattern would be needed.
    """
    if names is None or len(set(mixes.values())) == 1:
        (mix,) = set(mixes.values())
        return {} if mix == default else {None: mix}
    found: _Parts = {}
    gets = dict.fromkeys(mixes, default)
    for part, mix, inside in (*_branches(names, mixes), *_roles(names, mixes)):
        if any(gets[rest] != mixes[rest] for rest in inside) and any(
            gets[rest] != mix for rest in inside
        ):
            found[part] = mix
            gets |= dict.fromkeys(inside, mix)
    left = [rest for rest in mixes if gets[rest] != mixes[rest]]
    if left:
        if len({mixes[rest] for rest in left}) > 1 or (glob := _glob(names, left)) is None:
            raise Unsayable(_PATTERNS.format(" and ".join(f"'{rest}'" for rest in left)))
        found[f'"{glob}"'] = mixes[left[0]]
    return found


_Part = tuple[str, Mix, list[str]]
"""A part, the recipe that it would have, and its tensors."""


def _branches(names: TensorNames, mixes: Mapping[str, Mix]) -> Iterator[_Part]:
    """Both branches, by the recipe that most of their projections have."""
    for branch in BRANCHES if names.apart else ():
        inside = [rest for rest in mixes if names.inner[rest] == branch]
        if inside:
            projections = [rest for rest in inside if names.role(rest) != NORMS] or inside
            (mix, _), *_ = Counter(mixes[rest] for rest in projections).most_common(1)
            yield branch, mix, inside


def _roles(names: TensorNames, mixes: Mapping[str, Mix]) -> Iterator[_Part]:
    """Norms and projections whose tensors all have one recipe."""
    roles = dict.fromkeys(role for rest in mixes if (role := names.role(rest)) is not None)
    for role in sorted(roles, key=lambda one: one != NORMS):
        inside = [rest for rest in mixes if names.role(rest) == role]
        wanted = {mixes[rest] for rest in inside}
        if len(wanted) == 1:
            yield role, wanted.pop(), inside


def _start(names: Sequence[str]) -> str:
    """What all names begin with."""
    least, most = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), None)
    return least[:same]


def _glob(names: TensorNames, rests: Sequence[str]) -> str | None:
    """A pattern that fits these tensors of the layer and no other."""
    wanted = [one for rest in rests for one in names.stored.get(rest, (rest,))]
    if len(wanted) == 1:
        return wanted[0]
    glob = f"{_start(wanted)}*{_start([one[::-1] for one in wanted])[::-1]}"
    others = [one for rest in names.inner if rest not in rests
              for one in names.stored.get(rest, (rest,))]  # fmt: skip
    return None if any(fnmatchcase(one, glob) for one in others) else glob
