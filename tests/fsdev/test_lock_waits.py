from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.lock_waits import HOLD, MAX_WAITS, LockWaits
from pyvirtfs.testing import FakeClock, fake_clock


class Held:
    """A lock that is held for so many more tries."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.asked = 0

    def attempt(self) -> bool:
        self.asked += 1
        self.times -= 1
        return self.times < 0


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with fake_clock() as clock:
        yield clock


@pytest.fixture
def waits() -> LockWaits:
    return LockWaits()


def wait(waits: LockWaits, key: int, attempt: Callable[[], bool]) -> Completion[bool]:
    answer = waits.wait(key, attempt)
    assert isinstance(answer, Completion)
    assert not answer.done
    return answer


def test_the_next_unlock_grants(waits: LockWaits) -> None:
    first, second, other = Held(0), Held(1), Held(0)
    answers = [wait(waits, key, held.attempt) for key, held in ((1, first), (1, second), (2, other))]
    waits.released(3)
    assert not any(answer.done for answer in answers)
    waits.released(1)
    assert [answer.done for answer in answers] == [True, False, False]
    assert (first.asked, second.asked, other.asked) == (1, 1, 0)
    waits.released(1)
    waits.released(2)
    assert [answer.result() for answer in answers] == [True, True, True]
    assert len(waits) == 0


def test_nobody_waits_for_long(waits: LockWaits, clock: FakeClock) -> None:
    assert waits.next_deadline() is None
    held = Held()
    first = wait(waits, 1, held.attempt)
    began = waits.next_deadline()
    assert began is not None
    clock.advance(HOLD / 2)
    second = wait(waits, 1, held.attempt)
    assert waits.next_deadline() == began
    waits.expire()
    assert not first.done
    clock.advance(HOLD / 2)
    waits.expire()
    assert first.result() is False
    assert not second.done
    assert waits.next_deadline() == began + HOLD / 2
    clock.advance(HOLD)
    waits.expire()
    assert second.result() is False
    assert waits.next_deadline() is None
    assert held.asked == 0


def test_cancelled(waits: LockWaits) -> None:
    held = Held(0)
    answer, other = wait(waits, 1, held.attempt), wait(waits, 1, Held(0).attempt)
    answer.cancel()
    with pytest.raises(InterruptedError):
        answer.result()
    answer.cancel()
    waits.released(1)
    assert held.asked == 0
    assert other.result() is True


def test_an_error_of_the_host(waits: LockWaits) -> None:
    def attempt() -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    failing, other = wait(waits, 1, attempt), wait(waits, 1, Held(0).attempt)
    waits.released(1)
    with pytest.raises(OSError, match="No locks"):
        failing.result()
    assert other.result() is True


def test_one_that_is_told_cancels_another_one(waits: LockWaits) -> None:
    held = Held(0)
    first, second = wait(waits, 1, Held(0).attempt), wait(waits, 1, held.attempt)
    first.on_done(lambda _: second.cancel())
    waits.released(1)
    assert first.result() is True
    with pytest.raises(InterruptedError):
        second.result()
    assert held.asked == 0


def test_only_so_many_wait(waits: LockWaits) -> None:
    answers = [wait(waits, 1, Held().attempt) for _ in range(MAX_WAITS)]
    assert waits.wait(1, Held().attempt) is False
    waits.close()
    assert [answer.result() for answer in answers] == [False] * MAX_WAITS
    waits.close()
