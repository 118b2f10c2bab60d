"""GGUF files that must be refused, made by hand."""

import struct
from collections.abc import Sequence

from tests.hostile.case import Hostile

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10


def text(value: str | bytes) -> bytes:
    """A text with its length before it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def fact(name: str, kind: int, raw: bytes) -> bytes:
    """A name, a type, and the value's bytes."""
    return text(name) + struct.pack("<I", kind) + raw


def number(name: str, value: int) -> bytes:
    """A fact that is a number."""
    return fact(name, U32, struct.pack("<I", value))


def tensor(name: str, extents: Sequence[int], offset: int, kind: int = 0) -> bytes:
    """A tensor's entry in the table; the extents as GGUF has them, columns first."""
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    facts: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", **lies: int
) -> bytes:
    """A file of these facts and tensors; `lies` are other counts of them."""
    counts = lies.get("tensors_said", len(tensors)), lies.get("facts_said", len(facts))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join((*facts, *tensors))
    return head + bytes(-len(head) % 32) + data


FACTS = {
    "general.architecture": fact("general.architecture", STRING, text("llama")),
    **{
        key: number(f"llama.{key}", value)
        for key, value in {
            "block_count": 1,
            "context_length": 8,
            "embedding_length": 4,
            "feed_forward_length": 4,
            "attention.head_count": 2,
        }.items()
    },
    "epsilon": fact("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
}
SHAPES = {
    "token_embd": (4, 3),
    "output_norm": (4,),
    **{f"blk.0.attn_{name}": (4, 4) for name in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{name}": (4, 4) for name in ("gate", "up", "down")},
    "blk.0.attn_norm": (4,),
    "blk.0.ffn_norm": (4,),
}


def llama(*extra: bytes, factors: bytes = b"", **changes: bytes) -> bytes:
    """A small model that is read, with other facts; `factors` are its frequencies' factors."""
    facts = {**FACTS, **{key.replace("__", "."): raw for key, raw in changes.items()}}
    table = [
        tensor(f"{name}.weight", shape, 64 * n) for n, (name, shape) in enumerate(SHAPES.items())
    ]
    if factors:
        table.append(tensor("rope_freqs.weight", (1,), 64 * len(table)))
    data = bytes(64 * len(SHAPES)) + factors if factors else bytes(64 * len(SHAPES) - 48)
    return gguf([*facts.values(), *extra], table, data)


def _frequency(value: float) -> bytes:
    return llama(factors=struct.pack("<f", value))


def _array(kind: int, count: int) -> bytes:
    return struct.pack("<IQ", kind, count)


ONE = tensor("a", [8], 0)
DATA = bytes(32)

HOSTILE = (
    Hostile("empty", b"", "C109", 0, "an aborted download leaves a file of no bytes"),
    Hostile("other_magic", b"GGML" + bytes(40), "C109", 0, "the format before GGUF"),
    Hostile("big_endian", b"GGUF" + struct.pack(">I", 3) + bytes(40), "C109", 8,
            "every number would be read backwards"),
    Hostile("version_1", b"GGUF" + struct.pack("<I", 1) + bytes(40), "C109", 8,
            "lengths had 32 bits then"),
    Hostile("facts_2_60", gguf(facts_said=2**60), "C109", 24, "a loop of years"),
    Hostile("tensors_2_60", gguf(tensors_said=2**60), "C109", 24, "a list of exabytes"),
    Hostile("one_tensor_more", gguf([number("a", 1)], tensors_said=1), "C109", 57,
            "the padding would be read as a tensor"),
    Hostile("name_2_63", gguf([struct.pack("<Q", 2**63)], facts_said=1), "C109", 32,
            "a signed reader sees a negative length"),
    Hostile("string_beyond", gguf([fact("a", STRING, struct.pack("<Q", 2**40))]), "C109", 45,
            "a terabyte would be allocated"),
    Hostile("array_2_62", gguf([fact("a", ARRAY, _array(U32, 2**62))]), "C109", 49,
            "in 64 bits this takes no bytes at all"),
    Hostile("array_2_61_texts", gguf([fact("a", ARRAY, _array(STRING, 2**61))]), "C109", 49,
            "a list of exabytes"),
    Hostile("array_of_arrays", gguf([fact("a", ARRAY, _array(ARRAY, 1) * 1000)]), "C109", 49,
            "recursion overflows the stack"),
    Hostile("kind_99", gguf([fact("a", 99, bytes(8))]), "C109", 37, "its length isn't known"),
    Hostile("fact_twice", gguf([number("a", 1), number("a", 2)]), "C109", 50, "which counts?"),
    Hostile("alignment_0", gguf([number("general.alignment", 0)]), "C109", 57, "a division by 0"),
    Hostile("alignment_3", gguf([number("general.alignment", 3)]), "C109", 57, "no power of two"),
    Hostile("alignment_2_63",
            gguf([fact("general.alignment", U64, struct.pack("<Q", 2**63))], [ONE], DATA), "C109",
            2**63, "the data would begin beyond every file"),
    Hostile("dimensions_2_31", gguf([], [text("a") + struct.pack("<I", 2**31) + bytes(90)]),
            "C109", 37, "a shape of gigabytes"),
    Hostile("kind_of_tensor", gguf([], [tensor("a", [8], 0, 99)], DATA), "C109", 49,
            "how many bytes it has isn't known"),
    Hostile("half_a_block", gguf([], [tensor("a", [33], 0, 2)], DATA), "C109", 49,
            "a row ends within a block of 32"),
    Hostile("extents_overflow", gguf([], [tensor("a", [2**62, 2**62, 8, 8], 0)], DATA), "C109", 96,
            "in 64 bits the product is 0"),
    Hostile("offset_2_63", gguf([], [tensor("a", [8], 2**63)], DATA), "C109", 64 + 2**63,
            "a signed reader sees a negative offset"),
    Hostile("beyond", gguf([], [tensor("a", [16], 0)], DATA), "C109", 64,
            "the download ended early"),
    Hostile("unaligned", gguf([], [tensor("a", [1], 7)], DATA), "C109", 71, "a load would trap"),
    Hostile("overlap", gguf([], [ONE, tensor("b", [8], 0)], DATA), "C109", 96,
            "a bomb: a thousand names, one body"),
    Hostile("name_twice", gguf([], [ONE, ONE], DATA), "C109", 57, "which counts?"),
    Hostile("architecture_missing", gguf([], [ONE], DATA), "C109", None, "nothing says what it is"),
    Hostile("architecture_list",
            gguf([fact("general.architecture", ARRAY, _array(U8, 3) + b"abc")]), "C109", None,
            "not a text"),
    Hostile("architecture_terminal",
            gguf([fact("general.architecture", STRING, text("\x1b[2J"))]), "C109", None,
            "the message would clear the screen"),
    Hostile("architecture_no_utf8",
            gguf([fact("general.architecture", STRING, text(b"\xff\xfe"))]), "C109", None,
            "the message couldn't be printed"),
    Hostile("layers_10_9", llama(block_count=number("llama.block_count", 10**9)), "C109", None,
            "names of a thousand million layers"),
    Hostile("layers_0", llama(block_count=number("llama.block_count", 0)), "C109", None,
            "no model"),
    Hostile("heads_0", llama(attention__head_count=number("llama.attention.head_count", 0)),
            "C109", None, "a division by 0"),
    Hostile("layers_list",
            llama(block_count=fact("llama.block_count", ARRAY, _array(U8, 50_000) + bytes(50_000))),
            "C109", None, "the message would have fifty thousand numbers"),
    Hostile("epsilon_nan",
            llama(epsilon=fact("llama.attention.layer_norm_rms_epsilon", F32, b"\xff" * 4)),
            "C109", None, "not a number"),
    Hostile("unknown_fact", llama(number("llama.attention.sliding_window", 4)), "C109", None,
            "its layers would compute something else"),
    Hostile("factor_infinite", _frequency(float("inf")), "C109", None, "a division by 0"),
    Hostile("factor_0", _frequency(0.0), "C109", None, "a division by 0"),
    Hostile("factor_nan", _frequency(float("nan")), "C109", None, "equal to nothing"),
)  # fmt: skip
"""The offsets are where the reader was when it knew."""
