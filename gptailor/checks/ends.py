"""A rule of embedding, norm and head: where all layers are others', theirs may be meant too."""

from collections.abc import Iterator

from gptailor.checkpoint.files import open_regular, read_exactly
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import Adapted, TensorInfo
from gptailor.plan.faults import Fault, listed
from gptailor.plan.walk import named_models
from gptailor.program.sources import Checked

_ENDS = {"embed": "embedding", "norm": "final norm", "head": "head"}
_SPOTS, _SPOT = 64, 4096
"""Where tensors of two files are compared: so many stretches of so many bytes, evenly spread."""


def the_ends_are_meant(checked: Checked) -> Iterator[Fault]:
    """Where no layer is the base's own, neither are embedding, norm and head without a word.

    A few bytes of each are compared where the files are there; nothing is said of others.
    """
    silent = [where for where in _ENDS if checked.plan.rest(where) is None]
    if checked.base.layout.tied:
        silent = silent if "embed" in silent and "head" in silent else ["norm"]
    names = _givers(checked)
    if not silent or "base" in names:
        return
    models = {name: checked.models[name] for name in names if name in checked.models}
    theirs = {name: _own(checked.base, model, silent) for name, model in models.items()}
    found = {name: own for name, own in theirs.items() if own}
    if not found:
        return
    ends = [_ENDS[where] for where in silent if any(where in own for own in found.values())]
    whose = listed(f"'{name}'" for name in found)
    stay = f"{listed(ends)} are" if len(ends) > 1 else f"the {ends[0]} is"
    message = f"layers are of other models, and {stay} the base's"
    has = "has" if len(found) == 1 else "have"
    kept = "; ".join(f"{where} from base" for where in silent if _ENDS[where] in ends)
    help_ = f"{whose} {has} others: 'whole from …' takes them, '{kept}' says that the base's stay"
    at = ("models", next(iter(found)), "source")
    yield Fault("M315", message, at, help_, severity="warning")


def _givers(checked: Checked) -> list[str]:
    """The models that layers of the output are taken from, each once."""
    slots = checked.resolved.slots
    recipes = [r for slot in slots if slot.dropped != "yes" for r in slot.recipes.values()]
    below = [link.recipe for recipe in recipes for link in recipe.chain]
    optional = any(recipe.maybe for recipe in recipes)
    named = [name for recipe in below for _, name, _ in named_models(recipe)]
    return list(dict.fromkeys([*named, *(["base"] if optional else [])]))


def _own(base: Opened, model: Opened, silent: list[str]) -> list[str]:
    """Those of embedding, norm and head of a model that aren't the base's."""
    return [
        where
        for where in silent
        if any(
            _differ(tensor, base.rest(where)[i])
            for i, tensor in model.rest(where).items()
            if i in base.rest(where)
        )
    ]


def _differ(mine: TensorInfo, base: TensorInfo) -> bool:
    """Whether two tensors are seen to differ; what can't be told at sight doesn't."""
    if mine == base or mine.spec.dtype != base.spec.dtype:
        return False
    if isinstance(mine.form, Adapted):
        return True
    if mine.spec.shape != base.spec.shape:
        return True
    plain = mine.form is None and base.form is None and min(mine.offset, base.offset) >= 0
    if not plain or not (mine.file.exists() and base.file.exists()):
        return False
    size = mine.spec.size
    spots = sorted({i * max(0, size - _SPOT) // (_SPOTS - 1) for i in range(_SPOTS)})
    length = min(_SPOT, size)
    with open_regular(mine.file) as a, open_regular(base.file) as b:
        for spot in spots:
            a.seek(mine.offset + spot)
            b.seek(base.offset + spot)
            if read_exactly(a, length, mine.file, "C201") != read_exactly(
                b, length, base.file, "C201"
            ):
                return True
    return False
