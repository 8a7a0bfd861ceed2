"""The way to what is closed and is opened again by name: however deep the tree, no request has to go a long way."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev import closing
from pyvirtfs.fsdev.closing import ClosedEntry
from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.local import LocalDriver
from tests.fsdev.small_budget import BUDGET, export_of, hold_many, release

LONGEST = closing._LONGEST_WAY
UID, GID = os.geteuid(), os.getegid()
# What is closed in one go, each looked up below a folder that may be closed; and some that are opened again.
MOST_OPENED = (BUDGET // closing._PART + 4) * LONGEST


class Counter:
    """How often something was opened by `os.open`, as what is closed is by name."""

    def __init__(self) -> None:
        self._open = os.open
        self.opened = 0

    def __call__(self, *arguments: Any, **keywords: Any) -> int:
        self.opened += 1
        return self._open(*arguments, **keywords)

    def since(self) -> int:
        opened, self.opened = self.opened, 0
        return opened


@pytest.fixture
def small(root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalDriver]:
    export = export_of(root, "names", monkeypatch)
    yield export
    export.close()
    subprocess.run(["rm", "-rf", *root.iterdir()], check=True)  # too deep for shutil


@pytest.fixture
def counter(small: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(os, "open", counter)
    return counter


def below(driver: LocalDriver, folder: Node, name: bytes) -> Node:
    """Make a folder, and hold it."""
    driver.mkdir(folder, name, 0o755, UID, GID)
    found = driver.walk(folder, [name]).node
    assert found is not None
    return found


def longest_way(nodes: list[Node]) -> int:
    """How many closed folders are one in the other."""
    longest = 0
    levels: dict[Entry, int] = {}
    for node in nodes:  # those above come first
        parent = node.parent
        if type(node.entry) is ClosedEntry and parent is not None:
            levels[node.entry] = levels.get(parent, 0) + 1
            longest = max(longest, levels[node.entry])
    return longest


def test_a_chain_that_is_made_from_above(small: LocalDriver, counter: Counter) -> None:
    top, _ = small.attach(b"", 0)
    chain = [top]
    counter.since()
    for _ in range(1200):
        chain.append(below(small, chain[-1], b"d"))
        assert counter.since() <= MOST_OPENED
    assert LONGEST // 2 < longest_way(chain) <= LONGEST
    for node in chain[::17]:
        small.getattr(node)
        assert counter.since() <= MOST_OPENED
    assert len({small.getattr(node)[0].path for node in chain}) == len(chain)
    release(small, chain[::-1])
    assert len(small._table) == 1


def test_a_chain_that_is_closed_from_below(small: LocalDriver, counter: Counter) -> None:
    """The folders above are used last: closing them makes the way to those below longer."""
    top, _ = small.attach(b"", 0)
    chain = [top]
    for _ in range(600):
        chain.append(below(small, chain[-1], b"d"))
    for node in reversed(chain):
        counter.since()
        small.getattr(node)
        assert counter.since() <= MOST_OPENED
    nodes = hold_many(small)
    assert LONGEST // 2 < longest_way(chain) <= LONGEST
    for node in chain[::13]:
        small.getattr(node)
    release(small, [*chain[::-1], *nodes])
    assert len(small._table) == 1


def test_a_chain_that_is_put_together(small: LocalDriver, counter: Counter) -> None:
    """Each part is short, and closed; the guest moves one below the other."""
    top, _ = small.attach(b"", 0)
    parts = []
    for index in range(8):
        part = [top, below(small, top, b"part%d" % index)]
        for _ in range(LONGEST - 28):
            part.append(below(small, part[-1], b"d"))
        parts.append(part[1:])
    nodes = hold_many(small)
    for upper, lower in itertools.pairwise(parts):
        small.rename(lower[0], upper[-1], b"d")
        for node in nodes[:BUDGET]:
            small.getattr(node)
    chain = [top, *(node for part in parts for node in part)]
    assert longest_way(chain) <= LONGEST
    for node in reversed(chain):
        counter.since()
        small.getattr(node)
        assert counter.since() <= MOST_OPENED
    release(small, [*chain[::-1], *nodes])
    assert len(small._table) == 1


def test_a_way_that_the_host_has_made_long(small: LocalDriver, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is longer than anybody may be made to wait for, the object is gone, until somebody walks to it."""
    top, _ = small.attach(b"", 0)
    chain = [top]
    for _ in range(40):
        chain.append(below(small, chain[-1], b"d"))
    nodes = hold_many(small)
    assert longest_way(chain) == 40
    monkeypatch.setattr(closing, "_MOST_STEPS", 20)
    with pytest.raises(OSError, match="Stale"):
        small.getattr(chain[-1])
    again = small.walk(chain[1], [b"d"] * 39).node
    assert again is chain[-1]
    assert small.getattr(again)[1].nlink == 2
    release(small, [*chain[::-1], *nodes, again])
    assert len(small._table) == 1
