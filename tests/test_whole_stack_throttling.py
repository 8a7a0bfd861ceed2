"""A throttled export through the whole stack: what the guest sees and when, and what does not wait."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev import registry
from pyvirtfs.guest import Session
from pyvirtfs.testing import DelayedDriver, FakeClock, Pair, check_descriptors, fake_clock, pair

CONTENT = bytes(range(200))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_bytes(CONTENT)
    return folder


def options(export: Path, **throttling: int) -> str:
    words = [f"throttling.{key.replace('_', '-')}={value}" for key, value in throttling.items()]
    return ",".join([f"local,path={export},security_model=none", *words])


@contextlib.contextmanager
def timed(export: Any, **device: Any) -> Iterator[tuple[Pair, FakeClock]]:
    """A pair on a clock that jumps to the time that the device names."""
    with fake_clock() as clock, check_descriptors(), pair(export, timeout=1000, **device) as both:

        def progress(_: float) -> bool:
            deadline = both.device.next_deadline()
            if deadline is not None:
                clock.now = max(clock.now, deadline)
            return both.device.run_pending() > 0 or deadline is not None

        both.channel.progress = progress
        yield both, clock
        assert both.device.device.errors == 0
        assert both.device.next_deadline() is None


@contextlib.contextmanager
def opened(both: Pair) -> Iterator[int]:
    session = both.session
    fid = session.walk(both.mount.root_fid, [b"file"])
    session.call("Tlopen", fid=fid, flags=2)
    yield fid
    session.clunk(fid)


def start(session: Session, fid: int, count: int, nbytes: int = 10) -> list[Any]:
    return [session.start(session.client.read(fid, 10 * index, nbytes)) for index in range(count)]


@pytest.mark.parametrize("defer", [False, True], ids=["", "deferred"])
def test_exact_times(export: Path, defer: bool) -> None:
    with timed(options(export, iops_read=2, bps_write=10), defer=defer) as (both, clock), opened(both) as fid:
        began, session = clock.now, both.session
        reads = start(session, fid, 4)
        writes = [session.start(session.client.write(fid, 0, b"x" * 20)) for _ in range(3)]
        ended = []
        for each in (reads[0], writes[0], reads[1], reads[2], reads[3], writes[1], writes[2]):
            session.finish(each)
            ended.append(clock.now - began)
        # A bucket holds 0.1 s: 0.2 reads, one byte.
        assert ended == pytest.approx([0, 0, 0.4, 0.9, 1.4, 1.9, 3.9])


def test_files_are_what_they_are(export: Path) -> None:
    data = os.urandom(300_000)
    with timed(options(export, bps_total=100_000, iops_total=50, iops_size=10_000), msize=8192) as (both, clock):
        began = clock.now
        both.mount.path("new").write_bytes(data)
        assert both.mount.path("new").read_bytes() == data
        assert clock.now - began == pytest.approx(6, rel=0.05)
    assert (export / "new").read_bytes() == data


def test_the_doorbell_returns_at_once(export: Path) -> None:
    with timed(options(export, bps_read=10)) as (both, clock), opened(both) as fid:
        session, device = both.session, both.device
        interrupts, before = both.guest.interrupts, clock.now
        sent = start(session, fid, 3)
        both.channel.deliver()
        assert [each.done for each in sent] == [True, False, False]
        assert clock.now == before
        assert device.next_deadline() == pytest.approx(before + 0.9)
        session.run(session.client.getattr(fid))
        count = interrupts.messages
        assert device.run_pending() == 0
        clock.advance(0.9)
        assert device.run_pending() == 1
        both.channel.deliver()
        assert interrupts.messages == count + 1
        assert [session.finish(each) for each in sent] == [CONTENT[i : i + 10] for i in (0, 10, 20)]


def test_h091_flush_and_clunk_of_throttled_requests(export: Path) -> None:
    with timed(options(export, iops_total=1)) as (both, clock), opened(both) as fid:
        session, began = both.session, clock.now
        sent = start(session, fid, 20)
        assert session.finish(sent[0]) == CONTENT[:10]
        for each in sent[2:]:
            session.flush(each)
            assert each.request.nbytes == 0
            with pytest.raises(InterruptedError):
                session.finish(each)
        other = session.walk(both.mount.root_fid, [b"file"])
        session.call("Tlopen", fid=other, flags=0)
        last = session.start(session.client.read(other, 50, 10))
        session.clunk(other)
        assert clock.now == began, "nothing of this waits"
        assert session.finish(sent[1]) == CONTENT[10:20]
        assert session.finish(last) == CONTENT[50:60]
        assert clock.now - began == pytest.approx(1.9)


@pytest.mark.parametrize("queue_only", [False, True], ids=["device", "queue"])
def test_a_reset_does_not_wait_for_throttled_requests(export: Path, queue_only: bool) -> None:
    with timed(options(export, bps_total=1)) as (both, clock):
        fid = both.session.walk(both.mount.root_fid, [b"file"])
        both.session.call("Tlopen", fid=fid, flags=0)
        start(both.session, fid, 20)
        common = both.channel.driver.common
        began = clock.now
        if queue_only:
            common.write("queue_select", 0)
            common.write("queue_reset", 1)
            assert common.read("queue_reset") == 0
            assert both.device.server.fids > 0
        else:
            common.write("device_status", 0)
            assert common.read("device_status") == 0
            assert both.device.server.fids == 0
        assert (both.device.next_deadline(), both.device.server.busy) == (None, 0)
        messages = both.guest.interrupts.messages
        clock.advance(1000)
        assert both.device.run_pending() == 0
        assert both.guest.interrupts.messages == messages
        clock.now = began + 9.9  # the debt of the first read outlives the reset
        both.remount()
        assert both.mount.path("file").read_bytes() == CONTENT


def test_a_new_version_does_not_wait(export: Path) -> None:
    with timed(options(export, bps_total=1)) as (both, clock):
        fid = both.session.walk(both.mount.root_fid, [b"file"])
        both.session.call("Tlopen", fid=fid, flags=0)
        sent = start(both.session, fid, 20)
        began = clock.now
        both.session.run(both.session.client.version())
        both.channel.deliver()
        assert [each.request.nbytes for each in sent[1:]] == [0] * 19
        assert clock.now == began
        both.remount()


def test_without_bus_mastering_nothing_is_due(export: Path) -> None:
    """A deadline that passes, and nothing could be done: whoever keeps deadlines would spin."""
    with timed(options(export, iops_total=1)) as (both, clock), opened(both) as fid:
        sent = start(both.session, fid, 2)
        device = both.device
        command = device.config_read(4, 2)
        device.config_write(4, 2, command & ~4)
        clock.advance(10)
        assert device.next_deadline() is None
        assert device.run_pending() == 0
        assert device.next_deadline() is None
        device.config_write(4, 2, command)
        both.channel.deliver()
        assert [each.done for each in sent] == [True, True]


@pytest.mark.parametrize("flushed", [False, True])
def test_a_slow_driver_behind_a_throttle(export: Path, flushed: bool) -> None:
    driver = DelayedDriver(registry.create(options(export, iops_read=1)), {"read"})
    assert driver.throttle is driver.inner.throttle is not None
    with timed(driver) as (both, clock), opened(both) as fid:
        session = both.session
        sent = start(session, fid, 3)
        assert len(driver.held) == 1
        driver.release_all()
        clock.advance(0.9)
        assert both.device.run_pending() == 1
        assert len(driver.held) == 1, "asked when it is time, not before"
        if flushed:
            session.flush(sent[1])
            session.flush(sent[2])
        else:
            driver.release_all()
            clock.advance(1)
            both.device.run_pending()
            driver.release_all()
        both.device.run_pending()
        both.channel.deliver()
        assert [each.request.nbytes for each in sent] == [21, *([0, 0] if flushed else [21, 21])]
    driver.close()


def test_two_guests_share_the_limits_of_one_export(export: Path) -> None:
    driver = registry.create(options(export, iops_total=1))
    with timed(driver) as (one, clock), pair(driver, timeout=1000) as other:
        times: list[tuple[str, float]] = []
        with opened(one) as fid, opened(other) as other_fid:
            began = clock.now
            sent = {"one": start(one.session, fid, 6), "other": start(other.session, other_fid, 3)}
            while any(not each.done for requests in sent.values() for each in requests):
                deadlines = [both.device.next_deadline() for both in (one, other)]
                clock.now = max(clock.now, min(each for each in deadlines if each is not None))
                for name, both in (("one", one), ("other", other)):
                    times += [(name, clock.now - began)] * both.device.run_pending()
                    both.channel.deliver()
        assert [name for name, _ in times] == ["one", "other", "one", "other", "one", "other", "one", "one"]
        assert [at for _, at in times] == pytest.approx([0.9 + i for i in range(8)])
    driver.close()


# --- real time ---


@pytest.mark.parametrize("defer", [False, True], ids=["", "deferred"])
def test_a_second_by_the_real_clock(export: Path, defer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rate, block = 1_000_000, 50_000
    (export / "big").write_bytes(bytes(30 * block))
    with check_descriptors(), pair(options(export, bps_read=rate), defer=defer, timeout=60) as both:
        calls = [0]
        run_pending = both.device.run_pending

        def counted() -> int:
            calls[0] += 1
            return run_pending()

        monkeypatch.setattr(both.device, "run_pending", counted)
        session = both.session
        fid = session.walk(both.mount.root_fid, [b"big"])
        session.call("Tlopen", fid=fid, flags=0)
        began = time.monotonic()
        sent = [session.start(session.client.read(fid, block * index, block)) for index in range(24)]
        for each in sent:
            assert len(session.finish(each)) == block
        seconds = time.monotonic() - began
        # The last one starts when all before it but for a tenth of a second's worth have leaked.
        assert seconds >= 23 * block / rate - 0.1 - 1e-6
        assert seconds < 30
        assert calls[0] < 6 * len(sent), "somebody spins"
        session.clunk(fid)


def test_a_guest_that_is_not_patient_enough(export: Path) -> None:
    with pair(options(export, bps_read=1), timeout=0.2) as both, opened(both) as fid:
        sent = start(both.session, fid, 2)
        both.session.finish(sent[0])
        with pytest.raises(DeviceError, match="does not answer"):
            both.session.finish(sent[1])
        both.session.flush(sent[1])


def test_an_embedder_that_sleeps_until_the_deadline(export: Path) -> None:
    """The loop of an emulator: sleeps for as long as the device says, or until its descriptor becomes readable."""
    with check_descriptors(), pair(options(export, iops_read=50), defer=True) as both, opened(both) as fid:
        device = both.device
        sent = start(both.session, fid, 20)
        turns = 0
        while not all(each.done for each in sent):
            deadline, fileno = device.next_deadline(), device.wakeup_fileno()
            assert deadline is not None
            timeout = max(deadline - time.monotonic(), 0)
            # epoll_wait(2) counts milliseconds.
            select.select([fileno] if fileno is not None else [], [], [], math.ceil(timeout * 1000) / 1000)
            device.run_pending()
            both.channel.deliver()
            turns += 1
        assert turns < 45
        for each in sent:
            both.session.finish(each)
