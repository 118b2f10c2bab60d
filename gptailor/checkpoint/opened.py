"""A plan's model, opened: its name in the plan, its checkpoint, and its layout."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gptailor.checkpoint.configuration import LayerEntry
from gptailor.checkpoint.header import TensorInfo
from gptailor.checkpoint.hub import Remote
from gptailor.checkpoint.layout import Layout, layer_entries, split_name
from gptailor.checkpoint.source import Checkpoint
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary
from gptailor.plan import Part


@dataclass(frozen=True)
class Opened:
    """A model of a plan with all that is known of it without reading its weights.

    `remotes` says where its files are on the Hub, an adapter's last.
    """

    name: str
    checkpoint: Checkpoint
    layout: Layout
    remotes: tuple[Remote, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration."""
        return self.checkpoint.config

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens of its tokenizer, if it has one that can be read."""
        return read_vocabulary(self.checkpoint.folder)

    @cached_property
    def entries(self) -> list[LayerEntry]:
        """What its configuration says of each layer."""
        return layer_entries(self.layout, self.config)

    @cached_property
    def _by_place(self) -> dict[tuple[int, Part], dict[str, TensorInfo]]:
        found: dict[tuple[int, Part], dict[str, TensorInfo]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            place = split_name(self.layout, name)
            if isinstance(place, tuple):
                found.setdefault((place[0], place[1]), {})[place[2]] = tensor
        return found

    def part(self, layer: int, part: Part) -> dict[str, TensorInfo]:
        """The tensors of a part of a layer, by their names within the layer."""
        return self._by_place.get((layer, part), {})

    @cached_property
    def others(self) -> dict[str, TensorInfo]:
        """Tensors that a model reads and that are neither a layer's nor embedding, norm or head."""
        return {
            name: tensor
            for name, tensor in self.checkpoint.tensors.items()
            if split_name(self.layout, name) is None and name not in self.layout.ignored
        }

    def rest(self, where: str) -> dict[int, TensorInfo]:
        """The tensors of `embed`, `norm` or `head` by their number in the layout.

        A tied head is the embedding's tensor.
        """
        names = getattr(self.layout, where)
        tensors = self.checkpoint.tensors
        if where == "head" and self.layout.tied:
            names = self.layout.embed[:1]
        return {i: tensors[name] for i, name in enumerate(names) if name in tensors}
