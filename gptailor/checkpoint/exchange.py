"""Two folders take each other's name in one step, so that neither name is ever missing."""

import ctypes
import os
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are relative to the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE


def exchange_names(one: Path, other: Path) -> bool:
    """Exchange two paths; False, and nothing done, where the system or file system can't.

    Linux can (`renameat2`), on local file systems; NFS has no such call.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system, a libc that lacks it
        return False
    renameat2.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]
    return not renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
