from __future__ import annotations

from typing import Any

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.p9.dialects import LINUX
from pyvirtfs.p9.requests import ABANDONED, ABORTED, LIVE, InFlight, Request

OPERATION = LINUX.table(readonly=False)[24]


def make(tag: int) -> Request:
    request = Request()
    request.operation = OPERATION
    request.tag = tag
    request.readable = request.writable = ViewBuffers.of(bytearray(16))
    return request


def parked(table: InFlight, tag: int, completion: Completion[Any] | None) -> Request:
    request = make(tag)
    table.park(request, completion)
    return request


def follower(table: InFlight, tag: int, targets: list[Request]) -> Request:
    request = make(tag)
    table.follow(request, targets)
    table.park(request, None)
    return request


def test_followers_are_freed_in_order_by_the_last_that_they_wait_for() -> None:
    table = InFlight()
    first, second = (parked(table, tag, Completion()) for tag in (1, 2))
    one = follower(table, 3, [first])
    both = follower(table, 4, [first, second])
    two = follower(table, 5, [second])
    assert table.held == 2
    assert table.ended(first) == [one]
    assert table.ended(second) == [both, two]
    assert table.held == 0
    assert set(table.by_tag) == {3, 4, 5}


def test_abort_keeps_and_abandon_forgets() -> None:
    table = InFlight()
    held = parked(table, 1, Completion())
    waits = follower(table, 2, [held])
    assert (held.fate, waits.fate) == (LIVE, LIVE)
    assert table.abort() == [held, waits]
    assert (held.fate, waits.fate) == (ABORTED, ABORTED)
    assert len(table.by_tag) == 2
    assert table.abandon() == [held]
    assert held.fate == ABANDONED
    assert not table.by_tag
    assert table.ended(held) == []
    assert table.held == 0


def test_ending_a_request_leaves_a_later_one_with_its_tag() -> None:
    table = InFlight()
    old = parked(table, 1, Completion())
    new = parked(table, 1, Completion())
    table.ended(old)
    assert table.by_tag == {1: new}


def test_the_driver_is_told_once() -> None:
    table = InFlight()
    told: list[Any] = []
    request = parked(table, 1, Completion(told.append))
    request.cancel()
    request.cancel()
    assert len(told) == 1
    follower(table, 2, [request]).cancel()


def test_a_request_whose_tag_another_took_is_still_in_flight() -> None:
    table = InFlight()
    old = parked(table, 1, Completion())
    new = parked(table, 1, Completion())
    assert table.abort() == [old, new]
    assert table.abandon() == [old, new]
    assert (old.fate, new.fate) == (ABANDONED, ABANDONED)
    table.ended(old)
    table.ended(new)
    assert (table.held, len(table.parked)) == (0, 0)


def test_forgetting_one_request_leaves_the_others() -> None:
    table = InFlight()
    one, other = (parked(table, tag, Completion()) for tag in (1, 2))
    table.forget(one)
    assert (one.fate, other.fate) == (ABANDONED, LIVE)
    assert table.by_tag == {2: other}
    assert table.ended(one) == []
    assert table.abandon() == [other]
