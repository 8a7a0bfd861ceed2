"""The split ring: malformed rings, index arithmetic over the wrap, and a model of driver and device."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvirtfs.errors import GuestError, MemoryAccessError, QueueError
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio import Chain, SplitQueue, split
from pyvirtfs.virtio.queue import need_event

NEXT, WRITE, INDIRECT = 1, 2, 4
RAM = 1 << 17
RING = 0x1000  # descriptors; the driver area is one page on, the device area two


def make_queue(size: int = 8, *, event_idx: bool = True, memory: GuestMemory | None = None) -> SplitQueue:
    memory = memory or GuestMemory.anonymous(RAM)
    queue = SplitQueue(0, memory, 256)
    queue.negotiate(event_idx=event_idx, indirect=True)
    state = queue.state
    state.size, state.descriptors, state.driver, state.device = size, RING, RING + 0x1000, RING + 0x2000
    queue.enable()
    return queue


@pytest.mark.parametrize("size", [0, 3, 6, 255, 512, 65535, 1 << 40])
def test_h103_sizes(size: int) -> None:
    with pytest.raises(QueueError, match="a size of"):
        make_queue(size)


@pytest.mark.parametrize("area", ["descriptors", "driver", "device"])
@pytest.mark.parametrize(
    "address", [RAM, RAM - 4, (1 << 64) - 2, (1 << 64) - 16, 0xFFFFFFFF00000000, 0x1001, 0x1003, 0xFE000000]
)
def test_h103_addresses(area: str, address: int) -> None:
    queue = SplitQueue(0, GuestMemory.anonymous(RAM), 256)
    state = queue.state
    state.size, state.descriptors, state.driver, state.device = 8, RING, RING + 0x1000, RING + 0x2000
    setattr(state, area, address)
    with pytest.raises(GuestError):
        queue.enable()
    assert not queue.enabled
    assert queue.pop() is None


def test_h103_a_used_ring_in_readonly_ram(tmp_path: Any) -> None:
    path = tmp_path / "rom"
    path.write_bytes(bytes(8192))
    memory = GuestMemory.anonymous(RAM)
    with path.open("rb") as file:
        memory.add_fd(file.fileno(), 8192, address=RAM, writable=False)
    queue = SplitQueue(0, memory, 8)
    queue.state.descriptors, queue.state.driver, queue.state.device = RING, RING + 0x1000, RAM
    with pytest.raises(MemoryAccessError):
        queue.enable()


@pytest.mark.parametrize(("event_idx", "spare"), [(False, 0), (True, 2)])
def test_event_words_belong_to_the_ring_only_if_negotiated(event_idx: bool, spare: int) -> None:
    queue = SplitQueue(0, GuestMemory.anonymous(RAM), 8)
    queue.negotiate(event_idx=event_idx, indirect=True)
    state = queue.state
    state.descriptors, state.driver = RING, RING + 0x1000
    state.device = RAM - (4 + 8 * 8) - spare & ~3
    queue.enable()
    state.enabled = 0
    state.driver = RAM - (4 + 2 * 8) - spare + 2
    with pytest.raises(MemoryAccessError):
        queue.enable()


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 300))
def test_need_event_is_passing_the_event(event: int, old: int, count: int) -> None:
    new = old + count & 0xFFFF
    passed = {(old + i) & 0xFFFF for i in range(count)}
    assert need_event(event, new, old) is (event in passed)


class RingModel(RuleBasedStateMachine):
    """A driver that adds chains and sets its wishes, and a device that takes and returns them in any order."""

    @initialize(event_idx=st.booleans(), start=st.sampled_from([0, 1, 0xFFFA, 0xFFFF]))
    def set_up(self, event_idx: bool, start: int) -> None:
        self.memory = GuestMemory.anonymous(RAM)
        self.size = 4
        self.event_idx = event_idx
        self.queue = make_queue(self.size, event_idx=event_idx, memory=self.memory)
        state = self.queue.state
        state.last_avail = state.used_index = state.signalled_used = start
        state.signalled_valid = 1
        self.avail = self.used = self.told = start
        self.driver = self.memory.view(RING + 0x1000, 6 + 2 * self.size)
        self.device = self.memory.view(RING + 0x2000, 6 + 8 * self.size)
        struct.pack_into("<H", self.driver, 2, start)
        struct.pack_into("<H", self.device, 2, start)
        self.free = set(range(self.size))
        self.offered: list[int] = []
        self.taken: dict[int, Chain] = {}
        self.returned: list[tuple[int, int]] = []
        for slot in range(self.size):
            self.memory.write(
                RING + 16 * slot, struct.pack("<QIHH", 0x8000 + 256 * slot, 100 + slot, WRITE if slot % 2 else 0, 0)
            )

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        head = data.draw(st.sampled_from(sorted(self.free)))
        self.free.remove(head)
        struct.pack_into("<H", self.driver, 4 + 2 * (self.avail % self.size), head)
        self.avail = self.avail + 1 & 0xFFFF
        struct.pack_into("<H", self.driver, 2, self.avail)
        self.offered.append(head)

    @rule()
    def take(self) -> None:
        chain = self.queue.pop()
        if not self.offered:
            assert chain is None
            if self.event_idx:
                assert struct.unpack_from("<H", self.device, 4 + 8 * self.size)[0] == self.avail
            assert struct.unpack_from("<H", self.device, 0)[0] == 0
            return
        assert chain is not None
        head = self.offered.pop(0)
        assert chain.head == head
        assert (chain.readable.nbytes, chain.writable.nbytes) == ((0, 100 + head) if head % 2 else (100 + head, 0))
        self.taken[head] = chain

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), nbytes=st.integers(0, (1 << 32) - 1))
    def give_back(self, data: st.DataObject, nbytes: int) -> None:
        head = data.draw(st.sampled_from(sorted(self.taken)))
        chain = self.taken.pop(head)
        self.queue.push(chain, nbytes)
        self.queue.push(chain, nbytes)  # once is enough
        self.returned.append((head, nbytes))

    @rule(flag=st.integers(0, 1), event=st.integers(-2, 3))
    def decide(self, flag: int, event: int) -> None:
        wanted_at = self.told + event & 0xFFFF
        struct.pack_into("<H", self.driver, 0, flag)
        struct.pack_into("<H", self.driver, 4 + 2 * self.size, wanted_at)
        if self.event_idx:
            passed = {(self.told + i) & 0xFFFF for i in range((self.used_index() - self.told) & 0xFFFF)}
            expected = wanted_at in passed
        else:
            expected = flag == 0
        assert self.queue.needs_interrupt() is expected
        self.told = self.used_index()

    def used_index(self) -> int:
        return int(struct.unpack_from("<H", self.device, 2)[0])

    @rule()
    def reap(self) -> None:
        for head, nbytes in self.returned:
            entry = struct.unpack_from("<II", self.device, 4 + 8 * (self.used % self.size))
            assert entry == (head, nbytes)
            self.used = self.used + 1 & 0xFFFF
            self.free.add(head)
        self.returned.clear()

    @rule()
    def move_memory(self) -> None:
        """Another region comes or goes: cached views are made anew, and nothing is lost."""
        if len(self.memory.regions) == 1:
            self.memory.add_array(bytearray(4096), 1 << 32)
        else:
            self.memory.remove(1 << 32, 4096)

    @invariant()
    def nothing_unpublished(self) -> None:
        if hasattr(self, "queue"):
            assert self.used_index() == self.used + len(self.returned) & 0xFFFF
            assert set(self.queue.in_flight) == set(self.taken)


RingModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRingModel = RingModel.TestCase


@given(
    descriptors=st.lists(
        st.tuples(
            st.sampled_from([0, 0x8000, RING, RAM - 8, RAM, (1 << 64) - 8]),
            st.sampled_from([0, 1, 16, 32, 33, 4096, (1 << 32) - 16, (1 << 32) - 1]),
            st.integers(0, 7),
            st.integers(0, 9),
        ),
        min_size=8,
        max_size=8,
    ),
    heads=st.lists(st.integers(0, 9), max_size=8),
    ahead=st.integers(0, 10),
)
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_guest_error(descriptors: list[tuple[int, int, int, int]], heads: list[int], ahead: int) -> None:
    queue = make_queue(8)
    memory = queue._memory
    for slot, descriptor in enumerate(descriptors):
        memory.write(RING + 16 * slot, struct.pack("<QIHH", *descriptor))
    memory.write(RING + 0x1000, struct.pack(f"<HH{len(heads)}H", 0, ahead, *heads))
    try:
        while (chain := queue.pop()) is not None:
            assert chain.readable.nbytes + chain.writable.nbytes <= 1 << 32
            queue.push(chain, 0)
    except GuestError:
        pass


def test_h101_more_chains_than_the_ring_has_room_for() -> None:
    for ahead in (9, 100, 0x8000, 0xFFFF):
        queue = make_queue(8)
        queue._memory.write(RING + 0x1002, struct.pack("<H", ahead))
        with pytest.raises(QueueError, match="available index"):
            queue.pop()


def test_h101_chains_in_flight_count() -> None:
    queue = make_queue(4)
    for slot in range(4):
        queue._memory.write(RING + 16 * slot, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue._memory.write(RING + 0x1000, struct.pack("<HH4H", 0, 4, 0, 1, 2, 3))
    chains = [queue.pop() for _ in range(4)]
    assert None not in chains
    queue._memory.write(RING + 0x1002, struct.pack("<H", 5))
    with pytest.raises(QueueError):
        queue.pop()


def test_h101_the_same_head_twice() -> None:
    queue = make_queue(8)
    queue._memory.write(RING, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 2))
    assert queue.pop() is not None
    with pytest.raises(QueueError, match="in flight"):
        queue.pop()


@pytest.mark.parametrize("flags", [NEXT, NEXT | WRITE])
@pytest.mark.parametrize("following", [0, 1, 7, 8, 0xFFFF])
def test_h102_direct_chains_that_do_not_end(flags: int, following: int) -> None:
    queue = make_queue(8)
    for slot in range(8):
        queue._memory.write(RING + 16 * slot, struct.pack("<QIHH", 0x8000, 0, flags, following))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 1))
    with pytest.raises(QueueError):
        queue.pop()


def test_the_longest_direct_chain() -> None:
    queue = make_queue(8)
    for slot in range(8):
        queue._memory.write(RING + 16 * slot, struct.pack("<QIHH", 0x8000, 1, NEXT if slot < 7 else 0, slot + 1))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 1))
    chain = queue.pop()
    assert chain is not None
    assert chain.readable.nbytes == 8


def test_indirect_and_next_exclude_each_other() -> None:
    queue = make_queue(8)
    queue._memory.write(RING, struct.pack("<QIHH", 0x8000, 16, NEXT | INDIRECT, 1))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 1))
    with pytest.raises(QueueError, match="both"):
        queue.pop()


def test_h111_exactly_as_many_as_fit_in_flight() -> None:
    queue = make_queue(128, memory=GuestMemory.anonymous(RAM))
    for slot in range(128):
        queue._memory.write(RING + 16 * slot, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue._memory.write(RING + 0x1000, struct.pack("<HH128H", 0, 128, *range(128)))
    chains = [queue.pop() for _ in range(128)]
    assert all(chains)
    assert queue.pop() is None
    for chain in chains:
        assert chain is not None
        queue.push(chain, 1)
    assert struct.unpack("<H", queue._memory.read(RING + 0x2002, 2)) == (128,)


def test_h118_the_ring_goes_away() -> None:
    memory = GuestMemory.anonymous(RAM)
    memory.add_array(bytearray(0x4000), 1 << 20)
    queue = SplitQueue(0, memory, 8)
    state = queue.state
    state.descriptors, state.driver, state.device = 1 << 20, (1 << 20) + 0x1000, (1 << 20) + 0x2000
    queue.enable()
    memory.write(1 << 20, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    memory.write((1 << 20) + 0x1002, struct.pack("<H", 1))
    chain = queue.pop()
    assert chain is not None
    memory.remove(1 << 20, 0x4000)
    with pytest.raises(MemoryAccessError):
        queue.pop()
    with pytest.raises(MemoryAccessError):
        queue.push(chain, 0)


def test_a_chain_from_before_a_reset_is_not_returned() -> None:
    queue = make_queue(8)
    queue._memory.write(RING, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 1))
    old = queue.pop()
    assert old is not None
    queue.reset()
    state = queue.state
    state.size, state.descriptors, state.driver, state.device = 8, RING, RING + 0x1000, RING + 0x2000
    queue.enable()
    new = queue.pop()  # the same head again
    assert new is not None
    queue.push(old, 8)
    assert queue.state.used_index == 0
    queue.push(new, 8)
    assert queue.state.used_index == 1


# --- the two full barriers: in them the other side does what no test can make it do at the right moment otherwise ---


class OtherSide:
    """Stands for `full_barrier`: what the driver does after our store is visible and before we load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
        self.act = act
        self.calls = 0
        monkeypatch.setattr(split, "full_barrier", self)

    def __call__(self) -> None:
        self.calls += 1
        self.act()


def u16(queue: SplitQueue, address: int) -> int:
    return int(struct.unpack("<H", queue._memory.read(address, 2))[0])


@pytest.mark.parametrize("event_idx", [True, False])
def test_h104_a_chain_that_comes_while_we_ask_for_a_doorbell(monkeypatch: pytest.MonkeyPatch, event_idx: bool) -> None:
    """The driver looked before we asked, so it does not ring: `pop` itself has to see what it published."""
    queue = make_queue(8, event_idx=event_idx)
    memory = queue._memory
    for slot in range(2):
        memory.write(RING + 16 * slot, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    memory.write(RING + 0x1000, struct.pack("<HH2H", 0, 1, 0, 1))
    assert queue.pop() is not None
    asked = RING + 0x2000 + (4 + 8 * 8 if event_idx else 0)
    wishes: list[int] = []

    def publish() -> None:
        wishes.append(u16(queue, asked))
        memory.write(RING + 0x1002, struct.pack("<H", 2))

    side = OtherSide(monkeypatch, publish)
    chain = queue.pop()
    assert side.calls == 1
    assert wishes == [1 if event_idx else 0]  # avail_event, or flags without NO_NOTIFY: stored before the barrier
    assert chain is not None
    assert chain.head == 1


@pytest.mark.parametrize("event_idx", [True, False])
def test_h104_an_interrupt_that_is_wished_while_we_publish(monkeypatch: pytest.MonkeyPatch, event_idx: bool) -> None:
    """The driver looked at the used index before we stored it and goes to sleep now: its wish has to be seen."""
    queue = make_queue(8, event_idx=event_idx)
    memory = queue._memory
    memory.write(RING, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue.needs_interrupt()  # the first of all is always wanted
    memory.write(RING + 0x1000, struct.pack("<HH", 0 if event_idx else 1, 1))
    wish = (RING + 0x1000 + 4 + 2 * 8, 0) if event_idx else (RING + 0x1000, 0)
    if event_idx:
        memory.write(wish[0], struct.pack("<H", 1000))
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    published: list[int] = []

    def go_to_sleep() -> None:
        published.append(u16(queue, RING + 0x2002))
        memory.write(wish[0], struct.pack("<H", wish[1]))

    side = OtherSide(monkeypatch, go_to_sleep)
    assert queue.needs_interrupt()
    assert side.calls == 1
    assert published == [1]


def test_the_barrier_of_the_last_pop_serves_the_interrupt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a push, a `pop` that finds nothing is a barrier between the used index and the driver's wish."""
    queue = make_queue(8)
    queue._memory.write(RING, struct.pack("<QIHH", 0x8000, 8, 0, 0))
    queue._memory.write(RING + 0x1002, struct.pack("<H", 1))
    chain = queue.pop()
    assert chain is not None
    side = OtherSide(monkeypatch, lambda: None)
    queue.push(chain, 0)
    assert queue.pop() is None
    queue.needs_interrupt()
    assert side.calls == 1
    queue._memory.write(RING + 0x1002, struct.pack("<H", 2))  # the same head again
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    queue.needs_interrupt()
    assert side.calls == 2


# --- rings that only somebody else can reach ---


class Port:
    """Reads and writes RAM, word by word, for a device that cannot map it."""

    def __init__(self) -> None:
        self.memory = GuestMemory.anonymous(RAM)
        self.asked: list[tuple[str, int, int]] = []

    def read(self, address: int, nbytes: int) -> bytes:
        self.asked.append(("read", address, nbytes))
        return self.memory.read(address, nbytes)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.asked.append(("write", address, len(data)))
        self.memory.write(address, data)


def remote_queue(*, event_idx: bool, writable: bool = True) -> tuple[Port, SplitQueue]:
    port = Port()
    memory = GuestMemory()
    memory.add_remote(port, RAM, address=0, writable=writable)
    return port, make_queue(8, event_idx=event_idx, memory=memory)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_ring_by_messages(event_idx: bool, indirect: bool) -> None:
    port, queue = remote_queue(event_idx=event_idx)
    ram = port.memory
    for turn in range(20):  # over the end of the ring
        table = 0x6000 if indirect else RING
        ram.write(table, struct.pack("<QIHHQIHH", 0x8000, 4, NEXT, 1, 0x9000, 8, WRITE, 0))
        if indirect:
            ram.write(RING, struct.pack("<QIHH", 0x6000, 32, INDIRECT, 0))
        ram.write(0x8000, struct.pack("<I", turn))
        ram.write(RING + 0x1004 + 2 * (turn % 8), struct.pack("<H", 0))
        ram.write(RING + 0x1002, struct.pack("<H", turn + 1))
        ram.write(RING + 0x1004 + 2 * 8, struct.pack("<H", turn))  # used_event
        chain = queue.pop()
        assert chain is not None
        assert chain.readable.read(0, 4) == struct.pack("<I", turn)
        chain.writable.write(0, b"answered")
        queue.push(chain, 8)
        assert queue.pop() is None
        assert queue.needs_interrupt()
        assert ram.read(0x9000, 8) == b"answered"
        assert struct.unpack("<H", ram.read(RING + 0x2002, 2)) == (turn + 1,)
        assert struct.unpack("<II", ram.read(RING + 0x2004 + 8 * (turn % 8), 8)) == (0, 8)
    index_stores = [each for each in port.asked if each[0] == "write" and each[1] == RING + 0x2002]
    assert index_stores == [("write", RING + 0x2002, 2)] * 20  # one each, and never a wrong one


def test_a_remote_used_ring_that_cannot_be_written() -> None:
    with pytest.raises(MemoryAccessError):
        remote_queue(event_idx=False, writable=False)


def test_unmap_lets_go_of_the_ring() -> None:
    memory = GuestMemory()
    memory.add_array(bytearray(RAM), 0)
    queue = make_queue(memory=memory)
    assert queue.pop() is None
    array = weakref.ref(memory.regions[0].array)
    memory.remove(0, RAM)
    assert array() is not None
    queue.unmap()
    assert array() is None
