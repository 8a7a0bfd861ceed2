from __future__ import annotations

import errno
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.ram.content import MAX_SIZE, PIECE, Content
from pyvirtfs.fsdev.ram.space import PAGE, Space
from pyvirtfs.memory.buffers import ViewBuffers

OFFSETS = st.one_of(st.integers(0, 300), st.integers(PIECE - 5, PIECE + 5), st.integers(0, 4 * PIECE))


def read(content: Content, offset: int, nbytes: int, pieces: int = 1) -> bytes:
    data = bytearray(nbytes)
    views = (
        [memoryview(data)[at : at + pieces] for at in range(0, nbytes, pieces)] if pieces > 1 else [memoryview(data)]
    )
    return bytes(data[: content.read(offset, ViewBuffers(views))])


def write(content: Content, offset: int, data: bytes) -> int:
    return content.write(offset, ViewBuffers.of(data))


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), OFFSETS, st.integers(1, 2 * PIECE)),
            st.tuples(st.just("truncate"), OFFSETS, st.just(0)),
            st.tuples(st.just("read"), OFFSETS, st.integers(1, 3 * PIECE)),
        ),
        max_size=20,
    )
)
def test_it_holds_what_a_bytearray_would(steps: list[tuple[str, int, int]]) -> None:
    space = Space(0, 0)
    all_pages = space.free
    content, model = Content(space), bytearray()
    for number, (step, offset, nbytes) in enumerate(steps, 1):
        if step == "write":
            data = bytes([number]) * nbytes
            assert write(content, offset, data) == nbytes
            model.extend(bytes(max(offset + nbytes - len(model), 0)))
            model[offset : offset + nbytes] = data
        elif step == "truncate":
            content.truncate(offset)
            model.extend(bytes(max(offset - len(model), 0)))
            del model[offset:]
        else:
            assert read(content, offset, nbytes) == model[offset : offset + nbytes]
        assert content.size == len(model)
        assert space.free == all_pages - content.pages
        assert content.pages * PAGE <= len(model) + PAGE
    assert read(content, 0, len(model) + 1, pieces=1000) == model
    content.clear()
    assert (content.size, content.pages, space.free) == (0, 0, all_pages)


def test_a_sparse_file_takes_no_memory() -> None:
    content = Content(Space(PAGE, 0))
    tracemalloc.start()
    content.truncate(1 << 62)
    assert write(content, (1 << 62) - PIECE, b"x") == 1
    assert tracemalloc.get_traced_memory()[1] < 20_000
    tracemalloc.stop()
    assert content.size == 1 << 62
    assert content.pages == 1
    assert read(content, (1 << 62) - PIECE - 2, 5) == b"\0\0x\0\0"
    assert read(content, 1 << 61, 3 * PIECE) == bytes(3 * PIECE)
    content.truncate(0)
    assert content.pages == 0


def test_a_full_export_takes_what_it_can() -> None:
    space = Space(3 * PAGE, 0)
    content = Content(space)
    assert write(content, 100, b"x" * (5 * PAGE)) == 3 * PAGE - 100
    assert (content.size, space.free) == (3 * PAGE, 0)
    for offset in (3 * PAGE, PIECE, PIECE + 5 * PAGE):
        with pytest.raises(OSError, match="No space left") as caught:
            write(content, offset, b"x")
        assert caught.value.errno == errno.ENOSPC
    assert content.size == 3 * PAGE
    assert write(content, 0, b"y" * PAGE) == PAGE  # there is memory for that already
    content.truncate(PAGE)
    assert space.free == 2
    assert write(content, PIECE, b"z") == 1
    assert read(content, PAGE - 1, 3) == b"y\0\0"


def test_the_end_of_all_files() -> None:
    content = Content(Space(0, 0))
    assert write(content, MAX_SIZE - 2, b"abcdef") == 2
    assert content.size == MAX_SIZE
    for offset in (MAX_SIZE, 1 << 64):
        with pytest.raises(OSError, match="too large") as caught:
            write(content, offset, b"x")
        assert caught.value.errno == errno.EFBIG
    for size in (-1, MAX_SIZE + 1):
        with pytest.raises(OSError, match="too large"):
            content.truncate(size)
    assert content.size == MAX_SIZE


def test_nothing_is_written() -> None:
    content = Content(Space(0, 0))
    assert content.write(100, ViewBuffers([])) == 0
    assert content.size == 0
    assert content.read(0, ViewBuffers([])) == 0


def test_reading_makes_no_copy_of_its_own() -> None:
    content = Content(Space(0, 0))
    write(content, 0, b"x" * (1 << 20))
    buffers = ViewBuffers.of(bytearray(1 << 20))
    tracemalloc.start()
    assert content.read(0, buffers) == 1 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_384
