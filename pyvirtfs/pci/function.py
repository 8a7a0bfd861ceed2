"""A type 0 PCI function: configuration space, BARs, interrupts and resets, for any device behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import layout
from pyvirtfs.pci.bars import Bar, BarKind
from pyvirtfs.pci.config import ALL_ONES, Capability, CapabilityList, ConfigSpace
from pyvirtfs.pci.express import express_capability, power_capability
from pyvirtfs.pci.msix import MsixTable

if TYPE_CHECKING:
    from pyvirtfs.pci.interrupts import InterruptSink

_COMMAND_WRITABLE: Final = (
    layout.COMMAND_IO
    | layout.COMMAND_MEMORY
    | layout.COMMAND_MASTER
    | layout.COMMAND_SERR
    | layout.COMMAND_INTX_DISABLE
)

_IDENTITY_BITS: Final = {
    "vendor": 16,
    "device": 16,
    "revision": 8,
    "class_code": 24,
    "subsystem_vendor": 16,
    "subsystem_device": 16,
}


def _drop(_vector: int, _address: int, _data: int) -> None:
    """A message of a function that has no sink for interrupts."""


BarListener = Callable[["PciFunction", int, int | None, int | None], None]
"""Called as ``listener(function, bar, old_address, new_address)``; None is "not decoded"."""


@dataclass(frozen=True, slots=True)
class PciIdentity:
    """The ids in a function's header (PCI 3.0, 6.2.1 and 6.2.4).

    Args:
        vendor: Vendor id, 16 bits.
        device: Device id, 16 bits.
        revision: Revision id, 8 bits.
        class_code: Base class, subclass and programming interface, 24 bits: 0x000200 is base 00, subclass 02.
        subsystem_vendor: Subsystem vendor id, 16 bits.
        subsystem_device: Subsystem id, 16 bits.

    Raises:
        ConfigError: If an id does not fit.
    """

    vendor: int
    device: int
    revision: int = 0
    class_code: int = 0
    subsystem_vendor: int = 0
    subsystem_device: int = 0

    def __post_init__(self) -> None:
        for name, bits in _IDENTITY_BITS.items():
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                raise ConfigError(name, f"{value:#x} does not fit into {bits} bits")


class PciFunction:
    """One type 0 function, passive: it acts when an access reaches it, in the caller's thread.

    Nothing that a guest can cause raises an exception here: values are cut to the access size, an access that hits
    nothing reads as all ones and writes nothing.

    A device derives from it (or holds it), adds capabilities and BARs, and overrides `command_changed` and
    `function_reset`.

    Args:
        identity: Its ids.
        interrupts: Where interrupts go; None drops them (a bus that the function is plugged into sets itself there).
        express: Whether it shows a PCI Express endpoint: 4096 bytes of configuration space, the PCI Express and the
            power management capability.
        interrupt_pin: 1 to 4 for INTA to INTD, 0 for none.
        flr: With `express`: whether the guest may reset the function (function level reset).

    Attributes:
        config: Its configuration space.
        capabilities: Its capability list.
        bars: By index, the BARs.
        msix: Its MSI-X vectors, or None.
        interrupts: As given.
        bar_listeners: Called when the guest moves, enables or disables a BAR.
        bus_master_enabled: Whether it may read and write guest memory and send messages.
        memory_enabled: Whether it answers at the addresses of its memory BARs.
        io_enabled: Whether it answers at the addresses of its I/O BARs.
    """

    def __init__(
        self,
        identity: PciIdentity,
        *,
        interrupts: InterruptSink | None = None,
        express: bool = False,
        interrupt_pin: int = 1,
        flr: bool = True,
    ) -> None:
        if not 0 <= interrupt_pin <= 4:
            raise ConfigError("interrupt_pin", f"{interrupt_pin} is not 0 (none) or 1 to 4 (INTA to INTD)")
        self.identity = identity
        self._interrupts = interrupts
        self.interrupt_pin = interrupt_pin
        self.config = ConfigSpace(layout.EXPRESS_NBYTES if express else layout.CONVENTIONAL_NBYTES)
        self.config.declare(0, *_header(identity, interrupt_pin))
        self.capabilities = CapabilityList(self.config)
        self.bars: dict[int, Bar] = {}
        self.msix: MsixTable | None = None
        self.bar_listeners: list[BarListener] = []
        self.bus_master_enabled = self.memory_enabled = self.io_enabled = False
        self._msix_capability: Capability | None = None
        self._power: Capability | None = None
        self._power_state = layout.POWER_D0
        self._express: Capability | None = None
        self._intx_requested = False
        self._intx_level = False
        self._addresses: dict[int, int | None] = {}
        self._reads: dict[int, tuple[Callable[[int, int], int], int]] = {}
        self._writes: dict[int, tuple[Callable[[int, int, int], None], int]] = {}
        self._before_read: dict[int, tuple[Callable[[int, int], None], int]] = {}  # by dword: hook, its base offset
        self._after_write: dict[int, tuple[Callable[[int, int], None], int]] = {
            layout.COMMAND >> 2: (self._command_written, 0)
        }
        if express:
            self._express = express_capability(self._device_control_written, flr=flr)
            self.add_capability(self._express)
            self._power = power_capability(self._power_written)
            self.add_capability(self._power)

    @property
    def interrupts(self) -> InterruptSink | None:
        """Where interrupts go; None drops them."""
        return self._interrupts

    @interrupts.setter
    def interrupts(self, sink: InterruptSink | None) -> None:
        self._interrupts = sink
        if self.msix is not None:
            self.msix.send = _drop if sink is None else sink.msix

    # -- Setting it up

    def add_bar(self, bar: Bar) -> None:
        """Add a BAR. ConfigError if one of its registers is taken."""
        for other in self.bars.values():
            if bar.index < other.index + other.registers and other.index < bar.index + bar.registers:
                raise ConfigError(f"BAR {bar.index}", f"its register belongs to BAR {other.index}")
        offset = layout.BARS + 4 * bar.index
        self.config.declare(offset, bar.image(), bar.write_mask())
        for register in range(bar.registers):
            self._after_write[(offset >> 2) + register] = (self._bar_written, 0)
        self.bars[bar.index] = bar
        self._addresses[bar.index] = None
        self._reads[bar.index] = (bar.handler.read, bar.nbytes)
        self._writes[bar.index] = (bar.handler.write, bar.nbytes)

    def add_capability(self, capability: Capability) -> int:
        """Add a capability and return its offset. ConfigError if configuration space is full."""
        offset = self.capabilities.add(capability)
        for dword in range(offset >> 2, (offset + capability.nbytes + 3) >> 2):
            if capability.before_read is not None:
                self._before_read[dword] = (capability.before_read, offset)
            if capability.after_write is not None:
                self._after_write[dword] = (capability.after_write, offset)
        return offset

    def add_msix(self, vectors: int, bar: int = 1) -> MsixTable | None:
        """Add MSI-X: the capability, and a 32-bit memory BAR with table and pending bits.

        Args:
            vectors: 0 to 2048; 0 adds nothing.
            bar: Index of the BAR, which must be free.

        Returns:
            The vectors, also in `msix`; None for 0 vectors.

        Raises:
            ConfigError: If the number, the BAR or the room in configuration space does not allow it.
        """
        if vectors == 0:
            return None
        table = MsixTable(vectors, _drop if self._interrupts is None else self._interrupts.msix)
        self.add_bar(Bar(bar, BarKind.MEMORY_32, table.nbytes, table))
        self._msix_capability = Capability(
            layout.MSIX.build(
                {"capability_id": layout.CAP_MSIX, "control": vectors - 1, "table": bar, "pba": table.pba_offset | bar}
            ),
            writable=layout.MSIX.build({"control": layout.MSIX_CONTROL_ENABLE | layout.MSIX_CONTROL_MASK}),
            after_write=self._msix_written,
        )
        self.add_capability(self._msix_capability)
        self.msix = table
        return table

    # -- What the guest does

    def config_read(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space; misaligned or outside it: all ones."""
        config = self.config
        hook = self._before_read.get(offset >> 2)
        if hook is not None and config.accepts(offset, size):
            hook[0](offset - hook[1], size)
        return config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space; misaligned or outside it: ignored."""
        if self.config.write(offset, size, value):
            hook = self._after_write.get(offset >> 2)
            if hook is not None:
                hook[0](offset - hook[1], size)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `offset` in a BAR; no such BAR or outside it: all ones.

        The access counts as decoded: whether the guest has enabled and where it has put the BAR is in `bar_address`.
        """
        target = self._reads.get(bar)
        if target is None or size not in (4, 1, 2, 8) or not 0 <= offset <= target[1] - size:
            return ALL_ONES.get(size, 0)
        return target[0](offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4 or 8) at `offset` in a BAR; no such BAR or outside it: ignored."""
        target = self._writes.get(bar)
        if target is not None and size in (2, 4, 1, 8) and 0 <= offset <= target[1] - size:
            target[0](offset, size, value & ALL_ONES[size])

    # -- What the device does

    def set_intx(self, level: bool) -> None:
        """Say whether the device has an interrupt pending that it signals by its pin (PCI 3.0, 2.2.6).

        The pin follows while neither the guest has disabled it (command bit 10) nor MSI-X is enabled.
        """
        if level != self._intx_requested:
            self._intx_requested = level
            self._update_intx()

    @property
    def intx_asserted(self) -> bool:
        """The level of the pin."""
        return self._intx_level

    def bar_address(self, bar: int) -> int | None:
        """The guest-physical address (or I/O port) at which a BAR answers now; None if it does not.

        A BAR answers while its space is enabled in the command register, the function is in power state D0 and an
        address other than 0, the value after reset, has been written.
        """
        return self._addresses.get(bar)

    def reset(self) -> None:
        """Reset the function: registers, vectors and pins, and the device behind it.

        This is what the machine's reset does, and the guest's function level reset (PCIe 2.0, 6.6.2) or its return from
        D3hot (PCI PM 1.2, 5.4.1).
        """
        self.function_reset()
        self.config.reset()
        self._power_state = layout.POWER_D0
        self._intx_requested = False
        if self.msix is not None:
            self.msix.reset()
        self._update_command()

    def refresh(self) -> None:
        """Work out again what follows from the registers, after somebody has restored `config` and `msix` by hand."""
        if self._power is not None:
            self._power_state = self._power.load(layout.PMCSR, 2) & layout.PMCSR_STATE
        self._update_msix()
        self._update_command()
        self.command_changed()

    # -- For devices to override

    def command_changed(self) -> None:
        """The guest has written the command register; the `..._enabled` attributes tell what holds now."""

    def function_reset(self) -> None:
        """The function is being reset: stop at once and go back to the initial state; the registers follow."""

    # -- Inside

    def _command_written(self, offset: int, size: int) -> None:
        if offset + size > layout.COMMAND and offset < layout.STATUS:
            self._update_command()
            self.command_changed()

    def _update_command(self) -> None:
        command = self.config.load(layout.COMMAND, 2)
        powered = self._power_state == layout.POWER_D0
        self.io_enabled = powered and bool(command & layout.COMMAND_IO)
        self.memory_enabled = powered and bool(command & layout.COMMAND_MEMORY)
        self.bus_master_enabled = powered and bool(command & layout.COMMAND_MASTER)
        self._update_addresses()
        self._update_intx()
        if self.msix is not None:
            self.msix.set_deliverable(self.bus_master_enabled)

    def _bar_written(self, offset: int, size: int) -> None:
        del offset, size
        self._update_addresses()

    def _update_addresses(self) -> None:
        for index, bar in self.bars.items():
            enabled = self.io_enabled if bar.kind is BarKind.IO else self.memory_enabled
            register = self.config.load(layout.BARS + 4 * index, 4 * bar.registers)
            new = (bar.address(register) or None) if enabled else None
            old = self._addresses[index]
            if new != old:
                self._addresses[index] = new
                for listener in tuple(self.bar_listeners):
                    listener(self, index, old, new)

    def _update_intx(self) -> None:
        pending = self._intx_requested and not (self.msix is not None and self.msix.enabled)
        data = self.config.data
        if pending:
            data[layout.STATUS] |= layout.STATUS_INTERRUPT
        else:
            data[layout.STATUS] &= ~layout.STATUS_INTERRUPT & 0xFF
        disabled = data[layout.COMMAND + 1] & layout.COMMAND_INTX_DISABLE >> 8
        level = pending and not disabled and self.interrupt_pin > 0 and self._power_state == layout.POWER_D0
        if level != self._intx_level:
            self._intx_level = level
            if self.interrupts is not None:
                self.interrupts.intx(level)

    def _msix_written(self, offset: int, size: int) -> None:
        del offset, size
        self._update_msix()
        self._update_intx()

    def _update_msix(self) -> None:
        if self.msix is not None and self._msix_capability is not None:
            control = self._msix_capability.load(layout.MSIX_CONTROL, 2)
            self.msix.set_control(
                enabled=bool(control & layout.MSIX_CONTROL_ENABLE),
                function_masked=bool(control & layout.MSIX_CONTROL_MASK),
            )

    def _device_control_written(self, offset: int, size: int) -> None:
        del offset, size
        if self._express is not None and self._express.load(layout.DEVICE_CONTROL, 2) & layout.DEVCTL_INITIATE_FLR:
            self.reset()  # also takes the bit back: it always reads 0

    def _power_written(self, offset: int, size: int) -> None:
        del offset, size
        if self._power is None:
            return
        pmcsr = self._power.load(layout.PMCSR, 2)
        old, new = self._power_state, pmcsr & layout.PMCSR_STATE
        if new not in (layout.POWER_D0, layout.POWER_D3HOT):
            # A state that the function does not support: the write completes and nothing changes (PCI PM 1.2, 3.2.4).
            self._power.store(layout.PMCSR, 2, pmcsr & ~layout.PMCSR_STATE | old)
        elif new == layout.POWER_D0 and old == layout.POWER_D3HOT:
            self.reset()  # No_Soft_Reset is clear
        elif new != old:
            self._power_state = new
            self._update_command()
            self.command_changed()


def _header(identity: PciIdentity, interrupt_pin: int) -> tuple[bytes, bytes, bytes]:
    """The header's bytes after reset, its writable bits and its RW1C bits."""
    image = layout.HEADER.build(
        {
            "vendor": identity.vendor,
            "device": identity.device,
            "revision": identity.revision,
            "class_code": identity.class_code,
            "subsystem_vendor": identity.subsystem_vendor,
            "subsystem_device": identity.subsystem_device,
            "interrupt_pin": interrupt_pin,
        }
    )
    writable = layout.HEADER.build({"command": _COMMAND_WRITABLE, "cache_line_size": 0xFF, "interrupt_line": 0xFF})
    return image, writable, layout.HEADER.build({"status": layout.STATUS_ERRORS})
