from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import MAX_HANDLE_SZ, FileHandle, name_to_handle_at, open_by_handle_at, statx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def mount(folder: Path, opened: Callable[..., int]) -> int:
    """The folder, if its file system has handles and we may open them."""
    fd = opened(folder, os.O_RDONLY)
    try:
        handle, _ = name_to_handle_at(fd)
        os.close(open_by_handle_at(fd, handle, os.O_PATH))
    except OSError as problem:
        if problem.errno == errno.EPERM:
            pytest.skip("needs CAP_DAC_READ_SEARCH")
        if problem.errno in {errno.EOPNOTSUPP, errno.ENOSYS}:
            pytest.skip("the file system has no handles")
        raise
    return fd


def test_a_handle_outlives_descriptors_and_names(folder: Path, mount: int) -> None:
    (folder / "file").write_bytes(b"content")
    descriptor = os.open(folder / "file", os.O_PATH)
    handle, mount_id = name_to_handle_at(descriptor)
    os.close(descriptor)
    assert (handle, mount_id) == name_to_handle_at(mount, b"file")
    assert mount_id == statx(mount).mnt_id
    assert 0 < len(handle.data) <= MAX_HANDLE_SZ
    assert len({handle, FileHandle(*handle)}) == 1
    (folder / "file").rename(folder / "other")
    fd = open_by_handle_at(mount, handle, os.O_RDONLY)
    assert os.read(fd, 10) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    (folder / "other").unlink()
    with pytest.raises(OSError, match="Stale file handle"):
        open_by_handle_at(mount, handle, os.O_RDONLY)


def test_symbolic_links_and_folders(folder: Path, mount: int, opened: Callable[..., int]) -> None:
    (folder / "link").symlink_to("nowhere")
    (folder / "folder").mkdir()
    for name in ("link", "folder"):
        handle, _ = name_to_handle_at(opened(folder / name))
        fd = open_by_handle_at(mount, handle, os.O_PATH | os.O_NOFOLLOW)
        assert os.fstat(fd).st_ino == os.lstat(folder / name).st_ino
        os.close(fd)


@pytest.mark.parametrize(
    "handle", [FileHandle(0, b""), FileHandle(1, b"x"), FileHandle(-5, bytes(128)), FileHandle(1, bytes(129))]
)
def test_what_is_no_handle(mount: int, handle: FileHandle) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|Stale file handle"):
        open_by_handle_at(mount, handle, os.O_PATH)


def test_errors(folder: Path, opened: Callable[..., int]) -> None:
    parent = opened(folder)
    with pytest.raises(FileNotFoundError):
        name_to_handle_at(parent, b"missing")
    with pytest.raises(OSError, match="Invalid argument"):
        name_to_handle_at(parent, b"a\0b")
    with pytest.raises(OSError, match="not supported"):
        name_to_handle_at(opened("/proc/self/stat"))
