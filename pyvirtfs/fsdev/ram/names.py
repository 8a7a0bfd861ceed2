"""The memory driver's operations on names: walk, make, link, rename, remove."""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import Final

from pyvirtfs.fsdev.driver import Qid, Walk
from pyvirtfs.fsdev.ram.core import MemoryCore, fail
from pyvirtfs.fsdev.ram.inodes import Inode, Link
from pyvirtfs.fsdev.set_ids import without_group_privilege

_SPECIAL: Final = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_DEVICES: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_TARGET_MAX: Final = 4095
"""Bytes; PATH_MAX without its NUL."""

_new = tuple.__new__


class MemoryNames(MemoryCore):
    """Walk, make, link, rename, remove."""

    def attach(self, aname: bytes, uid: int) -> tuple[Link, Qid]:
        """A handle on the root, whatever tree the guest asked for."""
        del aname, uid
        root = self._root
        root.inode.refs += 1
        return root, root.inode.qid

    def release(self, node: Link) -> None:
        """See `ExportDriver.release`."""
        node.inode.drop()

    def walk(self, node: Link, names: Sequence[bytes]) -> Walk[Link]:
        """See `ExportDriver.walk`; ENOENT for ``..`` in a folder that was removed."""
        qids: list[Qid] = []
        link = node
        try:
            for name in names:
                link = self._step(link, name)
                qids.append(link.inode.qid)
        except OSError:
            if not qids:
                raise
            return Walk(qids, None)
        link.inode.refs += 1
        return _new(Walk, (qids, link))

    def _step(self, link: Link, name: bytes) -> Link:
        """What one name leads to."""
        inode = link.inode
        if name == b".":
            self._entries(inode)
            return link
        if name == b"..":
            self._entries(inode)
            if link is self._root:
                return link
            above = link.folder
            if above is None or above.place is None or not inode.names:
                fail(errno.ENOENT)
            return above.place
        return self._find(inode, name)

    def place(self, node: Link) -> tuple[Link | None, bytes]:
        """See `ExportDriver.place`."""
        if node is self._root:
            node.inode.refs += 1
            return node, b"/"
        above = node.folder
        if above is None or above.place is None:
            return None, b""
        above.refs += 1
        return above.place, node.name

    def readlink(self, node: Link) -> bytes:
        """See `ExportDriver.readlink`."""
        if node.inode.kind != stat.S_IFLNK:
            fail(errno.EINVAL)
        return node.inode.target

    # --- making ---

    def mkdir(self, directory: Link, name: bytes, mode: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mkdir`."""
        return self._make(directory, name, stat.S_IFDIR | mode & 0o7777, uid, gid).qid

    def symlink(self, directory: Link, name: bytes, target: bytes, uid: int, gid: int) -> Qid:
        """See `ExportDriver.symlink`; ENOENT for an empty target, ENAMETOOLONG for one that no path can be."""
        if not target:
            fail(errno.ENOENT)
        if b"\0" in target:
            fail(errno.EINVAL)
        if len(target) > _TARGET_MAX:
            fail(errno.ENAMETOOLONG)
        return self._make(directory, name, stat.S_IFLNK | 0o777, uid, gid, target).qid

    def mknod(self, directory: Link, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mknod`; a mode without a type means a regular file, and a folder is EPERM."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in _SPECIAL:
            fail(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        if kind in _DEVICES and (major > _MAX_MAJOR or minor > _MAX_MINOR):
            fail(errno.EINVAL)
        inode = self._make(directory, name, kind | stat.S_IMODE(mode), uid, gid)
        if kind in _DEVICES:
            inode.device = major, minor
        return inode.qid

    def _make(self, directory: Link, name: bytes, mode: int, uid: int, gid: int, target: bytes = b"") -> Inode:
        """Make an object under a name that is free."""
        self._check_writable()
        self._check_free(directory.inode, name)
        if uid and not stat.S_ISDIR(mode):
            mode = without_group_privilege(mode, directory.inode.mode)
        inode = self._new_inode(mode, uid, gid)
        if target:
            try:
                inode.set_extra(len(target))
            except OSError:
                inode.free_if_unused()
                raise
            inode.target = target
        self._place(directory.inode, name, inode)
        return inode

    def link(self, directory: Link, node: Link, name: bytes) -> None:
        """See `ExportDriver.link`."""
        self._check_writable()
        inode = node.inode
        if inode.kind == stat.S_IFDIR:
            fail(errno.EPERM)
        self._check_free(directory.inode, name)
        if not inode.names:
            fail(errno.ENOENT)
        self._space.take_name()
        self._place(directory.inode, name, inode)
        inode.ctime = directory.inode.ctime

    # --- renaming ---

    def rename(self, node: Link, directory: Link, name: bytes) -> None:
        """See `ExportDriver.rename`."""
        self._check_writable()
        self._rename(self._place_of(node), directory.inode, name)

    def renameat(self, old_directory: Link, old_name: bytes, directory: Link, name: bytes) -> None:
        """See `ExportDriver.renameat`."""
        self._check_writable()
        self._rename(self._find(old_directory.inode, old_name), directory.inode, name)

    @staticmethod
    def _place_of(node: Link) -> Link:
        """The name under which a node was found: EBUSY for the root, ESTALE if it does not lead there any more."""
        if node.folder is None or node.folder.folder is None:
            fail(errno.EBUSY)
        there = node.folder.folder.names.get(node.name)
        if there is None or there.inode is not node.inode:
            fail(errno.ESTALE)
        return there

    def _rename(self, link: Link, directory: Inode, name: bytes) -> None:
        """Move a name, in the order in which Linux looks what stands in the way."""
        there = self._look_up(directory, name)
        inode = link.inode
        if inode.folder is not None and self._is_within(directory, inode):
            fail(errno.EINVAL)
        if there is not None:
            if there.inode is inode:
                return
            self._check_replaceable(link, there)
        old_directory = link.folder
        if old_directory is None or old_directory.folder is None:
            fail(errno.EBUSY)  # the root
        if there is not None:
            self._remove(there)
        old_directory.folder.discard(link)
        old_directory.changed()
        link.folder = directory
        self._entries(directory).add(link, name)
        directory.changed()
        inode.ctime = directory.ctime

    def _check_replaceable(self, link: Link, there: Link) -> None:
        """Whether a name may be taken from an object for another one."""
        if there.inode.folder is None:
            if link.inode.folder is not None:
                fail(errno.ENOTDIR)
            return
        if link.folder is not None and self._is_within(link.folder, there.inode):
            fail(errno.ENOTEMPTY)
        if link.inode.folder is None:
            fail(errno.EISDIR)
        if there.inode.folder.names:
            fail(errno.ENOTEMPTY)

    @staticmethod
    def _is_within(inode: Inode, folder: Inode) -> bool:
        """Whether a folder is another one or lies below it."""
        while inode is not folder:
            above = inode.place.folder if inode.place is not None else None
            if above is None:
                return False
            inode = above
        return True

    # --- removing ---

    def unlinkat(self, directory: Link, name: bytes, *, folder: bool) -> None:
        """See `ExportDriver.unlinkat`."""
        self._check_writable()
        found = self._find(directory.inode, name)
        if folder and found.inode.folder is None:
            fail(errno.ENOTDIR)
        if not folder and found.inode.folder is not None:
            fail(errno.EISDIR)
        self._remove(found)

    def remove(self, node: Link) -> None:
        """See `ExportDriver.remove`."""
        self._check_writable()
        self._remove(self._place_of(node))

    def _remove(self, link: Link) -> None:
        """Take a name away; ENOTEMPTY for a folder that holds something."""
        inode = link.inode
        if inode.folder is not None and inode.folder.names:
            fail(errno.ENOTEMPTY)
        self._unplace(link)
        if inode.names:
            self._space.free_names += 1
        else:
            inode.free_if_unused()
