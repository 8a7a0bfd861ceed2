from __future__ import annotations

import struct

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import FoundBar, Slot, Windows, probe


class FakeBus:
    """Configuration spaces of bytes; BARs with size masks. No BAR can be accessed."""

    def __init__(self) -> None:
        self.spaces: dict[Slot, bytearray] = {}
        self.masks: dict[tuple[Slot, int], int] = {}
        self.commands: list[int] = []

    def add(self, slot: Slot, *, ids: tuple[int, int] = (0x1234, 0x5678), **registers: int) -> bytearray:
        space = bytearray(256)
        struct.pack_into("<HH", space, 0, *ids)
        for name, value in registers.items():
            offset, form = {"header_type": (0x0E, "B"), "status": (6, "H"), "capabilities": (0x34, "B")}[name]
            struct.pack_into(f"<{form}", space, offset, value)
        self.spaces[slot] = space
        return space

    def add_bar(self, slot: Slot, index: int, mask: int, fixed: int) -> None:
        struct.pack_into("<I", self.spaces[slot], 0x10 + 4 * index, fixed)
        self.masks[slot, 0x10 + 4 * index] = mask

    def config_read(self, slot: Slot, offset: int, size: int) -> int:
        space = self.spaces.get(slot)
        return (1 << 8 * size) - 1 if space is None else int.from_bytes(space[offset : offset + size], "little")

    def config_write(self, slot: Slot, offset: int, size: int, value: int) -> None:
        space = self.spaces[slot]
        if 0x10 <= offset < 0x28:
            mask = self.masks.get((slot, offset), 0)
            old = self.config_read(slot, offset, 4)
            value = (value & mask) | (old & ~mask & 0xF)
        elif offset == 4:
            self.commands.append(value)
        space[offset : offset + size] = value.to_bytes(size, "little")

    def bar_read(self, slot: Slot, bar: FoundBar, offset: int, size: int) -> int:
        raise AssertionError("nobody reads a BAR while probing")

    def bar_write(self, slot: Slot, bar: FoundBar, offset: int, size: int, value: int) -> None:
        raise AssertionError("nobody writes a BAR while probing")


def capabilities(space: bytearray, *entries: tuple[int, bytes]) -> None:
    """A list from 0x40 on; each entry is its offset and its bytes."""
    space[6] |= 0x10
    space[0x34] = entries[0][0]
    for offset, data in entries:
        space[offset : offset + len(data)] = data


def test_empty_bus() -> None:
    assert probe(FakeBus()) == []


def test_functions_above_0_only_of_multifunction_devices() -> None:
    bus = FakeBus()
    for slot in (Slot(0, 1), Slot(0, 1, 3), Slot(0, 7), Slot(0, 7, 1), Slot(0, 31)):
        bus.add(slot, header_type=0x80 if slot[:2] == (0, 7) else 0)
    bus.add(Slot(0, 9, 2))  # without a function 0
    assert [str(found.slot) for found in probe(bus)] == ["00:01.0", "00:07.0", "00:07.1", "00:1f.0"]


def test_bars_are_sized_and_placed_with_decoding_off() -> None:
    bus, slot = FakeBus(), Slot(0, 3)
    bus.add(slot)
    bus.add_bar(slot, 0, 0xFFFFFFE0, 1)  # I/O, 32 ports
    bus.add_bar(slot, 1, 0xFFFFF000, 0)
    bus.add_bar(slot, 2, 0xFFFF0000, 0xC)  # 64-bit, prefetchable, 8 GiB
    bus.masks[slot, 0x18] = 0
    bus.masks[slot, 0x1C] = 0xFFFFFFFE
    bus.add_bar(slot, 4, 0xFFF0, 1)  # I/O, upper half hard-wired to 0
    [found] = probe(
        bus, Windows(range(0xE0000800, 0xF0000000), range(0x1_0000_0001, 0x100_0000_0000), range(0x1001, 0x2000))
    )
    assert list(found.bars.values()) == [
        FoundBar(0, True, False, False, 32, 0x1020),
        FoundBar(1, False, False, False, 4096, 0xE0001000),
        FoundBar(2, False, True, True, 8 << 30, 0x2_0000_0000),
        FoundBar(4, True, False, False, 16, 0x1040),
    ]
    assert bus.config_read(slot, 0x14, 4) == 0xE0001000
    assert (bus.config_read(slot, 0x18, 4) & ~0xF, bus.config_read(slot, 0x1C, 4)) == (0, 2)
    assert bus.commands == [0, 7]


def test_bad_size_and_full_window() -> None:
    bus, slot = FakeBus(), Slot(0, 3)
    bus.add(slot)
    bus.add_bar(slot, 0, 0xFFFF7000, 0)
    with pytest.raises(DeviceError, match="power of two"):
        probe(bus)
    bus.add_bar(slot, 0, 0xFFFFF000, 0)
    with pytest.raises(MemoryError):
        probe(bus, Windows(range(0xE0000800, 0xE0001800)))


def test_a_bridge_is_left_alone() -> None:
    bus = FakeBus()
    bus.add(Slot(0, 1), header_type=1, status=0x10, capabilities=0x40)
    [found] = probe(bus)
    assert (found.bars, found.capabilities, bus.commands) == ({}, [], [])


@pytest.mark.parametrize("following", [0x40, 0x50, 0x20, 0x3C])
def test_capability_lists_that_never_end(following: int) -> None:
    bus = FakeBus()
    space = bus.add(Slot(0, 1))
    capabilities(space, (0x40, bytes([1, 0x50])), (0x50, bytes([1, following])))
    with pytest.raises(DeviceError, match="circle"):
        probe(bus)


def test_low_bits_of_capability_pointers_are_ignored() -> None:
    bus = FakeBus()
    space = bus.add(Slot(0, 1))
    capabilities(space, (0x43 & ~3, bytes([1, 0x53])), (0x50, bytes([0x10, 3])))
    space[0x34] = 0x43
    [found] = probe(bus)
    assert [(entry.offset, entry.id) for entry in found.capabilities] == [(0x40, 1), (0x50, 0x10)]
    space[6] &= ~0x10  # the status bit says: no list
    assert probe(bus)[0].capabilities == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (struct.pack("<BBBBBBHII", 9, 0, 16, 1, 0, 0, 0, 0x0FFF, 2), "outside"),
        (struct.pack("<BBBBBBHII", 9, 0, 16, 1, 1, 0, 0, 0, 64), "outside"),  # no such BAR
        (struct.pack("<BBBBBBHIII", 9, 0, 16, 2, 0, 0, 0, 0, 64, 4), "too short"),
        (struct.pack("<BBHII", 0x11, 0, 0x7FF, 0, 0x800), "MSI-X"),  # 2048 vectors in 4096 bytes
        (struct.pack("<BBHII", 0x11, 0, 1, 5, 0x800), "MSI-X"),
    ],
)
def test_structures_outside_of_their_bar(data: bytes, problem: str) -> None:
    bus, slot = FakeBus(), Slot(0, 1)
    space = bus.add(slot, ids=(0x1AF4, 0x1049))
    bus.add_bar(slot, 0, 0xFFFFF000, 0)
    capabilities(space, (0x40, data))
    with pytest.raises(DeviceError, match=problem):
        probe(bus)


@pytest.mark.parametrize(
    ("ids", "subsystem", "expected"),
    [((0x1AF4, 0x1049), 0, 9), ((0x1AF4, 0x1009), 9, 9), ((0x1AF4, 0x1041), 0, 1), ((0x8086, 0x1049), 0, None)],
)
def test_virtio_ids(ids: tuple[int, int], subsystem: int, expected: int | None) -> None:
    bus, slot = FakeBus(), Slot(0, 1)
    struct.pack_into("<H", bus.add(slot, ids=ids), 0x2E, subsystem)
    [found] = probe(bus)
    assert found.virtio_id == expected
    with pytest.raises(DeviceError, match="no virtio structure"):
        found.structure(1)
