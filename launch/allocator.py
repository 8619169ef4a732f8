"""Keeps the C library from handing memory back between steps."""

import ctypes
import sys

# glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


def keep_memory() -> bool:
    """Lets freed memory be used again instead of returning it to the system.

    glibc maps every large block anew and unmaps it when freed, so the
    temporaries of a training step on a CPU are paged in, zeroed, at every
    step; where faults are dear (virtual machines) that can take longer than
    the step. The price: the process keeps its peak size. Same as
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1` in the environment. Call
    it before the first computation.

    Returns:
      Whether the C library understood; other than glibc does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
