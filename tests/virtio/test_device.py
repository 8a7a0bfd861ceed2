"""The status machine, the loop, and what happens when something in it fails."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError, GuestError
from pyvirtfs.memory import GuestMemory
from pyvirtfs.syscalls import memfd_create

if TYPE_CHECKING:
    from collections.abc import Callable

WRITE = 2
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
ALL = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40


def request(machine: Any, ring: Any) -> None:
    machine.memory.write(0x8000, b"ping")
    ring.publish(ring.add((0x8000, 4, 0), (0x9000, 64, WRITE)))


# --- status ---


def test_driver_ok_needs_features_ok(machine: Any, assert_needs_reset: Any) -> None:
    machine.driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert_needs_reset(machine)


def test_bits_are_only_added(machine: Any) -> None:
    ring = machine.driver.start()
    assert machine.driver.set_status(ACKNOWLEDGE) == 15
    assert machine.driver.set_status(NEEDS_RESET | 16 | 32) == 15
    assert machine.echo(ring) == b"olleh"
    assert machine.driver.set_status(FAILED) == 15 | FAILED


@given(writes=st.lists(st.integers(0, 255), max_size=12))
def test_any_status_writes(make_machine: Callable[..., Any], writes: list[int]) -> None:
    machine = make_machine()
    expected = 0
    for value in writes:
        added = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FAILED) & ~expected  # no features were written: none are OK
        expected = (expected | added | (NEEDS_RESET if added & DRIVER_OK else 0)) if value else 0
        assert machine.driver.set_status(value) == expected


@pytest.mark.parametrize("option", ["indirect_desc", "event_idx", "queue_reset"])
def test_features_can_be_switched_off(make_machine: Any, echo_device: Any, option: str) -> None:
    machine = make_machine(lambda memory: echo_device(memory, **{option: False}))
    bit = {"indirect_desc": 28, "event_idx": 29, "queue_reset": 40}[option]
    assert machine.driver.offered() == (ALL | 1 << 3 | 1 << 5) & ~(1 << bit)


@pytest.mark.parametrize("size", [0, 1, 3, 100, 65536])
def test_queue_sizes_that_cannot_be(echo_device: Any, size: int) -> None:
    with pytest.raises(ConfigError, match="queue_size"):
        echo_device(GuestMemory.anonymous(4096), queue_sizes=(size,))


@pytest.mark.parametrize("value", [0, 2, 0x100, 0xFFFF])
def test_queue_enable_takes_only_1(machine: Any, assert_needs_reset: Any, value: int) -> None:
    machine.driver.set("queue_enable", value)
    assert_needs_reset(machine)


# --- faults ---


def test_quiet_until_reset_and_well_again_afterwards(machine: Any, assert_needs_reset: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    ring.publish(99)
    driver.kick()
    assert_needs_reset(machine)
    assert machine.sink.vectors() == [0]
    used = ring.used_idx
    for _ in range(3):
        driver.kick()
        machine.function.run_pending()
    assert ring.used_idx == used
    assert machine.sink.vectors() == []
    assert machine.device.errors == 1
    assert machine.device.cancelled == 2  # by the first reset of all, and now
    assert machine.echo(driver.start()) == b"olleh"
    assert machine.device.errors == 1


def test_what_was_answered_before_the_fault_is_not_lost(machine: Any) -> None:
    ring = machine.driver.start()
    request(machine, ring)
    ring.publish(99)
    machine.driver.kick()
    assert len(ring.used()) == 1
    assert machine.driver.broken


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, OSError, RecursionError, MemoryError])
def test_a_bug_does_not_reach_the_emulator(
    machine: Any, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    ring = machine.driver.start()

    def fail() -> None:
        raise error("a bug")

    machine.device.on_request = fail
    request(machine, ring)
    with caplog.at_level(logging.ERROR):
        machine.driver.kick()
    assert machine.driver.broken
    assert isinstance(machine.device.last_error, error)
    assert "a bug" in caplog.text
    machine.device.on_request = None
    assert machine.echo(machine.driver.start()) == b"olleh"


def test_a_sink_that_fails_does_not_reach_the_emulator(machine: Any) -> None:
    ring = machine.driver.start()

    def fail() -> None:
        raise RuntimeError("the sink")

    machine.sink.on_message = fail
    request(machine, ring)
    machine.driver.kick()  # the config interrupt of the fault fails as well
    assert machine.driver.broken


def test_a_failing_cancel_does_not_stop_a_reset(machine: Any) -> None:
    def fail() -> None:
        raise OSError("cancel")

    machine.driver.start()
    machine.device.cancel = fail
    assert machine.driver.set_status(0) == 0
    assert machine.echo(machine.driver.start()) == b"olleh"


def test_keyboard_interrupt_passes(machine: Any) -> None:
    ring = machine.driver.start()

    def interrupt() -> None:
        raise KeyboardInterrupt

    machine.device.on_request = interrupt
    request(machine, ring)
    with pytest.raises(KeyboardInterrupt):
        machine.driver.kick()
    assert not machine.driver.broken
    machine.device.on_request = None
    assert machine.echo(machine.driver.start()) == b"olleh"


# --- the loop ---


def test_doorbells_from_within_are_picked_up_by_the_loop(machine: Any) -> None:
    ring = machine.driver.start()
    depth = [0, 0]
    left = [5]

    def more() -> None:
        depth[0] += 1
        depth[1] = max(depth)
        if left[0]:
            left[0] -= 1
            request(machine, ring)
            machine.driver.kick()
            assert machine.function.run_pending() == 0
        depth[0] -= 1

    machine.sink.on_message = more
    ring.set_used_event(0)
    for i in range(6):
        ring.set_used_event(i)
    ring = machine.driver.start(ALL & ~(1 << 29))
    request(machine, ring)
    machine.driver.kick()
    assert len(ring.used()) == 6
    assert depth[1] == 1


def test_a_doorbell_in_the_middle_of_a_request(machine: Any) -> None:
    ring = machine.driver.start()
    machine.device.on_request = machine.driver.kick
    request(machine, ring)
    machine.driver.kick()
    assert len(ring.used()) == 1
    assert not machine.driver.broken


def test_a_reset_in_the_middle_of_a_request(machine: Any) -> None:
    ring = machine.driver.start()
    machine.device.on_request = lambda: machine.driver.set_status(0)
    request(machine, ring)
    request(machine, ring)
    machine.driver.kick()
    assert ring.used() == []
    assert len(machine.device.seen) == 1
    assert machine.driver.get("device_status") == 0
    assert machine.sink.vectors() == []


def test_deferred_doorbells(make_machine: Any) -> None:
    machine = make_machine(defer=True)
    ring = machine.driver.start()
    for _ in range(3):
        request(machine, ring)
        machine.driver.kick()
    assert ring.used() == []
    assert machine.function.run_pending() == 3
    assert len(ring.used()) == 3
    assert machine.sink.vectors() == [1]
    assert machine.function.run_pending() == 0


def test_late_answers(machine: Any) -> None:
    ring = machine.driver.start()
    machine.device.hold = True
    request(machine, ring)
    request(machine, ring)
    machine.driver.kick()
    assert ring.used() == []
    machine.device.hold = False
    assert machine.function.run_pending() == 2
    assert len(ring.used()) == 2
    assert machine.sink.vectors() == [1]


@pytest.mark.parametrize("queue_only", [False, True])
def test_h116_reset_with_requests_in_flight(machine: Any, queue_only: bool) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.device.hold = True
    request(machine, ring)
    driver.kick()
    if queue_only:
        driver.set("queue_reset", 1)
    else:
        driver.set_status(0)
    ring = driver.start()
    machine.device.hold = False
    assert machine.function.run_pending() == 0
    assert ring.used() == []
    assert machine.sink.vectors() == []
    assert machine.echo(ring) == b"olleh"


def test_h116_a_reset_has_not_finished_while_something_uses_guest_memory(make_machine: Any, echo_device: Any) -> None:
    class Slow(echo_device):  # type: ignore[misc]  # a fixture's value
        busy = False

    machine = make_machine(Slow)
    driver = machine.driver
    driver.start()
    machine.device.busy = True
    assert driver.set_status(0) == 15
    assert driver.set_status(ACKNOWLEDGE) == 15  # does not wait: ignored
    machine.device.busy = False
    assert driver.get("device_status") == 0
    ring = driver.start()
    assert machine.echo(ring) == b"olleh"
    machine.device.busy = True
    driver.set("queue_reset", 1)
    assert (driver.get("queue_reset"), driver.get("queue_enable")) == (1, 0)
    driver.set("queue_enable", 1)
    assert driver.get("queue_enable") == 0
    machine.device.busy = False
    assert driver.get("queue_reset") == 0


def test_no_dma_without_bus_mastering(machine: Any) -> None:
    driver = machine.driver
    ring = driver.start()
    machine.device.hold = True
    request(machine, ring)
    driver.kick()
    driver.enable_bus(0x2)
    machine.device.hold = False
    request(machine, ring)
    driver.kick()
    assert machine.function.run_pending() == 0
    assert ring.used() == []
    assert len(machine.device.seen) == 1
    driver.enable_bus(0x6)
    assert len(ring.used()) == 2  # nothing was lost
    assert not driver.broken


def test_a_closed_device_never_comes_up_again(machine: Any) -> None:
    ring = machine.driver.start()
    machine.device.close()
    ring = machine.driver.start()
    request(machine, ring)
    machine.driver.kick()
    assert machine.function.run_pending() == 0
    assert ring.used() == []


def test_config_changes_of_a_broken_device_are_silent(machine: Any) -> None:
    machine.driver.start()
    machine.device.needs_reset(GuestError("for a test"))
    machine.sink.vectors()
    machine.device.set_config(b"new")
    assert machine.sink.vectors() == []


# --- a guest that runs at the same time, and RAM that comes and goes ---


@pytest.fixture
def busy_machine(make_machine: Any, echo_device: Any) -> Any:
    """A device that takes no more than a ring's worth at once, and whose guest makes two requests of each."""

    class Bounded(echo_device):  # type: ignore[misc]
        def process(self, index: int) -> bool:
            queue = self.queues[index]
            for _ in range(queue.state.size):
                chain = queue.pop()
                if chain is None:
                    return False
                self.seen.append(b"")
                if self.on_request is not None:
                    self.on_request()
                self.answer(queue, chain, b"x")
            return True

    return lambda **options: make_machine(Bounded, **options)


def test_deferred_work_ends_although_the_guest_goes_on(busy_machine: Any) -> None:
    machine = busy_machine(defer=True)
    ring = machine.driver.start()
    machine.device.on_request = lambda: request(machine, ring)
    request(machine, ring)
    machine.driver.kick()
    for turn in range(1, 4):
        assert machine.function.next_deadline() == 0.0
        assert machine.function.run_pending() == 8
        assert len(machine.device.seen) == 8 * turn
    machine.device.on_request = None
    assert machine.function.run_pending() == 1
    assert machine.function.next_deadline() is None
    assert len(ring.used()) <= 25


def test_work_that_is_not_deferred_is_done_to_the_end(busy_machine: Any) -> None:
    machine = busy_machine()
    ring = machine.driver.start()
    machine.device.on_request = lambda: request(machine, ring) if len(machine.device.seen) < 50 else None
    request(machine, ring)
    machine.driver.kick()
    assert len(machine.device.seen) == 50


def test_a_fault_of_before_a_reset_is_not_held_against_the_device(machine: Any) -> None:
    """RAM goes away in the middle of a request because the guest resets: the fault belongs to what is gone."""

    def reset_and_fail() -> None:
        machine.driver.set("device_status", 0)
        raise GuestError("of the request before the reset")

    ring = machine.driver.start()
    machine.device.on_request = reset_and_fail
    request(machine, ring)
    machine.driver.kick()
    assert machine.driver.get("device_status") == 0
    assert machine.device.errors == 0
    machine.device.on_request = None
    assert machine.echo(machine.driver.start()) == b"olleh"


def mapped(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return maps.read().count(name)


def test_removed_ram_is_really_unmapped(machine: Any) -> None:
    """Although the rings were there, and buffers of requests."""
    fd = memfd_create("removed-ram", 1 << 16)
    machine.memory.add_fd(fd, 1 << 16, address=1 << 32)
    os.close(fd)
    ring = Ring(machine, 1 << 32)
    assert machine.echo(ring.ring) == b"olleh"
    assert mapped("removed-ram") == 1
    machine.memory.remove(1 << 32, 1 << 16)
    assert mapped("removed-ram") == 0
    machine.driver.kick()
    assert machine.driver.broken


class Ring:
    """A queue in another region of RAM."""

    def __init__(self, machine: Any, base: int) -> None:
        driver = machine.driver
        size = driver.queue_size(0)
        self.ring = type(driver.start())(machine.memory, size, base)
        driver.start(ring=self.ring)


def test_a_closed_device_listens_no_more(machine: Any) -> None:
    assert len(machine.memory.listeners) == 1
    machine.device.close()
    assert machine.memory.listeners == []
    machine.device.close()
