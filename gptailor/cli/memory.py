"""Freed memory of the process, kept for the next arrays: new pages would cost time."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**28
_LARGEST_KEPT = 2**25


def keep_memory() -> None:
    """Make the C library keep freed memory for the next chunks.

    There are thousands of chunks; new pages for each would cost as much as the arithmetic. A C
    library without this setting is left unchanged.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
