"""An output that is written whole or not at all: `new_checkpoint` a folder, `new_output` either."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from gptailor.checkpoint.files import CheckpointError, escaped, expanded, open_regular, quoted
from gptailor.checkpoint.folder import INDEX, foreign_names
from gptailor.checkpoint.tensor import ByteRange, TensorSpec
from gptailor.checkpoint.write.output_file import (
    REPLACE,
    ByteProgress,
    OutputFile,
    Payload,
    writing,
)
from gptailor.checkpoint.write.side_folder import SideFolder, TargetExists, remove_stale
from gptailor.checkpoint.write.tensors import Crew, OnWritten, Shard, fill_shard
from gptailor.plan.faults import first_names


@contextmanager
def new_checkpoint(  # noqa: PLR0913 (the contents and the way of writing: all are needed)
    target: Path,
    shards: Sequence[Shard],
    payload_of: Callable[[TensorSpec], Payload],
    *,
    force: bool = False,
    progress: ByteProgress = lambda _: None,
    protected: Iterable[Path] = (),
    threads: int | None = None,
    on_written: OnWritten | None = None,
) -> Iterator[Path]:
    """Write shards and their index into a new folder, and yield it; then it becomes the target.

    Everything grows in a side folder and is on the disk before that is renamed to `target`. After
    an exception, an interrupt or the loss of the process the target is unchanged. More files are
    written into the yielded folder by `write_files`.

    `progress` receives the number of bytes written. `protected` are the files that the output is
    made from: a target that is one of them, lies in one or holds one is refused. `force` replaces
    an existing folder. `payload_of` is called, and its result consumed, by `threads` threads, by
    default one for each core; `progress` and `on_written` by one of them at a time. `on_written`
    receives the sha256 of each tensor, taken while it is written.
    """
    target, crew = located(target), Crew(threads)
    count_bytes = crew.exclusive(progress)
    with new_output(target, force=force, protected=protected) as new:
        for shard in shards:
            with OutputFile(new / shard.name, target / shard.name, shard.size, count_bytes) as out:
                fill_shard(out, shard, payload_of, crew, on_written)
        write_files(new, target, _index(shards), progress)
        yield new


@contextmanager
def new_output(
    target: Path,
    magic: bytes = b"",
    *,
    force: bool,
    protected: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yield a new folder, or a path to write a file to, which then becomes the target.

    It does so all or nothing. A file begins with `magic`, and `force` replaces one that does.
    `protected` are paths that the target must not lie in, hold or be.
    """
    target, protected = located(target), list(protected)
    check = partial(check_target, target, force=force, protected=protected, magic=magic)
    remove_stale(target)
    check()
    with _parents(target.parent), SideFolder(target, single=bool(magic)) as side:
        yield side.new
        if magic:
            with writing(target), side.new.open("rb") as written:
                os.fsync(written.fileno())
        check()
        side.swap(force=force)


def located(target: Path) -> Path:
    """Return the target as an absolute path without links in its parents."""
    try:
        if target.name in {"", ".."}:
            return target.resolve()
        return target.parent.resolve() / target.name
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links
        raise CheckpointError("C302", f"can't make a folder here: {error}", target) from error


def check_target(
    target: Path, *, force: bool, protected: Iterable[Path] = (), magic: bytes = b""
) -> None:
    """Refuse a target that can't be written, or that isn't safe to replace.

    It is a folder, or a file that begins with `magic`.
    """
    target = located(target)
    if target.is_symlink():
        raise CheckpointError("C302", "is a link; name the folder that it points to", target)
    for source in protected:
        _check_apart(target, source)
    if not os.path.lexists(target):
        _check_parent(target)
        return
    if magic:
        _check_file(target, magic, force=force)
    else:
        _check_folder(target, force=force)


def _check_parent(target: Path) -> None:
    """Refuse a target if its missing folders can't be made."""
    parent = next(place for place in target.parents if os.path.lexists(place))
    if not parent.is_dir():
        raise CheckpointError("C302", "is a file, expected a folder", parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        read_only = os.statvfs(parent).f_flag & os.ST_RDONLY
        why = os.strerror(errno.EROFS if read_only else errno.EACCES)
        help_ = "name a folder that you may write to"
        raise CheckpointError("C303", f"cannot be written: {why}", target, help_)


def _check_folder(target: Path, *, force: bool) -> None:
    if not target.is_dir():
        raise CheckpointError("C302", "is a file, expected a folder", target)
    if target.is_mount():
        message = "is a mount point, which can't be replaced; name a folder in it"
        raise CheckpointError("C302", message, target)
    with writing(target):
        if not any(target.iterdir()):
            return
    _refuse(target, kept_because(target), force=force)


def _check_file(target: Path, magic: bytes, *, force: bool) -> None:
    if target.is_dir():
        raise CheckpointError("C302", "is a folder, expected a file", target)
    if not target.is_file():
        raise CheckpointError(
            "C302", "is not a regular file, so gptailor doesn't replace it", target
        )
    with open_regular(target) as file:
        may_go = file.read(len(magic)) in {magic, b""}  # nothing is lost with an empty file
    message = f"expected a file that begins with {magic.decode()!r}, got another"
    error = CheckpointError("C302", message, target, "remove it, or name another file")
    _refuse(target, None if may_go else error, force=force)


def _refuse(target: Path, kept: CheckpointError | None, *, force: bool) -> None:
    """Refuse an existing target without `force`, and a target that must stay."""
    if not force:
        raise TargetExists(target, kept=kept)
    if kept is not None:
        raise kept


def free_space(target: Path) -> int:
    """Return the free bytes at the target: in the nearest parent that exists."""
    target = located(target)
    with writing(target):
        place = next(place for place in (target, *target.parents) if place.is_dir())
        usage = shutil.disk_usage(place)
    return usage.free if usage.total else sys.maxsize  # 0 of 0: a file system that doesn't tell


def _check_apart(target: Path, source: Path) -> None:
    """Refuse a target that is, holds or lies within a source, links followed or not."""
    for place in (Path(os.path.abspath(source)), Path(os.path.realpath(source))):  # noqa: PTH100 (resolve() follows links)
        same = place == target
        with suppress(OSError):  # one folder by other names: a bind mount, letters' case
            same = same or place.samefile(target)
        if same:
            raise CheckpointError("C302", "the output is also a source of the plan", target)
        if target.is_relative_to(place):
            raise CheckpointError("C302", f"is inside the source {quoted(str(source))}", target)
        if place.is_relative_to(target):
            raise CheckpointError("C302", f"contains the source {quoted(str(source))}", target)


_OF_A_MODEL = ("config.json", "adapter_config.json")
"""Files; the folder of a model, or of an adapter, has one of them."""


def kept_because(folder: Path) -> CheckpointError | None:
    """Return the error about a folder that must not be replaced; None if it may be.

    The current folder, a home, a repository, a folder without a model and one with other files must
    stay.
    """
    places = {"the current folder": Path.cwd(), "your home folder": expanded("~")}
    held = [name for name, place in places.items() if place.is_relative_to(folder)]
    if held:
        got, help_ = f"a folder that contains {held[0]}", "name another folder"
    elif (folder / ".git").exists():
        got, help_ = "a git repository", "name another folder"
    elif not any((folder / name).exists() for name in _OF_A_MODEL):
        got, help_ = "a folder without a model", "remove it, or name another folder"
    elif others := first_names([*map(escaped, foreign_names(folder))]):
        got = f"a folder that also contains {others}"
        help_ = f"move {others} to another folder; then {REPLACE}"
    else:
        return None
    return CheckpointError("C302", f"expected a model to replace, got {got}", folder, help_)


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make missing folders; after an exception remove them again."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in missing:
            with suppress(OSError):  # somebody else uses it by now
                place.rmdir()
        raise


def write_files(
    new: Path,
    target: Path,
    files: Mapping[str, bytes | Path],
    progress: ByteProgress = lambda _: None,
) -> None:
    """Write files into the new folder of a target: bytes, or copies, by their path within it."""
    target = located(target)
    for name, content in files.items():
        path, shown = new / name, target / name
        with writing(shown):
            path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            with OutputFile(path, shown, len(content), progress) as out:
                out.write(content, 0)
            continue
        with open_regular(content) as file:
            size = os.fstat(file.fileno()).st_size
        with OutputFile(path, shown, size, progress) as out:
            out.copy(ByteRange(content, 0, size), 0)


def _index(shards: Sequence[Shard]) -> dict[str, bytes]:
    """Return the index file, if there are several shards."""
    if len(shards) < 2:
        return {}
    specs = [spec for shard in shards for spec in shard.specs]
    sums = {
        "total_parameters": sum(s.elements for s in specs),
        "total_size": sum(s.size for s in specs),
    }
    mapped = {spec.name: shard.name for shard in shards for spec in shard.specs}
    index = {"metadata": sums, "weight_map": mapped}
    return {INDEX: json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"}
