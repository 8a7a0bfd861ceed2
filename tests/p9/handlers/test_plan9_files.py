"""Tattach, Topen, Tread, Tclunk of 9P2000 and 9P2000.u."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import construct
import pytest

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import STAT, STAT_UNIX

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

CODERS = [codec.UNIX, codec.PLAIN]


@pytest.fixture(params=CODERS, ids=lambda coder: coder.vocabulary.version.decode())
def older(request: pytest.FixtureRequest, make_peer: Callable[..., Peer]) -> Peer:
    """Connected in an older dialect, its fid 0 is the root."""
    return make_peer().version(coder=request.param).attach()


def declaration(peer: Peer) -> Any:
    return STAT_UNIX if peer.coder is codec.UNIX else STAT


def stats(peer: Peer, data: bytes) -> list[Any]:
    return list(construct.GreedyRange(declaration(peer)).parse(data)) if data else []


def failed(peer: Peer, kind: int, *fields: Any, room: int = 8192) -> bytes:
    """The text of the error that a request is answered with."""
    number, values = peer.reply(peer.send(kind, *fields, room=room))
    assert number == c.RERROR, values
    text: bytes = values[0]
    return text


# --- Tattach ---


@pytest.mark.parametrize(("coder", "uid"), [(codec.UNIX, 1000), (codec.PLAIN, c.NONUNAME)])
def test_only_a_numeric_user_counts(
    make_peer: Callable[..., Peer], export: Export, coder: codec.Codec, uid: int
) -> None:
    peer = make_peer().version(coder=coder)
    peer.call(c.TATTACH, 0, c.NOFID, b"glenda", b"tree", *([1000] if coder is codec.UNIX else []))
    assert ("attach", b"tree", uid) in export.calls
    assert failed(peer, c.TAUTH, 5, b"", b"", *([0] if coder is codec.UNIX else [])) == b"No such file or directory"


# --- Topen ---


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        (c.OREAD, os.O_RDONLY),
        (c.OWRITE, os.O_WRONLY),
        (c.ORDWR, os.O_RDWR),
        (c.OEXEC, os.O_RDONLY),
        (c.OREAD | c.OCEXEC, os.O_RDONLY),
        (c.OWRITE | c.OTRUNC, os.O_WRONLY | os.O_TRUNC),
    ],
)
def test_modes_of_open(older: Peer, export: Export, mode: int, flags: int) -> None:
    older.walk(0, 1, b"file")
    qid, iounit = older.call(c.TOPEN, 1, mode)
    assert qid == export.find("file").qid
    assert iounit == 4096
    assert export.calls[-1][:2] == ("open", flags)
    assert failed(older, c.TOPEN, 1, mode) == b"Invalid argument"


def test_bits_of_one_dialect_only(older: Peer, export: Export) -> None:
    older.walk(0, 1, b"file")
    for mode in (c.OAPPEND | c.OWRITE, c.OEXCL | c.OWRITE):
        if older.coder is codec.PLAIN:
            assert failed(older, c.TOPEN, 1, mode) == b"Invalid argument"
        else:
            older.walk(1, 2)
            older.call(c.TOPEN, 2, mode)
            assert bool(export.calls[-1][1] & os.O_APPEND) == bool(mode & c.OAPPEND)
            older.call(c.TCLUNK, 2)
    assert failed(older, c.TOPEN, 1, 0x08) == b"Invalid argument"
    assert failed(older, c.TOPEN, 7, 0) == b"No such file or directory"


def test_folders_are_only_read(older: Peer, export: Export) -> None:
    older.walk(0, 1, b"folder")
    for mode in (c.OWRITE, c.ORDWR, c.OTRUNC, c.ORCLOSE):
        assert failed(older, c.TOPEN, 1, mode) == b"Is a directory"
    assert older.call(c.TOPEN, 1, c.OREAD) == (export.find("folder").qid, 0)
    assert export.calls[-1][1] == os.O_RDONLY | os.O_DIRECTORY


def test_special_files_are_not_opened(older: Peer) -> None:
    older.walk(0, 1, b"link")
    assert failed(older, c.TOPEN, 1, c.OREAD) == b"No such device or address"


def test_opening_later(older: Peer, export: Export) -> None:
    export.later = {"open"}
    older.walk(0, 1, b"file")
    first = older.send(c.TOPEN, 1, 0, tag=1)
    second = older.send(c.TOPEN, 1, 0, tag=2)
    assert older.reply(second)[1][0] == b"Device or resource busy"
    older.call(c.TCLUNK, 1)
    older.finish()
    assert older.reply(first)[1][0] == b"No such file or directory"
    assert not export.files
    older.walk(0, 1, b"file")
    older.send(c.TOPEN, 1, 0, tag=1)
    older.server.reset()
    older.finish()
    assert not export.files


# --- files: read, write, clunk ---


def test_content_is_read_and_written(older: Peer, export: Export) -> None:
    older.walk(0, 1, b"file")
    older.call(c.TOPEN, 1, c.ORDWR)
    assert older.read(1, 2, 3) == b"234"
    assert older.write(1, 9, b"new") == 3
    assert older.read(1, 0, 100) == b"012345678new"
    assert failed(older, c.TREAD, 0, 0, 10) == b"Invalid argument"
    assert failed(older, c.TREAD, 9, 0, 10) == b"Invalid argument"
    older.call(c.TCLUNK, 1)
    assert failed(older, c.TCLUNK, 1) == b"No such file or directory"
    assert not export.files


def test_orclose_removes_the_file_with_the_clunk(older: Peer, export: Export) -> None:
    for mode in (c.OREAD, c.ORCLOSE):
        older.walk(0, 1, b"file")
        older.call(c.TOPEN, 1, mode)
        assert older.read(1, 0, 4) == b"0123"
        older.call(c.TCLUNK, 1)
        assert (b"file" in export.root.entries) == (mode == c.OREAD)
        assert older.server.fids == 1
        assert not export.files


def test_orclose_tells_why_it_failed_and_the_fid_is_gone(older: Peer, export: Export) -> None:
    export.failing["remove"] = OSError(errno.EACCES, "no")
    older.walk(0, 1, b"file")
    older.call(c.TOPEN, 1, c.ORCLOSE)
    assert failed(older, c.TCLUNK, 1) == b"Permission denied"
    assert older.server.fids == 1
    assert not export.files


def test_orclose_later_and_at_the_end_of_a_session(older: Peer, export: Export) -> None:
    export.later = {"remove"}
    older.walk(0, 1, b"file")
    older.call(c.TOPEN, 1, c.ORCLOSE)
    token = older.send(c.TCLUNK, 1)
    assert older.nbytes(token) is None
    older.finish()
    assert older.reply(token)[0] == c.RCLUNK
    assert b"file" not in export.root.entries
    export.add("file", b"x")
    older.walk(0, 1, b"file")
    older.call(c.TOPEN, 1, c.ORCLOSE)
    older.version(coder=older.coder)
    assert b"file" in export.root.entries  # nobody waits for its removal
    assert not export.files


# --- folders ---


@pytest.fixture
def listing(older: Peer, export: Export) -> Peer:
    """A peer whose fid 1 is open on the root."""
    for number in range(20):
        export.add(f"number {number:02}", b"x" * number)
    older.walk(0, 1)
    older.call(c.TOPEN, 1, c.OREAD)
    return older


def read_all(peer: Peer, count: int) -> list[Any]:
    found: list[Any] = []
    offset = 0
    while data := peer.read(1, offset, count):
        found += stats(peer, data)  # whole ones, or they could not be parsed
        assert len(data) <= count
        offset += len(data)
    assert peer.read(1, offset, count) == b""
    return found


@pytest.mark.parametrize("count", [130, 200, 777, 8000])
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_a_folder_is_read_as_whole_stats(listing: Peer, export: Export, count: int, batch: int) -> None:
    export.batch = batch
    found = read_all(listing, count)
    assert [each.name for each in found] == sorted(export.root.entries)  # without dots (intro(5))
    for each in found:
        inode = export.root.entries[each.name]
        assert (each.qid.type, each.qid.version, each.qid.path) == inode.qid
        assert each.length == (0 if inode.nlink == 2 else len(inode.content))
        assert bool(each.mode & c.DMDIR) == stat.S_ISDIR(inode.mode)
        if listing.coder is codec.UNIX:
            assert each.extension == (inode.target or b"HARDLINKCOUNT %d" % inode.nlink)
    assert len(export.nodes) == 2
    assert read_all(listing, 8000) == found  # once more from the start


def test_a_folder_is_read_on_from_where_the_last_read_ended(listing: Peer) -> None:
    size = len(listing.read(1, 0, 200))
    for offset in (1, size - 1, size + 1, 2**63):
        assert failed(listing, c.TREAD, 1, offset, 200) == b"Invalid argument"
    after = listing.read(1, size, 200)
    assert failed(listing, c.TREAD, 1, size, 200) == b"Invalid argument"
    listing.read(1, 0, 200)
    assert listing.read(1, size, 200) == after


def test_no_room_for_one_stat_is_an_error_and_not_the_end(listing: Peer) -> None:
    size = len(declaration(listing).build(stats(listing, listing.read(1, 0, 200))[0]))
    for count in (0, 1, size - 1):
        assert failed(listing, c.TREAD, 1, 0, count) == b"Invalid argument"
    assert failed(listing, c.TREAD, 1, 0, 8000, room=size + 10) == b"Invalid argument"[: size + 10]
    assert len(listing.read(1, 0, 8000, room=size + 11)) == size
    assert len(listing.read(1, 0, size)) == size


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV, errno.EACCES])
def test_what_cannot_be_looked_at_is_not_shown(listing: Peer, export: Export, code: int) -> None:
    export.failing["getattr"] = OSError(code, "gone")
    assert read_all(listing, 8000) == []
    assert len(export.nodes) == 2


def test_an_error_is_told_once_nothing_stands_before_it(listing: Peer, export: Export) -> None:
    whole = read_all(listing, 8000)
    work = export.getattr
    left = [3]

    def getattr_failing(node: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "disk")
        return work(node)

    export.getattr = getattr_failing
    data = listing.read(1, 0, 8000)
    assert stats(listing, data) == whole[:3]
    assert failed(listing, c.TREAD, 1, len(data), 8000) == b"Input/output error"
    del export.getattr
    assert stats(listing, listing.read(1, len(data), 8000)) == whole[3:]
    export.failing["readdir"] = OSError(errno.EIO, "disk")
    assert failed(listing, c.TREAD, 1, 0, 8000) == b"Input/output error"


@pytest.mark.parametrize("slow", [{"readdir"}, {"walk"}, {"getattr"}, {"readlink"}, {"readdir", "walk", "getattr"}])
def test_a_folder_that_answers_later(listing: Peer, export: Export, slow: set[str]) -> None:
    expected = read_all(listing, 8000)
    export.later = slow
    token = listing.send(c.TREAD, 1, 0, 8000)
    waits = 0
    while listing.nbytes(token) is None:
        listing.finish()
        waits += 1
    assert stats(listing, listing.raw_reply(token)[11:]) == expected
    assert listing.server.run_pending() == 0
    assert waits > 1 or slow == {"readlink"}
    assert listing.server.counters.deferred <= 1


@pytest.mark.parametrize("interruptible", [True, False])
@pytest.mark.parametrize("slow", ["readdir", "walk", "getattr"])
def test_reading_a_folder_is_flushed(listing: Peer, export: Export, slow: str, interruptible: bool) -> None:
    export.later = {slow}
    export.interruptible = interruptible
    before = len(export.calls)
    token = listing.send(c.TREAD, 1, 0, 8000, tag=1)
    flush = listing.send(c.TFLUSH, 1, tag=2)
    listing.server.run_pending()
    while export.waiting:
        assert listing.nbytes(flush) is None
        listing.finish()
    if slow == "getattr" and not interruptible:
        assert len(stats(listing, listing.raw_reply(token)[11:])) == 1, "what was done is told"
    else:
        assert listing.nbytes(token) == 0
    assert listing.reply(flush)[0] == c.RFLUSH
    assert sum(call[0] == slow for call in export.calls[before:]) == 1, "no call follows the one that was cancelled"
    assert len(export.nodes) == 2


def test_a_reset_while_a_folder_is_read(listing: Peer, export: Export) -> None:
    export.later = {"walk"}
    token = listing.send(c.TREAD, 1, 0, 8000, tag=1)
    listing.server.reset()
    assert listing.server.busy == 1
    listing.finish()
    assert listing.nbytes(token) is None
    assert not export.nodes
    assert not export.files
    assert listing.server.busy == 0


def test_what_a_folder_holds_is_counted(listing: Peer) -> None:
    before = listing.server.counters.bytes_read
    data = listing.read(1, 0, 300)
    assert listing.server.counters.bytes_read == before + len(data)
