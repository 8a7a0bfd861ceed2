"""Reading and writing many ranges in one call: preadv(2) and pwritev(2) on an array of struct iovec."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pyvirtfs.syscalls._linux import error, fail, ffi, libc

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_OFFSET_MAX: Final = (1 << 63) - 1
_IOVECS: Final = ffi.typeof("struct iovec[]")
_from_buffer = ffi.from_buffer
_preadv = libc.preadv
_pwritev = libc.pwritev


def preadv(fd: int, iovec: npt.NDArray[np.uint64], offset: int) -> int:
    """Read from a file into many ranges.

    Args:
        fd: Open for reading.
        iovec: uint64, shape (n, 2), C-contiguous, n up to IOV_MAX: host address and length in bytes of each range. The
            caller answers for the addresses; what is not mapped is EFAULT.
        offset: Where in the file to start, in bytes.

    Returns:
        The number of bytes read; may be fewer than there is room for.

    Raises:
        OSError: As preadv(2); EINVAL also for an offset that off_t cannot hold.
    """
    if offset > _OFFSET_MAX:
        raise error(errno.EINVAL)
    ranges = _from_buffer(_IOVECS, iovec)
    while (nbytes := _preadv(fd, ranges, len(ranges), offset)) < 0:
        fail()
    return int(nbytes)


def pwritev(fd: int, iovec: npt.NDArray[np.uint64], offset: int) -> int:
    """Write many ranges to a file.

    Args:
        fd: Open for writing; with O_APPEND the offset means nothing.
        iovec: As for `preadv`.
        offset: Where in the file to start, in bytes.

    Returns:
        The number of bytes written; may be fewer than there are.

    Raises:
        OSError: As pwritev(2); EFBIG also for an offset that off_t cannot hold.
    """
    if offset > _OFFSET_MAX:
        raise error(errno.EFBIG)
    ranges = _from_buffer(_IOVECS, iovec)
    while (nbytes := _pwritev(fd, ranges, len(ranges), offset)) < 0:
        fail()
    return int(nbytes)
