"""The synth driver: what a guest does with the files of a `SynthFolder`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Final, Never

from pyvirtfs.fsdev.completion import then
from pyvirtfs.fsdev.driver import (
    NOW,
    QID_DIRECTORY,
    Answer,
    Attributes,
    EntryFields,
    ExportDriver,
    Lock,
    LockHolder,
    Qid,
    SetAttributes,
    StatFs,
    Walk,
)
from pyvirtfs.fsdev.locks import LockTable
from pyvirtfs.fsdev.options import Option, OptionTable, OptionValue
from pyvirtfs.fsdev.registry import DriverType
from pyvirtfs.fsdev.synth.calls import Text, ask
from pyvirtfs.fsdev.synth.fixtures import add_fixtures
from pyvirtfs.fsdev.synth.nodes import NAME_MAX, Read, SynthFile, SynthFolder, SynthLink, SynthNode, Write
from pyvirtfs.memory.buffers import Buffers

OPTIONS: Final = OptionTable(
    "fsdev driver 'synth'",
    (Option(name="readonly", type="bool", default=False, help="Refuse every change"),),
    refused=dict.fromkeys(
        ("path", "security_model", "writeout", "fmode", "dmode", "multidevs", "throttling.*"),
        "a synth export has no folder on the host",
    ),
)

MAX_STORED: Final = 16 << 20
"""Bytes that a file may have grown to when its ``store`` is called."""

_SYSFS_MAGIC: Final = 0x62656572
_END: Final = 1 << 63
_FIRST_DOT, _SECOND_DOT, _DT_DIR = 1, 2, 4


def _fail(code: int) -> Never:
    raise OSError(code, os.strerror(code))


class SynthOpen:
    """A file or a folder that a guest has open.

    Args:
        node: It.
        flags: As it was opened.
        content: What it held then.
    """

    __slots__ = ("content", "dirty", "flags", "node")

    def __init__(self, node: SynthNode, flags: int, content: bytes) -> None:
        self.node = node
        self.flags = flags
        self.content: bytes | bytearray = content
        self.dirty = False

    def keep(self, *, dirty: bool) -> None:
        """Make the content one that can be written to; `dirty` if it is another one already."""
        self.content = bytearray(self.content)
        self.dirty = dirty

    def resize(self, size: int) -> None:
        """Set the length of the content, with zeros where it grows."""
        content = self.content
        if isinstance(content, bytearray):
            del content[size:]
            content.extend(bytes(size - len(content)))
            self.dirty = True

    def put(self, offset: int, data: bytes) -> None:
        """Put bytes into the content."""
        content = self.content
        if isinstance(content, bytearray):
            content.extend(bytes(max(offset - len(content), 0)))
            content[offset : offset + len(data)] = data
            self.dirty = True


class SynthDriver(ExportDriver[SynthNode, SynthOpen]):
    """An export whose files a program makes.

        tree = SynthDriver()
        tree.file("status", read=lambda: "running")
        tree.file("control", write=handle_command)
        tree.folder("counters").file("exits", read=lambda: str(exits))

    Guests can read and write what there are functions for, take locks, and nothing else: they make and remove nothing.

    Args:
        readonly: Refuse every write.

    Attributes:
        root: The root folder, to which `file` and `folder` add.
    """

    def __init__(self, *, readonly: bool = False) -> None:
        self.readonly = readonly
        self.root = SynthFolder()
        self.root.parent = self.root
        self._locks = LockTable()
        self._writers: set[SynthOpen] = set()

    @classmethod
    def from_options(cls, values: Mapping[str, OptionValue]) -> SynthDriver:
        """Make one with the files that QEMU's driver of this name has for QEMU's own tests."""
        tree = cls(readonly=bool(values["readonly"]))
        add_fixtures(tree.root)
        return tree

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
        """Add a file to the root, see `SynthFolder.file`."""
        return self.root.file(name, read=read, write=write, store=store, size=size, mode=mode)

    def folder(self, name: str | bytes, *, mode: int = 0o755) -> SynthFolder:
        """Add a folder to the root, see `SynthFolder.folder`."""
        return self.root.folder(name, mode=mode)

    def close(self) -> None:
        """See `ExportDriver.close`; what was written and not closed is not stored."""
        self._writers.clear()
        self._locks = LockTable()

    # --- names ---

    def attach(self, aname: bytes, uid: int) -> tuple[SynthNode, Qid]:
        """A handle on the root, whatever tree the guest asked for."""
        del aname, uid
        return self.root, self.root.qid

    def walk(self, node: SynthNode, names: Sequence[bytes]) -> Walk[SynthNode]:
        """See `ExportDriver.walk`."""
        qids: list[Qid] = []
        try:
            for name in names:
                node = self._step(node, name)
                qids.append(node.qid)
        except OSError:
            if not qids:
                raise
            return Walk(qids, None)
        return Walk(qids, node)

    @staticmethod
    def _step(node: SynthNode, name: bytes) -> SynthNode:
        if not isinstance(node, SynthFolder):
            _fail(errno.ENOTDIR)
        if name == b".":
            return node
        if name == b"..":
            return node.parent if node.parent is not None else _fail(errno.ENOENT)
        return node.find(name)

    def release(self, node: SynthNode) -> None:
        """See `ExportDriver.release`; a handle costs nothing."""

    def place(self, node: SynthNode) -> tuple[SynthNode | None, bytes]:
        """See `ExportDriver.place`."""
        return node.parent, b"/" if node is self.root else node.name

    def readlink(self, node: SynthNode) -> bytes:
        """See `ExportDriver.readlink`."""
        return node.target if isinstance(node, SynthLink) else _fail(errno.EINVAL)

    # --- attributes ---

    def getattr(self, node: SynthNode) -> Answer[tuple[Qid, Attributes]]:
        """See `ExportDriver.getattr`; calls the file's ``read``, unless a size was given."""
        if not isinstance(node, SynthFile):
            return node.qid, node.attributes(len(node.target) if isinstance(node, SynthLink) else 0)
        if node.size is not None:
            return node.qid, node.attributes(node.size)
        return then(node.content(), lambda content: (node.qid, node.attributes(len(content))))

    def setattr(self, node: SynthNode, changes: SetAttributes, uid: int) -> Answer[None]:
        """See `ExportDriver.setattr`; EPERM for all but the size, which says where to write, and the time of now."""
        del uid
        if self.readonly:
            _fail(errno.EROFS)
        if isinstance(node, SynthFolder) and changes.size is not None:
            _fail(errno.EISDIR)
        if changes[:3] != (None, None, None) or not {changes.atime_ns, changes.mtime_ns} <= {None, NOW}:
            _fail(errno.EPERM)
        if changes.size is None:
            return None
        if not isinstance(node, SynthFile):
            _fail(errno.EINVAL)
        if not 0 <= changes.size < _END:
            _fail(errno.EFBIG)
        if node.store is not None:
            return self._resize(node, node.store, changes.size)
        return None if node.write is not None else _fail(errno.EPERM)

    def _resize(self, node: SynthFile, store: Write, size: int) -> Answer[None]:
        """Set the length of what is to be stored, where it is open; where it is not, it can only be emptied."""
        if size > MAX_STORED:
            _fail(errno.EFBIG)
        writers = [file for file in self._writers if file.node is node]
        for file in writers:
            file.resize(size)
        if writers:
            return None
        return self._store(node, store, b"") if not size else _fail(errno.EPERM)

    @staticmethod
    def _store(node: SynthFile, store: Write, content: bytes) -> Answer[None]:
        return ask(f"storing {os.fsdecode(node.name)}", lambda: store(content), lambda _: node.changed())

    def statfs(self, node: SynthNode) -> StatFs:
        """See `ExportDriver.statfs`; there are no blocks."""
        del node
        return StatFs(_SYSFS_MAGIC, 4096, 0, 0, 0, 0, 0, self.root.number, NAME_MAX)

    # --- open files ---

    def open(self, node: SynthNode, flags: int, uid: int) -> Answer[tuple[SynthOpen, Qid]]:
        """See `ExportDriver.open`; EACCES for what the file has no function for."""
        del uid
        if isinstance(node, SynthFolder):
            return SynthOpen(node, os.O_RDONLY, b""), node.qid
        if not isinstance(node, SynthFile):
            _fail(errno.ENXIO)
        if flags & os.O_DIRECTORY:
            _fail(errno.ENOTDIR)
        access = flags & os.O_ACCMODE
        writes = access != os.O_RDONLY or bool(flags & (os.O_TRUNC | os.O_APPEND))
        if writes and self.readonly:
            _fail(errno.EROFS)
        if (writes and not node.writable) or (access != os.O_WRONLY and node.read is None):
            _fail(errno.EACCES)
        stores = writes and node.store is not None
        empty = bool(flags & os.O_TRUNC) if stores else access == os.O_WRONLY

        def opened(content: bytes) -> tuple[SynthOpen, Qid]:
            file = SynthOpen(node, flags, content)
            if stores:
                file.keep(dirty=empty)
                self._writers.add(file)
            return file, node.qid

        return opened(b"") if empty else then(node.content(), opened)

    def close_file(self, file: SynthOpen) -> Answer[None]:
        """See `ExportDriver.close_file`; calls ``store`` if something was written, and answers when that has."""
        self._writers.discard(file)
        node = file.node
        if not file.dirty or not isinstance(node, SynthFile) or node.store is None:
            return None
        file.dirty = False
        return self._store(node, node.store, bytes(file.content))

    def read(self, file: SynthOpen, offset: int, buffers: Buffers) -> int:
        """See `ExportDriver.read`; of what the file held when it was opened."""
        if isinstance(file.node, SynthFolder):
            _fail(errno.EISDIR)
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            _fail(errno.EBADF)
        if offset >= _END:
            _fail(errno.EINVAL)
        with memoryview(file.content) as content, content[offset : offset + buffers.nbytes] as part:
            buffers.write(0, part)
            return len(part)

    def write(self, file: SynthOpen, offset: int, buffers: Buffers) -> Answer[int]:
        """See `ExportDriver.write`."""
        node = file.node
        if not isinstance(node, SynthFile) or file.flags & os.O_ACCMODE == os.O_RDONLY:
            _fail(errno.EBADF)
        count = buffers.nbytes
        if not count:
            return 0
        if node.write is None:
            if file.flags & os.O_APPEND:
                offset = len(file.content)
            if offset + count > MAX_STORED:
                _fail(errno.EFBIG)
            file.put(offset, buffers.read(0, count))
            return count
        write, data = node.write, buffers.read(0, count)

        def written(_answer: object) -> int:
            node.changed()
            return count

        return ask(f"writing {os.fsdecode(node.name)}", lambda: write(data), written)

    def readdir(self, file: SynthOpen, cookie: int) -> list[EntryFields]:
        """See `ExportDriver.readdir`; a folder that was removed has no entries, not even dots."""
        folder = file.node
        if not isinstance(folder, SynthFolder):
            _fail(errno.ENOTDIR)
        if folder.parent is None:
            return []
        dots: tuple[EntryFields, ...] = (
            ((QID_DIRECTORY, 0, folder.number), _FIRST_DOT, _DT_DIR, b"."),
            ((QID_DIRECTORY, 0, folder.parent.number), _SECOND_DOT, _DT_DIR, b".."),
        )
        found: list[EntryFields] = [dot for dot in dots if dot[1] > cookie]
        found += [(node.qid, at, node.kind >> 12, node.name) for at, node in folder.after(cookie)]
        return found

    # --- locks ---

    def lock(self, node: SynthNode, lock: Lock, holder: LockHolder) -> bool:
        """See `ExportDriver.lock`."""
        return self._locks.lock(node.number, lock, holder)

    def unlock(self, node: SynthNode, lock: Lock, holder: LockHolder) -> None:
        """See `ExportDriver.unlock`."""
        self._locks.unlock(node.number, lock, holder)

    def getlock(self, node: SynthNode, lock: Lock, holder: LockHolder) -> Lock | None:
        """See `ExportDriver.getlock`."""
        return self._locks.conflict(node.number, lock, holder)

    def release_locks(self, node: SynthNode, holder: LockHolder) -> int:
        """See `ExportDriver.release_locks`."""
        return len(self._locks.release(node.number, holder))


DRIVER: Final = DriverType(
    "synth", SynthDriver.from_options, OPTIONS, "The files of QEMU's tests; or those of a program"
)
