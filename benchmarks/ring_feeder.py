"""Requests that wait in the ring before the doorbell rings: what the device benchmarks measure against.

The feeder is a minimal driver for one virtqueue: it programs the device through its common configuration structure
(virtio 1.3, 4.1.4.3), lays every request out once, as one indirect table in the shapes that Linux builds, and from then
on only publishes heads and rings the doorbell. Building requests and reading replies is nobody's benchmark here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from pyvirtfs import GuestMemory
from pyvirtfs.guest import FunctionAccess

QUEUE_SIZE = 128
DESCRIPTORS = 0x1000
AVAILABLE = 0x2000
USED = 0x3000
ARENA = 0x10000
PAGE = 4096

COMMON = 0x0000
NOTIFY = 0x3000
VERSION_1 = 1 << 32
INDIRECT = 1 << 28
EVENT_IDX = 1 << 29
MOUNT_TAG = 1 << 0

_DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4
MSIX = 0x11


class Request(NamedTuple):
    """One request as it lies in guest RAM."""

    head: int
    """Its slot in the descriptor table."""
    reply_address: int
    """Where the reply's header lands."""


class RingFeeder:
    """One device, one ring, `nbytes` of guest RAM.

    Args:
        device: The device under test.
        memory: Its RAM, one region at address 0.
    """

    def __init__(self, device: FunctionAccess, memory: GuestMemory) -> None:
        self.device = device
        self.memory = memory
        self._next_slot = 0
        self._next_byte = ARENA
        self._published = 0
        view = memory.view(AVAILABLE, 6 + 2 * QUEUE_SIZE)
        self._available = view.cast("H")
        self._used = memory.view(USED, 6 + 8 * QUEUE_SIZE)
        self._set_up()

    def _set_up(self) -> None:
        device = self.device
        device.config_write(4, 2, 0x0406)  # memory decoding and bus mastering on, INTx off
        self._enable_msix()
        for status in (0, 1, 3):
            device.bar_write(4, COMMON + 20, 1, status)
        for select in (0, 1):
            device.bar_write(4, COMMON + 8, 4, select)
            features = (VERSION_1 | INDIRECT | EVENT_IDX | MOUNT_TAG) >> (32 * select)
            device.bar_write(4, COMMON + 12, 4, features & 0xFFFFFFFF)
        device.bar_write(4, COMMON + 20, 1, 11)
        for offset, address in ((32, DESCRIPTORS), (40, AVAILABLE), (48, USED)):
            device.bar_write(4, COMMON + offset, 4, address)
            device.bar_write(4, COMMON + offset + 4, 4, 0)
        device.bar_write(4, COMMON + 26, 2, 0)  # queue_msix_vector
        device.bar_write(4, COMMON + 28, 2, 1)
        device.bar_write(4, COMMON + 20, 1, 15)
        if device.bar_read(4, COMMON + 20, 1) != 15:
            raise RuntimeError("the device did not come up")

    def _enable_msix(self) -> None:
        device, capability = self.device, self.device.config_read(0x34, 1)
        while device.config_read(capability, 1) != MSIX:
            capability = device.config_read(capability + 1, 1)
        for offset, value in ((0, 0xFEE00000), (4, 0), (8, 0x41), (12, 0)):
            device.bar_write(1, offset, 4, value)
        device.config_write(capability + 2, 2, 0x8000)

    def allocate(self, nbytes: int, align: int = 16) -> int:
        """Guest RAM for a buffer; returns its address."""
        address = -(-self._next_byte // align) * align
        self._next_byte = address + nbytes
        return address

    def add(self, message: bytes, *, readable: Sequence[tuple[int, int]] = (), room: int = PAGE,
            writable: Sequence[tuple[int, int]] = ()) -> Request:  # fmt: skip
        """Lay out one request.

        Args:
            message: The T message (of a Twrite: its header).
            readable: Further (address, nbytes) ranges behind the message: a Twrite's payload.
            room: Bytes of the reply's first buffer.
            writable: Further ranges behind it: a Tread's payload.
        """
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        request = self.allocate(len(message))
        reply = self.allocate(room)
        self.memory.write(request, message)
        ranges = [(request, len(message), 0), *((a, n, 0) for a, n in readable)]
        ranges += [(reply, room, WRITE), *((a, n, WRITE) for a, n in writable)]
        table = b"".join(
            _DESCRIPTOR.pack(address, nbytes, flags | (NEXT if i + 1 < len(ranges) else 0), i + 1)
            for i, (address, nbytes, flags) in enumerate(ranges)
        )
        where = self.allocate(len(table))
        self.memory.write(where, table)
        self.memory.write(DESCRIPTORS + 16 * slot, _DESCRIPTOR.pack(where, len(table), INDIRECT_FLAG, 0))
        return Request(slot, reply)

    def stage(self, requests: Sequence[Request]) -> None:
        """Write the heads into the ring behind what was published; the device does not see them yet."""
        ring = self._available
        for i, request in enumerate(requests):
            ring[2 + (self._published + i) % QUEUE_SIZE] = request.head

    def ring(self, count: int) -> None:
        """Publish `count` staged requests and ring the doorbell once."""
        available = self._available
        available[2 + QUEUE_SIZE] = self._published  # used_event: an interrupt for the first answer
        self._published = published = (self._published + count) & 0xFFFF
        available[1] = published
        self.device.bar_write(4, NOTIFY, 2, 0)

    def call(self, request: Request) -> bytes:
        """One request, and its reply's first bytes (at most a page)."""
        self.stage([request])
        self.ring(1)
        nbytes: int = struct.unpack_from("<I", self._used, 8 + 8 * ((self._published - 1) % QUEUE_SIZE))[0]
        return self.memory.read(request.reply_address, min(nbytes, PAGE))

    def call_once(self, message: bytes) -> bytes:
        """A request of the preparation; its slot is reused."""
        reply = self.call(self.add(message))
        self._next_slot -= 1
        return reply
