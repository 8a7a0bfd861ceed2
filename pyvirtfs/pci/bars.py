"""Base address registers: what a function decodes, and where the guest has put it (PCI 3.0, 6.2.5)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci.layout import BAR_64_BIT, BAR_COUNT, BAR_IO, BAR_PREFETCHABLE


class BarHandler(Protocol):
    """The registers behind a BAR. Accesses lie wholly inside it; values are little endian integers of `size` bytes."""

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes (1, 2, 4 or 8) at `offset`."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `value` of `size` bytes (1, 2, 4 or 8) at `offset`; it is not wider than that."""
        ...


class BarKind(enum.Enum):
    """The address space and width of a BAR."""

    MEMORY_32 = "memory-32"
    MEMORY_64 = "memory-64"
    IO = "io"


@dataclass(frozen=True, slots=True)
class Bar:
    """One BAR of a function.

    Args:
        index: 0 to 5; a 64-bit one also takes the register behind it.
        kind: Address space and width.
        nbytes: Its size in bytes, a power of two; at least 16 for memory, at least 4 for I/O.
        handler: Its registers.
        prefetchable: Memory only: reads have no side effects as far as bridges are concerned.

    Raises:
        ConfigError: If these cannot be put into a base address register.
    """

    index: int
    kind: BarKind
    nbytes: int
    handler: BarHandler
    prefetchable: bool = False

    def __post_init__(self) -> None:
        name = f"BAR {self.index}"
        if not 0 <= self.index <= BAR_COUNT - self.registers:
            raise ConfigError(name, "there are six registers, and a 64-bit BAR takes two")
        least = 4 if self.kind is BarKind.IO else 16
        most = 1 << (63 if self.kind is BarKind.MEMORY_64 else 31)
        if not least <= self.nbytes <= most or self.nbytes & (self.nbytes - 1):
            raise ConfigError(name, f"its size {self.nbytes} must be a power of two from {least} to {most}")
        if self.prefetchable and self.kind is BarKind.IO:
            raise ConfigError(name, "I/O is never prefetchable")

    @property
    def registers(self) -> int:
        """How many of the six registers it takes: 1 or 2."""
        return 2 if self.kind is BarKind.MEMORY_64 else 1

    @property
    def low_bits(self) -> int:
        """The read-only type bits of its (first) register."""
        if self.kind is BarKind.IO:
            return BAR_IO
        return (BAR_64_BIT if self.kind is BarKind.MEMORY_64 else 0) | (BAR_PREFETCHABLE if self.prefetchable else 0)

    def image(self) -> bytes:
        """Its register bytes after reset: no address, only the type bits."""
        return self.low_bits.to_bytes(4 * self.registers, "little")

    def write_mask(self) -> bytes:
        """The writable bits: the address bits that are not below its size, which is how the guest learns the size."""
        width = 32 * self.registers
        return ((1 << width) - self.nbytes).to_bytes(4 * self.registers, "little")

    def address(self, register: int) -> int:
        """The address in its register value (4 or 8 bytes as one integer)."""
        return register & -self.nbytes
