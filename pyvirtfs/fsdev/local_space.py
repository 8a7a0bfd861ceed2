"""The local driver's operations where the export may hold only so much: ``space_hard_limit``, ``space_soft_limit``.

Each operation that can make the export hold more looks before whether it still may, and afterwards at what the object
takes now. What an object without a name takes is given back when the last handle on it is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from pyvirtfs.fsdev.driver import Qid, SetAttributes, StatFs
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local_attributes import LocalAttributes
from pyvirtfs.fsdev.local_core import LocalFile, fail
from pyvirtfs.fsdev.local_create import LocalCreate
from pyvirtfs.fsdev.local_names import LocalNames
from pyvirtfs.fsdev.space import BLOCK_NBYTES, SpaceLimits, holes
from pyvirtfs.memory.buffers import Buffers


class LocalSpace(LocalCreate, LocalNames, LocalAttributes):
    """What differs if there are limits."""

    _limits: SpaceLimits

    def watch(self, limits: SpaceLimits) -> None:
        """Measure what the export holds, and keep it within limits from now on.

        Raises:
            OSError: The export cannot be read.
        """
        self._limits = limits
        self._watch_tree()

    def _watch_tree(self) -> None:
        self._limits.measure(self._table.root.fd)
        self._table.watcher = self._last_handle_gone

    def _open_tree(self, root_fd: int) -> None:
        """Another tree than that of the start is measured as that was."""
        super()._open_tree(root_fd)
        if hasattr(self, "_limits"):
            self._watch_tree()

    # --- what objects take ---

    def _taken(self, fd: int, name: bytes = b"") -> int:
        """The bytes of an object on the disk; 0 if there is none."""
        try:
            return self._table.stat(fd, name).blocks * BLOCK_NBYTES
        except FileNotFoundError:
            return 0

    def _last_handle_gone(self, entry: Entry) -> None:
        """Called before the descriptor of an entry is closed."""
        with contextlib.suppress(OSError):  # giving back never fails; the next measurement tells
            found = self._table.stat(entry.fd)
            if not found.nlink:
                self._limits.changed(-found.blocks * BLOCK_NBYTES)

    def _require(self, nbytes: int) -> None:
        """ENOSPC unless that much more fits; looks again at what there is before it says so."""
        limits = self._limits
        if limits.fits(nbytes):
            return
        if limits.may_measure:
            table = self._table
            orphans = [
                found.blocks * BLOCK_NBYTES
                for entry in table.open.values()
                if not (found := table.stat(entry.fd)).nlink
            ]
            limits.measure(table.root.fd, orphans)
            if limits.fits(nbytes):
                return
        fail(errno.ENOSPC)

    def _freed_with(self, parent: Entry, name: bytes) -> int:
        """What the disk gets back if a name goes, but for objects that somebody holds: those end with their entry."""
        table = self._table
        try:
            found = table.stat(parent.fd, name)
            if (found.nlink > 1 and not stat.S_ISDIR(found.mode)) or table.get(table.identify(parent.fd, name)[1]):
                return 0
        except OSError:
            return 0
        return found.blocks * BLOCK_NBYTES

    # --- operations ---

    def write(self, file: LocalFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.write`."""
        nbytes = buffers.nbytes
        limits = self._limits
        if not limits.fits(nbytes):
            if not file.flags & os.O_APPEND:
                nbytes = holes(file.fd, offset, offset + nbytes)
            if nbytes:
                self._require(nbytes)
        before = self._taken(file.fd)
        done = super().write(file, offset, buffers)
        limits.changed(self._taken(file.fd) - before)
        return done

    def open(self, node: Node, flags: int, uid: int) -> tuple[LocalFile, Qid]:
        """See `ExportDriver.open`."""
        if not flags & os.O_TRUNC:
            return super().open(node, flags, uid)
        before = self._taken(node.entry.fd)
        answer = super().open(node, flags, uid)
        self._limits.changed(self._taken(node.entry.fd) - before)
        return answer

    def create(
        self, directory: Node, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Node, LocalFile, Qid]:
        """See `ExportDriver.create`."""
        if not self._limits.fits(1) and not self._is_there(directory, name):
            self._require(1)
        return super().create(directory, name, flags, mode, uid, gid)

    def _create_new(
        self, parent: Entry, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Node, LocalFile, Qid]:
        """A file that was not there."""
        opened = super()._create_new(parent, name, flags, mode, uid, gid)
        self._limits.changed(self._taken(opened[1].fd))
        return opened

    def _is_there(self, directory: Node, name: bytes) -> bool:
        try:
            self._table.stat(directory.entry.fd, name)
        except OSError:
            return False
        return True

    def mkdir(self, directory: Node, name: bytes, mode: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mkdir`."""
        self._require(1)
        return self._made(directory, name, super().mkdir(directory, name, mode, uid, gid))

    def symlink(self, directory: Node, name: bytes, target: bytes, uid: int, gid: int) -> Qid:
        """See `ExportDriver.symlink`."""
        self._require(1)
        return self._made(directory, name, super().symlink(directory, name, target, uid, gid))

    def mknod(self, directory: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mknod`."""
        self._require(1)
        return self._made(directory, name, super().mknod(directory, name, mode, major, minor, uid, gid))

    def _made(self, directory: Node, name: bytes, qid: Qid) -> Qid:
        self._limits.changed(self._taken(directory.entry.fd, name))
        return qid

    def setattr(self, node: Node, changes: SetAttributes, uid: int) -> None:
        """See `ExportDriver.setattr`."""
        if changes.size is None:
            super().setattr(node, changes, uid)
            return
        before = self._taken(node.entry.fd)
        try:
            super().setattr(node, changes, uid)
        finally:
            self._limits.changed(self._taken(node.entry.fd) - before)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> None:
        """See `ExportDriver.setxattr`."""
        self._require(len(value))
        before = self._taken(node.entry.fd)
        super().setxattr(node, name, value, flags, uid)
        self._limits.changed(self._taken(node.entry.fd) - before)

    def unlinkat(self, directory: Node, name: bytes, *, folder: bool) -> None:
        """See `ExportDriver.unlinkat`."""
        freed = self._freed_with(directory.entry, name)
        super().unlinkat(directory, name, folder=folder)
        self._limits.changed(-freed)

    def _rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        """What is at the new place goes, unless it is the same object."""
        freed = self._freed_with(new, new_name)
        super()._rename(old, old_name, new, new_name)
        self._limits.changed(-freed)

    def statfs(self, node: Node) -> StatFs:
        """See `ExportDriver.statfs`: the size is the limit's."""
        return self._limits.shown(super().statfs(node))
