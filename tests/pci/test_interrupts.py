"""How interrupts leave a function: pin, messages, and the switch between them."""

from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.pci import PciFunction, PciIdentity

MSIX = 0x40  # the only capability of the conventional test device
MESSAGE = 0xFEE0_0000


@pytest.fixture
def ready(device: Any) -> Any:
    """Memory and bus mastering on, both vectors with a message and unmasked, MSI-X still off."""
    device.config_write(4, 2, 6)
    for vector in range(2):
        device.bar_write(1, 16 * vector, 4, MESSAGE + 4 * vector)
        device.bar_write(1, 16 * vector + 8, 4, 0x40 + vector)
        device.bar_write(1, 16 * vector + 12, 4, 0)
    return device


def status(device: Any) -> bool:
    return bool(device.config_read(6, 2) & 8)


def test_the_pin_is_a_level(device: Any, sink: Any) -> None:
    for level in (True, True, False, False, True):
        device.set_intx(level)
        assert status(device) == device.intx_asserted == level
    assert sink.levels == [True, False, True]


def test_the_disable_bit_gates_the_pin_but_not_the_status(device: Any, sink: Any) -> None:
    device.config_write(4, 2, 0x400)
    device.set_intx(True)
    assert status(device)
    assert sink.levels == []
    device.config_write(4, 2, 0)
    assert sink.levels == [True]
    device.config_write(5, 1, 4)
    assert sink.levels == [True, False]


def test_enabling_msix_releases_the_pin_and_disabling_it_asserts_again(ready: Any, sink: Any) -> None:
    ready.set_intx(True)
    ready.config_write(MSIX + 2, 2, 0x8000)
    assert sink.levels == [True, False]
    assert not status(ready)
    ready.config_write(MSIX + 2, 2, 0)
    assert sink.levels == [True, False, True]
    assert status(ready)


def test_a_function_without_a_pin(sink: Any) -> None:
    function = PciFunction(PciIdentity(1, 2), interrupts=sink, interrupt_pin=0)
    function.set_intx(True)
    assert sink.levels == []


def test_messages(ready: Any, sink: Any) -> None:
    ready.msix.raise_vector(1)
    assert sink.messages == []  # MSI-X is off
    ready.config_write(MSIX + 2, 2, 0x8000)
    ready.msix.raise_vector(1)
    ready.msix.raise_vector(0)
    assert sink.messages == [(1, MESSAGE + 4, 0x41), (0, MESSAGE, 0x40)]


@pytest.mark.parametrize(
    ("close", "reopen"),
    [
        (
            lambda device: device.config_write(MSIX + 2, 2, 0xC000),
            lambda device: device.config_write(MSIX + 2, 2, 0x8000),
        ),
        (
            lambda device: device.config_write(MSIX, 4, 0xC0000000),
            lambda device: device.config_write(MSIX + 3, 1, 0x80),
        ),
        (lambda device: device.bar_write(1, 12, 4, 1), lambda device: device.bar_write(1, 12, 4, 0)),
        (lambda device: device.bar_write(1, 8, 8, 1 << 32), lambda device: device.bar_write(1, 8, 8, 0x40)),
        (lambda device: device.config_write(4, 2, 2), lambda device: device.config_write(4, 2, 6)),
    ],
    ids=["function mask", "function mask by dword", "vector mask", "vector mask by qword", "bus mastering"],
)
def test_an_event_waits_and_is_sent_once(ready: Any, sink: Any, close: Any, reopen: Any) -> None:
    ready.config_write(MSIX + 2, 2, 0x8000)
    close(ready)
    ready.msix.raise_vector(0)
    ready.msix.raise_vector(0)
    assert sink.messages == []
    assert ready.bar_read(1, 0x800, 4) == 1
    reopen(ready)
    reopen(ready)
    assert sink.messages == [(0, MESSAGE, 0x40)]
    assert ready.bar_read(1, 0x800, 4) == 0


def test_without_a_sink_interrupts_go_nowhere(ready: Any) -> None:
    ready.interrupts = None
    ready.set_intx(True)
    ready.config_write(MSIX + 2, 2, 0x8000)
    ready.msix.raise_vector(0)
    assert not ready.msix.is_pending(0)
