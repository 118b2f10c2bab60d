"""The lock's file: a written lock is read again, and any other file is refused in one message."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import FileDigest, TensorDigest, of_bytes, of_file
from gptailor.checkpoint.write.tensors import Crew, digests_of
from gptailor.output.differences import (
    Difference,
    Fact,
    Measurement,
    lock_differences,
    refuse,
)
from gptailor.output.lock import Lock, LockedModel, read_lock

A, B = "a" * 64, "b" * 64


def lock(**changes: Any) -> Lock:
    """A lock with all that one can hold."""
    files = {"model.safetensors": FileDigest(size=12, sha256=A)}
    base = LockedModel(source="org/model", revision="main", commit="0" * 40, files=files)
    wanted = {
        "plan": A,
        "dtype": "bfloat16",
        "models": {"base": base, "é": LockedModel(source="./a", on="base", files=files)},
        "config": B,
        "tensors": {"x": TensorDigest(dtype="BF16", shape=(2, 3), sha256=B)},
    }
    return Lock(**{**wanted, **changes})


def refused(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        read_lock(path)
    assert error.value.path == path
    assert len(str(error.value)) < 1000 + len(str(path))
    assert "Traceback" not in str(error.value)
    return error.value


# ---------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_a_written_lock_is_read_again(tmp_path: Path, dtype: str | None) -> None:
    written = lock(dtype=dtype)
    written.write(tmp_path / "p.lock")
    result = read_lock(tmp_path / "p.lock")
    assert result == written
    assert result.path == tmp_path / "p.lock"
    assert result.text() == written.text() == (tmp_path / "p.lock").read_text("utf-8")


def test_equal_locks_are_equal_texts_with_a_line_for_each_tensor() -> None:
    tensors = {name: TensorDigest(dtype="F32", shape=(), sha256=A) for name in "cab"}
    text = lock(tensors=tensors).text()
    assert text == lock(tensors=dict(sorted(tensors.items()))).text()
    lines = [line for line in text.splitlines() if '"F32"' in line]
    assert [line.split('"')[1] for line in lines] == ["a", "b", "c"]
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_an_old_lock_is_replaced_whole_without_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "p.lock"
    path.write_text("old")
    lock().write(path)
    lock(dtype=None).write(str(path))
    assert read_lock(path).dtype is None
    assert [p.name for p in tmp_path.iterdir()] == ["p.lock"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_linked_lock_is_written_through_its_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "p.lock").symlink_to("real")
    lock().write(tmp_path / "p.lock")
    assert (tmp_path / "p.lock").is_symlink()
    assert read_lock(tmp_path / "real") == lock()


def test_a_lock_that_cannot_be_written_changes_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for place in ("folder", "pipe", "none/p.lock"):
        with pytest.raises(CheckpointError) as error:
            lock().write(tmp_path / place)
        assert error.value.code == "C303"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]
    assert list((tmp_path / "folder").iterdir()) == []


# ---------------------------------------------------------------------------------------- hostile


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(lock().text())
    change(document)
    return json.dumps(document)


FILE = {"size": 1, "sha256": A}

HOSTILE = {
    "nothing": ("", "C701", "is not JSON"),
    "no JSON": ("tailor 1\n", "C701", "is not JSON"),
    "a list": ("[]", "C701", "not a JSON object"),
    "cut off": (lock().text()[:-40], "C701", "is not JSON"),
    "no UTF-8": ("é".encode("latin-1"), "C701", "not UTF-8"),
    "deep": ('{"version": ' + "[" * 100_000, "C701", "nested too deeply"),
    "NaN": ('{"version": NaN}', "C701", "NaN is not a number"),
    "no version": ("{}", "C701", "no field 'version'"),
    "a version that is not a number": ('{"version": true}', "C701", "no field 'version'"),
    "a newer one": ('{"version": 2, "odd": 1}', "C702", "got version 2"),
    "an older one": ('{"version": 0}', "C702", "got version 0"),
    "a huge one": ('{"version": ' + "9" * 4000 + "}", "C702", "version 9999"),
    "twice": (lock().text().replace('"plan"', '"config"'), "C701", "duplicate name 'config'"),
    "a tensor twice": (
        lock().text().replace('"x": {', '"x": {"dtype": "F32", "shape": [], "sha256": ""}, "x": {'),
        "C701",
        "duplicate name 'x'",
    ),
    "a part missing": (changed(lambda d: d.pop("tensors")), "C701", "'tensors': field required"),
    "a part too many": (changed(lambda d: d.update(more=1)), "C701", "'more'"),
    "texts in one part": (changed(lambda d: d.update(texts={})), "C701", "unknown key 'texts'"),
    "a text without tokens": (
        changed(lambda d: d.update(width={"file": {"size": 1, "sha256": A}})),
        "C701",
        "invalid lock: 'width.tokens': field required",
    ),
    "a text of a bridge without tokens": (
        changed(lambda d: d.update(bridges={"L19": {"file": FILE}})),
        "C701",
        "invalid lock: 'bridges.L19.tokens': field required",
    ),
    "bridges in a text": (changed(lambda d: d.update(bridges="x")), "C701", "'bridges'"),
    "a bridge with a fit's name": (
        changed(lambda d: d.update(bridges={"heal": {"file": FILE, "tokens": 1}})),
        "C701",
        "'bridges.heal",
    ),
    "an inner text with an outer name": (
        changed(lambda d: d.update(inner={"L19": {"file": FILE, "tokens": 1}})),
        "C701",
        "'inner.L19",
    ),
    "two texts of a width": (
        changed(lambda d: d.update(width=[{"file": FILE, "tokens": 1}])),
        "C701",
        "'width'",
    ),
    "counts of a width": (
        changed(lambda d: d.update(width={"file": FILE, "tokens": 1, "counts": {}})),
        "C701",
        "'width.counts'",
    ),
    "a vocabulary without numbers": (
        changed(lambda d: d.update(vocabulary={"file": FILE, "before": 3})),
        "C701",
        "'vocabulary.kept': field required",
    ),
    "an uppercase digest": (changed(lambda d: d.update(plan="A" * 64)), "C701", "'plan'"),
    "a longer digest": (changed(lambda d: d.update(plan=A + "\n")), "C701", "'plan'"),
    "a size below 0": (
        changed(lambda d: d["models"]["base"]["files"]["model.safetensors"].update(size=-1)),
        "C701",
        "'models.base.files.model.safetensors.size'",
    ),
    "a shape of text": (
        changed(lambda d: d["tensors"]["x"].update(shape=["2"])),
        "C701",
        "'tensors.x.shape.0'",
    ),
    "a name for a terminal": (
        changed(lambda d: d.update({"\x1b[31m" * 99: 1})),
        "C701",
        r"\x1b[31m",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_invalid_lock_is_refused_in_one_message(tmp_path: Path, name: str) -> None:
    content, code, message = HOSTILE[name]
    path = tmp_path / "p.lock"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = refused(path)
    assert error.code == code
    assert message in error.message
    assert "\x1b" not in str(error)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        assert refused(place).code == "C701"


# ---------------------------------------------------------------------------------------- digests


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than a block
    (tmp_path / "f").write_bytes(content)
    counts: list[int] = []
    expected = FileDigest(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert of_file(tmp_path / "f", counts.append) == expected == of_bytes(content)
    assert sum(counts) == len(content)
    (tmp_path / "f").write_bytes(b"")
    assert of_file(tmp_path / "f") == of_bytes(b"")


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "f"

    def touched(change: Callable[[], object]) -> CheckpointError:
        path.write_bytes(bytes(3 * 2**20))
        with pytest.raises(CheckpointError) as error:
            of_file(path, lambda _: change())
        return error.value

    assert touched(lambda: os.truncate(path, 10)).code == "C304"
    assert touched(lambda: os.utime(path, ns=(1, 1))).code == "C304"


def test_a_change_during_reading_is_found_though_the_time_is_equal(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(2**20))
    before = path.stat()

    def change(_: int) -> None:
        time.sleep(0.02)  # a coarse clock gives two changes one time
        path.write_bytes(bytes(2**20))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(CheckpointError, match="C304"):
        of_file(path, change)


@pytest.mark.parametrize("threads", [1, 2])
def test_digests_do_not_depend_on_the_pieces(tmp_path: Path, threads: int) -> None:
    content = os.urandom(5_000)
    (tmp_path / "f").write_bytes(content)
    payloads = {
        "file": ByteRange(tmp_path / "f", 1_000, 4_000),
        "made": [memoryview(content)[1_000:3_000], b"", content[3_000:]],
    }
    tensors = {TensorSpec(name, "F32", (10, 100)): made for name, made in payloads.items()}
    result = digests_of(tensors, Crew(threads))
    assert result == dict.fromkeys(payloads, hashlib.sha256(content[1_000:]).hexdigest())


def test_a_tensor_of_another_size_has_no_digest() -> None:
    spec = TensorSpec("x", "F32", (2,))
    with pytest.raises(CheckpointError, match="expected 8 bytes for 'x', got 7"):
        digests_of({spec: [b"1234567"]}, Crew(1))


# ------------------------------------------------------------------------------------ what differs


def test_each_kind_of_difference_is_named() -> None:
    like = TensorDigest(dtype="F32", shape=(2,), sha256=A)
    expected = {"a": like, "b": like, "c": like, "d": like, "e": like}
    results = {
        "b": like.model_copy(update={"sha256": B}),
        "c": like.model_copy(update={"shape": (1, 2)}),
        "d": like,
        "e": like.model_copy(update={"dtype": "I32"}),
        "f": like,
    }
    tensors = (Measurement(tensors=digests) for digests in (expected, results))
    assert [item.message for item in lock_differences(*tensors)] == [
        "tensor 'a' is missing; the lock has it",
        "tensor 'b' differs from the lock",
        "tensor 'c' is F32 [1, 2], expected F32 [2] as in the lock",
        "tensor 'e' is I32 [2], expected F32 [2] as in the lock",
        "tensor 'f' is present, but the lock has no such tensor",
    ]
    files = {"a": FileDigest(size=1, sha256=A)}
    locked = lock(models={"m": LockedModel(source="./m", files=files)})
    read = Measurement(facts={"inputs": {("m", "b"): Fact((None, None), path=Path("/m/b"))}})
    differing = lock_differences(Measurement.of(locked), read)
    assert [item.message for item in differing] == [
        "'a' of model 'm' is in the lock, but isn't used",
        "'b' of model 'm' is used, but isn't in the lock",
    ]


def test_many_differences_are_one_message(tmp_path: Path) -> None:
    refuse([], lock())
    many = [Difference("tensor", str(n), f"tensor '{n}' differs") for n in range(1_234)]
    lock().write(tmp_path / "p.lock")
    with pytest.raises(CheckpointError) as error:
        refuse(many, read_lock(tmp_path / "p.lock"))
    assert error.value.code == "C705"
    assert error.value.path == tmp_path / "p.lock"
    assert error.value.message.startswith("tensor '0' differs; tensor '1' differs; ")
    assert error.value.message.endswith("tensor '4' differs; and 1,229 more differ")
    may = "may compute different numbers; run 'gptailor lock' again"
    assert error.value.help == f"another version of gptailor or torch {may}"


def test_a_method_of_another_package_is_a_possible_cause() -> None:
    locked = lock(methods={"mine": "__main__ unversioned"})
    with pytest.raises(CheckpointError) as error:
        refuse([Difference("tensor", "x", "tensor 'x' differs")], locked)
    assert "of gptailor, torch or 'mine' of __main__ unversioned may" in str(error.value.help)
