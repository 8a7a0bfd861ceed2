"""File systems: fstatfs(2) with what os.statvfs leaves out, and sync_file_range(2)."""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from pyvirtfs.syscalls._linux import error, fail, ffi, libc

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
"""Wait for what is being written already."""
SYNC_FILE_RANGE_WRITE: Final = 2
"""Start to write what is dirty."""
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4
"""Wait for that."""

_OFFSET_MAX: Final = (1 << 63) - 1
_STATFS_NBYTES: Final = 256  # 120 are used
_STATFS: Final = struct.Struct("=9Q")
_fstatfs = libc.fstatfs
_sync_file_range = libc.sync_file_range


class StatFs(NamedTuple):
    """What statfs(2) tells; block counts in units of `bsize`."""

    type: int
    """The file system's magic number."""
    bsize: int
    """Bytes."""
    blocks: int
    bfree: int
    bavail: int
    """Free for others than root."""
    files: int
    ffree: int
    fsid: int
    """64 bits, the first of the two words as the lower half; 0 for some file systems."""
    namelen: int


def fstatfs(fd: int) -> StatFs:
    """Tell of the file system that an object lives on; any descriptor will do, also an O_PATH one.

    Raises:
        OSError: As fstatfs(2).
    """
    buffer = ffi.new("char[]", _STATFS_NBYTES)
    while _fstatfs(fd, buffer):
        fail()
    return StatFs._make(_STATFS.unpack_from(ffi.buffer(buffer)))


def sync_file_range(fd: int, offset: int, nbytes: int, flags: int) -> None:
    """Have pages of a file written to disk, without its metadata.

    Args:
        fd: An open file.
        offset: First byte.
        nbytes: Length; 0: to the end of the file.
        flags: SYNC_FILE_RANGE_* bits.

    Raises:
        OSError: As sync_file_range(2); EINVAL also for a range that off_t cannot hold.
    """
    if offset > _OFFSET_MAX or nbytes > _OFFSET_MAX:
        raise error(errno.EINVAL)
    while _sync_file_range(fd, offset, nbytes, flags):
        fail()
