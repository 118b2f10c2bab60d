"""A teacher's predictions of sequences as one Parquet file, in the format of Arcee's DistillKit.

A row is a sequence of `length` tokens, the same in all rows, with a prediction after each token:

- `input_ids`: the tokens.
- `compressed_logprobs`: for each token the `k` largest log-probabilities of the next token, in
  nats, largest first, as float32 in little-endian bytes.
- `bytepacked_indices`: for each token the numbers of these `k` tokens, each in the fewest bits that
  hold the vocabulary's numbers, highest bit first, filled up to whole bytes with zeros.

The file's metadata has under `distillkit` the settings of that format (`logprob_compressor` in
DistillKit's configuration), and under `gptailor` the tokenizer and the teacher. A file without them
has its settings in `compression_config.yaml` beside it, as DistillKit writes it.

Source: https://github.com/arcee-ai/DistillKit (compression of distributions).
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
import yaml  # type: ignore[import-untyped,unused-ignore]
from jaxtyping import Float, Int, Int32, Int64, UInt8
from torch import Tensor

from gptailor.evaluate.heal.text import EncodedRow, HealingSource
from gptailor.evaluate.objectives.datasets import CalibrationError, order

if TYPE_CHECKING:  # an extra, and slow to import
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet

_SETTINGS_FILE: Final = "compression_config.yaml"
_FORMAT, _NOTES = b"distillkit", b"gptailor"
_COLUMNS: Final = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_GROUP_TOKENS: Final = 4096
"""Tokens of a row group, which is read and written at once."""
_EXACT: Final = {
    "float16": torch.float16, "bfloat16": torch.bfloat16,
    "float32": torch.float32, "float64": torch.float64,
}  # fmt: skip
_MADE_AGAIN = "make the file with 'gptailor teach'"

PredictedSequences = tuple[
    Int64[Tensor, " n length"], Int[Tensor, " rows kept"], Float[Tensor, " rows kept"]
]
"""Sequences, and for each of their tokens the likeliest next tokens with log-probabilities."""


def unusable(message: str, path: Path, help: str = _MADE_AGAIN) -> CalibrationError:
    """Return the error (C814) for an unusable file of predictions."""
    return CalibrationError("C814", message, path, help=help)


def format_settings(kept: int, vocabulary: int) -> dict[str, Any]:
    """Return DistillKit's settings of a file that keeps `kept` log-probabilities as they are."""
    return {
        "d": vocabulary, "k": kept, "exact_k": kept, "exact_dtype": "float32",
        "polynomial_terms": None, "term_dtype": "float32", "residual_bins": [],
        "delta_encoding": False, "error_diffusion": False, "normalize_t": False,
    }  # fmt: skip


def bytes_of_prediction(kept: int, vocabulary: int) -> int:
    """Return the bytes of a token's prediction."""
    return kept * 4 + (kept * _bits(vocabulary) + 7) // 8


def write_predictions(
    path: Path,
    chunks: Iterable[PredictedSequences],
    kept: int,
    vocabulary: int,
    notes: Mapping[str, Any],
) -> None:
    """Write a new file; `notes` are kept in its metadata as JSON."""
    import pyarrow as pa
    from pyarrow import parquet

    lists = pa.list_(pa.list_(pa.uint8()))
    types = (pa.list_(pa.uint64()), lists, lists)
    settings = format_settings(kept, vocabulary)
    metadata = {_FORMAT: json.dumps(settings), _NOTES: json.dumps(notes)}
    schema = pa.schema(zip(_COLUMNS, types, strict=True), metadata=metadata)
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
            group = max(1, _GROUP_TOKENS // length)
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=group)


@final
@dataclass(frozen=True, eq=False)
class PredictionsFile:
    """A file of predictions. Its sequences have `length` tokens, each with `kept` predictions.

    `open` checks the format. Errors are CalibrationError (C801, C814).
    """

    path: Path
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    length: int
    sequences: Int64[Tensor, " n length"]

    @classmethod
    def open(cls, path: Path) -> "PredictionsFile":
        """Read the format and the sequences, but no predictions."""
        with _reading(path):
            file = _parquet(path)
            if not set(_COLUMNS) <= set(file.schema_arrow.names):
                names = ", ".join(f"'{name}'" for name in _COLUMNS)
                raise unusable(f"has no predictions, which are the columns {names}", path)
            column = file.read(["input_ids"]).column(0).combine_chunks()
        metadata = file.schema_arrow.metadata or {}
        settings = _settings(path, metadata.get(_FORMAT))
        lengths = set(column.value_lengths().to_pylist())
        if not lengths or lengths == {0}:
            raise unusable("has no sequences", path)
        if len(lengths) > 1:
            shortest, longest = min(lengths), max(lengths)
            message = f"its sequences have from {shortest} to {longest} tokens, and not one length"
            raise unusable(message, path, "pack the text into sequences of one length")
        values = column.flatten().to_numpy(zero_copy_only=False)
        [length] = lengths
        sequences = torch.from_numpy(values.astype(np.int64)).reshape(-1, length)
        notes = json.loads(metadata.get(_NOTES, b"{}"))
        return cls(path, settings, notes, length, sequences)

    @property
    def kept(self) -> int:
        """The number of log-probabilities of a prediction."""
        return int(self.settings["k"])

    @property
    def vocabulary(self) -> int:
        """The number of tokens that could be predicted."""
        return int(self.settings["d"])

    @property
    def tokenizer(self) -> str | None:
        """The digest of the teacher's tokenizer, or None in a file of another tool."""
        digest = self.notes.get("tokenizer")
        return digest if isinstance(digest, str) else None

    def refuse_other_tokens(self, tokenizer: str, vocabulary: int) -> None:
        """Raise CalibrationError (C814) for predictions of other tokens than a model's.

        `tokenizer` is the digest of the model's tokenizer. A file of another tool has none, and
        only the tokens' numbers are compared with the model's vocabulary.
        """
        if self.tokenizer not in {None, tokenizer}:
            message = "its teacher has another tokenizer than the plan"
            raise unusable(message, self.path, "name a file of a teacher with the same tokenizer")
        if self.vocabulary > vocabulary or int(self.sequences.max()) >= vocabulary:
            message = f"it predicts {self.vocabulary:,} tokens, and the plan's model {vocabulary:,}"
            raise unusable(message, self.path, "name a file of a teacher with the same tokenizer")

    def source(self, share: Fraction, seed: int) -> HealingSource:
        """Return the text of healing that the sequences are, in the order that a seed draws."""

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

    @cached_property
    def _file(self) -> "parquet.ParquetFile":
        return _parquet(self.path)

    def read(
        self, rows: Sequence[int], kept: int
    ) -> Iterator[tuple[int, Int32[Tensor, " length kept"], Float[Tensor, " length groups"]]]:
        """Yield the predictions of some sequences, in the file's order, each with its place.

        The place is that of its number in `rows`. Of each prediction the `kept` likeliest tokens
        are returned, with the log-probability of all other tokens together as the last one if the
        vocabulary has more.
        """
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)
        start = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            wanted = [row for row in range(start, start + count) if row in places]
            if wanted:
                tokens, logs = self._group(group, count, kept)
                for row in wanted:
                    for place in places[row]:
                        yield place, tokens[row - start], logs[row - start]
            start += count

    def _group(
        self, group: int, count: int, kept: int
    ) -> tuple[Int32[Tensor, " n length kept"], Float[Tensor, " n length groups"]]:
        with _reading(self.path):
            table = self._file.read_row_group(group, columns=list(_COLUMNS[1:]))
        dtype = _EXACT[self.settings["exact_dtype"]]
        bits = _bits(self.vocabulary)
        shape = count * self.length
        raw = self._bytes(table.column(0), shape, self.kept * dtype.itemsize)
        packed = self._bytes(table.column(1), shape, (self.kept * bits + 7) // 8)
        logs = torch.from_numpy(raw).view(dtype).float()[:, :kept]
        tokens = torch.from_numpy(_unpacked(packed, bits, self.kept))[:, :kept]
        if int(tokens.max()) >= self.vocabulary or bool(logs.isnan().any()):
            raise unusable(f"has predictions that are none, in row group {group}", self.path)
        if kept < self.vocabulary:
            rest = (1 - logs.double().exp().sum(1, keepdim=True)).clamp_min(torch.finfo().tiny)
            logs = torch.cat([logs, rest.log().float()], dim=1)
        return tokens.view(count, self.length, -1), logs.view(count, self.length, -1)

    def _bytes(self, column: "pa.ChunkedArray", rows: int, width: int) -> UInt8[np.ndarray, " n w"]:
        values = column.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
        if values.size != rows * width:
            message = f"has {values.size:,} bytes of predictions where {rows * width:,} belong"
            raise unusable(message, self.path)
        return np.array(values, dtype=np.uint8).reshape(rows, width)


def _parquet(path: Path) -> "parquet.ParquetFile":
    from pyarrow import parquet

    return parquet.ParquetFile(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow into CalibrationError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        why = str(error).partition("\n")[0]
        raise unusable(f"can't be read as Parquet: {why}", path) from None
    except OSError as error:
        raise CalibrationError("C801", f"can't be read: {error.strerror or error}", path) from None


def _settings(path: Path, stored: bytes | None) -> Mapping[str, Any]:
    """Return the settings of a file, or of the file of settings beside it."""
    beside = path.with_name(_SETTINGS_FILE)
    settings: Any
    if stored is not None:
        settings = json.loads(stored)
    elif beside.is_file():
        settings = yaml.safe_load(beside.read_text("utf-8"))
    else:
        raise unusable(f"has no settings, and there is no '{_SETTINGS_FILE}' beside it", path)
    kept = settings.get("k") if isinstance(settings, dict) else None
    if not isinstance(kept, int) or not isinstance(settings.get("d"), int):
        raise unusable("its settings have no numbers 'k' and 'd'", path)
    exact = settings.get("exact_k") == kept and not settings.get("delta_encoding", True)
    if not exact or settings.setdefault("exact_dtype", "float32") not in _EXACT:
        message = "its log-probabilities are approximated, and only exact ones are read"
        raise unusable(message, path, "write it with 'exact_k' as large as 'k'")
    found: Mapping[str, Any] = settings
    return found


def _lists(values: "pa.Array", size: int) -> "pa.ListArray":
    """Return an array of lists of `size` values each."""
    import pyarrow as pa

    offsets = np.arange(0, len(values) + 1, size, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


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
