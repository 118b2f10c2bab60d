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
from typing import Any, Final, final

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
import torch
from jaxtyping import Float, Int, Int32, Int64, UInt8
from pyarrow import parquet
from torch import Tensor

from gptailor.checkpoint.datasets import CalibrationError, order
from gptailor.evaluation.fits.heal.sources import (
    EncodedRow,
    HealingSource,
    unusable_predictions,
)

_GROUP_TOKENS: Final = 4096
"""Tokens of a row group, which is encoded and decoded at once."""
_FORMAT, _NOTES = b"distillkit", b"gptailor"
_COLUMNS: Final = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_ROUNDING: Final = 1e-2
"""The largest error of a sum of float32 probabilities of large logits, which should be 1."""

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
    metadata = {_FORMAT: json.dumps(_format_settings(kept, vocabulary)), _NOTES: json.dumps(notes)}
    schema = _schema().with_metadata(metadata)
    bits = _bits(vocabulary)
    with parquet.ParquetWriter(path, schema, write_page_checksum=True) as writer:
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
    file: parquet.ParquetFile
    kept: int
    vocabulary: int
    tokenizer: str
    length: int
    sequences: Int64[Tensor, " n length"]

    @classmethod
    def open(cls, path: Path) -> "ParquetPredictions":
        """Read the format and the sequences, but no predictions."""
        with _reading(path):
            file = parquet.ParquetFile(path, page_checksum_verification=True)
            for name in _COLUMNS:
                if (count := file.schema_arrow.names.count(name)) != 1:
                    message = f"expected one column '{name}', got {count}"
                    raise unusable_predictions(message, path)
            kept, vocabulary, tokenizer = _settings(path, file.schema_arrow.metadata or {})
            column = _typed(file.read(["input_ids"])["input_ids"], "input_ids", path)
            column = column.combine_chunks()
            lengths = set(column.value_lengths().to_pylist())
            values = _without_nulls(column.flatten(), path)
        groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        if not len(column) == file.metadata.num_rows == sum(groups):
            message = f"expected {file.metadata.num_rows:,} sequences, got {len(column):,}"
            raise unusable_predictions(message, path)
        if not lengths or lengths & {0, None}:
            raise unusable_predictions("has no sequences, or an empty one", path)
        if len(lengths) > 1:
            message = f"its sequences have from {min(lengths)} to {max(lengths)} tokens"
            raise unusable_predictions(f"{message}, expected one length", path)
        [length] = lengths
        sequences = torch.from_numpy(values.astype(np.int64)).reshape(-1, length)
        return cls(path, file, kept, vocabulary, tokenizer, length, sequences)

    def refuse_other_tokens(self, tokenizer: str, vocabulary: int) -> None:
        """Raise CalibrationError (C814) for predictions of other tokens than a model's.

        `tokenizer` is the digest of the model's tokenizer.
        """
        help_ = "name a file of a teacher with the same tokenizer"
        if self.tokenizer != tokenizer:
            message = "its teacher's tokenizer differs from the plan's"
            raise unusable_predictions(message, self.path, help_)
        if self.vocabulary != vocabulary:
            message = f"it predicts {self.vocabulary:,} tokens, the plan's model {vocabulary:,}"
            raise unusable_predictions(message, self.path, help_)
        beyond = ((self.sequences < 0) | (self.sequences >= vocabulary)).any(1)
        if bool(beyond.any()):
            row = int(beyond.nonzero()[0]) + 1
            message = f"the sequence in row {row} has a token beyond the {vocabulary:,}"
            raise unusable_predictions(f"{message} of the vocabulary", self.path)

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

        The place is the position of its number in `rows`. A prediction has its `kept` likeliest
        tokens. If the vocabulary has more, the log-probability of all other tokens together comes
        last.
        """
        places = {row: place for place, row in enumerate(rows)}
        start = 0
        for group in range(self.file.num_row_groups):
            end = start + self.file.metadata.row_group(group).num_rows
            wanted = any(row in places for row in range(start, end))
            for batch in self._batches(group) if wanted else ():
                tokens, logs = self._predictions(batch, start, kept)
                for row in range(start, start + batch.num_rows):
                    if row in places:
                        yield places[row], tokens[row - start], logs[row - start]
                start += batch.num_rows
            if wanted and start < end:
                message = f"the predictions of row {start + 1} are missing"
                raise unusable_predictions(message, self.path)
            start = end

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        size = sequences_at_once(self.length)
        with _reading(self.path):
            yield from self.file.iter_batches(size, row_groups=[group], columns=_COLUMNS[1:])

    def _predictions(
        self, batch: pa.RecordBatch, start: int, kept: int
    ) -> tuple[Int32[Tensor, " n length kept"], Float[Tensor, " n length groups"]]:
        """Return the predictions of a batch, which begins with the row `start`."""
        bits = _bits(self.vocabulary)
        widths = self.kept * 4, (self.kept * bits + 7) // 8
        raw, packed = (
            self._matrix(_typed(batch[name], name, self.path), width, start)
            for name, width in zip(_COLUMNS[1:], widths, strict=True)
        )
        logs = torch.from_numpy(raw).view(torch.float32)
        tokens = torch.from_numpy(_unpacked(packed, bits, self.kept))
        self._refuse_impossible(tokens, logs, start)
        tokens, logs = tokens[:, :kept], logs[:, :kept]
        if kept < self.vocabulary:
            rest = (1 - logs.double().exp().sum(1, keepdim=True)).clamp_min(torch.finfo().tiny)
            logs = torch.cat([logs, rest.log().float()], dim=1)
        shape = (batch.num_rows, self.length, -1)
        return tokens.reshape(shape), logs.reshape(shape)

    def _refuse_impossible(
        self, tokens: Int32[Tensor, " n kept"], logs: Float[Tensor, " n kept"], start: int
    ) -> None:
        """Raise CalibrationError (C814) for the first prediction that isn't a distribution."""
        ordered = torch.from_numpy(np.sort(tokens.numpy(), axis=1))  # faster than torch's
        total = logs.double().exp().sum(1)
        least = 1.0 if self.kept == self.vocabulary else 0.0
        for what, wrong in (
            ("a token beyond the vocabulary", (tokens >= self.vocabulary).any(1)),
            ("one token twice", (ordered[:, 1:] == ordered[:, :-1]).any(1)),
            ("NaN or infinity as a log-probability", ~logs.isfinite().all(1)),
            ("probabilities that sum to more than 1", total > 1 + _ROUNDING),
            ("probabilities that sum to less than 1", total < least - _ROUNDING),
            ("log-probabilities that don't descend", (logs.diff(dim=1) > 0).any(1)),
        ):
            if bool(wrong.any()):
                row, place = divmod(int(wrong.nonzero()[0]), self.length)
                message = f"the prediction after token {place + 1} of row {start + row + 1}"
                raise unusable_predictions(f"{message} has {what}", self.path)

    def _matrix(
        self, column: pa.ListArray, width: int, start: int
    ) -> UInt8[np.ndarray, " rows width"]:
        """Return the bytes of a column of predictions, which begins with the row `start`."""
        inner = column.flatten()
        parts = (column, self.length, "predictions"), (inner, width, "bytes of a prediction")
        for lists, size, what in parts:
            sizes = lists.value_lengths().fill_null(0).to_numpy()
            for wrong in np.flatnonzero(sizes != size)[:1].tolist():
                row = start + wrong // (len(lists) // len(column)) + 1
                message = f"expected {size:,} {what} in row {row}, got {sizes[wrong]:,}"
                raise unusable_predictions(message, self.path)
        return _without_nulls(inner.flatten(), self.path).reshape(-1, width)


def _typed(column: Any, name: str, path: Path) -> Any:
    """Return a column, an array of any kind, in the type that the format has for it."""
    wanted = _schema().field(name).type
    try:
        return column.cast(wanted)
    except pa.ArrowException as error:
        why = str(error).partition("\n")[0]
        message = f"expected the column '{name}' as {wanted}, got {column.type} ({why})"
        raise unusable_predictions(message, path) from None


def _without_nulls(values: pa.Array, path: Path) -> np.ndarray:
    if values.null_count:
        raise unusable_predictions("expected numbers, got a null", path)
    return np.array(values)


def _schema() -> pa.Schema:
    lists = pa.list_(pa.list_(pa.uint8()))
    return pa.schema(zip(_COLUMNS, (pa.list_(pa.uint64()), lists, lists), strict=True))


def _settings(path: Path, metadata: Mapping[bytes, bytes]) -> tuple[int, int, str]:
    """Return the kept log-probabilities, the vocabulary's size and the tokenizer's digest."""
    try:
        settings, notes = (json.loads(metadata[key]) for key in (_FORMAT, _NOTES))
        kept, vocabulary, tokenizer = settings["k"], settings["d"], notes["tokenizer"]
        known = settings == _format_settings(kept, vocabulary) and 1 <= kept <= vocabulary
        known = known and isinstance(kept, int) and isinstance(vocabulary, int)
    except (ValueError, LookupError, TypeError, RecursionError):
        raise unusable_predictions("lacks the metadata of its format and tokenizer", path) from None
    if not known:
        raise unusable_predictions("expected the metadata of a file from 'gptailor teach'", path)
    return kept, vocabulary, str(tokenizer)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the system's and pyarrow's errors into CalibrationError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CalibrationError("C801", f"can't be read: {error.strerror}", path) from None
        why = str(error).partition("\n")[0]
        message = f"is damaged, or can't be read as Parquet: {why}"
        raise unusable_predictions(message, path) from None


def _lists(values: pa.Array, size: int) -> pa.ListArray:
    """Return an array of lists of `size` values each."""
    offsets = np.arange(0, len(values) + 1, size)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _rows(matrix: UInt8[np.ndarray, " n bytes"]) -> pa.ListArray:
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
