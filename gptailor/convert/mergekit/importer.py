"""A mergekit configuration as a plan, and what of it the plan can't say: `from_mergekit`."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from gptailor.checks.plan import check_alone
from gptailor.convert.mergekit import methods, parameters
from gptailor.convert.mergekit.config import (
    MergekitConfig,
    ModelReference,
    ParameterBlock,
    SliceBlock,
    read_config,
)
from gptailor.convert.mergekit.parameters import value_at
from gptailor.convert.note import ConversionError, Note, Unsayable, short_name
from gptailor.convert.yaml import read_document
from gptailor.plan import plan as p
from gptailor.plan.faults import errors, listed, nearest
from gptailor.plan.layers import PARTS, own
from gptailor.plan.registry import DTYPES

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

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
) -> tuple[p.Plan, list[Note]]:
    """The plan of a configuration, and what differs or has no equivalent, by its keys.

    `layers` is the base's number of layers, which `models:` needs. With `root`, where relative
    paths start, a base that is a folder there is opened to learn that and its tensors' names;
    `folder` is where the plan will stand, as seen from which its paths are written. Raises
    ConversionError, with key and line, for what can't be said.
    """
    config = read_config(read_document(text, name))
    method, base = _method(config), _base(config)
    tensors = _tensors(name, base, root, layers)
    slices = _slices(config, tensors.layers)
    merged = [source.model for piece in slices for source in piece.sources]
    names, models = _named((base, *merged), root, folder)
    reading = _Reading(config, method, base, names, tensors, slices)
    _check(reading)
    dtype, made = _dtype(reading), list(_layers(reading))
    said = _ends(reading) | _arranged(reading, made)
    plan = p.Plan(models=models, dtype=dtype, tokenizer=_tokenizer(reading), **said)
    reading.notes += _of_the_file(reading)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, list(dict.fromkeys(reading.notes))


# ------------------------------------------------------------------------------ what the file means


@final
@dataclass
class _Reading:
    """A configuration while it becomes a plan: what is known of it, and the notes so far."""

    config: MergekitConfig
    method: methods.MergekitMethod
    base: ModelReference
    names: Mapping[ModelReference, str]
    tensors: parameters.TensorNames
    slices: list[SliceBlock]
    notes: list[Note] = field(default_factory=list)
    merges: bool = False
    """Whether a merge was met, and not takes alone."""

    @property
    def blocks(self) -> list[ParameterBlock]:
        """The blocks whose parameters hold for all slices, the nearest first."""
        body = self.config.body
        return [self.config] if body is self.config else [body, self.config]

    def filtered(self, piece: SliceBlock) -> tuple[ParameterBlock, tuple[str, ...]]:
        """Where the filters of a slice are: a block, and the place in it."""
        for block in (*piece.sources, piece, *self.blocks):
            for name in block.parameters:
                if name in self.method.parameters and parameters.filters_of(block, name):
                    return block, ("parameters", name)
        return piece, ()


def _method(config: MergekitConfig) -> methods.MergekitMethod:
    name = config.merge_method
    if name in methods.MERGEKIT_METHODS:
        return methods.MERGEKIT_METHODS[name]
    message = f"there is no merge_method '{name}'"
    help_ = nearest(name, (*methods.MERGEKIT_METHODS, *methods.NO_EQUIVALENT))
    if name in methods.NO_EQUIVALENT:
        message = f"'{name}' has no equivalent"
        help_ = f"those that have one are {listed(methods.MERGEKIT_METHODS)}"
    raise config.error(message, "merge_method", help=help_)


def _base(config: MergekitConfig) -> ModelReference:
    body = config.body
    slices = body.slices or []
    bases = [config.base_model, *(piece.base_model for piece in slices)]
    first = body.models[0] if body.models else slices[0].sources[0]
    return next((base for base in bases if base is not None), first.model)


def _tensors(
    name: str, base: ModelReference, root: Path | None, layers: int | None
) -> parameters.TensorNames:
    """The base's tensor names, and its number of layers if it is known."""
    if root is None or not (root / base.model.path).is_dir():
        return replace(parameters.LLAMA_TENSORS, layers=layers)
    tensors = parameters.read_tensors(root / base.model.path)
    if layers not in (None, tensors.layers):
        message = f"the base has {tensors.layers} layers, and not {layers}"
        raise ConversionError(message, name=name)
    return tensors


def _named(
    references: Iterable[ModelReference], root: Path | None, folder: Path | None
) -> tuple[dict[ModelReference, str], dict[str, p.Model]]:
    """A name for each model, of which the first is the base, and the plan's models.

    What an adapter is on is a model too. Paths start at `root`, and are seen from `folder`;
    without `root` nothing is looked up on disk.
    """
    base, *_ = references
    names, models = {base: "base"}, {}
    for reference in dict.fromkeys(one for of in references for one in (of.bare, of)):
        here = reference.lora or reference.model
        name = names.setdefault(reference, short_name(here.path, names.values()))
        source, revision = here.path, here.revision
        is_local = source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source)
        if is_local or (root is not None and (root / source).is_dir()):
            revision = None  # a folder has none
            if root is not None and folder is not None and not source.startswith(("/", "~")):
                source = os.path.relpath(root / source, folder)
            source = source if source.startswith((".", "/", "~")) else f"./{source}"
        on = names[reference.bare] if reference.lora else None
        models[name] = p.Model(source=source, revision=revision, on=on)
    return names, models


def _slices(config: MergekitConfig, count: int | None) -> list[SliceBlock]:
    body = config.body
    if body.models is None:
        return body.slices or []
    if count is None:
        message = "'models' takes all layers of its models, and their number isn't known"
        raise body.error(message, "models", help=_HELP)
    return [body.whole(count, config.base_model)]


def _check(reading: _Reading) -> None:
    """Refuse models that stand twice, layers that the base hasn't; note what does nothing."""
    method, tensors = reading.method, reading.tensors
    for piece in reading.slices:
        if piece.residual_weight is not None:
            message = "it does nothing, in mergekit neither"
            reading.notes.append(piece.note(message, "residual_weight"))
        for i, source in enumerate(piece.sources):
            if source.model in [other.model for other in piece.sources[:i]]:
                message = f"'{source.model}' stands twice in one slice, which mergekit refuses"
                raise source.error(message, "model")
            end, count = source.layer_range.stop, tensors.layers
            if source.model == reading.base and count is not None and end > count:
                message = f"the base has {count} layers, and the range ends at {end}"
                raise source.error(message, "layer_range")
    sources = [(piece, source) for piece in reading.slices for source in piece.sources]
    ends = (source.layer_range.stop for _, source in sources)
    count = max(sum(piece.length for piece in reading.slices), *ends)
    of_slices = [block for piece in reading.slices for block in (*piece.sources, piece)]
    for block in (*of_slices, *reading.blocks):
        reading.notes += parameters.unread(block, method)
        reading.notes += parameters.idle_filters(block, tensors, count)
    for piece, source in sources:
        is_base = source.model == (piece.base_model or reading.config.base_model)
        reading.notes += parameters.idle_in_source(source, method, is_base=is_base)


# -------------------------------------------------------------------------------------- the layers

_MadeLayer = tuple[frozenset[int], dict[p.Part | None, p.Recipe], SliceBlock]
"""The layer numbers of the sources; the recipe of the whole layer or of each part; the slice."""


def _layers(reading: _Reading) -> Iterator[_MadeLayer]:
    number = 0
    for piece in reading.slices:
        for offset in range(piece.length):
            numbers = frozenset(source.layer_range[offset] for source in piece.sources)
            parts: dict[p.Part | None, p.Recipe]
            parts = {part: _part(reading, piece, (offset, number), part) for part in PARTS}
            alike = parts["attn"] == parts["mlp"]
            yield numbers, {None: parts["attn"]} if alike else parts, piece
            number += 1


def _part(reading: _Reading, piece: SliceBlock, where: tuple[int, int], part: p.Part) -> p.Recipe:
    """The one recipe of a part: its projections agree, its norms follow.

    `where` is the layer's number in its slice and in the output. Gradients are at 0 at a slice's
    first layer and at 1 at its last; at 1 in a slice of one.
    """
    offset, _ = where
    t = offset / (piece.length - 1) if piece.length > 1 else 1.0
    inner = reading.tensors.parts[part]
    recipes = {rest: _recipe(reading, piece, rest, t, where) for rest in inner}
    others = [rest for rest in recipes if not re.search(r"norm|\bln_", rest)] or list(recipes)
    first = others[0]
    for rest, recipe in recipes.items():
        if recipe == recipes[first]:
            continue
        block, inside = reading.filtered(piece)
        if rest in others:
            message = f"'{first}' and '{rest}' are merged differently; {_SHARED}, as one"
            raise block.error(message, *inside)
        message = f"'{rest}' has a value of its own, and gets what '{first}' gets: {_SHARED}"
        reading.notes.append(block.note(message, *inside))
    return recipes[first]


def _ends(reading: _Reading) -> dict[str, Any]:
    """Embedding, norm and head: of the first and the last slice, where gradients start."""
    first, last = reading.slices[0], reading.slices[-1]
    if len(first.sources) < len(last.sources):
        reading.notes.append(last.note(_FORGOTTEN, "sources"))
    found: dict[str, Any] = {}
    for where, piece in (("embed", first), ("norm", last), ("head", last)):
        if where == "head" and reading.tensors.tied:
            continue
        names = getattr(reading.tensors, where)
        recipes = [_recipe(reading, piece, name, 0.0) for name in names]
        if any(recipe != recipes[0] for recipe in recipes):
            block, inside = reading.filtered(piece)
            raise block.error(f"the tensors of '{where}' are merged differently", *inside)
        if recipes and recipes[0] != p.Take(take=p.LayerOf(model="base")):
            found[where] = recipes[0]
    return found


def _recipe(
    reading: _Reading, piece: SliceBlock, rest: str, t: float, where: tuple[int, int] | None = None
) -> p.Recipe:
    """The recipe of one tensor: `rest`, in a layer of slice and output if `where` says its numbers.

    A source's parameters are those of the source's own tensor, the slice's of the output's.
    """
    method, base = reading.method, piece.base_model or reading.config.base_model
    blocks = (piece, *reading.blocks)
    sources = []
    for source in piece.sources:
        number = source.layer_range[where[0]] if where else None
        tensor, every = reading.tensors.name(number, rest), (source, *blocks)
        given = {name: value_at(name, tensor, t, every) for name in method.by_source}
        layer = p.LayerOf(model=reading.names[source.model], layer=number)
        sources.append(methods.Ingredient(layer, source.model == base, given))
    tensor = reading.tensors.name(where[1] if where else None, rest)
    shared = {name: value_at(name, tensor, t, blocks) for name in method.shared}
    try:
        recipe = method.read(methods.Mixture(method.name, sources, shared))
    except Unsayable as why:
        raise piece.error(f"{why} ('{tensor}')") from None
    if isinstance(recipe, p.Merge):
        reading.merges = True
        if method.base == "beside" and base != reading.base:
            message = f"a plan has one base, '{reading.base}', and this slice has another"
            raise piece.error(message, "base_model")
    return recipe


def _arranged(reading: _Reading, made: Sequence[_MadeLayer]) -> dict[str, Any]:
    """Layers and drops, if they stand in the base's order, at their numbers in it; else a stack."""
    count = reading.tensors.layers
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
            raise piece.error(_BRANCHES, help=_HELP if count is None else "")
    return {"stack": p.Stack(items=tuple(p.Item(recipe=parts[None]) for _, parts, _ in made))}


# -------------------------------------------------------------------------------- the output's rest


def _dtype(reading: _Reading) -> str | None:
    config = reading.config
    found = {"dtype": config.dtype, "out_dtype": config.out_dtype}
    names = {key: name.removeprefix("torch.") for key, name in found.items() if name is not None}
    for key, name in names.items():
        if name not in DTYPES:
            help_ = nearest(name, DTYPES) or f"the dtypes are {listed(DTYPES)}"
            raise config.error(f"'{name}' is no dtype of an output here", key, help=help_)
    computed = names.get("dtype")
    if computed not in (None, "float32"):
        reading.notes.append(config.note(_ROUNDS.format(computed), "dtype"))
    return names.get("out_dtype", computed)


def _tokenizer(reading: _Reading) -> p.Take | None:
    """The model whose tokenizer the output has, if it isn't the base."""
    config = reading.config
    at: tuple[str, ...] = ("tokenizer_source",)
    model = config.tokenizer_source
    if config.tokenizer is not None:
        if model is not None:
            raise config.error("tokenizer and tokenizer_source don't go together", *at)
        for key in ("tokens", "pad_to_multiple_of"):
            if getattr(config.tokenizer, key):
                message = f"'{key}' changes the embedding's rows, which no statement does"
                raise config.error(message, "tokenizer", key)
        at, model = ("tokenizer", "source"), config.tokenizer.source
    elif model is None:
        return None
    reading.notes.append(config.note(_ROWS, *at))
    if model is None or str(model) in ("union", "base"):
        return None
    if model not in reading.names:
        raise config.error(f"'{model}' is none of the models that are merged", *at)
    name = reading.names[model]
    return None if name == "base" else p.Take(take=p.LayerOf(model=name))


def _of_the_file(reading: _Reading) -> Iterator[Note]:
    config, method = reading.config, reading.method
    if config.chat_template:
        yield config.note(
            "a plan sets no chat template; the tokenizer's own stays", "chat_template"
        )
    if method.differs and reading.merges:
        yield config.note(method.differs, "merge_method")
    for block in reading.blocks:
        for name in ("max_iter", "tol"):
            if name in block.parameters and name in method.shared:
                message = "gptailor's karcher goes on until it has converged"
                yield block.note(message, "parameters", name)
    if config.base_model is None and len(reading.names) > 1:
        yield config.note(_NO_BASE.format(reading.base))
