from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from pyvirtfs.syscalls import DIRENT, Dirent, directory, getdents64, read_directory, seek_directory
from pyvirtfs.syscalls._linux import ffi

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def listing(folder: Path, opened: Callable[..., int]) -> int:
    for index in range(100):
        (folder / f"{index:03}{'x' * (index * 2)}").touch()
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("nowhere")
    (folder / os.fsdecode(b"not \xff utf-8")).touch()
    return opened(folder, os.O_RDONLY | os.O_DIRECTORY)


def everything(fd: int, nbytes: int = directory.BATCH_NBYTES) -> list[Dirent]:
    found: list[Dirent] = []
    while batch := read_directory(fd, nbytes):
        found.extend(map(Dirent._make, batch))
    return found


@pytest.mark.parametrize("nbytes", [280, 1000, 1 << 15])
def test_all_entries(listing: int, folder: Path, nbytes: int) -> None:
    found = everything(listing, nbytes)
    assert sorted(entry.name for entry in found) == sorted([b".", b"..", *os.listdir(os.fsencode(folder))])
    kinds = {entry.name: entry.type for entry in found}
    assert (kinds[b"folder"], kinds[b"link"], kinds[b"000"], kinds[b"."]) == (4, 10, 8, 4)
    for entry in found:
        if entry.name != b"..":
            assert entry.ino == os.lstat(os.path.join(os.fsencode(folder), entry.name)).st_ino
        assert 0 < entry.off < 1 << 63


def test_a_cookie_goes_on_behind_its_entry(listing: int) -> None:
    found = everything(listing)
    for position in (0, 1, 57, len(found) - 2, len(found) - 1):
        seek_directory(listing, found[position].off)
        assert everything(listing) == found[position + 1 :]
    seek_directory(listing, 0)
    assert everything(listing) == found


def test_cookies_survive_removals(listing: int, folder: Path) -> None:
    found = everything(listing)
    for entry in found[10:20]:
        if entry.type == 8:
            os.unlink(os.path.join(os.fsencode(folder), entry.name))
    seek_directory(listing, found[30].off)
    assert [entry.name for entry in everything(listing)] == [entry.name for entry in found[31:]]


def test_raw_entries(listing: int) -> None:
    wanted = everything(listing)
    seek_directory(listing, 0)
    buffer = bytearray(b"\xaa" * 4096)
    found: list[Dirent] = []
    while nbytes := getdents64(listing, buffer):
        position = 0
        while position < nbytes:
            ino, off, length, kind = DIRENT.unpack_from(buffer, position)
            name = bytes(buffer[position + DIRENT.size : position + length]).partition(b"\0")[0]
            found.append(Dirent(ino, off, kind, name))
            position += length
    assert found == wanted


@pytest.mark.parametrize("cookie", [1 << 63, (1 << 64) - 1, 1 << 70])
def test_cookies_that_off_t_cannot_hold(listing: int, cookie: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        seek_directory(listing, cookie)


def test_names_and_cookies_as_long_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the garbage that the kernel leaves behind the NUL."""
    entries = [
        Dirent((1 << 64) - 1, (1 << 63) - 1, 8, b"n" * 255),
        Dirent(1, 1, 0, b"a"),
        Dirent(2, (1 << 63) - 2, 12, b"1234"),
    ]

    def packed(entry: Dirent) -> bytes:
        length = (DIRENT.size + len(entry.name) + 8) & ~7
        data = DIRENT.pack(entry.ino, entry.off, length, entry.type) + entry.name + b"\0"
        return data.ljust(length, b"\xaa")

    data = b"".join(map(packed, entries))

    def kernel(_fd: int, buffer: object, nbytes: int) -> int:
        assert nbytes >= len(data)
        ffi.memmove(buffer, data, len(data))
        return len(data)

    monkeypatch.setattr(directory, "_getdents64", kernel)
    assert list(map(Dirent._make, read_directory(-1))) == entries


def test_errors(listing: int, folder: Path, opened: Callable[..., int]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        read_directory(listing, 20)
    with pytest.raises(OSError, match="Invalid argument"):
        getdents64(listing, bytearray(20))
    for call in (read_directory, lambda fd: getdents64(fd, bytearray(4096))):
        with pytest.raises(NotADirectoryError):
            call(opened(folder / "000", os.O_RDONLY))
        with pytest.raises(OSError, match="Bad file descriptor"):
            call(opened(folder))
    assert struct.calcsize("=QQHB") == DIRENT.size
