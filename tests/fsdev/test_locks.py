from __future__ import annotations

import errno
import os
import time
from itertools import pairwise
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyvirtfs.fsdev import locks
from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.locks import MAX_OFFSET, LockTable, bounds, owner_of

SESSIONS = (object(), object())
HOLDERS = tuple(LockHolder(SESSIONS[index % 2]) for index in range(4))
NBYTES = 12
LAST = NBYTES - 1  # stands for all bytes from here to the end

Byte: TypeAlias = tuple[bool, LockHolder]

starts = st.integers(0, LAST)
lengths = st.integers(1, NBYTES)
holders = st.sampled_from(HOLDERS)
keys = st.sampled_from([1, 2])
owners = st.tuples(st.sampled_from([b"", b"client"]), st.integers(0, 1))


def make(exclusive: bool, start: int, length: int, owner: tuple[bytes, int]) -> Lock:
    end = start + length
    return Lock(exclusive, start, None if end >= NBYTES else end, owner[1], owner[0])


def covered(lock: Lock) -> range:
    return range(lock.start, NBYTES if lock.end is None else lock.end)


class LockModel(RuleBasedStateMachine):
    """The table against one that knows each byte."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LockTable()
        self.bytes: dict[tuple[int, object], dict[int, Byte]] = {}

    def stands_in_the_way(self, key: int, lock: Lock, holder: LockHolder) -> bool:
        mine = owner_of(lock, holder)
        return any(
            index in held and (held[index][0] or lock.exclusive)
            for (other_key, owner), held in self.bytes.items()
            if other_key == key and owner != mine
            for index in covered(lock)
        )

    @rule(key=keys, exclusive=st.booleans(), start=starts, length=lengths, owner=owners, holder=holders)
    def lock(
        self, key: int, exclusive: bool, start: int, length: int, owner: tuple[bytes, int], holder: LockHolder
    ) -> None:
        lock = make(exclusive, start, length, owner)
        expected = not self.stands_in_the_way(key, lock, holder)
        assert self.table.lock(key, lock, holder) == expected
        if expected:
            held = self.bytes.setdefault((key, owner_of(lock, holder)), {})
            held.update((index, (exclusive, holder)) for index in covered(lock))

    @rule(key=keys, start=starts, length=lengths, owner=owners, holder=holders)
    def unlock(self, key: int, start: int, length: int, owner: tuple[bytes, int], holder: LockHolder) -> None:
        lock = make(False, start, length, owner)
        self.table.unlock(key, lock, holder)
        held = self.bytes.get((key, owner_of(lock, holder)), {})
        for index in covered(lock):
            held.pop(index, None)

    @rule(key=keys, exclusive=st.booleans(), start=starts, length=lengths, owner=owners, holder=holders)
    def getlock(
        self, key: int, exclusive: bool, start: int, length: int, owner: tuple[bytes, int], holder: LockHolder
    ) -> None:
        lock = make(exclusive, start, length, owner)
        found = self.table.conflict(key, lock, holder)
        assert (found is not None) == self.stands_in_the_way(key, lock, holder)
        assert self.table.conflicts(key, lock, holder) == (found is not None)
        elsewhere = {
            owner: held
            for (other_key, owner), held in self.bytes.items()
            if other_key == key and owner[0] is not holder.session  # type: ignore[index]  # an Owner
        }
        assert self.table.only_own_session(key, lock, holder) != any(
            index in held and (held[index][0] or exclusive) for held in elsewhere.values() for index in covered(lock)
        )
        if found is not None:
            assert set(covered(found)) & set(covered(lock))
            assert found.exclusive or exclusive
            others = [
                held
                for (other_key, other), held in self.bytes.items()
                if other_key == key
                and other != owner_of(lock, holder)
                and (other[1], other[2]) == (found.client_id, found.proc_id)  # type: ignore[index]  # an Owner
            ]
            assert any(
                all(held.get(index, (None,))[0] == found.exclusive for index in covered(found)) for held in others
            )

    @rule(key=keys, holder=holders)
    def release(self, key: int, holder: LockHolder) -> None:
        released = {
            (owner, index)
            for owner, held in self.table.release(key, holder)
            for index in range(held.start, min(held.end, NBYTES))
        }
        expected = set()
        for (other_key, owner), held in self.bytes.items():
            if other_key == key:
                for index, (_, taken_by) in list(held.items()):
                    if taken_by is holder:
                        expected.add((owner, index))
                        del held[index]
        assert released == expected

    @invariant()
    def same_bytes_are_held(self) -> None:
        total = 0
        for (key, owner), expected in self.bytes.items():
            ranges = self.table.held(key, owner)  # type: ignore[arg-type]  # an Owner
            total += len(ranges)
            found = {
                index: (held.exclusive, held.holder)
                for held in ranges
                for index in range(held.start, min(held.end, NBYTES))
            }
            assert found == expected
            assert all(a.end <= b.start for a, b in pairwise(ranges))
            assert all(
                a.end < b.start or (a.exclusive, a.holder) != (b.exclusive, b.holder) for a, b in pairwise(ranges)
            )
            assert all((held.end == MAX_OFFSET) == (held.end > LAST) for held in ranges)
        assert len(self.table) == total


class BulkLockModel(LockModel):
    """The same, where every change counts as a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.few = locks._FEW
        locks._FEW = 1  # type: ignore[misc]

    def teardown(self) -> None:
        locks._FEW = self.few  # type: ignore[misc]


LockModel.TestCase.settings = settings(max_examples=40, deadline=None)
TestLockModel = LockModel.TestCase
BulkLockModel.TestCase.settings = LockModel.TestCase.settings
TestBulkLockModel = BulkLockModel.TestCase


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        (-1, None, errno.EINVAL),
        (MAX_OFFSET, None, errno.EINVAL),
        ((1 << 64) - 1, None, errno.EINVAL),
        (5, 5, errno.EINVAL),
        (5, 4, errno.EINVAL),
        (0, MAX_OFFSET + 1, errno.EOVERFLOW),
    ],
)
def test_ranges_that_no_file_has(start: int, end: int | None, code: int) -> None:
    with pytest.raises(OSError, match=r"Invalid|too large") as caught:
        bounds(Lock(True, start, end, 1, b""))
    assert caught.value.errno == code


def test_to_the_last_byte_is_to_the_end() -> None:
    assert bounds(Lock(True, 5, MAX_OFFSET, 1, b"")) == bounds(Lock(True, 5, None, 1, b"")) == (5, MAX_OFFSET)


@given(st.integers(1, 5))
def test_limit_is_per_session(limit: int) -> None:
    table = LockTable(limit)
    one, other = LockHolder(object()), LockHolder(object())
    for index in range(limit):
        assert table.lock(index % 2, Lock(False, 10 * index, 10 * index + 9, 1, b""), one)
    with pytest.raises(OSError, match="lock") as caught:
        table.lock(0, Lock(False, 1000, 1001, 1, b""), one)
    assert caught.value.errno == errno.ENOLCK
    with pytest.raises(OSError, match="lock"):  # a hole would make two of one
        table.unlock(0, Lock(False, 2, 3, 1, b""), one)
    assert len(table) == limit
    assert table.lock(0, Lock(False, 1000, 1001, 1, b""), other)
    table.unlock(0, Lock(False, 0, None, 1, b""), one)
    assert table.lock(0, Lock(False, 1000, 1001, 1, b""), one)


def test_equal_owners_of_two_guests_are_two() -> None:
    table = LockTable()
    lock = Lock(True, 0, 10, 77, b"same")
    assert table.lock(1, lock, HOLDERS[0])
    assert not table.lock(1, lock, HOLDERS[1])
    assert table.lock(1, lock, HOLDERS[2])  # the same session, another fid
    assert table.release(1, HOLDERS[0]) == []
    assert len(table.release(1, HOLDERS[2])) == 1
    assert table.lock(1, lock, HOLDERS[1])


def test_a_holder_may_have_a_limit_of_its_own() -> None:
    table = LockTable(limit=100)
    holder = LockHolder(object(), 2)
    for start in (0, 10):
        assert table.lock(1, Lock(True, start, start + 5, 1, b"me"), holder)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        table.lock(1, Lock(True, 20, 25, 1, b"me"), holder)
    assert len(table) == 2


@pytest.mark.parametrize("exclusive", [False, True])
def test_one_lock_among_those_of_many_owners(exclusive: bool) -> None:
    """Otherwise one guest with many owners would keep all guests of the server waiting."""
    table = LockTable(limit=20_000)
    for owner in range(20_000):
        start = 10 * owner if exclusive else 0
        assert table.lock(1, Lock(exclusive, start, start + 10, owner, b""), HOLDERS[0])
    began = time.process_time()
    for _ in range(1000):
        assert not table.lock(1, Lock(True, 5, 6, 0, b""), HOLDERS[1])
        assert table.lock(1, Lock(exclusive, 1_000_000, 1_000_001, 0, b""), HOLDERS[1])
        table.unlock(1, Lock(exclusive, 1_000_000, 1_000_001, 0, b""), HOLDERS[1])
    assert (time.process_time() - began) / 1000 < 0.001
    assert len(table.release(1, HOLDERS[0])) == 20_000
    assert not table.conflicts(1, Lock(True, 0, None, 0, b""), HOLDERS[1])
    assert len(table) == 0


def test_one_lock_among_many_touches_only_its_neighbours() -> None:
    """Otherwise each request of a guest with many locks would take tens of milliseconds."""
    table = LockTable(limit=70_000)
    holder = HOLDERS[0]
    for start in range(0, 130_000, 2):
        table.lock(1, Lock(True, start, start + 1, 1, b""), holder)
    owner = owner_of(Lock(True, 0, 1, 1, b""), holder)
    held = table.held(1, owner)
    assert len(held) == len(table) == 65_000
    began = time.process_time()
    for start in range(64_001, 65_001, 2):  # each fills a gap: three become one, and back
        assert table.lock(1, Lock(True, start, start + 1, 1, b""), holder)
        table.unlock(1, Lock(True, start, start + 1, 1, b""), holder)
    assert (time.process_time() - began) / 1000 < 0.001
    assert table.held(1, owner) is held
    assert len(held) == len(table) == 65_000
    assert held == sorted(held)
    assert table.lock(1, Lock(True, 10, 100_000, 1, b""), holder)
    assert len(table) == len(held) == 65_000 - 50_000 + 5
