from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev import local_create
from pyvirtfs.fsdev.driver import NONUNAME, Attributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-xattr", "mapped-file"], indirect=True),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ME, MY_GROUP = os.geteuid(), os.getegid()


@pytest.fixture(params=[0o777, 0o022, 0])
def umask(request: pytest.FixtureRequest, tidy: None) -> Iterator[None]:  # `tidy`: the export is made before
    before = os.umask(request.param)
    yield
    os.umask(before)


def guest_attributes(driver: LocalDriver, name: bytes) -> Attributes:
    """What the guest sees of something in the root."""
    top, _ = driver.attach(b"", 0)
    node = driver.walk(top, [name]).node
    assert node is not None
    attributes = driver.getattr(node)[1]
    driver.release(node)
    driver.release(top)
    return attributes


def guest_mode(driver: LocalDriver, name: bytes) -> int:
    """The permission bits that the guest sees."""
    return stat.S_IMODE(guest_attributes(driver, name).mode)


@pytest.mark.parametrize("mode", [0, 0o644, 0o777, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777])
@pytest.mark.usefixtures("umask")
def test_modes_are_exact(driver: LocalDriver, at: At, root: Path, mode: int) -> None:  # H162, H165
    top = at(b"")
    node, file, _ = driver.create(top, b"file", os.O_RDWR, stat.S_IFREG | mode, ME, MY_GROUP)
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1 or mode
    driver.close_file(file)
    driver.release(node)
    driver.mkdir(top, b"folder", mode, ME, MY_GROUP)
    driver.mknod(top, b"node", stat.S_IFREG | mode, 0, 0, ME, MY_GROUP)
    driver.mknod(top, b"fifo", stat.S_IFIFO | mode, 0, 0, ME, MY_GROUP)
    driver.symlink(top, b"link", b"x", ME, MY_GROUP)
    assert guest_mode(driver, b"file") in {mode, mode & ~0o6000 if ME else mode}
    for name in (b"folder", b"node", b"fifo"):
        assert guest_mode(driver, name) == mode, name
    for path in root.iterdir():
        status = path.lstat()
        if not driver._model.mapped:
            assert stat.S_IMODE(status.st_mode) == guest_mode(driver, os.fsencode(path.name))
        elif path.name == ".virtfs_metadata":
            assert status.st_mode == stat.S_IFDIR | 0o700
            for metadata in path.iterdir():
                assert metadata.lstat().st_mode == stat.S_IFREG | 0o600
        else:
            assert status.st_mode == (stat.S_IFDIR | 0o700 if path.name == "folder" else stat.S_IFREG | 0o600)
            assert (status.st_uid, status.st_gid) == (ME, MY_GROUP)


@needs_root
def test_owners_are_those_asked_for(driver: LocalDriver, at: At, root: Path) -> None:  # H166
    top = at(b"")
    node, file, qid = driver.create(top, b"file", os.O_WRONLY, 0o6755, 1000, 1001)
    assert qid == driver.getattr(node)[0]
    driver.close_file(file)
    driver.release(node)
    for name, made in (
        ("folder", driver.mkdir(top, b"folder", 0o2755, 1000, 1001)),
        ("link", driver.symlink(top, b"link", b"nowhere", 1000, 1001)),
        ("fifo", driver.mknod(top, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 1000, 1001)),
        ("node", driver.mknod(top, b"node", 0o6755, 0, 0, 1000, 1001)),
        ("file", qid),
    ):
        seen, status = guest_attributes(driver, os.fsencode(name)), (root / name).lstat()
        assert (seen.uid, seen.gid, seen.ino) == (1000, 1001, made.path), name
        owner = (ME, MY_GROUP) if driver._model.mapped else (1000, 1001)
        assert (status.st_uid, status.st_gid, status.st_ino) == (*owner, made.path), name  # H165
    assert guest_mode(driver, b"file") == 0o6755
    assert guest_mode(driver, b"folder") == 0o2755
    driver.mkdir(top, b"mine", 0o700, NONUNAME, NONUNAME)
    assert ((root / "mine").stat().st_uid, (root / "mine").stat().st_gid) == (ME, MY_GROUP)


@needs_root
def test_group_of_a_setgid_folder_is_the_one_asked_for(driver: LocalDriver, at: At, root: Path) -> None:  # H161
    os.chown(root, 0, 50)
    root.chmod(0o2775)
    driver.mkdir(at(b""), b"a", 0o755, 1000, 1000)
    driver.mknod(at(b""), b"b", 0o755, 0, 0, 1000, 50)
    a, b = guest_attributes(driver, b"a"), guest_attributes(driver, b"b")
    assert (a.mode, a.gid) == (0o40755, 1000)
    assert (b.mode, b.gid) == (0o100755, 50)
    assert stat.S_IMODE((root / "a").stat().st_mode) == (0o700 if driver._model.mapped else 0o755)


def test_create_opens_what_is_there(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").write_bytes(b"hello")
    (root / "file").chmod(0o600)
    node, file, qid = driver.create(at(b""), b"file", os.O_RDWR, 0o777, 1, 1)
    assert qid.path == (root / "file").stat().st_ino
    data = bytearray(9)
    assert driver.read(file, 0, ViewBuffers.of(data)) == 5
    assert (root / "file").stat().st_mode == 0o100600
    driver.close_file(file)
    driver.release(node)
    node, file, _ = driver.create(at(b""), b"file", os.O_WRONLY | os.O_TRUNC, 0o777, 0, 0)
    assert (root / "file").stat().st_size == 0
    driver.close_file(file)
    driver.release(node)
    with pytest.raises(FileExistsError):
        driver.create(at(b""), b"file", os.O_RDWR | os.O_EXCL, 0o777, 0, 0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("folder", errno.EISDIR),
        ("fifo", errno.ENXIO),
        ("socket", errno.ENXIO),
        ("link", errno.ELOOP),
        ("good", errno.ELOOP),
    ],
)
def test_create_opens_nothing_but_regular_files(driver: LocalDriver, at: At, root: Path, kind: str, code: int) -> None:
    (root / "folder").mkdir()
    (root / "target").touch()
    os.mkfifo(root / "fifo")  # H150: nobody writes to it, so opening it would block
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)  # not bind(2): a path there may have 107 bytes
    os.symlink("nowhere", root / "link")
    os.symlink("target", root / "good")
    with pytest.raises(OSError, match="Errno") as caught:
        driver.create(at(b""), os.fsencode(kind), os.O_RDWR, 0o644, 0, 0)
    assert caught.value.errno == code
    assert not (root / "nowhere").exists()


def test_create_gives_up_when_a_name_comes_and_goes(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def flicker(*_args: object) -> None:
        calls.append(1)
        raise FileExistsError(errno.EEXIST, "there") if len(calls) % 2 else FileNotFoundError(errno.ENOENT, "gone")

    monkeypatch.setattr(LocalDriver, "_create_new", flicker)
    monkeypatch.setattr(LocalDriver, "_open_existing", flicker)
    with pytest.raises(OSError, match="Stale"):
        driver.create(at(b""), b"x", os.O_RDWR, 0o644, 0, 0)


@needs_root
@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices(driver: LocalDriver, at: At, root: Path, kind: int) -> None:  # H152
    try:
        driver.mknod(at(b""), b"dev", kind | 0o600, 0x123, 0x23456, 0, 0)
    except PermissionError:
        pytest.skip("may not make devices")
    status = (root / "dev").stat()
    if driver._model.mapped:
        assert (status.st_mode, status.st_size) == (stat.S_IFREG | 0o600, 0)
    else:
        assert stat.S_IFMT(status.st_mode) == kind
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (0x123, 0x23456)
    attributes = driver.getattr(at(b"dev"))[1]
    assert (attributes.rdev_major, attributes.rdev_minor) == (0x123, 0x23456)
    with pytest.raises(OSError, match="No such device") as caught:
        driver.open(at(b"dev"), os.O_RDWR, 0)
    assert caught.value.errno == errno.ENXIO


@pytest.mark.parametrize(
    ("mode", "major", "code"),
    [
        (stat.S_IFDIR | 0o755, 0, errno.EPERM),
        (stat.S_IFLNK | 0o755, 0, errno.EINVAL),
        (0o170000 | 0o755, 0, errno.EINVAL),
        (stat.S_IFCHR | 0o755, 0x1000, errno.EINVAL),
        (stat.S_IFCHR | 0o755, 0xFFFFFFFF, errno.EINVAL),
    ],
)
def test_bad_mknod(driver: LocalDriver, at: At, root: Path, mode: int, major: int, code: int) -> None:
    with pytest.raises(OSError, match="Errno") as caught:
        driver.mknod(at(b""), b"x", mode, major, 0, 0, 0)
    assert caught.value.errno == code
    assert not (root / "x").exists()


def test_symlink_targets_are_not_interpreted(driver: LocalDriver, at: At, root: Path, longest_target: bytes) -> None:
    for name, target in ((b"a", b"/etc/passwd"), (b"b", b"../../.."), (b"c", b"\xff\n"), (b"d", longest_target)):
        driver.symlink(at(b""), name, target, ME, MY_GROUP)
        path = os.fsencode(root) + b"/" + name
        assert (Path(os.fsdecode(path)).read_bytes() if driver._model.mapped else os.readlink(path)) == target
        assert driver.readlink(at(name)) == target
    for target, code in ((b"a\0b", errno.EINVAL), (b"", errno.ENOENT), (b"t" * 4096, errno.ENAMETOOLONG)):
        with pytest.raises(OSError, match="Errno") as caught:
            driver.symlink(at(b""), b"x", target, 0, 0)
        assert caught.value.errno == code


def makers(driver: LocalDriver, top: Node) -> dict[str, Callable[[], Any]]:
    return {
        "create": lambda: driver.create(top, b"new", os.O_RDWR, 0o644, 1, 1),
        "mkdir": lambda: driver.mkdir(top, b"new", 0o755, 1, 1),
        "symlink": lambda: driver.symlink(top, b"new", b"x", 1, 1),
        "mknod": lambda: driver.mknod(top, b"new", stat.S_IFIFO | 0o644, 0, 0, 1, 1),
        "mknod file": lambda: driver.mknod(top, b"new", 0o644, 0, 0, 1, 1),
    }


@pytest.mark.parametrize("operation", ["create", "mkdir", "symlink", "mknod", "mknod file"])
@pytest.mark.parametrize("step", ["chown", "find"])
def test_what_cannot_be_finished_is_removed(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, operation: str, step: str
) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    def drop(_table: object, fd: int) -> None:
        os.close(fd)
        refuse()

    top = at(b"")
    if step == "chown":
        monkeypatch.setattr(type(driver._model), "keep_new" if driver._model.mapped else "chown", refuse)
    else:
        monkeypatch.setattr("pyvirtfs.fsdev.entries.EntryTable.adopt", drop)
    with pytest.raises(PermissionError, match="no"):
        makers(driver, top)[operation]()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("operation", ["mkdir", "symlink", "mknod", "mknod file"])
def test_what_the_host_put_in_its_place_is_left_alone(
    driver: LocalDriver, at: At, root: Path, place: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Between the making and the looking, somebody on the host replaces the object."""
    top = at(b"")
    finish = LocalDriver._finish

    def swap(self: LocalDriver, *args: Any, **keywords: Any) -> Any:
        (root / "new").rename(root / "away")
        if operation == "symlink":
            os.mkfifo(root / "new")
        else:
            os.symlink(place / "outside" / "secret", root / "new")
        return finish(self, *args, **keywords)

    monkeypatch.setattr(local_create.LocalCreate, "_finish", swap)
    with pytest.raises(OSError, match="Stale"):
        makers(driver, top)[operation]()
    assert os.path.lexists(root / "new")


def test_undoing_leaves_what_the_host_made_meanwhile(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_and_refuse(*_args: object) -> None:
        (root / "new").rename(root / "away")
        (root / "new").write_bytes(b"host")
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(type(driver._model), "keep_new" if driver._model.mapped else "chown", replace_and_refuse)
    with pytest.raises(PermissionError, match="no"):
        driver.create(at(b""), b"new", os.O_RDWR, 0o644, 1, 1)
    assert (root / "new").read_bytes() == b"host"


@pytest.mark.parametrize("operation", ["create", "mkdir", "symlink", "mknod", "mknod file"])
def test_a_name_that_is_taken(driver: LocalDriver, at: At, root: Path, operation: str) -> None:
    os.mkfifo(root / "new")
    with pytest.raises(OSError, match="Errno") as caught:
        makers(driver, at(b""))[operation]()
    assert caught.value.errno == (errno.ENXIO if operation == "create" else errno.EEXIST)


@pytest.mark.parametrize("operation", ["create", "mkdir", "symlink", "mknod", "mknod file"])
def test_in_a_folder_that_is_gone_or_none(driver: LocalDriver, at: At, root: Path, operation: str) -> None:
    (root / "folder").mkdir()
    (root / "file").touch()
    folder = at(b"folder")
    (root / "folder").rmdir()
    for node, code in ((folder, errno.ENOENT), (at(b"file"), errno.ENOTDIR)):
        with pytest.raises(OSError, match="Errno") as caught:
            makers(driver, node)[operation]()
        assert caught.value.errno == code


@pytest.mark.parametrize("operation", ["create", "mkdir", "symlink", "mknod", "mknod file"])
def test_readonly(root: Path, no_leak: None, driver: LocalDriver, operation: str) -> None:
    export = LocalDriver(root, readonly=True)
    top, _ = export.attach(b"", 0)
    with pytest.raises(OSError, match="Read-only"):
        makers(export, top)[operation]()
    export.close()
    assert list(root.iterdir()) == []
