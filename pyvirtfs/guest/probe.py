"""Finding and enabling PCI functions, as firmware and an operating system do at boot (PCI 3.0, chapter 6).

`probe` enumerates the slots of a bus, sizes every BAR, places it in a window, turns decoding and bus mastering on and
walks the capability list. It trusts nothing: a list that runs in circles, or a structure outside of its BAR, ends with
`DeviceError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.access import Bus, FoundBar, Slot
from pyvirtfs.guest.registers import Registers, fields_of
from pyvirtfs.pci import layout as pci
from pyvirtfs.virtio import layout as virtio

SLOTS = 32
FUNCTIONS = 8
NO_FUNCTION = 0xFFFF

CLASS_NAMES = {0x000200: "Unclassified device", 0x060000: "Host bridge"}
VIRTIO_NAMES = {9: "9P transport"}


class Windows:
    """Where BARs may be placed: bump allocators for addresses and ports.

    Args:
        memory: Physical addresses below 4 GiB.
        memory_64bit: Addresses for 64-bit prefetchable BARs; None puts them into `memory` too.
        io: I/O ports.
    """

    def __init__(
        self,
        memory: range = range(0xE0000000, 0xF0000000),
        memory_64bit: range | None = None,
        io: range = range(0xC000, 0x10000),
    ) -> None:
        self._memory = [memory.start, memory.stop]
        self._memory_64bit = self._memory if memory_64bit is None else [memory_64bit.start, memory_64bit.stop]
        self._io = [io.start, io.stop]

    def place(self, *, is_io: bool, wide: bool, nbytes: int) -> int:
        """An address for a BAR, aligned to its size. MemoryError if the window is full."""
        window = self._io if is_io else self._memory_64bit if wide else self._memory
        address = -(-window[0] // nbytes) * nbytes
        if address + nbytes > window[1]:
            raise MemoryError(f"no room for a BAR of {nbytes} bytes")
        window[0] = address + nbytes
        return address


class Capability(NamedTuple):
    """An entry of the capability list."""

    offset: int
    """In configuration space."""
    id: int
    """What it is: 0x09 vendor specific (virtio), 0x11 MSI-X, ..."""


class VirtioStructure(NamedTuple):
    """Where a virtio structure lies (virtio 1.3, 4.1.4)."""

    type: int
    """1 common, 2 notify, 3 ISR, 4 device, 5 the PCI configuration access window, ..."""
    capability: int
    """Offset of its capability in configuration space."""
    bar: int
    offset: int
    """In the BAR."""
    nbytes: int
    multiplier: int = 0
    """Of queue_notify_off; notification structures only."""


class MsixStructure(NamedTuple):
    """The MSI-X capability, taken apart (PCI 3.0, 6.8.2)."""

    capability: int
    vectors: int
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int


class FoundFunction:
    """A function that `probe` has found, enabled and can reach.

    It offers the accesses of `pyvirtfs.guest.access.FunctionAccess`.
    """

    def __init__(self, bus: Bus, slot: Slot) -> None:
        self.bus = bus
        self.slot = slot
        self.header = Registers(pci.HEADER, self.config_read, self.config_write)
        self.vendor = self.header.read("vendor")
        self.device = self.header.read("device")
        self.revision = self.header.read("revision")
        self.class_code = self.config_read(self.header.fields["class_code"].offset - 1, 4) >> 8
        self.header_type = self.header.read("header_type") & 0x7F
        self.subsystem = (self.header.read("subsystem_vendor"), self.header.read("subsystem_device"))
        self.interrupt_pin = self.header.read("interrupt_pin")
        self.bars: dict[int, FoundBar] = {}
        """By index; the upper half of a 64-bit BAR has no entry."""
        self.capabilities: list[Capability] = []
        self.virtio: list[VirtioStructure] = []
        """In the order of the capability list; of several of one type, the first is the one to use."""
        self.msix: MsixStructure | None = None

    # --- accesses ---

    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes of configuration space."""
        return self.bus.config_read(self.slot, offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of configuration space."""
        self.bus.config_write(self.slot, offset, size, value)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read `size` bytes of a BAR."""
        return self.bus.bar_read(self.slot, self.bars[bar], offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of a BAR."""
        self.bus.bar_write(self.slot, self.bars[bar], offset, size, value)

    def bar_registers(self, bar: int, declaration: Any, offset: int) -> Registers:
        """A block of registers in a BAR, by the construct Struct that declares it."""
        return Registers(declaration, partial(self.bar_read, bar), partial(self.bar_write, bar), offset)

    def set_command(self, bits: int, *, clear: int = 0) -> None:
        """Set and clear bits of the command register."""
        self.header.write("command", (self.header.read("command") & ~clear) | bits)

    # --- what it is ---

    @property
    def virtio_id(self) -> int | None:
        """The virtio device id behind the PCI id, or None (virtio 1.3, 4.1.2.1)."""
        if self.vendor != virtio.VENDOR_ID:
            return None
        if virtio.MODERN_DEVICE_ID_BASE <= self.device < virtio.MODERN_DEVICE_ID_BASE + 0x40:
            return self.device - virtio.MODERN_DEVICE_ID_BASE
        if 0x1000 <= self.device < virtio.MODERN_DEVICE_ID_BASE:
            return self.subsystem[1]  # transitional: the subsystem id tells
        return None

    def structure(self, kind: int) -> VirtioStructure:
        """The first virtio structure of a type. DeviceError if the function has none."""
        for structure in self.virtio:
            if structure.type == kind:
                return structure
        raise DeviceError(f"{self.slot}: no virtio structure of type {kind}")

    def __str__(self) -> str:
        name = CLASS_NAMES.get(self.class_code, f"Class {self.class_code >> 8:04x}")
        what = f"virtio {VIRTIO_NAMES.get(self.virtio_id, self.virtio_id)} " if self.virtio_id else ""
        return f"{self.slot} {name}: {what}[{self.vendor:04x}:{self.device:04x}] (rev {self.revision:02x})"

    def describe(self) -> list[str]:
        """Some lines in the manner of lspci -v: ids, BARs, capabilities."""
        lines = [str(self), f"    subsystem {self.subsystem[0]:04x}:{self.subsystem[1]:04x}"]
        lines += [f"    {bar}" for bar in self.bars.values()]
        structures = {structure.capability: structure for structure in self.virtio}
        for capability in self.capabilities:
            lines.append(f"    capability [{capability.offset:02x}] {self._describe(capability, structures)}")
        return lines

    def _describe(self, capability: Capability, structures: dict[int, VirtioStructure]) -> str:
        if capability.id == pci.CAP_MSIX and self.msix is not None:
            return f"MSI-X: {self.msix.vectors} vectors in BAR {self.msix.table_bar}"
        structure = structures.get(capability.offset)
        if structure is not None:
            name = {1: "common", 2: "notify", 3: "ISR", 4: "device", 5: "PCI access"}.get(structure.type, "other")
            where = f"BAR {structure.bar} offset {structure.offset:#x} length {structure.nbytes:#x}"
            return f"virtio {name}" if structure.type == virtio.CFG_PCI else f"virtio {name}: {where}"
        names = {pci.CAP_POWER_MANAGEMENT: "power management", pci.CAP_EXPRESS: "PCI Express endpoint"}
        return names.get(capability.id, f"id {capability.id:#04x}")


def probe(bus: Bus, windows: Windows | None = None, *, bus_number: int = 0) -> list[FoundFunction]:
    """Find every function on a bus, place its BARs and enable it.

    Args:
        bus: The way to the functions.
        windows: Where BARs go; the defaults of `Windows` if None.
        bus_number: Which bus.

    Raises:
        DeviceError: If a function's registers break the rules.
        MemoryError: If a window is too small.
    """
    windows = windows or Windows()
    return [enable(function, windows) for function in enumerate_functions(bus, bus_number)]


def enumerate_functions(bus: Bus, bus_number: int = 0) -> Iterator[FoundFunction]:
    """The functions on a bus, untouched (PCI 3.0, 6.1: functions above 0 only if function 0 says so)."""
    for device in range(SLOTS):
        for number in range(FUNCTIONS):
            slot = Slot(bus_number, device, number)
            if bus.config_read(slot, 0, 2) != NO_FUNCTION:
                yield FoundFunction(bus, slot)
            elif number == 0:
                break
            if number == 0 and not bus.config_read(slot, pci.HEADER_TYPE, 1) & pci.HEADER_MULTIFUNCTION:
                break


def enable(function: FoundFunction, windows: Windows) -> FoundFunction:
    """Size and place the BARs of a function, read its capabilities, turn decoding and bus mastering on."""
    if function.header_type != 0:
        return function  # a bridge: no BARs of a device
    function.set_command(0, clear=pci.COMMAND_IO | pci.COMMAND_MEMORY | pci.COMMAND_MASTER)
    index = 0
    while index < pci.BAR_COUNT:
        bar = _place_bar(function, index, windows)
        if bar is not None:
            function.bars[index] = bar
        index += 2 if bar is not None and bar.is_64bit else 1
    decode = sum({pci.COMMAND_IO if bar.is_io else pci.COMMAND_MEMORY for bar in function.bars.values()})
    function.set_command(decode | pci.COMMAND_MASTER)
    _read_capabilities(function)
    return function


def _place_bar(function: FoundFunction, index: int, windows: Windows) -> FoundBar | None:
    """Find a BAR's size by writing all ones (PCI 3.0, 6.2.5.1), then give it an address."""
    offset = pci.BARS + 4 * index

    def exchange(at: int) -> int:
        before = function.config_read(at, 4)
        function.config_write(at, 4, 0xFFFFFFFF)
        mask = function.config_read(at, 4)
        function.config_write(at, 4, before)
        return mask

    low = exchange(offset)
    if low == 0:
        return None
    is_io = bool(low & pci.BAR_IO)
    is_64bit = not is_io and (low & 0x6) == pci.BAR_64_BIT
    prefetchable = not is_io and bool(low & pci.BAR_PREFETCHABLE)
    mask = low & (0xFFFFFFFC if is_io else 0xFFFFFFF0)
    if is_64bit:
        mask |= exchange(offset + 4) << 32
    elif is_io and mask <= 0xFFFF:
        mask |= 0xFFFF0000  # the upper half may be hard-wired to 0
        mask |= 0xFFFFFFFF00000000
    else:
        mask |= 0xFFFFFFFF00000000
    nbytes = (~mask & 0xFFFFFFFFFFFFFFFF) + 1
    if nbytes & (nbytes - 1):
        raise DeviceError(f"{function.slot}: BAR {index} has a size of {nbytes:#x} bytes, not a power of two")
    address = windows.place(is_io=is_io, wide=is_64bit and prefetchable, nbytes=nbytes)
    function.config_write(offset, 4, address & 0xFFFFFFFF)
    if is_64bit:
        function.config_write(offset + 4, 4, address >> 32)
    return FoundBar(index, is_io, is_64bit, prefetchable, nbytes, address)


def _read_capabilities(function: FoundFunction) -> None:
    if not function.header.read("status") & pci.STATUS_CAPABILITIES:
        return
    offset = function.header.read("capabilities") & 0xFC
    seen: set[int] = set()
    while offset:
        if offset < pci.FIRST_CAPABILITY or offset in seen:
            raise DeviceError(
                f"{function.slot}: the capability list runs in a circle or leaves its place at {offset:#x}"
            )
        seen.add(offset)
        capability = Capability(offset, function.config_read(offset, 1))
        function.capabilities.append(capability)
        if capability.id == pci.CAP_VENDOR and function.vendor == virtio.VENDOR_ID:
            function.virtio.append(_virtio_structure(function, offset))
        elif capability.id == pci.CAP_MSIX:
            function.msix = _msix_structure(function, offset)
        offset = function.config_read(offset + 1, 1) & 0xFC


def _registers(function: FoundFunction, declaration: Any, offset: int) -> Registers:
    return Registers(declaration, function.config_read, function.config_write, offset)


def _virtio_structure(function: FoundFunction, offset: int) -> VirtioStructure:
    capability = _registers(function, virtio.VirtioPciCap, offset)
    kind = capability.read("cfg_type")
    multiplier = 0
    if kind == virtio.CFG_NOTIFY:
        where = fields_of(virtio.VirtioPciNotifyCap)["notify_off_multiplier"]
        if capability.read("cap_len") < where.offset + where.nbytes:
            raise DeviceError(f"{function.slot}: the notification capability at {offset:#x} is too short")
        multiplier = function.config_read(offset + where.offset, where.nbytes)
    structure = VirtioStructure(
        kind, offset, capability.read("bar"), capability.read("offset"), capability.read("length"), multiplier
    )
    if kind in {virtio.CFG_COMMON, virtio.CFG_NOTIFY, virtio.CFG_ISR, virtio.CFG_DEVICE}:
        bar = function.bars.get(structure.bar)
        if bar is None or structure.offset + structure.nbytes > bar.nbytes:
            raise DeviceError(f"{function.slot}: virtio structure {kind} lies outside of its BAR")
    return structure


def _msix_structure(function: FoundFunction, offset: int) -> MsixStructure:
    capability = _registers(function, pci.MSIX, offset)
    table, pba = capability.read("table"), capability.read("pba")
    vectors = (capability.read("control") & pci.MSIX_CONTROL_SIZE) + 1
    found = MsixStructure(offset, vectors, table & 7, table & ~7, pba & 7, pba & ~7)
    for bar_index, start, nbytes in (
        (found.table_bar, found.table_offset, vectors * pci.MSIX_ENTRY_NBYTES),
        (found.pba_bar, found.pba_offset, -(-vectors // 64) * 8),
    ):
        bar = function.bars.get(bar_index)
        if bar is None or start + nbytes > bar.nbytes:
            raise DeviceError(f"{function.slot}: the MSI-X structures lie outside of their BAR")
    return found
