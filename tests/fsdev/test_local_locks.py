from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.syscalls import find_lock, try_lock, unlock

At = Callable[[bytes], Node]
pytestmark = pytest.mark.usefixtures("tidy")

ONE, TWO = LockHolder(1), LockHolder(2)


def lock(exclusive: bool, start: int = 0, end: int | None = None, proc_id: int = 7, client_id: bytes = b"g") -> Lock:
    return Lock(exclusive, start, end, proc_id, client_id)


@pytest.fixture(autouse=True)
def file(root: Path) -> None:
    (root / "file").write_bytes(bytes(100))
    (root / "folder").mkdir()
    os.mkfifo(root / "fifo")


@pytest.fixture
def host(root: Path) -> Iterator[int]:
    """The file, as another program of the host has it open."""
    fd = os.open(root / "file", os.O_RDWR)
    yield fd
    os.close(fd)


def test_guests_stand_in_each_others_way(driver: LocalDriver, at: At) -> None:
    node = at(b"file")
    assert driver.lock(node, lock(True, 10, 20), ONE)
    assert not driver.lock(node, lock(False, 19, 30), TWO)
    assert driver.lock(node, lock(False, 20, 30), TWO)
    assert driver.getlock(node, lock(True), TWO) == lock(True, 10, 20)
    assert driver.getlock(node, lock(False, 20), ONE) is None
    assert driver.getlock(node, lock(True, 20), ONE) == lock(False, 20, 30)
    driver.unlock(node, lock(True, 15, 16), ONE)
    assert driver.lock(node, lock(True, 15, 16), TWO)
    assert driver.release_locks(node, ONE) == 2
    assert driver.release_locks(node, ONE) == 0
    assert driver.release_locks(node, TWO) == 2


def test_the_host_sees_what_guests_hold(driver: LocalDriver, at: At, host: int) -> None:
    node = at(b"file")
    assert driver.lock(node, lock(True, 10, 20), ONE)
    assert driver.lock(node, lock(False, 30, None), TWO)
    assert not try_lock(host, 19, 25, exclusive=False)
    assert try_lock(host, 20, 30, exclusive=True)
    assert try_lock(host, 50, 60, exclusive=False)
    assert not try_lock(host, 50, 60, exclusive=True)
    driver.unlock(node, lock(True, 0, 15), ONE)
    held = find_lock(host, 0, None, exclusive=False)
    assert held is not None
    assert (held.start, held.end) == (15, 20)
    driver.release_locks(node, ONE)
    assert find_lock(host, 0, None, exclusive=False) is None
    driver.release_locks(node, TWO)


def test_what_the_host_holds_blocks_guests(driver: LocalDriver, at: At, host: int) -> None:
    node = at(b"file")
    assert try_lock(host, 10, 20, exclusive=True)
    assert not driver.lock(node, lock(False, 0, None), ONE)
    assert driver.getlock(node, lock(False, 0, None), ONE) == Lock(True, 10, 20, 0, b"")
    assert driver.lock(node, lock(True, 20, None), ONE)
    assert not driver.lock(node, lock(True, 15, 30), ONE)
    assert driver.getlock(node, lock(True, 15, 30), ONE) == Lock(True, 10, 20, 0, b"")
    unlock(host, 0, None)
    assert driver.lock(node, lock(True, 15, 30), ONE)
    assert driver.getlock(node, lock(True), ONE) is None
    assert driver.release_locks(node, ONE) == 1


def test_the_process_on_the_host_is_named(driver: LocalDriver, at: At, host: int) -> None:
    child = os.fork()
    if child == 0:
        fcntl.lockf(host, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
        os.kill(os.getpid(), 19)  # SIGSTOP: holds it until it is killed
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        found = driver.getlock(at(b"file"), lock(True), ONE)
        assert found is not None
        assert found == Lock(True, 10, 15, child, b"")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_upgrade_and_downgrade(driver: LocalDriver, at: At, host: int) -> None:
    node = at(b"file")
    assert driver.lock(node, lock(False), ONE)
    assert try_lock(host, 0, 5, exclusive=False)
    assert not driver.lock(node, lock(True), ONE)  # the host reads there
    assert driver.lock(node, lock(False), TWO)
    unlock(host, 0, None)
    assert not driver.lock(node, lock(True), ONE)  # the other guest reads there
    driver.release_locks(node, TWO)
    assert driver.lock(node, lock(True), ONE)
    assert not try_lock(host, 0, 5, exclusive=False)
    assert driver.lock(node, lock(False), ONE)
    assert try_lock(host, 0, 5, exclusive=False)
    driver.release_locks(node, ONE)


def test_locks_of_two_fids_of_one_process(driver: LocalDriver, at: At, host: int) -> None:
    node = at(b"file")
    first, second = LockHolder("guest"), LockHolder("guest")
    assert driver.lock(node, lock(True, 0, 10), first)
    assert driver.lock(node, lock(True, 5, 20), second)
    assert driver.release_locks(node, first) == 1
    held = find_lock(host, 0, None, exclusive=False)
    assert held is not None
    assert (held.start, held.end) == (5, 20)
    assert driver.release_locks(node, second) == 1


def test_locks_outlive_every_other_handle(driver: LocalDriver, at: At, root: Path, host: int) -> None:
    top = at(b"")
    node = driver.walk(top, [b"file"]).node
    assert node is not None
    assert driver.lock(node, lock(True), ONE)
    driver.release(node)
    assert not try_lock(host, 0, 1, exclusive=False)
    node = at(b"file")
    assert not driver.lock(node, lock(True), TWO)
    assert driver.release_locks(node, ONE) == 1


def test_two_names_of_one_object_share_its_locks(driver: LocalDriver, at: At, root: Path) -> None:
    os.link(root / "file", root / "second")
    assert driver.lock(at(b"file"), lock(True), ONE)
    assert not driver.lock(at(b"second"), lock(True), TWO)
    driver.unlinkat(at(b""), b"file", folder=False)
    assert not driver.lock(at(b"second"), lock(True), TWO)
    assert driver.release_locks(at(b"second"), ONE) == 1


@pytest.mark.parametrize("name", [b"fifo", b"folder"])
def test_other_objects_are_locked_among_guests(driver: LocalDriver, at: At, name: bytes) -> None:
    node = at(name)  # and a fifo is never opened for it, which would block
    assert driver.getlock(node, lock(True), ONE) is None
    assert driver.lock(node, lock(True), ONE)
    assert not driver.lock(node, lock(True), TWO)
    driver.unlock(node, lock(True, 5, 6), ONE)
    assert driver.lock(node, lock(True, 5, 6), TWO)
    assert driver.release_locks(node, ONE) == 2
    driver.unlock(node, lock(True), TWO)
    driver.unlock(node, lock(True), TWO)


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [(1 << 63, None, errno.EINVAL), (0, (1 << 63) + 1, errno.EOVERFLOW), (3, 3, errno.EINVAL)],
)
def test_impossible_ranges(driver: LocalDriver, at: At, start: int, end: int | None, code: int) -> None:
    node = at(b"file")
    for operation in (driver.lock, driver.unlock, driver.getlock):
        with pytest.raises(OSError, match="Errno") as caught:
            operation(node, lock(True, start, end), ONE)
        assert caught.value.errno == code
    assert driver.lock(node, lock(True, 5, (1 << 63)), ONE)
    assert driver.getlock(node, lock(True), TWO) == lock(True, 5, None)
    driver.release_locks(node, ONE)


def test_readonly_export_locks_without_writing(root: Path, driver: LocalDriver, no_leak: None, host: int) -> None:
    export = LocalDriver(root, readonly=True)
    top, _ = export.attach(b"", 0)
    node = export.walk(top, [b"file"]).node
    assert node is not None
    assert export.lock(node, lock(False, 0, 10), ONE)
    assert not try_lock(host, 0, 5, exclusive=True)
    assert try_lock(host, 20, 30, exclusive=False)
    # Exclusive: only guests see it, but the host is asked.
    assert not export.lock(node, lock(True, 20, 30), ONE)
    assert export.lock(node, lock(True, 40, 50), ONE)
    assert not export.lock(node, lock(False, 40, 50), TWO)
    for pinned in export._pinned.values():
        assert fcntl.fcntl(pinned[1], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    export.close()
    assert try_lock(host, 0, 5, exclusive=True)


def test_no_descriptors_left(driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    node = at(b"file")
    monkeypatch.setattr("pyvirtfs.fsdev.local_locks.reopen", refuse)
    for operation in (driver.lock, driver.getlock):
        with pytest.raises(OSError, match="Too many"):
            operation(node, lock(True), ONE)
    assert len(driver._locks) == 0


def test_a_failing_host_leaves_nothing_locked(driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_keywords: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pyvirtfs.fsdev.local_locks.try_lock", refuse)
    with pytest.raises(OSError, match="No locks"):
        driver.lock(at(b"file"), lock(True), ONE)
    assert len(driver._locks) == 0
    assert not driver._pinned
