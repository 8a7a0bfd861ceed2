"""The PCI configuration access capability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

WRITE = 2
AT = 0x84


def aim(machine: Any, bar: int, offset: int, length: int) -> None:
    write = machine.function.config_write
    write(AT + 4, 1, bar)
    write(AT + 8, 4, offset)
    write(AT + 12, 4, length)


def test_the_doorbell_through_the_window(machine: Any) -> None:
    ring = machine.driver.start()
    machine.memory.write(0x8000, b"hello")
    ring.publish(ring.add((0x8000, 5, 0), (0x9000, 64, WRITE)))
    aim(machine, 4, 0x3000, 2)
    machine.function.config_write(AT + 16, 2, 0)
    assert len(ring.used()) == 1


def test_reading_isr_through_the_window_clears_it(make_machine: Any) -> None:
    machine = make_machine(vectors=0)
    machine.echo(machine.driver.start(msix=False))
    aim(machine, 4, 0x1000, 1)
    assert [machine.function.config_read(AT + 16, 1) for _ in range(2)] == [1, 0]


def test_the_msix_table_through_the_window(machine: Any) -> None:
    machine.driver.start()
    aim(machine, 1, 8, 4)
    assert machine.function.config_read(AT + 16, 4) == 100


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [
        (0, 0, 4), (2, 0, 4), (5, 0, 4), (6, 0, 4), (255, 0, 4),
        (4, 20, 0), (4, 20, 3), (4, 20, 5), (4, 20, 8), (4, 20, 0xFFFFFFFF),
        (4, 21, 2), (4, 22, 4), (4, 0x4000, 1), (4, 0x3FFE, 4), (4, 0xFFFFFFFC, 4), (4, 0xFFFFFFFF, 1), (1, 4096, 4),
    ],
)  # fmt: skip
def test_h113_what_makes_no_sense_is_ignored(machine: Any, bar: int, offset: int, length: int) -> None:
    machine.driver.set_status(3)
    aim(machine, bar, offset, length)
    machine.function.config_write(AT + 16, 4, 0)
    machine.function.config_read(AT + 16, 4)
    assert machine.driver.get("device_status") == 3


def test_writing_the_other_fields_does_nothing(machine: Any) -> None:
    machine.driver.set_status(3)
    machine.function.config_write(AT + 16, 4, 0)
    aim(machine, 4, 20, 1)
    assert machine.driver.get("device_status") == 3
    machine.function.config_write(AT, 4, 0xFFFFFFFF)
    assert machine.function.config_read(AT, 4) == 0x05_14_70_09  # type, length, next and id are read-only


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.integers(AT, AT + 20), st.integers(0, 300)),
            st.sampled_from([1, 2, 4, 3, 8]),
            st.one_of(st.integers(0, 24), st.integers(0, (1 << 32) - 1)),
        ),
        max_size=40,
    )
)
def test_no_access_to_configuration_space_raises(make_machine: Callable[..., Any], accesses: list[Any]) -> None:
    machine = make_machine()
    machine.driver.start()
    for write, offset, size, value in accesses:
        if write:
            machine.function.config_write(offset, size, value)
        else:
            machine.function.config_read(offset, size)
    machine.function.reset()
    assert machine.echo(machine.driver.start()) == b"olleh"
