from __future__ import annotations

import errno
import os
import select
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.errors import ConfigError, GuestError, MemoryAccessError, MessageError
from pyvirtfs.memory.buffers import Buffers, ViewBuffers
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


# --- what has no answer ---


@pytest.mark.parametrize("nbytes", range(7))
def test_fewer_than_seven_bytes_are_no_request(peer: Peer, nbytes: int) -> None:
    with pytest.raises(MessageError):
        peer.submit(codec.encode(c.TCLUNK, 1, 0)[:nbytes])
    assert peer.server.fids == 1


@pytest.mark.parametrize("room", range(11))
def test_every_reply_needs_room_for_an_error(peer: Peer, room: int) -> None:
    with pytest.raises(MessageError):
        peer.send(c.TCLUNK, 0, room=room)
    assert peer.server.fids == 1


@pytest.mark.parametrize("size", [0, 6, 12, 2**32 - 1])
def test_a_size_that_lies_is_no_request(peer: Peer, size: int) -> None:
    message = codec.encode(c.TCLUNK, 1, 0)
    with pytest.raises(MessageError):
        peer.submit(size.to_bytes(4, "little") + message[4:])
    with pytest.raises(MessageError):
        peer.submit(size.to_bytes(4, "little") + message[4:7])


@pytest.mark.parametrize("size", [6, 2000, 2**32 - 1])
def test_a_long_message_whose_size_lies_is_no_request(peer: Peer, size: int) -> None:
    message = codec.encode(c.TWALK, 1, 0, 1, (b"x" * 1000,))
    with pytest.raises(MessageError):
        peer.submit(size.to_bytes(4, "little") + message[4:])


def test_a_message_longer_than_msize_is_no_request(peer: Peer) -> None:
    with pytest.raises(MessageError, match="msize"):
        peer.send(c.TWALK, 0, 1, (b"x" * 8192,))
    with pytest.raises(MessageError, match="msize"):
        peer.send(c.TWRITE, 0, 0, 8192, data=bytes(8192))


def test_a_body_that_is_cut_off_is_no_request(peer: Peer) -> None:
    message = codec.encode(c.TLCREATE, 1, 0, b"name", 0, 0o644, 0)
    for nbytes in range(7, len(message)):
        with pytest.raises(MessageError):
            peer.submit(nbytes.to_bytes(4, "little") + message[4:nbytes])


def test_bytes_behind_the_message_are_ignored(peer: Peer) -> None:
    for rest in (b"\xff", bytes(1000)):
        token = peer.submit(codec.encode(c.TGETATTR, 1, 0, 0) + rest)
        assert peer.reply(token)[0] == c.RGETATTR


FIXED_REPLIES = [
    (c.TGETATTR, (0, 0x7FF), 160),
    (c.TSTATFS, (0,), 67),
    (c.TWALK, (0, 5, ()), 11),
    (c.TMKDIR, (0, b"new", 0o755, 0), 20),
    (c.TMKNOD, (0, b"new", 0o100644, 0, 0, 0), 20),
    (c.TSYMLINK, (0, b"new", b"target", 0), 20),
    (c.TLCREATE, (0, b"new", 0, 0o644, 0), 24),
    (c.TLOPEN, (0, 0), 24),
    (c.TATTACH, (7, c.NOFID, b"", b"", 0), 20),
    (c.TXATTRWALK, (0, 5, b""), 15),
    (c.TLOCK, (0, 0, 0, 0, 0, 1, b"me"), 11),
    (c.TUNLINKAT, (0, b"file", 0), 11),
    (c.TRENAMEAT, (0, b"file", 0, b"moved"), 11),
    (c.TVERSION, (8192, b"9P2000.L"), 21),
]


@pytest.mark.parametrize(("kind", "fields", "nbytes"), FIXED_REPLIES)
def test_a_reply_that_cannot_fit_is_found_before_anything_is_done(
    peer: Peer, export: Export, kind: int, fields: tuple[Any, ...], nbytes: int
) -> None:
    calls = len(export.calls)
    names = sorted(export.root.entries)
    with pytest.raises(MessageError):
        peer.send(kind, *fields, room=nbytes - 1)
    assert len(export.calls) == calls
    assert sorted(export.root.entries) == names
    assert peer.server.fids == 1
    assert peer.reply(peer.send(kind, *fields, room=nbytes))[0] == kind + 1


def test_a_reply_that_cannot_be_written_is_the_guests_fault(peer: Peer) -> None:
    message = ViewBuffers.of(codec.encode(c.TCLUNK, 1, 0))
    with pytest.raises(MessageError, match="written"):
        peer.server.submit(message, ViewBuffers.of(bytes(64)), lambda *_: None, None)


# --- types ---


def test_unknown_types_are_answered(peer: Peer) -> None:
    known = {message for message in range(256) if message in codec.MESSAGES and not message % 2}
    for kind in set(range(256)) - known:
        for body in (b"", b"\0" * 4, b"\xff" * 100):
            frame = (7 + len(body)).to_bytes(4, "little") + bytes([kind]) + b"\1\0" + body
            assert peer.error_of(peer.submit(frame)) == errno.EOPNOTSUPP  # H119: also to a reply, which is no request
    assert peer.server.fids == 1


def test_every_type_survives_every_short_body(peer: Peer) -> None:
    for kind in range(256):
        for body in (b"", b"\0", b"\xff" * 3, b"\0" * 40, b"\xff" * 40):
            frame = (7 + len(body)).to_bytes(4, "little") + bytes([kind]) + b"\1\0" + body
            try:
                peer.submit(frame)
            except MessageError:
                continue
            assert peer.nbytes(len(peer.rooms) - 1) is not None


# --- payloads ---


class Watched(Buffers):
    """Buffers that tell what was read of them."""

    def __init__(self, data: bytes) -> None:
        self._inner = ViewBuffers.of(bytearray(data))
        self.nbytes = len(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, nbytes: int) -> bytes:
        self.reads.append((offset, nbytes))
        return self._inner.read(offset, nbytes)

    def write(self, offset: int, data: Any) -> None:
        raise NotImplementedError

    def slice(self, offset: int, nbytes: int) -> Buffers:
        return self._inner.slice(offset, nbytes)

    def views(self) -> list[memoryview]:
        return self._inner.views()

    def preadv(self, fd: int, offset: int) -> int:
        raise NotImplementedError

    def pwritev(self, fd: int, offset: int) -> int:
        raise NotImplementedError


def test_the_payload_of_a_write_is_not_copied(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    request = Watched(codec.encode(c.TWRITE, 1, 1, 0, 4096) + b"x" * 4096)
    peer.server.submit(request, ViewBuffers.of(bytearray(64)), lambda *_: None, None)
    assert request.reads == [(0, 23)]
    assert export.find("file").content == b"x" * 4096


@pytest.mark.parametrize("nbytes", [10, 255, 2000])
def test_each_byte_of_a_request_is_copied_once(peer: Peer, nbytes: int) -> None:
    message = codec.encode(c.TMKDIR, 1, 0, b"x" * nbytes, 0o755, 0)
    request = Watched(message)
    peer.server.submit(request, ViewBuffers.of(bytearray(64)), lambda *_: None, None)
    covered = [byte for offset, count in request.reads for byte in range(offset, offset + count)]
    assert covered == list(range(len(message)))


# --- drivers that break their contract ---


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyError("x"), errno.EIO), (OSError("no errno"), errno.EIO), (OSError(5000, "?"), errno.EIO)],
)
def test_whatever_a_driver_raises_is_an_errno(peer: Peer, export: Export, raised: Exception, code: int) -> None:
    export.failing["getattr"] = raised
    assert peer.error(c.TGETATTR, 0, 0) == code


def test_a_live_request_never_ends_in_eintr(peer: Peer, export: Export) -> None:
    export.failing["getattr"] = InterruptedError(errno.EINTR, "interrupted")
    assert peer.error(c.TGETATTR, 0, 0) == errno.EIO


def test_a_deferred_request_that_nobody_interrupted_does_not_end_in_eintr(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    token = peer.send(c.TGETATTR, 0, 0)
    peer.finish(error=InterruptedError(errno.EINTR, "interrupted"))
    assert peer.error_of(token) == errno.EIO


def test_memory_that_goes_away_under_a_request_is_the_guests_fault(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.failing["read"] = MemoryAccessError(0x1000, 10)
    with pytest.raises(GuestError):
        peer.send(c.TREAD, 1, 0, 10)


def test_a_driver_that_answers_nonsense_gets_an_errno_sent(peer: Peer, export: Export) -> None:
    export.getattr = lambda _node: 7
    assert peer.error(c.TGETATTR, 0, 0) == errno.EIO
    peer.open(1, b"file")
    for nonsense in (-1, 2**32, None):
        export.read = lambda *_, answer=nonsense: answer
        assert peer.error(c.TREAD, 1, 0, 10) == errno.EIO


# --- tags ---


def test_a_tag_in_flight_cannot_be_used_again(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    first = peer.send(c.TGETATTR, 0, 0, tag=5)
    assert peer.error(c.TGETATTR, 0, 0, tag=5) == errno.EINVAL
    assert peer.error(c.TFLUSH, 9, tag=5) == errno.EINVAL
    assert peer.nbytes(first) is None
    peer.finish()
    assert peer.reply(first)[0] == c.RGETATTR


# --- answers that come later ---


def test_a_deferred_request_is_answered_when_the_driver_answers(peer: Peer, export: Export) -> None:
    assert peer.server.wakeup_fileno() is None
    export.later.add("getattr")
    token = peer.send(c.TGETATTR, 0, 0)
    assert peer.server.run_pending() == 0
    assert (peer.nbytes(token), peer.server.busy) == (None, 1)
    export.complete()
    assert peer.server.run_pending() == 1
    assert peer.reply(token)[0] == c.RGETATTR
    assert peer.server.busy == 0


def test_other_requests_overtake_a_deferred_one(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    slow = peer.send(c.TGETATTR, 0, 0, tag=1)
    peer.call(c.TSTATFS, 0, tag=2)
    assert peer.nbytes(slow) is None


def test_a_completion_from_another_thread_wakes_the_server(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    tokens = [peer.send(c.TGETATTR, 0, 0, tag=tag) for tag in range(8)]
    poll = select.poll()
    poll.register(peer.server.wakeup_fileno(), select.POLLIN)
    assert not poll.poll(0)

    def work() -> None:
        for _ in tokens:
            export.complete(len(export.waiting) - 1)

    thread = threading.Thread(target=work)
    thread.start()
    while any(peer.nbytes(token) is None for token in tokens):
        assert poll.poll(5000)
        peer.server.run_pending()
    thread.join()
    assert [token for token, _ in peer.ended[-8:]] == tokens[::-1]
    peer.server.run_pending()
    assert not poll.poll(0)


def test_a_completion_that_is_complete_already_is_answered_at_once(peer: Peer, export: Export) -> None:
    getattr_ = export.getattr

    def complete_at_once(node: Any) -> Any:
        completion = getattr_(node)
        export.complete()
        return completion

    export.later.add("getattr")
    export.getattr = complete_at_once
    peer.call(c.TGETATTR, 0, 0)


def test_a_deferred_request_can_fail(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    token = peer.send(c.TGETATTR, 0, 0)
    peer.finish(error=OSError(errno.ESTALE, "stale"))
    assert peer.error_of(token) == errno.ESTALE


def test_a_completion_that_a_driver_returns_twice_harms_one_request_only(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    first = peer.send(c.TGETATTR, 0, 0, tag=1)
    completion = export.waiting[0][1]
    export.statfs = lambda _node: completion
    assert peer.error(c.TSTATFS, 0, tag=2) == errno.EIO
    peer.finish()
    assert peer.reply(first)[0] == c.RGETATTR


# --- reset and close ---


def test_a_reset_ends_everything_silently(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version().attach()
    peer.open(1, b"file")
    export.later |= {"read", "walk"}
    read = peer.send(c.TREAD, 1, 0, 10, tag=1)
    walk = peer.send(c.TWALK, 0, 2, (b"file",), tag=2)
    flush = peer.send(c.TFLUSH, 1, tag=3)
    ended = len(peer.ended)
    peer.server.reset()
    assert peer.server.fids == 0
    assert peer.server.busy == 2
    assert len(export.cancelled) == 2
    assert export.files, "the file is closed under a read"
    peer.finish()
    peer.finish()
    assert len(peer.ended) == ended
    assert [peer.nbytes(token) for token in (read, walk, flush)] == [None] * 3
    assert peer.server.busy == 0
    assert not export.nodes
    assert not export.files
    export.later.clear()
    peer.version().attach()


def test_after_a_reset_an_old_request_cannot_touch_the_new_session(peer: Peer, export: Export) -> None:
    export.later.add("walk")
    peer.send(c.TWALK, 0, 5, (), tag=1)
    peer.server.reset()
    peer.version().attach()
    new = peer.send(c.TWALK, 0, 5, (), tag=1)
    peer.finish(0)
    assert peer.nbytes(new) is None
    assert peer.error(c.TATTACH, 5, c.NOFID, b"", b"", 0, tag=2) == errno.EINVAL, "the number is taken"
    peer.finish(0)
    assert peer.reply(new)[0] == c.RWALK


def test_a_reset_out_of_done_ends_those_that_follow(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    message = ViewBuffers.of(codec.encode(c.TGETATTR, 1, 0, 0))
    peer.server.submit(message, ViewBuffers.of(bytearray(200)), lambda *_: peer.server.reset(), None)
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.finish()
    assert peer.nbytes(flush) is None


def test_a_closed_server_takes_late_completions(peer: Peer, export: Export) -> None:
    export.later |= {"create", "open", "walk"}
    peer.send(c.TLCREATE, 0, b"new", 0, 0o644, 0)
    peer.server.close()
    assert peer.server.wakeup_fileno() is None
    peer.finish()
    peer.server.close()


def test_descriptors_do_not_leak(make_peer: Callable[..., Peer], export: Export) -> None:
    export.later.add("getattr")
    peer = make_peer().version().attach()
    peer.send(c.TGETATTR, 0, 0)
    fd = peer.server.wakeup_fileno()
    os.fstat(fd)
    peer.server.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_nothing_is_ever_due_unless_the_driver_says_so(
    peer: Peer, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peer.server.next_deadline() is None
    monkeypatch.setattr(export, "next_deadline", lambda: 12.5)
    assert peer.server.next_deadline() == 12.5
    monkeypatch.setattr(export, "run_pending", lambda: export.complete(0, None) if peer.server.busy else None)
    export.later.add("getattr")
    token = peer.send(c.TGETATTR, 0, 0)
    assert peer.server.busy == 1
    assert peer.server.run_pending() == 1
    assert peer.reply(token)[0] == c.RGETATTR


# --- what one can see ---


def test_a_trace_shows_requests_and_replies(make_peer: Callable[..., Peer], export: Export) -> None:
    lines: list[str] = []
    peer = make_peer(trace=lines.append).version()
    export.later.add("getattr")
    peer.attach().send(c.TGETATTR, 0, 0, tag=4)
    peer.finish()
    assert [line.split()[0] for line in lines] == [
        "Tversion", "Rversion", "Tattach", "Rattach", "Tgetattr", "Rgetattr",
    ]  # fmt: skip
    assert all("malformed" not in line for line in lines)


def test_counters(peer: Peer, export: Export) -> None:
    counters = peer.server.counters
    before = counters.requests
    peer.open(1, b"file")
    peer.read(1, 0, 4)
    peer.write(1, 0, b"abc")
    peer.error(c.TGETATTR, 99, 0)
    export.later.add("getattr")
    peer.send(c.TGETATTR, 0, 0)
    peer.finish()
    assert counters.requests - before == 6
    assert counters.by_type[c.TGETATTR] == 2
    assert (counters.errors, counters.bytes_read, counters.bytes_written, counters.deferred) == (1, 4, 3, 1)


def test_an_msize_limit_below_the_minimum_is_refused(export: Export) -> None:
    with pytest.raises(ConfigError, match="msize_limit"):
        Server(export, msize_limit=4095)


# --- descriptors that are used up, and signals ---


def test_no_descriptor_left_loses_no_answer(
    peer: Peer, export: Export, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used_up(*_: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    export.later.add("getattr")
    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", used_up)
        tokens = [peer.send(c.TGETATTR, 0, 0, tag=tag) for tag in range(2)]
        assert (peer.server.busy, peer.server.wakeup_fileno()) == (2, None)
        assert "too many" in caplog.text
        peer.finish()
        assert peer.reply(tokens[0])[0] == c.RGETATTR
        export.complete()
    fd = peer.server.wakeup_fileno()
    assert select.select([fd], [], [], 0)[0], "what came meanwhile is not told"
    peer.server.run_pending()
    assert peer.reply(tokens[1])[0] == c.RGETATTR


def test_a_hushed_server_keeps_what_came(peer: Peer, export: Export) -> None:
    peer.server.hush()
    export.later.add("getattr")
    tokens = [peer.send(c.TGETATTR, 0, 0, tag=tag) for tag in range(2)]
    fd = peer.server.wakeup_fileno()
    export.complete()
    peer.server.hush()
    assert not select.select([fd], [], [], 0)[0]
    assert peer.nbytes(tokens[0]) is None
    export.complete()
    assert select.select([fd], [], [], 0)[0]
    assert peer.server.run_pending() == 2
    assert [peer.reply(token)[0] for token in tokens] == [c.RGETATTR] * 2


def test_the_log_names_the_driver_and_the_request(peer: Peer, export: Export, caplog: pytest.LogCaptureFixture) -> None:
    export.failing["getattr"] = KeyError("bug")
    peer.error(c.TGETATTR, 0, 0)
    assert [record.getMessage() for record in caplog.records] == ["driver FakeExport broke its contract in a Tgetattr"]


# --- resets from inside of a request ---


@pytest.mark.parametrize("method", ["reset", "abandon"])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("walk", c.TWALK, (0, 5, (b"file",))),
        ("create", c.TLCREATE, (0, b"new", 0, 0o644, 0)),
        ("attach", c.TATTACH, (9, c.NOFID, b"", b"", 0)),
        ("getattr", c.TGETATTR, (0, 0)),
    ],
)
def test_a_driver_that_has_the_device_reset_gets_no_reply_written(
    peer: Peer, export: Export, method: str, later: bool, name: str, kind: int, fields: tuple[Any, ...]
) -> None:
    real = getattr(export, name)

    def resetting(*arguments: Any) -> Any:
        answer = real(*arguments)
        getattr(peer.server, method)()
        return answer

    if later:
        export.later.add(name)
    setattr(export, name, resetting)
    token = peer.send(kind, *fields)
    while export.waiting:
        peer.finish()
    assert peer.nbytes(token) is None
    assert not any(peer.rooms[token])
    left = int(method == "abandon")
    assert (peer.server.fids, len(export.nodes), peer.server.busy) == (left, left, 0)
    assert not export.files


def test_a_driver_that_fails_after_it_had_the_device_reset_gets_no_reply_written(peer: Peer, export: Export) -> None:
    for error in (OSError(errno.EIO, "io"), MemoryAccessError(0x1000, 10), KeyError("bug")):
        peer.version().attach()

        def failing(_node: Any, error: Exception = error) -> Any:
            peer.server.reset()
            raise error

        export.getattr = failing
        token = peer.send(c.TGETATTR, 0, 0)
        assert peer.nbytes(token) is None
        assert not any(peer.rooms[token])


@pytest.mark.parametrize(("message", "written"), [("Twalk", False), ("Rwalk", True)])
@pytest.mark.parametrize("later", [False, True])
def test_a_trace_may_have_the_device_reset(
    make_peer: Callable[..., Peer], export: Export, message: str, written: bool, later: bool
) -> None:
    def trace(line: str) -> None:
        if line.startswith(message):
            peer.server.reset()

    peer = make_peer(trace=trace).version().attach()
    if later:
        export.later.add("walk")
    token = peer.send(c.TWALK, 0, 5, ())
    while export.waiting:
        peer.finish()
    assert peer.nbytes(token) is None
    assert any(peer.rooms[token]) == written
    assert (peer.server.fids, len(export.nodes)) == (0, 0)


def test_a_reset_out_of_a_cancel_ends_the_flush_that_caused_it(peer: Peer, export: Export) -> None:
    export.later.add("getattr")
    peer.send(c.TGETATTR, 0, 0, tag=1)
    cancel = export._cancel
    export.waiting[0][1]._on_cancel = lambda completion: (cancel(completion), peer.server.reset())
    flush = peer.send(c.TFLUSH, 1, tag=2)
    peer.finish()
    assert peer.nbytes(flush) is None
    peer.version().attach()
