"""The local driver's operations that make objects: create, mkdir, symlink, mknod.

Every object gets exactly the mode that was asked for, whatever the umask of the process, which a library must not
change: it is created with at most that mode, then gets its owner, then (chown(2) clears set-id bits) the rest of its
mode. If one of these steps fails, the object is removed again.

A regular file is settled through the descriptor that created it. For all else Linux gives no descriptor, only a name,
and between the making and the looking a program of the host, or another guest with the same export, can put something
else there, which must not be given away. So such an object is made without any permission, and settled only if what is
found has no permission and nothing else that a fresh one could not have (`_is_fresh`); otherwise it is left as it is
(ESTALE). What can still be taken for it: an object of this process's user, without permissions, content and other
names, born a second ago at most; and, where the file system makes up owners and modes (`_MADE_UP`), an object of any
mode that was put there within a second of its birth, or at any time where births are not told either.

Removing works by name only, too: what is put there between the last look and unlinkat(2) is removed; never a folder
that holds something.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from pyvirtfs.fsdev.driver import Attributes, Qid
from pyvirtfs.fsdev.entries import PATH_FLAGS, WRITE_STEP, Entry, Node
from pyvirtfs.fsdev.local_core import LocalFile, fail
from pyvirtfs.fsdev.local_files import FILE_FLAGS, LocalFiles
from pyvirtfs.fsdev.set_ids import GROUP_RUNS, without_group_privilege
from pyvirtfs.syscalls import fstatfs, reopen

_PERMISSIONS: Final = 0o777
_MODE: Final = 0o7777
_CREATE_FLAGS: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_ATTEMPTS: Final = 16
"""How often a file may vanish or appear between two looks at it before `create` gives up."""
_LONGEST_TARGET: Final = 4095
_MAX_MAJOR: Final = 0xFFF
_MAX_MINOR: Final = 0xFFFFF
_SPECIAL: Final = frozenset({stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_MADE_UP: Final = frozenset(
    {0x4D44, 0x2011BAB0, 0x5346544E, 0x7366746E, 0xFF534D42, 0xFE534D42, 0x517B, 0x6969, 0x01021997, 0x65735546}
)
"""FAT, exFAT, NTFS (two drivers), CIFS, SMB2, SMB, NFS, 9P, FUSE: statfs(2) types where a fresh object may have another
owner than the process, or another mode than was asked for."""
_SETTLING_NS: Final = 1_000_000_000
"""Nanoseconds between the birth of an object and its first change, for the labels that Linux gives it at once."""


class LocalCreate(LocalFiles):
    """Create, mkdir, symlink, mknod."""

    def create(
        self, directory: Node, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Node, LocalFile, Qid]:
        """See `ExportDriver.create`; ELOOP, EISDIR or ENXIO if there is something else than a regular file."""
        self._check_writable(name)
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
        table.check_room(2)
        if uid and mode & GROUP_RUNS == GROUP_RUNS:
            mode = self._without_group_privilege(parent, mode)
        host_mode = mode & _PERMISSIONS if self._file_mode is None else self._file_mode
        fd = os.open(name, flags & FILE_FLAGS & ~os.O_TRUNC | _CREATE_FLAGS, host_mode, dir_fd=parent.fd)
        entry: Entry | None = None
        try:
            entry, qid = table.adopt(reopen(fd, os.O_PATH | os.O_CLOEXEC))
            if self._settle(entry, table.last_stat(), stat.S_IFREG | mode & _MODE, uid, gid, parent, name):
                qid = table.qid(entry)
        except OSError:
            self._undo_file(parent, name, fd, entry)
            os.close(fd)
            raise
        parent.writes += WRITE_STEP
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
        self._check_writable(name)
        self._table.check_room(1)
        os.mkdir(name, 0, dir_fd=directory.entry.fd)
        return self._finish(directory.entry, name, stat.S_IFDIR | mode & _MODE, uid, gid)

    def symlink(self, directory: Node, name: bytes, target: bytes, uid: int, gid: int) -> Qid:
        """See `ExportDriver.symlink`."""
        self._check_writable(name)
        if b"\0" in target:
            fail(errno.EINVAL)
        self._table.check_room(1)
        if self._model.mapped:
            if not 0 < len(target) <= _LONGEST_TARGET:
                fail(errno.ENAMETOOLONG if target else errno.ENOENT)
            return self._make_file(directory.entry, name, stat.S_IFLNK | _PERMISSIONS, uid, gid, target)
        os.symlink(target, name, dir_fd=directory.entry.fd)
        return self._finish(directory.entry, name, stat.S_IFLNK | _PERMISSIONS, uid, gid, target)

    def mknod(self, directory: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Qid:
        """See `ExportDriver.mknod`; a mode without a type means a regular file, and a folder is EPERM."""
        self._check_writable(name)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        device = 0
        self._table.check_room(1)
        if kind in {stat.S_IFCHR, stat.S_IFBLK}:
            if not self._device_nodes:
                fail(errno.EPERM)
            if major > _MAX_MAJOR or minor > _MAX_MINOR:
                fail(errno.EINVAL)
            device = os.makedev(major, minor)
        if uid and mode & GROUP_RUNS == GROUP_RUNS:
            mode = self._without_group_privilege(directory.entry, mode)
        if kind == stat.S_IFREG or (kind in _SPECIAL and self._model.mapped):
            return self._make_file(directory.entry, name, kind | mode & _MODE, uid, gid, device=device)
        if kind not in _SPECIAL:
            fail(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        os.mknod(name, kind, device, dir_fd=directory.entry.fd)
        return self._finish(directory.entry, name, kind | mode & _MODE, uid, gid, device=device)

    def _without_group_privilege(self, parent: Entry, mode: int) -> int:
        """See `without_group_privilege`, of the modes that the guest sees."""
        fields = self._table.stat(parent.fd)
        presented = fields if self._presenter is None else self._presenter(parent, fields)
        return without_group_privilege(mode, presented.mode)

    # --- the steps behind the creation ---

    def _make_file(
        self, parent: Entry, name: bytes, mode: int, uid: int, gid: int, content: bytes = b"", device: int = 0
    ) -> Qid:
        """Make what is a regular file on the host, whatever its mode says that it is for the guest."""
        host_mode = mode & _PERMISSIONS if self._file_mode is None else self._file_mode
        fd = os.open(name, os.O_WRONLY | _CREATE_FLAGS, host_mode, dir_fd=parent.fd)
        try:
            return self._finish(parent, name, mode, uid, gid, content, device, fd)
        finally:
            os.close(fd)

    def _finish(
        self,
        parent: Entry,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        target: bytes = b"",
        device: int = 0,
        fd: int = -1,
    ) -> Qid:
        """Find the object that was just made, by `fd` or else by name, and give it its owner and its mode.

        Args:
            parent: The folder that it was made in.
            name: Its name there.
            mode: What it is for the guest.
            uid: Its owner.
            gid: Its group.
            target: The target of a symbolic link.
            device: What kind of device it is, if it is one.
            fd: It is a regular file on the host, and this its descriptor.
        """
        table = self._table
        kind = stat.S_IFMT(mode)
        entry: Entry | None = None
        fresh = False
        try:
            found = os.open(name, PATH_FLAGS, dir_fd=parent.fd) if fd < 0 else reopen(fd, os.O_PATH | os.O_CLOEXEC)
            entry, qid = table.adopt(found)
            now = table.last_stat()
            if fd >= 0:
                fresh = table.identify(parent.fd, name)[1] == entry.path
                if target and fresh and os.write(fd, target) != len(target):
                    fail(errno.ENOSPC)
            else:
                fresh = self._is_fresh(now, parent, kind, device) and (
                    kind != stat.S_IFLNK or os.readlink(b"", dir_fd=entry.fd) == target
                )
            if not fresh:  # somebody on the host was faster: leave that alone
                fail(errno.ESTALE)
            if self._settle(entry, now, mode, uid, gid, parent, name, device):
                qid = table.qid(entry)
        except OSError:
            with contextlib.suppress(OSError):
                if fd >= 0:
                    fresh = table.identify(parent.fd, name) == table.identify(fd)
                elif entry is None:
                    fresh = self._is_fresh(table.stat(parent.fd, name), parent, kind, device)
                elif fresh:
                    fresh = table.identify(parent.fd, name)[1] == entry.path
                if fresh:
                    self._model.discard(parent, name, folder=kind == stat.S_IFDIR)
            if entry is not None:
                table.drop(entry)
            raise
        parent.writes += WRITE_STEP
        table.drop(entry)
        return qid

    def _is_fresh(self, found: Attributes, parent: Entry, kind: int, device: int) -> bool:
        """Whether an object can be the one that this process has just made without permissions."""
        if stat.S_IFMT(found.mode) != kind or os.makedev(found.rdev_major, found.rdev_minor) != device:
            return False
        if found.nlink > (2 if kind == stat.S_IFDIR else 1):  # it has other names, or folders in it
            return False
        if found.btime_sec:  # moving, linking, changing it, for a folder putting something there: all leave a mark
            changed = max(
                found.ctime_sec * 1_000_000_000 + found.ctime_nsec, found.mtime_sec * 1_000_000_000 + found.mtime_nsec
            )
            if changed - found.btime_sec * 1_000_000_000 - found.btime_nsec > _SETTLING_NS:
                return False
        if (
            (kind == stat.S_IFLNK or not found.mode & (0o1777 if kind == stat.S_IFDIR else _MODE))
            and found.uid == os.geteuid()
            and (found.gid == os.getegid() or found.gid == self._table.stat(parent.fd).gid)
        ):
            return True
        return fstatfs(parent.fd).type in _MADE_UP

    def _undo_file(self, parent: Entry, name: bytes, fd: int, entry: Entry | None) -> None:
        """Remove a regular file that could not be finished, unless the name means something else meanwhile."""
        table = self._table
        with contextlib.suppress(OSError):
            path = entry.path if entry is not None else table.identify(fd)[1]
            if table.identify(parent.fd, name)[1] == path:
                self._model.discard(parent, name, folder=False)
        if entry is not None:
            table.drop(entry)
