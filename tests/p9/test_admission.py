from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.errors import MemoryAccessError, MessageError
from pyvirtfs.fsdev.throttling import Limit, Throttle, Throttling
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import FakeClock, fake_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Peer: TypeAlias = Any
Export: TypeAlias = Any


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    with fake_clock() as clock:
        yield clock


@pytest.fixture
def throttled(clock: FakeClock, make_peer: Callable[..., Peer], export: Export) -> Callable[..., Peer]:
    """Makes a peer of the export, throttled, that has a file open as fid 1; the first one sets the limits."""

    def throttled(**limits: Any) -> Peer:
        if limits:
            export.throttle = Throttle(Throttling(**limits))
        peer = make_peer().version().attach()
        peer.open(1, b"file")
        export.calls.clear()
        return peer

    return throttled


ONE_PER_SECOND = {"iops_total": Limit(1)}
"""The first passes; the second after 0.9 s, since a bucket holds a tenth of a second; then one a second."""


def read(peer: Peer, tag: int, offset: int = 0, fid: int = 1) -> int:
    token: int = peer.send(c.TREAD, fid, offset, 4, tag=tag)
    return token


def write(peer: Peer, tag: int, data: bytes = b"abc", fid: int = 1) -> int:
    token: int = peer.send(c.TWRITE, fid, 0, len(data), data=data, tag=tag)
    return token


def run(peer: Peer, clock: FakeClock) -> list[tuple[Any, int]]:
    """Come back whenever the server wants that; what ended when, and with which size."""
    found = []
    start = clock.now
    while (deadline := peer.server.next_deadline()) is not None:
        clock.now = max(clock.now, deadline)
        before = len(peer.ended)
        assert peer.server.run_pending() > 0, "it wanted to be called for nothing"
        found += [(pytest.approx(clock.now - start), token) for token, _ in peer.ended[before:]]
    return found


# --- waiting ---


def test_requests_wait_for_their_turn(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag, offset) for tag, offset in enumerate((0, 3, 1, 2))]
    assert [peer.nbytes(token) for token in tokens] == [15, None, None, None]
    assert export.calls == [("read", 0, 4)], "the driver is not asked before it is time"
    assert peer.server.busy == 3
    assert peer.server.next_deadline() == pytest.approx(clock.now + 0.9)
    assert peer.server.run_pending() == 0
    assert run(peer, clock) == [(0.9, tokens[1]), (1.9, tokens[2]), (2.9, tokens[3])]
    assert [peer.raw_reply(token)[11:] for token in tokens] == [b"0123", b"3456", b"1234", b"2345"]
    assert (peer.server.busy, peer.server.next_deadline()) == (0, None)
    assert peer.server.counters.bytes_read == 16
    assert peer.server.counters.deferred == 3


def test_a_late_call_admits_what_is_due_by_then(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    peer = throttled(iops_total=Limit(1, 3))
    tokens = [read(peer, tag) for tag in range(10)]
    assert [peer.nbytes(token) is None for token in tokens] == [False] * 4 + [True] * 6
    clock.advance(2.5)
    assert peer.server.run_pending() == 2
    assert [token for token, _ in run(peer, clock)]
    assert [token for token, _ in peer.ended[-6:]] == tokens[-6:]


def test_bytes_that_are_asked_for_count(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    """Not those that there are; and no more than the reply has room for."""
    peer = throttled(bps_read=Limit(1000))
    peer.send(c.TREAD, 1, 5, 1 << 30, room=2011)
    assert len(peer.raw_reply(len(peer.rooms) - 1)) == 11 + 5
    token = read(peer, 1)
    assert run(peer, clock) == [(1.9, token)]


def test_reads_and_writes_queue_separately(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    peer = throttled(bps_write=Limit(10), bps_read=Limit(1000))
    writes = [write(peer, tag) for tag in range(4)]
    reads = [read(peer, tag) for tag in range(10, 14)]
    assert [peer.nbytes(token) for token in writes] == [11, None, None, None]
    assert all(peer.nbytes(token) == 15 for token in reads)
    assert run(peer, clock) == [(0.2, writes[1]), (0.5, writes[2]), (0.8, writes[3])]


def test_reads_and_writes_of_one_limit_take_turns(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    first, *writes = [write(peer, tag) for tag in range(4)]
    reads = [read(peer, tag) for tag in range(10, 12)]
    assert peer.nbytes(first) == 11
    assert [token for _, token in run(peer, clock)] == [writes[0], reads[0], writes[1], reads[1], writes[2]]


def test_what_is_not_throttled(throttled: Callable[..., Peer], export: Export) -> None:
    """Metadata, folders, attributes, and what fails before the driver is asked."""
    peer = throttled(bps_total=Limit(1), iops_total=Limit(1))
    peer.write(1, 0, b"x" * 100)
    waiting = read(peer, 9)
    peer.call(c.TGETATTR, 1, 0)
    peer.open(2, b"folder", flags=0)
    peer.call(c.TREADDIR, 2, 0, 100)
    assert peer.error(c.TREAD, 2, 0, 10) == errno.EOPNOTSUPP
    assert peer.error(c.TREAD, 99, 0, 10) == errno.EINVAL
    assert peer.error(c.TREAD, 0, 0, 10) == errno.EINVAL
    assert peer.error(c.TREAD, 1, (1 << 63) - 1, 10) == errno.EINVAL
    assert peer.error(c.TWRITE, 1, (1 << 63) - 1, 1, data=b"x") == errno.EFBIG
    assert peer.error(c.TWRITE, 99, 0, 1, data=b"x") == errno.EINVAL
    with pytest.raises(MessageError):
        peer.send(c.TWRITE, 1, 0, 100, data=b"x")
    export.root.xattrs[b"user.x"] = b"value"
    peer.call(c.TXATTRWALK, 0, 3, b"user.x")
    assert peer.read(3, 1, 3) == b"alu"
    peer.walk(0, 4)
    peer.call(c.TXATTRCREATE, 4, b"user.y", 3, 0)
    assert peer.write(4, 0, b"new") == 3
    peer.call(c.TCLUNK, 4)
    assert export.root.xattrs[b"user.y"] == b"new"
    assert peer.nbytes(waiting) is None


def test_a_direction_without_a_limit_has_the_usual_operation(throttled: Callable[..., Peer]) -> None:
    peer = throttled(bps_write=Limit(1))
    operations = peer.server._session.operations
    plain = throttled(bps_read=Limit(1)).server._session.operations
    assert operations[c.TREAD] is not plain[c.TREAD]
    assert operations[c.TWRITE] is not plain[c.TWRITE]
    for tag in range(5):
        assert len(peer.read(1, 0, 4)) == 4, tag


def test_without_a_throttle_nothing_is_different(peer: Peer, make_export: Any, make_peer: Any) -> None:
    other = make_export()
    other.throttle = Throttle(Throttling())
    unlimited = make_peer(other).version()
    for each in (peer, unlimited):
        assert each.server.next_deadline() is None
        assert [each.server._session.operations[kind].start.__name__ for kind in (c.TREAD, c.TWRITE)] == [
            "start_read", "start_write",
        ]  # fmt: skip


def test_a_readonly_export_stays_readonly(make_peer: Any, make_export: Any, clock: FakeClock) -> None:
    export = make_export(readonly=True)
    export.add("file", b"0123")
    export.throttle = Throttle(Throttling(iops_total=Limit(1)))
    peer = make_peer(export).version().attach()
    peer.open(1, b"file", flags=0)
    assert peer.error(c.TWRITE, 1, 0, 1, data=b"x") == errno.EROFS
    assert peer.read(1, 0, 4) == b"0123"
    token = read(peer, 1)
    assert run(peer, clock) == [(0.9, token)]


def test_a_clock_that_stands_still_admits_what_is_due(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    """A deadline that has come is never named again, whatever the numbers round to."""
    peer = throttled(bps_total=Limit(3), iops_read=Limit(7))
    clock.now = 1e7 + 1 / 3
    tokens = [read(peer, tag) for tag in range(30)]
    assert [token for _, token in run(peer, clock)] == tokens[1:]


def test_a_driver_that_fails_at_last(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    read(peer, 1)
    failing, broken, good = read(peer, 2), read(peer, 3), read(peer, 4)
    for token, error, code in (
        (failing, OSError(errno.EDQUOT, "quota"), errno.EDQUOT), (broken, ValueError("a bug"), errno.EIO),
    ):  # fmt: skip
        export.failing["read"] = error
        clock.now = peer.server.next_deadline()
        peer.server.run_pending()
        assert peer.error_of(token) == code
    export.failing.clear()
    run(peer, clock)
    assert peer.raw_reply(good)[11:] == b"0123"


def test_a_guest_whose_memory_is_gone_by_then(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(3)]
    export.failing["read"] = MemoryAccessError(0x1000, 4)
    clock.advance(0.9)
    with pytest.raises(MemoryAccessError):
        peer.server.run_pending()
    assert peer.nbytes(tokens[1]) is None, "there is no answer to this"
    export.failing.clear()
    assert peer.server.busy == 1
    peer.server.reset()
    assert peer.server.busy == 0


def test_a_guest_whose_memory_goes_with_a_reset(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock
) -> None:
    """What was reset is no reason to reset again."""
    peer = throttled(**ONE_PER_SECOND)
    read(peer, 0)
    read(peer, 1)

    def gone(*_: Any) -> None:
        peer.server.reset()
        raise MemoryAccessError(0x1000, 4)

    plain, export._answer = export._answer, gone
    clock.advance(0.9)
    peer.server.run_pending()
    export._answer = plain
    assert peer.server.busy == 0


def test_ctrl_c_while_the_driver_is_asked(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(3)]
    export.failing["read"] = KeyboardInterrupt()
    clock.advance(0.9)
    with pytest.raises(KeyboardInterrupt):
        peer.server.run_pending()
    export.failing.clear()
    assert select.select([peer.server.wakeup_fileno()], [], [], 0)[0]
    peer.server.run_pending()
    assert peer.error_of(tokens[1]) == errno.EIO
    assert run(peer, clock) == [(1.0, tokens[2])]


# --- flush, clunk, version, reset ---


def test_h091_a_flush_of_a_throttled_read_returns_at_once(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock
) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(4)]
    ended = len(peer.ended)
    flush = peer.send(c.TFLUSH, 2, tag=9)
    assert peer.ended[ended:] == [(tokens[2], 0), (flush, 7)]
    assert peer.server.counters.cancelled == 1
    assert run(peer, clock) == [(0.9, tokens[1]), (1.9, tokens[3])], "its turn is free for the next"
    assert len(export.calls) == 3


def test_h091_a_clunk_does_not_wait(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    first, second = read(peer, 1), read(peer, 2)
    peer.call(c.TCLUNK, 1)
    assert export.files, "the file stays open for those that wait"
    peer.open(1, b"folder", b"inner")
    third = read(peer, 3)
    assert run(peer, clock) == [(0.9, second), (1.9, third)]
    assert [peer.raw_reply(token)[11:] for token in (first, second, third)] == [b"0123", b"0123", b"insi"]
    assert len(export.files) == 1


def test_flushes_of_all(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(64)] + [write(peer, tag) for tag in range(64, 128)]
    for tag in range(128):
        assert peer.call(c.TFLUSH, tag, tag=200) == ()
    assert peer.nbytes(tokens[0]) == 15
    assert all(peer.nbytes(token) == 0 for token in tokens[1:])
    assert (peer.server.busy, peer.server.next_deadline()) == (0, None)
    clock.advance(0.9)
    assert len(peer.read(1, 0, 4)) == 4


def test_a_version_ends_those_that_wait(throttled: Callable[..., Peer], export: Export) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(4)]
    peer.version()
    assert [peer.nbytes(token) for token in tokens] == [15, 0, 0, 0]
    assert (peer.server.busy, peer.server.next_deadline(), peer.server.fids) == (0, None, 0)
    assert not export.files
    assert len(export.calls) == 2  # a read, and the close_file


@pytest.mark.parametrize("how", ["reset", "abandon", "close"])
def test_a_reset_ends_those_that_wait_silently(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock, how: str
) -> None:
    peer = throttled(**ONE_PER_SECOND)
    tokens = [read(peer, tag) for tag in range(4)]
    flush = peer.send(c.TFLUSH, 1, tag=1)
    getattr(peer.server, how)()
    assert (peer.server.busy, peer.server.next_deadline()) == (0, None)
    assert peer.server.fids == (2 if how == "abandon" else 0)
    assert bool(export.files) is (how == "abandon")
    clock.advance(100)
    assert peer.server.run_pending() == 0
    assert [peer.nbytes(token) for token in tokens] == [15, None, None, None]
    assert peer.nbytes(flush) in {7, 11}  # a flush of its own tag is nothing to wait for
    if how == "reset":
        peer.version().attach().open(1, b"file")
    if how != "close":
        assert peer.read(1, 0, 4) == b"0123"


def test_a_driver_that_resets_the_server_while_it_is_asked(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock
) -> None:
    peer = throttled(**ONE_PER_SECOND)
    plain = export._answer
    tokens = [read(peer, tag) for tag in range(3)]

    def resetting(*call: Any) -> Any:
        export._answer = plain
        peer.server.reset()
        assert peer.server.busy == 1, "what the driver is in the middle of"
        return plain(*call)

    for later in (set(), {"read"}):
        export._answer, export.later = resetting, later
        clock.advance(10)
        peer.server.run_pending()
        if later:
            assert len(export.cancelled) == 1
            peer.finish()
        export.later = set()
        assert [peer.nbytes(token) for token in tokens[1:]] == [None, None]
        assert (peer.server.busy, peer.server.next_deadline()) == (0, None)
        assert not export.files
        peer.version().attach().open(1, b"file")
        clock.advance(10)
        tokens = [read(peer, tag) for tag in range(3)]


# --- a driver that is slow, too ---


def test_a_slow_driver_behind_it(throttled: Callable[..., Peer], export: Export, clock: FakeClock) -> None:
    peer = throttled(**ONE_PER_SECOND)
    export.later.add("read")
    tokens = [read(peer, tag, offset=tag) for tag in range(3)]
    assert len(export.waiting) == 1
    clock.advance(5)
    assert peer.server.run_pending() == 0
    assert (len(export.waiting), peer.server.busy) == (2, 3), "one for 4 seconds too many: a bucket holds 0.1 s"
    clock.advance(5)
    peer.server.run_pending()
    assert (len(export.waiting), peer.server.next_deadline()) == (3, None)
    peer.finish(2)
    peer.finish(0)
    peer.finish(0, error=OSError(errno.EIO, "disk"))
    assert [peer.nbytes(token) for token in tokens] == [15, 11, 15]
    assert peer.error_of(tokens[1]) == errno.EIO


@pytest.mark.parametrize("interruptible", [False, True])
def test_a_flush_at_each_stage(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock, interruptible: bool
) -> None:
    peer = throttled(**ONE_PER_SECOND)
    export.later.add("write")
    export.interruptible = interruptible
    write(peer, 0)
    asked, waiting = write(peer, 1), write(peer, 2)
    clock.advance(0.9)
    peer.server.run_pending()
    assert peer.call(c.TFLUSH, 2, tag=9) == ()
    assert peer.nbytes(waiting) == 0
    flush = peer.send(c.TFLUSH, 1, tag=9)
    assert len(export.cancelled) == 1
    if not interruptible:
        assert peer.nbytes(flush) is None
        peer.finish(1)
    assert (peer.nbytes(asked), peer.nbytes(flush)) == (0 if interruptible else 11, 7)
    assert [token for token, _ in peer.ended[-2:]] == [asked, flush]


@pytest.mark.parametrize("how", ["reset", "abandon", "close"])
def test_a_reset_waits_for_the_driver_that_was_asked(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock, how: str
) -> None:
    peer = throttled(**ONE_PER_SECOND)
    export.later.add("read")
    tokens = [read(peer, tag) for tag in range(3)]
    clock.advance(0.9)
    peer.server.run_pending()
    getattr(peer.server, how)()
    assert peer.server.busy == 2
    assert len(export.cancelled) == 2
    peer.finish()
    peer.finish()
    assert peer.server.busy == 0
    assert all(peer.nbytes(token) is None for token in tokens)


def test_a_driver_that_fails_to_cancel(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Reset while it is asked, it answers later and cannot even be told that nobody waits."""
    peer = throttled(**ONE_PER_SECOND)
    plain = export._answer
    read(peer, 0)
    read(peer, 1)

    def resetting(*call: Any) -> Any:
        export._answer = plain
        peer.server.reset()
        return plain(*call)

    def broken(_: Any) -> None:
        raise ValueError("a bug")

    export._answer, export._cancel = resetting, broken
    export.later.add("read")
    clock.advance(1)
    peer.server.run_pending()
    assert "failed to cancel" in caplog.text
    peer.finish()
    assert peer.server.busy == 0


def test_a_completion_that_the_driver_returns_twice(
    throttled: Callable[..., Peer], export: Export, clock: FakeClock
) -> None:
    peer = throttled(iops_total=Limit(1))
    export.later.add("read")
    tokens = [read(peer, tag) for tag in range(3)]
    completion = export.waiting[0][1]
    export._answer = lambda *_: completion
    clock.advance(0.9)
    peer.server.run_pending()
    assert peer.error_of(tokens[1]) == errno.EIO
    peer.finish()
    assert peer.nbytes(tokens[0]) == 15
    clock.advance(1)
    peer.server.run_pending()
    assert peer.error_of(tokens[2]) == errno.EIO


# --- several sessions ---


def test_sessions_take_turns(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    greedy, modest = throttled(**ONE_PER_SECOND), throttled()
    many = [read(greedy, tag) for tag in range(100)]
    few = [read(modest, tag) for tag in range(3)]
    ended: list[tuple[str, int]] = []
    seen = {"greedy": 1, "modest": 0}
    for _ in range(8):
        clock.now = max(clock.now, min(greedy.server.next_deadline() or 1e9, modest.server.next_deadline() or 1e9))
        for name, peer, tokens in (("greedy", greedy, many), ("modest", modest, few)):  # always in this order
            peer.server.run_pending()
            done = sum(peer.nbytes(token) is not None for token in tokens)
            ended += [(name, done)] * (done - seen[name])
            seen[name] = done
    assert ended[:6] == [("greedy", 2), ("modest", 1), ("greedy", 3), ("modest", 2), ("greedy", 4), ("modest", 3)]


def test_a_session_that_nobody_runs_stops_no_other(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    still, busy = throttled(**ONE_PER_SECOND), throttled()
    tokens = [read(still, tag) for tag in range(3)]
    others = [read(busy, tag) for tag in range(5)]
    assert run_alone(busy, clock) == pytest.approx([1.9, 3.9, 4.9, 5.9, 6.9])  # 0.9 and 2.9 are the other's
    assert all(busy.nbytes(token) == 15 for token in others)
    assert still.server.next_deadline() == 0.0, "its turns are due"
    assert still.server.run_pending() == 2
    assert all(still.nbytes(token) == 15 for token in tokens)


def run_alone(peer: Peer, clock: FakeClock) -> list[float]:
    """As `run`, where others take turns meanwhile; when something ended."""
    start, found = clock.now, []
    while (deadline := peer.server.next_deadline()) is not None:
        clock.now = max(clock.now, deadline)
        if peer.server.run_pending():
            found.append(clock.now - start)
    return found


def test_a_request_does_not_overtake_one_whose_turn_has_come_already(
    throttled: Callable[..., Peer], clock: FakeClock
) -> None:
    one, other = throttled(iops_total=Limit(20)), throttled()
    tokens = [read(one, tag) for tag in range(4)]
    assert [one.nbytes(token) for token in tokens] == [15, 15, 15, None]
    clock.advance(60)
    read(other, 1)  # hands out what is due
    tokens.append(read(one, 4))
    assert one.server.next_deadline() == 0.0
    assert one.server.run_pending() == 2
    assert [token for token, _ in one.ended if token in tokens] == tokens


def test_the_end_of_one_session_leaves_the_other(throttled: Callable[..., Peer], clock: FakeClock) -> None:
    one, other = throttled(**ONE_PER_SECOND), throttled()
    for tag in range(5):
        read(one, tag)
    token = read(other, 1)
    one.server.close()
    assert run(other, clock) == [(0.9, token)]
