from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.memory.buffers import IOV_MAX, Buffers, IovecBuffers, ViewBuffers
from pyvirtfs.memory.regions import Region

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM = 1 << 16
Cuts = list[tuple[int, int]]


def views(ram: bytearray, cuts: Cuts) -> Buffers:
    whole = memoryview(ram)
    return ViewBuffers([whole[start : start + nbytes] for start, nbytes in cuts if nbytes])


def iovec(ram: bytearray, cuts: Cuts) -> Buffers:
    region = Region(ram)
    rows = np.array([(region.host + start, nbytes) for start, nbytes in cuts], np.uint64).reshape(-1, 2)
    return IovecBuffers(rows, sum(nbytes for _, nbytes in cuts), (region,))


both = pytest.mark.parametrize("make", [views, iovec])


@st.composite
def layouts(draw: st.DrawFn) -> Cuts:
    """Ranges in any order that do not overlap, some of no bytes."""
    edges = sorted(draw(st.lists(st.integers(0, 400), max_size=16)))
    cuts = [(low, high - low) for low, high in zip(edges[::2], edges[1::2], strict=False)]
    return draw(st.permutations(cuts))


def model(ram: bytearray, cuts: Cuts) -> bytes:
    return b"".join(ram[start : start + nbytes] for start, nbytes in cuts)


def ramp() -> bytearray:
    return bytearray(index * 7 % 251 for index in range(400))


@both
@given(cuts=layouts(), data=st.data())
@settings(deadline=None)
def test_against_a_model(make: Callable[[bytearray, Cuts], Buffers], cuts: Cuts, data: st.DataObject) -> None:
    ram = ramp()
    found = make(ram, cuts)
    content = model(ram, cuts)
    base = 0
    for _ in range(data.draw(st.integers(1, 4))):
        total = found.nbytes
        assert found.read(0, total) == content[base : base + total]
        assert b"".join(found.views()) == content[base : base + total]
        assert all(view.nbytes and view.format == "B" for view in found.views())
        offset = data.draw(st.integers(0, total))
        nbytes = data.draw(st.integers(0, total - offset))
        assert found.read(offset, nbytes) == content[base + offset : base + offset + nbytes]
        written = data.draw(st.binary(min_size=nbytes, max_size=nbytes))
        found.write(offset, written)
        content = content[: base + offset] + written + content[base + offset + nbytes :]
        assert model(ram, cuts) == content
        for wrong in ((offset, total - offset + 1), (total + 1, 0), (-1, 1), (offset, -1)):
            with pytest.raises(ValueError, match="do not lie within"):
                found.read(*wrong)
            with pytest.raises(ValueError, match="do not lie within"):
                found.slice(*wrong)
        with pytest.raises(ValueError, match="do not lie within"):
            found.write(offset, bytes(total - offset + 1))
        found = found.slice(offset, nbytes)
        assert found.nbytes == nbytes
        base += offset


@both
@given(cuts=layouts(), size=st.integers(0, 500), offset=st.integers(0, 500))
@settings(deadline=None)
def test_files_against_a_model(make: Callable[[bytearray, Cuts], Buffers], cuts: Cuts, size: int, offset: int) -> None:
    fd = os.memfd_create("test")
    try:
        before = bytes(index % 253 for index in range(size))
        os.write(fd, before)
        ram = ramp()
        found = make(ram, cuts)
        content = model(ram, cuts)
        there = before[offset : offset + len(content)]
        assert found.preadv(fd, offset) == len(there)
        assert found.read(0, found.nbytes) == there + content[len(there) :]
        content = found.read(0, found.nbytes)
        assert found.pwritev(fd, offset) == len(content)
        assert os.pread(fd, 2000, offset)[: len(content)] == content
    finally:
        os.close(fd)


@both
def test_linux_read_chain(make: Callable[[bytearray, Cuts], Buffers], fd: int) -> None:
    content = os.urandom(125 * 64)
    os.pwrite(fd, content, 0)
    ram = bytearray(ROOM)
    chain = make(ram, [(0, 11), *[(512 + page * 128, 64) for page in range(125)]])
    payload = chain.slice(11, 125 * 64)
    assert payload.preadv(fd, 0) == 125 * 64
    chain.write(0, b"head of 11.")
    assert chain.read(0, chain.nbytes) == b"head of 11." + content
    assert ram[512:576] == content[:64]


@both
@pytest.mark.parametrize("count", [IOV_MAX - 1, IOV_MAX, IOV_MAX + 1, 2 * IOV_MAX + 3])
def test_more_ranges_than_one_call_takes(make: Callable[[bytearray, Cuts], Buffers], count: int, fd: int) -> None:
    ram = bytearray(os.urandom(ROOM))
    cuts = [(index * 16, 7) for index in range(count)]
    content = model(ram, cuts)
    found = make(ram, cuts)
    assert found.pwritev(fd, 3) == 7 * count
    assert os.pread(fd, 7 * count + 1, 3) == content
    ram[:] = bytes(ROOM)
    assert found.preadv(fd, 3) == 7 * count
    assert found.read(0, 7 * count) == content
    assert found.preadv(fd, 7 * count - 1) == 4  # the file ends
    assert found.preadv(fd, 3 + 7 * (count - 2)) == 14


@both
@pytest.mark.parametrize("count", [2, IOV_MAX + 5])
def test_short_results_are_continued(
    make: Callable[[bytearray, Cuts], Buffers], count: int, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may return fewer bytes than there are; only zero says that the file ended."""
    content = os.urandom(7 * count)
    os.pwrite(fd, content, 0)
    turns: list[int] = []

    def read(_fd: int, ranges: object, offset: int) -> int:
        rows = ranges.tolist() if isinstance(ranges, np.ndarray) else ranges
        assert isinstance(rows, list)
        assert 0 < len(rows) <= IOV_MAX
        first = rows[0] if isinstance(rows[0], memoryview) else region.view[rows[0][0] - region.host :][: rows[0][1]]
        step = min(3, len(first))
        first[:step] = content[offset : offset + step]
        turns.append(step)
        return step

    monkeypatch.setattr("pyvirtfs.memory.buffers._os_preadv", read)
    monkeypatch.setattr("pyvirtfs.memory.buffers.preadv", read)
    ram = bytearray(ROOM)
    region = Region(ram)
    found = make(ram, [(index * 16, 7) for index in range(count)])
    assert found.preadv(fd, 0) == 7 * count
    assert found.read(0, 7 * count) == content
    assert len(turns) == 3 * count


@both
@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1, (1 << 63) - 1])
def test_offsets_that_no_file_has(make: Callable[[bytearray, Cuts], Buffers], offset: int, fd: int) -> None:
    found = make(bytearray(64), [(0, 20), (30, 20)])
    with pytest.raises(OSError, match=r".") as reading:
        found.preadv(fd, offset)
    assert reading.value.errno in {errno.EINVAL, errno.EOVERFLOW}
    with pytest.raises(OSError, match=r".") as writing:
        found.pwritev(fd, offset)
    assert writing.value.errno in {errno.EINVAL, errno.EFBIG, errno.EOVERFLOW}


@both
def test_host_errors(make: Callable[[bytearray, Cuts], Buffers], tmp_path: object) -> None:
    found = make(bytearray(64), [(0, 20), (30, 20)])
    folder = os.open(str(tmp_path), os.O_RDONLY)
    reader, writer = os.pipe()
    for call, descriptor, wanted in (
        (found.preadv, folder, errno.EISDIR),
        (found.pwritev, folder, errno.EBADF),
        (found.preadv, reader, errno.ESPIPE),
        (found.pwritev, writer, errno.ESPIPE),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            call(descriptor, 0)
        assert caught.value.errno == wanted
    for descriptor in (folder, reader, writer):
        os.close(descriptor)


@both
def test_no_ranges_do_nothing(make: Callable[[bytearray, Cuts], Buffers]) -> None:
    found = make(bytearray(64), [])
    assert found.nbytes == 0
    assert found.read(0, 0) == b""
    found.write(0, b"")
    assert found.views() == []
    assert found.preadv(-1, 0) == found.pwritev(-1, 0) == 0
    assert found.slice(0, 0).nbytes == 0


def test_memory_that_is_gone_is_efault() -> None:
    """A file that shrinks under its mapping: the kernel says EFAULT (only our own touching it would be SIGBUS)."""
    page = mmap.PAGESIZE
    fd = os.memfd_create("test")
    os.truncate(fd, page)
    mapping = mmap.mmap(fd, page)
    region = Region(mapping)
    found: tuple[Buffers, Buffers] = (
        ViewBuffers([region.view]),
        IovecBuffers(np.array([(region.host, page)], np.uint64), page, (region,)),
    )
    other = os.memfd_create("other")
    os.write(other, bytes(page))
    os.truncate(fd, 0)
    for buffers in found:
        with pytest.raises(OSError, match="Bad address"):
            buffers.preadv(other, 0)
        with pytest.raises(OSError, match="Bad address"):
            buffers.pwritev(other, 0)
    os.close(fd)
    os.close(other)


@both
def test_a_full_disk_writes_what_fits_and_then_fails(make: Callable[[bytearray, Cuts], Buffers]) -> None:
    """Played by RLIMIT_FSIZE in a process of its own."""
    count = IOV_MAX + 100
    child = f"""
import os, resource, signal, sys
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
import importlib.util
spec = importlib.util.spec_from_file_location("test_buffers", {__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
resource.setrlimit(resource.RLIMIT_FSIZE, (7200, 7200))
found = module.{make.__name__}(bytearray(65536), [(index * 16, 7) for index in range({count})])
print(found.pwritev(fd, 0), os.fstat(fd).st_size)
try:
    found.pwritev(fd, 7200)
except OSError as problem:
    print(problem.errno)
"""
    result = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["7200", "7200", str(errno.EFBIG)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 7200


class TestViewBuffers:
    def test_of_any_buffer(self) -> None:
        stream = bytearray(b"0123456789")
        found = ViewBuffers.of(stream)
        found.write(2, b"ab")
        assert stream == b"01ab456789"
        assert ViewBuffers.of(bytearray()).views() == []
        assert ViewBuffers.of((ctypes.c_uint16 * 3)()).nbytes == 6

    def test_read_only_ranges(self, fd: int) -> None:
        os.pwrite(fd, b"file", 0)
        found = ViewBuffers.of(b"constant")
        assert found.read(2, 3) == b"nst"
        assert found.pwritev(fd, 4) == 8
        assert os.pread(fd, 20, 0) == b"fileconstant"
        for change in (lambda: found.write(0, b"x"), lambda: found.preadv(fd, 0)):
            with pytest.raises(OSError, match="Bad address"):
                change()

    def test_slices_share_the_memory(self) -> None:
        ram = bytearray(100)
        part = ViewBuffers([memoryview(ram)[:50], memoryview(ram)[60:]]).slice(40, 20).slice(5, 10)
        part.write(0, b"abcdefghij")
        assert ram[45:50] + ram[60:65] == b"abcdefghij"

    def test_views_is_a_list_of_its_own(self) -> None:
        found = ViewBuffers.of(bytearray(8))
        found.views().clear()
        assert len(found.views()) == 1


class TestIovecBuffers:
    def test_a_slice_does_not_change_what_it_was_cut_from(self) -> None:
        ram = ramp()
        found = iovec(ram, [(0, 100), (200, 100)])
        found.slice(50, 100).slice(10, 20)
        assert found.read(0, 200) == model(ram, [(0, 100), (200, 100)])

    def test_ranges_in_several_owners(self) -> None:
        first, second = Region(bytearray(b"a" * 64)), Region(bytearray(b"b" * 64))
        rows = np.array([(first.host, 3), (second.host + 60, 4), (first.host + 63, 1)], np.uint64)
        found = IovecBuffers(rows, 8, (first, second))
        assert found.read(0, 8) == b"aaabbbba"
        found.write(2, b"1234")
        assert bytes(second.view[60:]) == b"234b"

    def test_ranges_outside_their_owners_are_never_touched_by_python(self) -> None:
        region = Region(bytearray(64))
        found = IovecBuffers(np.array([(region.host + 60, 8)], np.uint64), 8, (region,))
        with pytest.raises(ValueError, match="do not lie within"):
            found.read(0, 8)
        with pytest.raises(ValueError, match="do not lie within"):
            found.views()

    def test_signals_do_not_interrupt_it(self, fd: int) -> None:
        """EINTR cannot be provoked on a regular file; at least the threads may run meanwhile."""
        os.ftruncate(fd, 1 << 22)
        found = iovec(bytearray(1 << 22), [(0, 1 << 22)])
        results: list[int] = []
        workers = [threading.Thread(target=lambda: results.append(found.preadv(fd, 0))) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert results == [1 << 22] * 3
