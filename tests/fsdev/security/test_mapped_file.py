from __future__ import annotations

import contextlib
import errno
import gc
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.security import metadata_store
from pyvirtfs.memory.buffers import ViewBuffers
from tests.fsdev.security.mapped_file_records import META, by_qemu, ids, make, metadata

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["mapped-file"], indirect=True),
]
HIDDEN = [b".virtfs_metadata", b".virtfs_metadata_root"]


def test_a_folder_that_qemu_has_written(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "file").write_bytes(b"hello")
    by_qemu(root / "file", "virtfs.uid=1000\nvirtfs.gid=1001\nvirtfs.mode=35309\n")
    (root / "folder").mkdir()
    by_qemu(root / "folder", "virtfs.uid=0\nvirtfs.gid=50\nvirtfs.mode=17917\n")
    (root / "folder" / "link").write_bytes(b"../target")
    by_qemu(root / "folder" / "link", "virtfs.uid=5\nvirtfs.gid=6\nvirtfs.mode=41471\n")
    (root / "sda1").touch()
    by_qemu(root / "sda1", "virtfs.uid=-2\nvirtfs.gid=6\nvirtfs.mode=25008\nvirtfs.rdev=2049\n")
    (root / ".virtfs_metadata_root").write_text("virtfs.uid=3\nvirtfs.gid=4\nvirtfs.mode=17407\n")
    for name, uid, gid, mode, device, type_ in (
        (b"file", 1000, 1001, 0o104755, (0, 0), 0),
        (b"folder", 0, 50, 0o042775, (0, 0), 0x80),
        (b"folder/link", 5, 6, 0o120777, (0, 0), 2),
        (b"sda1", 0xFFFFFFFE, 6, 0o060660, (8, 1), 0),
        (b"", 3, 4, 0o041777, (0, 0), 0x80),
    ):
        qid, seen = driver.getattr(at(name))
        assert (seen.uid, seen.gid, seen.mode) == (uid, gid, mode), name
        assert (seen.rdev_major, seen.rdev_minor, qid.type) == (*device, type_), name
    assert driver.readlink(at(b"folder/link")) == b"../target"


def test_what_is_written_is_what_qemu_reads(driver: LocalDriver, at: At, root: Path) -> None:
    top = at(b"")
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o4640, 1000, 1001)
    driver.close_file(file)
    driver.release(node)
    driver.mkdir(top, b"folder", 0o2755, 1, 2)
    driver.symlink(at(b"folder"), b"link", b"t", 1, 2)
    driver.mknod(top, b"device", stat.S_IFCHR | 0o600, 5, 1, 1, 2)
    assert metadata(root / "file") == "virtfs.uid=1000\nvirtfs.gid=1001\nvirtfs.mode=35232\n"
    assert metadata(root / "folder") == "virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode=17901\n"
    assert metadata(root / "folder/link") == "virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode=41471\n"
    assert metadata(root / "device") == "virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode=8576\nvirtfs.rdev=1281\n"
    driver.mknod(at(b"folder"), b"fifo", stat.S_IFIFO | 0o620, 3, 4, 1 << 31, 4294967294)
    driver.mknod(at(b"folder"), b"disk", stat.S_IFBLK | 0o660, 259, 0xFFFFF, 0, 0)
    signed = "virtfs.uid=-2147483648\nvirtfs.gid=-2\nvirtfs.mode=4496\nvirtfs.rdev=0\n"
    assert metadata(root / "folder/fifo") == signed
    assert metadata(root / "folder/disk") == "virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=25008\nvirtfs.rdev=-982017\n"
    driver.setattr(top, SetAttributes(uid=7), 0)
    driver.setattr(top, SetAttributes(mode=0o700), 0)
    assert (root / ".virtfs_metadata_root").read_text() == f"virtfs.uid=7\nvirtfs.mode={0o40700}\n"
    assert sorted(os.listdir(root / META)) == ["device", "file", "folder"]
    assert sorted(os.listdir(root)) == [META, ".virtfs_metadata_root", "device", "file", "folder"]


# --- the hidden names ---


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("folder", [b"", b"folder"])
def test_hidden_names_are_refused(driver: LocalDriver, at: At, root: Path, name: bytes, folder: bytes) -> None:  # H005
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    make(driver, at(b"folder"), b"file")
    make(driver, at(b""), b"file")
    driver.setattr(at(b""), SetAttributes(uid=3), 0)
    where, file, top = at(folder), at(b"file"), at(b"")
    before = sorted(os.listdir(root)), sorted(os.listdir(root / META))
    operations: dict[str, Callable[[], Any]] = {
        "walk": lambda: driver.walk(where, [name]),
        "create": lambda: driver.create(where, name, os.O_RDWR, 0o600, 0, 0),
        "create anew": lambda: driver.create(where, name, os.O_RDWR | os.O_EXCL, 0o600, 0, 0),
        "mkdir": lambda: driver.mkdir(where, name, 0o755, 0, 0),
        "symlink": lambda: driver.symlink(where, name, b"/etc", 0, 0),
        "mknod": lambda: driver.mknod(where, name, 0o600, 0, 0, 0, 0),
        "link": lambda: driver.link(where, file, name),
        "rename": lambda: driver.rename(file, where, name),
        "renameat to": lambda: driver.renameat(top, b"file", where, name),
        "renameat from": lambda: driver.renameat(where, name, top, b"new"),
        "unlink": lambda: driver.unlinkat(where, name, folder=False),
        "rmdir": lambda: driver.unlinkat(where, name, folder=True),
    }
    for what, operation in operations.items():
        with pytest.raises(OSError, match="Invalid") as caught:
            operation()
        assert caught.value.errno == errno.EINVAL, what
    walk = driver.walk(top, [b"folder", name, b"file"])
    assert (len(walk.qids), walk.node) == (1, None)
    walk = driver.walk(at(b"folder"), [b"..", name])
    assert (len(walk.qids), walk.node) == (1, None)
    assert (sorted(os.listdir(root)), sorted(os.listdir(root / META))) == before


@pytest.mark.parametrize("portion", [1, 3, 10_000])
@pytest.mark.parametrize("count", [0, 1, 1300])
def test_hidden_names_are_not_listed(  # H005
    driver: LocalDriver, at: At, root: Path, portion: int, count: int
) -> None:
    names = [b"%06d" % index for index in range(count)]
    for name in names:
        (root / os.fsdecode(name)).touch()
    driver.setattr(at(b""), SetAttributes(uid=3), 0)
    assert {META, ".virtfs_metadata_root"} <= set(os.listdir(root))
    file, _ = driver.open(at(b""), os.O_RDONLY, 0)
    found: list[bytes] = []
    cookies: set[int] = set()
    cookie = 0
    while entries := driver.readdir(file, cookie):
        assert driver.readdir(file, cookie) == entries  # asked again
        for _, cookie, _, name in entries[:portion]:
            found.append(name)
            cookies.add(cookie)
    assert sorted(found) == sorted([b".", b"..", *names])
    assert len(cookies) == len(found)
    driver.close_file(file)


def test_a_batch_of_nothing_but_hidden_names_is_not_the_end(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(20):
        (root / f"{index}").touch()
    driver.setattr(at(b""), SetAttributes(uid=3), 0)
    monkeypatch.setattr(driver._listings, "buffer", bytearray(48))  # an entry or two in each batch
    file, _ = driver.open(at(b""), os.O_RDONLY, 0)
    found: list[bytes] = []
    cookie = 0
    while entries := driver.readdir(file, cookie):
        found += [name for *_, name in entries]
        cookie = entries[-1][1]
    assert sorted(found) == sorted([b".", b"..", *(b"%d" % index for index in range(20))])
    driver.close_file(file)


# --- names come, go and change ---


def test_rename_takes_the_metadata_along(driver: LocalDriver, at: At, root: Path) -> None:
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    text = make(driver, at(b""), b"a")
    make(driver, at(b"folder"), b"b", uid=9)
    node, loser = at(b"a"), at(b"folder/b")
    driver.rename(node, at(b"folder"), b"b")
    assert metadata(root / "folder/b") == text
    assert metadata(root / "a") is None
    assert ids(driver, node) == (1, 2, 0o100640)
    assert ids(driver, loser) == (9, 2, 0o100640)  # nobody can find it any more, but it is held
    (root / "host").touch()
    driver.renameat(at(b""), b"host", at(b"folder"), b"b")  # without metadata over one with it
    assert metadata(root / "folder/b") is None
    assert ids(driver, at(b"folder/b"))[0] == os.geteuid()
    driver.renameat(at(b""), b"folder", at(b""), b"moved")
    assert ids(driver, at(b"moved"))[0] == 1


def test_rename_between_links_of_one_object_does_nothing(driver: LocalDriver, at: At, root: Path) -> None:
    text = make(driver, at(b""), b"a")
    driver.link(at(b""), at(b"a"), b"b")
    driver.renameat(at(b""), b"a", at(b""), b"b")
    driver.renameat(at(b""), b"a", at(b""), b"a")
    assert metadata(root / "a") == metadata(root / "b") == text


def test_rename_over_an_empty_folder(driver: LocalDriver, at: At, root: Path) -> None:
    for name in (b"a", b"b", b"full"):
        driver.mkdir(at(b""), name, 0o755, name[0], 2)
        make(driver, at(name), b"file")
    driver.unlinkat(at(b"b"), b"file", folder=False)
    assert os.listdir(root / "b") == [META]
    with pytest.raises(OSError, match="Errno") as caught:
        driver.renameat(at(b""), b"a", at(b""), b"full")
    assert caught.value.errno in {errno.ENOTEMPTY, errno.EEXIST}
    assert metadata(root / "full/file") is not None
    driver.renameat(at(b""), b"a", at(b""), b"b")
    assert ids(driver, at(b"b"))[0] == ord("a")
    assert ids(driver, at(b"b/file"))[0] == 1
    assert sorted(os.listdir(root / META)) == ["b", "full"]
    with pytest.raises(OSError, match="Errno"):
        driver.renameat(at(b""), b"b", at(b"b"), b"inside")


def test_a_refused_rename_keeps_nothing_alive(driver: LocalDriver, at: At) -> None:
    """No cycle of frames, which would keep the request, and with it all of the guest's memory."""
    for name in (b"a", b"full"):
        driver.mkdir(at(b""), name, 0o755, 1, 2)
        make(driver, at(name), b"file")
    top = at(b"")
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(OSError):
            driver.renameat(top, b"a", top, b"full")
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_rename_that_fails_leaves_everything(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    text = make(driver, at(b""), b"a")
    node = at(b"a")

    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(metadata_store, "rename", refuse)
    with pytest.raises(OSError, match="disk"):
        driver.rename(node, at(b"folder"), b"b")
    monkeypatch.undo()
    assert metadata(root / "a") == text
    assert ids(driver, node) == (1, 2, 0o100640)
    for name in (b"none", b"a"):
        with pytest.raises(OSError, match="Errno"):
            driver.renameat(at(b""), name, at(b""), b"folder")
    assert metadata(root / "a") == text
    assert metadata(root / "folder") is not None


def test_links_see_the_same(driver: LocalDriver, at: At, root: Path) -> None:
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    make(driver, at(b""), b"a")
    by_qemu(root / "folder" / "b", "virtfs.uid=99\n")  # of an object that is gone
    driver.link(at(b"folder"), at(b"a"), b"b")
    assert (root / META / "a").stat().st_ino == (root / "folder" / META / "b").stat().st_ino
    driver.setattr(at(b"a"), SetAttributes(uid=1234567, mode=0o600), 0)
    driver.setattr(at(b"folder/b"), SetAttributes(gid=3), 0)
    assert ids(driver, at(b"a")) == ids(driver, at(b"folder/b")) == (1234567, 3, 0o100600)
    fresh = LocalDriver(root, "mapped-file")
    top, _ = fresh.attach(b"", 0)
    for names in ([b"a"], [b"folder", b"b"]):
        node = fresh.walk(top, names).node
        assert node is not None
        assert ids(fresh, node) == (1234567, 3, 0o100600)
        fresh.release(node)
    fresh.close()
    first = at(b"a")
    driver.unlinkat(at(b""), b"a", folder=False)
    make(driver, at(b""), b"a", uid=50)  # another object of that name
    assert ids(driver, first) == ids(driver, at(b"folder/b")) == (1234567, 3, 0o100600)
    driver.setattr(first, SetAttributes(uid=8), 0)
    assert ids(driver, at(b"folder/b"))[0] == 8
    assert ids(driver, at(b"a"))[0] == 50


def test_a_link_whose_metadata_cannot_be_linked(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EIO, "disk")

    make(driver, at(b""), b"a")
    monkeypatch.setattr(metadata_store, "link", refuse)
    with pytest.raises(OSError, match="disk"):
        driver.link(at(b""), at(b"a"), b"b")
    assert not (root / "b").exists()


def test_a_link_to_what_was_found_by_a_name_that_is_gone(driver: LocalDriver, at: At, root: Path) -> None:
    text = make(driver, at(b""), b"a")
    driver.link(at(b""), at(b"a"), b"b")
    node = at(b"a")
    driver.unlinkat(at(b""), b"a", folder=False)
    driver.link(at(b""), node, b"c")
    assert metadata(root / "c") == text


def test_an_unlinked_file_keeps_its_attributes(driver: LocalDriver, at: At, root: Path) -> None:  # H045
    make(driver, at(b""), b"a", mode=0o6755)
    node = at(b"a")
    file, _ = driver.open(node, os.O_RDWR, 1000)
    driver.unlinkat(at(b""), b"a", folder=False)
    assert metadata(root / "a") is None
    assert ids(driver, node) == (1, 2, 0o106755)
    make(driver, at(b""), b"a", uid=50)  # the next one of that name
    assert ids(driver, node) == (1, 2, 0o106755)
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    driver.setattr(node, SetAttributes(uid=7, gid=8), 0)
    assert ids(driver, node) == (7, 8, 0o100755)
    driver.setattr(node, SetAttributes(mode=0o600, size=0), 0)
    assert ids(driver, node) == (7, 8, 0o100600)
    assert ids(driver, at(b"a")) == (50, 2, 0o100640)
    driver.close_file(file)


def test_what_the_host_has_removed_keeps_what_was_known(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), b"a")
    node = at(b"a")
    (root / "a").unlink()
    (root / META / "a").unlink()
    assert ids(driver, node) == (1, 2, 0o100640)


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_another_object_at_the_same_place_keeps_its_own(driver: LocalDriver, at: At, root: Path, how: str) -> None:
    make(driver, at(b""), b"a")
    driver.link(at(b""), at(b"a"), b"b")
    node = at(b"a")
    if how == "removed":  # by the host, so the driver does not hear of it
        (root / "a").unlink()
    else:
        (root / "a").rename(root / "elsewhere")
    text = make(driver, at(b""), b"a", uid=50)
    assert ids(driver, node) == (1, 2, 0o100640)
    second = at(b"b")
    driver.setattr(node, SetAttributes(uid=6), 0)
    assert ids(driver, node)[0] == ids(driver, second)[0] == 6
    assert metadata(root / "a") == text


def test_what_another_server_has_moved_keeps_what_was_known(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), b"a")
    node = at(b"a")
    (root / "a").rename(root / "b")
    (root / META / "a").rename(root / META / "b")
    assert ids(driver, node) == (1, 2, 0o100640)
    assert ids(driver, at(b"b")) == (1, 2, 0o100640)
    driver.setattr(at(b"b"), SetAttributes(uid=6), 0)
    assert metadata(root / "b") == f"virtfs.uid=6\nvirtfs.gid=2\nvirtfs.mode={0o100640}\n"
    assert ids(driver, node)[0] == 6


def test_rmdir(driver: LocalDriver, at: At, root: Path) -> None:
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    make(driver, at(b"folder"), b"file")
    with pytest.raises(OSError, match="not empty"):
        driver.unlinkat(at(b""), b"folder", folder=True)
    assert metadata(root / "folder/file") is not None
    assert metadata(root / "folder") is not None
    driver.unlinkat(at(b"folder"), b"file", folder=False)
    (root / "folder" / META / "left over").touch()
    node = at(b"folder")
    driver.unlinkat(at(b""), b"folder", folder=True)
    assert os.listdir(root) == [META]
    assert os.listdir(root / META) == []
    assert ids(driver, node) == (1, 2, 0o040755)
    for name in (b".", b".."):
        with pytest.raises(OSError, match="Errno"):
            driver.unlinkat(at(b""), name, folder=True)


def test_a_rmdir_that_fails_leaves_the_metadata(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    make(driver, at(b"folder"), b"file")
    (root / "folder" / "file").unlink()  # by the host: its metadata is still there

    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(OSError, match="busy"):
        driver.remove(at(b"folder"))
    monkeypatch.undo()
    assert metadata(root / "folder/file") is not None
    assert os.listdir(root / META) == ["folder"]
    driver.remove(at(b"folder"))
    assert os.listdir(root / META) == []


def test_a_new_object_does_not_inherit_metadata(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), b"a")
    driver.link(at(b""), at(b"a"), b"b")
    (root / "a").unlink()  # by the host
    text = make(driver, at(b""), b"a", uid=7)
    assert metadata(root / "a") == text
    assert ids(driver, at(b"b"))[0] == 1


def test_a_folder_found_from_below(driver: LocalDriver, at: At) -> None:
    driver.mkdir(at(b""), b"a", 0o2711, 5, 6)
    driver.mkdir(at(b"a"), b"b", 0o700, 1, 2)
    inner = driver.walk(at(b""), [b"a", b"b"]).node
    assert inner is not None
    inner.parent, kept = inner.parent, inner.parent
    walk = driver.walk(inner, [b".."])
    assert walk.node is not None
    assert kept is walk.node.entry
    assert ids(driver, walk.node) == (5, 6, 0o042711)
    driver.setattr(walk.node, SetAttributes(uid=8), 0)
    driver.release(inner)
    driver.release(walk.node)
    assert ids(driver, at(b"a"))[0] == 8


# --- junk ---


@pytest.mark.parametrize(
    ("text", "uid", "gid", "mode"),
    [
        ("junk", None, None, None),
        ("virtfs.uid=5\njunk\nvirtfs.gid=6\n", 5, 6, None),
        ("virtfs.mode=99999999999\nvirtfs.gid=6\n", None, 6, None),
        ("virtfs.mode=16877\nvirtfs.uid=5\n", 5, None, None),  # a folder
        ("virtfs.uid=5\n" * 1000, None, None, None),
    ],
)
def test_metadata_with_junk_in_it(
    driver: LocalDriver,
    at: At,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    text: str,
    uid: int | None,
    gid: int | None,
    mode: int | None,
) -> None:
    (root / "file").touch()
    by_qemu(root / "file", text)
    host = (root / "file").stat()
    expected = (host.st_uid if uid is None else uid, host.st_gid if gid is None else gid, mode or host.st_mode)
    for _ in range(3):
        assert ids(driver, at(b"file")) == expected
    assert metadata(root / "file") == text
    (record,) = caplog.records
    assert "mapped-file" in record.getMessage()
    driver.setattr(at(b"file"), SetAttributes(uid=1, gid=2, mode=0o600), 0)
    assert metadata(root / "file") == f"virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode={0o100600}\n"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_junk_in_the_place_of_metadata(
    driver: LocalDriver, at: At, root: Path, place: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (root / "file").touch()
    (root / META).mkdir()
    path = root / META / "file"
    if kind == "fifo":
        os.mkfifo(path)  # nobody writes to it, so opening it would block
    elif kind == "link":
        os.symlink(place / "outside" / "secret", path)
    else:
        path.mkdir()
    for _ in range(2):
        assert ids(driver, at(b"file"))[2] == (root / "file").stat().st_mode
    assert len(caplog.records) == 1


def test_a_metadata_folder_that_is_a_link(
    driver: LocalDriver, at: At, root: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "file").write_text("virtfs.uid=77\n")
    os.symlink(place / "elsewhere", root / META)
    (root / "file").touch()
    assert ids(driver, at(b"file"))[0] == os.geteuid()
    with pytest.raises(NotADirectoryError):
        driver.setattr(at(b"file"), SetAttributes(uid=1), 0)
    with pytest.raises(NotADirectoryError):
        driver.mknod(at(b""), b"new", 0o600, 0, 0, 1, 1)
    assert not (root / "new").exists()
    driver.unlinkat(at(b""), b"file", folder=False)
    assert (place / "elsewhere" / "file").read_text() == "virtfs.uid=77\n"
    assert len(caplog.records) == 1


def test_metadata_that_cannot_be_read(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(driver, at(b""), b"file")
    node = at(b"file")

    def refuse(*_args: object) -> bytes:
        raise OSError(code, "no")

    monkeypatch.setattr(metadata_store, "read", refuse)
    for number, shown in ((errno.ENOENT, True), (errno.EACCES, True), (errno.EIO, False)):
        code = number
        node.entry.mapped = None
        if shown:
            assert ids(driver, node)[0] == os.geteuid()
        else:
            with pytest.raises(OSError, match="no"):
                driver.getattr(node)
    assert len(caplog.records) == 1


def test_an_old_metadata_file_is_read_once(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(driver, at(b""), b"file")
    node = at(b"file")
    reads: list[bytes] = []
    real = metadata_store.read

    def count(fd: int, name: bytes) -> bytes:
        reads.append(name)
        return real(fd, name)

    monkeypatch.setattr(metadata_store, "read", count)
    for uid in range(100):  # within one tick of the clock
        (root / META / "file").write_text(f"virtfs.uid={uid}\n")
        assert ids(driver, node)[0] == uid
    assert len(reads) >= 90
    time.sleep(0.08)
    reads.clear()
    for _ in range(5):
        driver.getattr(node)
    assert reads == [b"file"]
    by_qemu(root / "file", "virtfs.uid=9\n")
    assert ids(driver, node)[0] == 9
    (root / META / "file").unlink()
    assert ids(driver, node)[0] == os.geteuid()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_a_crash_before_the_metadata_is_written(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What could not be finished is removed; and what a crash has left is served."""

    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    top = at(b"")
    monkeypatch.setattr(metadata_store, "write", refuse)
    operations: dict[str, Callable[[], Any]] = {
        "file": lambda: driver.create(top, b"new", os.O_RDWR, 0o644, 1, 1),
        "folder": lambda: driver.mkdir(top, b"new", 0o755, 1, 1),
        "link": lambda: driver.symlink(top, b"new", b"x", 1, 1),
        "fifo": lambda: driver.mknod(top, b"new", stat.S_IFIFO | 0o600, 0, 0, 1, 1),
    }
    with pytest.raises(OSError, match="full"):
        operations[kind]()
    assert not os.path.lexists(root / "new")
    assert metadata(root / "new") is None
