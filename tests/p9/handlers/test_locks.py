"""Tlock, Tgetlock."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.fsdev.driver import Lock
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.limits import CLIENT_ID_MAX, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

READ, WRITE, UNLOCK = c.LOCK_TYPE_RDLCK, c.LOCK_TYPE_WRLCK, c.LOCK_TYPE_UNLCK


def lock(peer: Peer, kind: int, start: int = 0, length: int = 0, owner: int = 1, fid: int = 1, flags: int = 0) -> int:
    status: int = peer.call(c.TLOCK, fid, kind, flags, start, length, owner, b"guest")
    return status


@pytest.fixture
def opened(peer: Peer) -> Peer:
    peer.open(1, b"file")
    return peer


def test_locks_are_honoured(opened: Peer) -> None:
    assert lock(opened, WRITE, 0, 10) == c.LOCK_SUCCESS
    assert lock(opened, WRITE, 5, 10, owner=2) == c.LOCK_BLOCKED
    assert lock(opened, READ, 5, 10, owner=2, flags=c.LOCK_FLAGS_BLOCK) == c.LOCK_BLOCKED
    assert lock(opened, WRITE, 10, 10, owner=2) == c.LOCK_SUCCESS
    assert lock(opened, UNLOCK, 0, 10) == c.LOCK_SUCCESS
    assert lock(opened, UNLOCK, 0, 10) == c.LOCK_SUCCESS, "not held any more"
    assert lock(opened, WRITE, 0, 10, owner=2) == c.LOCK_SUCCESS


def test_what_the_driver_is_told(opened: Peer, export: Export) -> None:
    lock(opened, WRITE, 5, 7)
    assert export.calls[-1] == ("lock", Lock(True, 5, 12, 1, b"guest"))
    lock(opened, READ, 5, 0)
    assert export.calls[-1] == ("lock", Lock(False, 5, None, 1, b"guest"))
    lock(opened, UNLOCK, 0, 0)
    assert export.calls[-1][0] == "unlock"


def test_the_reply_is_eight_bytes(opened: Peer) -> None:
    """H134."""
    token = opened.send(c.TLOCK, 1, WRITE, 0, 0, 0, 1, b"guest")
    assert opened.nbytes(token) == 8


@pytest.mark.parametrize(("start", "length"), [(2**63, 0), (2**63 - 1, 2), (2**64 - 1, 1), (1, 2**64 - 1)])
def test_ranges_beyond_all_files(opened: Peer, start: int, length: int) -> None:
    assert opened.error(c.TLOCK, 1, WRITE, 0, start, length, 1, b"") == errno.EINVAL
    assert opened.error(c.TGETLOCK, 1, WRITE, start, length, 1, b"") == errno.EINVAL


def test_the_last_byte_of_all_files(opened: Peer) -> None:
    assert lock(opened, WRITE, 2**63 - 1, 1) == c.LOCK_SUCCESS
    assert lock(opened, WRITE, 0, 2**63, owner=2) == c.LOCK_BLOCKED


@pytest.mark.parametrize("flags", [2, 3, 4, 2**31])
def test_flags(opened: Peer, flags: int) -> None:
    assert opened.error(c.TLOCK, 1, WRITE, flags, 0, 0, 1, b"") == errno.EINVAL


@pytest.mark.parametrize("kind", [3, 255])
def test_types(opened: Peer, kind: int) -> None:
    assert opened.error(c.TLOCK, 1, kind, 0, 0, 0, 1, b"") == errno.EINVAL
    assert opened.error(c.TGETLOCK, 1, kind, 0, 0, 1, b"") == errno.EINVAL


def test_an_error_of_the_host_is_an_errno(opened: Peer, export: Export) -> None:
    export.failing["lock"] = OSError(errno.ENOLCK, "no locks")
    assert opened.error(c.TLOCK, 1, WRITE, 0, 0, 0, 1, b"") == errno.ENOLCK


def test_a_clunk_releases(opened: Peer, export: Export) -> None:
    lock(opened, WRITE)
    opened.open(2, b"file")
    assert lock(opened, WRITE, fid=2, owner=2) == c.LOCK_BLOCKED
    opened.call(c.TCLUNK, 1)
    assert lock(opened, WRITE, fid=2, owner=2) == c.LOCK_SUCCESS
    assert len(export.find("file").locks) == 1


def test_a_lock_granted_after_the_clunk_is_released(opened: Peer, export: Export) -> None:
    export.later.add("lock")
    token = opened.send(c.TLOCK, 1, WRITE, 0, 0, 0, 1, b"guest", tag=1)
    opened.call(c.TCLUNK, 1, tag=2)
    opened.finish()
    assert opened.reply(token) == (c.RLOCK, (c.LOCK_SUCCESS,))
    assert not export.find("file").locks


def test_two_guests_are_different_owners(make_peer: Callable[..., Peer]) -> None:
    peers = [make_peer().version().attach() for _ in range(2)]
    for peer in peers:
        peer.open(1, b"file")
    assert [lock(peer, WRITE) for peer in peers] == [c.LOCK_SUCCESS, c.LOCK_BLOCKED]
    peers[0].server.close()
    assert lock(peers[1], WRITE) == c.LOCK_SUCCESS


def test_a_session_has_only_so_many_locks(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer(limits=Limits(locks=2)).version().attach()
    peer.open(1, b"file")
    peer.open(2, b"file")
    lock(peer, WRITE, 0, 1)
    lock(peer, WRITE, 1, 1, fid=2)
    assert peer.error(c.TLOCK, 1, WRITE, 0, 2, 1, 1, b"guest") == errno.ENOLCK
    lock(peer, UNLOCK, 0, 1)
    lock(peer, WRITE, 2, 1)


# --- Tgetlock ---


def test_no_conflict_is_an_unlock_and_the_rest_echoed(opened: Peer) -> None:
    for kind in (READ, WRITE, UNLOCK):
        assert opened.call(c.TGETLOCK, 1, kind, 5, 7, 9, b"guest") == (UNLOCK, 5, 7, 9, b"guest")


def test_a_conflict_is_told(opened: Peer) -> None:
    lock(opened, READ, 5, 0, owner=4)
    assert opened.call(c.TGETLOCK, 1, WRITE, 0, 100, 9, b"other") == (READ, 5, 0, 4, b"guest")
    assert opened.call(c.TGETLOCK, 1, READ, 0, 100, 9, b"other")[0] == UNLOCK
    lock(opened, UNLOCK, 5, 0, owner=4)
    lock(opened, WRITE, 5, 7, owner=4)
    assert opened.call(c.TGETLOCK, 1, READ, 0, 100, 9, b"other") == (WRITE, 5, 7, 4, b"guest")


def test_an_unlock_asks_for_a_write_lock(opened: Peer) -> None:
    lock(opened, READ, 0, 0, owner=4)
    assert opened.call(c.TGETLOCK, 1, UNLOCK, 0, 0, 9, b"other")[0] == READ


def test_a_long_owner_must_fit(opened: Peer) -> None:
    assert opened.error(c.TGETLOCK, 1, READ, 0, 0, 1, b"x" * 100, room=129) == errno.EMSGSIZE
    assert opened.call(c.TGETLOCK, 1, READ, 0, 0, 1, b"x" * 100, room=130)[0] == UNLOCK


def test_the_names_of_owners_cannot_use_up_the_hosts_memory(opened: Peer, export: Export) -> None:
    longest = b"x" * CLIENT_ID_MAX
    calls = len(export.calls)
    for kind in (READ, WRITE, UNLOCK):
        assert opened.error(c.TLOCK, 1, kind, 0, 0, 0, 1, longest + b"x") == errno.ENAMETOOLONG
        assert opened.error(c.TGETLOCK, 1, kind, 0, 0, 1, longest + b"x") == errno.ENAMETOOLONG
    assert len(export.calls) == calls
    assert opened.call(c.TLOCK, 1, WRITE, 0, 0, 0, 1, longest) == c.LOCK_SUCCESS
    assert opened.call(c.TGETLOCK, 1, WRITE, 0, 0, 1, longest)[0] == UNLOCK
