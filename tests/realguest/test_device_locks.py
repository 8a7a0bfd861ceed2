"""Locks between real guests, and between them and programs of the host."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import sqlite_writer
from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, mount
from tests.sqlite_writer import DATABASE

OPTIONS = "msize=131072,locktimeout=1"  # else a guest that waits asks again after 30 s
SECONDS = 30
TRANSACTIONS = 25
RANGE = b"\0" * 4096


class Guests:
    """One guest with two devices of one server, and one with a device of another server; all export one folder.

    Attributes:
        one: Has mounted it at /mnt/first and at /mnt/again.
        two: Has mounted it at /mnt/second.
    """

    def __init__(self, stack: ExitStack, files: GuestFiles, folder: Path) -> None:
        here = stack.enter_context(Served(files, {"first": folder, "again": folder}))
        there = stack.enter_context(Served(files, {"second": folder}))
        self.one = here.boot(memory="256M", smp=2)
        self.two = there.boot(memory="256M")
        mount(self.one, "first", "/mnt/first", OPTIONS)
        mount(self.one, "again", "/mnt/again", OPTIONS)
        mount(self.two, "second", "/mnt/second", OPTIONS)

    def others(self) -> list[tuple[RealGuest, str]]:
        """Who is not /mnt/first of the first guest."""
        return [(self.one, "/mnt/again"), (self.two, "/mnt/second")]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("share")


@pytest.fixture(scope="module")
def guests(guest_files: GuestFiles, share: Path) -> Iterator[Guests]:
    with ExitStack() as stack:
        guests = Guests(stack, guest_files, share)
        yield guests
        guests.one.check("umount /mnt/first /mnt/again")
        guests.two.check("umount /mnt/second")


@pytest.fixture
def name(share: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A file for the locks of a test."""
    path = share / request.node.name
    path.write_bytes(RANGE)
    yield path.name
    path.unlink()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def host_locks(fd: int) -> bool:
    """Whether a program of the host (which the server is not) gets the whole file by fcntl(2), for a moment."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return True


def flock(guest: RealGuest, path: str, *options: str) -> bool:
    """Whether a guest gets the whole file by flock(1), for a moment, and without waiting."""
    return guest.run(f"flock -n {' '.join(options)} {path} true").status == 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not appear"
        time.sleep(0.05)


@contextmanager
def holding(guest: RealGuest, share: Path, folder: str, name: str, options: str = "") -> Iterator[None]:
    """A guest holds a lock of flock(1) meanwhile."""
    taken, enough = share / f"{name}.taken", share / f"{name}.enough"
    command = f"touch {folder}/{taken.name}; while ! [ -e {folder}/{enough.name} ]; do sleep 0.1; done"
    guest.check(f"flock {options} {folder}/{name} -c '{command}' >/dev/null 2>&1 &")
    try:
        wait_for(taken)
        yield
    finally:
        enough.touch()
        guest.check("while pidof flock >/dev/null; do sleep 0.05; done")
        enough.unlink()
        taken.unlink(missing_ok=True)


def test_flock_excludes_guests_and_the_host(guests: Guests, share: Path, name: str) -> None:
    """Here flock(1) has the file open for reading only."""
    with opened(share / name) as fd:
        with holding(guests.one, share, "/mnt/first", name):
            for guest, folder in guests.others():
                assert not flock(guest, f"{folder}/{name}")
                assert not flock(guest, f"{folder}/{name}", "--shared")
            assert not host_locks(fd)
            # On a local file system of Linux the two kinds of locks do not know of each other: flock(2), NOTES.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
        assert host_locks(fd)
        for guest, folder in guests.others():
            assert flock(guest, f"{folder}/{name}")


def test_shared_flocks_let_each_other_be(guests: Guests, share: Path, name: str) -> None:
    with opened(share / name) as fd, holding(guests.two, share, "/mnt/second", name, "--shared"):
        assert flock(guests.one, f"/mnt/first/{name}", "--shared")
        assert not flock(guests.one, f"/mnt/first/{name}")
        assert not host_locks(fd)
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_guest_waits_for_the_host_and_for_another_guest(guests: Guests, share: Path, name: str) -> None:
    got = share / f"{name}.got"
    waiting = f"flock {{0}}/{name} -c 'touch {{0}}/{got.name}' >/dev/null 2>&1 &"
    with opened(share / name) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        guests.two.check(waiting.format("/mnt/second"))
        time.sleep(1.5)
        assert not got.exists()
        fcntl.lockf(fd, fcntl.LOCK_UN)
        wait_for(got)
    got.unlink()
    with holding(guests.one, share, "/mnt/first", name):
        guests.two.check(waiting.format("/mnt/second"))
        time.sleep(1.5)
        assert not got.exists()
    wait_for(got)
    got.unlink()


def test_a_process_that_is_killed_while_it_waits_gets_nothing(guests: Guests, share: Path, name: str) -> None:
    with holding(guests.one, share, "/mnt/first", name):
        guests.two.check(f"flock /mnt/second/{name} sleep 1000 >/dev/null 2>&1 & sleep 1.5; kill $!; wait $! || true")
    with opened(share / name) as fd:
        assert host_locks(fd)


def test_a_lock_goes_with_the_process_that_took_it(guests: Guests, share: Path, name: str) -> None:
    """Linux tells the server of its end as of an unlock, whoever else has the file open; then the guest alone knows."""
    guests.one.check(f"mkfifo /tmp/end; (exec 9</mnt/first/{name}; flock -n 9; touch /tmp/got; read -r _ </tmp/end) &")
    guests.one.check("while ! [ -e /tmp/got ]; do sleep 0.05; done")
    with opened(share / name) as fd:
        assert host_locks(fd)
    assert flock(guests.two, f"/mnt/second/{name}")
    assert not flock(guests.one, f"/mnt/first/{name}")
    guests.one.check("echo >/tmp/end; rm /tmp/end /tmp/got")


def test_processes_of_one_guest_hand_a_lock_over(guests: Guests, name: str) -> None:
    """The request of the next one may overtake the unlock of the last one; it must not sleep for that."""
    guests.one.check("umount /mnt/again")
    try:
        mount(guests.one, "again", "/mnt/again", "msize=131072,locktimeout=30")
        told = guests.one.python(
            f"""
            import fcntl, os, time
            child = os.fork()
            fd = os.open("/mnt/again/{name}", os.O_RDWR)
            longest = 0
            for number in range(400):
                began = time.monotonic()
                fcntl.lockf(fd, fcntl.LOCK_EX)
                longest = max(longest, time.monotonic() - began)
                fcntl.lockf(fd, fcntl.LOCK_UN)
            if child == 0:
                os._exit(longest > 25)
            print(longest > 25, os.wait()[1])
            """,
            120,
        )
        assert told == "False 0\n"
    finally:
        guests.one.check("umount /mnt/again")
        mount(guests.one, "again", "/mnt/again", OPTIONS)


def test_sqlite_in_two_guests_and_on_the_host(guests: Guests, share: Path) -> None:
    folder = share / "sqlite"
    folder.mkdir()
    sqlite_writer.create(folder)
    shutil.copy(sqlite_writer.__file__, share / "writer.py")
    seats = [(guests.one, "first"), (guests.one, "again"), (guests.two, "second")]
    for seed, (guest, tag) in enumerate(seats):
        guest.check(
            f"(python3 -I -S /mnt/{tag}/writer.py /mnt/{tag}/sqlite {tag} {TRANSACTIONS} {seed};"
            f" touch /tmp/{tag}.done) >/tmp/{tag}.output 2>&1 &"
        )
    host = [sys.executable, str(share / "writer.py"), str(folder), "host", str(TRANSACTIONS), "9"]
    done = {"host": int(subprocess.run(host, stdout=subprocess.PIPE, timeout=200, check=True).stdout)}
    for guest, tag in seats:
        script = f"while ! [ -e /tmp/{tag}.done ]; do sleep 0.1; done; cat /tmp/{tag}.output"
        told = guest.check(script, timeout=200)
        assert told.strip().isdecimal(), told
        done[tag] = int(told)
    sqlite_writer.check(folder, done)
    assert all(done.values())
    (folder / DATABASE).unlink()
    folder.rmdir()
    (share / "writer.py").unlink()


def test_a_guest_that_is_killed_holds_nothing_any_more(guest_files: GuestFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(RANGE)
    with Served(guest_files, {"test_mount": tmp_path}) as served, opened(tmp_path / "file") as fd:
        guest = served.boot(memory="256M")
        mount(guest)
        guest.check("flock -n /mnt/file -c 'touch /mnt/taken; sleep 1000' >/dev/null 2>&1 &")
        wait_for(tmp_path / "taken")
        assert not host_locks(fd)
        guest.kill()
        assert guest.wait() == -signal.SIGKILL
        deadline = time.monotonic() + SECONDS
        while not host_locks(fd):
            assert time.monotonic() < deadline
            time.sleep(0.05)
