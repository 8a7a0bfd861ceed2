"""The split virtqueue, from the device's side (virtio 1.3, 2.7).

Ring memory is read and written through `memoryview.cast`: one aligned load or store each, which is what another
processor that watches the ring may see. The views are kept until the memory's `generation` changes.
"""

from __future__ import annotations

from typing import Final

from pyvirtfs.errors import MemoryAccessError, QueueError
from pyvirtfs.memory import (
    TOTAL_STORE_ORDER,
    GuestMemory,
    RemoteView,
    Words,
    full_barrier,
    load_barrier,
    store_barrier,
    unpacker,
)
from pyvirtfs.virtio.chain import Chain, Ranges
from pyvirtfs.virtio.layout import (
    AVAIL_NO_INTERRUPT,
    DESC_INDIRECT,
    DESC_NEXT,
    MAX_SPLIT_QUEUE_SIZE,
    USED_NO_NOTIFY,
    Descriptor,
    lower,
)
from pyvirtfs.virtio.queue import Virtqueue

_DESCRIPTOR: Final = lower(Descriptor)

_WEAKLY_ORDERED: Final = not TOTAL_STORE_ORDER
_INDIRECT_NEXT: Final = DESC_INDIRECT | DESC_NEXT

# Both rings as arrays of 16-bit words.
_FLAGS: Final = 0
_INDEX: Final = 1
_RING: Final = 2


class SplitQueue(Virtqueue):
    """One split virtqueue; arguments as `Virtqueue`."""

    __slots__ = (
        "_avail",
        "_avail_seen",
        "_descriptor",
        "_fenced",
        "_mask",
        "_used",
        "_used_event",
        "_used_ring",
        "_wish",
    )

    def __init__(self, index: int, memory: GuestMemory, max_size: int) -> None:
        super().__init__(index, memory, max_size)
        self.unmap()

    # --- set-up ---

    def check(self) -> None:
        """A power of two of entries; areas aligned to 16, 2 and 4 bytes, each within one region of RAM (2.7)."""
        state = self.state
        size = state.size
        if not 0 < size <= min(self.max_size, MAX_SPLIT_QUEUE_SIZE) or size & (size - 1):
            raise QueueError(f"queue {self.index}: a size of {size}, with {self.max_size} supported")
        for name, address, align in (
            ("descriptor", state.descriptors, 16),
            ("driver", state.driver, 2),
            ("device", state.device, 4),
        ):
            if address % align:
                raise QueueError(f"queue {self.index}: the {name} area at {address:#x} is not aligned to {align}")
        self._views()

    def unmap(self) -> None:
        """Drop the cached views."""
        nothing = memoryview(b"")
        self._generation = -1
        self._descriptor = unpacker(_DESCRIPTOR, nothing)
        self._avail: Words = nothing
        self._used: Words = nothing
        self._used_ring: Words = nothing
        self._mask = self._used_event = self._wish = self._avail_seen = 0
        self._fenced = False  # whether there was a full barrier since the last push
        self._reader.forget()

    def _views(self) -> tuple[memoryview | RemoteView, ...]:
        state = self.state
        view = self._memory.ring_view
        size = state.size
        event = 2 if self._event_idx else 0  # without it the event words belong to somebody else
        used = view(state.device, 4 + 8 * size + event)
        if used.readonly:
            raise MemoryAccessError(state.device, used.nbytes)
        return view(state.descriptors, 16 * size), view(state.driver, 4 + 2 * size + event), used

    def _map(self) -> bool:
        """Make the cached views anew. False: the queue is not enabled."""
        self.unmap()
        state = self.state
        if not state.enabled:
            return False
        generation = self._memory.generation
        descriptors, avail, used = self._views()
        size = state.size
        self._descriptor = unpacker(_DESCRIPTOR, descriptors)
        self._avail = avail.cast("H")
        self._used = used.cast("H")
        self._used_ring = used[4 : 4 + 8 * size].cast("Q")
        self._mask = size - 1
        self._used_event = _RING + size
        self._wish = _RING + 4 * size if self._event_idx else _FLAGS
        self._avail_seen = state.last_avail
        self._reader.refresh()
        self._generation = generation
        return True

    # --- chains ---

    def pop(self) -> Chain | None:
        """As `Virtqueue.pop`."""
        if self._generation != self._memory.generation and not self._map():
            return None
        state = self.state
        last = state.last_avail
        if last == self._avail_seen:
            available = self._avail[_INDEX]
            if available == last:
                # Nothing left: ask for a doorbell (2.7.10). The driver publishes first and looks for this second; we do
                # it the other way round, so one of us sees the other.
                self._used[self._wish] = last if self._event_idx else 0
                full_barrier()
                self._fenced = True
                available = self._avail[_INDEX]
                if available == last:
                    return None
            elif not self._event_idx:
                self._used[_FLAGS] = USED_NO_NOTIFY  # with EVENT_IDX an avail_event that stays behind says the same
            if (available - last) & 0xFFFF > state.size - len(self.in_flight):  # backwards, too
                raise QueueError(f"queue {self.index}: available index {available} after {last}, size {state.size}")
            if _WEAKLY_ORDERED:
                load_barrier()  # what the index covers is read after the index
            self._avail_seen = available
        head = self._avail[_RING + (last & self._mask)]
        if head > self._mask:
            raise QueueError(f"queue {self.index}: head {head}, size {state.size}")
        in_flight = self.in_flight
        if head in in_flight:
            raise QueueError(f"queue {self.index}: chain {head} is in flight already")
        address, nbytes, flags, following = self._descriptor(head << 4)
        if flags & _INDIRECT_NEXT == DESC_INDIRECT:
            chain = self._reader.table(head, address, nbytes)
        else:
            chain = self._walk(head, address, nbytes, flags, following)
        in_flight[head] = chain
        state.last_avail = (last + 1) & 0xFFFF
        return chain

    def _walk(self, head: int, address: int, nbytes: int, flags: int, following: int) -> Chain:
        """A chain of direct descriptors, the last of which may name an indirect table (2.7.5.3.2)."""
        ranges = Ranges()
        descriptor = self._descriptor
        mask = self._mask
        for _ in range(mask + 1):
            if flags & DESC_INDIRECT:
                if flags & DESC_NEXT:
                    raise QueueError("a descriptor with both INDIRECT and NEXT")
                self._reader.add_table(ranges, address, nbytes)
                break
            ranges.add(address, nbytes, flags)
            if not flags & DESC_NEXT:
                break
            if following > mask:
                raise QueueError(f"queue {self.index}: next is {following}, size {mask + 1}")
            address, nbytes, flags, following = descriptor(following << 4)
        else:
            raise QueueError(f"queue {self.index}: a loop of descriptors")
        return self._reader.chain(head, ranges)

    def arm(self) -> None:
        """As `Virtqueue.arm`."""
        if self._generation == self._memory.generation or self._map():
            self._used[self._wish] = self._avail[_INDEX] if self._event_idx else 0
            full_barrier()

    def push(self, chain: Chain, nbytes: int) -> None:
        """As `Virtqueue.push`."""
        head = chain.head
        in_flight = self.in_flight
        if in_flight.get(head) is not chain:
            return
        if self._generation != self._memory.generation and not self._map():
            return
        del in_flight[head]
        state = self.state
        used = state.used_index
        self._used_ring[used & self._mask] = head | nbytes << 32
        state.used_index = used = (used + 1) & 0xFFFF
        if _WEAKLY_ORDERED:
            store_barrier()  # the entry, and the reply before it, are visible before the index (2.7.8.2)
        self._used[_INDEX] = used
        self._fenced = False
        self.pushed += 1

    def needs_interrupt(self) -> bool:
        """As `Virtqueue.needs_interrupt` (2.7.7.2)."""
        self.pushed = 0
        if self._generation != self._memory.generation and not self._map():
            return False
        if not self._fenced:
            full_barrier()  # the used index is visible before the driver's wish is read
        if not self._event_idx:
            return not self._avail[_FLAGS] & AVAIL_NO_INTERRUPT
        state = self.state
        new, old = state.used_index, state.signalled_used
        state.signalled_used = new
        if not state.signalled_valid:
            state.signalled_valid = 1
            return True
        return (new - self._avail[self._used_event] - 1) & 0xFFFF < (new - old) & 0xFFFF  # need_event, in line
