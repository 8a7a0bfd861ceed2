"""The common configuration structure with accesses of every width at every offset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable


def block(machine: Any) -> bytes:
    """All registers, byte by byte."""
    return bytes(machine.function.bar_read(4, offset, 1) for offset in range(80))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_reads_of_any_width_agree(machine: Any, size: int) -> None:
    driver = machine.driver
    driver.start()
    driver.set("driver_feature_select", 1)
    driver.set("queue_desc", 0x1122334455667788)
    expected = block(machine)
    assert expected[64:] == bytes(16)
    for offset in range(64):
        assert machine.function.bar_read(4, offset, size) == int.from_bytes(expected[offset : offset + size], "little")


@pytest.mark.parametrize("select", [0, 1])
@given(offset=st.integers(24, 63), size=st.sampled_from([1, 2, 4, 8]), value=st.integers(0, (1 << 64) - 1))
@settings(deadline=None)
def test_writes_replace_just_the_bytes_that_they_cover(
    make_machine: Callable[..., Any], select: int, offset: int, size: int, value: int
) -> None:
    """For the plain registers: size, vector and addresses of a queue."""
    machine = make_machine(vectors=2048)
    machine.driver.set("queue_select", select)
    machine.driver.set("queue_size", 8)
    before = bytearray(block(machine))
    machine.function.bar_write(4, offset, size, value)
    plain = set(range(24, 26)) | set(range(32, 56))
    data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    for i, byte in enumerate(data):
        if offset + i in plain:
            before[offset + i] = byte
    after = block(machine)
    assert all(after[i] == before[i] for i in plain)


def test_status_and_queue_select_in_one_write(machine: Any) -> None:
    machine.function.bar_write(4, 20, 4, 0x0001_FF_03)
    assert machine.driver.get("device_status") == 3
    assert machine.driver.get("queue_select") == 1
    assert machine.driver.get("config_generation") == 0


def test_queue_enable_by_bytes(machine: Any, make_ring: Any) -> None:
    driver = machine.driver
    driver.negotiate()
    driver.program_queue(0, make_ring(machine.memory, 8))
    machine.function.bar_write(4, 28, 1, 1)
    assert driver.get("queue_enable") == 1


def test_an_enabled_queue_keeps_size_and_addresses(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    for name in ("queue_size", "queue_desc", "queue_driver", "queue_device"):
        before = driver.get(name)
        driver.set(name, 0x40)
        assert driver.get(name) == before
    driver.set("queue_enable", 1)  # again: nothing happens
    assert machine.echo(ring) == b"olleh"


@pytest.mark.parametrize("select", [2, 3, 1023, 1024, 0xFFFF])
def test_h112_registers_of_a_queue_that_does_not_exist(machine: Any, select: int) -> None:
    driver = machine.driver
    driver.negotiate()
    driver.set("queue_select", select)
    for name in (
        "queue_size", "queue_msix_vector", "queue_enable", "queue_notify_off", "queue_desc", "queue_driver",
        "queue_device", "queue_notif_config_data", "queue_reset",
    ):  # fmt: skip
        driver.set(name, 1)
        assert driver.get(name) == 0
    assert not driver.broken


ACCESS = st.tuples(
    st.booleans(),
    st.one_of(st.integers(0, 63), st.integers(0, 0x3FFF), st.sampled_from([0x1000, 0x2000, 0x3000, 0x3004, 0x3FFC])),
    st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16]),
    st.one_of(st.integers(0, 16), st.integers(0, (1 << 64) - 1)),
)


@settings(max_examples=150, deadline=None)
@given(accesses=st.lists(ACCESS, max_size=60), live=st.booleans())
def test_no_access_raises(make_machine: Callable[..., Any], accesses: list[Any], live: bool) -> None:
    machine = make_machine()
    if live:
        machine.driver.start()
    for bar in (4, 1, 0, 6):
        for write, offset, size, value in accesses:
            if write:
                machine.function.bar_write(bar, offset, size, value)
            else:
                result = machine.function.bar_read(bar, offset, size)
                assert 0 <= result < 1 << 8 * size or not size
    machine.function.reset()
    assert machine.echo(machine.driver.start()) == b"olleh"


@settings(max_examples=100, deadline=None)
@given(
    writes=st.lists(
        st.tuples(st.sampled_from([22, 24, 28, 32, 36, 40, 44, 48, 52, 58]), st.integers(0, (1 << 32) - 1)), max_size=20
    )
)
def test_h103_a_queue_programmed_with_anything(make_machine: Callable[..., Any], writes: list[tuple[int, int]]) -> None:
    machine = make_machine()
    ring = machine.driver.start()
    machine.driver.set("queue_reset", 1)
    for offset, value in writes:
        machine.function.bar_write(4, offset, 4 if offset in range(32, 56) else 2, value)
    machine.driver.set("queue_select", 0)
    machine.driver.set("queue_enable", 1)
    machine.driver.kick(0)
    machine.driver.kick(1)
    machine.function.reset()
    assert machine.echo(machine.driver.start(ring=ring.__class__(machine.memory, 8))) == b"olleh"
