from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.dma import DmaAllocator, DmaBuffer
from pyvirtfs.guest.split_ring import SplitRing
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio.layout import AvailRing, Descriptor, UsedRing


class Reader:
    """A device made of the construct declarations: slow, plain, and knowing nothing of the driver's code."""

    def __init__(self, memory: GuestMemory, ring: SplitRing[object]) -> None:
        self.memory = memory
        self.ring = ring
        self.last = 0
        self.used_index = 0

    def available(self) -> tuple[int, int, list[int], int]:
        data = self.memory.read(self.ring.available_address, 6 + 2 * self.ring.size)
        parsed = AvailRing.parse(data, size=self.ring.size)
        return parsed.flags, parsed.idx, list(parsed.ring), parsed.used_event

    def pop(self) -> tuple[int, list[tuple[int, int, int]]] | None:
        _, index, heads, _ = self.available()
        if index == self.last:
            return None
        head = heads[self.last % self.ring.size]
        self.last = (self.last + 1) & 0xFFFF
        return head, self.chain(self.ring.descriptor_address, head)

    def chain(self, table: int, index: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        while True:
            descriptor = Descriptor.parse(self.memory.read(table + 16 * index, 16))
            if descriptor.flags & 4:
                assert descriptor.flags == 4
                assert descriptor.len % 16 == 0
                return found + self.chain(descriptor.addr, 0)
            found.append((descriptor.addr, descriptor.len, descriptor.flags & 2))
            if not descriptor.flags & 1:
                return found
            index = descriptor.next

    def push(self, head: int, nbytes: int, *, flags: int = 0, event: int = 0) -> None:
        address = self.ring.used_address
        parsed = UsedRing.parse(self.memory.read(address, 6 + 8 * self.ring.size), size=self.ring.size)
        parsed.ring[self.used_index % self.ring.size] = {"id": head, "len": nbytes}
        self.used_index = parsed.idx = (self.used_index + 1) & 0xFFFF
        parsed.flags, parsed.avail_event = flags, event
        self.memory.write(address, UsedRing.build(parsed, size=self.ring.size))


def make(size: int = 8, **options: bool) -> tuple[SplitRing[object], Reader]:
    memory = GuestMemory.anonymous(1 << 20)
    ring: SplitRing[object] = SplitRing(DmaAllocator(memory), size, **options)
    return ring, Reader(memory, ring)


ranges = st.lists(st.tuples(st.integers(0, 1 << 63), st.integers(0, 1 << 31)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(st.tuples(ranges, ranges, st.integers(0, 3), st.randoms()), max_size=40))
def test_requests_arrive_and_come_back_in_any_order(
    event_idx: bool, indirect: bool, steps: list[tuple[list[tuple[int, int]], list[tuple[int, int]], int, object]]
) -> None:
    ring, device = make(8, event_idx=event_idx, indirect=indirect)
    at_device: list[tuple[int, object]] = []
    needs: dict[object, int] = {}
    expected: deque[tuple[object, int]] = deque()
    for token, (readable, writable, returned, random) in enumerate(steps):
        chain = readable + writable
        if not chain:
            with pytest.raises(ValueError, match="empty"):
                ring.add(readable, writable, token)
        else:
            need = 1 if indirect and len(chain) > 1 else len(chain)
            if need > ring.free:
                with pytest.raises(BlockingIOError):
                    ring.add(readable, writable, token)
            else:
                head = ring.add(readable, writable, token)
                popped = device.pop()
                assert popped == (head, [(*r, 0) for r in readable] + [(*w, 2) for w in writable])
                assert device.pop() is None
                at_device.append((head, token))
                needs[token] = need
        random.shuffle(at_device)  # type: ignore[attr-defined]  # a random.Random
        for _ in range(min(returned, len(at_device))):
            head, done = at_device.pop()
            device.push(head, 7)
            expected.append((done, 7))
        if returned == 3:
            while expected:
                assert ring.has_used()
                assert ring.harvest() == expected.popleft()
            assert ring.harvest() is None
        unharvested = [token for _, token in at_device] + [token for token, _ in expected]
        assert ring.in_flight == len(unharvested)
        assert ring.free == 8 - sum(needs[token] for token in unharvested)
    while expected:
        assert ring.harvest() == expected.popleft()
    assert sorted(map(str, ring.detach_all())) == sorted(str(token) for _, token in at_device)


def test_indexes_wrap() -> None:
    ring, device = make(2, event_idx=True)
    for i in range(70_000):
        ring.add([(0x1000, 1)], [], i + 1)
        if i % 7919 == 0:
            assert device.available()[1] == (i + 1) & 0xFFFF
        ring._used[1 + 2 * (i % 2)] = ring._available[2 + i % 2]
        ring._used_halves[1] = (i + 1) & 0xFFFF
        used = ring.harvest()
        assert used is not None
        assert used.token == i + 1
    assert ring.free == 2


def test_kicks_follow_the_event_index() -> None:
    ring, device = make(8, event_idx=True)
    assert not ring.should_kick()  # nothing new
    ring.add([(0x1000, 1)], [], 1)
    assert ring.should_kick()  # avail_event is 0: the device waits for entry 0
    ring.add([(0x1000, 1)], [], 2)
    assert not ring.should_kick()  # and has seen it
    device.push(0, 0, event=3)
    ring.add([(0x1000, 1)], [], 3)
    assert not ring.should_kick()
    ring.add([(0x1000, 1)], [], 4)
    ring.add([(0x1000, 1)], [], 5)
    assert ring.should_kick()  # entries 3 and 4 were added, 3 is awaited


def test_kicks_follow_the_flag_without_event_index() -> None:
    ring, device = make(8)
    ring.add([(0x1000, 1)], [], 1)
    assert ring.should_kick()
    device.push(0, 0, flags=1)
    ring.add([(0x1000, 1)], [], 2)
    assert not ring.should_kick()


def test_interrupts_are_asked_for_with_the_event_index() -> None:
    ring, device = make(8, event_idx=True)
    heads = [ring.add([(0x1000, 1)], [], i) for i in range(3)]
    assert device.available()[3] == 0
    device.push(heads[0], 0)
    ring.harvest()
    assert device.available()[3] == 1
    ring.disable_interrupts()
    assert (device.available()[3] - ring._last_used) & 0xFFFF == 0xFFFF
    device.push(heads[1], 0)
    ring.harvest()
    device.push(heads[2], 0)
    assert not ring.enable_interrupts()  # one is there already
    assert device.available()[3] == 2
    ring.harvest()
    assert ring.enable_interrupts()
    assert device.available()[0] == 0  # the flag means nothing with the event index


def test_interrupts_are_asked_for_with_the_flag() -> None:
    ring, device = make(8)
    ring.disable_interrupts()
    assert device.available()[0] == 1
    assert ring.enable_interrupts()
    assert device.available()[0] == 0


@pytest.mark.parametrize(("head", "problem"), [(8, "out of range"), (0xFFFFFFFF, "out of range"), (3, "not the head")])
def test_a_device_that_returns_what_it_does_not_have(head: int, problem: str) -> None:
    ring, device = make(8)
    ring.add([(0x1000, 1), (0x1000, 1), (0x1000, 1), (0x1000, 1)], [], 1)
    device.push(head, 0)
    with pytest.raises(DeviceError, match=problem):
        ring.harvest()


def test_a_device_that_returns_something_twice() -> None:
    ring, device = make(8)
    head = ring.add([(0x1000, 1)], [], 1)
    device.push(head, 0)
    ring.harvest()
    device.push(head, 0)
    with pytest.raises(DeviceError, match="not the head"):
        ring.harvest()


@pytest.mark.parametrize("size", [0, 3, 65536, -1])
def test_sizes_are_powers_of_two(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        make(size)


def test_a_chain_longer_than_the_ring_needs_a_table() -> None:
    ring, _ = make(4)
    with pytest.raises(ValueError, match="do not fit"):
        ring.add([(0x1000, 1)] * 5, [], 1)
    ring, device = make(4, indirect=True)
    ring.add([(0x1000, 1)] * 300, [], 1)
    assert ring.free == 3
    popped = device.pop()
    assert popped is not None
    assert len(popped[1]) == 300


def test_memory_comes_back() -> None:
    dma = DmaAllocator(GuestMemory.anonymous(1 << 20))
    buffers: list[DmaBuffer] = []
    ring: SplitRing[int] = SplitRing(dma, 128, indirect=True)
    for i in range(10):
        ring.add([(0x1000, 1)] * 5, [], i)
    assert sorted(ring.detach_all()) == list(range(10))
    ring.release()
    assert dma.pages_in_use == len(buffers)
