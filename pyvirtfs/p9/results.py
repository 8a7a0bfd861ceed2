"""What replies say, as the simulated guest hands it on: named tuples of plain values, in wire order."""

from __future__ import annotations

from typing import NamedTuple

from pyvirtfs.p9 import constants as c


class Version(NamedTuple):
    """What a session was negotiated to be (version(5))."""

    msize: int
    version: bytes


class Qid(NamedTuple):
    """What identifies an object (intro(5))."""

    type: int
    version: int
    path: int

    @property
    def is_directory(self) -> bool:
        """Whether it says that the object is a folder."""
        return bool(self.type & c.QTDIR)

    @property
    def is_symlink(self) -> bool:
        """Whether it says that the object is a symbolic link."""
        return bool(self.type & c.QTSYMLINK)


class Opened(NamedTuple):
    """The answer to a Tlopen or Tlcreate."""

    qid: Qid
    iounit: int
    """The most bytes for one Tread or Twrite; 0: as many as msize allows."""


class Attributes(NamedTuple):
    """The answer to a Tgetattr."""

    valid: int
    """GETATTR_* bits: which of the others mean anything."""
    qid: Qid
    mode: int
    """Type and permission bits, as in st_mode."""
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    """Bytes."""
    blksize: int
    blocks: int
    """Units of 512 bytes."""
    atime_sec: int
    atime_nsec: int
    mtime_sec: int
    mtime_nsec: int
    ctime_sec: int
    ctime_nsec: int
    btime_sec: int
    btime_nsec: int
    gen: int
    data_version: int

    @property
    def atime_ns(self) -> int:
        """Last access, nanoseconds since 1970."""
        return self.atime_sec * 10**9 + self.atime_nsec

    @property
    def mtime_ns(self) -> int:
        """Last change of the content, nanoseconds since 1970."""
        return self.mtime_sec * 10**9 + self.mtime_nsec

    @property
    def ctime_ns(self) -> int:
        """Last change of anything, nanoseconds since 1970."""
        return self.ctime_sec * 10**9 + self.ctime_nsec


class FileSystem(NamedTuple):
    """The answer to a Tstatfs; block counts in units of `bsize`."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int


class DirectoryEntry(NamedTuple):
    """One entry of a folder."""

    qid: Qid
    offset: int
    """Where a listing goes on behind this entry."""
    type: int
    """DT_*."""
    name: bytes


class LockRange(NamedTuple):
    """A byte-range lock: what a Tgetlock asks about and is answered with."""

    type: int
    """LOCK_TYPE_*."""
    start: int
    length: int
    """Bytes; 0: to the end of the file, however far that grows."""
    proc_id: int
    client_id: bytes
