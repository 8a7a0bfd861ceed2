from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import HostBridge

if TYPE_CHECKING:
    from collections.abc import Callable

ECAM = 0xB000_0000


@pytest.fixture
def bridge(device: Any) -> HostBridge:
    bridge = HostBridge(ecam_address=ECAM)
    bridge.plug(device, 3)
    return bridge


def address(slot: int, offset: int, *, bus: int = 0, function: int = 0, enable: int = 1) -> int:
    return enable << 31 | bus << 16 | slot << 11 | function << 8 | offset


def test_the_bridge_is_function_0(bridge: HostBridge) -> None:
    bridge.io_write(0xCF8, 4, address(0, 0))
    assert bridge.io_read(0xCFC, 4) == 0x00081B36
    bridge.io_write(0xCF8, 4, address(0, 8))
    assert bridge.io_read(0xCFC, 4) == 0x06000000
    with pytest.raises(ConfigError, match="taken"):
        bridge.plug(bridge.functions[0, 0], 0)


def test_the_address_register_is_a_dword(bridge: HostBridge) -> None:
    bridge.io_write(0xCF8, 4, 0xFFFFFFFF)
    assert bridge.io_read(0xCF8, 4) == 0x80FFFFFC
    bridge.io_write(0xCF8, 1, 0)
    bridge.io_write(0xCF8, 2, 0)
    bridge.io_write(0xCFA, 2, 0)
    assert bridge.io_read(0xCF8, 4) == 0x80FFFFFC
    assert bridge.io_read(0xCF8, 2) == 0xFFFF
    assert bridge.io_read(0xCF9, 1) == 0xFF
    bridge.reset()
    assert bridge.io_read(0xCF8, 4) == 0


def test_configuration_mechanism_1(bridge: HostBridge, device: Any) -> None:
    bridge.io_write(0xCF8, 4, address(3, 0))
    assert bridge.io_read(0xCFC, 4) == 0x10491AF4
    assert bridge.io_read(0xCFC, 2) == 0x1AF4
    assert bridge.io_read(0xCFE, 2) == 0x1049
    assert [bridge.io_read(0xCFC + byte, 1) for byte in range(4)] == [0xF4, 0x1A, 0x49, 0x10]
    assert bridge.io_read(0xCFE, 4) == 0xFFFFFFFF  # beyond the data register
    bridge.io_write(0xCF8, 4, address(3, 0x3C))
    bridge.io_write(0xCFC, 1, 0x0B)
    bridge.io_write(0xCFD, 1, 0x0B)
    assert device.config_read(0x3C, 2) == 0x010B


@pytest.mark.parametrize(
    "register",
    [
        address(3, 0, enable=0),
        address(3, 0, bus=1),
        address(4, 0),
        address(3, 0, function=1),
        address(31, 0, function=7),
    ],
)
def test_nobody_there(bridge: HostBridge, device: Any, register: int) -> None:
    before = bytes(device.config.data)
    bridge.io_write(0xCF8, 4, register | 4)
    bridge.io_write(0xCFC, 4, 7)
    assert bridge.io_read(0xCFC, 4) == 0xFFFFFFFF
    assert bridge.io_read(0xCFD, 1) == 0xFF
    assert bytes(device.config.data) == before


def test_ports_go_on_to_bars(bridge: HostBridge, device: Any) -> None:
    device.config_write(0x10, 4, 0xC000)
    device.config_write(4, 2, 1)
    bridge.io_write(0xC004, 4, 0x01020304)
    assert bridge.io_read(0xC006, 2) == 0x0102
    assert bridge.io_read(0x60, 1) == 0xFF
    device.config_write(0x10, 4, 0xCC0)  # a guest puts a BAR over the bridge's ports: the bridge wins
    bridge.io_write(0xCF8, 4, address(3, 0))
    assert bridge.io_read(0xCFC, 2) == 0x1AF4
    assert bridge.io_read(0xCC4, 4) == 0x01020304


def test_ecam(bridge: HostBridge, make_device: Callable[..., Any]) -> None:
    express = make_device(express=True)
    bridge.plug(express, 4, 2)
    offset = 4 << 15 | 2 << 12
    assert bridge.ecam_read(offset, 4) == 0x10491AF4
    assert bridge.ecam_read(offset + 0xFFC, 4) == 0
    assert bridge.ecam_read((3 << 15) + 0x100, 4) == 0xFFFFFFFF  # a conventional function ends at 256
    assert bridge.ecam_read(1 << 20, 4) == 0xFFFFFFFF
    assert bridge.ecam_read(5 << 15, 2) == 0xFFFF
    bridge.ecam_write(offset + 0x3C, 1, 5)
    bridge.ecam_write(1 << 20 | offset + 0x3C, 1, 6)
    assert express.config_read(0x3C, 1) == 5


def test_ecam_through_memory(bridge: HostBridge, device: Any) -> None:
    bridge.mmio_write(ECAM + (3 << 15) + 4, 2, 2)
    assert device.memory_enabled
    assert bridge.mmio_read(ECAM + (3 << 15) + 2, 2) == 0x1049
    device.config_write(0x18, 4, ECAM + (3 << 15))  # a BAR over it is hidden
    assert bridge.mmio_read(ECAM + (3 << 15), 4) == 0x10491AF4
    assert bridge.mmio_read(ECAM + (256 << 20), 4) == 0xFFFFFFFF
    device.config_write(0x18, 4, ECAM + (256 << 20))
    bridge.mmio_write(ECAM + (256 << 20), 4, 77)
    assert bridge.mmio_read(ECAM + (256 << 20), 4) == 77


def test_without_ecam() -> None:
    bridge = HostBridge()
    assert bridge.mmio_read(0, 4) == 0xFFFFFFFF
    bridge.mmio_write(0, 4, 0)


def test_another_bus_number(device: Any) -> None:
    bridge = HostBridge(number=0x20)
    bridge.plug(device, 3)
    bridge.io_write(0xCF8, 4, address(3, 0, bus=0x20))
    assert bridge.io_read(0xCFC, 2) == 0x1AF4
    assert bridge.ecam_read(0x20 << 20 | 3 << 15, 2) == 0x1AF4
    assert bridge.ecam_read(3 << 15, 2) == 0xFFFF
