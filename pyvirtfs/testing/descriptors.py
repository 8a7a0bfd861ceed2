"""Counting a process's open descriptors, to catch what leaks."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

_OPEN = "/proc/self/fd"


def open_descriptors() -> dict[int, str]:
    """This process's open descriptors and what they refer to."""
    found = {}
    for name in os.listdir(_OPEN):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir itself had open
            found[int(name)] = os.readlink(f"{_OPEN}/{name}")
    return found


@contextlib.contextmanager
def check_descriptors(*, allow: int = 0) -> Iterator[None]:
    """Check that no descriptor is open at the end that was not open at the beginning.

    Args:
        allow: How many more are no leak (a cache that may fill, for example).

    Raises:
        AssertionError: If there are; names them.
    """
    before = open_descriptors()
    yield
    if len(_opened_since(before)) > allow:
        gc.collect()  # what only waits to be collected is no leak
    leaked = _opened_since(before)
    if len(leaked) > allow:
        raise AssertionError(f"{len(leaked)} descriptors leaked: {leaked}")


def _opened_since(before: dict[int, str]) -> dict[int, str]:
    return {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
