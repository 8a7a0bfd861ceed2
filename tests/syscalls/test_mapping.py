from __future__ import annotations

import gc
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pyvirtfs.syscalls import map_shared, mapping, memfd_create

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


def test_huge_pages_are_mapped_in_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """(An ordinary file that is taken for one on huge pages; its own mappings may have any length.)"""
    fd = memfd_create("shared-five", 16 * PAGE)
    os.pwrite(fd, b"here", 6 * PAGE)
    monkeypatch.setattr(mapping, "is_on_huge_pages", lambda _: True)
    monkeypatch.setattr(os, "fstat", lambda _: SimpleNamespace(st_blksize=4 * PAGE))
    view = map_shared(fd, 3 * PAGE, 6 * PAGE)
    monkeypatch.undo()
    os.close(fd)
    assert (bytes(view[:4]), view.nbytes) == (b"here", 3 * PAGE)
    begin, end = (int(word, 16) for word in line_of("shared-five").split()[0].split("-"))
    assert end - begin == 8 * PAGE  # offsets 4 to 12 pages
    del view
    gc.collect()
    assert mapped("shared-five") == 0


def line_of(name: str) -> str:
    """The line of /proc/self/maps for a memfd."""
    return next(line for line in Path("/proc/self/maps").read_text().splitlines() if f"memfd:{name}" in line)


def test_real_huge_pages() -> None:
    nbytes = 2 << 20
    fd = os.memfd_create("shared-six", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, 2 * nbytes)
    assert mapping.is_on_huge_pages(fd)
    try:
        view = map_shared(fd, PAGE, nbytes + PAGE)
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no huge pages are reserved on this machine (vm.nr_hugepages): {error.strerror}")
    other = map_shared(fd, nbytes, nbytes)
    os.close(fd)
    view[:5] = b"Hello"
    assert (view.nbytes, bytes(other[PAGE : PAGE + 5])) == (PAGE, b"Hello")
    del view, other
    gc.collect()
    assert mapped("shared-six") == 0
