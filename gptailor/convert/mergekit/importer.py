"""A mergekit configuration as a plan, and what of it the plan can't say: `from_mergekit`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor.checks.plan import check_alone
from gptailor.convert.mergekit import mixture
from gptailor.convert.mergekit.bases import HOW_TO_SAY, Whereabouts
from gptailor.convert.mergekit.config import SliceBlock, read_config
from gptailor.convert.mergekit.parameters import value_at
from gptailor.convert.mergekit.reading import Reading, read_over
from gptailor.convert.mergekit.rest import dtype_of, notes_of_file, tokenizer_recipe
from gptailor.convert.note import ConversionError, Note, Unsayable, gathered
from gptailor.convert.yaml import Document, read_documents
from gptailor.plan import plan as p
from gptailor.plan.faults import errors
from gptailor.plan.layers import PARTS, own
from gptailor.plan.parts import Branch
from gptailor.plan.registry import METHODS

_BRANCHES = "attn and mlp of a layer are merged differently, and an item of a stack is whole layers"
_SHARED = "a plan decides a branch with its norms"
_FORGOTTEN = (
    "where the first slice has fewer sources than the last, mergekit forgets some for the "
    "final norm and the head; here they have them all"
)
_FUSED = (
    "mergekit merges all experts of a layer as one tensor, gptailor each by itself, which is not "
    "the same by '{}'"
)
_TOWERS = "the base reads images too: mergekit merges its towers, a plan copies the base's"


def from_mergekit(  # noqa: PLR0913 (the verb of the command line, and its flags)
    text: str,
    name: str,
    layers: int | None = None,
    *,
    root: Path | None = None,
    folder: Path | None = None,
    models: Mapping[str, Path] | None = None,
    on_hub: bool = False,
    strict: bool = False,
) -> tuple[p.Plan, list[Note]]:
    """The plan of a configuration, and what differs or has no equivalent, by its keys.

    The base's configuration is looked for in `models` (folders by the file's or the plan's names
    of models), under `root`, where relative paths start, and, with `on_hub`, in the Hub's cache and
    on the Hub; `layers` is its number of layers where that is all that is known. `folder` is where
    the plan will stand, as seen from which its paths are written. With `strict` keys that mergekit
    passes over are errors. Raises ConversionError, with all keys and lines, for what can't be said.
    """
    documents = read_documents(text, name)
    if len(documents) > 1:
        message = f"these are {len(documents)} documents, one merge after the other"
        help_ = "import each by itself, the outputs of those before it compiled"
        raise ConversionError(message, name=name, help=help_)
    _refuse_other_tools(documents[0])
    config, ignored = read_config(documents[0])
    places = Whereabouts(root, models or {}, on_hub)
    reading = read_over(config, places, folder, layers)
    reading.notes = [*ignored, *reading.notes]
    made, said = list(_layers(reading)), _ends(reading)
    dtype, tokenizer = dtype_of(reading), tokenizer_recipe(reading)
    _raise(reading)
    said |= _arranged(reading, made)
    plan = p.Plan(models=reading.models, dtype=dtype, tokenizer=tokenizer, **said)
    reading.notes += notes_of_file(reading)
    if strict:
        passed = (note for note in reading.notes if note.ignored)
        reading.errors += [
            ConversionError(note.message, name=name, place=note.place, line=note.line)
            for note in passed
        ]
        _raise(reading)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, gathered(reading.notes)


_OTHER_TOOLS = {
    "experts": "this is a file of mergekit-moe, which makes a mixture of experts out of dense "
    "models with a router of its own: a plan's output has its base's architecture",
    "genome": "this is a file of mergekit-evolve, which searches: what it found is a "
    "configuration of its own, which can be imported; 'gptailor search' searches a space",
    "stages": "this lists other files that are to be merged one after the other: import each, "
    "or join them into one file of several documents, each with its 'name'",
}
"""Keys of files that are others' than mergekit-yaml's and mergekit-multi's."""


def _refuse_other_tools(document: Document) -> None:
    data = document.data
    for key, message in _OTHER_TOOLS.items() if isinstance(data, dict) else ():
        if data.get(key) and "merge_method" not in data:
            raise document.error((key,), message)


def _raise(reading: Reading) -> None:
    if reading.errors:
        raise ConversionError.of_all(reading.errors)


# -------------------------------------------------------------------------------------- the layers

_MadeLayer = tuple[frozenset[int], dict[Branch | None, p.Recipe], SliceBlock]
"""The layer numbers of the sources; the recipe of the whole layer or of each part; the slice."""


def _layers(reading: Reading) -> Iterator[_MadeLayer]:
    number = 0
    for piece in reading.slices:
        for offset in range(piece.length):
            numbers = frozenset(source.layer_range[offset] for source in piece.sources)
            parts = _parts(reading, piece, (offset, number))
            first, *others = parts.values()
            alike = all(recipe == first for recipe in others)
            yield numbers, {None: first} if alike else parts, piece
            number += 1


def _parts(
    reading: Reading, piece: SliceBlock, where: tuple[int, int]
) -> dict[Branch | None, p.Recipe]:
    """The one recipe of each part: its projections agree, its norms follow.

    `where` is the layer's number in its slice and in the output. Gradients are at 0 at a slice's
    first layer and at 1 at its last; at 1 in a slice of one.
    """
    offset, _ = where
    t = offset / (piece.length - 1) if piece.length > 1 else 1.0
    names = reading.tensor_names
    if names is None:
        return {None: _recipe(reading, piece, "", t, where)}
    recipes = {rest: _recipe(reading, piece, rest, t, where) for rest in names.inner}
    found: dict[Branch | None, p.Recipe] = {}
    for part in PARTS:
        inner = [rest for rest, of in names.inner.items() if of == part]
        if inner:
            found[part] = _one_recipe(reading, piece, {rest: recipes[rest] for rest in inner})
    return found


def _one_recipe(reading: Reading, piece: SliceBlock, recipes: Mapping[str, p.Recipe]) -> p.Recipe:
    others = [rest for rest in recipes if not re.search(r"norm|\bln_", rest)] or list(recipes)
    first = others[0]
    for rest, recipe in recipes.items():
        if recipe == recipes[first]:
            continue
        block, inside = reading.filtered(piece)
        if rest in others:
            message = f"'{first}' and '{rest}' are merged differently; {_SHARED}, as one"
            reading.errors.append(block.error(message, *inside))
            continue
        message = f"'{rest}' has a value of its own, and gets what '{first}' gets: {_SHARED}"
        reading.notes.append(block.note(message, *inside))
    return recipes[first]


def _ends(reading: Reading) -> dict[str, Any]:
    """Embedding, norm and head: of the first and the last slice, where gradients start."""
    first, last = reading.slices[0], reading.slices[-1]
    if len(first.sources) < len(last.sources):
        reading.notes.append(last.note(_FORGOTTEN, "sources"))
    names, found = reading.tensor_names, {}
    for where, piece in (("embed", first), ("norm", last), ("head", last)):
        tensors = ("",) if names is None else getattr(names, where)
        recipes = [_recipe(reading, piece, name, 0.0) for name in tensors]
        if any(recipe != recipes[0] for recipe in recipes):
            block, inside = reading.filtered(piece)
            message = f"the tensors of '{where}' are merged differently"
            reading.errors.append(block.error(message, *inside))
        found[where] = recipes[0]
    try:
        if found["head"] != found["embed"] and reading.tied(last):
            del found["head"]
    except ConversionError as error:
        reading.errors.append(error)
    if (known := reading.base.known) is not None and known.tied:
        found.pop("head", None)
    base = p.Take(take=p.LayerOf(model="base"))
    return {where: recipe for where, recipe in found.items() if recipe != base}


def _recipe(
    reading: Reading, piece: SliceBlock, rest: str, t: float, where: tuple[int, int] | None = None
) -> p.Recipe:
    """The recipe of one tensor: `rest`, in a layer of slice and output if `where` says its numbers.

    A source's parameters are those of the source's own tensor, the slice's of the output's. What
    can't be said is kept as an error, and any recipe comes back.
    """
    try:
        return _read_recipe(reading, piece, rest, t, where)
    except ConversionError as error:
        reading.errors.append(error)
        return p.Take(take=p.LayerOf(model="base", layer=where[1] if where else None))


def _read_recipe(
    reading: Reading, piece: SliceBlock, rest: str, t: float, where: tuple[int, int] | None
) -> p.Recipe:
    method, base = reading.method, piece.base_model or reading.config.base_model
    blocks, names = (piece, *reading.blocks), reading.tensor_names
    sources = []
    for source in piece.sources:
        number = source.layer_range[where[0]] if where else None
        tensor, every = names.name(number, rest) if names else rest, (source, *blocks)
        given = {name: value_at(name, tensor, t, every) for name in method.by_source}
        layer = p.LayerOf(model=reading.names[source.model], layer=number)
        sources.append(mixture.Ingredient(layer, source.model == base, given))
    tensor = names.name(where[1] if where else None, rest) if names else rest
    shared = {name: value_at(name, tensor, t, blocks) for name in method.shared}
    try:
        recipe = method.read(mixture.Mixture(method.name, sources, shared))
    except Unsayable as why:
        raise piece.error(f"{why} ('{tensor}')" if tensor else str(why)) from None
    if isinstance(recipe, p.Merge):
        reading.merges = True
        _check_merge(reading, piece, recipe)
    return recipe


def _check_merge(reading: Reading, piece: SliceBlock, recipe: p.Merge) -> None:
    base, known = piece.base_model or reading.config.base_model, reading.base.known
    assert isinstance(recipe.by, p.MethodCall)
    by = recipe.by.name
    if METHODS[by].takes_base(recipe.by.arguments) and base != reading.reference:
        message = f"a plan has one base, '{reading.reference}', and this slice has another"
        raise piece.error(message, "base_model")
    if known is not None and known.towers:
        raise piece.error(_TOWERS)
    fused = known is not None and known.names is not None and known.names.fused
    if fused and by not in ("linear", "task_arithmetic"):
        help_ = "linear and task_arithmetic are the same either way"
        raise piece.error(_FUSED.format(by), help=help_)


def _arranged(reading: Reading, made: Sequence[_MadeLayer]) -> dict[str, Any]:
    """Layers and drops, if they stand in the base's order, at their numbers in it; else a stack."""
    count = reading.base.layers
    positions = [next(iter(numbers)) for numbers, _, _ in made if len(numbers) == 1]
    ascending = len(positions) == len(made) and positions == sorted(set(positions))
    if count is not None and ascending and positions[-1] < count:
        entries = tuple(
            p.Layer(position=n, part=part, recipe=recipe)
            for n, (_, parts, _) in zip(positions, made, strict=True)
            for part, recipe in parts.items()
            if recipe != own(n)
        )
        drops = tuple(p.Drop(position=n) for n in range(count) if n not in positions)
        return {"layers": entries, "drops": drops}
    for _, parts, piece in made:
        if None not in parts:
            raise piece.error(_BRANCHES, help=HOW_TO_SAY if count is None else "")
    return {"stack": p.Stack(items=tuple(p.Item(recipe=parts[None]) for _, parts, _ in made))}
