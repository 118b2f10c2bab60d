"""The folder beside a target in which an output grows, until both change names: `SideFolder`.

It holds a locked file while its process lives, so that other runs recognise a dead one's folder.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.write.output_file import REPLACE, libc, writing

_LOCK, _NEW, _OLD = ".lock", "new", "old"
_ATTEMPTS = 16

_HERE = -100  # AT_FDCWD: paths are relative to the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE


@final
class SideFolder:
    """A context after which, in any case, the folder is gone and the target is whole.

    The output that grows in it is a folder, or, if `single`, a file.
    """

    def __init__(self, target: Path, *, single: bool = False) -> None:
        self.target = target
        self.single = single
        self.path = _name(target)
        self._lock: int | None = None

    @property
    def new(self) -> Path:
        """Return the path of the output until it is the target."""
        return self.path / _NEW

    def __enter__(self) -> "SideFolder":
        try:
            with writing(self.target):
                self._lock = self._create()
                if not self.single:
                    self.new.mkdir()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            _discard(self.path, self.target)
        except (KeyboardInterrupt, SystemExit):
            _discard(self.path, self.target)
            raise
        finally:
            _release(self.path, self._lock)

    def _create(self) -> int:
        """Make the folder, and return the descriptor that holds its lock.

        Until the lock is held another run may take the folder for dead and remove it; then the next
        attempt has another name.
        """
        for _ in range(_ATTEMPTS):
            self.path = _name(self.target)
            self.path.mkdir()
            lock = self.path / _LOCK
            with suppress(FileNotFoundError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._lock = fd = os.open(lock, flags, 0o666)
                if _claim(fd) and lock.exists():
                    return fd
                self._lock = None
                os.close(fd)
        message = "can't make a temporary folder"
        raise CheckpointError("C303", message, self.target)

    def swap(self, *, force: bool) -> None:
        """Make the new output the target; an old one takes its place here if `force` is set."""
        for root, _, _ in os.walk(self.new):
            with writing(Path(root)):
                _sync_folder(Path(root))
        with writing(self.target):
            if self.single:
                self._name_file(force=force)
            elif not (force and exchange_names(self.new, self.target)):
                self._rename(force=force)
        with suppress(OSError):  # the output is there and whole, only its name may be lost
            _sync_folder(self.target.parent)

    def _rename(self, *, force: bool) -> None:
        if force and os.path.lexists(self.target):
            self.target.rename(self.path / _OLD)
        try:
            self.new.rename(self.target)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise TargetExists(self.target) from error
            raise

    def _name_file(self, *, force: bool) -> None:
        """Give a file its name, in the place of another only if `force` is set.

        A plain rename would take the name from a file that appeared a moment ago. On a file system
        without hard links, the file is renamed once the name was seen to be free.
        """
        if force:
            self.new.replace(self.target)
            return
        try:
            self.target.hardlink_to(self.new)
        except FileExistsError:
            raise TargetExists(self.target) from None
        except OSError:
            if os.path.lexists(self.target):
                raise TargetExists(self.target) from None
            self.new.rename(self.target)


_REMEDY = (
    f"{REPLACE}; without it gptailor updates only an output of the same plan in the same place"
)


@final
class TargetExists(CheckpointError):  # noqa: N818 (the name states a fact)
    """An existing file or folder where the output is to go.

    `changed` names files in it that changed since gptailor wrote it. `kept` is the error that
    `force` would raise; its remedy is then the remedy.
    """

    def __init__(
        self, target: Path, changed: str = "", kept: CheckpointError | None = None
    ) -> None:
        message = f"was changed since gptailor wrote it: {changed}" if changed else "exists already"
        super().__init__("C301", message, target, _REMEDY if kept is None else kept.help)
        self.args = target, changed, kept  # as pickle hands them over


def remove_stale(target: Path) -> tuple[Path, ...]:
    """Remove remains of dead runs beside a target, never a live run's; return their paths.

    A run that died between its two renames has the old target put back.
    """
    pattern = re.compile(re.escape(f".{target.name}.partial-") + r"\d+-[0-9a-z]+")
    try:
        paths = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # the parent is missing or can't be listed: the write reports it
        return ()
    return tuple(path for path in sorted(paths) if _remove_dead(path, target))


def _remove_dead(path: Path, target: Path) -> bool:
    """Remove a side folder if its process is dead; return whether it is gone."""
    if path.is_symlink():
        return False
    lock = _lock_of_dead(path)
    if lock is None:
        with suppress(OSError):  # without a lock only an empty one is dead for sure
            path.rmdir()
    else:
        try:
            _discard(path, target)
        finally:
            _release(path, lock)
    return not os.path.lexists(path)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, if the file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(fd)


def exchange_names(first_path: Path, other_path: Path) -> bool:
    """Exchange two paths; return False, without a change, if the system can't.

    Linux can (`renameat2`), on local file systems; NFS has no such call.
    """
    path = (ctypes.c_int, ctypes.c_char_p)
    renameat2 = libc("renameat2", *path, *path, ctypes.c_uint)
    arguments = _HERE, os.fsencode(first_path), _HERE, os.fsencode(other_path)
    return renameat2 is not None and not renameat2(*arguments, _EXCHANGE)


def _name(target: Path) -> Path:
    """Return a new path for a side folder."""
    return target.parent / f".{target.name}.partial-{os.getpid()}-{secrets.token_hex(8)}"


def _claim(fd: int) -> bool:
    """Lock a descriptor, and return whether it worked.

    A file system without locks counts as locked, since nothing is taken for dead there.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _lock_of_dead(path: Path) -> int | None:
    """Return the lock of a dead process's side folder, now held by this process, or None."""
    with suppress(OSError):
        fd = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        os.close(fd)
    return None


def _discard(path: Path, target: Path) -> None:
    """Undo a swap that wasn't finished, then remove the folder, its lock last."""
    new, old = path / _NEW, path / _OLD
    if old.exists() and new.exists():
        try:
            old.rename(target)
        except OSError as error:
            message = f"can't be restored; its old content is in {quoted(str(old), whole=True)}"
            raise CheckpointError("C303", message, target) from error
    for part in (new, old):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    with suppress(OSError):  # the next run tries again to remove the remains
        if not new.exists() and not old.exists():
            (path / _LOCK).unlink(missing_ok=True)
            path.rmdir()


def _release(path: Path, lock: int | None) -> None:
    """Release the lock, and remove the folder.

    NFS keeps a file that is removed while it is open, under another name, until it is closed.
    """
    if lock is not None:
        os.close(lock)
        with suppress(OSError):  # gone already, or not empty
            path.rmdir()
