from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.guest.dma import PAGE, DmaAllocator, DmaBuffer, split_at_pages
from pyvirtfs.memory import GuestMemory

RAM = 64 * PAGE


@given(
    st.lists(st.tuples(st.integers(0, 5 * PAGE), st.booleans(), st.integers(0, PAGE - 1)), max_size=12), st.randoms()
)
def test_what_is_allocated_never_overlaps_and_all_comes_back(
    wishes: list[tuple[int, bool, int]], random: object
) -> None:
    memory = GuestMemory.anonymous(RAM, address=0x100000)
    dma = DmaAllocator(memory)
    held: list[DmaBuffer] = []
    for nbytes, scattered, offset in wishes:
        try:
            allocate = dma.allocate_scattered if scattered else dma.allocate
            held.append(allocate(nbytes, offset=offset))
        except MemoryError:
            dma.free(held.pop()) if held else None
    pages = [
        page
        for buffer in held
        for address, nbytes in buffer.ranges
        for page in range(address // PAGE, max(address // PAGE + 1, -(-(address + nbytes) // PAGE)))
    ]
    assert len(pages) == len(set(pages)) == dma.pages_in_use
    assert all(0x100000 <= page * PAGE < 0x100000 + RAM for page in pages)
    random.shuffle(held)  # type: ignore[attr-defined]  # a random.Random
    for buffer in held:
        dma.free(buffer)
    assert dma.pages_in_use == 0
    assert dma.allocate(RAM).nbytes == RAM  # nothing stays in pieces


def test_memory_is_zeroed_and_low_pages_are_left_alone() -> None:
    memory = GuestMemory.anonymous(0x20000)
    memory.write(0x10000, b"\xff" * 0x10000)
    buffer = DmaAllocator(memory).allocate(100, offset=8)
    assert buffer.address == 0x10008
    assert bytes(buffer.view) == bytes(100)
    with pytest.raises(MemoryError):
        DmaAllocator(memory).allocate(0x10001)


def test_only_what_lies_below_the_end() -> None:
    memory = GuestMemory.anonymous(0x40000)
    dma = DmaAllocator(memory, start=0x1001, end=0x4FFF)
    assert [dma.allocate(PAGE).address for _ in range(2)] == [0x2000, 0x3000]
    with pytest.raises(MemoryError):
        dma.allocate(1)


def test_scattered_pages_do_not_adjoin() -> None:
    dma = DmaAllocator(GuestMemory.anonymous(RAM))
    buffer = dma.allocate_scattered(4 * PAGE, offset=100)
    assert [nbytes for _, nbytes in buffer.ranges] == [PAGE - 100, PAGE, PAGE, PAGE, 100]
    assert [address % PAGE for address, _ in buffer.ranges] == [100, 0, 0, 0, 0]
    assert all(abs(a - b) > PAGE for (a, _), (b, _) in zip(buffer.ranges, buffer.ranges[1:], strict=False))
    with pytest.raises(ValueError, match="5 ranges"):
        _ = buffer.view


@given(st.integers(0, 3 * PAGE), st.integers(0, 3 * PAGE), st.binary(max_size=500))
def test_bytes_go_to_the_right_range(offset: int, nbytes: int, data: bytes) -> None:
    memory = GuestMemory.anonymous(RAM)
    dma = DmaAllocator(memory)
    plain, scattered = dma.allocate(3 * PAGE), dma.allocate_scattered(3 * PAGE, offset=1234)
    for buffer in (plain, scattered):
        if offset + len(data) > 3 * PAGE:
            with pytest.raises(ValueError, match="do not fit"):
                buffer.write(offset, data)
        else:
            buffer.write(offset, data)
    assert plain.read(0, 3 * PAGE) == scattered.read(0, 3 * PAGE)
    assert plain.read(offset, nbytes) == scattered.read(offset, nbytes)
    assert bytes(plain.peek(nbytes)) == bytes(scattered.peek(nbytes)) == plain.read(0, nbytes)
    if offset + nbytes <= 3 * PAGE:
        through_ranges = b"".join(memory.read(address, n) for address, n in scattered.slice(offset, nbytes))
        assert through_ranges == plain.read(offset, nbytes)
        target = bytearray(nbytes)
        scattered.read_into(offset, memoryview(target))
        assert target == through_ranges
    else:
        with pytest.raises(ValueError, match="no"):
            scattered.slice(offset, nbytes)


def test_split_at_pages() -> None:
    assert split_at_pages([(0x1800, 0x2000), (0x5000, 0), (0x6000, 1)]) == [
        (0x1800, 0x800),
        (0x2000, 0x1000),
        (0x3000, 0x800),
        (0x6000, 1),
    ]
