"""qid.version: Linux keeps a file's pages for as long as it stays the same, and keeps none if it is 0."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers

At = Callable[[bytes], Node]
pytestmark = pytest.mark.usefixtures("tidy")

CONTENT = b"some content"
CLOCK_REALTIME_COARSE = 5  # clock_getres(2); Python has no name for it


@pytest.fixture(autouse=True)
def file(root: Path) -> Path:
    (root / "file").write_bytes(CONTENT)
    return root / "file"


def next_tick(path: Path) -> None:
    """Wait until the clock that gives files their times has another one than this file has."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= path.stat().st_ctime_ns:
        time.sleep(0.001)


def write(driver: LocalDriver, node: Node, data: bytes, offset: int = 0) -> None:
    file, _ = driver.open(node, os.O_WRONLY, 0)
    try:
        assert driver.write(file, offset, ViewBuffers.of(bytearray(data))) == len(data)
    finally:
        driver.close_file(file)


def through_another_driver(path: Path) -> None:
    with contextlib.closing(LocalDriver(path.parent)) as other:
        top, _ = other.attach(b"", 0)
        node = other.walk(top, [path.name.encode()]).node
        assert node is not None
        write(other, node, CONTENT)
        other.release(node)


def mapped(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), len(CONTENT)) as memory:
        memory[0] = CONTENT[0]  # the first store to a page; tmpfs does not notice a later one


def set_back(path: Path) -> None:
    """As ``cp -p`` and ``rsync`` do it: neither the size nor the time of the content tells."""
    before = path.stat()
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def overwritten(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, CONTENT, 0)
    os.close(fd)


@pytest.mark.parametrize(
    "change",
    [through_another_driver, mapped, set_back, overwritten, lambda path: os.truncate(path, len(CONTENT))],
    ids=["another driver", "mmap", "mtime set back", "same content", "truncate to the same size"],
)
def test_changes_of_the_host(driver: LocalDriver, at: At, file: Path, change: Callable[[Path], None]) -> None:
    node = at(b"file")
    before = driver.getattr(node)[0]
    assert driver.getattr(node)[0] == before
    next_tick(file)
    changed = file.stat().st_ctime_ns
    change(file)
    if file.stat().st_ctime_ns == changed:
        pytest.skip("this is no change to the file system")
    after = driver.getattr(node)[0]
    assert (after.path, after.type) == (before.path, before.type)
    assert after.version not in {before.version, 0}
    walk = driver.walk(at(b""), [b"file"])
    assert walk.qids[-1] == after
    assert walk.node is not None
    driver.release(walk.node)


def test_changes_of_guests_within_one_tick(driver: LocalDriver, at: At, file: Path) -> None:
    """Two nodes of one object, which has two names; the version never comes back."""
    os.link(file, file.with_name("again"))
    nodes = at(b"file"), at(b"again")
    seen = {driver.getattr(nodes[0])[0].version}
    for count in range(1, 301):
        node = nodes[count % 2]
        if count % 3:
            write(driver, node, CONTENT)
        else:
            driver.setattr(node, SetAttributes(size=len(CONTENT)), 0)
        versions = {driver.getattr(each)[0].version for each in nodes}
        assert len(versions) == 1
        seen |= versions
        assert len(seen) == count + 1
    assert 0 not in seen


def test_opening_to_truncate(driver: LocalDriver, at: At, file: Path) -> None:
    node = at(b"file")
    seen = set()
    for _ in range(20):
        opened, qid = driver.open(node, os.O_WRONLY | os.O_TRUNC, 0)
        driver.close_file(opened)
        assert driver.getattr(node)[0] == qid
        seen.add(qid.version)
    assert len(seen) == 20


def test_changes_of_a_folder_within_one_tick(driver: LocalDriver, at: At, file: Path) -> None:
    top = at(b"")
    seen = {driver.getattr(top)[0].version}

    def changed() -> None:
        before = len(seen)
        seen.add(driver.getattr(top)[0].version)
        assert len(seen) == before + 1

    for _ in range(20):
        driver.mkdir(top, b"folder", 0o755, 0, 0)
        changed()
        driver.renameat(top, b"folder", top, b"other")
        changed()
        driver.renameat(top, b"other", top, b"other")  # does nothing
        assert driver.getattr(top)[0].version in seen
        driver.unlinkat(top, b"other", folder=True)
        changed()
        driver.symlink(top, b"link", b"target", 0, 0)
        changed()
        node = driver.walk(top, [b"link"]).node
        assert node is not None
        driver.remove(node)
        driver.release(node)
        changed()
        driver.link(top, at(b"file"), b"again")
        changed()
        node, opened, _ = driver.create(top, b"new", os.O_RDWR, 0o644, 0, 0)
        changed()
        driver.rename(node, top, b"again")
        changed()
        driver.close_file(opened)
        driver.release(node)
        driver.unlinkat(top, b"again", folder=False)
        changed()
    assert 0 not in seen
