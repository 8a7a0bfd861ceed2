"""Several functions in one loop."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from pyvirtfs.pci import PciFunction
from pyvirtfs.testing import check_descriptors
from pyvirtfs.vmm.vfio_user import Loop

CONFIG = 7
PATIENCE = 10.0


def test_several_functions(served: Any, virtfs: Any, toy: Any) -> None:
    """Each has its own client at the same time, and its own memory."""
    for function in (virtfs, toy(), virtfs, toy(express=True)):
        served.add(function)
    served.start()
    clients = [served.connect(i) for i in range(4)]
    for i, client in enumerate(clients):
        client.map(4096 * i, 4096)
    for _ in range(20):
        for client, vendor in zip(clients, (0x1AF4, 0x1234) * 2, strict=True):
            assert int.from_bytes(client.read(CONFIG, 0, 2), "little") == vendor
    assert [memory.remote_regions[0].address for memory in served.memories] == [0, 4096, 8192, 12288]
    clients[1].close()
    served.assert_serves(1)
    for i in (0, 2, 3):
        assert clients[i].read(CONFIG, 0, 1)


def test_clients_come_and_go_in_any_order(served: Any, toy: Any) -> None:
    """Descriptors are used again at once, for something else."""
    for _ in range(3):
        served.add(toy())
    served.start()
    clients: dict[int, Any] = {}
    for turn in range(60):
        which = turn * 7 % 3
        if which in clients:
            clients.pop(which).close()
        clients[which] = served.connect(which)
        for client in clients.values():
            assert client.read(CONFIG, 0, 2) == b"\x34\x12"


def test_stop_from_another_thread_and_before_it_runs(toy: Any) -> None:
    with check_descriptors():
        loop = Loop()
        loop.stop()
        loop.stop()
        loop.run()
        loop.close()
        loop.stop()


def test_stop_from_a_signal_handler() -> None:
    loop = Loop()
    before = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    try:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        loop.run()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        loop.close()


class Deferring(PciFunction):
    """A function with work of its own, of which the test decides when it is to be done."""

    def __init__(self, identity: Any) -> None:
        super().__init__(identity)
        self.times: list[float] = []
        self.deadline: float | None = None
        self.wakeup: int | None = None
        self.done = threading.Event()

    def run_pending(self) -> int:
        self.times.append(time.monotonic())
        if self.wakeup is not None:
            try:
                os.eventfd_read(self.wakeup)
            except BlockingIOError:
                pass
            else:
                self.done.set()
        if self.deadline is not None and self.deadline <= self.times[-1]:
            self.deadline = None
            self.done.set()
        return 0

    def next_deadline(self) -> float | None:
        return self.deadline

    def wakeup_fileno(self) -> int | None:
        return self.wakeup


@pytest.fixture
def deferring(served: Any, toy: Any) -> Deferring:
    function = Deferring(toy().identity)
    served.add(function)
    served.add(toy())
    return function


def test_deadlines_are_kept(served: Any, deferring: Deferring) -> None:
    served.start()
    client = served.connect()
    deferring.deadline = wanted = time.monotonic() + 0.15
    client.read(CONFIG, 0, 4)  # the loop learns of the deadline from the step for this
    assert deferring.done.wait(PATIENCE)
    assert deferring.times[-1] >= wanted
    served.assert_serves(1)
    count = len(deferring.times)
    time.sleep(0.05)
    assert len(deferring.times) == count  # and then there is nothing to do


def test_work_that_is_left_is_done_at_once(served: Any, deferring: Deferring) -> None:
    served.start()
    client = served.connect()
    deferring.deadline = 0.0
    client.read(CONFIG, 0, 4)
    assert deferring.done.wait(PATIENCE)


def test_a_wakeup_descriptor_that_appears_later(served: Any, deferring: Deferring) -> None:
    served.start()
    client = served.connect()
    deferring.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    client.read(CONFIG, 0, 4)
    for _ in range(3):
        deferring.done.clear()
        os.eventfd_write(deferring.wakeup, 1)
        assert deferring.done.wait(PATIENCE)
    client.close()  # also without a client
    served.wait_for_hangups(1)
    deferring.done.clear()
    os.eventfd_write(deferring.wakeup, 1)
    assert deferring.done.wait(PATIENCE)
    fd, deferring.wakeup = deferring.wakeup, None
    served.assert_serves()
    os.close(fd)


def test_what_is_readable_for_two_reasons_is_received_once(served: Any, deferring: Deferring) -> None:
    """Work that talks to the client may take what the loop has seen waiting: nobody waits for more of it then."""
    served.start()
    client = served.connect()
    deferring.wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    client.read(CONFIG, 0, 4)
    connection = served.loop.servers[0].connection
    run_pending = deferring.run_pending

    def steal() -> int:
        connection._answer_all(connection._receive())
        return run_pending()

    deferring.run_pending = steal  # type: ignore[method-assign]
    for _ in range(50):
        os.eventfd_write(deferring.wakeup, 1)
        assert client.read(CONFIG, 0, 2) == b"\x34\x12"
        served.assert_serves(1)
    os.close(deferring.wakeup)
    deferring.wakeup = None
