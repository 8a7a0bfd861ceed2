"""SQLite, which needs locks that hold, in several guests and on the host at the same time, on one database."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.testing import Pair, check_descriptors, pair
from tests import guest_sqlite, sqlite_writer
from tests.guest_sqlite import GuestVfs, guest_connection, write
from tests.sqlite_writer import DATABASE, check, create

TRANSACTIONS = 300
SECONDS = 100


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    create(tmp_path)
    with check_descriptors():
        yield tmp_path


@contextlib.contextmanager
def program(kind: str, folder: Path, transactions: int = TRANSACTIONS) -> Iterator[subprocess.Popen[str]]:
    """A writer in a process of its own, called as what it is."""
    source = {"guest": guest_sqlite, "host": sqlite_writer}[kind].__file__
    command = [sys.executable, str(source), str(folder), kind, str(transactions), "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def committed(process: subprocess.Popen[str]) -> int:
    told, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    return int(told)


@pytest.fixture
def guests(folder: Path) -> Iterator[tuple[Pair, Pair]]:
    """Two guests, two devices, one driver."""
    driver = LocalDriver(folder)
    with contextlib.closing(driver), pair(driver, bus=False) as one, pair(driver, bus=False) as two:
        yield one, two


@contextlib.contextmanager
def connected(
    guests: tuple[Pair, Pair], *, patient: bool = False, locking: bool = True
) -> Iterator[tuple[apsw.Connection, apsw.Connection]]:
    with contextlib.ExitStack() as stack:
        found = [GuestVfs(each.mount.root, f"guest{number}", locking=locking) for number, each in enumerate(guests)]
        one, two = (stack.enter_context(contextlib.closing(vfs.connect(patient=patient))) for vfs in found)
        yield one, two


def counter(connection: apsw.Connection) -> int:
    (value,) = connection.execute("SELECT value FROM counter").fetchall()[0]
    assert isinstance(value, int)
    return value


def test_a_writer_waits_for_readers_and_readers_for_the_writer(guests: tuple[Pair, Pair]) -> None:
    with connected(guests) as (one, two):
        one.execute("BEGIN; SELECT * FROM counter")
        two.execute("BEGIN IMMEDIATE; UPDATE counter SET value = 1")
        assert counter(one) == 0
        with pytest.raises(apsw.BusyError):
            two.execute("COMMIT")
        with pytest.raises(apsw.BusyError):
            one.execute("UPDATE counter SET value = 2")
        one.execute("COMMIT")
        with pytest.raises(apsw.BusyError):  # the writer is next: PENDING
            counter(one)
        two.execute("COMMIT")
        assert counter(one) == 1


def test_guests_in_turn_with_the_host_in_between(guests: tuple[Pair, Pair], folder: Path) -> None:
    done = {"one": 0, "two": 0}
    with connected(guests, patient=True) as (one, two), program("host", folder) as host:
        for round_ in range(30):
            for name, connection in (("one", one), ("two", two)):
                connection.execute(f"PRAGMA journal_mode = {('DELETE', 'TRUNCATE')[round_ % 2]}")
                done[name] += write(connection, name, 10, round_)
            one.execute("PRAGMA journal_mode = DELETE")
        check(folder, {**done, "host": committed(host)})


def test_two_threads_with_a_driver_each_and_the_host_at_the_same_time(folder: Path) -> None:
    done: dict[str, int] = {}

    def run(name: str, seed: int) -> None:
        with guest_connection(folder, name) as connection:
            done[name] = write(connection, name, TRANSACTIONS, seed)

    threads = [threading.Thread(target=run, args=(name, seed)) for seed, name in enumerate(("one", "two"))]
    with program("host", folder) as host:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        check(folder, {**done, "host": committed(host)})


def test_two_processes_and_the_host_at_the_same_time(folder: Path) -> None:
    with program("guest", folder) as process, program("host", folder) as host:
        with guest_connection(folder, "one") as connection:
            mine = write(connection, "one", TRANSACTIONS, 1)
        check(folder, {"one": mine, "guest": committed(process), "host": committed(host)})


def test_without_locks_an_update_is_lost(guests: tuple[Pair, Pair]) -> None:
    """These tests can fail."""
    for locking in (True, False):
        with connected(guests, locking=locking) as (one, two):
            one.execute("UPDATE counter SET value = 0")
            one.execute("BEGIN IMMEDIATE; UPDATE counter SET value = value + 1")
            if locking:
                with pytest.raises(apsw.BusyError):
                    two.execute("BEGIN IMMEDIATE")
            else:
                two.execute("BEGIN IMMEDIATE; UPDATE counter SET value = value + 1")
            one.execute("COMMIT")
            two.execute("COMMIT" if not locking else "UPDATE counter SET value = value + 1")
            assert counter(one) == (2 if locking else 1)


def test_a_guest_that_goes_in_the_middle_of_a_transaction(guests: tuple[Pair, Pair], folder: Path) -> None:
    """Its locks go with it, and the next guest finds its journal and rolls back what was half there."""
    one, two = (GuestVfs(each.mount.root, f"guest{number}").connect() for number, each in enumerate(guests))
    write(two, "two", 20, 1)
    before = two.execute("SELECT count(*), sum(length(filling)) FROM log").fetchall()
    value = counter(two)
    one.execute("PRAGMA cache_size = 2; PRAGMA synchronous = FULL")  # so that pages go out before the end
    one.execute("BEGIN IMMEDIATE; UPDATE log SET filling = zeroblob(5000)")
    with pytest.raises(apsw.BusyError):
        counter(two)  # it is locked exclusively
    assert (folder / f"{DATABASE}-journal").stat().st_size > 0
    guests[0].remount()
    assert counter(two) == value
    assert two.execute("SELECT count(*), sum(length(filling)) FROM log").fetchall() == before
    assert two.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with pytest.raises(DeviceError):  # it writes no more: its session is over
        one.close()
    two.close()
    assert guests[1].mount.root.listdir() == [DATABASE]
