"""Embeddings and heads with a row for each token of the output's tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import TensorInfo, row_ranges
from gptailor.checkpoint.union import TokenUnion, UnionRows
from gptailor.program.sources import Checked


@final
@dataclass(frozen=True)
class AlignedRest:
    """Tensors of embedding, norm or head for one recipe, with the rows of a plan's output.

    `taken` are the models that the recipe takes, and the base for a method against it.
    """

    checked: Checked
    taken: frozenset[str]
    _rows: dict[tuple[str, int], UnionRows] = field(default_factory=dict)

    def of(self, name: str, where: str, read: str) -> dict[int, TensorInfo]:
        """Return a model's tensors by number in the layout; a head may serve as the embedding."""
        checked, owner = self.checked, self.checked.tokenizer_model
        model, donors, cut = checked.models[name], owner.rest(read), checked.token_cut
        tensors = {}
        for i, tensor in model.rest(read).items():
            if not has_rows(where, i):
                tensors[i] = tensor
            elif checked.union is None:
                tensors[i] = aligned_rows(tensor, model, donors[i], owner)
            else:
                tensors[i] = self.rows(read, i, checked.union).of(name)
            if cut is not None and has_rows(where, i):
                tensors[i] = kept_rows(tensors[i], cut.kept)
        return tensors

    def rows(self, read: str, number: int, union: TokenUnion) -> UnionRows:
        """Return the places of the rows of a union's tokens in a tensor of that number."""
        if (read, number) not in self._rows:
            tensors = {
                model.name: tensor
                for model in union.models
                if (tensor := self.checked.models[model.name].rest(read).get(number)) is not None
            }
            self._rows[read, number] = UnionRows(union, tensors, self.taken)
        return self._rows[read, number]


def has_rows(where: str, number: int) -> bool:
    """Return whether a tensor of the layout's `where` has a row for each token.

    GPT-2's positions have none. A head's first two tensors are its weight and its bias.
    """
    return number < {"embed": 1, "head": 2}.get(where, 0)


def aligned_rows(tensor: TensorInfo, model: Opened, donor: TensorInfo, owner: Opened) -> TensorInfo:
    """Return a model's embedding or head with a row for each token of another model's tokenizer.

    `donor` is the same tensor of `owner`, the model that supplies the tokenizer: it decides the
    number of rows, and supplies the rows of tokens that the model lacks.
    """
    vocabulary, owner_vocabulary = model.vocabulary, owner.vocabulary
    if model.name == owner.name or vocabulary is None or owner_vocabulary is None:
        return tensor
    if tensor.spec.shape[:1] == donor.spec.shape[:1] and vocabulary == owner_vocabulary:
        return tensor

    def place(row: int) -> tuple[TensorInfo, int]:
        """Return the tensor that has the row of a token, and the row's number in it."""
        token = owner_vocabulary.tokens.get(row)
        number = vocabulary.ids.get(token) if token is not None else None
        if number is None or number >= tensor.spec.shape[0]:
            return donor, row
        return tensor, number

    return tensor.with_rows(row_ranges(map(place, range(donor.spec.shape[0]))))


def kept_rows(tensor: TensorInfo, rows: Sequence[int]) -> TensorInfo:
    """Return a tensor with some of its rows, in ascending order."""
    return tensor.with_rows(row_ranges((tensor, row) for row in rows))
