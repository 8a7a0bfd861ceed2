from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev.security import metadata_store as store

META = ".virtfs_metadata"


@pytest.fixture
def fd(root: Path, no_leak: None) -> Iterator[int]:
    """The folder, as the functions take it."""
    descriptor = os.open(root, os.O_PATH)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_write_and_read(fd: int, root: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store.write(fd, b"a\xff", b"one")
        store.write(fd, b"", b"root")
    finally:
        os.umask(before)
    assert store.read(fd, b"a\xff") == b"one"
    assert store.read(fd, b"") == b"root"
    assert (root / META).stat().st_mode == stat.S_IFDIR | 0o700
    for path in (root / META / "a\udcff", root / ".virtfs_metadata_root"):
        assert path.stat().st_mode == stat.S_IFREG | 0o600
    assert os.listdir(root / META) == ["a\udcff"]
    store.write(fd, b"a\xff", b"other")
    assert store.read(fd, b"a\xff") == b"other"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("call", ["write", "remove"])
def test_a_folder_in_the_place_of_a_record(fd: int, root: Path, call: str, *, full: bool) -> None:
    """It does not keep the name from ever having one, and what is in it is not lost."""
    (root / META / "a").mkdir(parents=True)
    if full:
        (root / META / "a" / "kept").write_text("content")
    if call == "write":
        store.write(fd, b"a", b"one")
        assert store.read(fd, b"a") == b"one"
    else:
        store.remove(fd, b"a")
        assert not (root / META / "a").exists()
    assert [path.read_text() for path in (root / META).glob("*/kept")] == ["content"] * full


def test_nothing_there(fd: int, root: Path) -> None:
    for name in (b"none", b""):
        with pytest.raises(FileNotFoundError):
            store.read(fd, name)
    store.remove(fd, b"none")
    store.rename(fd, b"none", fd, b"other")
    store.link(fd, b"none", fd, b"other")
    store.prepare(fd, b"none", fd)
    assert os.listdir(root) == []
    (root / META).mkdir()
    store.remove(fd, b"none")
    store.rename(fd, b"none", fd, b"other")
    store.link(fd, b"none", fd, b"other")
    store.prepare(fd, b"none", fd)
    assert os.listdir(root / META) == []


def test_replacing_is_atomic(fd: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(fd, b"a", b"old")
    real = os.rename

    def crash(*_args: object, **_keywords: object) -> None:
        assert (root / META / "a").read_bytes() == b"old"
        assert min((root / META).iterdir()).read_bytes() == b"new"
        raise OSError(errno.EIO, "crash")

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(OSError, match="crash"):
        store.write(fd, b"a", b"new")
    monkeypatch.setattr(os, "rename", real)
    assert store.read(fd, b"a") == b"old"
    assert os.listdir(root / META) == ["a"]


def test_no_room(fd: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(fd, b"a", b"old")
    monkeypatch.setattr(os, "pwrite", lambda *_args: 1)
    with pytest.raises(OSError, match="No space"):
        store.write(fd, b"a", b"new")
    assert store.read(fd, b"a") == b"old"
    assert os.listdir(root / META) == ["a"]


def test_links_keep_saying_the_same(fd: int, root: Path) -> None:
    (root / "sub").mkdir()
    sub = os.open(root / "sub", os.O_PATH)
    store.write(fd, b"a", b"virtfs.uid=1\n")
    store.write(sub, b"b", b"of an object that is gone")
    store.link(fd, b"a", sub, b"b")
    store.write(sub, b"b", b"virtfs.uid=22\n", shared=True)
    assert store.read(fd, b"a") == store.read(sub, b"b") == b"virtfs.uid=22\n"
    store.write(fd, b"a", b"v\n", shared=True)
    assert store.read(sub, b"b") == b"v\n"
    store.write(fd, b"a", b"another object\n")  # a new one of that name
    assert store.read(sub, b"b") == b"v\n"
    os.close(sub)


def test_rename(fd: int, root: Path) -> None:
    (root / "sub").mkdir()
    sub = os.open(root / "sub", os.O_PATH)
    store.write(fd, b"a", b"one")
    store.prepare(fd, b"a", sub)
    store.rename(fd, b"a", sub, b"b")
    assert store.read(sub, b"b") == b"one"
    with pytest.raises(FileNotFoundError):
        store.read(fd, b"a")
    store.rename(fd, b"nothing", sub, b"b")  # what takes a name takes its lack of metadata along
    with pytest.raises(FileNotFoundError):
        store.read(sub, b"b")
    os.close(sub)


def junk(kind: str, path: Path, place: Path) -> None:
    """Something that the host has put there."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        os.symlink(place / "outside" / "secret", path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "socket"])
@pytest.mark.parametrize("name", [b"a", b""])
def test_only_regular_files_are_opened(fd: int, root: Path, place: Path, kind: str, name: bytes) -> None:
    (root / META).mkdir()
    path = root / os.fsdecode(store.path_of(name))
    junk(kind, path, place)
    with pytest.raises(store.BadMetadataError):
        store.read(fd, name)
    store.write(fd, name, b"x", shared=True)
    assert store.read(fd, name) == b"x"
    assert path.lstat().st_mode == stat.S_IFREG | 0o600


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_a_metadata_folder_that_is_none(fd: int, root: Path, place: Path, kind: str) -> None:
    if kind == "link":  # outside there is a file of that name, which nothing may touch
        os.symlink(place / "outside", root / META)
    elif kind == "file":
        (root / META).write_bytes(b"host")
    else:
        os.mkfifo(root / META)
    with pytest.raises(store.BadMetadataError):
        store.read(fd, b"file")
    for name in (b"file", b""):
        with pytest.raises(NotADirectoryError):
            store.write(fd, name, b"x")
    store.remove(fd, b"file")
    store.link(fd, b"file", fd, b"new")
    store.rename(fd, b"file", fd, b"new")
    store.prepare(fd, b"file", fd)


def test_long_files_are_not_read_to_the_end(fd: int, root: Path) -> None:
    store.write(fd, b"a", bytes(100_000))
    assert len(store.read(fd, b"a")) == 4097


def test_set_aside(fd: int, root: Path) -> None:
    (root / "empty").mkdir()
    assert store.set_aside(fd, b"empty") is None
    (root / "sub" / META).mkdir(parents=True)
    (root / "sub" / META / "old").touch()
    (root / "sub" / "file").touch()
    assert store.set_aside(fd, b"sub") is None
    (root / "sub" / "file").unlink()
    aside = store.set_aside(fd, b"sub")
    assert aside is not None
    assert os.listdir(root / "sub") == []
    store.put_back(fd, b"sub", aside)
    assert os.listdir(root / "sub" / META) == ["old"]
    aside = store.set_aside(fd, b"sub")
    assert aside is not None
    store.throw_away(fd, aside)
    assert os.listdir(root / META) == []
    (root / "sub" / META).write_bytes(b"a file of the host")
    aside = store.set_aside(fd, b"sub")
    assert aside is not None
    store.throw_away(fd, aside)
    assert os.listdir(root / META) == []
    os.symlink("sub", root / "link")
    with pytest.raises(NotADirectoryError):
        store.set_aside(fd, b"link")


def test_nothing_is_put_back_through_a_symbolic_link(tmp_path: Path) -> None:
    """Another guest with the same folder may put one there, between the taking out and the putting back."""
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "export"
    (root / "sub" / META).mkdir(parents=True)
    (root / META).mkdir()
    fd = os.open(root, os.O_PATH)
    try:
        aside = store.set_aside(fd, b"sub")
        assert aside is not None
        (root / "sub").rmdir()
        (root / "sub").symlink_to(outside)
        store.put_back(fd, b"sub", aside)
        assert os.listdir(outside) == []
        assert os.listdir(root / META) == [os.fsdecode(aside)]
    finally:
        os.close(fd)
