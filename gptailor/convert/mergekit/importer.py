"""A mergekit configuration as a plan, and what of it the plan can't say: `from_mergekit`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any, final

from gptailor.checks.plan import check_alone
from gptailor.convert.mergekit.config import (
    MergekitConfig,
    ModelReference,
    ParameterBlock,
    SliceBlock,
    SourceBlock,
    read_config,
)
from gptailor.convert.mergekit.methods import (
    MERGEKIT_METHODS,
    NO_EQUIVALENT,
    Ingredient,
    MergekitMethod,
    Mixture,
)
from gptailor.convert.mergekit.parameters import (
    LLAMA_TENSORS,
    Spot,
    TensorNames,
    filters_of,
    idle_filters,
    idle_in_source,
    parameter,
    read_tensors,
    unread,
)
from gptailor.convert.naming import PathRoots, name_models
from gptailor.convert.note import ConversionError, Note, Unsayable
from gptailor.convert.yaml import Document, read_document
from gptailor.plan.faults import Place, errors, listed, nearest
from gptailor.plan.layers import PARTS, own
from gptailor.plan.plan import Drop, Item, Layer, LayerOf, Merge, Part, Plan, Recipe, Stack, Take
from gptailor.plan.registry import DTYPES

_HELP = "say how many layers the base has"
_BRANCHES = "attn and mlp of a layer are merged differently, and an item of a stack is whole layers"
_SHARED = "a plan decides a branch with its norms"
_FORGOTTEN = (
    "where the first slice has fewer sources than the last, mergekit forgets some for the "
    "final norm and the head; here they have them all"
)
_ROUNDS = "mergekit computes in {} and rounds at each step; gptailor in float32, and rounds once"
_ROWS = (
    "mergekit moves the embeddings' rows to fit that tokenizer; gptailor moves none, and wants "
    "models whose vocabularies are equal"
)
_NO_BASE = (
    "no base_model is named: '{}' is the base, whose configuration and tokenizer the output "
    "gets; mergekit takes those of any of the models, which may differ from run to run"
)


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
    method, base = _method(document, config), _base(config)
    tensors = _tensors(document, base, root, layers)
    slices = _slices(document, config, tensors.layers)
    merged = [source.model for piece in slices for source in piece.sources]
    names, models = name_models(merged, base, PathRoots(root, folder))
    reading = _Reading(document, config, method, base, names, tensors, slices)
    _check(reading)
    said: dict[str, Any] = {"models": models, "dtype": _dtype(reading)}
    made = list(_layers(reading))
    said |= _ends(reading)
    said |= _overlay(made, tensors.layers) or _stack(reading, made)
    said["tokenizer"] = _tokenizer(reading)
    _note_the_rest(reading)
    plan = Plan(**said)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, list(dict.fromkeys(reading.notes))


# ------------------------------------------------------------------------------ what the file means


@final
@dataclass
class _Reading:
    """A configuration while it becomes a plan: what is known of it, and the notes so far."""

    document: Document
    config: MergekitConfig
    method: MergekitMethod
    base: ModelReference
    names: Mapping[ModelReference, str]
    tensors: TensorNames
    slices: list[SliceBlock]
    notes: list[Note] = field(default_factory=list)
    merges: bool = False
    """Whether a merge was met, and not takes alone."""

    def note(self, at: Place, message: str) -> None:
        """Remember what differs at a place."""
        self.notes.append(self.document.note(at, message))

    def base_of(self, piece: SliceBlock) -> ModelReference | None:
        """The base of a slice: its own, or the file's."""
        return piece.base_model or self.config.base_model

    @property
    def blocks(self) -> list[ParameterBlock]:
        """The blocks whose parameters hold for all slices, the nearest first."""
        body = self.config.body
        return [self.config] if body is self.config else [body, self.config]

    def filtered(self, piece: SliceBlock) -> Place:
        """Where the filters of a slice are."""
        for block in (*piece.sources, piece, *self.blocks):
            for name in block.parameters:
                if name in self.method.parameters and filters_of(block, name):
                    return block.parameter_at(name)
        return piece.at


def _method(document: Document, config: MergekitConfig) -> MergekitMethod:
    name = config.merge_method
    if name in MERGEKIT_METHODS:
        return MERGEKIT_METHODS[name]
    message = f"there is no merge_method '{name}'"
    help_ = nearest(name, (*MERGEKIT_METHODS, *NO_EQUIVALENT))
    if name in NO_EQUIVALENT:
        message = f"'{name}' has no equivalent"
        help_ = f"those that have one are {listed(MERGEKIT_METHODS)}"
    raise document.error(("merge_method",), message, help_)


def _base(config: MergekitConfig) -> ModelReference:
    """The model that is the plan's base: the file's, or a slice's, or the first."""
    body = config.body
    slices = body.slices or []
    bases = [config.base_model, *(piece.base_model for piece in slices)]
    first = body.models[0] if body.models else slices[0].sources[0]
    return next((base for base in bases if base is not None), first.model)


def _tensors(
    document: Document, base: ModelReference, root: Path | None, layers: int | None
) -> TensorNames:
    """The base's tensor names, and its number of layers if it is known."""
    if root is None or not (root / base.model.path).is_dir():
        return replace(LLAMA_TENSORS, layers=layers)
    tensors = read_tensors(root / base.model.path)
    if layers not in (None, tensors.layers):
        message = f"the base has {tensors.layers} layers, and not {layers}"
        raise ConversionError(message, name=document.name)
    return tensors


def _slices(document: Document, config: MergekitConfig, count: int | None) -> list[SliceBlock]:
    """The slices; `models` are one of all layers, to which mergekit adds the base, last."""
    body, base = config.body, config.base_model
    if body.models is None:
        return body.slices or []
    at: Place = (*body.at, "models")
    if count is None:
        message = "'models' takes all layers of its models, and their number isn't known"
        raise document.error(at, message, _HELP)
    found = [(block.model, block.parameters, block.at) for block in body.models]
    if base is not None and all(model != base for model, _, _ in found):
        found.append((base, {}, ("base_model",)))
    made, span = SourceBlock.model_construct, [0, count]
    sources = [made(model=model, parameters=given, layer_range=span) for model, given, _ in found]
    piece = SliceBlock.model_construct(sources=sources, parameters={})
    piece.place(at)
    for source, (_, _, here) in zip(sources, found, strict=True):
        source.place(here)
    return [piece]


def _check(reading: _Reading) -> None:
    """Refuse models that stand twice, layers that the base hasn't; note what does nothing."""
    document, method, tensors = reading.document, reading.method, reading.tensors
    for piece in reading.slices:
        if piece.residual_weight is not None:
            reading.note((*piece.at, "residual_weight"), "it does nothing, in mergekit neither")
        for i, source in enumerate(piece.sources):
            if source.model in [other.model for other in piece.sources[:i]]:
                message = f"'{source.model}' stands twice in one slice, which mergekit refuses"
                raise document.error((*source.at, "model"), message)
            count = source.end if tensors.layers is None else tensors.layers
            if source.model == reading.base and source.end > count:
                message = f"the base has {count} layers, and the range ends at {source.end}"
                raise document.error((*source.at, "layer_range"), message)
    sources = [(piece, source) for piece in reading.slices for source in piece.sources]
    count = max(sum(p.length for p in reading.slices), *(source.end for _, source in sources))
    notes: list[tuple[Place, str]] = []
    of_slices = [block for piece in reading.slices for block in (*piece.sources, piece)]
    for block in (*of_slices, *reading.blocks):
        notes += unread(document, block, method)
        notes += idle_filters(document, block, tensors, count)
    for piece, source in sources:
        is_base = source.model == reading.base_of(piece)
        notes += idle_in_source(source, method, is_base=is_base)
    reading.notes += starmap(document.note, notes)


# -------------------------------------------------------------------------------------- the layers

_MadeLayer = tuple[frozenset[int], dict[Part | None, Recipe], Place]
"""The layer numbers of the sources; the recipe of the whole layer or of each part; the slice."""


def _layers(reading: _Reading) -> Iterator[_MadeLayer]:
    """The output's layers in order."""
    number = 0
    for piece in reading.slices:
        for offset in range(piece.length):
            numbers = frozenset(source.start + offset for source in piece.sources)
            parts: dict[Part | None, Recipe]
            parts = {part: _part(reading, piece, (offset, number), part) for part in PARTS}
            alike = parts["attn"] == parts["mlp"]
            yield numbers, {None: parts["attn"]} if alike else parts, piece.at
            number += 1


def _part(reading: _Reading, piece: SliceBlock, where: tuple[int, int], part: Part) -> Recipe:
    """The one recipe of a part: its projections agree, its norms follow.

    `where` is the layer's number in its slice and in the output. Gradients are at 0 at a slice's
    first layer and at 1 at its last; at 1 in a slice of one.
    """
    offset, number = where
    t = offset / (piece.length - 1) if piece.length > 1 else 1.0
    recipes = {}
    for rest in reading.tensors.parts[part]:
        spot = Spot(reading.tensors.name(number, rest), t)
        recipes[rest] = _recipe(reading, piece, offset, spot, rest)
    first, *others = [rest for rest in recipes if not _is_norm(rest)] or list(recipes)
    for rest, recipe in recipes.items():
        if recipe == recipes[first]:
            continue
        at = reading.filtered(piece)
        if rest in others:
            message = f"'{first}' and '{rest}' are merged differently; {_SHARED}, as one"
            raise reading.document.error(at, message)
        message = f"'{rest}' has a value of its own, and gets what '{first}' gets: {_SHARED}"
        reading.note(at, message)
    return recipes[first]


def _is_norm(rest: str) -> bool:
    """Whether a tensor of a layer belongs to a norm, by its name."""
    return any("norm" in word or word.startswith("ln_") for word in rest.split("."))


def _ends(reading: _Reading) -> dict[str, Recipe]:
    """Embedding, norm and head: of the first and the last slice, where gradients start."""
    first, last = reading.slices[0], reading.slices[-1]
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


def _recipe(
    reading: _Reading, piece: SliceBlock, offset: int | None, spot: Spot, rest: str
) -> Recipe:
    """The recipe of one tensor: `rest`, in a layer of the slice if there is an `offset`.

    A source's parameters are those of the source's own tensor, the slice's of the output's.
    """
    document, method = reading.document, reading.method
    blocks = (piece, *reading.blocks)
    sources = []
    for source in piece.sources:
        number = None if offset is None else source.start + offset
        there = Spot(rest if number is None else reading.tensors.name(number, rest), spot.t)
        every = (source, *blocks)
        given = {name: parameter(document, name, there, every) for name in method.by_source}
        layer = LayerOf(model=reading.names[source.model], layer=number)
        sources.append(Ingredient(layer, source.model == reading.base_of(piece), given))
    shared = {name: parameter(document, name, spot, blocks) for name in method.shared}
    try:
        recipe = method.read(Mixture(method.name, sources, shared))
    except Unsayable as why:
        raise document.error(piece.at, f"{why} ('{spot.tensor}')") from None
    if isinstance(recipe, Merge):
        reading.merges = True
        if method.base == "beside" and reading.base_of(piece) != reading.base:
            message = f"a plan has one base, '{reading.base}', and this slice has another"
            raise document.error((*piece.at, "base_model"), message)
    return recipe


def _overlay(made: Sequence[_MadeLayer], count: int | None) -> dict[str, Any] | None:
    """Layers and drops, if the layers stand in the base's order, at their numbers in it."""
    positions = [next(iter(numbers)) for numbers, _, _ in made if len(numbers) == 1]
    ascending = len(positions) == len(made) and positions == sorted(set(positions))
    if count is None or not ascending or positions[-1] >= count:
        return None
    entries = tuple(
        Layer(position=n, part=part, recipe=recipe)
        for n, (_, parts, _) in zip(positions, made, strict=True)
        for part, recipe in parts.items()
        if recipe != own(n)
    )
    drops = tuple(Drop(position=n) for n in range(count) if n not in positions)
    return {"layers": entries, "drops": drops}


def _stack(reading: _Reading, made: Sequence[_MadeLayer]) -> dict[str, Any]:
    """The layers one after the other."""
    for _, parts, at in made:
        if None not in parts:
            help_ = _HELP if reading.tensors.layers is None else ""
            raise reading.document.error(at, _BRANCHES, help_)
    return {"stack": Stack(items=tuple(Item(recipe=parts[None]) for _, parts, _ in made))}


# -------------------------------------------------------------------------------- the output's rest


def _dtype(reading: _Reading) -> str | None:
    """The output's dtype."""
    config = reading.config
    found = {"dtype": config.dtype, "out_dtype": config.out_dtype}
    names = {key: name.removeprefix("torch.") for key, name in found.items() if name is not None}
    for key, name in names.items():
        if name not in DTYPES:
            help_ = nearest(name, DTYPES) or f"the dtypes are {listed(DTYPES)}"
            raise reading.document.error((key,), f"'{name}' is no dtype of an output here", help_)
    computed = names.get("dtype")
    if computed not in (None, "float32"):
        reading.note(("dtype",), _ROUNDS.format(computed))
    return names.get("out_dtype", computed)


def _tokenizer(reading: _Reading) -> Take | None:
    """The model whose tokenizer the output has, if it isn't the base."""
    config, document = reading.config, reading.document
    at: Place = ("tokenizer_source",)
    model = config.tokenizer_source
    if config.tokenizer is not None:
        if model is not None:
            raise document.error(at, "tokenizer and tokenizer_source don't go together")
        for key in ("tokens", "pad_to_multiple_of"):
            if getattr(config.tokenizer, key):
                message = f"'{key}' changes the embedding's rows, which no statement does"
                raise document.error(("tokenizer", key), message)
        at, model = ("tokenizer", "source"), config.tokenizer.source
    elif model is None:
        return None
    reading.note(at, _ROWS)
    if model is None or str(model) in ("union", "base"):
        return None
    if model not in reading.names:
        raise document.error(at, f"'{model}' is none of the models that are merged")
    name = reading.names[model]
    return None if name == "base" else Take(take=LayerOf(model=name))


def _note_the_rest(reading: _Reading) -> None:
    """Note what holds for the file as a whole."""
    if reading.config.chat_template:
        message = "a plan sets no chat template; the tokenizer's own stays"
        reading.note(("chat_template",), message)
    if reading.method.differs and reading.merges:
        reading.note(("merge_method",), reading.method.differs)
    for block in reading.blocks:
        for name in ("max_iter", "tol"):
            if name in block.parameters and name in reading.method.shared:
                message = "gptailor's karcher goes on until it has converged"
                reading.note(block.parameter_at(name), message)
    if reading.config.base_model is None and len(reading.names) > 1:
        reading.note((), _NO_BASE.format(reading.base))
