"""Rings that a broken or hostile guest can make: the device needs a reset, and works again after it.

What messages it can send is in test_whole_stack_bad_input.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import MessageError, QueueError
from pyvirtfs.guest import Request
from pyvirtfs.p9 import frames
from pyvirtfs.testing import Pair, check_descriptors, pair
from pyvirtfs.virtio import features, layout

DIRECT = features.mask(features.VERSION_1, features.EVENT_IDX)
NEXT, WRITE, INDIRECT = layout.DESC_NEXT, layout.DESC_WRITE, layout.DESC_INDIRECT


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Pair]:
    yield from _stack(tmp_path)


@pytest.fixture
def direct_stack(tmp_path: Path) -> Iterator[Pair]:
    """Without indirect tables: the descriptors of the ring itself."""
    yield from _stack(tmp_path, wanted=DIRECT)


def _stack(folder: Path, **options: Any) -> Iterator[Pair]:
    (folder / "file").write_bytes(b"Hi Guest")
    with check_descriptors(), pair(f"local,path={folder},security_model=none", timeout=0.5, **options) as both:
        yield both
        both.remount()
        for _ in range(2):
            assert both.mount.path("file").read_bytes() == b"Hi Guest"
        assert both.session.client.fids == {both.mount.root_fid}


def needs_reset(stack: Pair) -> bool:
    stack.channel.deliver()
    return stack.channel.broken is not None


Descriptor = tuple[int, int, int, int]
CHAINS: dict[str, list[Descriptor]] = {  # `0x10000` is RAM that belongs to somebody, `1 << 40` is none
    "points to itself": [(0x10000, 16, NEXT, 0)],
    "circle of two": [(0x10000, 16, NEXT, 1), (0x10000, 16, NEXT, 0)],
    "circle of empty ones": [(0x10000, 0, NEXT, 1), (0x10000, 0, NEXT, 0)],
    "next is out of the ring": [(0x10000, 16, NEXT, 128)],
    "next is far out of the ring": [(0x10000, 16, NEXT, 0xFFFF)],
    "out of RAM": [(1 << 40, 16, NEXT, 1), (0x10000, 100, WRITE, 0)],
    "writable out of RAM": [(0x10000, 16, NEXT, 1), (1 << 40, 100, WRITE, 0)],
    "across the end of RAM": [((64 << 20) - 8, 16, NEXT, 1), (0x10000, 100, WRITE, 0)],
    "wraps around": [((1 << 64) - 8, 16, NEXT, 1), (0x10000, 100, WRITE, 0)],
    "4 GiB long": [(0x10000, 0xFFFFFFFF, NEXT, 1), (0x10000, 100, WRITE, 0)],
    "a BAR": [(0xE0000000, 16, NEXT, 1), (0x10000, 100, WRITE, 0)],
    "readable behind writable": [(0x10000, 100, WRITE | NEXT, 1), (0x10000, 16, 0, 0)],
    "empty": [(0x10000, 0, 0, 0)],
    "only writable": [(0x10000, 100, WRITE, 0)],
    "only readable": [(0x10000, 23, 0, 0)],
    "indirect, not negotiated": [(0x10000, 32, INDIRECT, 0)],
}
TABLES: dict[str, Descriptor] = {
    "no bytes": (0x10000, 0, INDIRECT, 0),
    "15 bytes": (0x10000, 15, INDIRECT, 0),
    "17 bytes": (0x10000, 17, INDIRECT, 0),
    "out of RAM": (1 << 40, 32, INDIRECT, 0),
    "4 GiB": (0x10000, 0xFFFFFFF0, INDIRECT, 0),
    "wraps around": ((1 << 64) - 16, 32, INDIRECT, 0),
    "indirect and next": (0x10000, 32, INDIRECT | NEXT, 1),
}
ENTRIES: dict[str, list[Descriptor]] = {
    "points to itself": [(0x10000, 16, NEXT, 0)],
    "circle": [(0x10000, 16, NEXT, 1), (0x10000, 16, NEXT, 0)],
    "next is out of the table": [(0x10000, 16, NEXT, 2), (0x10000, 16, WRITE, 0)],
    "nested": [(0x10000, 32, INDIRECT, 0), (0x10000, 16, WRITE, 0)],
    "out of RAM": [(1 << 40, 16, NEXT, 1), (0x10000, 16, WRITE, 0)],
    "readable behind writable": [(0x10000, 16, WRITE | NEXT, 1), (0x10000, 16, 0, 0)],
}


def offer(stack: Pair, descriptors: list[Descriptor], head: int = 0) -> None:
    ring = stack.channel.queue.ring
    for i, descriptor in enumerate(descriptors):
        ring.table.store(i, *descriptor)
    ring.publish(head)
    stack.channel.queue.notify()


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_bad_chain(direct_stack: Pair, chain: list[Descriptor]) -> None:
    offer(direct_stack, chain)
    assert needs_reset(direct_stack)
    assert direct_stack.channel.driver.counters.config_interrupts == 1
    assert not direct_stack.channel.queue.ring.has_used()


@pytest.mark.parametrize("descriptor", TABLES.values(), ids=TABLES)
def test_bad_indirect_table(stack: Pair, descriptor: Descriptor) -> None:
    offer(stack, [descriptor])
    assert needs_reset(stack)


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_bad_entry_of_an_indirect_table(stack: Pair, entries: list[Descriptor]) -> None:
    buffer = stack.mount.allocate(4096)
    for i, (address, nbytes, flags, following) in enumerate(entries):
        buffer.write(16 * i, struct.pack("<QIHH", address, nbytes, flags, following))
    offer(stack, [(buffer.address, 16 * len(entries), INDIRECT, 0)])
    assert needs_reset(stack)


@pytest.mark.parametrize("head", [128, 129, 0x7FFF, 0xFFFF])
def test_bad_head(stack: Pair, head: int) -> None:
    offer(stack, [], head)
    assert needs_reset(stack)


@pytest.mark.parametrize("jump", [129, 1000, 0x8000, 0xFFFF])
def test_available_index_jumps(stack: Pair, jump: int) -> None:
    ring = stack.channel.queue.ring
    available = stack.memory.view(ring.available_address, 4).cast("H")
    available[1] = (available[1] + jump) & 0xFFFF
    stack.channel.queue.notify()
    assert needs_reset(stack)


def test_table_that_is_its_own_entry(stack: Pair) -> None:
    offer(stack, [(stack.channel.queue.ring.descriptor_address, 32, INDIRECT, 0)])
    assert needs_reset(stack)


@pytest.mark.parametrize("part", ["used_address", "available_address", "descriptor_address"])
def test_a_ring_is_no_request(stack: Pair, part: str) -> None:
    buffer = stack.mount.allocate(64)
    where = getattr(stack.channel.queue.ring, part)
    used = stack.memory.read(stack.channel.queue.ring.used_address, 64)
    stack.channel.submit_ranges([(where, 64)], [(where, 64)], Request(b"", buffer, buffer, 64))
    assert needs_reset(stack)
    assert isinstance(stack.device.device.last_error, MessageError)
    assert stack.memory.read(stack.channel.queue.ring.used_address, 64) == used  # nothing was written, nothing returned


@pytest.mark.parametrize("part", ["used_address", "available_address", "descriptor_address"])
def test_a_reply_over_the_ring(stack: Pair, part: str) -> None:
    """The guest has only itself to blame; the device does what it is told, and keeps its own count of both rings."""
    message = frames.build("Tgetattr", 3, {"fid": stack.mount.root_fid, "request_mask": 0x7FF})
    buffer = stack.mount.allocate(64)
    buffer.write(0, message)
    ring = stack.channel.queue.ring
    where = getattr(ring, part)
    stack.channel.submit_ranges(
        [(buffer.address, len(message))], [(where, 160)], Request(message, buffer, buffer, 160), kick=False
    )
    index = stack.memory.view(ring.used_address, 4).cast("H")[1]
    stack.channel.queue.notify()
    assert stack.memory.view(ring.used_address, 4).cast("H")[1] == index + 1
    if part == "available_address":  # the index is the middle of a message's size field now
        assert needs_reset(stack)
        assert isinstance(stack.device.device.last_error, QueueError)
    else:
        assert stack.device.device.last_error is None
        assert not stack.channel.driver.needs_reset


@pytest.mark.parametrize("queue", [1, 2, 128, 0x7FFF, 0xFFFF])
def test_doorbell_of_no_queue(stack: Pair, queue: int) -> None:
    function, notify = stack.channel.driver.function, stack.channel.driver.function.structure(layout.CFG_NOTIFY)
    for size in (1, 2, 4):
        offset = min(queue * notify.multiplier, notify.nbytes - 4)
        function.bar_write(notify.bar, notify.offset + offset, size, queue & ((1 << 8 * size) - 1))
    assert not needs_reset(stack)
    assert stack.mount.path("file").exists()
