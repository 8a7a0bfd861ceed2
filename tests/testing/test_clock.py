from __future__ import annotations

import time

import pytest

from pyvirtfs.testing import FakeClock, fake_clock


def test_time_passes_only_on_command() -> None:
    clock = FakeClock(5)
    assert clock() == clock() == 5
    clock.advance(2.5)
    assert clock() == 7.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


def test_the_process_sees_it() -> None:
    real = time.monotonic
    with fake_clock(100) as clock:
        assert time.monotonic() == 100
        time.sleep(3600)
        assert time.monotonic() == 3700
        assert clock.slept == 3600
    assert time.monotonic is real
