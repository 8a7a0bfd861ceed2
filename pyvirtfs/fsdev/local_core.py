"""What all parts of the local driver share: the state of an export, and small steps that several operations take."""

from __future__ import annotations

import errno
import os
import resource
import stat
from typing import Final, Never

from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.entries import Entry, EntryTable, Node
from pyvirtfs.fsdev.listing import Listing, ListingContext
from pyvirtfs.fsdev.lock_waits import LockWaits
from pyvirtfs.fsdev.locks import LockTable, Owner
from pyvirtfs.fsdev.security import SecurityModel
from pyvirtfs.syscalls import chmod_descriptor

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID


_RESERVE: Final = 64
_FEWEST: Final = 16
OUT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""This process or its host has nothing left: that says nothing about the object that was asked for."""


def descriptor_budget() -> int:
    """How many descriptors a driver may hold: what RLIMIT_NOFILE allows, but for a quarter (64 at least), at least 16.

    What is left belongs to the program around the driver, and to descriptors that the driver needs for a moment.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = 1 << 20  # as fs.nr_open, by default
    return max(limit - max(_RESERVE, limit // 4), _FEWEST)


def fail(code: int) -> Never:
    """Raise OSError(code) with the usual text."""
    raise OSError(code, os.strerror(code))


class LocalFile:
    """A regular file or a folder that a guest has open.

    Attributes:
        fd: The open descriptor; -1 once closed.
        entry: The object.
        clears_set_ids: Whether a write through it must clear the set-user-id and set-group-id bits.
        listing: The state of its listing, if it is a folder.
    """

    __slots__ = ("clears_set_ids", "entry", "fd", "listing")

    def __init__(self, fd: int, entry: Entry, *, clears_set_ids: bool) -> None:
        self.fd = fd
        self.entry = entry
        self.clears_set_ids = clears_set_ids
        self.listing: Listing | None = None


class LocalCore(ExportDriver[Node, LocalFile]):
    """The state of a local export.

    Args:
        root_fd: ``O_PATH`` descriptor of the root, owned by the driver from now on.
        model: The security model.
        readonly: Change nothing on the host.
        forbid_devices: Refuse objects of other devices than the root's.
        write_back: Start to write data to the disk with each write (``writeout=immediate``).
        set_ids_survive: Whether the process may keep set-id bits where Linux clears them, so that the driver must clear
            them for the guest.
        max_descriptors: How many descriptors the driver may hold at one time; None: `descriptor_budget`.

    Raises:
        OSError: There is no descriptor left now.
    """

    def __init__(
        self,
        root_fd: int,
        model: SecurityModel,
        *,
        readonly: bool,
        forbid_devices: bool = False,
        write_back: bool = False,
        set_ids_survive: bool = True,
        max_descriptors: int | None = None,
    ) -> None:
        self.readonly = readonly
        self._model = model
        self._table = EntryTable(
            root_fd,
            forbid_devices=forbid_devices,
            budget=descriptor_budget() if max_descriptors is None else max_descriptors,
        )
        try:
            self._listings = ListingContext(self._table)
        except OSError:
            self._table.close()
            raise
        self._locks = LockTable()
        self._lock_waits = LockWaits()
        self._pinned: dict[tuple[int, Owner], tuple[Entry, int]] = {}
        self._files: set[LocalFile] = set()
        self._write_back = write_back
        self._set_ids_survive = set_ids_survive

    def _check_writable(self) -> None:
        """EROFS on a read-only export; the server asks first, this is the second lock on the door."""
        if self.readonly:
            fail(errno.EROFS)

    def _clear_set_ids(self, entry: Entry) -> None:
        """What Linux does when a user without CAP_FSETID changes a file."""
        mode = self._table.stat(entry.fd).mode
        if not mode & _SET_IDS or not stat.S_ISREG(mode):
            return
        cleared = mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:  # without it the bit once meant mandatory locking, not a privilege
            cleared &= ~stat.S_ISGID
        if cleared != mode:
            chmod_descriptor(entry.fd, stat.S_IMODE(cleared))
