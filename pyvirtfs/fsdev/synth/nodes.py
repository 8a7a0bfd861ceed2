"""The files and folders of a synth export, and how a program makes them."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import QID_DIRECTORY, QID_FILE, QID_SYMLINK, Attributes, Qid
from pyvirtfs.fsdev.synth.calls import Text, ask, to_bytes

Read: TypeAlias = Callable[[], Text | Completion[Any]]
Write: TypeAlias = Callable[[bytes], Completion[Any] | None]

NAME_MAX: Final = 255
"""Bytes of a name."""

_SECOND: Final = 1_000_000_000
_FIRST_COOKIE: Final = 3
"""Behind those of the two dots."""
_QID_TYPES: Final = {stat.S_IFDIR: QID_DIRECTORY, stat.S_IFLNK: QID_SYMLINK}

_numbers: Final = itertools.count(1)


class SynthNode:
    """An object of the export; made by the methods of `SynthFolder`."""

    kind: int

    def __init__(self, mode: int) -> None:
        self.mode = mode
        """Permissions, as the guest sees them."""
        self.uid = 0
        """Owner, as the guest sees it."""
        self.gid = 0
        self.name = b""
        self.parent: SynthFolder | None = None
        self.number = next(_numbers)
        self.version = 1
        self.born = self.modified = time.time_ns()

    @property
    def qid(self) -> Qid:
        """What identifies it."""
        return Qid(_QID_TYPES.get(self.kind, QID_FILE), self.version, self.number)

    @property
    def nlink(self) -> int:
        """0 once it was removed."""
        return 1 if self.parent is not None else 0

    def attributes(self, size: int) -> Attributes:
        """What statx(2) would tell of it, `size` in bytes."""
        changed = divmod(self.modified, _SECOND)
        return Attributes(
            self.nlink, self.uid, self.gid, self.kind | self.mode, self.number, size, (size + 511) // 512,
            *changed, *divmod(self.born, _SECOND), *changed, *changed, 0, 0, 0, 1,
        )  # fmt: skip

    def changed(self) -> None:
        """What it holds is something else now."""
        self.version = self.version + 1 & 0xFFFFFFFF or 1
        self.modified = time.time_ns()


class SynthFile(SynthNode):
    """A file behind which functions stand."""

    kind = stat.S_IFREG

    def __init__(
        self, read: Read | None, write: Write | None, store: Write | None, size: int | None, mode: int
    ) -> None:
        super().__init__(mode)
        self.read = read
        """Makes the content."""
        self.write = write
        """Takes each write."""
        self.store = store
        """Takes the whole content when the file is closed."""
        self.size = size
        self._digest = b""

    @property
    def writable(self) -> bool:
        """Whether it takes writes."""
        return self.write is not None or self.store is not None

    def content(self) -> bytes | Completion[bytes]:
        """What it holds now. Raises OSError: as the function."""
        if self.read is None:
            return b""
        return ask(f"reading {os.fsdecode(self.name)}", self.read, self._seen)

    def _seen(self, text: Text) -> bytes:
        content = to_bytes(text)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest != self._digest:
            if self._digest:
                self.changed()
            self._digest = digest
        return content


class SynthLink(SynthNode):
    """A symbolic link."""

    kind = stat.S_IFLNK

    def __init__(self, target: bytes) -> None:
        super().__init__(0o777)
        self.target = target


def _checked(name: str | bytes) -> bytes:
    raw = os.fsencode(name)
    if raw in {b"", b".", b".."} or b"/" in raw or b"\0" in raw or len(raw) > NAME_MAX:
        raise ValueError(f"{name!r} cannot be the name of a file")
    return raw


class SynthFolder(SynthNode):
    """A folder; files and folders can be added and removed at any time, from any thread."""

    kind = stat.S_IFDIR

    def __init__(self, mode: int = 0o755) -> None:
        super().__init__(mode)
        self._entries: dict[bytes, tuple[int, SynthNode]] = {}
        self._cookies = itertools.count(_FIRST_COOKIE)

    @property
    def nlink(self) -> int:
        """0 once it was removed."""
        return 2 if self.parent is not None else 0

    def file(
        self,
        name: str | bytes,
        *,
        read: Read | Text | None = None,
        write: Write | None = None,
        store: Write | None = None,
        size: int | None = None,
        mode: int | None = None,
    ) -> SynthFile:
        """Add a file.

        The functions are called in the thread of the server. What they raise as OSError, the guest gets as its errno;
        anything else is logged and becomes EIO. They may return a `Completion` of what they would return, to answer
        later from another thread; such a request does not hold up others.

        Args:
            name: Its name.
            read: Makes the content, or is it: bytes, or str that is encoded as UTF-8. Called at each open, so that
                whoever has the file open reads one consistent text; and whenever somebody asks for attributes, since
                a guest reads no further than the size that it was told.
            write: Called with the bytes of each write, as the kernel does it for the files of sysfs: the offset has no
                meaning, an error is that of write(2) in the guest. A guest may cut writes that are larger than its
                messages.
            store: Called with the whole content when a file that was written to is closed, an error is that of
                close(2). Either this or `write`.
            size: What the attributes tell, in bytes; then they do not call `read`, and a guest may get less of a
                larger content.
            mode: Permissions; None for what the functions allow: 0444, 0200 or 0644. A guest's root can only do what
                there is a function for, too.

        Raises:
            ValueError: The name is none or taken, or both `write` and `store` are given.
        """
        if write is not None and store is not None:
            raise ValueError("a file has either write or store")
        if mode is None:
            writes = write is not None or store is not None
            mode = 0o444 if not writes else 0o200 if read is None else 0o644
        made = SynthFile(_reader(read), write, store, size, mode)
        self._add(name, made)
        return made

    def folder(self, name: str | bytes, *, mode: int = 0o755) -> SynthFolder:
        """Add a folder. Raises ValueError: the name is none or taken."""
        made = SynthFolder(mode)
        self._add(name, made)
        return made

    def symlink(self, name: str | bytes, target: str | bytes) -> SynthLink:
        """Add a symbolic link. Raises ValueError: the name is none or taken."""
        made = SynthLink(os.fsencode(target))
        self._add(name, made)
        return made

    def remove(self, name: str | bytes) -> None:
        """Remove what is there, a folder with all that is in it. What guests have open stays readable. KeyError."""
        _, node = self._entries.pop(os.fsencode(name))
        node.parent = None
        if isinstance(node, SynthFolder):
            for below in node.names():
                node.remove(below)
        self.changed()

    def names(self) -> list[bytes]:
        """The names, in the order in which they were added."""
        return list(self._entries)

    def __getitem__(self, name: str | bytes) -> SynthNode:
        return self._entries[os.fsencode(name)][1]

    def _add(self, name: str | bytes, node: SynthNode) -> None:
        raw = _checked(name)
        node.name, node.parent = raw, self
        if self._entries.setdefault(raw, (next(self._cookies), node))[1] is not node:
            node.parent = None
            raise ValueError(f"there is {name!r} already")
        self.changed()

    def find(self, name: bytes) -> SynthNode:
        """What has a name. Raises OSError: ENOENT, ENAMETOOLONG."""
        found = self._entries.get(name)
        if found is None:
            code = errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT
            raise OSError(code, os.strerror(code))
        return found[1]

    def after(self, cookie: int) -> list[tuple[int, SynthNode]]:
        """Cookie and object of the entries behind a cookie."""
        return [(at, node) for at, node in list(self._entries.values()) if at > cookie]


def _reader(read: Read | Text | None) -> Read | None:
    if read is None or callable(read):
        return read
    content = to_bytes(read)
    return lambda: content
