"""One range of guest RAM as `Buffers`: what most requests and most replies are.

A `memoryview` of the range costs as much as all the rest of reading a descriptor, and a header is mostly read or
written once; so the range is only cut out of its region for whoever wants a view of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvirtfs.memory.buffers import Buffers, ViewBuffers

if TYPE_CHECKING:
    from typing_extensions import Buffer


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

    def write(self, offset: int, data: Buffer) -> None:
        """See `Buffers.write`."""
        nbytes = len(memoryview(data))
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise self._misfit(offset, nbytes)
        start = self.start + offset
        self.ram[start : start + nbytes] = data

    def slice(self, offset: int, nbytes: int) -> SpanBuffers:
        """See `Buffers.slice`."""
        if 0 <= offset <= offset + nbytes <= self.nbytes:
            return self.of(self.ram, self.start + offset, nbytes)
        raise self._misfit(offset, nbytes)

    def views(self) -> list[memoryview]:
        """See `Buffers.views`."""
        return [self.ram[self.start : self.start + self.nbytes]] if self.nbytes else []

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`."""
        return ViewBuffers(self.views()).preadv(fd, offset)

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`."""
        return ViewBuffers(self.views()).pwritev(fd, offset)

    def _misfit(self, offset: int, nbytes: int) -> ValueError:
        return ValueError(f"{nbytes} bytes at offset {offset} do not lie within {self.nbytes} bytes")
