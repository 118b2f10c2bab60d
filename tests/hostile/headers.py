"""Safetensors files that must be refused."""

import json
from typing import Any

from tests.hostile.case import Hostile


def framed(text: str | bytes, data: bytes = b"") -> bytes:
    """A header with the right length before it."""
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def one(data: bytes = b"\0" * 4, **changes: Any) -> bytes:
    """A valid file with one tensor of one float, and changes to its entry (`...` removes)."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    entry = {key: value for key, value in entry.items() if value is not ...}
    return framed(json.dumps({"a": entry}), data)


def several(*offsets: tuple[int, int], size: int) -> bytes:
    """Byte tensors at these offsets."""
    entries = {
        str(n): {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for n, (begin, end) in enumerate(offsets)
    }
    return framed(json.dumps(entries), bytes(size))


ENTRY = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"

HOSTILE = (
    Hostile("empty", b"", "C202", 0, "an aborted download leaves a file of no bytes"),
    Hostile("seven_bytes", b"\2\0\0\0\0\0\0", "C202", 0, "the length itself is cut"),
    Hostile("lfs_pointer", LFS, "C202", 0, "a clone without LFS has text where weights should be"),
    Hostile("length_only", (2).to_bytes(8, "little"), "C202", 0, "the header is not there"),
    Hostile("length_2_63", b"\xff" * 7 + b"\x7f{}", "C202", 0, "allocating this kills the process"),
    Hostile("length_2_64", b"\xff" * 8 + b"{}", "C202", 0, "a signed reader sees -1"),
    Hostile("no_text", framed(""), "C204", 8, "zero bytes are no JSON"),
    Hostile("latin1", framed(b'{"\xe9":1}'), "C204", 10, "bytes that are no UTF-8"),
    Hostile("bom", framed(b"\xef\xbb\xbf{}"), "C204", 8, "a byte-order mark is no JSON"),
    Hostile("list", framed("[]"), "C204", 8, "JSON, but no object: .items() fails"),
    Hostile("null", framed("null"), "C204", 8, "JSON, but no object: None passes for empty"),
    Hostile("nul_padded", framed("{}\0\0"), "C204", 10, "padding must be blank"),
    Hostile("two_objects", framed("{}{}"), "C204", 10, "a raw decoder stops after the first"),
    Hostile("nan", framed('{"a":NaN}'), "C204", 9, "Python's json reads it, JSON has none"),
    Hostile("infinity", framed('{"a":-Infinity}'), "C204", 9, "Python's json reads it too"),
    Hostile("deep_lists", framed('{"a":' + "[" * 200_000), "C204", 9,
            "recursion overflows the stack"),
    Hostile("deep_objects", framed('{"a":' * 200_000), "C204", 9, "recursion overflows the stack"),
    Hostile("long_int", framed('{"a":' + "9" * 5000 + "}"), "C204", 9, "quadratic to convert"),
    Hostile("same_name", framed(f'{{"a":{ENTRY},"a":{ENTRY}}}', b"\0"), "C205", 61,
            "which counts?"),
    Hostile(
        "same_name_escaped",
        framed(f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}', b"\0"),
        "C205", 61,
        "the same name in another spelling",
    ),
    Hostile(
        "same_field",
        framed('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        "C205", 9,
        "two readers see two dtypes",
    ),
    Hostile("entry_number", framed('{"a":1}'), "C206", 9, "an entry that is no object"),
    Hostile("surrogate", framed(f'{{"\\ud800":{ENTRY}}}', b"\0"), "C204", 10, "can't be printed"),
    Hostile("metadata_number", framed('{"__metadata__":{"a":1}}'), "C206", 9, "strings only"),
    Hostile("metadata_list", framed('{"__metadata__":[]}'), "C206", 9, "an object only"),
    Hostile("no_shape", one(shape=...), "C206", 9, "a field is missing"),
    Hostile("no_dtype", one(dtype=...), "C206", 9, "a field is missing"),
    Hostile("extra_field", one(stride=[1]), "C206", 9, "a field whose meaning we would ignore"),
    Hostile("dtype_list", one(dtype=["F32"]), "C206", 9, "not hashable: a lookup raises TypeError"),
    Hostile("shape_bool", one(shape=[True]), "C206", 9, "in Python True == 1"),
    Hostile("shape_float", one(shape=[1.0]), "C206", 9, "in Python 1.0 == 1"),
    Hostile("shape_string", one(shape="1"), "C206", 9, "iterates like a list"),
    Hostile("shape_negative", one(shape=[-1, -1]), "C206", 9, "the product of two is right again"),
    Hostile("shape_65_bits", one(shape=[2**64]), "C206", 9, "no machine counts so far"),
    Hostile("offsets_bool", one(data_offsets=[False, 4]), "C206", 9, "in Python False == 0"),
    Hostile("offsets_three", one(data_offsets=[0, 2, 4]), "C206", 9, "a triple"),
    Hostile("offsets_object", one(data_offsets={"0": 4}), "C206", 9, "not a list"),
    Hostile("dtype_unknown", one(dtype="F31"), "C207", 9, "a misspelling"),
    Hostile("dtype_lower", one(dtype="f32"), "C207", 9, "names have one case"),
    Hostile("offset_negative", one(data_offsets=[-4, 0]), "C208", 9, "reads the header as weights"),
    Hostile("offsets_reversed", one(data_offsets=[4, 0]), "C208", 9, "a negative size"),
    Hostile("offsets_huge", one(data_offsets=[0, 10**400]), "C208", 469,
            "no integer of the system's"),
    Hostile("truncated", one(data=b"\0\0\0"), "C208", 69, "the download ended early"),
    Hostile("too_small", one(shape=[2]), "C208", 69, "the shape needs more bytes than it has"),
    Hostile("too_large", one(dtype="F16"), "C208", 69, "the shape needs fewer bytes than it has"),
    Hostile("overflow_to_4", one(shape=[2**62 + 1, 4]), "C208", 90,
            "in 64 bits this is 4 elements"),
    Hostile("overflow_to_0", one(b"", shape=[2**63, 2**63, 0], data_offsets=[0, 0]), "C208", 111,
            "the product is 0, on the way it overflows"),
    Hostile("many_factors", one(shape=[2**63] * 20_000), "C208", 420_066,
            "a product of a million bits"),
    Hostile("half_a_byte", one(b"\0", dtype="F4", shape=[3], data_offsets=[0, 1]), "C208", 68,
            "four bits end within a byte"),
    Hostile("overlap", several((0, 4), (2, 6), size=6), "C209", 130, "two tensors share bytes"),
    Hostile("alias", several((0, 4), (0, 4), size=4), "C209", 128,
            "a bomb: a thousand names, one body"),
    Hostile("hole", several((0, 2), (4, 6), size=6), "C209", 130, "bytes to hide a program in"),
    Hostile("hole_first", several((2, 4), size=4), "C209", 68, "the same, at the start"),
    Hostile("hole_last", several((0, 4), size=9), "C209", 72, "the same, at the end"),
    Hostile("hole_alone", framed("{}", b"MZ"), "C209", 10, "the same, with no tensor"),
    Hostile("terminal", framed('{"\\u001b[2J":1}'), "C206", 9,
            "the message would clear the screen"),
    Hostile("length_1_gb", (2**30).to_bytes(8, "little") + b"{}", "C202", 0,
            "a gigabyte would be allocated for a file of ten bytes"),
    Hostile("length_one_more", framed("{}")[:-1], "C202", 0,
            "off by one: the last byte is not there"),
    Hostile("utf16", framed("{}".encode("utf-16")), "C204", 8, "JSON in another encoding"),
    Hostile("raw_surrogate", framed(b'{"\xed\xa0\x80":1}'), "C204", 10,
            "UTF-8 of half a surrogate pair: lenient readers take it"),
    Hostile("raw_nul", framed(b'{"a\0b":1}'), "C204", 11, "C's strings end there"),
    Hostile("trailing_comma", framed('{"a":1,}'), "C204", 15, "JSON5 has it, JSON hasn't"),
    Hostile("leading_zero", framed('{"a":01}'), "C204", 14, "octal for some readers"),
    Hostile("cut_in_name", framed('{"a'), "C204", 9, "the header ends within a name"),
    Hostile("metadata_twice", framed('{"__metadata__":{},"__metadata__":{}}'), "C205", 27,
            "which one counts?"),
    Hostile("metadata_null", framed('{"__metadata__":null}'), "C206", 9, "None passes for empty"),
    Hostile("metadata_deep", framed('{"__metadata__":{"a":[[[[[]]]]]}}'), "C206", 9,
            "strings only"),
    Hostile("entry_null", framed('{"é":{},"a":null}'), "C206", 9, "an entry without a field"),
    Hostile("second_entry", framed(f'{{"é":{ENTRY},"a":null}}', b"\0"), "C206", 62,
            "the byte of an entry counts bytes, not characters"),
    Hostile("dtype_null", one(dtype=None), "C206", 9, "not a string"),
    Hostile("dtype_long", one(dtype="F" * 1_000_000), "C207", 9,
            "looking for the nearest name takes memory by its length"),
    Hostile("shape_null", one(shape=None), "C206", 9, "a scalar, to some"),
    Hostile("shape_nested", one(shape=[[1]]), "C206", 9, "a list of lists"),
    Hostile("shape_strings", one(shape=["1"]), "C206", 9, "a number, to some"),
    Hostile("shape_long", one(shape=[2] * 20_000), "C208", 60_066,
            "more dimensions than bytes"),
    Hostile("offsets_null", one(data_offsets=None), "C206", 9, "not a list"),
    Hostile("offsets_floats", one(data_offsets=[0.0, 4.0]), "C206", 9, "a slice refuses them"),
    Hostile("offsets_strings", one(data_offsets=["0", "4"]), "C206", 9,
            "comparing raises TypeError"),
    Hostile("offsets_wrap", one(data_offsets=[2**64, 2**64 + 4]), "C208", 111,
            "in 64 bits this is [0, 4]"),
    Hostile("size_2_64", one(shape=[2**62]), "C208", 87, "in 64 bits this takes no bytes at all"),
)  # fmt: skip
"""Files no larger than a few megabytes."""
