"""The compiled library has NumPy's bits, for each processor that it is compiled for."""

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptailor.methods import native
from gptailor.methods.arithmetic import (
    Chunk,
    Inputs,
    base_moved,
    combination,
    magnitude,
    within,
)
from gptailor.methods.arrays import widened
from gptailor.methods.rounding import rounded
from gptailor.methods.sums import SUM_ENTRIES, gram_of
from gptailor.methods.task_vectors import agreement
from gptailor.plan.registry import METHODS
from tests.methods.test_methods import CASES, NAMES, PLACE, complete
from tests.support.merging import merge_tensors
from tests.support.thorough import drawn

ROOT = Path(__file__).parents[2]
BUILDS = {"all processors": (), "baseline": ("-DBASELINE",)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ENTRIES = 2 * SUM_ENTRIES + 1234
"""Several blocks of a sum, and a part of one, which NumPy adds."""


@pytest.fixture(scope="module", params=BUILDS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a library, compiled as the build hook does it."""
    pytest.importorskip("hatchling")
    from hatch_build import compile_library

    path = tmp_path_factory.mktemp("native") / "libnative.so"
    reason = compile_library(ROOT, path, *BUILDS[request.param])
    if reason is not None:
        pytest.skip(reason)
    return path


@pytest.fixture
def used(library: Path) -> Iterator[None]:
    """Let this library compute."""
    result = native.library_at(library)
    assert result is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: result)
        yield


def by_numpy(compute):
    """The result of a computation without the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return compute()


def tensors(count: int, dtype: torch.dtype) -> list[Tensor]:
    """A base, and sources near it; some entries are equal, zeros, or tiny."""
    rng = torch.Generator().manual_seed(count)
    base = torch.randn(ENTRIES, generator=rng)
    base[::7], base[3::11], base[5::13] = 0.0, -0.0, 1e-40
    results = [base]
    for _ in range(count):
        change = 0.3 * torch.randn(ENTRIES, generator=rng)
        results.append(base + change * (torch.rand(ENTRIES, generator=rng) < 0.8))
    return [tensor.to(dtype).reshape(2, -1) for tensor in results]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "count", "arguments"), CASES)
@pytest.mark.usefixtures("used")
def test_a_method_has_the_same_bytes(
    method: str, count: int, arguments: dict, dtype: torch.dtype
) -> None:
    base, *sources = tensors(count, dtype)
    given = complete(method, count, **arguments)
    merge_tensors(method, given, base, sources, NAMES[:count], PLACE)  # compares the bytes


def test_every_method_is_compared() -> None:
    assert {method for method, _, _ in CASES} == set(METHODS)


@pytest.mark.usefixtures("used")
def test_the_library_computes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise this file compares NumPy with NumPy."""
    result, calls = native.library(), []

    class Counted(ctypes.CDLL):
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> object:
            calls.append(name)
            return getattr(result, name)

    monkeypatch.setattr(native, "library", Counted)
    for method, count in {"slerp": 2, "task_arithmetic": 1, "ties": 2}.items():
        base, *sources = tensors(count, torch.bfloat16)
        merge_tensors(method, complete(method, count), base, sources, NAMES[:count], PLACE)
    assert {"gram", "combine", "narrow", "count", "mask", "agree"} <= set(calls)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=70))
@settings(max_examples=drawn(200), deadline=None)
def test_rounding_has_the_same_bits(library: Path, patterns: list[int]) -> None:
    """Any float32 is rounded alike: ties, subnormal numbers, overflow, infinity; or refused."""
    values = np.array(patterns, np.uint32).view(np.float32)

    def result() -> tuple[bytes, list[int]]:
        refused: list[int] = []
        bits = rounded(values, "BF16", refused.append)
        same = rounded(values, "F32", refused.append)
        return bits[~np.isnan(values)].tobytes() + same.tobytes(), refused

    wanted = by_numpy(result)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: native.library_at(library))
        assert result() == wanted
        bits = values.view(np.uint16)
        assert widened(bits).tobytes() == by_numpy(lambda: widened(bits)).tobytes()


FLOATS = st.floats(width=32, allow_nan=False)


@given(
    st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=40),
    st.tuples(FLOATS, FLOATS),
)
@settings(max_examples=drawn(200), deadline=None)
def test_sums_and_choices_have_the_same_bits(
    library: Path, entries: list[tuple[float, ...]], coefficients: tuple[float, float]
) -> None:
    base, *vectors = np.array(entries, np.float32).T.copy()
    chunk = Chunk(0, base, tuple(vectors))
    numbers = [number if abs(number) < 3e38 else 1.0 for number in coefficients]

    def result() -> list[bytes]:
        with np.errstate(all="ignore"):
            results = [
                combination(vectors, numbers, chunk),
                base_moved(chunk, chunk.task_vectors(), numbers),
                agreement(vectors, numbers),
                agreement(vectors, [1.0, 1.0], numbers),
                within(vectors[0], *sorted(magnitude(vectors[1])[[0, -1]].tolist())),
            ]
        return [np.where(np.isnan(each), np.float32(0), each).tobytes() for each in results]

    wanted = by_numpy(result)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", lambda: native.library_at(library))
        assert result() == wanted


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.usefixtures("used")
def test_dot_products_have_the_same_bits(count: int) -> None:
    base, *vectors = (each.reshape(-1).numpy() * 1e18 for each in tensors(count, torch.float32))

    def read(start: int, end: int) -> Chunk:
        return Chunk(start, base[start:end], tuple(each[start:end] for each in vectors))

    inputs = Inputs(ENTRIES, NAMES[:count] + ("more",) * (count - len(NAMES)), PLACE, 1, read)
    for what in ("weights", "task_vectors"):
        assert gram_of(inputs, what) == by_numpy(partial(gram_of, inputs, what))


def test_another_source_s_library_is_not_used(library: Path, tmp_path: Path) -> None:
    digest = native.library_at(library).source_digest()
    (tmp_path / "old.so").write_bytes(library.read_bytes().replace(digest, digest[::-1]))
    (tmp_path / "text.so").write_text("no library")
    for name in ("old.so", "text.so", "missing.so"):
        assert native.library_at(tmp_path / name) is None
