"""Sound files, changed a little: taken or refused with a code, and no third outcome.

`benchmarks/fuzz.py` does the same for longer, guided by the lines that are reached.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptailor.checkpoint.formats.safetensors import read_header
from tests.hostile import headers
from tests.hostile.targets import TARGETS
from tests.support.thorough import drawn

NUMBERS = (b"0", b"-1", b"1.0", b"1e3", b"true", b"null", b'"1"', b"[]", b"{}", b"NaN", b"1e999",
           b"18446744073709551616", b"9223372036854775807", b"9" * 5000)  # fmt: skip
"""Replacements for a number of a JSON text."""


@st.composite
def mutations(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds, after a few changes."""
    raw = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        change = draw(st.sampled_from((_flip, _splice, _cut, _repeat, _number)))
        raw = change(draw, raw, seeds) if raw else raw
    return raw


def _at(draw: st.DrawFn, raw: bytes) -> int:
    return draw(st.integers(0, len(raw) - 1))


def _flip(draw: st.DrawFn, raw: bytes, _: tuple[bytes, ...]) -> bytes:
    """One bit is another."""
    at = _at(draw, raw)
    return raw[:at] + bytes([raw[at] ^ 1 << draw(st.integers(0, 7))]) + raw[at + 1 :]


def _splice(draw: st.DrawFn, raw: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """A stretch of another seed in the place of one of this."""
    other = draw(st.sampled_from([seed for seed in seeds if seed]))
    begin = _at(draw, other)
    piece = other[begin : begin + draw(st.integers(1, 16))]
    at = _at(draw, raw)
    return raw[:at] + piece + raw[at + draw(st.integers(0, 16)) :]


def _cut(draw: st.DrawFn, raw: bytes, _: tuple[bytes, ...]) -> bytes:
    """A stretch is missing."""
    at = _at(draw, raw)
    return raw[:at] + raw[at + draw(st.integers(1, 64)) :]


def _repeat(draw: st.DrawFn, raw: bytes, _: tuple[bytes, ...]) -> bytes:
    """A stretch comes twice."""
    at = _at(draw, raw)
    end = at + draw(st.integers(1, 64))
    return raw[:end] + raw[at:]


def _number(draw: st.DrawFn, raw: bytes, _: tuple[bytes, ...]) -> bytes:
    """Replace a number of the text; the length of a header that contains it follows."""
    results = list(re.finditer(rb"(?<![\w.])-?\d+", raw))
    if not results:
        return raw
    match = draw(st.sampled_from(results))
    changed = raw[: match.start()] + draw(st.sampled_from(NUMBERS)) + raw[match.end() :]
    length = int.from_bytes(raw[:8], "little")
    if not 8 <= match.start() < match.end() <= 8 + length <= len(raw):
        return changed
    return (length + len(changed) - len(raw)).to_bytes(8, "little") + changed[8:]


@given(st.data())
def test_a_number_behind_a_header_leaves_its_length(data: st.DataObject) -> None:
    raw = headers.framed("{}", b" 123456789 ")
    assert _number(data.draw, raw, ())[:8] == raw[:8]


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    target = TARGETS[name]
    folder = tmp_path_factory.mktemp(name)

    @given(mutations(target.seeds))
    @settings(max_examples=drawn(50))
    def holds(raw: bytes) -> None:
        target.once(raw, folder)

    holds()


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_taken(tmp_path: Path, name: str) -> None:
    assert TARGETS[name].once(TARGETS[name].seeds[0], tmp_path)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 8), max_size=4), st.integers(-1, 1))
def test_a_header_is_read_if_its_tensors_fill_the_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], more: int
) -> None:
    entries, end = {}, 0
    for name, size in sizes.items():
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    raw = headers.framed(json.dumps(entries), bytes(max(0, end + more)))
    folder = tmp_path_factory.getbasetemp()
    taken = TARGETS["header"].once(raw, folder)
    assert taken == (max(0, end + more) == end)
    if taken:
        result = read_header(folder / "x.safetensors")
        assert {name: info.spec.size for name, info in result.items()} == sizes
