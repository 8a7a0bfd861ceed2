"""A memory export to test on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.testing.conformance.subject import Subject


@pytest.fixture
def export() -> Iterator[Subject]:
    """An export of 1 MiB and 20 names; all of it is free again at the end."""
    driver = MemoryDriver(size=1 << 20, nr_inodes=20)
    yield Subject(driver)
    driver.close()
    assert driver._space.free == driver._space.pages
