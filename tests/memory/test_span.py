"""One range of RAM as `Buffers`, against `ViewBuffers` of the same bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.memory import ViewBuffers
from pyvirtfs.memory.span import SpanBuffers

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 40), st.integers(0, 40), st.integers(-3, 50), st.integers(-3, 50))
def test_reads_and_slices_as_view_buffers(start: int, length: int, offset: int, nbytes: int) -> None:
    ram = memoryview(bytearray(range(80)))
    span, views = SpanBuffers.of(ram, start, length), ViewBuffers.of(ram[start : start + length])
    try:
        expected = views.read(offset, nbytes)
    except ValueError:
        with pytest.raises(ValueError, match="do not lie within"):
            span.read(offset, nbytes)
        with pytest.raises(ValueError, match="do not lie within"):
            span.slice(offset, nbytes)
        return
    assert span.read(offset, nbytes) == expected
    part = span.slice(offset, nbytes)
    assert part.nbytes == nbytes
    assert b"".join(part.views()) == expected


@given(st.integers(0, 20), st.integers(0, 20), st.integers(-3, 25), st.binary(max_size=25))
def test_writes_only_inside(start: int, length: int, offset: int, data: bytes) -> None:
    ram = bytearray(40)
    span = SpanBuffers.of(memoryview(ram), start, length)
    if 0 <= offset <= offset + len(data) <= length:
        span.write(offset, data)
        where = start + offset
        assert ram == bytes(where) + data + bytes(40 - where - len(data))
    else:
        with pytest.raises(ValueError, match="do not lie within"):
            span.write(offset, data)
        assert ram == bytes(40)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    ram = bytearray(16)
    fd = os.open(path, os.O_RDWR)
    try:
        assert SpanBuffers.of(memoryview(ram), 4, 8).preadv(fd, 5) == 5
        assert ram == b"\0\0\0\x0056789\0\0\0\0\0\0\0"
        assert SpanBuffers.of(memoryview(ram), 4, 2).pwritev(fd, 0) == 2
        assert SpanBuffers.of(memoryview(ram), 4, 0).pwritev(fd, 0) == 0
    finally:
        os.close(fd)
    assert path.read_bytes() == b"5623456789"
    assert repr(SpanBuffers.of(memoryview(ram), 4, 2)) == "<SpanBuffers 2 bytes>"
