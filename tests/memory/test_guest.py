from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError, MemoryAccessError
from pyvirtfs.memory.buffers import Buffers, IovecBuffers, ViewBuffers
from pyvirtfs.memory.guest import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = mmap.PAGESIZE
TOP = 1 << 64

# Two adjoining regions, a hole, a third one, and one that ends with the address space.
LAYOUT = ((0x1000, 64), (0x1040, 128), (0x2000, 40), (TOP - 64, 64))


def build(layout: tuple[tuple[int, int], ...] = LAYOUT) -> tuple[GuestMemory, dict[int, int]]:
    """Memory with random content, and the model: each byte of RAM by its address."""
    memory = GuestMemory()
    model: dict[int, int] = {}
    generator = np.random.default_rng(9)
    for address, nbytes in layout:
        ram = generator.integers(0, 256, nbytes, np.uint8)
        memory.add_array(ram, address)
        model |= {address + index: int(value) for index, value in enumerate(ram)}
    return memory, model


def expected(model: dict[int, int], address: int, nbytes: int) -> bytes | None:
    """What a checked access must find; None: it must be refused."""
    found = [model.get(address + index) for index in range(nbytes)]
    return None if None in found else bytes(byte for byte in found if byte is not None)


edges = st.sampled_from([edge for address, nbytes in LAYOUT for edge in (address, address + nbytes)] + [0, TOP])
addresses = st.one_of(
    st.builds(lambda edge, step: min(max(edge + step, 0), TOP - 1), edges, st.integers(-70, 70)),
    st.integers(0, TOP - 1),
)
lengths = st.one_of(st.integers(0, 250), st.sampled_from([1 << 31, (1 << 32) - 1, 1 << 63, TOP - 1, TOP - 64]))
ranges = st.tuples(addresses, lengths)
small_ranges = st.tuples(addresses, st.integers(0, 200))
good_ranges = st.sampled_from(LAYOUT).flatmap(
    lambda region: st.integers(0, region[1] - 1).flatmap(
        lambda start: st.tuples(st.just(region[0] + start), st.integers(0, region[1] - start))
    )
)


@given(ranges)
def test_view_and_array(wanted: tuple[int, int]) -> None:
    memory, model = build()
    address, nbytes = wanted
    within = nbytes == 0 or any(start <= address and address + nbytes <= start + size for start, size in LAYOUT)
    if not within:
        for access in (memory.view, memory.array):
            with pytest.raises(MemoryAccessError) as caught:
                access(address, nbytes)
            assert (caught.value.address, caught.value.nbytes) == wanted
        return
    content = expected(model, address, nbytes)
    view, array = memory.view(address, nbytes), memory.array(address, nbytes)
    assert view.tobytes() == array.tobytes() == content
    assert view.format == "B"
    assert array.dtype == np.uint8
    assert array.shape == (nbytes,)
    if nbytes:
        view[0] ^= 0xFF
        assert array[0] == memory.read(address, 1)[0] != model[address]


@given(ranges)
def test_read(wanted: tuple[int, int]) -> None:
    memory, model = build()
    address, nbytes = wanted
    content = expected(model, address, nbytes) if nbytes < 1000 else None
    if content is None:
        with pytest.raises(MemoryAccessError):
            memory.read(address, nbytes)
    else:
        assert memory.read(address, nbytes) == content


@given(addresses, st.binary(max_size=250))
def test_write(address: int, data: bytes) -> None:
    memory, model = build()
    if expected(model, address, len(data)) is None:
        with pytest.raises(MemoryAccessError):
            memory.write(address, data)
    else:
        memory.write(address, data)
        model |= {address + index: value for index, value in enumerate(data)}
    for start, nbytes in LAYOUT:  # also: a refused write has written nothing
        assert memory.read(start, nbytes) == expected(model, start, nbytes)


def from_tuples(memory: GuestMemory, wanted: list[tuple[int, int]]) -> Buffers:
    return memory.buffers(wanted)


def from_arrays(memory: GuestMemory, wanted: list[tuple[int, int]]) -> Buffers:
    table = np.array(wanted, np.uint64).reshape(-1, 2)
    return memory.buffers_from_arrays(table[:, 0], table[:, 1])


@pytest.mark.parametrize("make", [from_tuples, from_arrays])
@pytest.mark.parametrize("padding", [0, 20, 70], ids=["views", "iovec by arrays", "iovec"])
@given(
    wanted=st.one_of(
        st.lists(small_ranges, max_size=6),
        st.lists(ranges, max_size=3),
        st.lists(good_ranges, max_size=20),
        st.lists(good_ranges, min_size=32, max_size=80),
    )
)
@settings(max_examples=60, deadline=None)
def test_buffers(
    make: Callable[[GuestMemory, list[tuple[int, int]]], Buffers], padding: int, wanted: list[tuple[int, int]]
) -> None:
    memory, model = build()
    wanted = [*wanted, *[(0x1008, 8)] * padding]
    parts = [expected(model, *each) if each[1] < 1000 else None for each in wanted]
    if None in parts:
        with pytest.raises(MemoryAccessError):
            make(memory, wanted)
        return
    content = b"".join(part for part in parts if part)
    found = make(memory, wanted)
    assert found.nbytes == len(content)
    assert found.read(0, len(content)) == content
    assert b"".join(found.views()) == content
    assert all(view.nbytes for view in found.views())


@pytest.mark.parametrize("count", [1, 2, 31, 32, 63, 64, 200])
@pytest.mark.parametrize(
    "bad",
    [
        (0x0FFF, 2),
        (0x0FF8, 8),
        (0x10BF, 2),
        (0x10C0, 1),
        (TOP - 1, 2),
        (TOP - 8, TOP - 1),
        (0, 1),
        (0x1000, TOP - 1),
        (TOP - 1, TOP - 1),
        (0x1000, 1 << 32),
    ],
)
def test_one_bad_range_among_good_ones_is_found(count: int, bad: tuple[int, int]) -> None:
    memory, _ = build()
    for position in {0, count // 2, count - 1}:
        wanted = [(0x1000, 16)] * count
        wanted[position] = bad
        for make in (from_tuples, from_arrays):
            with pytest.raises(MemoryAccessError) as caught:
                make(memory, wanted)
            assert (caught.value.address, caught.value.nbytes) == bad


@pytest.mark.parametrize("count", [1, 40, 100])
def test_integers_of_any_size_are_guest_errors(count: int) -> None:
    memory, _ = build()
    for bad in ((-1, 2), (0x1000, -1), (TOP, 1), (1 << 100, 1), (0x1000, 1 << 100), (-(1 << 70), 1 << 71)):
        with pytest.raises(MemoryAccessError):
            memory.buffers([(0x1000, 8)] * count + [bad])
        with pytest.raises(MemoryAccessError):
            memory.view(*bad)
        with pytest.raises(MemoryAccessError):
            memory.read(*bad)


def test_empty_memory_has_no_valid_range_but_the_empty_one() -> None:
    memory = GuestMemory()
    for access in (memory.view, memory.array, memory.read):
        assert len(access(0x1000, 0)) == 0
        with pytest.raises(MemoryAccessError):
            access(0, 1)
    for count in (1, 50, 100):
        with pytest.raises(MemoryAccessError):
            from_arrays(memory, [(0, 1)] * count)
        assert memory.buffers([(TOP - 1, 0)] * count).nbytes == 0


def test_few_ranges_are_views_and_many_an_iovec() -> None:
    memory = GuestMemory.anonymous(1 << 20)
    assert isinstance(memory.buffers([(0, 4096)]), ViewBuffers)
    assert isinstance(memory.buffers([(0, 4096)] * 125), IovecBuffers)
    assert isinstance(from_arrays(memory, [(0, 4096)] * 125), IovecBuffers)


def test_arrays_may_be_strided_and_narrower() -> None:
    memory = GuestMemory.anonymous(1 << 20)
    table = np.zeros(125, [("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
    table["addr"] = np.arange(125) * 8192
    table["len"] = np.arange(125)
    found = memory.buffers_from_arrays(table["addr"], table["len"])
    assert found.nbytes == sum(range(125))
    assert len(found.views()) == 124


@pytest.mark.parametrize("count", [0, 1, 40, 125])
@pytest.mark.parametrize("wrong", [None, 0x4000_0000, (1 << 64) - 8])
def test_pairs_are_as_arrays(count: int, wrong: int | None) -> None:
    memory, _ = build()
    pairs = np.array([(0x1000 + i % 32, i % 16) for i in range(count)], np.uint64).reshape(count, 2)
    if wrong is not None and count:
        pairs[-1] = wrong, 16
        with pytest.raises(MemoryAccessError):
            memory.buffers_from_pairs(pairs)
        return
    same = memory.buffers_from_arrays(pairs[:, 0], pairs[:, 1])
    found = memory.buffers_from_pairs(pairs)
    assert found.nbytes == same.nbytes
    assert found.read(0, found.nbytes) == same.read(0, same.nbytes)


@pytest.mark.parametrize("count", [1, 40, 125])
def test_a_range_that_crosses_adjoining_regions_is_split(count: int) -> None:
    memory, model = build()
    found = from_arrays(memory, [(0x1000, 192)] * count)
    assert len(found.views()) == 2 * count
    assert found.read(0, 192) == expected(model, 0x1000, 192)
    with pytest.raises(MemoryAccessError):
        memory.view(0x1000, 192)


class TestRegions:
    def test_anonymous_memory_is_zeroed(self) -> None:
        memory = GuestMemory.anonymous(256 << 20, 0x4000_0000)
        assert memory.read(0x4000_0000 + (100 << 20), 4096) == bytes(4096)
        assert [(region.address, region.nbytes) for region in memory.regions] == [(0x4000_0000, 256 << 20)]

    def test_from_array_shares_the_callers_memory(self) -> None:
        ram = np.zeros((2, 4096), np.uint8)
        memory = GuestMemory.from_array(ram, 0x1000)
        memory.write(0x2000, b"guest")
        assert ram[1, :5].tobytes() == b"guest"

    def test_from_fd_shares_a_file(self, fd: int) -> None:
        os.ftruncate(fd, 4 * PAGE)
        memory = GuestMemory.from_fd(fd, PAGE, address=0x8000, offset=2 * PAGE)
        memory.write(0x8000 + 7, b"guest")
        assert os.pread(fd, 5, 2 * PAGE + 7) == b"guest"

    def test_regions_are_sorted(self) -> None:
        memory = GuestMemory()
        for address in (0x3000, 0x1000, 0x2000):
            memory.add_array(bytearray(64), address)
        assert [region.address for region in memory.regions] == [0x1000, 0x2000, 0x3000]

    @pytest.mark.parametrize("address", [0x1000, 0x1008, 0x0FC8, 0x1038])
    def test_overlap_is_refused_and_changes_nothing(self, address: int) -> None:
        memory = GuestMemory.from_array(bytearray(64), 0x1000)
        before = memory.regions, memory.generation
        with pytest.raises(ConfigError, match="overlaps"):
            memory.add_array(bytearray(64), address)
        assert (memory.regions, memory.generation) == before

    def test_every_change_bumps_the_generation(self) -> None:
        memory = GuestMemory()
        seen = [memory.generation]
        memory.add_array(bytearray(64), 0)
        seen.append(memory.generation)
        memory.add_array(bytearray(64), 64)
        seen.append(memory.generation)
        memory.remove(0, 64)
        seen.append(memory.generation)
        assert sorted(set(seen)) == seen

    def test_remove_takes_whole_regions_only(self) -> None:
        memory, _ = build()
        for wrong in ((0x1000, 63), (0x1008, 56), (0x1000, 100), (0x10, 0x1000)):
            with pytest.raises(ConfigError, match="part of"):
                memory.remove(*wrong)
        with pytest.raises(ConfigError, match="no region"):
            memory.remove(0x3000, 64)
        memory.remove(0x1000, 192)
        memory.remove(TOP - 64, 64)
        assert [region.address for region in memory.regions] == [0x2000]
        with pytest.raises(MemoryAccessError):
            memory.view(0x1000, 1)

    @pytest.mark.parametrize("count", [1, 100])
    def test_what_was_handed_out_survives_the_removal_and_then_the_memory_goes(self, fd: int, count: int) -> None:
        os.ftruncate(fd, 1 << 20)
        memory = GuestMemory.from_fd(fd, 1 << 20)
        array = weakref.ref(memory.regions[0].array)
        found = from_arrays(memory, [(4096, 16)] * count)
        view = memory.view(8192, 5)
        memory.remove(0, 1 << 20)
        with pytest.raises(MemoryAccessError):
            memory.view(4096, 16)
        found.write(0, b"still here")
        view[:] = b"too.."
        assert found.pwritev(fd, 65536) == 16 * count
        assert found.read(0, 10) == b"still here"
        assert os.pread(fd, 10, 65536) == b"still here"
        assert os.pread(fd, 5, 8192) == b"too.."
        parts = found.views()
        del found, view
        assert array() is not None
        assert parts[0].tobytes()[:5] == b"still"
        del parts
        assert array() is None


class TestReadonlyRegions:
    @pytest.fixture
    def memory(self, fd: int) -> GuestMemory:
        os.ftruncate(fd, 4 * PAGE)
        os.pwrite(fd, b"rom", 0)
        memory = GuestMemory.from_fd(fd, 4 * PAGE, writable=False)
        memory.add_array(bytearray(4096), 4 * PAGE)
        return memory

    def test_reading(self, memory: GuestMemory) -> None:
        assert memory.read(0, 3) == b"rom"
        assert memory.buffers([(0, 3)]).read(0, 3) == b"rom"
        assert from_arrays(memory, [(0, 3)] * 100).read(0, 3) == b"rom"

    @pytest.mark.parametrize("count", [1, 2, 40, 100])
    def test_writable_ranges_are_refused_there(self, memory: GuestMemory, count: int) -> None:
        rom, ram = np.array([[0], [4 * PAGE]], np.uint64).repeat(count, axis=1)
        sizes = np.full(count, 8, np.uint64)
        memory.buffers_from_arrays(ram, sizes, writable=True).write(0, b"fine")
        with pytest.raises(MemoryAccessError):
            memory.buffers_from_arrays(rom, sizes, writable=True)
        with pytest.raises(MemoryAccessError):
            memory.buffers_from_pairs(np.stack([rom, sizes], axis=1), writable=True)
        with pytest.raises(MemoryAccessError):
            memory.buffers([(4 * PAGE, 8), (0, 8)], writable=True)
        with pytest.raises(MemoryAccessError):
            memory.buffers([(4 * PAGE - 8, 16)], writable=True)

    def test_write_is_refused_as_a_whole(self, memory: GuestMemory) -> None:
        with pytest.raises(MemoryAccessError):
            memory.write(4 * PAGE - 4, b"12345678")
        assert memory.read(4 * PAGE, 4) == bytes(4)

    @pytest.mark.parametrize("count", [1, 100])
    def test_filling_it_is_a_host_error_not_a_crash(self, memory: GuestMemory, fd: int, count: int) -> None:
        found = from_arrays(memory, [(PAGE, 8)] * count)
        for fill in (lambda: found.preadv(fd, 0), lambda: found.write(0, b"x")):
            with pytest.raises(OSError, match="Bad address"):
                fill()


# --- regions that come and go ---


class Port:
    """Somebody who reads and writes RAM for us."""

    def __init__(self) -> None:
        self.data = bytearray(os.urandom(PAGE))

    def read(self, address: int, nbytes: int) -> bytes:
        return bytes(self.data[address % PAGE :][:nbytes])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.data[address % PAGE : address % PAGE + len(data)] = data


def test_listeners_are_told_of_every_change() -> None:
    memory = GuestMemory()
    seen: list[tuple[int, int]] = []
    memory.listeners.append(lambda: seen.append((len(memory.regions), len(memory.remote_regions))))
    memory.add_array(bytearray(PAGE), 0)
    memory.add_remote(Port(), PAGE, address=PAGE)
    with pytest.raises(ConfigError):
        memory.add_array(bytearray(PAGE), 8)
    memory.remove(0, 2 * PAGE)
    assert seen == [(1, 0), (1, 1), (0, 0)]
    assert memory.generation == 4  # that of the empty memory is 1


def test_listeners_that_let_go_free_the_memory() -> None:
    """A removed region is unmapped as soon as nobody has a view of it."""
    fd = os.memfd_create("to-be-freed")
    os.ftruncate(fd, PAGE)
    memory = GuestMemory.from_fd(fd, PAGE)
    os.close(fd)
    cached = [memory.view(0, 16)]
    memory.listeners.append(cached.clear)
    with open("/proc/self/maps") as maps:
        assert "to-be-freed" in maps.read()
    memory.remove(0, PAGE)
    with open("/proc/self/maps") as maps:
        assert "to-be-freed" not in maps.read()


def test_remote_regions() -> None:
    memory = GuestMemory()
    memory.add_array(bytearray(PAGE), PAGE)
    port = Port()
    region = memory.add_remote(port, PAGE, address=2 * PAGE)
    readonly = memory.add_remote(Port(), PAGE, address=0, writable=False)
    assert memory.remote_regions == (region, readonly)
    assert memory.regions[0].address == PAGE
    assert memory.read(2 * PAGE + 5, 10) == port.data[5:15]
    memory.write(2 * PAGE - 4, b"8 bytes!")
    assert memory.read(2 * PAGE - 4, 8) == b"8 bytes!"
    assert port.data[:4] == b"tes!"
    for wrong in (
        lambda: memory.write(0, b"x"),
        lambda: memory.write(PAGE - 1, b"xy"),
        lambda: memory.read(0, 4 * PAGE),
    ):
        with pytest.raises(MemoryAccessError):
            wrong()
    assert memory.read(PAGE, 1) == b"\0"  # nothing was written by the second one
    with pytest.raises(MemoryAccessError):
        memory.view(2 * PAGE, 1)


@pytest.mark.parametrize("address", [PAGE // 2 // 8 * 8, 0, PAGE - 8])
@pytest.mark.parametrize("first", ["own", "remote"])
@pytest.mark.parametrize("second", ["own", "remote"])
def test_remote_regions_do_not_overlap(first: str, second: str, address: int) -> None:
    memory = GuestMemory()

    def add(kind: str, where: int) -> None:
        if kind == "own":
            memory.add_array(bytearray(PAGE), where)
        else:
            memory.add_remote(Port(), PAGE, address=where)

    add(first, 0)
    with pytest.raises(ConfigError, match="overlaps"):
        add(second, address)
    add(second, PAGE)


def test_remote_regions_are_removed_whole() -> None:
    memory = GuestMemory()
    memory.add_remote(Port(), PAGE, address=0)
    for address, nbytes in ((0, PAGE // 2), (8, PAGE)):
        with pytest.raises(ConfigError, match="only a part"):
            memory.remove(address, nbytes)
    memory.remove(0, PAGE)
    with pytest.raises(ConfigError, match="no region"):
        memory.remove(0, PAGE)
    with pytest.raises(MemoryAccessError):
        memory.read(0, 1)


def test_ring_views() -> None:
    memory = GuestMemory()
    memory.add_array(bytearray(b"own RAM!" * 8), 0)
    port = Port()
    memory.add_remote(port, PAGE, address=PAGE)
    assert isinstance(memory.ring_view(0, 8), memoryview)
    view = memory.ring_view(PAGE + 8, 16)
    assert (view.nbytes, view.readonly) == (16, False)
    assert view.cast("Q")[1] == int.from_bytes(port.data[16:24], "little")
    for address, nbytes in ((PAGE - 8, 16), (2 * PAGE - 8, 16), (60, 8), (2 * PAGE, 1)):
        with pytest.raises(MemoryAccessError):
            memory.ring_view(address, nbytes)


@pytest.mark.parametrize("count", [1, 2, 50, 300])
def test_a_payload_with_remote_parts(count: int) -> None:
    """Whichever way it is made."""
    memory = GuestMemory()
    own, port = bytearray(os.urandom(PAGE)), Port()
    memory.add_array(own, 0)
    memory.add_remote(port, PAGE, address=PAGE)
    ranges = [((i * 37) % (2 * PAGE - 16), 16) for i in range(count - 1)] + [(PAGE - 3, 9)]
    model = bytes(own + port.data)
    expected = b"".join(model[address : address + nbytes] for address, nbytes in ranges)
    addresses, lengths = (np.array(column, np.uint64) for column in zip(*ranges, strict=True))
    for made in (
        memory.buffers(ranges, writable=True),
        memory.buffers_from_arrays(addresses, lengths, writable=True),
        memory.buffers_from_pairs(np.array(ranges, np.uint64), writable=True),
    ):
        assert made.read(0, made.nbytes) == expected
    memory.remove(PAGE, PAGE)
    memory.add_remote(port, PAGE, address=PAGE, writable=False)
    with pytest.raises(MemoryAccessError):
        memory.buffers(ranges, writable=True)
