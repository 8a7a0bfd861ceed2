"""Memory with a descriptor, to be shared with another process: memfd_create(2) and seals (fcntl(2), F_ADD_SEALS)."""

from __future__ import annotations

import fcntl
import os
from typing import Final

SEAL_SEAL: Final = fcntl.F_SEAL_SEAL
"""No further seals."""
SEAL_SHRINK: Final = fcntl.F_SEAL_SHRINK
"""Never smaller: mapped memory cannot go away, which would end whoever touches it with SIGBUS."""
SEAL_GROW: Final = fcntl.F_SEAL_GROW
"""Never larger."""
SEAL_WRITE: Final = fcntl.F_SEAL_WRITE
"""Never written again; EBUSY while it is mapped writable."""
SEAL_FUTURE_WRITE: Final = 0x10
"""Only mappings that exist already can write (Linux 5.1)."""


def memfd_create(name: str, nbytes: int, *, seals: int = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL) -> int:
    """Make zeroed memory that can be mapped, passed on and sealed; no pages are taken before they are touched.

    Args:
        name: Shows in /proc/self/maps; needs not be unique.
        nbytes: Its size.
        seals: SEAL_* bits.

    Returns:
        A descriptor, close-on-exec, which the caller closes.

    Raises:
        OSError: As memfd_create(2), ftruncate(2) and fcntl(2).
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        if seals:
            add_seals(fd, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def add_seals(fd: int, seals: int) -> None:
    """Add seals, for good.

    Raises:
        OSError: EPERM if it is sealed against that or not writable, EINVAL if it is no memfd, EBUSY as `SEAL_WRITE`
            says.
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def get_seals(fd: int) -> int:
    """The SEAL_* bits of a memfd.

    Raises:
        OSError: EINVAL if it is no memfd.
    """
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
