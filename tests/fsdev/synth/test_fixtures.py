"""The files of QEMU's driver, as QEMU's tests use them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing import pair
from pyvirtfs.testing.conformance.subject import Subject


@pytest.fixture
def export() -> Iterator[Subject]:
    driver = registry.create("synth,id=x")
    yield Subject(driver)
    driver.close()


def test_walk(export: Subject) -> None:
    names = [b"WALK%d" % depth for depth in range(16)]
    assert len({qid.path for qid in export.walk(export.root, names).qids}) == 16
    for depth in range(16):
        assert export.walk(export.root, names[:depth]).node is not None
    for name in (b"non-existent", b" /"):
        with export.refuses(errno.ENOENT):
            export.walk(export.root, [name])
    found = export.walk(export.root, [b"WALK0", b"non-existent"])
    assert (len(found.qids), found.node) == (1, None)


def test_readdir(export: Subject) -> None:
    folder = export.find(b"ReadDirDir")
    assert export.names_in(folder) == sorted(b"ReadDirFile%d" % number for number in range(100))
    assert len(export.entries(folder)) == 102
    assert export.mode(folder) == 0o700


def test_open_and_write(export: Subject) -> None:
    export.close_file(export.open(export.find(b"LOPEN"), os.O_WRONLY, 0)[0])
    with export.opened(export.find(b"WRITE"), os.O_WRONLY) as file:
        for size in (1, 4096, 100_000):
            assert export.write(file, 0, ViewBuffers.of(bytes(size))) == size


def test_flush(export: Subject) -> None:
    with export.opened(export.find(b"FLUSH"), os.O_WRONLY) as file:
        assert export.write(file, 0, ViewBuffers.of(b"\0")) == 1
        answer = export.driver.write(file, 0, ViewBuffers.of(b"\1"))
        assert isinstance(answer, Completion)
        assert not answer.done
        answer.cancel()
        with pytest.raises(OSError, match="Interrupted"):
            answer.result()


def test_names_of_any_length(export: Subject) -> None:
    for length in (1, 255, 256, 4096, 65535):
        with export.refuses(errno.ENOENT, errno.ENAMETOOLONG):
            export.walk(export.root, [b"W" * length])


def test_a_guest_sees_them() -> None:
    with pair("synth") as both:
        assert sorted(path.name for path in both.mount.path(".").iterdir()) == [
            "FLUSH", "LOPEN", "ReadDirDir", "WALK0", "WRITE"
        ]  # fmt: skip
        assert len(list(both.mount.path("ReadDirDir").iterdir())) == 100
        both.mount.path("WRITE").write_bytes(b"anything")


def test_readonly() -> None:
    export = Subject(registry.create("synth,readonly=on"))
    with export.refuses(errno.EROFS):
        export.open(export.find(b"WRITE"), os.O_WRONLY, 0)
