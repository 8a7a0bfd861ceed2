from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def short_read(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.read(self, file, offset, buffers.slice(0, min(buffers.nbytes, 65536)))


def read_at_once(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    data = os.pread(file.fd, buffers.nbytes, offset)
    if data:
        buffers.views()[0][:] = data[: len(buffers.views()[0])]
    return len(data)


def read_past_the_end(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.read(self, file, offset, buffers) or min(buffers.nbytes, 1)


def read_pages(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.read(self, file, offset & ~4095 if offset > 4096 else offset, buffers)


def write_to_the_end(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.write(self, file, min(offset, os.fstat(file.fd).st_size), buffers)


def write_that_says_all(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    Good.write(self, file, offset, buffers.slice(0, min(buffers.nbytes, 4096)))
    return buffers.nbytes


def write_of_nothing_grows(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    if not buffers.nbytes:
        os.ftruncate(file.fd, max(offset, os.fstat(file.fd).st_size))
        return 0
    return Good.write(self, file, offset, buffers)


def write_wraps(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.write(self, file, offset & 0xFFFF_FFFF, buffers)


def write_crashes(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return os.pwritev(file.fd, buffers.views(), offset)


def write_of_no_pieces(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return 0 if len(buffers.views()) > 1024 else Good.write(self, file, offset, buffers)


def write_in_1024_pieces(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return os.pwritev(file.fd, buffers.views(), offset) if buffers.nbytes else 0


def close_of_all(self: Any, file: Any) -> None:
    for other in list(self._files):
        if other.entry is file.entry:
            Good.close_file(self, other)


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("what_is_written_can_be_read", "read", short_read, "the whole file in one read"),
        ("buffers_in_pieces", "read", read_at_once, "ValueError"),
        ("the_end_of_a_file", "read", read_past_the_end, "what is read at"),
        ("what_is_written_can_be_read", "read", read_pages, "bytes at"),
        ("holes", "write", write_to_the_end, "the size"),
        ("what_is_written_can_be_read", "write", write_that_says_all, "the size"),
        ("no_bytes", "write", write_of_nothing_grows, "after a call that failed"),
        ("offsets_that_no_file_has", "write", write_wraps, "but it succeeded"),
        ("offsets_that_no_file_has", "write", write_crashes, "OverflowError"),
        ("many_pieces", "write", write_in_1024_pieces, "saw EINVAL"),
        ("many_pieces", "write", write_of_no_pieces, "a write of 5000 bytes returned 0"),
        ("closed_files_do_not_disturb", "close_file", close_of_all, "saw EBADF"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"content.{check}", {method: fault})
