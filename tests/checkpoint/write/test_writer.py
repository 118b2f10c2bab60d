"""Writing: what comes out is what transformers reads, and it comes out whole or not at all."""

import errno
import fcntl
import itertools
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import INDEX, open_checkpoint
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.tensor import DTYPE_BITS, ByteRange, TensorSpec
from gptailor.checkpoint.write import output_file as transfer
from gptailor.checkpoint.write import side_folder
from gptailor.checkpoint.write.output_file import Payload, write_whole
from gptailor.checkpoint.write.side_folder import TargetExists, remove_stale
from gptailor.checkpoint.write.tensors import plan_shards
from gptailor.checkpoint.write.writer import (
    check_target,
    free_space,
    new_checkpoint,
    write_files,
)
from gptailor.plan.faults import CodedError

TENSORS = {
    "a": torch.arange(5, dtype=torch.bfloat16),
    "b": torch.rand(3, 4),
    "empty": torch.zeros(0, 2),
    "größe": torch.rand(7, dtype=torch.float16),
    "z": torch.tensor([True, False, True]),
}
DTYPES = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.float16": "F16"}
SPECS = tuple(
    TensorSpec(name, DTYPES.get(str(tensor.dtype), "BOOL"), tuple(tensor.shape))
    for name, tensor in TENSORS.items()
)
CONFIG = {"config.json": b"{}\n"}

pytestmark = pytest.mark.usefixtures("to_the_disk")


def raw(spec: TensorSpec) -> bytes:
    return TENSORS[spec.name].flatten().view(torch.uint8).numpy().tobytes()


def chunks(spec: TensorSpec) -> Iterator[bytes]:
    """Byte by byte, with empty chunks between."""
    for value in raw(spec):
        yield b""
        yield bytes([value])


def zeros(spec: TensorSpec) -> list[bytes]:
    return [bytes(spec.size)]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(
    target: Path, payload_of: Callable[[TensorSpec], Payload] = chunks, **more: object
) -> None:
    options = {"shard_size": 10**9, "files": CONFIG, "force": False} | more
    shards = plan_shards(SPECS, options.pop("shard_size"))  # type: ignore[call-overload]
    files = options.pop("files")
    with new_checkpoint(target, shards, payload_of, **options) as new:  # type: ignore[arg-type]
        write_files(new, target, files, options.get("progress", lambda _: None))  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/"
        for path in folder.rglob("*")
    }


def refused(code: str, target: Path, **more: object) -> CheckpointError:
    """The error, after which everything around the target is as before."""
    before = tree(target.parent)
    with pytest.raises(CheckpointError) as caught:
        write(target, **more)  # type: ignore[arg-type]
    assert caught.value.code == code
    assert tree(target.parent) == before
    return caught.value


# ----------------------------------------------------------------------------------------- shards


def test_a_header_is_the_references_to_the_byte() -> None:
    tensors = {name: torch.zeros(2, 3) for name in ("a", "b", "é")}
    specs = [TensorSpec(name, "F32", (2, 3)) for name in tensors]
    (shard,) = plan_shards(specs, 10**6)
    reference = save(tensors, {"format": "pt"})
    assert shard.header == reference[: len(shard.header)]
    assert shard.size == len(reference)
    assert shard.name == "model.safetensors"


def test_files_are_filled_in_order() -> None:
    specs = [TensorSpec(str(n), "U8", (size,)) for n, size in enumerate((4, 6, 1, 30, 5, 0, 5))]
    shards = plan_shards(specs, 10)
    assert [[spec.name for spec in shard.specs] for shard in shards] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5", "6"],
    ]
    assert shards[3].name == "model-00004-of-00004.safetensors"


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.integers(0, 9)), max_size=12),
    st.integers(1, 60),
)
def test_every_tensor_is_aligned_and_occurs_once(
    tensors: list[tuple[str, int]], shard_size: int
) -> None:
    specs = [TensorSpec(str(n), dtype, (size * 4,)) for n, (dtype, size) in enumerate(tensors)]
    shards = plan_shards(specs, shard_size)
    assert sorted(int(s.name) for shard in shards for s in shard.specs) == [*range(len(specs))]
    for shard in shards:
        assert len(shard.header) % 8 == 0
        assert len(shard.specs) == 1 or sum(s.size for s in shard.specs) <= shard_size or not specs
        offset = len(shard.header)
        for spec in shard.specs:
            assert offset * 8 % DTYPE_BITS[spec.dtype] == 0 or "F6" in spec.dtype
            offset += spec.size
        widths = [-DTYPE_BITS[spec.dtype] for spec in shard.specs]
        assert widths == sorted(widths)
        for one, two in zip(shard.specs, shard.specs[1:], strict=False):
            assert DTYPE_BITS[one.dtype] > DTYPE_BITS[two.dtype] or int(one.name) < int(two.name)
    assert shards == plan_shards(specs, shard_size)


# ---------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("shard_size", [1, 40, 10**9])
def test_safetensors_reads_a_written_folder(target: Path, shard_size: int) -> None:
    written: list[int] = []
    write(target, shard_size=shard_size, progress=written.append)
    checkpoint = open_checkpoint(target)
    loaded = {name: t for file in checkpoint.files for name, t in load_file(file).items()}
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    sizes = {path.name: path.stat().st_size for path in target.iterdir()}
    assert sum(written) == sum(sizes.values())
    assert (INDEX in sizes) == (len(checkpoint.files) > 1)
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_the_index_counts(target: Path) -> None:
    write(target, shard_size=40)
    index = json.loads((target / INDEX).read_bytes())
    size = sum(spec.size for spec in SPECS)
    assert index["metadata"] == {"total_size": size, "total_parameters": 5 + 12 + 7 + 3}
    assert index["weight_map"] == {
        spec.name: shard.name for shard in plan_shards(SPECS, 40) for spec in shard.specs
    }


def test_two_runs_write_the_same_bytes(target: Path) -> None:
    write(target, shard_size=40)
    write(target.with_name("again"), shard_size=40)
    assert tree(target) == tree(target.with_name("again"))


def test_other_files_are_written_and_copied(target: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 10_000)
    blob.chmod(0o400)
    link = tmp_path / "link"
    link.symlink_to(blob)
    write(target, files={"config.json": b"{}", "tokenizer.json": link, "templates/a.jinja": b"a"})
    assert (target / "tokenizer.json").read_bytes() == blob.read_bytes()
    assert not (target / "tokenizer.json").is_symlink()
    assert (target / "templates" / "a.jinja").read_bytes() == b"a"


def test_permissions_are_the_umasks(target: Path) -> None:
    old = os.umask(0o027)
    try:
        write(target, files={"config.json": b"{}", "sub/x": b""})
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o750


def test_parents_are_made_and_removed_again(tmp_path: Path) -> None:
    def fails(spec: TensorSpec) -> Payload:
        raise KeyError(spec.name)

    with pytest.raises(KeyError):
        write(tmp_path / "x" / "y" / "out", fails)
    assert not (tmp_path / "x").exists()
    write(tmp_path / "x" / "y" / "out")
    with pytest.raises(KeyError):
        write(tmp_path / "x" / "z" / "out", fails)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["y"]


# ---------------------------------------------------------------------------------------- copying


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 5000)
    return path


def no_such_call(*_: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("how", ["refused", "absent", "returns 0"])
def test_stretches_are_copied_by_every_way(
    target: Path, big: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], how: str
) -> None:
    for name in missing:
        if how == "absent":
            monkeypatch.delattr(os, name)
        else:
            monkeypatch.setattr(os, name, no_such_call if how == "refused" else lambda *_: 0)
    monkeypatch.setattr(transfer, "COPY_STEP", 100_000)
    monkeypatch.setattr(transfer, "BUFFER", 70_001)
    spec = TensorSpec("t", "U8", (1_000_003,))
    steps: list[int] = []
    shards = plan_shards([spec], 10**9)
    stretch = ByteRange(big, 77, spec.size)
    with new_checkpoint(target, shards, lambda _: stretch, progress=steps.append):
        pass
    info = read_header(target / "model.safetensors")["t"]
    content = (target / "model.safetensors").read_bytes()
    assert content[info.offset :] == big.read_bytes()[77 : 77 + spec.size]
    assert sum(steps) == len(content)
    assert len(steps) >= 10


def test_a_source_that_shrank(target: Path, big: Path) -> None:
    size = big.stat().st_size
    error = refused("C304", target, payload_of=lambda s: ByteRange(big, size - s.size + 1, s.size))
    assert error.path == big
    assert "it changed" in error.message


def test_a_source_that_shrinks_in_the_middle(
    target: Path, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "COPY_STEP", 1000)
    spec = TensorSpec("t", "U8", (100_000,))

    steps: list[int] = []

    def shrink(count: int) -> None:
        steps.append(count)
        if len(steps) == 3:  # the header, and two steps of the copy
            os.truncate(big, 5000)

    shards = plan_shards([spec], 10**9)
    stretch = ByteRange(big, 0, spec.size)
    with (
        pytest.raises(CheckpointError, match="C304"),
        new_checkpoint(target, shards, lambda _: stretch, progress=shrink),
    ):
        pass
    assert sum(steps[1:]) == 5000
    assert not target.exists()


def test_a_missing_source_is_refused(target: Path, tmp_path: Path) -> None:
    error = refused("C201", target, payload_of=lambda s: ByteRange(tmp_path / "x", 0, s.size))
    assert error.path == tmp_path / "x"
    assert refused("C201", target, files={"tokenizer.json": tmp_path}).path == tmp_path


@pytest.mark.parametrize("delta", [-1, 1, 1000])
def test_a_payload_is_exactly_as_large_as_its_tensor(target: Path, big: Path, delta: int) -> None:
    error = refused(
        "C304",
        target,
        payload_of=lambda s: [raw(s), bytes(delta)] if delta > 0 else [raw(s)[:delta]],
    )
    assert "expected 48 bytes for 'b'" in error.message
    assert error.path == target / "model.safetensors"
    refused("C304", target, payload_of=lambda s: ByteRange(big, 0, s.size + delta))


def test_a_payload_without_end_ends(target: Path) -> None:
    refused("C304", target, payload_of=lambda _: itertools.repeat(b"x"))


def test_chunks_may_be_views_of_any_shape(target: Path) -> None:
    write(
        target,
        lambda s: [memoryview(TENSORS[s.name].view(torch.uint8).numpy()) if s.size > 5 else raw(s)],
    )
    assert torch.equal(load_file(target / "model.safetensors")["b"], TENSORS["b"])


# ---------------------------------------------------------------------------------- all or nothing


class Stop(BaseException):
    """Neither an Exception nor one that we know."""


@pytest.mark.parametrize("exception", [KeyboardInterrupt, Stop, RuntimeError, MemoryError])
@pytest.mark.parametrize("at", range(len(SPECS)))
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_at_any_tensor_leaves_nothing(
    target: Path, exception: type[BaseException], at: int, force: bool
) -> None:
    if force:
        write(target, zeros)
    before = tree(target.parent)

    def fails(spec: TensorSpec) -> Iterator[bytes]:
        yield from chunks(spec)
        if spec == SPECS[at]:
            raise exception

    with pytest.raises(exception):
        write(target, fails, shard_size=40, force=force)
    assert tree(target.parent) == before


CHILD = """
import sys, time
from pathlib import Path
from gptailor.checkpoint.write import side_folder
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.checkpoint.write.tensors import plan_shards
from gptailor.checkpoint.write.writer import new_checkpoint, write_files
target, when = Path(sys.argv[1]), sys.argv[2]
specs = [TensorSpec(name, "U8", (1 << 16,)) for name in "abc"]
def payload(spec):
    yield bytes(1 << 15)
    if spec.name == when:
        print("now", flush=True)
        time.sleep(60)
    yield bytes(1 << 15)
if when == "swap":
    side_folder.exchange_names = lambda *_: False
    rename = Path.rename
    def slow(self, to):
        if self.name == "new":
            print("now", flush=True)
            time.sleep(60)
        return rename(self, to)
    Path.rename = slow
try:
    shards = plan_shards(specs, 1 << 16)
    with new_checkpoint(target, shards, payload, force=True, threads=1) as new:
        write_files(new, target, {"config.json": b"{}"})
except Exception as error:
    print(error)
"""


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a real process that writes and stops in the middle."""
    children: list[subprocess.Popen[str]] = []

    def start(target: Path, when: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(target), when]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        children.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        return process

    yield start
    for process in children:
        process.kill()
        process.communicate()


def sides(target: Path) -> list[Path]:
    return [path for path in target.parent.iterdir() if ".partial-" in path.name]


Start = Callable[[Path, str], subprocess.Popen[str]]


@pytest.mark.parametrize("when", ["a", "b", "c"])
def test_a_kill_leaves_no_target_and_the_next_run_cleans_up(
    target: Path, child: Start, when: str
) -> None:
    process = child(target, when)
    (side,) = sides(target)
    assert side.name.startswith(f".out.partial-{process.pid}-")
    assert (side / ".lock").exists()
    assert not target.exists()
    process.kill()
    process.wait()
    assert not target.exists()
    assert sides(target) == [side]
    write(target)
    assert sides(target) == []
    assert open_checkpoint(target).tensors.keys() == TENSORS.keys()


def test_a_live_side_folder_stays(target: Path, child: Start) -> None:
    process = child(target, "b")
    (side,) = sides(target)
    before = tree(side)
    assert remove_stale(target) == ()
    write(target)
    assert tree(side) == before
    process.kill()
    process.wait()
    assert remove_stale(target.with_name("ou")) == ()
    assert remove_stale(target) == (side,)
    assert sides(target) == []


def test_an_interrupt_from_the_keyboard_cleans_up(target: Path, child: Start) -> None:
    process = child(target, "b")
    process.send_signal(signal.SIGINT)
    process.wait()
    assert list(target.parent.iterdir()) == []


def test_a_kill_between_the_renames_is_undone_by_the_next_run(target: Path, child: Start) -> None:
    write(target)
    before = tree(target)
    process = child(target, "swap")
    process.kill()
    process.wait()
    assert not target.exists()
    with pytest.raises(TargetExists):
        write(target)
    assert tree(target) == before
    assert sides(target) == []


def test_a_folder_with_a_similar_name_is_kept(target: Path, tmp_path: Path) -> None:
    mine = tmp_path / ".out.partial-7-notes.d"
    full = tmp_path / ".out.partial-7-00"
    link = tmp_path / ".out.partial-7-01"
    for folder in (mine, full, tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "x").touch()
    (tmp_path / "elsewhere" / ".lock").touch()
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".out.partial-7-02").touch()
    before = tree(tmp_path)
    empty = tmp_path / ".out.partial-7-03"
    empty.mkdir()
    assert remove_stale(target) == (empty,)
    assert tree(tmp_path) == before


def test_a_lock_is_held_until_the_end(target: Path) -> None:
    def looks(spec: TensorSpec) -> Iterator[bytes]:
        (side,) = sides(target)
        fd = os.open(side / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
        yield raw(spec)

    write(target, looks)
    assert ".lock" not in tree(target)


LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
{CHILD.replace("1 << 16,", "1 << 20,")}
"""


def test_a_full_disk_leaves_nothing(target: Path) -> None:
    """A limit on file sizes, where no small file system can be mounted."""
    assert resource.RLIMIT_FSIZE is not None
    script = LIMITED.replace("1 << 15", "1 << 19")
    run = subprocess.run(
        [sys.executable, "-B", "-c", script, target, "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "error[C303]: cannot be written: File too large" in run.stdout
    assert f"{target}/model-00001-of-00003.safetensors" in run.stdout
    assert list(target.parent.iterdir()) == []


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", folder], check=True)
            return
    pytest.skip("no file system can be mounted here")


@pytest.mark.parametrize("copied", [False, True])
def test_a_full_file_system_leaves_nothing(tiny: Path, big: Path, copied: bool) -> None:
    spec = TensorSpec("t", "U8", (1_000_000,))
    old = tiny / "out"
    write(old)
    before = tree(tiny)

    def content(_: TensorSpec) -> Payload:
        return ByteRange(big, 0, spec.size) if copied else zeros(spec)

    for target, force in ((tiny / "x" / "new", False), (old, True)):
        with (
            pytest.raises(CheckpointError, match=r"C303.*No space left on device") as caught,
            new_checkpoint(target, plan_shards([spec], 10**9), content, force=force),
        ):
            pass
        assert caught.value.path == target / "model.safetensors"
        assert tree(tiny) == before
    assert 0 < free_space(tiny / "x" / "y") <= 256 * 1024
    with pytest.raises(CheckpointError, match=r"C302.*mount point"):
        write(tiny, force=True)


def test_a_single_file_on_a_read_only_file_system_is_named_as_asked(tiny: Path) -> None:
    """Such a file system also refuses to remove the side file that was never made."""
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    with pytest.raises(CheckpointError, match=r"C303.*Read-only file system") as caught:
        write_whole(tiny / "plan.lock", b"{}", Path("plan.lock"))
    assert caught.value.path == Path("plan.lock")


def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # root
        with suppress(FileNotFoundError):
            subprocess.run(["chattr", "+i", folder], capture_output=True, check=False)
    try:
        if os.access(folder, os.W_OK) and _can_make(folder / "probe"):
            pytest.skip("this user may write everywhere, and files can't be made immutable")
        error = refused("C303", folder / "out")
        assert "not permitted" in error.message or "denied" in error.message
        refused("C303", folder / "x" / "out")
    finally:
        with suppress(FileNotFoundError):
            subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
        folder.chmod(0o755)


def _can_make(folder: Path) -> bool:
    try:
        folder.mkdir()
    except OSError:
        return False
    folder.rmdir()
    return True


# ------------------------------------------------------------------------------------- the target


def test_an_existing_target_is_refused(target: Path) -> None:
    target.mkdir()
    write(target)
    error = refused("C301", target)
    assert isinstance(error, TargetExists)
    assert "--force" in str(error)


def test_force_replaces_all_of_it(target: Path) -> None:
    old = {"config.json": b"old", "README.md": b"old", "additional_chat_templates/a.jinja": b"old"}
    write(target, zeros, files=old)
    write(target, force=True)
    assert tree(target).keys() == {"config.json", "model.safetensors"}
    assert (target / "config.json").read_bytes() == b"{}\n"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    write(target.with_name("new"), force=True)


@pytest.mark.parametrize("name", ["thesis.txt", ".env", "data/", "modeling.py"])
def test_force_replaces_no_folder_with_files_that_arent_models(target: Path, name: str) -> None:
    write(target, zeros)
    mine = target / name
    mine.mkdir() if name.endswith("/") else mine.write_text("dear")
    before = tree(target)
    error = refused("C302", target, force=True)
    assert (
        error.message == f"expected a model to replace, got a folder that also contains {mine.name}"
    )
    help_ = "--force replaces it"
    assert error.help == f"move {mine.name} to another folder; then {help_}"
    assert refused("C301", target).help == error.help
    assert tree(target) == before
    mine.rename(target.parent / "mine")
    write(target, force=True)


def test_a_target_that_force_refuses_does_not_suggest_force(target: Path) -> None:
    target.mkdir()
    (target / "mine").touch()
    assert refused("C301", target).help == "remove it, or name another folder"
    (file := target / "out.parquet").write_bytes(b"text")
    for force, code in ((False, "C301"), (True, "C302")):
        with pytest.raises(
            CheckpointError, match=rf"{code}[\s\S]*help: remove it, or name another f"
        ):
            check_target(file, force=force, magic=b"PAR1")


def test_the_old_folder_is_restored_if_the_swap_fails(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(target, zeros)
    rename = Path.rename

    def fails(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(side_folder, "exchange_names", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fails)
    assert "Input/output error" in refused("C303", target, force=True).message


def test_an_old_one_that_cannot_be_put_back_is_kept(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the target's place in the moment between the renames."""
    write(target, zeros)
    before = tree(target)
    rename = Path.rename

    def races(self: Path, to: Path) -> Path:
        if self.name == "new":
            to.mkdir()
            (to / "theirs").touch()
        return rename(self, to)

    monkeypatch.setattr(side_folder, "exchange_names", lambda *_: False)
    monkeypatch.setattr(Path, "rename", races)
    with pytest.raises(CheckpointError, match="can't be restored") as caught:
        write(target, force=True)
    (side,) = sides(target)
    assert tree(side / "old") == before
    assert str(side / "old") in str(caught.value)
    assert tree(target) == {"theirs": b""}


def test_a_target_that_appears_during_writing_is_kept(target: Path) -> None:
    def races(spec: TensorSpec) -> Iterator[bytes]:
        target.mkdir(exist_ok=True)
        (target / "theirs").touch()
        yield raw(spec)

    with pytest.raises(TargetExists):
        write(target, races)
    assert tree(target.parent) == {"out": b"/", "out/theirs": b""}


def test_a_target_that_isnt_a_folder_is_refused(target: Path, tmp_path: Path) -> None:
    for force in (False, True):
        target.write_text("x")
        assert "is a file" in refused("C302", target, force=force).message
        assert "is a file" in refused("C302", target / "x" / "y", force=force).message
        target.unlink()
        (tmp_path / "real").mkdir(exist_ok=True)
        for place in (tmp_path / "real", tmp_path / "none", target):
            target.symlink_to(place)
            assert "is a link" in refused("C302", target, force=force).message
            target.unlink()


def test_sources_are_protected(tmp_path: Path) -> None:
    tmp_path /= "apart"  # the targets' folder is read, and other tests' files are not ours
    source, link = tmp_path / "models" / "chat", tmp_path / "link"
    source.mkdir(parents=True)
    (source / "x").touch()
    link.symlink_to(source)
    for place in (source, link, Path(os.path.relpath(source))):
        protected = [tmp_path / "other", place]
        for target, word in (
            (source, "is also a source"),
            (source / "new" / "out", "is inside"),
            (link / "out", "is inside"),
            (tmp_path / "models", "contains"),
        ):
            error = refused("C302", target, force=True, protected=protected)
            assert word in error.message
        assert "contains" in refused("C302", link.parent, force=True, protected=[link]).message
        check_target(tmp_path / "models" / "chat2", force=True, protected=protected)


def test_force_replaces_no_home_and_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home" / "me", tmp_path / "here" / "project"
    for folder in (home, here, tmp_path / "clone" / ".git"):
        folder.mkdir(parents=True)
        (folder / "x").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for target in (home, home.parent, here, here.parent, Path(), Path(".."), tmp_path / "clone"):
        with pytest.raises(CheckpointError, match=r"C302.*expected a model to replace"):
            check_target(target, force=True)
    write(Path("out"))
    write(Path("../out"))
    assert (here / "out" / "config.json").exists()
    assert (here.parent / "out" / "config.json").exists()


def test_free_space_is_the_nearest_parents(tmp_path: Path) -> None:
    there = os.statvfs(tmp_path)
    free = free_space(tmp_path / "a" / "b")
    assert abs(free - there.f_bavail * there.f_frsize) < 2**30


@pytest.mark.parametrize(
    "error",
    [
        TargetExists(Path("out"), "mine.txt"),
        TargetExists(Path("out")),
        CheckpointError("C204", "is not JSON", Path("out/config.json"), "repair it", 7),
        CalibrationError("C802", "the file has no rows", Path("a.jsonl"), 3, "add a row"),
    ],
    ids=["changed", "exists", "offset", "line"],
)
def test_an_error_survives_pickling(error: CodedError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))
    assert f"\n --> {error.place}" in str(other)
