"""Files of predictions: types of columns, damage, and numbers that aren't distributions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.plugins.teach import predictions_file
from gptailor.plugins.teach.predictions_file import (
    ParquetPredictions,
    PredictedSequences,
    write_predictions,
)

ROWS, LENGTH, KEPT, VOCABULARY = 6, 8, 9, 61
INNER = pa.list_(pa.list_(pa.uint8()))


def sample(seed: int = 0) -> PredictedSequences:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS * LENGTH, VOCABULARY, generator=draw)
    logs, tokens = logits.log_softmax(-1).topk(KEPT)
    return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=draw), tokens, logs


def write(path: Path, *chunks: PredictedSequences, kept: int = KEPT) -> None:
    write_predictions(path, chunks, kept, VOCABULARY, {"tokenizer": "t"})


def read(path: Path, kept: int = KEPT) -> object:
    """Everything in a file, as lists."""
    file = ParquetPredictions.open(path)
    file.refuse_other_tokens("t", VOCABULARY)
    results = list(file.read(range(len(file.sequences)), kept))
    return file.sequences.tolist(), [(row, t.tolist(), logs.tolist()) for row, t, logs in results]


def rewrite(
    path: Path,
    change: Callable[[list[Any]], object] = len,
    types: Sequence[pa.DataType] | None = None,
    row_group_size: int | None = None,
) -> None:
    """Change a file's rows, and the types of its columns."""
    table = parquet.read_table(path)
    rows = table.to_pylist()
    change(rows)
    names = table.schema.names
    schema = pa.schema(zip(names, types or table.schema.types, strict=True), table.schema.metadata)
    parquet.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "taught.parquet", sample(0), sample(1))
    return tmp_path / "taught.parquet"


# ------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("numbers", "bytes_"),
    [
        (pa.list_(pa.int64()), INNER),
        (pa.list_(pa.uint8()), pa.list_(pa.list_(pa.int64()))),
        (pa.large_list(pa.int32()), pa.large_list(pa.large_list(pa.uint8()))),
        (pa.list_(pa.int16(), LENGTH), pa.list_(pa.list_(pa.uint8()), LENGTH)),
        (pa.list_(pa.float64()), INNER),
    ],
    ids=str,
)
def test_columns_of_other_types_are_read_if_their_values_fit(
    path: Path, numbers: pa.DataType, bytes_: pa.DataType
) -> None:
    expected = read(path)
    rewrite(path, types=(numbers, bytes_, bytes_), row_group_size=4)
    assert parquet.read_schema(path).types != [pa.list_(pa.uint64()), INNER, INNER]
    assert read(path) == expected


def test_row_groups_of_any_size_are_read_in_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read(path)
    rewrite(path, row_group_size=7)
    assert read(path) == expected
    monkeypatch.setattr(predictions_file, "_GROUP_TOKENS", 3 * LENGTH)
    assert read(path) == expected


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("input_ids", ["a"], r"'input_ids' as list<.*uint64>, got string"),
        ("input_ids", [1], r"'input_ids' as list<.*uint64>, got int64"),
        ("input_ids", [None], "no sequences, or an empty one"),
        ("compressed_logprobs", [[b"a"]], r"list<.*uint8>>, got list<.*binary>"),
        ("bytepacked_indices", None, "expected one column 'bytepacked_indices', got 0"),
    ],
)
def test_columns_of_unusable_types_are_refused(
    path: Path, name: str, values: list[object] | None, why: str
) -> None:
    table = parquet.read_table(path)
    changed = table.drop_columns([name])
    if values is not None:
        place = table.schema.get_field_index(name)
        changed = table.set_column(place, name, pa.array(values * len(table)))
    parquet.write_table(changed, path)
    with pytest.raises(CalibrationError, match=rf"C814.*{why}"):
        read(path)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("input_ids", -1, r"'input_ids' as list<.*uint64>, got list<.*int64> \(.*-1 not in range"),
        ("input_ids", None, "expected numbers, got a null"),
        ("input_ids", VOCABULARY, "in row 3 has a token beyond the 61"),
        ("bytepacked_indices", [300] * 7, r"list<.*uint8>>, got .*300 not in range"),
        ("bytepacked_indices", [None] * 7, "expected numbers, got a null"),
        ("bytepacked_indices", None, "expected 7 bytes of a prediction in row 3, got 0"),
        ("compressed_logprobs", [0] * 35, "expected 36 bytes of a prediction in row 3, got 35"),
    ],
)
def test_values_that_do_not_fit_are_refused(path: Path, name: str, value: object, why: str) -> None:
    wide = pa.list_(pa.list_(pa.int64()))
    rewrite(
        path,
        lambda rows: rows[2][name].__setitem__(5, value),
        types=(pa.list_(pa.int64()), wide, wide),
    )
    with pytest.raises(CalibrationError, match=rf"C814.*{why}"):
        read(path)


@pytest.mark.parametrize("count", [0, 7])
def test_a_row_without_all_its_predictions_is_refused(path: Path, count: int) -> None:
    rows = [[0] * 36] * count or None
    rewrite(path, lambda result: result[4].__setitem__("compressed_logprobs", rows))
    with pytest.raises(
        CalibrationError, match=rf"C814.*expected 8 predictions in row 5, got {count}"
    ):
        read(path)


# -------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_an_error_or_changes_nothing(path: Path) -> None:
    """Pages have checksums. The counts behind them are compared with each other."""
    raw, expected, refused = path.read_bytes(), read(path), 0
    drawn = torch.randint(8 * len(raw), (500,), generator=torch.Generator().manual_seed(0))
    for bit in drawn.tolist():
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read(path) == expected
        except CalibrationError as error:
            assert error.code == "C814"  # noqa: PT017 (it may also change nothing)
            refused += 1
    assert refused > 200


def test_missing_rows_of_predictions_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = ParquetPredictions._batches
    monkeypatch.setattr(
        ParquetPredictions, "_batches", lambda file, n: (b.slice(0, 4) for b in batches(file, n))
    )
    with pytest.raises(CalibrationError, match=r"C814.*predictions of row 5 are missing"):
        read(path)


# ------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ([-0.9, -1.0, -1.1], "probabilities that sum to more than 1"),
        ([0.5, -9.0, -9.0], "probabilities that sum to more than 1"),
        ([torch.nan], "NaN or infinity"),
        ([torch.inf], "NaN or infinity"),
        ([-torch.inf], "NaN or infinity"),
        ([-3.0, -2.0], "log-probabilities that don't descend"),
    ],
)
@pytest.mark.parametrize("kept", [1, KEPT])
def test_impossible_probabilities_are_refused(
    path: Path, first: list[float], why: str, kept: int
) -> None:
    sequences, tokens, logs = sample()
    logs[20], logs[20, : len(first)] = -9.0, torch.tensor(first)
    write(path, (sequences, tokens, logs))
    with pytest.raises(CalibrationError, match=rf"C814.*after token 5 of row 3 has {why}") as error:
        read(path, kept)
    assert "gptailor teach" in error.value.help
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("total", "why"), [(0.9, "less"), (1.1, "more")])
def test_probabilities_of_the_whole_vocabulary_sum_to_1(path: Path, total: float, why: str) -> None:
    tokens = torch.arange(VOCABULARY).repeat(ROWS * LENGTH, 1)
    logs = torch.full(tokens.shape, 1 / VOCABULARY).log()
    chunk = sample()[0], tokens, logs
    write(path, chunk, kept=VOCABULARY)
    read(path, VOCABULARY)
    logs[5] += torch.tensor(total).log()
    write(path, chunk, kept=VOCABULARY)
    with pytest.raises(CalibrationError, match=f"C814.*token 6 of row 1 has.*sum to {why} than 1"):
        read(path)


@pytest.mark.parametrize(
    ("token", "why"), [(63, "a token beyond the vocabulary"), (None, "one token twice")]
)
def test_impossible_tokens_are_refused(path: Path, token: int | None, why: str) -> None:
    sequences, tokens, logs = sample()
    tokens[20, 7] = tokens[20, 2] if token is None else token
    write(path, sample(1), (sequences, tokens, logs))
    with pytest.raises(CalibrationError, match=rf"C814.*after token 5 of row 9 has {why}"):
        read(path, 1)
