"""The C library, and how a failed call becomes an `OSError`."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.syscalls import _libc

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform != "linux" or sys.maxsize < 1 << 62:
    raise ImportError("pyvirtfs needs a 64-bit Linux")

ffi: Any = _libc.ffi
"""cffi, with the types of `pyvirtfs.syscalls._declarations`."""

libc: Any = ffi.dlopen(None)
"""The C library (cffi, ABI mode). A call releases the GIL and keeps errno for `fail`."""

AT_FDCWD: Final = -100
"""As a folder descriptor: the working directory (openat(2))."""
AT_SYMLINK_NOFOLLOW: Final = 0x100
"""A symbolic link at the end of the path stands for itself."""
AT_EMPTY_PATH: Final = 0x1000
"""An empty path stands for the descriptor itself, whatever it is."""


def error(code: int, path: bytes | None = None) -> OSError:
    """Make the exception for an errno."""
    return OSError(code, os.strerror(code), path)


def fail(path: bytes | None = None) -> None:
    """Raise OSError for the errno of the last call, but return if a signal interrupted it (PEP 475: try again)."""
    code = ffi.errno
    if code != errno.EINTR:
        raise error(code, path)


def no_nul(path: bytes) -> bytes:
    """The path itself; OSError (EINVAL) if C would see only its beginning."""
    if b"\0" in path:
        raise error(errno.EINVAL, path)
    return path


def system_call(signature: str) -> Callable[..., int]:
    """syscall(2) with the right types; ``long (*)(long, ...)`` is wrong for cffi, as it would not know how to convert.

    Args:
        signature: A C function pointer type; its first argument is the number of the system call.
    """
    function: Callable[..., int] = ffi.cast(signature, ffi.addressof(libc, "syscall"))
    return function
