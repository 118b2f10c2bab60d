"""Layers that predict further tokens (multi-token prediction, MTP): kept or left out.

Such a layer reads the last layer's output, and shares the embedding and the head. Checkpoints have
it in a module `mtp`, or under the numbers after the last layer.
"""

from gptailor.checkpoint.families import layout as layouts
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import TensorInfo
from gptailor.plan.layer_parts import BRANCHES
from gptailor.program.fits import layer_cuts
from gptailor.program.sources import Checked


def keeps_predictors(checked: Checked) -> bool:
    """Return whether a closed plan's output has the base's layers that predict further tokens."""
    return bool(checked.base.predicting) and predictors_lost(checked) is None


def predictors_lost(checked: Checked) -> str | None:
    """Return why a closed plan's output can't have the base's predictors; None if it can."""
    base, last = checked.base, checked.base.layout.count - 1
    uses = [use for part in BRANCHES for use in checked.uses(checked.resolved.kept[-1], part)]
    if any(use.layer != last for use in uses):
        return f"they read the output of L{last}, and the output ends with another layer"
    if (cut := _cut(checked)) is not None:
        return f"the plan cuts the {cut} of the model"
    if not _has_tokens_of_base(checked):
        return "the output has other tokens than the base"
    numbers = layouts.predictor_numbers(base.layout, base.predicting)
    stated = layouts.predictor_count(base.config)
    if len(numbers) < stated:
        return f"the base has tensors of {len(numbers)} of its {stated} such layers"
    return None


def _cut(checked: Checked) -> str | None:
    """Return the word of a plan's cut; None without a cut, and for a cut to all experts."""
    cuts = checked.plan.cuts
    if [*cuts] == ["experts"] and isinstance(cuts["experts"].size, int):
        return "experts" if "experts" in layer_cuts(checked) else None
    return next(iter(cuts), None)


def _has_tokens_of_base(checked: Checked) -> bool:
    """Return whether the output has the base's tokens in the same rows."""
    base, owner = checked.base, checked.tokenizer_model
    if checked.union is not None or owner.name == base.name:
        return checked.union is None
    rows = [model.rest("embed")[0].spec.shape[0] for model in (base, owner)]
    ids = [None if m.vocabulary is None else m.vocabulary.ids for m in (base, owner)]
    return rows[0] == rows[1] and ids[0] == ids[1]


def numbered_predictors(base: Opened) -> list[int]:
    """Return the numbers of predictors that stand after the last layer, in order."""
    places = (layouts.place_in(base.layout.prefix, name) for name in base.predicting)
    return sorted({at[0] for at in places if at is not None})


def predicting_tensors(checked: Checked) -> dict[str, TensorInfo]:
    """Return the base's tensors of predictors, by their names after the output's last layer."""
    layout, moved = checked.base.layout, {}
    further = len(checked.resolved.kept) - layout.count
    for name, tensor in checked.base.predicting.items():
        at = layouts.place_in(layout.prefix, name)
        new = name if at is None else layouts.name_of(layout, at[0] + further, at[1])
        moved[new] = tensor
    return moved
