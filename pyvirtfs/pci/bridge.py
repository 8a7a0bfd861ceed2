"""A host bridge: how a processor reaches a bus through memory, ports and configuration mechanism 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvirtfs.pci.bus import ALL_MEMORY, ALL_PORTS, PciBus
from pyvirtfs.pci.config import ALL_ONES
from pyvirtfs.pci.function import PciFunction, PciIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONFIG_ADDRESS: Final = 0xCF8
CONFIG_DATA: Final = 0xCFC
CONFIG_ENABLE: Final = 0x8000_0000
_CONFIG_ADDRESS_BITS: Final = 0x80FF_FFFC

ECAM_NBYTES: Final = 256 << 20
"""Bytes of enhanced configuration space: 256 buses of 32 slots of 8 functions of 4096 bytes."""

HOST_BRIDGE: Final = PciIdentity(
    vendor=0x1B36, device=0x0008, class_code=0x060000, subsystem_vendor=0x1AF4, subsystem_device=0x1100
)
"""The ids of the generic PCI Express host bridge, which Red Hat's vendor id documents for virtual machines."""


class HostBridge(PciBus):
    """The root bus of a machine, with the bridge to it as function 00:00.0.

    Three ways lead to configuration space: the ports 0xCF8 and 0xCFC (PCI 3.0, 3.2.2.3.2), `ecam_read` and `ecam_write`
    (PCIe 2.0, 7.2.2), and the methods `config_read` and `config_write` of the bus.

    Args:
        ecam_address: Guest-physical address of the enhanced configuration space (256 MiB), if `mmio_read` and
            `mmio_write` are to answer there; it hides BARs that overlap it.
        number: Bus number.
        memory_windows: As for `PciBus`.
        io_windows: As for `PciBus`.
        on_bar_moved: As for `PciBus`.
        on_intx: As for `PciBus`.
        on_msix: As for `PciBus`.

    Attributes:
        config_address: The value of the address register at port 0xCF8.
    """

    def __init__(
        self,
        *,
        ecam_address: int | None = None,
        number: int = 0,
        memory_windows: Iterable[range] = (ALL_MEMORY,),
        io_windows: Iterable[range] = (ALL_PORTS,),
        on_bar_moved: Callable[[PciFunction, int, int | None, int | None], None] | None = None,
        on_intx: Callable[[int, bool], None] | None = None,
        on_msix: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            number=number,
            memory_windows=memory_windows,
            io_windows=io_windows,
            on_bar_moved=on_bar_moved,
            on_intx=on_intx,
            on_msix=on_msix,
        )
        self.ecam_address = ecam_address
        self._ecam_start = ecam_address or 0
        self._ecam_end = 0 if ecam_address is None else ecam_address + ECAM_NBYTES
        self.config_address = 0
        self.plug(PciFunction(HOST_BRIDGE, interrupt_pin=0), 0)

    def reset(self) -> None:
        """Reset the bridge and every function on the bus."""
        self.config_address = 0
        super().reset()

    def io_read(self, port: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a port: configuration mechanism 1 first, then the I/O BARs; nobody: all ones."""
        if port == CONFIG_ADDRESS and size == 4:
            return self.config_address
        if self._is_config_data(port, size):
            address = self.config_address
            if address >> 16 & 0xFF != self.number:
                return ALL_ONES.get(size, 0)
            return self.config_read(address >> 11 & 31, address >> 8 & 7, address & 0xFC | port & 3, size)
        return self.pio_read(port, size)

    def io_write(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes to a port: configuration mechanism 1 first, then the I/O BARs; nobody: ignored.

        Only a dword access reaches the address register; narrower ones at its ports are ordinary I/O.
        """
        if port == CONFIG_ADDRESS and size == 4:
            self.config_address = value & _CONFIG_ADDRESS_BITS
        elif self._is_config_data(port, size):
            address = self.config_address
            if address >> 16 & 0xFF == self.number:
                self.config_write(address >> 11 & 31, address >> 8 & 7, address & 0xFC | port & 3, size, value)
        else:
            self.pio_write(port, size, value)

    def ecam_read(self, offset: int, size: int) -> int:
        """Read configuration space by its offset ``bus << 20 | slot << 15 | function << 12 | register``."""
        if offset >> 20 != self.number:
            return ALL_ONES.get(size, 0)
        return self.config_read(offset >> 15 & 31, offset >> 12 & 7, offset & 0xFFF, size)

    def ecam_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space by its offset ``bus << 20 | slot << 15 | function << 12 | register``."""
        if offset >> 20 == self.number:
            self.config_write(offset >> 15 & 31, offset >> 12 & 7, offset & 0xFFF, size, value)

    def mmio_read(self, address: int, size: int) -> int:
        """Read `size` bytes of guest-physical `address`: enhanced configuration space, or the memory BAR there."""
        if self._ecam_start <= address < self._ecam_end:
            return self.ecam_read(address - self._ecam_start, size)
        hit = self._memory.find(address)
        return ALL_ONES.get(size, 0) if hit is None else hit.function.bar_read(hit.bar, address - hit.base, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes at guest-physical `address`: enhanced configuration space, or the memory BAR there."""
        if self._ecam_start <= address < self._ecam_end:
            self.ecam_write(address - self._ecam_start, size, value)
        else:
            hit = self._memory.find(address)
            if hit is not None:
                hit.function.bar_write(hit.bar, address - hit.base, size, value)

    def _is_config_data(self, port: int, size: int) -> bool:
        enabled = self.config_address & CONFIG_ENABLE
        return bool(enabled) and port >= CONFIG_DATA and port + size <= CONFIG_DATA + 4
