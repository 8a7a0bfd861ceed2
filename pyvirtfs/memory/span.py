"""One range of guest RAM, or a head and a payload in two: what most requests and most replies are.

A `memoryview` of the range costs as much as all the rest of reading a descriptor, and a header is mostly read or
written once; so the range is only cut out of its region for whoever wants a view of it.
"""

from __future__ import annotations

import errno
import os

from pyvirtfs.memory.buffers import Buffers, Bytes, ViewBuffers, offset_error

_os_preadv = os.preadv
_os_pwritev = os.pwritev


class SpanBuffers(Buffers):
    """A range of bytes in one region. The attributes are filled in by `of` or by whoever knows that they are right.

    Attributes:
        ram: The region's bytes: format ``B``, writable.
        start: Offset of the first byte in `ram`.
        nbytes: Length; start + nbytes lies within `ram`.
    """

    __slots__ = ("nbytes", "ram", "start")

    ram: memoryview
    start: int
    nbytes: int

    @classmethod
    def of(cls, ram: memoryview, start: int, nbytes: int) -> SpanBuffers:
        """The range of `nbytes` at `start` of `ram`; nothing is checked."""
        span = cls()
        span.ram = ram
        span.start = start
        span.nbytes = nbytes
        return span

    def __repr__(self) -> str:
        return f"<SpanBuffers {self.nbytes} bytes>"

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Buffers.read`."""
        if 0 <= offset <= offset + nbytes <= self.nbytes:
            start = self.start + offset
            return self.ram[start : start + nbytes].tobytes()
        raise self._misfit(offset, nbytes)

    def write(self, offset: int, data: Bytes) -> None:
        """See `Buffers.write`."""
        nbytes = len(data)
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise self._misfit(offset, nbytes)
        start = self.start + offset
        self.ram[start : start + nbytes] = data

    def slice(self, offset: int, nbytes: int) -> SpanBuffers:
        """See `Buffers.slice`."""
        if 0 <= offset <= offset + nbytes <= self.nbytes:
            span = SpanBuffers()
            span.ram = self.ram
            span.start = self.start + offset
            span.nbytes = nbytes
            return span
        raise self._misfit(offset, nbytes)

    def views(self) -> list[memoryview]:
        """See `Buffers.views`."""
        return [self.ram[self.start : self.start + self.nbytes]] if self.nbytes else []

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`."""
        nbytes = self.nbytes
        if not nbytes:
            return 0
        view = self.ram[self.start : self.start + nbytes]
        try:
            done = _os_preadv(fd, (view,), offset)
        except OverflowError:
            raise offset_error(offset, errno.EINVAL) from None
        return done if done == nbytes or not done else done + ViewBuffers([view[done:]]).preadv(fd, offset + done)

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`."""
        nbytes = self.nbytes
        if not nbytes:
            return 0
        try:
            return _os_pwritev(fd, (self.ram[self.start : self.start + nbytes],), offset)
        except OverflowError:
            raise offset_error(offset, errno.EFBIG) from None

    def _misfit(self, offset: int, nbytes: int) -> ValueError:
        return ValueError(f"{nbytes} bytes at offset {offset} do not lie within {self.nbytes} bytes")


class HeadedBuffers(Buffers):
    """A head and a payload behind it, two ranges of one region, as Linux lays out what it reads and writes uncopied.

    Attributes:
        ram: The region's bytes: format ``B``, writable.
        head: Offset of the head in `ram`.
        head_nbytes: Its length.
        body: Offset of the payload in `ram`.
        nbytes: Length of both; each lies within `ram`, and neither is empty.
    """

    __slots__ = ("body", "head", "head_nbytes", "nbytes", "ram")

    ram: memoryview
    head: int
    head_nbytes: int
    body: int
    nbytes: int

    @classmethod
    def of(cls, ram: memoryview, head: int, head_nbytes: int, body: int, body_nbytes: int) -> HeadedBuffers:
        """The range of `head_nbytes` at `head` of `ram`, then that of `body_nbytes` at `body`; nothing is checked."""
        headed = cls()
        headed.ram = ram
        headed.head = head
        headed.head_nbytes = head_nbytes
        headed.body = body
        headed.nbytes = head_nbytes + body_nbytes
        return headed

    def __repr__(self) -> str:
        return f"<HeadedBuffers {self.nbytes} bytes, a head of {self.head_nbytes}>"

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Buffers.read`."""
        if 0 <= offset <= offset + nbytes <= self.head_nbytes:
            start = self.head + offset
            return self.ram[start : start + nbytes].tobytes()
        return ViewBuffers(self.views()).read(offset, nbytes)

    def write(self, offset: int, data: Bytes) -> None:
        """See `Buffers.write`."""
        nbytes = len(data)
        if 0 <= offset <= offset + nbytes <= self.head_nbytes:
            start = self.head + offset
            self.ram[start : start + nbytes] = data
        else:
            ViewBuffers(self.views()).write(offset, data)

    def slice(self, offset: int, nbytes: int) -> Buffers:
        """See `Buffers.slice`."""
        skipped = offset - self.head_nbytes
        if 0 <= skipped <= skipped + nbytes <= self.nbytes - self.head_nbytes:
            span = SpanBuffers()
            span.ram = self.ram
            span.start = self.body + skipped
            span.nbytes = nbytes
            return span
        return ViewBuffers(self.views()).slice(offset, nbytes)

    def views(self) -> list[memoryview]:
        """See `Buffers.views`."""
        ram, head, head_nbytes, body = self.ram, self.head, self.head_nbytes, self.body
        return [ram[head : head + head_nbytes], ram[body : body + self.nbytes - head_nbytes]]

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`."""
        return ViewBuffers(self.views()).preadv(fd, offset)

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`."""
        return ViewBuffers(self.views()).pwritev(fd, offset)
