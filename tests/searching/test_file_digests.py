"""Digests of files are noted, and noted ones are believed only whole."""

from hashlib import sha256
from pathlib import Path

import pytest

from gptailor.checkpoint.write import digest
from gptailor.searching import folder
from gptailor.searching.folder import file_digests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    paths: list[Path] = []

    def seen(path: Path, _on_read: object) -> digest.FileDigest:
        paths.append(path)
        return digest.of_file(path)

    monkeypatch.setattr(folder, "of_file", seen)
    return paths


def test_a_file_that_was_not_touched_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    file, noted = tmp_path / "weights", tmp_path / "digests.json"
    file.write_bytes(b"1")
    expected = {file: sha256(b"1").hexdigest()}
    assert file_digests(noted, [file]) == file_digests(noted, [file]) == expected
    assert read == [file]
    file.write_bytes(b"22")
    assert file_digests(noted, [file]) == {file: sha256(b"22").hexdigest()}
    assert read == [file, file]


@pytest.mark.parametrize("how", ["a digit", "torn", "empty", "of an older release"])
def test_a_damaged_note_is_no_digest(tmp_path: Path, read: list[Path], how: str) -> None:
    file, noted = tmp_path / "weights", tmp_path / "digests.json"
    file.write_bytes(b"1")
    expected = file_digests(noted, [file])
    text = noted.read_text()
    own = expected[file]
    noted.write_text(
        {
            "a digit": text.replace(own, own[:-1] + ("0" if own[-1] != "0" else "1")),
            "torn": text[:-9],
            "empty": "",
            "of an older release": "{}",
        }[how]
    )
    assert file_digests(noted, [file]) == expected
    assert read == [file, file]
