from __future__ import annotations

import errno
import stat
import tracemalloc

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.testing.conformance.subject import Subject


def test_statfs(export: Subject) -> None:
    export.release(export.make_file(b"file", b"x" * 5000))
    found = export.statfs(export.root)
    assert (found.bsize, found.blocks, found.bfree, found.bavail) == (4096, 256, 254, 254)
    assert (found.files, found.ffree, found.namelen) == (20, 18, 255)


def test_an_unlimited_export_tells_of_plenty() -> None:
    export = Subject(MemoryDriver(size=0))
    found = export.statfs(export.root)
    assert found.bfree == found.blocks > 1 << 40
    assert found.ffree == found.files - 1 > 1 << 40


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"user.", errno.EINVAL), (b"trusted.x", errno.EOPNOTSUPP), (b"system.posix_acl_access", errno.EOPNOTSUPP),
        (b"", errno.EOPNOTSUPP), (b"user." + b"x" * 251, errno.ERANGE),
    ],
)  # fmt: skip
def test_names_of_extended_attributes(export: Subject, name: bytes, code: int) -> None:
    node = export.make_file(b"file")
    for method, arguments in (("setxattr", (name, b"x", 0, 0)), ("getxattr", (name,)), ("removexattr", (name, 0))):
        with export.unchanged(), export.refuses(code):
            getattr(export, method)(node, *arguments)


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO])
@pytest.mark.parametrize(
    ("name", "nbytes", "flags", "code"),
    [
        (b"trusted.x", 1 << 17, 4, errno.EOPNOTSUPP), (b"user." + b"x" * 251, 1 << 17, 4, errno.EINVAL),
        (b"user." + b"x" * 251, 1 << 17, 0, errno.ERANGE), (b"user.", 1 << 17, 0, errno.E2BIG),
        (b"user.\0", 1, 0, errno.EOPNOTSUPP),
    ],
)  # fmt: skip
def test_the_first_of_several_faults_is_told(
    export: Subject, kind: int, name: bytes, nbytes: int, flags: int, code: int
) -> None:
    export.mknod(export.root, b"node", kind | 0o600, 0, 0, 0, 0)
    with export.unchanged(), export.refuses(code):
        export.setxattr(export.find(b"node"), name, bytes(nbytes), flags, 0)


def test_special_files_have_none(export: Subject) -> None:
    export.mknod(export.root, b"fifo", stat.S_IFIFO | 0o600, 0, 0, 0, 0)
    for node in (export.find(b"fifo"), export.make_link(b"link", b"target")):
        with export.refuses(errno.EPERM):
            export.setxattr(node, b"user.x", b"1", 0, 0)
        with export.refuses(errno.ENODATA):
            export.getxattr(node, b"user.x")
        assert export.listxattr(node) == b""


def test_extended_attributes_take_space(export: Subject) -> None:
    node = export.make_file(b"file")
    for number in range(15):
        export.setxattr(node, b"user.%d" % number, bytes(65536), 0, 0)
    with export.unchanged(), export.refuses(errno.ENOSPC):
        export.setxattr(node, b"user.15", bytes(65536), 0, 0)
    assert len(export.listxattr(node).split(b"\0")) == 16
    export.removexattr(node, b"user.0", 0)
    export.setxattr(node, b"user.new", b"x", 0, 0)
    export.unlinkat(export.root, b"file", folder=False)
    export.release(node)
    assert export.statfs(export.root).bfree == 256


def test_many_small_extended_attributes_take_what_they_take() -> None:
    export = Subject(MemoryDriver(size=1 << 20, nr_inodes=100))
    nodes = [export.make_file(b"file%d" % number) for number in range(20)]
    tracemalloc.start()
    try:
        with export.refuses(errno.ENOSPC):
            for node in nodes:
                for number in range(5000):
                    export.setxattr(node, b"user.%04d" % number, b"", 0, 0)
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()
        export.driver.close()


def test_the_list_of_names_has_an_end() -> None:
    export = Subject(MemoryDriver())
    node = export.make_file(b"file")
    with export.refuses(errno.ENOSPC):
        for number in range(1000):
            export.setxattr(node, (b"user.%d" % number).ljust(255, b"x"), b"", 0, 0)
    assert 65_000 < len(export.listxattr(node)) <= 65_536


def test_flags(export: Subject) -> None:
    node = export.make_file(b"file")
    with export.refuses(errno.EINVAL):
        export.setxattr(node, b"user.x", b"1", 4, 0)


def test_nothing_changes_the_change_time_but_changes(export: Subject) -> None:
    node = export.make_file(b"file")
    with export.unchanged():
        export.setattr(node, SetAttributes(), 0)
    for nanoseconds in (1 << 100, -(1 << 100)):
        with export.unchanged(), export.refuses(errno.EINVAL):
            export.setattr(node, SetAttributes(mode=0o600, atime_ns=nanoseconds), 0)
