"""Tensors that several threads write or digest, and their distribution over files."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Lock
from typing import ParamSpec, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.folder import SINGLE
from gptailor.checkpoint.tensor import DTYPE_BITS, ByteRange, TensorSpec
from gptailor.checkpoint.write.output_file import ByteProgress, OutputFile, Payload, blocks_of

_Given = ParamSpec("_Given")
_Job = Callable[[], None]
_WAIT = 0.2
"""Seconds after which an interrupt is noticed at the latest.

Python handles an interrupt that comes just before a wait when the wait ends, so a wait is short.
"""


@final
class Dismissed(Exception):  # noqa: N818 (no error: another job failed, and this one was let go)
    """The end of a job after its crew or its recording stopped."""


@final
class Crew:
    """A number of threads; with one, jobs run in the caller's."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available()
        self._stopped = Event()
        self._lock = Lock()

    def do(self, jobs: Iterable[_Job]) -> None:
        """Do all jobs, begun in their order.

        After an exception no other job is begun, running jobs end, and the exception of the first
        failed job is raised. After an interrupt running jobs end at their next call of an
        `exclusive` listener.
        """
        if self.threads == 1:
            for job in jobs:
                job()
            return
        failed = Event()

        def run(job: _Job) -> None:
            if failed.is_set():
                raise Dismissed
            try:
                job()
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(self.threads, "gptailor") as pool:
            try:
                futures = [pool.submit(run, job) for job in jobs]
                while wait(futures, _WAIT).not_done:
                    pass
            except BaseException:
                self._stopped.set()
                failed.set()
                raise
        for error in (future.exception() for future in futures):
            if error is not None and not isinstance(error, Dismissed):
                raise error

    def exclusive(self, listener: Callable[_Given, None]) -> Callable[_Given, None]:
        """Return the listener for one thread at a time; it raises `Dismissed` after a stop."""

        def one_at_a_time(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
            if self._stopped.is_set():
                raise Dismissed
            with self._lock:
                listener(*args, **kwargs)

        return one_at_a_time


def available() -> int:
    """Return the number of cores that this process may use."""
    knows = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if knows else os.cpu_count() or 1


_HEADER_ALIGNMENT = 8
"""The data of a file start at a multiple of this many bytes, for loaders that map it."""


@final
@dataclass(frozen=True)
class Shard:
    """An output file: its name, its tensors in file order, and all bytes before the first one.

    Each tensor takes a multiple of `alignment` bytes.
    """

    name: str
    specs: tuple[TensorSpec, ...]
    header: bytes
    alignment: int = 1

    @cached_property
    def size(self) -> int:
        """The bytes of the file."""
        return len(self.header) + sum(map(self.taken, self.specs))

    def taken(self, spec: TensorSpec) -> int:
        """Return the bytes that a tensor takes in the file."""
        return -(-spec.size // self.alignment) * self.alignment

    def placed(self) -> Iterator[tuple[TensorSpec, int]]:
        """Yield each tensor and the offset of its first byte in the file."""
        offset = len(self.header)
        for spec in self.specs:
            yield spec, offset
            offset += self.taken(spec)


def plan_shards(specs: Sequence[TensorSpec], shard_size: int) -> tuple[Shard, ...]:
    """Fill files of at most `shard_size` bytes of tensors in the order given.

    A larger tensor has a file to itself. Within a file wider dtypes come first, so that each tensor
    is aligned to its dtype; else the order stays. The same input gives the same bytes.
    """
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + spec.size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.size
    shards = []
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        ordered = tuple(sorted(group, key=lambda spec: -DTYPE_BITS[spec.dtype]))
        shards.append(Shard(name if len(groups) > 1 else SINGLE, ordered, _header(ordered)))
    return tuple(shards)


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for spec in specs:
        end = begin + spec.size
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


OnWritten = Callable[[TensorSpec, str], None]
"""Receives a tensor that is written, and the sha256 of its bytes, in hexadecimal."""

_LARGE = 64 * 1024 * 1024
"""The least bytes of a tensor that begins before the others, so that it doesn't end last."""
_FLUSHED = 16 * 1024 * 1024
"""Computed bytes that go to the disk together."""


def fill_shard(
    out: OutputFile,
    shard: Shard,
    payload_of: Callable[[TensorSpec], Payload],
    crew: Crew,
    on_written: OnWritten | None = None,
) -> None:
    """Write the header and all tensors of a shard; copied neighbours are copied as one stretch.

    One thread of the crew at a time calls `on_written`.
    """
    on_written = crew.exclusive(on_written) if on_written is not None else None
    out.write(shard.header, 0)
    copies, computed = [], []
    for spec, offset in shard.placed():
        payload = payload_of(spec)
        if isinstance(payload, ByteRange):
            _check_size(spec, payload.size, out.shown)
            copies.append((spec, payload, offset))
        else:
            computed.append((spec, payload, offset))
    if on_written is None:
        copying = [partial(out.copy, *each) for each in _joined(copies)]
    else:
        copying = [partial(_write, out, *each, on_written) for each in copies]
    computed.sort(key=lambda each: each[0].size < _LARGE)
    making = [partial(_write, out, *each, on_written) for each in computed]
    # One thread waits for the imports of arithmetic, while the others copy.
    crew.do([*making[:1], *copying, *making[1:]])


def _joined(copies: Iterable[tuple[TensorSpec, ByteRange, int]]) -> list[tuple[ByteRange, int]]:
    """Return the stretches and their offsets; neighbours in both files are joined."""
    joined: list[tuple[ByteRange, int]] = []
    for _, stretch, offset in copies:
        before, begin = joined[-1] if joined else (ByteRange(stretch.file, -1, 0), -1)
        expected = before.file, before.offset + before.size, begin + before.size
        if expected == (stretch.file, stretch.offset, offset):
            joined[-1] = replace(before, size=before.size + stretch.size), begin
        else:
            joined.append((stretch, offset))
    return joined


def _write(
    out: OutputFile,
    spec: TensorSpec,
    payload: Payload,
    offset: int,
    on_written: OnWritten | None,
) -> None:
    digest = hashlib.sha256()
    written = flushed = 0
    for chunk in blocks_of(payload):
        size = memoryview(chunk).nbytes
        if written + size > spec.size:
            written += size
            break
        if on_written is not None:
            digest.update(chunk)
        written += out.write(chunk, offset + written)
        if written - flushed >= _FLUSHED:
            out.start(offset + flushed, written - flushed)
            flushed = written
    _check_size(spec, written, out.shown)
    out.start(offset + flushed, written - flushed)
    if on_written is not None:
        on_written(spec, digest.hexdigest())


def _check_size(spec: TensorSpec, size: int, shown: Path) -> None:
    if size != spec.size:
        more = " or more" if size > spec.size else ""
        message = f"expected {spec.size} bytes for {quoted(spec.name)}, got {size}{more}"
        raise CheckpointError("C304", message, shown)


def digests_of(
    payloads: Mapping[TensorSpec, Payload],
    crew: Crew,
    progress: ByteProgress = lambda _: None,
) -> dict[str, str]:
    """Read or make each tensor's bytes, and return the sha256 by its name; nothing is written.

    Any thread of the crew calls `progress`.
    """
    digests: dict[str, str] = {}

    def take(spec: TensorSpec, payload: Payload) -> None:
        digest = hashlib.sha256()
        size = 0
        for chunk in blocks_of(payload):
            digest.update(chunk)
            size += (count := memoryview(chunk).nbytes)
            progress(count)
        _check_size(spec, size, Path(spec.name))
        digests[spec.name] = digest.hexdigest()

    crew.do([partial(take, *each) for each in payloads.items()])
    return digests
