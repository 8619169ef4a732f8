"""Keeps the C library from handing memory back between steps."""

import ctypes
import sys

# glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_memory() -> bool:
    """Lets freed memory be used again instead of returning it to the system.

    glibc maps every large block anew and unmaps it when freed, so the
    temporaries of a training step on a CPU are paged in, zeroed, at every
    step; where faults are dear (virtual machines) that can take longer than
    the step. Neither setting holds for the heaps that threads other than the
    first one allocate from, JAX's among them, so all share one heap. The
    price: the process keeps its peak size. Same as `MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=-1 MALLOC_ARENA_MAX=1` in the environment. Call it
    before the first computation.

    Returns:
      Whether the C library understood; other than glibc does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())
