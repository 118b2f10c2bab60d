"""Which tensors go into which output file, and the header of each: `plan_shards`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gptailor.checkpoint.header import DTYPE_BITS, TensorSpec

_HEADER_ALIGNMENT = 8
"""The data of a file start at a multiple of this many bytes, as a loader that maps it wants."""


@dataclass(frozen=True, slots=True)
class Shard:
    """An output file: its name, its tensors in file order, and all bytes before the first one."""

    name: str
    specs: tuple[TensorSpec, ...]
    header: bytes

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return len(self.header) + sum(spec.size for spec in self.specs)


def plan_shards(specs: Sequence[TensorSpec], shard_size: int) -> tuple[Shard, ...]:
    """Fill files of at most `shard_size` bytes of tensors in the order given.

    A tensor larger than that has a file to itself. Within a file wider dtypes come first, so that
    each tensor is aligned to its dtype; else the order stays. The same input gives the same bytes.
    """
    if shard_size <= 0:
        msg = f"shard_size is {shard_size}; it must be positive"
        raise ValueError(msg)
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names) or "__metadata__" in names:
        msg = "tensor names must be unique, and none may be '__metadata__'"
        raise ValueError(msg)
    groups = _fill(specs, shard_size)
    shards = []
    for number, group in enumerate(groups, 1):
        name = "model.safetensors"
        if len(groups) > 1:
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        ordered = tuple(sorted(group, key=_widest_first))
        shards.append(Shard(name, ordered, _header(ordered)))
    return tuple(shards)


def _fill(specs: Sequence[TensorSpec], shard_size: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.size
    return groups


def _widest_first(spec: TensorSpec) -> int:
    return -DTYPE_BITS[spec.dtype]


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        end = begin + spec.size
        shape = list(spec.shape)
        entries[spec.name] = {"dtype": spec.dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
