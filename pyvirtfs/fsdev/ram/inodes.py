"""The objects of a memory export, and the names that they have.

A `Link` is a name in a folder; it is also the handle that the server holds. So a handle follows wherever the name
moves, and knows when it is gone.
"""

from __future__ import annotations

import stat
import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, QID_FILE, QID_SYMLINK, Attributes, Qid
from pyvirtfs.fsdev.ram.content import Content
from pyvirtfs.fsdev.ram.space import PAGE, Space, pages_of
from pyvirtfs.fsdev.set_ids import without_set_ids

_SECOND: Final = 1_000_000_000
_SECTORS: Final = PAGE // 512
_QID_TYPES: Final = {stat.S_IFDIR: QID_DIRECTORY, stat.S_IFLNK: QID_SYMLINK}
_FIRST_COOKIE: Final = 3
"""Behind those of the two dots."""
_FEW_GAPS: Final = 64
_ENTRY_NBYTES: Final = 20
"""What an entry adds to the size of a folder, as on tmpfs."""

_new = tuple.__new__


class Folder:
    """The entries of a folder: by name, and in the order of their cookies, which are never used again."""

    __slots__ = ("_cookies", "_gaps", "_links", "_next", "names", "subfolders")

    def __init__(self) -> None:
        self.names: dict[bytes, Link] = {}
        self.subfolders = 0
        # Parallel: cookies rise, and where an entry has gone there is a gap until there are many.
        self._cookies: list[int] = []
        self._links: list[Link | None] = []
        self._gaps = 0
        self._next = _FIRST_COOKIE

    def add(self, link: Link, name: bytes) -> None:
        """Put a link in; the name must be free."""
        link.name = name
        link.cookie = self._next
        self._next += 1
        self.names[name] = link
        self._cookies.append(link.cookie)
        self._links.append(link)
        if link.inode.kind == stat.S_IFDIR:
            self.subfolders += 1

    def discard(self, link: Link) -> None:
        """Take a link out."""
        del self.names[link.name]
        self._links[bisect_left(self._cookies, link.cookie)] = None
        self._gaps += 1
        if link.inode.kind == stat.S_IFDIR:
            self.subfolders -= 1
        if self._gaps > _FEW_GAPS and self._gaps > len(self.names):
            kept = [link for link in self._links if link is not None]
            self._links, self._cookies, self._gaps = [*kept], [link.cookie for link in kept], 0

    def after(self, cookie: int) -> Iterator[Link]:
        """The links whose cookie is larger, in order."""
        links = self._links
        for index in range(bisect_left(self._cookies, cookie + 1), len(links)):
            link = links[index]
            if link is not None:
                yield link


class Inode:
    """An object.

    Attributes:
        kind: The S_IFMT bits of its mode.
        mode: The permission bits.
        number: Unique; also its qid.path.
        version: Of its content, for the qid.
        names: How many it has.
        refs: How many handles and open files of it the server holds.
        device: Major and minor number.
        content: What it holds, if it is a regular file.
        folder: Its entries, if it is a folder.
        place: Its only name, if it is a folder.
        target: Where it points to, if it is a symbolic link.
        xattrs: Extended attributes.
        extra: Pages that its target and its extended attributes take.
        atime, btime, ctime, mtime: In ns since the epoch.
    """

    __slots__ = (
        "_space", "atime", "btime", "content", "ctime", "device", "extra", "folder", "gid", "kind", "mode", "mtime",
        "names", "number", "place", "refs", "target", "uid", "version", "xattrs",
    )  # fmt: skip

    def __init__(self, space: Space, number: int, mode: int, uid: int, gid: int, version: int) -> None:
        self._space = space
        self.kind = stat.S_IFMT(mode)
        self.mode = stat.S_IMODE(mode)
        self.uid = uid
        self.gid = gid
        self.number = number
        self.version = version
        self.names = 0
        self.refs = 0
        self.device = 0, 0
        self.content = Content(space) if self.kind == stat.S_IFREG else None
        self.folder = Folder() if self.kind == stat.S_IFDIR else None
        self.place: Link | None = None
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.extra = 0
        self.atime = self.btime = self.ctime = self.mtime = time.time_ns()

    @property
    def qid(self) -> Qid:
        """What identifies it."""
        return _new(Qid, (_QID_TYPES.get(self.kind, QID_FILE), self.version, self.number))

    @property
    def nlink(self) -> int:
        """Names, and for a folder the dots in it and below it."""
        if self.folder is None or not self.names:
            return self.names
        return 2 + self.folder.subfolders

    def attributes(self, device: int) -> Attributes:
        """What statx(2) tells, `device` being the minor number of the file system."""
        content, folder = self.content, self.folder
        if content is not None:
            size, pages = content.size, content.pages + self.extra
        else:
            pages = self.extra
            size = len(self.target) if folder is None else (len(folder.names) + 2) * _ENTRY_NBYTES
        fields = (
            self.nlink, self.uid, self.gid, self.kind | self.mode, self.number, size, pages * _SECTORS,
            *divmod(self.atime, _SECOND), *divmod(self.btime, _SECOND),
            *divmod(self.ctime, _SECOND), *divmod(self.mtime, _SECOND), *self.device, 0, device,
        )  # fmt: skip
        return _new(Attributes, fields)

    def changed(self) -> None:
        """The content is another one from now on."""
        self.version = self.version + 1 & 0xFFFFFFFF or 1
        self.mtime = self.ctime = time.time_ns()

    def clear_set_ids(self) -> None:
        """What Linux does when somebody changes a file who may not keep its set-id bits."""
        self.mode = stat.S_IMODE(without_set_ids(self.kind | self.mode))

    def set_extra(self, nbytes: int) -> None:
        """Account for what the target and the extended attributes take. Raises OSError: ENOSPC."""
        pages = pages_of(nbytes)
        if pages > self.extra:
            self._space.take(pages - self.extra)
        else:
            self._space.free += self.extra - pages
        self.extra = pages

    def drop(self) -> None:
        """Give a reference back; without names and references its memory is free."""
        self.refs -= 1
        self.free_if_unused()

    def free_if_unused(self) -> None:
        """Give its memory back if nobody can reach it any more."""
        if self.refs <= 0 and not self.names:
            self._space.free_names += 1
            self.refs = 1 << 62  # once
            self.clear()

    def clear(self) -> None:
        """Give all memory back."""
        if self.content is not None:
            self.content.clear()
        self.xattrs.clear()
        self.set_extra(0)


class Link:
    """A name of an object; a handle on it for the server.

    Attributes:
        inode: The object.
        folder: The folder that it is in, or was in; None for the root.
        name: The name there, if it still is one.
        cookie: Its place in listings.
    """

    __slots__ = ("cookie", "folder", "inode", "name")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.folder: Inode | None = None
        self.name = b""
        self.cookie = 0
