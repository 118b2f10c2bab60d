"""Where a transformers model has its decoder layers; others in their place for a while."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel


def decoder(model: PreTrainedModel) -> nn.Module:
    """The module that embeds tokens and runs the layers: the model without its head."""
    found: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    return found


def embeddings(model: PreTrainedModel) -> Float[Tensor, " vocab width"]:
    """The weight of the embedding of tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The model's decoder layers, in their order; it is the model's own list.

    Raises `ValueError` for a model without one list of layers.
    """
    layers = getattr(decoder(model), _name(model))
    assert isinstance(layers, nn.ModuleList)
    return layers


def replace_layers(model: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
    """Give the model these layers; its configuration and theirs stay as they are."""
    setattr(decoder(model), _name(model), nn.ModuleList(layers))


@contextmanager
def standing_in(model: PreTrainedModel, layers: Iterable[nn.Module]) -> Iterator[None]:
    """These layers in the place of the model's own, which are back afterwards, whatever happens."""
    holder, name, own = decoder(model), _name(model), decoder_layers(model)
    setattr(holder, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(holder, name, own)


def _name(model: PreTrainedModel) -> str:
    children = decoder(model).named_children()
    names = [name for name, child in children if isinstance(child, nn.ModuleList)]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise ValueError(f"{type(model).__name__} has no single list of layers ({found})")
    return names[0]
