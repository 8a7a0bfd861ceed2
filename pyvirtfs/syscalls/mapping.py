"""Memory of a file, shared with whoever else maps it: mmap(2) that keeps no descriptor.

Python's own mmap does without one from 3.13 on; before, each mapping costs the process a descriptor.
"""

from __future__ import annotations

import functools
import mmap
from typing import Final

from pyvirtfs.syscalls._linux import fail, ffi, libc

_FAILED: Final = (1 << 64) - 1
_NULL: Final = ffi.NULL


def map_shared(fd: int, nbytes: int, offset: int = 0, *, writable: bool = True) -> memoryview:
    """Map a part of a file (MAP_SHARED). It is unmapped when nobody holds the view, or one of its, any more.

    Args:
        fd: Of the file; it may be closed afterwards.
        nbytes: How much.
        offset: Where in the file, a multiple of the page size.
        writable: Map for writing too.

    Returns:
        One dimension, format ``B``.

    Raises:
        OSError: As mmap(2).
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    while (
        int(ffi.cast("uintptr_t", begin := libc.mmap(_NULL, nbytes, protection, mmap.MAP_SHARED, fd, offset)))
        == _FAILED
    ):
        fail()
    held = ffi.gc(begin, functools.partial(_unmap, nbytes), nbytes)
    view = memoryview(ffi.buffer(held, nbytes)).cast("B")
    return view if writable else view.toreadonly()


def _unmap(nbytes: int, begin: object) -> None:
    libc.munmap(begin, nbytes)
