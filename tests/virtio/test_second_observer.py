"""Another processor watches the ring while the device publishes: it never sees what was not meant (2.7.13, 2.7.14).

A second process is the driver. It finds torn or premature indexes, entries that are not there before their index, lost
doorbells (the device looks again after it asked for one) and lost interrupts (it looks at the driver's wish after it
published). Once with the event index, once with the flags of both rings.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyvirtfs.memory import GuestMemory
from pyvirtfs.virtio import SplitQueue

SIZE = 64
MAGIC = 0xA5A50000
STRANGER = 0x5AA5
SECONDS = 1.2


@pytest.mark.parametrize("event_idx", [True, False], ids=["event-idx", "flags"])
def test_what_a_second_process_sees(event_idx: bool) -> None:
    memory_fd = os.memfd_create("ring", os.MFD_CLOEXEC)
    kick_read, kick_write = os.pipe()
    interrupt_read, interrupt_write = os.pipe()
    try:
        os.ftruncate(memory_fd, 1 << 16)
        memory = GuestMemory.from_fd(memory_fd, 1 << 16)
        for slot in range(SIZE):
            memory.write(0x1000 + 16 * slot, struct.pack("<QIHH", 0x8000, 16, 0, 0))
        queue = SplitQueue(0, memory, SIZE)
        queue.negotiate(event_idx=event_idx, indirect=False)
        queue.state.descriptors, queue.state.driver, queue.state.device = 0x1000, 0x2000, 0x3000
        queue.enable()
        if not event_idx:
            memory.write(0x3000 + 4 + 8 * SIZE, struct.pack("<H", STRANGER))
        queue.pop()  # ask for the first doorbell
        script = Path(__file__).with_name("second_observer.py")
        with subprocess.Popen(
            [
                sys.executable,
                "-S",
                str(script),
                *map(str, (memory_fd, kick_write, interrupt_read, int(event_idx), SECONDS)),
            ],
            pass_fds=(memory_fd, kick_write, interrupt_read),
            stdout=subprocess.PIPE,
            text=True,
        ) as observer:
            try:
                serve(queue, kick_read, interrupt_write)
                output, _ = observer.communicate(timeout=60)
            finally:
                observer.kill()
    finally:
        for fd in (memory_fd, kick_read, kick_write, interrupt_read, interrupt_write):
            os.close(fd)
    assert "wrong" not in output
    total, looks, kicks, sleeps = map(int, output.split())
    assert total > 1000
    assert looks > 1000
    assert 0 < kicks < total
    assert sleeps > 0


def serve(queue: SplitQueue, kick: int, interrupt: int) -> None:
    """The device: returns chains with a length that says which they are, until the observer has seen enough."""
    while select.select([kick], [], [], 10)[0]:
        asked = os.read(kick, 4096)
        while (chain := queue.pop()) is not None:
            queue.push(chain, MAGIC | queue.state.used_index)
            if queue.state.used_index % 7 == 0 and queue.needs_interrupt():
                os.write(interrupt, b"i")
        if queue.pushed and queue.needs_interrupt():
            os.write(interrupt, b"i")
        if b"q" in asked:
            return
