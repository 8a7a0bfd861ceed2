"""attach(5), walk(5), clunk(5), remove(5)."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


# --- Tattach ---


def test_attach_gives_the_roots_qid(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version()
    assert peer.call(c.TATTACH, 7, c.NOFID, b"nobody", b"tree", 1000) == tuple(export.root.qid)
    assert export.calls[0] == ("attach", b"tree", 1000)


@pytest.mark.parametrize("fid", [0, 1, 2**31, 0xFFFFFFFE])
def test_any_number_is_a_fid(make_peer: Callable[..., Peer], fid: int) -> None:
    peer = make_peer().version().attach(fid)
    peer.call(c.TGETATTR, fid, 0)
    peer.call(c.TCLUNK, fid)


def test_nofid_is_no_fid(peer: Peer) -> None:
    assert peer.error(c.TATTACH, c.NOFID, c.NOFID, b"", b"", 0) == errno.EINVAL
    assert peer.error(c.TWALK, 0, c.NOFID, ()) == errno.EINVAL
    assert peer.error(c.TXATTRWALK, 0, c.NOFID, b"") == errno.EINVAL
    assert peer.error(c.TGETATTR, c.NOFID, 0) == errno.ENOENT


def test_there_is_no_authentication(peer: Peer) -> None:
    assert peer.error(c.TATTACH, 1, 0, b"", b"", 0) == errno.EINVAL


@pytest.mark.parametrize("failing", ["attach", "statfs"])
def test_a_root_that_fails_is_einval(make_peer: Callable[..., Peer], export: Export, failing: str) -> None:
    export.failing[failing] = OSError(errno.EACCES, "no")
    peer = make_peer().version()
    assert peer.error(c.TATTACH, 0, c.NOFID, b"", b"", 0) == errno.EINVAL
    assert not export.nodes
    export.failing.clear()
    peer.attach()


def test_several_attaches_have_users_of_their_own(peer: Peer, export: Export) -> None:
    peer.attach(1, uid=5)
    peer.walk(1, 2, b"folder")
    peer.walk(2, 3)
    peer.walk(2, 2)
    for fid in (1, 2, 3):
        peer.call(c.TMKDIR, fid, b"made%d" % fid, 0o755, 9)
    assert [call[-2:] for call in export.calls if call[0] == "mkdir"] == [(5, 9)] * 3
    peer.call(c.TMKDIR, 0, b"other", 0o755, 9)
    assert export.calls[-1][-2:] == (1000, 9)


# --- Twalk ---


def test_walk(peer: Peer, export: Export) -> None:
    inner, folder = export.find("folder/inner").qid, export.find("folder").qid
    assert peer.call(c.TWALK, 0, 1, (b"folder", b"inner")) == (folder, inner)
    assert peer.call(c.TWALK, 1, 2, ()) == ()
    assert peer.call(c.TWALK, 2, 3, (b"..",)) == (folder,)
    assert peer.server.fids == 4


@pytest.mark.parametrize("found", range(16))
def test_a_walk_that_ends_early_makes_no_fid(make_peer: Callable[..., Peer], make_export: Any, found: int) -> None:
    """H130, H049: the first name is an error, a later one a short answer."""
    export = make_export()
    names = [b"%d" % number for number in range(16)]
    for depth in range(found):
        export.add("/".join(str(number) for number in range(depth + 1)), mode=stat.S_IFDIR | 0o755)
    peer = make_peer(export).version().attach()
    if found:
        assert len(peer.call(c.TWALK, 0, 1, tuple(names))) == found
    else:
        assert peer.error(c.TWALK, 0, 1, tuple(names)) == errno.ENOENT
    assert peer.error(c.TCLUNK, 1) == errno.ENOENT
    assert (peer.server.fids, len(export.nodes)) == (1, 1)


def test_sixteen_names_are_enough(peer: Peer) -> None:
    assert len(peer.call(c.TWALK, 0, 1, (b".",) * 16)) == 16
    assert peer.error(c.TWALK, 0, 2, (b".",) * 17) == errno.EINVAL


def test_a_fid_can_walk_itself(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    peer.walk(1, 1, b"inner")
    assert peer.call(c.TGETATTR, 1, 0)[1] == export.find("folder/inner").qid
    assert len(export.nodes) == 2
    assert peer.error(c.TWALK, 1, 1, (b"nothing",)) == errno.ENOTDIR
    assert peer.call(c.TGETATTR, 1, 0)[1] == export.find("folder/inner").qid


def test_a_fid_that_walks_itself_part_of_the_way_stays(peer: Peer, export: Export) -> None:
    assert len(peer.call(c.TWALK, 0, 0, (b"folder", b"nothing"))) == 1
    assert peer.call(c.TGETATTR, 0, 0)[1] == export.root.qid


def test_an_open_fid_does_not_move_but_can_be_cloned(peer: Peer) -> None:
    peer.open(1, b"file")
    assert peer.error(c.TWALK, 1, 1, ()) == errno.EINVAL
    peer.walk(1, 2)
    peer.call(c.TLOPEN, 2, c.DOTL_RDONLY)


def test_the_qids_of_a_walk_must_fit(peer: Peer, export: Export) -> None:
    calls = len(export.calls)
    assert peer.error(c.TWALK, 0, 1, (b".",) * 3, room=47) == errno.EMSGSIZE
    assert len(export.calls) == calls
    assert len(peer.call(c.TWALK, 0, 1, (b".",) * 3, room=48)) == 3


@pytest.mark.parametrize("name", [b"", b"/", b"a/b", b"a\0b", b"..\0", b"../"])
@pytest.mark.parametrize("position", [0, 1, 15])
def test_a_bad_name_spoils_the_whole_walk(peer: Peer, export: Export, name: bytes, position: int) -> None:
    calls = len(export.calls)
    names = [b"."] * 16
    names[position] = name
    assert peer.error(c.TWALK, 0, 1, tuple(names)) == errno.ENOENT
    assert len(export.calls) == calls


def test_the_number_of_a_walk_in_flight_is_taken(peer: Peer, export: Export) -> None:
    export.later.add("walk")
    first = peer.send(c.TWALK, 0, 1, (), tag=1)
    assert peer.error(c.TWALK, 0, 1, (), tag=2) == errno.EINVAL
    assert peer.error(c.TATTACH, 1, c.NOFID, b"", b"", 0, tag=2) == errno.EINVAL
    assert peer.error(c.TXATTRWALK, 0, 1, b"", tag=2) == errno.EINVAL
    assert peer.error(c.TGETATTR, 1, 0, tag=2) == errno.ENOENT
    peer.finish()
    assert peer.reply(first)[0] == c.RWALK


def test_a_walk_from_a_fid_that_is_clunked_meanwhile(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    export.later.add("walk")
    peer.send(c.TWALK, 1, 2, (b"inner",), tag=1)
    peer.call(c.TCLUNK, 1, tag=2)
    assert peer.server.fids == 1
    assert len(export.nodes) == 2, "the walk needs the folder"
    peer.finish()
    assert len(export.nodes) == 2
    peer.call(c.TCLUNK, 2)


def test_a_fid_that_is_clunked_while_it_moves(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    export.later.add("walk")
    moves = peer.send(c.TWALK, 1, 1, (b"inner",), tag=1)
    peer.call(c.TCLUNK, 1, tag=2)
    peer.attach(1)  # the number is free at once
    peer.finish()
    assert peer.error_of(moves) == errno.ENOENT
    assert peer.call(c.TGETATTR, 1, 0)[1] == export.root.qid


def test_a_fid_that_moves_cannot_be_opened_or_moved(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    export.later.add("walk")
    peer.send(c.TWALK, 1, 1, (b"inner",), tag=1)
    assert peer.error(c.TWALK, 1, 1, (), tag=2) == errno.EBUSY
    assert peer.error(c.TLOPEN, 1, 0, tag=2) == errno.EBUSY
    assert peer.error(c.TLCREATE, 1, b"new", 0, 0, 0, tag=2) == errno.EBUSY
    assert peer.error(c.TXATTRCREATE, 1, b"user.x", 1, 0, tag=2) == errno.EBUSY
    peer.finish()
    peer.call(c.TLOPEN, 1, 0)


def test_a_fid_whose_move_failed_can_be_opened(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    export.later.add("walk")
    peer.send(c.TWALK, 1, 1, (b"nothing",), tag=1)
    peer.finish()
    peer.call(c.TLOPEN, 1, 0)


def test_requests_keep_the_object_that_they_were_sent_for(peer: Peer, export: Export) -> None:
    """H022, H023: a fid moves while others read it."""
    peer.walk(0, 1, b"folder")
    export.later.add("getattr")
    old = peer.send(c.TGETATTR, 1, 0, tag=1)
    peer.walk(1, 1, b"inner")
    new = peer.send(c.TGETATTR, 1, 0, tag=2)
    peer.finish()
    peer.finish()
    assert peer.reply(old)[1][1] == export.find("folder").qid
    assert peer.reply(new)[1][1] == export.find("folder/inner").qid


# --- Tclunk ---


def test_clunk(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    peer.call(c.TCLUNK, 1)
    assert peer.error(c.TCLUNK, 1) == errno.ENOENT
    assert not export.files
    assert len(export.nodes) == 1


def test_a_clunk_that_fails_frees_the_fid_nevertheless(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.failing["close_file"] = OSError(errno.EDQUOT, "quota")
    assert peer.error(c.TCLUNK, 1) == errno.EDQUOT
    assert peer.error(c.TCLUNK, 1) == errno.ENOENT
    peer.walk(0, 1, b"file")


def test_a_file_that_is_read_is_closed_afterwards(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.later.add("read")
    read = peer.send(c.TREAD, 1, 0, 10, tag=1)
    peer.call(c.TCLUNK, 1, tag=2)
    assert export.files
    peer.finish()
    assert not export.files
    assert peer.raw_reply(read)[11:] == b"0123456789"


# --- Tremove ---


def test_remove(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    peer.call(c.TREMOVE, 1)
    assert b"file" not in export.root.entries
    assert peer.server.fids == 1


@pytest.mark.parametrize("later", [False, True])
def test_a_remove_that_fails_frees_the_fid_nevertheless(peer: Peer, export: Export, later: bool) -> None:
    peer.walk(0, 1, b"folder")
    if later:
        export.later.add("remove")
    token = peer.send(c.TREMOVE, 1)
    assert peer.server.fids == 1
    if later:
        assert len(export.nodes) == 2
        peer.finish()
    assert peer.error_of(token) == errno.ENOTEMPTY
    assert len(export.nodes) == 1


def test_a_readonly_remove_frees_the_fid_nevertheless(make_peer: Callable[..., Peer], make_export: Any) -> None:
    export = make_export(readonly=True)
    export.add("file")
    peer = make_peer(export).version().attach()
    peer.walk(0, 1, b"file")
    assert peer.error(c.TREMOVE, 1) == errno.EROFS
    assert peer.server.fids == 1
    assert b"file" in export.root.entries


# --- caps ---


def test_there_are_only_so_many_fids(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer(limits=Limits(fids=3)).version().attach()
    peer.walk(0, 1)
    peer.walk(0, 2)
    assert peer.error(c.TWALK, 0, 3, ()) == errno.ENFILE
    assert peer.error(c.TATTACH, 3, c.NOFID, b"", b"", 0) == errno.ENFILE
    assert peer.error(c.TXATTRWALK, 0, 3, b"") == errno.ENFILE
    peer.walk(2, 2, b"file")
    peer.call(c.TCLUNK, 1)
    peer.walk(0, 3)


def test_walks_in_flight_count_as_fids(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer(limits=Limits(fids=3)).version().attach()
    export.later.add("walk")
    tokens = [peer.send(c.TWALK, 0, fid, (), tag=fid) for fid in (1, 2, 3)]
    assert peer.error_of(tokens[2]) == errno.ENFILE


def test_a_hundred_thousand_fids(peer: Peer) -> None:
    for fid in range(1, 100_000, 997):
        peer.walk(0, fid)
    assert peer.server.fids == 102


# --- attaches and closes that are answered later ---


def test_an_attach_may_be_answered_later(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version()
    export.later.add("attach")
    token = peer.send(c.TATTACH, 7, c.NOFID, b"", b"tree", 1234, tag=1)
    assert peer.nbytes(token) is None
    assert peer.error(c.TATTACH, 7, c.NOFID, b"", b"", 0, tag=2) == errno.EINVAL, "the number is taken"
    assert peer.error(c.TGETATTR, 7, 0, tag=2) == errno.ENOENT
    peer.finish()
    assert peer.reply(token) == (c.RATTACH, (tuple(export.root.qid),))
    peer.call(c.TMKDIR, 7, b"made", 0o755, 9)
    assert export.calls[-1][-2:] == (1234, 9)


@pytest.mark.parametrize("failing", ["attach", "statfs"])
def test_a_late_root_that_fails_is_einval(make_peer: Callable[..., Peer], export: Export, failing: str) -> None:
    export.failing[failing] = OSError(errno.EACCES, "no")
    export.later.add("attach")
    peer = make_peer().version()
    token = peer.send(c.TATTACH, 0, c.NOFID, b"", b"", 0)
    peer.finish()
    assert peer.error_of(token) == errno.EINVAL
    assert not export.nodes
    export.failing.clear()
    export.later.clear()
    peer.attach()


def test_a_late_attach_of_a_broken_driver_ends(make_peer: Callable[..., Peer], export: Export) -> None:
    export.later.add("attach")
    peer = make_peer().version()
    token = peer.send(c.TATTACH, 0, c.NOFID, b"", b"", 0)
    _, completion, _ = export.waiting.pop()
    completion.set_error(ValueError("a bug"))
    peer.server.run_pending()
    assert peer.error_of(token) == errno.EIO
    assert peer.server.busy == 0


def test_a_flushed_attach_ends_without_an_answer(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version()
    export.later.add("attach")
    export.interruptible = True
    token = peer.send(c.TATTACH, 0, c.NOFID, b"", b"", 0, tag=1)
    peer.call(c.TFLUSH, 1, tag=2)
    assert peer.nbytes(token) == 0
    export.later.clear()
    peer.attach()


@pytest.mark.parametrize("end", ["reset", "version"])
def test_an_attach_that_comes_too_late_gives_its_node_back(
    make_peer: Callable[..., Peer], export: Export, end: str
) -> None:
    peer = make_peer().version()
    export.later.add("attach")
    peer.send(c.TATTACH, 0, c.NOFID, b"", b"", 0, tag=1)
    if end == "reset":
        peer.server.reset()
    else:
        peer.send(c.TVERSION, 8192, b"9P2000.L", tag=c.NOTAG)
    peer.finish()
    assert not export.nodes
    assert (peer.server.fids, peer.server.busy) == (0, 0)


@pytest.mark.parametrize("code", [0, errno.ENOSPC])
def test_a_clunk_waits_for_the_end_of_its_close(peer: Peer, export: Export, code: int) -> None:
    peer.open(1, b"file")
    export.later.add("close_file")
    token = peer.send(c.TCLUNK, 1, tag=1)
    assert peer.nbytes(token) is None
    peer.walk(0, 1)
    peer.finish(error=OSError(code, "full") if code else None)
    if code:
        assert peer.error_of(token) == code
    else:
        assert peer.reply(token) == (c.RCLUNK, ())
    peer.call(c.TGETATTR, 1, 0)
    assert len(export.nodes) == 2


@pytest.mark.parametrize("end", ["reset", "abandon", "version"])
def test_nobody_waits_for_a_close_where_the_session_ends(peer: Peer, export: Export, end: str) -> None:
    peer.open(1, b"file")
    peer.open(2, b"file")
    export.later.add("close_file")
    peer.send(c.TCLUNK, 1, tag=1)
    if end == "version":
        peer.send(c.TVERSION, 8192, b"9P2000.L", tag=c.NOTAG)
    else:
        getattr(peer.server, end)()
    while export.waiting:
        peer.finish(error=OSError(errno.EIO, "late"))
    assert peer.server.busy == 0
    assert peer.server.fids == (2 if end == "abandon" else 0)
    export.later.clear()


def test_a_walk_with_more_qids_than_names_is_a_drivers_mistake(peer: Peer, export: Export) -> None:
    walk = export.walk
    export.walk = lambda node, _names: walk(node, [b"folder", b".."])
    assert peer.error(c.TWALK, 0, 1, (b"file",)) == errno.EIO
    assert peer.server.fids == 1
