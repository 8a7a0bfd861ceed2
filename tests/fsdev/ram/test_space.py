from __future__ import annotations

import errno

import pytest

from pyvirtfs.fsdev.ram.space import PAGE, Space, pages_of


def test_pages() -> None:
    assert [pages_of(nbytes) for nbytes in (0, 1, PAGE, PAGE + 1)] == [0, 1, 1, 2]


def test_pages_run_out() -> None:
    space = Space(3 * PAGE, 2)
    space.take(2)
    with pytest.raises(OSError, match="No space left") as caught:
        space.take(2)
    assert caught.value.errno == errno.ENOSPC
    assert space.free == 1
    space.take(1)
    assert (space.pages, space.free) == (3, 0)


def test_names_run_out() -> None:
    space = Space(0, 2)
    space.take_name()
    space.take_name()
    with pytest.raises(OSError, match="No space left"):
        space.take_name()
    assert space.free_names == 0


def test_zero_means_no_limit() -> None:
    space = Space(0, 0)
    space.take(1 << 40)
    assert space.free == space.pages - (1 << 40) > 0
    assert space.pages * PAGE < 1 << 63
    assert space.names > 1 << 40
