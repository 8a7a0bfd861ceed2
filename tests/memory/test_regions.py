from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.memory.regions import Region, map_anonymous, map_descriptor

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(64, np.uint8),
        np.zeros((4, 16), np.uint8),
        np.zeros(16, np.float32),
        np.zeros(8, [("a", "<u4"), ("b", "<u4")]),
        bytearray(64),
        memoryview(bytearray(64)),
        memoryview(bytearray(64)).cast("Q"),
        (ctypes.c_uint32 * 16)(),
        mmap.mmap(-1, 64),
    ],
    ids=lambda array: type(array).__name__,
)
def test_any_writable_contiguous_buffer_is_shared_not_copied(array: Any) -> None:
    region = Region(array, 0x1000)
    assert (region.address, region.nbytes, region.end) == (0x1000, 64, 0x1040)
    assert region.array.dtype == np.uint8
    assert region.array.shape == (64,)
    assert (region.view.format, region.view.shape) == ("B", (64,))
    region.view[5] = 77
    assert region.array[5] == 77
    assert memoryview(array).tobytes()[5] == 77


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (bytes(64), "read-only"),
        (np.broadcast_to(np.uint8(0), (64,)), r"read-only|contiguous"),
        (np.zeros(128, np.uint8)[::2], "contiguous"),
        (np.zeros((8, 8), np.uint8).T[:, :4], "contiguous"),
        (np.zeros(0, np.uint8), "empty"),
        (bytearray(), "empty"),
        (64, "int"),
        ([0] * 64, "list"),
        (np.zeros(8, "M8[s]"), "ndarray"),
        (np.zeros(72, np.uint8)[1:65], "multiples of 8"),
    ],
)
def test_what_cannot_be_ram_is_refused_with_one_clear_line(array: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Region(array)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("memory: ")


@pytest.mark.parametrize("address", [1, 4, 7, 12, -8, 1 << 64, (1 << 64) - 56])
def test_addresses_where_it_does_not_fit(address: int) -> None:
    with pytest.raises(ConfigError, match=r"multiples of 8|do not fit"):
        Region(bytearray(64), address)


def test_the_last_bytes_of_the_address_space() -> None:
    assert Region(bytearray(64), (1 << 64) - 64).end == 1 << 64


def test_words_are_single_native_items_of_the_same_memory() -> None:
    region = Region(bytearray(70), 0)
    assert [len(region.u16), len(region.u32), len(region.u64)] == [32, 16, 8]
    region.u16[3] = 0x1234
    region.u32[4] = 0x89ABCDEF
    region.u64[4] = 0x0123456789ABCDEF
    assert region.view[6:8].tobytes() == (0x1234).to_bytes(2, "little")
    assert region.view[16:20].tobytes() == (0x89ABCDEF).to_bytes(4, "little")
    assert region.view[32:40].tobytes() == (0x0123456789ABCDEF).to_bytes(8, "little")


def test_a_callers_bytearray_cannot_be_resized_under_us() -> None:
    ram = bytearray(64)
    region = Region(ram)
    with pytest.raises(BufferError):
        ram.extend(b"x")
    del region
    ram.extend(b"x")


def test_a_callers_mmap_cannot_be_closed_under_us() -> None:
    ram = mmap.mmap(-1, PAGE)
    view = Region(ram).view
    with pytest.raises(BufferError):
        ram.close()
    del view
    ram.close()


def test_anonymous_memory_takes_no_room_before_it_is_touched() -> None:
    huge = map_anonymous(1 << 40)
    assert huge[1 << 39] == 0


@pytest.mark.parametrize("nbytes", [0, -1, 1 << 63, 1 << 64])
def test_impossible_sizes(nbytes: int) -> None:
    with pytest.raises(ConfigError):
        map_anonymous(nbytes)


class TestMapDescriptor:
    def test_it_is_shared_with_the_file(self, fd: int) -> None:
        os.ftruncate(fd, 3 * PAGE)
        mapping = map_descriptor(fd, PAGE, 2 * PAGE)
        mapping[5] = 42
        assert os.pread(fd, 1, 2 * PAGE + 5) == b"\x2a"

    def test_the_descriptor_may_be_closed(self, fd: int) -> None:
        os.ftruncate(fd, PAGE)
        other = os.dup(fd)
        mapping = map_descriptor(other, PAGE)
        os.close(other)
        mapping[0] = 1
        assert os.pread(fd, 1, 0) == b"\x01"

    def test_not_writable(self, fd: int) -> None:
        os.ftruncate(fd, PAGE)
        mapping = map_descriptor(fd, PAGE, writable=False)
        assert memoryview(mapping).readonly
        with pytest.raises(ConfigError, match="read-only"):
            Region(mapping)
        assert Region(mapping, readonly=True).readonly

    @pytest.mark.parametrize(
        ("nbytes", "offset", "says"),
        [
            (PAGE + 1, 0, "exceed"),
            (PAGE, PAGE, "exceed"),
            (PAGE, 1, "multiple"),
            (PAGE, -PAGE, "multiple"),
            (PAGE, 1 << 63, "exceed"),
            (1 << 64, 0, "exceed"),
            (0, 0, "cannot have"),
            (-1, 0, "cannot have"),
        ],
    )
    def test_ranges_outside_the_file(self, fd: int, nbytes: int, offset: int, says: str) -> None:
        os.ftruncate(fd, PAGE)
        with pytest.raises(ConfigError, match=says):
            map_descriptor(fd, nbytes, offset)

    def test_not_a_file(self) -> None:
        reader, writer = os.pipe()
        with pytest.raises(ConfigError, match="not a regular file"):
            map_descriptor(reader, PAGE)
        os.close(reader)
        os.close(writer)
        with pytest.raises(OSError, match="Bad file descriptor"):
            map_descriptor(reader, PAGE)
