"""Paths of a mount, with the methods of `pathlib.Path` and those of `os` that pathlib lacks."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from functools import total_ordering
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pyvirtfs.guest.file import GuestFile
from pyvirtfs.guest.mount import split_names
from pyvirtfs.guest.stat import stat_result, statvfs_result
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.results import DirectoryEntry

if TYPE_CHECKING:
    from pyvirtfs.guest.mount import Mount
    from pyvirtfs.p9.call import Call
    from pyvirtfs.p9.client import Client

T = TypeVar("T")

_FLAGS = {
    os.O_WRONLY: c.DOTL_WRONLY,
    os.O_RDWR: c.DOTL_RDWR,
    os.O_CREAT: c.DOTL_CREATE,
    os.O_EXCL: c.DOTL_EXCL,
    os.O_NOCTTY: c.DOTL_NOCTTY,
    os.O_TRUNC: c.DOTL_TRUNC,
    os.O_APPEND: c.DOTL_APPEND,
    os.O_NONBLOCK: c.DOTL_NONBLOCK,
    os.O_DSYNC: c.DOTL_DSYNC,
    os.O_SYNC & ~os.O_DSYNC: c.DOTL_SYNC,
    os.O_DIRECT: c.DOTL_DIRECT,
    os.O_DIRECTORY: c.DOTL_DIRECTORY,
    os.O_NOFOLLOW: c.DOTL_NOFOLLOW,
    os.O_NOATIME: c.DOTL_NOATIME,
    os.O_CLOEXEC: c.DOTL_CLOEXEC,
}

_MODES = {"r": os.O_RDONLY, "w": os.O_CREAT | os.O_TRUNC, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND}


def dotl_flags(flags: int) -> int:
    """os.O_* flags as 9P2000.L spells them; LARGEFILE is always set, as on every 64-bit Linux."""
    return c.DOTL_LARGEFILE | sum(wire for host, wire in _FLAGS.items() if flags & host)


@total_ordering
class GuestPath:
    """A path on a mount; nothing is looked up until a method asks.

    Symbolic links are followed where `pathlib` follows them; absolute targets count from the mount's root. Errors are
    OSError with errno and filename.

    Args:
        mount: The mount.
        parts: Strings or bytes, with slashes between names; bytes that are no UTF-8 are surrogates in strings.
    """

    __slots__ = ("mount", "names")

    def __init__(self, mount: Mount, *parts: str | bytes) -> None:
        self.mount = mount
        self.names = tuple(name for part in parts for name in split_names(os.fsencode(part)))
        """The names on the way from the root, as bytes."""

    # --- the path itself ---

    def __truediv__(self, other: str | bytes) -> GuestPath:
        return self.joinpath(other)

    def joinpath(self, *parts: str | bytes) -> GuestPath:
        """A path below this one; a part that begins with a slash starts at the root again."""
        path = self
        for part in parts:
            raw = os.fsencode(part)
            path = path._with_names((() if raw.startswith(b"/") else path.names) + tuple(split_names(raw)))
        return path

    def _with_names(self, names: tuple[bytes, ...]) -> GuestPath:
        path = GuestPath(self.mount)
        path.names = names
        return path

    @property
    def name(self) -> str:
        """The last name; empty for the root."""
        return os.fsdecode(self.names[-1]) if self.names else ""

    @property
    def parent(self) -> GuestPath:
        """The path without its last name; the root's is the root."""
        return self._with_names(self.names[:-1])

    def with_name(self, name: str | bytes) -> GuestPath:
        """The path with another last name."""
        return self._with_names((*self.names[:-1], os.fsencode(name)))

    def __bytes__(self) -> bytes:
        return b"/" + b"/".join(self.names)

    def __str__(self) -> str:
        return os.fsdecode(bytes(self))

    def __repr__(self) -> str:
        return f"GuestPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GuestPath):
            return NotImplemented
        return self.names == other.names and self.mount.session is other.mount.session

    def __lt__(self, other: GuestPath) -> bool:
        return self.names < other.names

    def __hash__(self) -> int:
        return hash(self.names)

    # --- opening ---

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open as the built-in `open` does; text is UTF-8 unless `encoding` says otherwise. Raises OSError."""
        binary, plus = "b" in mode, "+" in mode
        base = mode.replace("b", "").replace("t", "").replace("+", "")
        if base not in _MODES or len(mode) != len(set(mode)) or {"b", "t"} <= set(mode):
            raise ValueError(f"invalid mode: {mode!r}")
        if binary and encoding is not None:
            raise ValueError("binary mode takes no encoding")
        access = os.O_RDWR if plus else os.O_RDONLY if base == "r" else os.O_WRONLY
        raw = self.open_raw(_MODES[base] | access)
        if buffering == 0:
            if not binary:
                raw.close()
                raise ValueError("text must be buffered")
            return raw  # type: ignore[return-value]  # a RawIOBase is an IO[bytes] in all but name
        size = io.DEFAULT_BUFFER_SIZE if buffering in {-1, 1} else buffering
        stream: io.BufferedRandom | io.BufferedReader | io.BufferedWriter
        if plus:
            stream = io.BufferedRandom(raw, size)
        elif base == "r":
            stream = io.BufferedReader(raw, size)
        else:
            stream = io.BufferedWriter(raw, size)
        if base == "a":
            stream.seek(0, os.SEEK_END)
        if binary:
            return stream
        return io.TextIOWrapper(stream, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)

    def open_raw(self, flags: int = os.O_RDONLY, mode: int = 0o666) -> GuestFile:
        """Open as open(2) does: os.O_* flags, the mode of a new file before the umask; folders too. Raises OSError.

        The messages are Linux's: Twalk and Tlopen for what exists, Tlcreate for what does not, a Tsetattr for O_TRUNC.
        """
        with self._naming():
            create, exclusive = bool(flags & os.O_CREAT), bool(flags & os.O_EXCL)
            fid = None
            if not (create and exclusive):
                try:
                    fid = self.mount.resolve(self.names, follow=not flags & os.O_NOFOLLOW)
                except FileNotFoundError:
                    if not create:
                        raise
            if fid is None:
                return GuestFile(self.mount, self._create(flags, mode), flags, str(self))
            try:
                self._run(self._client.lopen(fid, dotl_flags(flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))))
                if flags & os.O_TRUNC:
                    self._run(self._client.setattr(fid, size=0))
            except BaseException:
                self.mount.session.clunk(fid)
                raise
            return GuestFile(self.mount, fid, flags, str(self))

    def _create(self, flags: int, mode: int) -> int:
        fid = self.mount.resolve(self.names[:-1])
        try:
            gid, _ = self.mount.creation_gid(fid)
            bits = stat.S_IFREG | (mode & ~self.mount.umask)
            self._run(self._client.lcreate(fid, self._last(), dotl_flags(flags), bits, gid))
        except BaseException:
            self.mount.session.clunk(fid)
            raise
        return fid

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.open_raw() as file:
            return file.readall()

    def write_bytes(self, data: bytes) -> int:
        """Replace the file's content; returns the bytes written."""
        with self.open_raw(os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            return file.write(data)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The whole file as text, with universal newlines."""
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors) as text:
            return text.read()

    def write_text(self, text: str, encoding: str = "utf-8", errors: str = "strict") -> int:
        """Replace the file's content by text; returns the characters written."""
        self.write_bytes(text.encode(encoding, errors))
        return len(text)

    # --- folders ---

    def scandir(self) -> Iterator[DirectoryEntry]:
        """The entries of a folder with what Treaddir tells of them, without ``.`` and ``..``. Raises OSError."""
        with self._naming(), self.open_raw(os.O_RDONLY | os.O_DIRECTORY) as folder:
            for entry in read_entries(folder):
                if entry.name not in {b".", b".."}:
                    yield entry

    def iterdir(self) -> Iterator[GuestPath]:
        """The paths in a folder, in the server's order. Raises OSError."""
        for entry in self.scandir():
            yield self._with_names((*self.names, entry.name))

    def walk(self, *, top_down: bool = True) -> Iterator[tuple[GuestPath, list[str], list[str]]]:
        """Like os.walk: (folder, names of folders, names of other files); links are not followed. Raises OSError."""
        folders: list[str] = []
        files: list[str] = []
        for entry in self.scandir():
            kind = entry.type or stat.S_IFMT((self / entry.name).lstat().st_mode) >> 12
            (folders if kind == c.DT_DIR else files).append(os.fsdecode(entry.name))
        if top_down:
            yield self, folders, files
        for name in folders:
            yield from (self / name).walk(top_down=top_down)
        if not top_down:
            yield self, folders, files

    def mkdir(self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Create a folder. Raises OSError."""
        try:
            with self._naming(), self._folder() as fid:
                gid, passes_on = self.mount.creation_gid(fid)
                bits = stat.S_IFDIR | (mode & ~self.mount.umask) | (stat.S_ISGID if passes_on else 0)
                self._run(self._client.mkdir(fid, self._last(), bits, gid))
        except FileNotFoundError:
            if not parents or len(self.names) < 2:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def rmdir(self) -> None:
        """Remove an empty folder. Raises OSError."""
        self._unlinkat(c.UNLINKAT_REMOVEDIR)

    # --- names ---

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a name that is no folder's. Raises OSError."""
        try:
            self._unlinkat(0)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: GuestPath) -> GuestPath:
        """Give it another name, in place of what had that name; returns `target`. Raises OSError."""
        with self._naming(), self._folder() as old, target._folder() as new:
            self._run(self._client.renameat(old, self._last(), new, target._last()))
        return target

    replace = rename

    def symlink_to(self, target: str | bytes | GuestPath) -> None:
        """Make it a symbolic link to `target`. Raises OSError."""
        raw = bytes(target) if isinstance(target, GuestPath) else os.fsencode(target)
        with self._naming(), self._folder() as fid:
            gid, _ = self.mount.creation_gid(fid)
            self._run(self._client.symlink(fid, self._last(), raw, gid))

    def hardlink_to(self, target: GuestPath) -> None:
        """Make it another name of `target` (itself, if that is a symbolic link). Raises OSError."""
        with self._naming(), self.mount.fid(target.names, follow=False) as fid, self._folder() as folder:
            self._run(self._client.link(folder, fid, self._last()))

    def mknod(self, mode: int = 0o600 | stat.S_IFREG, device: int = 0) -> None:
        """Create a file, fifo, socket or device node; `device` as `os.makedev` makes it. Raises OSError."""
        with self._naming(), self._folder() as fid:
            gid, _ = self.mount.creation_gid(fid)
            major, minor = os.major(device), os.minor(device)
            self._run(self._client.mknod(fid, self._last(), mode & ~self.mount.umask, gid, major=major, minor=minor))

    def readlink(self) -> str:
        """The target of a symbolic link. Raises OSError."""
        with self._naming(), self.mount.fid(self.names, follow=False) as fid:
            return os.fsdecode(self._run(self._client.readlink(fid)))

    # --- attributes ---

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What stat tells; st_ino is the qid's path, st_dev 0. Raises OSError."""
        with self._naming(), self.mount.fid(self.names, follow=follow_symlinks) as fid:
            return stat_result(self.mount.getattr(fid))

    def lstat(self) -> os.stat_result:
        """What lstat tells. Raises OSError."""
        return self.stat(follow_symlinks=False)

    def exists(self) -> bool:
        """Whether there is something, behind links."""
        return self._mode() != 0

    def is_dir(self) -> bool:
        """Whether it is a folder, or a link to one."""
        return stat.S_ISDIR(self._mode())

    def is_file(self) -> bool:
        """Whether it is a regular file, or a link to one."""
        return stat.S_ISREG(self._mode())

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        try:
            return stat.S_ISLNK(self.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change its mode, as chmod does. Raises OSError."""
        with self._fid(follow=follow_symlinks) as fid:
            self._run(self._client.setattr(fid, mode=mode))

    def chown(self, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True) -> None:
        """Change its owner, as chown does; -1 leaves one alone. Raises OSError."""
        new_uid, new_gid = (None if number == -1 else number for number in (uid, gid))
        also = c.SETATTR_CTIME if new_uid is None and new_gid is None else 0
        with self._fid(follow=follow_symlinks) as fid:
            self._run(self._client.setattr(fid, uid=new_uid, gid=new_gid, also=also))

    def utime(self, *, ns: tuple[int, int] | None = None, follow_symlinks: bool = True) -> None:
        """Set access and modification time, in nanoseconds since 1970; None: to the server's now. Raises OSError."""
        with self._fid(follow=follow_symlinks) as fid:
            if ns is None:
                self._run(self._client.setattr(fid, also=c.SETATTR_ATIME | c.SETATTR_MTIME))
            else:
                self._run(self._client.setattr(fid, atime_ns=ns[0], mtime_ns=ns[1]))

    def truncate(self, size: int) -> None:
        """Cut or extend it, as truncate does. Raises OSError."""
        with self._fid() as fid:
            self._run(self._client.setattr(fid, size=size))

    def touch(self, mode: int = 0o666, *, exist_ok: bool = True) -> None:
        """Create the file, or set its times to now. Raises OSError."""
        try:
            self.open_raw(os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode).close()
        except FileExistsError:
            if not exist_ok:
                raise
            self.utime()

    def statvfs(self) -> os.statvfs_result:
        """What statvfs tells of the file system that it lies on. Raises OSError."""
        with self._naming(), self.mount.fid(self.names) as fid:
            return statvfs_result(self._run(self._client.statfs(fid)))

    # --- extended attributes ---

    def getxattr(self, name: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """The value of an extended attribute; OSError (ENODATA) if there is none."""
        return self._read_xattr(os.fsencode(name), follow=follow_symlinks)

    def listxattr(self, *, follow_symlinks: bool = True) -> list[str]:
        """The names of its extended attributes. Raises OSError."""
        return [os.fsdecode(name) for name in self._read_xattr(b"", follow=follow_symlinks).split(b"\0")[:-1]]

    def setxattr(self, name: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True) -> None:
        """Set an extended attribute; `flags` as for os.setxattr. Raises OSError."""
        session = self.mount.session
        with self._naming():
            fid = self.mount.resolve(self.names, follow=follow_symlinks)
            try:
                self._run(self._client.xattrcreate(fid, os.fsencode(name), len(value), flags))
                done = 0
                while done < len(value):
                    piece = value[done : done + session.max_io]
                    done += self._run(self._client.write(fid, done, piece))
            except BaseException:
                with contextlib.suppress(OSError):  # the first error is the one to report
                    session.clunk(fid)
                raise
            session.clunk(fid)  # this is where the server sets it, and where it tells that it could not

    def removexattr(self, name: str | bytes, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute: as Linux, by replacing it with nothing. Raises OSError."""
        self.setxattr(name, b"", os.XATTR_REPLACE, follow_symlinks=follow_symlinks)

    # --- inside ---

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Give errors the name of this path."""
        try:
            yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(self)
            raise

    def _last(self) -> bytes:
        if not self.names:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return self.names[-1]

    def _folder(self) -> contextlib.AbstractContextManager[int]:
        return self.mount.fid(self.names[:-1])

    def _unlinkat(self, flags: int) -> None:
        with self._naming(), self._folder() as fid:
            self._run(self._client.unlinkat(fid, self._last(), flags))

    @contextlib.contextmanager
    def _fid(self, *, follow: bool = True) -> Iterator[int]:
        with self._naming(), self.mount.fid(self.names, follow=follow) as fid:
            yield fid

    @property
    def _client(self) -> Client:
        return self.mount.session.client

    def _run(self, call: Call[T]) -> T:
        return self.mount.session.run(call)

    def _mode(self) -> int:
        try:
            return self.stat().st_mode
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return 0
            raise

    def _read_xattr(self, name: bytes, *, follow: bool) -> bytes:
        session = self.mount.session
        with self._naming(), self.mount.fid(self.names, follow=follow) as fid:
            walk = self._client.xattrwalk(fid, name)
            size = self._run(walk)
            try:
                value = b""
                while len(value) < size:
                    count = min(size - len(value), session.max_io)
                    piece = self._run(self._client.read(walk.fid, len(value), count))
                    if not piece:
                        break
                    value += piece
                return value
            finally:
                session.clunk(walk.fid)


def read_entries(folder: GuestFile, offset: int = 0) -> Iterator[DirectoryEntry]:
    """The entries of an open folder from `offset` on, ``.`` and ``..`` among them, msize - 24 bytes at a time."""
    mount, session = folder.mount, folder.mount.session
    nbytes = session.max_io
    buffer = mount.allocate(nbytes) if mount.is_lent(nbytes) else None
    try:
        while True:
            if buffer is None:
                entries = session.run(session.client.readdir(folder.fid, offset, nbytes))
            else:
                entries = session.readdir_lent(folder.fid, offset, nbytes, buffer)
            if not entries:
                return
            yield from entries
            offset = entries[-1].offset
    finally:
        if buffer is not None:
            mount.free(buffer)
