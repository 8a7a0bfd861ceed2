"""The loop with servers that are nothing but a descriptor; vmm/vfio_user/test_loop.py has real ones."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pyvirtfs.loop import Loop
from pyvirtfs.testing import check_descriptors

PATIENCE = 10.0


class Counter:
    """Counts what an eventfd tells; each time it takes another one, whose number may be the same."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.epoch = 0
        self.told: list[int] = []
        self.deadline: float | None = None
        self.steps = 0
        self.stepped = threading.Event()

    def filenos(self) -> list[int]:
        return [self.fd]

    def step(self, readable: int | None = None) -> float | None:
        self.steps += 1
        if readable is not None:
            self.told.append(os.eventfd_read(readable))
            os.close(self.fd)
            self.fd = os.eventfd(0, os.EFD_NONBLOCK)
            self.epoch += 1
        self.stepped.set()
        if self.deadline is not None and self.deadline <= time.monotonic():
            self.deadline = None
        return self.deadline

    def close(self) -> None:
        os.close(self.fd)

    def tell(self, value: int) -> None:
        self.stepped.clear()
        os.eventfd_write(self.fd, value)
        assert self.stepped.wait(PATIENCE)


@pytest.fixture
def counters() -> Iterator[list[Counter]]:
    with check_descriptors():
        loop = Loop()
        counters = [Counter() for _ in range(3)]
        loop.servers += counters
        thread = threading.Thread(target=loop.run)
        thread.start()
        yield counters
        loop.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        loop.close()


def test_each_server_is_told_of_its_own_descriptors(counters: list[Counter]) -> None:
    for value in range(1, 20):
        counters[value % 3].tell(value)
    for number, counter in enumerate(counters):
        assert counter.told == [value for value in range(1, 20) if value % 3 == number]


def test_a_deadline_is_kept_and_then_forgotten(counters: list[Counter]) -> None:
    counters[1].deadline = wanted = time.monotonic() + 0.1
    counters[1].tell(1)
    counters[1].stepped.clear()
    assert counters[1].stepped.wait(PATIENCE)
    assert time.monotonic() >= wanted
    assert (counters[0].steps, counters[1].steps, counters[2].steps) == (0, 2, 0)
    counters[2].tell(1)
    assert counters[1].steps == 2
