"""Extended attributes of what a descriptor refers to, also an O_PATH one (which fgetxattr(2) and its like refuse).

The object is reached as ``/proc/self/fd/N``; a symbolic link stands for itself, and has no ``user.`` attributes
(xattr(7)).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyvirtfs.syscalls._linux import error, fail, ffi, libc, no_nul

XATTR_LIST_MAX: Final = 65536
"""Bytes of the longest list of names."""

_USUAL_NBYTES: Final = 1024
_allocate = ffi.new_allocator(should_clear_after_alloc=False)
_listxattr = libc.listxattr


def get_xattr(fd: int, name: bytes) -> bytes:
    """Get the value of an attribute (getxattr(2)).

    Raises:
        OSError: As getxattr(2); ENODATA if there is no such attribute.
    """
    return os.getxattr(b"/proc/self/fd/%d" % fd, no_nul(name))


def set_xattr(fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set the value of an attribute (setxattr(2)).

    Args:
        fd: Any descriptor.
        name: With its namespace, as in ``user.x``.
        value: At most 65536 bytes.
        flags: os.XATTR_CREATE, os.XATTR_REPLACE, or 0.

    Raises:
        OSError: As setxattr(2).
    """
    os.setxattr(b"/proc/self/fd/%d" % fd, no_nul(name), value, flags)


def remove_xattr(fd: int, name: bytes) -> None:
    """Remove an attribute (removexattr(2)).

    Raises:
        OSError: As removexattr(2); ENODATA if there is no such attribute.
    """
    os.removexattr(b"/proc/self/fd/%d" % fd, no_nul(name))


def list_xattr(fd: int) -> bytes:
    """List the names (listxattr(2)), each followed by a NUL (os.listxattr decodes and splits them).

    Raises:
        OSError: As listxattr(2).
    """
    path = b"/proc/self/fd/%d" % fd
    for room in (_USUAL_NBYTES, XATTR_LIST_MAX):
        buffer = _allocate("char[]", room)
        while (nbytes := _listxattr(path, buffer, room)) < 0:
            if ffi.errno == errno.ERANGE:
                break
            fail(path)
        else:
            return bytes(ffi.buffer(buffer, nbytes))
    raise error(errno.E2BIG, path)
