"""Headers: a file that the reference reads is read alike; a file that it refuses is refused."""

import json
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.safetensors import MAX_HEADER, read_header
from gptailor.checkpoint.tensor import DTYPE_BITS, TensorInfo, TensorSpec
from tests.hostile.case import Hostile
from tests.hostile.headers import HOSTILE, framed, one, several

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.tensor(3.5),
    "größe": torch.zeros(2, 0, 4, dtype=torch.float64),
    "mask": torch.tensor([True, False, True]),
}
VALID = save(TENSORS, {"format": "pt"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def refused(file: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    return caught.value


def test_tensors_are_where_the_reference_put_them(file: Path) -> None:
    file.write_bytes(VALID)
    result = read_header(file)
    assert result.keys() == TENSORS.keys()
    for name, info in result.items():
        tensor = TENSORS[name]
        assert info.file == file
        assert info.spec.name == name
        assert info.spec.shape == tuple(tensor.shape)
        raw = VALID[info.offset : info.offset + info.spec.size]
        assert raw == tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    offsets = [info.offset for info in result.values()]
    assert offsets == sorted(offsets)


def test_an_empty_file_of_tensors_is_fine(file: Path) -> None:
    file.write_bytes(framed("{}  \n"))
    assert read_header(file) == {}


def test_tensors_without_bytes_may_stand_anywhere(file: Path) -> None:
    file.write_bytes(several((0, 4), (0, 0), (4, 4), (4, 6), size=6))
    assert [info.spec.size for info in read_header(file).values()] == [0, 4, 0, 2]


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_dtypes_have_the_references_width(file: Path, dtype: str) -> None:
    size = DTYPE_BITS[dtype]
    file.write_bytes(one(bytes(size), dtype=dtype, shape=[2, 4], data_offsets=[0, size]))
    start = len(file.read_bytes()) - size
    assert read_header(file) == {"a": TensorInfo(TensorSpec("a", dtype, (2, 4)), file, start)}
    with safe_open(file, "pt") as reference:
        assert reference.keys() == ["a"]


# Where we refuse more than the reference, and why that is meant.
STRICTER = {"same_name", "same_name_escaped", "same_field", "extra_field", "metadata_null"}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: h.name)
def test_the_reference_refuses_hostile_headers_too(file: Path, hostile: Hostile) -> None:
    file.write_bytes(hostile.content)
    try:
        with safe_open(file, "pt"):
            assert hostile.name in STRICTER
    except (SafetensorError, OSError, ValueError):
        pass


def test_a_huge_header_is_refused_unread(file: Path) -> None:
    with file.open("wb") as out:
        out.write((MAX_HEADER + 1).to_bytes(8, "little"))
        out.truncate(MAX_HEADER + 10)  # sparse
    assert refused(file).code == "C203"


def test_an_error_has_the_byte_offset_in_the_file(file: Path) -> None:
    file.write_bytes(framed('{"é" 1}'))
    assert refused(file).offset == 8 + len('{"é" '.encode())
    file.write_bytes(framed(b'{"\xff'))
    assert refused(file).offset == 10
    content = several((0, 2), (4, 6), size=6)
    file.write_bytes(content)
    assert refused(file).offset == len(content) - 4
    assert str(refused(file)).endswith(f" --> {file}, byte {len(content) - 4}")


def test_the_help_of_an_error_is_a_remedy(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in str(refused(file))
    file.write_bytes(VALID[:20])
    assert "the header's length is" in str(refused(file))
    file.write_bytes(VALID[:-1])
    assert "download it again" in str(refused(file))
    file.write_bytes(one(dtype="BF61"))
    assert "did you mean 'BF16'?" in str(refused(file))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo, sock, loop = tmp_path / "fifo", tmp_path / "sock", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock))
        for path in (fifo, sock, loop, tmp_path, tmp_path / "none", Path("/dev/zero")):
            assert refused(path).code == "C201"
    assert "named pipe" in str(refused(fifo))
    assert "a folder" in str(refused(tmp_path))
    assert "No such file" in str(refused(tmp_path / "none"))
    assert refused(Path("a\0b")).code == "C201"


def test_errors_survive_a_process_boundary(file: Path) -> None:
    file.write_bytes(b"")
    error = refused(file)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


Patch = tuple[int, int, bytes]


@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID)), st.integers(0, 4), st.binary(max_size=4)), max_size=3
    )
)
def test_mutations_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, patches: list[Patch]
) -> None:
    content = VALID
    for at, cut, new in patches:
        content = content[:at] + new + content[at + cut :]
    _agree(tmp_path_factory, content)


LETTERS = st.text("aé\ud800\0", max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-8, 8) | st.floats() | LETTERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3),
    max_leaves=5,
)
FIELD = st.sampled_from(["dtype", "shape", "data_offsets", "x"])
VALUE = JSON | st.sampled_from(["U8", "F32", [], [1], [2], [0, 1], [1, 3], [0, 2**65]])
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]),
    st.dictionaries(FIELD, VALUE, max_size=4) | JSON,
    max_size=3,
)


@given(ENTRIES, st.integers(0, 4))
def test_made_up_headers_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, object], size: int
) -> None:
    _agree(tmp_path_factory, framed(json.dumps(entries), bytes(size)))


def _agree(factory: pytest.TempPathFactory, content: bytes) -> None:
    """Assert that a file is refused, or read like the reference reads it."""
    file = factory.getbasetemp() / "mutated.safetensors"
    file.write_bytes(content)
    try:
        result = read_header(file)
    except CheckpointError as error:
        str(error).encode()
        return
    with safe_open(file, "pt") as reference:
        assert result.keys() == set(reference.keys())
        for name, info in result.items():
            tensor = reference.get_slice(name)
            assert (tensor.get_dtype(), tensor.get_shape()) == (info.spec.dtype, [*info.spec.shape])
    assert sum(info.spec.size for info in result.values()) <= len(content)
