"""The local driver's locks: the export's own table, and open file description locks so that the host sees them.

The table is the authority among guests. For the host, each owner with locks on an object has an open description of its
own, which lives as long as the owner holds a lock there; F_OFD_SETLK of fcntl(2) on it says whether a program of the
host stands in the way. It is opened for reading and writing where the file allows it: a description opened for reading
alone cannot hold an exclusive lock. It holds a shared one instead, if nobody else has any: that keeps away whoever
wants an exclusive lock, other servers of such an export among them, but not those who want shared ones.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

from pyvirtfs.fsdev.driver import Answer, Lock, LockHolder
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local_core import OUT_OF, LocalCore, fail
from pyvirtfs.fsdev.locks import Owner, Range, bounds, owner_of
from pyvirtfs.syscalls import find_lock, reopen, try_lock, unlock

_FLAGS: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class LocalLocks(LocalCore):
    """Locks."""

    def lock(self, node: Node, lock: Lock, holder: LockHolder) -> Answer[bool]:
        """See `ExportDriver.lock`; who would wait for a process of its own guest may be answered later."""
        path = node.entry.path
        waits = self._lock_waits
        if self._locks.conflicts(path, lock, holder):
            if not lock.wait or not self._locks.only_own_session(path, lock, holder):
                return False
            return waits.wait(path, lambda: self._try_lock(node.entry, lock, holder))
        granted = self._try_lock(node.entry, lock, holder)
        if waits and granted:  # it may have made less of what the owner held
            waits.released(path)
        return granted

    def _try_lock(self, entry: Entry, lock: Lock, holder: LockHolder) -> bool:
        """Take a lock; False if another owner or a program of the host holds it."""
        locks = self._locks
        start, end = bounds(lock)
        if locks.conflicts(entry.path, lock, holder):
            return False
        locks.preview(entry.path, lock, holder)  # ENOLCK before anything is done
        owner = owner_of(lock, holder)
        fresh = (entry.path, owner) not in self._pinned
        fd = self._pin(entry, owner)
        granted = False
        try:
            granted = fd < 0 or self._lock_on_host(fd, start, end, locks.held(entry.path, owner), lock.exclusive)
            if granted:
                locks.lock(entry.path, lock, holder)
        finally:
            if fresh and not granted:
                self._unpin(entry.path, owner)
        return granted

    @staticmethod
    def _lock_on_host(fd: int, start: int, end: int, held: Iterable[Range], exclusive: bool) -> bool:
        """Take a lock on the host; False if a program of the host holds it. `held` is what the owner has until now."""
        try:
            return try_lock(fd, start, end, exclusive=exclusive)
        except OSError as error:
            if error.errno != errno.EBADF or not exclusive:
                raise
        # Opened for reading only.
        if find_lock(fd, start, end, exclusive=True) is not None or not try_lock(fd, start, end, exclusive=False):
            return False
        if find_lock(fd, start, end, exclusive=True) is None:
            return True
        unlock(fd, start, end)  # another one came between the two; he may give up for us, too, but not both get it
        for mine in held:
            if mine.start < end and start < mine.end:
                try_lock(fd, max(mine.start, start), min(mine.end, end), exclusive=False)
        return False

    def unlock(self, node: Node, lock: Lock, holder: LockHolder) -> None:
        """See `ExportDriver.unlock`."""
        path = node.entry.path
        start, end = bounds(lock)
        owner = owner_of(lock, holder)
        self._locks.unlock(path, lock, holder)
        self._unlock_on_host(path, owner, start, end)
        if self._lock_waits:
            self._lock_waits.released(path)

    def _unlock_on_host(self, path: int, owner: Owner, start: int, end: int) -> None:
        pinned = self._pinned.get((path, owner))
        if pinned is None:
            return
        if not self._locks.held(path, owner):
            self._unpin(path, owner)
        elif pinned[1] >= 0:
            unlock(pinned[1], start, end)

    def next_deadline(self) -> float | None:
        """See `ExportDriver.next_deadline`."""
        return self._lock_waits.next_deadline()

    def run_pending(self) -> None:
        """See `ExportDriver.run_pending`."""
        if self._lock_waits:
            self._lock_waits.expire()

    def getlock(self, node: Node, lock: Lock, holder: LockHolder) -> Lock | None:
        """See `ExportDriver.getlock`; a program of the host has no client_id, and process 0 if it is not known."""
        entry = node.entry
        start, end = bounds(lock)
        found = self._locks.conflict(entry.path, lock, holder)
        if found is not None:
            return found
        pinned = self._pinned.get((entry.path, owner_of(lock, holder)))
        borrowed = True
        if pinned is not None:
            fd = pinned[1]
        else:
            try:
                fd = self._open_for_locks(entry)
                borrowed = False
            except OSError as error:
                if error.errno not in OUT_OF:
                    raise
                fd = self._borrow(entry)
                if fd < 0:
                    raise
        if fd < 0:
            return None
        try:
            held = find_lock(fd, start, end, exclusive=lock.exclusive)
        finally:
            if not borrowed:
                os.close(fd)
        return None if held is None else Lock(held.exclusive, held.start, held.end, max(held.pid, 0), b"")

    def release_locks(self, node: Node, holder: LockHolder) -> int:
        """See `ExportDriver.release_locks`."""
        path = node.entry.path
        released = self._locks.release(path, holder)
        for owner, held in released:
            self._unlock_on_host(path, owner, held.start, held.end)
        if self._lock_waits and released:
            self._lock_waits.released(path)
        return len(released)

    def _borrow(self, entry: Entry) -> int:
        """Any descriptor of an object that can be asked for locks of the host; -1 if there is none.

        A description does not see its own locks; what another owner holds through it, the table knows.
        """
        for (path, _), (_, fd) in self._pinned.items():
            if path == entry.path and fd >= 0:
                return fd
        for file in self._files:
            if file.entry is entry:
                return file.fd
        return -1

    # --- the descriptions that hold the host's locks ---

    def _pin(self, entry: Entry, owner: Owner) -> int:
        """The descriptor that holds an owner's locks on an object; -1 if the host cannot hold any."""
        key = entry.path, owner
        pinned = self._pinned.get(key)
        if pinned is None:
            self._table.check_room(1)
            pinned = self._pinned[key] = entry, self._open_for_locks(entry)
            self._table.others += 1
            entry.refs += 1
        return pinned[1]

    def _unpin(self, path: int, owner: Owner) -> None:
        entry, fd = self._pinned.pop((path, owner))
        self._table.others -= 1
        if fd >= 0:
            os.close(fd)
        self._table.drop(entry)

    def _open_for_locks(self, entry: Entry) -> int:
        """Open an object to hold locks; -1 if that cannot be.

        Raises:
            OSError: There are no descriptors left.
        """
        if entry.kind != stat.S_IFREG:
            if entry.kind != stat.S_IFDIR:
                return -1
            modes: tuple[int, ...] = (os.O_RDONLY,)
        else:
            modes = (os.O_RDONLY,) if self.readonly else (os.O_RDWR, os.O_RDONLY)
        if entry.fd < 0:
            fail(errno.EBADF)
        for mode in modes:
            try:
                return reopen(entry.fd, mode | _FLAGS)
            except OSError as error:
                if error.errno in OUT_OF:
                    raise
        return -1
