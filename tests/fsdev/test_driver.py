"""The least that a driver has to offer, and what a guest gets for the rest."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import (
    QID_DIRECTORY,
    Attributes,
    DirectoryEntry,
    ExportDriver,
    Lock,
    LockHolder,
    Qid,
    SetAttributes,
    StatFs,
    Walk,
)
from pyvirtfs.memory.buffers import Buffers, ViewBuffers
from pyvirtfs.testing import pair

ROOT, FILE = Qid(QID_DIRECTORY, 1, 1), Qid(0, 1, 2)
TEXT = b"hello\n"


class OneFile(ExportDriver[Qid, Qid]):
    """A folder with one file to read; nodes and files are qids."""

    def close(self) -> None:
        pass

    def attach(self, aname: bytes, uid: int) -> tuple[Qid, Qid]:
        return ROOT, ROOT

    def walk(self, node: Qid, names: Sequence[bytes]) -> Walk[Qid]:
        qids: list[Qid] = []
        for name in names:
            if node is FILE or name not in {b".", b"..", b"file"}:
                if not qids:
                    raise FileNotFoundError(errno.ENOENT, "no such file")
                return Walk(qids, None)
            node = FILE if name == b"file" else ROOT
            qids.append(node)
        return Walk(qids, node)

    def release(self, node: Qid) -> None:
        pass

    def getattr(self, node: Qid) -> tuple[Qid, Attributes]:
        mode = stat.S_IFREG | 0o444 if node is FILE else stat.S_IFDIR | 0o555
        empty = Attributes(*[0] * len(Attributes._fields))
        return node, empty._replace(nlink=1, mode=mode, ino=node.path, size=len(TEXT) if node is FILE else 0)

    def statfs(self, node: Qid) -> StatFs:
        return StatFs(0x01021997, 4096, 1, 0, 0, 2, 0, 1, 255)

    def open(self, node: Qid, flags: int, uid: int) -> tuple[Qid, Qid]:
        return node, node

    def close_file(self, file: Qid) -> None:
        pass

    def read(self, file: Qid, offset: int, buffers: Buffers) -> int:
        data = TEXT[offset : offset + buffers.nbytes]
        buffers.write(0, data)
        return len(data)

    def readdir(self, file: Qid, cookie: int) -> Sequence[DirectoryEntry]:
        entries = ((ROOT, b"."), (ROOT, b".."), (FILE, b"file"))
        return [
            DirectoryEntry(qid, index, 8 if qid is FILE else 4, name) for index, (qid, name) in enumerate(entries, 1)
        ][cookie:]


def test_a_driver_of_ten_methods_can_be_mounted() -> None:
    assert len(ExportDriver.__abstractmethods__) == 10
    with pair(OneFile()) as guest:
        root = guest.mount.root
        assert root.listdir() == ["file"]
        assert (root / "file").read_bytes() == TEXT
        assert (root / "file").stat().st_size == len(TEXT)
        assert (root / "file").listxattr() == []
        changes: tuple[Callable[[], object], ...] = (
            (root / "new").mkdir,
            lambda: (root / "new").write_bytes(b"x"),
            lambda: (root / "new").symlink_to("file"),
            (root / "new").mknod,
            lambda: (root / "new").hardlink_to(root / "file"),
            lambda: (root / "file").rename(root / "new"),
            (root / "file").unlink,
            lambda: (root / "file").chmod(0o600),
            lambda: (root / "file").write_bytes(b"x"),
            lambda: (root / "file").setxattr("user.x", b"1"),
            lambda: (root / "file").getxattr("user.x"),
        )
        for change in changes:
            with pytest.raises(OSError, match="Errno") as caught:
                change()
            assert caught.value.errno == errno.EOPNOTSUPP


HOLDER, LOCK = LockHolder(1), Lock(True, 0, None, 1, b"")
DATA = ViewBuffers.of(bytearray(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda driver: driver.mkdir(ROOT, b"x", 0, 0, 0),
        lambda driver: driver.symlink(ROOT, b"x", b"y", 0, 0),
        lambda driver: driver.mknod(ROOT, b"x", 0, 0, 0, 0, 0),
        lambda driver: driver.link(ROOT, FILE, b"x"),
        lambda driver: driver.rename(FILE, ROOT, b"x"),
        lambda driver: driver.renameat(ROOT, b"file", ROOT, b"x"),
        lambda driver: driver.unlinkat(ROOT, b"file", folder=False),
        lambda driver: driver.remove(FILE),
        lambda driver: driver.setattr(FILE, SetAttributes(size=0), 0),
        lambda driver: driver.getxattr(FILE, b"user.x"),
        lambda driver: driver.setxattr(FILE, b"user.x", b"", 0, 0),
        lambda driver: driver.removexattr(FILE, b"user.x", 0),
        lambda driver: driver.create(ROOT, b"x", 0, 0, 0, 0),
        lambda driver: driver.write(FILE, 0, DATA),
        lambda driver: driver.lock(FILE, LOCK, HOLDER),
        lambda driver: driver.unlock(FILE, LOCK, HOLDER),
        lambda driver: driver.getlock(FILE, LOCK, HOLDER),
    ],
)
def test_what_is_not_offered_is_not_supported(call: Callable[[ExportDriver[Any, Any]], object]) -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        call(OneFile())
    assert caught.value.errno == errno.EOPNOTSUPP


def test_what_there_is_none_of() -> None:
    driver = OneFile()
    assert driver.listxattr(FILE) == b""
    assert driver.release_locks(FILE, HOLDER) == 0
    driver.fsync(FILE, datasync=True)
    assert driver.place(FILE) == (None, b"")
    with pytest.raises(OSError, match="Invalid"):
        driver.readlink(FILE)
