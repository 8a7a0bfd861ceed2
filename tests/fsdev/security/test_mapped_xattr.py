from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["mapped-xattr"], indirect=True),
]
ACL = struct.pack("<I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


def by_qemu(path: Path, uid: int, gid: int, mode: int, rdev: int | None = None) -> None:
    """Attributes as QEMU's local driver sets them, byte by byte."""
    os.setxattr(path, "user.virtfs.uid", uid.to_bytes(4, "little"))
    os.setxattr(path, "user.virtfs.gid", gid.to_bytes(4, "little"))
    os.setxattr(path, "user.virtfs.mode", mode.to_bytes(4, "little"))
    if rdev is not None:
        os.setxattr(path, "user.virtfs.rdev", rdev.to_bytes(8, "little"))


def test_a_folder_that_qemu_has_written(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").write_bytes(b"hello")
    by_qemu(root / "file", 1000, 1001, 0o104755)
    (root / "folder").mkdir()
    by_qemu(root / "folder", 0, 50, 0o043775)
    (root / "link").write_bytes(b"../target")
    by_qemu(root / "link", 5, 6, 0o120777)
    (root / "sda1").touch()
    by_qemu(root / "sda1", 0, 6, 0o060660, 0x801)
    (root / "tty").touch()
    by_qemu(root / "tty", 0, 5, 0o020620, (0x123 << 8) | 0x78 | (0x456 << 20))
    (root / "socket").touch()
    by_qemu(root / "socket", 0xFFFFFFFE, 0x80000000, 0o140755, 0)
    by_qemu(root, 3, 4, 0o041777)
    for name, uid, gid, mode, device, type_ in (
        (b"file", 1000, 1001, 0o104755, (0, 0), 0),
        (b"folder", 0, 50, 0o043775, (0, 0), 0x80),
        (b"link", 5, 6, 0o120777, (0, 0), 2),
        (b"sda1", 0, 6, 0o060660, (8, 1), 0),
        (b"tty", 0, 5, 0o020620, (0x123, 0x45678), 0),
        (b"socket", 0xFFFFFFFE, 0x80000000, 0o140755, (0, 0), 0),
        (b"", 3, 4, 0o041777, (0, 0), 0x80),
    ):
        qid, seen = driver.getattr(at(name))
        assert (seen.uid, seen.gid, seen.mode) == (uid, gid, mode), name
        assert (seen.rdev_major, seen.rdev_minor, qid.type) == (*device, type_), name
    assert driver.readlink(at(b"link")) == b"../target"


def test_what_is_written_is_what_qemu_reads(driver: LocalDriver, at: At, root: Path) -> None:
    top = at(b"")
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o640, 0x01020304, 1001)
    driver.close_file(file)
    driver.release(node)
    driver.mkdir(top, b"folder", 0o2755, 1, 2)
    driver.symlink(top, b"link", b"t", 1, 2)
    driver.mknod(top, b"device", stat.S_IFCHR | 0o600, 5, 1, 1, 2)
    driver.mknod(top, b"fifo", stat.S_IFIFO | 0o620, 3, 4, 1, 2)
    driver.mknod(top, b"socket", stat.S_IFSOCK | 0o755, 0, 0, 1, 2)
    driver.setattr(top, SetAttributes(uid=7), 0)
    found = {
        path.name: {name: os.getxattr(path, name) for name in os.listxattr(path)} for path in (root, *root.iterdir())
    }
    ids = {"user.virtfs.uid": b"\1\0\0\0", "user.virtfs.gid": b"\2\0\0\0"}
    assert found == {
        "file": {"user.virtfs.uid": b"\4\3\2\1", "user.virtfs.gid": b"\xe9\3\0\0", "user.virtfs.mode": b"\xa0\x81\0\0"},
        "folder": {**ids, "user.virtfs.mode": b"\xed\x45\0\0"},
        "link": {**ids, "user.virtfs.mode": b"\xff\xa1\0\0"},
        "device": {**ids, "user.virtfs.mode": b"\x80\x21\0\0", "user.virtfs.rdev": b"\1\5\0\0\0\0\0\0"},
        "fifo": {**ids, "user.virtfs.mode": b"\x90\x11\0\0", "user.virtfs.rdev": bytes(8)},
        "socket": {**ids, "user.virtfs.mode": b"\xed\xc1\0\0", "user.virtfs.rdev": bytes(8)},
        root.name: {"user.virtfs.uid": b"\7\0\0\0"},
    }


def test_the_models_own_attributes_are_not_there(driver: LocalDriver, at: At, root: Path) -> None:  # H067
    driver.mknod(at(b""), b"file", 0o600, 0, 0, 1, 2)
    node = at(b"file")
    before = {name: os.getxattr(root / "file", name) for name in os.listxattr(root / "file")}
    assert driver.listxattr(node) == b""
    driver.setxattr(node, b"user.mine", b"x", 0, 0)
    driver.setxattr(node, b"user.virtfs", b"not one of them", 0, 0)
    assert sorted(driver.listxattr(node).split(b"\0")) == [b"", b"user.mine", b"user.virtfs"]
    for name in (
        b"user.virtfs.uid",
        b"user.virtfs.mode",
        b"user.virtfs.new",
        b"user.virtfs.",
        b"user.virtfs." + ACCESS,
    ):
        for operation, code in (
            (lambda name=name: driver.getxattr(node, name), errno.ENODATA),
            (lambda name=name: driver.setxattr(node, name, b"1234", 0, 0), errno.EACCES),
            (lambda name=name: driver.removexattr(node, name, 0), errno.EACCES),
        ):
            with pytest.raises(OSError, match="Errno") as caught:
                operation()
            assert caught.value.errno == code
    assert {name: os.getxattr(root / "file", name) for name in before} == before


@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
def test_acls_are_kept_under_another_name(driver: LocalDriver, at: At, root: Path, name: bytes) -> None:  # H067
    (root / "folder").mkdir()
    node = at(b"folder")
    with pytest.raises(OSError, match="No data"):
        driver.getxattr(node, name)
    driver.removexattr(node, name, 0)  # there is none: it succeeds
    driver.setxattr(node, name, b"", 0, 0)  # an empty one is none
    assert driver.listxattr(node) == b""
    before = (root / "folder").stat().st_mode
    driver.setxattr(node, name, ACL, os.XATTR_CREATE, 0)
    assert driver.getxattr(node, name) == ACL
    assert driver.listxattr(node) == name + b"\0"
    assert os.getxattr(root / "folder", b"user.virtfs." + name) == ACL
    assert (root / "folder").stat().st_mode == before
    with pytest.raises(FileExistsError):
        driver.setxattr(node, name, ACL, os.XATTR_CREATE, 0)
    driver.setxattr(node, name, b"", 0, 0)
    assert os.listxattr(root / "folder") == []
    driver.setxattr(node, name, ACL, 0, 0)
    driver.removexattr(node, name, 0)
    assert os.listxattr(root / "folder") == []
    with pytest.raises(OSError, match="No data"):
        driver.removexattr(node, b"user.x", 0)


@pytest.mark.parametrize("attribute", ["uid", "gid", "mode"])
@pytest.mark.parametrize("value", [b"", b"\1", b"\1\2\3", b"\1\2\3\4\5", bytes(8), b"x" * 300])
def test_attributes_of_the_wrong_size(
    driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture, attribute: str, value: bytes
) -> None:
    (root / "file").touch()
    by_qemu(root / "file", 1000, 1001, 0o100751)
    os.setxattr(root / "file", f"user.virtfs.{attribute}", value)
    before = {name: os.getxattr(root / "file", name) for name in os.listxattr(root / "file")}
    host = (root / "file").stat()
    for _ in range(3):
        seen = driver.getattr(at(b"file"))[1]
        assert seen.uid == (host.st_uid if attribute == "uid" else 1000)
        assert seen.gid == (host.st_gid if attribute == "gid" else 1001)
        assert seen.mode == (host.st_mode if attribute == "mode" else 0o100751)
    assert {name: os.getxattr(root / "file", name) for name in os.listxattr(root / "file")} == before
    (record,) = caplog.records
    assert f"user.virtfs.{attribute} has {len(value)} bytes" in record.getMessage()
    driver.setattr(at(b"file"), SetAttributes(mode=0o600, uid=3, gid=4), 0)  # which repairs it
    seen = driver.getattr(at(b"file"))[1]
    assert (seen.uid, seen.gid, seen.mode) == (3, 4, 0o100600)


@pytest.mark.parametrize("attribute", ["uid", "gid", "mode"])
def test_an_object_written_by_half(
    driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture, attribute: str
) -> None:
    (root / "file").touch()
    number = {"uid": 5, "gid": 6, "mode": 0o120777}[attribute]
    os.setxattr(root / "file", f"user.virtfs.{attribute}", number.to_bytes(4, "little"))
    host = (root / "file").stat()
    seen = driver.getattr(at(b"file"))[1]
    expected = {"uid": host.st_uid, "gid": host.st_gid, "mode": host.st_mode, attribute: number}
    assert {"uid": seen.uid, "gid": seen.gid, "mode": seen.mode} == expected
    assert not caplog.records


def test_a_device_without_a_number(driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in (("none", None), ("bad", b"1234")):
        (root / name).touch()
        by_qemu(root / name, 0, 0, 0o060660)
        if value is not None:
            os.setxattr(root / name, "user.virtfs.rdev", value)
        seen = driver.getattr(at(name.encode()))[1]
        assert (seen.mode, seen.rdev_major, seen.rdev_minor) == (0o060660, 0, 0)
    assert len(caplog.records) == 1


# --- what is remembered ---


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The attributes that were read."""
    names: list[bytes] = []
    real = os.getxattr

    def count(path: Any, name: Any, *args: Any, **keywords: Any) -> bytes:
        names.append(name)
        return real(path, name, *args, **keywords)

    monkeypatch.setattr(os, "getxattr", count)
    return names


def test_an_old_object_is_read_once(driver: LocalDriver, at: At, root: Path, reads: list[bytes]) -> None:
    (root / "file").touch()
    by_qemu(root / "file", 1, 2, 0o100600)
    (root / "bare").touch()
    time.sleep(0.08)  # until their ctimes are old enough to tell
    for name, count in ((b"file", 3), (b"bare", 1)):
        reads.clear()
        node = at(name)
        for _ in range(5):
            driver.getattr(node)
        assert len(reads) == count
    os.setxattr(root / "file", "user.virtfs.uid", b"\x09\0\0\0")  # by another server
    assert driver.getattr(at(b"file"))[1].uid == 9


@pytest.mark.parametrize("when", ["young", "in the future"])
def test_a_ctime_that_does_not_tell(
    driver: LocalDriver, at: At, root: Path, reads: list[bytes], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (root / "file").touch()
    by_qemu(root / "file", 1, 2, 0o100600)
    ctime = (root / "file").stat().st_ctime_ns
    monkeypatch.setattr("time.time_ns", lambda: ctime + (40_000_000 if when == "young" else -10_000_000_000))
    node = at(b"file")
    for _ in range(3):
        reads.clear()
        assert driver.getattr(node)[1].uid == 1
        assert len(reads) == 3
    monkeypatch.setattr("time.time_ns", lambda: ctime + 60_000_000)
    driver.getattr(node)
    reads.clear()
    driver.getattr(node)
    assert reads == []


def test_many_changes_within_one_tick_are_all_seen(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").touch()
    node = at(b"file")
    for uid in range(300):
        os.setxattr(root / "file", "user.virtfs.uid", uid.to_bytes(4, "little"))
        assert driver.getattr(node)[1].uid == uid


def test_a_write_reads_the_mode_only(driver: LocalDriver, at: At, root: Path, reads: list[bytes]) -> None:
    driver.mknod(at(b""), b"file", 0o4755, 0, 0, 1, 2)
    file, _ = driver.open(at(b"file"), os.O_WRONLY, 1000)
    reads.clear()
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    assert set(reads) == {b"user.virtfs.mode"}
    assert driver.getattr(at(b"file"))[1].mode == 0o100755
    driver.close_file(file)
    assert (root / "file").read_bytes() == b"x"


# --- failures ---


def test_a_change_of_owner_is_made_or_not(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "file").touch()
    (root / "fresh").touch()
    by_qemu(root / "file", 1, 2, 0o100600)
    real = os.setxattr

    def refuse(path: Any, name: Any, value: Any, *args: Any) -> None:
        if name == b"user.virtfs.gid":
            raise OSError(errno.ENOSPC, "full")
        real(path, name, value, *args)

    monkeypatch.setattr(os, "setxattr", refuse)
    for name in (b"file", b"fresh"):
        before = driver.getattr(at(name))[1]
        with pytest.raises(OSError, match="full"):
            driver.setattr(at(name), SetAttributes(uid=5, gid=6), 0)
        assert driver.getattr(at(name))[1][1:4] == before[1:4]
    assert os.listxattr(root / "fresh") == []


@pytest.mark.parametrize(("code", "shown"), [(errno.EACCES, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)])
def test_attributes_that_cannot_be_read(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, shown: bool
) -> None:
    (root / "file").touch()
    by_qemu(root / "file", 1, 2, 0o100600)
    node = at(b"file")

    def refuse(*_args: object, **_keywords: object) -> bytes:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "getxattr", refuse)
    node.entry.mapped = None
    if shown:
        assert driver.getattr(node)[1].uid == os.geteuid()
    else:
        with pytest.raises(OSError, match="no"):
            driver.getattr(node)
    monkeypatch.undo()


# --- the start ---


@pytest.mark.parametrize("call", ["getxattr", "setxattr"])
@pytest.mark.parametrize("model", ["mapped", "mapped-xattr"])
def test_a_file_system_without_attributes(
    root: Path, driver: LocalDriver, monkeypatch: pytest.MonkeyPatch, call: str, model: str
) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ConfigError, match=r"^security_model: 'mapped-xattr' .*mapped-file, none") as caught:
        LocalDriver(root, model)
    assert repr(os.fspath(root)) in str(caught.value)
    if call == "setxattr":
        LocalDriver(root, model, readonly=True).close()  # nothing will be written
    else:
        with pytest.raises(ConfigError):
            LocalDriver(root, model, readonly=True)


def test_the_start_leaves_nothing_behind(root: Path, driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (root.stat(), os.listxattr(root), os.listdir(root))
    LocalDriver(root, "mapped-xattr").close()
    assert (root.stat(), os.listxattr(root), os.listdir(root)) == before
    real = os.open

    def refuse(path: Any, flags: int, *args: Any, **keywords: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no nameless files")
        return real(path, flags, *args, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    LocalDriver(root, "mapped-xattr").close()
    assert (root.stat(), os.listxattr(root), os.listdir(root)) == before
