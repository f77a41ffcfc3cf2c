"""Ask glibc to keep freed memory for the next tile.

By its own rule the C library gives large freed arrays back to the system, and every layer of a network, every tile and
every band maps its pages anew (`docs/memory.md` has what that costs). Memory of a tile is needed again by the next one.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform

log = logging.getLogger(__name__)

KEPT_BYTES = 1 << 28
"""At most so much freed memory is kept at the end of the heap; single arrays up to this size come from the heap."""
ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_ARENA_MAX": "1",
}
"""The same for processes that are yet to start: Dask's workers, whose own setting gives memory back at once."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Set once, for this process; whoever sets `MALLOC_…` or `GLIBC_TUNABLES` in the environment knows better.

    Threads share the heap (one arena), because the heaps of others are too small for a tile and are given back whole.

    Returns:
        Whether anything was set: not with another C library, nor against the environment.
    """
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if platform.libc_ver()[0] != "glibc" or chosen:
        log.debug("the allocator stays as it is (%s)", ", ".join(chosen) or platform.libc_ver()[0] or "not glibc")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = [mallopt(_TRIM_THRESHOLD, KEPT_BYTES), mallopt(_MMAP_THRESHOLD, KEPT_BYTES), mallopt(_ARENA_MAX, 1)]
    if not all(kept):
        log.debug("glibc refused a setting of its allocator: %s", kept)
    return any(kept)
