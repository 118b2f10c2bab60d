"""What the kernel does for a big file when it is asked: room in advance, writing out at once.

Both are wishes. Where the system or the file system has no such call nothing happens, and the
bytes get there all the same.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start to write these pages, wait for nothing
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def reserve(fd: int, size: int) -> None:
    """Make a new file `size` bytes long, its blocks allocated; OSError if the disk lacks them.

    Python's `posix_fallocate` won't do: where a file system can't allocate, as NFS, the C library
    writes into each block instead.
    """
    fallocate = _call("fallocate")
    if size and fallocate is not None and fallocate(fd, 0, 0, size):
        code = ctypes.get_errno()
        if code in _FULL:
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def start_writing(fd: int, offset: int, size: int) -> None:
    """Have a stretch go to the disk while the next one is made: the last sync is short, then."""
    sync = _call("sync_file_range")
    if sync is not None:
        sync(fd, offset, size, _WRITE)


@cache
def _call(name: str) -> Callable[..., int] | None:
    """A function of the C library that takes a descriptor, 64-bit numbers and says 0; or None."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):  # another system, a libc that lacks it
        return None
    if name == "fallocate":
        function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    else:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    function.restype = ctypes.c_int
    made: Callable[..., int] = function
    return made
