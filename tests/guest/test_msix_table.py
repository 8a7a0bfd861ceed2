from __future__ import annotations

import struct

import pytest

from pyvirtfs.guest.msix_table import MsixTable
from pyvirtfs.pci import layout as pci


@pytest.fixture
def table() -> MsixTable:
    """Four vectors at 0x100 of BAR 2."""
    return MsixTable(0x98, pci.MSIX.parse(struct.pack("<BBHII", 0x11, 0, 3, 0x102, 0x802)))


def program(table: MsixTable, vector: int, address: int, data: int, control: int) -> None:
    for i, value in enumerate((address & 0xFFFFFFFF, address >> 32, data, control)):
        assert table.write(0x100 + 16 * vector + 4 * i, 4, value) == vector


def test_where_it_lies(table: MsixTable) -> None:
    assert (table.control, table.vectors, table.bar, table.offset) == (0x9A, 4, 2, 0x100)
    assert [table.holds(2, offset) for offset in (0xFC, 0x100, 0x13F, 0x140, 0x800)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert not table.holds(1, 0x100)


def test_a_message(table: MsixTable) -> None:
    program(table, 2, 0x1_FEE0_0000, 0x4021, 0)
    assert table.message(2) == (0x1_FEE0_0000, 0x4021)
    assert table.read(0x128, 4) == 0x4021
    table.write(0x120, 8, 0x2_0000_1000)
    assert table.message(2) == (0x2_0000_1000, 0x4021)
    assert table.message(1) == (0, 0)


def test_what_is_wanted(table: MsixTable) -> None:
    program(table, 1, 0xFEE00000, 0x21, 0)
    assert not table.wanted(1)
    table.enabled = True
    assert [table.wanted(vector) for vector in range(4)] == [False, True, False, False]
    table.function_masked = True
    assert not table.wanted(1)
    table.held.add(1)
    table.reset()
    assert (table.enabled, table.function_masked, table.held, table.message(1)) == (False, False, set(), (0, 0))
    assert table.read(0x11C, 4) == 1


@pytest.mark.parametrize(("offset", "size"), [(0x100, 1), (0x100, 2), (0x102, 4), (0x104, 8)])
def test_accesses_that_are_not_aligned_write_nothing(table: MsixTable, offset: int, size: int) -> None:
    before = bytes(table.entries)
    assert table.write(offset, size, 0xFF) == 0
    assert table.entries == before
