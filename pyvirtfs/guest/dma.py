"""Memory that a driver lends to a device: a page allocator in guest RAM, and the buffers it hands out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from pyvirtfs.memory import GuestMemory

PAGE = 4096
"""Bytes of a page."""

Range = tuple[int, int]
"""(guest-physical address, bytes)."""


class DmaBuffer:
    """A piece of guest RAM, in one or more ranges that follow each other for the driver but not in memory.

    Args:
        memory: The guest's RAM.
        ranges: (address, nbytes) pairs, in order.
    """

    __slots__ = ("_views", "address", "nbytes", "ranges")

    def __init__(self, memory: GuestMemory, ranges: Sequence[Range]) -> None:
        self.ranges = list(ranges)
        self.address = self.ranges[0][0] if self.ranges else 0
        """Of its first byte."""
        self.nbytes = sum(nbytes for _, nbytes in self.ranges)
        self._views = [memory.view(address, nbytes) for address, nbytes in self.ranges]

    @property
    def view(self) -> memoryview:
        """All of its bytes; ValueError if it lies in more than one range."""
        if len(self._views) != 1:
            raise ValueError(f"the buffer lies in {len(self._views)} ranges")
        return self._views[0]

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of `nbytes` bytes from `offset`."""
        if len(self._views) == 1:
            return self._views[0][offset : offset + nbytes].tobytes()
        return b"".join(self._pieces(offset, nbytes))

    def peek(self, nbytes: int) -> memoryview | bytes:
        """The first `nbytes` bytes: the memory itself if it lies in one range, else a copy."""
        return self._views[0][:nbytes] if len(self._views) == 1 else self.read(0, nbytes)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Copy from `offset` into `target`, a memoryview of bytes."""
        done = 0
        for piece in self._pieces(offset, len(target)):
            target[done : done + len(piece)] = piece
            done += len(piece)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Copy `data` to `offset`; ValueError if it does not fit."""
        if offset < 0 or offset + len(data) > self.nbytes:
            raise ValueError(f"{len(data)} bytes at {offset} do not fit into a buffer of {self.nbytes}")
        if len(self._views) == 1:
            self._views[0][offset : offset + len(data)] = data
            return
        source = memoryview(data)
        done = 0
        for piece in self._pieces(offset, len(data)):
            piece[:] = source[done : done + len(piece)]
            done += len(piece)

    def slice(self, offset: int, nbytes: int) -> list[Range]:
        """The ranges of a part of it."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"no {nbytes} bytes at {offset} in a buffer of {self.nbytes}")
        found = []
        for address, length in self.ranges:
            if nbytes and offset < length:
                take = min(nbytes, length - offset)
                found.append((address + offset, take))
                nbytes -= take
                offset = 0
            else:
                offset = max(offset - length, 0)
        return found

    def _pieces(self, offset: int, nbytes: int) -> list[memoryview]:
        pieces = []
        for view in self._views:
            if nbytes <= 0:
                break
            if offset < len(view):
                piece = view[offset : offset + nbytes]
                pieces.append(piece)
                nbytes -= len(piece)
                offset = 0
            else:
                offset -= len(view)
        return pieces


def split_at_pages(ranges: Sequence[Range]) -> list[Range]:
    """Split ranges at page borders, as a scatter list of pages is (no entry crosses a page)."""
    pieces = []
    for start, length in ranges:
        address, nbytes = start, length
        while nbytes:
            take = min(nbytes, PAGE - address % PAGE)
            pieces.append((address, take))
            address += take
            nbytes -= take
    return pieces


class DmaAllocator:
    """Hands out whole pages of guest RAM, first fit.

    Args:
        memory: The guest's RAM.
        start: First address that may be handed out; the pages below belong to somebody else.
        end: First address that may not be handed out; None for the end of RAM.
    """

    def __init__(self, memory: GuestMemory, *, start: int = 0x10000, end: int | None = None) -> None:
        self.memory = memory
        self._free: list[Range] = []  # sorted, never adjoining
        self.pages_in_use = 0
        """Pages that were handed out and not taken back."""
        for region in memory.regions:
            first = -(-max(region.address, start) // PAGE) * PAGE
            last = (region.address + region.nbytes if end is None else min(region.address + region.nbytes, end)) // PAGE
            if last * PAGE > first:
                self._free.append((first, last * PAGE - first))
        self._free.sort()

    def allocate(self, nbytes: int, *, offset: int = 0) -> DmaBuffer:
        """`nbytes` of zeroed RAM in one range, `offset` bytes behind a page border. MemoryError if there is none."""
        start = self._take(offset + nbytes)
        buffer = DmaBuffer(self.memory, [(start + offset, nbytes)])
        buffer.view[:] = bytes(nbytes)
        return buffer

    def allocate_scattered(self, nbytes: int, *, offset: int = 0) -> DmaBuffer:
        """`nbytes` of RAM, not zeroed, in pages that do not adjoin; begins `offset` bytes into its first page."""
        count = max(1, -(-(offset + nbytes) // PAGE))
        start = self._take((2 * count - 1) * PAGE)
        for i in range(count - 1):
            self._give(start + (2 * i + 1) * PAGE, PAGE)
        ranges = []
        for i in reversed(range(count)):  # falling addresses: not even the order helps
            take = min(PAGE - offset, nbytes)
            ranges.append((start + 2 * i * PAGE + offset, take))
            nbytes -= take
            offset = 0
        return DmaBuffer(self.memory, ranges)

    def free(self, buffer: DmaBuffer) -> None:
        """Take a buffer's pages back. Nobody, the device included, may use them any more."""
        for address, nbytes in buffer.ranges:
            start = address // PAGE * PAGE
            self._give(start, max(1, -(-(address + nbytes - start) // PAGE)) * PAGE)

    def _take(self, nbytes: int) -> int:
        need = max(1, -(-nbytes // PAGE)) * PAGE
        for i, (start, length) in enumerate(self._free):
            if length >= need:
                if length == need:
                    del self._free[i]
                else:
                    self._free[i] = (start + need, length - need)
                self.pages_in_use += need // PAGE
                return start
        raise MemoryError(f"no {need} bytes of guest RAM left in one piece")

    def _give(self, start: int, length: int) -> None:
        self.pages_in_use -= length // PAGE
        at = bisect_left(self._free, (start, 0))
        if at < len(self._free) and start + length == self._free[at][0]:
            length += self._free[at][1]
            del self._free[at]
        if at and sum(self._free[at - 1]) == start:
            at -= 1
            start, length = self._free[at][0], self._free[at][1] + length
            del self._free[at]
        self._free.insert(at, (start, length))
