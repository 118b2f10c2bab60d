"""What each place of an output may be made of: the layers that a plan reads, beside its models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import joined_entry, moved_config
from gptailor.checkpoint.families.quantised import requantised
from gptailor.checkpoint.models import Opened
from gptailor.plan import layers as outline
from gptailor.plan.faults import Place
from gptailor.plan.plan import Merge, Part, Plan, Recipe, Subset, Take
from gptailor.plan.registry import METHODS
from gptailor.plan.walk import calls, named_models


@final
@dataclass(frozen=True)
class Checked:
    """A plan beside its models."""

    plan: Plan
    models: Mapping[str, Opened]

    @property
    def base(self) -> Opened:
        """The model that gives all that the plan doesn't say."""
        return self.models["base"]

    @property
    def count(self) -> int:
        """The number of the base's layers."""
        return self.base.layout.count

    @property
    def tokenizer_model(self) -> Opened:
        """The model whose tokenizer the output has: the plan's, or the base."""
        if self.plan.tokenizer is None:
            return self.base
        names = [name for _, name, _ in named_models(self.plan.tokenizer)]
        return self.models.get(names[0], self.base)


@final
@dataclass(frozen=True)
class Use:
    """A part of a layer that a slot reads: whose, which, where the plan says so."""

    model: Opened
    layer: int
    part: Part
    at: Place


def uses(checked: Checked, slot: outline.Slot, part: Part) -> Iterator[Use]:
    """All layers that a part of a slot may be made of, with the base's for a method of θ_b."""
    made = slot.part(part)
    for inner, name, layer in named_models(made.recipe):
        if name in checked.models and layer is not None:
            yield Use(checked.models[name], layer, part, (*made.at, "recipe", *inner))
    layer_of_base = base_layer(slot, made.recipe)
    if layer_of_base is not None and layer_of_base < checked.count:
        yield Use(checked.base, layer_of_base, part, (*made.at, "recipe", "by"))


def needs_base(recipe: Recipe) -> bool:
    """Whether a recipe names a method that takes θ_b."""
    methods = [METHODS.get(call.name) for _, call in calls(recipe)]
    return any(method is not None and method.needs_base for method in methods)


def base_layer(slot: outline.Slot, recipe: Recipe) -> int | None:
    """The base's layer that θ_b is taken at; None for a recipe without."""
    if isinstance(recipe, Subset):
        return recipe.layer
    if isinstance(recipe, Take) or not needs_base(recipe):
        return None
    return slot.position if slot.position is not None else recipe.merge[0].layer


def merges(recipe: Recipe) -> bool:
    """Whether a recipe may do arithmetic on tensors."""
    return isinstance(recipe, Merge | Subset)


def moved_configuration(checked: Checked) -> dict[str, object] | Refusal:
    """The configuration of a plan's output, as far as its layers go."""
    entries, places = [], []
    for slot in outline.kept(checked.plan, checked.count):
        first = [next(uses(checked, slot, part)) for part in outline.PARTS]
        attn, mlp = (use.model.entries[use.layer] for use in first)
        entries.append(joined_entry(checked.base.layout, attn, mlp))
        places.append((first[0].layer, first[1].layer))
    made = moved_config(checked.base.layout, checked.base.config, entries)
    return made if isinstance(made, Refusal) else requantised(checked.base.layout, made, places)
