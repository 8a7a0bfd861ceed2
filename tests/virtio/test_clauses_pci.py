"""The device clauses of virtio 1.3, 4.1: virtio over PCI. One test each, in the order of the specification."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 40
ALL = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET


def test_v040_to_v043_identity(machine: Any) -> None:
    read = machine.function.config_read
    assert read(0, 4) == (0x1040 + 63) << 16 | 0x1AF4
    assert read(8, 4) == 0x00020001  # class 00 02 00, revision 1
    assert read(0x2C, 4) == 0x11001AF4
    assert read(0x3D, 1) == 1
    assert read(0x06, 2) & 0x10


def test_v044_64_bit_fields_in_halves(machine: Any) -> None:
    driver = machine.driver
    for name, offset in (("queue_desc", 32), ("queue_driver", 40), ("queue_device", 48)):
        machine.function.bar_write(4, offset + 4, 4, 0x11223344)
        machine.function.bar_write(4, offset, 4, 0x55667788)
        assert driver.get(name) == 0x1122334455667788
        assert machine.function.bar_read(4, offset + 4, 4) == 0x11223344
        assert machine.function.bar_read(4, offset, 4) == 0x55667788


def capabilities(machine: Any) -> list[dict[str, int]]:
    """The virtio capabilities, as laid out in configuration space."""
    found = []
    read = machine.function.config_read
    where = read(0x34, 1)
    while where:
        if read(where, 1) == 9:
            names = ("id", "next", "len", "type", "bar", "cap_id", "p0", "p1", "offset", "length")
            raw = b"".join(read(where + i, 4).to_bytes(4, "little") for i in range(0, 16, 4))
            found.append({**dict(zip(names, struct.unpack("<8BII", raw), strict=True)), "at": where})
        where = read(where + 1, 1)
    return found


def test_v045_to_v048_v060_v069_v082_there_is_one_of_each(machine: Any) -> None:
    found = capabilities(machine)
    assert [(c["type"], c["at"], c["len"]) for c in found] == [
        (5, 0x84, 20),
        (2, 0x70, 20),
        (4, 0x60, 16),
        (3, 0x50, 16),
        (1, 0x40, 16),
    ]
    assert all(c["offset"] % 4 == 0 for c in found)  # v047, v061, v074


def test_v049_any_feature_select(machine: Any) -> None:
    driver = machine.driver
    for select, word in ((0, 0x30000028), (1, 0x101), (2, 0), (31, 0), (0xFFFFFFFF, 0)):
        driver.set("device_feature_select", select)
        assert driver.get("device_feature") == word
        assert driver.get("device_feature_select") == select


def test_v050_driver_features_read_back(machine: Any) -> None:
    driver = machine.driver
    driver.write_features(ALL)
    for select, word in ((0, ALL & 0xFFFFFFFF), (1, ALL >> 32), (2, 0), (0xFFFFFFFF, 0)):
        driver.set("driver_feature_select", select)
        assert driver.get("driver_feature") == word


def test_v050_features_are_frozen_by_features_ok(machine: Any) -> None:
    driver = machine.driver
    driver.negotiate(ALL)
    driver.set("driver_feature_select", 0)
    driver.set("driver_feature", 0)
    assert driver.get("driver_feature") == ALL & 0xFFFFFFFF


def test_v051_the_generation_tells_torn_reads(machine: Any) -> None:
    driver, device, read = machine.driver, machine.device, machine.function.bar_read
    driver.start()
    first = driver.get("config_generation")
    assert read(4, 0x2000, 2) == int.from_bytes(b"ec", "little")
    device.set_config(b"ECHO")
    assert machine.sink.vectors() == [0]
    assert read(4, 0x2002, 2) == int.from_bytes(b"HO", "little")
    assert driver.get("config_generation") != first  # so the driver reads again
    second = driver.get("config_generation")
    assert read(4, 0x2000, 4) == int.from_bytes(b"ECHO", "little")
    assert driver.get("config_generation") == second
    device.set_config(b"ECHO")
    assert machine.sink.vectors() == []


def test_v052_writing_0_resets_everything(machine: Any) -> None:
    driver = machine.driver
    driver.start()
    driver.set("queue_select", 1)
    driver.set_status(0)
    values = {name: driver.get(name) for name in (
        "device_feature_select", "driver_feature_select", "config_msix_vector", "device_status", "queue_select",
        "queue_size", "queue_msix_vector", "queue_enable", "queue_desc", "queue_driver", "queue_device",
        "driver_feature",
    )}  # fmt: skip
    assert values.pop("config_msix_vector") == values.pop("queue_msix_vector") == 0xFFFF
    assert values.pop("queue_size") == 8
    assert set(values.values()) == {0}


def test_v053_v054_registers_of_a_queue_after_reset(machine: Any) -> None:
    machine.driver.start()
    machine.driver.set_status(0)
    assert machine.driver.get("queue_enable") == 0
    assert machine.driver.get("queue_reset") == 0


def test_v055_v056_queue_reset_reads_0_when_done(machine: Any) -> None:
    driver = machine.driver
    driver.start()
    assert driver.get("queue_reset") == 0
    driver.set("queue_reset", 1)
    assert driver.get("queue_reset") == 0
    assert driver.get("queue_enable") == 0


def test_v056_queue_reset_without_the_feature_is_ignored(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start(ALL & ~RING_RESET)
    driver.set("queue_reset", 1)
    assert driver.get("queue_enable") == 1
    assert machine.echo(ring) == b"olleh"


def test_v057_v058_queue_sizes(machine: Any) -> None:
    driver = machine.driver
    assert driver.get("num_queues") == 2
    assert [driver.queue_size(i) for i in (0, 1, 2, 1024, 0xFFFF)] == [8, 16, 0, 0, 0]


def test_v061_to_v064_notification_area(machine: Any) -> None:
    (notify,) = [c for c in capabilities(machine) if c["type"] == 2]
    multiplier = machine.function.config_read(notify["at"] + 16, 4)
    assert multiplier == 4
    for queue in (0, 1):
        machine.driver.set("queue_select", queue)
        assert machine.driver.get("queue_notify_off") == queue
        assert notify["length"] >= queue * multiplier + 4  # v064, v068


def test_v070_isr_config_bit_before_the_notification(make_machine: Callable[..., Any]) -> None:
    machine = make_machine(vectors=0)
    machine.driver.start(msix=False)
    seen: list[int] = []
    machine.sink.intx = lambda level: seen.append(machine.function.isr) if level else None
    machine.device.set_config(b"new")
    assert seen == [2]


def test_v071_isr_queue_bit_before_the_notification(make_machine: Callable[..., Any]) -> None:
    machine = make_machine(vectors=0)
    ring = machine.driver.start(msix=False)
    seen: list[int] = []
    machine.sink.intx = lambda level: seen.append(machine.function.isr) if level else None
    machine.echo(ring)
    assert seen == [1]


@pytest.mark.parametrize("vectors", [0, 2])
def test_v072_v073_interrupt_pin_follows_isr(make_machine: Callable[..., Any], vectors: int) -> None:
    machine = make_machine(vectors=vectors)  # MSI-X, if there, stays disabled
    ring = machine.driver.start(msix=False)
    assert not machine.function.config_read(6, 2) & 8
    machine.echo(ring)
    assert machine.function.config_read(6, 2) & 8
    machine.device.set_config(b"new")
    assert machine.sink.levels == [True]
    assert machine.function.bar_read(4, 0x1000, 1) == 3
    assert machine.function.bar_read(4, 0x1000, 1) == 0
    assert machine.sink.levels == [True, False]
    assert not machine.function.config_read(6, 2) & 8


def test_v075_to_v081_no_shared_memory_and_no_vendor_data(machine: Any) -> None:
    assert {c["type"] for c in capabilities(machine)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_v083_the_window_writes(machine: Any, size: int) -> None:
    at, write = machine.driver.capability(9, 5), machine.function.config_write
    write(at + 4, 1, 4)
    write(at + 8, 4, 22 if size == 2 else 12 if size == 4 else 20)
    write(at + 12, 4, size)
    write(at + 16, size, 3)
    name = {1: "device_status", 2: "queue_select", 4: "driver_feature"}[size]
    assert machine.driver.get(name) == 3


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(18, 2, 2), (24, 2, 8), (0x2000, 4, 0x6F686365), (0x2001, 1, 99)]
)
def test_v084_the_window_reads(machine: Any, offset: int, size: int, value: int) -> None:
    at, write = machine.driver.capability(9, 5), machine.function.config_write
    write(at + 4, 1, 4)
    write(at + 8, 4, offset)
    write(at + 12, 4, size)
    assert machine.function.config_read(at + 16, size) == value


@pytest.mark.parametrize("vectors", [2, 3, 64])
def test_v085_table_size(make_machine: Callable[..., Any], vectors: int) -> None:
    machine = make_machine(vectors=vectors)
    at = machine.driver.capability(0x11)
    assert at == 0x98
    assert machine.function.config_read(at + 2, 2) & 0x7FF == vectors - 1


def test_v086_v087_v088_vector_mapping(machine: Any) -> None:
    driver = machine.driver
    for name in ("config_msix_vector", "queue_msix_vector"):
        assert driver.get(name) == 0xFFFF
        for value, stored in ((0, 0), (1, 1), (2, 0xFFFF), (0, 0), (0xFFFF, 0xFFFF), (0x8000, 0xFFFF)):
            driver.set(name, value)
            assert driver.get(name) == stored


def test_v089_a_queue_without_vector_does_not_interrupt(machine: Any) -> None:
    ring = machine.driver.start()
    machine.driver.set("queue_msix_vector", 0xFFFF)
    machine.echo(ring)
    assert machine.sink.vectors() == []
    assert machine.sink.levels == []
    assert machine.function.isr == 0


def test_v090_configuration_without_vector_does_not_interrupt(machine: Any) -> None:
    machine.driver.start()
    machine.driver.set("config_msix_vector", 0xFFFF)
    machine.device.set_config(b"new")
    assert machine.sink.vectors() == []
    assert machine.sink.levels == []
