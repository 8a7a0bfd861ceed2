"""A driver for pyvirtfs: the content of a ZIP file, to be read."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import Attributes, DriverType, EntryFields, ExportDriver, Option, OptionTable, Qid, StatFs, Walk
from pyvirtfs.memory.buffers import Buffers

LARGEST = 256 << 20  # bytes of one file, which is unpacked into memory when it is opened


@dataclass(eq=False)
class Node:
    """A file or a folder."""

    number: int
    parent: Node | None = None
    info: zipfile.ZipInfo | None = None  # of a file
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return self.info is None or bool(self.children)

    @property
    def qid(self) -> Qid:
        return Qid(0x80 if self.is_folder else 0, 1, self.number)


def refuse(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def modified(info: zipfile.ZipInfo) -> int:
    """In seconds since the epoch; 0 for what is no date, as programs leave it that do not want to tell one."""
    try:
        return int(datetime(*info.date_time, tzinfo=UTC).timestamp())
    except ValueError:
        return 0


class ZipDriver(ExportDriver[Node, Node | bytes]):
    """An open folder is its node, an open file is its content."""

    readonly = True

    def __init__(self, values: Mapping[str, object]) -> None:
        try:
            self.zip = zipfile.ZipFile(str(values["file"]))
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError("file", f"{values['file']!r} cannot be read: {error}") from None
        self.root, count = Node(1), 1
        for info in self.zip.infolist():
            node = self.root
            for name in info.filename.encode().split(b"/"):
                if name not in {b"", b".", b".."}:  # whoever packed the file may have meant harm
                    count += 1
                    node = node.children.setdefault(name[:255], Node(count, node))
            node.info = None if info.is_dir() or node is self.root else info

    def close(self) -> None:
        self.zip.close()

    def attach(self, aname: bytes, uid: int) -> tuple[Node, Qid]:
        return self.root, self.root.qid

    def walk(self, node: Node, names: Sequence[bytes]) -> Walk[Node]:
        qids: list[Qid] = []
        for name in names:
            if not node.is_folder:
                following, code = None, errno.ENOTDIR
            else:
                dots = {b".": node, b"..": node.parent or node}
                following, code = dots.get(name) or node.children.get(name), errno.ENOENT
            if following is None:
                if not qids:
                    raise refuse(code)
                return Walk(qids, None)
            node = following
            qids.append(node.qid)
        return Walk(qids, node)

    def release(self, node: Node) -> None:
        pass

    def getattr(self, node: Node) -> tuple[Qid, Attributes]:
        mode, size, when = stat.S_IFDIR | 0o555, 0, 0
        if node.info is not None and not node.is_folder:
            mode, size, when = stat.S_IFREG | 0o444, node.info.file_size, modified(node.info)
        times = (when, 0) * 4
        return node.qid, Attributes(1, 0, 0, mode, node.number, size, (size + 511) // 512, *times, 0, 0, 0, 1)

    def statfs(self, node: Node) -> StatFs:
        return StatFs(type=0x504B, bsize=4096, blocks=0, bfree=0, bavail=0, files=0, ffree=0, fsid=1, namelen=255)

    def open(self, node: Node, flags: int, uid: int) -> tuple[Node | bytes, Qid]:
        if node.is_folder or node.info is None:
            return node, node.qid
        if flags & os.O_DIRECTORY:
            raise refuse(errno.ENOTDIR)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise refuse(errno.EROFS)
        if node.info.file_size > LARGEST:
            raise refuse(errno.EFBIG)
        try:
            return self.zip.read(node.info), node.qid
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise refuse(errno.EIO) from error  # damaged, encrypted, or packed in a way that Python does not know

    def close_file(self, file: Node | bytes) -> None:
        pass

    def read(self, file: Node | bytes, offset: int, buffers: Buffers) -> int:
        if isinstance(file, Node):
            raise refuse(errno.EISDIR)
        part = file[offset : offset + buffers.nbytes]
        buffers.write(0, part)
        return len(part)

    def readdir(self, file: Node | bytes, cookie: int) -> list[EntryFields]:
        if not isinstance(file, Node):
            raise refuse(errno.ENOTDIR)
        entries = [(b".", file), (b"..", file.parent or file), *file.children.items()]
        return [
            (node.qid, number, 4 if node.is_folder else 8, name)
            for number, (name, node) in enumerate(entries, 1)
            if number > cookie
        ]


DRIVER = DriverType(
    "zip",
    ZipDriver,
    OptionTable("fsdev driver 'zip'", (Option(name="file", required=True, help="The ZIP file"),)),
    "The content of a ZIP file, read-only",
)
