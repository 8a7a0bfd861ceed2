"""What all parts of the memory driver share: the state of an export, and small steps that several operations take."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from typing import Final, Never

from pyvirtfs.fsdev.driver import NONUNAME, ExportDriver
from pyvirtfs.fsdev.locks import LockTable
from pyvirtfs.fsdev.ram.inodes import Folder, Inode, Link
from pyvirtfs.fsdev.ram.space import Space

NAME_MAX: Final = 255
"""Bytes of a name."""


def fail(code: int) -> Never:
    """Raise OSError(code) with the usual text."""
    raise OSError(code, os.strerror(code))


class MemoryFile:
    """A regular file or a folder that a guest has open.

    Attributes:
        inode: The object.
        flags: As it was opened.
        is_open: Until it is closed.
        clears_set_ids: Whether a write through it must clear the set-user-id and set-group-id bits.
    """

    __slots__ = ("clears_set_ids", "flags", "inode", "is_open")

    def __init__(self, inode: Inode, flags: int, *, clears_set_ids: bool) -> None:
        self.inode = inode
        self.flags = flags
        self.is_open = True
        self.clears_set_ids = clears_set_ids


class MemoryCore(ExportDriver[Link, MemoryFile]):
    """The state of a memory export.

    Args:
        space: How much memory it may take.
        mode: Permissions of the root.
        uid: Owner of the root, and of what somebody without a number makes.
        gid: Group of the root, and of what is made without a group.
        readonly: Change nothing.
    """

    def __init__(self, space: Space, *, mode: int, uid: int, gid: int, readonly: bool) -> None:
        self.readonly = readonly
        self._space = space
        self._uid = uid
        self._gid = gid
        self._locks = LockTable()
        self._numbers = itertools.count(1)
        # Another export must not look like this one to a guest that has kept something of it.
        self._first_version = secrets.randbits(32) or 1
        self._fsid = secrets.randbits(64) | 1
        self._device = secrets.randbits(20)
        self._root = Link(self._new_inode(stat.S_IFDIR | mode, uid, gid))
        self._root.inode.names = 1
        self._root.inode.place = self._root

    def _check_writable(self) -> None:
        """EROFS on a read-only export; the server asks first, this is the second lock on the door."""
        if self.readonly:
            fail(errno.EROFS)

    def _new_inode(self, mode: int, uid: int, gid: int) -> Inode:
        """A new object, without a name. Raises OSError: ENOSPC."""
        self._space.take_name()
        return Inode(
            self._space,
            next(self._numbers),
            mode,
            self._uid if uid == NONUNAME else uid,
            self._gid if gid == NONUNAME else gid,
            self._first_version,
        )

    @staticmethod
    def _entries(inode: Inode) -> Folder:
        """The entries of a folder; ENOTDIR if it is none."""
        if inode.folder is None:
            fail(errno.ENOTDIR)
        return inode.folder

    def _look_up(self, directory: Inode, name: bytes) -> Link | None:
        """What is in a folder under a name.

        Raises:
            OSError: ENOTDIR, ENOENT if the folder was removed, ENAMETOOLONG.
        """
        entries = self._entries(directory)
        if not directory.names:
            fail(errno.ENOENT)
        if len(name) > NAME_MAX:
            fail(errno.ENAMETOOLONG)
        return entries.names.get(name)

    def _find(self, directory: Inode, name: bytes) -> Link:
        """As `_look_up`, and ENOENT if there is nothing."""
        found = self._look_up(directory, name)
        if found is None:
            fail(errno.ENOENT)
        return found

    def _check_free(self, directory: Inode, name: bytes) -> Folder:
        """The entries of a folder in which a name is free; EEXIST if it is not, and as `_look_up`."""
        if self._look_up(directory, name) is not None:
            fail(errno.EEXIST)
        return self._entries(directory)

    @staticmethod
    def _place(directory: Inode, name: bytes, inode: Inode) -> Link:
        """Give an object a name that is free."""
        link = Link(inode)
        link.folder = directory
        if directory.folder is not None:
            directory.folder.add(link, name)
        inode.names += 1
        if inode.kind == stat.S_IFDIR:
            inode.place = link
        directory.changed()
        return link

    @staticmethod
    def _unplace(link: Link) -> None:
        """Take a name away."""
        directory, inode = link.folder, link.inode
        if directory is not None and directory.folder is not None:
            directory.folder.discard(link)
            directory.changed()
            inode.ctime = directory.ctime
        inode.names -= 1
