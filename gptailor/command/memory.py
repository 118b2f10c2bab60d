"""Memory of this process kept for its next use: `keep_memory`."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**28
LARGEST_KEPT = 2**25


def keep_memory() -> None:
    """Have the C library give no memory back that arithmetic takes again a moment later.

    Chunks come and go by the thousand; that each were new pages would cost as much as the
    arithmetic. Where the C library has no such setting nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
