"""What this thread may do: capget(2)."""

from __future__ import annotations

import struct
from typing import Final

from pyvirtfs.syscalls._linux import fail, ffi, libc

_VERSION_3: Final = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3: 64 bits in each set, low half and high half."""
_HEADER: Final = ffi.new("char[]", struct.pack("=Ii", _VERSION_3, 0))
"""0: the calling thread."""
_SETS: Final = struct.Struct("=6I")
"""Effective, permitted and inheritable set, low halves; then the high halves."""

_capget = libc.capget


def get_effective_capabilities() -> int:
    """The effective set of this thread, one bit for each CAP_* of capabilities(7).

    Raises:
        OSError: As capget(2).
    """
    sets = ffi.new("char[]", _SETS.size)
    while _capget(_HEADER, sets):
        fail()
    found = _SETS.unpack(ffi.buffer(sets))
    return int(found[0] | found[3] << 32)
