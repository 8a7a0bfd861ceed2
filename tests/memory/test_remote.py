"""RAM that somebody else reads and writes for us."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError, MemoryAccessError
from pyvirtfs.memory import GuestMemory, Region, RemoteBuffers, RemoteRegion, RemoteView, unpacker

MIB = 1 << 20


class Port:
    """Somebody else, who remembers what was asked."""

    def __init__(self, nbytes: int, base: int = 0) -> None:
        self.data = bytearray(os.urandom(nbytes))
        self.base = base
        self.asked: list[tuple[str, int, int]] = []
        self.broken = False

    def read(self, address: int, nbytes: int) -> bytes:
        self._note("read", address, nbytes)
        return bytes(self.data[address - self.base : address - self.base + nbytes])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._note("write", address, len(data))
        self.data[address - self.base : address - self.base + len(data)] = data

    def _note(self, kind: str, address: int, nbytes: int) -> None:
        self.asked.append((kind, address, nbytes))
        assert 0 <= address - self.base <= address - self.base + nbytes <= len(self.data)
        if self.broken:
            raise MemoryAccessError(address, nbytes)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


# --- regions ---


@pytest.mark.parametrize(("address", "nbytes"), [(0, 0), (0, -1), (-1, 1), (1 << 64, 1), ((1 << 64) - 1, 2)])
def test_regions_that_cannot_be(address: int, nbytes: int) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        RemoteRegion(Port(1), nbytes, address)


def test_a_region() -> None:
    port = Port(64, base=0x1000)
    region = RemoteRegion(port, 64, 0x1000, readonly=True)
    assert repr(region) == "<RemoteRegion 0x1000..0x103f readonly>"
    assert (region.end, region.readonly) == (0x1040, True)
    assert region.load(3, 5) == port.data[3:8]
    region.store(8, b"abc")
    assert port.data[8:11] == b"abc"
    assert port.asked == [("read", 0x1003, 5), ("write", 0x1008, 3)]


# --- views and words ---


@pytest.mark.parametrize(("code", "nbytes"), [("H", 2), ("I", 4), ("Q", 8)])
def test_words_are_those_of_a_cast_memoryview(code: Literal["H", "I", "Q"], nbytes: int) -> None:
    port = Port(64, base=0x1000)
    mine = memoryview(bytearray(port.data))
    remote = RemoteView(RemoteRegion(port, 64, 0x1000), 8, 48).cast(code)
    local = mine[8:56].cast(code)
    for i in range(48 // nbytes):
        assert remote[i] == local[i]
        remote[i] = local[i] = (i * 0x0123456789ABCDEF) & (1 << 8 * nbytes) - 1
    assert port.data == mine
    assert all(each[2] == nbytes and not each[1] % nbytes for each in port.asked)  # one aligned access each


@given(st.integers(0, 64), st.integers(0, 64), st.integers(0, 64), st.integers(0, 64))
def test_slices_are_those_of_a_memoryview(a: int, b: int, c: int, d: int) -> None:
    port = Port(64)
    view = RemoteView(RemoteRegion(port, 64, 0), 0, 64)
    local = memoryview(bytes(port.data))
    first, second = slice(min(a, b), max(a, b)), slice(min(c, d), max(c, d))
    part, expected = view[first][second], local[first][second]
    assert part.nbytes == expected.nbytes
    if part.nbytes >= 2:
        assert part.cast("H")[0] == expected[:2].cast("H")[0]
    assert view[2:].nbytes == 62


def test_unpacker() -> None:
    layout = struct.Struct("<QIHH")
    port = Port(64, base=0x1000)
    remote = unpacker(layout, RemoteView(RemoteRegion(port, 64, 0x1000), 16, 48))
    local = unpacker(layout, memoryview(bytes(port.data))[16:])
    assert [remote(offset) for offset in (0, 16, 32)] == [local(offset) for offset in (0, 16, 32)]
    assert port.asked == [("read", 0x1010 + offset, 16) for offset in (0, 16, 32)]


# --- buffers ---


def mixed() -> tuple[GuestMemory, Port, bytearray]:
    """Remote RAM at 0x1000, own RAM behind it, and the model of both."""
    port = Port(256, base=0x1000)
    own = np.frombuffer(os.urandom(256), np.uint8).copy()
    memory = GuestMemory()
    memory.add_remote(port, 256, address=0x1000)
    memory.add_array(own, 0x1100)
    return memory, port, port.data + bytearray(own.tobytes())


ranges = st.lists(
    st.integers(0, 511).flatmap(lambda start: st.tuples(st.just(start), st.integers(0, 512 - start))),
    min_size=1,
    max_size=20,
)


@given(data=st.data(), where=ranges)
def test_buffers_against_a_model(data: st.DataObject, where: list[tuple[int, int]]) -> None:
    memory, _, model = mixed()
    buffers = memory.buffers([(0x1000 + start, nbytes) for start, nbytes in where], writable=True)
    flat = [start + i for start, nbytes in where for i in range(nbytes)]
    assert buffers.nbytes == len(flat)
    begin = data.draw(st.integers(0, len(flat)))
    nbytes = data.draw(st.integers(0, len(flat) - begin))
    expected = bytes(model[i] for i in flat[begin : begin + nbytes])
    assert buffers.read(begin, nbytes) == expected
    assert buffers.slice(begin, nbytes).read(0, nbytes) == expected
    new = os.urandom(nbytes)
    buffers.write(begin, new)
    for position, byte in zip(flat[begin : begin + nbytes], new, strict=True):
        model[position] = byte
    assert memory.read(0x1000, 512) == model


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, 11), (11, 0), (5, 6), (0, -1)])
def test_out_of_bounds_is_a_value_error(offset: int, nbytes: int) -> None:
    buffers = RemoteBuffers([(RemoteRegion(Port(10), 10, 0), 0, 10)])
    assert repr(buffers) == "<RemoteBuffers 10 bytes in 1 ranges>"
    for act in (lambda: buffers.read(offset, nbytes), lambda: buffers.slice(offset, nbytes)):
        with pytest.raises(ValueError, match="do not lie within"):
            act()


def test_there_are_no_views() -> None:
    with pytest.raises(OSError, match="cannot be mapped"):
        RemoteBuffers([(RemoteRegion(Port(10), 10, 0), 0, 10)]).views()


def large(nbytes: int) -> tuple[Port, RemoteBuffers]:
    port = Port(nbytes, base=4096)
    region = RemoteRegion(port, nbytes, 4096)
    half = nbytes // 2 + 1
    return port, RemoteBuffers([(region, 0, half), (region, half, nbytes - half)])


@pytest.mark.parametrize("nbytes", [1, 4096, MIB, 2 * MIB + 77])
def test_pwritev_and_preadv(file: int, nbytes: int) -> None:
    port, buffers = large(nbytes)
    data = bytes(port.data)
    assert buffers.pwritev(file, 3) == nbytes
    assert os.pread(file, nbytes + 10, 3) == data
    assert all(each[2] <= MIB for each in port.asked)
    port.data[:] = bytes(nbytes)
    assert buffers.preadv(file, 3) == nbytes
    assert port.data == data


def test_preadv_at_the_end_of_the_file(file: int) -> None:
    os.write(file, b"12345")
    port, buffers = large(100)
    before = bytes(port.data)
    assert buffers.preadv(file, 2) == 3
    assert port.data == b"345" + before[3:]
    assert buffers.preadv(file, 5) == 0


def test_mixed_payloads_of_a_file(file: int) -> None:
    memory, _, model = mixed()
    buffers = memory.buffers([(0x10F0, 32), (0x1000, 8)], writable=True)
    assert isinstance(buffers, RemoteBuffers)
    assert buffers.pwritev(file, 0) == 40
    assert os.pread(file, 100, 0) == bytes(model[0xF0:0x110] + model[:8])
    os.pwrite(file, bytes(range(40)), 0)
    assert buffers.preadv(file, 0) == 40
    assert memory.read(0x10F0, 32) == bytes(range(32))


def test_offsets_that_no_file_has(file: int) -> None:
    _, buffers = large(10)
    with pytest.raises(OSError, match=r".") as caught:
        buffers.preadv(file, 1 << 64)
    assert caught.value.errno == 22
    with pytest.raises(OSError, match=r".") as caught:
        buffers.pwritev(file, 1 << 64)
    assert caught.value.errno == 27


def test_errors_of_the_file(tmp_path: Path) -> None:
    _, buffers = large(10)
    fd = os.open(tmp_path, os.O_RDONLY)
    for act in (buffers.preadv, buffers.pwritev):
        with pytest.raises(OSError, match=r"."):
            act(fd, 0)
    os.close(fd)


def test_a_write_that_ends_in_the_middle(file: int) -> None:
    """The file system is full after a part: that part counts."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, buffers = large(3 * MIB)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB + 1000, hard))
        assert buffers.pwritev(file, 0) == MIB + 1000
        with pytest.raises(OSError, match=r".") as caught:
            buffers.pwritev(file, MIB + 1000)
        assert caught.value.errno == 27
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_port_that_fails(file: int) -> None:
    port, buffers = large(100)
    os.write(file, bytes(100))
    port.broken = True
    for act in (
        lambda: buffers.read(0, 1),
        lambda: buffers.write(0, b"x"),
        lambda: buffers.preadv(file, 0),
        lambda: buffers.pwritev(file, 0),
    ):
        with pytest.raises(MemoryAccessError):
            act()


def test_own_regions_take_part() -> None:
    """`Region` has the same two operations."""
    region = Region(bytearray(b"0123456789abcdef"), 0)
    region.store(2, b"xy")
    assert region.load(1, 4) == b"1xy4"
