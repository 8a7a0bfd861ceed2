from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import Bar, BarKind, Capability, PciFunction, PciIdentity, layout

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTITY = PciIdentity(0x1AF4, 0x1049, 1, 0x000200, 0x1AF4, 0x1100)
VENDOR_CAPABILITIES = (16, 16, 16, 20, 20)  # five of these lengths, as a virtio function adds them


def walk(function: PciFunction) -> list[tuple[int, int]]:
    """The capability list as a guest finds it: offset and id."""
    found, at = [], function.config_read(0x34, 1)
    while at:
        found.append((at, function.config_read(at, 1)))
        at = function.config_read(at + 1, 1)
    return found


@pytest.mark.parametrize(
    ("field", "value"), [("vendor", 0x10000), ("device", -1), ("revision", 256), ("class_code", 1 << 24)]
)
def test_ids_must_fit(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        PciIdentity(**{"vendor": 1, "device": 2, field: value})


def test_header() -> None:
    function = PciFunction(IDENTITY, interrupt_pin=2)
    header = layout.HEADER.parse(bytes(function.config.data))
    assert (header.vendor, header.device, header.revision, header.class_code) == (0x1AF4, 0x1049, 1, 0x000200)
    assert (header.subsystem_vendor, header.subsystem_device) == (0x1AF4, 0x1100)
    assert (header.header_type, header.interrupt_pin, header.status, header.capabilities) == (0, 2, 0, 0)
    with pytest.raises(ConfigError, match="interrupt_pin"):
        PciFunction(IDENTITY, interrupt_pin=5)


def test_writable_bits_of_the_header(device: Any) -> None:
    for offset in range(0, 64, 4):
        device.config_write(offset, 4, 0xFFFFFFFF)
    header = layout.HEADER.parse(bytes(device.config.data))
    assert header.command == 0x0507
    assert header.status == 0x0010
    assert (header.cache_line_size, header.latency_timer, header.bist) == (0xFF, 0, 0)
    assert (header.interrupt_line, header.interrupt_pin) == (0xFF, 1)
    assert header.expansion_rom == 0
    assert list(header.bars) == [0xFFFFFFC1, 0xFFFFF000, 0xFFFFFFF0, 0, 0xFFFFC00C, 0xFFFFFFFF]
    assert (header.vendor, header.device, header.subsystem_device) == (0x1AF4, 0x1049, 0x1100)


def test_the_list_of_a_conventional_function() -> None:
    function = PciFunction(IDENTITY)
    for nbytes in VENDOR_CAPABILITIES:
        function.add_capability(Capability(bytes([9, 0, nbytes]) + bytes(nbytes - 3)))
    function.add_msix(2)
    assert walk(function) == [(0x98, 0x11), (0x84, 9), (0x70, 9), (0x60, 9), (0x50, 9), (0x40, 9)]


def test_the_list_of_an_express_function() -> None:
    function = PciFunction(IDENTITY, express=True)
    for nbytes in VENDOR_CAPABILITIES:
        function.add_capability(Capability(bytes([9, 0, nbytes]) + bytes(nbytes - 3)))
    function.add_msix(2)
    assert walk(function) == [
        (0xDC, 0x11),
        (0xC8, 9),
        (0xB4, 9),
        (0xA4, 9),
        (0x94, 9),
        (0x84, 9),
        (0x7C, 1),
        (0x40, 0x10),
    ]
    assert function.config_read(0x100, 4) == 0
    assert function.config_read(0xFFC, 4) == 0
    assert function.config_read(0x1000, 4) == 0xFFFFFFFF


def test_a_conventional_function_has_256_bytes(device: Any) -> None:
    assert device.config_read(0x100, 4) == 0xFFFFFFFF
    device.config_write(0x100, 4, 1)


def test_msix_capability(make_device: Callable[..., Any]) -> None:
    function = make_device(vectors=300)
    offset = walk(function)[0][0]
    assert function.config_read(offset + 2, 2) == 299
    assert function.config_read(offset + 4, 4) == 1
    assert function.config_read(offset + 8, 4) == 4800 | 1
    function.config_write(offset + 2, 2, 0xFFFF)
    assert function.config_read(offset + 2, 2) == 0xC000 | 299
    assert function.msix.enabled
    assert function.msix.function_masked
    function.config_write(offset, 4, 0)
    assert not function.msix.enabled
    assert function.bars[1].nbytes == 8192


def test_no_vectors() -> None:
    function = PciFunction(IDENTITY)
    assert function.add_msix(0) is None
    assert (function.msix, function.bars, walk(function)) == (None, {}, [])


def test_bars_do_not_share_registers(device: Any, make_registers: Callable[[int], Any]) -> None:
    for index in (1, 4, 5):
        with pytest.raises(ConfigError, match="its register belongs to"):
            device.add_bar(Bar(index, BarKind.IO, 16, make_registers(16)))
    with pytest.raises(ConfigError, match="its register belongs to"):
        device.add_bar(Bar(3, BarKind.MEMORY_64, 16, make_registers(16)))
    with pytest.raises(ConfigError, match="BAR 2"):
        device.add_msix(2, bar=2)


def test_bar_accesses_reach_the_handler(device: Any) -> None:
    registers = device.registers[4]
    device.bar_write(4, 0x3000, 2, 0x1_2345)
    device.bar_write(4, 0x3FFF, 1, -1)
    assert device.bar_read(4, 0x3000, 4) == 0x2345
    assert registers.accesses == [("write", 0x3000, 2, 0x2345), ("write", 0x3FFF, 1, 0xFF), ("read", 0x3000, 4)]


@pytest.mark.parametrize(
    ("bar", "offset", "size"),
    [
        (3, 0, 4),
        (5, 0, 4),
        (6, 0, 1),
        (-1, 0, 4),
        (4, -1, 4),
        (4, 0x3FFD, 4),
        (4, 0x4000, 1),
        (4, 0, 3),
        (4, 0, 0),
        (4, 0, 16),
        (4, 0, 1 << 32),
        (4, 1 << 64, 4),
        (4, 0x3FFC, 8),
    ],
)
def test_bar_accesses_that_reach_nobody(device: Any, bar: int, offset: int, size: int) -> None:
    device.bar_write(bar, offset, size, 1)
    assert device.bar_read(bar, offset, size) == ((1 << 8 * size) - 1 if 0 <= size <= 8 else 0)
    assert not any(registers.accesses for registers in device.registers.values())


def test_bars_follow_the_command_register(device: Any) -> None:
    moves: list[tuple[int, int | None, int | None]] = []
    device.bar_listeners.append(lambda function, bar, old, new: moves.append((bar, old, new)))
    device.config_write(0x10, 4, 0xC005)
    device.config_write(0x20, 4, 0xFE00000C)
    device.config_write(0x24, 4, 0x12)
    assert moves == []
    assert device.bar_address(4) is None
    device.config_write(4, 2, 2)
    assert moves == [(4, None, 0x12_FE00_0000)]
    device.config_write(4, 1, 1)
    assert moves[1:] == [(0, None, 0xC000), (4, 0x12_FE00_0000, None)]
    assert (device.io_enabled, device.memory_enabled, device.bus_master_enabled) == (True, False, False)
    device.config_write(0x10, 2, 0xD000)
    assert moves[3:] == [(0, 0xC000, 0xD000)]
    assert device.bar_address(0) == 0xD000
    assert device.bar_address(9) is None


def test_a_64_bit_bar_moves_half_by_half(device: Any) -> None:
    device.config_write(4, 2, 2)
    moves: list[tuple[int | None, int | None]] = []
    device.bar_listeners.append(lambda function, bar, old, new: moves.append((old, new)))
    device.config_write(0x24, 4, 1)
    device.config_write(0x20, 4, 0x8000)
    device.config_write(0x20, 4, 0x8000)
    device.config_write(0x24, 4, 0)
    device.config_write(0x20, 4, 0)
    assert moves == [(None, 1 << 32), (1 << 32, 1 << 32 | 0x8000), (1 << 32 | 0x8000, 0x8000), (0x8000, None)]


def test_capability_hooks(device: Any) -> None:
    calls: list[tuple[object, ...]] = []

    def before_read(offset: int, size: int) -> None:
        calls.append(("read", offset, size))
        capability.store(16, 4, 0xCAFE)

    capability = Capability(
        bytes([9, 0, 20]) + bytes(17),
        writable=bytes(4) + b"\xff" * 16,
        before_read=before_read,
        after_write=lambda offset, size: calls.append(("write", offset, size, capability.load(16, 4))),
    )
    at = device.add_capability(capability)
    assert device.config_read(at + 16, 4) == 0xCAFE
    device.config_write(at + 17, 1, 0)
    device.config_read(at + 18, 4)  # misaligned: reaches nobody
    device.config_write(at + 18, 4, 1)
    device.config_read(at - 4, 4)
    device.config_write(at + 20, 4, 1)
    assert calls == [("read", 16, 4), ("write", 17, 1, 0x00FE)]


def test_command_writes_are_told(device: Any) -> None:
    device.config_write(4, 4, 0xFFFF0004)
    assert device.told == ["command"]
    device.config_write(6, 2, 0)
    assert device.told == ["command"]


def test_reset(device: Any) -> None:
    fresh = bytes(device.config.data)
    for offset in range(0, 256, 4):
        device.config_write(offset, 4, 0x7FFF7FFF)
    device.config_write(0x98 - 0x58 + 2, 2, 0x8000)
    device.set_intx(True)
    device.msix.write(0, 4, 0x1000)
    moves: list[tuple[int, int | None]] = []
    device.bar_listeners.append(lambda function, bar, old, new: moves.append((bar, new)))
    device.reset()
    assert bytes(device.config.data) == fresh
    assert device.told[-1] == "reset"
    assert moves == [(0, None), (2, None), (4, None), (1, None)]
    assert not any([device.bus_master_enabled, device.memory_enabled, device.io_enabled, device.intx_asserted])
    assert not any([device.msix.enabled, device.msix.read(0, 4)])


def test_refresh_after_a_restore(express_device: Any, make_device: Callable[..., Any]) -> None:
    express_device.config_write(0x20, 4, 0xFE000000)
    express_device.config_write(4, 2, 6)
    express_device.config_write(walk(express_device)[0][0] + 2, 2, 0x8000)
    express_device.msix.write(12, 4, 0)
    copy = make_device(express=True)
    copy.config.data[:] = express_device.config.data
    copy.msix.entries[:] = express_device.msix.entries
    copy.refresh()
    assert copy.bar_address(4) == 0xFE000000
    assert copy.msix.enabled
    assert copy.bus_master_enabled


@given(st.data())
@settings(max_examples=60)
def test_no_access_raises(data: st.DataObject) -> None:
    function = PciFunction(IDENTITY, express=data.draw(st.booleans()))
    function.add_msix(3)
    number = st.one_of(st.integers(0, 260), st.integers(-(1 << 66), 1 << 66))
    for _ in range(20):
        function.config_write(data.draw(number), data.draw(number), data.draw(number))
        function.bar_write(data.draw(number), data.draw(number), data.draw(number), data.draw(number))
        assert function.config_read(data.draw(number), data.draw(number)) >= 0
        assert function.bar_read(data.draw(number), data.draw(number), data.draw(number)) >= 0


class FunctionMachine(RuleBasedStateMachine):
    """A guest that writes anything anywhere: read-only bits stay, and what is derived stays true to the registers."""

    @initialize(express=st.booleans())
    def start(self, express: bool) -> None:
        self.function = PciFunction(IDENTITY, express=express)
        self.function.add_msix(2)
        self.first = bytes(self.function.config.data)
        changeable = zip(self.function.config.writable, self.function.config.write_one_clears, strict=True)
        self.changeable = bytes(writable | clears for writable, clears in changeable)

    @rule(offset=st.integers(0, 0x110), size=st.sampled_from([1, 2, 4]), value=st.integers(0, 0xFFFFFFFF))
    def write(self, offset: int, size: int, value: int) -> None:
        self.function.config_write(offset & -size, size, value)

    @rule(value=st.sampled_from([0, 2, 4, 6, 0x406]))
    def command(self, value: int) -> None:
        self.function.config_write(4, 2, value)

    @rule(state=st.integers(0, 3))
    def power(self, state: int) -> None:
        if self.function.config.nbytes == 4096:
            self.function.config_write(0x80, 2, state)
            assert self.function.config_read(0x80, 2) in {0, 3}

    @rule(level=st.booleans())
    def pin(self, level: bool) -> None:
        self.function.set_intx(level)

    @invariant()
    def registers_and_state_agree(self) -> None:
        if not hasattr(self, "function"):
            return
        function = self.function
        data = bytes(function.config.data)
        for offset, (now, first, changeable) in enumerate(zip(data, self.first, self.changeable, strict=True)):
            if offset != 6:
                assert (now ^ first) & ~changeable == 0
        assert data[6] & ~0x08 == self.first[6]
        header = layout.HEADER.parse(data)
        powered = function.config.nbytes == 256 or data[0x80] & 3 == 0
        assert function.memory_enabled == (powered and bool(header.command & 2))
        assert function.bus_master_enabled == (powered and bool(header.command & 4))
        assert function.bar_address(1) == (header.bars[1] & ~15 or None if function.memory_enabled else None)
        assert function.intx_asserted == (powered and bool(data[6] & 8) and not header.command & 0x400)


FunctionMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestFunctionMachine = FunctionMachine.TestCase
