"""SQLite on a mount of the simulated guest, locking as its unix VFS does.

Also a program, ``guest_sqlite.py FOLDER NAME TRANSACTIONS SEED``: `tests.sqlite_writer` through a driver, a device and
a guest of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.guest import GuestPath
from pyvirtfs.guest.file import GuestFile
from pyvirtfs.testing import pair
from tests import sqlite_writer
from tests.sqlite_writer import DATABASE, PATIENCE

# Where the locks of the file format are: https://sqlite.org/src/file/src/os_unix.c, https://sqlite.org/lockingv3.html
PENDING = 0x40000000
RESERVED = PENDING + 1
SHARED, SHARED_NBYTES = PENDING + 2, 510
NONE_LEVEL, SHARED_LEVEL, RESERVED_LEVEL, PENDING_LEVEL, EXCLUSIVE_LEVEL = range(5)


# ruff: noqa: N802  (the names are those of SQLite)


class GuestDatabaseFile:
    """A file of SQLite's on a mount: the methods of a sqlite3_io_methods.

    Args:
        file: Opened for reading and writing; closed with this one.
        pid: The process that owns the locks.
        locking: Whether to lock at all.
    """

    def __init__(self, file: GuestFile, pid: int, *, locking: bool = True) -> None:
        self._file = file
        self._pid = pid
        self._locking = locking
        self._level = NONE_LEVEL

    def _take(self, start: int, length: int, *, exclusive: bool) -> None:
        if self._locking:
            try:
                self._file.lock(exclusive=exclusive, start=start, length=length, pid=self._pid)
            except BlockingIOError:
                raise apsw.BusyError from None

    def _give_up(self, start: int, length: int) -> None:
        if self._locking:
            self._file.unlock(start=start, length=length, pid=self._pid)

    def xLock(self, level: int) -> None:
        if self._level >= level:
            return
        if level == SHARED_LEVEL:
            self._take(PENDING, 1, exclusive=False)
            try:
                self._take(SHARED, SHARED_NBYTES, exclusive=False)
            finally:
                self._give_up(PENDING, 1)
        elif level == RESERVED_LEVEL:
            self._take(RESERVED, 1, exclusive=True)
        else:
            if self._level < PENDING_LEVEL:
                self._take(PENDING, 1, exclusive=True)
                self._level = PENDING_LEVEL  # no new readers from now on, even if there still are some
            self._take(SHARED, SHARED_NBYTES, exclusive=True)
        self._level = level

    def xUnlock(self, level: int) -> None:
        if self._level <= level:
            return
        if level == SHARED_LEVEL:
            if self._level == EXCLUSIVE_LEVEL:
                self._take(SHARED, SHARED_NBYTES, exclusive=False)
            self._give_up(PENDING, 2)
        else:
            self._give_up(0, 0)
        self._level = level

    def xCheckReservedLock(self) -> bool:
        if self._level > SHARED_LEVEL:
            return True
        return self._locking and self._file.getlock(start=RESERVED, length=1, pid=self._pid) is not None

    def xRead(self, amount: int, offset: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(amount) or b""

    def xWrite(self, data: bytes, offset: int) -> None:
        self._file.seek(offset)
        self._file.write(data)

    def xTruncate(self, size: int) -> None:
        self._file.truncate(size)

    def xSync(self, _flags: int) -> None:
        self._file.fsync()

    def xFileSize(self) -> int:
        return self._file.stat().st_size

    def xClose(self) -> None:
        self._file.close()

    def xFileControl(self, _op: int, _pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 0

    def xDeviceCharacteristics(self) -> int:
        return 0


class GoneFile:
    """A journal that is finished with, for one who wants to look whether it is."""

    def xRead(self, _amount: int, _offset: int) -> bytes:
        return b""

    def xClose(self) -> None:
        pass


class GuestVfs(apsw.VFS):
    """The files of a mount, for SQLite.

    Args:
        root: The root of the mount.
        name: Under which connections ask for it.
        pid: The process that owns its locks.
        locking: Whether to lock at all.
    """

    def __init__(self, root: GuestPath, name: str, *, pid: int = 1, locking: bool = True) -> None:
        super().__init__(name, base="")
        self.name = name
        self._root = root
        self._pid = pid
        self._locking = locking

    def connect(self, *, patient: bool = False) -> apsw.Connection:
        """A connection that waits for others or does not; no transaction waits for the disk."""
        connection = apsw.Connection(f"/{DATABASE}", vfs=self.name)
        if patient:
            deadline = time.monotonic() + PATIENCE

            def wait(_tries: int) -> bool:
                time.sleep(0.002)  # SQLite itself would soon sleep much longer
                return time.monotonic() < deadline

            connection.set_busy_handler(wait)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def _path(self, name: str) -> GuestPath:
        return self._root / name.lstrip("/")

    def xFullPathname(self, name: str) -> str:
        return name

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:
        assert name is not None
        how = os.O_RDWR | (os.O_CREAT if flags[0] & apsw.SQLITE_OPEN_CREATE else 0)
        path = self._path(name if isinstance(name, str) else name.filename())
        try:
            file = path.open_raw(how)
        except FileNotFoundError:
            if not flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
                raise
            # A moment ago it was there. SQLite takes CANTOPEN well, but apsw would raise it all the same.
            return GoneFile()
        return GuestDatabaseFile(file, self._pid, locking=self._locking)

    def xAccess(self, pathname: str, _flags: int) -> bool:
        try:
            return self._path(pathname).stat().st_size > 0
        except FileNotFoundError:
            return False

    def xDelete(self, filename: str, _syncdir: bool) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(filename).unlink()


@contextlib.contextmanager
def guest_connection(folder: Path, name: str, *, locking: bool = True) -> Iterator[apsw.Connection]:
    """A connection through a driver, a device and a guest of its own."""
    driver = LocalDriver(folder)
    try:
        with pair(driver, bus=False, messages=0) as both:
            connection = GuestVfs(both.mount.root, name, locking=locking).connect(patient=True)
            try:
                yield connection
            finally:
                connection.close()
    finally:
        driver.close()


def write(connection: apsw.Connection, writer: str, transactions: int, seed: int) -> int:
    """As `tests.sqlite_writer.write`."""
    return sqlite_writer.write(connection, writer, transactions, seed, (apsw.BusyError,))


def main(folder: str, name: str, transactions: str, seed: str, locking: str = "locking") -> None:
    """The program."""
    with guest_connection(Path(folder), name, locking=locking == "locking") as connection:
        print(write(connection, name, int(transactions), int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
