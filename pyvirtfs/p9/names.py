"""What is a name: the checks that all messages share.

A name is one component of a path. Whatever passes here goes to the host as it is, so nothing that means more than one
entry of one folder may pass (Plan 9 manual, intro(5); the errno values are QEMU's).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

XATTR_NAME_MAX: Final = 255
"""Bytes in the name of an extended attribute (xattr(7))."""

# As integers: bytes take a search for bytes for a mistake first, and it costs five times as much.
_SLASH: Final = 0x2F
_NUL: Final = 0


def check_names(names: Iterable[bytes]) -> None:
    """Check names that are only looked up.

    Raises:
        OSError: ENOENT for an empty name and one that holds a slash or a NUL. Names too long for the host are the
            host's to refuse (ENAMETOOLONG).
    """
    for name in names:
        if not name or _SLASH in name or _NUL in name:
            raise OSError(errno.ENOENT, f"{name[:64]!r} is no name")


def check_new_name(name: bytes) -> None:
    """Check the name of something to be created.

    Raises:
        OSError: As `check_names`; EEXIST for ``.`` and ``..``, which every folder has.
    """
    check_names((name,))
    if name in {b".", b".."}:
        raise OSError(errno.EEXIST, f"{name!r} exists in every folder")


def check_moved_name(name: bytes) -> None:
    """Check the old or the new name of something to be renamed.

    Raises:
        OSError: As `check_names`; EISDIR for ``.`` and ``..``.
    """
    check_names((name,))
    if name in {b".", b".."}:
        raise OSError(errno.EISDIR, f"{name!r} cannot be renamed")


def check_removed_name(name: bytes) -> None:
    """Check the name of something to be removed.

    Raises:
        OSError: As `check_names`; EINVAL for ``.`` and ENOTEMPTY for ``..``, as unlinkat(2) answers.
    """
    check_names((name,))
    if name == b".":
        raise OSError(errno.EINVAL, "'.' cannot be removed")
    if name == b"..":
        raise OSError(errno.ENOTEMPTY, "'..' cannot be removed")


def check_xattr_name(name: bytes) -> None:
    """Check the name of an extended attribute.

    Raises:
        OSError: ERANGE for an empty name and one longer than 255 bytes, as setxattr(2) answers; EINVAL for a NUL.
    """
    if not 0 < len(name) <= XATTR_NAME_MAX:
        raise OSError(errno.ERANGE, f"an attribute's name of {len(name)} bytes")
    if _NUL in name:
        raise OSError(errno.EINVAL, "an attribute's name with a NUL")
