"""Configuration space in the words of `lspci -vv -nn`, for any type 0 function.

Pure functions from bytes to text. The words are those of pciutils, so that its readers feel at home and scripts that
take its output apart work on this too. There is no operating system to ask about a function in an emulator, so what the
kernel would add (driver, IOMMU group) is missing, as it is with ``lspci -F``. Extended capabilities are not described.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pyvirtfs.pci import layout
from pyvirtfs.pci.lspci_express import express_lines, flags

VendorDecoder = Callable[[bytes], list[str] | None]
"""From a vendor-specific capability (its bytes from the id on, to the end of configuration space) to its text: what
follows "Vendor Specific Information: ", then any further lines without indentation. None if the decoder cannot tell."""

_AUX_CURRENT: Final = (0, 55, 100, 160, 220, 270, 320, 375)
_DEVSEL: Final = ("fast", "medium", "slow", "??")
_MEMORY_WIDTHS: Final = ("32-bit", "low-1M", "64-bit", "type 3")
_CAP_MSI: Final = 0x05
_CAP_ADVANCED_FEATURES: Final = 0x13

CLASSES: Final[Mapping[tuple[int, ...], str]] = {
    (0x00,): "Unclassified device",
    (0x01,): "Mass storage controller",
    (0x02,): "Network controller",
    (0x03,): "Display controller",
    (0x04,): "Multimedia controller",
    (0x05,): "Memory controller",
    (0x06,): "Bridge",
    (0x07,): "Communication controller",
    (0x08,): "Generic system peripheral",
    (0x09,): "Input device controller",
    (0x0A,): "Docking station",
    (0x0B,): "Processor",
    (0x0C,): "Serial bus controller",
    (0x0D,): "Wireless controller",
    (0x00, 0x00): "Non-VGA unclassified device",
    (0x02, 0x00): "Ethernet controller",
    (0x06, 0x00): "Host bridge",
}
"""By (base class) and (base class, subclass), the names from the PCI Code and ID Assignment Specification."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names for ids; what is missing is shown as a number.

    Args:
        classes: By (base class,) and (base class, subclass).
        vendors: By vendor id.
        devices: By (vendor id, device id).
    """

    classes: Mapping[tuple[int, ...], str] = field(default_factory=lambda: CLASSES)
    vendors: Mapping[int, str] = field(default_factory=dict)
    devices: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def class_name(self, code: int) -> str:
        """A class code of 24 bits as ``name [bbss]``."""
        base, sub = code >> 16 & 0xFF, code >> 8 & 0xFF
        name = self.classes.get((base, sub)) or self.classes.get((base,)) or "Class"
        return f"{name} [{code >> 8:04x}]"

    def device_name(self, vendor: int, device: int) -> str:
        """A function's ids as ``vendor device [vvvv:dddd]``."""
        vendor_name = self.vendors.get(vendor)
        device_name = self.devices.get((vendor, device), "Device")
        return f"{f'{vendor_name} ' if vendor_name else ''}{device_name} [{vendor:04x}:{device:04x}]"


def describe(
    config: bytes,
    *,
    slot: str = "00:00.0",
    names: Names | None = None,
    vendor_decoders: Mapping[int, VendorDecoder] | None = None,
    bar_sizes: Mapping[int, int] | None = None,
) -> str:
    """Describe a function as ``lspci -vv -nn`` does.

    Args:
        config: Its configuration space, 64 to 4096 bytes; a shorter one is filled up with zeroes.
        slot: Bus, slot and function, ``bb:ss.f`` or ``dddd:bb:ss.f``.
        names: Names for ids; None knows only device classes.
        vendor_decoders: By vendor id of the function, who describes its vendor-specific capabilities.
        bar_sizes: By BAR index, sizes in bytes, which the bytes alone do not tell.

    Returns:
        The lines, the last one ended too. A header of another type than 0 gets no more than its first lines.
    """
    config = bytes(config).ljust(layout.CONVENTIONAL_NBYTES, b"\0")
    header = layout.HEADER.parse(config)
    lines = _identity(header, slot, names or Names())
    if header.header_type & 0x7F:
        lines.append(f"\t!!! Unknown header type {header.header_type & 0x7F:02x}")
    else:
        lines += _control(header)
        lines += _regions(header, bar_sizes or {})
        lines += _expansion_rom(header)
        if header.status & layout.STATUS_CAPABILITIES:
            decoder = (vendor_decoders or {}).get(header.vendor)
            lines += _capabilities(config, header, slot, decoder)
    return "\n".join(lines) + "\n"


def _identity(header: Any, slot: str, names: Names) -> list[str]:
    first = f"{slot} {names.class_name(header.class_code)}: {names.device_name(header.vendor, header.device)}"
    if header.revision:
        first += f" (rev {header.revision:02x})"
    if header.class_code & 0xFF:
        first += f" (prog-if {header.class_code & 0xFF:02x})"
    if header.header_type & 0x7F or header.subsystem_vendor in (0, 0xFFFF):
        return [first]
    return [first, f"\tSubsystem: {names.device_name(header.subsystem_vendor, header.subsystem_device)}"]


def _control(header: Any) -> list[str]:
    command, status = header.command, header.status
    lines = [
        "\tControl: "
        + flags(
            command,
            ("I/O", layout.COMMAND_IO),
            ("Mem", layout.COMMAND_MEMORY),
            ("BusMaster", layout.COMMAND_MASTER),
            ("SpecCycle", 0x08),
            ("MemWINV", 0x10),
            ("VGASnoop", 0x20),
            ("ParErr", 0x40),
            ("Stepping", 0x80),
            ("SERR", layout.COMMAND_SERR),
            ("FastB2B", 0x200),
            ("DisINTx", layout.COMMAND_INTX_DISABLE),
        ),
        "\tStatus: "
        + flags(
            status,
            ("Cap", layout.STATUS_CAPABILITIES),
            ("66MHz", 0x20),
            ("UDF", 0x40),
            ("FastB2B", 0x80),
            ("ParErr", 0x100),
        )
        + f" DEVSEL={_DEVSEL[status >> 9 & 3]} "
        + flags(
            status,
            (">TAbort", 0x800),
            ("<TAbort", 0x1000),
            ("<MAbort", 0x2000),
            (">SERR", 0x4000),
            ("<PERR", 0x8000),
            ("INTx", layout.STATUS_INTERRUPT),
        ),
    ]
    if command & layout.COMMAND_MASTER:
        latency = f"\tLatency: {header.latency_timer}"
        limits = [f"{header.min_gnt * 250}ns min"] if header.min_gnt else []
        limits += [f"{header.max_lat * 250}ns max"] if header.max_lat else []
        latency += f" ({', '.join(limits)})" if limits else ""
        latency += f", Cache Line Size: {header.cache_line_size * 4} bytes" if header.cache_line_size else ""
        lines.append(latency)
    if header.interrupt_pin or header.interrupt_line:
        pin = chr(ord("A") + header.interrupt_pin - 1) if header.interrupt_pin else "?"
        lines.append(f"\tInterrupt: pin {pin} routed to IRQ {header.interrupt_line}")
    return lines


def _regions(header: Any, sizes: Mapping[int, int]) -> list[str]:
    lines = []
    upper_half = False
    for index, register in enumerate(header.bars):
        if upper_half:
            upper_half = False
            continue
        if not register and index not in sizes:
            continue
        if register & layout.BAR_IO:
            enabled = header.command & layout.COMMAND_IO
            address = register & ~3
            text = "I/O ports at " + (f"{address:04x}" if address or enabled else "<unassigned>")
        else:
            enabled = header.command & layout.COMMAND_MEMORY
            width = register >> 1 & 3
            address = register & ~15
            text = "Memory at "
            upper_half = width == 2 and index < layout.BAR_COUNT - 1
            if upper_half:
                address |= header.bars[index + 1] << 32
            if width == 2 and not upper_half:
                text += "<invalid-64bit-slot>"
            else:
                text += f"{address:08x}" if address else "<unassigned>"
            prefetchable = "" if register & layout.BAR_PREFETCHABLE else "non-"
            text += f" ({_MEMORY_WIDTHS[width]}, {prefetchable}prefetchable)"
        text += "" if enabled else " [disabled]"
        text += _size(sizes.get(index, 0))
        lines.append(f"\tRegion {index}: {text}")
    return lines


def _expansion_rom(header: Any) -> list[str]:
    register = header.expansion_rom
    if not register:
        return []
    address = register & ~0x7FF
    text = f"{address:08x}" if address else "<unassigned>"
    if not register & 1:
        text += " [disabled]"
    elif not header.command & layout.COMMAND_MEMORY:
        text += " [disabled by cmd]"
    return [f"\tExpansion ROM at {text}"]


def _size(nbytes: int) -> str:
    if not nbytes:
        return ""
    suffix = ""
    for suffix in ("", "K", "M", "G", "T"):
        if nbytes < 1024 or suffix == "T":
            break
        nbytes //= 1024
    return f" [size={nbytes}{suffix}]"


def _capabilities(config: bytes, header: Any, slot: str, decoder: VendorDecoder | None) -> list[str]:
    lines = []
    seen = set()
    where = header.capabilities & ~3
    while where:
        capability_id, following = config[where], config[where + 1] & ~3
        if where in seen:
            lines.append(f"\tCapabilities: [{where:02x}] <chain looped>")
            break
        if capability_id == 0xFF:
            lines.append(f"\tCapabilities: [{where:02x}] <chain broken>")
            break
        seen.add(where)
        data = config[where : layout.CONVENTIONAL_NBYTES]
        if capability_id == layout.CAP_EXPRESS:
            text = express_lines(
                data,
                first_function=slot.endswith(":00.0"),
                has_memory_bar=_has_memory_bar(header),
            )
        elif capability_id == layout.CAP_VENDOR:
            text = _vendor(data, decoder)
        elif capability_id in _DECODERS:
            text = _DECODERS[capability_id](data)
        else:
            text = [_UNDECODED.get(capability_id) or f"Capability ID {capability_id:#04x} [{_word(data, 2):04x}]"]
        lines.append(f"\tCapabilities: [{where:02x}] {text[0]}")
        lines += text[1:]
        where = following
    return lines


def _has_memory_bar(header: Any) -> bool:
    return any(register and not register & layout.BAR_IO for register in header.bars)


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _dword(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _power(data: bytes) -> list[str]:
    cap = layout.POWER_MANAGEMENT.parse(data.ljust(8, b"\0"))
    pmc, pmcsr = cap.pmc, cap.pmcsr
    wakes = flags(pmc, ("D0", 0x800), ("D1", 0x1000), ("D2", 0x2000), ("D3hot", 0x4000), ("D3cold", 0x8000)).replace(
        " ", ","
    )
    return [
        f"Power Management version {pmc & 7}",
        "\t\tFlags: "
        + flags(pmc, ("PMEClk", 0x08), ("DSI", 0x20), ("D1", 0x200), ("D2", 0x400))
        + f" AuxCurrent={_AUX_CURRENT[pmc >> 6 & 7]}mA PME({wakes})",
        f"\t\tStatus: D{pmcsr & 3} "
        + flags(pmcsr, ("NoSoftRst", 0x08), ("PME-Enable", 0x100))
        + f" DSel={pmcsr >> 9 & 15} DScale={pmcsr >> 13 & 3} "
        + flags(pmcsr, ("PME", 0x8000)),
    ]


def _msi(data: bytes) -> list[str]:
    data = data.ljust(24, b"\0")
    control = _word(data, 2)
    wide = control & 0x80
    address = f"{_dword(data, 8):08x}{_dword(data, 4):08x}" if wide else f"{_dword(data, 4):08x}"
    lines = [
        "MSI: "
        + flags(control, ("Enable", 1))
        + f" Count={1 << (control >> 4 & 7)}/{1 << (control >> 1 & 7)} "
        + flags(control, ("Maskable", 0x100), ("64bit", 0x80)),
        f"\t\tAddress: {address}  Data: {_word(data, 12 if wide else 8):04x}",
    ]
    if control & 0x100:
        masks = 16 if wide else 12
        lines.append(f"\t\tMasking: {_dword(data, masks):08x}  Pending: {_dword(data, masks + 4):08x}")
    return lines


def _msix(data: bytes) -> list[str]:
    cap = layout.MSIX.parse(data.ljust(12, b"\0"))
    return [
        "MSI-X: "
        + flags(cap.control, ("Enable", layout.MSIX_CONTROL_ENABLE))
        + f" Count={(cap.control & layout.MSIX_CONTROL_SIZE) + 1} "
        + flags(cap.control, ("Masked", layout.MSIX_CONTROL_MASK)),
        f"\t\tVector table: BAR={cap.table & 7} offset={cap.table & ~7:08x}",
        f"\t\tPBA: BAR={cap.pba & 7} offset={cap.pba & ~7:08x}",
    ]


def _advanced_features(data: bytes) -> list[str]:
    able, control, status = data.ljust(6, b"\0")[3:6]
    return [
        "PCI Advanced Features",
        "\t\tAFCap: " + flags(able, ("TP", 1), ("FLR", 2)),
        "\t\tAFCtrl: " + flags(control, ("FLR", 1)),
        "\t\tAFStatus: " + flags(status, ("TP", 1)),
    ]


def _vendor(data: bytes, decoder: VendorDecoder | None) -> list[str]:
    text = decoder(data) if decoder is not None else None
    if text is None:
        text = [f"Len={data[2] if len(data) > 2 else 0:02x} <?>"]
    return [f"Vendor Specific Information: {text[0]}", *(f"\t\t{line}" for line in text[1:])]


_DECODERS: Final[Mapping[int, Callable[[bytes], list[str]]]] = {
    layout.CAP_POWER_MANAGEMENT: _power,
    _CAP_MSI: _msi,
    layout.CAP_MSIX: _msix,
    _CAP_ADVANCED_FEATURES: _advanced_features,
}
_UNDECODED: Final[Mapping[int, str]] = {
    0x00: "Null",
    0x06: "CompactPCI hot-swap <?>",
    0x0B: "CompactPCI central resource control <?>",
    0x0C: "Hot-plug capable",
    0x0E: "AGP3 <?>",
    0x0F: "Secure device <?>",
}
