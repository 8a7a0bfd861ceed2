"""Split virtqueue: pop and push by chain length, descriptors in the ring or in an indirect table."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pyvirtfs import GuestMemory
from pyvirtfs.virtio.split import SplitQueue

DESCRIPTORS, AVAILABLE, USED, TABLE, DATA = 0x10000, 0x20000, 0x30000, 0x40000, 0x100000
SIZE = 256
NEXT, WRITE, INDIRECT = 1, 2, 4


def queue_with(length: int, *, indirect: bool) -> tuple[SplitQueue, memoryview]:
    """A queue whose head 0 is a chain of `length` descriptors, half of them writable; and its available ring."""
    memory = GuestMemory.anonymous(16 << 20)
    queue = SplitQueue(0, memory, SIZE)
    queue.negotiate(event_idx=True, indirect=True)
    state = queue.state
    state.descriptors, state.driver, state.device = DESCRIPTORS, AVAILABLE, USED
    queue.enable()
    table = b"".join(
        struct.pack(
            "<QIHH",
            DATA + 8192 * i,
            4096,
            (WRITE if i >= length // 2 else 0) | (NEXT if i + 1 < length else 0),
            (i + 1) % SIZE,
        )
        for i in range(length)
    )
    if indirect:
        memory.write(TABLE, table)
        table = struct.pack("<QIHH", TABLE, len(table), INDIRECT, 0)
    memory.write(DESCRIPTORS, table)
    return queue, memory.view(AVAILABLE, 6 + 2 * SIZE).cast("H")


@pytest.mark.parametrize("length", [2, 3, 16, 128])
@pytest.mark.parametrize("kind", ["direct", "indirect"])
def test_pop_push(benchmark: Any, length: int, kind: str) -> None:
    """Take a chain, give it back, and decide about the interrupt."""
    queue, available = queue_with(length, indirect=kind == "indirect")
    benchmark.group = f"queue, {kind}"
    benchmark.extra_info["label"] = f"pop + push, {length} descriptors"

    def once() -> None:
        available[1] = (queue.state.last_avail + 1) & 0xFFFF
        chain = queue.pop()
        if chain is None:
            raise RuntimeError("the ring is empty")
        queue.push(chain, 11)
        queue.needs_interrupt()

    benchmark.pedantic(once, rounds=200, iterations=100, warmup_rounds=5)
