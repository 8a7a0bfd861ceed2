from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev import lock_waits
from pyvirtfs.fsdev.completion import Completion
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
    # Exclusive: the host sees a shared one, which it must not have itself.
    assert not export.lock(node, lock(True, 20, 30), ONE)
    assert export.lock(node, lock(True, 40, 50), ONE)
    assert not export.lock(node, lock(False, 40, 50), TWO)
    assert not try_lock(host, 40, 50, exclusive=True)
    with contextlib.closing(LocalDriver(root, readonly=True)) as other:
        top_again, _ = other.attach(b"", 0)
        again = other.walk(top_again, [b"file"]).node
        assert again is not None
        assert not other.lock(again, lock(True, 49, 60), ONE)
        assert other.lock(again, lock(True, 50, 60), ONE)
        assert not export.lock(node, lock(True, 45, 55), ONE)
        assert driver.getlock(again, lock(True, 50, 60), ONE) is not None
    assert export.lock(node, lock(True, 45, 55), ONE)
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


def test_two_at_the_same_moment_without_writing(
    root: Path, no_leak: None, host: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither gets the lock then, and what they held before is as it was."""
    found: list[bool] = []

    def find(fd: int, start: int, end: int | None, *, exclusive: bool) -> object:
        if not found and (start, end) == (10, 20):
            found.append(True)
            answer = find_lock(fd, start, end, exclusive=exclusive)
            assert try_lock(host, 10, 20, exclusive=False)  # the other one, a moment later
            return answer
        return find_lock(fd, start, end, exclusive=exclusive)

    with contextlib.closing(LocalDriver(root, readonly=True)) as export:
        top, _ = export.attach(b"", 0)
        node = export.walk(top, [b"file"]).node
        assert node is not None
        assert export.lock(node, lock(False, 15, 30), ONE)
        monkeypatch.setattr("pyvirtfs.fsdev.local_locks.find_lock", find)
        assert not export.lock(node, lock(True, 10, 20), ONE)
        unlock(host, 0, None)
        held = find_lock(host, 0, None, exclusive=True)
        assert held is not None
        assert not try_lock(host, 15, 16, exclusive=True)
        assert not try_lock(host, 29, 30, exclusive=True)
        assert try_lock(host, 0, 15, exclusive=True)
        assert try_lock(host, 30, None, exclusive=True)


UNPRIVILEGED = """
import ctypes, os, sys
from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.fsdev.local import LocalDriver

drivers = [LocalDriver(sys.argv[1], "none") for _ in range(2)]
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE, for /proc/self/fd
one, two = LockHolder(1), LockHolder(2)
exclusive, shared = Lock(True, 0, None, 1, b""), Lock(False, 0, None, 1, b"")
for name in (b"readable", b"secret"):
    here, there = (driver.walk(driver.attach(b"", 0)[0], [name]).node for driver in drivers)
    found = [
        drivers[0].lock(here, exclusive, one),
        drivers[0].lock(here, exclusive, two),
        drivers[0].lock(here, shared, two),
        drivers[1].lock(there, exclusive, two),
    ]
    drivers[0].unlock(here, exclusive, one)
    print(name.decode(), *found, drivers[0].lock(here, exclusive, two))
"""


def test_a_file_that_the_server_may_not_write_or_not_even_read(root: Path) -> None:
    """It is locked among the guests of one driver; other drivers see it only if it can be read."""
    root.chmod(0o755)
    for name, mode in (("readable", 0o444), ("secret", 0o000)):
        (root / name).touch()
        (root / name).chmod(mode)
    command = [sys.executable, "-c", UNPRIVILEGED, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "readable True False False False True\nsecret True False False True True\n", done.stderr


# --- processes of one guest ---


def test_a_process_that_waits_gets_the_lock_of_another_one(
    driver: LocalDriver, at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_waits, "HOLD", 1000)
    node = at(b"file")
    again = LockHolder(1)

    def wait(proc_id: int, exclusive: bool = True) -> Completion[bool]:
        answer = driver.lock(node, lock(exclusive, proc_id=proc_id)._replace(wait=True), ONE)
        assert isinstance(answer, Completion)
        assert not answer.done
        return answer

    assert driver.lock(node, lock(True), ONE)
    answer = wait(8)
    driver.unlock(node, lock(True), ONE)
    assert answer.result() is True

    answer = wait(9, exclusive=False)
    assert driver.lock(node, lock(False, proc_id=8), ONE)  # less than before
    assert answer.result() is True
    assert driver.release_locks(node, ONE) == 2

    assert driver.lock(node, lock(True), again)
    answer = wait(8)
    assert driver.release_locks(node, again) == 1  # the clunk of the other fid
    assert answer.result() is True

    answer = wait(9)
    answer.cancel()
    with pytest.raises(InterruptedError):
        answer.result()
    assert driver.release_locks(node, ONE) == 1


def test_nobody_waits_for_another_guest_or_the_host(driver: LocalDriver, at: At, host: int) -> None:
    node = at(b"file")
    waiting = lock(True, proc_id=8)._replace(wait=True)
    assert driver.lock(node, lock(True, 0, 10), TWO)
    assert driver.lock(node, waiting, ONE) is False
    assert driver.lock(node, lock(True, 10, 20), ONE)
    assert driver.lock(node, waiting, ONE) is False  # the one of its own guest does not stand alone
    assert driver.release_locks(node, TWO) == 1
    assert driver.release_locks(node, ONE) == 1
    assert try_lock(host, 0, 10, exclusive=True)
    assert driver.lock(node, waiting, ONE) is False


def test_the_end_of_the_driver_is_an_answer(root: Path, no_leak: None) -> None:
    with contextlib.closing(LocalDriver(root)) as export:
        top, _ = export.attach(b"", 0)
        node = export.walk(top, [b"file"]).node
        assert node is not None
        assert export.lock(node, lock(True), ONE)
        answer = export.lock(node, lock(True, proc_id=8)._replace(wait=True), ONE)
        assert isinstance(answer, Completion)
    assert answer.result() is False
