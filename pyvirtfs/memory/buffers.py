"""The payload of a request: an ordered list of byte ranges, in guest RAM or anywhere else.

Nothing is copied to make one, and reading a file into one or writing it to a file moves the bytes between the page
cache and guest RAM directly (preadv(2), pwritev(2)).
"""

from __future__ import annotations

import abc
import errno
import os
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pyvirtfs.syscalls.vectored import preadv, pwritev

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
"""How many ranges one preadv(2) takes."""

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What `Buffers.write` takes: one-dimensional, of single bytes."""

_NO_BYTES: Final = memoryview(bytearray())
_WORD: Final = (1 << 64) - 1

_os_preadv = os.preadv
_os_pwritev = os.pwritev


class HostRange(Protocol):
    """A piece of memory that an iovec array points into; `pyvirtfs.memory.Region` is one."""

    @property
    def host(self) -> int:
        """Address of its first byte in this process."""

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""

    @property
    def view(self) -> memoryview:
        """Its bytes."""


def _does_not_fit(offset: int, nbytes: int, total: int) -> ValueError:
    return ValueError(f"{nbytes} bytes at offset {offset} do not lie within {total} bytes")


def offset_error(offset: int, code: int) -> OSError:
    """For a file offset that off_t cannot hold: an errno instead of OverflowError."""
    return OSError(code, os.strerror(code), f"offset {offset:#x}")


class Buffers(abc.ABC):
    """An ordered list of byte ranges, addressed as if they were one."""

    __slots__ = ()

    nbytes: int
    """Length of all ranges together."""

    @abc.abstractmethod
    def read(self, offset: int, nbytes: int) -> bytes:
        """Copy bytes out (gather).

        Raises:
            ValueError: The range does not lie within the buffers.
        """

    @abc.abstractmethod
    def write(self, offset: int, data: Bytes) -> None:
        """Copy bytes in (scatter).

        Raises:
            ValueError: The data does not fit.
            OSError: EFAULT, the memory is read-only.
        """

    @abc.abstractmethod
    def slice(self, offset: int, nbytes: int) -> Buffers:
        """A sub-range, without copying.

        Raises:
            ValueError: The range does not lie within the buffers.
        """

    @abc.abstractmethod
    def views(self) -> list[memoryview]:
        """The ranges in order, none of them empty; for drivers without descriptors."""

    @abc.abstractmethod
    def preadv(self, fd: int, offset: int) -> int:
        """Fill the buffers from a file, from byte `offset` on, until they are full or the file ends.

        Returns:
            The number of bytes read; fewer than `nbytes` only at the end of the file.

        Raises:
            OSError: As preadv(2); EINVAL also for an offset that no file has, EFAULT if the memory is read-only or
                gone.
        """

    @abc.abstractmethod
    def pwritev(self, fd: int, offset: int) -> int:
        """Write the buffers to a file, from byte `offset` on.

        Returns:
            The number of bytes written; fewer than `nbytes` if the file takes no more (an error that came after some
            bytes were written shows when the rest is tried again).

        Raises:
            OSError: As pwritev(2), nothing was written; EFBIG also for an offset that no file has.
        """


class ViewBuffers(Buffers):
    """Few ranges: a list of memoryviews.

    Args:
        views: One-dimensional, format ``B``; empty ones are left out by the caller.
    """

    __slots__ = ("_first", "_first_nbytes", "_views", "nbytes")

    def __init__(self, views: list[memoryview]) -> None:
        self._views = views
        if views:
            self._first = first = views[0]
            self._first_nbytes = self.nbytes = len(first)
            if len(views) > 1:
                self.nbytes = sum(map(len, views))
        else:
            self._first = _NO_BYTES
            self._first_nbytes = self.nbytes = 0

    @classmethod
    def of(cls, buffer: Buffer) -> ViewBuffers:
        """One range: any C-contiguous buffer, for example the bytearray of a stream transport."""
        view = memoryview(buffer).cast("B")
        return cls([view] if view.nbytes else [])

    def __repr__(self) -> str:
        return f"<ViewBuffers {self.nbytes} bytes in {len(self._views)} ranges>"

    def _cut(self, offset: int, nbytes: int) -> list[memoryview]:
        """Views of a sub-range."""
        end = offset + nbytes
        if not 0 <= offset <= end <= self.nbytes:
            raise _does_not_fit(offset, nbytes, self.nbytes)
        found: list[memoryview] = []
        if not nbytes:
            return found
        start = 0
        for view in self._views:
            length = len(view)
            if offset < start + length:
                if offset <= start and start + length <= end:
                    found.append(view)
                else:
                    found.append(view[max(offset - start, 0) : end - start])
            start += length
            if start >= end:
                break
        return found

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Buffers.read`."""
        end = offset + nbytes
        if 0 <= offset <= end <= self._first_nbytes:
            return self._first[offset:end].tobytes()
        return b"".join(self._cut(offset, nbytes))

    def write(self, offset: int, data: Bytes) -> None:
        """See `Buffers.write`."""
        nbytes = len(data)
        end = offset + nbytes
        try:
            if 0 <= offset <= end <= self._first_nbytes:
                self._first[offset:end] = data
                return
            source = memoryview(data)
            start = 0
            for view in self._cut(offset, nbytes):
                stop = start + len(view)
                view[:] = source[start:stop]
                start = stop
        except TypeError:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None

    def slice(self, offset: int, nbytes: int) -> ViewBuffers:
        """See `Buffers.slice`."""
        end = offset + nbytes
        if 0 <= offset < end <= self._first_nbytes:
            return ViewBuffers([self._first[offset:end]])
        if offset == self._first_nbytes and end == self.nbytes:  # a reply behind its header, as Linux lays it out
            return ViewBuffers(self._views[1:])
        return ViewBuffers(self._cut(offset, nbytes))

    def views(self) -> list[memoryview]:
        """See `Buffers.views`."""
        return list(self._views)

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`."""
        views = self._views
        if not views:
            return 0
        try:
            done = _os_preadv(fd, views if len(views) <= IOV_MAX else views[:IOV_MAX], offset)
            total = self.nbytes
            if done == total:
                return done
            while done:
                rest = self._cut(done, total - done)
                if not rest:
                    return done
                turn = _os_preadv(fd, rest[:IOV_MAX], offset + done)
                if not turn:
                    return done
                done += turn
        except OverflowError:
            raise offset_error(offset, errno.EINVAL) from None
        except (TypeError, BufferError):  # a read-only view
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None
        return done

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`."""
        views = self._views
        if not views:
            return 0
        done = 0
        try:
            if len(views) <= IOV_MAX:
                return _os_pwritev(fd, views, offset)
            total = self.nbytes
            while done < total:
                batch = self._cut(done, total - done)[:IOV_MAX]
                turn = _os_pwritev(fd, batch, offset + done)
                done += turn
                if turn < sum(map(len, batch)):
                    break
        except OverflowError:
            if not done:
                raise offset_error(offset, errno.EFBIG) from None
        except OSError:
            if not done:
                raise
        return done


class IovecBuffers(Buffers):
    """Many ranges: an array of struct iovec, made and used without a Python object for each range.

    Args:
        iovec: uint64, shape (n, 2), C-contiguous: host address and length in bytes of each range.
        nbytes: Sum of the lengths.
        owners: The memory that all ranges lie in, kept alive.
    """

    __slots__ = ("_ends", "_first", "_first_nbytes", "_iovec", "_owners", "nbytes")

    def __init__(self, iovec: npt.NDArray[np.uint64], nbytes: int, owners: Sequence[HostRange]) -> None:
        self._iovec = iovec
        self._owners = owners
        self._first: memoryview | None = None
        self._first_nbytes: int = iovec.item(1) if len(iovec) else 0
        self._ends: npt.NDArray[np.uint64] | None = None
        self.nbytes = nbytes

    def __repr__(self) -> str:
        return f"<IovecBuffers {self.nbytes} bytes in {len(self._iovec)} ranges>"

    def _view(self, host: int, nbytes: int) -> memoryview:
        """A view of host memory, which keeps its owner alive."""
        for owner in self._owners:
            start = host - owner.host
            if start >= 0 and start + nbytes <= owner.nbytes:
                return owner.view[start : start + nbytes]
        raise _does_not_fit(host, nbytes, 0)

    def _head(self) -> memoryview:
        """A view of the first range, which holds the header of most messages."""
        first = self._first
        if first is None:
            first = self._first = self._view(self._iovec.item(0), self._first_nbytes)
        return first

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Buffers.read`."""
        end = offset + nbytes
        if 0 <= offset < end <= self._first_nbytes:
            return self._head()[offset:end].tobytes()
        return b"".join(self.slice(offset, nbytes).views())

    def write(self, offset: int, data: Bytes) -> None:
        """See `Buffers.write`."""
        nbytes = len(data)
        end = offset + nbytes
        try:
            if 0 <= offset < end <= self._first_nbytes:
                self._head()[offset:end] = data
                return
            source = memoryview(data)
            start = 0
            for view in self.slice(offset, nbytes).views():
                stop = start + len(view)
                view[:] = source[start:stop]
                start = stop
        except TypeError:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None

    def _cut(self, offset: int, nbytes: int) -> npt.NDArray[np.uint64]:
        """The struct iovecs of a sub-range."""
        total = self.nbytes
        end = offset + nbytes
        if not 0 <= offset <= end <= total:
            raise _does_not_fit(offset, nbytes, total)
        iovec = self._iovec
        if end == total and offset == self._first_nbytes:  # a reply behind its header, as Linux lays it out
            return iovec[1:]
        if not nbytes:
            return iovec[:0]
        ends = self._ends
        if ends is None:
            ends = self._ends = iovec[:, 1].cumsum()
        first = int(ends.searchsorted(offset, "right"))
        last = int(ends.searchsorted(end, "left"))
        excess = ends.item(last) - end
        skipped = offset - (ends.item(first - 1) if first else 0)
        part = iovec[first : last + 1].copy()
        if excess:
            part[-1, 1] -= np.uint64(excess)
        if skipped:
            part[0] += np.array((skipped, -skipped & _WORD), np.uint64)
        return part

    def slice(self, offset: int, nbytes: int) -> IovecBuffers:
        """See `Buffers.slice`."""
        return IovecBuffers(self._cut(offset, nbytes), nbytes, self._owners)

    def views(self) -> list[memoryview]:
        """See `Buffers.views`."""
        view = self._view
        return [view(host, nbytes) for host, nbytes in self._iovec.tolist() if nbytes]

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`."""
        total = self.nbytes
        if not total:
            return 0
        iovec = self._iovec
        done = preadv(fd, iovec if len(iovec) <= IOV_MAX else iovec[:IOV_MAX], offset)
        if done == total:
            return done
        if 0 < done < total and len(iovec) <= IOV_MAX and not os.pread(fd, 1, offset + done):
            return done  # the file ends here, as most short reads say: cheaper to ask than to cut what is left
        while 0 < done < total:
            turn = preadv(fd, self._cut(done, total - done)[:IOV_MAX], offset + done)
            if not turn:
                break
            done += turn
        return done

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`."""
        total = self.nbytes
        iovec = self._iovec
        if 0 < len(iovec) <= IOV_MAX:
            return pwritev(fd, iovec, offset)
        done = 0
        try:
            while done < total:
                batch = self._cut(done, total - done)[:IOV_MAX]
                turn = pwritev(fd, batch, offset + done)
                done += turn
                if turn < int(batch[:, 1].sum()):
                    break
        except OSError:
            if not done:
                raise
        return done
