"""What all parts of the local driver share: the state of an export, and small steps that several operations take."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final, Never

from pyvirtfs.fsdev.closing import LeastRecentlyOpened
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.listing import Listing, ListingContext
from pyvirtfs.fsdev.lock_waits import LockWaits
from pyvirtfs.fsdev.locks import LockTable, Owner
from pyvirtfs.fsdev.security import SecurityModel

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
        fd: The open descriptor; -1 once closed. Asking for it may open the file again (`LeastRecentlyOpened`).
        entry: The object.
        flags: What it was opened with, as far as it matters for opening it again.
        clears_set_ids: Whether a write through it must clear the set-user-id and set-group-id bits.
        listing: The state of its listing, if it is a folder.
        closer: Who has closed it to make room, and opens it again.
    """

    __slots__ = ("clears_set_ids", "closer", "entry", "fd", "flags", "listing")

    def __init__(self, fd: int, entry: Entry, flags: int, *, clears_set_ids: bool) -> None:
        self.fd = fd
        self.entry = entry
        self.flags = flags
        self.clears_set_ids = clears_set_ids
        self.listing: Listing | None = None
        self.closer: LeastRecentlyOpened | None = None

    def close_for_now(self, closer: LeastRecentlyOpened) -> None:
        """Close it until it is used again."""
        fd = self.fd
        self.closer = closer
        self.__class__ = ClosedFile
        os.close(fd)

    def opened(self, fd: int) -> int:
        """It has a descriptor again or, with -1, never will."""
        self.closer = None
        self.__class__ = LocalFile
        self.fd = fd
        return fd


class ClosedFile(LocalFile):
    """An open file of a guest that has no descriptor now."""

    __slots__ = ()

    @property
    def fd(self) -> int:  # type: ignore[override]  # the slot is not used meanwhile
        """Its descriptor, from now on its own again.

        Raises:
            OSError: As `LeastRecentlyOpened.open_file`.
        """
        assert self.closer is not None
        return self.opened(self.closer.open_file(self))


class LocalCore(ExportDriver[Node, LocalFile]):
    """The state of a local export.

    Args:
        root_fd: ``O_PATH`` descriptor of the root, owned by the driver from now on.
        model: The security model.
        readonly: Change nothing on the host.
        multidevs: What becomes of objects of other devices than the root's (`EntryTable`).
        write_back: Start to write data to the disk with each write (``writeout=immediate``).
        set_ids_survive: Whether the process may keep set-id bits where Linux clears them, so that the driver must clear
            them for the guest.
        max_descriptors: How many descriptors the driver may hold at one time; None: `descriptor_budget`.
        device_nodes: Whether guests may make devices.

    Raises:
        OSError: There is no descriptor left now.
    """

    def __init__(
        self,
        root_fd: int,
        model: SecurityModel,
        *,
        readonly: bool,
        multidevs: str = "remap",
        write_back: bool = False,
        set_ids_survive: bool = True,
        max_descriptors: int | None = None,
        device_nodes: bool = True,
    ) -> None:
        self.readonly = readonly
        self._model = model
        self._multidevs = multidevs
        self._budget = descriptor_budget() if max_descriptors is None else max_descriptors
        self._device_nodes = device_nodes
        # What the most frequent requests need of the model.
        self._presenter = model.presenter
        self._file_mode = model.file_mode
        self._hidden = model.hidden
        self._settle = model.settle
        self._clear_set_ids = model.clear_set_ids
        self._locks = LockTable()
        self._lock_waits = LockWaits()
        self._pinned: dict[tuple[int, Owner], tuple[Entry, int]] = {}
        self._files: dict[LocalFile, None] = {}
        self._write_back = write_back
        self._set_ids_survive = set_ids_survive
        self._open_tree(root_fd)

    def _open_tree(self, root_fd: int) -> None:
        """Export a folder, from now on.

        Args:
            root_fd: ``O_PATH`` descriptor of it, owned by the driver from now on, also if this raises.

        Raises:
            OSError: There is no descriptor left now.
        """
        model = self._model
        self._table = table = model.open_table(root_fd, multidevs=self._multidevs, budget=self._budget)
        try:
            self._listings = ListingContext(table, hidden=model.hidden, untyped=model.mapped)
        except OSError:
            table.close()
            raise
        table.closer = self._closer = LeastRecentlyOpened(table, self._files, self._locks.__contains__)

    def _close_tree(self) -> None:
        self._listings.close()
        self._table.close()

    @property
    def _is_idle(self) -> bool:
        """Whether no guest has anything of it."""
        return len(self._table) == 1 and self._table.root_node.refs == 1 and not self._files and not self._pinned

    def _check_writable(self, name: bytes = b"", new_name: bytes = b"") -> None:
        """EROFS on a read-only export (the server asks first, this is the second lock on the door).

        EINVAL for a name that is not there for guests.
        """
        if self.readonly:
            fail(errno.EROFS)
        hidden = self._hidden
        if hidden and (name in hidden or new_name in hidden):
            fail(errno.EINVAL)
