"""What authors of drivers and embedders test with."""

from pyvirtfs.testing.clock import FakeClock, fake_clock
from pyvirtfs.testing.conformance import ConformanceError, check_driver, driver_checks
from pyvirtfs.testing.delayed import DelayedDriver, Held
from pyvirtfs.testing.descriptors import check_descriptors, open_descriptors
from pyvirtfs.testing.interrupts import Message, RecordingSink
from pyvirtfs.testing.pair import Pair, pair
from pyvirtfs.testing.served import ServedFunction

__all__ = [
    "ConformanceError",
    "DelayedDriver",
    "FakeClock",
    "Held",
    "Message",
    "Pair",
    "RecordingSink",
    "ServedFunction",
    "check_descriptors",
    "check_driver",
    "driver_checks",
    "fake_clock",
    "open_descriptors",
    "pair",
]
