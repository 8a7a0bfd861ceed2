from __future__ import annotations

import gc
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.fsdev.driver import Attributes
from pyvirtfs.syscalls import (
    FIELDS,
    STATX_ATTR_MOUNT_ROOT,
    STATX_BASIC_STATS,
    STATX_BTIME,
    STATX_MNT_ID,
    attribute_reader,
    buffer_reader,
    statx,
)
from pyvirtfs.syscalls.statx import FIELDS_OFFSET, FIELDS_STRUCT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def agree(fields: tuple[int, ...], wanted: os.stat_result) -> None:
    found = dict(zip(FIELDS, fields, strict=True))
    assert found.pop("btime_sec") > 0
    assert 0 <= found.pop("btime_nsec") < 10**9
    assert found == {
        "nlink": wanted.st_nlink,
        "uid": wanted.st_uid,
        "gid": wanted.st_gid,
        "mode": wanted.st_mode,
        "ino": wanted.st_ino,
        "size": wanted.st_size,
        "blocks": wanted.st_blocks,
        "atime_sec": wanted.st_atime_ns // 10**9,
        "atime_nsec": wanted.st_atime_ns % 10**9,
        "ctime_sec": wanted.st_ctime_ns // 10**9,
        "ctime_nsec": wanted.st_ctime_ns % 10**9,
        "mtime_sec": wanted.st_mtime_ns // 10**9,
        "mtime_nsec": wanted.st_mtime_ns % 10**9,
        "rdev_major": os.major(wanted.st_rdev),
        "rdev_minor": os.minor(wanted.st_rdev),
        "dev_major": os.major(wanted.st_dev),
        "dev_minor": os.minor(wanted.st_dev),
    }


@pytest.fixture
def tree(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x" * 12345)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    os.link(folder / "file", folder / "second")
    os.utime(folder / "file", ns=(-1_500_000_000, 4_000_000_000 * 10**9 + 123456789))
    return folder


def test_buffer_reader(tree: Path, opened: Callable[..., int]) -> None:
    read, buffer = buffer_reader()
    read(opened(tree / "file"))
    agree(FIELDS_STRUCT.unpack_from(buffer, FIELDS_OFFSET), os.lstat(tree / "file"))
    read(opened(tree), b"link")
    del read
    gc.collect()
    agree(FIELDS_STRUCT.unpack_from(buffer, FIELDS_OFFSET), os.lstat(tree / "link"))
    read, buffer = buffer_reader()
    del buffer
    gc.collect()
    with pytest.raises(FileNotFoundError):
        read(opened(tree), b"missing")


def test_fields_are_those_of_attributes() -> None:
    assert Attributes._fields == FIELDS


@pytest.mark.parametrize("name", ["file", "folder", "link", "fifo", "second"])
def test_every_field(tree: Path, opened: Callable[..., int], name: str) -> None:
    read = attribute_reader()
    handle, parent = opened(tree / name), opened(tree)
    wanted = os.lstat(tree / name)
    agree(read(handle), wanted)
    agree(read(parent, name.encode()), wanted)
    agree(statx(handle).fields, wanted)
    agree(statx(parent, name.encode()).fields, wanted)


def test_a_device(opened: Callable[..., int]) -> None:
    found = Attributes._make(attribute_reader()(opened("/dev/null")))
    assert (found.rdev_major, found.rdev_minor) == (1, 3)
    assert stat.S_ISCHR(found.mode)


def test_unlinked(tree: Path, opened: Callable[..., int]) -> None:
    handle = opened(tree / "fifo")
    (tree / "fifo").unlink()
    assert Attributes._make(attribute_reader()(handle)).nlink == 0


def test_errors(tree: Path, opened: Callable[..., int]) -> None:
    parent = opened(tree)
    read = attribute_reader()
    for call in (read, statx):
        with pytest.raises(FileNotFoundError):
            call(parent, b"missing")
        with pytest.raises(NotADirectoryError):
            call(parent, b"file/x")
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(-1)
    with pytest.raises(OSError, match="Invalid argument"):
        statx(parent, b"fi\0le")


def test_the_complete_form(tree: Path, opened: Callable[..., int]) -> None:
    found = statx(opened(tree / "file"))
    wanted = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID
    assert found.mask & wanted == wanted
    assert found.blksize == (tree / "file").stat().st_blksize
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        assert found.mnt_id in {int(line.split()[0]) for line in mounts}
    assert found.attributes_mask & STATX_ATTR_MOUNT_ROOT
    assert not found.attributes & STATX_ATTR_MOUNT_ROOT
    assert statx(opened("/proc")).attributes & STATX_ATTR_MOUNT_ROOT


def test_readers_do_not_disturb_each_other(tree: Path, opened: Callable[..., int]) -> None:
    """The call releases the GIL: a buffer that two threads shared would be overwritten before it is read."""
    names = ["file", "folder", "link", "fifo"]
    problems: list[str] = []

    def work(handle: int, inode: int) -> None:
        read = attribute_reader()
        problems.extend("mixed up" for _ in range(2000) if read(handle)[4] != inode)

    workers = [
        threading.Thread(target=work, args=(opened(tree / name), os.lstat(tree / name).st_ino)) for name in names
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems
