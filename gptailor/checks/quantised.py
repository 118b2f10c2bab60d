"""Rules of quantised weights, which are no numbers: they can be moved, and not computed with."""

from collections.abc import Callable, Iterable, Iterator

from gptailor.checkpoint.families.quantised import quantisation
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import FLOATS, Adapted
from gptailor.plan import layers as outline
from gptailor.plan.faults import Fault, Place
from gptailor.plan.walk import named_models, recipes
from gptailor.program.sources import Checked, merges, uses

HELP = "use the checkpoint that it was made from"
SMALL_FLOATS = ("F8_", "F6_", "F4")


def quantised_layers_only_move(checked: Checked) -> Iterator[Fault]:
    """Weights that are no numbers can be copied, not computed with."""
    for name, model in checked.models.items():
        method = model.layout.quantised
        what = _computed(checked, model) if method is not None else None
        if what is not None:
            message = f"the weights of '{name}' are quantised ('{method}'), and can't be {what[0]}"
            yield Fault("M213", message, what[1], HELP)


def _computed(checked: Checked, model: Opened) -> tuple[str, Place] | None:
    """What a plan would compute of a model's weights, and where it says so."""
    if checked.plan.dtype is not None:
        return "cast", ("dtype",)
    for at, recipe in recipes(checked.plan):
        named = {name for _, name, _ in named_models(recipe)}
        if merges(recipe) and model.name in named | {"base"}:
            return "merged", at
    if any(isinstance(tensor.form, Adapted) for tensor in model.checkpoint.tensors.values()):
        return "adapted", ("models", model.name, "source")
    at_cast = _cast(checked, model)
    return None if at_cast is None else ("cast", at_cast)


def _cast(checked: Checked, model: Opened) -> Place | None:
    """Where a layer has another dtype than the base's have."""
    base = checked.base
    ours = {
        rest: tensor.spec.dtype
        for layer in range(checked.count)
        for part in outline.PARTS
        for rest, tensor in base.part(layer, part).items()
    }
    for slot in outline.slots(checked.plan, checked.count):
        for part in outline.PARTS:
            for use in uses(checked, slot, part):
                theirs = model.part(use.layer, part) if use.model is model else {}
                if any(ours.get(rest, t.spec.dtype) != t.spec.dtype for rest, t in theirs.items()):
                    return use.at
    return None


def quantised_models_are_alike(checked: Checked) -> Iterator[Fault]:
    """Layers move between models that are quantised in the same way."""
    ours, method = quantisation(checked.base.config), checked.base.layout.quantised
    read = [recipe for at, recipe in recipes(checked.plan) if at[0] not in {"norm", "tokenizer"}]
    mixed = {name for recipe in read for _, name, _ in named_models(recipe)}
    for name, model in checked.models.items():
        theirs = model.layout.quantised
        if name not in mixed or (theirs == method and quantisation(model.config) == ours):
            continue
        if theirs == method:
            message = f"'{name}' is quantised ('{theirs}') in another way than the base"
        else:
            message = f"'{name}' is {_said(theirs)}, and the base is {_said(method)}"
        yield Fault("M213", message, ("models", name, "source"), HELP)


def _said(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised ('{method}')"


def small_floats_only_move(checked: Checked) -> Iterator[Fault]:
    """Where no configuration says that weights are quantised, their dtype may."""
    plan = checked.plan
    if plan.dtype is None and not plan.scales:
        return
    what, at = ("cast", ("dtype",)) if plan.dtype is not None else ("scaled", ("scales", 0))
    for model in checked.models.values():
        for tensor in model.checkpoint.tensors.values():
            dtype = tensor.spec.dtype
            if model.layout.quantised is None and dtype.startswith(SMALL_FLOATS):
                assert dtype not in FLOATS
                message = f"'{tensor.spec.name}' of '{model.name}' is {dtype}, and can't be {what}"
                yield Fault("M215", message, at)
                return


QUANTISED: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    quantised_layers_only_move,
    quantised_models_are_alike,
    small_floats_only_move,
)
"""Rules that come before those of fitting shapes: they say why shapes don't fit."""
