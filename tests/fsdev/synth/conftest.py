"""A synth export to test on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvirtfs.fsdev.synth import SynthDriver
from pyvirtfs.testing.conformance.subject import Subject


@pytest.fixture
def tree() -> Iterator[SynthDriver]:
    """An empty one."""
    driver = SynthDriver()
    yield driver
    driver.close()


@pytest.fixture
def export(tree: SynthDriver) -> Subject:
    """What a server sees of it."""
    return Subject(tree)
