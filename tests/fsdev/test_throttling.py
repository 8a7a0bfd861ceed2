from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.options import OptionTable
from pyvirtfs.fsdev.throttling import OPTIONS, READ, WRITE, Lane, Limit, Throttle, Throttling

TABLE = OptionTable("x", OPTIONS)
NOW = 1000.0


def parse(**options: int | str) -> Throttling | None:
    pairs = {"throttling." + key.replace("_", "-"): str(value) for key, value in options.items()}
    return Throttling.from_options(TABLE.parse(pairs))


# --- options and their rules ---


def test_the_options_are_those_of_qemu() -> None:
    names = [
        f"throttling.{unit}-{scope}{suffix}"
        for unit in ("bps", "iops")
        for scope in ("total", "read", "write")
        for suffix in ("", "-max", "-max-length")
    ]
    assert [option.name for option in OPTIONS] == [*names, "throttling.iops-size"]
    assert all(line.endswith("(default: 0)") or "-max-length=" in line for line in TABLE.describe())


def test_nothing_said_is_no_throttle() -> None:
    assert parse() is None
    assert parse(bps_total=0, iops_read=0, bps_total_max_length=1) is None
    assert ExportDriver.throttle is None


def test_what_is_said() -> None:
    assert parse(bps_read=100, bps_read_max="0x100", bps_read_max_length=3, iops_total=7, iops_size="8") == Throttling(
        bps_read=Limit(100, 256, 3), iops_total=Limit(7), iops_size=8
    )
    assert parse(bps_total="10M", bps_total_max="0x2000000", iops_read=5, iops_size="64k") == Throttling(
        bps_total=Limit(10 << 20, 32 << 20), iops_read=Limit(5), iops_size=1 << 16
    )
    assert parse(bps_total=10**15, bps_total_max=10**15) == Throttling(bps_total=Limit(10**15, 10**15))


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        ({"bps_total": 5, "bps_read": 6}, "bps-total", ["5", "bps-read=6", "both"]),
        ({"bps_total": 5, "bps_write": 6}, "bps-total", ["5", "bps-write=6", "both"]),
        ({"iops_total": 5, "iops_write": 6}, "iops-total", ["5", "iops-write=6", "both"]),
        ({"bps_total": 5, "bps_total_max": 9, "bps_write_max": 8}, "bps-total-max", ["9", "bps-write-max=8", "both"]),
        ({"iops_read": 5, "iops_read_max": 9, "iops_total_max": 8}, "iops-total-max", ["8", "iops-read-max=9"]),
        ({"bps_read_max": 5}, "bps-read-max", ["5", "needs throttling.bps-read beside"]),
        ({"iops_total_max": 5}, "iops-total-max", ["5", "needs throttling.iops-total beside"]),
        ({"bps_write": 10, "bps_write_max": 9}, "bps-write-max", ["9", "less than throttling.bps-write=10"]),
        ({"iops_read": 5, "iops_read_max_length": 2}, "iops-read-max-length", ["2", "needs throttling.iops-read-max"]),
        ({"bps_total_max_length": 2}, "bps-total-max-length", ["2", "needs throttling.bps-total-max beside"]),
        ({"bps_total_max_length": 0}, "bps-total-max-length", ["0", "from 1 to"]),
        (
            {"bps_total": 1, "bps_total_max": 10**15, "bps_total_max_length": 2},
            "bps-total-max-length",
            ["2", f"throttling.bps-total-max={10**15}", "more than"],
        ),
        ({"iops_size": 4096}, "iops-size", ["4096", "needs", "throttling.iops-total", "throttling.iops-write"]),
        ({"iops_size": 4096, "bps_total": 1}, "iops-size", ["needs"]),
        ({"iops_size": 10**15 + 1, "iops_total": 1}, "iops-size", [str(10**15)]),
        ({"bps_read": 10**15 + 1}, "bps-read", [str(10**15 + 1), f"from 0 to {10**15}"]),
        ({"bps_read": 1, "bps_read_max": 10**15 + 1}, "bps-read-max", ["from 0 to"]),
        ({"bps_total": "-1"}, "bps-total", ["'-1' is not a size"]),
        ({"bps_total": "1.5M"}, "bps-total", ["'1.5M' is not a size", "whole number"]),
        ({"bps_total": ""}, "bps-total", ["'' is not a size"]),
        ({"bps_read": "1P"}, "bps-read", [str(1 << 50), f"from 0 to {10**15}"]),
        ({"iops_total": "1k"}, "iops-total", ["'1k' is not a number", "there is no suffix"]),
        ({"bps_read": 1, "bps_read_max_length": "2s"}, "bps-read-max-length", ["'2s' is not a", "there is no suffix"]),
        ({"bps": 1}, "bps", ["no such option", "throttling.bps-total"]),
    ],
)
def test_bad_options_are_named(options: Mapping[str, int | str], option: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**options)
    assert caught.value.option == f"throttling.{option}"
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_bad_arguments() -> None:
    with pytest.raises(ConfigError, match=r"^throttling\.bps-total: -1 must be from 0"):
        Throttling(bps_total=Limit(-1))
    with pytest.raises(ConfigError, match=r"^throttling\.iops-read-max: 1 is less than throttling\.iops-read=2"):
        Throttling(iops_read=Limit(2, 1))


def test_the_local_driver_takes_them(tmp_path: object) -> None:
    base = f"local,path={tmp_path},security_model=none"
    driver = create(f"{base},throttling.bps-read=1000,readonly=on")
    assert driver.throttle is not None
    assert (driver.throttle.limits(READ), driver.throttle.limits(WRITE)) == (True, False)
    driver.close()
    driver = create(f"{base},throttling.bps-read=0")
    assert driver.throttle is None
    driver.close()


# --- the buckets ---


def admission(throttle: Throttle, lane: Lane, nbytes: int, now: float) -> float:
    """When a request passes that comes now, nobody else waiting."""
    ticket = throttle.enter(lane, nbytes, now)
    if ticket.passed:
        return now
    due = throttle.due(lane.direction)
    assert due > now
    passed = []
    for moment in (max(now, due - 0.001), due):
        throttle.advance(moment)
        passed.append(ticket.passed)
    assert passed == [False, True], "the time that was named is not the right one: somebody would spin, or sleep"
    return due


def times(throttling: Throttling, requests: list[tuple[int, int]]) -> list[float]:
    """How long after `NOW` requests of (direction, bytes) pass that follow each other at once."""
    throttle = Throttle(throttling)
    now, found = NOW, []
    lanes = Lane(READ), Lane(WRITE)
    for direction, nbytes in requests:
        now = admission(throttle, lanes[direction], nbytes, now)
        found.append(now - NOW)
    return found


def test_one_request_always_passes_and_then_the_debt_is_paid() -> None:
    assert times(Throttling(bps_total=Limit(100)), [(READ, 1000), (READ, 1), (WRITE, 1)]) == pytest.approx(
        [0, 9.9, 9.91]
    )


def test_a_tenth_of_a_second_passes_at_once() -> None:
    found = times(Throttling(iops_write=Limit(100)), [(WRITE, 0)] * 13)
    assert found == pytest.approx([0.0] * 11 + [0.01, 0.02])


def test_a_burst_of_a_second() -> None:
    """A full bucket of 5 x 1 s passes at once, then 1 per second."""
    found = times(Throttling(iops_total=Limit(1, 5)), [(READ, 0), (WRITE, 0)] * 4)
    assert found == pytest.approx([0] * 6 + [1, 2])


def test_a_long_burst_has_its_own_rate() -> None:
    """10 a second for as long as 3 seconds' worth (30, less what leaks meanwhile) last, then 1 per second."""
    found = times(Throttling(iops_read=Limit(1, 10, 3)), [(READ, 0)] * 40)
    assert found[:3] == pytest.approx([0, 0, 0.1])  # a tenth of a second of the burst's rate is 1
    assert found[3:30] == pytest.approx([0.1 * (i - 1) for i in range(3, 30)])
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert gaps[-5:] == pytest.approx([1.0] * 5)


def test_large_requests_count_as_several() -> None:
    throttling = Throttling(iops_total=Limit(10), iops_size=1000)
    assert times(throttling, [(READ, 5000), (READ, 1000), (READ, 999), (READ, 1500), (READ, 0)]) == pytest.approx(
        [0, 0.4, 0.5, 0.6, 0.75]
    )


def test_reads_and_writes_have_their_own() -> None:
    throttling = Throttling(bps_read=Limit(100), bps_write=Limit(10))
    assert times(throttling, [(READ, 30), (WRITE, 30)]) == [0, 0]
    assert times(throttling, [(READ, 30), (READ, 1)]) == pytest.approx([0, 0.2])
    assert times(throttling, [(WRITE, 30), (WRITE, 1)]) == pytest.approx([0, 2.9])


def test_no_limit_of_a_direction() -> None:
    throttle = Throttle(Throttling(iops_read=Limit(1)))
    assert (throttle.limits(READ), throttle.limits(WRITE)) == (True, False)
    assert throttle.due(WRITE) < NOW
    throttle = Throttle(Throttling(bps_total=Limit(1)))
    assert (throttle.limits(READ), throttle.limits(WRITE)) == (True, True)


class Model:
    """The rules as they are written: levels, in exact numbers."""

    def __init__(self, throttling: Throttling) -> None:
        self.size = throttling.iops_size
        self.limits = {
            kind: limit
            for unit in ("bps", "iops")
            for scope in ("total", "read", "write")
            if (limit := throttling.limit(kind := f"{unit}-{scope}")).average
        }
        self.level = dict.fromkeys(self.limits, Fraction(0))
        self.burst_level = dict.fromkeys(self.limits, Fraction(0))
        self.now = Fraction(0)

    def _leak(self, seconds: Fraction) -> None:
        self.now += seconds
        for kind, limit in self.limits.items():
            self.level[kind] = max(Fraction(0), self.level[kind] - limit.average * seconds)
            self.burst_level[kind] = max(Fraction(0), self.burst_level[kind] - limit.burst * seconds)

    def _wait(self, kind: str) -> Fraction:
        limit = self.limits[kind]
        size = Fraction(limit.burst * limit.length) if limit.burst else Fraction(limit.average, 10)
        wait = (self.level[kind] - size) / limit.average
        if limit.length > 1:
            wait = max(wait, (self.burst_level[kind] - Fraction(limit.burst, 10)) / limit.burst)
        return max(wait, Fraction(0))

    def admit(self, pause: Fraction, direction: int, nbytes: int) -> Fraction:
        self._leak(pause)
        kinds = [kind for kind in self.limits if kind.endswith(("total", ("read", "write")[direction]))]
        self._leak(max((self._wait(kind) for kind in kinds), default=Fraction(0)))
        for kind in kinds:
            units = Fraction(nbytes)
            if kind.startswith("iops"):
                units = Fraction(nbytes, self.size) if self.size and nbytes > self.size else Fraction(1)
            self.level[kind] += units
            self.burst_level[kind] += units
        return self.now


@st.composite
def limits(draw: st.DrawFn, largest: int) -> Limit:
    average = draw(st.integers(1, largest))
    if draw(st.booleans()):
        return Limit(average)
    return Limit(average, draw(st.integers(average, 10 * largest)), draw(st.integers(1, 5)))


@st.composite
def throttlings(draw: st.DrawFn) -> Throttling:
    chosen: dict[str, Limit] = {}
    for unit, largest in (("bps", 100_000), ("iops", 1000)):
        for scope in draw(st.sampled_from([(), ("total",), ("read",), ("write",), ("read", "write")])):
            chosen[f"{unit}_{scope}"] = draw(limits(largest))
    size = draw(st.integers(0, 5000)) if any(name.startswith("iops") for name in chosen) else 0
    return Throttling(**chosen, iops_size=size)


@settings(deadline=None, max_examples=300)
@given(
    throttling=throttlings(),
    requests=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1, 50, 1000, 30_000]), st.sampled_from([READ, WRITE]), st.integers(0, 50_000)
        ),
        max_size=40,
    ),
)
def test_the_buckets_against_a_model(throttling: Throttling, requests: list[tuple[int, int, int]]) -> None:
    model = Model(throttling)
    throttle = Throttle(throttling)
    lanes = Lane(READ), Lane(WRITE)
    now = 0.0
    for pause, direction, nbytes in requests:  # the pause in milliseconds
        expected = model.admit(Fraction(pause, 1000), direction, nbytes)
        now += pause / 1000
        ticket = throttle.enter(lanes[direction], nbytes, now)
        if not ticket.passed:
            now = throttle.due(direction)
            throttle.advance(now)
            assert ticket.passed
        assert now == pytest.approx(float(expected), abs=1e-6)


# --- turns ---


def drain(throttle: Throttle, *lanes: Lane, now: float = NOW) -> list[tuple[float, list[Lane]]]:
    """Whose turn it is, and when, until nobody waits."""
    found = []
    while any(lane.waiting for lane in lanes):
        now = max(now, min(throttle.due(lane.direction) for lane in lanes if lane.waiting))
        before = {lane: len(lane.waiting) for lane in lanes}
        throttle.advance(now)
        passed = [lane for lane in lanes if len(lane.waiting) < before[lane]]
        assert passed
        found.append((now - NOW, passed))
    return found


def test_lanes_take_turns() -> None:
    throttle = Throttle(Throttling(iops_total=Limit(1)))
    greedy, modest, writer = Lane(READ), Lane(READ), Lane(WRITE)
    tickets = [throttle.enter(greedy, 1, NOW) for _ in range(100)]
    assert [ticket.passed for ticket in tickets] == [True] + [False] * 99
    late = throttle.enter(modest, 1, NOW), throttle.enter(writer, 1, NOW), throttle.enter(modest, 1, NOW)
    turns = drain(throttle, greedy, modest, writer)
    assert [lanes for _, lanes in turns[:6]] == [[greedy], [modest], [writer], [greedy], [modest], [greedy]]
    assert [at for at, _ in turns[:3]] == pytest.approx([0.9, 1.9, 2.9])
    assert all(ticket.passed for ticket in (*tickets, *late))


def test_a_newcomer_does_not_overtake_those_whose_turn_is_due() -> None:
    throttle = Throttle(Throttling(iops_total=Limit(1)))
    first, second = Lane(READ), Lane(READ)
    throttle.enter(first, 1, NOW)
    waiting = throttle.enter(first, 1, NOW)
    newcomer = throttle.enter(second, 1, NOW + 5)  # nobody has looked after the first meanwhile
    assert waiting.passed
    assert not newcomer.passed
    throttle.advance(throttle.due(READ))
    assert newcomer.passed


def test_reads_do_not_wait_for_writes_of_another_limit() -> None:
    throttle = Throttle(Throttling(iops_write=Limit(1), iops_read=Limit(1)))
    reads, writes = Lane(READ), Lane(WRITE)
    slow = [throttle.enter(writes, 1, NOW) for _ in range(5)]
    read = [throttle.enter(reads, 1, NOW) for _ in range(2)]
    assert [ticket.passed for ticket in read] == [True, False]
    throttle.advance(NOW + 0.9)
    assert [ticket.passed for ticket in read] == [True, True]
    assert [ticket.passed for ticket in slow] == [True, True, False, False, False]


def test_who_leaves_frees_its_turn() -> None:
    throttle = Throttle(Throttling(iops_total=Limit(1)))
    one, other = Lane(READ), Lane(READ)
    passed = throttle.enter(one, 1, NOW)
    first, second, third = (throttle.enter(one, 1, NOW) for _ in range(3))
    others = throttle.enter(other, 1, NOW)
    throttle.leave(one, second)
    throttle.leave(one, first)
    throttle.advance(NOW + 0.9)
    assert (third.passed, others.passed) == (True, False)
    throttle.leave(other, others)
    throttle.leave(one, passed)  # too late to be of any effect
    assert not one.waiting
    assert not other.waiting
    assert times_left(throttle) == []
    assert throttle.enter(other, 1, NOW + 1.9).passed


def times_left(throttle: Throttle) -> list[Lane]:
    """The lanes that somebody waits in."""
    return list(throttle._lanes)


@settings(deadline=None)
@given(st.data())
def test_nobody_waits_for_more_than_one_turn_of_each_other_lane(data: st.DataObject) -> None:
    throttle = Throttle(Throttling(bps_total=Limit(1000)))
    lanes = [Lane(data.draw(st.sampled_from([READ, WRITE]))) for _ in range(data.draw(st.integers(1, 4)))]
    now = NOW
    throttle.enter(Lane(READ), 1000, now)
    for _ in range(data.draw(st.integers(1, 60))):
        lane = data.draw(st.sampled_from(lanes))
        match data.draw(st.sampled_from(["enter", "enter", "leave", "wait"])):
            case "enter":
                throttle.enter(lane, 500, now)
            case "leave":
                if lane.waiting:
                    throttle.leave(lane, data.draw(st.sampled_from(list(lane.waiting))))
            case "wait":
                now += data.draw(st.sampled_from([0.01, 0.3, 1.0]))
                throttle.advance(now)
        assert set(times_left(throttle)) == {lane for lane in lanes if lane.waiting}
    waiting = [lane for lane in lanes if lane.waiting]
    turns = [lane for _, passed in drain(throttle, *lanes, now=now) for lane in passed]
    assert set(turns[: len(waiting)]) == set(waiting)


def test_several_threads() -> None:
    throttle = Throttle(Throttling(iops_total=Limit(1000)))
    lanes = [Lane(READ) for _ in range(4)]
    passed = [0] * len(lanes)

    def work(index: int) -> None:
        now = NOW
        for number in range(500):
            ticket = throttle.enter(lanes[index], 1, now)
            if number % 3 == 0:
                throttle.leave(lanes[index], ticket)
                passed[index] += ticket.passed
                continue
            while not ticket.passed:
                now = max(now, throttle.due(READ))
                throttle.advance(now)
            passed[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(lanes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times_left(throttle) == []
    # All that passed is in the bucket: what remains of it leaks in so many seconds.
    assert throttle.due(READ) + 0.1 >= NOW + sum(passed) / 1000 - 1e-6
