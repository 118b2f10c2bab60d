"""Models of 70 billion parameters, thousands of tensors, many shards, and a network's file system.

The large ones are headers before holes (`tests/support/hollow.py`). The bounds are in bytes read
and bytes resident, never in seconds; `benchmarks/scale.py` has the seconds.
"""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import INDEX, open_checkpoint
from gptailor.checkpoint.write.writer import free_space
from gptailor.prepare import prepare
from tests.support.hollow import LLAMA_3_70B, QWEN_3_30B, llama, qwen3_moe, write_hollow

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
L0..L{middle} from math, code by ties(0.5)
L{next}.mlp from code
scale L1 by 0.9
drop L{last}
"""
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
MB = 2**20

COUNTED = """
import os, sys
from pathlib import Path
from gptailor.cli.main import run
def status(name, file):
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
warm, *arguments = sys.argv[1:]
words = [warm if word == "PLAN" else word for word in arguments]
assert run(words) == 0
plan = Path(warm).parent.parent / "large" / "plan.tailor"
Path("/proc/self/clear_refs").write_text("5")
before = status("rchar", "/proc/self/io")
code = run([str(plan) if word == "PLAN" else word for word in arguments])
read = status("rchar", "/proc/self/io") - before
resident = status("VmHWM", "/proc/self/status") * 1024
print("\\n@", code, read, resident, *("torch" in sys.modules, "numpy" in sys.modules))
"""
"""A command on a small plan, so that all is imported, then on a large one: its bytes count."""


def write_family(folder: Path, made: tuple[dict[str, Any], Any], shards: int) -> int:
    """Three models and a plan of them; the bytes of all headers."""
    config, shapes = made
    count = config["num_hidden_layers"]
    names = ("base", "math", "code")
    headers = sum(write_hollow(folder / name, config, shapes, shards) for name in names)
    text = PLAN.format(middle=count // 2, next=count // 2 + 1, last=count - 1)
    (folder / "plan.tailor").write_text(text)
    return headers


MADE = {
    "llama 3 70B": (lambda: llama(**LLAMA_3_70B), 30),
    "qwen 3 30B of 128 experts": (lambda: qwen3_moe(**QWEN_3_30B), 16),
}


@pytest.fixture(scope="module", params=MADE, ids=lambda name: name.replace(" ", "-"))
def large(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A folder with three large models, `large`, and three small ones; the bytes of headers."""
    folder = tmp_path_factory.mktemp("scale")
    make, shards = MADE[request.param]
    config, _ = make()
    small = qwen3_moe if "num_experts" in config else llama
    experts = {key: 4 for key in ("num_experts", "num_experts_per_tok") if key in config}
    experts |= {"moe_intermediate_size": 12, "head_dim": 4} if experts else {}
    write_family(folder / "small", small(num_hidden_layers=6, **SMALL, **experts), 2)
    return folder, write_family(folder / "large", make(), shards)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "PLAN"],
        ["show", "PLAN"],
        ["show", "--program", "PLAN"],
        ["compile", "PLAN", "-o", "out", "--dry-run", "--shard-size", "100MB"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_large_plan_needs_its_headers_and_little_memory(
    large: tuple[Path, int], arguments: list[str]
) -> None:
    folder, headers = large
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(folder / "small" / "plan.tailor"), *arguments],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    code, read, resident, *heavy = done.stdout.rpartition("@")[2].split()
    assert (code, heavy) == ("0", ["False", "False"])
    assert int(read) < headers + MB
    assert int(resident) < 300 * MB
    assert not (folder / "out").exists()


def test_a_large_output_is_planned_whole(tmp_path: Path) -> None:
    write_family(tmp_path, llama(**LLAMA_3_70B), 30)
    prepared = prepare(gptailor.load(tmp_path / "plan.tailor"), shard_size=10**9)
    base = prepared.models["base"].checkpoint.tensors
    gone = f"model.layers.{len(prepared.resolved.kept)}."
    specs = [spec for shard in prepared.shards for spec in shard.specs]
    assert {spec.name for spec in specs} == {n for n in base if not n.startswith(gone)}
    assert all(spec.shape == base[spec.name].spec.shape for spec in specs)
    for shard in prepared.shards:
        largest = max(spec.size for spec in shard.specs)
        assert shard.size - len(shard.header) <= 10**9 or largest > 10**9
    assert prepared.size > 130e9


def test_an_output_larger_than_the_disk_is_refused_first(tmp_path: Path) -> None:
    config, shapes = llama(**{**LLAMA_3_70B, "hidden_size": 2**16, "intermediate_size": 2**18})
    write_hollow(tmp_path / "base", config, shapes, 8)  # 10 TB
    if free_space(tmp_path) > 8e12:
        pytest.skip("the disk has room for 8 TB")
    (tmp_path / "plan.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    with pytest.raises(CheckpointError, match="C305"):
        gptailor.compile(gptailor.load(tmp_path / "plan.tailor"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "plan.tailor"]


# ----------------------------------------------------------------------------------- many of them


def test_hundreds_of_shards_have_a_right_index(tmp_path: Path) -> None:
    config, shapes = llama(num_hidden_layers=150, **SMALL)
    write_hollow(tmp_path / "base", config, shapes, 50)
    for number, path in enumerate(sorted((tmp_path / "base").glob("*.safetensors"))):
        with path.open("r+b") as file:  # so that each tensor's bytes are its own
            start = 8 + int.from_bytes(file.read(8), "little")
            file.seek(start)
            count = (path.stat().st_size - start) // 4
            file.write(b"".join((number * 10**6 + i).to_bytes(4, "little") for i in range(count)))
    (tmp_path / "plan.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L0..L9\n')
    written = gptailor.compile(
        gptailor.load(tmp_path / "plan.tailor"),
        tmp_path / "out",
        compute=gptailor.ComputeOptions(2, shard_size=2_000),
    )
    assert len(written.shards) > 200
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    made, base = open_checkpoint(tmp_path / "out"), open_checkpoint(tmp_path / "base")
    assert index["metadata"]["total_size"] == sum(t.spec.size for t in made.tensors.values())
    assert index["weight_map"] == {name: t.file.name for name, t in made.tensors.items()}
    assert (
        sorted(index["weight_map"].values())[0]
        == f"model-00001-of-{len(written.shards):05d}.safetensors"
    )
    for name, tensor in made.tensors.items():
        head, layers, rest = name.partition("layers.")
        number, _, rest = rest.partition(".")
        theirs = base.tensors[f"{head}{layers}{int(number) + 10}.{rest}" if layers else name]
        assert bytes_of(tensor) == bytes_of(theirs)


def bytes_of(tensor: Any) -> bytes:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return bytes(file.read(tensor.spec.size))


# --------------------------------------------------------------------- a network's file system


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """A plan that only moves layers."""
    config, shapes = llama(num_hidden_layers=6, **SMALL)
    for name in ("base", "math"):
        write_hollow(tmp_path / name, config, shapes, 2)
    plan = tmp_path / "plan.tailor"
    plan.write_text('tailor 1\nmodel base = "./base"\nmodel math = "./math"\nL1 from math\n')
    return plan


MAPPED = """
import sys
sys.modules["mmap"] = None
from pathlib import Path
import gptailor
maps = []
plan = gptailor.load(Path(sys.argv[1]))
def look(_):
    maps.append(Path("/proc/self/maps").read_text())
gptailor.compile(plan, sys.argv[2], on_event=look, compute=gptailor.ComputeOptions(shard_size=8000))
assert len(maps) > 10
assert not [text for text in maps if ".safetensors" in text]
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("merge", [False, True], ids=["copied", "merged"])
def test_no_file_of_weights_is_mapped(little: Path, merge: bool) -> None:
    """An error of the network kills a process that has mapped the file."""
    script = MAPPED
    if merge:  # torch imports it, for its own ends
        script = script.replace('sys.modules["mmap"] = None\n', "")
        little.write_text(little.read_text() + "L2 from base, math by slerp(0.5)\n")
    done = subprocess.run(
        [sys.executable, "-c", script, str(little), str(little.with_name("out"))],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def fails(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_locks_may_be_unknown(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is ever taken for dead: what may be another's work stays."""
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    theirs = little.with_name(".out.partial-1-0123456789abcdef")
    (theirs / "new").mkdir(parents=True)
    (theirs / ".lock").touch()
    gptailor.compile(gptailor.load(little), little.with_name("out"))
    assert (little.with_name("out") / "config.json").exists()
    assert [path.name for path in little.parent.glob(".*")] == [theirs.name]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS])
def test_copies_within_the_kernel_may_fail(
    little: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    gptailor.compile(gptailor.load(little), little.with_name("out"))
    wanted = {path.name: path.read_bytes() for path in little.with_name("out").iterdir()}
    for name in ("copy_file_range", "sendfile"):
        monkeypatch.setattr(os, name, fails(number), raising=False)
        gptailor.compile(gptailor.load(little), little.with_name("out"), force=True)
        made = {path.name: path.read_bytes() for path in little.with_name("out").iterdir()}
        assert made == wanted


def test_a_source_that_can_no_longer_be_read(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("copy_file_range", "sendfile", "preadv"):
        monkeypatch.setattr(os, name, fails(errno.EIO))
    with pytest.raises(
        CheckpointError, match=r"C201.*cannot be read: Input/output error"
    ) as caught:
        gptailor.compile(gptailor.load(little), little.with_name("out"))
    assert caught.value.path.suffix == ".safetensors"
    assert caught.value.path.parent.parent == little.parent
    assert not list(little.parent.glob("*out*"))


def only_folders(number: int) -> Callable[[int], None]:
    fsync = os.fsync

    def call(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112 (a descriptor's)
            raise OSError(number, os.strerror(number))
        fsync(fd)

    return call


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_folders_may_not_be_synced(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", only_folders(errno.EINVAL))
    gptailor.compile(gptailor.load(little), little.with_name("out"))
    monkeypatch.setattr(os, "fsync", only_folders(errno.EIO))
    with pytest.raises(CheckpointError, match=r"C303.*Input/output error"):
        gptailor.compile(gptailor.load(little), little.with_name("two"))
    assert sorted(path.name for path in little.parent.iterdir()) == [
        "base",
        "math",
        "out",
        "plan.tailor",
    ]


def test_a_lock_that_outlives_its_removal(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps a file that is removed while it is open, under another name, until it is closed."""
    unlink, close = os.unlink, os.close
    kept: list[Path] = []

    def silly(path: Any, **more: Any) -> None:
        if str(path).endswith("/.lock"):
            kept.append(Path(path).with_name(".nfs0001"))
            os.rename(path, kept[-1])  # noqa: PTH104 (the tested code uses Path's)
        else:
            unlink(path, **more)

    def closes(fd: int) -> None:
        for path in kept:
            if path.exists() and path.samefile(f"/proc/self/fd/{fd}"):
                unlink(path)
        close(fd)

    monkeypatch.setattr(os, "unlink", silly)
    monkeypatch.setattr(os, "close", closes)
    gptailor.compile(gptailor.load(little), little.with_name("out"))
    assert kept
    assert not list(little.parent.glob(".*"))
