"""Changing owner, mode and times, also of what an O_PATH descriptor refers to."""

from __future__ import annotations

import errno
import functools
import os
from typing import Final

from pyvirtfs.syscalls._linux import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, error, fail, ffi, libc, no_nul, system_call

KEEP_ID: Final = 0xFFFFFFFF
"""As a uid or gid: leave it alone."""

NOW: Final = -(1 << 63)
"""As a time in nanoseconds: the current time, which needs fewer rights than a given one (utimensat(2))."""

_UTIME_NOW: Final = (1 << 30) - 1
_UTIME_OMIT: Final = (1 << 30) - 2
_SECOND: Final = 1_000_000_000

_SYS_FCHMODAT2: Final = 452
_fchmodat2 = system_call("long (*)(long, int, const char *, unsigned int, unsigned int)")
_fchownat = libc.fchownat
_utimensat = libc.utimensat


def fchownat(dirfd: int, path: bytes, uid: int, gid: int, flags: int = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) -> None:
    """Change the owner of an object.

    The system call is fchownat(2), with AT_EMPTY_PATH unless told otherwise.

    Args:
        dirfd: A folder, or what an empty path stands for: any descriptor, also an O_PATH one.
        path: Relative to it, or empty.
        uid: 32 bits; `KEEP_ID` leaves it alone.
        gid: The same.
        flags: AT_* bits.

    Raises:
        OSError: As fchownat(2).
    """
    no_nul(path)
    while _fchownat(dirfd, path, uid, gid, flags):
        fail(path)


@functools.cache
def have_fchmodat2() -> bool:
    """Whether the kernel has fchmodat2(2), Linux 6.6, and no sandbox forbids it."""
    return _fchmodat2(_SYS_FCHMODAT2, -1, b"", 0, AT_EMPTY_PATH) < 0 and bool(ffi.errno == errno.EBADF)


def chmod_descriptor(fd: int, mode: int) -> None:
    """chmod(2) on the object of a descriptor, also of an O_PATH one, which fchmod(2) refuses.

    Args:
        fd: Any descriptor.
        mode: At most 07777.

    Raises:
        OSError: As chmod(2); EOPNOTSUPP for a symbolic link.
    """
    if not have_fchmodat2():
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
        return
    while _fchmodat2(_SYS_FCHMODAT2, fd, b"", mode, AT_EMPTY_PATH):
        fail()


def _timespec(nanoseconds: int | None) -> tuple[int, int]:
    if nanoseconds is None:
        return 0, _UTIME_OMIT
    if nanoseconds == NOW:
        return 0, _UTIME_NOW
    return divmod(nanoseconds, _SECOND)


def utimens_descriptor(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) on the object of a descriptor, also of an O_PATH one, which futimens(3) refuses.

    Args:
        fd: Any descriptor.
        atime_ns: Nanoseconds since the epoch, `NOW`, or None to leave it alone.
        mtime_ns: The same.

    Raises:
        OSError: As utimensat(2); EINVAL for a time that time_t cannot hold.
    """
    try:
        times = ffi.new("struct timespec[2]", [_timespec(atime_ns), _timespec(mtime_ns)])
    except OverflowError:
        raise error(errno.EINVAL) from None
    while _utimensat(fd, b"", times, AT_EMPTY_PATH):
        # Before Linux 5.8 only paths.
        if ffi.errno != errno.EINVAL or _utimensat(fd, b"/proc/self/fd/%d" % fd, times, 0):
            fail()
        else:
            return
