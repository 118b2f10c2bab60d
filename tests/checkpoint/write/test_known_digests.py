"""Digests of files are kept, and kept ones are believed only whole and of unchanged files."""

import os
from hashlib import sha256
from pathlib import Path

import pytest

from gptailor.checkpoint.write import digest
from gptailor.checkpoint.write.digest import FileDigest, KnownDigests


@pytest.fixture
def read(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    paths: list[Path] = []
    read_file = digest.of_file

    def seen(path: Path, progress: object) -> FileDigest:
        paths.append(path)
        return read_file(path)

    monkeypatch.setattr(digest, "of_file", seen)
    return paths


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with a clock that distinguishes any two changes."""
    monkeypatch.setattr(digest, "_SETTLED", 0)


def digested(file: Path) -> str:
    """The digest that a command of its own gets, and keeps."""
    known = KnownDigests()
    result = known.of(file)
    known.keep()
    assert result.size == file.stat().st_size
    return result.sha256


def written(file: Path, raw: bytes) -> str:
    file.write_bytes(raw)
    return sha256(raw).hexdigest()


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    file = tmp_path / "weights"
    expected = written(file, b"1")
    assert [digested(file), digested(file)] == [expected] * 2
    assert read == [file]
    expected = written(file, b"22")
    assert digested(file) == expected
    assert read == [file, file]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["in place", "another file", "a link"])
def test_a_change_with_equal_size_and_time_is_found(
    tmp_path: Path, read: list[Path], how: str
) -> None:
    file, other = tmp_path / "weights", tmp_path / "other"
    written(file, b"1")
    digested(file)
    before = file.stat()
    target = file if how == "in place" else other
    expected = written(target, b"2")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how == "another file":
        other.replace(file)
    elif how == "a link":
        file.unlink()
        file.symlink_to(other)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert digested(file) == expected
    assert read == [file, file]


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    file = tmp_path / "weights"
    expected = written(file, b"1")
    assert [digested(file), digested(file)] == [expected] * 2
    assert read == [file, file]


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["a digit", "torn", "empty", "of an older release", "no digest"])
def test_a_damaged_note_isnt_a_digest(
    tmp_path: Path, own_cache: Path, read: list[Path], how: str
) -> None:
    file, noted = tmp_path / "weights", own_cache / "gptailor" / "digests.json"
    own = written(file, b"1")
    assert digested(file) == own
    text = noted.read_text()
    if how == "no digest":
        entry = next(iter(digest.kept_json(noted).values()))
        digest.keep_result(noted, {str(file): [*entry[:-1], "abc"]})
    else:
        noted.write_text(
            {
                "a digit": text.replace(own, own[:-1] + ("0" if own[-1] != "0" else "1")),
                "torn": text[:-9],
                "empty": "",
                "of an older release": "{}",
            }[how]
        )
    assert digested(file) == own
    assert read == [file, file]


@pytest.mark.usefixtures("settled")
def test_the_oldest_digests_are_forgotten(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_MOST_KEPT", 2)
    files = [tmp_path / name for name in "abc"]
    for file in files:
        written(file, b"1")
        digested(file)
    for file in reversed(files):
        digested(file)
    assert read == [*files, files[0]]


def test_without_a_cache_each_file_is_read(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    file = tmp_path / "weights"
    expected = written(file, b"1")
    assert [digested(file), digested(file)] == [expected] * 2
    assert read == [file, file]
