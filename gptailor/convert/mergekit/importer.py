"""A mergekit configuration as a plan, and what of it the plan can't say: `from_mergekit`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptailor.checks.plan import check_alone
from gptailor.convert.mergekit import recipes, settings
from gptailor.convert.mergekit.config import MergekitConfig, ModelReference, read_config
from gptailor.convert.mergekit.reading import Reading, method_is_known
from gptailor.convert.mergekit.tensors import LLAMA_TENSORS, TensorNames, read_tensors
from gptailor.convert.naming import PathRoots, name_models
from gptailor.convert.note import ConversionError, Note
from gptailor.convert.yaml import read_document
from gptailor.plan.faults import errors
from gptailor.plan.plan import Drop, Item, Layer, LayerOf, Part, Plan, Recipe, Stack, Take

_BRANCHES = "attn and mlp of a layer are merged differently, and an item of a stack is whole layers"
_HELP = "say how many layers the base has"


def from_mergekit(
    text: str,
    name: str,
    layers: int | None = None,
    *,
    root: Path | None = None,
    folder: Path | None = None,
) -> tuple[Plan, list[Note]]:
    """The plan of a configuration, and what differs or has no equivalent, by its keys.

    `layers` is the base's number of layers, which `models:` needs. With `root`, where relative
    paths start, a base that is a folder there is opened to learn that and its tensors' names;
    `folder` is where the plan will stand, as seen from which its paths are written. Raises
    ConversionError, with key and line, for what can't be said.
    """
    document = read_document(text, name)
    config = read_config(document)
    method_is_known(config)
    base, paths = _base(config), PathRoots(root, folder)
    tensors = _tensors(config, base, paths, layers)
    if config.whole:
        config = _counted(config, tensors.layers)
    names, models = name_models(config.references(), base, paths)
    reading = Reading(config, base, names, tensors)
    settings.check_slices(reading)
    settings.check_parameters(reading)
    said: dict[str, Any] = {"models": models, "dtype": settings.dtype(reading)}
    made = list(recipes.layers(reading))
    said |= recipes.ends(reading)
    said |= _overlay(made, tensors.layers) or _stack(reading, made)
    said["tokenizer"] = settings.tokenizer(reading)
    settings.tell_of_the_rest(reading)
    plan = Plan(**said)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, list(dict.fromkeys(reading.notes))


def _base(config: MergekitConfig) -> ModelReference:
    """The model that is the plan's base: the file's, or a slice's, or the first."""
    if config.base is not None:
        return config.base
    bases = [piece.base for piece in config.slices if piece.base is not None]
    return bases[0] if bases else config.slices[0].sources[0].model


def _tensors(
    config: MergekitConfig, base: ModelReference, paths: PathRoots, layers: int | None
) -> TensorNames:
    """The base's tensor names, and its number of layers if it is known."""
    if paths.root is None or not (paths.root / base.path).is_dir():
        return replace(LLAMA_TENSORS, layers=layers)
    tensors = read_tensors(paths.root / base.path)
    if layers not in (None, tensors.layers):
        message = f"the base has {tensors.layers} layers, and not {layers}"
        raise ConversionError(message, name=config.document.name)
    return tensors


def _counted(config: MergekitConfig, layers: int | None) -> MergekitConfig:
    """The same with the layers of its models counted."""
    (piece,) = config.slices
    if layers is None:
        message = "'models' takes all layers of its models, and their number isn't known"
        raise config.document.error(piece.at, message, _HELP)
    sources = tuple(replace(source, end=layers) for source in piece.sources)
    return replace(config, slices=(replace(piece, sources=sources),))


# -------------------------------------------------------------------------------------- the layers


def _overlay(made: Sequence[recipes.MadeLayer], count: int | None) -> dict[str, Any] | None:
    """Layers and drops, if the layers stand in the base's order, at their numbers in it."""
    numbers = [next(iter(layer.numbers)) for layer in made if len(layer.numbers) == 1]
    ascending = len(numbers) == len(made) and numbers == sorted(set(numbers))
    if count is None or not ascending or numbers[-1] >= count:
        return None
    entries = []
    for number, layer in zip(numbers, made, strict=True):
        own = Take(take=LayerOf(model="base", layer=number))
        for part, recipe in _decisions(layer).items():
            if recipe != own:
                entries.append(Layer(position=number, part=part, recipe=recipe))
    gone = sorted(set(range(count)) - set(numbers))
    return {"layers": tuple(entries), "drops": tuple(Drop(position=n) for n in gone)}


def _decisions(layer: recipes.MadeLayer) -> dict[Part | None, Recipe]:
    """The recipe of the layer, or of each part."""
    if layer.whole is not None:
        return {None: layer.whole}
    return {part: recipe for part, recipe in layer.parts.items()}  # noqa: C416 (a wider key)


def _stack(reading: Reading, made: Sequence[recipes.MadeLayer]) -> dict[str, Any]:
    """The layers one after the other."""
    items = []
    for layer in made:
        if layer.whole is None:
            help_ = _HELP if reading.tensors.layers is None else ""
            raise reading.document.error(layer.at, _BRANCHES, help_)
        items.append(Item(recipe=layer.whole))
    return {"stack": Stack(items=tuple(items))}
