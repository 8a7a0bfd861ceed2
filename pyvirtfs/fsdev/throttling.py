"""Throttling: how many bytes and requests a second an export serves (QEMU's ``throttling.*``).

A limit is a leaky bucket. What is admitted fills it, by bytes or by requests; it leaks at the average rate; a request
waits while there is more in it than it holds. So one request always passes an empty bucket, whatever its size; the debt
is paid before the next one. A bucket holds a tenth of a second, or the burst if one is set; a burst of more than a
second has a second bucket, of a tenth of a second, that leaks at the burst's rate.

Here a bucket is the time at which it will be empty: its level is the time until then, multiplied by its rate. Deadlines
follow from it without rounding, so nobody wakes up a moment too early again and again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import Option, OptionType, OptionValue

READ: Final = 0
WRITE: Final = 1

_PREFIX: Final = "throttling."
_LARGEST: Final = 10**15
_USUAL_SECONDS: Final = 0.1
"""What a bucket holds, in seconds of its rate, where no burst says more: requests come in groups."""

_UNITS: Final[Mapping[str, OptionType]] = {"bps": "size", "iops": "number"}
_SCOPES: Final = ("total", "read", "write")
_KINDS: Final = tuple(f"{unit}-{scope}" for unit in _UNITS for scope in _SCOPES)
"""The names of the limits."""
_LIMITED: Final = (
    "Bytes read and written", "Bytes read", "Bytes written",
    "Read and write requests", "Read requests", "Write requests",
)  # fmt: skip
"""What each one limits."""


def _options() -> Iterator[Option]:
    for name, what in zip(_KINDS, _LIMITED, strict=True):
        kind = _UNITS[name.partition("-")[0]]
        burst = f"{what} per second in a burst after a pause, at least {name}; 0: no bursts"
        length = f"A burst is so many seconds of {name}-max: all at once if 1, else at that rate"
        yield Option(name=_PREFIX + name, type=kind, default=0, help=f"{what} per second; 0: no limit")
        yield Option(name=f"{_PREFIX}{name}-max", type=kind, default=0, help=burst)
        yield Option(name=f"{_PREFIX}{name}-max-length", type="number", default=1, help=length)
    size = "A request of more bytes counts as several, one for each so many bytes; 0: as one"
    yield Option(name=f"{_PREFIX}iops-size", type="size", default=0, help=size)


OPTIONS: Final = tuple(_options())
"""For the table of any driver that can be throttled."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit; units are bytes or requests."""

    average: int = 0
    """Units per second; 0: no limit."""
    burst: int = 0
    """Units per second for as long as a burst lasts (``-max``); 0: no bursts."""
    length: int = 1
    """Seconds that a burst may last (``-max-length``)."""


_NONE: Final = Limit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttling:
    """What ``throttling.*`` says.

    Raises:
        ConfigError: A value cannot be, or two contradict each other; names the options as in an option string.
    """

    bps_total: Limit = _NONE
    bps_read: Limit = _NONE
    bps_write: Limit = _NONE
    iops_total: Limit = _NONE
    iops_read: Limit = _NONE
    iops_write: Limit = _NONE
    iops_size: int = 0
    """Larger requests count as so many requests as their bytes make of this; 0: each request counts as one."""

    def __post_init__(self) -> None:
        limits = {f"{_PREFIX}{kind}": self.limit(kind) for kind in _KINDS}
        for key, limit in limits.items():
            _check_range(key, limit.average)
            _check_range(f"{key}-max", limit.burst)
            _check_range(f"{key}-max-length", limit.length, 1)
        _check_range(f"{_PREFIX}iops-size", self.iops_size)
        for unit in _UNITS:
            _check_total(unit, limits)
        for key, limit in limits.items():
            _check_burst(key, limit)
        if self.iops_size and not any(limits[f"{_PREFIX}iops-{scope}"].average for scope in _SCOPES):
            choices = [f"{_PREFIX}iops-{scope}" for scope in _SCOPES]
            raise ConfigError(f"{_PREFIX}iops-size", f"{self.iops_size} needs a limit of requests beside it", choices)

    @classmethod
    def from_options(cls, values: Mapping[str, OptionValue]) -> Throttling | None:
        """What the values of `OPTIONS` say; None: nothing is limited.

        Raises:
            ConfigError: See `Throttling`.
        """

        def number(key: str, default: int = 0) -> int:
            value = values.get(_PREFIX + key)
            return value if isinstance(value, int) else default

        limits = {
            kind.replace("-", "_"): Limit(number(kind), number(f"{kind}-max"), number(f"{kind}-max-length", 1))
            for kind in _KINDS
        }
        throttling = cls(**limits, iops_size=number("iops-size"))
        return throttling if throttling.limits_anything else None

    def limit(self, kind: str) -> Limit:
        """The limit of that name: ``bps-total``."""
        found: Limit = getattr(self, kind.replace("-", "_"))
        return found

    @property
    def limits_anything(self) -> bool:
        """Whether there is a limit at all."""
        return any(self.limit(kind).average for kind in _KINDS)


def _check_range(option: str, value: int, smallest: int = 0) -> None:
    if not smallest <= value <= _LARGEST:
        raise ConfigError(option, f"{value} must be from {smallest} to {_LARGEST}")


def _check_total(unit: str, limits: Mapping[str, Limit]) -> None:
    key = f"{_PREFIX}{unit}-total"
    total = limits[key]
    for scope in ("read", "write"):
        other_key = f"{_PREFIX}{unit}-{scope}"
        other = limits[other_key]
        for suffix, value, other_value in (("", total.average, other.average), ("-max", total.burst, other.burst)):
            if value and other_value:
                raise ConfigError(
                    f"{key}{suffix}",
                    f"{value} and {other_key}{suffix}={other_value} cannot both be set:"
                    " limit the total, or reads and writes each",
                )


def _check_burst(key: str, limit: Limit) -> None:
    if limit.burst and not limit.average:
        raise ConfigError(f"{key}-max", f"{limit.burst} needs {key} beside it")
    if 0 < limit.burst < limit.average:
        raise ConfigError(f"{key}-max", f"{limit.burst} is less than {key}={limit.average}")
    if limit.length > 1 and not limit.burst:
        raise ConfigError(f"{key}-max-length", f"{limit.length} needs {key}-max beside it")
    if limit.length * limit.burst > _LARGEST:
        raise ConfigError(
            f"{key}-max-length", f"{limit.length} multiplied by {key}-max={limit.burst} is more than {_LARGEST}"
        )


class _Bucket:
    """One leaky bucket.

    Attributes:
        rate: Units per second that leak out of it.
        holds: What it holds, in seconds of its rate.
        empty: When it will be empty.
    """

    __slots__ = ("empty", "holds", "rate")

    def __init__(self, rate: int, holds: float) -> None:
        self.rate = rate
        self.holds = holds
        self.empty = float("-inf")


def _buckets_of(limit: Limit) -> Iterator[_Bucket]:
    if limit.average:
        yield _Bucket(limit.average, limit.burst * limit.length / limit.average if limit.burst else _USUAL_SECONDS)
        if limit.length > 1:
            yield _Bucket(limit.burst, _USUAL_SECONDS)


class Ticket:
    """One request's place in a queue.

    Attributes:
        nbytes: The bytes that it reads or writes.
        passed: It may go on.
    """

    __slots__ = ("nbytes", "passed")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.passed = False


class Lane:
    """The requests of one session and one direction that wait, in order.

    Args:
        direction: `READ` or `WRITE`.
    """

    __slots__ = ("direction", "waiting")

    def __init__(self, direction: int) -> None:
        self.direction = direction
        self.waiting: deque[Ticket] = deque()


class Throttle:
    """The buckets of one export, and who waits for them.

    Several sessions may share one. Their lanes take turns, one request each: whoever comes first when there is room
    hands out the turns that are due, to other sessions too, which find that out when they come themselves. So neither
    a session with many requests nor one that nobody runs keeps the others waiting; reads and writes that share a limit
    take turns as well. May be used by several threads.

    It has no clock: `now` is time.monotonic(), in seconds.

    Args:
        throttling: The limits.
    """

    __slots__ = ("_bytes", "_iops_size", "_lanes", "_lock", "_requests")

    def __init__(self, throttling: Throttling) -> None:
        buckets = {kind: tuple(_buckets_of(throttling.limit(kind))) for kind in _KINDS}
        scopes = ("read", "write")
        # By direction; what limits the total is the same bucket in both.
        self._bytes = tuple(buckets["bps-total"] + buckets[f"bps-{scope}"] for scope in scopes)
        self._requests = tuple(buckets["iops-total"] + buckets[f"iops-{scope}"] for scope in scopes)
        self._iops_size = throttling.iops_size
        self._lanes: dict[Lane, None] = {}  # those that somebody waits in; the one whose turn it is comes first
        self._lock = threading.Lock()

    def limits(self, direction: int) -> bool:
        """Whether requests of a direction are limited at all."""
        return bool(self._bytes[direction] or self._requests[direction])

    def due(self, direction: int) -> float:
        """When the next request of a direction passes; long ago, if it does now."""
        at = float("-inf")
        for bucket in self._bytes[direction]:
            at = max(at, bucket.empty - bucket.holds)
        for bucket in self._requests[direction]:
            at = max(at, bucket.empty - bucket.holds)
        return at

    def enter(self, lane: Lane, nbytes: int, now: float) -> Ticket:
        """A request comes.

        Args:
            lane: Where it waits, if it has to.
            nbytes: The bytes that it asks for.
            now: The time.
        """
        ticket = Ticket(nbytes)
        with self._lock:
            if self._lanes:
                self._advance(now)
            if not lane.waiting and self.due(lane.direction) <= now:
                self._pass(ticket, lane.direction, now)
            else:
                lane.waiting.append(ticket)
                self._lanes.setdefault(lane)
        return ticket

    def advance(self, now: float) -> None:
        """Let all pass that may by now."""
        with self._lock:
            self._advance(now)

    def leave(self, lane: Lane, ticket: Ticket) -> None:
        """A request that waited is not wanted any more. If it has passed already, it counts."""
        with self._lock:
            if not ticket.passed:
                lane.waiting.remove(ticket)
                if not lane.waiting:
                    del self._lanes[lane]

    def _advance(self, now: float) -> None:
        lanes = self._lanes
        while True:
            lane = next((lane for lane in lanes if self.due(lane.direction) <= now), None)
            if lane is None:
                return
            self._pass(lane.waiting.popleft(), lane.direction, now)
            del lanes[lane]
            if lane.waiting:
                lanes[lane] = None

    def _pass(self, ticket: Ticket, direction: int, now: float) -> None:
        ticket.passed = True
        nbytes, size = ticket.nbytes, self._iops_size
        for bucket in self._bytes[direction]:
            bucket.empty = max(bucket.empty, now) + nbytes / bucket.rate
        requests = nbytes / size if 0 < size < nbytes else 1
        for bucket in self._requests[direction]:
            bucket.empty = max(bucket.empty, now) + requests / bucket.rate
