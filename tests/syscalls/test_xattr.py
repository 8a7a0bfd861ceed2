from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import get_xattr, list_xattr, remove_xattr, set_xattr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def handle(folder: Path, opened: Callable[..., int]) -> int:
    (folder / "file").touch()
    fd = opened(folder / "file")
    try:
        set_xattr(fd, b"user.probe", b"")
    except OSError as problem:
        if problem.errno == errno.EOPNOTSUPP:
            pytest.skip("the file system has no user attributes (tmpfs: Linux 6.6)")
        raise
    remove_xattr(fd, b"user.probe")
    return fd


def test_an_attribute(handle: int, folder: Path) -> None:
    set_xattr(handle, b"user.a", b"some\0value")
    assert os.getxattr(folder / "file", "user.a") == get_xattr(handle, b"user.a") == b"some\0value"
    set_xattr(handle, b"user.a", b"", os.XATTR_REPLACE)
    assert get_xattr(handle, b"user.a") == b""
    with pytest.raises(FileExistsError):
        set_xattr(handle, b"user.a", b"x", os.XATTR_CREATE)
    remove_xattr(handle, b"user.a")
    for call in (
        lambda: get_xattr(handle, b"user.a"),
        lambda: remove_xattr(handle, b"user.a"),
        lambda: set_xattr(handle, b"user.a", b"x", os.XATTR_REPLACE),
    ):
        with pytest.raises(OSError, match="No data available"):
            call()


def test_long_values(handle: int) -> None:
    value = os.urandom(2000)
    set_xattr(handle, b"user.long", value)
    assert get_xattr(handle, b"user.long") == value
    with pytest.raises(OSError, match=r"Argument list too long|Numerical result"):
        set_xattr(handle, b"user.longer", bytes(65537))


def test_names_are_bytes(handle: int) -> None:
    assert list_xattr(handle) == b""
    names = [b"user.a", b"user.not \xff utf-8", *[b"user.%03d" % number + b"x" * 60 for number in range(30)]]
    for name in names:
        set_xattr(handle, name, b"v")
    listed = list_xattr(handle)
    assert len(listed) > 1024
    assert sorted(listed.split(b"\0")) == sorted([b"", *names])


@pytest.mark.parametrize("name", [b"user.a\0b", b"", b"user." + b"x" * 251, b"nosuch.space"])
def test_bad_names(handle: int, name: bytes) -> None:
    for call in (get_xattr, remove_xattr, lambda fd, name: set_xattr(fd, name, b"")):
        with pytest.raises(OSError, match=r".") as caught:
            call(handle, name)
        assert caught.value.errno in {errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP}


def test_folders_and_unlinked_files(handle: int, folder: Path, opened: Callable[..., int]) -> None:
    (folder / "folder").mkdir()
    inner = opened(folder / "folder")
    set_xattr(inner, b"user.a", b"folder")
    assert get_xattr(inner, b"user.a") == b"folder"
    (folder / "file").unlink()
    set_xattr(handle, b"user.a", b"unlinked")
    assert get_xattr(handle, b"user.a") == b"unlinked"


def test_a_symbolic_link_stands_for_itself(
    handle: int, folder: Path, opened: Callable[..., int], capabilities: set[str]
) -> None:
    set_xattr(handle, b"user.a", b"of the file")
    (folder / "link").symlink_to("file")
    link = opened(folder / "link")
    assert b"user.a" not in list_xattr(link)
    with pytest.raises(OSError, match=r".") as caught:
        get_xattr(link, b"user.a")
    assert caught.value.errno in {errno.ENODATA, errno.EPERM}
    with pytest.raises(PermissionError):
        set_xattr(link, b"user.b", b"x")
    if "CAP_SYS_ADMIN" in capabilities:
        set_xattr(link, b"trusted.a", b"of the link")
        assert get_xattr(link, b"trusted.a") == b"of the link"
        assert list_xattr(link) == b"trusted.a\0"
        assert b"trusted.a" not in list_xattr(handle)
    assert get_xattr(handle, b"user.a") == b"of the file"


def test_no_attributes_there(opened: Callable[..., int]) -> None:
    with pytest.raises(OSError, match=r"not supported|No data"):
        get_xattr(opened("/proc/self/stat"), b"user.a")
