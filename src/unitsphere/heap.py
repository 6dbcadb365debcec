"""Freed memory: kept for the next step, where the C library would give it back to the system, or given back where the C
library would keep it.

glibc returns blocks of 32 MiB and more as soon as they are free, and smaller ones when they lie at the heap's end, and
each of their pages costs a fault and is cleared when it is asked for again. The gradient of a table of embeddings is
such a block, in every step; what a layer makes for 1,024 tokens are such blocks, in every pass.

Manual: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html.
"""

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of mallopt's parameters
MOST = 2**30  # bytes of a block that is kept


def keep_freed() -> None:
    """From now on free blocks of up to 1 GiB stay with this process, for its next ones.

    Nothing happens without glibc, or where its MALLOC_… variables already say what to do.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.keys() & {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}:
        return
    c = ctypes.CDLL(None)
    c.mallopt(MMAP_THRESHOLD, MOST)
    c.mallopt(TRIM_THRESHOLD, 2 * MOST - 1)


def give_back() -> None:
    """Return the pages of all free blocks to the system, also of those between blocks that are in use, which are too
    small for what is asked for next. Nothing happens without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
