"""A document's tensors as statements: `whole`, `others`, layers with drops, or a stack.

Each tensor's recipe is read from the parameters that apply to it. Statements for whole models, for
parts of layers and for single positions then give each tensor its recipe.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, final

from gptailor.lang.importers import ConversionError
from gptailor.plan import plan as p
from gptailor.plan.layer_parts import BRANCHES, NORMS
from gptailor.plan.registry import METHODS
from gptailor.plugins.mergekit.base import HOW_TO_NAME_THE_BASE, TensorNames
from gptailor.plugins.mergekit.config import BASE_AT, SliceBlock, SourceBlock
from gptailor.plugins.mergekit.context import ImportContext, parameter_value
from gptailor.plugins.mergekit.methods import (
    WITHOUT_BASE,
    InexpressibleError,
    MethodInputs,
    NeedsLayerValues,
    ParameterValue,
    SourceTensor,
    TensorRecipe,
)

_BASE = TensorRecipe(("base",))
_PATTERNS = (
    "{} are merged by recipes of their own, and a position has one pattern at most; name larger "
    "parts"
)
_FUSED = (
    "mergekit merges all experts of a layer as one tensor, gptailor each by itself, which is not "
    "the same by '{}'"
)
_NEEDED_BASE = {
    "first": "add base_model: with one of its two sources",
    "beside": "add base_model: with the model that the sources were trained from",
}
"""The help for a missing base_model, by the roles of the base that need one."""
_ADDED_BASE = (
    "the base_model isn't one of the models, so mergekit adds it to them as a source: name one of "
    "the models as base_model"
)
_IN_A_STACK = (
    "write the parts in a plan of their own, such as 'L1.mlp.down from base by linear(0)', and "
    "name it as a model in the stack (docs/mergekit.md, block expansion)"
)
_ENTRYWISE = ("linear", "task_arithmetic", "ram")
"""Methods that compute each entry of a tensor from that entry of each source alone."""

_PartRecipes = dict[str | None, TensorRecipe]


@final
@dataclass(frozen=True)
class OutputLayer:
    """An output layer: its slice, its number within it, and the recipes of its tensors.

    Recipes are keyed by the tensors' names within the layer; an empty name stands for all tensors.
    """

    piece: SliceBlock
    offset: int
    recipes: Mapping[str, TensorRecipe]

    @property
    def t(self) -> float:
        """The place in its slice: 0 at the first layer, 1 at the last and at the only one."""
        return self.offset / (self.piece.length - 1) if self.piece.length > 1 else 1.0

    def layer_of_each_model(self, context: ImportContext) -> dict[str, int]:
        """Return each source's layer number by its model's name."""
        return {context.names[s.model]: s.layer_range[self.offset] for s in self.piece.sources}


def statements(context: ImportContext) -> dict[str, Any]:
    """Return a plan's fields for layers, embedding, norm and head; errors go to the context."""
    first, last = context.slices[0], context.slices[-1]
    if len(first.sources) < len(last.sources):
        context.notes.append(
            last.note(
                "where the first slice has fewer sources than the last, mergekit forgets some for "
                "the final norm and the head; here they have them all",
                "sources",
            )
        )
    ends = _end_recipes(context, 0.0)  # where mergekit has gradients start
    covers_base = context.covers_base
    layers = list(_output_layers(context))
    if context.errors:
        return {}
    if covers_base and all(layer.recipes == layers[0].recipes for layer in layers):
        return _whole_and_others(context, layers[0], ends)
    end_fields = {where: _recipe(recipe) for where, recipe in ends.items() if recipe != _BASE}
    return end_fields | _overlay_or_stack(context, layers)


# ------------------------------------------------------------------------------- recipes of tensors


def _output_layers(context: ImportContext) -> Iterator[OutputLayer]:
    names = context.tensor_names
    tensors = ("",) if names is None else tuple(names.branches)
    at = ((piece, offset) for piece in context.slices for offset in range(piece.length))
    for number, (piece, offset) in enumerate(at):
        layer = OutputLayer(piece, offset, {})
        recipes = {tensor: _tensor_recipe(context, layer, tensor, number) for tensor in tensors}
        yield replace(layer, recipes=recipes)


def _tensor_recipe(
    context: ImportContext,
    layer: OutputLayer,
    tensor: str,
    number: int | None,
    t: float | None = None,
) -> TensorRecipe:
    """Return the recipe of a layer's tensor, or of one outside the layers (`number` None).

    It has gradients, or their numbers at `t`. An error goes to the context, and the recipe is then
    arbitrary. Raises ConversionError if gradients need numbers and the number of layers is unknown.
    """
    for at in (t, layer.t if number is not None else 0.0):
        try:
            return _read_recipe(context, layer, tensor, number, at)
        except NeedsLayerValues:
            if number is not None:
                context.require_depth()
        except ConversionError as error:
            context.errors.append(error)
            break
    return _BASE


def _read_recipe(
    context: ImportContext, layer: OutputLayer, tensor: str, number: int | None, t: float | None
) -> TensorRecipe:
    """Read a recipe: source parameters by the source's tensor, shared ones by the output's."""
    method, piece, names = context.method, layer.piece, context.tensor_names
    blocks, base = (piece, context.config), context.base_model_of(piece)

    def values(
        parameters: Iterable[str], at: int | None, *inner: SourceBlock
    ) -> Mapping[str, ParameterValue]:
        name = names.full_name(at, tensor) if names else tensor
        return {
            each: parameter_value(each, name, t, (*inner, *blocks), method) for each in parameters
        }

    sources = []
    for source in piece.sources:
        at = None if number is None else source.layer_range[layer.offset]
        parameters = values(method.by_source, at, source)
        sources.append(SourceTensor(context.names[source.model], source.model == base, parameters))
    shared = values(method.shared, number)
    if base is None and method.base in _NEEDED_BASE:
        raise context.config.error(
            f"'{method.name}' needs a base_model, also in mergekit",
            "merge_method",
            help=_NEEDED_BASE[method.base],
        )
    try:
        recipe = method.read(MethodInputs(method, sources, shared, context.trims_some))
        if recipe.method:
            context.merges = True
            _refuse_different_merge(context, layer, recipe)
    except InexpressibleError as reason:
        added = any(source.at == BASE_AT for source in piece.sources)
        raise piece.error(str(reason), help=_ADDED_BASE if added else "") from None
    return recipe


def _refuse_different_merge(
    context: ImportContext, layer: OutputLayer, recipe: TensorRecipe
) -> None:
    """Raise for a merge that gives other tensors here than in mergekit."""
    piece, facts, method = layer.piece, context.base.facts, context.method
    if METHODS[recipe.method].takes_base(dict(recipe.arguments)):
        base = context.base.reference
        if context.base_model_of(piece) != base:
            raise piece.error(
                f"a plan has one base, '{base}', but this slice has another", "base_model"
            )
        layer_of = layer.layer_of_each_model(context)
        if "base" not in layer_of:
            raise InexpressibleError(WITHOUT_BASE.format(method.name))
        for model in recipe.models:
            if layer_of[model] != layer_of["base"]:
                pair = f"L{layer_of[model]} {model} against L{layer_of['base']} of the base"
                raise InexpressibleError(
                    f"'{method.name}' merges {pair}, but a plan compares layers of the same number"
                )
    if facts is None and recipe.method not in _ENTRYWISE:
        context.notes.append(
            context.config.note(
                "the base's configuration is unknown; mergekit merges a mixture of experts or a "
                "vision-language model differently"
            )
        )
    if facts is not None and facts.towers:
        raise piece.error(
            "the base reads images too: mergekit merges its towers, a plan copies the base's"
        )
    fused = facts is not None and facts.names is not None and facts.names.fused
    if fused and recipe.method not in _ENTRYWISE:
        raise piece.error(
            _FUSED.format(method.name), help="linear and task_arithmetic are the same either way"
        )


# ------------------------------------------------------------------------------- recipes of a plan


def _recipe(
    recipe: TensorRecipe,
    layer_of: Callable[[str], int | None] = lambda _: None,
    over: tuple[int, int] | None = None,
) -> p.Recipe:
    """Return a plan's recipe, with each model's layer; curves are over a range of layers."""
    sources = tuple(p.LayerOf(model=model, layer=layer_of(model)) for model in recipe.models)
    if not recipe.method:
        return p.Take(take=sources[0])
    arguments = recipe.arguments_with(lambda gradient: p.Curve(curve=gradient.knots, over=over))
    return p.Merge(merge=sources, by=p.MethodCall(name=recipe.method, arguments=arguments))


def _end_recipes(context: ImportContext, t: float | None) -> dict[str, TensorRecipe]:
    """Return the recipes of embedding, norm and head; a tied head is left out.

    The embedding belongs to the first slice, norm and head to the last. Recipes have gradients, or
    their numbers at `t`.
    """
    first, last = context.slices[0], context.slices[-1]
    names, facts = context.tensor_names, context.base.facts
    recipes: dict[str, TensorRecipe] = {}
    for where, piece in (("embed", first), ("norm", last), ("head", last)):
        tensors = ("",) if names is None else getattr(names, where)
        layer = OutputLayer(piece, 0, {})
        each = [_tensor_recipe(context, layer, tensor, None, t) for tensor in tensors]
        if any(recipe != each[0] for recipe in each):
            context.errors.append(
                context.filter_error(piece, f"the tensors of '{where}' are merged differently")
            )
        recipes[where] = each[0]
    if facts is None and recipes["head"] != recipes["embed"]:
        context.errors.append(
            last.error(
                f"whether the head of '{context.base.reference}' is its embedding isn't known "
                f"({context.base.why_unknown}), and here it makes a difference",
                help=HOW_TO_NAME_THE_BASE,
            )
        )
    if facts is not None and facts.tied:
        del recipes["head"]
    return recipes


# ---------------------------------------------------------------------------------- statements


def _whole_and_others(
    context: ImportContext, layer: OutputLayer, ends: Mapping[str, TensorRecipe]
) -> dict[str, Any]:
    """Return statements for all layers at once, and for embedding, norm and head."""
    fields: dict[str, Any] = {}
    along, inner = _end_recipes(context, None), set(layer.recipes.values())
    whole = next(iter(inner)) if len(inner) == 1 else along["embed"]
    if whole not in along.values():
        whole = _BASE
    if whole != _BASE:
        fields["whole"] = p.Whole(recipe=_recipe(whole))
    last_knots = whole.arguments_with(lambda gradient: gradient.knots[-1])  # of norm and head
    at_end = replace(whole, arguments=tuple(last_knots.items()))
    for where, recipe in ends.items():
        is_apart = where != "embed" and at_end != whole
        if (recipe != at_end) if is_apart else (along.get(where, recipe) != whole):
            fields[where] = _recipe(recipe)
    parts = _parts(context, layer, whole).items()
    fields["others"] = tuple(p.Others(part=part, recipe=_recipe(recipe)) for part, recipe in parts)
    return fields


def _overlay_or_stack(context: ImportContext, layers: Sequence[OutputLayer]) -> dict[str, Any]:
    """Return layers and drops if the layers keep the base's order and numbers; else a stack."""
    count = context.base.layers
    numbers = [{s.layer_range[layer.offset] for s in layer.piece.sources} for layer in layers]
    positions = [next(iter(each)) for each in numbers if len(each) == 1]
    ascending = len(positions) == len(layers) and positions == sorted(set(positions))
    if count is None or not ascending or positions[-1] >= count:
        return {"stack": p.Stack(items=tuple(_stack_item(context, layer) for layer in layers))}
    entries: list[p.Layer] = []
    for n, layer in zip(positions, layers, strict=True):
        start = n - layer.offset
        over = (start, start + layer.piece.length - 1)
        for part, recipe in _parts(context, layer, _BASE).items():
            layer_of = dict.fromkeys(recipe.models, n).get
            entries.append(p.Layer(position=n, part=part, recipe=_recipe(recipe, layer_of, over)))
    drops = tuple(p.Drop(position=n) for n in range(count) if n not in positions)
    return {"layers": tuple(entries), "drops": drops}


def _stack_item(context: ImportContext, layer: OutputLayer) -> p.Item:
    recipes = set(layer.recipes.values())
    if len(recipes) > 1:
        raise layer.piece.error(
            "parts of a layer are merged differently, but an item of a stack has whole layers",
            help=HOW_TO_NAME_THE_BASE if context.base.layers is None else _IN_A_STACK,
        )
    over = (layer.offset, layer.piece.length - 1)
    return p.Item(recipe=_recipe(recipes.pop(), layer.layer_of_each_model(context).get, over))


# ------------------------------------------------------------------------------------------- parts


def _parts(context: ImportContext, layer: OutputLayer, default: TensorRecipe) -> _PartRecipes:
    """Return the fewest parts of a layer that give each tensor its recipe, coarse ones first.

    Tensors outside these parts have the recipe `default`. Raises ConversionError where more than
    one pattern would be needed.
    """
    names, recipes = context.tensor_names, layer.recipes
    if names is None or len(set(recipes.values())) == 1:
        (recipe,) = set(recipes.values())
        return {} if recipe == default else {None: recipe}
    parts: _PartRecipes = {}
    current = dict.fromkeys(recipes, default)
    for part, recipe, tensors in (*_branches(names, recipes), *_roles(names, recipes)):
        if any(current[tensor] != recipes[tensor] for tensor in tensors) and any(
            current[tensor] != recipe for tensor in tensors
        ):
            parts[part] = recipe
            current |= dict.fromkeys(tensors, recipe)
    left = [tensor for tensor in recipes if current[tensor] != recipes[tensor]]
    if left:
        pattern = _pattern(names, left) if len({recipes[tensor] for tensor in left}) == 1 else None
        if pattern is None:
            raise context.filter_error(
                layer.piece, _PATTERNS.format(" and ".join(f"'{tensor}'" for tensor in left))
            )
        parts[f'"{pattern}"'] = recipes[left[0]]
    return parts


_Part = tuple[str, TensorRecipe, list[str]]
"""A part, the recipe that it would have, and its tensors."""


def _branches(names: TensorNames, recipes: Mapping[str, TensorRecipe]) -> Iterator[_Part]:
    """Yield both branches, with the recipe that most of their projections have."""
    for branch in BRANCHES if names.branches_differ else ():
        tensors = [tensor for tensor in recipes if names.branches[tensor] == branch]
        if tensors:
            projections = [t for t in tensors if names.roles.get(t) != NORMS] or tensors
            (recipe, _), *_ = Counter(recipes[tensor] for tensor in projections).most_common(1)
            yield branch, recipe, tensors


def _roles(names: TensorNames, recipes: Mapping[str, TensorRecipe]) -> Iterator[_Part]:
    """Yield the norms, and each projection, with one recipe for all their tensors."""
    roles = dict.fromkeys(names.roles[tensor] for tensor in recipes if tensor in names.roles)
    for role in sorted(roles, key=lambda role: role != NORMS):
        tensors = [tensor for tensor in recipes if names.roles.get(tensor) == role]
        distinct = {recipes[tensor] for tensor in tensors}
        if len(distinct) == 1:
            yield role, distinct.pop(), tensors


def _pattern(names: TensorNames, tensors: Sequence[str]) -> str | None:
    """Return a pattern that matches these tensors of the layer and no others, if there is one."""
    matched = [name for tensor in tensors for name in names.in_checkpoint(tensor)]
    if len(matched) == 1:
        return matched[0]
    start_of = os.path.commonprefix
    pattern = f"{start_of(matched)}*{start_of([name[::-1] for name in matched])[::-1]}"
    unmatched = (tensor for tensor in names.branches if tensor not in tensors)
    others = (name for tensor in unmatched for name in names.in_checkpoint(tensor))
    return None if any(fnmatchcase(name, pattern) for name in others) else pattern
