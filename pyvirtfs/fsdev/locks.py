"""Byte-range locks, without any file: who holds what, and who stands in whose way.

The rules are those of fcntl(2): a lock has an owner, the locks of one owner never stand in each other's way, a new
one replaces what the owner held in its range. Who is an owner, 9P says: a session, and in it a client and a
process.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from pyvirtfs.fsdev.driver import Lock, LockHolder

MAX_OFFSET: Final = 1 << 63
"""First offset that no file has; a lock up to here is a lock to the end."""

Owner: TypeAlias = tuple[object, bytes, int]
"""Session, client_id, proc_id."""


def owner_of(lock: Lock, holder: LockHolder) -> Owner:
    """Whose lock it is."""
    return holder.session, lock.client_id, lock.proc_id


class Range(NamedTuple):
    """A lock that somebody holds."""

    start: int
    end: int
    """First byte behind it; `MAX_OFFSET`: to the end of the file."""
    exclusive: bool
    holder: LockHolder
    """The fid through which it was taken, or last renewed."""


_FEW: Final = 64
"""Up to so many changes are made one by one in sorted lists; for more, those are made anew."""
_START: Final = attrgetter("start")
_END: Final = attrgetter("end")


def bounds(lock: Lock) -> tuple[int, int]:
    """The first byte of a lock, and the first one behind it.

    Raises:
        OSError: EINVAL or EOVERFLOW, as fcntl(2), for a range that no file has.
    """
    end = MAX_OFFSET if lock.end is None else lock.end
    if not 0 <= lock.start < MAX_OFFSET or end <= lock.start:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if end > MAX_OFFSET:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return lock.start, end


def _without(ranges: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """What is left of ranges if one is cut out."""
    for held in ranges:
        if held.end <= start or held.start >= end:
            yield held
            continue
        if held.start < start:
            yield held._replace(end=start)
        if held.end > end:
            yield held._replace(start=end)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """The same locks, sorted, with adjoining ones that are alike made one."""
    result: list[Range] = []
    for held in sorted(ranges, key=lambda held: held.start):
        last = result[-1] if result else None
        if last is not None and (last.end, last.exclusive, last.holder) == (held.start, held.exclusive, held.holder):
            result[-1] = last._replace(end=held.end)
        else:
            result.append(held)
    return result


def _overlapping(ranges: Sequence[Range], start: int, end: int) -> Iterator[Range]:
    """Those of an owner's ranges that reach into another one."""
    for index in range(bisect_right(ranges, start, key=_END), len(ranges)):
        held = ranges[index]
        if held.start >= end:
            return
        yield held


def _in_the_way(found: _Object, lock: Lock, start: int, end: int, owner: Owner) -> Iterator[tuple[Range, Owner]]:
    """The first lock of each other owner that stands in the way of one."""
    for other, ranges in found.owners.items():
        if ranges[-1].end > start and ranges[0].start < end and other != owner:
            for held in _overlapping(ranges, start, end):
                if held.exclusive or lock.exclusive:
                    yield held, other
                    break


class _Edges:
    """Where some ranges of an object start and where they end: enough to tell how many reach into another range."""

    __slots__ = ("ends", "starts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self.starts = sorted(held.start for held in ranges)
        self.ends = sorted(held.end for held in ranges)

    def add(self, held: Range) -> None:
        insort(self.starts, held.start)
        insort(self.ends, held.end)

    def remove(self, held: Range) -> None:
        del self.starts[bisect_left(self.starts, held.start)]
        del self.ends[bisect_left(self.ends, held.end)]

    def count(self, start: int, end: int) -> int:
        """How many overlap a range: those that start before its end, but for those that end before its start."""
        return bisect_left(self.starts, end) - bisect_right(self.ends, start)


class _Object:
    """What is held on one object."""

    __slots__ = ("all", "exclusive", "owners")

    def __init__(self) -> None:
        self.owners: dict[Owner, list[Range]] = {}
        self.all = _Edges()
        self.exclusive = _Edges()

    def replace(self, old: Sequence[Range], new: Sequence[Range]) -> None:
        """Ranges were taken out of `owners`, and others put in."""
        if len(old) + len(new) > _FEW:
            ranges = [held for each in self.owners.values() for held in each]
            self.all = _Edges(ranges)
            self.exclusive = _Edges([held for held in ranges if held.exclusive])
            return
        for held in old:
            self.all.remove(held)
            if held.exclusive:
                self.exclusive.remove(held)
        for held in new:
            self.all.add(held)
            if held.exclusive:
                self.exclusive.add(held)

    def conflicts(self, start: int, end: int, owner: Owner, *, exclusive: bool) -> int:
        """How many ranges of others stand in the way of a lock."""
        found = (self.all if exclusive else self.exclusive).count(start, end)
        if found:
            mine = _overlapping(self.owners.get(owner, ()), start, end)
            found -= sum(held.exclusive or exclusive for held in mine)
        return found


class LockTable:
    """The locks of one export.

    Objects are told apart by a hashable key. Nothing ever waits. Who asks for a lock is told in a time that hardly
    grows with the number of locks there are; only who wants to know which one stands in his way waits for a search.

    Args:
        limit: How many ranges one session may hold, if its holders do not say less.
    """

    __slots__ = ("_limit", "_objects", "_used")

    def __init__(self, limit: int = 65536) -> None:
        self._objects: dict[Hashable, _Object] = {}
        self._used: dict[object, int] = {}
        self._limit = limit

    def __len__(self) -> int:
        return sum(self._used.values())

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody holds a lock on that object."""
        return key in self._objects

    def conflict(self, key: Hashable, lock: Lock, holder: LockHolder) -> Lock | None:
        """A lock that stands in the way of `lock`: that of the owner who has had locks there for longest.

        Raises:
            OSError: As `bounds`.
        """
        start, end = bounds(lock)
        owner = owner_of(lock, holder)
        found = self._objects.get(key)
        if found is None or not found.conflicts(start, end, owner, exclusive=lock.exclusive):
            return None
        held, (_, client_id, proc_id) = next(_in_the_way(found, lock, start, end, owner))
        return Lock(held.exclusive, held.start, None if held.end == MAX_OFFSET else held.end, proc_id, client_id)

    def conflicts(self, key: Hashable, lock: Lock, holder: LockHolder) -> bool:
        """Whether another owner's lock stands in the way of `lock`.

        Raises:
            OSError: As `bounds`.
        """
        start, end = bounds(lock)
        found = self._objects.get(key)
        return found is not None and bool(found.conflicts(start, end, owner_of(lock, holder), exclusive=lock.exclusive))

    def only_own_session(self, key: Hashable, lock: Lock, holder: LockHolder) -> bool:
        """Whether all that stands in the way of `lock` belongs to the holder's own session.

        Raises:
            OSError: As `bounds`.
        """
        start, end = bounds(lock)
        found = self._objects.get(key)
        return found is None or all(
            other[0] == holder.session for _, other in _in_the_way(found, lock, start, end, owner_of(lock, holder))
        )

    def preview(self, key: Hashable, lock: Lock, holder: LockHolder) -> tuple[int, int, list[Range]]:
        """What `lock`, which must not conflict, changes in what the owner holds: ranges [i:j] give way to others.

        Raises:
            OSError: As `bounds`; ENOLCK if the session would hold more than it may.
        """
        start, end = bounds(lock)
        owner = owner_of(lock, holder)
        mine = self.held(key, owner)
        # Those that it overlaps, and those that it touches: they may become one with it.
        first, last = bisect_left(mine, start, key=_END), bisect_right(mine, end, key=_START)
        ranges = _merged((*_without(mine[first:last], start, end), Range(start, end, lock.exclusive, holder)))
        if self._used.get(owner[0], 0) + len(ranges) - (last - first) > self._allowed(holder):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return first, last, ranges

    def lock(self, key: Hashable, lock: Lock, holder: LockHolder) -> bool:
        """Take a lock; False if another owner's stands in the way.

        Raises:
            OSError: As `preview`.
        """
        if self.conflicts(key, lock, holder):
            return False
        self._splice(key, owner_of(lock, holder), *self.preview(key, lock, holder))
        return True

    def unlock(self, key: Hashable, lock: Lock, holder: LockHolder) -> None:
        """Give a range up, whatever of it the owner holds.

        Raises:
            OSError: As `bounds`; ENOLCK if that would leave more ranges than the session may hold.
        """
        start, end = bounds(lock)
        owner = owner_of(lock, holder)
        mine = self.held(key, owner)
        first, last = bisect_right(mine, start, key=_END), bisect_left(mine, end, key=_START)
        if first >= last:
            return
        ranges = list(_without(mine[first:last], start, end))
        if len(ranges) > last - first and self._used.get(owner[0], 0) >= self._allowed(holder):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        self._splice(key, owner, first, last, ranges)

    def release(self, key: Hashable, holder: LockHolder) -> list[tuple[Owner, Range]]:
        """Give up all that was taken on an object through one fid; what that was."""
        found = self._objects.get(key)
        if found is None:
            return []
        released: list[tuple[Owner, Range]] = []
        for owner, ranges in list(found.owners.items()):
            if owner[0] != holder.session:
                continue
            gone = [held for held in ranges if held.holder is holder]
            if gone:
                ranges[:] = [held for held in ranges if held.holder is not holder]
                if not ranges:
                    del found.owners[owner]
                released.extend((owner, held) for held in gone)
        self._changed(key, found, holder.session, [held for _, held in released], ())
        return released

    def held(self, key: Hashable, owner: Owner) -> list[Range]:
        """What an owner holds on an object, in order; the table's own list, not to be changed."""
        found = self._objects.get(key)
        return found.owners.get(owner, []) if found is not None else []

    def _allowed(self, holder: LockHolder) -> int:
        """How many ranges the holder's session may have."""
        return self._limit if holder.limit is None else min(self._limit, holder.limit)

    def _splice(self, key: Hashable, owner: Owner, first: int, last: int, ranges: list[Range]) -> None:
        """Let `ranges` take the place of [first:last] of what an owner holds on an object."""
        found = self._objects.get(key)
        if found is None:
            found = self._objects[key] = _Object()
        mine = found.owners.setdefault(owner, [])
        old = mine[first:last]
        mine[first:last] = ranges
        if not mine:
            del found.owners[owner]
        self._changed(key, found, owner[0], old, ranges)

    def _changed(
        self, key: Hashable, found: _Object, session: object, old: Sequence[Range], new: Sequence[Range]
    ) -> None:
        """Some of a session's ranges on an object have given way to others."""
        used = self._used.get(session, 0) + len(new) - len(old)
        if used:
            self._used[session] = used
        else:
            self._used.pop(session, None)
        if found.owners:
            found.replace(old, new)
        else:
            del self._objects[key]
