"""The tensors of a checkpoint's layers, as `split_name` sorts them."""

from collections.abc import Collection

from gptailor.checkpoint.families.layout import Layout, split_name
from gptailor.plan.layer_parts import Branch


def layer_tensors(
    layout: Layout, names: Collection[str], layer: int, part: Branch | None = None
) -> dict[str, str]:
    """The tensors of a layer or a part of it: the name within the layer, and the whole name."""
    places = {name: split_name(layout, name) for name in names}
    results = {name: place for name, place in places.items() if isinstance(place, tuple)}
    return {
        place[2]: name
        for name, place in results.items()
        if place[0] == layer and part in {None, place[1]}
    }
