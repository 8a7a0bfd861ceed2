"""The MSI-X table of a function in another process, kept on the guest's side, as a VMM does (PCI 3.0, 6.8.2)."""

from __future__ import annotations

from typing import Any, Final

from pyvirtfs.guest.registers import fields_of
from pyvirtfs.pci import layout as pci

_MASKED_ENTRY: Final = pci.MSIX_ENTRY.build({"vector_control": 1})


class MsixTable:
    """The MSI-X table that the guest sees, and which of its vectors can be sent.

    Args:
        capability: Offset of the capability in configuration space.
        parsed: The capability.
    """

    def __init__(self, capability: int, parsed: Any) -> None:
        self.control = capability + fields_of(pci.MSIX)["control"].offset
        """Offset of the message control word in configuration space."""
        self.vectors: int = (parsed.control & pci.MSIX_CONTROL_SIZE) + 1
        self.bar: int = parsed.table & 7
        self.offset: int = parsed.table & ~7
        self.entries = bytearray()
        self.enabled = False
        self.function_masked = False
        self.held: set[int] = set()
        """Vectors that were signalled and have been masked since."""
        self.reset()

    def reset(self) -> None:
        """All vectors masked, and the function does not use them."""
        self.entries[:] = _MASKED_ENTRY * self.vectors
        self.enabled = self.function_masked = False
        self.held.clear()

    def holds(self, bar: int, offset: int) -> bool:
        """Whether an access of a BAR is one of the table."""
        return bar == self.bar and self.offset <= offset < self.offset + len(self.entries)

    def read(self, offset: int, size: int) -> int:
        """Read at an offset of the BAR."""
        start = offset - self.offset
        return int.from_bytes(self.entries[start : start + size], "little")

    def write(self, offset: int, size: int, value: int) -> int:
        """Write at an offset of the BAR, which only does something if it is aligned; returns which vector that was."""
        start = offset - self.offset
        if size in {4, 8} and not start % size:
            self.entries[start : start + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        return start // pci.MSIX_ENTRY_NBYTES

    def message(self, vector: int) -> tuple[int, int]:
        """Address and data of a vector."""
        entry = self._entry(vector)
        return entry.address_low | entry.address_high << 32, entry.data

    def wanted(self, vector: int) -> bool:
        """Whether a vector may be sent now."""
        return self.enabled and not self.function_masked and not self._masked(vector)

    def _masked(self, vector: int) -> bool:
        return bool(self._entry(vector).vector_control & 1)

    def _entry(self, vector: int) -> Any:
        return pci.MSIX_ENTRY.parse(self.entries[vector * pci.MSIX_ENTRY_NBYTES :][: pci.MSIX_ENTRY_NBYTES])
