"""Open flags: from 9P2000.L to this host and back, bit by bit.

On the wire they have the values of Linux on x86. O_DIRECT, O_LARGEFILE, O_DIRECTORY and O_NOFOLLOW have others on other
processors, so nothing is ever passed through, and bits that 9P2000.L does not name go no further.
"""

from __future__ import annotations

import os
from typing import Final

from pyvirtfs.p9 import constants as c

_HOST_BITS: Final = (
    (c.DOTL_EXCL, os.O_EXCL),
    (c.DOTL_TRUNC, os.O_TRUNC),
    (c.DOTL_APPEND, os.O_APPEND),
    (c.DOTL_NONBLOCK, os.O_NONBLOCK),
    (c.DOTL_DSYNC, os.O_DSYNC),
    (c.DOTL_DIRECTORY, os.O_DIRECTORY),
    (c.DOTL_NOFOLLOW, os.O_NOFOLLOW),
    (c.DOTL_NOATIME, os.O_NOATIME),
    (c.DOTL_SYNC, os.O_SYNC),
)
"""What means the same on the server. Left out: CREATE, which is a message of its own here, NOCTTY and FASYNC, which
concern the client's process, CLOEXEC and LARGEFILE, which the server decides for its own descriptors, and DIRECT, whose
alignment rules guest buffers cannot be held to."""

_CLIENT_BITS: Final = (
    *((dotl, host) for dotl, host in _HOST_BITS if dotl != c.DOTL_SYNC),
    (c.DOTL_SYNC | c.DOTL_DSYNC, os.O_SYNC),
    (c.DOTL_CREATE, os.O_CREAT),
    (c.DOTL_NOCTTY, os.O_NOCTTY),
    (c.DOTL_FASYNC, getattr(os, "O_ASYNC", 0)),
    (c.DOTL_DIRECT, getattr(os, "O_DIRECT", 0)),
    (c.DOTL_CLOEXEC, os.O_CLOEXEC),
)

FLAG_NAMES: Final = (
    (c.DOTL_CREATE, "O_CREAT"),
    (c.DOTL_EXCL, "O_EXCL"),
    (c.DOTL_NOCTTY, "O_NOCTTY"),
    (c.DOTL_TRUNC, "O_TRUNC"),
    (c.DOTL_APPEND, "O_APPEND"),
    (c.DOTL_NONBLOCK, "O_NONBLOCK"),
    (c.DOTL_SYNC | c.DOTL_DSYNC, "O_SYNC"),
    (c.DOTL_DSYNC, "O_DSYNC"),
    (c.DOTL_FASYNC, "O_ASYNC"),
    (c.DOTL_DIRECT, "O_DIRECT"),
    (c.DOTL_LARGEFILE, "O_LARGEFILE"),
    (c.DOTL_DIRECTORY, "O_DIRECTORY"),
    (c.DOTL_NOFOLLOW, "O_NOFOLLOW"),
    (c.DOTL_NOATIME, "O_NOATIME"),
    (c.DOTL_CLOEXEC, "O_CLOEXEC"),
)
"""Bits and their names in open(2); O_SYNC stands before the O_DSYNC that it contains."""

_ACCESS_NAMES: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_NOACCESS")

WRITE_FLAGS: Final = c.DOTL_WRONLY | c.DOTL_RDWR | c.DOTL_APPEND | c.DOTL_TRUNC
"""Any of these: the file is to be changed, which a read-only export refuses."""


def to_host(flags: int) -> int:
    """The os.O_* flags with which the server opens for a Tlopen or Tlcreate.

    Args:
        flags: From the wire; any 32 bits.

    Returns:
        The access mode and those bits that mean something on the server: EXCL, TRUNC, APPEND, NONBLOCK, DSYNC, SYNC,
        DIRECTORY, NOFOLLOW, NOATIME. Never O_CREAT, O_DIRECT, O_NOCTTY, O_ASYNC. What the host's own safety needs
        (O_CLOEXEC, O_NOCTTY, O_NOFOLLOW) is for whoever opens to add.
    """
    host = flags & c.DOTL_ACCMODE
    for dotl, bit in _HOST_BITS:
        if flags & dotl:
            host |= bit
    return host


def from_host(flags: int) -> int:
    """What a client sends for os.O_* flags of its own; bits without a 9P2000.L counterpart are dropped."""
    dotl = flags & os.O_ACCMODE
    for bit, host in _CLIENT_BITS:
        if host and flags & host == host:
            dotl |= bit
    return dotl


def flag_names(flags: int) -> str:
    """9P2000.L open flags by their names in open(2): ``O_RDWR|O_TRUNC``; unknown bits in octal at the end."""
    names = [_ACCESS_NAMES[flags & c.DOTL_ACCMODE]]
    rest = flags & ~c.DOTL_ACCMODE
    for bits, name in FLAG_NAMES:
        if rest & bits == bits:
            names.append(name)
            rest &= ~bits
    if rest:
        names.append(oct(rest))
    return "|".join(names)
