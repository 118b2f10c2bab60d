"""The streamed path: the same bytes whatever the chunks, threads and process; one rounding."""

import hashlib
import math
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.tensor import ByteRange, TensorInfo, TensorSpec
from gptailor.methods.rounding import NotFiniteFault, OverflowFault
from gptailor.output.output import payloads
from gptailor.plan.faults import TailorError
from gptailor.plan.registry import METHODS
from gptailor.program.devices import use_one_thread
from gptailor.program.load import FLOAT_DTYPES
from gptailor.program.program import Arguments, Combine, Copy, Output
from gptailor.program.run import chunks
from tests.support.merging import merge_tensors
from tests.support.thorough import drawn

PLACE = "model.layers.3.mlp.up_proj.weight"
NAMES = ("math", "code", "chat")
STORED = {dtype: name for name, dtype in FLOAT_DTYPES.items()} | {
    torch.int32: "I32",
    torch.bool: "BOOL",
}


def stored(folder: Path, name: str, tensor: Tensor, before: int = 3) -> TensorInfo:
    """A tensor in a file of its own, its first byte at no even place."""
    file = folder / f"{name}.bin"
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    file.write_bytes(b"\xff" * before + raw + b"\xff" * 5)
    spec = TensorSpec(f"{name}.weight", STORED[tensor.dtype], tuple(tensor.shape))
    return TensorInfo(spec, file, before)


def defaults(method: str, count: int) -> Arguments:
    """The registry's defaults, one number for each source."""
    arguments: list[tuple[str, str | float | tuple[float, ...]]] = []
    for p in METHODS[method].parameters:
        if isinstance(p.default, str):
            arguments.append((p.name, p.default))
        elif p.variadic or p.each:
            arguments.append((p.name, (float(p.default or 0.4),) * count))
        else:
            arguments.append((p.name, float(p.default or 0.0)))
    return tuple(arguments)


def output(
    folder: Path,
    method: str,
    base: Tensor,
    sources: list[Tensor],
    dtype: str = "F32",
    divisor: float = 1.0,
) -> Output:
    """One output tensor with inputs in files."""
    theta = (stored(folder, "base", base),) if METHODS[method].needs_base else ()
    infos = tuple(stored(folder, NAMES[i], source) for i, source in enumerate(sources))
    make = Combine(
        method, defaults(method, len(sources)), theta, infos, NAMES[: len(sources)], PLACE, divisor
    )
    return Output(TensorSpec(PLACE, dtype, tuple(base.shape)), make)


def joined(made: Output, chunk_bytes: int = 1 << 20) -> bytes:
    raw = b"".join(bytes(chunk) for chunk in chunks(made, chunk_bytes=chunk_bytes))
    assert len(raw) == made.spec.size
    return raw


def near(
    shape: tuple[int, ...], count: int = 2, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    base = torch.randn(shape, generator=rng)
    others = [base + 0.2 * torch.randn(shape, generator=rng) for _ in range(count)]
    return [tensor.to(dtype) for tensor in (base, *others)]


def raw_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# -------------------------------------------------------------------------------------- same bytes


@pytest.fixture
def same_threads() -> Iterator[None]:
    """torch has as many threads afterwards as before."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_threads_change_no_bit(method: str, tmp_path: Path) -> None:
    base, *sources = near((211, 503))  # beyond a block, and beyond what torch leaves to one thread
    made = output(tmp_path, method, base, sources)
    wanted = joined(made, 1 << 30)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for chunk_bytes in (4 * 5_003, 4 * 16_385, 4 * 70_001, 1 << 20):
            assert joined(made, chunk_bytes) == wanted
        live = merge_tensors(
            method, defaults(method, 2), base, sources, NAMES[:2], PLACE, divisor=1.0
        )
        assert raw_of(live) == wanted


@given(
    method=st.sampled_from(sorted(METHODS)),
    shape=st.lists(st.integers(0, 7), max_size=3),
    dtypes=st.lists(st.sampled_from(sorted(FLOAT_DTYPES)), min_size=4, max_size=4),
    chunk_bytes=st.integers(1, 200),
    divisor=st.sampled_from([1.0, 0.9, 3.0]),
)
@example(method="karcher", shape=[], dtypes=["F32"] * 4, chunk_bytes=1, divisor=1.0)
@example(method="ties", shape=[0], dtypes=["BF16"] * 4, chunk_bytes=1, divisor=2.0)
@settings(
    max_examples=drawn(80),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_shape_dtype_and_chunk_is_as_in_memory(
    tmp_path: Path,
    method: str,
    shape: list[int],
    dtypes: list[str],
    chunk_bytes: int,
    divisor: float,
) -> None:
    *types, out = [FLOAT_DTYPES[name] for name in dtypes]
    tensors = [t.to(d) for t, d in zip(near(tuple(shape)), types, strict=True)]
    base, *sources = tensors
    made = output(tmp_path, method, base, sources, STORED[out], divisor)
    live = merge_tensors(
        method, defaults(method, 2), base, sources, NAMES[:2], PLACE, divisor=divisor, dtype=out
    )
    assert joined(made, chunk_bytes) == raw_of(live)


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    base, *sources = near((129, 257))
    made = [output(tmp_path, method, base, sources, "BF16") for method in METHODS]
    wanted = hashlib.sha256(b"".join(joined(item) for item in made)).hexdigest()
    program = tmp_path / "again.py"
    program.write_text(
        "import hashlib, torch\n"
        "from pathlib import PosixPath\n"
        "from gptailor.checkpoint.tensor import TensorInfo, TensorSpec\n"
        "from gptailor.program.program import Combine, Output, OutputPlace\n"
        "from gptailor.program.run import chunks\n"
        "torch.set_num_threads(1)\n"
        f"made = {made!r}\n"
        "raw = b''.join(bytes(c) for one in made for c in chunks(one, chunk_bytes=40_004))\n"
        "print(hashlib.sha256(raw).hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**environment, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == wanted


# ---------------------------------------------------------------------------------------- payloads


def test_a_copy_is_a_range_of_bytes(tmp_path: Path) -> None:
    info = stored(tmp_path, "math", torch.ones(3, 2, dtype=torch.bfloat16))
    made = Output(TensorSpec("a", "BF16", (3, 2)), Copy(info))
    assert payloads((made,))(made.spec) == ByteRange(info.file, 3, 12)


def test_each_output_has_its_own_bytes(tmp_path: Path) -> None:
    base, *sources = near((4, 5))
    merged = output(tmp_path, "linear", base, sources)
    copied = Output(TensorSpec("a", "F32", (4, 5)), Copy(stored(tmp_path, "base", base)))
    payload_of = payloads((copied, merged))
    assert isinstance(payload_of(copied.spec), ByteRange)
    assert b"".join(map(bytes, payload_of(merged.spec))) == joined(merged)  # type: ignore[arg-type]


@pytest.mark.usefixtures("same_threads")
def test_torch_has_its_threads_again() -> None:
    """Whoever is at work, in whatever order they end."""
    torch.set_num_threads(2)
    first, second = use_one_thread(), use_one_thread()
    first.__enter__()
    assert torch.get_num_threads() == 1
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="this"), use_one_thread(), use_one_thread():
        raise ValueError("this")
    assert torch.get_num_threads() == 2


def test_several_threads_make_several_tensors(tmp_path: Path) -> None:
    base, *sources = near((5000,))
    made = [output(tmp_path, m, base, sources) for m in METHODS]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(joined, made)) == [joined(item) for item in made]


@pytest.mark.parametrize("method", METHODS)
def test_a_device_makes_the_same_bytes(method: str, cuda: str, tmp_path: Path) -> None:
    base, *sources = near((1100, 1000))
    made = output(tmp_path, method, base, sources)
    raw = b"".join(map(bytes, chunks(made, device=torch.device(cuda))))
    assert raw == joined(made)


def test_files_are_opened_on_demand_and_closed(tmp_path: Path) -> None:
    base, *sources = near((100,))
    made = output(tmp_path, "ties", base, sources)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (Path.iterdir holds it open itself)
    made_of = chunks(made, chunk_bytes=8)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert isinstance(made_of, Iterator)
    next(made_of)
    made_of.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_bounded_by_chunks(method: str, tmp_path: Path) -> None:
    """All that is held at once is less than one source in float32."""
    base, *sources = near((1250, 1000))
    made = output(tmp_path, method, base, sources)
    for _ in chunks(made, chunk_bytes=4 * 8000):  # imports and caches count once
        pass
    tracemalloc.start()
    for _ in chunks(made, chunk_bytes=4 * 8000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * 8000 < peak < 1250 * 1000 * 4


# ------------------------------------------------------------------------------------ one rounding


def nearest_even(value: Fraction, dtype: str) -> float:
    """The exact value rounded once to a 16-bit float, ties to even, by whole-number arithmetic."""
    digits, lowest = {"BF16": (8, -133), "F16": (11, -24)}[dtype]
    if not value:
        return 0.0
    exponent = math.frexp(float(abs(value)))[1]  # within one of it: corrected below
    while abs(value) < Fraction(2) ** (exponent - 1):
        exponent -= 1
    while abs(value) >= Fraction(2) ** exponent:
        exponent += 1
    unit = Fraction(2) ** max(exponent - digits, lowest)
    return float(round(value / unit) * unit)


finite = st.floats(-1000, 1000, width=32)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@given(values=st.lists(finite, min_size=1, max_size=20))
@example(values=[1.00390625, 1.01171875, 1.00048828125, 6e-8, 2.9802322387695312e-08])
@settings(
    max_examples=drawn(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_cast_rounds_once_to_nearest_even(
    tmp_path: Path, dtype: str, values: list[float]
) -> None:
    source = torch.tensor(values)
    made = output(tmp_path, "linear", source, [source], dtype)
    object.__setattr__(made.make, "arguments", (("weight", (1.0,)), ("normalize", "no")))
    result = torch.frombuffer(bytearray(joined(made)), dtype=FLOAT_DTYPES[dtype]).tolist()
    assert result == [nearest_even(Fraction(v), dtype) for v in source.tolist()]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_merge_rounds_once(dtype: str, tmp_path: Path) -> None:
    """Exact in float32, between two values of the dtype: the halves' sum is rounded, not they."""
    rng = torch.Generator().manual_seed(3)
    a = torch.randint(-(2**11), 2**11, (4000,), generator=rng).float() / 2**9
    b = torch.randint(-(2**11), 2**11, (4000,), generator=rng).float() / 2**9
    made = output(tmp_path, "linear", a, [a, b], dtype)
    object.__setattr__(made.make, "arguments", (("weight", (0.75, 0.25)), ("normalize", "no")))
    result = torch.frombuffer(bytearray(joined(made)), dtype=FLOAT_DTYPES[dtype]).tolist()
    exact = [
        3 * Fraction(x) / 4 + Fraction(y) / 4 for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert result == [nearest_even(value, dtype) for value in exact]


def test_a_division_is_one_float32_division(tmp_path: Path) -> None:
    source = near((1000,))[0]
    made = output(tmp_path, "linear", source, [source], divisor=0.9)
    object.__setattr__(made.make, "arguments", (("weight", (1.0,)), ("normalize", "no")))
    wanted = source.numpy() / torch.tensor(0.9).numpy()
    assert joined(made) == wanted.tobytes()


# ------------------------------------------------------------------------------------------ faults


def test_an_overflow_names_tensor_index_value_and_dtype(tmp_path: Path) -> None:
    source = torch.ones(7, 11, 13)
    source[5, 3, 2] = -65520.0  # the first that float16 rounds to infinity
    source[6, 0, 0] = 1e9
    made = output(tmp_path, "linear", source, [source], "F16")
    object.__setattr__(made.make, "arguments", (("weight", (1.0,)), ("normalize", "no")))
    for chunk_bytes in (4, 4 * 100, 1 << 20):
        with pytest.raises(OverflowFault) as caught:
            joined(made, chunk_bytes)
        fault = caught.value
        assert isinstance(fault, TailorError)
        message = f"'{PLACE}'[5, 3, 2] is -65520, but float16 ends at 65504"
        assert [f.message for f in fault.faults] == [message]


def test_a_value_that_rounds_to_the_largest_number_does_not_overflow(tmp_path: Path) -> None:
    source = torch.tensor([65519.99, -65519.99])
    made = output(tmp_path, "linear", source, [source], "F16")
    object.__setattr__(made.make, "arguments", (("weight", (1.0,)), ("normalize", "no")))
    assert struct.unpack("<2e", joined(made)) == (65504.0, -65504.0)


@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", ["F16", "F32", "F64"])
def test_a_source_that_is_not_finite_is_named(tmp_path: Path, wild: float, dtype: str) -> None:
    source = torch.tensor([[1.0, 2.0], [3.0, wild]], dtype=FLOAT_DTYPES[dtype])
    made = output(tmp_path, "linear", source, [source], "F16")
    object.__setattr__(made.make, "arguments", (("weight", (1.0,)), ("normalize", "no")))
    for chunk_bytes in (4, 1 << 20):
        with pytest.raises(NotFiniteFault) as caught:
            joined(made, chunk_bytes)
        message = f"expected finite numbers, got {wild} in 'math.weight'[1, 1] of 'math'"
        assert [f.message for f in caught.value.faults] == [message]


def test_an_overflow_of_the_arithmetic_is_a_fault(tmp_path: Path) -> None:
    source = torch.tensor([1.0, 3e38])
    made = output(tmp_path, "linear", source, [source, source], "F32")
    object.__setattr__(made.make, "arguments", (("weight", (1.0, 1.0)), ("normalize", "no")))
    with pytest.raises(OverflowFault, match=r"\[1\] is inf, but float32"):
        joined(made)


def test_a_float64_beyond_float32_is_a_fault(tmp_path: Path) -> None:
    source = torch.tensor([[1.0, 2.0, 1e300]], dtype=torch.float64)
    made = output(tmp_path, "linear", source, [source], "F64")
    with pytest.raises(OverflowFault, match=r"'math.weight'\[0, 2\] is 1e\+300, but float32"):
        joined(made, 4)


def test_a_short_file_is_named_with_its_offset(tmp_path: Path) -> None:
    base, *sources = near((100,))
    made = output(tmp_path, "linear", base, sources)
    file = tmp_path / "code.bin"
    file.write_bytes(file.read_bytes()[: 3 + 150])
    with pytest.raises(CheckpointError, match="bytes before the end") as caught:
        joined(made, 80)
    assert caught.value.path == file
    assert caught.value.offset == 153


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    base, *sources = near((10,))
    made = output(tmp_path, "linear", base, sources)
    (tmp_path / "code.bin").unlink()
    with pytest.raises(TailorError, match=r"No such file[\s\S]*code\.bin"):
        joined(made)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_whole_numbers_are_not_merged(dtype: torch.dtype, tmp_path: Path) -> None:
    source = torch.ones(4, dtype=dtype)
    made = output(tmp_path, "linear", source, [source], "F32")
    with pytest.raises(
        TailorError, match=rf"'math.weight' in '.*' is {STORED[dtype]}, which can't"
    ):
        joined(made)


def test_unlike_shapes_are_named(tmp_path: Path) -> None:
    base, *sources = near((4, 6))
    made = output(tmp_path, "linear", base, [sources[0], sources[1][:3]])
    with pytest.raises(TailorError, match=r"'code.weight' in .* \[3, 6\], but '.*' \[4, 6\]"):
        joined(made)
