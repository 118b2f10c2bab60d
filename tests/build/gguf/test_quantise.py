"""Quantisers: the bytes that llama.cpp makes, and the numbers that come back."""

import ctypes
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptailor.checkpoint.formats.gguf.kinds import KIND_NUMBERS, KINDS

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

from gptailor.build.gguf import quantise  # noqa: E402

OURS = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
COUNT = 4096


def numbers(seed: int) -> np.ndarray:
    """Numbers in −1 to 1, of integers alone, so that they are the same everywhere."""
    mixed = (np.arange(COUNT, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1


def by_group(seed: int, size: int, lowest: int, highest: int) -> np.ndarray:
    """Groups of numbers, each times a power of two."""
    powers = np.arange(COUNT // size) * 7 % (highest - lowest) + lowest
    return numbers(seed).reshape(-1, size) * 2.0 ** powers[:, None]


CASES = {
    "weights": 0.02 * numbers(1) ** 3,
    "outliers": np.where(np.arange(COUNT) % 97, 0.01, 5.0) * numbers(2),
    "positive": numbers(3) ** 2,
    "zeros": np.zeros(COUNT),
    "zero groups": numbers(4) * (np.arange(COUNT) // 16 % 3 > 0),
    "constants": numbers(5)[np.arange(COUNT) // 32 * 32],
    "far": by_group(6, 16, -30, 12),
    "tiny": by_group(7, 16, -150, -100),
    "an offset": 0.001 * numbers(8) - 100,
}
DIGESTS: dict[str, dict[str, str]] = {
    "Q3_K": {
        "weights": "c79e770f138a8088",
        "outliers": "7d0bfac152391315",
        "positive": "d8f4edd7616d8f3b",
        "zeros": "52e28210c0be3be4",
        "zero groups": "6967721b161aa5da",
        "constants": "8249eb8ab695d626",
        "far": "decd52eaea831ae7",
        "tiny": "52e28210c0be3be4",
        "an offset": "9896ca022d99e366",
    },
    "Q4_K": {
        "weights": "5a52fdcb94b6bc6c",
        "outliers": "b2fab172b7899e34",
        "positive": "634f566e75634acb",
        "zeros": "cfc335996cfae29f",
        "zero groups": "55daff7b56dc293c",
        "constants": "25744404e2d74af9",
        "far": "c350cab245d5350b",
        "tiny": "72f39e1a5bf8de71",
        "an offset": "2427505f627c5a55",
    },
    "Q5_K": {
        "weights": "298860460e6b2ab7",
        "outliers": "c7c5dfd36e01c29f",
        "positive": "e659e68d798d4a80",
        "zeros": "9b44eb0c6245877e",
        "zero groups": "1b7e2f497ee6d314",
        "constants": "d6e36b327a47cce7",
        "far": "9e1484fcb6fe4d16",
        "tiny": "1d074088bf016c47",
        "an offset": "a4c3fdf31acb0c15",
    },
    "Q6_K": {
        "weights": "572a78234f2d2d8a",
        "outliers": "565d40e78ecf4b13",
        "positive": "6bec1f7892237273",
        "zeros": "9b00b8930d66b11e",
        "zero groups": "aae2a558948d20ec",
        "constants": "618f97389124f54f",
        "far": "ba291d2b7eaeba25",
        "tiny": "9b00b8930d66b11e",
        "an offset": "09c8d04da73acb83",
    },
    "IQ4_NL": {
        "weights": "91c8706728956555",
        "outliers": "a70df75f62480712",
        "positive": "dd8da7fd918defb3",
        "zeros": "4761b8556f6adbad",
        "zero groups": "bc8a178222d968fa",
        "constants": "8caae3d560945ded",
        "far": "dd8f33e859b9529e",
        "tiny": "4761b8556f6adbad",
        "an offset": "b577a9e51034d10e",
    },
}
"""Digests of the blocks that `ggml_quantize_chunk` makes in xllamacpp 2026.10, for x86-64."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", OURS)
def test_blocks_are_those_that_llama_cpp_made(kind: str, case: str) -> None:
    blocks = quantise.quantised(CASES[case].astype(np.float32), KINDS[kind])
    assert blocks.shape == (COUNT // KINDS[kind].block, KINDS[kind].bytes)
    assert hashlib.sha256(blocks.tobytes()).hexdigest()[:16] == DIGESTS[kind][case]


@pytest.mark.parametrize("kind", OURS)
def test_blocks_do_not_depend_on_their_neighbours(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = CASES["outliers"].astype(np.float32)
    whole = quantise.quantised(values, KINDS[kind])
    monkeypatch.setattr(quantise, "_AT_ONCE", KINDS[kind].block)
    np.testing.assert_array_equal(quantise.quantised(values, KINDS[kind]), whole)


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("Q3_K", 0.17), ("Q4_K", 0.08), ("Q5_K", 0.04), ("Q6_K", 0.02), ("IQ4_NL", 0.09)],
)
def test_numbers_come_back_nearly(kind: str, bound: float) -> None:
    values = CASES["weights"].astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    back = gguf.quants.dequantize(quantise.quantised(values, KINDS[kind]), number).reshape(-1)
    assert np.linalg.norm(back - values) < bound * np.linalg.norm(values)


@pytest.mark.parametrize("large", [1e9, -1e12, 1e13, -1e19, 1e30, -3e38])
@pytest.mark.parametrize("kind", OURS)
def test_a_block_with_a_number_that_is_too_large_has_no_finite_scale(
    kind: str, large: float
) -> None:
    values = CASES["weights"].astype(np.float32)
    values[300] = large
    blocks = quantise.quantised(values, KINDS[kind])
    scales = blocks[:, slice(*KINDS[kind].scales)].copy().view(np.float16)
    assert (~np.isfinite(scales)).any(axis=1).nonzero()[0].tolist() == [300 // KINDS[kind].block]


# -------------------------------------------------------------------------- llama.cpp's own library


def of_llama_cpp(values: np.ndarray, kind: str) -> np.ndarray:
    """The blocks that `ggml_quantize_chunk` makes in the package `xllamacpp`."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        pytest.skip("the package 'xllamacpp' is not installed")
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    chunk = ctypes.CDLL(str(path)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    (number,) = (n for n, each in KIND_NUMBERS.items() if each.name == kind)
    block = KINDS[kind].block
    made = np.zeros((len(values) // block, KINDS[kind].bytes), np.uint8)
    size = chunk(number, values.ctypes.data, made.ctypes.data, 0, len(made), block, None)
    assert size == made.nbytes
    return made


@pytest.mark.llamacpp
@pytest.mark.parametrize("kind", OURS)
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 16, 32, 256]),
    powers=st.tuples(st.integers(-140, 0), st.integers(1, 16)),
    offset=st.sampled_from([0.0, 0.0, 1.0, -3.0]),
    rare=st.sampled_from([1, 1, 5, 97]),
)
def test_blocks_are_those_of_llama_cpps_library(
    kind: str, seed: int, *, size: int, powers: tuple[int, int], offset: float, rare: int
) -> None:
    lowest, span = powers
    values = by_group(seed, size, lowest, lowest + span).reshape(-1) + offset * 2.0**lowest
    values *= np.where(np.arange(COUNT) % rare, 0.01, 1.0)
    single = values.astype(np.float32)
    ours = quantise.quantised(single, KINDS[kind])
    np.testing.assert_array_equal(ours, of_llama_cpp(single, kind))
