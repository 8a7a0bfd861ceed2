"""The memory driver's operations on attributes and locks."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from pyvirtfs.fsdev.driver import NOW, Attributes, Lock, LockHolder, Qid, SetAttributes, StatFs
from pyvirtfs.fsdev.ram.content import MAX_SIZE
from pyvirtfs.fsdev.ram.core import NAME_MAX, MemoryCore, fail
from pyvirtfs.fsdev.ram.inodes import Inode, Link
from pyvirtfs.fsdev.ram.space import PAGE

_TMPFS_MAGIC: Final = 0x01021994
_USER: Final = b"user."
_XATTR_NAME_MAX: Final = 255
_XATTR_SIZE_MAX: Final = 65536
_XATTR_LIST_MAX: Final = 65536
_XATTR_NBYTES: Final = 200
"""What one takes in this process's memory besides its name and its value, roughly."""
_NANOSECONDS: Final = 1_000_000_000
_INT64: Final = 1 << 63
_NOTHING: Final = (None,) * 6
_WITH_XATTRS: Final = frozenset({stat.S_IFREG, stat.S_IFDIR})


def _check_time(nanoseconds: int | None) -> None:
    """EINVAL for a time that a struct timespec cannot hold, before anything is changed."""
    if nanoseconds is not None and not -_INT64 <= nanoseconds // _NANOSECONDS < _INT64:
        fail(errno.EINVAL)


class MemoryAttributes(MemoryCore):
    """Attributes, the file system's figures, extended attributes, locks."""

    def getattr(self, node: Link) -> tuple[Qid, Attributes]:
        """See `ExportDriver.getattr`."""
        inode = node.inode
        return inode.qid, inode.attributes(self._device)

    def setattr(self, node: Link, changes: SetAttributes, uid: int) -> None:
        """See `ExportDriver.setattr`; ELOOP for the mode of a symbolic link."""
        self._check_writable()
        inode = node.inode
        mode, owner, group, size, atime, mtime, touch = changes
        if mode is not None and inode.kind == stat.S_IFLNK:
            fail(errno.ELOOP)
        _check_time(atime)
        _check_time(mtime)
        if size is not None:
            if inode.content is None:
                fail(errno.EISDIR if inode.folder is not None else errno.EINVAL)
            if not 0 <= size <= MAX_SIZE:
                fail(errno.EFBIG)
        if changes[:6] == _NOTHING and not touch:
            return
        now = time.time_ns()
        if mode is not None:
            inode.mode = stat.S_IMODE(mode)
        if atime is not None:
            inode.atime = now if atime == NOW else atime
        if mtime is not None:
            inode.mtime = now if mtime == NOW else mtime
        if owner is not None or group is not None:
            inode.uid = inode.uid if owner is None else owner
            inode.gid = inode.gid if group is None else group
            inode.clear_set_ids()
        inode.ctime = now
        if size is not None and inode.content is not None:
            inode.content.truncate(size)
            inode.changed()
            if uid:
                inode.clear_set_ids()

    def statfs(self, node: Link) -> StatFs:
        """See `ExportDriver.statfs`."""
        del node
        space = self._space
        return StatFs(
            type=_TMPFS_MAGIC, bsize=PAGE, blocks=space.pages, bfree=space.free, bavail=space.free,
            files=space.names, ffree=space.free_names, fsid=self._fsid, namelen=NAME_MAX,
        )  # fmt: skip

    # --- extended attributes ---

    @staticmethod
    def _check_xattr(inode: Inode, name: bytes, other_kind: int, flags: int = 0, nbytes: int = 0) -> None:
        """What xattr(7) says of names, user attributes of files and folders, and of the rest, in Linux's order."""
        if not name.startswith(_USER) or b"\0" in name:
            fail(errno.EOPNOTSUPP)
        if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
            fail(errno.EINVAL)
        if len(name) > _XATTR_NAME_MAX:
            fail(errno.ERANGE)
        if nbytes > _XATTR_SIZE_MAX:
            fail(errno.E2BIG)
        if inode.kind not in _WITH_XATTRS:
            fail(other_kind)
        if name == _USER:
            fail(errno.EINVAL)

    def getxattr(self, node: Link, name: bytes) -> bytes:
        """See `ExportDriver.getxattr`; EOPNOTSUPP for names that do not begin with ``user.``."""
        inode = node.inode
        self._check_xattr(inode, name, errno.ENODATA)
        value = inode.xattrs.get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    def listxattr(self, node: Link) -> bytes:
        """See `ExportDriver.listxattr`."""
        return b"".join(name + b"\0" for name in node.inode.xattrs)

    def setxattr(self, node: Link, name: bytes, value: bytes, flags: int, uid: int) -> None:
        """See `ExportDriver.setxattr`; ENOSPC if the export or the list of names is full."""
        del uid
        self._check_writable()
        inode = node.inode
        self._check_xattr(inode, name, errno.EPERM, flags, len(value))
        known = inode.xattrs
        if name in known and flags & os.XATTR_CREATE:
            fail(errno.EEXIST)
        if name not in known:
            if flags & os.XATTR_REPLACE:
                fail(errno.ENODATA)
            if sum(map(len, known)) + len(known) + len(name) + 1 > _XATTR_LIST_MAX:
                fail(errno.ENOSPC)
        self._set_xattrs(inode, {**known, name: bytes(value)})

    def removexattr(self, node: Link, name: bytes, uid: int) -> None:
        """See `ExportDriver.removexattr`."""
        del uid
        self._check_writable()
        inode = node.inode
        self._check_xattr(inode, name, errno.EPERM)
        if name not in inode.xattrs:
            fail(errno.ENODATA)
        self._set_xattrs(inode, {other: value for other, value in inode.xattrs.items() if other != name})

    @staticmethod
    def _set_xattrs(inode: Inode, xattrs: dict[bytes, bytes]) -> None:
        """Let these be the extended attributes of an object. Raises OSError: ENOSPC, and nothing has changed."""
        inode.set_extra(
            len(inode.target) + sum(_XATTR_NBYTES + len(name) + len(value) for name, value in xattrs.items())
        )
        inode.xattrs = xattrs
        inode.ctime = time.time_ns()

    # --- locks ---

    def lock(self, node: Link, lock: Lock, holder: LockHolder) -> bool:
        """See `ExportDriver.lock`."""
        return self._locks.lock(node.inode.number, lock, holder)

    def unlock(self, node: Link, lock: Lock, holder: LockHolder) -> None:
        """See `ExportDriver.unlock`."""
        self._locks.unlock(node.inode.number, lock, holder)

    def getlock(self, node: Link, lock: Lock, holder: LockHolder) -> Lock | None:
        """See `ExportDriver.getlock`."""
        return self._locks.conflict(node.inode.number, lock, holder)

    def release_locks(self, node: Link, holder: LockHolder) -> int:
        """See `ExportDriver.release_locks`."""
        return len(self._locks.release(node.inode.number, holder))
