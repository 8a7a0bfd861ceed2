"""The interface between the 9P server and an export: one method per operation on a tree of files.

A driver deals in *handles*, never in path strings: a **node** stands for an object found by `attach` or `walk`, a
**file** for an opened one. Both are whatever the driver wants them to be; the server only stores them and hands them
back.

Contract, for every method:

* It returns its value, or a `Completion` that gets the value later (`docs` of `pyvirtfs.fsdev.completion`).
  `release`, `release_locks` and `close` always answer at once.
* It raises `OSError` with a Linux errno, and nothing else, for anything that the guest should see as a failed request.
  A method that raises has changed nothing.
* Names are bytes, already checked by the server: not empty, no slash, no NUL. ``.`` and ``..`` only ever reach `walk`.
* `uid` is the numeric user of the guest's attach (0xFFFFFFFF if it named none), `gid` the group that a request carries.
* All calls of one session come from one thread, one at a time.

The semantics of the operations are those of the Linux system calls that they are named after.
"""

# ruff: noqa: ARG002  (what a driver need not offer has a default body that uses no argument)

from __future__ import annotations

import abc
import errno
import os
from typing import TYPE_CHECKING, Generic, NamedTuple, Never, TypeAlias, TypeVar

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.syscalls import NOW, StatFs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvirtfs.fsdev.throttling import Throttle
    from pyvirtfs.memory.buffers import Buffers

__all__ = [
    "NONUNAME",
    "NOW",
    "QID_DIRECTORY",
    "QID_FILE",
    "QID_SYMLINK",
    "Answer",
    "Attributes",
    "DirectoryEntry",
    "EntryFields",
    "ExportDriver",
    "Lock",
    "LockHolder",
    "Qid",
    "SetAttributes",
    "StatFs",
    "Walk",
]

T = TypeVar("T")
NodeT = TypeVar("NodeT")
FileT = TypeVar("FileT")

Answer: TypeAlias = T | Completion[T]

NONUNAME = 0xFFFFFFFF
"""The uid of an attach that named no numeric user."""


class Qid(NamedTuple):
    """What identifies an object, as 9P defines it."""

    type: int
    """0x80 folder, 0x02 symbolic link, 0 anything else."""
    version: int
    """Changes whenever the content does; 32 bits; never 0, which would turn the guest's cache off."""
    path: int
    """Unique among the objects of the export for as long as it lives; 64 bits."""


QID_DIRECTORY = 0x80
QID_SYMLINK = 0x02
QID_FILE = 0x00


class Attributes(NamedTuple):
    """What statx(2) tells of an object, in the order of struct statx (so that a `struct` unpacks straight into it)."""

    nlink: int
    uid: int
    gid: int
    mode: int
    """Type and permission bits, as in st_mode."""
    ino: int
    size: int
    """Bytes. Of a regular file, where reading it ends: a guest that caches reads no further."""
    blocks: int
    """Units of 512 bytes."""
    atime_sec: int
    atime_nsec: int
    btime_sec: int
    btime_nsec: int
    ctime_sec: int
    ctime_nsec: int
    mtime_sec: int
    mtime_nsec: int
    rdev_major: int
    rdev_minor: int
    dev_major: int
    dev_minor: int


class Walk(NamedTuple, Generic[NodeT]):
    """The answer of `ExportDriver.walk`."""

    qids: Sequence[Qid]
    """One for each name that was found, in order."""
    node: NodeT | None
    """The object at the end; None if not all names were found."""


class SetAttributes(NamedTuple):
    """What `ExportDriver.setattr` changes; None leaves a field alone."""

    mode: int | None = None
    """Permission bits, at most 07777."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    """Nanoseconds since the epoch, or `NOW` for the server's current time."""
    mtime_ns: int | None = None
    touch_ctime: bool = False
    """Bump the change time even if nothing else changes (chown to -1, -1)."""


class DirectoryEntry(NamedTuple):
    """One entry of a folder."""

    qid: Qid
    """Its version may be 0: nobody has looked at the object, and no client looks at the version here."""
    cookie: int
    """Opaque, 1 to 2**63 - 1; where a listing goes on behind this entry.

    Valid while the folder is open, also when entries vanish. Linux guests keep it as a signed number of 64 bits.
    """
    type: int
    """DT_* of dirent.h."""
    name: bytes


EntryFields: TypeAlias = tuple[tuple[int, int, int], int, int, bytes]
"""A `DirectoryEntry` or a plain tuple of the same fields, its qid plain too: folders are large."""


class Lock(NamedTuple):
    """A byte-range lock as fcntl(2) knows it."""

    exclusive: bool
    start: int
    end: int | None
    """First byte behind the range; None: to the end of the file, however far that grows."""
    proc_id: int
    client_id: bytes
    wait: bool = False
    """Whether who asks for it would wait for it: the answer may take a moment, but not as long as somebody holds it."""


class LockHolder:
    """The fid through which locks are asked for: identity only. Clunking the fid releases all that it holds.

    Args:
        session: Part of a lock's owner: equal (client_id, proc_id) pairs of two guests are different owners. Hashable.
        limit: How many ranges the whole session may hold; the driver, which counts them, raises ENOLCK beyond. None: as
            many as the driver allows.
    """

    __slots__ = ("limit", "session")

    def __init__(self, session: object, limit: int | None = None) -> None:
        self.session = session
        self.limit = limit


def _not_supported() -> Never:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class ExportDriver(abc.ABC, Generic[NodeT, FileT]):
    """An export: a tree of files that a server offers.

    A driver that only offers files to read has ten methods to write, the abstract ones. What the others do is not
    supported then (EOPNOTSUPP), or there is nothing to do: no links to read, no extended attributes, nothing to sync.
    """

    readonly: bool = False
    """The server refuses every modifying request with EROFS before it reaches the driver."""

    throttle: Throttle | None = None
    """The server lets reads and writes of files wait for it before they reach the driver; None: it does not.

    Set before the first session; all sessions of the export share it.
    """

    # --- answers that wait for a time ---

    def next_deadline(self) -> float | None:
        """When `run_pending` is to be called even if nothing happens, on the clock of time.monotonic(); None: never."""
        return None

    def run_pending(self) -> None:
        """Complete what is not to wait any longer."""

    # --- life ---

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything, also what guests left behind. Idempotent."""

    # --- names ---

    @abc.abstractmethod
    def attach(self, aname: bytes, uid: int) -> Answer[tuple[NodeT, Qid]]:
        """A new node for the root (aname is empty or what the guest asked for)."""

    @abc.abstractmethod
    def walk(self, node: NodeT, names: Sequence[bytes]) -> Answer[Walk[NodeT]]:
        """Resolve up to 16 names from `node`, following no symbolic link; no names: another node for the same object.

        ``..`` at the root stays there. A failure at the first name raises; at a later name the answer holds the qids of
        those before it and no node. The old node stays valid.
        """

    @abc.abstractmethod
    def release(self, node: NodeT) -> None:
        """The server is done with a node. Never fails."""

    def mkdir(self, directory: NodeT, name: bytes, mode: int, uid: int, gid: int) -> Answer[Qid]:
        """Create a folder with exactly this mode (at most 07777), whatever the process's umask."""
        _not_supported()

    def symlink(self, directory: NodeT, name: bytes, target: bytes, uid: int, gid: int) -> Answer[Qid]:
        """Create a symbolic link; the target is never interpreted."""
        _not_supported()

    def mknod(
        self, directory: NodeT, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int
    ) -> Answer[Qid]:
        """Create a file, fifo, socket or device; `mode` holds S_IF type and permission bits."""
        _not_supported()

    def link(self, directory: NodeT, node: NodeT, name: bytes) -> Answer[None]:
        """Another name for an object."""
        _not_supported()

    def readlink(self, node: NodeT) -> Answer[bytes]:
        """The target of a symbolic link; EINVAL for anything else."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def rename(self, node: NodeT, directory: NodeT, name: bytes) -> Answer[None]:
        """Give the object of `node` another place (Trename). ESTALE if it is not where the node was found any more."""
        _not_supported()

    def renameat(self, old_directory: NodeT, old_name: bytes, directory: NodeT, name: bytes) -> Answer[None]:
        """rename(2) below two folders. Nodes of the object, and of what is below it, follow."""
        _not_supported()

    def unlinkat(self, directory: NodeT, name: bytes, *, folder: bool) -> Answer[None]:
        """unlink(2), or rmdir(2) if `folder`. Nodes and files of the object stay usable."""
        _not_supported()

    def remove(self, node: NodeT) -> Answer[None]:
        """Remove the name under which the node was found, file or empty folder (Tremove). ESTALE as `rename`."""
        _not_supported()

    def place(self, node: NodeT) -> Answer[tuple[NodeT | None, bytes]]:
        """Where an object is: a new node for the folder that the node was found in, and its name there, as of now.

        For the dialects whose stat holds a name, and whose rename names no folder (stat(5)). The root is in itself, by
        the name ``/``. No node and an empty name: the driver does not know.
        """
        return None, b""

    # --- attributes ---

    @abc.abstractmethod
    def getattr(self, node: NodeT) -> Answer[tuple[Qid, Attributes]]:
        """Never follows a symbolic link; works on unlinked objects."""

    def setattr(self, node: NodeT, changes: SetAttributes, uid: int) -> Answer[None]:
        """Apply in the order mode, times, owner, size; works on unlinked objects."""
        _not_supported()

    @abc.abstractmethod
    def statfs(self, node: NodeT) -> Answer[StatFs]:
        """The file system that the object lives on; the `fsid` is stable and not 0.

        Asked at every attach for the block size; a driver that answers that later has 4096 assumed.
        """

    def getxattr(self, node: NodeT, name: bytes) -> Answer[bytes]:
        """ENODATA if there is no such attribute."""
        _not_supported()

    def listxattr(self, node: NodeT) -> Answer[bytes]:
        """The names, each followed by a NUL."""
        return b""

    def setxattr(self, node: NodeT, name: bytes, value: bytes, flags: int, uid: int) -> Answer[None]:
        """`flags`: os.XATTR_CREATE, os.XATTR_REPLACE, or 0.

        An empty value is a value; for a POSIX ACL it means none, which Linux guests send too (as setxattr(2) takes it).
        """
        _not_supported()

    def removexattr(self, node: NodeT, name: bytes, uid: int) -> Answer[None]:
        """ENODATA if there is no such attribute."""
        _not_supported()

    # --- open files ---

    @abc.abstractmethod
    def open(self, node: NodeT, flags: int, uid: int) -> Answer[tuple[FileT, Qid]]:
        """Open a regular file or a folder, never anything else (ENXIO); `flags` are os.O_*, without O_CREAT."""

    def create(
        self, directory: NodeT, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> Answer[tuple[NodeT, FileT, Qid]]:
        """Create and open a regular file with exactly this mode; without O_EXCL an existing regular file is opened.

        The answer holds a new node; `directory` stays valid.
        """
        _not_supported()

    @abc.abstractmethod
    def close_file(self, file: FileT) -> Answer[None]:
        """Close an open file. It is gone afterwards even if this raises OSError.

        A guest that clunks the file's fid waits for an answer that comes later, and is told its error. Where a session
        ends nobody waits, and an error is only logged. The server may give the node back before the answer.
        """

    @abc.abstractmethod
    def read(self, file: FileT, offset: int, buffers: Buffers) -> Answer[int]:
        """Fill `buffers` from byte `offset`; returns the bytes read, fewer than asked only at the end of the file."""

    def write(self, file: FileT, offset: int, buffers: Buffers) -> Answer[int]:
        """Write `buffers` at byte `offset`; returns the bytes written, which may be fewer than asked."""
        _not_supported()

    def fsync(self, file: FileT, *, datasync: bool) -> Answer[None]:
        """Have what is cached written to the disk; with `datasync` as fdatasync(2) does it."""

    @abc.abstractmethod
    def readdir(self, file: FileT, cookie: int) -> Answer[Sequence[EntryFields]]:
        """A batch of entries behind `cookie` (0: from the start), ``.`` and ``..`` among them; empty at the end.

        An entry is a `DirectoryEntry` or a plain tuple of the same fields. The server takes what fits and asks again
        with the cookie of the last entry that it took. One batch becomes one reply at most, so large ones save round
        trips.
        """

    # --- locks ---

    def lock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[bool]:
        """Take a lock if nobody else holds a conflicting one. False: it is held by another owner.

        The driver does not wait for another session, or a program of the host, to release one.
        """
        _not_supported()

    def unlock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[None]:
        """Release a range (`lock.exclusive` has no meaning); a range not held is no error."""
        _not_supported()

    def getlock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[Lock | None]:
        """The lock that stands in the way of `lock`, or None."""
        _not_supported()

    def release_locks(self, node: NodeT, holder: LockHolder) -> int:
        """Release all locks taken through `holder` on the node's object; returns how many ranges that were."""
        return 0
