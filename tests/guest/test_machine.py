from __future__ import annotations

import pytest

from pyvirtfs.errors import ConfigError, DeviceError
from pyvirtfs.guest import DirectMachine, Machine
from pyvirtfs.memory import GuestMemory
from pyvirtfs.pci import PciFunction, PciIdentity


@pytest.mark.parametrize("ecam", [False, True])
def test_the_probe_finds_what_is_plugged_in(machine: Machine, ecam: bool) -> None:
    other = Machine(machine.memory, ecam=ecam)
    device = machine.bridge.unplug(4)
    other.plug(device, 4)
    bridge, found = other.probe()
    assert "Host bridge" in str(bridge)
    assert str(found) == "00:04.0 Unclassified device: virtio 9P transport [1af4:1049] (rev 01)"
    assert {bar.number: bar.nbytes for bar in found.bars.values()} == {1: 4096, 4: 16384}
    assert found.msix is not None
    assert found.msix.vectors == 2
    assert sorted(structure.type for structure in found.virtio) == [1, 2, 3, 4, 5]
    described = "\n".join(found.describe())
    for text in ("subsystem 1af4:1100", "BAR 4: memory at 8000000000 (64-bit, prefetchable) [size=16K]",
                 "virtio notify: BAR 4 offset 0x3000", "MSI-X: 2 vectors in BAR 1", "virtio PCI access"):  # fmt: skip
        assert text in described
    assert other.line_of(found) is other.interrupts.lines[(4 + 1 - 1) % 4]


def test_find(machine: Machine) -> None:
    assert machine.find(9).slot == (0, 4, 0)
    with pytest.raises(DeviceError, match="number 1"):
        machine.find(9, nth=1)
    with pytest.raises(DeviceError, match="device 2"):
        machine.find(2)


def test_a_slot_holds_one_device(machine: Machine) -> None:
    with pytest.raises(ConfigError, match="taken"):
        machine.plug(PciFunction(PciIdentity(1, 2)), 4)


def test_mount_by_tag(machine: Machine) -> None:
    mount = machine.mount("tag")
    assert mount.path("file").read_text() == "Hi Guest"
    assert mount.tag == "tag"
    with pytest.raises(OSError, match="busy"):
        machine.mount("tag")
    mount.umount()
    with machine.mount("tag") as again:
        assert again.path("file").exists()
    with pytest.raises(FileNotFoundError, match="nonsense"):
        machine.mount("nonsense")


def test_nobody_there() -> None:
    class Nothing:
        def config_read(self, offset: int, size: int) -> int:
            return (1 << 8 * size) - 1

        def config_write(self, offset: int, size: int, value: int) -> None:
            raise AssertionError

        def bar_read(self, bar: int, offset: int, size: int) -> int:
            raise AssertionError

        def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
            raise AssertionError

    with pytest.raises(DeviceError, match="no function"):
        DirectMachine(GuestMemory.anonymous(1 << 20)).attach(Nothing())
