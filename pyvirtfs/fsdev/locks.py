"""Byte-range locks, without any file: who holds what, and who stands in whose way.

The rules are those of fcntl(2): a lock has an owner, the locks of one owner never stand in each other's way, a new
one replaces what the owner held in its range. Who is an owner, 9P says: a session, and in it a client and a
process.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator
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


class LockTable:
    """The locks of one export.

    Objects are told apart by a hashable key. Nothing ever waits.

    Args:
        limit: How many ranges one session may hold, if its holders do not say less.
    """

    __slots__ = ("_held", "_limit", "_used")

    def __init__(self, limit: int = 65536) -> None:
        self._held: dict[Hashable, dict[Owner, list[Range]]] = {}
        self._used: dict[object, int] = {}
        self._limit = limit

    def __len__(self) -> int:
        return sum(self._used.values())

    def __contains__(self, key: Hashable) -> bool:
        """Whether somebody holds a lock on that object."""
        return key in self._held

    def conflict(self, key: Hashable, lock: Lock, holder: LockHolder) -> Lock | None:
        """The lock that stands in the way of `lock`: of those there are, the one that starts first.

        Raises:
            OSError: As `bounds`.
        """
        start, end = bounds(lock)
        owner = owner_of(lock, holder)
        first: tuple[Range, Owner] | None = None
        for other, ranges in self._held.get(key, {}).items():
            if other == owner:
                continue
            for index in range(bisect_right(ranges, start, key=_END), len(ranges)):
                held = ranges[index]
                if held.start >= end:
                    break
                if held.exclusive or lock.exclusive:
                    if first is None or held.start < first[0].start:
                        first = held, other
                    break
        if first is None:
            return None
        held, (_, client_id, proc_id) = first
        return Lock(held.exclusive, held.start, None if held.end == MAX_OFFSET else held.end, proc_id, client_id)

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
        if self.conflict(key, lock, holder) is not None:
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
        released: list[tuple[Owner, Range]] = []
        for owner, ranges in list(self._held.get(key, {}).items()):
            if owner[0] is not holder.session:
                continue
            gone = [held for held in ranges if held.holder is holder]
            if gone:
                self._set(key, owner, [held for held in ranges if held.holder is not holder])
                released.extend((owner, held) for held in gone)
        return released

    def held(self, key: Hashable, owner: Owner) -> list[Range]:
        """What an owner holds on an object, in order; the table's own list, not to be changed."""
        owners = self._held.get(key)
        return owners.get(owner, []) if owners is not None else []

    def _allowed(self, holder: LockHolder) -> int:
        """How many ranges the holder's session may have."""
        return self._limit if holder.limit is None else min(self._limit, holder.limit)

    def _splice(self, key: Hashable, owner: Owner, first: int, last: int, ranges: list[Range]) -> None:
        """Let `ranges` take the place of [first:last] of what an owner holds on an object."""
        mine = self.held(key, owner)
        if not mine or (not ranges and last - first == len(mine)):
            self._set(key, owner, ranges)
            return
        session = owner[0]
        self._used[session] = self._used.get(session, 0) + len(ranges) - (last - first)
        mine[first:last] = ranges

    def _set(self, key: Hashable, owner: Owner, ranges: list[Range]) -> None:
        """Let this be all that an owner holds on an object."""
        session = owner[0]
        used = self._used.get(session, 0) + len(ranges) - len(self.held(key, owner))
        if used:
            self._used[session] = used
        else:
            self._used.pop(session, None)
        if ranges:
            self._held.setdefault(key, {})[owner] = ranges
        elif key in self._held:
            self._held[key].pop(owner, None)
            if not self._held[key]:
                del self._held[key]
