from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import VirtioPciDriver
from pyvirtfs.guest.virtio_driver import TRANSPORT_FEATURES, Queue
from pyvirtfs.virtio import features

Bench = Any  # of conftest.py, which cannot be imported


@pytest.fixture
def driver(bench: Bench) -> VirtioPciDriver:
    made: VirtioPciDriver = bench.machine.drive(bench.function)
    return made


def up(driver: VirtioPciDriver) -> Queue[int]:
    driver.negotiate(1)
    driver.enable_interrupts()
    queue: Queue[int] = driver.set_up_queue(0)
    driver.driver_ok()
    return queue


def test_negotiation(driver: VirtioPciDriver) -> None:
    accepted = driver.negotiate(1)
    assert accepted == TRANSPORT_FEATURES | 1
    assert driver.status == 1 | 2 | 8
    assert driver.has_feature(features.EVENT_IDX)
    assert not driver.has_feature(features.RING_PACKED)
    driver.driver_ok()
    assert driver.status == 15
    driver.reset()
    assert driver.status == driver.features == 0


def test_only_what_is_wanted_is_accepted(bench: Bench) -> None:
    driver = bench.machine.drive(bench.function, wanted=features.mask(features.VERSION_1))
    assert driver.negotiate() == 1 << 32
    assert not driver.needs_reset


def test_a_legacy_device_is_refused(bench: Bench) -> None:
    driver = bench.machine.drive(bench.function, wanted=0)
    with pytest.raises(DeviceError, match="VERSION_1"):
        driver.negotiate()
    assert driver.status & 128


def test_a_device_that_refuses_the_features(bench: Bench, driver: VirtioPciDriver) -> None:
    bench.lies["device_status"] = lambda value: value & ~8
    with pytest.raises(DeviceError, match="refuses the features"):
        driver.negotiate()


def test_a_reset_that_takes_long_or_for_ever(
    bench: Bench, driver: VirtioPciDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    countdown = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    bench.lies["device_status"] = lambda value: countdown.pop(0)
    driver.reset()
    assert len(countdown) == 7
    bench.lies["device_status"] = lambda value: 1
    monkeypatch.setattr("pyvirtfs.guest.virtio_driver.RESET_TIMEOUT", 0.01)
    with pytest.raises(DeviceError, match="finish its reset"):
        driver.reset()


@pytest.mark.parametrize(
    ("register", "value", "problem"),
    [
        ("queue_size", 0, "does not exist"),
        ("queue_enable", 1, "in use"),
        ("queue_notify_off", 0xFFFF, "doorbell"),
        ("queue_msix_vector", 0xFFFF, "refuses vector"),
    ],
)
def test_queue_registers_that_cannot_be(
    bench: Bench, driver: VirtioPciDriver, register: str, value: int, problem: str
) -> None:
    driver.negotiate(1)
    driver.enable_interrupts()
    bench.lies[register] = lambda _: value
    with pytest.raises(DeviceError, match=problem):
        driver.set_up_queue(0)


def test_a_set_up_that_fails_keeps_no_memory(bench: Bench, driver: VirtioPciDriver) -> None:
    driver.negotiate()
    driver.enable_interrupts()
    before = driver.dma.pages_in_use
    bench.lies["queue_msix_vector"] = lambda _: 0xFFFF
    with pytest.raises(DeviceError, match="refuses vector"):
        driver.set_up_queue(0)
    driver.reset()
    assert driver.dma.pages_in_use == before


def test_a_refused_config_vector(bench: Bench, driver: VirtioPciDriver) -> None:
    driver.negotiate(1)
    bench.lies["config_msix_vector"] = lambda _: 0xFFFF
    with pytest.raises(DeviceError, match="refuses vector 0"):
        driver.enable_interrupts()


def test_queue_set_up_reaches_the_device(driver: VirtioPciDriver) -> None:
    queue = up(driver)
    common = driver.common
    common.write("queue_select", 0)
    assert common.read("queue_desc") == queue.ring.descriptor_address
    assert common.read("queue_driver") == queue.ring.available_address
    assert common.read("queue_device") == queue.ring.used_address
    assert (common.read("queue_size"), common.read("queue_enable"), common.read("queue_msix_vector")) == (128, 1, 1)
    assert common.read("config_msix_vector") == 0
    with pytest.raises(DeviceError, match="in use"):
        driver.set_up_queue(0)
    with pytest.raises(DeviceError, match="does not exist"):
        driver.set_up_queue(1)


def test_smaller_queue(driver: VirtioPciDriver) -> None:
    driver.negotiate(1)
    driver.enable_interrupts()
    queue: Queue[int] = driver.set_up_queue(0, size=4)
    assert queue.ring.size == driver.common.read("queue_size") == 4


def request(driver: VirtioPciDriver, queue: Queue[int], token: int) -> None:
    """A Tflush: the shortest request that is always answered."""
    buffer = driver.dma.allocate(64)
    buffer.write(0, bytes.fromhex("09000000 6c 0100 0700".replace(" ", "")))
    queue.add([(buffer.address, 9)], [(buffer.address + 16, 48)], token)


def test_requests_and_interrupts(driver: VirtioPciDriver) -> None:
    queue, log = up(driver), list[tuple[int, int]]()

    def harvest(queue: Queue[int]) -> None:
        while (used := queue.harvest()) is not None:
            log.append((used.token, used.nbytes))

    queue.on_used = harvest
    for token in (5, 6):
        request(driver, queue, token)
    assert queue.kick()
    assert not queue.kick()
    driver.interrupts.deliver()
    assert log == [(5, 7), (6, 7)]
    counters = driver.counters
    assert (counters.buffers, counters.kicks, counters.kicks_suppressed, counters.queue_interrupts) == (2, 1, 1, 1)
    assert "kicks=1" in repr(counters)
    queue.interrupt()
    assert counters.spurious_interrupts == 1


def test_a_masked_vector_waits(driver: VirtioPciDriver) -> None:
    queue = up(driver)
    driver.mask_vector(queue.vector, masked=True)
    request(driver, queue, 1)
    queue.kick()
    assert driver.interrupts.deliver() == 0
    assert queue.ring.has_used()
    driver.mask_vector(queue.vector, masked=False)
    assert driver.interrupts.deliver() == 1


def test_intx(bench: Bench) -> None:
    driver = bench.machine.drive(bench.function, use_msix=False)
    queue = up(driver)
    request(driver, queue, 1)
    queue.kick()
    assert bench.machine.pin.line.level
    assert driver.interrupts.deliver() == 1
    assert not bench.machine.pin.line.level
    assert driver.counters.queue_interrupts == 1
    assert queue.vector == 0xFFFF
    driver.reset()
    assert bench.machine.pin.line.handlers == []


def test_queue_reset(driver: VirtioPciDriver) -> None:
    queue = up(driver)
    request(driver, queue, 7)  # never kicked
    assert driver.reset_queue(0) == [7]
    assert driver.common.read("queue_enable") == 0
    again: Queue[int] = driver.set_up_queue(0, size=16)
    request(driver, again, 8)
    assert again.kick()
    used = again.harvest()
    assert used is not None
    assert used.token == 8
    assert driver.interrupts.deliver() == 1
    assert driver.counters.queue_interrupts == 1  # of the new queue alone


def test_queue_reset_must_be_negotiated(bench: Bench) -> None:
    driver = bench.machine.drive(bench.function, wanted=features.mask(features.VERSION_1))
    up(driver)
    with pytest.raises(DeviceError, match="RING_RESET"):
        driver.reset_queue(0)


def test_config_is_read_again_if_it_changes(bench: Bench, driver: VirtioPciDriver) -> None:
    generations = [1, 2, 2, 2]
    bench.lies["config_generation"] = lambda _: generations.pop(0)
    assert driver.read_config(0, 5) == b"\x03\0tag"
    assert generations == []


def test_rings_are_released_by_a_reset(driver: VirtioPciDriver) -> None:
    up(driver)
    assert driver.dma.pages_in_use == 3
    driver.reset()
    assert driver.dma.pages_in_use == 0
