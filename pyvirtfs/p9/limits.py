"""What one client may use of the host's memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from pyvirtfs.errors import ConfigError

MSIZE_LIMIT: Final = (1024 - 2) * 4096
"""The largest msize of a virtio transport in QEMU: an indirect table of 1024 descriptors, two of them for headers."""


CLIENT_ID_MAX: Final = 1024
"""The longest client_id of a lock, in bytes. It is kept with every range, so `Limits.locks` bounds memory only with it.

Linux sends its nodename, of at most 64 bytes.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps for one session (one mount, usually), so that one guest cannot exhaust the host.

    Raises:
        ConfigError: A limit is less than 1.
    """

    fids: int = 131072
    """Fids; ENFILE beyond. Each may pin a descriptor or an open file of the driver."""
    xattr_bytes: int = 16 << 20
    """Bytes of extended attributes being read or written, and of their names; ENOMEM beyond."""
    locks: int = 16384
    """Byte ranges locked; ENOLCK beyond. Each may keep `CLIENT_ID_MAX` bytes of its owner's name.

    It bounds time as well: a Tlock looks at every owner of locks on its file, and a Tclunk gives all of its back.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(field.name, f"{value} is less than 1")
