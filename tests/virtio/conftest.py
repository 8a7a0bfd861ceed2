"""A driver for one split ring, by hand: it shares no code with the package, so that both can be wrong only apart."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pyvirtfs.errors import GuestError
from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio import Chain, VirtioDevice, VirtioPci, Virtqueue

NEXT, WRITE, INDIRECT = 1, 2, 4
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 40
FEATURES = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET
RAM_NBYTES = 1 << 20

# The common configuration structure: offset and size of each field.
FIELDS = {
    "device_feature_select": (0, 4), "device_feature": (4, 4),
    "driver_feature_select": (8, 4), "driver_feature": (12, 4),
    "config_msix_vector": (16, 2), "num_queues": (18, 2), "device_status": (20, 1), "config_generation": (21, 1),
    "queue_select": (22, 2), "queue_size": (24, 2), "queue_msix_vector": (26, 2), "queue_enable": (28, 2),
    "queue_notify_off": (30, 2), "queue_desc": (32, 8), "queue_driver": (40, 8), "queue_device": (48, 8),
    "queue_notif_config_data": (56, 2), "queue_reset": (58, 2),
    "admin_queue_index": (60, 2), "admin_queue_num": (62, 2),
}  # fmt: skip


class Sink:
    """Remembers interrupts."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int, int]] = []
        self.levels: list[bool] = []
        self.on_message: Callable[[], None] | None = None

    def msix(self, vector: int, address: int, data: int) -> None:
        self.messages.append((vector, address, data))
        if self.on_message is not None:
            self.on_message()

    def intx(self, level: bool) -> None:
        self.levels.append(level)

    def vectors(self) -> list[int]:
        """The vectors since the last call."""
        vectors = [vector for vector, _, _ in self.messages]
        self.messages.clear()
        return vectors


class EchoDevice(VirtioDevice):
    """Answers a request with its own bytes, reversed. Device id 63 and feature bits 3 and 5 mean nothing."""

    device_id = 63

    def __init__(self, memory: GuestMemory, *, queue_sizes: Sequence[int] = (8, 16), **options: Any) -> None:
        super().__init__(memory, queue_sizes=queue_sizes, device_features=(3, 5), config=b"echo\x01\x02", **options)
        self.seen: list[bytes] = []
        self.held: list[tuple[Virtqueue, Chain]] = []
        self.hold = False
        self.cancelled = 0
        self.on_request: Callable[[], None] | None = None

    def process(self, index: int) -> bool:
        queue = self.queues[index]
        while (chain := queue.pop()) is not None:
            data = chain.readable.read(0, chain.readable.nbytes) if chain.readable.nbytes < 1 << 20 else b"huge"
            self.seen.append(data)
            if self.on_request is not None:
                self.on_request()
            if self.hold:
                self.held.append((queue, chain))
            else:
                self.answer(queue, chain, data)
        return False

    @staticmethod
    def answer(queue: Virtqueue, chain: Chain, data: bytes) -> None:
        reply = data[::-1][: chain.writable.nbytes]
        chain.writable.write(0, reply)
        queue.push(chain, len(reply))

    def collect(self) -> None:
        """Answer what was held, unless it still is to be."""
        if not self.hold:
            held, self.held = self.held, []
            for queue, chain in held:
                self.answer(queue, chain, b"late")

    def cancel(self) -> None:
        self.cancelled += 1


class Ring:
    """The driver's half of one split ring in guest RAM."""

    def __init__(self, memory: GuestMemory, size: int, base: int = 0x1000) -> None:
        self.memory = memory
        self.size = size
        self.descriptors, self.driver, self.device = base, base + 0x1000, base + 0x2000
        self.next_slot = 0
        self.avail_idx = 0
        self.used_seen = 0
        memory.write(base, bytes(0x3000))

    def write_descriptor(self, slot: int, address: int, nbytes: int, flags: int, following: int = 0) -> None:
        self.memory.write(self.descriptors + 16 * slot, struct.pack("<QIHH", address, nbytes, flags, following))

    def put_table(self, address: int, entries: Sequence[tuple[int, int, int, int]]) -> int:
        table = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        self.memory.write(address, table)
        return len(table)

    def add(self, *buffers: tuple[int, int, int]) -> int:
        """A chain of direct descriptors (address, nbytes, WRITE or 0); returns its head, not yet available."""
        head = self.next_slot
        for i, (address, nbytes, flags) in enumerate(buffers):
            last = i == len(buffers) - 1
            slot = (head + i) % self.size
            self.write_descriptor(slot, address, nbytes, flags | (0 if last else NEXT), (slot + 1) % self.size)
        self.next_slot = (head + len(buffers)) % self.size
        return head

    def add_indirect(self, table: int, *buffers: tuple[int, int, int], flags: int = INDIRECT) -> int:
        """A chain in an indirect table at address `table`; returns its head."""
        count = len(buffers)
        nbytes = self.put_table(
            table, [(a, n, f | (NEXT if i + 1 < count else 0), i + 1) for i, (a, n, f) in enumerate(buffers)]
        )
        head = self.next_slot
        self.write_descriptor(head, table, nbytes, flags)
        self.next_slot = (head + 1) % self.size
        return head

    def publish(self, *heads: int) -> None:
        for head in heads:
            self.memory.write(self.driver + 4 + 2 * (self.avail_idx % self.size), struct.pack("<H", head))
            self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.memory.write(self.driver + 2, struct.pack("<H", self.avail_idx))

    def _u16(self, address: int) -> int:
        return int(struct.unpack("<H", self.memory.read(address, 2))[0])

    @property
    def used_idx(self) -> int:
        return self._u16(self.device + 2)

    @property
    def used_flags(self) -> int:
        return self._u16(self.device)

    @property
    def avail_event(self) -> int:
        return self._u16(self.device + 4 + 8 * self.size)

    def set_used_event(self, value: int) -> None:
        self.memory.write(self.driver + 4 + 2 * self.size, struct.pack("<H", value & 0xFFFF))

    def set_flags(self, value: int) -> None:
        self.memory.write(self.driver, struct.pack("<H", value))

    def used(self) -> list[tuple[int, int]]:
        """The used entries (id, len) since the last call."""
        entries = []
        while self.used_seen != self.used_idx:
            where = self.device + 4 + 8 * (self.used_seen % self.size)
            entries.append(struct.unpack("<II", self.memory.read(where, 8)))
            self.used_seen = (self.used_seen + 1) & 0xFFFF
        return entries


class Driver:
    """The register side: brings a `VirtioPci` function up."""

    def __init__(self, function: VirtioPci, memory: GuestMemory, sink: Sink) -> None:
        self.function = function
        self.memory = memory
        self.sink = sink
        self.rings: list[Ring] = []

    def get(self, name: str) -> int:
        offset, size = FIELDS[name]
        return self.function.bar_read(4, COMMON + offset, size)

    def set(self, name: str, value: int) -> None:
        offset, size = FIELDS[name]
        self.function.bar_write(4, COMMON + offset, size, value)

    def set_status(self, value: int) -> int:
        self.set("device_status", value)
        return self.get("device_status")

    def offered(self) -> int:
        words = []
        for select in (0, 1):
            self.set("device_feature_select", select)
            words.append(self.get("device_feature"))
        return words[0] | words[1] << 32

    def write_features(self, word: int) -> None:
        for select in (0, 1):
            self.set("driver_feature_select", select)
            self.set("driver_feature", word >> 32 * select & 0xFFFFFFFF)

    def enable_bus(self, command: int = 0x6) -> None:
        self.function.config_write(4, 2, command)

    def enable_msix(self) -> None:
        """Both vectors unmasked, data 100 + vector; enabled in the capability."""
        for vector in (0, 1):
            self.function.bar_write(1, 16 * vector, 4, 0xFEE00000)
            self.function.bar_write(1, 16 * vector + 4, 4, 0)
            self.function.bar_write(1, 16 * vector + 8, 4, 100 + vector)
            self.function.bar_write(1, 16 * vector + 12, 4, 0)
        self.function.config_write(self.capability(0x11) + 2, 2, 0x8000)

    def capability(self, capability_id: int, cfg_type: int | None = None) -> int:
        """Offset of a capability in configuration space."""
        where = self.function.config_read(0x34, 1)
        while where:
            if self.function.config_read(where, 1) == capability_id and (
                cfg_type is None or self.function.config_read(where + 3, 1) == cfg_type
            ):
                return where
            where = self.function.config_read(where + 1, 1)
        raise LookupError(capability_id)

    def negotiate(self, features: int = FEATURES) -> None:
        self.set_status(0)
        self.set_status(ACKNOWLEDGE)
        self.set_status(ACKNOWLEDGE | DRIVER)
        self.write_features(features)
        assert self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK) & FEATURES_OK

    def program_queue(self, index: int, ring: Ring, *, vector: int | None = 1) -> None:
        self.set("queue_select", index)
        self.set("queue_size", ring.size)
        if vector is not None:
            self.set("queue_msix_vector", vector)
        self.set("queue_desc", ring.descriptors)
        self.set("queue_driver", ring.driver)
        self.set("queue_device", ring.device)

    def start(self, features: int = FEATURES, *, msix: bool = True, ring: Ring | None = None) -> Ring:
        """Everything up to DRIVER_OK, with queue 0 enabled; config interrupts on vector 0, the queue's on vector 1."""
        self.enable_bus()
        if msix:
            self.enable_msix()
        self.negotiate(features)
        self.set("config_msix_vector", 0 if msix else 0xFFFF)
        ring = ring or Ring(self.memory, self.queue_size(0))
        self.program_queue(0, ring, vector=1 if msix else None)
        self.set("queue_enable", 1)
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
        return ring

    def queue_size(self, index: int) -> int:
        self.set("queue_select", index)
        return self.get("queue_size")

    def kick(self, index: int = 0) -> None:
        self.function.bar_write(4, NOTIFY + 4 * index, 2, index)

    @property
    def broken(self) -> bool:
        return bool(self.get("device_status") & NEEDS_RESET)


class Machine:
    """Guest RAM, an echo device on the bus, and its driver."""

    def __init__(self, device: Callable[[GuestMemory], EchoDevice] = EchoDevice, **options: Any) -> None:
        self.memory = GuestMemory.anonymous(RAM_NBYTES)
        self.sink = Sink()
        self.device = device(self.memory)
        self.function = VirtioPci(self.device, interrupts=self.sink, **options)
        self.driver = Driver(self.function, self.memory, self.sink)

    def echo(self, ring: Ring, data: bytes = b"hello") -> bytes:
        """One request through an indirect table, with a doorbell; its reply."""
        self.memory.write(0x8000, data)
        head = ring.add_indirect(0x7000, (0x8000, len(data), 0), (0x9000, 64, WRITE))
        ring.publish(head)
        self.driver.kick()
        ((used, nbytes),) = ring.used()
        assert used == head
        return self.memory.read(0x9000, nbytes)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="session")
def make_machine() -> Callable[..., Machine]:
    return Machine


@pytest.fixture(scope="session")
def make_ring() -> Callable[..., Ring]:
    return Ring


@pytest.fixture(scope="session")
def echo_device() -> type[EchoDevice]:
    return EchoDevice


def _broken_by(machine: Machine, errors: int = 1) -> None:
    assert machine.driver.broken
    assert machine.device.errors == errors
    assert isinstance(machine.device.last_error, GuestError)


@pytest.fixture(scope="session")
def assert_needs_reset() -> Callable[..., None]:
    """Checks that the guest broke the device, once, and that it was the guest."""
    return _broken_by


def pytest_make_parametrize_id(val: object) -> str | None:
    """Addresses in hexadecimal."""
    return hex(val) if isinstance(val, int) and val > 255 else None
