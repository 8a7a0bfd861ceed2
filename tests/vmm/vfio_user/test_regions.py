"""Regions, and how accesses of any size become those of a PCI function."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.vmm.vfio_user.regions import Regions

CONFIG = 7
MIB = 1 << 20


@pytest.fixture
def regions(toy: Any) -> Any:
    return Regions(toy())


def refuse(call: Any, *arguments: Any) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call(*arguments)
    assert caught.value.errno == 22


def test_sizes_and_flags(toy: Any) -> None:
    regions = Regions(toy())
    assert regions.sizes == (256, 4096, 2 * MIB, 0, 0, 0, 0, 256, 0)
    assert [regions.info(index) for index in range(9)] == [(3 if size else 0, size) for size in regions.sizes]
    assert Regions(toy(express=True)).sizes[CONFIG] == 4096
    for index in (9, 10, 0xFFFFFFFF):
        refuse(regions.info, index)


@given(offset=st.integers(0, 80), nbytes=st.integers(0, 80))
def test_accesses_are_aligned_or_as_they_came(toy: Any, offset: int, nbytes: int) -> None:
    function = toy()
    regions = Regions(function)
    data = bytes(range(1, 1 + nbytes))
    regions.write(0, offset, data)
    assert function.small.data == bytes(offset) + data + bytes(256 - offset - nbytes)
    assert regions.read(0, offset, nbytes) == data
    written, read = ([each[1:] for each in function.small.accesses if each[0] == kind] for kind in ("write", "read"))
    assert written == read
    assert sum(size for _, size in read) == nbytes
    if nbytes in {1, 2, 4, 8}:
        assert read == [(offset, nbytes)]  # whatever its alignment: the function decides
    else:
        assert all(where % size == 0 and size in {1, 2, 4, 8} for where, size in read)
        assert [where for where, _ in read] == sorted(where for where, _ in read)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 64, 256])
def test_configuration_space_in_any_size(regions: Any, size: int) -> None:
    whole = regions.read(CONFIG, 0, 256)
    assert whole[:4] == struct.pack("<HH", 0x1234, 0x5678)
    for offset in range(0, 257 - size, 3):
        assert regions.read(CONFIG, offset, size) == whole[offset : offset + size]


def test_a_write_that_spans_fields_of_configuration_space(regions: Any) -> None:
    regions.write(CONFIG, 0x3C, b"\x0b\xff\xff\xff")  # interrupt line and read-only neighbours
    assert regions.read(CONFIG, 0x3C, 4) == b"\x0b\x01\0\0"
    regions.write(CONFIG, 0x10, b"\xff" * 24)  # all BARs at once
    assert regions.read(CONFIG, 0x10, 12) == struct.pack("<III", 0xFFFFFF00, 0xFFFFF000, 0xFFE00004)
    regions.write(CONFIG, 0x0D, b"\0\0\0\0\xab")  # odd, and over a dword
    assert regions.read(CONFIG, 0x11, 1) == b"\xab"


def test_32bit_bar_size_detection(regions: Any) -> None:
    regions.write(CONFIG, 0x10, b"\xff" * 4)
    assert regions.read(CONFIG, 0x10, 4) == struct.pack("<I", 0xFFFFFF00)
    regions.write(CONFIG, 0x10, struct.pack("<I", 0xE0001234))
    assert regions.read(CONFIG, 0x10, 4) == struct.pack("<I", 0xE0001200)


def test_64bit_bar_size_detection_protocol(regions: Any) -> None:
    regions.write(CONFIG, 0x18, b"\xff" * 4)
    assert regions.read(CONFIG, 0x18, 4) == struct.pack("<I", 0xFFE00004)
    regions.write(CONFIG, 0x1C, b"\xff" * 4)
    assert regions.read(CONFIG, 0x1C, 4) == b"\xff" * 4
    for offset, value in ((0x18, 0x00200000), (0x1C, 0x80)):
        regions.write(CONFIG, offset, struct.pack("<I", value))
    assert regions.read(CONFIG, 0x18, 8) == struct.pack("<Q", 0x80_0020_0004)


def test_extended_configuration_space_is_empty_and_readonly(toy: Any) -> None:
    regions = Regions(toy(express=True))
    regions.write(CONFIG, 256, b"\xff" * 3840)
    assert regions.read(CONFIG, 256, 3840) == bytes(3840)


@pytest.mark.parametrize("region", [3, 4, 5, 6, 8])
def test_regions_that_do_not_exist(regions: Any, region: int) -> None:
    refuse(regions.read, region, 0, 1)
    refuse(regions.write, region, 0, b"x")


@pytest.mark.parametrize("region", [9, 10, 0xFFFFFFFF])
def test_numbers_that_are_no_region(regions: Any, region: int) -> None:
    refuse(regions.read, region, 0, 1)
    refuse(regions.read, region, 0, 0)
    refuse(regions.write, region, 0, b"x")


@pytest.mark.parametrize(
    ("region", "offset", "nbytes"),
    [
        (0, 256, 1), (0, 255, 2), (0, 0, 257), (0, 253, 4), (0, 1 << 63, 1), (0, (1 << 64) - 1, 1),
        (0, (1 << 64) - 4, 8), (CONFIG, 256, 1), (CONFIG, 254, 4), (CONFIG, 0, 4096), (1, 4095, 2), (2, 2 * MIB, 1),
    ],
)  # fmt: skip
def test_region_offset_overflow(regions: Any, region: int, offset: int, nbytes: int) -> None:
    refuse(regions.read, region, offset, nbytes)
    refuse(regions.write, region, offset, bytes(nbytes))


def test_access_region_zero_count(regions: Any) -> None:
    assert regions.read(0, 0, 0) == b""
    assert regions.read(0, 256, 0) == b""
    regions.write(0, 256, b"")
    refuse(regions.read, 0, 257, 0)


def test_access_region_large_count(regions: Any) -> None:
    data = bytes(range(256)) * 4096
    regions.write(2, MIB, data)
    assert regions.read(2, MIB, MIB) == data
    refuse(regions.read, 2, 0, MIB + 1)
    refuse(regions.write, 2, 0, bytes(MIB + 1))


def test_nothing_is_written_by_a_refused_write(toy: Any) -> None:
    function = toy()
    refuse(Regions(function).write, 0, 250, bytes(8))
    assert function.small.accesses == []
