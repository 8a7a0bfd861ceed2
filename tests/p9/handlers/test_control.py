"""flush(5)."""

from __future__ import annotations

import errno
from typing import Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c

Peer: TypeAlias = Any
Export: TypeAlias = Any


@pytest.mark.parametrize("old_tag", [0, 1, 2, 77, c.NOTAG])
def test_a_flush_of_nothing_is_answered(peer: Peer, old_tag: int) -> None:
    """An unknown tag, one that was answered already, and the flush's own (H108)."""
    peer.call(c.TGETATTR, 0, 0, tag=2)
    flush = peer.send(c.TFLUSH, old_tag, tag=1)
    assert peer.ended[-1] == (flush, 7)
    assert peer.reply(flush) == (c.RFLUSH, ())


@pytest.mark.parametrize("flushes", [1, 2, 3, 128])
def test_flushes_wait_for_their_request_in_order(peer: Peer, export: Export, flushes: int) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1000)
    waiting = [peer.send(c.TFLUSH, 1000, tag=tag) for tag in range(flushes)]
    assert all(peer.nbytes(token) is None for token in waiting)
    assert len(export.cancelled) == 1
    peer.finish()
    assert [token for token, _ in peer.ended[-flushes - 1 :]] == [request, *waiting]
    assert peer.reply(request)[0] == c.RGETATTR
    assert all(peer.reply(token) == (c.RFLUSH, ()) for token in waiting)


def test_a_request_that_was_interrupted_ends_without_an_answer(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.finish(error=OSError(errno.EINTR, "interrupted"))
    assert peer.ended[-2:] == [(request, 0), (flush, 7)]
    assert not any(peer.rooms[request])


def test_a_request_that_failed_otherwise_is_answered(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.finish(error=OSError(errno.ENOENT, "gone"))
    assert peer.error_of(request) == errno.ENOENT
    assert peer.ended[-1] == (flush, 7)


def test_a_driver_that_can_be_interrupted_lets_the_flush_return_at_once(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    export.interruptible = True
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    peer.call(c.TFLUSH, 1, tag=2)
    assert peer.nbytes(request) == 0


def test_a_walk_that_was_interrupted_made_no_fid(peer: Peer, export: Export) -> None:
    export.later.add("walk")
    peer.send(c.TWALK, 0, 5, (b"file",), tag=1)
    peer.send(c.TFLUSH, 1, tag=2)
    peer.finish(error=OSError(errno.EINTR, "interrupted"))
    export.later.clear()
    assert peer.error(c.TCLUNK, 5) == errno.ENOENT
    peer.walk(0, 5, b"file")


def test_a_flushed_walk_that_finished_made_its_fid(peer: Peer, export: Export) -> None:
    export.later.add("walk")
    walk = peer.send(c.TWALK, 0, 5, (b"file",), tag=1)
    peer.send(c.TFLUSH, 1, tag=2)
    peer.finish()
    assert peer.reply(walk)[0] == c.RWALK
    peer.call(c.TCLUNK, 5)


def test_a_flush_can_be_flushed(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    flushes = [peer.send(c.TFLUSH, tag - 1, tag=tag) for tag in range(2, 1500)]
    peer.finish()
    assert [token for token, _ in peer.ended[-1499:]] == [request, *flushes]
    assert all(nbytes for _, nbytes in peer.ended)


def test_a_flush_of_its_own_tag_does_not_hurt_who_uses_it(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    peer.call(c.TFLUSH, 1, tag=1)
    assert not export.cancelled
    peer.finish()
    assert peer.reply(request)[0] == c.RGETATTR


def test_a_flush_waits_for_a_request_whose_answer_is_on_its_way(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    request = peer.send(c.TGETATTR, 0, 0, tag=1)
    export.complete()  # in another thread, say: the server has not noticed
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.server.run_pending()
    assert [token for token, _ in peer.ended[-2:]] == [request, flush]
    assert not export.cancelled


def test_flushes_of_all_outstanding_requests(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    for tag in range(128):
        peer.send(c.TGETATTR, 0, 0, tag=tag)
    for tag in range(128):
        peer.send(c.TFLUSH, tag, tag=1000 + tag)
    for _ in range(128):
        peer.finish(len(export.waiting) - 1)
    assert len(peer.ended) == 2 + 256
    peer.call(c.TFLUSH, 5)


def test_a_driver_whose_cancel_fails_does_not_stop_the_flush(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    peer.send(c.TGETATTR, 0, 0, tag=1)
    export.cancelled = None  # so that it fails
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.finish()
    assert peer.reply(flush)[0] == c.RFLUSH
