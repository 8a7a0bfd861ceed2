"""The driver's side of a split virtqueue (virtio 1.3, 2.7).

A driver lays a request out as a chain of descriptors, puts the head of the chain into the available ring, moves the
ring's index and tells the device if the device wants to be told. Later it finds the head in the used ring, with
the number of bytes that the device wrote.

Ring memory is read and written through cast memoryviews, one aligned access per field, because the device looks at it
at the same time. The positions of the fields come from the declarations in `pyvirtfs.virtio.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.dma import DmaAllocator, DmaBuffer, Range
from pyvirtfs.guest.registers import fields_of
from pyvirtfs.memory import full_barrier, load_barrier, store_barrier
from pyvirtfs.virtio import layout

T = TypeVar("T")

_DESCRIPTOR = fields_of(layout.Descriptor)
DESCRIPTOR_NBYTES = layout.Descriptor.sizeof()

# Descriptor i starts at 2i quadwords, 4i words, 8i halfwords; its fields at these positions behind that.
_ADDRESS = _DESCRIPTOR["addr"].offset // 8
_LENGTH = _DESCRIPTOR["len"].offset // 4
_FLAGS = _DESCRIPTOR["flags"].offset // 2
_NEXT = _DESCRIPTOR["next"].offset // 2


class Used(NamedTuple, Generic[T]):
    """A request that the device has given back."""

    token: T
    """What `SplitRing.add` was given."""
    nbytes: int
    """How many bytes the device says it wrote into the writable buffers."""


class DescriptorTable:
    """An array of descriptors in guest RAM, in the ring or as an indirect table (virtio 1.3, 2.7.5).

    Args:
        buffer: Its memory, 16 bytes per descriptor, in one range.
    """

    __slots__ = ("buffer", "halves", "quads", "words")

    def __init__(self, buffer: DmaBuffer) -> None:
        self.buffer = buffer
        self.quads = buffer.view.cast("Q")
        self.words = buffer.view.cast("I")
        self.halves = buffer.view.cast("H")

    def store(self, index: int, address: int, nbytes: int, flags: int, next_index: int) -> None:
        """Fill one descriptor in."""
        self.quads[2 * index + _ADDRESS] = address
        self.words[4 * index + _LENGTH] = nbytes
        self.halves[8 * index + _FLAGS] = flags
        self.halves[8 * index + _NEXT] = next_index

    def next_of(self, index: int) -> int:
        """The `next` field of a descriptor."""
        return self.halves[8 * index + _NEXT]

    def set_next(self, index: int, next_index: int) -> None:
        """Link a descriptor to another one."""
        self.halves[8 * index + _NEXT] = next_index

    def flags_of(self, index: int) -> int:
        """The `flags` field of a descriptor."""
        return self.halves[8 * index + _FLAGS]


class SplitRing(Generic[T]):
    """A split virtqueue as its driver sees it.

    Args:
        dma: Where the ring and the indirect tables are allocated.
        size: Number of descriptors, a power of two.
        event_idx: Whether EVENT_IDX was negotiated.
        indirect: Whether INDIRECT_DESC was negotiated.
    """

    def __init__(self, dma: DmaAllocator, size: int, *, event_idx: bool = False, indirect: bool = False) -> None:
        if size <= 0 or size & (size - 1) or size > 32768:
            raise ValueError(f"a split ring has a power of two of descriptors, at most 32768, not {size}")
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self._dma = dma
        self._mask = size - 1
        self.table = DescriptorTable(dma.allocate(DESCRIPTOR_NBYTES * size))
        """The descriptors of the ring itself."""
        available = dma.allocate(6 + 2 * size)
        used = dma.allocate(6 + 8 * size)
        self.descriptor_address = self.table.buffer.address
        self.available_address = available.address
        self.used_address = used.address
        self._buffers = (self.table.buffer, available, used)
        # Available: flags, idx, ring[size], used_event. Used: flags, idx, ring[size] of (id, len), avail_event.
        self._available = available.view.cast("H")
        self._used = used.view[: 4 + 8 * size].cast("I")
        self._used_halves = used.view.cast("H")
        self._used_event = 2 + size
        self._avail_event = 2 + 4 * size

        self._free_head = 0
        self.free = size
        """Descriptors that are not in use."""
        for i in range(size):
            self.table.set_next(i, i + 1)
        self._tokens: list[tuple[T, int, DmaBuffer | None] | None] = [None] * size
        self._next_available = 0
        self._since_kick = 0
        self._last_used = 0
        self._callbacks = True

    def add(self, readable: Sequence[Range], writable: Sequence[Range], token: T) -> int:
        """Make one request available to the device; returns its head. `should_kick` tells whether to notify it.

        Args:
            readable: (address, nbytes) pairs that the device reads, in order.
            writable: Pairs that the device writes.
            token: Comes back from `harvest`; not None.

        Raises:
            BlockingIOError: If the ring has too few free descriptors now.
            ValueError: If the chain is empty, or longer than the ring can ever hold.
        """
        chain = [(address, nbytes, 0) for address, nbytes in readable]
        chain += [(address, nbytes, layout.DESC_WRITE) for address, nbytes in writable]
        if not chain:
            raise ValueError("an empty chain")
        # As Linux does: whatever has more than one buffer goes through an indirect table and costs one descriptor.
        use_table = self.indirect and len(chain) > 1
        need = 1 if use_table else len(chain)
        if need > self.size:
            raise ValueError(f"{need} buffers do not fit into a ring of {self.size}")
        if need > self.free:
            raise BlockingIOError(f"{need} descriptors needed, {self.free} free")
        head = self._free_head
        table = None
        if use_table:
            table = self._fill_indirect(chain)
            self._free_head = self.table.next_of(head)
            self.table.store(head, table.address, table.nbytes, layout.DESC_INDIRECT, self._free_head)
        else:
            self._free_head = self._fill_direct(chain)
        self.free -= need
        self._tokens[head] = (token, need, table)
        self.publish(head)
        return head

    def publish(self, head: int) -> None:
        """Put a head into the available ring and move the index, whatever the descriptor table holds there."""
        self._available[2 + (self._next_available & self._mask)] = head
        store_barrier()  # the device must find the head, and the descriptors, where the index says they are
        self._next_available = (self._next_available + 1) & 0xFFFF
        self._available[1] = self._next_available
        self._since_kick += 1

    def should_kick(self) -> bool:
        """Whether the device wants to be notified of what was added since the last call (virtio 1.3, 2.7.13.4)."""
        full_barrier()  # our index must be visible before we look whether the device still watches it
        new = self._next_available
        old = (new - self._since_kick) & 0xFFFF
        self._since_kick = 0
        if new == old:
            return False
        if self.event_idx:
            event = self._used_halves[self._avail_event]
            return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not self._used_halves[0] & layout.USED_NO_NOTIFY

    def has_used(self) -> bool:
        """Whether the device has given something back that was not harvested yet."""
        return self._used_halves[1] != self._last_used

    def harvest(self) -> Used[T] | None:
        """Take one request back from the device, or None if there is none.

        Raises:
            DeviceError: If the device returned something that it had not been given.
        """
        if self._used_halves[1] == self._last_used:
            return None
        load_barrier()  # the entry is valid once the index says so
        at = 1 + 2 * (self._last_used & self._mask)
        head, nbytes = self._used[at], self._used[at + 1]
        if head >= self.size:
            raise DeviceError(f"used ring: id {head} is out of range")
        entry = self._tokens[head]
        if entry is None:
            raise DeviceError(f"used ring: id {head} is not the head of a chain in flight")
        token, count, table = entry
        self._tokens[head] = None
        self._release(head, count)
        if table is not None:
            self._dma.free(table)
        self._last_used = (self._last_used + 1) & 0xFFFF
        if self.event_idx and self._callbacks:
            self._available[self._used_event] = self._last_used
            full_barrier()  # the wish for an interrupt before the next look at the index
        return Used(token, nbytes)

    def disable_interrupts(self) -> None:
        """Ask the device not to interrupt; a hint (virtio 1.3, 2.7.7)."""
        self._callbacks = False
        if self.event_idx:
            self._available[self._used_event] = (self._last_used - 1) & 0xFFFF  # as far away as it can be
        else:
            self._available[0] = layout.AVAIL_NO_INTERRUPT

    def enable_interrupts(self) -> bool:
        """Ask for an interrupt with the next used buffer; False if one is there already and no interrupt may come."""
        self._callbacks = True
        if self.event_idx:
            self._available[self._used_event] = self._last_used
        else:
            self._available[0] = 0
        full_barrier()
        return not self.has_used()

    @property
    def in_flight(self) -> int:
        """Requests that the device has not given back."""
        return sum(entry is not None for entry in self._tokens)

    def detach_all(self) -> list[T]:
        """Forget all requests in flight, after a reset of the device or the queue; returns their tokens."""
        entries = [entry for entry in self._tokens if entry is not None]
        for _, _, table in entries:
            if table is not None:
                self._dma.free(table)
        self._tokens = [None] * self.size
        return [entry[0] for entry in entries]

    def release(self) -> None:
        """Give the ring's memory back; the device must not use it any more. Forgets what is in flight."""
        self.detach_all()
        for buffer in self._buffers:
            self._dma.free(buffer)

    def _fill_indirect(self, chain: Sequence[tuple[int, int, int]]) -> DmaBuffer:
        buffer = self._dma.allocate(DESCRIPTOR_NBYTES * len(chain))
        table = DescriptorTable(buffer)
        last = len(chain) - 1
        for i, (address, nbytes, flags) in enumerate(chain):
            if i < last:
                table.store(i, address, nbytes, flags | layout.DESC_NEXT, i + 1)
            else:
                table.store(i, address, nbytes, flags, 0)
        return buffer

    def _fill_direct(self, chain: Sequence[tuple[int, int, int]]) -> int:
        index, last = self._free_head, len(chain) - 1
        for i, (address, nbytes, flags) in enumerate(chain):
            following = self.table.next_of(index)
            self.table.store(index, address, nbytes, flags | (layout.DESC_NEXT if i < last else 0), following)
            index = following
        return index

    def _release(self, head: int, count: int) -> None:
        """Put a chain back at the front of the free list."""
        tail = head
        for _ in range(count - 1):
            tail = self.table.next_of(tail)
        self.table.set_next(tail, self._free_head)
        self._free_head = head
        self.free += count
