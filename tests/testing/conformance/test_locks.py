from __future__ import annotations

import errno
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def always(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    Good.lock(self, node, lock, holder)
    return True


def one_guest(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    return Good.lock(self, node, lock, LockHolder("everybody"))


def whole_files(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    return Good.lock(self, node, lock._replace(start=0, end=None), holder)


def only_exclusive(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    return Good.lock(self, node, lock._replace(exclusive=True), holder)


def would_block(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    if not Good.lock(self, node, lock, holder):
        raise OSError(errno.EAGAIN, "held")
    return True


def no_limit(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    holder.limit = None
    return Good.lock(self, node, lock, holder)


def unlock_all(self: Any, node: Any, lock: Lock, holder: LockHolder) -> None:
    Good.unlock(self, node, lock._replace(start=0, end=None), holder)


def unlock_what_is_held(self: Any, node: Any, lock: Lock, holder: LockHolder) -> None:
    if not len(self._locks):
        raise OSError(errno.EINVAL, "not held")
    Good.unlock(self, node, lock, holder)


def getlock_takes_it(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    found = Good.getlock(self, node, lock, holder)
    if found is None:
        Good.lock(self, node, lock, holder)
    return found


def lock_of_a_name(self: Any, node: Any, lock: Lock, holder: LockHolder) -> Any:
    """Links are other objects to it: it knows the first name only."""
    return node.name == b"link" or Good.lock(self, node, lock, holder)


def release_nothing(self: Any, node: Any, holder: LockHolder) -> Any:
    return 0


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("exclusive_locks_exclude", "lock", always, "the second guest asks for"),
        ("exclusive_locks_exclude", "lock", would_block, "saw EAGAIN"),
        ("exclusive_locks_exclude", "lock", whole_files, "the second guest asks for"),
        ("owners", "lock", one_guest, "the second guest asks for"),
        ("shared_locks_share", "lock", only_exclusive, "asks to read, too"),
        ("limits", "lock", no_limit, "expected ENOLCK, but it succeeded"),
        ("splitting", "unlock", unlock_all, "the second guest asks for"),
        ("splitting", "unlock", unlock_what_is_held, "saw EINVAL"),
        ("getlock_tells_who_is_in_the_way", "getlock", lambda *_: None, "the lock in the way"),
        ("getlock_tells_who_is_in_the_way", "getlock", getlock_takes_it, "the first guest asks for"),
        ("links_share_locks", "lock", lock_of_a_name, "a lock through another hard link"),
        ("release_locks_releases_all", "release_locks", release_nothing, "the ranges released"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"locks.{check}", {method: fault})
