"""Quantisers: the bytes that llama.cpp makes, and the numbers that come back."""

import hashlib

import numpy as np
import pytest

from gptailor.checkpoint.formats.gguf.kinds import KINDS

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")
pytest.importorskip("xllamacpp", reason="the package 'xllamacpp' is not installed")

from gptailor.output.gguf import quantise  # noqa: E402

OURS = ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
WEIGHTED = (*OURS, "Q4_0", "Q4_1", "Q5_0", "Q5_1")
COUNT, ROW = 4096, 1024


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

SOME = np.abs(numbers(9)[:ROW]) + 0.01
COLUMNS = np.arange(ROW)
IMPORTANCE = {
    "uniform": np.ones(ROW),
    "random": SOME**4,
    "some zero": SOME * (COLUMNS % 5 > 0),
    "zero groups": SOME * (COLUMNS // 32 % 4 > 0),
    "one of 32": SOME * (COLUMNS % 32 == 3),
    "zero": np.zeros(ROW),
    "far": SOME * 2.0 ** (COLUMNS % 90 - 45),
}
WEIGHTED_DIGESTS: dict[str, dict[str, str]] = {
    "Q3_K": {
        "uniform": "6f08e99f8ada81c1",
        "random": "8c721769ea22037d",
        "some zero": "c29040141fa0f1be",
        "zero groups": "2102c7a4488fc917",
        "one of 32": "4ec977be5b92a26a",
        "zero": "ec20f38fd13b2bcc",
        "far": "ac70961cc730020c",
    },
    "Q4_K": {
        "uniform": "29e265ac4e8432d3",
        "random": "4ab19058748bf62a",
        "some zero": "86ca03d546369165",
        "zero groups": "d49b7ad13109a84f",
        "one of 32": "9675c143b7e551fc",
        "zero": "73919298c462216b",
        "far": "8ed2069c47f52060",
    },
    "Q5_K": {
        "uniform": "41033cba7f61bdf7",
        "random": "6de6e15c7b041082",
        "some zero": "85fb5531986fcec2",
        "zero groups": "bcc3a7d7ce74abbe",
        "one of 32": "2c0b0ff468338096",
        "zero": "d1ca2b4fef7ecdc5",
        "far": "a0840ca16c97a04e",
    },
    "Q6_K": {
        "uniform": "354cbeecb60f50fb",
        "random": "c252aa45a445e21d",
        "some zero": "6a402f15dce5f50b",
        "zero groups": "ff3dc33db58e2643",
        "one of 32": "c5a08ab720bd2db1",
        "zero": "15664c70c740d900",
        "far": "40ac6494b277adcf",
    },
    "IQ4_NL": {
        "uniform": "30d7cf0d43f00814",
        "random": "d66c29d07b6ffbb8",
        "some zero": "f20b227ed9cc53db",
        "zero groups": "791a775dde18f05a",
        "one of 32": "90cc9c0743809f31",
        "zero": "beb681027cc9ce31",
        "far": "3995b4ba01f9094b",
    },
    "Q4_0": {
        "uniform": "653e0468d60da7d0",
        "random": "9a84c7f8bfab2c60",
        "some zero": "ec2b02b9871a21c1",
        "zero groups": "d1c137f9d1f977c9",
        "one of 32": "c3a29a7bfc4516c3",
        "zero": "a1098dc350f5c61e",
        "far": "9daaba96ad3e85f6",
    },
    "Q4_1": {
        "uniform": "50222a248a3ff3b0",
        "random": "ad1f9c701ff42888",
        "some zero": "420317f1bb925435",
        "zero groups": "4a45c632c11e7058",
        "one of 32": "4485a2933a1a8422",
        "zero": "38d296b977a49d2d",
        "far": "8ea6f9043aae0986",
    },
    "Q5_0": {
        "uniform": "dd69135573b5f2d7",
        "random": "4e6c5a76cc803407",
        "some zero": "649cf4cdc73280e2",
        "zero groups": "bd101a77853b4d23",
        "one of 32": "e038bedb6a76756c",
        "zero": "7ae66b86dbf7ee06",
        "far": "56cc81db3d31193b",
    },
    "Q5_1": {
        "uniform": "85a1731c954a3260",
        "random": "36df77edd5e28a65",
        "some zero": "5865c78c5012fd2b",
        "zero groups": "a728069583ade041",
        "one of 32": "b1c400dcece88b82",
        "zero": "a0ac0deb7b1630ac",
        "far": "da195c4e66979a2a",
    },
}
"""Digests of the blocks of all cases together, by the importance of the columns of four rows."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", OURS)
def test_blocks_are_those_that_llama_cpp_made(kind: str, case: str) -> None:
    blocks = quantise.quantised(CASES[case].astype(np.float32), KINDS[kind])
    assert blocks.shape == (COUNT // KINDS[kind].block, KINDS[kind].bytes)
    assert hashlib.sha256(blocks.tobytes()).hexdigest()[:16] == DIGESTS[kind][case]


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weighted_blocks_are_those_that_llama_cpp_made(kind: str, importance: str) -> None:
    columns = IMPORTANCE[importance].astype(np.float32)
    digest = hashlib.sha256()
    for values in CASES.values():
        rows = values.astype(np.float32).reshape(-1, ROW)
        digest.update(quantise.quantised(rows, KINDS[kind], columns).tobytes())
    assert digest.hexdigest()[:16] == WEIGHTED_DIGESTS[kind][importance]


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_types_without_trials_ignore_the_importance(kind: str) -> None:
    rows = CASES["weights"].astype(np.float32).reshape(-1, ROW)
    columns = IMPORTANCE["random"].astype(np.float32)
    weighted = quantise.quantised(rows, KINDS[kind], columns)
    np.testing.assert_array_equal(weighted, quantise.quantised(rows, KINDS[kind]))


@pytest.mark.parametrize("kind", WEIGHTED)
def test_the_importance_lowers_the_weighted_error(kind: str) -> None:
    rows = CASES["weights"].astype(np.float32).reshape(-1, ROW)
    columns = IMPORTANCE["random"].astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]

    def error(blocks: np.ndarray) -> float:
        back = gguf.quants.dequantize(blocks, number).reshape(rows.shape)
        return float((columns * np.square(back - rows)).sum())

    plain = error(quantise.quantised(rows, KINDS[kind]))
    assert error(quantise.quantised(rows, KINDS[kind], columns)) < 0.97 * plain


@pytest.mark.parametrize(
    ("kind", "bound"),
    [("Q3_K", 0.17), ("Q4_K", 0.08), ("Q5_K", 0.04), ("Q6_K", 0.02), ("IQ4_NL", 0.09)],
)
def test_quantised_numbers_are_close_to_the_originals(kind: str, bound: float) -> None:
    values = CASES["weights"].astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    back = gguf.quants.dequantize(quantise.quantised(values, KINDS[kind]), number).reshape(-1)
    assert np.linalg.norm(back - values) < bound * np.linalg.norm(values)


@pytest.mark.parametrize("large", [3e8, 1e9, -1e9])
@pytest.mark.parametrize("kind", OURS)
def test_a_block_with_a_number_that_is_too_large_has_no_finite_scale(
    kind: str, large: float
) -> None:
    values = CASES["weights"].astype(np.float32)
    values[300] = large
    blocks = quantise.quantised(values, KINDS[kind])
    scales = blocks[:, slice(*KINDS[kind].scales)].copy().view(np.float16)
    assert (~np.isfinite(scales)).any(axis=1).nonzero()[0].tolist() == [300 // KINDS[kind].block]


# ------------------------------------------------------------------------- without the library


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "_library", lambda: None)


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_the_package_gguf_makes_the_same_blocks(
    kind: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = CASES[case].astype(np.float32)
    made = quantise.quantised(values, KINDS[kind])
    monkeypatch.setattr(quantise, "_library", lambda: None)
    np.testing.assert_array_equal(made, quantise.quantised(values, KINDS[kind]))
    assert not quantise.needs_library(KINDS[kind], weighted=False)


@pytest.mark.usefixtures("without_library")
def test_other_types_need_the_library() -> None:
    lacking = {kind for kind in WEIGHTED if quantise.needs_library(KINDS[kind], weighted=True)}
    assert lacking == {*WEIGHTED}
    lacking = {kind for kind in WEIGHTED if quantise.needs_library(KINDS[kind], weighted=False)}
    assert lacking == {*OURS}
    assert not quantise.needs_library(KINDS["Q8_0"], weighted=True)
    assert not quantise.needs_library(KINDS["F16"], weighted=True)
