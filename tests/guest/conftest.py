"""A device whose registers lie, and an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.guest import DirectMachine, FoundFunction, Machine
from pyvirtfs.guest.registers import fields_of
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio.layout import CommonConfig
from pyvirtfs.virtio9p import Virtio9pPci


class Lies:
    """A device behind which some common configuration registers read as something else."""

    def __init__(self, device: Virtio9pPci) -> None:
        self._device = device
        self.registers: dict[str, Callable[[int], int]] = {}
        """By name: what a value read becomes."""
        self.config_read = device.config_read
        self.config_write = device.config_write
        self.bar_write = device.bar_write
        self.run_pending = device.run_pending
        self.next_deadline = device.next_deadline
        self.wakeup_fileno = device.wakeup_fileno
        self._names = {field.offset: name for name, field in fields_of(CommonConfig).items()}

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        value = self._device.bar_read(bar, offset, size)
        change = self.registers.get(self._names.get(offset, "")) if bar == 4 else None
        return value if change is None else change(value)


class Bench:
    """A machine with one device that may lie, and nothing brought up."""

    def __init__(self, machine: DirectMachine, device: Virtio9pPci, lies: Lies, function: FoundFunction) -> None:
        self.machine = machine
        self.device = device
        self.lies = lies.registers
        self.function = function


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_text("Hi Guest")
    return folder


@pytest.fixture
def bench(export: Path) -> Iterator[Bench]:
    memory = GuestMemory.anonymous(64 << 20)
    machine = DirectMachine(memory)
    options = f"local,path={export},security_model=none"
    with Virtio9pPci(options, mount_tag="tag", memory=memory, interrupts=machine.pin) as device:
        lies = Lies(device)
        yield Bench(machine, device, lies, machine.attach(lies))


@pytest.fixture
def machine(export: Path) -> Iterator[Machine]:
    memory = GuestMemory.anonymous(64 << 20)
    machine = Machine(memory)
    with Virtio9pPci(f"local,path={export},security_model=none", mount_tag="tag", memory=memory) as device:
        machine.plug(device, 4)
        yield machine
