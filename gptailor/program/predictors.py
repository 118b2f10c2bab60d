"""Layers that predict further tokens (multi-token prediction, MTP): kept or left out.

Such a layer reads the last layer's output, and shares the embedding and the head. Checkpoints have
it in a module `mtp`, or under the numbers after the last layer. Healing trains it for the output's
last layer (`gptailor.evaluation.heal.predictors`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

from gptailor.checkpoint.families import layout as layouts
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import FLOATS, TensorInfo
from gptailor.plan.layer_parts import BRANCHES
from gptailor.program.mixtures import expert_cut
from gptailor.program.program import Output, learning_tensors, unfitted
from gptailor.program.sources import Checked

_TRAINED = frozenset({
    "deepseek_v3", "glm4_moe", "glm4_moe_lite", "sarvam_mla", "axk1",
    "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text",
})  # fmt: skip
"""Types of models whose predictors transformers' `MtpLayer` computes."""
_QWEN = {
    "mtp.fc.": "eh_proj.",
    "mtp.pre_fc_norm_embedding.": "enorm.",
    "mtp.pre_fc_norm_hidden.": "hnorm.",
    "mtp.norm.": "shared_head.norm.",
    "mtp.layers.0.": "",
}
"""Names of Qwen's only predictor, and those that DeepSeek gives the same tensors in its layer."""


def keeps_predictors(checked: Checked) -> bool:
    """Return whether a closed plan's output has the base's layers that predict further tokens."""
    return bool(checked.base.predicting) and predictors_lost(checked) is None


def predictors_lost(checked: Checked) -> str | None:
    """Return why a closed plan's output can't have the base's predictors; None if it can."""
    base, last = checked.base, checked.base.layout.count - 1
    uses = [use for part in BRANCHES for use in checked.uses(checked.resolved.kept[-1], part)]
    if any(use.layer != last for use in uses) and not trains_predictors(checked):
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


def trains_predictors(checked: Checked) -> bool:
    """Return whether the healing of a closed plan trains the base's predictors, if they stay."""
    base = checked.base
    if checked.resolved.healing is None or base.layout.quantised is not None:
        return False
    places = [predictor_place(base.layout, name) for name in base.predicting]
    floats = all(tensor.spec.dtype in FLOATS for tensor in base.predicting.values())
    known = base.layout.text_type in _TRAINED and None not in places
    return known and floats and _has_full_attention(checked)


def _has_full_attention(checked: Checked) -> bool:
    """Return whether a layer of the output has the attention of a predictor."""
    return any(
        name.startswith("self_attn.")
        for slot in checked.resolved.kept
        for use in checked.uses(slot, "attn")
        for name in use.model.part(use.layer, "attn")
    )


_SHARED = ("embed_tokens.weight", "shared_head.head.weight")
"""Tensors that a predictor in a file has too, and that it shares with the model."""
_RANK = 64
"""The rank of a predictor's changes if the layers' weights themselves learn."""


@final
@dataclass(frozen=True)
class TrainedPredictors:
    """The output's predictors that learn, with the rank of their changes.

    Tensors have their names in DeepSeek's layers. A predictor's number continues the output's.
    """

    layers: Mapping[int, Mapping[str, Output]]
    rank: int

    @classmethod
    def of(cls, checked: Checked, outputs: Iterable[Output]) -> "TrainedPredictors | None":
        """Return those of a closed plan with these outputs, unfitted; None if none learn."""
        healing, layers = checked.resolved.healing, dict[int, dict[str, Output]]()
        if healing is None or not (keeps_predictors(checked) and trains_predictors(checked)):
            return None
        count = len(checked.resolved.kept)
        layout = replace(checked.base.layout, count=count)
        for output in outputs:
            if output.place.part == "predictor":
                place = predictor_place(layout, output.spec.name)
                if place is not None and place[1] not in _SHARED:
                    unlearned = replace(output, make=unfitted(output.make))
                    layers.setdefault(count + place[0], {})[place[1]] = unlearned
        return cls(dict(sorted(layers.items())), healing.rank or _RANK)

    @property
    def outputs(self) -> list[Output]:
        """All tensors."""
        return [output for layer in self.layers.values() for output in layer.values()]

    @property
    def learning(self) -> dict[int, list[str]]:
        """The names of the tensors that change, by layer."""
        specs = {
            number: {name: output.spec for name, output in layer.items()}
            for number, layer in self.layers.items()
        }
        return {number: learning_tensors(self.rank, own) for number, own in specs.items()}

    @property
    def learning_outputs(self) -> frozenset[str]:
        """The names of these tensors in the output."""
        return frozenset(
            self.layers[layer][name].spec.name
            for layer, names in self.learning.items()
            for name in names
        )

    @property
    def numbers(self) -> int:
        """The number of learned values."""
        shapes = [
            self.layers[layer][name].spec.shape
            for layer, names in self.learning.items()
            for name in names
        ]
        return sum(min(self.rank, *shape) * sum(shape) for shape in shapes)


def predictor_place(layout: layouts.Layout, name: str) -> tuple[int, str] | None:
    """Return a tensor's place: the number of its predictor, and its name there as in DeepSeek's.

    None for a tensor whose place is unknown.
    """
    if (at := layouts.place_in(layout.prefix, name)) is not None:
        return at[0] - layout.count, at[1]
    language = name.removeprefix("model.language_model.").removeprefix("language_model.")
    found = (
        (0, new + language.removeprefix(old))
        for old, new in _QWEN.items()
        if language.startswith(old)
    )
    return next(found, None)


def _cut(checked: Checked) -> str | None:
    """Return the word of a plan's cut; None without a cut, and for a cut to all experts."""
    cuts = checked.plan.cuts
    if [*cuts] == ["experts"] and isinstance(cuts["experts"].size, int):
        return None if expert_cut(checked) is None else "experts"
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
