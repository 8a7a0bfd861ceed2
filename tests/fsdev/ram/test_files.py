from __future__ import annotations

import errno
import os
import stat

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.fsdev.ram.space import PAGE
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.subject import Subject

SPARSE = 1 << 62


def test_a_full_export(export: Subject) -> None:
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as file:
        assert export.write(file, 0, ViewBuffers.of(bytes(2 << 20))) == 1 << 20
        version = export.qid(node).version
        with export.refuses(errno.ENOSPC):
            export.write(file, 1 << 20, ViewBuffers.of(b"x"))
        assert export.qid(node).version == version
        assert export.attributes(node).blocks == 2048
        assert export.statfs(node).bfree == 0
        export.setattr(node, SetAttributes(size=0), 0)
        assert export.statfs(node).bfree == 256


@pytest.mark.parametrize("appending", [False, True])
@pytest.mark.parametrize("nbytes", [1000, 4096, 7168, 300_000])
def test_a_program_that_writes_till_the_end_fills_every_page(nbytes: int, *, appending: bool) -> None:
    driver = MemoryDriver(size=200_000, nr_inodes=20)
    export = Subject(driver)
    node = export.make_file(b"file")
    written = 0
    with export.opened(node, os.O_WRONLY | (os.O_APPEND if appending else 0)) as file:
        while written < 49 * PAGE:
            done = export.write(file, 0 if appending else written, ViewBuffers.of(bytes(nbytes)))
            assert done == min(nbytes, 49 * PAGE - written)
            written += done
        with export.refuses(errno.ENOSPC):
            export.write(file, 0 if appending else written, ViewBuffers.of(b"x"))
        if not appending:
            assert export.write(file, 1000, ViewBuffers.of(bytes(190_000))) == 190_000
    figures = export.statfs(node)
    assert (figures.blocks, figures.bavail, figures.bsize) == (49, 0, PAGE)
    assert export.attributes(node).size == 49 * PAGE
    driver.close()


def test_sparse_files(export: Subject) -> None:
    node = export.make_file(b"file")
    export.setattr(node, SetAttributes(size=SPARSE), 0)
    with export.opened(node, os.O_RDWR) as file:
        export.put(file, SPARSE, b"end")
        assert export.get(file, SPARSE - 2, 10) == b"\0\0end"
        assert export.get(file, SPARSE // 2, 1000) == bytes(1000)
    assert export.attributes(node).size == SPARSE + 3
    assert export.attributes(node).blocks == 8


def test_access_times_are_relative(export: Subject) -> None:
    node = export.make_file(b"file", b"content")
    export.setattr(node, SetAttributes(atime_ns=5, mtime_ns=7), 0)
    with export.opened(node, os.O_RDONLY | os.O_NOATIME) as file:
        export.get(file, 0, 1)
    assert export.attributes(node).atime_sec == 0
    export.content(node)
    first = export.attributes(node)
    assert first.atime_sec > 1_000_000_000
    export.content(node)
    assert export.attributes(node) == first


def test_access_times_follow_every_change(export: Subject) -> None:
    node, folder = export.make_file(b"file", b"content"), export.make_folder(b"folder")
    for look, at in ((export.content, node), (export.entries, folder)):
        export.setattr(at, SetAttributes(atime_ns=5, mtime_ns=5), 0)
        look(at)
        first = export.attributes(at)
        assert first.atime_sec > 1_000_000_000
        look(at)
        assert export.attributes(at) == first
        export.setattr(at, SetAttributes(mode=0o700), 0)  # moves ctime only
        look(at)
        changed = export.attributes(at)
        assert (changed.atime_sec, changed.atime_nsec) > (first.atime_sec, first.atime_nsec)
        assert (changed.mtime_sec, changed.mtime_nsec) == (0, 5)


@pytest.mark.parametrize(
    ("uid", "mode", "expected"),
    [(1000, 0o2755, 0o755), (1000, 0o6755, 0o4755), (1000, 0o2745, 0o2745), (0, 0o2755, 0o2755)],
)
def test_a_group_does_not_give_its_rights_away(export: Subject, uid: int, mode: int, expected: int) -> None:
    """A file made in a set-group-ID folder by somebody who may not belong to its group; but for root."""
    for name, folder_mode, seen in ((b"plain", 0o777, mode), (b"shared", 0o2777, expected)):
        export.mkdir(export.root, name, folder_mode, 0, 2000)
        at = export.find(name)
        node, file, _ = export.create(at, b"file", os.O_RDWR, mode, uid, 2000)
        export.close_file(file)
        assert stat.S_IMODE(export.attributes(node).mode) == seen
        for kind in (stat.S_IFREG, stat.S_IFIFO):
            export.mknod(at, b"%d" % kind, kind | mode, 0, 0, uid, 2000)
            assert stat.S_IMODE(export.attributes(export.find(b"%d" % kind, at=at)).mode) == seen
        export.mkdir(at, b"folder", mode, uid, 2000)
        assert stat.S_IMODE(export.attributes(export.find(b"folder", at=at)).mode) == mode


@pytest.mark.parametrize("nbytes", [0, 1])
@pytest.mark.parametrize(
    ("flags", "reading", "writing"),
    [(os.O_RDONLY, True, False), (os.O_WRONLY, False, True), (os.O_RDWR, True, True), (os.O_ACCMODE, False, False)],
)
def test_access_modes(export: Subject, flags: int, nbytes: int, *, reading: bool, writing: bool) -> None:
    node = export.make_file(b"file", b"content")
    with export.opened(node, flags) as file:
        for allowed, method in ((reading, "read"), (writing, "write")):
            buffers = ViewBuffers.of(bytearray(nbytes))
            if allowed:
                assert getattr(export, method)(file, 0, buffers) == nbytes
            else:
                with export.refuses(errno.EBADF):
                    getattr(export, method)(file, 0, buffers)


def test_what_reaches_past_the_end_of_all_files(export: Subject) -> None:
    node = export.make_file(b"file")
    end = (1 << 63) - 1
    with export.opened(node, os.O_RDWR) as file:
        assert export.write(file, end - 2, ViewBuffers.of(b"ab")) == 2
        for offset in (end - 1, end):
            with export.refuses(errno.EINVAL):
                export.write(file, offset, ViewBuffers.of(b"ab"))
            with export.refuses(errno.EINVAL):
                export.read(file, offset, ViewBuffers.of(bytearray(2)))
        for method, code in (("write", errno.EFBIG), ("read", errno.EINVAL)):
            with export.refuses(code):
                getattr(export, method)(file, end + 1, ViewBuffers.of(bytearray(2)))
    assert export.attributes(node).size == end


def test_large_folders_come_in_batches() -> None:
    export = Subject(MemoryDriver())
    for number in range(3000):
        export.release(export.make_file(b"%d" % number))
    with export.opened(export.root) as file:
        first = export.readdir(file, 0)
        assert len(first) == 1026
        second = export.readdir(file, first[-1][1])
        assert len(second) == 1024
        assert len(list(export.batches(file))) == 3002
        assert export.readdir(file, (1 << 64) - 1) == []


def test_nothing_is_ever_changed_in_a_readonly_export() -> None:
    export = Subject(MemoryDriver(readonly=True))
    with export.refuses(errno.EROFS):
        export.create(export.root, b"file", os.O_RDWR, 0o644, 0, 0)
    with export.refuses(errno.EROFS):
        export.mkdir(export.root, b"folder", 0o755, 0, 0)


def test_a_hundred_thousand_entries() -> None:
    """H086: long names, small portions, entries that vanish meanwhile."""
    export = Subject(MemoryDriver(size=0))
    names = [(b"%d" % number).ljust(255, b"x") for number in range(100_000)]
    for name in names:
        export.mknod(export.root, name, 0o100644, 0, 0, 0, 0)
    seen = []
    with export.opened(export.root) as file:
        cookie = 0
        while batch := export.readdir(file, cookie)[:500]:
            cookie = batch[-1][1]
            seen += [entry[3] for entry in batch]
            export.unlinkat(export.root, batch[-1][3], folder=False)
            export.unlinkat(export.root, batch[-2][3], folder=False)
    assert seen[2:] == names
    assert export.attributes(export.root).size == 20 * (100_002 - 2 * 201)
