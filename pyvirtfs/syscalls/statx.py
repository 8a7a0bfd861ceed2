"""Attributes: statx(2)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from pyvirtfs.syscalls._linux import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, fail, ffi, libc, no_nul

STATX_TYPE: Final = 0x001
STATX_MODE: Final = 0x002
STATX_NLINK: Final = 0x004
STATX_UID: Final = 0x008
STATX_GID: Final = 0x010
STATX_ATIME: Final = 0x020
STATX_MTIME: Final = 0x040
STATX_CTIME: Final = 0x080
STATX_INO: Final = 0x100
STATX_SIZE: Final = 0x200
STATX_BLOCKS: Final = 0x400
STATX_BASIC_STATS: Final = 0x7FF
"""All that stat(2) tells."""
STATX_BTIME: Final = 0x800
STATX_MNT_ID: Final = 0x1000
STATX_MNT_ID_UNIQUE: Final = 0x4000
"""The mount ID is never used again (Linux 6.8)."""

STATX_ATTR_MOUNT_ROOT: Final = 0x2000
"""In `Statx.attributes`: the object is the root of a mount."""

AT_NO_AUTOMOUNT: Final = 0x800
"""Do not mount what an automounter would mount here, as stat(2)."""

FIELDS: Final = (
    "nlink", "uid", "gid", "mode", "ino", "size", "blocks",
    "atime_sec", "atime_nsec", "btime_sec", "btime_nsec", "ctime_sec", "ctime_nsec", "mtime_sec", "mtime_nsec",
    "rdev_major", "rdev_minor", "dev_major", "dev_minor",
)  # fmt: skip
"""Names of what `attribute_reader` reads, in order, which is that of struct statx."""

STATX_NBYTES: Final = 256
FIELDS_OFFSET: Final = 16
FIELDS_STRUCT: Final = struct.Struct("=IIIH2xQQQ8xqI4xqI4xqI4xqI4xIIII")
"""The part of struct statx from `FIELDS_OFFSET` on that holds `FIELDS`."""

_HEAD: Final = struct.Struct("=IIQ").unpack_from
_ATTRIBUTES_MASK_OFFSET: Final = 56
_MNT_ID_OFFSET: Final = 144
_QUAD: Final = struct.Struct("=Q").unpack_from

_FLAGS: Final = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
_MASK: Final = STATX_BASIC_STATS | STATX_BTIME
_statx = libc.statx

AttributeReader: TypeAlias = Callable[..., tuple[int, ...]]
"""``read(fd)`` for the object of a descriptor, ``read(fd, name)`` for one in a folder."""


class Statx(NamedTuple):
    """What statx(2) tells, complete."""

    mask: int
    """STATX_* bits of what is valid."""
    blksize: int
    """Preferred block size for input and output, bytes."""
    attributes: int
    """STATX_ATTR_* bits that are set."""
    attributes_mask: int
    """STATX_ATTR_* bits that the file system supports."""
    mnt_id: int
    """As in /proc/self/mountinfo; 0 unless asked for by STATX_MNT_ID."""
    fields: tuple[int, ...]
    """The 19 values of `FIELDS`."""


def attribute_reader() -> AttributeReader:
    """Make a function that reads the attributes of one object after the other, in about 1.5 µs.

    ``read(fd)`` works on any descriptor, also O_PATH ones, of symbolic links too; ``read(fd, name)`` on a name in the
    folder `fd`, a symbolic link standing for itself. Both return the 19 values of `FIELDS` as a tuple, and raise
    OSError as statx(2). What a file system does not know (the birth time) is 0.

    The function owns a buffer: call it from one thread at a time.
    """
    buffer = ffi.new("char[]", STATX_NBYTES)
    view = memoryview(ffi.buffer(buffer))
    unpack = FIELDS_STRUCT.unpack_from
    call, flags, mask, offset = _statx, _FLAGS, _MASK, FIELDS_OFFSET

    def read(fd: int, name: bytes = b"") -> tuple[int, ...]:
        while call(fd, name, flags, mask, buffer):
            fail(name)
        return unpack(view, offset)

    return read


def buffer_reader(further: int = 0) -> tuple[Callable[..., None], memoryview]:
    """As `attribute_reader`, for those who want few of the fields, or their bytes.

    Args:
        further: STATX_* bits of what to find out besides.

    Returns:
        A function ``read(fd)`` or ``read(fd, name)``, and the `STATX_NBYTES` bytes that it fills with a struct statx.
        Either keeps the buffer alive.
    """
    buffer = ffi.new("char[]", STATX_NBYTES)
    view = memoryview(ffi.buffer(buffer))
    call, flags, mask = _statx, _FLAGS, _MASK | further

    def read(fd: int, name: bytes = b"") -> None:
        while call(fd, name, flags, mask, buffer):
            fail(name)

    return read, view


def statx(dirfd: int, path: bytes = b"", *, flags: int = _FLAGS, mask: int = _MASK | STATX_MNT_ID) -> Statx:
    """Find out all that the kernel tells of an object.

    Args:
        dirfd: A folder, or what an empty path stands for.
        path: Relative to it.
        flags: AT_* bits.
        mask: STATX_* bits of what to find out.

    Raises:
        OSError: As statx(2).
    """
    buffer = ffi.new("char[]", STATX_NBYTES)
    no_nul(path)
    while _statx(dirfd, path, flags, mask, buffer):
        fail(path)
    view = memoryview(ffi.buffer(buffer))
    valid, blksize, attributes = _HEAD(view)
    return Statx(
        valid,
        blksize,
        attributes,
        _QUAD(view, _ATTRIBUTES_MASK_OFFSET)[0],
        _QUAD(view, _MNT_ID_OFFSET)[0],
        FIELDS_STRUCT.unpack_from(view, FIELDS_OFFSET),
    )
