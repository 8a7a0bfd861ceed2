"""The MSI-X table and pending bit array as a BAR handler (PCI 3.0, 6.8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci.layout import MSIX_ENTRY_NBYTES, MSIX_MAX_VECTORS

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGE = 4096
_EMPTY_ENTRY = bytes(12) + b"\x01\0\0\0"  # no message, masked


class MsixTable:
    """Vectors with a message and a mask each, and the events that wait behind a mask.

    A vector that is raised while the function uses MSI-X is sent at once, or, where its own mask, the function mask or
    a disabled bus mastering forbids that, remembered in its pending bit and sent once when the last obstacle goes.
    Events of one vector merge while they wait; none is lost. Raised while MSI-X is disabled, a vector does nothing.

    As a BAR the table begins at 0 and the pending bits at 0x800 of 4096 bytes, or behind a table of more than 128
    vectors. Only aligned accesses of 4 and 8 bytes are defined; others read 0 and write nothing.

    Args:
        vectors: Number of vectors, 1 to 2048.
        send: Called as ``send(vector, address, data)`` for each message.

    Attributes:
        entries: The table's bytes, 16 for each vector.
        pending: The pending bits, one for each vector, padded to 8 bytes.
        enabled: MSI-X enable of the capability.
        function_masked: Function mask of the capability.
        send: As given; whoever gets the messages may change.
        deliverable: Whether the function may write to memory at all (bus mastering).

    Raises:
        ConfigError: If there cannot be that many vectors.
    """

    __slots__ = (
        "_messages",
        "deliverable",
        "enabled",
        "entries",
        "function_masked",
        "nbytes",
        "pba_offset",
        "pending",
        "send",
        "vectors",
    )

    def __init__(self, vectors: int, send: Callable[[int, int, int], None]) -> None:
        if not 1 <= vectors <= MSIX_MAX_VECTORS:
            raise ConfigError("vectors", f"{vectors} is not between 0 (no MSI-X) and {MSIX_MAX_VECTORS}")
        self.vectors = vectors
        self.entries = bytearray(_EMPTY_ENTRY * vectors)
        self.pending = bytearray(8 * ((vectors + 63) // 64))
        self.pba_offset = max(_PAGE // 2, len(self.entries))
        end = self.pba_offset + len(self.pending)
        self.nbytes = max(_PAGE, 1 << (end - 1).bit_length())
        self.enabled = False
        self.function_masked = False
        self.deliverable = False
        self.send = send
        self._messages: dict[int, tuple[int, int]] = {}  # of the vectors that can be sent now

    def raise_vector(self, vector: int) -> None:
        """An event for `vector`. A number that is no vector is ignored."""
        message = self._messages.get(vector)
        if message is not None:
            self.send(vector, message[0], message[1])
        elif self.enabled and 0 <= vector < self.vectors:
            self.pending[vector >> 3] |= 1 << (vector & 7)

    def is_pending(self, vector: int) -> bool:
        """Whether an event of `vector` waits."""
        return bool(self.pending[vector >> 3] >> (vector & 7) & 1)

    def is_masked(self, vector: int) -> bool:
        """Whether the vector's own mask or the function mask is set."""
        return self.function_masked or bool(self.entries[vector * MSIX_ENTRY_NBYTES + 12] & 1)

    def set_control(self, *, enabled: bool, function_masked: bool) -> None:
        """Take over the two bits of message control; sends what has become deliverable."""
        self.enabled = enabled
        self.function_masked = function_masked
        self.refresh()

    def set_deliverable(self, deliverable: bool) -> None:
        """Follow bus mastering; sends what has become deliverable."""
        if deliverable != self.deliverable:
            self.deliverable = deliverable
            self.refresh()

    def reset(self) -> None:
        """The state after a reset: disabled, every vector masked and empty, nothing pending."""
        self.entries[:] = _EMPTY_ENTRY * self.vectors
        self.pending[:] = bytes(len(self.pending))
        self.enabled = self.function_masked = self.deliverable = False
        self._messages = {}

    def refresh(self) -> None:
        """Work out again which vectors can be sent, from the bytes and flags; sends those that waited."""
        self._messages = {}
        if self.enabled and self.deliverable and not self.function_masked:
            for vector in range(self.vectors):
                self._load(vector)
        if any(self.pending):
            for vector in tuple(self._messages):
                self._send_pending(vector)

    def read(self, offset: int, size: int) -> int:
        """A guest's read of table or pending bits."""
        if size not in (4, 8) or offset & (size - 1) or offset < 0:
            return 0
        if offset < len(self.entries):
            return int.from_bytes(self.entries[offset : offset + size], "little")
        offset -= self.pba_offset
        if offset >= 0:
            return int.from_bytes(self.pending[offset : offset + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of the table; pending bits are read-only."""
        if size not in (4, 8) or offset & (size - 1) or not 0 <= offset < len(self.entries):
            return
        if offset & 15 == 0:
            value &= ~3  # a message is a write of an aligned dword
        elif offset & 15 == 8:
            value &= 0x1_FFFF_FFFF
        elif offset & 15 == 12:
            value &= 1  # of vector control only the mask bit exists
        self.entries[offset : offset + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        vector = offset // MSIX_ENTRY_NBYTES
        self._messages.pop(vector, None)
        if self.enabled and self.deliverable and not self.function_masked:
            self._load(vector)
            self._send_pending(vector)

    def _load(self, vector: int) -> None:
        start = vector * MSIX_ENTRY_NBYTES
        entry = self.entries
        if not entry[start + 12] & 1:
            address = int.from_bytes(entry[start : start + 8], "little")
            self._messages[vector] = (address, int.from_bytes(entry[start + 8 : start + 12], "little"))

    def _send_pending(self, vector: int) -> None:
        # The receiver of an earlier message may have changed masks: look again at each.
        message = self._messages.get(vector)
        bit = 1 << (vector & 7)
        if message is not None and self.pending[vector >> 3] & bit:
            self.pending[vector >> 3] &= ~bit
            self.send(vector, message[0], message[1])
