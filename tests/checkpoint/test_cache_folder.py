"""JSON that is kept is believed whole, or not at all."""

from pathlib import Path

from gptailor.checkpoint.cache_folder import keep_json, kept_json

VALUE = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}


def test_a_kept_value_is_read_back(tmp_path: Path) -> None:
    keep_json(tmp_path / "it.json", VALUE)
    assert kept_json(tmp_path / "it.json") == VALUE
    assert [file.name for file in tmp_path.iterdir()] == ["it.json"]


def test_a_missing_or_damaged_file_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    assert kept_json(file) == {}
    keep_json(file, VALUE)
    sound = file.read_bytes()
    for bit in range(8 * len(sound)):
        raw = bytearray(sound)
        raw[bit // 8] ^= 1 << bit % 8
        file.write_bytes(raw)
        assert kept_json(file) in ({}, VALUE), "no other value"
    for size in range(len(sound)):
        file.write_bytes(sound[:size])
        assert kept_json(file) == {}
    for text in ("[]", "3", '{"sha256": 1, "value": {}}', '{"value": []}'):
        file.write_text(text)
        assert kept_json(file) == {}
