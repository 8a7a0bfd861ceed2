"""Which errno a failed request carries: one place for all of them.

9P2000.L carries Linux errno numbers (diod's protocol.md, "error"), and this server runs on Linux, so that those of the
host go out as they are; Linux clients take 1 to 4095.
"""

from __future__ import annotations

import errno
from typing import Final

from pyvirtfs.errors import GuestError

ERRNO_MAX: Final = 4095
"""The largest errno that a Linux client takes; anything above becomes EPROTO there."""


def errno_of(error: BaseException) -> int:
    """The errno that tells the guest about an exception that a driver raised.

    Args:
        error: What a driver raised: an `OSError`, if it keeps its contract. Memory that went away under a request is
            EFAULT, anything else EIO.

    Returns:
        1 to 4095.
    """
    if isinstance(error, OSError):
        code = error.errno
        return code if code is not None and 0 < code <= ERRNO_MAX else errno.EIO
    if isinstance(error, GuestError):
        return errno.EFAULT
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return errno.EIO


def public_errno(error: BaseException) -> int:
    """As `errno_of`, for the reply to a request: EINTR becomes EIO.

    A guest that did not interrupt a request would pass EINTR on to a program that does not expect it.
    """
    code = errno_of(error)
    return errno.EIO if code == errno.EINTR else code
