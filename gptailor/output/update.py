"""Compiling into an output that gptailor wrote before: equal tensors are copied, not computed.

After each compile the user's cache has a record of the folder or GGUF file: the instruction of each
tensor and its place in a file, and size and time of all files. The next compile of the same plan's
file into the output reads it, so no weights are read to find out what is equal. A GGUF file is
replaced as a whole.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, final

from pydantic import TypeAdapter, ValidationError

import gptailor
from gptailor.checkpoint.files import CheckpointError, Stamp, cache_folder, stamp, stamps
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.digest import TensorDigest
from gptailor.checkpoint.write.kept import keep_json, kept_json
from gptailor.checkpoint.write.output_file import Payload
from gptailor.checkpoint.write.side_folder import TargetExists
from gptailor.checkpoint.write.tensors import Reused
from gptailor.lang.words import range_words
from gptailor.output.lock import LOCK_FILE
from gptailor.plan.faults import listed
from gptailor.prepare import Prepared
from gptailor.program.program import Combine, Copy, Output, stored_tensors

_MOST_NAMED = 3
"""Changed files that a message names."""

Change = Literal["~", "+", "−"]
Entries = Mapping[str, tuple[int, int, int]]
"""Size and times of writing and change of each file by its path; a link or a folder has -1, 0, 0.

Somebody changed a file if its size or its time of writing is another. Its bytes are reused only if
its time of change is the same too: copies and backups change that one, and so does damage.
"""


@final
@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """A tensor of a written folder: the digest of its instruction, its part, its bytes' place.

    `position` is the position in the plan of its layer; `part`
    names the layer, or is the tensor's name outside of layers. `name` is the name within the part.
    `sha256` is the digest of its bytes in the folder's lock, if there is one.
    """

    made: str
    position: int | None
    part: str
    name: str
    file: str
    offset: int
    size: int
    sha256: str | None = None


@final
@dataclass(frozen=True)
class WrittenFolder:
    """The record of an output: its plan, its tensors, and each entry by its path in the folder.

    The entry of a GGUF file has its name.
    """

    plan: str | None
    tensors: tuple[WrittenTensor, ...]
    files: Entries


_RECORD = TypeAdapter(WrittenFolder)


@final
@dataclass(frozen=True)
class Update:
    """The difference between a folder and the plan that will replace its content.

    `changes` has the changed parts: `("~", "L3..L5")` is other than before, `+` is new, `−` is
    gone. `reused` are the places in the folder of computed tensors that are copied from it,
    `sha256` their digests in its lock, and `stamps` their files, which must not change meanwhile.
    `computed` and `copied` are the output's bytes that are computed, and that are copied. `files`
    are all that the folder has. `locked` is whether it has a lock. A `whole` output is one file,
    which is written anew whatever changed.
    """

    changes: tuple[tuple[Change, str], ...]
    reused: Mapping[str, ByteRange]
    sha256: Mapping[str, str]
    computed: int
    copied: int
    stamps: Mapping[Path, Stamp]
    files: Entries
    locked: bool
    whole: bool = False

    def reusing(
        self, payload_of: Callable[[TensorSpec], Payload]
    ) -> Callable[[TensorSpec], Payload | Reused]:
        """Return the function to each tensor's bytes, with those of equal tensors in the folder."""

        def reused(spec: TensorSpec) -> Payload | Reused:
            if (old := self.reused.get(spec.name)) is None:
                return payload_of(spec)
            sha256 = self.sha256.get(spec.name)
            return old if sha256 is None else Reused(old, sha256, partial(payload_of, spec))

        return reused

    def refuse_changed(self, output: Path) -> None:
        """Raise TargetExists (C301) if somebody changed the output that is to be replaced."""
        if output.exists() and (changed := _changed(self.files, entries_of(output))):
            raise TargetExists(output, changed)


def planned_update(prepared: Prepared, folder: Path) -> Update | None:
    """Return the difference between a plan and an output that gptailor wrote from the same plan.

    None for an output without a record, and for one that another plan's file made. Raises
    TargetExists (C301) for files that changed since then. No tensor of a GGUF file is reused.
    """
    written, file = _record_of(folder), _plan_file(prepared)
    if written is None or file is None or written.plan != file or not folder.exists():
        return None
    now = entries_of(folder)
    if changed := _changed(written.files, now):
        raise TargetExists(folder, changed)
    intact = {name for name, entry in now.items() if entry == written.files[name]}
    made = {tensor.made: tensor for tensor in written.tensors if tensor.file in intact}
    planned = _planned(prepared, {})
    reused: dict[str, ByteRange] = {}
    sha256: dict[str, str] = {}
    for output, tensor in zip(prepared.compiled.program.outputs, planned, strict=True):
        old = made.get(tensor.made)
        if isinstance(output.make, Combine) and old is not None:
            reused[output.spec.name] = ByteRange(folder / old.file, old.offset, old.size)
            if old.sha256 is not None:
                sha256[output.spec.name] = old.sha256
    computed = sum(
        output.spec.size
        for output in prepared.compiled.program.outputs
        if not isinstance(output.make, Copy) and output.spec.name not in reused
    )
    copied = prepared.compiled.program.size - computed
    return Update(
        tuple(_changes(written.tensors, planned)),
        reused,
        sha256,
        computed,
        copied,
        stamps({place.file for place in reused.values()}),
        now,
        (folder / LOCK_FILE).is_file(),
    )


def _plan_file(prepared: Prepared) -> str | None:
    """Return the file that the plan was read from; None for standard input and for Python's."""
    origin = prepared.plan.origin
    if origin is None or origin.source.name.startswith("<"):
        return None
    return os.path.realpath(origin.folder / Path(origin.source.name).name)


def changed_since_written(folder: Path) -> str:
    """Return the files that somebody changed since gptailor wrote the folder, in words.

    The result is empty if no file changed, or if there is no record of the folder.
    """
    written = _record_of(folder)
    return "" if written is None else _changed(written.files, entries_of(folder))


def _changed(before: Entries, now: Entries) -> str:
    """Return the names of entries whose size or time of writing differs, in words."""
    changed = sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name, ())[:2] != now.get(name, ())[:2]
    )
    return first_names(changed)


def first_names(names: Sequence[str]) -> str:
    """Return the first names in words, with the number of the others; empty for no names."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return listed(names[:_MOST_NAMED]) + more if names else ""


def record_written(
    prepared: Prepared, folder: Path, entries: Entries, digests: Mapping[str, TensorDigest]
) -> None:
    """Record an output that was just written, with its entries; without a cache, nothing.

    `digests` are those of its tensors in its lock.
    """
    if (path := _record_path(folder)) is None:
        return
    record = WrittenFolder(_plan_file(prepared), tuple(_planned(prepared, digests)), entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep_json(path, _RECORD.dump_python(record, mode="json"))
    except (CheckpointError, OSError):  # the next compile needs --force
        with suppress(OSError):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- the record


def _record_path(folder: Path) -> Path | None:
    if (home := cache_folder()) is None:
        return None
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return home / "outputs" / f"{name}.json"


def _record_of(folder: Path) -> WrittenFolder | None:
    path = _record_path(folder)
    if path is None or not path.exists():
        return None
    with suppress(ValidationError):
        return _RECORD.validate_python(kept_json(path))
    return None


def entries_of(folder: Path) -> Entries:
    """Return the entry of each file in a folder by its path in it, and of links and folders.

    A file that is no folder has one entry, by its name.
    """
    is_folder = folder.is_dir()
    found: dict[str, tuple[int, int, int]] = {}
    for path in folder.rglob("*") if is_folder else [folder]:
        with suppress(FileNotFoundError):  # removed a moment ago
            about = path.lstat()
            name = path.relative_to(folder if is_folder else folder.parent).as_posix()
            found[name] = stamp(about)[2:] if stat.S_ISREG(about.st_mode) else (-1, 0, 0)
    return found


def _planned(prepared: Prepared, digests: Mapping[str, TensorDigest]) -> list[WrittenTensor]:
    """Return the tensors that the plan writes, in the program's order."""
    places = {
        spec.name: (shard.name, offset)
        for shard in prepared.shards
        for spec, offset in shard.placed()
    }
    found, fits = [], _fits_digest(prepared)
    for output in prepared.compiled.program.outputs:
        position, part = None, output.spec.name
        if (number := output.place.layer) is not None:
            slot = prepared.resolved.kept[number]
            position = slot.position if slot.run == 0 else None
            part = f"layer {number}" if slot.position is None else f"L{slot.position}"
            part += f" in run {slot.run + 1}" if slot.run else ""
        made = _instruction_digest(output, prepared.stamps, fits)
        name = output.place.name or output.spec.name
        place = places[output.spec.name]
        digest = digests.get(output.spec.name)
        sha256 = None if digest is None else digest.sha256
        found.append(WrittenTensor(made, position, part, name, *place, output.spec.size, sha256))
    return found


def _fits_digest(prepared: Prepared) -> str:
    """Return a digest of all that bridges and healing depend on; empty for a plan without them."""
    outputs = prepared.compiled.program.outputs
    if all(isinstance(output.make, Copy | Combine) for output in outputs):
        return ""
    read = [*prepared.stamps.items(), *stamps(prepared.texts.values()).items()]
    return _digest([repr(output.make) for output in outputs], sorted(map(repr, read)))


def _digest(*parts: object) -> str:
    text = repr((gptailor.__version__, *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _instruction_digest(output: Output, stamped: Mapping[Path, Stamp], fits: str) -> str:
    """Return a digest of all that decides a tensor's bytes.

    The files that it reads count by their stamps. A fitted tensor also depends on `fits`.
    """
    make = output.make
    what = repr(make.source if isinstance(make, Copy) else make)
    fits = "" if isinstance(make, Copy | Combine) else fits
    files = sorted({tensor.file for tensor in stored_tensors([output])})
    stamped_files = [(str(file), stamped.get(file)) for file in files]
    return _digest(output.spec.dtype, output.spec.shape, what, stamped_files, fits)


# --------------------------------------------------------------------------------- the difference


def _changes(
    before: Iterable[WrittenTensor], after: Iterable[WrittenTensor]
) -> Iterator[tuple[Change, str]]:
    """Yield the parts that differ: layers by ranges of positions, then all else by name."""
    old, new = _contents(before), _contents(after)
    found: dict[Change, list[_Part]] = {"~": [], "+": [], "−": []}
    for part, content in new.items():
        if part not in old:
            found["+"].append(part)
        elif old[part] != content:
            found["~"].append(part)
    found["−"] = [part for part in old if part not in new]
    for change, parts in found.items():
        if positions := sorted(p for p, _ in parts if p is not None):
            yield change, range_words(positions)
    for change, parts in found.items():
        yield from ((change, name) for position, name in parts if position is None)


_Part = tuple[int | None, str]
"""The position and the name of a layer, or None and the name of a tensor outside of layers."""


def _contents(tensors: Iterable[WrittenTensor]) -> dict[_Part, dict[str, str]]:
    """Return the instructions' digests of each part by the tensors' names in it."""
    found: dict[_Part, dict[str, str]] = {}
    for tensor in tensors:
        found.setdefault((tensor.position, tensor.part), {})[tensor.name] = tensor.made
    return found
