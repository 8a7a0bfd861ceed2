from __future__ import annotations

import errno
import stat

import pytest

from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.testing.conformance.subject import Subject


@pytest.mark.parametrize(
    ("target", "code"),
    [(b"", errno.ENOENT), (b"a\0b", errno.EINVAL), (b"x" * 4096, errno.ENAMETOOLONG), (b"x" * 4095, 0)],
)
def test_targets(export: Subject, target: bytes, code: int) -> None:
    if code:
        with export.unchanged(), export.refuses(code):
            export.symlink(export.root, b"link", target, 0, 0)
    else:
        assert export.readlink(export.make_link(b"link", target)) == target


def test_targets_take_space() -> None:
    export = Subject(MemoryDriver(size=8192, nr_inodes=0))
    export.give_back(export.make_link(b"1", b"x" * 4000), export.make_link(b"2", b"x" * 4000))
    names = export.statfs(export.root).ffree
    with export.unchanged(), export.refuses(errno.ENOSPC):
        export.symlink(export.root, b"3", b"x", 0, 0)
    assert export.statfs(export.root).ffree == names
    export.unlinkat(export.root, b"1", folder=False)
    export.release(export.make_link(b"3", b"x"))


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20)])
def test_device_numbers_have_limits(export: Subject, major: int, minor: int) -> None:
    with export.unchanged(), export.refuses(errno.EINVAL):
        export.mknod(export.root, b"device", stat.S_IFBLK | 0o600, major, minor, 0, 0)


def test_fifos_have_no_device_numbers(export: Subject) -> None:
    export.mknod(export.root, b"fifo", stat.S_IFIFO | 0o600, 5, 6, 0, 0)
    attributes = export.attributes(export.find(b"fifo"))
    assert (attributes.rdev_major, attributes.rdev_minor) == (0, 0)


def test_a_name_that_comes_back_is_known_again(export: Subject) -> None:
    one = export.make_file(b"one")
    export.link(export.root, one, b"two")
    export.remove(one)
    with export.refuses(errno.ESTALE):
        export.remove(one)
    export.link(export.root, one, b"one")
    export.remove(one)
    assert export.names_in(export.root) == [b"two"]


def test_dotdot_of_a_removed_folder(export: Subject) -> None:
    folder = export.make_folder(b"folder")
    export.unlinkat(export.root, b"folder", folder=True)
    with export.refuses(errno.ENOENT):
        export.walk(folder, [b".."])


def test_deep_folders_move(export: Subject) -> None:
    folder = export.root
    for depth in range(18):
        folder = export.make_folder(b"%d" % depth, at=folder)
    with export.refuses(errno.EINVAL):
        export.renameat(export.root, b"0", folder, b"x")
    export.renameat(export.find(*(b"%d" % depth for depth in range(17))), b"17", export.root, b"top")
    assert export.walk(folder, [b".."]).qids[0] == export.qid(export.root)


def test_where_an_object_is() -> None:
    """For the dialects of 9P whose stat holds the name."""
    driver = MemoryDriver()
    top, _ = driver.attach(b"", 0)
    assert driver.place(top) == (top, b"/")
    driver.mkdir(top, b"folder", 0o755, 0, 0)
    folder = driver.walk(top, [b"folder"]).node
    assert folder is not None
    driver.mkdir(folder, b"inner", 0o755, 0, 0)
    inner = driver.walk(folder, [b"inner"]).node
    assert inner is not None
    assert driver.place(inner) == (folder, b"inner")
    driver.renameat(folder, b"inner", top, b"moved")
    assert driver.place(inner) == (top, b"moved")
    for node, times in ((top, 3), (folder, 2), (inner, 1)):
        for _ in range(times):
            driver.release(node)
    driver.close()
