"""The ids in a POSIX access control list, as Linux keeps it in an extended attribute (linux/posix_acl_xattr.h).

A header of 4 bytes (version 2), then 8 bytes for each entry: tag, permissions, id; all little-endian. Only entries of
named users and of named groups have an id that means something.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

ACL_NAMES: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
"""The attributes that hold such a list."""

_VERSION: Final = b"\2\0\0\0"
_ENTRY: Final = struct.Struct("<HHI")
_USER: Final = 0x02
_GROUP: Final = 0x08


def translate(value: bytes, users: Callable[[int], int], groups: Callable[[int], int]) -> bytes:
    """The same list with other ids.

    Args:
        value: The attribute. One that is no list is returned as it is: setxattr(2) has the last word on it.
        users: What becomes of the id of a named user.
        groups: What becomes of the id of a named group.

    Raises:
        OSError: As `users` and `groups`.
    """
    if value[:4] != _VERSION or (len(value) - 4) % _ENTRY.size:
        return value
    parts = [_VERSION]
    for tag, permissions, number in _ENTRY.iter_unpack(memoryview(value)[4:]):
        if tag == _USER:
            number = users(number)  # noqa: PLW2901  # of the same entry
        elif tag == _GROUP:
            number = groups(number)  # noqa: PLW2901  # the same
        parts.append(_ENTRY.pack(tag, permissions, number))
    return b"".join(parts)
