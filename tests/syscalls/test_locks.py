from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import HeldLock, find_lock, try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def two(folder: Path, opened: Callable[..., int]) -> tuple[int, int]:
    """Two open file descriptions of one file."""
    (folder / "file").touch()
    return opened(folder / "file", os.O_RDWR), opened(folder / "file", os.O_RDWR)


def test_exclusive_against_all(two: tuple[int, int]) -> None:
    first, second = two
    assert try_lock(first, 10, 20, exclusive=True)
    assert not try_lock(second, 19, 30, exclusive=True)
    assert not try_lock(second, 0, None, exclusive=False)
    assert try_lock(second, 20, None, exclusive=True)
    assert try_lock(second, 0, 10, exclusive=True)
    assert find_lock(second, 0, None, exclusive=False) == HeldLock(True, 10, 20, -1)
    assert find_lock(first, 15, 30, exclusive=True) == HeldLock(True, 20, None, -1)
    unlock(first, 10, 15)
    assert find_lock(second, 0, None, exclusive=False) == HeldLock(True, 15, 20, -1)


def test_shared_with_shared(two: tuple[int, int]) -> None:
    first, second = two
    assert try_lock(first, 0, 100, exclusive=False)
    assert try_lock(second, 50, 150, exclusive=False)
    assert not try_lock(second, 50, 150, exclusive=True)
    assert find_lock(second, 0, 10, exclusive=False) is None
    assert find_lock(second, 0, 10, exclusive=True) == HeldLock(False, 0, 100, -1)
    unlock(first, 0, None)
    assert try_lock(second, 50, 150, exclusive=True)


def test_closing_another_descriptor_of_the_file_keeps_the_lock(two: tuple[int, int], folder: Path) -> None:
    """Which is what traditional locks get wrong."""
    first, second = two
    assert try_lock(first, 0, None, exclusive=True)
    os.close(os.open(folder / "file", os.O_RDWR))
    assert not try_lock(second, 0, None, exclusive=True)


def test_a_traditional_lock_of_another_process(two: tuple[int, int], folder: Path) -> None:
    code = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 5, 3)
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    child = [sys.executable, "-c", code, str(folder / "file")]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert not try_lock(two[0], 0, None, exclusive=True)
        assert find_lock(two[0], 0, None, exclusive=True) == HeldLock(True, 3, 8, pid)
        process.communicate("")
    assert try_lock(two[0], 0, None, exclusive=True)


def test_the_last_byte_that_a_file_can_have(two: tuple[int, int]) -> None:
    first, second = two
    last = (1 << 63) - 1
    assert try_lock(first, last, last + 1, exclusive=True)
    assert not try_lock(second, last, None, exclusive=True)
    assert try_lock(second, 0, last, exclusive=True)
    unlock(first, last, None)
    assert try_lock(second, last, None, exclusive=True)


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (10, 10, errno.EINVAL),
        (10, 5, errno.EINVAL),
        (-1, 5, errno.EINVAL),
        (1 << 63, None, errno.EOVERFLOW),
        ((1 << 64) - 1, None, errno.EOVERFLOW),
        (0, (1 << 63) + 1, errno.EOVERFLOW),
        (5, 1 << 64, errno.EOVERFLOW),
    ],
)
def test_ranges_that_cannot_be(two: tuple[int, int], start: int, end: int | None, wanted: int) -> None:
    for call in (
        lambda: try_lock(two[0], start, end, exclusive=True),
        lambda: unlock(two[0], start, end),
        lambda: find_lock(two[0], start, end, exclusive=True),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            call()
        assert caught.value.errno == wanted


def test_the_wrong_descriptor(two: tuple[int, int], folder: Path, opened: Callable[..., int]) -> None:
    reading = opened(folder / "file", os.O_RDONLY)
    assert try_lock(reading, 0, 1, exclusive=False)
    for fd in (reading, opened(folder / "file")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            try_lock(fd, 0, 1, exclusive=True)
    assert fcntl.F_OFD_SETLK == 37
