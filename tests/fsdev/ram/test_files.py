from __future__ import annotations

import errno
import os

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
