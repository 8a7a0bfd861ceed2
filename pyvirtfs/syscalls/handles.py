"""File handles: what names an object for longer than a descriptor does (name_to_handle_at(2))."""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from pyvirtfs.syscalls._linux import AT_EMPTY_PATH, error, fail, ffi, libc, no_nul

MAX_HANDLE_SZ: Final = 128
"""Bytes of the longest file handle."""

_name_to_handle_at = libc.name_to_handle_at
_open_by_handle_at = libc.open_by_handle_at


class FileHandle(NamedTuple):
    """Names an object within its file system, until it is removed; hashable."""

    type: int
    """What the bytes mean, for the file system to know."""
    data: bytes
    """At most `MAX_HANDLE_SZ` bytes."""


def name_to_handle_at(dirfd: int, path: bytes = b"", flags: int = AT_EMPTY_PATH) -> tuple[FileHandle, int]:
    """Make the handle of an object.

    Args:
        dirfd: A folder, or what an empty path stands for: any descriptor, also an O_PATH one.
        path: Relative to it, or empty; a symbolic link at its end stands for itself.
        flags: AT_* bits.

    Returns:
        The handle and the ID of its mount, as in /proc/self/mountinfo.

    Raises:
        OSError: As name_to_handle_at(2); EOPNOTSUPP if the file system has no handles.
    """
    handle = ffi.new("struct file_handle *")
    handle.handle_bytes = MAX_HANDLE_SZ
    mount_id = ffi.new("int *")
    no_nul(path)
    while _name_to_handle_at(dirfd, path, handle, mount_id, flags):
        fail(path)
    return FileHandle(handle.handle_type, ffi.buffer(handle.f_handle, handle.handle_bytes)[:]), mount_id[0]


def open_by_handle_at(mount_fd: int, handle: FileHandle, flags: int) -> int:
    """Open the object of a handle; needs CAP_DAC_READ_SEARCH.

    Args:
        mount_fd: Any object of the mount, opened without O_PATH.
        handle: What `name_to_handle_at` returned.
        flags: os.O_*; a symbolic link needs O_PATH.

    Returns:
        A new descriptor, close-on-exec, which the caller closes.

    Raises:
        OSError: As open_by_handle_at(2); ESTALE if the object is gone, EPERM without the capability, EINVAL for what
            is no handle.
    """
    nbytes = len(handle.data)
    if not nbytes <= MAX_HANDLE_SZ:
        raise error(errno.EINVAL)
    argument = ffi.new("struct file_handle *")
    argument.handle_bytes = nbytes
    argument.handle_type = handle.type
    ffi.memmove(argument.f_handle, handle.data, nbytes)
    while (fd := _open_by_handle_at(mount_fd, argument, flags | os.O_CLOEXEC)) < 0:
        fail()
    return int(fd)
