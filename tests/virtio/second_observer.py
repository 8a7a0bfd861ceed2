"""The driver of test_second_observer, a process of its own.

``python second_observer.py MEMFD KICK INTERRUPT EVENT_IDX SECONDS``; EVENT_IDX is 1 if it was negotiated, else 0.

It keeps the device busy and watches its half of the ring while it works. Prints what it saw wrong, and a last line with
what it did.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import sys
import threading
import time

SIZE = 64
DRIVER, DEVICE = 0x2000, 0x3000
MAGIC = 0xA5A50000
FLAGS, INDEX, USED_EVENT, AVAIL_EVENT = 0, 1, 2 + SIZE, 2 + 4 * SIZE
NO_NOTIFY = NO_INTERRUPT = 1
STRANGER = 0x5AA5  # without EVENT_IDX the event words are none: whoever they belong to finds them untouched
PATIENCE = 3.0

_lock = threading.Lock()


def barrier() -> None:
    """A release followed by an acquire, and four locked instructions."""
    for _ in range(2):
        _lock.acquire()
        _lock.release()


class Observer:
    def __init__(self, memory_fd: int, kick_fd: int, interrupt_fd: int, event_idx: int) -> None:
        ram = memoryview(mmap.mmap(memory_fd, 1 << 16))
        self.avail = ram[DRIVER : DRIVER + 6 + 2 * SIZE].cast("H")
        self.used = ram[DEVICE : DEVICE + 6 + 8 * SIZE].cast("H")
        self.entries = ram[DEVICE + 4 : DEVICE + 4 + 8 * SIZE].cast("I")
        self.kick_fd = kick_fd
        self.interrupt_fd = interrupt_fd
        self.event_idx = event_idx
        self.wrong: list[str] = []
        self.random = random.Random(9)
        self.free = list(range(SIZE))
        self.published = self.seen = self.total = self.looks = self.kicks = self.sleeps = 0

    def want_interrupt(self, wanted: bool) -> None:
        """For the last chain that is published, or for none."""
        if self.event_idx:
            self.avail[USED_EVENT] = self.published - (1 if wanted else SIZE) & 0xFFFF
        else:
            self.avail[FLAGS] = 0 if wanted else NO_INTERRUPT

    def publish(self, count: int) -> None:
        """Make chains available, and ring if the device asked for it."""
        self.want_interrupt(False)
        old = self.published
        for _ in range(count):
            self.avail[2 + self.published % SIZE] = self.free.pop()
            self.published = self.published + 1 & 0xFFFF
        barrier()
        self.avail[INDEX] = self.published
        barrier()
        if self.event_idx:
            event = self.used[AVAIL_EVENT]
            wanted = (self.published - event - 1) & 0xFFFF < (self.published - old) & 0xFFFF
        else:
            wanted = not self.used[FLAGS] & NO_NOTIFY
        if wanted:
            self.kicks += 1
            os.write(self.kick_fd, b"k")

    def reap(self) -> bool:
        """Check what came back; whether that was anything."""
        index = self.used[INDEX]
        barrier()
        if (index - self.seen) & 0xFFFF > (self.published - self.seen) & 0xFFFF:
            self.wrong.append(f"used index {index} after {self.seen}, {self.published} published")
            return False
        before = self.seen
        while self.seen != index:
            at = 2 * (self.seen % SIZE)
            head, nbytes = self.entries[at], self.entries[at + 1]
            if nbytes != MAGIC | self.seen or head >= SIZE or head in self.free:
                self.wrong.append(f"entry {self.seen}: head {head}, length {nbytes:#x}")
            self.free.append(head)
            self.seen = self.seen + 1 & 0xFFFF
            self.total += 1
        return self.seen != before

    def stare(self, word: int) -> None:
        """Look at one word of the used ring in the tightest loop that there is, while the device works."""
        used = self.used
        values = [used[word] for _ in range(1000)]
        self.looks += len(values)
        least = self.seen
        for value in values:
            if word == FLAGS:
                good = value == 0 or (value == NO_NOTIFY and not self.event_idx)
            elif word == AVAIL_EVENT and not self.event_idx:
                good = value == STRANGER
            else:  # both indexes lie between what was seen (less one ring, for avail_event) and what was published
                start = least if word == INDEX else least - SIZE
                good = (value - start) & 0xFFFF <= (self.published - start) & 0xFFFF
                if word == INDEX and good:
                    least = value
            if not good:
                self.wrong.append(f"word {word} of the used ring was {value}, {least} seen, {self.published} published")
                return

    def sleep(self) -> None:
        """Wait for the interrupt of the last chain."""
        self.want_interrupt(True)
        barrier()
        if self.used[INDEX] != self.published:
            self.sleeps += 1
            if not select.select([self.interrupt_fd], [], [], PATIENCE)[0]:
                self.wrong.append(f"a lost interrupt: used index {self.used[INDEX]}, {self.published} published")
                return
            os.read(self.interrupt_fd, 4096)

    def wait(self, how: int | None) -> None:
        """Until everything has come back. How: None: sleeping; -1: at once; else staring at that word."""
        deadline = time.monotonic() + PATIENCE
        while self.seen != self.published and not self.wrong:
            if self.reap():
                continue
            if how is None:
                self.sleep()
            elif how >= 0:
                self.stare(how)
            if time.monotonic() > deadline:
                self.wrong.append(f"a lost doorbell: used index {self.used[INDEX]}, {self.published} published")

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        latest = end + 20 * seconds  # where the machine has other things to do
        while not self.wrong and (now := time.monotonic()) < latest:
            if now > end and min(self.total, self.looks) > 2000 and self.kicks and self.sleeps:
                break
            how = self.random.choice([None, FLAGS, INDEX, INDEX, AVAIL_EVENT, -1])
            if how == -1:
                for _ in range(
                    200
                ):  # one at a time, at no particular time: also while the device is about to go to rest
                    self.publish(1)
                    for _ in range(self.random.randrange(100)):
                        pass
                    if len(self.free) < SIZE - 2:
                        self.wait(-1)
                    if self.wrong:
                        break
            else:
                self.publish(self.random.randint(1, len(self.free)))
                self.wait(how)
        os.write(self.kick_fd, b"q")
        for line in self.wrong:
            print("wrong:", line)
        print(self.total, self.looks, self.kicks, self.sleeps)


if __name__ == "__main__":
    Observer(*map(int, sys.argv[1:5])).run(float(sys.argv[5]))
