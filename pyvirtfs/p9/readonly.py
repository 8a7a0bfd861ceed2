"""What a readonly export still answers; everything else is EROFS before it reaches the driver."""

from __future__ import annotations

import errno
from typing import Final

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.flags import WRITE_FLAGS

READONLY_REQUESTS: Final = frozenset(
    {
        c.TVERSION,
        c.TAUTH,
        c.TATTACH,
        c.TFLUSH,
        c.TWALK,
        c.TCLUNK,
        c.TLOPEN,
        c.TOPEN,
        c.TREAD,
        c.TREADDIR,
        c.TREADLINK,
        c.TGETATTR,
        c.TSTATFS,
        c.TXATTRWALK,
        c.TFSYNC,
        c.TLOCK,
        c.TGETLOCK,
        c.TSTAT,
        c.TWSTAT,
    }
)
"""The requests that cannot modify an export; Tlopen, Topen and Twstat can, and see whether they would."""


def check_open(flags: int) -> None:
    """Check the flags with which a file of a readonly export is opened.

    Args:
        flags: Those of a Tlopen, in 9P2000.L's own values.

    Raises:
        OSError: EROFS: they ask for more than reading.
    """
    if flags & WRITE_FLAGS:
        raise OSError(errno.EROFS, f"open flags {flags:#o} on a readonly export")
