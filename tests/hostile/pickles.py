"""PyTorch files that must be refused: pickles made by hand, and archives that lie."""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping

from gptailor.checkpoint.formats.pytorch import MOST_INSTRUCTIONS
from tests.hostile.case import Hostile

STORAGE = b"weights." * 3


def archive(
    pickled: bytes,
    beside: Mapping[str, bytes] | None = None,
    *,
    packed: bool = False,
    **more: bytes,
) -> bytes:
    """The archive that `torch.save` writes for a pickle, with one storage of six floats."""
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as file:
        for name, content in {
            "data.pkl": pickled,
            "data/0": STORAGE,
            **(beside or {}),
            **more,
        }.items():
            file.writestr(zipfile.ZipInfo(f"w/{name}"), content, method)
    return out.getvalue()


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    """The instruction that pushes a whole number."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def sizes(*values: int) -> bytes:
    """The instructions that push a tuple of whole numbers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def named(name: str) -> bytes:
    """The instruction that pushes a global: `torch FloatStorage`."""
    module, _, rest = name.partition(" ")
    return b"c" + module.encode() + b"\n" + rest.encode() + b"\n"


def storage(key: str = "0", kind: str = "torch FloatStorage") -> bytes:
    """The instructions that push a storage."""
    parts = text("storage") + named(kind) + text(key) + text("cpu") + integer(6)
    return b"(" + parts + b"tQ"


def rebuilt(
    offset: bytes = integer(0),
    shape: bytes = sizes(2, 3),
    strides: bytes = sizes(3, 1),
    key: str = "0",
) -> bytes:
    """The instructions that push a tensor."""
    call = named("torch._utils _rebuild_tensor_v2")
    arguments = storage(key) + offset + shape + strides + b"\x89" + named("collections OrderedDict")
    return call + b"(" + arguments + b")Rt" + b"R"


def state(value: bytes, name: bytes = text("a")) -> bytes:
    """The pickle of a dictionary with one entry."""
    return b"\x80\x02}" + name + value + b"s."


GOOD = archive(state(rebuilt()))


def _zip(change: Callable[[bytearray, int, int], None]) -> bytes:
    """The good archive, changed by who is told where its directory begins and ends."""
    raw = bytearray(GOOD)
    change(raw, raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06"))
    return bytes(raw)


def _put(at: int, form: str, *values: int) -> Callable[[bytearray, int, int], None]:
    """Numbers at these offsets from the directory's first entry."""

    def change(raw: bytearray, entry: int, _: int) -> None:
        struct.pack_into(form, raw, entry + at, *values)

    return change


def _end(at: int, form: str, *values: int) -> Callable[[bytearray, int, int], None]:
    """Numbers at these offsets from the record that ends the archive."""

    def change(raw: bytearray, _: int, end: int) -> None:
        struct.pack_into(form, raw, end + at, *values)

    return change


SYSTEM = named("os system") + b"(" + text("touch it-ran") + b"tR"


def _outside(name: str, tensor: bytes, why: str) -> Hostile:
    """A tensor that isn't within its storage: the refusal says where the storage is."""
    content = archive(state(tensor))
    return Hostile(name, content, "C108", content.index(STORAGE), why)


HOSTILE = (
    Hostile("empty", b"", "C108", 0, "an aborted download leaves a file of no bytes"),
    Hostile("bare_pickle", state(SYSTEM), "C108", 0,
            "the form before the archives, run as it is read"),
    Hostile("os_system", archive(state(SYSTEM)), "C108", None, "a program"),
    Hostile("os_system_by_text", archive(state(text("os") + text("system") + b"\x93)R")), "C108",
            None, "the same, named on the stack"),
    Hostile("inst", archive(state(b"(" + text("true") + b"ios\nsystem\n")), "C108", None,
            "a call in one instruction"),
    Hostile("extension", archive(state(b"\x82\x01")), "C108", None, "a global by its number"),
    Hostile("buffer", archive(state(b"\x97")), "C108", None, "bytes from outside"),
    Hostile("torch_load", archive(state(named("torch load") + text("/etc/passwd") + b"\x85R")),
            "C108", None, "a function of torch's that is none of a state dict's"),
    Hostile("dotted", archive(state(b"\x8c\x05torch\x8c\x09nn.Module\x93")), "C108", None,
            "attributes of what is allowed"),
    Hostile("laughs", archive(b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 5000 + b"."), "C108",
            None, "each tuple holds the one before twice: printed, 2^5000 of them"),
    Hostile("deep", archive(b"\x80\x02)" + b"\x85" * 20_000 + b"."), "C108", None,
            "printing it overflows the stack"),
    Hostile("recursive", archive(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "C108", None,
            "a dictionary that holds itself"),
    Hostile("recursive_tensor", archive(b"\x80\x02]q\x00h\x00a."), "C108", None,
            "a list that holds itself"),
    Hostile("memo_missing", archive(b"\x80\x02h\x07."), "C108", None, "nothing is there"),
    Hostile("memo_2_31", archive(b"\x80\x02]r\xff\xff\xff\x7f."), "C108", None,
            "the memo is an array, to some"),
    Hostile("text_beyond", archive(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f"), "C108", None,
            "exabytes would be allocated"),
    Hostile("long_beyond", archive(b"\x80\x02\x8b\xff\xff\xff\x7f"), "C108", None,
            "two gigabytes would be allocated"),
    Hostile("long_negative", archive(b"\x80\x02\x8b\xff\xff\xff\xff"), "C108", None,
            "a length of -1"),
    Hostile("decimal", archive(b"\x80\x02L" + b"9" * 100_000 + b"L\n."), "C108", None,
            "quadratic to convert"),
    Hostile("no_stop", archive(b"\x80\x02}"), "C108", None, "it is cut off"),
    Hostile("name_number", archive(state(rebuilt(), integer(1))), "C108", None, "not a name"),
    Hostile("unhashable", archive(state(rebuilt(), b"]")), "C108", None, "a list as a key"),
    Hostile("storage_missing", archive(state(rebuilt(key="1"))), "C108", None, "not in the file"),
    Hostile("storage_escapes", archive(state(rebuilt(key="../data.pkl"))), "C108", None,
            "the pickle itself as weights"),
    _outside("shape_beyond", rebuilt(shape=sizes(2, 4), strides=sizes(4, 1)),
            "reads what follows the storage"),
    _outside("offset_beyond", rebuilt(integer(1)), "the same"),
    Hostile("offset_negative", archive(state(rebuilt(integer(-1)))), "C108", None,
            "reads what precedes the storage"),
    Hostile("stride_negative", archive(state(rebuilt(strides=sizes(-3, 1)))), "C108", None,
            "the same"),
    _outside("shape_overflow", rebuilt(shape=sizes(2**61, 2**61)), "in 64 bits the product is 0"),
    _outside("expanded", rebuilt(shape=sizes(2**40, 3), strides=sizes(0, 1)),
            "a bomb: terabytes of one row"),
    Hostile("strides_missing", archive(state(rebuilt(strides=sizes(3)))), "C108", None,
            "a dimension without a stride"),
    Hostile("compressed", archive(state(rebuilt()) + bytes(9_000_000), packed=True), "C108", None,
            "a bomb: a thousand times larger once it is unpacked"),
    Hostile("two_pickles", archive(state(rebuilt()), {"x/data.pkl": b"."}), "C108", None,
            "which counts?"),
    Hostile("big_endian", archive(state(rebuilt()), byteorder=b"big"), "C108", None,
            "every number would be read backwards"),
    Hostile("byteorder_long", archive(state(rebuilt()), byteorder=b"l" * 99), "C108",
            archive(state(rebuilt()), byteorder=b"l" * 99).index(b"l" * 99), "no byte order"),
    Hostile("stored_size_lies", _zip(_put(20, "<II", 2**31, 2**31)), "C108", 0,
            "two gigabytes would be allocated for the pickle"),
    Hostile("sizes_disagree", _zip(_put(24, "<I", 1)), "C108", 0, "which counts?"),
    Hostile("member_beyond", _zip(_put(42, "<I", 2**31)), "C108", 2**31,
            "begins beyond the file"),
    Hostile("member_elsewhere", _zip(_put(42, "<I", 1)), "C108", 1, "no header is there"),
    Hostile("encrypted", _zip(_put(8, "<H", 1)), "C108", None, "needs a password"),
    Hostile("future", _zip(_put(6, "<H", 99)), "C108", None, "a version that nothing reads"),
    Hostile("directory_2_32", _zip(_end(12, "<I", 2**32 - 2)), "C108", None,
            "a directory of four gigabytes"),
    Hostile("directory_elsewhere", _zip(_end(16, "<I", 2**31)), "C108", None,
            "a directory beyond the file"),
)  # fmt: skip
"""Errors within the pickle have no byte here: the value is refused."""

BOMBS = (
    Hostile("memo_bomb", archive(b"\x80\x02)" + b"\x94" * (MOST_INSTRUCTIONS + 1)), "C108", None,
            "a byte of pickle makes a hundred bytes of memo"),
    Hostile("list_bomb", archive(b"\x80\x02" + b"]" * (MOST_INSTRUCTIONS + 1)), "C108", None,
            "a byte of pickle makes a list"),
)  # fmt: skip
"""Read in some seconds and some hundred megabytes, and by a process of their own."""
