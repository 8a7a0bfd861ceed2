from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.session import payload_unit

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


@pytest.mark.parametrize(
    ("msize", "block", "unit"),
    [
        (8192, 1, 8168),
        (8192, 512, 7680),
        (8192, 4096, 4096),
        (8192, 1 << 20, 8168),
        (8192, 0, 8168),
        (131072, 4096, 126976),
    ],
)
def test_payloads_are_whole_blocks(msize: int, block: int, unit: int) -> None:
    assert payload_unit(msize, block) == unit


@pytest.mark.parametrize("block", [1, 512, 4096, 1 << 20])
def test_iounit_and_blksize_follow_the_file_system(make_peer: Callable[..., Peer], export: Export, block: int) -> None:
    export.block_nbytes = block
    peer = make_peer().version().attach()
    peer.walk(0, 1, b"file")
    assert peer.call(c.TLOPEN, 1, 0)[1] == payload_unit(8192, block)
    assert peer.call(c.TGETATTR, 1, 0)[8] == payload_unit(8192, block)


def test_a_file_system_that_answers_late_is_not_waited_for(make_peer: Callable[..., Peer], export: Export) -> None:
    export.later.add("statfs")
    peer = make_peer().version().attach()
    assert peer.call(c.TGETATTR, 0, 0)[8] == 4096


# --- version(5) ---


@pytest.mark.parametrize(
    ("asked", "agreed"), [(4096, 4096), (131096, 131096), (4186112, 4186112), (2**31, 4186112), (2**32 - 1, 4186112)]
)
def test_msize_is_at_most_what_was_asked_and_what_is_possible(
    make_peer: Callable[..., Peer], asked: int, agreed: int
) -> None:
    peer = make_peer()
    assert peer.call(c.TVERSION, asked, b"9P2000.L", tag=c.NOTAG) == (agreed, b"9P2000.L")
    assert peer.server.msize == agreed


def test_the_limit_can_be_lower(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer(msize_limit=5000)
    assert peer.call(c.TVERSION, 131072, b"9P2000.L", tag=c.NOTAG) == (5000, b"9P2000.L")


@pytest.mark.parametrize("msize", [0, 7, 23, 24, 4095])
def test_nothing_fits_a_tiny_msize(make_peer: Callable[..., Peer], msize: int) -> None:
    peer = make_peer()
    assert peer.error(c.TVERSION, msize, b"9P2000.L", tag=c.NOTAG) == errno.EMSGSIZE
    assert peer.error(c.TATTACH, 0, c.NOFID, b"", b"", 0) == errno.EPROTO
    assert peer.call(c.TVERSION, msize, b"9P1999", tag=c.NOTAG)[1] == b"unknown"


@pytest.mark.parametrize(
    "version",
    [
        b"",
        b"9P",
        b"9P2001",
        b"9P20000.u",
        b"9p2000.l",
        b"9P1999.L",
        b" 9P2000",
        b"unknown",
        b"unknown.L" * 7000,
    ],
)
def test_other_versions_are_unknown(make_peer: Callable[..., Peer], version: bytes) -> None:
    peer = make_peer()
    assert peer.call(c.TVERSION, 8192, version, tag=c.NOTAG) == (8192, b"unknown")
    assert peer.error(c.TATTACH, 0, c.NOFID, b"", b"", 0) == errno.EPROTO


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [
        (b"9P2000", b"9P2000"),
        (b"9P2000.u", b"9P2000.u"),
        (b"9P2000.L.Google.7", b"9P2000.L"),
        (b"9P2000.u.", b"9P2000.u"),
        (b"9P2000.W", b"9P2000"),
        (b"9P2000.", b"9P2000"),
        (b"9P2000.L" * 8000, b"9P2000"),
    ],
)
def test_what_stands_before_a_period_is_a_version_too(
    make_peer: Callable[..., Peer], asked: bytes, agreed: bytes
) -> None:
    peer = make_peer()
    assert peer.call(c.TVERSION, 8192, asked, tag=c.NOTAG) == (8192, agreed)


@pytest.mark.parametrize(
    ("coder", "reply"), [(codec.UNIX, (b"Message too long", 90)), (codec.PLAIN, (b"Message too long",))]
)
def test_a_version_that_fails_does_so_in_the_dialect_asked_for(
    make_peer: Callable[..., Peer], coder: codec.Codec, reply: tuple[Any, ...]
) -> None:
    peer = make_peer()
    peer.coder = coder
    assert peer.reply(peer.send(c.TVERSION, 4095, coder.vocabulary.version, tag=c.NOTAG)) == (c.RERROR, reply)
    assert peer.reply(peer.send(c.TCLUNK, 0))[1][0] == b"Protocol error"
    assert peer.call(c.TVERSION, 8192, b"nonsense", tag=c.NOTAG)[1] == b"unknown"
    peer.coder = codec.LINUX
    assert peer.error(c.TCLUNK, 0) == errno.EPROTO  # as before any version
    peer.version(coder=coder).attach()


@pytest.mark.parametrize("version", [b"9P2000.L", b"9P2000.u"])
def test_a_version_ends_the_session(peer: Peer, export: Export, version: bytes) -> None:
    peer.open(1, b"file")
    peer.call(c.TLOCK, 1, c.LOCK_TYPE_WRLCK, 0, 0, 0, 1, b"me")
    peer.call(c.TVERSION, 8192, version, tag=c.NOTAG)
    assert peer.server.fids == 0
    assert not export.nodes
    assert not export.files
    assert not export.find("file").locks


def test_before_a_version_nothing_works_but_a_flush(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer()
    bodies: dict[int, tuple[Any, ...]] = {
        c.TATTACH: (0, c.NOFID, b"", b"", 0),
        c.TCLUNK: (0,),
        c.TGETATTR: (0, 0),
        c.TWALK: (0, 1, ()),
    }
    for kind, fields in bodies.items():
        assert peer.error(kind, *fields) == errno.EPROTO
    peer.call(c.TFLUSH, 5)
    assert not export.calls


def test_a_version_in_the_middle_of_requests(peer: Peer, export: Export) -> None:
    """They end without an answer, and when they have ended the new session begins."""
    peer.open(1, b"file")
    export.later |= {"read", "open", "walk"}
    read = peer.send(c.TREAD, 1, 0, 10, tag=1)
    walk = peer.send(c.TWALK, 0, 2, (b"file",), tag=2)
    flush = peer.send(c.TFLUSH, 1, tag=3)
    version = peer.send(c.TVERSION, 4096, b"9P2000.L", tag=c.NOTAG)
    assert len(export.cancelled) == 2
    assert peer.nbytes(version) is None, "the driver still has the buffers of the read"
    assert peer.error(c.TATTACH, 0, c.NOFID, b"", b"", 0, tag=9) == errno.EPROTO
    peer.finish()
    peer.finish()
    assert [peer.nbytes(token) for token in (read, walk, flush)] == [0, 0, 0]
    assert peer.ended[-1][0] == version
    assert peer.reply(version) == (c.RVERSION, (4096, b"9P2000.L"))
    assert peer.server.fids == 0
    assert peer.server.counters.cancelled == 3
    peer.attach()


def test_a_version_cancels_drivers_that_can_be_cancelled_at_once(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    export.interruptible = True
    waits = peer.send(c.TGETATTR, 0, 0)
    assert peer.call(c.TVERSION, 4096, b"9P2000.L", tag=c.NOTAG) == (4096, b"9P2000.L")
    assert peer.nbytes(waits) == 0


def test_a_version_ends_another_one_that_waits(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    old = peer.send(c.TGETATTR, 0, 0, tag=1)
    first = peer.send(c.TVERSION, 4096, b"9P2000.L", tag=c.NOTAG)
    second = peer.send(c.TVERSION, 5000, b"9P2000.L", tag=c.NOTAG)
    third = peer.send(c.TVERSION, 6000, b"9P2000.L", tag=c.NOTAG)
    peer.finish()
    assert [peer.nbytes(token) for token in (old, first, second)] == [0, 0, 0]
    assert peer.reply(third) == (c.RVERSION, (6000, b"9P2000.L"))
    assert peer.server.msize == 6000


def test_a_failed_version_does_not_wait(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    old = peer.send(c.TGETATTR, 0, 0, tag=1)
    assert peer.error(c.TVERSION, 10, b"9P2000.L", tag=c.NOTAG) == errno.EMSGSIZE
    peer.finish()
    assert peer.nbytes(old) == 0


def test_the_wire_of_a_version(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer()
    token = peer.submit(bytes.fromhex("1500000064ffff00200000080039503230 30302e4c".replace(" ", "")))
    assert peer.raw_reply(token).hex() == "1500000065ffff002000000800395032303030 2e4c".replace(" ", "")
    assert codec.decode(peer.raw_reply(token))[1] == c.NOTAG


@pytest.mark.parametrize("tag", [5, c.NOTAG])
def test_a_reset_ends_a_version_and_what_it_waits_for(peer: Peer, export: Export, tag: int) -> None:
    """A Tversion with the tag of a request in flight takes its place among the tags, not its place in flight."""
    peer.open(1, b"file")
    export.later.add("read")
    read = peer.send(c.TREAD, 1, 0, 10, tag=5)
    version = peer.send(c.TVERSION, 8192, b"9P2000.L", tag=tag)
    peer.server.reset()
    peer.finish()
    assert [peer.nbytes(token) for token in (read, version)] == [None, None]
    assert peer.error(c.TGETATTR, 0, 0) == errno.EPROTO, "there is no session"


def test_a_version_waits_for_all_whose_tag_another_took(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.later.add("read")
    tokens = [peer.send(c.TREAD, 1, 0, 10, tag=5)]
    tokens += [peer.send(c.TVERSION, msize, b"9P2000.L", tag=5) for msize in (8192, 4096)]
    tokens.append(peer.send(c.TVERSION, 5000, b"9P2000.L", tag=6))
    peer.finish()
    assert [peer.nbytes(token) for token in tokens[:3]] == [0, 0, 0]
    assert peer.reply(tokens[3]) == (c.RVERSION, (5000, b"9P2000.L"))


@pytest.mark.parametrize("end", ["reset", "version"])
def test_a_number_of_the_last_session_stays_taken_in_the_new_one(peer: Peer, export: Export, end: str) -> None:
    """An old walk that ends gives its own reservation back, not that of the new session's walk."""
    export.later.add("walk")
    peer.send(c.TWALK, 0, 5, (), tag=1)
    if end == "version":
        peer.send(c.TVERSION, 8192, b"9P2000.L", tag=2)
    peer.server.abandon()
    if end == "reset":
        peer.server.reset()
    peer.version().attach()
    new = peer.send(c.TWALK, 0, 5, (b"file",), tag=1)
    peer.finish(0)
    assert peer.nbytes(new) is None
    assert peer.error(c.TWALK, 0, 5, (), tag=3) == errno.EINVAL, "the number is taken"
    peer.finish(0)
    assert peer.reply(new)[0] == c.RWALK
    assert len(export.nodes) == 2
