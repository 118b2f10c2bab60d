"""Which tensors go into which output file, and the header of each: `plan_shards`."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.tensor import DTYPE_BITS, ByteRange, TensorSpec
from gptailor.checkpoint.write.output_file import OutputFile, Payload
from gptailor.checkpoint.write.threads import Crew

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


OnWritten = Callable[[TensorSpec, str], None]
"""Told of a tensor that is written, and of the sha256 of its bytes, in hexadecimal."""

LARGE = 64 * 1024 * 1024
"""Bytes from which on a tensor is begun before the others, lest it be the last to end."""
FLUSHED = 16 * 1024 * 1024
"""Made bytes that go to the disk together."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor, its bytes, and where in the file they go."""

    spec: TensorSpec
    payload: Payload
    offset: int


def fill_shard(
    out: OutputFile,
    shard: Shard,
    payload_of: Callable[[TensorSpec], Payload],
    crew: Crew,
    seen: OnWritten | None = None,
) -> None:
    """Write the header and all tensors of a shard. Neighbours that are copied are copied as one."""
    out.write(shard.header, 0)
    copies, made = [], []
    for place in _places(shard, payload_of):
        if isinstance(place.payload, ByteRange):
            _check_size(place.spec, place.payload.size, out)
            copies.append((place, place.payload))
        else:
            made.append((place, place.payload))
    if seen is None:
        copying = [partial(out.copy, *stretch) for stretch in _joined(copies)]
    else:
        copying = [partial(_copy, out, place, stretch, seen) for place, stretch in copies]
    made.sort(key=lambda one: one[0].spec.size < LARGE)
    making = [partial(_make, out, *one, seen) for one in made]
    # One thread waits for what arithmetic needs to be imported, while the others copy.
    crew.do([*making[:1], *copying, *making[1:]])


def _places(shard: Shard, payload_of: Callable[[TensorSpec], Payload]) -> Iterator[_Place]:
    offset = len(shard.header)
    for spec in shard.specs:
        yield _Place(spec, payload_of(spec), offset)
        offset += spec.size


def _joined(copies: Sequence[tuple[_Place, ByteRange]]) -> Iterator[tuple[ByteRange, int]]:
    """The stretches and where they go; those that lie one after another, in both files, as one."""
    begun: tuple[ByteRange, int] | None = None
    for place, stretch in copies:
        if begun is not None:
            before, offset = begun
            end = before.offset + before.size
            if (before.file, end, offset + before.size) == (
                stretch.file,
                stretch.offset,
                place.offset,
            ):
                joined = ByteRange(before.file, before.offset, before.size + stretch.size)
                begun = (joined, offset)
                continue
            yield begun
        begun = (stretch, place.offset)
    if begun is not None:
        yield begun


def _copy(out: OutputFile, place: _Place, stretch: ByteRange, seen: OnWritten) -> None:
    digest = hashlib.sha256()
    out.copy(stretch, place.offset, digest)
    seen(place.spec, digest.hexdigest())


def _make(
    out: OutputFile, place: _Place, chunks: Iterable[memoryview | bytes], seen: OnWritten | None
) -> None:
    """Write a tensor chunk by chunk."""
    spec, digest = place.spec, hashlib.sha256()
    written = flushed = 0
    for chunk in chunks:
        size = memoryview(chunk).nbytes
        if written + size > spec.size:
            written += size
            break
        if seen is not None:
            digest.update(chunk)
        written += out.write(chunk, place.offset + written)
        if written - flushed >= FLUSHED:
            out.start(place.offset + flushed, written - flushed)
            flushed = written
    _check_size(spec, written, out)
    out.start(place.offset + flushed, written - flushed)
    if seen is not None:
        seen(spec, digest.hexdigest())


def _check_size(spec: TensorSpec, size: int, out: OutputFile) -> None:
    if size != spec.size:
        more = "or more " if size > spec.size else ""
        message = (
            f"{quoted(spec.name)} takes {spec.size} bytes and was given {size} {more}".rstrip()
        )
        raise CheckpointError("C304", message, out.shown)
