"""The registers of a type 0 PCI function, declared with construct.

Each declaration serves three times: it builds the bytes that a function shows, it builds the mask of the bits which a
guest can change (the same structure with a mask in each field), and it takes a configuration space apart for `lspci`.
Every field defaults to 0, so that only what differs from 0 need be named. All fields are little endian.

Documents: PCI Local Bus Specification 3.0, chapter 6 (configuration space, MSI-X in 6.8.2); PCI Bus Power Management
Interface 1.2, section 3.2; PCI Express Base Specification 2.0, section 7.8.
"""

from __future__ import annotations

from typing import Any, Final

from construct import Array, Default, Int8ul, Int16ul, Int24ul, Int32ul, Padding, Struct

CONVENTIONAL_NBYTES: Final = 256
EXPRESS_NBYTES: Final = 4096
FIRST_CAPABILITY: Final = 0x40  # the device dependent region begins behind the 64 byte header

HEADER: Final = Struct(
    "vendor" / Default(Int16ul, 0),
    "device" / Default(Int16ul, 0),
    "command" / Default(Int16ul, 0),
    "status" / Default(Int16ul, 0),
    "revision" / Default(Int8ul, 0),
    "class_code" / Default(Int24ul, 0),
    "cache_line_size" / Default(Int8ul, 0),
    "latency_timer" / Default(Int8ul, 0),
    "header_type" / Default(Int8ul, 0),
    "bist" / Default(Int8ul, 0),
    "bars" / Default(Array(6, Int32ul), [0] * 6),
    "cardbus_cis" / Default(Int32ul, 0),
    "subsystem_vendor" / Default(Int16ul, 0),
    "subsystem_device" / Default(Int16ul, 0),
    "expansion_rom" / Default(Int32ul, 0),
    "capabilities" / Default(Int8ul, 0),
    Padding(7),
    "interrupt_line" / Default(Int8ul, 0),
    "interrupt_pin" / Default(Int8ul, 0),
    "min_gnt" / Default(Int8ul, 0),
    "max_lat" / Default(Int8ul, 0),
)
"""The 64 byte header (PCI 3.0, 6.1)."""

POWER_MANAGEMENT: Final = Struct(
    "capability_id" / Default(Int8ul, 0),
    "next" / Default(Int8ul, 0),
    "pmc" / Default(Int16ul, 0),
    "pmcsr" / Default(Int16ul, 0),
    "bridge" / Default(Int8ul, 0),
    "data" / Default(Int8ul, 0),
)
"""Power management capability, 8 bytes (PCI PM 1.2, 3.2)."""

EXPRESS: Final = Struct(
    "capability_id" / Default(Int8ul, 0),
    "next" / Default(Int8ul, 0),
    "flags" / Default(Int16ul, 0),
    "device_capabilities" / Default(Int32ul, 0),
    "device_control" / Default(Int16ul, 0),
    "device_status" / Default(Int16ul, 0),
    "link_capabilities" / Default(Int32ul, 0),
    "link_control" / Default(Int16ul, 0),
    "link_status" / Default(Int16ul, 0),
    "slot_capabilities" / Default(Int32ul, 0),
    "slot_control" / Default(Int16ul, 0),
    "slot_status" / Default(Int16ul, 0),
    "root_control" / Default(Int16ul, 0),
    "root_capabilities" / Default(Int16ul, 0),
    "root_status" / Default(Int32ul, 0),
    "device_capabilities_2" / Default(Int32ul, 0),
    "device_control_2" / Default(Int16ul, 0),
    "device_status_2" / Default(Int16ul, 0),
    "link_capabilities_2" / Default(Int32ul, 0),
    "link_control_2" / Default(Int16ul, 0),
    "link_status_2" / Default(Int16ul, 0),
    "slot_capabilities_2" / Default(Int32ul, 0),
    "slot_control_2" / Default(Int16ul, 0),
    "slot_status_2" / Default(Int16ul, 0),
)
"""PCI Express capability structure version 2, 60 bytes (PCIe 2.0, 7.8)."""

MSIX: Final = Struct(
    "capability_id" / Default(Int8ul, 0),
    "next" / Default(Int8ul, 0),
    "control" / Default(Int16ul, 0),
    "table" / Default(Int32ul, 0),
    "pba" / Default(Int32ul, 0),
)
"""MSI-X capability, 12 bytes (PCI 3.0, 6.8.2)."""

MSIX_ENTRY: Final = Struct(
    "address_low" / Default(Int32ul, 0),
    "address_high" / Default(Int32ul, 0),
    "data" / Default(Int32ul, 0),
    "vector_control" / Default(Int32ul, 0),
)
"""One entry of the MSI-X table, 16 bytes (PCI 3.0, 6.8.2)."""


def offset_of(struct: Any, name: str) -> int:
    """The byte offset of a named field in a construct `Struct` of fields with fixed sizes.

    Args:
        struct: The declaration, for example `HEADER`.
        name: The field's name.

    Raises:
        KeyError: If the structure has no field of that name.
    """
    offset = 0
    for field in struct.subcons:
        if field.name == name:
            return offset
        offset += int(field.sizeof())
    raise KeyError(name)


# Offsets in the header.
COMMAND: Final = offset_of(HEADER, "command")
STATUS: Final = offset_of(HEADER, "status")
HEADER_TYPE: Final = offset_of(HEADER, "header_type")
BARS: Final = offset_of(HEADER, "bars")
CAPABILITIES: Final = offset_of(HEADER, "capabilities")
INTERRUPT_LINE: Final = offset_of(HEADER, "interrupt_line")

BAR_COUNT: Final = 6

COMMAND_IO: Final = 0x0001
COMMAND_MEMORY: Final = 0x0002
COMMAND_MASTER: Final = 0x0004
COMMAND_SERR: Final = 0x0100
COMMAND_INTX_DISABLE: Final = 0x0400

STATUS_INTERRUPT: Final = 0x0008
STATUS_CAPABILITIES: Final = 0x0010
STATUS_ERRORS: Final = 0xF900
"""The error bits, which are cleared by writing ones (parity, target and master aborts, system error)."""

HEADER_MULTIFUNCTION: Final = 0x80

BAR_IO: Final = 0x1
BAR_64_BIT: Final = 0x4
BAR_PREFETCHABLE: Final = 0x8

# Capability ids.
CAP_POWER_MANAGEMENT: Final = 0x01
CAP_VENDOR: Final = 0x09
CAP_EXPRESS: Final = 0x10
CAP_MSIX: Final = 0x11

PMCSR: Final = offset_of(POWER_MANAGEMENT, "pmcsr")
PMCSR_STATE: Final = 0x0003
PMCSR_NO_SOFT_RESET: Final = 0x0008
POWER_D0: Final = 0
POWER_D3HOT: Final = 3

DEVICE_CONTROL: Final = offset_of(EXPRESS, "device_control")
DEVCTL_INITIATE_FLR: Final = 0x8000
DEVCAP_ROLE_BASED_ERRORS: Final = 1 << 15
DEVCAP_FLR: Final = 1 << 28

MSIX_CONTROL: Final = offset_of(MSIX, "control")
MSIX_CONTROL_SIZE: Final = 0x07FF
MSIX_CONTROL_MASK: Final = 0x4000
MSIX_CONTROL_ENABLE: Final = 0x8000
MSIX_MAX_VECTORS: Final = 2048
MSIX_ENTRY_NBYTES: Final = 16
