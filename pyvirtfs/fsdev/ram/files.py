"""The memory driver's operations on open files: open, create, read, write, list."""

from __future__ import annotations

import errno
import os
import stat
import time
from itertools import islice
from typing import Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, EntryFields, Qid
from pyvirtfs.fsdev.ram.content import MAX_SIZE
from pyvirtfs.fsdev.ram.core import MemoryCore, MemoryFile, fail
from pyvirtfs.fsdev.ram.inodes import Inode, Link
from pyvirtfs.fsdev.set_ids import without_group_privilege
from pyvirtfs.memory.buffers import Buffers

_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_READING: Final = frozenset({os.O_RDONLY, os.O_RDWR})
_WRITING: Final = frozenset({os.O_WRONLY, os.O_RDWR})
"""Of the access modes. The fourth, O_WRONLY | O_RDWR, is for ioctl(2) only (open(2))."""
_BATCH: Final = 1024
"""Entries."""
_DAY: Final = 86_400_000_000_000
"""In ns; an access time may be as old if nothing was changed since."""
_DT_DIR: Final = 4


class MemoryFiles(MemoryCore):
    """Open, create, read, write, list."""

    def open(self, node: Link, flags: int, uid: int) -> tuple[MemoryFile, Qid]:
        """See `ExportDriver.open`."""
        inode = node.inode
        if inode.content is not None:
            if flags & os.O_DIRECTORY:
                fail(errno.ENOTDIR)
            if flags & _WRITE_FLAGS and self.readonly:
                fail(errno.EROFS)
        elif inode.folder is None:
            fail(errno.ENXIO)
        return self._open(inode, flags, uid), inode.qid

    def _open(self, inode: Inode, flags: int, uid: int) -> MemoryFile:
        if flags & os.O_TRUNC and inode.content is not None:
            inode.content.truncate(0)
            inode.changed()
            if uid:
                inode.clear_set_ids()
        inode.refs += 1
        return MemoryFile(inode, flags, clears_set_ids=uid != 0)

    def create(
        self, directory: Link, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> tuple[Link, MemoryFile, Qid]:
        """See `ExportDriver.create`; ELOOP, EISDIR or ENXIO if there is something else than a regular file."""
        self._check_writable()
        link = self._look_up(directory.inode, name)
        if link is None:
            mode = stat.S_IFREG | mode & 0o7777
            if uid:
                mode = without_group_privilege(mode, directory.inode.mode)
            link = self._place(directory.inode, name, self._new_inode(mode, uid, gid))
            flags &= ~os.O_TRUNC  # nothing to cut off, so it keeps its set-id bits
        else:
            if flags & os.O_EXCL:
                fail(errno.EEXIST)
            kind = link.inode.kind
            if kind != stat.S_IFREG:
                fail({stat.S_IFLNK: errno.ELOOP, stat.S_IFDIR: errno.EISDIR}.get(kind, errno.ENXIO))
        inode = link.inode
        file = self._open(inode, flags, uid)
        inode.refs += 1
        return link, file, inode.qid

    def close_file(self, file: MemoryFile) -> None:
        """See `ExportDriver.close_file`."""
        if file.is_open:
            file.is_open = False
            file.inode.drop()

    def read(self, file: MemoryFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.read`; the bytes go from the file's memory into `buffers`."""
        inode = file.inode
        content = inode.content
        if content is None:
            fail(errno.EISDIR if offset + buffers.nbytes <= MAX_SIZE else errno.EINVAL)
        if file.flags & os.O_ACCMODE not in _READING:
            fail(errno.EBADF)
        if offset + buffers.nbytes > MAX_SIZE:
            fail(errno.EINVAL)
        self._accessed(file)
        return content.read(offset, buffers)

    def _accessed(self, file: MemoryFile) -> None:
        """Note the time, unless it was noted since the last change (relatime of mount(8))."""
        inode = file.inode
        atime, now = inode.atime, time.time_ns()
        if atime > inode.mtime and atime > inode.ctime and atime + _DAY > now:
            return
        if not (self.readonly or file.flags & os.O_NOATIME):
            inode.atime = now

    def write(self, file: MemoryFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.write`; the bytes go from `buffers` into the file's memory."""
        inode = file.inode
        content = inode.content
        if content is None or file.flags & os.O_ACCMODE not in _WRITING:
            fail(errno.EBADF)
        nbytes = buffers.nbytes
        if not nbytes:
            return 0
        if offset + nbytes > MAX_SIZE:
            fail(errno.EINVAL if offset <= MAX_SIZE else errno.EFBIG)  # as pwritev(2), and `Buffers.pwritev`
        done = content.write(content.size if file.flags & os.O_APPEND else offset, buffers)
        inode.changed()
        if file.clears_set_ids:
            inode.clear_set_ids()
        return done

    def readdir(self, file: MemoryFile, cookie: int) -> list[EntryFields]:
        """See `ExportDriver.readdir`; a folder that was removed has no entries, not even dots."""
        inode = file.inode
        folder = self._entries(inode)
        if not inode.names:
            return []
        self._accessed(file)
        entries: list[EntryFields] = []
        if cookie < 1:
            entries.append(((QID_DIRECTORY, 0, inode.number), 1, _DT_DIR, b"."))
        if cookie < 2:
            above = inode.place.folder if inode.place is not None else None
            entries.append(((QID_DIRECTORY, 0, (above or inode).number), 2, _DT_DIR, b".."))
        entries += [
            (link.inode.qid, link.cookie, link.inode.kind >> 12, link.name)
            for link in islice(folder.after(cookie), _BATCH)
        ]
        return entries
