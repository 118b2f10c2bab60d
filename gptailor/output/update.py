"""Compiling into an output that gptailor wrote before.

One rule: an output is replaced if gptailor wrote it, it is unchanged since then, and its plan has
the same file. Merged tensors with the same instruction and the same inputs are copied from it. Any
other output is refused (C301); `force` replaces it.

After each compile the user's cache has a record of the folder or GGUF file: the digest of each
tensor's instruction and inputs, its place in a file, and size and times of all files. So no weights
are read to find equal tensors. A GGUF file is replaced as a whole.
"""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, final

from pydantic import TypeAdapter, ValidationError

import gptailor
from gptailor.checkpoint.cache_folder import keep_result, kept_home, kept_json
from gptailor.checkpoint.files import stamp, stamps
from gptailor.checkpoint.write.side_folder import TargetExists
from gptailor.checkpoint.write.writer import kept_because
from gptailor.lang.words import range_words
from gptailor.output.lock import LOCK_FILE
from gptailor.plan.faults import first_names
from gptailor.prepare import Prepared
from gptailor.program.program import Combine, Copy, Output, stored_tensors

Change = Literal["~", "+", "−"]
Entries = Mapping[str, tuple[int, int, int]]
"""Size and times of writing and change of each file by its path; a link or a folder has -1, 0, 0.

A program may set the time of writing, but not the time of change. Copies, backups that add links,
and damage change it.
"""


@final
@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """A tensor of a written folder: the digest of its instruction and inputs, its bytes' place.

    `part` is the position in the plan of its layer, a name of a layer without one, or the tensor's
    name outside of layers. `sha256` is the digest of its bytes in the folder's lock, if there is
    one.
    """

    made: str
    part: int | str
    file: str
    offset: int
    size: int
    sha256: str | None


@final
@dataclass(frozen=True)
class WrittenFolder:
    """The record of an output: its plan, its tensors, and each entry by its path in the folder.

    The entry of a GGUF file has its name. `before` is the record of the output that this one
    replaces: the record is made first.
    """

    plan: str | None
    tensors: tuple[WrittenTensor, ...]
    files: Entries
    before: "WrittenFolder | None" = None


_RECORD = TypeAdapter(WrittenFolder)


@final
@dataclass(frozen=True)
class Update:
    """The difference between an output and the plan that will replace it.

    `changes` has the changed parts: `("~", "L3..L5")` is other than before, `+` is new, `−` is
    gone. `reused` are the tensors of the old output that are copied, by their new names. `computed`
    and `copied` are the output's bytes that are computed, and that are copied. `files` are all that
    the old output has. `locked` is whether it has a lock. A `whole` output is one file, which is
    written anew whatever changed.
    """

    changes: tuple[tuple[Change, str], ...]
    reused: Mapping[str, WrittenTensor]
    computed: int
    copied: int
    files: Entries
    locked: bool
    whole: bool = False

    def refuse_changed(self, output: Path) -> None:
        """Raise TargetExists (C301) if somebody changed the output that is to be replaced."""
        if changed := changed_entries(self.files, output):
            kept = kept_because(output) if output.is_dir() else None
            raise TargetExists(output, changed, kept)


def planned_update(prepared: Prepared, folder: Path) -> Update | None:
    """Return the difference between a plan and an output that gptailor wrote from the same plan.

    None for an output without a record, and for one that another plan's file made. Raises
    TargetExists (C301) for files that changed since then. No tensor of a GGUF file is reused.
    """
    written, file = written_record(folder), _plan_file(prepared)
    if written is None or file is None or written.plan != file or not folder.exists():
        return None
    planned = _planned(prepared, {})
    old = {tensor.made: tensor for tensor in written.tensors}
    program = prepared.compiled.program
    reused = {
        output.spec.name: old[tensor.made]
        for output, tensor in zip(program.outputs, planned, strict=True)
        if isinstance(output.make, Combine) and tensor.made in old
    }
    computed = sum(
        output.spec.size
        for output in program.outputs
        if not isinstance(output.make, Copy) and output.spec.name not in reused
    )
    changes, locked = tuple(_changes(written.tensors, planned)), LOCK_FILE in written.files
    copied = program.size - computed
    update = Update(changes, reused, computed, copied, written.files, locked)
    update.refuse_changed(folder)
    return update


def _plan_file(prepared: Prepared) -> str | None:
    """Return the file that the plan was read from; None for standard input and for Python's."""
    origin = prepared.plan.origin
    if origin is None or origin.source.name.startswith("<"):
        return None
    return os.path.realpath(origin.folder / Path(origin.source.name).name)


def changed_entries(before: Entries, output: Path) -> str:
    """Return the names of the output's entries that aren't as before, in words."""
    return first_names(sorted({name for name, _ in before.items() ^ _entries_of(output).items()}))


def record_written(prepared: Prepared, folder: Path, new: Path, digests: Mapping[str, str]) -> None:
    """Record an output that takes, or took, the folder's place; without a cache, nothing.

    `digests` are the sha256 of its tensors in its lock. If the process ends before the exchange,
    the record of the old output is still there.
    """
    old = written_record(folder)
    before = None if old is None else replace(old, before=None)
    tensors = tuple(_planned(prepared, digests))
    record = WrittenFolder(_plan_file(prepared), tensors, _entries_of(new), before)
    keep_result(_record_path(folder), _RECORD.dump_python(record, mode="json"))


# ------------------------------------------------------------------------------------- the record


def _record_path(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return kept_home() / "outputs" / f"{name}.json"


def written_record(folder: Path) -> WrittenFolder | None:
    """Return the record of an output: the old one's, if the process ended before the exchange."""
    record = None
    with suppress(ValidationError):
        record = _RECORD.validate_python(kept_json(_record_path(folder)))
    if record is not None and record.before is not None:
        return record.before if record.before.files == _entries_of(folder) else record
    return record


def _entries_of(folder: Path) -> Entries:
    """Return the entry of each file in a folder by its path in it, and of links and folders.

    A file that isn't a folder has one entry, by its name.
    """
    is_folder = folder.is_dir()
    found: dict[str, tuple[int, int, int]] = {}
    for path in folder.rglob("*") if is_folder else [folder]:
        with suppress(FileNotFoundError):  # removed a moment ago
            about = path.lstat()
            name = path.relative_to(folder if is_folder else folder.parent).as_posix()
            found[name] = stamp(about)[2:] if stat.S_ISREG(about.st_mode) else (-1, 0, 0)
    return found


def _planned(prepared: Prepared, digests: Mapping[str, str]) -> list[WrittenTensor]:
    """Return the tensors that the plan writes, in the program's order.

    The files that a tensor is made from count by their stamps. A fitted tensor depends on the whole
    program, and on all files and texts.
    """
    places = {
        spec.name: (shard.name, offset)
        for shard in prepared.shards
        for spec, offset in shard.placed()
    }
    outputs = prepared.compiled.program.outputs
    made = [
        repr(output.make.source if isinstance(output.make, Copy) else output.make)
        for output in outputs
    ]
    texts = stamps(prepared.texts.values())
    whole = _digest(made, sorted([*prepared.stamps.items(), *texts.items()]))
    found = []
    for output, instruction in zip(outputs, made, strict=True):
        spec, part = output.spec, _part(prepared, output)
        files = sorted({tensor.file for tensor in stored_tensors([output])})
        stamped = [(file, prepared.stamps.get(file)) for file in files]
        fits = "" if isinstance(output.make, Copy | Combine) else whole
        digest = _digest(spec.dtype, spec.shape, instruction, stamped, fits)
        place = places[spec.name]
        found.append(WrittenTensor(digest, part, *place, spec.size, digests.get(spec.name)))
    return found


def _part(prepared: Prepared, output: Output) -> int | str:
    if (number := output.place.layer) is None:
        return output.spec.name
    slot = prepared.resolved.kept[number]
    if slot.position is None:
        return f"layer {number}"
    return f"L{slot.position} in run {slot.run + 1}" if slot.run else slot.position


def _digest(*parts: object) -> str:
    text = repr((gptailor.__version__, *parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --------------------------------------------------------------------------------- the difference


def _changes(
    before: Iterable[WrittenTensor], after: Iterable[WrittenTensor]
) -> Iterator[tuple[Change, str]]:
    """Yield the parts that differ: layers by ranges of positions, all else by name."""
    old, new = _contents(before), _contents(after)
    changed: Mapping[Change, list[int | str]] = {
        "~": [part for part in new if part in old and old[part] != new[part]],
        "+": [part for part in new if part not in old],
        "−": [part for part in old if part not in new],
    }
    for change, parts in changed.items():
        if positions := sorted(part for part in parts if isinstance(part, int)):
            yield change, range_words(positions)
        yield from ((change, part) for part in parts if isinstance(part, str))


def _contents(tensors: Iterable[WrittenTensor]) -> Mapping[int | str, list[str]]:
    """Return the digests of each part's tensors, in file order."""
    found = defaultdict(list)
    for tensor in tensors:
        found[tensor.part].append(tensor.made)
    return found
