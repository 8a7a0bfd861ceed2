"""What both mapped models do, through the driver."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import NONUNAME, SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.security.mapped import MappedModel, Overrides, is_past
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
MODELS = ["mapped-xattr", "mapped-file"]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", MODELS, indirect=True),
]
OWNER = (os.geteuid(), os.getegid())


def keep(driver: LocalDriver, node: Node, changes: Overrides) -> None:
    """Have something kept of an object that no request of a guest would ask for."""
    assert isinstance(driver._model, MappedModel)
    driver._model.keep(node.entry, changes)


def test_overrides(driver: LocalDriver) -> None:
    del driver
    assert Overrides(1, 2).updated(Overrides(gid=3, rdev=4)) == Overrides(1, 3, None, 4)


KINDS = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]


def make(driver: LocalDriver, top: Node, kind: int, name: bytes = b"new") -> None:
    if kind == stat.S_IFLNK:
        driver.symlink(top, name, b"target", 1000, 1001)
    else:
        driver.mknod(top, name, kind | 0o4640, 8, 1, 1000, 1001)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", [False, True], ids=["at once", "found again"])
def test_every_kind_is_a_file_of_the_server(
    driver: LocalDriver, at: At, root: Path, kind: int, again: bool
) -> None:  # H152, H165
    make(driver, at(b""), kind)
    export = LocalDriver(root, driver._model.name) if again else driver
    status = (root / "new").lstat()
    assert (status.st_mode, status.st_uid, status.st_gid) == (stat.S_IFREG | 0o600, *OWNER)
    top, _ = export.attach(b"", 0)
    walk = export.walk(top, [b"new"])
    assert walk.node is not None
    assert walk.qids[0].type == (2 if kind == stat.S_IFLNK else 0)
    qid, seen = export.getattr(walk.node)
    assert qid == walk.qids[0]
    assert (seen.mode, seen.uid, seen.gid) == (kind | (0o777 if kind == stat.S_IFLNK else 0o4640), 1000, 1001)
    assert (seen.rdev_major, seen.rdev_minor) == ((8, 1) if kind in {stat.S_IFCHR, stat.S_IFBLK} else (0, 0))
    if kind == stat.S_IFLNK:
        assert export.readlink(walk.node) == b"target"
        assert (root / "new").read_bytes() == b"target"
        assert seen.size == 6
    else:
        assert (root / "new").read_bytes() == b""
        with pytest.raises(OSError, match="Invalid"):
            export.readlink(walk.node)
    if kind != stat.S_IFREG:
        for operation, code in (
            (lambda: export.open(walk.node, os.O_RDWR, 0), errno.ENXIO),
            (lambda: export.setattr(walk.node, SetAttributes(size=0), 0), errno.EINVAL),
            (
                lambda: export.create(top, b"new", os.O_RDWR, 0o644, 0, 0),
                errno.ELOOP if kind == stat.S_IFLNK else errno.ENXIO,
            ),
        ):
            with pytest.raises(OSError, match="Errno") as caught:
                operation()
            assert caught.value.errno == code
    export.setattr(walk.node, SetAttributes(mode=0o666, uid=5), 0)  # a symbolic link has a mode here
    export.link(top, walk.node, b"second")
    export.renameat(top, b"new", top, b"third")
    for name in (b"second", b"third"):
        found = export.walk(top, [name])
        assert found.node is not None
        seen = export.getattr(found.node)[1]
        assert (seen.mode, seen.uid, seen.gid) == (kind | 0o666, 5, 1001)
        export.remove(found.node)
        export.release(found.node)
    assert [name for name in os.listdir(root) if name != ".virtfs_metadata"] == []
    export.release(walk.node)
    export.release(top)
    if again:
        export.close()


def test_fmode_and_dmode(root: Path, security_model: str, driver: LocalDriver) -> None:
    for options, fmode, dmode in (
        ("fmode=0644,dmode=0755", 0o644, 0o755),
        ("fmode=0400,dmode=0500", 0o400, 0o500),
        ("fmode=06777,dmode=07770", 0o777, 0o770),  # never with set-id bits
        ("fmode=420", 0o644, 0o700),  # decimal
    ):
        export = create(f"local,path={root},security_model={security_model},{options}")
        assert isinstance(export, LocalDriver)
        top, _ = export.attach(b"", 0)
        node, file, _ = export.create(top, b"file", os.O_RDWR, 0o751, 7, 8)
        assert export.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
        export.close_file(file)
        export.mkdir(top, b"folder", 0o2711, 7, 8)
        export.symlink(top, b"link", b"x", 7, 8)
        assert (root / "file").stat().st_mode == stat.S_IFREG | fmode
        assert (root / "link").lstat().st_mode == stat.S_IFREG | fmode
        assert (root / "folder").stat().st_mode == stat.S_IFDIR | dmode
        seen = export.getattr(node)[1]
        assert (seen.mode, seen.uid, seen.gid) == (stat.S_IFREG | 0o751, 7, 8)
        export.release(node)
        for name in (b"file", b"link"):
            export.unlinkat(top, name, folder=False)
        export.unlinkat(top, b"folder", folder=True)
        export.close()


def test_an_object_without_metadata_is_what_the_host_says(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").write_bytes(b"hello")
    (root / "file").chmod(0o4751)
    os.symlink("file", root / "link")
    os.mkfifo(root / "fifo")
    for name in (b"file", b"link", b"fifo", b""):
        status = os.lstat(os.fsencode(root) + b"/" + name)
        seen = driver.getattr(at(name))[1]
        assert (seen.mode, seen.uid, seen.gid) == (status.st_mode, status.st_uid, status.st_gid)
    assert driver.readlink(at(b"link")) == b"file"
    assert driver.walk(at(b""), [b"link"]).qids[0].type == 2
    driver.release(at(b"link"))


@pytest.mark.parametrize("mode", [0, 0o644])
def test_a_mode_without_a_type(driver: LocalDriver, at: At, root: Path, mode: int) -> None:
    (root / "file").touch()
    keep(driver, at(b"file"), Overrides(mode=mode))
    assert driver.getattr(at(b"file"))[1].mode == stat.S_IFREG | mode


@pytest.mark.parametrize(
    "kept",
    [
        Overrides(mode=stat.S_IFDIR | 0o755),
        Overrides(mode=0o170000 | 0o755),
        Overrides(mode=0o1000000),
        Overrides(uid=NONUNAME),
        Overrides(gid=NONUNAME),
    ],
)
def test_what_cannot_be_is_not_believed(
    driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture, kept: Overrides
) -> None:
    (root / "file").touch()
    before = driver.getattr(at(b"file"))[1]
    for _ in range(3):
        keep(driver, at(b"file"), kept)
        seen = driver.getattr(at(b"file"))[1]
        assert seen[1:5] == before[1:5]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert repr(os.fsencode(root / "file")) in record.getMessage()
    assert driver._model.name in record.getMessage()


def test_warnings_take_a_bounded_amount_of_memory(
    driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.security.mapped._REMEMBERED_WARNINGS", 2)
    assert isinstance(driver._model, MappedModel)
    for index in range(4):
        (root / f"{index}").touch()
        keep(driver, at(b"%d" % index), Overrides(uid=NONUNAME))
        driver.getattr(at(b"%d" % index))
    assert len(driver._model._warned) == 2
    assert len(caplog.records) == 4


def test_a_folder_stays_a_folder(driver: LocalDriver, at: At, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "folder").mkdir()
    keep(driver, at(b"folder"), Overrides(mode=stat.S_IFLNK | 0o777))
    assert driver.getattr(at(b"folder"))[0].type == 0x80
    assert driver.getattr(at(b"folder"))[1].mode == (root / "folder").stat().st_mode
    assert len(caplog.records) == 1


def test_chown_of_nothing_is_a_touch(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), stat.S_IFIFO)
    node = at(b"new")
    before = (root / "new").stat().st_ctime_ns
    while (root / "new").stat().st_ctime_ns == before:  # clocks of file systems are coarse
        driver.setattr(node, SetAttributes(touch_ctime=True), 0)
    before = (root / "new").stat().st_ctime_ns
    while (root / "new").stat().st_ctime_ns == before:
        driver.setattr(node, SetAttributes(uid=NONUNAME, gid=NONUNAME), 0)
    assert driver.getattr(node)[1][1:4] == (1000, 1001, stat.S_IFIFO | 0o4640)


def test_every_change_of_attributes_changes_the_ctime(driver: LocalDriver, at: At) -> None:
    make(driver, at(b""), stat.S_IFREG)
    node = at(b"new")
    for changes in (SetAttributes(mode=0o600), SetAttributes(uid=1), SetAttributes(gid=1)):
        before = driver.getattr(node)[0].version
        while driver.getattr(node)[0].version == before:
            driver.setattr(node, changes, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_set_id_bits_of_the_host_go_too(driver: LocalDriver, at: At, root: Path) -> None:  # H160
    (root / "file").touch()
    (root / "file").chmod(0o6755)
    keep(driver, at(b"file"), Overrides(mode=stat.S_IFREG | 0o6711))
    file, _ = driver.open(at(b"file"), os.O_WRONLY, 1000)
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    driver.close_file(file)
    assert (root / "file").stat().st_mode == stat.S_IFREG | 0o755
    assert driver.getattr(at(b"file"))[1].mode == stat.S_IFREG | 0o711


def test_a_target_of_the_hosts_that_is_too_long(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), stat.S_IFLNK)
    (root / "new").write_bytes(b"t" * 4095)
    assert driver.readlink(at(b"new")) == b"t" * 4095
    (root / "new").write_bytes(b"t" * 4096)
    with pytest.raises(OSError, match="too long"):
        driver.readlink(at(b"new"))


def test_a_link_that_cannot_be_written(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda *_args: 1)
    with pytest.raises(OSError, match="No space"):
        driver.symlink(at(b""), b"link", b"target", 0, 0)
    assert [name for name in os.listdir(root) if name != ".virtfs_metadata"] == []


def test_the_kind_follows_what_another_server_writes(driver: LocalDriver, at: At, root: Path) -> None:
    """A server makes the file first and says afterwards that it is a symbolic link."""
    (root / "file").write_bytes(b"target")
    node = at(b"file")
    assert driver.getattr(node)[0].type == 0
    other = LocalDriver(root, driver._model.name)
    top, _ = other.attach(b"", 0)
    theirs = other.walk(top, [b"file"]).node
    assert theirs is not None
    keep(other, theirs, Overrides(mode=stat.S_IFLNK | 0o777))
    other.close()
    assert driver.getattr(node)[0].type == 2
    walk = driver.walk(at(b""), [b"file"])
    assert walk.qids[0].type == 2
    assert driver.readlink(node) == b"target"
    driver.release(node)


def test_a_failure_of_looking_up_fails_the_walk(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, "disk")

    (root / "file").touch()
    top = at(b"")
    monkeypatch.setattr(type(driver._model), "look_up", refuse)
    with pytest.raises(OSError, match="disk"):
        driver.walk(top, [b"file"])


def test_is_past(driver: LocalDriver) -> None:
    del driver
    now = time.time_ns()
    assert is_past(*divmod(now - 1_000_000_000, 10**9))
    assert not is_past(*divmod(now - 10_000_000, 10**9))
    assert not is_past(*divmod(now + 10_000_000_000, 10**9))


def unprivileged(top: str, model: str) -> None:
    """Runs as an ordinary user."""
    os.umask(0o777)
    driver = LocalDriver(top, model)
    root, _ = driver.attach(b"", 0)
    node, file, _ = driver.create(root, b"file", os.O_RDWR, 0o4000, 0, 0)
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    driver.close_file(file)
    driver.setattr(node, SetAttributes(mode=0o6711, uid=12, gid=13), 0)
    assert driver.getattr(node)[1][1:4] == (12, 13, stat.S_IFREG | 0o6711)
    driver.mkdir(root, b"folder", 0, 0, 0)
    folder = driver.walk(root, [b"folder"]).node
    assert folder is not None
    driver.mknod(folder, b"device", stat.S_IFBLK | 0o660, 8, 0, 0, 6)
    driver.symlink(folder, b"link", b"file", 0, 0)
    driver.renameat(folder, b"device", root, b"device")
    driver.unlinkat(folder, b"link", folder=False)
    driver.unlinkat(root, b"folder", folder=True)
    device = driver.walk(root, [b"device"]).node
    assert device is not None
    assert driver.getattr(device)[1].rdev_major == 8
    driver.setattr(root, SetAttributes(mode=0o1777, uid=0), 0)
    assert driver.getattr(root)[1].mode == stat.S_IFDIR | 0o1777
    driver.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts as root to become somebody else")
def test_no_privilege_is_needed(driver: LocalDriver, security_model: str) -> None:
    top = tempfile.mkdtemp()
    try:
        os.chown(top, 65534, 65534)
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: or /proc/self would be root's
                unprivileged(top, security_model)
            except ConfigError:  # no extended attributes there
                pass
            except BaseException:  # noqa: BLE001  (the child must never return into pytest)
                os.write(writable, traceback.format_exc().encode())
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            assert pipe.read().decode() == ""
        os.waitpid(child, 0)
    finally:
        shutil.rmtree(top)
