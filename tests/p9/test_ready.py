from __future__ import annotations

import errno
import os
import select
import threading

import pytest

from pyvirtfs.p9.ready import ReadyQueue


def readable(queue: ReadyQueue[int], seconds: float = 0) -> bool:
    fd = queue.fileno()
    assert fd is not None
    return bool(select.select([fd], [], [], seconds)[0])


def test_the_descriptor_is_readable_while_something_waits() -> None:
    queue: ReadyQueue[int] = ReadyQueue()
    assert queue.fileno() is None
    queue.open()
    queue.open()
    assert not readable(queue)
    queue.put(1)
    queue.put(2)
    assert readable(queue)
    queue.clear_signal()
    assert not readable(queue)
    assert [queue.take(), queue.take(), queue.take()] == [1, 2, None]
    queue.put(3)
    assert readable(queue)
    queue.close()
    queue.close()


def test_what_is_put_after_closing_can_be_taken() -> None:
    queue: ReadyQueue[int] = ReadyQueue()
    queue.open()
    fd = queue.fileno()
    assert fd is not None
    queue.put(1)
    queue.close()
    reused = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        queue.put(2)
        queue.clear_signal()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(reused)
    finally:
        os.close(reused)
    assert [queue.take(), queue.take()] == [1, 2]


def test_keep() -> None:
    queue: ReadyQueue[int] = ReadyQueue()
    for number in range(6):
        queue.put_here(number)
    queue.keep(lambda number: number % 2 == 0)
    assert [queue.take() for _ in range(4)] == [0, 2, 4, None]


def test_nothing_that_other_threads_put_is_missed() -> None:
    queue: ReadyQueue[int] = ReadyQueue()
    queue.open()

    def put() -> None:
        for number in range(500):
            queue.put(number)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < 2000:
        assert readable(queue, 5), "a wake-up was lost"
        queue.clear_signal()
        while queue.take() is not None:
            taken += 1
    for thread in threads:
        thread.join()
    queue.close()


def test_a_signal_that_was_read_already_can_be_cleared() -> None:
    queue: ReadyQueue[int] = ReadyQueue()
    queue.open()
    queue.put(1)
    fd = queue.fileno()
    assert fd is not None
    os.eventfd_read(fd)
    queue.clear_signal()
    assert queue.take() == 1
    queue.put(2)
    assert readable(queue)
    queue.close()


def test_what_came_while_there_was_no_descriptor_is_signalled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue: ReadyQueue[int] = ReadyQueue()

    def used_up(*_: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", used_up)
        queue.open()
        queue.put(1)
        assert queue.fileno() is None
        assert len(caplog.records) == 1
    assert readable(queue)
    queue.clear_signal()
    assert not readable(queue)
    assert queue.take() == 1
    queue.close()
    assert queue.fileno() is None
