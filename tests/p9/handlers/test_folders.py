"""Treaddir, and the messages about names."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.handlers import folders
from pyvirtfs.p9.messages import DIRECTORY_ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


# --- Treaddir ---


def readdir(
    peer: Peer, fid: int, offset: int, count: int, room: int = 8192
) -> list[tuple[bytes, int, int, tuple[int, ...]]]:
    token = peer.send(c.TREADDIR, fid, offset, count, room=room)
    raw = peer.raw_reply(token)
    assert raw[4] == c.RREADDIR
    assert int.from_bytes(raw[7:11], "little") == len(raw) - 11 <= count
    entries: list[tuple[bytes, int, int, tuple[int, ...]]] = []
    rest = raw[11:]
    while rest:
        entry = DIRECTORY_ENTRY.parse(rest)
        entries.append((entry.name, entry.offset, entry.type, (entry.qid.type, entry.qid.version, entry.qid.path)))
        rest = rest[24 + len(entry.name) :]
    return entries


def test_an_entry_is_encoded_as_declared() -> None:
    head = folders._pack_entry_head(0x80, 7, 1 << 63, 1 << 62, 4, 4)
    declared = DIRECTORY_ENTRY.build(
        {"qid": {"type": 0x80, "version": 7, "path": 1 << 63}, "offset": 1 << 62, "type": 4, "name": b"name"}
    )
    assert head + b"name" == declared


def test_readdir(peer: Peer, export: Export) -> None:
    peer.open(1)
    entries = readdir(peer, 1, 0, 8000)
    assert [name for name, *_ in entries] == [b".", b"..", b"file", b"folder", b"link"]
    assert [kind for _, _, kind, _ in entries] == [4, 4, 8, 4, 10]
    assert entries[2][3] == export.find("file").qid
    assert readdir(peer, 1, entries[-1][1], 8000) == []


@pytest.mark.parametrize("count", [30, 60, 100, 8181, 8192, 2**32 - 1])
def test_a_listing_in_pieces_is_whole(make_peer: Callable[..., Peer], make_export: Any, count: int) -> None:
    export = make_export()
    names = sorted(b"%d" % number + b"-" * (number % 3) for number in range(300))
    for name in names:
        export.add(name.decode())
    export.batch = 37
    peer = make_peer(export).version().attach()
    peer.open(1)
    found: list[bytes] = []
    offset = 0
    while entries := readdir(peer, 1, offset, count):
        found += [name for name, *_ in entries]
        offset = entries[-1][1]
    assert found == [b".", b"..", *names]


def test_the_same_cookie_gives_the_same_entries_and_zero_rewinds(peer: Peer) -> None:
    peer.open(1)
    first = readdir(peer, 1, 0, 60)
    again = readdir(peer, 1, first[0][1], 60)
    assert readdir(peer, 1, first[0][1], 60) == again
    assert readdir(peer, 1, 0, 60) == first


@pytest.mark.parametrize("count", [0, 1, 23, 24])
def test_a_count_below_one_entry_is_an_error_and_not_the_end(peer: Peer, count: int) -> None:
    peer.open(1)
    assert peer.error(c.TREADDIR, 1, 0, count) == errno.EINVAL
    assert readdir(peer, 1, 5, count) == []


def test_a_listing_is_limited_to_msize_and_to_the_room(make_peer: Callable[..., Peer], make_export: Any) -> None:
    """H084, H133: names of 255 bytes, counts beyond msize."""
    export = make_export()
    for number in range(100):
        export.add(f"{number:0255}")
    peer = make_peer(export).version(8192).attach()
    peer.open(1)
    assert len(readdir(peer, 1, 2, 2**32 - 1, room=65536)) == (8192 - 11) // 279
    assert len(readdir(peer, 1, 2, 2**32 - 1, room=1000)) == (1000 - 11) // 279
    assert peer.error(c.TREADDIR, 1, 2, 8192, room=11) == errno.EINVAL


def test_what_cannot_be_listed(peer: Peer) -> None:
    assert peer.error(c.TREADDIR, 0, 0, 1000) == errno.EINVAL
    peer.open(1, b"file")
    assert peer.error(c.TREADDIR, 1, 0, 1000) == errno.EINVAL


# --- new names ---


def test_new_names(peer: Peer, export: Export) -> None:
    qid = peer.call(c.TMKDIR, 0, b"made", 0o47777, 9)
    assert qid == export.find("made").qid
    assert export.calls[-1] == ("mkdir", b"made", 0o7777, 1000, 9)
    peer.call(c.TSYMLINK, 0, b"sym", b"../../etc", 9)
    assert export.calls[-1] == ("symlink", b"sym", b"../../etc", 1000, 9)
    peer.call(c.TMKNOD, 0, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 9)
    assert export.calls[-1] == ("mknod", b"fifo", stat.S_IFIFO | 0o644, 0, 0, 1000, 9)
    peer.call(c.TMKNOD, 0, b"disk", stat.S_IFBLK | 0o644, 8, 1, 9)
    assert export.calls[-1] == ("mknod", b"disk", stat.S_IFBLK | 0o644, 8, 1, 1000, 9)
    peer.call(c.TMKNOD, 0, b"plain", 0o644, 0, 0, 9)
    assert export.calls[-1] == ("mknod", b"plain", stat.S_IFREG | 0o644, 0, 0, 1000, 9)


@pytest.mark.parametrize("mode", [stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, 0o170644, 0o030644])
def test_mknod_makes_neither_folders_nor_links(peer: Peer, mode: int) -> None:
    assert peer.error(c.TMKNOD, 0, b"new", mode, 0, 0, 0) == errno.EINVAL


def test_the_target_of_a_link_has_no_nul(peer: Peer) -> None:
    assert peer.error(c.TSYMLINK, 0, b"new", b"a\0b", 0) == errno.EINVAL


def test_link(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    peer.walk(0, 2, b"folder")
    peer.call(c.TLINK, 2, 1, b"second")
    assert export.find("folder/second") is export.find("file")
    peer.call(c.TCLUNK, 1)
    peer.call(c.TCLUNK, 2)
    assert len(export.nodes) == 1


def test_a_deferred_link_keeps_both_fids(peer: Peer, export: Export) -> None:
    """H041."""
    peer.walk(0, 1, b"file")
    peer.walk(0, 2, b"folder")
    export.later.add("link")
    link = peer.send(c.TLINK, 2, 1, b"second", tag=1)
    peer.call(c.TCLUNK, 1, tag=2)
    peer.call(c.TCLUNK, 2, tag=2)
    assert len(export.nodes) == 3
    peer.finish()
    assert peer.reply(link)[0] == c.RLINK
    assert len(export.nodes) == 1


# --- Treadlink ---


def test_readlink(peer: Peer) -> None:
    peer.walk(0, 1, b"link")
    assert peer.call(c.TREADLINK, 1) == b"/etc/passwd"
    assert peer.call(c.TREADLINK, 1, room=20) == b"/etc/passwd"
    assert peer.error(c.TREADLINK, 1, room=19) == errno.EMSGSIZE
    assert peer.error(c.TREADLINK, 0) == errno.EINVAL


# --- names moved and removed ---


def test_rename(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    peer.walk(0, 2, b"folder")
    peer.call(c.TRENAME, 1, 2, b"moved")
    assert export.find("folder/moved").content == b"0123456789"
    peer.call(c.TLOPEN, 1, 0)
    assert peer.error(c.TRENAME, 1, 2, b"again") == errno.EINVAL


def test_renameat(peer: Peer, export: Export) -> None:
    peer.open(1)
    peer.open(2, b"folder")
    peer.call(c.TRENAMEAT, 1, b"file", 2, b"moved")
    assert export.find("folder/moved").content == b"0123456789"
    readdir(peer, 1, 0, 8000)
    readdir(peer, 2, 0, 8000)


def test_unlinkat(peer: Peer, export: Export) -> None:
    """H044: the folder may be open, and is listed meanwhile."""
    peer.open(1, b"folder")
    peer.open(3, b"folder", b"inner")
    assert len(readdir(peer, 1, 0, 8000)) == 3
    peer.call(c.TUNLINKAT, 1, b"inner", 0)
    assert len(readdir(peer, 1, 0, 8000)) == 2
    assert peer.read(3, 0, 10) == b"inside"
    peer.walk(3, 4)
    peer.call(c.TUNLINKAT, 0, b"folder", 0x200)
    assert b"folder" not in export.root.entries


@pytest.mark.parametrize("flags", [1, 0x100, 0x400, 0x201, 2**32 - 1])
def test_unlinkat_flags(peer: Peer, flags: int) -> None:
    assert peer.error(c.TUNLINKAT, 0, b"file", flags) == errno.EINVAL
