from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import KEEP_ID, NOW, change, chmod_descriptor, fchownat, have_fchmodat2, utimens_descriptor
from pyvirtfs.syscalls._linux import ffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tree(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("file")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture(params=["fchmodat2", "/proc"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "/proc":
        monkeypatch.setattr(change, "have_fchmodat2", lambda: False)
    elif not have_fchmodat2():
        pytest.skip("needs Linux 6.6")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", ["file", "folder", "fifo"])
@pytest.mark.parametrize("flags", [os.O_PATH, os.O_RDONLY | os.O_NONBLOCK])
def test_chmod(tree: Path, opened: Callable[..., int], name: str, flags: int) -> None:
    handle = opened(tree / name, flags)
    for mode in (0o7777, 0, 0o1640):
        chmod_descriptor(handle, mode)
        assert stat.S_IMODE((tree / name).stat().st_mode) == mode


@pytest.mark.usefixtures("either")
def test_chmod_errors(tree: Path, opened: Callable[..., int]) -> None:
    with pytest.raises(OSError, match="not supported"):
        chmod_descriptor(opened(tree / "link"), 0o600)
    with pytest.raises(OSError, match=r"."):
        chmod_descriptor(-1, 0o600)
    assert stat.S_IMODE((tree / "file").stat().st_mode) != 0o600


@pytest.mark.parametrize("name", ["file", "folder", "fifo", "link"])
def test_chown(tree: Path, opened: Callable[..., int], name: str, capabilities: set[str]) -> None:
    if "CAP_CHOWN" not in capabilities:
        pytest.skip("needs CAP_CHOWN")
    handle, parent = opened(tree / name), opened(tree)
    for uid, gid, wanted in (
        (12, 34, (12, 34)),
        (KEEP_ID, 56, (12, 56)),
        (78, KEEP_ID, (78, 56)),
        (KEEP_ID, KEEP_ID, (78, 56)),
        (0xFFFFFFFE, 0, (0xFFFFFFFE, 0)),
    ):
        fchownat(handle, b"", uid, gid)
        found = os.lstat(tree / name)
        assert (found.st_uid, found.st_gid) == wanted
    fchownat(parent, name.encode(), 1, 2)
    assert os.lstat(tree / name).st_uid == 1
    if name == "link":
        assert (tree / "file").stat().st_uid == os.geteuid()


def test_chown_errors(tree: Path, opened: Callable[..., int]) -> None:
    parent = opened(tree)
    with pytest.raises(FileNotFoundError):
        fchownat(parent, b"missing", 0, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        fchownat(parent, b"file\0", 0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fchownat(-1, b"", 0, 0)


@pytest.fixture(params=["AT_EMPTY_PATH", "/proc"])
def old_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.8 utimensat knew no AT_EMPTY_PATH."""
    real = change._utimensat

    def refuses(fd: int, path: bytes, times: object, flags: int) -> int:
        if flags:
            ffi.errno = errno.EINVAL
            return -1
        return int(real(fd, path, times, flags))

    if request.param == "/proc":
        monkeypatch.setattr(change, "_utimensat", refuses)


@pytest.mark.usefixtures("old_kernel")
@pytest.mark.parametrize("name", ["file", "folder", "fifo", "link"])
def test_utimens(tree: Path, opened: Callable[..., int], name: str) -> None:
    handle = opened(tree / name)
    utimens_descriptor(handle, 1_000_000_007, 2_000_000_000_000_000_009)
    found = os.lstat(tree / name)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, 2_000_000_000_000_000_009)
    utimens_descriptor(handle, None, -1)
    found = os.lstat(tree / name)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, -1)
    before = time.time_ns()
    utimens_descriptor(handle, NOW, None)
    found = os.lstat(tree / name)
    assert abs(found.st_atime_ns - before) < 10**9
    assert found.st_mtime_ns == -1
    utimens_descriptor(handle, None, None)
    assert os.lstat(tree / name).st_mtime_ns == -1


@pytest.mark.parametrize("nanoseconds", [1 << 100, -(1 << 100), (1 << 63) * 10**9])
def test_times_that_time_t_cannot_hold(tree: Path, opened: Callable[..., int], nanoseconds: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        utimens_descriptor(opened(tree / "file"), nanoseconds, None)


@pytest.mark.usefixtures("old_kernel")
def test_utimens_errors() -> None:
    with pytest.raises(OSError, match=r"."):
        utimens_descriptor(-1, NOW, NOW)
