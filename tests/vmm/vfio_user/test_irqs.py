"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS. Names as those of libvfio-user's tests of the same behaviour."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from pyvirtfs.vmm.vfio_user.irqs import Irqs

NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSI, MSIX, ERR, REQ = range(5)
IRQ_INFO, SET_IRQS, RESET = 7, 8, 13


class Events:
    """Eventfds of the client."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def make(self, count: int) -> list[int]:
        new = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        self.fds += new
        return new

    def counts(self) -> list[int]:
        """How often each was signalled since the last call."""
        found = []
        for fd in self.fds:
            try:
                found.append(os.eventfd_read(fd))
            except BlockingIOError:
                found.append(0)
        return found


@pytest.fixture
def events() -> Iterator[Events]:
    found = Events()
    yield found
    for fd in found.fds:
        os.close(fd)


def set_irqs(flags: int, index: int, start: int, count: int, data: bytes = b"", argsz: int | None = None) -> bytes:
    return struct.pack("<IIIII", 20 + len(data) if argsz is None else argsz, flags, index, start, count) + data


@pytest.fixture
def msix(bench: Any, events: Events) -> Any:
    """MSI-X in use, all four vectors with an eventfd."""
    bench.enable_msix()
    bench.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 4, fds=events.make(4))
    return bench


# --- information ---


def test_device_get_irq_info_ok(bench: Any) -> None:
    found = [struct.unpack("<IIII", bench.raw.call(IRQ_INFO, struct.pack("<IIII", 16, 0, i, 0))) for i in range(5)]
    assert found == [(16, 7, 0, 1), (16, 1, 1, 0), (16, 9, 2, 4), (16, 1, 3, 1), (16, 1, 4, 1)]


def test_a_function_without_interrupts(make_bench: Any, toy: Any) -> None:
    irqs = make_bench(toy(vectors=0, interrupt_pin=0)).irqs
    assert irqs.counts == (0, 0, 0, 1, 1)
    irqs.intx(True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<III", 16, 0, 2),
        struct.pack("<IIII", 15, 0, 2, 0),
        struct.pack("<IIII", 0, 0, 2, 0),
        struct.pack("<IIII", 16, 0, 5, 0),
        struct.pack("<IIII", 16, 0, 0xFFFFFFFF, 0),
    ],
)
def test_device_get_irq_info_bad_in(bench: Any, body: bytes) -> None:
    bench.raw.refused(IRQ_INFO, body)


# --- what is refused ---


@pytest.mark.parametrize("nbytes", [0, 4, 19])
def test_short_write(bench: Any, nbytes: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, 1)[:nbytes])


@pytest.mark.parametrize("argsz", [0, 19])
def test_bad_argsz(bench: Any, argsz: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, 1, argsz=argsz))


@pytest.mark.parametrize("index", [5, 6, 0xFFFFFFFF])
def test_bad_index(bench: Any, index: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, index, 0, 1))
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, index, 0, 0))


@pytest.mark.parametrize("flags", [TRIGGER | MASK, MASK | UNMASK, MASK | UNMASK | TRIGGER, 0])
def test_bad_flags_actions(bench: Any, flags: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | flags, MSIX, 0, 1))


@pytest.mark.parametrize("flags", [NONE | BOOL, NONE | EVENTFD, BOOL | EVENTFD, NONE | BOOL | EVENTFD, 0])
def test_bad_flags_datas(bench: Any, flags: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(flags | TRIGGER, MSIX, 0, 1, b"\1" if flags & BOOL else b""))


@pytest.mark.parametrize("flags", [64, 0x80000000, 0xFFFFFFFF])
def test_unknown_flags(bench: Any, flags: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(flags | NONE | TRIGGER, MSIX, 0, 1))


@pytest.mark.parametrize(
    ("start", "count"), [(0, 5), (4, 1), (3, 2), (1, 4), (0xFFFFFFFF, 1), (0xFFFFFFFF, 2), (1, 0xFFFFFFFF)]
)
def test_bad_start_count_range(bench: Any, start: int, count: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, start, count))


@pytest.mark.parametrize("index", [ERR, REQ])
@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_bad_action_for_err_and_req(bench: Any, index: int, action: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | action, index, 0, 1))


@pytest.mark.parametrize("index", [ERR, REQ])
@pytest.mark.parametrize(("start", "count"), [(0, 2), (1, 1), (1, 0)])
def test_bad_start_count_range_for_err_and_req(bench: Any, index: int, start: int, count: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, index, start, count))


@pytest.mark.parametrize("start", [1, 3, 0xFFFFFFFF])
def test_bad_start_for_count_0(bench: Any, start: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, start, 0))


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_bad_action_for_count_0(bench: Any, action: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(NONE | action, MSIX, 0, 0))


@pytest.mark.parametrize("data", [BOOL, EVENTFD])
def test_bad_action_and_data_type_for_count_0(bench: Any, data: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(data | TRIGGER, MSIX, 0, 0))


@pytest.mark.parametrize("data", [NONE, BOOL])
@pytest.mark.parametrize("number", [1, 2])
def test_bad_fds_for_data_bool_and_none(bench: Any, events: Events, data: int, number: int) -> None:
    body = set_irqs(data | TRIGGER, MSIX, 0, 1, b"\1" if data == BOOL else b"")
    bench.raw.refused(SET_IRQS, body, fds=events.make(number))


@pytest.mark.parametrize("number", [1, 3, 16])
def test_bad_fds_for_count_2(bench: Any, events: Events, number: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2), fds=events.make(number))


def test_descriptors_that_are_no_eventfd(msix: Any, events: Events) -> None:
    """One among good ones: nothing is changed."""
    with open("/dev/null", "wb") as null:
        msix.raw.refused(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSIX, 0, 2), fds=[events.make(1)[0], null.fileno()])
    msix.function.msix.raise_vector(0)
    assert events.counts()[:2] == [1, 0]


@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_nobody_is_told_of_masks(bench: Any, events: Events, action: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(EVENTFD | action, INTX, 0, 1), fds=events.make(1))


@pytest.mark.parametrize("nbytes", [0, 1])
def test_trigger_bool_too_small(bench: Any, nbytes: int) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(BOOL | TRIGGER, MSIX, 0, 2, bytes(nbytes)))


def test_trigger_bool_too_large(bench: Any) -> None:
    bench.raw.refused(SET_IRQS, set_irqs(BOOL | TRIGGER, MSIX, 0, 2, bytes(3)))


def test_no_irq_set(make_bench: Any, toy: Any) -> None:
    """A device without MSI-X: nothing of it can be set, but disabling it does no harm."""
    bench = make_bench(toy(vectors=0))
    bench.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 0, 1))
    bench.raw.refused(SET_IRQS, set_irqs(EVENTFD | TRIGGER, MSI, 0, 1))
    bench.raw.set_irqs(NONE | TRIGGER, MSIX, 0, 0)


# --- assigning and triggering ---


def test_enable(msix: Any, events: Events) -> None:
    for vector in (2, 0, 2):
        msix.function.msix.raise_vector(vector)
    assert events.counts() == [1, 0, 2, 0]
    assert msix.irqs.signals == 3


def test_enable_update(msix: Any, events: Events) -> None:
    """New eventfds replace the old ones, which are closed."""
    before = len(os.listdir("/proc/self/fd"))
    msix.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 1, 2, fds=events.make(2))
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the two of the client
    for vector in range(4):
        msix.function.msix.raise_vector(vector)
    assert events.counts() == [1, 0, 0, 1, 1, 1]


def test_disable(msix: Any, events: Events) -> None:
    before = len(os.listdir("/proc/self/fd"))
    msix.raw.set_irqs(NONE | TRIGGER, MSIX, 0, 0)
    assert len(os.listdir("/proc/self/fd")) == before - 4
    msix.function.msix.raise_vector(0)
    assert events.counts() == [0] * 4


def test_a_range_without_descriptors_is_taken_away(msix: Any, events: Events) -> None:
    """As QEMU does it while a vector is masked: what comes then is signalled when there is an eventfd again."""
    msix.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 1, 2)
    for vector in range(4):
        msix.function.msix.raise_vector(vector)
    assert events.counts() == [1, 0, 0, 1]
    msix.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 2, 1, fds=events.make(1))
    assert events.counts() == [0, 0, 0, 0, 1]


def test_enable_trigger_none(msix: Any, events: Events) -> None:
    msix.raw.set_irqs(NONE | TRIGGER, MSIX, 0, 2)
    assert events.counts() == [1, 1, 0, 0]


def test_enable_trigger_bool(msix: Any, events: Events) -> None:
    msix.raw.set_irqs(BOOL | TRIGGER, MSIX, 1, 3, b"\0\1\xff")
    assert events.counts() == [0, 0, 1, 1]


@pytest.mark.parametrize("index", [ERR, REQ])
def test_err_and_req_can_be_assigned_and_triggered(bench: Any, events: Events, index: int) -> None:
    bench.raw.set_irqs(EVENTFD | TRIGGER, index, 0, 1, fds=events.make(1))
    bench.raw.set_irqs(NONE | TRIGGER, index, 0, 1)
    assert events.counts() == [1]
    bench.raw.set_irqs(NONE | TRIGGER, index, 0, 0)
    bench.raw.set_irqs(NONE | TRIGGER, index, 0, 1)
    assert events.counts() == [0]


def test_irq_trigger_unassigned_is_dropped(bench: Any) -> None:
    bench.enable_msix()
    bench.function.msix.raise_vector(1)
    bench.raw.set_irqs(NONE | TRIGGER, MSIX, 0, 4)
    assert bench.irqs.signals == 0


def test_irq_trigger_bad_subindex(msix: Any, events: Events) -> None:
    msix.function.msix.raise_vector(4)
    msix.raw.refused(SET_IRQS, set_irqs(NONE | TRIGGER, MSIX, 4, 1))
    assert events.counts() == [0] * 4


def test_a_client_that_never_reads_its_eventfd(bench: Any, events: Events) -> None:
    """Even a blocking one that is full does not hold the device up."""
    bench.enable_msix()
    fd = os.eventfd(0)
    events.fds.append(fd)
    bench.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 1, fds=[fd])
    os.eventfd_write(fd, (1 << 64) - 2)
    bench.function.msix.raise_vector(0)
    assert os.eventfd_read(fd) == (1 << 64) - 2


# --- masks of MSI-X ---


def test_irq_state_masked_vectors_stay_pending(msix: Any, events: Events) -> None:
    msix.raw.set_irqs(NONE | MASK, MSIX, 0, 3)
    for vector in (0, 1, 1):
        msix.function.msix.raise_vector(vector)
    assert events.counts() == [0] * 4
    msix.raw.set_irqs(BOOL | UNMASK, MSIX, 0, 3, b"\0\1\1")
    assert events.counts() == [0, 1, 0, 0]
    msix.raw.set_irqs(NONE | UNMASK, MSIX, 0, 4)
    assert events.counts() == [1, 0, 0, 0]


def test_a_masked_vector_stays_masked_whatever_is_written_to_configuration_space(msix: Any, events: Events) -> None:
    msix.raw.set_irqs(NONE | MASK, MSIX, 1, 1)
    msix.function.msix.raise_vector(1)
    msix.raw.write(7, 0x3C, b"\x0b")
    assert events.counts() == [0] * 4
    msix.raw.set_irqs(NONE | UNMASK, MSIX, 1, 1)
    assert events.counts() == [0, 1, 0, 0]


def test_the_function_mask(msix: Any, events: Events) -> None:
    control = msix.capability(0x11) + 2
    msix.raw.write(7, control, struct.pack("<H", 0xC000))
    msix.function.msix.raise_vector(3)
    assert events.counts() == [0] * 4
    msix.raw.write(7, control, struct.pack("<H", 0x8000))
    assert events.counts() == [0, 0, 0, 1]


def test_eventfds_outlive_a_reset(msix: Any, events: Events) -> None:
    """DEVICE_RESET, after which MSI-X is enabled anew in configuration space only."""
    msix.raw.call(RESET)
    msix.function.msix.raise_vector(0)
    assert events.counts() == [0] * 4
    msix.enable_msix()
    msix.function.msix.raise_vector(0)
    assert events.counts() == [1, 0, 0, 0]


def test_eventfds_outlive_a_function_level_reset(make_bench: Any, toy: Any, events: Events) -> None:
    bench = make_bench(toy(express=True))
    bench.enable_msix()
    bench.raw.set_irqs(EVENTFD | TRIGGER, MSIX, 0, 4, fds=events.make(4))
    bench.raw.write(7, bench.capability(0x10) + 8, struct.pack("<H", 0x8000))
    assert bench.function.resets == 1
    bench.enable_msix()
    bench.function.msix.raise_vector(2)
    assert events.counts() == [0, 0, 1, 0]


# --- INTx ---


@pytest.fixture
def intx(bench: Any, events: Events) -> Any:
    bench.raw.set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, fds=events.make(1))
    return bench


def test_intx_masks_itself(intx: Any, events: Events) -> None:
    intx.function.set_intx(True)
    assert events.counts() == [1]
    intx.function.set_intx(False)
    intx.function.set_intx(True)
    assert events.counts() == [0]
    intx.function.set_intx(False)
    intx.raw.set_irqs(NONE | UNMASK, INTX, 0, 1)
    assert events.counts() == [0]  # low again by then
    intx.function.set_intx(True)
    assert events.counts() == [1]


def test_intx_is_signalled_again_at_unmask_if_it_is_still_high(intx: Any, events: Events) -> None:
    intx.function.set_intx(True)
    for _ in range(3):
        assert events.counts() == [1]
        intx.raw.set_irqs(NONE | UNMASK, INTX, 0, 1)
    assert events.counts() == [1]


def test_intx_masked_by_the_client(intx: Any, events: Events) -> None:
    intx.raw.set_irqs(BOOL | MASK, INTX, 0, 1, b"\1")
    intx.function.set_intx(True)
    assert events.counts() == [0]
    intx.raw.set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\0")
    assert events.counts() == [0]
    intx.raw.set_irqs(BOOL | UNMASK, INTX, 0, 1, b"\1")
    assert events.counts() == [1]


def test_intx_that_is_high_when_the_eventfd_comes(bench: Any, events: Events) -> None:
    bench.function.set_intx(True)
    bench.raw.set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, fds=events.make(1))
    assert events.counts() == [1]
    bench.raw.set_irqs(NONE | TRIGGER, INTX, 0, 0)
    bench.raw.set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, fds=events.make(1))
    assert events.counts() == [0, 1]


def test_intx_without_an_eventfd(bench: Any) -> None:
    bench.function.set_intx(True)
    bench.raw.set_irqs(NONE | UNMASK, INTX, 0, 1)
    assert bench.irqs.signals == 0


# --- the end ---


def test_release_closes_everything(toy: Any, events: Events) -> None:
    irqs = Irqs(toy())
    for index, count in enumerate(irqs.counts):
        fds = [os.dup(fd) for fd in events.make(count)]
        if fds:
            irqs.set(EVENTFD | TRIGGER, index, 0, count, b"", fds)
            assert fds == []
    before = len(os.listdir("/proc/self/fd"))
    irqs.release()
    assert len(os.listdir("/proc/self/fd")) == before - sum(irqs.counts)
    with contextlib.suppress(OSError):
        irqs.release()
    assert len(os.listdir("/proc/self/fd")) == before - sum(irqs.counts)
