"""Descriptor chains: from untrusted descriptors in guest RAM to the two `Buffers` of a request (virtio 1.3, 2.7.5).

Every descriptor is copied once, then checked, then used: the guest may change it at any time. What the ring layouts
share is here (the rules for a request's buffers, indirect tables); how descriptors follow each other in the ring itself
is the layout's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np

from pyvirtfs.errors import QueueError
from pyvirtfs.memory import SpanBuffers, ViewBuffers
from pyvirtfs.virtio.layout import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, lower

if TYPE_CHECKING:
    from pyvirtfs.memory import Buffers, GuestMemory

MAX_INDIRECT: Final = 1024
"""Entries of an indirect table. The specification bounds them by the queue size, but Linux builds longer tables."""

MAX_CHAIN_BYTES: Final = 1 << 32
"""Bytes of a chain, readable and writable together (2.7.5: a driver must not add a longer one)."""

_VECTORISE: Final = 32
"""Entries from which on numpy is faster than a loop."""

_DESCRIPTOR_NBYTES: Final = lower(Descriptor).size
_TABLES: Final[tuple[struct.Struct, ...]] = tuple(lower(Descriptor, count) for count in range(_VECTORISE))
_unpack_two = _TABLES[2].unpack_from
_SHORT: Final = 16
"""Entries up to which a table of the usual shape is taken apart at once."""
_SHAPES: Final = {
    (DESC_NEXT,) * readable + (DESC_NEXT | DESC_WRITE,) * (count - readable - 1) + (DESC_WRITE,): readable
    for count in range(3, _SHORT + 1)
    for readable in range(1, count)
}
"""The flags of a short table that has both readable and writable entries in order, and how many are readable."""
_FOLLOWING: Final = [tuple(range(1, count)) for count in range(_SHORT + 1)]
"""The `next` fields, but for the last, of a table whose entries follow each other."""
_SEQUENTIAL: Final = (np.arange(1, MAX_INDIRECT + 1, dtype=np.uint32) << np.uint32(16)) | np.uint32(DESC_NEXT)
"""The last word (flags, next) of each entry of a table whose entries follow each other and are readable."""


class Chain:
    """One request in a queue.

    It has no constructor arguments: filling the slots of a bare object costs half, and there is one for each request.

    Attributes:
        head: What names it in the used ring.
        readable: The bytes from the driver.
        writable: The room for the answer.
    """

    __slots__ = ("head", "readable", "writable")

    head: int
    readable: Buffers
    writable: Buffers


class ChainReader:
    """Reads the descriptors of one queue's chains.

    Args:
        memory: Guest RAM.
    """

    __slots__ = ("_address", "_memory", "_nbytes", "_view", "indirect")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.indirect = False
        """Whether INDIRECT_DESC was negotiated."""
        self.refresh()

    def refresh(self) -> None:
        """Look at the regions of guest RAM again; the short way through `table` is for what lies in the largest."""
        regions = [region for region in self._memory.regions if not region.view.readonly]
        largest = max(regions, key=lambda region: region.nbytes, default=None)
        self._address = largest.address if largest is not None else 0
        self._nbytes = largest.nbytes if largest is not None else 0
        self._view = largest.view if largest is not None else memoryview(b"")

    def table(self, head: int, address: int, nbytes: int) -> Chain:
        """The chain of an indirect table that is all there is of it (2.7.5.3).

        Args:
            head: The head, for the result.
            address: Guest-physical address of the table.
            nbytes: Its length.

        Raises:
            QueueError: The table is malformed.
            MemoryAccessError: It, or what it points to, is not RAM.
        """
        if nbytes == 32 and self.indirect:
            # The usual shape: a request in one buffer, room for its reply in another. Anything else is read afresh
            # below, and nothing of this copy is used.
            base, size, view = self._address, self._nbytes, self._view
            start = address - base
            if 0 <= start <= size - 32:
                request, request_nbytes, flags, following, reply, reply_nbytes, reply_flags, _ = _unpack_two(
                    view, start
                )
                request -= base
                reply -= base
                if (
                    flags == DESC_NEXT
                    and following == 1
                    and reply_flags == DESC_WRITE
                    and request >= 0
                    and 0 < request_nbytes <= size - request
                    and reply >= 0
                    and 0 < reply_nbytes <= size - reply
                    and request_nbytes + reply_nbytes <= MAX_CHAIN_BYTES
                ):
                    chain = Chain()
                    chain.head = head
                    chain.readable = readable = SpanBuffers()
                    readable.ram = view
                    readable.start = request
                    readable.nbytes = request_nbytes
                    chain.writable = writable = SpanBuffers()
                    writable.ram = view
                    writable.start = reply
                    writable.nbytes = reply_nbytes
                    return chain
        elif nbytes <= _SHORT * _DESCRIPTOR_NBYTES and self.indirect:
            chain_or_none = self._short(head, address - self._address, nbytes)
            if chain_or_none is not None:
                return chain_or_none
        ranges = Ranges()
        return self.add_table(ranges, address, nbytes, head) or self.chain(head, ranges)

    def _short(self, head: int, start: int, nbytes: int) -> Chain | None:
        """The chain of a short table at offset `start` of the largest region, as Linux builds it for payloads.

        None: anything is unusual about it. Then it is read afresh, and nothing of this copy is used.
        """
        size, ram = self._nbytes, self._view
        count, rest = divmod(nbytes, _DESCRIPTOR_NBYTES)
        if rest or not 0 <= start <= size - nbytes:
            return None
        words = _TABLES[count].unpack_from(ram, start)
        readable = _SHAPES.get(words[2::4])
        if readable is None or words[3:-1:4] != _FOLLOWING[count]:
            return None
        base = self._address
        views = []
        total = 0
        for address, length in zip(words[::4], words[1::4], strict=True):
            offset = address - base
            if offset < 0 or not 0 < length <= size - offset:
                return None
            total += length
            views.append(ram[offset : offset + length])
        if total > MAX_CHAIN_BYTES:
            return None
        chain = Chain()
        chain.head = head
        chain.readable = ViewBuffers(views[:readable])
        chain.writable = ViewBuffers(views[readable:])
        return chain

    def chain(self, head: int, ranges: Ranges) -> Chain:
        """The chain of these ranges, checked against guest RAM. Raises MemoryAccessError."""
        chain = Chain()
        chain.head = head
        chain.readable = self._buffers(ranges.readable)
        chain.writable = self._buffers(ranges.writable, writable=True)
        return chain

    def _buffers(self, ranges: list[tuple[int, int]], *, writable: bool = False) -> Buffers:
        if len(ranges) == 1:
            address, nbytes = ranges[0]
            start = address - self._address
            if start >= 0 and 0 < nbytes <= self._nbytes - start:
                return SpanBuffers.of(self._view, start, nbytes)
        return self._memory.buffers(ranges, writable=writable)

    def add_table(self, ranges: Ranges, address: int, nbytes: int, head: int | None = None) -> Chain | None:
        """Add what an indirect table of a split ring describes.

        Args:
            ranges: What goes before, and where to add it.
            address: Guest-physical address of the table.
            nbytes: Its length.
            head: If given, nothing goes before: the chain may be returned ready made.
        """
        if not self.indirect:
            raise QueueError("an indirect descriptor, which was not negotiated")
        count, rest = divmod(nbytes, _DESCRIPTOR_NBYTES)
        if rest or not count:
            raise QueueError(f"an indirect table of {nbytes} bytes")
        if count > MAX_INDIRECT:
            raise QueueError(f"an indirect table of {count} entries; at most {MAX_INDIRECT} are supported")
        table = self._memory.read(address, nbytes)
        if count >= _VECTORISE:
            if head is not None:
                chain = self._vectorised(head, table, count)
                if chain is not None:
                    return chain
            words = struct.unpack(f"<{'QIHH' * count}", table)
        else:
            words = _TABLES[count].unpack(table)
        _walk(ranges, words, count)
        return None

    def _vectorised(self, head: int, table: bytes, count: int) -> Chain | None:
        """The chain of a long table whose entries follow each other; None if they do not (then walk it)."""
        words = np.frombuffer(table, "<u4")
        lengths = words[2::4]
        marks = words[3::4] ^ _SEQUENTIAL[:count]
        # The last entry ends the chain: NEXT is clear, and its next means nothing.
        last = int(words[-1]) & 0xFFFF
        marks[-1] = last
        writable = int(np.count_nonzero(marks))
        first_writable = count - writable
        if last not in {0, DESC_WRITE} or (writable and not (marks[first_writable:] == DESC_WRITE).all()):
            return None
        total = int(lengths.sum(dtype=np.uint64))
        if total > MAX_CHAIN_BYTES:
            raise QueueError(f"a chain of {total} bytes")
        addresses = np.frombuffer(table, "<u8")[::2]
        sizes = lengths.astype(np.uint64)
        buffers = self._memory.buffers_from_arrays
        chain = Chain()
        chain.head = head
        chain.readable = buffers(addresses[:first_writable], sizes[:first_writable])
        chain.writable = buffers(addresses[first_writable:], sizes[first_writable:], writable=True)
        return chain


class Ranges:
    """The (address, nbytes) ranges of a chain while its descriptors are read one by one."""

    __slots__ = ("nbytes", "readable", "writable")

    def __init__(self) -> None:
        self.readable: list[tuple[int, int]] = []
        self.writable: list[tuple[int, int]] = []
        self.nbytes = 0

    def add(self, address: int, nbytes: int, flags: int) -> None:
        """Add one descriptor; of its flags only WRITE matters.

        Raises:
            QueueError: A readable one behind a writable one (2.7.4.2), or too many bytes.
        """
        if flags & DESC_WRITE:
            self.writable.append((address, nbytes))
        elif self.writable:
            raise QueueError("a readable descriptor behind a writable one")
        else:
            self.readable.append((address, nbytes))
        self.nbytes = total = self.nbytes + nbytes
        if total > MAX_CHAIN_BYTES:
            raise QueueError(f"a chain of more than {MAX_CHAIN_BYTES} bytes")


def _walk(ranges: Ranges, words: tuple[int, ...], count: int) -> None:
    """Follow an indirect table of `count` entries, given as four integers each."""
    readable, writable, total = ranges.readable, ranges.writable, ranges.nbytes
    base = 0
    for _ in range(count):
        address, nbytes, flags, following = words[base : base + 4]
        if flags & DESC_INDIRECT:
            raise QueueError("an indirect descriptor inside an indirect table")
        # Ranges.add, in line.
        if flags & DESC_WRITE:
            writable.append((address, nbytes))
        elif writable:
            raise QueueError("a readable descriptor behind a writable one")
        else:
            readable.append((address, nbytes))
        total += nbytes
        if not flags & DESC_NEXT:
            break
        if following >= count:
            raise QueueError(f"next is {following} in an indirect table of {count} entries")
        base = following * 4
    else:
        raise QueueError("a loop of descriptors in an indirect table")
    if total > MAX_CHAIN_BYTES:
        raise QueueError(f"a chain of {total} bytes")
    ranges.nbytes = total
