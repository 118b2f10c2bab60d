"""Cuts of a plan's layers: the sizes that MLPs and mixtures have before they are cut."""

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.mixture import LayerExperts, experts_in
from gptailor.checkpoint.families.width import mlp_width
from gptailor.plan import layers as outline
from gptailor.plan.resolved import ClosedCut
from gptailor.program.sources import Checked, Use


def layer_width(use: Use) -> int | Refusal:
    """Return the number of neurons of a layer's MLP as it is stored; or a refusal."""
    shapes = {name: tensor.spec.shape for name, tensor in use.model.part(use.layer, "mlp").items()}
    return mlp_width(use.model.layout, shapes)


def expert_count(use: Use) -> int | Refusal | None:
    """Return the experts of a model's layer as it is stored; None for a dense layer."""
    shapes = {
        name: tensor.spec.shape
        for part in outline.PARTS
        for name, tensor in use.model.part(use.layer, part).items()
    }
    experts = experts_in(use.model.layout, shapes)
    return experts.count if isinstance(experts, LayerExperts) else experts


def layer_cuts(checked: Checked) -> dict[str, tuple[int, ClosedCut]]:
    """Return the size of a plan's layers before each cut, and the cut: `width`, `experts`.

    A cut to the size that the layers have is left out, and one of experts where no sparse layer is
    kept.
    """
    found = {}
    for word, size_of in (("width", layer_width), ("experts", expert_count)):
        if (cut := checked.resolved.cuts.get(word)) is not None:
            sizes = (size_of(checked.uses(slot, "mlp")[0]) for slot in checked.resolved.kept)
            own = next((size for size in sizes if isinstance(size, int)), cut.size)
            if own != cut.size:
                found[word] = own, cut
    return found
