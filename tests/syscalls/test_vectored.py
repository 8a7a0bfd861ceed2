from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from pyvirtfs.syscalls import preadv, pwritev, vectored
from pyvirtfs.syscalls._linux import ffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def file(folder: Path, opened: Callable[..., int]) -> int:
    (folder / "file").write_bytes(b"0123456789")
    return opened(folder / "file", os.O_RDWR)


def ranges(ram: npt.NDArray[np.uint8], *cuts: tuple[int, int]) -> npt.NDArray[np.uint64]:
    return np.array([(ram.ctypes.data + start, nbytes) for start, nbytes in cuts], np.uint64)


def test_both_ways(file: int) -> None:
    ram = np.zeros(64, np.uint8)
    iovec = ranges(ram, (40, 3), (0, 0), (8, 4))
    assert preadv(file, iovec, 1) == 7
    assert ram[40:43].tobytes() == b"123"
    assert ram[8:12].tobytes() == b"4567"
    assert preadv(file, iovec, 8) == 2
    assert preadv(file, iovec, 10) == 0
    ram[:] = ord("x")
    assert pwritev(file, iovec, 20) == 7
    assert os.pread(file, 100, 0) == b"0123456789" + bytes(10) + b"xxxxxxx"


def test_rows_of_a_longer_array(file: int) -> None:
    ram = np.zeros(64, np.uint8)
    iovec = ranges(ram, (0, 1), (10, 2), (20, 3), (30, 4))
    assert preadv(file, iovec[1:3], 0) == 5
    assert ram[10:12].tobytes() + ram[20:23].tobytes() == b"01234"
    with pytest.raises(ValueError, match="contiguous"):
        preadv(file, iovec[::2], 0)


@pytest.mark.parametrize(("call", "wanted"), [(preadv, errno.EINVAL), (pwritev, errno.EFBIG)])
def test_offsets_that_off_t_cannot_hold(file: int, call: Callable[..., int], wanted: int) -> None:
    iovec = ranges(np.zeros(8, np.uint8), (0, 8))
    for offset in (1 << 63, (1 << 64) - 1):
        with pytest.raises(OSError, match=r".") as caught:
            call(file, iovec, offset)
        assert caught.value.errno == wanted


@pytest.mark.parametrize("call", [preadv, pwritev])
def test_errors(file: int, call: Callable[..., int]) -> None:
    ram = np.zeros(8, np.uint8)
    for iovec, offset, fd, wanted in (
        (np.array([(8, 8)], np.uint64), 0, file, errno.EFAULT),
        (np.array([(1 << 63, 8)], np.uint64), 0, file, errno.EFAULT),
        (ranges(ram, (0, 1 << 63)), 0, file, errno.EINVAL),
        (np.repeat(ranges(ram, (0, 1)), 1025, axis=0), 0, file, errno.EINVAL),
        (ranges(ram, (0, 8)), 0, -1, errno.EBADF),
    ):
        with pytest.raises(OSError, match=r".") as caught:
            call(fd, iovec, offset)
        assert caught.value.errno == wanted


@pytest.mark.parametrize("name", ["preadv", "pwritev"])
def test_a_signal_does_not_interrupt_it(file: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real: Any = getattr(vectored, f"_{name}")
    answers = [errno.EINTR, errno.EINTR]

    def interrupted(*arguments: object) -> int:
        if answers:
            ffi.errno = answers.pop()
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(vectored, f"_{name}", interrupted)
    assert getattr(vectored, name)(file, ranges(np.zeros(8, np.uint8), (0, 8)), 0) == 8
    assert not answers
