from __future__ import annotations

import os

import pytest

from pyvirtfs.testing import check_descriptors, open_descriptors


def test_leaks_are_named() -> None:
    leaked = -1
    with pytest.raises(AssertionError, match=r"1 descriptors leaked.*/dev/null"), check_descriptors():
        leaked = os.open("/dev/null", os.O_RDONLY)
    assert open_descriptors()[leaked] == "/dev/null"
    os.close(leaked)


def test_what_is_closed_is_no_leak() -> None:
    with check_descriptors():
        os.close(os.open("/dev/null", os.O_RDONLY))


def test_what_only_waits_for_the_collector_is_no_leak() -> None:
    class Circle:
        def __init__(self) -> None:
            self.me = self
            self.file = open("/dev/null", "rb", buffering=0)  # noqa: SIM115 (closed by the collector, or not)

        def __del__(self) -> None:
            self.file.close()

    with check_descriptors():
        Circle()


def test_some_may_be_allowed() -> None:
    with check_descriptors(allow=1):
        fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
