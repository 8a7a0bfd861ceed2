"""Names: linkat(2) of a descriptor, renameat2(2)."""

from __future__ import annotations

import errno
from typing import Final

from pyvirtfs.syscalls._linux import AT_EMPTY_PATH, AT_FDCWD, fail, ffi, libc, no_nul

RENAME_NOREPLACE: Final = 1
"""EEXIST if the new name exists."""
RENAME_EXCHANGE: Final = 2
"""Both names must exist, and change places."""
RENAME_WHITEOUT: Final = 4
"""Leave a whiteout behind, for overlay file systems."""

_AT_SYMLINK_FOLLOW: Final = 0x400
_linkat = libc.linkat
_renameat2 = libc.renameat2


def link_descriptor(fd: int, dirfd: int, name: bytes) -> None:
    """Give the object of a descriptor another name (linkat(2)); a symbolic link stands for itself.

    Args:
        fd: Any descriptor, not of a folder; also an O_PATH one.
        dirfd: The folder of the new name.
        name: The new name.

    Raises:
        OSError: As linkat(2); ENOENT also if the object has no name any more.
    """
    no_nul(name)
    while _linkat(fd, b"", dirfd, name, AT_EMPTY_PATH):
        # ENOENT also says that AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH, which the path in /proc does not.
        path = b"/proc/self/fd/%d" % fd
        if ffi.errno != errno.ENOENT or _linkat(AT_FDCWD, path, dirfd, name, _AT_SYMLINK_FOLLOW):
            fail(name)
        else:
            return


def renameat2(old_dirfd: int, old_name: bytes, new_dirfd: int, new_name: bytes, flags: int = 0) -> None:
    """Rename, or exchange two names.

    Args:
        old_dirfd: Folder of the old name.
        old_name: Relative to it.
        new_dirfd: Folder of the new name.
        new_name: Relative to it.
        flags: RENAME_* bits.

    Raises:
        OSError: As renameat2(2).
    """
    no_nul(old_name)
    no_nul(new_name)
    while _renameat2(old_dirfd, old_name, new_dirfd, new_name, flags):
        fail(old_name)
