"""Rules of embedding, norm and head against the models."""

from collections.abc import Iterator

from gptailor.checkpoint.files import open_regular, read_exactly
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import Adapted, TensorInfo
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place, listed
from gptailor.plan.resolved import own
from gptailor.plan.sites import named_models
from gptailor.program.sources import Checked, has_rows

END_NAMES = {"embed": "embedding", "norm": "final norm", "head": "head"}
"""The names of the parts outside layers, as messages show them."""


@rule("M208", "M209")
def the_rest_fits(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each embedding, norm or head of another shape, but for its tokens."""
    for where in ("embed", "norm", "head"):
        recipe = checked.plan.rest(where)
        for at, name, _ in named_models(recipe) if recipe is not None else ():
            if name in checked.models:
                yield from _rest_misfit(checked, where, (where, *at), checked.models[name])


def _rest_misfit(checked: Checked, where: str, at: Place, model: Opened) -> Iterator[Fault]:
    """Yield a fault for each tensor of a model's rest that is missing or differs in shape."""
    tensors, base_tensors = model.rest(where), checked.base.rest(where)
    who = f"the {END_NAMES[where]} of '{model.name}'"
    if tensors.keys() != base_tensors.keys():
        message = f"{who} has other tensors than the base's"
        yield Fault("M209", message, at, "use a model with the same tensors")
        return
    for i, tensor in base_tensors.items():
        a, b = tensors[i].spec.shape, tensor.spec.shape
        if a != b and not (has_rows(where, i) and a[1:] == b[1:]):
            message = f"{who} has the shape {list(a)}, expected {list(b)} as in the base"
            yield Fault("M208", message, at, "use a model with the same shapes")


@rule("M304")
def _a_tied_head_is_replaced_with_its_embedding(checked: Checked) -> Iterator[Fault]:
    """Yield a warning if a tied model gets one of embedding and head, which then is both."""
    if not checked.base.layout.tied:
        return
    plan = checked.plan
    places = [where for where in ("embed", "head") if plan.rest(where) is not None]
    if len(places) != 1:
        return
    for _, name, _ in named_models(plan.rest(places[0]) or own(0)):
        model = checked.models.get(name)
        if model is not None and not model.layout.tied:
            message = (
                f"the base ties its embedding and head, but '{name}' doesn't: "
                f"its {END_NAMES[places[0]]} serves as both"
            )
            yield Fault(
                "M304",
                message,
                (places[0],),
                "set 'embed' and 'head' to untie them",
                severity="warning",
            )


_SPOTS, _SPOT = 64, 4096
"""The number and the bytes of the evenly spread stretches at which two tensors are compared."""


@rule("M315")
def _embedding_norm_and_head_are_chosen(checked: Checked) -> Iterator[Fault]:
    """Yield a warning if all layers come from other models, but not embedding, norm or head.

    A few bytes of each are compared if the files are present; other models are not reported.
    """
    silent = [where for where in END_NAMES if checked.resolved.plan.rest(where) is None]
    if checked.base.layout.tied and not {"embed", "head"} <= {*silent}:
        silent = [where for where in silent if where == "norm"]
    names = _layer_models(checked)
    if not silent or "base" in names:
        return
    models = {name: checked.models[name] for name in names if name in checked.models}
    ends_by_model = {
        name: _differing_ends(checked.base, model, silent) for name, model in models.items()
    }
    differing = {name: own for name, own in ends_by_model.items() if own}
    if not differing:
        return
    ends = [END_NAMES[where] for where in silent if any(where in own for own in differing.values())]
    owners = listed(f"'{name}'" for name in differing)
    stay = f"{listed(ends)} are" if len(ends) > 1 else f"the {ends[0]} is"
    message = f"all layers are from other models, but {stay} the base's"
    kept = "; ".join(f"{where} from base" for where in silent if END_NAMES[where] in ends)
    help_ = f"write 'whole from …' to take those of {owners}, or '{kept}' to keep the base's"
    at = ("models", next(iter(differing)), "source")
    yield Fault("M315", message, at, help_, severity="warning")


def _layer_models(checked: Checked) -> list[str]:
    """Return the models that layers of the output are taken from, each once."""
    kept = [slot for slot in checked.resolved.slots if slot.dropped != "yes"]
    contents = [content for slot in kept for content in slot.recipes.values()]
    recipes = [below.recipe for content in contents for below in content.chain]
    optional = any(content.maybe for content in contents)
    names = [name for recipe in recipes for _, name, _ in named_models(recipe)]
    return list(dict.fromkeys([*names, *(["base"] if optional else [])]))


def _differing_ends(base: Opened, model: Opened, silent: list[str]) -> list[str]:
    """Return the names of embedding, norm and head that differ from the base's."""
    return [
        where
        for where in silent
        if any(
            _differ(tensor, base.rest(where)[i])
            for i, tensor in model.rest(where).items()
            if i in base.rest(where)
        )
    ]


def _differ(tensor: TensorInfo, base: TensorInfo) -> bool:
    """Return whether two tensors differ at sight, without reading them whole."""
    if tensor == base or tensor.spec.dtype != base.spec.dtype:
        return False
    if isinstance(tensor.form, Adapted) or tensor.spec.shape != base.spec.shape:
        return True
    plain = tensor.form is None and base.form is None and min(tensor.offset, base.offset) >= 0
    if not plain or not (tensor.file.exists() and base.file.exists()):
        return False
    size = tensor.spec.size
    spots = sorted({i * max(0, size - _SPOT) // (_SPOTS - 1) for i in range(_SPOTS)})
    length = min(_SPOT, size)
    with open_regular(tensor.file) as a, open_regular(base.file) as b:
        for spot in spots:
            a.seek(tensor.offset + spot)
            b.seek(base.offset + spot)
            if read_exactly(a, length, tensor.file, "C201") != read_exactly(
                b, length, base.file, "C201"
            ):
                return True
    return False
