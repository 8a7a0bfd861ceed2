"""Descriptor chains, good and malformed."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import GuestError, MemoryAccessError, QueueError
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio import Chain
from pyvirtfs.virtio.chain import MAX_INDIRECT, ChainReader, Ranges

NEXT, WRITE, INDIRECT = 1, 2, 4
RAM = 1 << 20
TABLE = 0x10000

Entry = tuple[int, int, int, int]


def make_reader(memory: GuestMemory) -> ChainReader:
    reader = ChainReader(memory)
    reader.indirect = True
    return reader


def put(memory: GuestMemory, entries: list[Entry]) -> int:
    data = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    memory.write(TABLE, data)
    return len(data)


def sequential(readable: int, writable: int, nbytes: int = 16) -> list[Entry]:
    """A table as Linux builds it: buffers of `nbytes` from 0x20000 on, 4096 apart."""
    count = readable + writable
    return [
        (
            0x20000 + 4096 * (i % 100),
            nbytes,
            (WRITE if i >= readable else 0) | (NEXT if i + 1 < count else 0),
            (i + 1) & 0xFFFF,
        )
        for i in range(count)
    ]


def walk(entries: list[Entry]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
    """An independent reading of a table: its ranges, or None if it is malformed."""
    readable: list[tuple[int, int]] = []
    writable: list[tuple[int, int]] = []
    at = 0
    for _ in range(len(entries)):
        if at >= len(entries):
            return None
        address, nbytes, flags, following = entries[at]
        if flags & INDIRECT or (not flags & WRITE and writable):
            return None
        (writable if flags & WRITE else readable).append((address, nbytes))
        if not flags & NEXT:
            total = sum(n for _, n in readable + writable)
            return (readable, writable) if total <= 1 << 32 else None
        at = following
    return None


def content(memory: GuestMemory, ranges: list[tuple[int, int]]) -> bytes:
    return b"".join(memory.read(address, nbytes) for address, nbytes in ranges if nbytes)


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    memory = GuestMemory.anonymous(RAM)
    memory.write(0x20000, bytes(i * 7 & 0xFF for i in range(RAM - 0x20000)))
    return memory


@pytest.mark.parametrize(
    ("readable", "writable"),
    [(1, 1), (1, 2), (2, 1), (0, 2), (2, 0), (1, 0), (8, 7), (1, 15), (1, 127), (127, 1), (500, 524)],
)
def test_tables_of_linux(memory: GuestMemory, readable: int, writable: int) -> None:
    entries = sequential(readable, writable)
    chain = make_reader(memory).table(5, TABLE, put(memory, entries))
    assert chain.head == 5
    expected = walk(entries)
    assert expected is not None
    assert chain.readable.read(0, chain.readable.nbytes) == content(memory, expected[0])
    assert chain.writable.read(0, chain.writable.nbytes) == content(memory, expected[1])
    assert (chain.readable.nbytes, chain.writable.nbytes) == (16 * readable, 16 * writable)


ADDRESSES = st.one_of(
    st.integers(0x20000, RAM - 64), st.sampled_from([0, RAM - 1, RAM, TABLE, 1 << 63, (1 << 64) - 1, (1 << 64) - 8])
)
LENGTHS = st.one_of(st.integers(0, 64), st.sampled_from([0, 1 << 31, (1 << 32) - 1]))
GOOD = st.tuples(st.integers(0x20000, RAM - 64), st.integers(0, 64), st.sampled_from([1, 3]), st.integers(0, 40))
WILD = st.tuples(ADDRESSES, LENGTHS, st.integers(0, 7), st.integers(0, 0xFFFF))


@st.composite
def tables(draw: st.DrawFn) -> list[Entry]:
    """Tables that are right, nearly right, and garbage."""
    count = draw(st.integers(1, 40))
    split = draw(st.integers(0, count))
    entries: list[Entry] = []
    for i in range(count):
        address, nbytes, _, _ = draw(GOOD)
        entries.append((address, nbytes, (WRITE if i >= split else 0) | (NEXT if i + 1 < count else 0), i + 1))
    for _ in range(draw(st.integers(0, 3))):
        entries[draw(st.integers(0, count - 1))] = draw(st.one_of(GOOD, WILD))
    return entries


@pytest.fixture(scope="module")
def reader(memory: GuestMemory) -> ChainReader:
    """One for many tables: it remembers shapes."""
    return make_reader(memory)


@settings(max_examples=400, deadline=None)
@given(entries=tables())
def test_any_table_is_read_right_or_refused(memory: GuestMemory, reader: ChainReader, entries: list[Entry]) -> None:
    nbytes = put(memory, entries)
    expected = walk(entries)
    try:
        chain = reader.table(0, TABLE, nbytes)
    except QueueError:
        assert expected is None
    except MemoryAccessError:
        assert expected is not None
        assert any(n and a + n > RAM for a, n in expected[0] + expected[1])
    else:
        assert expected is not None
        assert chain.readable.read(0, chain.readable.nbytes) == content(memory, expected[0])
        assert chain.writable.read(0, chain.writable.nbytes) == content(memory, expected[1])


def test_a_known_shape_says_nothing_of_addresses_and_lengths(memory: GuestMemory) -> None:
    reader = make_reader(memory)
    for nbytes in (16, 32, 8):
        chain = reader.table(0, TABLE, put(memory, sequential(1, 50, nbytes)))
        assert (chain.readable.nbytes, chain.writable.nbytes) == (nbytes, 50 * nbytes)
    entries = sequential(1, 50)
    entries[20] = (RAM, 16, *entries[20][2:])
    with pytest.raises(MemoryAccessError):
        reader.table(0, TABLE, put(memory, entries))
    entries = sequential(1, 50)
    entries[20] = (0x20000, 16, NEXT, 21)
    with pytest.raises(QueueError, match="behind a writable"):
        reader.table(0, TABLE, put(memory, entries))


def test_a_guest_cannot_make_it_remember_without_end(memory: GuestMemory) -> None:
    reader = make_reader(memory)
    for readable in range(1, 100):
        chain = reader.table(0, TABLE, put(memory, sequential(readable, 100 - readable)))
        assert chain.readable.nbytes == 16 * readable
    assert len(reader._shapes) <= 32


@pytest.mark.parametrize(
    "change",
    [
        {0: (0x20000, 16, NEXT, 2)},
        {1: (0x21000, 16, NEXT, 0)},
        {1: (0x21000, 16, NEXT | INDIRECT, 2)},
        {0: (0x20000, 16, NEXT | WRITE, 1)},
        {2: (0x22000, 16, NEXT | WRITE, 3)},
        {0: (RAM - 8, 16, NEXT, 1)},
        {1: (RAM, 16, NEXT, 2)},
        {2: ((1 << 64) - 8, 16, WRITE, 0)},
    ],
)
@pytest.mark.parametrize("readable", [1, 2])
def test_three_entries_that_are_not_a_head_and_a_payload(
    memory: GuestMemory, readable: int, change: dict[int, Entry]
) -> None:
    entries = sequential(readable, 3 - readable)
    for index, entry in change.items():
        entries[index] = entry
    expected = walk(entries)
    nbytes = put(memory, entries)
    if expected is None or any(address + size > RAM for address, size in expected[0] + expected[1]):
        with pytest.raises(GuestError):
            make_reader(memory).table(0, TABLE, nbytes)
    else:
        chain = make_reader(memory).table(0, TABLE, nbytes)
        assert chain.readable.read(0, chain.readable.nbytes) == content(memory, expected[0])
        assert chain.writable.read(0, chain.writable.nbytes) == content(memory, expected[1])


@pytest.mark.parametrize("nbytes", [0, 1, 15, 17, 31, 33, 16 * MAX_INDIRECT + 16, (1 << 32) - 16, (1 << 32) - 1])
def test_h115_lengths_of_a_table(memory: GuestMemory, nbytes: int) -> None:
    with pytest.raises(QueueError):
        make_reader(memory).table(0, TABLE, nbytes)


@pytest.mark.parametrize("address", [RAM, RAM - 16, (1 << 64) - 16, (1 << 64) - 32, 1 << 63])
def test_h115_a_table_outside_of_ram(memory: GuestMemory, address: int) -> None:
    with pytest.raises(MemoryAccessError):
        make_reader(memory).table(0, address, 32)


def test_h115_a_table_that_describes_itself(memory: GuestMemory) -> None:
    nbytes = put(memory, [(TABLE, 32, NEXT, 1), (TABLE, 32, WRITE, 0)])
    chain = make_reader(memory).table(0, TABLE, nbytes)
    chain.writable.write(0, bytes(32))  # the chain was copied: it stays what it was
    assert chain.readable.nbytes == 32


@pytest.mark.parametrize("flags", [INDIRECT, INDIRECT | NEXT])
@pytest.mark.parametrize("count", [2, 30])
def test_h115_nested_tables(memory: GuestMemory, flags: int, count: int) -> None:
    entries = sequential(1, count - 1)
    entries[-1] = (TABLE, 32, flags, 0)
    with pytest.raises(QueueError, match="inside an indirect table"):
        make_reader(memory).table(0, TABLE, put(memory, entries))


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_h102_loops(memory: GuestMemory, count: int) -> None:
    entries = [(0x20000, 0, NEXT, (i + 1) % count) for i in range(count)]  # of no bytes at all
    with pytest.raises(QueueError, match="loop"):
        make_reader(memory).table(0, TABLE, put(memory, entries))


@pytest.mark.parametrize("count", [2, 20])
def test_next_outside_of_the_table(memory: GuestMemory, count: int) -> None:
    entries = sequential(1, count - 1)
    entries[0] = (0x20000, 16, NEXT, count)
    with pytest.raises(QueueError, match="next is"):
        make_reader(memory).table(0, TABLE, put(memory, entries))


def test_a_chain_may_have_4_gib_and_no_more() -> None:
    ranges = Ranges()
    ranges.add(0, (1 << 32) - 1, 0)
    ranges.add(0, 1, WRITE)
    with pytest.raises(QueueError, match="more than"):
        ranges.add(0, 1, WRITE)


@pytest.mark.parametrize("count", [2, 3, 40])
def test_too_many_bytes_in_a_table(memory: GuestMemory, count: int) -> None:
    entries = sequential(1, count - 1, nbytes=(1 << 32) - 1)
    with pytest.raises(GuestError):
        make_reader(memory).table(0, TABLE, put(memory, entries))


def test_h105_h118_only_ram(memory: GuestMemory) -> None:
    for address, nbytes in ((RAM - 1, 2), (RAM, 1), ((1 << 64) - 1, 2), ((1 << 64) - 4096, 8192), (0xFE000000, 4)):
        with pytest.raises(MemoryAccessError):
            make_reader(memory).table(0, TABLE, put(memory, [(0x20000, 8, NEXT, 1), (address, nbytes, WRITE, 0)]))


def test_readonly_ram_is_not_for_replies(tmp_path: Any) -> None:
    path = tmp_path / "rom"
    path.write_bytes(bytes(8192))
    memory = GuestMemory.anonymous(RAM)
    with path.open("rb") as file:
        memory.add_fd(file.fileno(), 8192, address=RAM, writable=False)
    reader = make_reader(memory)
    assert reader.table(0, TABLE, put(memory, [(RAM, 8, NEXT, 1), (0x20000, 8, WRITE, 0)])).readable.nbytes == 8
    with pytest.raises(MemoryAccessError):
        reader.table(0, TABLE, put(memory, [(0x20000, 8, NEXT, 1), (RAM, 8, WRITE, 0)]))


def test_chains_across_adjoining_regions() -> None:
    memory = GuestMemory.anonymous(1 << 16)
    memory.add_array(bytearray(1 << 15), 1 << 16)
    memory.write((1 << 16) - 4, b"abcdefgh")
    reader = make_reader(memory)
    table = (1 << 16) - 16  # the table itself lies across the border
    memory.write(table, struct.pack("<QIHHQIHH", 0x100, 8, NEXT, 1, (1 << 16) + 0x100, 8, WRITE, 0))
    chain: Chain = reader.table(0, table, 32)
    assert (chain.readable.nbytes, chain.writable.nbytes) == (8, 8)
    memory.write(0x200, struct.pack("<QIHHQIHH", (1 << 16) - 4, 8, NEXT, 1, 0x300, 8, WRITE, 0))
    memory.write((1 << 16) - 4, b"abcdefgh")
    assert reader.table(0, 0x200, 32).readable.read(0, 8) == b"abcdefgh"


def test_not_negotiated(memory: GuestMemory) -> None:
    with pytest.raises(QueueError, match="not negotiated"):
        ChainReader(memory).table(0, TABLE, put(memory, sequential(1, 1)))
