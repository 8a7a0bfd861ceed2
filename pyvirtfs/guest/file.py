"""An open file of a mount: a raw stream that the standard library's buffers and text wrappers take."""

from __future__ import annotations

import errno
import io
import os
import time
from typing import TYPE_CHECKING

from pyvirtfs.guest.dma import DmaBuffer
from pyvirtfs.guest.stat import stat_result
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.results import LockRange

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from pyvirtfs.guest.mount import Mount

LOCK_RETRY = 0.05
"""Seconds between two tries to take a lock that somebody else holds."""

CLIENT_ID = b"guest"
"""What the client calls itself in locks (Linux: its host name)."""


class GuestFile(io.RawIOBase):
    """A file that was opened with `GuestPath.open` or `GuestPath.open_raw`.

    Args:
        mount: The mount that it belongs to.
        fid: An open fid; the file owns it.
        flags: os.O_* flags that it was opened with.
        name: Its path, for messages and the `name` attribute.
        is_directory: Whether it is a folder.
    """

    def __init__(self, mount: Mount, fid: int, flags: int, name: str, *, is_directory: bool = False) -> None:
        super().__init__()
        self.mount = mount
        self.fid = fid
        self.flags = flags
        self.name = name
        self.is_directory = is_directory
        self._client = mount.session.client
        self._run = mount.session.run
        self._position = 0
        self._bounce: DmaBuffer | None = None

    def __repr__(self) -> str:
        return f"<GuestFile {self.name!r} fid={self.fid}{' closed' if self.closed else ''}>"

    # --- the raw stream ---

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; returns it. OSError (EINVAL) if that were before the start."""
        self._check_open()
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self.stat().st_size
        elif whence != os.SEEK_SET:
            raise ValueError(f"whence {whence} is none of 0, 1, 2")
        if offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._position = offset
        return offset

    def tell(self) -> int:
        """The position in bytes."""
        self._check_open()
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer from the position on, in as many messages as it takes; returns the bytes read, 0 at the end."""
        self._check_open()
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            nbytes = self.pread_into(target[done : done + self._max_io()], self._position)
            self._position += nbytes
            done += nbytes
            if nbytes == 0:
                break
        return done

    def readall(self) -> bytes:
        """Everything from the position to the end, in messages as large as they may be."""
        pieces = []
        while piece := self.read(self._max_io()):
            pieces.append(piece)
        return b"".join(pieces)

    def write(self, data: ReadableBuffer) -> int:
        """Write all of `data` at the position (or the end, in append mode); returns its length in bytes."""
        self._check_open()
        source = memoryview(data).cast("B")
        if self.flags & os.O_APPEND:
            self._position = self.stat().st_size
        done = 0
        while done < len(source):
            nbytes = self.pwrite(source[done : done + self._max_io()], self._position)
            self._position += nbytes
            done += nbytes
            if nbytes == 0:
                raise OSError(errno.EIO, "the server accepts no byte", self.name)
        return done

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file to `size` bytes, the position if None; returns the size."""
        self._check_open()
        size = self._position if size is None else size
        self._run(self._client.setattr(self.fid, size=size))
        return size

    def close(self) -> None:
        """Clunk the fid. OSError if the server fails to close the file; it is closed all the same."""
        if self.closed:
            return
        super().close()
        if self._bounce is not None:
            self.mount.free(self._bounce)
        self.mount.session.clunk(self.fid)

    # --- at an offset ---

    def pread(self, nbytes: int, offset: int) -> bytes:
        """Up to `nbytes` bytes from an offset, at most one message's worth."""
        data = bytearray(min(nbytes, self._max_io()))
        return bytes(data[: self.pread_into(memoryview(data), offset)])

    def pread_into(self, target: memoryview, offset: int) -> int:
        """One Tread from an offset into a memoryview of bytes; returns how many there were."""
        if not self.mount.is_lent(len(target)):
            data = self._run(self._client.read(self.fid, offset, len(target)))
            target[: len(data)] = data
            return len(data)
        bounce = self._bounce_buffer()
        nbytes = self.mount.session.read_lent(self.fid, offset, len(target), bounce)
        bounce.read_into(0, target[:nbytes])
        return nbytes

    def pwrite(self, source: ReadableBuffer, offset: int) -> int:
        """One Twrite at an offset; returns how many bytes it wrote, at most one message's worth."""
        source = memoryview(source).cast("B")[: self._max_io()]
        if not self.mount.is_lent(len(source)):
            return self._run(self._client.write(self.fid, offset, source))
        bounce = self._bounce_buffer()
        bounce.write(0, source)
        return self.mount.session.write_lent(self.fid, offset, len(source), bounce)

    def readinto_dma(self, buffer: DmaBuffer, nbytes: int | None = None, *, offset: int) -> int:
        """One Tread of `nbytes` (all of it if None) straight into guest RAM; nothing is copied in the guest.

        Args:
            buffer: From `Mount.allocate`; at most msize - 24 bytes are read.
            nbytes: How many bytes of the buffer.
            offset: Where in the file.
        """
        nbytes = min(buffer.nbytes if nbytes is None else nbytes, self._max_io())
        return self.mount.session.read_lent(self.fid, offset, nbytes, buffer)

    def write_dma(self, buffer: DmaBuffer, nbytes: int | None = None, *, offset: int) -> int:
        """One Twrite of `nbytes` (all of it if None) straight from guest RAM; see `readinto_dma`."""
        nbytes = min(buffer.nbytes if nbytes is None else nbytes, self._max_io())
        return self.mount.session.write_lent(self.fid, offset, nbytes, buffer)

    # --- attributes and durability ---

    def stat(self) -> os.stat_result:
        """What fstat tells; works on a file that was unlinked. Raises OSError."""
        return stat_result(self.mount.getattr(self.fid))

    def chmod(self, mode: int) -> None:
        """Change its mode, as fchmod does. Raises OSError."""
        self._run(self._client.setattr(self.fid, mode=mode))

    def fsync(self, *, datasync: bool = False) -> None:
        """Bring what was written to the disk, as fsync or fdatasync does. Raises OSError."""
        self._run(self._client.fsync(self.fid, datasync=datasync))

    # --- locks ---

    def lock(
        self, *, exclusive: bool = True, start: int = 0, length: int = 0, pid: int = 1, timeout: float | None = 0.0
    ) -> None:
        """Lock a byte range, as fcntl(2) with F_SETLK does.

        Args:
            exclusive: A write lock; otherwise a read lock, which others may hold too.
            start: First byte.
            length: Bytes; 0 for all up to the end, however far it grows.
            pid: The process that owns the lock; locks of one process never conflict.
            timeout: Seconds to wait for another owner (F_SETLKW); None for ever.

        Raises:
            BlockingIOError: EAGAIN, if another owner still holds a conflicting lock.
            OSError: ENOLCK, or what the server answers.
        """
        kind = c.LOCK_TYPE_WRLCK if exclusive else c.LOCK_TYPE_RDLCK
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self._lock(kind, start, length, pid, block=timeout != 0)) == c.LOCK_BLOCKED:
            if deadline is not None and time.monotonic() >= deadline:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), self.name)
            time.sleep(LOCK_RETRY)
        if status != c.LOCK_SUCCESS:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), self.name)

    def unlock(self, *, start: int = 0, length: int = 0, pid: int = 1) -> None:
        """Give up the locks of a process on a byte range. OSError if the server does not."""
        if self._lock(c.LOCK_TYPE_UNLCK, start, length, pid, block=False) != c.LOCK_SUCCESS:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), self.name)

    def getlock(self, *, exclusive: bool = True, start: int = 0, length: int = 0, pid: int = 1) -> LockRange | None:
        """The lock that stands in the way of this one, or None (F_GETLK). Raises OSError."""
        kind = c.LOCK_TYPE_WRLCK if exclusive else c.LOCK_TYPE_RDLCK
        found = self._run(self._client.getlock(self.fid, LockRange(kind, start, length, pid, CLIENT_ID)))
        return None if found.type == c.LOCK_TYPE_UNLCK else found

    def _lock(self, kind: int, start: int, length: int, pid: int, *, block: bool) -> int:
        lock = LockRange(kind, start, length, pid, CLIENT_ID)
        return self._run(self._client.lock(self.fid, lock, c.LOCK_FLAGS_BLOCK if block else 0))

    # --- inside ---

    def _max_io(self) -> int:
        return self.mount.session.max_io

    def _bounce_buffer(self) -> DmaBuffer:
        if self._bounce is None:
            self._bounce = self.mount.allocate(self._max_io())
        return self._bounce

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
