from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.pci import layout


@pytest.mark.parametrize(
    ("struct", "nbytes"),
    [
        (layout.HEADER, 64),
        (layout.POWER_MANAGEMENT, 8),
        (layout.EXPRESS, 60),
        (layout.MSIX, 12),
        (layout.MSIX_ENTRY, 16),
    ],
)
def test_sizes_and_defaults(struct: Any, nbytes: int) -> None:
    assert struct.sizeof() == nbytes
    assert struct.build({}) == bytes(nbytes)


@pytest.mark.parametrize(
    ("struct", "name", "offset"),
    [
        # The header as the PCI specification numbers it.
        (layout.HEADER, "vendor", 0x00),
        (layout.HEADER, "device", 0x02),
        (layout.HEADER, "command", 0x04),
        (layout.HEADER, "status", 0x06),
        (layout.HEADER, "revision", 0x08),
        (layout.HEADER, "class_code", 0x09),
        (layout.HEADER, "cache_line_size", 0x0C),
        (layout.HEADER, "latency_timer", 0x0D),
        (layout.HEADER, "header_type", 0x0E),
        (layout.HEADER, "bist", 0x0F),
        (layout.HEADER, "bars", 0x10),
        (layout.HEADER, "cardbus_cis", 0x28),
        (layout.HEADER, "subsystem_vendor", 0x2C),
        (layout.HEADER, "subsystem_device", 0x2E),
        (layout.HEADER, "expansion_rom", 0x30),
        (layout.HEADER, "capabilities", 0x34),
        (layout.HEADER, "interrupt_line", 0x3C),
        (layout.HEADER, "interrupt_pin", 0x3D),
        (layout.HEADER, "min_gnt", 0x3E),
        (layout.HEADER, "max_lat", 0x3F),
        (layout.POWER_MANAGEMENT, "pmcsr", 4),
        (layout.EXPRESS, "device_capabilities", 0x04),
        (layout.EXPRESS, "device_control", 0x08),
        (layout.EXPRESS, "device_status", 0x0A),
        (layout.EXPRESS, "link_capabilities", 0x0C),
        (layout.EXPRESS, "link_control", 0x10),
        (layout.EXPRESS, "link_status", 0x12),
        (layout.EXPRESS, "root_status", 0x20),
        (layout.EXPRESS, "device_capabilities_2", 0x24),
        (layout.EXPRESS, "device_control_2", 0x28),
        (layout.EXPRESS, "link_capabilities_2", 0x2C),
        (layout.EXPRESS, "link_status_2", 0x32),
        (layout.EXPRESS, "slot_status_2", 0x3A),
        (layout.MSIX, "control", 2),
        (layout.MSIX, "table", 4),
        (layout.MSIX, "pba", 8),
        (layout.MSIX_ENTRY, "vector_control", 12),
    ],
)
def test_offsets(struct: Any, name: str, offset: int) -> None:
    assert layout.offset_of(struct, name) == offset


def test_offset_of_an_unknown_field() -> None:
    with pytest.raises(KeyError):
        layout.offset_of(layout.HEADER, "vendors")


def test_a_structure_builds_its_own_mask() -> None:
    mask = layout.HEADER.build({"command": 0x0507, "interrupt_line": 0xFF})
    assert [(offset, byte) for offset, byte in enumerate(mask) if byte] == [(4, 0x07), (5, 0x05), (0x3C, 0xFF)]
