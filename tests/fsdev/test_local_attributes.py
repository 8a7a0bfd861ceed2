from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import NOW, SetAttributes, StatFs
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-xattr", "mapped-file"], indirect=True),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True)
def tree(root: Path) -> None:
    (root / "file").write_bytes(b"hello")
    (root / "folder").mkdir()
    os.symlink("file", root / "link")
    os.mkfifo(root / "fifo")


@pytest.mark.parametrize("name", ["", "file", "folder", "link", "fifo"])
def test_getattr_is_lstat(driver: LocalDriver, at: At, root: Path, name: str) -> None:
    expected = os.lstat(root / name)
    qid, found = driver.getattr(at(name.encode()))
    assert qid.path == found.ino == expected.st_ino
    assert (found.mode, found.nlink, found.uid, found.gid) == (
        expected.st_mode, expected.st_nlink, expected.st_uid, expected.st_gid,
    )  # fmt: skip
    assert (found.size, found.blocks) == (expected.st_size, expected.st_blocks)
    assert found.atime_sec * 10**9 + found.atime_nsec == expected.st_atime_ns
    assert found.mtime_sec * 10**9 + found.mtime_nsec == expected.st_mtime_ns
    assert found.ctime_sec * 10**9 + found.ctime_nsec == expected.st_ctime_ns
    assert os.makedev(found.dev_major, found.dev_minor) == expected.st_dev
    assert 0 < found.btime_sec <= found.ctime_sec


def test_times(driver: LocalDriver, at: At, root: Path) -> None:
    path = root / "file"
    node = at(b"file")
    driver.setattr(node, SetAttributes(atime_ns=1_000_000_001, mtime_ns=-1), 0)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, -1)
    driver.setattr(node, SetAttributes(mtime_ns=2_000_000_002), 0)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    driver.setattr(node, SetAttributes(atime_ns=NOW), 0)
    assert path.stat().st_atime_ns > 10**18
    assert path.stat().st_mtime_ns == 2_000_000_002


@pytest.mark.parametrize("time", [(1 << 64) * 10**9, 1 << 200, -(1 << 64) * 10**9])
def test_times_that_no_clock_shows_change_nothing(driver: LocalDriver, at: At, root: Path, time: int) -> None:
    before = (root / "file").stat()
    with pytest.raises(OSError, match="Invalid") as caught:
        driver.setattr(at(b"file"), SetAttributes(mode=0o7, mtime_ns=time, size=0), 0)
    assert caught.value.errno == errno.EINVAL
    assert (root / "file").stat() == before


def test_times_of_a_symbolic_link(driver: LocalDriver, at: At, root: Path) -> None:
    before = (root / "file").stat()
    driver.setattr(at(b"link"), SetAttributes(mtime_ns=7), 0)
    assert os.lstat(root / "link").st_mtime_ns == 7
    assert (root / "file").stat() == before


def test_mode(driver: LocalDriver, at: At, root: Path) -> None:
    for name in ("file", "folder", "fifo"):
        if name == "fifo" and driver._model.name == "mapped-xattr":
            continue  # a fifo of the host has no attributes (xattr(7))
        before = (root / name).stat().st_mode
        driver.setattr(at(name.encode()), SetAttributes(mode=0o7531), 0)
        assert driver.getattr(at(name.encode()))[1].mode == stat.S_IFMT(before) | 0o7531
        after = (root / name).stat().st_mode
        assert after == before if driver._model.mapped else after & 0o7777 == 0o7531
    if driver._model.name == "mapped-file":
        driver.setattr(at(b"link"), SetAttributes(mode=0o600), 0)
        assert driver.getattr(at(b"link"))[1].mode == stat.S_IFLNK | 0o600
        return
    with pytest.raises(OSError, match="Errno") as caught:
        driver.setattr(at(b"link"), SetAttributes(mode=0o777), 0)
    assert caught.value.errno == (errno.EPERM if driver._model.mapped else errno.ELOOP)


@needs_root
def test_owner(driver: LocalDriver, at: At, root: Path) -> None:
    for name in ("file", "folder", "", "fifo", "link"):
        node = at(name.encode())
        if driver._model.name == "mapped-xattr" and name in {"fifo", "link"}:  # they have no attributes on the host
            with pytest.raises(PermissionError):
                driver.setattr(node, SetAttributes(uid=1000), 0)
            continue
        driver.setattr(node, SetAttributes(uid=1000), 0)
        driver.setattr(node, SetAttributes(gid=1001), 0)
        seen, status = driver.getattr(node)[1], os.lstat(root / name)
        assert (seen.uid, seen.gid) == (1000, 1001)
        assert (status.st_uid, status.st_gid) == ((0, 0) if driver._model.mapped else (1000, 1001))


@needs_root
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_new_owner_does_not_inherit_the_set_ids(driver: LocalDriver, at: At, root: Path, uid: int) -> None:  # H160
    for name in ("file", "folder"):
        if driver._model.mapped:
            driver.setattr(at(name.encode()), SetAttributes(mode=0o6755), 0)
        else:
            (root / name).chmod(0o6755)
        driver.setattr(at(name.encode()), SetAttributes(uid=5), uid)
    kept = driver._model.mapped and not uid  # Linux clears them for everybody
    assert driver.getattr(at(b"file"))[1].mode & 0o7777 == (0o6755 if kept else 0o755)
    assert driver.getattr(at(b"folder"))[1].mode & 0o7777 == 0o6755


def test_size(driver: LocalDriver, at: At, root: Path) -> None:
    node = at(b"file")
    driver.setattr(node, SetAttributes(size=2), 0)
    assert (root / "file").read_bytes() == b"he"
    driver.setattr(node, SetAttributes(size=4), 0)
    assert (root / "file").read_bytes() == b"he\0\0"
    for name, size, code in (
        (b"folder", 0, errno.EISDIR), (b"fifo", 0, errno.EINVAL), (b"link", 0, errno.EINVAL),
        (b"file", 1 << 63, errno.EFBIG), (b"file", (1 << 64) - 1, errno.EFBIG),
    ):  # fmt: skip
        with pytest.raises(OSError, match="Errno") as caught:
            driver.setattr(at(name), SetAttributes(size=size), 0)
        assert caught.value.errno in {code, errno.EINVAL}
    assert (root / "file").read_bytes() == b"he\0\0"


def test_touch(driver: LocalDriver, at: At, root: Path) -> None:
    os.utime(root / "file", ns=(1, 1))
    before = (root / "file").stat()
    while (root / "file").stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems are coarse
        driver.setattr(at(b"file"), SetAttributes(touch_ctime=True), 0)
    after = (root / "file").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
    driver.setattr(at(b"file"), SetAttributes(), 0)


def test_the_root_means_the_root_of_the_export(driver: LocalDriver, at: At, root: Path) -> None:  # H004
    node = at(b"")
    driver.setattr(node, SetAttributes(mode=0o751, mtime_ns=5), 0)
    driver.setxattr(node, b"user.x", b"y", 0, 0)
    seen = driver.getattr(node)[1]
    assert (seen.mode & 0o7777, seen.mtime_sec, seen.mtime_nsec) == (0o751, 0, 5)
    assert driver._model.mapped or root.stat().st_mode & 0o7777 == 0o751
    assert os.getxattr(root, "user.x") == b"y"


def test_statfs(driver: LocalDriver, at: At, root: Path) -> None:  # H088, H136
    expected = os.statvfs(root)
    found = driver.statfs(at(b"file"))
    assert found.type in {0xEF53, 0x01021994} or found.type
    assert (found.bsize, found.blocks, found.files, found.namelen) == (
        expected.f_bsize, expected.f_blocks, expected.f_files, 255,
    )  # fmt: skip
    assert found.bavail <= found.bfree <= found.blocks
    assert 0 < found.fsid < 1 << 64
    assert driver.statfs(at(b"link")).fsid == found.fsid


def test_a_file_system_without_an_id(driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.local_attributes.fstatfs", lambda _fd: StatFs(1, 0, 3, 4, 5, 6, 7, 0, 255))
    found = driver.statfs(at(b""))
    assert found == (1, 0, 3, 4, 5, 6, 7, root.stat().st_dev, 255)


def test_xattrs(driver: LocalDriver, at: At, root: Path) -> None:
    node = at(b"file")
    assert driver.listxattr(node) == b""
    driver.setxattr(node, b"user.a", b"1", os.XATTR_CREATE, 0)
    driver.setxattr(node, b"user.\xff", b"", 0, 0)
    driver.setxattr(node, b"user.a", b"\0\1\2", os.XATTR_REPLACE, 0)
    assert driver.getxattr(node, b"user.a") == b"\0\1\2"
    assert driver.getxattr(node, b"user.\xff") == b""
    assert sorted(driver.listxattr(node).split(b"\0")) == [b"", b"user.a", b"user.\xff"]
    driver.removexattr(node, b"user.a", 0)
    assert os.listxattr(os.fsencode(root) + b"/file") == ["user.\udcff"]
    for operation, code in (
        (lambda: driver.getxattr(node, b"user.a"), errno.ENODATA),
        (lambda: driver.removexattr(node, b"user.a", 0), errno.ENODATA),
        (lambda: driver.setxattr(node, b"user.a", b"", os.XATTR_REPLACE, 0), errno.ENODATA),
        (lambda: driver.setxattr(node, b"user.\xff", b"", os.XATTR_CREATE, 0), errno.EEXIST),
        (lambda: driver.setxattr(node, b"user." + b"n" * 251, b"", 0, 0), errno.ERANGE),  # H065
        (lambda: driver.setxattr(node, b"user.big", b"x" * 65537, 0, 0), errno.E2BIG),
        (lambda: driver.setxattr(node, b"user.flags", b"", 1 << 30, 0), errno.EINVAL),
        (lambda: driver.getxattr(node, b"user.\0"), errno.EOPNOTSUPP),
        (lambda: driver.setxattr(at(b"link"), b"user.a", b"", 0, 0), errno.EPERM),
        (lambda: driver.setxattr(at(b"fifo"), b"user.a", b"", 0, 0), errno.EPERM),
    ):
        with pytest.raises(OSError, match="Errno") as caught:
            operation()
        assert caught.value.errno == code


@needs_root
@pytest.mark.parametrize("name", [b"trusted.x", b"security.x", b"system.x", b"nothing"])
def test_other_namespaces_are_not_there(driver: LocalDriver, at: At, root: Path, name: bytes) -> None:
    if name.startswith((b"trusted", b"security")):
        os.setxattr(root / "file", name, b"host")
    node = at(b"file")
    assert driver.listxattr(node) == b""
    for operation in (
        lambda: driver.getxattr(node, name),
        lambda: driver.setxattr(node, name, b"guest", 0, 0),
        lambda: driver.removexattr(node, name, 0),
    ):
        with pytest.raises(OSError, match="not supported") as caught:
            operation()
        assert caught.value.errno == errno.EOPNOTSUPP


ACL = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 7, 1000, 4, 4, 0xFFFFFFFF, 0x10, 7, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF
)


@needs_root
def test_acls(driver: LocalDriver, at: At, root: Path) -> None:
    if driver._model.name == "mapped-xattr":
        pytest.skip("kept under another name")
    node = at(b"file")
    try:
        driver.setxattr(node, b"system.posix_acl_access", ACL, 0, 0)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("no ACLs on this file system")
        raise
    assert driver.getxattr(node, b"system.posix_acl_access") == ACL
    assert driver.listxattr(node) == b"system.posix_acl_access\0"
    assert (root / "file").stat().st_mode & 0o777 == 0o670
    with LocalContext(root) as (export, top):
        file = export.walk(top, [b"file"]).node
        assert file is not None
        assert export.listxattr(file) == b""
        with pytest.raises(OSError, match="not supported"):
            export.getxattr(file, b"system.posix_acl_access")


READ_ONLY_ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 4, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)


@pytest.mark.parametrize("how", ["mode", "acl"])
def test_an_open_file_stays_writable(
    root: Path, security_model: str, no_leak: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also one that is closed for now, which the new mode would forbid an ordinary user to open again."""
    if (security_model, how) in {("none", "acl"), ("mapped-xattr", "acl")}:
        pytest.skip("no ACLs of the host")
    for index in range(60):
        (root / f"{index}").touch()
    try:
        driver = LocalDriver(root, security_model, max_descriptors=20)
    except ConfigError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("pyvirtfs.fsdev.closing._opens_anything", lambda: False)
    top, _ = driver.attach(b"", 0)
    node, file, _ = driver.create(top, b"new", os.O_RDWR, 0o600, os.geteuid(), os.getegid())
    held = []
    for index in range(40):
        found = driver.walk(top, [b"%d" % index]).node
        assert found is not None
        held.append((found, driver.open(found, os.O_RDWR, 0)[0]))

    def is_closed() -> bool:
        return file.closer is not None

    assert is_closed()
    try:
        if how == "mode":
            driver.setattr(node, SetAttributes(mode=0o400), 0)
        else:
            driver.setxattr(node, b"system.posix_acl_access", READ_ONLY_ACL, 0, 0)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        driver.close()
        pytest.skip("no ACLs on this file system")
    assert is_closed() == (how == "mode" and driver._model.mapped)  # which changes nothing on the host
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    driver.close()


class LocalContext:
    """An export with security_model=none."""

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        self.export = LocalDriver(root, "none", readonly=readonly)

    def __enter__(self) -> tuple[LocalDriver, Node]:
        return self.export, self.export.attach(b"", 0)[0]

    def __exit__(self, *_details: object) -> None:
        self.export.close()


def test_readonly(root: Path, driver: LocalDriver, no_leak: None) -> None:  # H163
    before = (root / "file").stat()
    with LocalContext(root, readonly=True) as (export, top):
        node = export.walk(top, [b"file"]).node
        assert node is not None
        operations: list[Callable[[], None]] = [
            lambda: export.setattr(node, SetAttributes(mode=0), 0),
            lambda: export.setattr(node, SetAttributes(), 0),
            lambda: export.setxattr(node, b"user.x", b"", 0, 0),
            lambda: export.removexattr(node, b"user.x", 0),
        ]
        for operation in operations:
            with pytest.raises(OSError, match="Read-only"):
                operation()
        assert export.getattr(node)[1].size == 5
    assert (root / "file").stat() == before


@needs_root
def test_a_truncation_that_fails_leaves_set_id_bits(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EFBIG, "too large")

    (root / "file").write_bytes(b"hello")
    (root / "file").chmod(0o6755)
    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="too large"):
        driver.setattr(at(b"file"), SetAttributes(size=1 << 60), 1000)
    monkeypatch.setattr(os, "ftruncate", truncate)
    assert (root / "file").stat().st_mode == 0o106755
    driver.setattr(at(b"file"), SetAttributes(size=1), 1000)
    assert (root / "file").stat().st_mode == 0o100755


def test_only_files_have_a_length(driver: LocalDriver, at: At) -> None:
    for name, code in ((b"folder", errno.EISDIR), (b"fifo", errno.EINVAL), (b"link", errno.EINVAL)):
        with pytest.raises(OSError, match="Errno") as caught:
            driver.setattr(at(name), SetAttributes(size=0), 0)
        assert caught.value.errno == code


LEASE_HOLDER = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)  # asked to give it up, it does not
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
print("held", flush=True)
sys.stdin.read()
"""


def test_truncation_does_not_wait_for_a_lease(driver: LocalDriver, at: At, root: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", LEASE_HOLDER, root / "file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"held\n":
            pytest.skip("this file system has no leases")
        with pytest.raises(BlockingIOError):  # truncate(2) would wait /proc/sys/fs/lease-break-time
            driver.setattr(at(b"file"), SetAttributes(size=1), 0)
        holder.kill()
    driver.setattr(at(b"file"), SetAttributes(size=1), 0)
    assert (root / "file").read_bytes() == b"h"
