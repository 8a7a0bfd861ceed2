"""Paths of a mount, with the methods of `pathlib.Path` and those of `os` that pathlib lacks."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import stat
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

from pyvirtfs.guest.file import GuestFile
from pyvirtfs.guest.globbing import ANYTHING_BELOW, kind_of, parse_pattern, select
from pyvirtfs.guest.mount import MAX_STRING, check_names, refuse
from pyvirtfs.guest.paths import PureGuestPath, Segment
from pyvirtfs.guest.stat import NANOSECONDS, stat_result, statvfs_result
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.results import DirectoryEntry

if TYPE_CHECKING:
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


class GuestPath(PureGuestPath):
    """A path on a mount; nothing is looked up until a method asks.

    Symbolic links are followed where `pathlib` follows them; absolute targets count from the mount's root. Errors are
    OSError with errno and filename.

    Args:
        mount: The mount.
        segments: Strings, bytes or paths, with slashes between names; one that begins with a slash starts at the root
            again.
    """

    __slots__ = ()

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
        if raw.is_directory:
            raw.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
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
        create, exclusive = bool(flags & os.O_CREAT), bool(flags & os.O_EXCL)
        with self._naming():
            if create and exclusive:
                fid = self.mount.resolve(self.names[:-1], directory=True)
                return self._create(fid, None, flags, mode)
            found = self.mount.look_up(self.names, follow=not flags & os.O_NOFOLLOW)
            if found.error is not None:
                if create and isinstance(found.error, FileNotFoundError) and len(found.missing) == 1:
                    return self._create(found.fid, found.missing[0], flags, mode)  # behind links, if there are any
                self.mount.session.clunk(found.fid)
                raise found.error
            return self._open(found.fid, found.kind, flags)

    def _open(self, fid: int, kind: int, flags: int) -> GuestFile:
        """Open what is there, unless a kernel would not even ask the server; takes the fid over."""
        is_directory = bool(kind & c.QTDIR)
        try:
            if kind & c.QTSYMLINK:
                refuse(errno.ELOOP)
            if is_directory and flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
                refuse(errno.EISDIR)
            if flags & os.O_DIRECTORY and not is_directory:
                refuse(errno.ENOTDIR)
            self._run(self._client.lopen(fid, dotl_flags(flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))))
            if flags & os.O_TRUNC:
                self._run(self._client.setattr(fid, size=0))
        except BaseException:
            self.mount.session.clunk(fid)
            raise
        return GuestFile(self.mount, fid, flags, str(self), is_directory=is_directory)

    def _create(self, fid: int, name: bytes | None, flags: int, mode: int) -> GuestFile:
        """Create a file in a folder, named like this path if None; takes over the folder's fid, which becomes its."""
        try:
            name = self._last(errno.EEXIST) if name is None else name
            gid, _ = self.mount.creation_gid(fid)
            bits = stat.S_IFREG | (mode & ~self.mount.umask)
            self._run(self._client.lcreate(fid, name, dotl_flags(flags), bits, gid))
        except BaseException:
            self.mount.session.clunk(fid)
            raise
        return GuestFile(self.mount, fid, flags, str(self))

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.open_raw() as file:
            return file.readall()

    def write_bytes(self, data: bytes) -> int:
        """Replace the file's content; returns the bytes written."""
        with self.open_raw(os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            return file.write(data)

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """The whole file as text; the arguments are those of `open`."""
        with self.open("r", encoding=encoding, errors=errors, newline=newline) as file:
            return str(file.read())

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Replace the file's content by text; returns the characters written. The arguments are those of `open`."""
        if not isinstance(data, str):
            raise TypeError(f"data must be str, not {type(data).__name__}")
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return int(file.write(data))

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

    def listdir(self) -> list[str]:
        """The names in a folder, in the server's order, without ``.`` and ``..``. Raises OSError."""
        return [os.fsdecode(entry.name) for entry in self.scandir()]

    def glob(self, pattern: str | os.PathLike[str]) -> Iterator[GuestPath]:
        """What matches a relative pattern below this folder, in no order; ``**`` stands for any folders.

        Raises:
            ValueError: The pattern is empty or malformed.
            NotImplementedError: The pattern is absolute.
            OSError: What the server answers, other than that something is not there or may not be read.
        """
        if not os.fspath(pattern):
            raise ValueError(f"Unacceptable pattern: {pattern!r}")
        return self._select(parse_pattern(pattern))

    def rglob(self, pattern: str | os.PathLike[str]) -> Iterator[GuestPath]:
        """What matches a relative pattern in this folder or anywhere below. Raises what `glob` raises."""
        return self._select((ANYTHING_BELOW, *parse_pattern(pattern)))

    def _select(self, parts: tuple[str, ...]) -> Iterator[GuestPath]:
        if self.is_dir():
            yield from select(self, parts)

    def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> Iterator[tuple[GuestPath, list[str], list[str]]]:
        """Like `pathlib.Path.walk`: (folder, names of folders, names of other files) for this folder and all below.

        Args:
            top_down: Whether a folder comes before those in it; the caller may then take names of folders away.
            on_error: Called with the error of a folder that cannot be listed, which is left out; it may raise.
            follow_symlinks: Whether a link to a folder counts as a folder.
        """
        pending: list[GuestPath | tuple[GuestPath, list[str], list[str]]] = [self]
        while pending:  # a tree may be deeper than Python calls functions
            folder = pending.pop()
            if isinstance(folder, tuple):
                yield folder
                continue
            folders: list[str] = []
            files: list[str] = []
            try:
                for entry in folder.scandir():
                    path = folder / entry.name
                    is_folder = path.is_dir() if follow_symlinks else kind_of(entry, path) == c.DT_DIR
                    (folders if is_folder else files).append(path.name)
            except OSError as error:
                if on_error is not None:
                    on_error(error)
                continue
            if top_down:
                yield folder, folders, files
            else:
                pending.append((folder, folders, files))
            pending += [folder / name for name in reversed(folders)]

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Create a folder. Raises OSError."""
        try:
            with self._naming(), self._folder() as fid:
                gid, passes_on = self.mount.creation_gid(fid)
                bits = stat.S_IFDIR | (mode & ~self.mount.umask) | (stat.S_ISGID if passes_on else 0)
                self._run(self._client.mkdir(fid, self._last(errno.EEXIST), bits, gid))
        except FileNotFoundError:
            if not parents or not self.names:
                raise
            self._make_parents()
            self.mkdir(mode, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not self.is_dir():
                raise

    def _make_parents(self) -> None:
        """Create the folders above it that are missing, however many."""
        missing = [self.parent]
        while missing:
            try:
                missing[-1].mkdir(exist_ok=True)
                missing.pop()
            except FileNotFoundError:
                if not missing[-1].names:
                    raise
                missing.append(missing[-1].parent)

    def rmdir(self) -> None:
        """Remove an empty folder. Raises OSError."""
        self._unlinkat(c.UNLINKAT_REMOVEDIR, errno.ENOTEMPTY if self.names else errno.EBUSY)

    # --- names ---

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a name that is no folder's. Raises OSError."""
        try:
            self._unlinkat(0, errno.EISDIR)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Segment) -> GuestPath:
        """Give it another name, in place of what had that name; returns `target` as a path. Raises OSError.

        Args:
            target: A path of this mount; if it is not a `GuestPath`, one from the root.
        """
        path: GuestPath = self._beside(target)
        with self._naming(self, path), self._folder() as old, path._folder() as new:
            self._run(self._client.renameat(old, self._last(errno.EBUSY), new, path._last(errno.EBUSY)))
        return path

    replace = rename

    def symlink_to(self, target: Segment) -> None:
        """Make it a symbolic link to `target`. Raises OSError."""
        raw = bytes(target) if isinstance(target, PureGuestPath) else os.fsencode(target)
        with self._naming(os.fsdecode(raw), self), self._folder() as fid:
            if len(raw) > MAX_STRING:
                refuse(errno.ENAMETOOLONG)
            gid, _ = self.mount.creation_gid(fid)
            self._run(self._client.symlink(fid, self._last(errno.EEXIST), raw, gid))

    def hardlink_to(self, target: Segment) -> None:
        """Make it another name of `target` (itself, if that is a symbolic link); see `rename`. Raises OSError."""
        path = self._beside(target)
        with self._naming(path, self), self.mount.fid(path.names, follow=False) as fid, self._folder() as folder:
            try:
                self._run(self._client.link(folder, fid, self._last(errno.EEXIST)))
            except PermissionError:  # no folder may be linked; but a kernel would have looked at the new name first
                if self.exists(follow_symlinks=False):
                    refuse(errno.EEXIST)
                raise

    def mknod(self, mode: int = 0o600 | stat.S_IFREG, device: int = 0) -> None:
        """Create a file, fifo, socket or device node; `device` as `os.makedev` makes it. Raises OSError."""
        with self._naming(), self._folder() as fid:
            gid, _ = self.mount.creation_gid(fid)
            bits, major, minor = mode & ~self.mount.umask, os.major(device), os.minor(device)
            self._run(self._client.mknod(fid, self._last(errno.EEXIST), bits, gid, major=major, minor=minor))

    def mkfifo(self, mode: int = 0o666) -> None:
        """Create a named pipe. Raises OSError."""
        self.mknod(stat.S_IFIFO | mode)

    def readlink(self) -> str:
        """The target of a symbolic link, as it is. Raises OSError."""
        with self._fid(follow=False) as fid:
            return os.fsdecode(self._run(self._client.readlink(fid)))

    def resolve(self, strict: bool = False) -> GuestPath:
        """The path without symbolic links and ``..``; links are followed here, absolute ones from the mount's root.

        Args:
            strict: Whether all of it must exist; otherwise what does not is appended as it is.

        Raises:
            OSError: ELOOP if the links lead in circles (more than 40, as on Linux); if `strict`, ENOENT and the like.
        """
        with self._naming():
            return self._with_names(self.mount.real_names(self.names, strict=strict))

    def samefile(self, other: Segment) -> bool:
        """Whether this and `other` are the same file, behind links; see `rename`. Raises OSError."""
        path = self._other(other)
        same_server = path.mount.session is self.mount.session
        return os.path.samestat(self.stat(), path.stat()) and same_server

    # --- attributes ---

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What stat tells; st_ino is the qid's path, st_dev 0. Raises OSError."""
        with self._fid(follow=follow_symlinks) as fid:
            return stat_result(self.mount.getattr(fid))

    def lstat(self) -> os.stat_result:
        """What lstat tells. Raises OSError."""
        return self.stat(follow_symlinks=False)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is something, behind links."""
        return self._mode(follow=follow_symlinks) != 0

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a folder, or a link to one."""
        return stat.S_ISDIR(self._mode(follow=follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or a link to one."""
        return stat.S_ISREG(self._mode(follow=follow_symlinks))

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self._mode(follow=False))

    def is_fifo(self) -> bool:
        """Whether it is a named pipe, or a link to one."""
        return stat.S_ISFIFO(self._mode())

    def is_socket(self) -> bool:
        """Whether it is a socket, or a link to one."""
        return stat.S_ISSOCK(self._mode())

    def is_block_device(self) -> bool:
        """Whether it is a block device, or a link to one."""
        return stat.S_ISBLK(self._mode())

    def is_char_device(self) -> bool:
        """Whether it is a character device, or a link to one."""
        return stat.S_ISCHR(self._mode())

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

    def utime(
        self,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set access and modification time, as `os.utime` does: in seconds or nanoseconds since 1970, else to now.

        Now is the server's. Raises OSError; ValueError if both are given.
        """
        if times is not None:
            if ns is not None:
                raise ValueError("times and ns exclude each other")
            atime, mtime = (math.floor(t) * NANOSECONDS + math.floor(t % 1 * NANOSECONDS) for t in times)
            ns = atime, mtime
        with self._fid(follow=follow_symlinks) as fid:
            if ns is None:
                self._run(self._client.setattr(fid, also=c.SETATTR_ATIME | c.SETATTR_MTIME))
            else:
                self._run(self._client.setattr(fid, atime_ns=ns[0], mtime_ns=ns[1]))

    def truncate(self, size: int) -> None:
        """Cut or extend it, as truncate does. Raises OSError."""
        with self._fid() as fid:
            self._run(self._client.setattr(fid, size=size))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Create the file, or set the times of what is there to now. Raises OSError."""
        if exist_ok:
            try:
                self.utime()
            except FileNotFoundError:
                pass
            else:
                return
        self.open_raw(os.O_WRONLY | os.O_CREAT | (0 if exist_ok else os.O_EXCL), mode).close()

    def statvfs(self) -> os.statvfs_result:
        """What statvfs tells of the file system that it lies on. Raises OSError."""
        with self._fid() as fid:
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
    def _naming(self, first: object = None, second: object = None) -> Iterator[None]:
        """Give errors the name of this path, or of both that a function of two paths was called with, in its order."""
        try:
            yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(self if first is None else first)
                error.filename2 = None if second is None else str(second)
            raise

    def _last(self, refusal: int) -> bytes:
        """The last name; OSError with this errno if it is the root's or ``..``, which nobody can give or take away."""
        if not self.names or self.names[-1] == b"..":
            refuse(refusal)
        check_names(self.names[-1:])
        return self.names[-1]

    def _other(self, other: Segment) -> GuestPath:
        """What another path means: one that belongs to no mount begins at the root of this one."""
        return other if isinstance(other, GuestPath) else self.mount.path(other)

    def _beside(self, other: Segment) -> GuestPath:
        """As `_other`; OSError (EXDEV) if that is on another mount."""
        path = self._other(other)
        if path.mount.session is not self.mount.session:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self), None, str(path))
        return path

    def _folder(self) -> contextlib.AbstractContextManager[int]:
        """A fid for the folder that holds the last name."""
        return self.mount.fid(self.names[:-1], directory=True)

    def _unlinkat(self, flags: int, refusal: int) -> None:
        with self._naming(), self._folder() as fid:
            self._run(self._client.unlinkat(fid, self._last(refusal), flags))

    @contextlib.contextmanager
    def _fid(self, *, follow: bool = True) -> Iterator[int]:
        with self._naming(), self.mount.fid(self.names, follow=follow) as fid:
            yield fid

    @property
    def _client(self) -> Client:
        return self.mount.session.client

    def _run(self, call: Call[T]) -> T:
        return self.mount.session.run(call)

    def _mode(self, *, follow: bool = True) -> int:
        """Its st_mode; 0 if there is no such thing."""
        try:
            return self.stat(follow_symlinks=follow).st_mode
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                return 0
            raise
        except ValueError:  # no file has a NUL in its name
            return 0

    def _read_xattr(self, name: bytes, *, follow: bool) -> bytes:
        session = self.mount.session
        with self._fid(follow=follow) as fid:
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
