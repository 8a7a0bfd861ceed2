from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.guest import GuestPath
from pyvirtfs.guest.files import dotl_flags
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import pair


@pytest.fixture
def root(export: Path) -> Iterator[GuestPath]:
    with pair(f"local,path={export},security_model=none") as both:
        yield both.mount.root


def test_paths(root: GuestPath) -> None:
    path = root / "a" / b"b\xff" / "c/d"
    assert bytes(path) == b"/a/b\xff/c/d"
    assert str(path) == "/a/b\udcff/c/d"
    assert (path.name, str(path.parent.name)) == ("d", "c")
    assert path.parent.parent.parent.parent == root == root.parent
    assert root.name == ""
    assert str(root) == "/"
    assert path / "/x" == root / "x"
    assert path.with_name("e") == root.joinpath("a", b"b\xff", "c", "e")
    assert repr(root / "a") == "GuestPath('/a')"
    assert {root / "a", root / "./a/"} == {root / "a"}
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"]
    assert root != "/"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, c.DOTL_RDONLY),
        (os.O_RDWR | os.O_CREAT | os.O_EXCL, c.DOTL_RDWR | c.DOTL_CREATE | c.DOTL_EXCL),
        (os.O_WRONLY | os.O_APPEND | os.O_TRUNC, c.DOTL_WRONLY | c.DOTL_APPEND | c.DOTL_TRUNC),
        (os.O_SYNC, c.DOTL_SYNC | c.DOTL_DSYNC),
        (os.O_DSYNC, c.DOTL_DSYNC),
        (os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME, c.DOTL_DIRECTORY | c.DOTL_NOFOLLOW | c.DOTL_NOATIME),
        (os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC, c.DOTL_DIRECT | c.DOTL_NONBLOCK | c.DOTL_CLOEXEC),
    ],
)
def test_flags(flags: int, expected: int) -> None:
    assert dotl_flags(flags) == expected | c.DOTL_LARGEFILE


def test_errors_name_the_file(root: GuestPath) -> None:
    for act in (
        root.joinpath("no", "such").stat,
        root.joinpath("no", "such").read_bytes,
        root.joinpath("no", "such").mkdir,
        root.joinpath("no", "such").readlink,
        lambda: list(root.joinpath("no", "such").iterdir()),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.filename == "/no/such"
    with pytest.raises(OSError, match="busy"):
        root.rmdir()


def test_mkdir_options(root: GuestPath) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        (root / "a").mkdir()
    with pytest.raises(FileExistsError):
        (root / "file").mkdir(exist_ok=True)
    assert [(str(folder), folders, files) for folder, folders, files in (root / "a").walk()] == [
        ("/a", ["b"], []),
        ("/a/b", ["c"], []),
        ("/a/b/c", [], []),
    ]


def test_unlink_touch_exists(root: GuestPath) -> None:
    (root / "gone").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (root / "gone").unlink()
    (root / "new").touch(0o600)
    (root / "new").touch()
    with pytest.raises(FileExistsError):
        (root / "new").touch(exist_ok=False)
    assert (root / "new").exists()
    assert not (root / "new" / "below").exists()
    assert not (root / "new").is_dir()
    assert not (root / "none").is_symlink()


def test_unbuffered_and_buffered(root: GuestPath) -> None:
    with (root / "file").open("rb", buffering=0) as raw:
        assert raw.read(2) == b"Hi"
    with pytest.raises(ValueError, match="buffered"):
        (root / "file").open("r", buffering=0)
    with pytest.raises(ValueError, match="encoding"):
        (root / "file").open("rb", encoding="utf-8")
    with (root / "lines").open("w", newline="\r\n") as text:
        text.write("a\nb\n")
    assert (root / "lines").read_bytes() == b"a\r\nb\r\n"
    assert (root / "lines").read_text() == "a\nb\n"
