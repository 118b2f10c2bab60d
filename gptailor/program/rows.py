"""Embeddings and heads with a row for each token of the output's tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from gptailor.checkpoint.models import Opened, aligned_rows, has_rows
from gptailor.checkpoint.tensor import TensorInfo
from gptailor.checkpoint.union import TokenUnion, UnionRows


@final
@dataclass(frozen=True)
class AlignedRest:
    """What one recipe for embedding, norm or head takes of models, as the output has rows.

    `teller` is the model whose tokenizer the output has; with a `union` it is all models'. `taken`
    are the models that the recipe takes, and the base where its method is against that.
    """

    models: Mapping[str, Opened]
    teller: Opened
    union: TokenUnion | None
    taken: frozenset[str]
    _rows: dict[tuple[str, int], UnionRows] = field(default_factory=dict)

    def of(self, name: str, where: str, read: str) -> dict[int, TensorInfo]:
        """A model's tensors by their number in the layout; a head may serve as the embedding."""
        model, donors = self.models[name], self.teller.rest(read)
        found = {}
        for i, tensor in model.rest(read).items():
            if not has_rows(where, i):
                found[i] = tensor
            elif self.union is None:
                found[i] = aligned_rows(tensor, model, donors[i], self.teller)
            else:
                found[i] = self.rows(read, i, self.union).of(name)
        return found

    def rows(self, read: str, number: int, union: TokenUnion) -> UnionRows:
        """Where the rows of a union's tokens are in a tensor of that number."""
        if (read, number) not in self._rows:
            tensors = {
                model.name: tensor
                for model in union.models
                if (tensor := self.models[model.name].rest(read).get(number)) is not None
            }
            self._rows[read, number] = UnionRows(union, tensors, self.taken)
        return self._rows[read, number]
