from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    link_descriptor,
    names,
    renameat2,
)
from pyvirtfs.syscalls._linux import ffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tree(folder: Path) -> Path:
    (folder / "file").write_bytes(b"content")
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    return folder


@pytest.fixture(params=["AT_EMPTY_PATH", "/proc"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CAP_DAC_READ_SEARCH linkat refuses AT_EMPTY_PATH with ENOENT."""
    real = names._linkat

    def refuses(*arguments: object) -> int:
        if arguments[1] == b"":
            ffi.errno = errno.ENOENT
            return -1
        return int(real(*arguments))

    if request.param == "/proc":
        monkeypatch.setattr(names, "_linkat", refuses)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", ["file", "link"])
def test_link(tree: Path, opened: Callable[..., int], name: str) -> None:
    link_descriptor(opened(tree / name), opened(tree / "folder"), b"second")
    assert os.path.samestat(os.lstat(tree / name), os.lstat(tree / "folder/second"))


@pytest.mark.usefixtures("either")
def test_link_errors(tree: Path, opened: Callable[..., int]) -> None:
    file, parent = opened(tree / "file"), opened(tree)
    with pytest.raises(FileExistsError):
        link_descriptor(file, parent, b"link")
    with pytest.raises(PermissionError):
        link_descriptor(opened(tree / "folder"), parent, b"new")
    with pytest.raises(OSError, match="Invalid argument"):
        link_descriptor(file, parent, b"a\0b")
    (tree / "file").unlink()
    with pytest.raises(FileNotFoundError):
        link_descriptor(file, parent, b"new")


def test_rename(tree: Path, opened: Callable[..., int]) -> None:
    parent, inner = opened(tree), opened(tree / "folder")
    renameat2(parent, b"file", inner, b"moved")
    assert (tree / "folder/moved").read_bytes() == b"content"
    (tree / "file").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        renameat2(parent, b"file", inner, b"moved", RENAME_NOREPLACE)
    renameat2(parent, b"file", inner, b"moved", RENAME_EXCHANGE)
    assert (tree / "file").read_bytes() == b"content"
    assert (tree / "folder/moved").read_bytes() == b"other"


def test_rename_errors(tree: Path, opened: Callable[..., int]) -> None:
    parent = opened(tree)
    with pytest.raises(FileNotFoundError):
        renameat2(parent, b"missing", parent, b"new")
    with pytest.raises(FileNotFoundError):
        renameat2(parent, b"file", parent, b"missing", RENAME_EXCHANGE)
    for pair in ((b"file", b"a\0b"), (b"file\0", b"new")):
        with pytest.raises(OSError, match="Invalid argument"):
            renameat2(parent, pair[0], parent, pair[1])
    with pytest.raises(OSError, match="Invalid argument"):
        renameat2(parent, b"file", parent, b"new", 1 << 20)
    assert not (tree / "new").exists()
