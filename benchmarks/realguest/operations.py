"""What the guest does with a mount, and measures; runs in the guest, whose Python has the standard library's core only.

`main` prints the nanoseconds of the operation itself, without what prepares it and tidies up.
"""

import os
import random
import time
from collections.abc import Callable

BLOCK = 1 << 20
SMALL = 4096


def sequential_read(folder: str) -> int:
    """Read `large` from its beginning to its end, 1 MiB at a time."""
    descriptor = os.open(f"{folder}/large", os.O_RDONLY)
    block = bytearray(BLOCK)
    begin = time.monotonic_ns()
    while os.readv(descriptor, [block]):
        pass
    took = time.monotonic_ns() - begin
    os.close(descriptor)
    return took


def sequential_write(folder: str) -> int:
    """Write as much as `large` has to a new file, 1 MiB at a time, and wait until the host has it."""
    count = os.stat(f"{folder}/large").st_size // BLOCK
    block = os.urandom(BLOCK)
    descriptor = os.open(f"{folder}/written", os.O_WRONLY | os.O_CREAT)
    begin = time.monotonic_ns()
    for _ in range(count):
        os.write(descriptor, block)
    os.fsync(descriptor)
    took = time.monotonic_ns() - begin
    os.close(descriptor)
    os.unlink(f"{folder}/written")
    return took


def random_read(folder: str) -> int:
    """Read 2000 blocks of 4 KiB at random places of `large`."""
    descriptor = os.open(f"{folder}/large", os.O_RDONLY)
    blocks = os.fstat(descriptor).st_size // SMALL
    chosen = [SMALL * block for block in random.Random(1).choices(range(blocks), k=2000)]
    begin = time.monotonic_ns()
    for offset in chosen:
        os.pread(descriptor, SMALL, offset)
    took = time.monotonic_ns() - begin
    os.close(descriptor)
    return took


def stat_files(folder: str) -> int:
    """Ask for the attributes of 2000 files."""
    paths = [f"{folder}/many/{number:05d}" for number in range(2000)]
    begin = time.monotonic_ns()
    for path in paths:
        os.stat(path)
    return time.monotonic_ns() - begin


def list_folder(folder: str) -> int:
    """List a folder of 10000 entries."""
    begin = time.monotonic_ns()
    found = os.listdir(f"{folder}/many")
    took = time.monotonic_ns() - begin
    if len(found) != 10000:
        raise RuntimeError(f"{len(found)} entries")
    return took


def create_and_delete(folder: str) -> int:
    """Create 1000 empty files, and delete them."""
    paths = [f"{folder}/empty/{number:05d}" for number in range(1000)]
    begin = time.monotonic_ns()
    for path in paths:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    for path in paths:
        os.unlink(path)
    return time.monotonic_ns() - begin


OPERATIONS: dict[str, tuple[str, Callable[[str], int]]] = {
    "sequential read": ("loose", sequential_read),
    "sequential write": ("loose", sequential_write),
    "sequential read, cache=none": ("none", sequential_read),
    "2000 random reads of 4 KiB": ("none", random_read),
    "stat of 2000 files": ("none", stat_files),
    "list 10000 entries": ("none", list_folder),
    "create and delete 1000 files": ("none", create_and_delete),
}
"""By name: the cache mode of the mount, which is fresh for each run, and the function."""


def main(name: str, folder: str) -> None:
    """Run one operation on the mount at `folder`."""
    print(OPERATIONS[name][1](folder))
