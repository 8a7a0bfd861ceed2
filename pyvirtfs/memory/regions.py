"""A region: one contiguous piece of RAM at a guest-physical address."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from pyvirtfs.errors import ConfigError
from pyvirtfs.syscalls import map_shared

if TYPE_CHECKING:
    from typing_extensions import Buffer

ADDRESS_LIMIT: Final = 1 << 64
"""One past the last guest-physical address."""

ALIGNMENT: Final = 8
"""What guest addresses and host pointers of a region are multiples of, so that a ring index is one aligned access."""

_MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Python names it from 3.13 on; the value is that of x86 and arm64."""


class Region:
    """One contiguous piece of RAM, shared with whoever else holds it.

    The memory lives for as long as anybody holds the region, its array, or a view of either; taking a region out of a
    `GuestMemory` never leaves a pointer into unmapped memory behind.

    Args:
        array: The RAM, any shape and dtype; C-contiguous. It is not copied.
        address: Guest-physical address of its first byte.
        readonly: Accept an array that cannot be written.

    Raises:
        ConfigError: The array cannot serve as RAM, or does not fit at that address.
    """

    __slots__ = ("address", "array", "end", "host", "nbytes", "readonly", "u16", "u32", "u64", "view")

    def __init__(self, array: npt.NDArray[Any] | Buffer, address: int = 0, *, readonly: bool = False) -> None:
        try:
            given = memoryview(cast("Buffer", array))
        except (TypeError, ValueError, BufferError):
            raise ConfigError("memory", f"{type(array).__name__} has no bytes to share") from None
        if not given.c_contiguous:
            raise ConfigError("memory", "the array is not C-contiguous")
        if given.readonly and not readonly:
            raise ConfigError("memory", "the array is read-only")
        if given.nbytes == 0:
            raise ConfigError("memory", "the array is empty")
        self.array: npt.NDArray[np.uint8] = np.frombuffer(cast("memoryview", array), np.uint8)
        """uint8, shape (nbytes,)."""
        self.view: memoryview = memoryview(cast("Buffer", self.array))
        """The same bytes, format ``B``."""
        self.address: int = address
        """Guest-physical address of the first byte."""
        self.nbytes: int = given.nbytes
        """Length in bytes."""
        self.end: int = address + given.nbytes
        """Guest-physical address of the first byte behind the region."""
        self.host: int = self.array.ctypes.data
        """Address of the first byte in this process."""
        self.readonly: bool = given.readonly
        """The guest may not have devices write here."""
        if address < 0 or self.end > ADDRESS_LIMIT:
            raise ConfigError("memory", f"{self.nbytes} bytes do not fit at guest address {address:#x}")
        if address % ALIGNMENT or self.host % ALIGNMENT:
            raise ConfigError(
                "memory",
                f"guest address {address:#x} at host address {self.host:#x}: both must be multiples of {ALIGNMENT}",
            )
        whole = self.view[: given.nbytes - given.nbytes % ALIGNMENT]
        self.u16: memoryview = whole.cast("H")
        """The whole words of it as native 16-bit integers; an item is loaded and stored in one piece."""
        self.u32: memoryview = whole.cast("I")
        """The whole words of it as native 32-bit integers."""
        self.u64: memoryview = whole.cast("Q")
        """The whole words of it as native 64-bit integers."""

    def load(self, start: int, nbytes: int) -> bytes:
        """Copy bytes out; the range is not checked."""
        return self.view[start : start + nbytes].tobytes()

    def store(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in; neither the range nor whether it may be written is checked."""
        self.view[start : start + len(data)] = data

    def __repr__(self) -> str:
        kind = " readonly" if self.readonly else ""
        return f"<Region {self.address:#x}..{self.end - 1:#x}{kind}>"


def map_anonymous(nbytes: int) -> mmap.mmap:
    """Map zeroed private memory that takes up no room before it is touched.

    Raises:
        ConfigError: No such size.
    """
    if nbytes <= 0 or nbytes > sys.maxsize:
        raise ConfigError("memory", f"cannot have {nbytes} bytes of RAM")
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


def map_descriptor(fd: int, nbytes: int, offset: int = 0, *, writable: bool = True) -> memoryview:
    """Map part of a file, usually a memfd that another process shares (mmap(2) with MAP_SHARED).

    The file must not shrink afterwards: touching what it lost ends the process with SIGBUS. Where the other side is not
    trusted, ask it for F_SEAL_SHRINK (`pyvirtfs.syscalls.memfd`).

    Args:
        fd: Descriptor of a regular file (memfd, hugetlbfs, tmpfs, disk); it may be closed afterwards.
        nbytes: How much.
        offset: Where in the file, in bytes, a multiple of the page size.
        writable: Map for writing too.

    Raises:
        ConfigError: The range does not lie within the file, or starts between two pages.
        OSError: fstat(2) or mmap(2) failed.
    """
    if offset < 0 or offset % mmap.ALLOCATIONGRANULARITY:
        raise ConfigError("memory", f"file offset {offset:#x} is not a multiple of {mmap.ALLOCATIONGRANULARITY}")
    if nbytes <= 0:
        raise ConfigError("memory", f"cannot have {nbytes} bytes of RAM")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("memory", f"descriptor {fd} is not a regular file or memfd")
    if offset + nbytes > status.st_size:
        raise ConfigError("memory", f"{nbytes} bytes at offset {offset:#x} exceed the file, which has {status.st_size}")
    return map_shared(fd, nbytes, offset, writable=writable)
