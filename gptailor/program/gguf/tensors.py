"""The tensors of a plan's GGUF file: their names, types and sizes, without a value.

Some matrices have more bits than most of a file: the head, the values, and the projections back
into the stream. The rules are the same as in `llama_tensor_get_type` in llama.cpp's
`llama-quant.cpp` (MIT licence, copyright 2023-2026 The ggml authors), for the architectures that
gptailor writes.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from gptailor.checkpoint.families.layout import is_constant
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.file_facts import FREQUENCIES
from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, KINDS
from gptailor.checkpoint.tensor import FLOATS, TensorSpec
from gptailor.plan.faults import listed
from gptailor.program.gguf.architecture import GgufFacts, WrittenArchitecture
from gptailor.program.program import Program

_Layers = Callable[[int, int], bool]
"""The layers with a type: whether a layer, by its number and their count, is one of them."""


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
"""The type in place of another for rows that aren't whole blocks of 256 entries."""


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
    `facts` are the architecture's. The file is `weighted` by an importance matrix, or not.
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


@final
@dataclass(frozen=True)
class GgufTensorPlan:
    """A tensor of a GGUF file, its dtype the type's name, and its source in the program.

    If llama.cpp wants a projection's rows interleaved, `heads` is the number of its heads,
    otherwise 0; `add_one` is for norms that multiply by 1 + w. A tensor with `content` has these
    bytes, and the program doesn't have its source.
    """

    spec: TensorSpec
    source: TensorSpec
    heads: int = 0
    add_one: bool = False
    content: bytes = b""

    @property
    def in_layer(self) -> bool:
        """Return whether the tensor is a matrix of a layer, which an importance matrix has."""
        return self.spec.name.startswith("blk.") and len(self.spec.shape) > 1

    @property
    def is_copy(self) -> bool:
        """Return whether the tensor's bytes equal its source's."""
        same = self.spec.dtype == self.source.dtype
        return same and not (self.heads or self.add_one or self.content)


def planned_tensors(
    program: Program,
    architecture: WrittenArchitecture,
    file_type: str | None,
    *,
    weighted: bool = False,
) -> tuple[list[GgufTensorPlan], list[str]]:
    """Return the tensors of a GGUF file in the program's order, and notes about their types.

    Matrices keep the program's dtypes without a `file_type`. The file is `weighted` by an
    importance matrix, or not. Raises CheckpointError (C306) for a
    tensor that the architecture or the format doesn't have.
    """
    # A file has no layers that predict further tokens: no architecture written has places.
    specs = [output.spec for output in program.outputs if output.place.part != "predictor"]
    # llama.cpp computes the constants of rotary embeddings.
    named = {spec: architecture.named(spec.name) for spec in specs if not is_constant(spec.name)}
    rows = {new: spec.shape[-1] for spec, (new, _, _) in named.items() if len(spec.shape) > 1}
    wanted: Mapping[str, str] = {}
    if file_type is not None:
        facts = architecture.facts
        wanted = matrix_types(file_type, architecture.name, facts, rows, weighted=weighted)
    planned, kept, shorter = [], [], Counter[tuple[str, str]]()
    for spec, (new, heads, add_one) in named.items():
        if spec.dtype not in FLOATS:
            raise CheckpointError(
                "C306",
                f"{quoted(spec.name)} is {spec.dtype}, which GGUF can't store",
                architecture.target,
            )
        # llama.cpp wants vectors in float32.
        kind = "F32" if spec.dtype == "F64" or len(spec.shape) == 1 else spec.dtype
        if (most := wanted.get(new)) is not None:
            fitting = type_of_rows(most, rows[new])
            if fitting is None:
                kept.append(spec.name)
            elif fitting != most:
                shorter[fitting, most] += 1
            kind = fitting or kind
        planned.append(GgufTensorPlan(TensorSpec(new, kind, spec.shape), spec, heads, add_one))
    if divisors := architecture.frequencies:
        raw = struct.pack(f"<{len(divisors)}f", *divisors)
        spec = TensorSpec(FREQUENCIES, "F32", (len(divisors),))
        planned.append(GgufTensorPlan(spec, spec, content=raw))
    return planned, list(_notes(kept, shorter, file_type))


def _notes(
    kept: Sequence[str], shorter: Mapping[tuple[str, str], int], file_type: str | None
) -> Iterator[str]:
    if kept:
        yield (
            f"{len(kept)} tensors keep the plan's dtype instead of {file_type}: their rows "
            f"aren't whole blocks of 32 entries (the first is {quoted(kept[0])})"
        )
    if shorter:
        others = [f"{n} {kind} instead of {most}" for (kind, most), n in shorter.items()]
        yield f"tensors with rows that aren't whole blocks of 256 entries: {listed(others)}"
