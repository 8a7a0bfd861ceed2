"""Whatever the host puts into the way between walk and operation, nothing outside the export is read or changed.

For each operation: the parent, or the object itself, is replaced by a symbolic link to something outside, by another
object, or by a fifo. The operation may work on what was found before, or fail; `place` compares what is outside
afterwards.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import Lock, LockHolder, SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("place", ["tmpfs"], indirect=True),  # names are resolved above the file system
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-file"], indirect=True),
]
UID, GID = os.geteuid(), os.getegid()
HOLDER = LockHolder(None)


def read(driver: LocalDriver, node: Node, flags: int) -> bytes:
    file, _ = driver.open(node, flags, 1000)
    try:
        data = bytearray(100)
        done = driver.read(file, 0, ViewBuffers.of(data))
        if flags != os.O_RDONLY:
            driver.write(file, 0, ViewBuffers.of(bytearray(b"guest")))
        return bytes(data[:done])
    finally:
        driver.close_file(file)


def create(driver: LocalDriver, folder: Node, name: bytes, flags: int) -> bytes:
    node, file, _ = driver.create(folder, name, os.O_RDWR | flags, 0o600, UID, GID)
    try:
        data = bytearray(100)
        done = driver.read(file, 0, ViewBuffers.of(data))
        driver.write(file, 0, ViewBuffers.of(bytearray(b"guest")))
        return bytes(data[:done])
    finally:
        driver.close_file(file)
        driver.release(node)


def walk(driver: LocalDriver, node: Node, names: list[bytes]) -> int:
    found = driver.walk(node, names)
    if found.node is None:
        raise OSError(errno.ENOENT, "partial")
    try:
        file, _ = driver.open(found.node, os.O_RDWR, 0)
        driver.close_file(file)
        return found.qids[-1].path
    finally:
        driver.release(found.node)


def listing(driver: LocalDriver, folder: Node) -> list[bytes]:
    file, _ = driver.open(folder, os.O_RDONLY, 0)
    try:
        return [name for *_, name in driver.readdir(file, 0)]
    finally:
        driver.close_file(file)


def locking(driver: LocalDriver, node: Node) -> None:
    lock = Lock(True, 0, None, 1, b"")
    driver.getlock(node, lock, HOLDER)
    driver.lock(node, lock, HOLDER)
    driver.release_locks(node, HOLDER)


# What each does with a folder, and an object found in it by the name `file`.
OPERATIONS: dict[str, Callable[[LocalDriver, Node, Node], Any]] = {
    "walk": lambda driver, folder, _: walk(driver, folder, [b"file"]),
    "walk far": lambda driver, folder, _: walk(driver, folder, [b"sub", b"..", b"file"]),
    "walk up": lambda driver, folder, _: walk(driver, folder, [b"..", b"..", b"folder", b"file"]),
    "getattr": lambda driver, _, node: driver.getattr(node)[1].ino,
    "open": lambda driver, _, node: read(driver, node, os.O_RDONLY),
    "open to write": lambda driver, _, node: read(driver, node, os.O_RDWR),
    "open to truncate": lambda driver, _, node: read(driver, node, os.O_RDWR | os.O_TRUNC),
    "readdir": lambda driver, folder, _: listing(driver, folder),
    "chmod": lambda driver, _, node: driver.setattr(node, SetAttributes(mode=0o4777), 0),
    "chown": lambda driver, _, node: driver.setattr(node, SetAttributes(uid=UID, gid=GID), 1000),
    "utimens": lambda driver, _, node: driver.setattr(node, SetAttributes(atime_ns=1, mtime_ns=1), 0),
    "truncate": lambda driver, _, node: driver.setattr(node, SetAttributes(size=0), 1000),
    "touch": lambda driver, _, node: driver.setattr(node, SetAttributes(touch_ctime=True), 0),
    "statfs": lambda driver, _, node: driver.statfs(node),
    "readlink": lambda driver, _, node: driver.readlink(node),
    "getxattr": lambda driver, _, node: driver.getxattr(node, b"user.x"),
    "listxattr": lambda driver, _, node: driver.listxattr(node),
    "setxattr": lambda driver, _, node: driver.setxattr(node, b"user.y", b"guest", 0, 0),
    "removexattr": lambda driver, _, node: driver.removexattr(node, b"user.x", 0),
    "lock": lambda driver, _, node: locking(driver, node),
    "create": lambda driver, folder, _: create(driver, folder, b"new", 0),
    "create over": lambda driver, folder, _: create(driver, folder, b"file", 0),
    "create exclusively": lambda driver, folder, _: create(driver, folder, b"file", os.O_EXCL),
    "create truncating": lambda driver, folder, _: create(driver, folder, b"file", os.O_TRUNC),
    "mkdir": lambda driver, folder, _: driver.mkdir(folder, b"new", 0o755, UID, GID),
    "mknod": lambda driver, folder, _: driver.mknod(folder, b"new", stat.S_IFIFO | 0o600, 0, 0, UID, GID),
    "mknod file": lambda driver, folder, _: driver.mknod(folder, b"new", 0o600, 0, 0, UID, GID),
    "symlink": lambda driver, folder, _: driver.symlink(folder, b"new", b"x", UID, GID),
    "link": lambda driver, folder, node: driver.link(folder, node, b"new"),
    "rename": lambda driver, folder, node: driver.rename(node, folder, b"new"),
    "renameat": lambda driver, folder, _: driver.renameat(folder, b"file", folder, b"new"),
    "rename over": lambda driver, folder, _: driver.renameat(folder, b"sub", folder, b"file"),
    "unlinkat": lambda driver, folder, _: driver.unlinkat(folder, b"file", folder=False),
    "rmdir": lambda driver, folder, _: driver.unlinkat(folder, b"sub", folder=True),
    "remove": lambda driver, _, node: driver.remove(node),
}


def swap_parent(place: Path) -> None:
    (place / "export/folder").rename(place / "export/moved")
    os.symlink("../outside", place / "export/folder")


def swap_parent_out(place: Path) -> None:
    """The host moves the folder out of the export altogether."""
    (place / "export/folder").rename(place / "gone")
    os.symlink("../outside", place / "export/folder")


def swap_export(place: Path) -> None:
    (place / "export").rename(place / "gone")
    os.symlink("outside", place / "export")


def swap_last(place: Path) -> None:
    (place / "export/folder/file").rename(place / "export/folder/kept")
    os.symlink("../../outside/secret", place / "export/folder/file")


def swap_last_absolute(place: Path) -> None:
    (place / "export/folder/file").unlink()
    os.symlink(place / "outside/secret", place / "export/folder/file")


def swap_last_magic(place: Path) -> None:
    (place / "export/folder/file").unlink()
    os.symlink("/proc/self/root" + os.fspath(place / "outside/secret"), place / "export/folder/file")


def swap_last_device(place: Path) -> None:
    (place / "export/folder/file").unlink()
    os.symlink("/dev/fd/0", place / "export/folder/file")


def swap_last_fifo(place: Path) -> None:
    (place / "export/folder/file").unlink()
    os.mkfifo(place / "export/folder/file")


def swap_last_folder(place: Path) -> None:
    (place / "export/folder/file").unlink()
    os.symlink("../../outside", place / "export/folder/file")
    (place / "export/folder/sub").rmdir()
    os.symlink("../../outside/sub", place / "export/folder/sub")


SWAPS = (
    swap_parent, swap_parent_out, swap_export, swap_last, swap_last_absolute, swap_last_magic, swap_last_device,
    swap_last_fifo, swap_last_folder,
)  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
def test_nothing_leaves_the_export(
    driver: LocalDriver, at: At, place: Path, operation: str, swap: Callable[[Path], None]
) -> None:  # H020, H021, H025, H027, H151
    folder = place / "export/folder"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "file").write_bytes(b"inside")
    os.setxattr(folder / "file", "user.x", b"inside")
    inside = {os.lstat(path).st_ino for path in (folder, folder / "file", folder / "sub")}
    parent, node = at(b"folder"), at(b"folder/file")
    swap(place)
    try:
        result = OPERATIONS[operation](driver, parent, node)
    except OSError:
        result = None
    if isinstance(result, bytes):
        assert result in {b"", b"inside", b"user.x\0"}
    if operation in {"walk", "walk far", "getattr"} and result is not None:
        assert result in inside or "fifo" in swap.__name__
    if swap is swap_export:
        (place / "export").unlink()
        (place / "gone").rename(place / "export")


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_on_a_symbolic_link_itself(driver: LocalDriver, at: At, place: Path, operation: str) -> None:  # H027
    (place / "export/folder/sub").mkdir(parents=True)
    os.symlink("../../outside/secret", place / "export/folder/file")
    try:
        result = OPERATIONS[operation](driver, at(b"folder"), at(b"folder/file"))
    except OSError:
        result = None
    if isinstance(result, bytes):
        assert result in {b"", b"../../outside/secret"}
