"""Requests that wait: flushed, reset away, too many, their memory gone (H108 to H111, H116, H118)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import Request
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import DelayedDriver
from tests.hostile.stack import ROOT, Place, Stack, message, reply_of, sizes

Start: TypeAlias = Callable[..., Stack]
FIRST = 1000
"""The tag of a request that waits; its flushes have those behind it."""


class Blocked:
    """A device with a Tread that waits, and the order in which things are given back."""

    def __init__(self, start: Start, place: Place, *, ignore_cancel: bool, **options: Any) -> None:
        self.delayed: DelayedDriver[Any, Any] = place.delayed(ignore_cancel=ignore_cancel)
        self.stack = start(self.delayed, timeout=0.5, **options)
        self.fid = self.stack.opened(b"file")
        self.order: list[Request] = []
        self.stack.channel.queue.on_used = self._harvest
        self.delayed.delay.add("read")
        self.read = self.stack.start("Tread", tag=FIRST, fid=self.fid)
        self.untouched = self.read.reply_buffer.read(0, 64)
        assert not self.read.done

    def _harvest(self, queue: Any) -> None:
        while (used := queue.harvest()) is not None:
            used.token.nbytes = used.nbytes
            self.order.append(used.token)

    def flush(self, count: int, oldtag: int = FIRST) -> list[Request]:
        return [self.stack.start("Tflush", tag=FIRST + 1 + i, oldtag=oldtag) for i in range(count)]

    def release(self) -> None:
        self.delayed.release_all()
        self.stack.device.run_pending()
        self.stack.channel.deliver()


@pytest.mark.parametrize("tag", [0, 1, 77, 0x7FFF, c.NOTAG])
def test_h108_a_flush_of_its_own_tag(stack: Stack, tag: int) -> None:
    for _ in range(3):
        reply = stack.send(message("Tflush", tag, oldtag=tag))
        assert reply is not None
        assert (reply.kind, reply.body) == (c.RFLUSH, b"")
    stack.channel.start()  # a reset that finishes
    stack.remount()


def test_h108_a_flush_of_its_own_tag_behind_one_that_waits(start: Start, place: Place) -> None:
    blocked = Blocked(start, place, ignore_cancel=True)
    (waiting,) = blocked.flush(1)
    assert not waiting.done
    own = blocked.stack.start("Tflush", tag=FIRST + 1, oldtag=FIRST + 1)  # the same tag, which is taken
    blocked.stack.channel.deliver()
    assert own.done or not blocked.stack.channel.driver.needs_reset
    blocked.release()
    assert blocked.read.done
    assert waiting.done


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 128])
def test_h109_flushes_of_one_request_and_a_reset(start: Start, place: Place, count: int, ignore_cancel: bool) -> None:
    blocked = Blocked(start, place, ignore_cancel=ignore_cancel, queue_size=256)
    flushes = blocked.flush(count)
    blocked.stack.device.run_pending()
    blocked.stack.channel.deliver()
    assert all(flush.done is not ignore_cancel for flush in flushes)
    assert blocked.read.done is not ignore_cancel
    blocked.stack.channel.driver.common.write("device_status", 0)
    blocked.release()
    assert blocked.stack.channel.driver.status == 0  # it has finished
    assert blocked.stack.device.server.busy == 0
    assert blocked.read.done is not ignore_cancel  # and answered nothing more
    blocked.delayed.delay.clear()
    blocked.stack.remount()
    assert blocked.stack.read(blocked.stack.opened(b"file")) == b"Hi Guest"


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 127])
def test_h109_flushes_are_answered_in_their_order(start: Start, place: Place, count: int, ignore_cancel: bool) -> None:
    blocked = Blocked(start, place, ignore_cancel=ignore_cancel)
    flushes = blocked.flush(count)
    blocked.release()
    assert blocked.order == [blocked.read, *flushes]
    replies = [reply_of(flush) for flush in flushes]
    assert all(reply is not None and reply.kind == c.RFLUSH for reply in replies)


@pytest.mark.parametrize("ignore_cancel", [False, True])
def test_h110_a_flushed_request_is_answered_before_the_flush_or_never(
    start: Start, place: Place, ignore_cancel: bool
) -> None:
    blocked = Blocked(start, place, ignore_cancel=ignore_cancel)
    flushes = blocked.flush(2)
    again = blocked.stack.start("Tflush", tag=FIRST + 50, oldtag=FIRST + 2)  # of the second flush
    blocked.release()
    blocked.delayed.delay.clear()
    assert blocked.order[0] is blocked.read
    reply = reply_of(blocked.read)
    if ignore_cancel:
        assert reply is not None
        assert reply.body[4:] == b"Hi Guest"
    else:
        assert blocked.read.nbytes == 0
        assert blocked.read.reply_buffer.read(0, 64) == blocked.untouched
    assert blocked.order[1:] == [*flushes, again]
    for _ in range(5):  # nothing more comes
        blocked.stack.device.run_pending()
        blocked.stack.channel.deliver()
    assert len(blocked.order) == 4
    assert blocked.stack.read(blocked.fid) == b"Hi Guest"


@sizes(300, 10_000)
def test_h110_at_any_moment(start: Start, place: Place, count: int) -> None:
    """300 rounds (10,000) of reads, flushes, flushes of flushes, released in any order."""
    delayed = place.delayed()
    stack = start(delayed, messages=0)
    fid = stack.opened(b"file")
    order: list[Request] = []

    def harvest(queue: Any) -> None:
        while (used := queue.harvest()) is not None:
            used.token.nbytes = used.nbytes
            order.append(used.token)

    stack.channel.queue.on_used = harvest
    for seed in range(count):
        dice = random.Random(seed)
        delayed.delay.add("read")
        delayed.ignore_cancel = dice.random() < 0.5
        order.clear()
        reads = {tag: stack.start("Tread", tag=tag, fid=fid) for tag in range(10, 13)}
        flushes: list[tuple[Request, int]] = []
        for tag in range(20, 26):
            oldtag = dice.choice([*reads, *range(20, tag), 99])
            flushes.append((stack.start("Tflush", tag=tag, oldtag=oldtag), oldtag))
            waiting = list(delayed.waiting())
            if waiting and dice.random() < 0.4:
                dice.choice(waiting).release()
                stack.device.run_pending()
        delayed.release_all()
        stack.device.run_pending()
        stack.channel.deliver()
        assert len(order) == len(reads) + len(flushes)
        for flush, oldtag in flushes:
            assert reply_of(flush) is not None
            if oldtag in reads:
                assert order.index(reads[oldtag]) < order.index(flush)
        flushed = {oldtag for _, oldtag in flushes}
        for tag, read in reads.items():
            reply = reply_of(read)
            assert reply is not None or tag in flushed
            assert reply is None or reply.body[4:] == b"Hi Guest"
        delayed.delay.clear()
        for request in order:
            stack.channel.retire(request)


def test_h111_exactly_as_many_as_the_ring_holds_and_one_more(start: Start, place: Place) -> None:
    delayed = place.delayed(ignore_cancel=True)
    stack = start(delayed, timeout=0.3)
    fid = stack.opened(b"file")
    for _ in range(3):
        delayed.delay.add("read")
        sent = [stack.start("Tread", tag=tag, fid=fid) for tag in range(128)]
        assert stack.device.server.busy == 128
        assert stack.channel.queue.ring.free == 0
        with pytest.raises(DeviceError, match="the ring is full"):
            stack.start("Tread", tag=128, fid=fid)
        delayed.held[77].release()
        stack.device.run_pending()
        last = stack.start("Tread", tag=128, fid=fid)
        assert stack.device.server.busy == 128
        delayed.release_reversed()
        for request in [*sent, last]:
            reply = reply_of(stack.channel.wait(request))
            assert reply is not None
            assert reply.body[4:] == b"Hi Guest"
            stack.channel.retire(request)
        delayed.delay.clear()


# --- resets ---


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("what", ["the device", "the queue", "the function", "the session"])
def test_h116_resets_while_requests_run(
    start: Start, place: Place, what: str, ignore_cancel: bool, defer: bool
) -> None:
    delayed = place.delayed(ignore_cancel=ignore_cancel)
    stack = start(delayed, defer=defer)
    fid = stack.opened(b"file")
    delayed.delay |= {"read", "walk", "create", "getattr"}
    buffers = [
        stack.start("Tread", tag=20, fid=fid), stack.start("Twalk", tag=21, newfid=stack.new(), wnames=[b"file"]),
        stack.start("Tgetattr", tag=22), stack.start("Tlcreate", tag=23, fid=ROOT), stack.start("Tflush", oldtag=22),
    ]  # fmt: skip
    stack.device.run_pending()
    held = list(delayed.held)
    assert len(held) == 4
    driver, memory = stack.channel.driver, stack.pair.memory
    used_ring = stack.channel.queue.ring.used_address
    stack.channel.deliver()
    interrupts = stack.pair.guest.interrupts.messages
    if what == "the device":
        driver.common.write("device_status", 0)
    elif what == "the queue":
        driver.common.write("queue_select", 0)
        driver.common.write("queue_reset", 1)
    elif what == "the function":
        stack.device.reset()
    else:
        stack.start("Tversion", tag=c.NOTAG)
    if what in {"the device", "the function"}:  # it goes on for as long as a driver may still use guest memory
        assert (stack.device.bar_read(4, 20, 1) != 0) is ignore_cancel
    elif what == "the queue":
        assert driver.common.read("queue_reset") == ignore_cancel
    before = memory.read(used_ring, 4 + 8 * 128)
    replies = [request.reply_buffer.read(0, 7) for request in buffers]
    delayed.delay.clear()
    for one in held:
        one.release()
    for _ in range(3):
        stack.device.run_pending()
    assert stack.device.server.busy == 0
    if what == "the session":
        stack.channel.deliver()  # all are given back, those that were aborted without an answer
        assert all(request.done for request in buffers)
        assert not any(request.nbytes for request in buffers[:4])
        assert stack.fids == 0
    else:
        assert memory.read(used_ring, 4 + 8 * 128) == before
        assert [request.reply_buffer.read(0, 7) for request in buffers] == replies  # no header, so no reply
        assert stack.pair.guest.interrupts.messages == interrupts
    if what == "the function":
        stack.device.config_write(4, 2, 6)  # firmware would place the BARs again
        stack.pair.guest.probe()  # type: ignore[union-attr]
    stack.remount()
    assert stack.read(stack.opened(b"file")) == b"Hi Guest"


def test_h116_a_reset_out_of_an_interrupt(start: Start, place: Place) -> None:
    """The driver resets the device while the device tells it that a request is done."""
    stack = start()
    fid = stack.opened(b"file")
    resets: list[int] = []

    def reset(queue: Any) -> None:
        queue.driver.common.write("device_status", 0)
        resets.append(queue.driver.status)

    stack.channel.queue.on_used = reset
    for tag in range(5):
        stack.start("Tread", tag=tag, fid=fid, kick=False)
    stack.channel.queue.kick()
    stack.channel.deliver()
    assert resets == [0]
    stack.remount()


# --- memory ---


@pytest.mark.parametrize("name", ["Tread", "Twrite", "Tgetattr", "Treaddir"])
@pytest.mark.parametrize("part", ["request", "reply", "both"])
def test_h118_ram_that_goes_away_while_a_request_uses_it(start: Start, place: Place, name: str, part: str) -> None:
    """What was in use stays what it was until the request is over, and is not looked at afterwards."""
    memory = GuestMemory.anonymous(64 << 20)
    delayed = place.delayed(ignore_cancel=True)
    stack = start(delayed, memory=memory)
    fid = stack.opened(flags=0) if name == "Treaddir" else ROOT if name == "Tgetattr" else stack.opened(b"file")
    far = 1 << 32
    memory.add_array(bytearray(1 << 16), far)
    data = message(name, fid=fid, **({"data": b"late"} if name == "Twrite" else {}))
    own = stack.channel.driver.dma.allocate(8192)
    request_at = far if part in {"request", "both"} else own.address
    reply_at = far + 4096 if part in {"reply", "both"} else own.address + 4096
    memory.write(request_at, data)
    delayed.delay |= {"read", "write", "getattr", "readdir"}
    sent = Request(data, own, own, 1024)
    stack.channel.submit_ranges([(request_at, len(data))], [(reply_at, 1024)], sent)
    assert stack.device.server.busy == 1
    memory.remove(far, 1 << 16)
    delayed.delay.clear()
    delayed.release_all()
    stack.device.run_pending()
    stack.channel.deliver()
    assert stack.device.server.busy == 0
    assert stack.channel.broken is not None or sent.done
    if stack.channel.broken is None:
        assert stack.do("Tgetattr")["qid"]
    if name == "Twrite":
        assert (place.export / "file").read_bytes() in {b"Hi Guest", b"lateuest"}
    stack.remount()
    sent = Request(data, own, own, 1024)  # it is no RAM any more
    stack.channel.submit_ranges([(far, len(data))], [(own.address + 4096, 1024)], sent)
    assert stack.needs_reset


def breaks(stack: Stack) -> None:
    """The device says that it needs a reset."""
    assert stack.channel.driver.needs_reset


def test_h118_the_ring_goes_away(start: Start, place: Place) -> None:
    memory = GuestMemory.anonymous(64 << 20)
    stack = start(memory=memory)
    driver = stack.channel.driver
    far = 1 << 32
    memory.add_array(bytearray(1 << 16), far)
    for part in ("queue_desc", "queue_driver", "queue_device"):
        driver.negotiate(1)
        driver.common.write("queue_select", 0)
        for index, name in enumerate(("queue_desc", "queue_driver", "queue_device")):
            driver.common.write(name, (far if name == part else 0x100000) + 0x2000 * index)
        driver.common.write("queue_enable", 1)
        driver.driver_ok()
        assert not driver.needs_reset
        memory.remove(far, 1 << 16)
        stack.device.bar_write(4, 0x3000, 2, 0)
        breaks(stack)
        memory.add_array(bytearray(1 << 16), far)
    memory.remove(far, 1 << 16)
    stack.remount()
