"""The memory driver's operations on open files: open, create, read, write, list."""

from __future__ import annotations

import errno
import os
import stat
import time
from itertools import islice
from typing import Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, EntryFields, Qid
from pyvirtfs.fsdev.ram.core import MemoryCore, MemoryFile, fail
from pyvirtfs.fsdev.ram.inodes import Inode, Link
from pyvirtfs.memory.buffers import Buffers

_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_END: Final = 1 << 63
_BATCH: Final = 1024
"""Entries."""
_DAY: Final = 86_400_000_000_000
"""In ns; an access time may be as old if nothing was written since (relatime of mount(8))."""
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
            link = self._place(directory.inode, name, self._new_inode(stat.S_IFREG | mode & 0o7777, uid, gid))
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
            fail(errno.EISDIR)
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            fail(errno.EBADF)
        if offset >= _END:
            fail(errno.EINVAL)
        if inode.atime <= inode.mtime or inode.atime + _DAY < time.time_ns():
            self._accessed(file)
        return content.read(offset, buffers)

    def _accessed(self, file: MemoryFile) -> None:
        if not (self.readonly or file.flags & os.O_NOATIME):
            file.inode.atime = time.time_ns()

    def write(self, file: MemoryFile, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.write`; the bytes go from `buffers` into the file's memory."""
        inode = file.inode
        content = inode.content
        if content is None or not file.flags & os.O_ACCMODE:
            fail(errno.EBADF)
        if not buffers.nbytes:
            return 0
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
