from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import LocalFile
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-xattr", "mapped-file"], indirect=True),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def read(driver: LocalDriver, file: LocalFile, offset: int, nbytes: int) -> bytes:
    data = bytearray(nbytes)
    done = driver.read(file, offset, ViewBuffers.of(data))
    return bytes(data[:done])


def write(driver: LocalDriver, file: LocalFile, offset: int, data: bytes) -> int:
    return driver.write(file, offset, ViewBuffers.of(bytearray(data)))


@pytest.fixture(autouse=True)
def tree(root: Path) -> None:
    (root / "file").write_bytes(b"hello world")
    (root / "folder").mkdir()
    os.symlink("file", root / "link")


def test_a_write_that_is_not_allowed_keeps_set_ids(driver: LocalDriver, at: At) -> None:
    node = at(b"file")
    driver.setattr(node, SetAttributes(mode=0o4755), 0)
    file, _ = driver.open(node, os.O_WRONLY | os.O_RDWR, 1000)  # for ioctl(2)
    with pytest.raises(OSError, match="Bad file"):
        write(driver, file, 0, b"x")
    assert stat.S_IMODE(driver.getattr(node)[1].mode) == 0o4755
    driver.close_file(file)


def test_writing_no_bytes(driver: LocalDriver, at: At) -> None:
    for flags, writable in ((os.O_RDONLY, False), (os.O_WRONLY, True), (os.O_RDWR, True), (os.O_ACCMODE, False)):
        file, _ = driver.open(at(b"file"), flags, 0)
        if writable:
            assert write(driver, file, 0, b"") == 0
        else:
            with pytest.raises(OSError, match="Bad file"):
                write(driver, file, 0, b"")
        driver.close_file(file)
    folder, _ = driver.open(at(b"folder"), os.O_RDWR, 0)  # folders are opened for reading, whatever is asked for
    with pytest.raises(OSError, match="Bad file"):
        write(driver, folder, 0, b"")
    driver.close_file(folder)


def test_read_and_write(driver: LocalDriver, at: At, root: Path) -> None:
    file, qid = driver.open(at(b"file"), os.O_RDWR, 0)
    assert qid.path == (root / "file").stat().st_ino
    assert read(driver, file, 0, 5) == b"hello"
    assert read(driver, file, 6, 100) == b"world"
    assert read(driver, file, 11, 100) == b""
    assert read(driver, file, 1 << 40, 100) == b""
    assert write(driver, file, 6, b"guest") == 5
    assert (root / "file").read_bytes() == b"hello guest"
    driver.fsync(file, datasync=False)
    driver.fsync(file, datasync=True)
    driver.close_file(file)
    driver.close_file(file)
    for operation in (lambda: read(driver, file, 0, 1), lambda: write(driver, file, 0, b"x")):
        with pytest.raises(OSError, match="Bad file"):
            operation()


@pytest.mark.parametrize("offset", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_offsets_near_the_end_of_the_world(driver: LocalDriver, at: At, offset: int) -> None:  # H062
    file, _ = driver.open(at(b"file"), os.O_RDWR, 0)
    with pytest.raises(OSError, match="Errno") as caught:
        write(driver, file, offset, b"xx")
    assert caught.value.errno in {errno.EINVAL, errno.EFBIG}
    with pytest.raises(OSError, match="Errno") as caught:
        read(driver, file, offset, 2)
    assert caught.value.errno == errno.EINVAL
    driver.close_file(file)


def test_every_change_changes_the_version(driver: LocalDriver, at: At) -> None:
    node = at(b"file")
    file, qid = driver.open(node, os.O_RDWR, 0)
    versions = {qid.version}
    for _ in range(200):  # faster than the clock of the file system, and of the same size
        assert write(driver, file, 0, b"x") == 1
        versions.add(driver.getattr(node)[0].version)
    assert len(versions) == 201
    # Also where the kernel's clock is coarse: the write itself counts.
    writes = node.entry.writes
    assert write(driver, file, 0, b"x") == 1
    assert node.entry.writes != writes
    versions.add(driver.getattr(node)[0].version)
    writes = node.entry.writes
    driver.setattr(node, SetAttributes(size=3), 0)
    assert node.entry.writes != writes
    versions.add(driver.getattr(node)[0].version)
    assert len(versions) == 203
    assert 0 not in versions
    assert driver.getattr(node)[0] == driver.getattr(node)[0]
    driver.close_file(file)


def test_append(driver: LocalDriver, at: At, root: Path) -> None:
    file, _ = driver.open(at(b"file"), os.O_WRONLY | os.O_APPEND, 0)
    write(driver, file, 0, b"!")
    driver.close_file(file)
    assert (root / "file").read_bytes() == b"hello world!"


def test_truncate_at_open(driver: LocalDriver, at: At, root: Path) -> None:
    file, _ = driver.open(at(b"file"), os.O_RDWR | os.O_TRUNC, 0)
    driver.close_file(file)
    assert (root / "file").read_bytes() == b""


def test_sparse_file(driver: LocalDriver, at: At, root: Path) -> None:  # H153
    file, _ = driver.open(at(b"file"), os.O_RDWR, 0)
    write(driver, file, 1 << 33, b"end")
    assert (root / "file").stat().st_size == (1 << 33) + 3
    assert (root / "file").stat().st_blocks < 1000
    assert read(driver, file, (1 << 33) - 2, 10) == b"\0\0end"
    driver.close_file(file)


def test_unlinked_file_stays_usable(driver: LocalDriver, at: At, root: Path) -> None:  # H045
    node = at(b"file")
    file, _ = driver.open(node, os.O_RDWR, 0)
    driver.unlinkat(at(b""), b"file", folder=False)
    assert not (root / "file").exists()
    assert read(driver, file, 0, 5) == b"hello"
    assert write(driver, file, 0, b"J") == 1
    driver.setattr(node, SetAttributes(mode=0o640, uid=os.geteuid(), size=3), 0)
    driver.setattr(node, SetAttributes(atime_ns=5, mtime_ns=7), 0)
    attributes = driver.getattr(node)[1]
    assert (attributes.mode, attributes.size, attributes.nlink, attributes.mtime_nsec) == (0o100640, 3, 0, 7)
    driver.setxattr(node, b"user.x", b"1", 0, 0)
    assert driver.getxattr(node, b"user.x") == b"1"
    again, _ = driver.open(node, os.O_RDONLY, 0)
    assert read(driver, again, 0, 10) == b"Jel"
    clone = driver.walk(node, []).node
    assert clone is not None
    driver.release(clone)
    driver.fsync(file, datasync=False)
    driver.close_file(file)
    driver.close_file(again)


def test_open_of_what_the_host_renamed(driver: LocalDriver, at: At, root: Path) -> None:
    node = at(b"file")
    (root / "file").rename(root / "folder" / "moved")
    file, _ = driver.open(node, os.O_RDONLY, 0)
    assert read(driver, file, 0, 5) == b"hello"
    driver.close_file(file)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC])
def test_only_files_and_folders_are_opened(driver: LocalDriver, at: At, root: Path, flags: int) -> None:  # H150
    os.mkfifo(root / "fifo")
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    for name in (b"fifo", b"socket", b"link"):
        with pytest.raises(OSError, match="Errno") as caught:
            driver.open(at(name), flags, 0)
        assert caught.value.errno == errno.ENXIO


def test_a_file_replaced_by_a_fifo_after_the_check(driver: LocalDriver, at: At, root: Path) -> None:  # H151
    node = at(b"file")
    (root / "file").unlink()
    os.mkfifo(root / "file")
    file, _ = driver.open(node, os.O_RDONLY, 0)  # the file that was found, not what is there now
    assert read(driver, file, 0, 5) == b"hello"
    driver.close_file(file)


def test_open_leaves_no_trace_in_the_descriptor(driver: LocalDriver, at: At) -> None:
    flags = os.O_RDWR | os.O_NOATIME | os.O_NONBLOCK | os.O_DIRECT | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file, _ = driver.open(at(b"file"), flags, 0)
    assert not os.get_blocking(file.fd)  # what waits although it looks like a regular file, as /proc/kmsg, must not
    assert not os.get_inheritable(file.fd)
    driver.close_file(file)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_DIRECTORY])
def test_folders_open_with_any_flags(driver: LocalDriver, at: At, flags: int) -> None:
    file, qid = driver.open(at(b"folder"), flags, 0)
    assert qid.type == 0x80
    assert sorted(name for *_, name in driver.readdir(file, 0)) == [b".", b".."]
    for operation in (lambda: read(driver, file, 0, 1), lambda: write(driver, file, 0, b"x")):
        with pytest.raises(OSError, match="Errno") as caught:
            operation()
        assert caught.value.errno in {errno.EISDIR, errno.EBADF}
    driver.fsync(file, datasync=False)
    driver.close_file(file)


def test_not_a_folder(driver: LocalDriver, at: At) -> None:
    with pytest.raises(NotADirectoryError):
        driver.open(at(b"file"), os.O_DIRECTORY, 0)
    file, _ = driver.open(at(b"file"), os.O_RDONLY, 0)
    with pytest.raises(NotADirectoryError):
        driver.readdir(file, 0)
    driver.close_file(file)


@needs_root
@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4711, 0o711), (0o2750, 0o750), (0o2640, 0o2640), (0o755, 0o755)],
)
@pytest.mark.parametrize("how", ["write", "truncate", "open", "create"])
def test_set_ids_do_not_survive_a_change(
    driver: LocalDriver, at: At, root: Path, before: int, after: int, how: str
) -> None:  # H160
    path, node = root / "file", at(b"file")

    def change(uid: int) -> int:
        if driver._model.mapped:
            driver.setattr(node, SetAttributes(mode=before), 0)
        else:
            path.chmod(before)
        if how == "truncate":
            driver.setattr(node, SetAttributes(size=1), uid)
        elif how == "create":
            found, file, _ = driver.create(at(b""), b"file", os.O_WRONLY | os.O_TRUNC, 0o600, uid, 0)
            driver.close_file(file)
            driver.release(found)
        else:
            file, _ = driver.open(node, os.O_WRONLY | (os.O_TRUNC if how == "open" else 0), uid)
            if how == "write":
                write(driver, file, 0, b"x")
            driver.close_file(file)
        return driver.getattr(node)[1].mode & 0o7777

    assert change(1000) == after
    assert change(0xFFFFFFFF) == after
    assert change(0) == before


@needs_root
def test_writeout(root: Path, driver: LocalDriver, no_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, int]] = []

    def record(_fd: int, offset: int, nbytes: int, flags: int) -> None:
        calls.append((offset, nbytes, flags))
        raise OSError(errno.EIO, "disk")  # shows at fsync, the bytes are written all the same

    monkeypatch.setattr("pyvirtfs.fsdev.local_files.sync_file_range", record)
    export = LocalDriver(root, "none", writeout="immediate")
    top, _ = export.attach(b"", 0)
    node, file, _ = export.create(top, b"new", os.O_RDWR, 0o600, 0, 0)
    assert write(export, file, 3, b"abc") == 3
    assert write(export, file, 3, b"") == 0
    assert calls == [(3, 3, 3)]
    export.release(node)
    export.close()


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_TRUNC, os.O_APPEND])
def test_readonly(root: Path, driver: LocalDriver, no_leak: None, flags: int) -> None:
    export = LocalDriver(root, readonly=True)
    top, _ = export.attach(b"", 0)
    node = export.walk(top, [b"file"]).node
    assert node is not None
    with pytest.raises(OSError, match="Read-only"):
        export.open(node, flags, 0)
    file, _ = export.open(node, os.O_RDONLY, 0)
    assert read(export, file, 0, 5) == b"hello"
    export.close()
    assert (root / "file").read_bytes() == b"hello world"


def test_out_of_descriptors(driver: LocalDriver, at: At) -> None:  # H082, H083
    node, top = at(b"file"), at(b"")
    folder, _ = driver.open(top, 0, 0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = driver.readdir(folder, 0)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    fillers: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, before[1]))
        while True:
            try:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for operation in (
            lambda: driver.walk(top, [b"folder"]),
            lambda: driver.walk(top, [b"folder", b".."]),
            lambda: driver.open(node, os.O_RDONLY, 0),
            lambda: driver.create(top, b"new", os.O_RDWR, 0o600, 0, 0),
        ):
            with pytest.raises(OSError, match="Too many") as caught:
                operation()
            assert caught.value.errno == errno.EMFILE
        assert driver.readdir(folder, 0) == listed
        assert driver.getattr(node)[1].size == 11
        if not driver._model.placed:  # metadata files have to be opened
            driver.setattr(node, SetAttributes(mode=0o600), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in fillers:
            os.close(fd)
    driver.close_file(folder)


@needs_root
def test_writing_nothing_leaves_set_id_bits(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").chmod(0o6755)
    file, _ = driver.open(at(b"file"), os.O_RDWR, 1000)
    assert write(driver, file, 0, b"") == 0
    assert (root / "file").stat().st_mode == 0o106755
    assert write(driver, file, 0, b"x") == 1
    assert (root / "file").stat().st_mode == 0o100755
    driver.close_file(file)
