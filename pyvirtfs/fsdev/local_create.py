"""The local driver's operations that make objects: create, mkdir, symlink, mknod.

Every object gets exactly the mode that was asked for, whatever the umask of the process, which a library must not
change: it is created with at most that mode, then gets its owner, then (chown(2) clears set-id bits) the rest of its
mode. If one of these steps fails, the object is removed again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from pyvirtfs.fsdev.driver import NONUNAME, Qid
from pyvirtfs.fsdev.entries import PATH_FLAGS, Entry, Node
from pyvirtfs.fsdev.local_core import LocalFile, fail
from pyvirtfs.fsdev.local_files import FILE_FLAGS, LocalFiles
from pyvirtfs.syscalls import chmod_descriptor, reopen

_PERMISSIONS: Final = 0o777
_MODE: Final = 0o7777
_CREATE_FLAGS: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_ATTEMPTS: Final = 16
"""How often a file may vanish or appear between two looks at it before `create` gives up."""
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_SPECIAL: Final = frozenset({stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})


class LocalCreate(LocalFiles):
    """Create, mkdir, symlink, mknod."""

    def create(
        self, directory: Node, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Node, LocalFile, Qid]:
        """See `ExportDriver.create`; ELOOP, EISDIR or ENXIO if there is something else than a regular file."""
        self._check_writable()
        parent = directory.entry
        for _ in range(_ATTEMPTS):
            try:
                return self._create_new(parent, name, flags, mode, uid, gid)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            try:
                return self._open_existing(parent, name, flags, uid)
            except FileNotFoundError:
                continue
        return fail(errno.ESTALE)

    def _create_new(
        self, parent: Entry, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Node, LocalFile, Qid]:
        """Create and open a file that is not there yet."""
        table = self._table
        fd = os.open(name, flags & FILE_FLAGS & ~os.O_TRUNC | _CREATE_FLAGS, mode & _PERMISSIONS, dir_fd=parent.fd)
        entry: Entry | None = None
        try:
            entry, qid = table.adopt(reopen(fd, os.O_PATH | os.O_CLOEXEC))
            if self._settle(entry, mode, uid, gid):
                qid = table.qid(entry)
        except OSError:
            self._undo(parent, name, entry, lambda: os.unlink(name, dir_fd=parent.fd))
            os.close(fd)
            raise
        node = table.place(entry, parent, name)
        return node, self._opened(fd, entry, flags, uid), qid

    def _open_existing(self, parent: Entry, name: bytes, flags: int, uid: int) -> tuple[Node, LocalFile, Qid]:
        """Open a file that was there already."""
        table = self._table
        node, _ = table.find(parent, name)
        entry = node.entry
        try:
            if entry.kind == stat.S_IFLNK:
                fail(errno.ELOOP)
            if entry.kind == stat.S_IFDIR:
                fail(errno.EISDIR)
            file, qid = self.open(node, flags, uid)
        except OSError:
            table.release(node)
            raise
        return node, file, qid

    def mkdir(self, directory: Node, name: bytes, mode: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mkdir`."""
        self._check_writable()
        parent = directory.entry.fd
        os.mkdir(name, mode & 0o1777, dir_fd=parent)
        return self._finish(directory.entry, name, stat.S_IFDIR, mode, uid, gid, lambda: os.rmdir(name, dir_fd=parent))

    def symlink(self, directory: Node, name: bytes, target: bytes, uid: int, gid: int) -> Qid:
        """See `ExportDriver.symlink`."""
        self._check_writable()
        if b"\0" in target:
            fail(errno.EINVAL)
        parent = directory.entry.fd
        os.symlink(target, name, dir_fd=parent)
        return self._finish(directory.entry, name, stat.S_IFLNK, None, uid, gid, lambda: os.unlink(name, dir_fd=parent))

    def mknod(self, directory: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mknod`; a mode without a type means a regular file, and a folder is EPERM."""
        self._check_writable()
        kind = stat.S_IFMT(mode)
        parent = directory.entry.fd
        if kind in {0, stat.S_IFREG}:
            kind = stat.S_IFREG
            os.close(os.open(name, os.O_WRONLY | _CREATE_FLAGS, mode & _PERMISSIONS, dir_fd=parent))
        elif kind in _SPECIAL:
            device = 0
            if kind in {stat.S_IFCHR, stat.S_IFBLK}:
                if major > _MAX_MAJOR or minor > _MAX_MINOR:
                    fail(errno.EINVAL)
                device = os.makedev(major, minor)
            os.mknod(name, kind | mode & _PERMISSIONS, device, dir_fd=parent)
        else:
            fail(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        return self._finish(directory.entry, name, kind, mode, uid, gid, lambda: os.unlink(name, dir_fd=parent))

    # --- the steps behind the creation ---

    def _finish(
        self, parent: Entry, name: bytes, kind: int, mode: int | None, uid: int, gid: int, remove: Callable[[], None]
    ) -> Qid:
        """Find the object that was just made, and give it its owner and its mode."""
        table = self._table
        entry: Entry | None = None
        try:
            entry, qid = table.adopt(os.open(name, PATH_FLAGS, dir_fd=parent.fd))
            if entry.kind != kind:  # somebody on the host was faster: leave that alone
                fail(errno.ESTALE)
            if self._settle(entry, mode, uid, gid):
                qid = table.qid(entry)
        except OSError:
            if entry is None or entry.kind == kind:
                self._undo(parent, name, entry, remove)
            elif entry is not None:
                table.drop(entry)
            raise
        table.drop(entry)
        return qid

    def _settle(self, entry: Entry, mode: int | None, uid: int, gid: int) -> bool:
        """Give a new object its owner and its mode (None: it has none of its own); whether anything had to change."""
        now = self._table.stat(entry.fd)
        changed = False
        if (uid not in {NONUNAME, now.uid}) or (gid not in {NONUNAME, now.gid}):
            self._model.chown(entry.fd, uid, gid)
            changed = True
        if mode is not None and (changed or (now.mode ^ mode) & _MODE):
            now = self._table.stat(entry.fd) if changed else now
            if (now.mode ^ mode) & _MODE:
                chmod_descriptor(entry.fd, mode & _MODE)
                changed = True
        return changed

    def _undo(self, parent: Entry, name: bytes, entry: Entry | None, remove: Callable[[], None]) -> None:
        """Remove what could not be finished, unless the name means something else meanwhile."""
        table = self._table
        with contextlib.suppress(OSError):
            if entry is None or table.identify(parent.fd, name)[1] == entry.path:
                remove()
        if entry is not None:
            table.drop(entry)
