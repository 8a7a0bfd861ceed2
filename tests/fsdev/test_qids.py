from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.qids import FOREIGN, QidPaths

OBJECTS = st.tuples(st.integers(0, 5), st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, 1 << 48, FOREIGN]))


@given(st.lists(OBJECTS), st.integers(0, 3))
def test_unique_and_stable(objects: list[tuple[int, int]], prefixes: int) -> None:
    paths = QidPaths(0, prefixes=prefixes)
    first = {key: paths.path(*key) for key in objects}
    assert len(set(first.values())) == len(first)
    assert {key: paths.path(*key) for key in objects} == first
    assert all(0 <= path < 1 << 64 for path in first.values())
    for (device, inode), path in first.items():
        if device == 0 and inode < FOREIGN:
            assert path == inode


def test_forbid() -> None:
    paths = QidPaths(7, "forbid")
    assert paths.path(7, 5) == 5
    assert paths.path(7, FOREIGN | 5) != 5
    with pytest.raises(OSError, match="No such device") as caught:
        paths.path(8, 5)
    assert caught.value.errno == errno.ENODEV


def test_each_place_that_is_forbidden_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = QidPaths(7, "forbid")
    folder = tmp_path / "mounted\nhere"
    folder.mkdir()
    fd = os.open(folder, os.O_PATH)
    try:
        for inode in (*range(30), *range(30)):
            with pytest.raises(OSError, match="No such device"):
                paths.path(8, inode, fd)
            with pytest.raises(OSError, match="No such device"):
                paths.path(8, inode)
    finally:
        os.close(fd)
    told = f"{str(folder)!r} lies on another file system, and is refused by multidevs=forbid"
    assert "\n" not in told
    assert [record.message for record in caplog.records] == [told] * 15 + [f"{told}, as are others from now on"]
    with pytest.raises(OSError, match="No such device"):
        QidPaths(7, "forbid").path(8, 5, -1)
    assert len(caplog.records) == 16


def test_what_has_no_path_is_told_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="No such device"):
        QidPaths(7, "forbid").path(8, 5, 1 << 30)
    (record,) = caplog.records
    assert record.message == "a folder lies on another file system, and is refused by multidevs=forbid"


def test_one_prefix_serves_a_whole_device() -> None:
    paths = QidPaths(0)
    for inode in range(1000):
        paths.path(1, inode)
    assert len(paths._prefixes) == 1
    assert not paths._singles


def test_exhausted_tables() -> None:  # H089
    paths = QidPaths(0, prefixes=0x7FFF, singles=100)
    seen = {paths.path(device, 1) for device in range(1, 0x7FFF + 101)}
    assert len(seen) == 0x7FFF + 100
    with pytest.raises(OSError, match="file") as caught:
        paths.path(1 << 20, 1)
    assert caught.value.errno == errno.ENFILE
    assert paths.path(1, 2) not in seen
    assert paths.path(0x7FFF + 1, 1) in seen


def test_warn(caplog: pytest.LogCaptureFixture) -> None:
    paths = QidPaths(7, "warn")
    numbers = {paths.path(device, inode) for device in (7, 8, 9) for inode in (5, 6, 5 | 1 << 50)}
    assert len(numbers) == 9  # within the driver every object is one of its own
    assert paths.shown(paths.path(8, 5), 5) == paths.shown(paths.path(7, 5), 5) == 5
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "multidevs=warn" in record.message
