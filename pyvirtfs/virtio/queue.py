"""What every virtqueue layout has in common: plain state, and the operations that a device uses (virtio 1.3, 2.6).

State and behaviour are apart: `QueueState` is a handful of integers that a snapshot can walk; a layout (`SplitQueue`)
adds the behaviour and holds nothing that could not be rebuilt from the state and guest RAM, but the chains in flight.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvirtfs.virtio.chain import Chain, ChainReader
from pyvirtfs.virtio.layout import NO_VECTOR

if TYPE_CHECKING:
    from pyvirtfs.memory import GuestMemory


def need_event(event: int, new: int, old: int) -> bool:
    """Whether a free-running 16-bit index passed `event` on its way from `old` to `new` (2.7.7, vring_need_event)."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


@dataclass(slots=True)
class QueueState:
    """The state of one virtqueue; plain integers, addresses are guest-physical."""

    size: int
    """Entries; 0 for a queue that does not exist."""
    descriptors: int = 0
    """Address of the descriptor area."""
    driver: int = 0
    """Address of the driver area: the available ring."""
    device: int = 0
    """Address of the device area: the used ring."""
    enabled: int = 0
    vector: int = NO_VECTOR
    """MSI-X vector."""
    last_avail: int = 0
    """Free-running index of the next chain to take."""
    used_index: int = 0
    """Free-running index of the next used entry to write."""
    signalled_used: int = 0
    """`used_index` at the last interrupt decision."""
    signalled_valid: int = 0
    """0 until the first decision after a reset: what the driver has been told is unknown then."""


class Virtqueue(abc.ABC):
    """One virtqueue as the device sees it.

    Args:
        index: Its number.
        memory: Guest RAM.
        max_size: Entries that the device supports; also the size after a reset.
    """

    __slots__ = ("_event_idx", "_generation", "_memory", "_reader", "in_flight", "index", "max_size", "pushed", "state")

    def __init__(self, index: int, memory: GuestMemory, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.state = QueueState(max_size)
        self.in_flight: dict[int, Chain] = {}
        """The chains taken and not yet returned, by head."""
        self.pushed = 0
        """Chains returned since the last interrupt decision."""
        self._memory = memory
        self._event_idx = False
        self._generation = -1  # of the memory that the cached views show; -1: no views
        self._reader = ChainReader(memory)

    def reset(self) -> None:
        """Forget everything, the chains in flight too: the state after a device or queue reset (2.6.1)."""
        self.state = QueueState(self.max_size)
        self.in_flight = {}
        self.pushed = 0
        self.unmap()

    def negotiate(self, *, event_idx: bool, indirect: bool) -> None:
        """Take note of the accepted features."""
        self._event_idx = event_idx
        self._reader.indirect = indirect
        self.unmap()

    @property
    def enabled(self) -> bool:
        """Whether the driver has enabled the queue."""
        return bool(self.state.enabled)

    def enable(self) -> None:
        """The driver wrote 1 to queue_enable: check size and addresses and start.

        Raises:
            QueueError: The size is not what the layout allows, or an address is not aligned.
            MemoryAccessError: A part of the ring is not RAM.
        """
        if not self.state.enabled:
            self.check()
            self.state.enabled = 1
            self.unmap()

    @abc.abstractmethod
    def check(self) -> None:
        """Check size and addresses against the rules of the layout and against guest RAM; raises as `enable`."""

    @abc.abstractmethod
    def unmap(self) -> None:
        """Drop the cached views of the ring; the next operation makes them anew."""

    @abc.abstractmethod
    def pop(self) -> Chain | None:
        """The next available chain. None if there is none; then, and only then, a doorbell rings for the next one.

        Raises:
            QueueError: The ring or the chain is malformed.
            MemoryAccessError: A descriptor points outside of RAM.
        """

    @abc.abstractmethod
    def arm(self) -> None:
        """Let a doorbell ring for the next chain, although chains that wait now may not have been taken."""

    @abc.abstractmethod
    def push(self, chain: Chain, nbytes: int) -> None:
        """Return a chain: `nbytes` were written from its first writable byte on.

        A chain from before a reset of the queue is ignored. The driver is not interrupted here: see `needs_interrupt`.
        """

    @abc.abstractmethod
    def needs_interrupt(self) -> bool:
        """Decide, once per batch of `push`, whether the driver wants to be interrupted for it."""
