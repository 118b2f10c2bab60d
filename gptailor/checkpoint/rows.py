"""Embeddings and heads row by row: which row of which tensor belongs to each token of an output."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gptailor.checkpoint.forms import Aligned, RowRange, TensorInfo
from gptailor.checkpoint.opened import Opened


def has_rows(where: str, number: int) -> bool:
    """Whether a tensor of the layout's `where` has a row for each token: not GPT-2's positions."""
    return where == "head" or (where == "embed" and number == 0)


def aligned_rows(
    tensor: TensorInfo, model: Opened, donor: TensorInfo, teller: Opened
) -> TensorInfo:
    """A model's embedding or head with a row for each token of another model's tokenizer.

    `donor` is the same tensor of the model whose tokenizer it is (`teller`): it gives the number
    of rows, and the rows of tokens that the model lacks.
    """
    rows = donor.spec.shape[0]
    if model.name == teller.name or not can_be_aligned(model, teller):
        return tensor
    if not differs(tensor, model, donor, teller):
        return tensor
    pieces = tuple(_runs(list(_rows(tensor, model, donor, teller))))
    spec = replace(tensor.spec, shape=(rows, *tensor.spec.shape[1:]))
    return TensorInfo(spec, tensor.file, tensor.offset, Aligned(pieces))


def differs(tensor: TensorInfo, model: Opened, donor: TensorInfo, teller: Opened) -> bool:
    """Whether a model's rows are not those of the tokenizer already."""
    if tensor.spec.shape[:1] != donor.spec.shape[:1]:
        return True
    return model.vocabulary != teller.vocabulary


def can_be_aligned(model: Opened, teller: Opened) -> bool:
    """Whether both models' vocabularies are known."""
    return model.vocabulary is not None and teller.vocabulary is not None


def _rows(
    tensor: TensorInfo, model: Opened, donor: TensorInfo, teller: Opened
) -> Iterator[tuple[TensorInfo, int]]:
    """For each row of the output, the tensor that has it and its number there."""
    ours, theirs = model.vocabulary, teller.vocabulary
    assert ours is not None
    assert theirs is not None
    for row in range(donor.spec.shape[0]):
        token = theirs.tokens.get(row)
        number = ours.ids.get(token) if token is not None else None
        if number is not None and number < tensor.spec.shape[0]:
            yield tensor, number
        else:
            yield donor, row


def _runs(rows: Sequence[tuple[TensorInfo, int]]) -> Iterator[RowRange]:
    """Neighbouring rows of one tensor joined."""
    start = 0
    for i in range(1, len(rows) + 1):
        tensor, first = rows[start]
        if i == len(rows) or rows[i] != (tensor, first + i - start):
            yield RowRange(tensor, first, i - start)
            start = i
