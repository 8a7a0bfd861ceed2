"""Open file description locks: byte-range locks of a descriptor, not of the process (fcntl(2), F_OFD_SETLK)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from pyvirtfs.syscalls._linux import error

_FLOCK: Final = struct.Struct("@hhqqi0q")  # l_type, l_whence, l_start, l_len, l_pid, padding
_OFFSET_END: Final = 1 << 63


class HeldLock(NamedTuple):
    """A lock that stands in the way."""

    exclusive: bool
    start: int
    """Its first byte."""
    end: int | None
    """The first byte behind it; None: to the end of the file, however far that grows."""
    pid: int
    """The process, if it is a traditional lock of this PID namespace; -1 for one that belongs to a descriptor."""


def _flock(kind: int, start: int, end: int | None) -> bytes:
    if end is not None and end <= start:
        raise error(errno.EINVAL)
    if start < 0:
        raise error(errno.EINVAL)
    if start >= _OFFSET_END or (end is not None and end > _OFFSET_END):
        raise error(errno.EOVERFLOW)
    # No length stands for the end of the file, and so does the last byte that a file can have.
    length = 0 if end is None or end == _OFFSET_END else end - start
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def try_lock(fd: int, start: int, end: int | None, *, exclusive: bool) -> bool:
    """Take a lock, or change what the descriptor holds there, without waiting.

    Args:
        fd: Open for writing if exclusive, for reading if shared (EBADF); not O_PATH.
        start: First byte.
        end: First byte behind the range; None: to the end of the file, however far that grows.
        exclusive: A write lock, not a read lock.

    Returns:
        False if somebody else holds a conflicting lock.

    Raises:
        OSError: As fcntl(2); EINVAL for an empty range, EOVERFLOW for one that off_t cannot hold.
    """
    lock = _flock(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, start, end)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as problem:
        if problem.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def unlock(fd: int, start: int, end: int | None) -> None:
    """Release a range; what is not held there is no error.

    Raises:
        OSError: As `try_lock`.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, start, end))


def find_lock(fd: int, start: int, end: int | None, *, exclusive: bool) -> HeldLock | None:
    """The first lock of somebody else that would keep `try_lock` from its range, or None.

    Raises:
        OSError: As `try_lock`.
    """
    lock = _flock(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, start, end)
    kind, _, held_start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock))
    if kind == fcntl.F_UNLCK:
        return None
    return HeldLock(kind == fcntl.F_WRLCK, held_start, held_start + length if length else None, pid)
