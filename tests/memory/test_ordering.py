from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyvirtfs.memory import GuestMemory, full_barrier, load_barrier, store_barrier

if TYPE_CHECKING:
    from collections.abc import Callable

TWO_PROCESSORS = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
SECONDS = 1.0
INDEX = 0x42
"""Byte offset of the 16-bit index in the shared page; ENTRY and COUNT are 64-bit, READY and STOP 16-bit."""
READY, STOP, ENTRY, COUNT = 0x100, 0x102, 0x200, 0x300

# Another process looks at the shared page all the time. Each index has two equal bytes, neither of them 0, so that a
# torn or cleared one shows. Each count is published behind the entry that it stands for.
WATCHER = f"""
import sys
sys.path[:0] = {sys.path!r}
from pyvirtfs.memory import GuestMemory, load_barrier
memory = GuestMemory.from_fd(int(sys.argv[1]), 4096)
words, longs = memory.regions[0].u16, memory.regions[0].u64
index, stop, entry, count = {INDEX} // 2, {STOP} // 2, {ENTRY} // 8, {COUNT} // 8
looks = torn = early = 0
values = set()
words[{READY} // 2] = 1
while not words[stop]:
    looks += 1
    value = words[index]
    values.add(value)
    if not value or value >> 8 != value & 255:
        torn += 1
    published = longs[count]
    load_barrier()
    if longs[entry] < published:
        early += 1
print(looks, torn, early, len(values))
"""


def watch(publish: Callable[[memoryview, int], None], seconds: float) -> tuple[int, int, int, int]:
    """Publish indexes while another process looks: how often it looked, saw a torn index, a count before its entry, and
    how many different indexes it saw.
    """
    fd = os.memfd_create("ring")
    try:
        os.truncate(fd, 4096)
        memory = GuestMemory.from_fd(fd, 4096)
        view = memory.view(0, 4096)
        words, longs = memory.regions[0].u16, memory.regions[0].u64
        words[INDEX // 2] = 0x0101
        arguments = [sys.executable, "-c", WATCHER, str(fd)]
        with subprocess.Popen(arguments, pass_fds=(fd,), stdout=subprocess.PIPE, text=True) as watcher:
            try:
                deadline = time.monotonic() + 30
                while not words[READY // 2]:
                    assert watcher.poll() is None
                    assert time.monotonic() < deadline
                deadline = time.monotonic() + seconds
                step = 0
                while time.monotonic() < deadline:
                    for _ in range(1000):
                        step += 1
                        publish(view, (step % 255 + 1) * 0x0101)
                        longs[ENTRY // 8] = step
                        store_barrier()
                        longs[COUNT // 8] = step
            finally:
                words[STOP // 2] = 1
            assert watcher.stdout is not None
            looks, torn, early, different = map(int, watcher.stdout.read().split())
        return looks, torn, early, different
    finally:
        os.close(fd)


def test_another_process_never_sees_a_torn_index() -> None:
    def publish(view: memoryview, value: int, cast: list[memoryview] = []) -> None:  # noqa: B006 - one cast for all calls
        if not cast:
            cast.append(view.cast("H"))
        cast[0][INDEX // 2] = value

    looks, torn, early, different = watch(publish, SECONDS)
    assert looks > 1000
    assert different > 10, "the other process did not run at the same time"
    assert (torn, early) == (0, 0)


@TWO_PROCESSORS
def test_with_pack_into_the_test_above_fails() -> None:
    """The control: `struct.pack_into` clears first, and up to 2 % of the looks see that."""

    def publish(view: memoryview, value: int) -> None:
        struct.pack_into("<H", view, INDEX, value)

    deadline = time.monotonic() + 30
    while not watch(publish, 0.2)[1]:
        assert time.monotonic() < deadline, "nobody saw a cleared index: the two never ran at the same time"


# Each process stores its step and then loads the other's (the litmus test "store buffer"): A stores i and loads r, B
# stores j and loads s. If A loaded less than j, B's store came after A's load, and so after A's store: B has to load at
# least i. A processor without a fence between store and load breaks that, x86 too. Both run free and write down what
# they load, and the logs are compared afterwards: thousands of violations a second without `full_barrier`.
ROUNDS = 100_000
LITMUS = f"""
import sys
sys.path[:0] = {sys.path!r}
from pyvirtfs.memory import GuestMemory, full_barrier
fd, me, other, fenced = map(int, sys.argv[1:])
words = GuestMemory.from_fd(fd, 4 << 20).view(0, 4 << 20).cast("Q")
mine, theirs, log = 64 * (me + 1), 64 * (other + 1), words[(me + 1) << 17:]

def run(rounds):
    words[me] = 1
    while not words[other]:
        pass
    if fenced:
        for i in rounds:
            words[mine] = i
            full_barrier()
            log[i] = words[theirs]
    else:
        for i in rounds:
            words[mine] = i
            log[i] = words[theirs]

run(range(1, {ROUNDS} + 1))
"""


def litmus(*, fenced: bool) -> tuple[int, int]:
    """How often order was violated, and how many steps of the other process one of them saw."""
    fd = os.memfd_create("litmus")
    try:
        os.truncate(fd, 4 << 20)
        arguments = [[str(fd), str(me), str(1 - me), str(int(fenced))] for me in (0, 1)]
        processes = [subprocess.Popen([sys.executable, "-c", LITMUS, *words], pass_fds=(fd,)) for words in arguments]
        try:
            assert [process.wait(60) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
        words = GuestMemory.from_fd(fd, 4 << 20).array(0, 4 << 20).view(np.int64)
        one, two = (words[where << 17 :][: ROUNDS + 1] for where in (1, 2))
        steps = np.arange(ROUNDS + 1)
        unseen = one + 1  # the first step of the other that was not seen
        known = (steps > 0) & (unseen <= ROUNDS)
        violations = np.count_nonzero(two[unseen[known]] < steps[known])
        return int(violations), len(np.unique(one))
    finally:
        os.close(fd)


def test_a_full_barrier_keeps_a_load_behind_a_store() -> None:
    for _ in range(3):
        violations, _ = litmus(fenced=True)
        assert violations == 0


@TWO_PROCESSORS
def test_without_a_full_barrier_the_test_above_fails() -> None:
    """The control: it may take several attempts where other programs keep both processors busy."""
    deadline = time.monotonic() + 30
    while not litmus(fenced=False)[0]:
        assert time.monotonic() < deadline, "this processor reorders nothing, or the two never ran at the same time"


def test_barriers_may_be_used_by_many_threads_at_once() -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3000):
                full_barrier()
                store_barrier()
                load_barrier()
        except BaseException as problem:  # noqa: BLE001 - whatever it is, the test shall say so
            problems.append(problem)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert not problems
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("barrier", [full_barrier, store_barrier, load_barrier])
def test_barriers_return_nothing(barrier: Callable[[], None]) -> None:
    assert barrier() is None  # type: ignore[func-returns-value]  # that is the point
