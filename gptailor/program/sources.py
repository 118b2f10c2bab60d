"""Sources of an output: a plan with its models, the layers that slots read, the tokenizer.

Embeddings and heads have a row for each token of that tokenizer.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.files import Stamp, is_gguf, stamps
from gptailor.checkpoint.models import Opened, folder_of
from gptailor.checkpoint.tensor import TensorInfo, row_ranges
from gptailor.checkpoint.token_cut import TokenCut, WholeTokenizer
from gptailor.checkpoint.union import TokenUnion, UnionRows
from gptailor.plan.faults import Place
from gptailor.plan.layer_parts import Branch
from gptailor.plan.plan import Merge, Named, Plan, Recipe, SizeCut, Subset, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.resolved import LayerRecipe, Resolved, Slot
from gptailor.plan.sites import calls, named_models


@final
@dataclass(frozen=True, eq=False)
class Checked:
    """A resolved plan with its opened models, the base among them."""

    resolved: Resolved
    models: Mapping[str, Opened]

    @classmethod
    def of(cls, plan: Plan, models: Mapping[str, Opened]) -> "Checked":
        """Resolve a plan for its models."""
        tied = frozenset(name for name, model in models.items() if model.layout.tied)
        return cls(Resolved(plan, models["base"].layout.count, tied), models)

    @property
    def plan(self) -> Plan:
        """Return the plan written out for the base."""
        return self.resolved.plan

    def uses(self, slot: Slot, part: Branch) -> tuple["Use", ...]:
        """Return all layers that a branch of one of the plan's slots may be made of.

        The layers of the branch's own recipe come first and decide which tensors it has; layers of
        finer parts follow. If a recipe's method needs θ_b, the base's layer is its last.
        """
        return tuple(_uses_of(self, slot, part))

    @property
    def base(self) -> Opened:
        """Return the model of everything that the plan doesn't name."""
        return self.models["base"]

    @property
    def count(self) -> int:
        """Return the number of the base's layers."""
        return self.resolved.count

    @property
    def undone(self) -> "Checked":
        """Return the plan with nothing dropped, bridged or healed, with the same models."""
        return Checked(self.resolved.undone, self.models)

    @property
    def tokenizer_model(self) -> Opened:
        """Return the model that supplies the output's tokenizer."""
        return tokenizer_owner(self.plan, self.models)

    @cached_property
    def token_cut(self) -> TokenCut | None:
        """Return the smaller vocabulary of a closed plan, or None; see `token_cut_of`."""
        return token_cut_of(self.plan, self.models)

    @property
    def gguf_file(self) -> Path | None:
        """Return the GGUF file that is the whole model, given by its name and no plan's text."""
        plan, file = self.resolved.declared, self.base.checkpoint.files[0]
        alone = plan.origin is None and plan == Plan(models=plan.models)
        return file if alone and is_gguf(file) else None

    @property
    def union(self) -> TokenUnion | None:
        """Return the union of the models' tokenizers, if the plan has one."""
        return self.base.union if self.plan.tokenizer == "union" else None


@final
@dataclass(frozen=True)
class Use:
    """A branch of a layer that a slot reads: its model, its number, its recipe, its place.

    `names` are the tensors read of it, by their names within the layer; None: all.
    """

    model: Opened
    layer: int
    part: Branch
    layer_recipe: LayerRecipe
    at: Place
    names: frozenset[str] | None = None

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Return the tensors that are read, by their names within the layer."""
        tensors = self.model.part(self.layer, self.part)
        if self.names is None:
            return tensors
        return {name: tensor for name, tensor in tensors.items() if name in self.names}


def _uses_of(checked: Checked, slot: Slot, part: Branch) -> Iterator[Use]:
    main = slot.part(part)
    uses = [use for link in main.chain for use in _uses(checked, slot, part, link, None)]
    if not uses or not slot.parted:
        yield from uses
        return
    role = checked.base.layout.family.role
    names: dict[tuple[Place, ...], tuple[LayerRecipe, list[str]]] = {}
    names[tuple(link.at for link in main.chain)] = main, []
    for name in uses[0].tensors:
        first = slot.tensor(part, role(name), name)
        key = tuple(link.at for link in first.chain)
        names.setdefault(key, (first, []))[1].append(name)
    for first, read in names.values():
        for link in first.chain:
            yield from _uses(checked, slot, part, link, frozenset(read))


def _uses(
    checked: Checked,
    slot: Slot,
    part: Branch,
    layer_recipe: LayerRecipe,
    names: frozenset[str] | None,
) -> Iterator[Use]:
    for inner, name, layer in named_models(layer_recipe.recipe):
        if name in checked.models and layer is not None:
            at = (*layer_recipe.at, "recipe", *inner)
            yield Use(checked.models[name], layer, part, layer_recipe, at, names)
    layer_of_base = base_layer(slot, layer_recipe.recipe)
    if layer_of_base is not None and layer_of_base < checked.count:
        at = (*layer_recipe.at, "recipe", "by")
        yield Use(checked.base, layer_of_base, part, layer_recipe, at, names)


_Result = TypeVar("_Result")


def unrefused(result: _Result | Refusal) -> _Result:
    """Return a result that a plan without faults has."""
    assert not isinstance(result, Refusal), result.reason
    return result


def needs_base(recipe: Recipe) -> bool:
    """Return whether a recipe names a method that takes θ_b."""
    pairs = [(METHODS.get(call.name), call) for _, call in calls(recipe)]
    return any(method is not None and method.takes_base(call.arguments) for method, call in pairs)


def base_layer(slot: Slot, recipe: Recipe) -> int | None:
    """Return the base's layer that θ_b is taken at; None for a recipe without."""
    if isinstance(recipe, Subset):
        return recipe.layer
    if isinstance(recipe, Take) or not needs_base(recipe):
        return None
    return slot.position if slot.position is not None else recipe.merge[0].layer


def merges(recipe: Recipe) -> bool:
    """Return whether a recipe may do arithmetic on tensors."""
    return isinstance(recipe, Merge | Subset)


# ------------------------------------------------------------------------------------ the tokenizer


def tokenizer_owner(plan: Plan, models: Mapping[str, Opened]) -> Opened:
    """Return the model that supplies a plan's tokenizer: the one it names, or the base."""
    recipe = plan.rest("tokenizer")
    base = models["base"]
    if recipe is None:
        return base if plan.tokenizer == "union" and base.union is not None else base.alone
    names = [name for _, name, _ in named_models(recipe)]
    return models.get(names[0], base)


def output_tokenizer(plan: Plan, models: Mapping[str, Opened]) -> Opened:
    """Return the model with the output's tokenizer: `tokenizer_owner`, its vocabulary cut.

    Raises CheckpointError as `token_cut_of`.
    """
    owner = tokenizer_owner(plan, models)
    cut = token_cut_of(plan, models)
    return owner if cut is None else replace(owner, token_cut=cut)


def token_cut_of(plan: Plan, models: Mapping[str, Opened]) -> TokenCut | None:
    """Return the smaller vocabulary of a plan; None if its size is open.

    None too for the tokenizer's own size, if the embedding has no padding rows that could leave.

    Raises CheckpointError (C601, C603) for a tokenizer that can't be cut.
    """
    if (cut := plan.vocabulary) is None:
        return None
    size = plan.numbers.get(cut.size.named) if isinstance(cut.size, Named) else cut.size
    if not isinstance(size, int):
        return None
    owner = tokenizer_owner(plan, models)
    whole = whole_tokenizer(owner)
    embed = owner.rest("embed").get(0)
    padded = embed is not None and embed.spec.shape[0] > whole.total
    if size >= whole.total + padded:
        return None
    made = TokenCut(whole, size, folder_of(plan, cut.on), cut.tokens)
    return _known_cut(made, tuple(stamps([*whole.files, made.text]).items()))


def whole_tokenizer(owner: Opened) -> WholeTokenizer:
    """Return a model's tokenizer, which is read once. Raises CheckpointError (C603)."""
    whole = WholeTokenizer.of(owner.name, owner.checkpoint)
    return _known_tokenizer(whole, tuple(stamps(whole.files).items()))


def with_token_cut(plan: Plan, cut: TokenCut | None) -> Plan:
    """Return a plan with a smaller vocabulary, found anywhere; the plan itself without one."""
    if cut is None:
        return plan
    on = os.path.abspath(cut.text)  # noqa: PTH100 (links stay)
    vocabulary = SizeCut(size=cut.size, on=on, tokens=cut.most)
    changed = plan.model_copy(update={"vocabulary": vocabulary})
    return changed.read_from(plan.origin) if plan.origin else changed


@lru_cache(maxsize=8)
def _known_tokenizer(whole: WholeTokenizer, _: tuple[tuple[Path, Stamp], ...]) -> WholeTokenizer:
    """Return one object for equal tokenizers of unchanged files, which reads them once."""
    return whole


@lru_cache(maxsize=64)
def _known_cut(cut: TokenCut, _: tuple[tuple[Path, Stamp], ...]) -> TokenCut:
    """Return one object for equal cuts of unchanged files, which reads them once."""
    return cut


# ------------------------------------------------------------------- embeddings and heads by token


@final
@dataclass(frozen=True)
class AlignedRest:
    """Tensors of embedding, norm or head for one recipe, with the rows of a plan's output.

    `taken` are the models that the recipe takes, and the base for a method against it.
    """

    checked: Checked
    taken: frozenset[str]
    _rows: dict[tuple[str, int], UnionRows] = field(default_factory=dict)

    def of(self, name: str, where: str, read: str) -> dict[int, TensorInfo]:
        """Return a model's tensors by number in the layout; a head may serve as the embedding."""
        checked, owner = self.checked, self.checked.tokenizer_model
        model, donors, cut = checked.models[name], owner.rest(read), checked.token_cut
        tensors = {}
        for i, tensor in model.rest(read).items():
            if not has_rows(where, i):
                tensors[i] = tensor
            elif checked.union is None:
                tensors[i] = aligned_rows(tensor, model, donors[i], owner)
            else:
                tensors[i] = self.rows(read, i, checked.union).of(name)
            if cut is not None and has_rows(where, i):
                tensors[i] = kept_rows(tensors[i], cut.kept)
        return tensors

    def rows(self, read: str, number: int, union: TokenUnion) -> UnionRows:
        """Return the places of the rows of a union's tokens in a tensor of that number."""
        if (read, number) not in self._rows:
            tensors = {
                model.name: tensor
                for model in union.models
                if (tensor := self.checked.models[model.name].rest(read).get(number)) is not None
            }
            self._rows[read, number] = UnionRows(union, tensors, self.taken)
        return self._rows[read, number]


def has_rows(where: str, number: int) -> bool:
    """Return whether a tensor of the layout's `where` has a row for each token.

    GPT-2's positions have no such rows. A head's first two tensors are its weight and its bias.
    """
    return number < {"embed": 1, "head": 2}.get(where, 0)


def aligned_rows(tensor: TensorInfo, model: Opened, donor: TensorInfo, owner: Opened) -> TensorInfo:
    """Return a model's embedding or head with a row for each token of another model's tokenizer.

    `donor` is the same tensor of `owner`, the model that supplies the tokenizer: it decides the
    number of rows, and supplies the rows of tokens that the model lacks.
    """
    vocabulary, owner_vocabulary = model.vocabulary, owner.vocabulary
    if model.name == owner.name or vocabulary is None or owner_vocabulary is None:
        return tensor
    if tensor.spec.shape[:1] == donor.spec.shape[:1] and vocabulary == owner_vocabulary:
        return tensor

    def place(row: int) -> tuple[TensorInfo, int]:
        """Return the tensor that has the row of a token, and the row's number in it."""
        token = owner_vocabulary.tokens.get(row)
        number = vocabulary.ids.get(token) if token is not None else None
        if number is None or number >= tensor.spec.shape[0]:
            return donor, row
        return tensor, number

    return tensor.with_rows(row_ranges(map(place, range(donor.spec.shape[0]))))


def kept_rows(tensor: TensorInfo, rows: Sequence[int]) -> TensorInfo:
    """Return a tensor with some of its rows, in ascending order."""
    return tensor.with_rows(row_ranges((tensor, row) for row in rows))
