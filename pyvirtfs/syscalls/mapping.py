"""Memory of a file, shared with whoever else maps it: mmap(2) that keeps no descriptor.

Python's own mmap does without one from 3.13 on; before, each mapping costs the process a descriptor.
"""

from __future__ import annotations

import functools
import mmap
import os
from typing import Final

from pyvirtfs.syscalls._linux import fail, ffi, libc
from pyvirtfs.syscalls.filesystem import fstatfs

_FAILED: Final = ffi.cast("uintptr_t", -1)
_NULL: Final = ffi.NULL
_HUGETLBFS_MAGIC: Final = 0x958458F6


def map_shared(fd: int, nbytes: int, offset: int = 0, *, writable: bool = True) -> memoryview:
    """Map a part of a file (MAP_SHARED). It is unmapped when nobody holds the view, or one of its, any more.

    Args:
        fd: Of the file; it may be closed afterwards.
        nbytes: How much.
        offset: Where in the file, a multiple of the page size, which is that of small pages also on huge ones.
        writable: Map for writing too.

    Returns:
        One dimension, format ``B``.

    Raises:
        OSError: As mmap(2).
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    page = os.fstat(fd).st_blksize if is_on_huge_pages(fd) else mmap.PAGESIZE
    skipped = offset % page if page > mmap.PAGESIZE else 0
    whole = -(-(skipped + nbytes) // page) * page
    while _is_failed(begin := libc.mmap(_NULL, whole, protection, mmap.MAP_SHARED, fd, offset - skipped)):
        fail()
    held = ffi.gc(begin, functools.partial(_unmap, whole), whole)
    view = memoryview(ffi.buffer(held, whole)).cast("B")[skipped : skipped + nbytes]
    return view if writable else view.toreadonly()


def is_on_huge_pages(fd: int) -> bool:
    """Whether a file is made of huge pages: mmap(2) takes such a file only in whole ones. OSError as fstatfs(2)."""
    return fstatfs(fd).type == _HUGETLBFS_MAGIC


def _is_failed(begin: object) -> bool:
    return bool(ffi.cast("uintptr_t", begin) == _FAILED)


def _unmap(nbytes: int, begin: object) -> None:
    libc.munmap(begin, nbytes)
