from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.syscalls import (
    AT_FDCWD,
    RESOLVE_BENEATH,
    RESOLVE_CACHED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    descriptor_path,
    openat,
    openat2,
    reopen,
)
from pyvirtfs.syscalls._linux import ffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def root(folder: Path, opened: Callable[..., int]) -> int:
    (folder / "export/deep").mkdir(parents=True)
    (folder / "export/deep/file").write_bytes(b"inside")
    (folder / "file").write_bytes(b"outside")
    (folder / "export/up").symlink_to("../file")
    (folder / "export/absolute").symlink_to("/deep/file")
    (folder / "export/inside").symlink_to("deep/file")
    return opened(folder / "export", os.O_RDONLY | os.O_DIRECTORY)


def content(dirfd: int, path: bytes, **confined: int) -> bytes:
    fd = openat2(dirfd, path, os.O_RDONLY, **confined)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"deep/file", b"inside", b"deep/../deep/file"])
def test_below(root: int, path: bytes) -> None:
    assert content(root, path) == content(root, path, resolve=RESOLVE_BENEATH) == b"inside"


@pytest.mark.parametrize(
    ("path", "resolve", "wanted"),
    [
        (b"../file", RESOLVE_BENEATH, errno.EXDEV),
        (b"deep/../../file", RESOLVE_BENEATH, errno.EXDEV),
        (b"up", RESOLVE_BENEATH, errno.EXDEV),
        (b"/etc/passwd", RESOLVE_BENEATH, errno.EXDEV),
        (b"inside", RESOLVE_NO_SYMLINKS, errno.ELOOP),
        (b"/proc/self/root", RESOLVE_NO_MAGICLINKS, errno.ELOOP),
        (b"/proc/self", RESOLVE_NO_XDEV, errno.EXDEV),
        (b"missing", 0, errno.ENOENT),
        (b"deep/file/more", 0, errno.ENOTDIR),
        (b"", 0, errno.ENOENT),
        (b"deep\0", 0, errno.EINVAL),
        (b"deep", 1 << 40, errno.EINVAL),
        (b"x" * 256, 0, errno.ENAMETOOLONG),
    ],
)
def test_refused(root: int, path: bytes, resolve: int, wanted: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        openat2(root, path, os.O_RDONLY, resolve=resolve)
    assert caught.value.errno == wanted
    assert caught.value.filename == path


def test_in_root(root: int) -> None:
    assert content(root, b"absolute", resolve=RESOLVE_IN_ROOT) == b"inside"
    assert content(root, b"../../deep/file", resolve=RESOLVE_IN_ROOT) == b"inside"
    assert content(root, b"up") == b"outside"


def test_it_creates_with_the_mode_and_close_on_exec(root: int, folder: Path) -> None:
    fd = openat2(root, b"new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode=0o600, resolve=RESOLVE_BENEATH)
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert stat.S_IMODE((folder / "export/new").stat().st_mode) == 0o600


def test_a_mode_without_creation_is_refused(root: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        openat2(root, b"deep", os.O_RDONLY, mode=0o600)


@pytest.mark.parametrize(("failures", "succeeds"), [(3, True), (10_000, False)])
def test_eagain_is_tried_again_but_not_for_ever(
    root: int, monkeypatch: pytest.MonkeyPatch, failures: int, succeeds: bool
) -> None:
    """The kernel answers EAGAIN if a rename elsewhere interfered with its proof that a path stays beneath."""
    real: Any = openat._openat2
    calls = 0

    def flaky(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls <= failures:
            ffi.errno = errno.EAGAIN
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(openat, "_openat2", flaky)
    if succeeds:
        os.close(openat2(root, b"deep", os.O_PATH, resolve=RESOLVE_BENEATH))
        assert calls == failures + 1
    else:
        with pytest.raises(BlockingIOError):
            openat2(root, b"deep", os.O_PATH, resolve=RESOLVE_BENEATH)
        assert calls < 1000
        calls = 0
        with pytest.raises(BlockingIOError):
            openat2(root, b"deep", os.O_PATH, resolve=RESOLVE_CACHED)
        assert calls == 1


def test_a_signal_does_not_interrupt_it(root: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = openat._openat2
    answers = [errno.EINTR, errno.EINTR]

    def interrupted(*arguments: object) -> int:
        if answers:
            ffi.errno = answers.pop()
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(openat, "_openat2", interrupted)
    os.close(openat2(root, b"deep", os.O_PATH))
    assert not answers


def test_reopen(root: int, folder: Path, opened: Callable[..., int]) -> None:
    handle = opened(folder / "export/deep/file")
    fd = reopen(handle, os.O_RDWR | os.O_NOFOLLOW)
    os.write(fd, b"INSIDE")
    os.close(fd)
    assert content(root, b"deep/file") == b"INSIDE"
    (folder / "export/deep/file").unlink()
    fd = reopen(handle, os.O_RDONLY)
    assert os.read(fd, 10) == b"INSIDE"
    os.close(fd)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        reopen(opened(folder / "export/inside"), os.O_RDONLY)


def test_descriptor_path(folder: Path, opened: Callable[..., int]) -> None:
    (folder / "file").write_bytes(b"x")
    handle = opened(folder / "file")
    assert os.readlink(descriptor_path(handle)) == os.fsencode(folder / "file")


def test_at_fdcwd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_bytes(b"here")
    monkeypatch.chdir(folder)
    assert content(AT_FDCWD, b"file") == b"here"
