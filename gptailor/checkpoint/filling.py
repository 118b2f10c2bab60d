"""The tensors of an output file, several at the same time: `fill`."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from gptailor.checkpoint.crew import Crew
from gptailor.checkpoint.error import CheckpointError, quoted
from gptailor.checkpoint.header import ByteRange, TensorSpec
from gptailor.checkpoint.shards import Shard
from gptailor.checkpoint.transfer import OutputFile, Payload

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
