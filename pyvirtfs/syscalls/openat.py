"""Opening: openat2(2), which confines how a path is resolved, and descriptors as paths."""

from __future__ import annotations

import errno
import functools
import os
from typing import Any, Final

from pyvirtfs.syscalls._linux import error, fail, ffi, no_nul, system_call

RESOLVE_NO_XDEV: Final = 0x01
"""Cross no mount point."""
RESOLVE_NO_MAGICLINKS: Final = 0x02
"""Follow no magic link, such as those of /proc/self/fd."""
RESOLVE_NO_SYMLINKS: Final = 0x04
"""Follow no symbolic link at all; ELOOP instead."""
RESOLVE_BENEATH: Final = 0x08
"""Never leave the tree below the folder; EXDEV instead."""
RESOLVE_IN_ROOT: Final = 0x10
"""Treat the folder as the root, as if after chroot(2)."""
RESOLVE_CACHED: Final = 0x20
"""Only if that needs no input or output; EAGAIN instead (Linux 5.12)."""

_SYS_OPENAT2: Final = 437  # of every architecture but alpha, as for all system calls from 424 on
_openat2 = system_call("long (*)(long, int, const char *, const struct open_how *, size_t)")
_HOW_NBYTES: Final = ffi.sizeof("struct open_how")
_RETRIES: Final = 128


@functools.lru_cache(maxsize=64)
def _how(flags: int, mode: int, resolve: int) -> Any:
    """A struct open_how; the call only reads it."""
    return ffi.new("struct open_how *", (flags, mode, resolve))


def openat2(dirfd: int, path: bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open a path, confined as told (Linux 5.6).

    The descriptor is close-on-exec, as all of Python's are.

    Args:
        dirfd: The folder that the path starts from.
        path: Relative to it.
        flags: os.O_*; an unknown or contradictory one is EINVAL here, unlike with open(2).
        mode: For a file to be created: its permission bits, 0 otherwise.
        resolve: RESOLVE_* bits.

    Returns:
        A new descriptor, which the caller closes.

    Raises:
        OSError: As openat2(2). EAGAIN (a rename elsewhere kept the kernel from proving that the path stays beneath) is
            only raised if it persists.
    """
    how = _how(flags | os.O_CLOEXEC, mode, resolve)
    no_nul(path)
    for _ in range(_RETRIES):
        fd = _openat2(_SYS_OPENAT2, dirfd, path, how, _HOW_NBYTES)
        if fd >= 0:
            return fd
        if ffi.errno != errno.EAGAIN or resolve & RESOLVE_CACHED:
            fail(path)
    raise error(errno.EAGAIN, path)


def descriptor_path(fd: int) -> bytes:
    """A path for whatever a descriptor refers to, for calls that take no `O_PATH` descriptor (proc_pid_fd(5)).

    The last step of this path is followed even if the object is a symbolic link, which then stands for itself.
    """
    return b"/proc/self/fd/%d" % fd


def reopen(fd: int, flags: int) -> int:
    """Open the object of an O_PATH descriptor.

    Opening a fifo may block, opening a device may do anything: check the type first, nobody can change it afterwards.

    Args:
        fd: Any descriptor, not of a symbolic link (ELOOP).
        flags: os.O_*, without O_CREAT; O_NOFOLLOW would stop at the link in /proc, and is left out.

    Returns:
        A new descriptor with a file position of its own, close-on-exec.

    Raises:
        OSError: As open(2).
    """
    return os.open(b"/proc/self/fd/%d" % fd, flags & ~os.O_NOFOLLOW)
