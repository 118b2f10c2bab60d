"""Plans that compute with quantised weights, and their models dequantised.

A plan that only moves layers copies their bytes. One that merges, scales, casts, bridges or heals
any quantised weight, or mixes models that are quantised in different ways, has an output without
quantisation: each quantised weight is then one tensor, dequantised as it is read.
"""

from collections.abc import Iterator

from gptailor.checkpoint.families.layer_config import quantisation
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened, dequantised_model
from gptailor.checkpoint.tensor import FLOATS
from gptailor.plan.faults import Fault, Place
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.sites import named_models, output_recipes
from gptailor.program.sources import Checked, merges


def dequantised_models(checked: Checked) -> tuple[dict[str, Opened], list[Fault]]:
    """Return the models as the plan reads them, with a warning if dequantised, or all faults."""
    plan, models = checked.resolved.declared, checked.models
    quantised = [
        name
        for name, model in models.items()
        if model.layout.quantised is not None and name in plan.models
    ]
    why = next(_reasons(checked), None) if quantised else None
    if why is None:
        return dict(models), []
    dequantised, faults = dict(models), []
    for name in quantised:
        try:
            dequantised[name] = dequantised_model(models[name])
        except CheckpointError as error:
            place: Place = ("models", name, "source")
            faults.append(Fault(error.code, f"'{name}': {error.message}", place, error.help))
    if faults:
        return dequantised, faults
    what, at = why
    subject = f"'{quantised[0]}'" if len(quantised) == 1 else f"{len(quantised)} models"
    are = "is" if len(quantised) == 1 else "are"
    message = f"{what}: {subject} {are} dequantised, and the output isn't quantised"
    help_ = "a plan that only moves layers keeps them as they are"
    return dequantised, [Fault("M309", message, at, help_, severity="warning")]


def _reasons(checked: Checked) -> Iterator[tuple[str, Place]]:
    """Yield each computation of a plan with quantised weights, and its place."""
    plan, computes = checked.plan, "computes with quantised weights"
    statements: list[tuple[object, str, Place]] = [
        (plan.dtype, f"'dtype {plan.dtype}' casts quantised weights", ("dtype",)),
        (plan.scales, f"'scale' {computes}", ("scales", 0)),
        (plan.width, f"a narrower MLP {computes}", ("width",)),
        (plan.bridges, f"a bridge {computes}", ("bridges", 0)),
        (plan.may_be_healed, f"'heal' {computes}", ("heal",)),
    ]
    yield from ((words, at) for stated, words, at in statements if stated)
    yield from _merged_or_mixed(checked)
    yield from _casts(checked)


def _merged_or_mixed(checked: Checked) -> Iterator[tuple[str, Place]]:
    mixed: set[str] = set()
    for at, recipe in output_recipes(checked.plan):
        names = {name for _, name, _ in named_models(recipe)}
        read = [checked.models[name] for name in {*names, "base"} & checked.models.keys()]
        if any(_holds_quantised(model, at[0]) for model in read):
            if merges(recipe):
                yield "a merge computes with quantised weights", at
            mixed |= names if at[0] != "tokenizer" else set()
    for name in sorted(mixed & checked.models.keys()):
        if what := _difference(checked.models[name], checked.base):
            yield f"'{name}' is {what}", ("models", name, "source")


def _difference(model: Opened, base: Opened) -> str:
    """Return how a model is quantised in another way than the base; empty where it isn't."""
    method, base_method = model.layout.quantised, base.layout.quantised
    if method != base_method:
        return f"{_method_in_words(method)}, and the base is {_method_in_words(base_method)}"
    same = quantisation(model.config) == quantisation(base.config)
    return "" if same else f"quantised ('{method}') in another way than the base"


def _holds_quantised(model: Opened, where: object) -> bool:
    """Return whether a model's layers, or its embedding, norm or head, may be quantised."""
    if model.layout.quantised is None:
        return False
    if where not in {"embed", "norm", "head"}:
        return True
    tensors = model.rest(str(where)).values()
    packed = any(f"{t.spec.name}.absmax" in model.checkpoint.tensors for t in tensors)
    return not tensors or packed or any(t.spec.dtype not in FLOATS for t in tensors)


def _casts(checked: Checked) -> Iterator[tuple[str, Place]]:
    """Yield the models with layers that are cast to the base's dtypes, and the places."""
    base_dtypes = {
        name: tensor.spec.dtype
        for layer in range(checked.count)
        for part in BRANCHES
        for name, tensor in checked.base.part(layer, part).items()
    }
    for slot in checked.resolved.slots:
        for part in BRANCHES:
            for use in checked.uses(slot, part):
                tensors = use.tensors
                if any(
                    base_dtypes.get(name, t.spec.dtype) != t.spec.dtype
                    for name, t in tensors.items()
                ):
                    yield f"layers of '{use.model.name}' are cast to the base's dtypes", use.at


def _method_in_words(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised ('{method}')"
