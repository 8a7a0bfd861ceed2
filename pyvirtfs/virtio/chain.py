"""Descriptor chains: from untrusted descriptors in guest RAM to the two `Buffers` of a request (virtio 1.3, 2.7.5).

Every descriptor is copied once, then checked, then used: the guest may change it at any time. What the ring layouts
share is here (the rules for a request's buffers, indirect tables); how descriptors follow each other in the ring itself
is the layout's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from pyvirtfs.errors import QueueError
from pyvirtfs.memory import HeadedBuffers, SpanBuffers, ViewBuffers
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
_unpack_three = _TABLES[3].unpack_from
_NEXT_WRITE: Final = DESC_NEXT | DESC_WRITE
_SHORT: Final = 16
"""Entries up to which a table of the usual shape is taken apart at once."""
_SHAPES: Final = {
    (DESC_NEXT,) * readable + (DESC_NEXT | DESC_WRITE,) * (count - readable - 1) + (DESC_WRITE,): readable
    for count in range(4, _SHORT + 1)
    for readable in range(1, count)
}
"""The flags of a short table that has both readable and writable entries in order, and how many are readable."""
_FOLLOWING: Final = [tuple(range(1, count)) for count in range(_SHORT + 1)]
"""The `next` fields, but for the last, of a table whose entries follow each other."""
_SEQUENTIAL: Final = (np.arange(1, MAX_INDIRECT + 1, dtype=np.uint64) << np.uint64(16)) | np.uint64(DESC_NEXT)
"""Flags and next of each entry of a table whose entries follow each other and are readable."""
# Arrays without dimensions: numpy takes them faster than scalars.
_FLAGS_SHIFT: Final = np.array(32, np.uint64)
_LENGTH_MASK: Final = np.array(0xFFFFFFFF, np.uint64)
_KEPT_SHAPES: Final = 32
"""Kinds of long tables that a queue remembers to be in order."""


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

    __slots__ = ("_address", "_memory", "_nbytes", "_shapes", "_view", "indirect")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.indirect = False
        """Whether INDIRECT_DESC was negotiated."""
        self._shapes: dict[bytes, int] = {}  # of long tables: flags and next, and the index of the first writable entry
        self.refresh()

    def refresh(self) -> None:
        """Look at the regions of guest RAM again; the short way through `table` is for what lies in the largest."""
        regions = [region for region in self._memory.regions if not region.view.readonly]
        largest = max(regions, key=lambda region: region.nbytes, default=None)
        self._address = largest.address if largest is not None else 0
        self._nbytes = largest.nbytes if largest is not None else 0
        self._view = largest.view if largest is not None else memoryview(b"")

    def forget(self) -> None:
        """Hold on to no region of guest RAM until the next `refresh`."""
        self._address = self._nbytes = 0
        self._view = memoryview(b"")

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
            start = address - self._address
            found = self._with_payload(head, start) if nbytes == 48 else self._short(head, start, nbytes)
            if found is not None:
                return found
        ranges = Ranges()
        return self.add_table(ranges, address, nbytes, head) or self.chain(head, ranges)

    def _with_payload(self, head: int, start: int) -> Chain | None:
        """The chain of a table of three entries at offset `start` of the largest region: request, reply, a payload.

        The payload follows the head of either, as in a Tread or a Twrite of one range. None: as `_short`.
        """
        size, ram = self._nbytes, self._view
        if not 0 <= start <= size - 48:
            return None
        (
            first, first_nbytes, first_flags, first_next,
            middle, middle_nbytes, middle_flags, middle_next,
            last, last_nbytes, last_flags, _,
        ) = _unpack_three(ram, start)  # fmt: skip
        base = self._address
        first -= base
        middle -= base
        last -= base
        if (
            first_flags != DESC_NEXT
            or first_next != 1
            or middle_next != 2
            or last_flags != DESC_WRITE
            or first < 0
            or not 0 < first_nbytes <= size - first
            or middle < 0
            or not 0 < middle_nbytes <= size - middle
            or last < 0
            or not 0 < last_nbytes <= size - last
            or first_nbytes + middle_nbytes + last_nbytes > MAX_CHAIN_BYTES
        ):
            return None
        chain = Chain()
        chain.head = head
        if middle_flags == _NEXT_WRITE:
            chain.readable = SpanBuffers.of(ram, first, first_nbytes)
            chain.writable = HeadedBuffers.of(ram, middle, middle_nbytes, last, last_nbytes)
        elif middle_flags == DESC_NEXT:
            chain.readable = HeadedBuffers.of(ram, first, first_nbytes, middle, middle_nbytes)
            chain.writable = SpanBuffers.of(ram, last, last_nbytes)
        else:
            return None
        return chain

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
        # A descriptor is 16 bytes, as a struct iovec is: the copy of the table becomes one where it stands.
        pairs = np.frombuffer(bytearray(table), np.uint64).reshape(count, 2)
        lengths = pairs[:, 1]
        marks = (lengths >> _FLAGS_SHIFT).tobytes()
        shapes = self._shapes
        first_writable = shapes.get(marks)
        if first_writable is None:
            first_writable = _first_writable(np.frombuffer(marks, np.uint64), count)
            if first_writable is None:
                return None
            if len(shapes) >= _KEPT_SHAPES:
                shapes.clear()
            shapes[marks] = first_writable
        lengths &= _LENGTH_MASK
        chain = Chain()
        chain.head = head
        chain.readable = readable = self._from_pairs(pairs[:first_writable])
        chain.writable = writable = self._from_pairs(pairs[first_writable:], writable=True)
        if readable.nbytes + writable.nbytes > MAX_CHAIN_BYTES:
            raise QueueError(f"a chain of {readable.nbytes + writable.nbytes} bytes")
        return chain

    def _from_pairs(self, pairs: npt.NDArray[np.uint64], *, writable: bool = False) -> Buffers:
        if len(pairs) == 1:
            return self._buffers([(pairs.item(0), pairs.item(1))], writable=writable)
        return self._memory.buffers_from_pairs(pairs, writable=writable)


def _first_writable(marks: npt.NDArray[np.uint64], count: int) -> int | None:
    """The index of the first writable entry of a table whose entries follow each other, readable ones first.

    Args:
        marks: The upper half of each entry's second word: flags, and next in the bits from 16 on.
        count: Of entries.

    Returns:
        None if it is not such a table; `count` if no entry is writable.
    """
    marks = marks ^ _SEQUENTIAL[:count]
    # The last entry ends the chain: NEXT is clear, and its next means nothing.
    last = marks.item(count - 1) & 0xFFFF ^ DESC_NEXT
    marks[-1] = last
    first_writable = count - int(np.count_nonzero(marks))
    if last not in {0, DESC_WRITE} or (marks[first_writable:] != DESC_WRITE).any():
        return None
    return first_writable


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
