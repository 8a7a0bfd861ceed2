from __future__ import annotations

import pytest

from pyvirtfs.stream.chunks import CHUNK_NBYTES, Chunk, Pool


def test_two_sizes() -> None:
    pool = Pool(1 << 20)
    assert [pool.take(nbytes).nbytes for nbytes in (1, CHUNK_NBYTES, CHUNK_NBYTES + 1, 1 << 20)] == [
        CHUNK_NBYTES,
        CHUNK_NBYTES,
        1 << 20,
        1 << 20,
    ]
    with pytest.raises(ValueError, match="1048576 are the most"):
        pool.take((1 << 20) + 1)
    assert Pool(4096).take(4096).nbytes == CHUNK_NBYTES


def test_the_last_one_that_came_back_goes_out_first() -> None:
    pool = Pool(1 << 20)
    first, second = pool.take(1), pool.take(1)
    assert first is not second
    pool.give(first)
    pool.give(second)
    assert pool.take(1 << 20) not in {first, second}
    assert pool.take(1) is second
    assert pool.take(1) is first


def test_few_are_kept() -> None:
    pool = Pool(1 << 20)
    given = [pool.take(1) for _ in range(20)]
    for chunk in given:
        pool.give(chunk)
    again = [pool.take(1) for _ in range(20)]
    assert len(set(again) & set(given)) == 4


def test_a_chunk_is_memory() -> None:
    chunk = Chunk(10)
    chunk.view[3:5] = b"ab"
    assert (bytes(chunk.view), chunk.nbytes, chunk.users) == (b"\0\0\0ab\0\0\0\0\0", 10, 0)
