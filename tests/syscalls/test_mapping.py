from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

from pyvirtfs.syscalls import map_shared, memfd_create

PAGE = 4096


def mapped(name: str) -> int:
    """How many mappings of a memfd this process has."""
    return Path("/proc/self/maps").read_text().count(f"memfd:{name}")


def test_it_is_the_file_and_holds_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = memfd_create("shared-one", 4 * PAGE)
    view = map_shared(fd, 2 * PAGE, PAGE)
    assert (view.nbytes, view.format, view.readonly) == (2 * PAGE, "B", False)
    view[3] = 7
    assert os.pread(fd, 1, PAGE + 3) == b"\7"
    os.pwrite(fd, b"\11", PAGE + 4)
    os.close(fd)
    assert view[4] == 9
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_lives_as_long_as_a_view_of_it() -> None:
    fd = memfd_create("shared-two", PAGE)
    part = np.frombuffer(map_shared(fd, PAGE), np.uint8)[10:20]
    os.close(fd)
    gc.collect()
    assert mapped("shared-two") == 1
    part[0] = 1
    del part
    gc.collect()
    assert mapped("shared-two") == 0


def test_readonly() -> None:
    fd = memfd_create("shared-three", PAGE)
    view = map_shared(fd, PAGE, writable=False)
    os.close(fd)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


def test_what_mmap_refuses() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_shared(-1, PAGE)
    fd = memfd_create("shared-four", PAGE)
    with pytest.raises(OSError, match="Invalid argument"):
        map_shared(fd, PAGE, 1)
    os.close(fd)
