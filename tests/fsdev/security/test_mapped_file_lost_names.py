"""``mapped-file``: objects that are held by a name that is gone, and folders and numbers that are."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

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


def test_a_change_behind_a_name_that_is_gone(driver: LocalDriver, at: At, root: Path) -> None:
    """What has another name in that folder keeps it, whoever holds it."""
    make(driver, at(b""), b"a", mode=0o4755)
    for name in (b"b", b"c"):
        driver.link(at(b""), at(b"a"), name)
    node = driver.walk(at(b""), [b"a"]).node
    assert node is not None
    driver.unlinkat(at(b""), b"a", folder=False)
    driver.setattr(node, SetAttributes(mode=0o600, uid=7), 0)
    assert ids(driver, node) == (7, 2, 0o100600)
    driver.release(node)
    assert ids(driver, at(b"b")) == ids(driver, at(b"c")) == (7, 2, 0o100600)
    assert metadata(root / "c") == f"virtfs.uid=7\nvirtfs.gid=2\nvirtfs.mode={0o100600}\n"


def gone_elsewhere(driver: LocalDriver, at: At) -> Node:
    """A file that is held by a name that is gone, while it has two others in another folder."""
    driver.mkdir(at(b""), b"folder", 0o755, 1, 2)
    make(driver, at(b""), b"a", mode=0o4755)
    for name in (b"b", b"c"):
        driver.link(at(b"folder"), at(b"a"), name)
    node = at(b"a")
    driver.unlinkat(at(b""), b"a", folder=False)
    return node


def test_a_change_waits_for_a_name(driver: LocalDriver, at: At, root: Path) -> None:
    node = gone_elsewhere(driver, at)
    driver.setattr(node, SetAttributes(mode=0o600), 0)
    driver.setattr(node, SetAttributes(uid=7), 0)
    assert ids(driver, node) == (7, 2, 0o100600)
    (root / "folder" / META / "b").write_text("virtfs.uid=1\nvirtfs.gid=9\nvirtfs.mode=35309\n")  # another server
    inner = at(b"folder/b")
    assert ids(driver, node) == ids(driver, inner) == (7, 9, 0o100600)
    text = f"virtfs.uid=7\nvirtfs.gid=9\nvirtfs.mode={0o100600}\n"
    assert metadata(root / "folder/b") == metadata(root / "folder/c") == text
    by_qemu(root / "folder" / "b", "virtfs.uid=3\n")
    assert ids(driver, node)[0] == 3  # written once


def test_a_change_that_cannot_be_written_when_a_name_is_found(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = gone_elsewhere(driver, at)
    driver.setattr(node, SetAttributes(mode=0o600), 0)

    def refuse(*_args: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(metadata_store, "write", refuse)
    assert ids(driver, at(b"folder/b")) == ids(driver, node) == (1, 2, 0o100600)
    monkeypatch.undo()
    assert "35309" in str(metadata(root / "folder/b"))  # 0o104755
    assert ids(driver, node) == (1, 2, 0o100600)
    assert metadata(root / "folder/b") == f"virtfs.uid=1\nvirtfs.gid=2\nvirtfs.mode={0o100600}\n"


def test_a_link_says_the_same_as_the_others(driver: LocalDriver, at: At, root: Path) -> None:
    make(driver, at(b""), b"a")
    driver.link(at(b""), at(b"a"), b"b")
    node = at(b"a")
    driver.unlinkat(at(b""), b"a", folder=False)
    driver.link(at(b""), node, b"c")
    driver.setattr(at(b"c"), SetAttributes(uid=7), 0)
    assert metadata(root / "b") == metadata(root / "c") == f"virtfs.uid=7\nvirtfs.gid=2\nvirtfs.mode={0o100640}\n"


def hold(driver: LocalDriver, root: Path) -> None:
    """Look at so many files that whatever can be closed of what was held before is closed."""
    top, _ = driver.attach(b"", 0)
    for index in range(40):
        (root / f"many{index}").touch()
        driver.walk(top, [b"many%d" % index])


def test_a_folder_that_is_gone_while_it_was_closed(root: Path, security_model: str, no_leak: None) -> None:
    driver = LocalDriver(root, security_model, max_descriptors=20)
    top, _ = driver.attach(b"", 0)
    driver.mkdir(top, b"folder", 0o755, 5, 5)
    folder = driver.walk(top, [b"folder"]).node
    assert folder is not None
    node, file, _ = driver.create(folder, b"file", os.O_RDWR, 0o640, 5, 6)
    hold(driver, root)
    assert folder.entry.closed is not None
    (root / "folder" / "file").rename(root / "moved")  # by the host
    shutil.rmtree(root / "folder")
    if node.entry.closed is not None and not driver._closer._by_handle:
        driver.close()
        pytest.skip("without handles it cannot be found again")
    assert ids(driver, node) == (5, 6, 0o100640)
    driver.setattr(node, SetAttributes(uid=8), 0)
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"x"))) == 1
    assert ids(driver, node) == (8, 6, 0o100640)
    driver.unlinkat(top, b"moved", folder=False)
    assert ids(driver, node) == (8, 6, 0o100640)
    driver.close()


@pytest.mark.parametrize("operation", ["unlink", "rename", "rmdir"])
def test_a_number_that_means_another_object_by_now(
    root: Path, security_model: str, no_leak: None, operation: str
) -> None:
    """The one that had it was closed, and removed by the host: nobody holds the new one."""
    driver = LocalDriver(root, security_model, max_descriptors=20)
    top, _ = driver.attach(b"", 0)
    (root / "old").touch()
    node = driver.walk(top, [b"old"]).node
    assert node is not None
    entry = node.entry
    hold(driver, root)
    assert entry.closed is not None
    (root / "old").unlink()
    (root / "new").mkdir() if operation == "rmdir" else (root / "new").touch()
    by_qemu(root / "new", "virtfs.uid=5\n")
    number = driver._table.identify(driver._table.root.fd, b"new")[1]
    # As if the file system had used the number again, which not each does, and not each time:
    del driver._table.closed[entry.path]
    driver._table.closed[number] = entry
    entry.path = number
    if operation == "rename":
        make(driver, top, b"other", uid=6)
        driver.renameat(top, b"other", top, b"new")
        assert metadata(root / "new") == f"virtfs.uid=6\nvirtfs.gid=2\nvirtfs.mode={0o100640}\n"
    else:
        driver.unlinkat(top, b"new", folder=operation == "rmdir")
        assert not (root / "new").exists()
        assert metadata(root / "new") is None
    with pytest.raises(OSError, match="Stale"):
        driver.getattr(node)
    driver.close()
