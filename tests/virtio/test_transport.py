"""The function on its bus: BARs, capabilities, doorbells, interrupts, resets."""

from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.errors import ConfigError

WRITE = 2


def size_bar(machine: Any, index: int) -> int:
    machine.function.config_write(0x10 + 4 * index, 4, 0xFFFFFFFF)
    return int(machine.function.config_read(0x10 + 4 * index, 4))


def test_bars(machine: Any) -> None:
    assert [size_bar(machine, i) for i in range(6)] == [0, 0xFFFFF000, 0, 0, 0xFFFFC00C, 0xFFFFFFFF]


def test_without_msix_there_is_no_bar_1(make_machine: Any) -> None:
    machine = make_machine(vectors=0)
    assert size_bar(machine, 1) == 0
    with pytest.raises(LookupError):
        machine.driver.capability(0x11)


@pytest.mark.parametrize("vectors", [-1, 2049])
def test_vectors_that_cannot_be(make_machine: Any, vectors: int) -> None:
    with pytest.raises(ConfigError, match="vectors"):
        make_machine(vectors=vectors)


@pytest.mark.parametrize(
    ("express", "expected"),
    [
        (False, [(0x98, 0x11), (0x84, 9), (0x70, 9), (0x60, 9), (0x50, 9), (0x40, 9)]),
        (
            True,
            [(0xDC, 0x11), (0xC8, 9), (0xB4, 9), (0xA4, 9), (0x94, 9), (0x84, 9), (0x7C, 0x01), (0x40, 0x10)],
        ),
    ],
)
def test_capability_list(make_machine: Any, express: bool, expected: list[tuple[int, int]]) -> None:
    machine = make_machine(express=express)
    read = machine.function.config_read
    found = []
    where = read(0x34, 1)
    while where:
        found.append((where, read(where, 1)))
        where = read(where + 1, 1)
    assert found == expected
    assert machine.echo(machine.driver.start()) == b"olleh"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_doorbells_of_any_width(machine: Any, size: int) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"hello")
    ring.publish(ring.add((0x8000, 5, 0), (0x9000, 64, WRITE)))
    machine.function.bar_write(4, 0x3000, size, 0)
    assert len(ring.used()) == 1


@pytest.mark.parametrize("offset", [0x3000, 0x3004, 0x3008, 0x3FFC, 0x3001, 0x3FFF])
@pytest.mark.parametrize("value", [0, 1, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_h100_doorbells_of_any_queue(machine: Any, offset: int, value: int, size: int) -> None:
    ring = machine.driver.start()
    machine.function.bar_write(4, offset, size, value)
    assert not machine.driver.broken
    assert machine.echo(ring) == b"olleh"
    assert machine.function.bar_read(4, offset & ~3, 4) == 0


def test_h104_any_access_to_the_msix_table(machine: Any) -> None:
    ring = machine.driver.start()
    for size in (1, 2, 4, 8):
        for offset in (*range(48), *range(0x7F0, 0x818), 0xFF8, 0xFFF):
            machine.function.bar_write(1, offset, size, (1 << 64) - 1)
            machine.function.bar_read(1, offset, size)
    machine.echo(ring)
    assert machine.sink.vectors() == []  # masked
    machine.driver.enable_msix()
    assert machine.sink.vectors() == [1]  # and then sent


@pytest.mark.parametrize("address", [0xFE000000, 0x1000, 0x2000, 0x3000])
def test_h105_buffers_in_registers_and_in_the_ring_itself(machine: Any, address: int) -> None:
    """A BAR is not RAM; the ring is, and a guest that has its ring overwritten only hurts itself."""
    machine.function.config_write(0x20, 4, 0xFE000000)
    machine.function.config_write(0x24, 4, 0)
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"\xff" * 64)
    ring.publish(ring.add((0x8000, 64, 0), (address, 64, WRITE)))
    machine.driver.kick()
    machine.driver.kick()
    machine.driver.get("device_status")
    assert machine.echo(machine.driver.start()) == b"olleh"


def test_h112_device_configuration_past_its_end(machine: Any) -> None:
    read = machine.function.bar_read
    assert read(4, 0x2004, 4) == 0x0201  # six bytes, then nothing
    assert read(4, 0x2006, 1) == 0
    assert read(4, 0x2FFF, 1) == 0
    assert read(4, 0x2FFC, 8) == 0
    machine.function.bar_write(4, 0x2000, 4, 0)
    assert read(4, 0x2000, 4) == int.from_bytes(b"echo", "little")


def test_masked_vectors_wait(machine: Any) -> None:
    ring = machine.driver.start()
    machine.function.bar_write(1, 16 + 12, 4, 1)
    machine.echo(ring)
    ring.set_used_event(1)
    machine.echo(ring)
    assert machine.sink.vectors() == []
    machine.function.bar_write(1, 16 + 12, 4, 0)
    assert machine.sink.messages == [(1, 0xFEE00000, 101)]


def test_queue_reset_forgets_only_its_own_pending_interrupt(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.function.bar_write(1, 16 + 12, 4, 1)
    machine.echo(ring)
    driver.set("config_msix_vector", 1)  # stands for another event as well
    driver.set("queue_reset", 1)
    machine.function.bar_write(1, 16 + 12, 4, 0)
    assert machine.sink.vectors() == [1]
    ring = driver.start()
    machine.function.bar_write(1, 16 + 12, 4, 1)
    machine.echo(ring)
    driver.set("queue_reset", 1)
    machine.function.bar_write(1, 16 + 12, 4, 0)
    assert machine.sink.vectors() == []


def test_queue_reset_lowers_intx(make_machine: Any) -> None:
    machine = make_machine(vectors=0)
    machine.echo(machine.driver.start(msix=False))
    assert machine.function.intx_asserted
    machine.driver.set("queue_select", 0)
    machine.driver.set("queue_reset", 1)
    assert not machine.function.intx_asserted
    assert machine.function.read_isr() == 0


def test_intx_disable(make_machine: Any) -> None:
    machine = make_machine(vectors=0)
    ring = machine.driver.start(msix=False)
    machine.driver.enable_bus(0x406)
    machine.echo(ring)
    assert machine.sink.levels == []
    machine.driver.enable_bus(0x006)
    assert machine.sink.levels == [True]


def test_a_reset_lowers_the_pin(make_machine: Any) -> None:
    machine = make_machine(vectors=0)
    machine.echo(machine.driver.start(msix=False))
    machine.driver.set_status(0)
    assert machine.sink.levels == [True, False]
    assert machine.function.bar_read(4, 0x1000, 1) == 0


@pytest.mark.parametrize("way", ["function", "flr", "power"])
def test_resets_of_the_function(make_machine: Any, way: str) -> None:
    machine = make_machine(express=True)
    ring = machine.driver.start()
    machine.echo(ring)
    write = machine.function.config_write
    if way == "function":
        machine.function.reset()
    elif way == "flr":
        write(machine.driver.capability(0x10) + 8, 2, 0x8000)
    else:
        at = machine.driver.capability(0x01)
        write(at + 4, 2, 3)
        write(at + 4, 2, 0)
    assert machine.driver.get("device_status") == 0
    assert machine.function.config_read(4, 2) == 0
    assert machine.device.cancelled >= 2
    assert machine.echo(machine.driver.start()) == b"olleh"


def test_two_queues(machine: Any, make_ring: Any) -> None:
    driver = machine.driver
    first = driver.start()
    driver.set("queue_select", 1)
    second = make_ring(machine.memory, 16, base=0x20000)
    driver.program_queue(1, second, vector=0)
    driver.set("queue_enable", 1)  # after DRIVER_OK: tolerated
    for ring, queue in ((first, 0), (second, 1), (first, 0)):
        machine.memory.write(0x8000, b"hello")
        ring.publish(ring.add((0x8000, 5, 0), (0x9000, 64, WRITE)))
        driver.kick(queue)
        assert len(ring.used()) == 1
    assert machine.sink.vectors() == [1, 0]  # the third is behind used_event


def test_the_wakeup_interface_of_a_device_that_needs_none(machine: Any) -> None:
    assert machine.function.next_deadline() is None
    assert machine.function.wakeup_fileno() is None
