"""The local driver's operations on open files: open, read, write, sync, list.

An object is opened through its ``O_PATH`` descriptor (``/proc/self/fd/N``): what is opened is what was found, even if
the host has put something else at its place meanwhile. Its type cannot change, so a FIFO, a socket or a device is never
opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from pyvirtfs.fsdev.driver import EntryFields, Qid
from pyvirtfs.fsdev.entries import WRITE_STEP, Entry, Node
from pyvirtfs.fsdev.listing import Listing
from pyvirtfs.fsdev.local_core import ClosedFile, LocalCore, LocalFile, fail
from pyvirtfs.memory.buffers import Buffers
from pyvirtfs.syscalls import SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, reopen, sync_file_range

FILE_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_DSYNC | os.O_SYNC | os.O_NOATIME
"""The flags of a guest that mean something on the host."""

_HOST_FLAGS: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""NONBLOCK: a lease that another program of the host holds must not make us wait; nor must reading, where something
that waits looks like a regular file (as /proc/kmsg does)."""
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_WRITING: Final = frozenset({os.O_WRONLY, os.O_RDWR})
"""The access modes to write with; O_WRONLY | O_RDWR is for ioctl(2) only."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_START_WRITING: Final = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE


class LocalFiles(LocalCore):
    """Open, read, write, sync, list."""

    def open(self, node: Node, flags: int, uid: int) -> tuple[LocalFile, Qid]:
        """See `ExportDriver.open`."""
        entry = node.entry
        table = self._table
        kind = entry.kind
        if kind == stat.S_IFREG:
            if flags & os.O_DIRECTORY:
                fail(errno.ENOTDIR)
            if flags & _WRITE_FLAGS and self.readonly:
                fail(errno.EROFS)
            table.check_room(1)
            fd = self._open_file(entry, flags & FILE_FLAGS | _HOST_FLAGS)
        elif kind == stat.S_IFDIR:
            table.check_room(1)
            fd = reopen(entry.fd, _FOLDER_FLAGS)
        else:
            fail(errno.ENXIO)
        try:
            if flags & os.O_TRUNC and kind == stat.S_IFREG:
                entry.writes += WRITE_STEP
                if self._set_ids_survive and not self._model.keeps_set_ids(entry, uid):
                    self._clear_set_ids(entry)
            qid = table.qid(entry)
        except OSError:
            os.close(fd)
            raise
        return self._opened(fd, entry, flags, uid), qid

    def _open_file(self, entry: Entry, flags: int) -> int:
        """Open a regular file without ever waiting."""
        try:
            return reopen(entry.fd, flags)
        except PermissionError:
            # Only the owner may leave the access time alone (open(2)); it was a wish, not a condition.
            if not flags & os.O_NOATIME:
                raise
            return reopen(entry.fd, flags & ~os.O_NOATIME)

    def _opened(self, fd: int, entry: Entry, flags: int, uid: int) -> LocalFile:
        """The file of a descriptor."""
        entry.refs += 1
        self._table.others += 1
        writable = flags & os.O_ACCMODE in _WRITING and entry.kind == stat.S_IFREG
        again = flags & FILE_FLAGS & ~os.O_TRUNC | _HOST_FLAGS
        clears_set_ids = writable and self._set_ids_survive and not self._model.keeps_set_ids(entry, uid)
        file = LocalFile(fd, entry, again, clears_set_ids=clears_set_ids)
        if writable:
            if entry.writers is None:
                entry.writers = []
            entry.writers.append(file)
        self._files[file] = None
        return file

    def close_file(self, file: LocalFile) -> None:
        """See `ExportDriver.close_file`."""
        table = self._table
        if isinstance(file, ClosedFile):
            fd = file.opened(-1)
            self._closer.forget_file()
        else:
            fd = file.fd
            if fd < 0:
                return
            file.fd = -1
            table.others -= 1
        del self._files[file]
        if file.listing is not None:
            file.listing.forget()
        entry = file.entry
        if entry.writers and file in entry.writers:
            entry.writers.remove(file)
        table.drop(entry)
        if fd >= 0:
            os.close(fd)

    def read(self, file: LocalFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.read`; the bytes go from the page cache into `buffers`."""
        return buffers.preadv(file.fd, offset)

    def write(self, file: LocalFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.write`; the bytes go from `buffers` into the page cache."""
        if not buffers.nbytes:
            return self._write_nothing(file)
        entry = file.entry
        if file.clears_set_ids:
            self._clear_set_ids(entry)
        done = buffers.pwritev(file.fd, offset)
        entry.writes += WRITE_STEP
        if self._write_back and done:
            with contextlib.suppress(OSError):  # the bytes are written; a disk error shows at fsync
                sync_file_range(file.fd, offset, done, _START_WRITING)
        return done

    @staticmethod
    def _write_nothing(file: LocalFile) -> int:
        """Write no bytes; EBADF if there could not be any, as write(2)."""
        writable = file.entry.kind == stat.S_IFREG and file.flags & os.O_ACCMODE in _WRITING
        return 0 if writable else fail(errno.EBADF)

    def fsync(self, file: LocalFile, *, datasync: bool) -> None:
        """See `ExportDriver.fsync`."""
        (os.fdatasync if datasync else os.fsync)(file.fd)

    def readdir(self, file: LocalFile, cookie: int) -> Sequence[EntryFields]:
        """See `ExportDriver.readdir`. The version of the qids is 0: nobody has looked at the objects."""
        listing = file.listing
        if listing is None:
            if file.entry.kind != stat.S_IFDIR:
                fail(errno.ENOTDIR)
            listing = file.listing = Listing(file.fd, file.entry, self._listings)
        return listing.after(cookie)
