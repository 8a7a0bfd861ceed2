"""How a driver reaches a PCI function: the four accesses that every way to a device offers.

A driver above this interface cannot tell whether the function sits behind a host bridge (`pyvirtfs.guest.machine`), is
called directly, or lives in another process. Anything with these four methods can be driven: a bare
`pyvirtfs.pci.PciFunction` is such an object already.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class FunctionAccess(Protocol):
    """The accesses to one PCI function. All values are unsigned, `size` is 1, 2 or 4 (8 for BARs), little endian."""

    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes of configuration space."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of configuration space."""

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read `size` bytes at `offset` of a BAR."""

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` of a BAR."""


class Slot(NamedTuple):
    """The address of a function on its bus; prints as lspci writes it, ``00:04.0``."""

    bus: int
    device: int
    function: int = 0

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.device:02x}.{self.function:x}"


class ConfigAccess(Protocol):
    """Configuration space of a whole bus hierarchy, addressed by slot (PCI 3.0, 3.2.2.3)."""

    def read(self, slot: Slot, offset: int, size: int) -> int:
        """Read `size` (1, 2, 4) bytes; all ones where no function answers."""

    def write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        """Write `size` (1, 2, 4) bytes; ignored where no function answers."""


class PortAccess(Protocol):
    """I/O ports."""

    def io_read(self, port: int, size: int) -> int:
        """Read `size` bytes at an I/O port."""

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes at an I/O port."""


class EcamAccess(Protocol):
    """The memory-mapped configuration space of PCI Express."""

    def ecam_read(self, offset: int, size: int) -> int:
        """Read `size` bytes at an offset of the ECAM area."""

    def ecam_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at an offset of the ECAM area."""


CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC


class ConfigMechanism1:
    """Configuration mechanism 1: an address port and a data port (PCI 3.0, 3.2.2.3.2).

    Reaches the first 256 bytes of each function.
    """

    def __init__(self, ports: PortAccess) -> None:
        self._ports = ports

    def read(self, slot: Slot, offset: int, size: int) -> int:
        """See `ConfigAccess.read`."""
        self._select(slot, offset)
        return self._ports.io_read(CONFIG_DATA + (offset & 3), size)

    def write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        """See `ConfigAccess.write`."""
        self._select(slot, offset)
        self._ports.io_write(CONFIG_DATA + (offset & 3), size, value)

    def _select(self, slot: Slot, offset: int) -> None:
        if not 0 <= offset < 256:
            raise ValueError(f"mechanism 1 reaches 256 bytes, not offset {offset:#x}")
        address = 0x80000000 | slot.bus << 16 | slot.device << 11 | slot.function << 8 | (offset & 0xFC)
        self._ports.io_write(CONFIG_ADDRESS, 4, address)


class Ecam:
    """The enhanced configuration access mechanism: 4096 bytes per function in memory (PCI Express 7.2.2)."""

    def __init__(self, area: EcamAccess) -> None:
        self._area = area

    def read(self, slot: Slot, offset: int, size: int) -> int:
        """See `ConfigAccess.read`."""
        return self._area.ecam_read(_ecam_offset(slot, offset), size)

    def write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        """See `ConfigAccess.write`."""
        self._area.ecam_write(_ecam_offset(slot, offset), size, value)


def _ecam_offset(slot: Slot, offset: int) -> int:
    if not 0 <= offset < 4096:
        raise ValueError(f"a function has 4096 bytes of configuration space, not offset {offset:#x}")
    return slot.bus << 20 | slot.device << 15 | slot.function << 12 | offset


class AddressSpace(Protocol):
    """Where a processor's loads and stores end up: memory and I/O ports."""

    def mmio_read(self, address: int, size: int) -> int:
        """Load `size` bytes from a physical address."""

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Store `size` bytes at a physical address."""

    def io_read(self, port: int, size: int) -> int:
        """Read `size` bytes at an I/O port."""

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes at an I/O port."""


class FoundBar(NamedTuple):
    """A base address register, sized and placed."""

    number: int
    is_io: bool
    is_64bit: bool
    prefetchable: bool
    nbytes: int
    address: int
    """Where it was placed: a physical address, or an I/O port."""

    def __str__(self) -> str:
        if self.is_io:
            return f"BAR {self.number}: I/O ports at {self.address:04x} [size={self.nbytes}]"
        width = "64-bit" if self.is_64bit else "32-bit"
        kind = "prefetchable" if self.prefetchable else "non-prefetchable"
        return f"BAR {self.number}: memory at {self.address:08x} ({width}, {kind}) [size={_human(self.nbytes)}]"


class Bus(Protocol):
    """A way to some PCI functions: configuration space by slot, BARs by what was found."""

    def config_read(self, slot: Slot, offset: int, size: int) -> int:
        """Read `size` (1, 2, 4) bytes of configuration space; all ones where no function answers."""

    def config_write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        """Write `size` (1, 2, 4) bytes of configuration space; ignored where no function answers."""

    def bar_read(self, slot: Slot, bar: FoundBar, offset: int, size: int) -> int:
        """Read `size` bytes at `offset` of a BAR of the function in `slot`."""

    def bar_write(self, slot: Slot, bar: FoundBar, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` of a BAR of the function in `slot`."""


class BridgedBus:
    """Functions behind a host bridge: configuration by one of its mechanisms, BARs by their addresses.

    Args:
        config: `ConfigMechanism1` or `Ecam`.
        space: The processor's view of memory and ports.
    """

    def __init__(self, config: ConfigAccess, space: AddressSpace) -> None:
        self.config_read = config.read
        self.config_write = config.write
        self._space = space

    def bar_read(self, slot: Slot, bar: FoundBar, offset: int, size: int) -> int:  # noqa: ARG002 (addresses are enough)
        """See `Bus.bar_read`."""
        read = self._space.io_read if bar.is_io else self._space.mmio_read
        return read(bar.address + offset, size)

    def bar_write(self, slot: Slot, bar: FoundBar, offset: int, size: int, value: int) -> None:  # noqa: ARG002 (as above)
        """See `Bus.bar_write`."""
        write = self._space.io_write if bar.is_io else self._space.mmio_write
        write(bar.address + offset, size, value)


class DirectBus:
    """A function without a bus: its own entry points, as the only thing in slot 00:00.0."""

    def __init__(self, function: FunctionAccess) -> None:
        self.function = function

    def config_read(self, slot: Slot, offset: int, size: int) -> int:
        """See `Bus.config_read`."""
        if slot != (0, 0, 0):
            return (1 << (8 * size)) - 1
        return self.function.config_read(offset, size)

    def config_write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        """See `Bus.config_write`."""
        if slot == (0, 0, 0):
            self.function.config_write(offset, size, value)

    def bar_read(self, slot: Slot, bar: FoundBar, offset: int, size: int) -> int:  # noqa: ARG002 (there is only one)
        """See `Bus.bar_read`."""
        return self.function.bar_read(bar.number, offset, size)

    def bar_write(self, slot: Slot, bar: FoundBar, offset: int, size: int, value: int) -> None:  # noqa: ARG002 (as above)
        """See `Bus.bar_write`."""
        self.function.bar_write(bar.number, offset, size, value)


def _human(nbytes: int) -> str:
    for unit in ("", "K", "M"):
        if nbytes < 1024:
            return f"{nbytes}{unit}"
        nbytes //= 1024
    return f"{nbytes}G"
