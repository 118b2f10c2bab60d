"""A teacher's predictions of sequences as one Parquet file, in the format of Arcee's DistillKit.

A row is a sequence of `length` tokens, the same in all rows, with a prediction after each token:

- `input_ids`: the tokens.
- `compressed_logprobs`: for each token the `k` largest log-probabilities of the next token, in
  nats, largest first, as float32 in little-endian bytes.
- `bytepacked_indices`: for each token the numbers of these `k` tokens, each in the fewest bits that
  hold the vocabulary's numbers, highest bit first, filled up to whole bytes with zeros.

The file's metadata has under `distillkit` the settings of that format (`logprob_compressor` in
DistillKit's configuration), and under `gptailor` the tokenizer and the teacher.

Source: https://github.com/arcee-ai/DistillKit (compression of distributions).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64, UInt8
from torch import Tensor

from gptailor.checkpoint.datasets import CalibrationError, order
from gptailor.evaluation.heal.sources import unusable_predictions
from gptailor.evaluation.heal.text import EncodedRow, HealingSource

if TYPE_CHECKING:  # an extra, and slow to import
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet

_GROUP_TOKENS: Final = 4096
"""Tokens of a row group, which is encoded and decoded at once."""
_FORMAT, _NOTES = b"distillkit", b"gptailor"
_COLUMNS: Final = ("input_ids", "compressed_logprobs", "bytepacked_indices")

PredictedSequences = tuple[
    Int64[Tensor, " n length"], Int[Tensor, " rows kept"], Float[Tensor, " rows kept"]
]
"""Sequences, and for each of their tokens the likeliest next tokens with log-probabilities."""


def _format_settings(kept: Any, vocabulary: Any) -> dict[str, Any]:
    """Return DistillKit's settings of a file that keeps `kept` log-probabilities as they are."""
    return {
        "d": vocabulary, "k": kept, "exact_k": kept, "exact_dtype": "float32",
        "polynomial_terms": None, "term_dtype": "float32", "residual_bins": [],
        "delta_encoding": False, "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip


def bytes_of_prediction(kept: int, vocabulary: int) -> int:
    """Return the bytes of a token's prediction."""
    return kept * 4 + (kept * _bits(vocabulary) + 7) // 8


def sequences_at_once(length: int) -> int:
    """Return how many sequences of a length are encoded and decoded at once."""
    return max(1, _GROUP_TOKENS // length)


def write_predictions(
    path: Path,
    chunks: Iterable[PredictedSequences],
    kept: int,
    vocabulary: int,
    notes: Mapping[str, Any],
) -> None:
    """Write a new file, a row group for each chunk; `notes` are kept in its metadata as JSON."""
    import pyarrow as pa
    from pyarrow import parquet

    metadata = {_FORMAT: json.dumps(_format_settings(kept, vocabulary)), _NOTES: json.dumps(notes)}
    schema = _schema().with_metadata(metadata)
    bits = _bits(vocabulary)
    with parquet.ParquetWriter(path, schema) as writer:
        for sequences, tokens, logs in chunks:
            count, length = sequences.shape
            raw = logs.float().contiguous().numpy().view(np.uint8).reshape(count * length, -1)
            columns = [
                _lists(pa.array(sequences.numpy().astype(np.uint64).ravel()), length),
                _lists(_rows(raw), length),
                _lists(_rows(_packed(tokens.numpy(), bits)), length),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


@final
@dataclass(frozen=True, eq=False)
class ParquetPredictions:
    """A file of predictions, open. Its sequences have `length` tokens.

    `open` checks the format. A file that takes its place later is not read. Errors are
    CalibrationError (C801, C814).
    """

    path: Path
    file: "parquet.ParquetFile"
    kept: int
    vocabulary: int
    tokenizer: str
    length: int
    sequences: Int64[Tensor, " n length"]

    @classmethod
    def open(cls, path: Path) -> "ParquetPredictions":
        """Read the format and the sequences, but no predictions."""
        from pyarrow import parquet

        with _reading(path):
            file = parquet.ParquetFile(path)
            types = {field.name: field.type for field in file.schema_arrow}
            if any(types.get(field.name) != field.type for field in _schema()):
                names = ", ".join(f"'{name}'" for name in _COLUMNS)
                raise unusable_predictions(f"has not the columns of predictions: {names}", path)
            kept, vocabulary, tokenizer = _settings(path, file.schema_arrow.metadata or {})
            column = file.read(["input_ids"]).column(0).combine_chunks()
            lengths = set(column.value_lengths().to_pylist())
            values = column.flatten().to_numpy(zero_copy_only=False)
        if not lengths or lengths & {0, None}:
            raise unusable_predictions("has no sequences, or an empty one", path)
        if len(lengths) > 1:
            message = f"its sequences have from {min(lengths)} to {max(lengths)} tokens"
            raise unusable_predictions(f"{message}, and not one length", path)
        [length] = lengths
        sequences = torch.from_numpy(values.astype(np.int64)).reshape(-1, length)
        return cls(path, file, kept, vocabulary, tokenizer, length, sequences)

    def refuse_other_tokens(self, tokenizer: str, vocabulary: int) -> None:
        """Raise CalibrationError (C814) for predictions of other tokens than a model's.

        `tokenizer` is the digest of the model's tokenizer.
        """
        help_ = "name a file of a teacher with the same tokenizer"
        if self.tokenizer != tokenizer:
            message = "its teacher has another tokenizer than the plan"
            raise unusable_predictions(message, self.path, help_)
        if self.vocabulary != vocabulary:
            message = f"it predicts {self.vocabulary:,} tokens, and the plan's model {vocabulary:,}"
            raise unusable_predictions(message, self.path, help_)
        if not 0 <= int(self.sequences.min()) <= int(self.sequences.max()) < vocabulary:
            message = f"its sequences have tokens beyond the {vocabulary:,} of the vocabulary"
            raise unusable_predictions(message, self.path)

    def source(self, share: Fraction, seed: int) -> HealingSource:
        """Return the sequences as a text of healing, in the order that a seed draws."""

        def rows(_wanted: int) -> Iterator[EncodedRow]:
            for number in self._order(seed):
                yield EncodedRow(tuple(self.sequences[number].tolist()))

        return HealingSource(self.path, share, rows, length=self.length)

    def drawn(self, seed: int, numbers: Sequence[int]) -> list[int]:
        """Return the rows of the sequences with these numbers in the order that a seed draws."""
        in_order = self._order(seed)
        return [in_order[number] for number in numbers]

    def _order(self, seed: int) -> list[int]:
        return order(len(self.sequences), seed)

    def read(
        self, rows: Sequence[int], kept: int
    ) -> Iterator[tuple[int, Int32[Tensor, " length kept"], Float[Tensor, " length groups"]]]:
        """Yield the predictions of some sequences, in the file's order, each with its place.

        The place is that of its number in `rows`. A prediction has its `kept` likeliest tokens. If
        the vocabulary has more, the log-probability of all other tokens together comes last.
        """
        places = {row: place for place, row in enumerate(rows)}
        start = 0
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            wanted = [row for row in range(start, start + count) if row in places]
            if wanted:
                tokens, logs = self._group(group, count, kept)
                for row in wanted:
                    yield places[row], tokens[row - start], logs[row - start]
            start += count

    def _group(
        self, group: int, count: int, kept: int
    ) -> tuple[Int32[Tensor, " n length kept"], Float[Tensor, " n length groups"]]:
        bits = _bits(self.vocabulary)
        with _reading(self.path):
            table = self.file.read_row_group(group, columns=list(_COLUMNS[1:]))
            raw, packed = (
                column.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
                for column in table.columns
            )
        logs = torch.from_numpy(self._matrix(raw, count, self.kept * 4)).view(torch.float32)
        tokens = _unpacked(
            self._matrix(packed, count, (self.kept * bits + 7) // 8), bits, self.kept
        )
        logs = logs[:, :kept]
        if int(tokens.max()) >= self.vocabulary or bool(logs.isnan().any()):
            message = f"has NaN or tokens beyond the vocabulary in row group {group}"
            raise unusable_predictions(message, self.path)
        if kept < self.vocabulary:
            rest = (1 - logs.double().exp().sum(1, keepdim=True)).clamp_min(torch.finfo().tiny)
            logs = torch.cat([logs, rest.log().float()], dim=1)
        shape = (count, self.length, -1)
        return torch.from_numpy(tokens)[:, :kept].reshape(shape), logs.reshape(shape)

    def _matrix(self, values: Any, count: int, width: int) -> UInt8[np.ndarray, " rows width"]:
        rows = count * self.length
        if values.size != rows * width:
            message = f"has {values.size:,} bytes of predictions where {rows * width:,} belong"
            raise unusable_predictions(message, self.path)
        return np.array(values, dtype=np.uint8).reshape(rows, width)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    lists = pa.list_(pa.list_(pa.uint8()))
    return pa.schema(zip(_COLUMNS, (pa.list_(pa.uint64()), lists, lists), strict=True))


def _settings(path: Path, metadata: Mapping[bytes, bytes]) -> tuple[int, int, str]:
    """Return the kept log-probabilities, the vocabulary's size and the tokenizer's digest."""
    try:
        settings, notes = (json.loads(metadata[key]) for key in (_FORMAT, _NOTES))
        kept, vocabulary, tokenizer = settings["k"], settings["d"], notes["tokenizer"]
        known = settings == _format_settings(kept, vocabulary) and 1 <= kept <= vocabulary
    except (ValueError, LookupError, TypeError):
        raise unusable_predictions("has no notes of its format and tokenizer", path) from None
    if not known:
        raise unusable_predictions("its notes have another format than gptailor writes", path)
    return kept, vocabulary, str(tokenizer)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow into CalibrationError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        why = str(error).partition("\n")[0]
        raise unusable_predictions(f"can't be read as Parquet: {why}", path) from None
    except OSError as error:
        raise CalibrationError("C801", f"can't be read: {error.strerror or error}", path) from None


def _lists(values: "pa.Array", size: int) -> "pa.ListArray":
    """Return an array of lists of `size` values each."""
    import pyarrow as pa

    offsets = np.arange(0, len(values) + 1, size)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _rows(matrix: UInt8[np.ndarray, " n bytes"]) -> "pa.ListArray":
    import pyarrow as pa

    return _lists(pa.array(matrix.ravel()), matrix.shape[1])


def _bits(vocabulary: int) -> int:
    """Return the bits of a token's number."""
    return max(1, (vocabulary - 1).bit_length())


def _packed(tokens: Int[np.ndarray, " n kept"], bits: int) -> UInt8[np.ndarray, " n bytes"]:
    places = np.arange(bits - 1, -1, -1, dtype=np.int32)
    each = (tokens.astype(np.int32)[..., None] >> places) & 1
    return np.packbits(each.astype(np.uint8).reshape(len(tokens), -1), axis=1)


def _unpacked(
    packed: UInt8[np.ndarray, " n bytes"], bits: int, kept: int
) -> Int32[np.ndarray, " n kept"]:
    each = np.unpackbits(packed, axis=1, count=kept * bits).reshape(len(packed), kept, bits)
    powers = 1 << np.arange(bits - 1, -1, -1, dtype=np.int32)
    return (each @ powers).astype(np.int32)
