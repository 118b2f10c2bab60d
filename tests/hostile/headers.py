"""Safetensors files that must be refused: each with the code of the refusal, and the argument."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hostile:
    """A file's bytes, the code it gets, and why somebody would make it or what breaks on it."""

    name: str
    content: bytes
    code: str
    why: str


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
    Hostile("empty", b"", "C202", "an aborted download leaves a file of no bytes"),
    Hostile("seven_bytes", b"\2\0\0\0\0\0\0", "C202", "the length itself is cut"),
    Hostile("lfs_pointer", LFS, "C202", "a clone without LFS has text where weights should be"),
    Hostile("length_only", (2).to_bytes(8, "little"), "C202", "the header is not there"),
    Hostile("length_2_63", b"\xff" * 7 + b"\x7f{}", "C202", "allocating this kills the process"),
    Hostile("length_2_64", b"\xff" * 8 + b"{}", "C202", "a signed reader sees -1"),
    Hostile("no_text", framed(""), "C204", "zero bytes are no JSON"),
    Hostile("latin1", framed(b'{"\xe9":1}'), "C204", "bytes that are no UTF-8"),
    Hostile("bom", framed(b"\xef\xbb\xbf{}"), "C204", "a byte-order mark is no JSON"),
    Hostile("list", framed("[]"), "C204", "JSON, but no object: .items() fails"),
    Hostile("null", framed("null"), "C204", "JSON, but no object: None passes for empty"),
    Hostile("nul_padded", framed("{}\0\0"), "C204", "padding must be blank"),
    Hostile("two_objects", framed("{}{}"), "C204", "a raw decoder stops after the first"),
    Hostile("nan", framed('{"a":NaN}'), "C204", "Python's json reads it, JSON has none"),
    Hostile("infinity", framed('{"a":-Infinity}'), "C204", "Python's json reads it too"),
    Hostile("deep_lists", framed('{"a":' + "[" * 200_000), "C204", "recursion overflows the stack"),
    Hostile("deep_objects", framed('{"a":' * 200_000), "C204", "recursion overflows the stack"),
    Hostile("long_int", framed('{"a":' + "9" * 5000 + "}"), "C204", "quadratic to convert"),
    Hostile("same_name", framed(f'{{"a":{ENTRY},"a":{ENTRY}}}', b"\0"), "C205", "which counts?"),
    Hostile(
        "same_name_escaped",
        framed(f'{{"a":{ENTRY},"\\u0061":{ENTRY}}}', b"\0"),
        "C205",
        "the same name in another spelling",
    ),
    Hostile(
        "same_field",
        framed('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
        "C205",
        "two readers see two dtypes",
    ),
    Hostile("entry_number", framed('{"a":1}'), "C206", "an entry that is no object"),
    Hostile("surrogate", framed(f'{{"\\ud800":{ENTRY}}}', b"\0"), "C206", "can't be printed"),
    Hostile("metadata_number", framed('{"__metadata__":{"a":1}}'), "C206", "strings only"),
    Hostile("metadata_list", framed('{"__metadata__":[]}'), "C206", "an object only"),
    Hostile("no_shape", one(shape=...), "C206", "a field is missing"),
    Hostile("no_dtype", one(dtype=...), "C206", "a field is missing"),
    Hostile("extra_field", one(stride=[1]), "C206", "a field whose meaning we would ignore"),
    Hostile("dtype_list", one(dtype=["F32"]), "C206", "not hashable: a lookup raises TypeError"),
    Hostile("shape_bool", one(shape=[True]), "C206", "in Python True == 1"),
    Hostile("shape_float", one(shape=[1.0]), "C206", "in Python 1.0 == 1"),
    Hostile("shape_string", one(shape="1"), "C206", "iterates like a list"),
    Hostile("shape_negative", one(shape=[-1, -1]), "C206", "the product of two is right again"),
    Hostile("shape_65_bits", one(shape=[2**64]), "C206", "no machine counts so far"),
    Hostile("offsets_bool", one(data_offsets=[False, 4]), "C206", "in Python False == 0"),
    Hostile("offsets_three", one(data_offsets=[0, 2, 4]), "C206", "a triple"),
    Hostile("offsets_object", one(data_offsets={"0": 4}), "C206", "not a list"),
    Hostile("dtype_unknown", one(dtype="F31"), "C207", "a misspelling"),
    Hostile("dtype_lower", one(dtype="f32"), "C207", "names have one case"),
    Hostile("offset_negative", one(data_offsets=[-4, 0]), "C208", "reads the header as weights"),
    Hostile("offsets_reversed", one(data_offsets=[4, 0]), "C208", "a negative size"),
    Hostile("offsets_huge", one(data_offsets=[0, 10**400]), "C208", "no integer of the system's"),
    Hostile("truncated", one(data=b"\0\0\0"), "C208", "the download ended early"),
    Hostile("too_small", one(shape=[2]), "C208", "the shape needs more bytes than it has"),
    Hostile("too_large", one(dtype="F16"), "C208", "the shape needs fewer bytes than it has"),
    Hostile("overflow_to_4", one(shape=[2**62 + 1, 4]), "C208", "in 64 bits this is 4 elements"),
    Hostile("overflow_to_0", one(b"", shape=[2**63, 2**63, 0], data_offsets=[0, 0]), "C208",
            "the product is 0, on the way it overflows"),
    Hostile("many_factors", one(shape=[2**63] * 100_000), "C208", "a product of 6 million bits"),
    Hostile("half_a_byte", one(b"\0", dtype="F4", shape=[3], data_offsets=[0, 1]), "C208",
            "four bits end within a byte"),
    Hostile("overlap", several((0, 4), (2, 6), size=6), "C209", "two tensors share bytes"),
    Hostile("alias", several((0, 4), (0, 4), size=4), "C209", "a bomb: a thousand names, one body"),
    Hostile("hole", several((0, 2), (4, 6), size=6), "C209", "bytes to hide a program in"),
    Hostile("hole_first", several((2, 4), size=4), "C209", "the same, at the start"),
    Hostile("hole_last", several((0, 4), size=9), "C209", "the same, at the end"),
    Hostile("hole_alone", framed("{}", b"MZ"), "C209", "the same, with no tensor"),
    Hostile("terminal", framed('{"\\u001b[2J":1}'), "C206", "the message would clear the screen"),
)  # fmt: skip
"""Files no larger than a few hundred kilobytes."""
