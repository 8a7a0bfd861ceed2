"""A function to put under test, what it writes to, and what it interrupts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyvirtfs.pci import Bar, BarKind, InterruptSink, PciFunction, PciIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

IDENTITY = PciIdentity(
    vendor=0x1AF4, device=0x1049, revision=1, class_code=0x000200, subsystem_vendor=0x1AF4, subsystem_device=0x1100
)


class Sink:
    """Remembers interrupts."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int, int]] = []
        self.levels: list[bool] = []

    def msix(self, vector: int, address: int, data: int) -> None:
        self.messages.append((vector, address, data))

    def intx(self, level: bool) -> None:
        self.levels.append(level)


class Registers:
    """A BAR handler that stores bytes and remembers accesses."""

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)
        self.accesses: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size, value))
        self.data[offset : offset + size] = value.to_bytes(size, "little")


class Device(PciFunction):
    """A function with all kinds of BARs, MSI-X and a memory of what it was told."""

    def __init__(self, interrupts: InterruptSink | None = None, *, express: bool = False, vectors: int = 2) -> None:
        super().__init__(IDENTITY, interrupts=interrupts, express=express)
        self.told: list[str] = []
        self.registers = {0: Registers(64), 2: Registers(16), 4: Registers(0x4000)}
        self.add_bar(Bar(0, BarKind.IO, 64, self.registers[0]))
        self.add_bar(Bar(2, BarKind.MEMORY_32, 16, self.registers[2]))
        self.add_bar(Bar(4, BarKind.MEMORY_64, 0x4000, self.registers[4], prefetchable=True))
        self.add_msix(vectors)

    def command_changed(self) -> None:
        self.told.append("command")

    def function_reset(self) -> None:
        self.told.append("reset")


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def device(sink: Sink) -> Device:
    return Device(sink)


@pytest.fixture
def express_device(sink: Sink) -> Device:
    return Device(sink, express=True)


@pytest.fixture
def make_device() -> Callable[..., Device]:
    return Device


@pytest.fixture
def make_registers() -> Callable[[int], Registers]:
    return Registers
