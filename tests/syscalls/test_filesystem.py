from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import (
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    fstatfs,
    sync_file_range,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TMPFS, PROC = 0x01021994, 0x9FA0


def test_it_agrees_with_statvfs(folder: Path, opened: Callable[..., int]) -> None:
    (folder / "file").touch()
    (folder / "link").symlink_to("/proc")
    wanted = os.statvfs(folder)
    for name in ("file", "link", "."):
        found = fstatfs(opened(folder / name))
        assert (found.bsize, found.blocks, found.namelen) == (wanted.f_bsize, wanted.f_blocks, wanted.f_namemax)
        assert (found.files, found.fsid) == (wanted.f_files, wanted.f_fsid)
        assert abs(found.bfree - wanted.f_bfree) < found.blocks // 10
        assert abs(found.bavail - wanted.f_bavail) < found.blocks // 10
        assert abs(found.ffree - wanted.f_ffree) < found.files // 10


def test_the_type(opened: Callable[..., int]) -> None:
    assert fstatfs(opened("/proc/self/stat")).type == PROC
    assert fstatfs(opened("/dev/shm")).type == TMPFS


def test_statfs_errors() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        fstatfs(-1)


def test_sync_file_range(folder: Path, opened: Callable[..., int]) -> None:
    (folder / "file").write_bytes(bytes(100_000))
    fd = opened(folder / "file", os.O_RDWR)
    every = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    sync_file_range(fd, 4096, 50_000, every)
    sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE)
    for offset, nbytes, flags in ((0, 0, 1 << 10), (1 << 63, 0, every), (0, 1 << 63, every), ((1 << 63) - 1, 5, every)):
        with pytest.raises(OSError, match="Invalid argument"):
            sync_file_range(fd, offset, nbytes, flags)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_file_range(opened(folder / "file"), 0, 0, every)
