"""Drivers with one fault each, made of the local driver, and the checks that must find it."""

from __future__ import annotations

import itertools
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.testing.conformance import Factory, driver_checks

Methods: TypeAlias = dict[str, Any]


class Faulty:
    """Makes drivers with faults, and runs single checks on them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._numbers = itertools.count()

    def factory(self, methods: Methods | None = None) -> Factory:
        """Makes local drivers some of whose methods are replaced; `super_` in them is what they replace."""
        kind: Any = type("FaultyDriver", (LocalDriver,), methods or {})

        def make() -> LocalDriver:
            folder = self._place / str(next(self._numbers))
            folder.mkdir()
            driver: LocalDriver = kind(folder, "none")
            return driver

        return make

    def failure(self, check: str, methods: Methods) -> str:
        """What a check says to such a driver; it must fail."""
        (found,) = (known for known in driver_checks() if known.name == check)
        found(self.factory())  # the driver without the fault passes
        with pytest.raises(AssertionError) as caught:
            found(self.factory(methods))
        return str(caught.value)

    def outcome(self, check: str, make: Callable[[], Any]) -> str:
        """Failed, skipped or passed."""
        (found,) = (known for known in driver_checks() if known.name == check)
        try:
            found(make)
        except AssertionError:
            return "failed"
        except unittest.SkipTest:
            return "skipped"
        return "passed"


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    """Drivers with one fault each."""
    return Faulty(tmp_path)
