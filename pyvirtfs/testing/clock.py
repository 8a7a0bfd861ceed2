"""A clock that only moves when it is told to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from unittest import mock


class FakeClock:
    """Stands in for `time.monotonic`, in seconds.

    Args:
        now: Where it starts.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.slept = 0.0
        """Seconds that were slept in it."""

    def __call__(self) -> float:
        """The time now."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass. ValueError if it were to run backwards."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        """Stands in for `time.sleep`: time passes, nobody waits."""
        self.advance(max(seconds, 0.0))
        self.slept += seconds


@contextlib.contextmanager
def fake_clock(now: float = 1000.0) -> Iterator[FakeClock]:
    """Replace `time.monotonic` and `time.sleep` in the whole process by a clock that only moves when it is told to.

    Code that keeps a reference to the real functions is not affected; give it the `FakeClock` itself.
    """
    clock = FakeClock(now)
    with mock.patch.object(time, "monotonic", clock), mock.patch.object(time, "sleep", clock.sleep):
        yield clock
