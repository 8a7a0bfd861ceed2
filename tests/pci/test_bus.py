from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import PciBus, PciFunction, PciIdentity
from pyvirtfs.pci.bus import BarRange, RangeMap

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = range(0xE000_0000, 0xF000_0000)


def place(device: Any, bar: int, address: int) -> None:
    device.config_write(0x10 + 4 * bar, 4, address & 0xFFFFFFFF)
    if bar == 4:
        device.config_write(0x14 + 4 * bar, 4, address >> 32)
    device.config_write(4, 2, 7)


def test_slots(device: Any) -> None:
    bus = PciBus()
    for slot, number in ((32, 0), (-1, 0), (0, 8), (0, -1)):
        with pytest.raises(ConfigError, match="is not between"):
            bus.plug(device, slot, number)
    bus.plug(device, 3)
    with pytest.raises(ConfigError, match="taken"):
        bus.plug(PciFunction(PciIdentity(1, 2)), 3)
    with pytest.raises(ConfigError, match="already"):
        bus.plug(device, 4)
    assert bus.config_read(3, 0, 0, 4) == 0x10491AF4
    assert bus.config_read(3, 1, 0, 4) == 0xFFFFFFFF
    bus.config_write(3, 1, 4, 2, 7)
    bus.config_write(3, 0, 0x3C, 1, 9)
    assert device.config_read(0x3C, 1) == 9
    assert bus.unplug(3) is device
    with pytest.raises(ConfigError, match="empty"):
        bus.unplug(3)
    assert bus.config_read(3, 0, 0, 2) == 0xFFFF


def test_multifunction_bit() -> None:
    bus = PciBus()
    functions = [PciFunction(PciIdentity(1, number)) for number in range(2)]
    bus.plug(functions[0], 5)
    assert bus.config_read(5, 0, 0x0E, 1) == 0
    bus.plug(functions[1], 5, 1)
    assert bus.config_read(5, 0, 0x0E, 1) == 0x80
    functions[0].reset()
    assert bus.config_read(5, 0, 0x0E, 1) == 0x80
    bus.unplug(5, 1)
    assert bus.config_read(5, 0, 0x0E, 1) == 0


def test_accesses_reach_the_bar_where_the_guest_put_it(device: Any) -> None:
    bus = PciBus()
    bus.plug(device, 3)
    assert bus.mmio_read(0xE000_0000, 4) == 0xFFFFFFFF
    place(device, 4, 0x81_0000_0000)
    place(device, 0, 0xC040)
    bus.mmio_write(0x81_0000_3000, 2, 5)
    bus.mmio_write(0x81_0000_3FFE, 4, 5)  # beyond the end
    bus.mmio_write(0x81_0000_4000, 4, 5)
    bus.mmio_write(0x80_FFFF_FFFF, 1, 5)
    bus.pio_write(0xC05E, 2, 7)
    bus.pio_write(0xC080, 1, 7)
    assert device.registers[4].accesses == [("write", 0x3000, 2, 5)]
    assert device.registers[0].accesses == [("write", 0x1E, 2, 7)]
    assert bus.mmio_read(0x81_0000_3000, 4) == 5
    assert bus.mmio_read(0xC05E, 2) == 0xFFFF  # ports are not memory
    assert bus.pio_read(0xC05E, 1) == 7
    assert bus.pio_read(0xC03F, 4) == 0xFFFFFFFF
    device.config_write(4, 2, 1)
    assert bus.mmio_read(0x81_0000_3000, 8) == (1 << 64) - 1
    assert bus.pio_read(0xC05E, 2) == 7


def test_moves_are_told_within_the_windows(device: Any) -> None:
    moves: list[tuple[Any, int, int | None, int | None]] = []
    bus = PciBus(memory_windows=[WINDOW], on_bar_moved=lambda *move: moves.append(move))
    place(device, 2, 0xE000_0000)
    bus.plug(device, 1)
    assert moves == [(device, 2, None, 0xE000_0000)]
    place(device, 2, 0xEFFF_FFF0)
    place(device, 2, 0xF000_0000)
    place(device, 2, 0xDFFF_FFF0)
    place(device, 2, 0xE000_0010)
    assert [move[2:] for move in moves[1:]] == [
        (0xE000_0000, 0xEFFF_FFF0),
        (0xEFFF_FFF0, None),
        (None, 0xE000_0010),
    ]
    assert bus.mmio_read(0xF000_0000, 1) == 0xFF
    bus.unplug(1)
    assert moves[-1][2:] == (0xE000_0010, None)
    assert bus.mmio_read(0xE000_0010, 4) == 0xFFFFFFFF
    place(device, 2, 0xE000_0020)
    assert len(moves) == 5


def test_a_bar_of_a_later_hotplug_or_at_the_end_of_the_world(device: Any) -> None:
    bus = PciBus()
    bus.plug(device, 1)
    place(device, 4, 0xFFFF_FFFF_FFFF_C000)
    bus.mmio_write(0xFFFF_FFFF_FFFF_FFFF, 1, 0xAB)
    assert bus.mmio_read(0xFFFF_FFFF_FFFF_FFFF, 1) == 0xAB
    assert bus.mmio_read(1 << 64, 1) == 0xFF
    assert bus.mmio_read(-1, 1) == 0xFF


def test_overlapping_bars_have_a_priority(make_device: Callable[..., Any]) -> None:
    bus = PciBus()
    late, early = make_device(), make_device()
    bus.plug(late, 9)
    bus.plug(early, 2)
    place(late, 4, 0x1_0000_0000)
    place(early, 4, 0x1_0000_0000)
    bus.mmio_write(0x1_0000_0004, 4, 1)
    assert (len(early.registers[4].accesses), len(late.registers[4].accesses)) == (1, 0)
    early.config_write(4, 2, 0)
    bus.mmio_write(0x1_0000_0004, 4, 1)
    assert (len(early.registers[4].accesses), len(late.registers[4].accesses)) == (1, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=12), st.integers(-2, 70))
def test_the_range_map_is_a_linear_search_by_rank(ranges: list[tuple[int, int]], address: int) -> None:
    function = PciFunction(PciIdentity(1, 2))
    table = RangeMap()
    for slot, (base, nbytes) in enumerate(ranges):
        table.add(BarRange((slot, 0, 0), base, base + nbytes, function, slot))
    expected = next((slot for slot, (base, nbytes) in enumerate(ranges) if base <= address < base + nbytes), None)
    found = table.find(address)
    assert (found.bar if found else None) == expected
    for slot in range(0, len(ranges), 2):
        table.remove((slot, 0, 0))
    table.remove((99, 0, 0))
    odd = [slot for slot in range(1, len(ranges), 2) if ranges[slot][0] <= address < sum(ranges[slot])]
    found = table.find(address)
    assert (found.bar if found else None) == (odd[0] if odd else None)


def test_lines_are_swizzled_and_shared(make_device: Callable[..., Any]) -> None:
    lines: list[tuple[int, bool]] = []
    bus = PciBus(on_intx=lambda line, level: lines.append((line, level)))
    one, other, third = make_device(), make_device(), PciFunction(PciIdentity(1, 2), interrupt_pin=3)
    bus.plug(one, 1)
    bus.plug(other, 5)
    bus.plug(third, 2)
    one.set_intx(True)
    other.set_intx(True)
    one.set_intx(False)
    assert bus.line_level(1)
    other.set_intx(False)
    third.set_intx(True)
    assert lines == [(1, True), (1, False), (0, True)]
    assert [bus.line_level(line) for line in range(4)] == [True, False, False, False]
    bus.unplug(2)
    assert lines[-1] == (0, False)
    third.set_intx(False)
    one.set_intx(True)
    bus.unplug(1)
    bus.plug(one, 3)
    assert lines[4:] == [(1, True), (1, False), (3, True)]
    bus.reset()
    assert lines[-1] == (3, False)


def test_messages_go_to_the_own_sink_or_to_the_bus(make_device: Callable[..., Any], sink: Any) -> None:
    messages: list[tuple[int, int]] = []
    bus = PciBus(on_msix=lambda address, data: messages.append((address, data)))
    own, none = make_device(sink), make_device()
    for slot, device in enumerate((own, none)):
        bus.plug(device, slot)
        device.config_write(4, 2, 4)
        device.config_write(0x42, 2, 0x8000)
        device.bar_write(1, 0, 4, 0xFEE00000)
        device.bar_write(1, 8, 8, slot)
        device.msix.raise_vector(0)
        device.config_write(0x42, 2, 0)
        device.set_intx(True)
    assert sink.messages == [(0, 0xFEE00000, 0)]
    assert sink.levels == [True]
    assert messages == [(0xFEE00000, 1)]
    bus.unplug(0)
    assert own.interrupts is sink
    assert bus.unplug(1).interrupts is None
