"""Locks between guests of one process and of several, between them and programs of the host, and how they end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev import lock_waits
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.guest import DirectMachine, Mount, VfioUserClient, mount
from pyvirtfs.guest.file import GuestFile
from pyvirtfs.memory import GuestMemory
from pyvirtfs.testing import check_descriptors, pair

SECONDS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "file").write_bytes(bytes(100))
    (tmp_path / "export" / "other").write_bytes(bytes(100))
    return tmp_path / "export"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with check_descriptors(), contextlib.ExitStack() as stack:
        yield stack


@contextlib.contextmanager
def served(folder: Path, socket: Path) -> Iterator[subprocess.Popen[str]]:
    """`pyvirtfs serve`, which clients can connect to."""
    options = ["-virtfs", f"local,path={folder},mount_tag=tag,security_model=none", "--socket", str(socket)]
    command = [sys.executable, "-m", "pyvirtfs", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "READY\n" in iter(process.stdout.readline, "")
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def attached(socket: Path) -> Iterator[tuple[VfioUserClient, Mount]]:
    """A guest of a server."""
    machine = DirectMachine(GuestMemory.anonymous(16 << 20))
    with VfioUserClient(socket, machine.memory, machine.pin) as client:
        channel = machine.open_channel(machine.attach(client, client.progress))
        yield client, mount(channel)


def two_devices_of_one_driver(folder: Path, stack: contextlib.ExitStack) -> list[Mount]:
    driver = stack.enter_context(contextlib.closing(LocalDriver(folder)))
    return [stack.enter_context(pair(driver)).mount for _ in range(2)]


def two_drivers_of_one_process(folder: Path, stack: contextlib.ExitStack) -> list[Mount]:
    drivers = [stack.enter_context(contextlib.closing(LocalDriver(folder))) for _ in range(2)]
    return [stack.enter_context(pair(driver)).mount for driver in drivers]


def two_processes(folder: Path, stack: contextlib.ExitStack) -> list[Mount]:
    found = []
    for name in ("one", "two"):
        socket = folder.parent / name
        stack.enter_context(served(folder, socket))
        found.append(stack.enter_context(attached(socket))[1])
    return found


@pytest.fixture(params=[two_devices_of_one_driver, two_drivers_of_one_process, two_processes])
def guests(request: pytest.FixtureRequest, folder: Path, stack: contextlib.ExitStack) -> list[Mount]:
    """Two guests of one export."""
    found: list[Mount] = request.param(folder, stack)
    return found


def opened(guest: Mount, name: str = "file", flags: int = os.O_RDWR) -> GuestFile:
    return (guest.root / name).open_raw(flags)


def granted(file: GuestFile, **options: Any) -> bool:
    try:
        file.lock(**options)
    except BlockingIOError:
        return False
    return True


def host_locks(path: Path) -> bool:
    """Whether a program of the host gets the whole file by fcntl(2)."""
    program = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0 or b"BlockingIOError" in done.stderr, done.stderr
    return done.returncode == 0


def test_ranges_of_two_guests(guests: list[Mount], folder: Path) -> None:
    with opened(guests[0]) as one, opened(guests[1]) as two:
        one.lock(start=10, length=10)
        two.lock(start=20, length=10, exclusive=False)
        assert not granted(two, start=19, length=1)
        assert not granted(two, start=15, length=1, exclusive=False)
        assert not granted(one, start=20, length=1)
        assert granted(one, start=29, length=11, exclusive=False)
        found = two.getlock(start=0, length=15)
        assert found is not None
        assert (found.start, found.length) == (10, 10)
        assert two.getlock(start=0, length=10) is None
        assert not host_locks(folder / "file")
        one.unlock(start=10, length=5)
        assert granted(two, start=10, length=5)
        assert not granted(two, start=10, length=6)
    assert host_locks(folder / "file")


def test_a_file_opened_for_reading_is_locked_exclusively(guests: list[Mount], folder: Path) -> None:
    """As flock(1) does in a guest."""
    with opened(guests[0], flags=os.O_RDONLY) as one, opened(guests[1], flags=os.O_RDONLY) as two:
        one.lock()
        assert not granted(two)
        assert not granted(two, exclusive=False)
        assert not host_locks(folder / "file")
        one.unlock()
        assert granted(two)


def test_two_guests_cannot_wait_for_each_other(guests: list[Mount]) -> None:
    """In one thread: a server that waits would never answer again."""
    files = [[opened(guest, name) for name in ("file", "other")] for guest in guests]
    files[0][0].lock()
    files[1][1].lock()
    assert not granted(files[0][1], timeout=0.1)
    assert not granted(files[1][0], timeout=0.1)
    files[0][0].unlock()
    assert granted(files[1][0], timeout=0.1)
    for file in (*files[0], *files[1]):
        file.close()


def test_a_clunk_and_a_new_mount_release(guests: list[Mount]) -> None:
    with opened(guests[1]) as two:
        one = opened(guests[0])
        one.lock()
        assert not granted(two)
        one.close()
        assert granted(two)
        two.unlock()
        one = opened(guests[0])
        one.lock()
        assert not granted(two)
        guests[0].session.channel.start()  # a reset of the device
        assert granted(two)
        with pytest.raises(DeviceError, match="session is over"):
            one.close()


def test_fcntl_of_a_program_of_the_host(guests: list[Mount], folder: Path) -> None:
    """And flock(2), which on a local file system of Linux has nothing to do with it: see its NOTES."""
    with opened(guests[0]) as one, opened(guests[1]) as two:
        program = "import fcntl; f = open('file', 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 10, 5); input(print('held'))"
        command = [sys.executable, "-I", "-S", "-u", "-c", program]
        with subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as host:
            assert host.stdout is not None
            assert host.stdout.readline() == b"held\n"
            for guest in (one, two):
                assert not granted(guest, timeout=0.1)
                found = guest.getlock()
                assert found is not None
                assert (found.start, found.length, found.proc_id) == (5, 10, host.pid)
            host.kill()
        assert granted(one)
        fd = os.open(folder / "file", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


@pytest.mark.parametrize("how", ["disconnect", "kill"])
def test_the_end_of_a_client_and_of_a_server(how: str, folder: Path, stack: contextlib.ExitStack) -> None:
    driver = stack.enter_context(contextlib.closing(LocalDriver(folder)))
    guest = stack.enter_context(pair(driver)).mount
    socket = folder.parent / "socket"
    server = stack.enter_context(served(folder, socket))
    client, other = stack.enter_context(attached(socket))
    with opened(guest) as file:
        held = opened(other)
        held.lock()
        assert not granted(file)
        if how == "disconnect":
            client.close()
        else:
            server.send_signal(signal.SIGKILL)
        assert granted(file, timeout=SECONDS)
        with pytest.raises((DeviceError, OSError)):
            held.close()
    if how == "disconnect":
        assert server.poll() is None
    else:
        assert server.wait(SECONDS) == -signal.SIGKILL


def test_a_process_waits_for_another_one_of_its_guest(
    folder: Path, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unlock may be behind the request: the answer is the lock, not that it is taken."""
    monkeypatch.setattr(lock_waits, "HOLD", 1000)
    driver = stack.enter_context(contextlib.closing(LocalDriver(folder)))
    both = stack.enter_context(pair(driver))
    session = both.session
    with opened(both.mount) as one, opened(both.mount) as two:
        one.lock(pid=1)
        assert not granted(two, pid=2)
        lock = one.getlock(pid=2)
        assert lock is not None
        asked = session.start(session.client.lock(two.fid, lock._replace(proc_id=2), 1))
        assert not asked.done
        one.unlock(pid=1)
        assert session.finish(asked) == 0
        assert not granted(one, pid=1)
        asked = session.start(session.client.lock(one.fid, lock, 1))
        session.finish(session.start(session.client.flush(asked.call)))
        with pytest.raises(InterruptedError):
            session.finish(asked)
        monkeypatch.setattr(lock_waits, "HOLD", 0.01)
        assert not granted(one, pid=1, timeout=0.01)  # nobody releases it, so it is refused in the end
        two.unlock(pid=2)
        assert granted(one, pid=1)
