"""One range of RAM, and two, as `Buffers`: against `ViewBuffers` of the same bytes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.memory import ViewBuffers
from pyvirtfs.memory.span import HeadedBuffers, SpanBuffers

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


def test_offsets_that_no_file_has(tmp_path: Path) -> None:
    span = SpanBuffers.of(memoryview(bytearray(16)), 4, 8)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        with pytest.raises(OSError, match="offset") as found:
            span.preadv(fd, 1 << 63)
        assert found.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="offset") as found:
            span.pwritev(fd, 1 << 63)
        assert found.value.errno == errno.EFBIG
    finally:
        os.close(fd)


def test_a_short_read_is_followed_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """preadv(2) may return less than there is; only the end of the file ends a read."""
    real = os.preadv
    monkeypatch.setattr("pyvirtfs.memory.span._os_preadv", lambda fd, views, offset: real(fd, [views[0][:3]], offset))
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    ram = bytearray(16)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert SpanBuffers.of(memoryview(ram), 4, 8).preadv(fd, 0) == 8
        assert ram == b"\0\0\0\x0001234567\0\0\0\0"
        assert SpanBuffers.of(memoryview(ram), 4, 8).preadv(fd, 4) == 6
        assert SpanBuffers.of(memoryview(ram), 4, 8).preadv(fd, 10) == 0
    finally:
        os.close(fd)


HEAD, BODY = 50, 10  # the payload lies before its head


def headed(ram: bytearray, head: int, body: int) -> tuple[HeadedBuffers, ViewBuffers]:
    view = memoryview(ram)
    return (
        HeadedBuffers.of(view, HEAD, head, BODY, body),
        ViewBuffers([view[HEAD : HEAD + head], view[BODY : BODY + body]]),
    )


@given(st.integers(1, 20), st.integers(1, 20), st.integers(-3, 45), st.integers(-3, 45))
def test_a_head_and_a_payload_read_and_slice_as_view_buffers(head: int, body: int, offset: int, nbytes: int) -> None:
    found, views = headed(bytearray(range(80)), head, body)
    assert found.nbytes == head + body
    try:
        expected = views.read(offset, nbytes)
    except ValueError:
        with pytest.raises(ValueError, match="do not lie within"):
            found.read(offset, nbytes)
        with pytest.raises(ValueError, match="do not lie within"):
            found.slice(offset, nbytes)
        return
    assert found.read(offset, nbytes) == expected
    part = found.slice(offset, nbytes)
    assert part.nbytes == nbytes
    assert b"".join(part.views()) == expected


@given(st.integers(1, 20), st.integers(1, 20), st.integers(-3, 45), st.binary(max_size=45))
def test_a_head_and_a_payload_write_as_view_buffers(head: int, body: int, offset: int, data: bytes) -> None:
    ram, other = bytearray(80), bytearray(80)
    found, _ = headed(ram, head, body)
    _, views = headed(other, head, body)
    try:
        views.write(offset, data)
    except ValueError:
        with pytest.raises(ValueError, match="do not lie within"):
            found.write(offset, data)
    else:
        found.write(offset, data)
    assert ram == other


def test_a_head_and_a_payload_with_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    ram = bytearray(80)
    found, views = headed(ram, 3, 4)
    fd = os.open(path, os.O_RDWR)
    try:
        assert found.preadv(fd, 2) == 7
        assert b"".join(views.views()) == b"2345678"
        assert found.pwritev(fd, 10) == 7
    finally:
        os.close(fd)
    assert path.read_bytes() == b"01234567892345678"
    assert repr(found) == "<HeadedBuffers 7 bytes, a head of 3>"
