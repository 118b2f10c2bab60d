"""The type of each matrix in a GGUF file of a type, by the rules of llama.cpp's `llama-quantize`.

Some matrices have more bits than most of a file: the head, the values, and the projections back
into the stream. The rules are those of `llama_tensor_get_type` in llama.cpp's `llama-quant.cpp`
(MIT licence, copyright 2023-2026 The ggml authors), for the architectures that gptailor writes.
"""

from collections.abc import Callable, Mapping

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, KINDS
from gptailor.program.gguf.architecture import GgufFacts

_Layers = Callable[[int, int], bool]
"""The layers with a type: whether a number of a layer, among so many, is one of them."""


def _first(count: int) -> _Layers:
    return lambda layer, layers: layer < count


def _first_share(parts: int) -> _Layers:
    return lambda layer, layers: layer < layers // parts


_ALL = _first_share(1)


def _ends_and_each_third(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


_IN_LAYERS: Mapping[str, Mapping[str, tuple[tuple[str, _Layers], ...]]] = {
    "Q5_K_M": {
        "attn_v": (("Q6_K", _ends_and_each_third),),
        "ffn_down": (("Q6_K", _ends_and_each_third),),
    },
    "Q4_K_M": {
        "attn_v": (("Q6_K", _ends_and_each_third),),
        "ffn_down": (("Q6_K", _ends_and_each_third),),
    },
    "Q4_K_S": {"attn_v": (("Q5_K", _first(4)),), "ffn_down": (("Q5_K", _first_share(8)),)},
    "IQ4_NL": {"ffn_down": (("Q5_K", _first_share(8)),)},
    "Q3_K_L": {
        "attn_v": (("Q5_K", _ALL),),
        "attn_output": (("Q5_K", _ALL),),
        "ffn_down": (("Q5_K", _ALL),),
    },
    "Q3_K_M": {
        "attn_v": (("Q5_K", _first(2)), ("Q4_K", _ALL)),
        "attn_output": (("Q4_K", _ALL),),
        "ffn_down": (("Q5_K", _first_share(16)), ("Q4_K", _ALL)),
    },
}
"""The matrices of a layer with another type than most of a file; the first fitting type counts."""

_IN_WEIGHTED_LAYERS: Mapping[str, Mapping[str, tuple[tuple[str, _Layers], ...]]] = {
    **_IN_LAYERS,
    "IQ4_NL": {},
    "Q5_0": {"ffn_down": (("Q5_1", _first_share(8)),)},
    "Q4_0": {"ffn_down": (("Q4_1", _first_share(8)),)},
}
"""The same with an importance matrix."""

_SHARED_VALUES = {"IQ4_NL": "Q5_K"}
"""The type of values that `_SHARING` or more heads share."""
_SHARING = 4

_SHARED_VALUES_OF_70B = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}
"""The type of values in place of another, in models that llama.cpp takes for its 70B."""
_LAYERS_OF_70B = 80

_SHORT_BLOCKS = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""The type in place of another for rows that are no whole blocks of 256 entries."""


def matrix_types(
    file_type: str,
    architecture: str,
    facts: GgufFacts,
    rows: Mapping[str, int],
    *,
    weighted: bool = False,
) -> Mapping[str, str]:
    """Return the type of each matrix, if its rows are whole blocks.

    `rows` has the matrices by their names in GGUF, each with the number of entries in a row. The
    `facts` are those of the architecture. The file is `weighted` by an importance matrix, or not.
    """
    in_layers = (_IN_WEIGHTED_LAYERS if weighted else _IN_LAYERS).get(file_type, {})
    most = FILE_TYPES[file_type].kind
    kinds = dict.fromkeys(rows, most)
    if KINDS[most].plain is not None:
        return kinds
    counts = ("block_count", "attention.head_count", "attention.head_count_kv")
    layers, heads, pairs = (int(str(facts[f"{architecture}.{count}"])) for count in counts)
    is_70b = layers == _LAYERS_OF_70B and (
        architecture == "qwen2" or (architecture == "llama" and heads != pairs)
    )
    head = "output.weight" if "output.weight" in rows else "token_embd.weight"
    for name, row in rows.items():
        if name == head:
            kinds[name] = "Q8_0" if most == "Q8_0" or row % KINDS[most].block else "Q6_K"
        elif name.startswith("blk."):
            _, number, part, *_ = name.split(".")
            rules = in_layers.get(part, ())
            kind = next((k for k, where in rules if where(int(number), layers)), most)
            if part == "attn_v":
                kind = _SHARED_VALUES.get(file_type, kind) if heads // pairs >= _SHARING else kind
                kind = _SHARED_VALUES_OF_70B.get(kind, kind) if is_70b else kind
            kinds[name] = kind
    return kinds


def type_of_rows(kind: str, row: int) -> str | None:
    """Return a type, or the one in its place, for rows of `row` entries; None for neither."""
    if row % KINDS[kind].block:
        kind = _SHORT_BLOCKS.get(kind, kind)
    return kind if row % KINDS[kind].block == 0 else None
