"""Listings of open folders, by getdents64(2) and its cookies.

The cookie of an entry is ``d_off``: the file system's own mark of the place behind it, which stays valid when entries
come and go. A batch of entries is kept with the open folder, so that a guest that takes them in small portions costs
one system call for each batch, and gets the same entries if it asks twice.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, QID_SYMLINK, EntryFields
from pyvirtfs.fsdev.entries import Entry, EntryTable
from pyvirtfs.fsdev.mounts import MountTable
from pyvirtfs.fsdev.qids import FOREIGN
from pyvirtfs.syscalls import BATCH_NBYTES, DIRENT, fstatfs, getdents64, seek_directory

_KEPT: Final = 32
"""Batches that one export keeps; the guest can open more folders than we want to hold entries for."""

_UNPACK_DIRENT: Final = DIRENT.unpack_from
_NAME_OFFSET: Final = DIRENT.size

_DT_UNKNOWN, _DT_DIR, _DT_REG, _DT_LNK = 0, 4, 8, 10
_QID_TYPES: Final = bytes(
    QID_DIRECTORY if kind == _DT_DIR else QID_SYMLINK if kind == _DT_LNK else 0 for kind in range(256)
)
OVERLAYFS: Final = 0x794C7630
"""The type that statfs(2) tells of overlayfs."""
_BTRFS: Final = 0x9123683E
_BTRFS_SUBVOLUME_INODE: Final = 256

_NO_ENTRIES: Final[list[EntryFields]] = []


def find_name(folder: bytes, inode: int, accept: Callable[[bytes], bool]) -> bytes | None:
    """The name of an object in a folder, if it has one there.

    Args:
        folder: Path of the folder.
        inode: What getdents64(2) says of the object.
        accept: Has the last word on a name.

    Raises:
        OSError: The folder cannot be read.
    """
    with os.scandir(folder) as found:
        for entry in found:
            if entry.inode() == inode and accept(entry.name):
                return entry.name
    return None


class ListingContext:
    """What the listings of one export share.

    Args:
        table: The export's entries.
        hidden: Names that are not there for the guest.
        untyped: A regular file of the host can be anything but a folder for the guest: the listing does not say what.

    Raises:
        OSError: As `MountTable`.
    """

    __slots__ = ("buffer", "hidden", "kept", "mounts", "suspects", "table", "untyped")

    def __init__(self, table: EntryTable, *, hidden: frozenset[bytes] = frozenset(), untyped: bool = False) -> None:
        self.table = table
        self.hidden = hidden
        self.untyped = untyped
        self.mounts = MountTable()
        self.buffer = bytearray(BATCH_NBYTES)
        self.kept: dict[Listing, None] = {}
        self.suspects: dict[int, int | None] = {}

    def keep(self, listing: Listing) -> None:
        """Note that a listing holds a batch, and make the one that has held its batch longest forget it."""
        kept = self.kept
        kept[listing] = None
        if len(kept) > _KEPT:
            next(iter(kept)).forget()

    def suspect(self, fd: int, device: int) -> int | None:
        """Which inode number in a folder does not tell the object: None for none, -1 for any.

        On overlayfs, numbers of a listing may come from other devices than those of the objects; on Btrfs, every
        subvolume is a device and shows up as inode 256.
        """
        if device not in self.suspects:
            kind = fstatfs(fd).type
            self.suspects[device] = -1 if kind == OVERLAYFS else _BTRFS_SUBVOLUME_INODE if kind == _BTRFS else None
        return self.suspects[device]

    def close(self) -> None:
        """Forget everything."""
        for listing in list(self.kept):
            listing.forget()
        self.mounts.close()


class Listing:
    """The listing of one open folder.

    Args:
        fd: The open folder; stays the caller's.
        entry: The same folder.
        context: What it shares with the other listings of the export.

    Raises:
        OSError: The folder cannot be looked at.
    """

    __slots__ = (
        "_batch",
        "_context",
        "_cookies",
        "_device",
        "_fd",
        "_folder",
        "_position",
        "_special",
        "_start",
        "_suspect",
    )

    def __init__(self, fd: int, entry: Entry, context: ListingContext) -> None:
        self._fd = fd
        self._folder = entry
        self._context = context
        self._device = context.table.device_of(fd)
        self._suspect = context.suspect(fd, self._device)
        self._special: frozenset[bytes] | None = None
        self._batch = _NO_ENTRIES
        self._cookies: dict[int, int] | None = None  # cookie -> index of the entry behind it
        self._start = -1  # cookie before the batch; -1: there is no batch
        self._position = -1  # cookie at which the descriptor stands; -1: unknown

    def after(self, cookie: int) -> list[EntryFields]:
        """The entries that follow `cookie`: as many as are at hand, none at the end.

        Args:
            cookie: Of an entry that this listing returned, or 0 for the start, which reads the folder afresh.

        Raises:
            OSError: As getdents64(2); EINVAL for a cookie that the file system does not take.
        """
        if cookie:
            if cookie == self._start:
                return self._batch
            if self._start >= 0:
                if cookie == self._position:
                    return self._read(cookie)
                cookies = self._cookies
                if cookies is None:
                    cookies = self._cookies = {entry[1]: index for index, entry in enumerate(self._batch, 1)}
                index = cookies.get(cookie)
                if index is not None:
                    return self._batch[index:]
        return self._read(cookie)

    def forget(self) -> None:
        """Give the batch up; it is read again when it is needed."""
        self._batch, self._cookies, self._start = _NO_ENTRIES, None, -1
        self._context.kept.pop(self, None)

    def _read(self, cookie: int) -> list[EntryFields]:
        """Read the batch behind a cookie."""
        if cookie and self._special is None:
            # ext4 believes that what is read first is read from the start, and would show nothing after a later rewind.
            getdents64(self._fd, self._context.buffer)
        if cookie != self._position or not cookie:
            self._position = -1
            seek_directory(self._fd, cookie)
        if not cookie or self._special is None:
            self._special = self._names_to_look_at()
        context = self._context
        buffer = context.buffer
        self._position = -1
        try:
            nbytes = getdents64(self._fd, buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the folder was removed: it has no entries any more
                nbytes = 0
            else:
                raise
        batch: list[EntryFields] = []
        if nbytes:
            unknown = self._parse(bytes(memoryview(buffer)[:nbytes]), batch)
            if unknown or self._special or self._suspect is not None or self._device != context.table.device:
                self._look_at(batch, self._special)
            last = batch[-1][1]
            if context.untyped:
                batch = self._masked(batch)
                if not batch:  # nothing but hidden names: an empty batch would say that this is the end
                    return self._read(last)
                last = batch[-1][1]  # hidden names behind it are passed over: the place is the same for a guest
            self._batch, self._cookies = batch, None
            self._start, self._position = cookie, last
            context.keep(self)
        else:
            self.forget()
            self._position = cookie
        return batch

    def _masked(self, batch: list[EntryFields]) -> list[EntryFields]:
        """The entries of a batch as a guest of a mapped security model sees them."""
        hidden = self._context.hidden
        return [
            (qid, cookie, _DT_UNKNOWN if kind == _DT_REG else kind, name)
            for qid, cookie, kind, name in batch
            if name not in hidden
        ]

    @staticmethod
    def _parse(data: bytes, batch: list[EntryFields]) -> bool:
        """Append the entries of a buffer; whether one of them has no type, or a number that is no qid.path."""
        at = 0
        end = len(data)
        unknown = False
        unpack, index, types, append = _UNPACK_DIRENT, data.index, _QID_TYPES, batch.append
        while at < end:
            inode, cookie, length, kind = unpack(data, at)
            start = at + _NAME_OFFSET
            if not kind or inode >= FOREIGN:
                unknown = True
            append(((types[kind], 0, inode), cookie, kind, data[start : index(0, start)]))
            at += length
        return unknown

    def _names_to_look_at(self) -> frozenset[bytes]:
        """The names whose inode number in the listing does not tell what a walk would find."""
        context = self._context
        special = context.mounts.below(b"/proc/self/fd/%d" % self._fd)
        table = context.table
        if self._folder is table.root or table.device_of(self._fd, b"..") != self._device:
            special |= {b".."}
        return special

    def _look_at(self, batch: list[EntryFields], special: frozenset[bytes]) -> None:
        """Give the entries of a batch that need it the type and the path of what a walk would find."""
        table = self._context.table
        suspect = self._suspect
        foreign = self._device != table.device
        for index, (qid, cookie, kind, name) in enumerate(batch):
            inode = qid[2]
            try:
                if name == b".." and self._folder is table.root:
                    path = table.root.shown_path
                elif kind == _DT_UNKNOWN or name in special or suspect in {-1, inode} or inode >= FOREIGN:
                    mode, path = table.shown(self._fd, name)
                    kind = stat.S_IFMT(mode) >> 12  # noqa: PLW2901  (DT_* of dirent.h are the type bits of st_mode)
                elif foreign:
                    path = table.qids.shown(table.qids.path(self._device, inode), inode)
                else:
                    continue
            except OSError:
                continue  # gone meanwhile, or not to be had: the name is shown all the same
            batch[index] = ((_QID_TYPES[kind], 0, path), cookie, kind, name)
