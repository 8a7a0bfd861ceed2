from __future__ import annotations

import pytest

from pyvirtfs.guest import ConfigMechanism1, DirectBus, Ecam, FoundBar, Slot
from pyvirtfs.guest.access import BridgedBus


class Ports:
    """Records accesses to ports, memory and the ECAM area."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def io_read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return 0x55

    def io_write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value))

    def mmio_read(self, address: int, size: int) -> int:
        self.log.append(("load", address, size))
        return 0x66

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.log.append(("store", address, size, value))

    ecam_read = mmio_read
    ecam_write = mmio_write


def test_a_slot_prints_as_lspci_writes_it() -> None:
    assert str(Slot(0, 4)) == "00:04.0"
    assert str(Slot(255, 31, 7)) == "ff:1f.7"


@pytest.mark.parametrize(("offset", "size"), [(0, 4), (0x3D, 1), (0x0E, 2), (255, 1)])
def test_mechanism_1(offset: int, size: int) -> None:
    ports = Ports()
    config = ConfigMechanism1(ports)
    assert config.read(Slot(1, 4, 2), offset, size) == 0x55
    config.write(Slot(1, 4, 2), offset, size, 7)
    address = 0x80000000 | 1 << 16 | 4 << 11 | 2 << 8 | (offset & ~3)
    data = 0xCFC + offset % 4
    assert ports.log == [
        ("out", 0xCF8, 4, address),
        ("in", data, size),
        ("out", 0xCF8, 4, address),
        ("out", data, size, 7),
    ]


def test_mechanism_1_ends_at_256_bytes() -> None:
    with pytest.raises(ValueError, match="256"):
        ConfigMechanism1(Ports()).read(Slot(0, 0), 256, 1)


def test_ecam() -> None:
    area = Ports()
    config = Ecam(area)
    config.read(Slot(2, 3, 4), 0xABC, 4)
    config.write(Slot(0, 0), 0, 2, 9)
    assert area.log == [("load", 2 << 20 | 3 << 15 | 4 << 12 | 0xABC, 4), ("store", 0, 2, 9)]
    with pytest.raises(ValueError, match="4096"):
        config.read(Slot(0, 0), 4096, 1)


def test_bars_behind_a_bridge_are_reached_by_address() -> None:
    ports = Ports()
    bus = BridgedBus(Ecam(ports), ports)
    memory = FoundBar(1, False, False, False, 4096, 0xE0000000)
    io = FoundBar(2, True, False, False, 4, 0xC000)
    assert bus.bar_read(Slot(0, 1), memory, 8, 4) == 0x66
    assert bus.bar_read(Slot(0, 1), io, 2, 1) == 0x55
    bus.bar_write(Slot(0, 1), memory, 12, 4, 1)
    bus.bar_write(Slot(0, 1), io, 0, 2, 1)
    assert ports.log == [
        ("load", 0xE0000008, 4),
        ("in", 0xC002, 1),
        ("store", 0xE000000C, 4, 1),
        ("out", 0xC000, 2, 1),
    ]


def test_bars_print() -> None:
    assert str(FoundBar(4, False, True, True, 16384, 0xFD00000000)) == (
        "BAR 4: memory at fd00000000 (64-bit, prefetchable) [size=16K]"
    )
    assert str(FoundBar(0, True, False, False, 32, 0xC000)) == "BAR 0: I/O ports at c000 [size=32]"
    assert str(FoundBar(0, False, False, False, 3 << 30, 0)).endswith("[size=3G]")


def test_a_function_without_a_bus_is_alone() -> None:
    class Function:
        def __init__(self) -> None:
            self.writes: list[tuple[int, ...]] = []

        def config_read(self, offset: int, size: int) -> int:
            return offset

        def config_write(self, offset: int, size: int, value: int) -> None:
            self.writes.append((offset, size, value))

        def bar_read(self, bar: int, offset: int, size: int) -> int:
            return bar * 100 + offset

        def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
            self.writes.append((bar, offset, size, value))

    function = Function()
    bus = DirectBus(function)
    here, elsewhere = Slot(0, 0), Slot(0, 1)
    bar = FoundBar(4, False, False, False, 4096, 0x1000)
    assert (bus.config_read(here, 6, 2), bus.config_read(elsewhere, 6, 2)) == (6, 0xFFFF)
    assert bus.bar_read(here, bar, 8, 4) == 408
    bus.config_write(elsewhere, 4, 2, 7)
    bus.config_write(here, 4, 2, 7)
    bus.bar_write(here, bar, 8, 4, 1)
    assert function.writes == [(4, 2, 7), (4, 8, 4, 1)]
