"""The local driver's operations where the export may hold only so much: ``space_hard_limit``, ``space_soft_limit``.

Each operation that can make the export hold more looks before whether it still may, and afterwards at what the object
takes now. A write of which only the start fits is cut short, as a disk that gets full does it. What an object without a
name takes is given back when the last handle on it is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from pyvirtfs.fsdev.driver import Attributes, Qid, SetAttributes, StatFs
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local_attributes import LocalAttributes
from pyvirtfs.fsdev.local_core import LocalFile, fail
from pyvirtfs.fsdev.local_create import LocalCreate
from pyvirtfs.fsdev.local_names import LocalNames
from pyvirtfs.fsdev.space import BLOCK_NBYTES, SpaceLimits, fitting
from pyvirtfs.memory.buffers import Buffers

_LARGEST_BLOCK: Final = 1 << 16
"""Bytes. Where a file system tells of larger blocks (NFS), it wishes for transfers of that size; files grow by less."""
_METADATA: Final = 1 << 16
"""Bytes of a file that may be what the file system needs to find its content, or its attributes."""


class LocalSpace(LocalCreate, LocalNames, LocalAttributes):
    """What differs if there are limits."""

    _limits: SpaceLimits
    _block: int
    """What files grow by, in bytes."""

    def watch(self, limits: SpaceLimits) -> None:
        """Measure what the export holds, and keep it within limits from now on.

        Raises:
            OSError: The export cannot be read.
        """
        self._limits = limits
        self._watch_tree()

    def _watch_tree(self) -> None:
        root = self._table.root.fd
        self._block = min(os.fstatvfs(root).f_frsize or BLOCK_NBYTES, _LARGEST_BLOCK)
        self._limits.measure(root)
        self._table.watcher = self._last_handle_gone

    def _open_tree(self, root_fd: int) -> None:
        """Another tree than that of the start is measured as that was."""
        super()._open_tree(root_fd)
        if hasattr(self, "_limits"):
            limits = self._limits
            before, limits.used = limits.used, 0
            try:
                self._watch_tree()
            except OSError:
                limits.used = before
                raise

    # --- what objects take ---

    def _taken(self, fd: int, name: bytes = b"") -> int:
        """The bytes of an object on the disk; 0 if there is none."""
        try:
            return self._table.stat(fd, name).blocks * BLOCK_NBYTES
        except FileNotFoundError:
            return 0

    def _around(self, *places: tuple[Entry, bytes]) -> int:
        """The bytes of folders, and of what the security model keeps there for names in them.

        What has several names, as metadata of an object with several has, counts for none of them: it neither comes
        nor goes with one.
        """
        table = self._table
        taken = 0
        for parent in {parent: None for parent, _ in places}:
            taken += self._taken(parent.fd)
        for parent, path in {(parent, path): None for parent, name in places for path in self._model.beside(name)}:
            with contextlib.suppress(OSError):
                found = table.stat(parent.fd, path)
                if found.nlink == 1 or stat.S_ISDIR(found.mode):
                    taken += found.blocks * BLOCK_NBYTES
        return taken

    def _place_if_known(self, node: Node) -> tuple[tuple[Entry, bytes], ...]:
        return () if node.parent is None else ((node.parent, node.name),)

    def _last_handle_gone(self, entry: Entry) -> None:
        """Called before the descriptor of an entry is closed."""
        with contextlib.suppress(OSError):  # giving back never fails; the next measurement tells
            found = self._table.stat(entry.fd)
            if not found.nlink:
                self._limits.changed(-found.blocks * BLOCK_NBYTES)

    def _require(self, nbytes: int) -> None:
        """ENOSPC unless that much more fits; looks again at what there is before it says so."""
        limits = self._limits
        if not limits.fits(nbytes) and not (self._measured_again() and limits.fits(nbytes)):
            fail(errno.ENOSPC)

    def _measured_again(self) -> bool:
        """Look again at what there is, unless that was done just now; whether that could be seen."""
        limits = self._limits
        if not limits.may_measure:
            return False
        table = self._table
        orphans = []
        for entry in table.open.values():
            with contextlib.suppress(OSError):
                found = table.stat(entry.fd)
                if not found.nlink:
                    orphans.append(found.blocks * BLOCK_NBYTES)
        try:
            limits.measure(table.root.fd, orphans)
        except OSError:  # a guest may have taken the permission to read it; what was known counts on
            return False
        return True

    def _fitting(self, file: LocalFile, found: Attributes, offset: int, nbytes: int) -> int:
        """How many bytes of a write fit, of some that are close to the limit or beyond it; ENOSPC if none does.

        Args:
            file: The file.
            found: What it is now.
            offset: Where it would be written, unless at the file's end.
            nbytes: How many.
        """
        limits = self._limits
        block = self._block
        if file.flags & os.O_APPEND:
            offset = found.size
        spare = 0
        if offset <= found.size:  # what is reserved behind the end, as XFS does it, counts already
            spare = max(found.blocks * BLOCK_NBYTES - found.size - _METADATA, 0)
        fd = file.fd
        fits = fitting(fd, offset, offset + nbytes, limits.room + spare, block)
        if fits < nbytes and self._measured_again():
            fits = fitting(fd, offset, offset + nbytes, limits.room + spare, block)
        if not fits:
            fail(errno.ENOSPC)
        return fits

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
        """See `ExportDriver.write`; fewer bytes than asked for are written where the limit is in the way."""
        nbytes = buffers.nbytes
        if not nbytes:
            return self._write_nothing(file)
        limits = self._limits
        found = self._table.stat(file.fd)
        # It takes no more than its own length, and what else is in its first and its last block.
        if not limits.fits(nbytes + 2 * self._block):
            fits = self._fitting(file, found, offset, nbytes)
            if fits < nbytes:
                buffers = buffers.slice(0, fits)
        done = super().write(file, offset, buffers)
        limits.changed(self._taken(file.fd) - found.blocks * BLOCK_NBYTES)
        return done

    def close_file(self, file: LocalFile) -> None:
        """See `ExportDriver.close_file`; what was reserved for the file to grow, as XFS does it, is given back then."""
        entry = file.entry
        if not file.flags & os.O_ACCMODE or file not in self._files or entry.closed is not None:
            super().close_file(file)
            return
        before = None
        with contextlib.suppress(OSError):  # closing never fails; the next measurement tells
            before = self._taken(entry.fd)
        entry.refs += 1
        try:
            super().close_file(file)
            if before is not None:
                with contextlib.suppress(OSError):
                    self._limits.changed(self._taken(entry.fd) - before)
        finally:
            self._table.drop(entry)

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
        before = self._around((parent, name))
        opened = super()._create_new(parent, name, flags, mode, uid, gid)
        self._limits.changed(self._taken(opened[1].fd) + self._around((parent, name)) - before)
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
        before = self._around((directory.entry, name))
        return self._made(directory, name, before, super().mkdir(directory, name, mode, uid, gid))

    def symlink(self, directory: Node, name: bytes, target: bytes, uid: int, gid: int) -> Qid:
        """See `ExportDriver.symlink`."""
        self._require(1)
        before = self._around((directory.entry, name))
        return self._made(directory, name, before, super().symlink(directory, name, target, uid, gid))

    def mknod(self, directory: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mknod`."""
        self._require(1)
        before = self._around((directory.entry, name))
        return self._made(directory, name, before, super().mknod(directory, name, mode, major, minor, uid, gid))

    def _made(self, directory: Node, name: bytes, before: int, qid: Qid) -> Qid:
        around = self._around((directory.entry, name))
        self._limits.changed(self._taken(directory.entry.fd, name) + around - before)
        return qid

    def setattr(self, node: Node, changes: SetAttributes, uid: int) -> None:
        """See `ExportDriver.setattr`."""
        if changes.size is None and not self._model.mapped:
            super().setattr(node, changes, uid)
            return
        place = self._place_if_known(node)
        before = self._taken(node.entry.fd) + self._around(*place)
        try:
            super().setattr(node, changes, uid)
        finally:
            self._limits.changed(self._taken(node.entry.fd) + self._around(*place) - before)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> None:
        """See `ExportDriver.setxattr`."""
        self._require(len(value))
        before = self._taken(node.entry.fd)
        super().setxattr(node, name, value, flags, uid)
        self._limits.changed(self._taken(node.entry.fd) - before)

    def link(self, directory: Node, node: Node, name: bytes) -> None:
        """See `ExportDriver.link`."""
        self._require(1)
        place = directory.entry, name
        before = self._around(place)
        super().link(directory, node, name)
        self._limits.changed(self._around(place) - before)

    def unlinkat(self, directory: Node, name: bytes, *, folder: bool) -> None:
        """See `ExportDriver.unlinkat`."""
        place = directory.entry, name
        freed = self._freed_with(*place) + self._around(place)
        super().unlinkat(directory, name, folder=folder)
        self._limits.changed(self._around(place) - freed)

    def remove(self, node: Node) -> None:
        """See `ExportDriver.remove`; the object goes with its last handle."""
        place = self._place_if_known(node)
        before = self._around(*place)
        super().remove(node)
        self._limits.changed(self._around(*place) - before)

    def _rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        """What is at the new place goes, unless it is the same object."""
        places = (old, old_name), (new, new_name)
        freed = self._around(*places)
        if not self._is_at(self._table.identify(old.fd, old_name)[1], new, new_name):
            freed += self._freed_with(new, new_name)
        super()._rename(old, old_name, new, new_name)
        self._limits.changed(self._around(*places) - freed)

    def statfs(self, node: Node) -> StatFs:
        """See `ExportDriver.statfs`: the size is the limit's."""
        return self._limits.shown(super().statfs(node))
