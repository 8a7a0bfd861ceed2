from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def walk_that_leaks(self: Any, node: Any, names: Any) -> Any:
    self.leaked = [*getattr(self, "leaked", []), os.dup(node.entry.fd)]
    return Good.walk(self, node, names)


def mkdir_that_leaks(self: Any, *rest: Any) -> Any:
    self.leaked = [*getattr(self, "leaked", []), os.dup(self._table.root.fd)]
    return Good.mkdir(self, *rest)


def lock_that_leaks(self: Any, *rest: Any) -> Any:
    self.leaked = [*getattr(self, "leaked", []), os.dup(self._table.root.fd)]
    return Good.lock(self, *rest)


def close(self: Any) -> None:
    Good.close(self)
    for fd in getattr(self, "leaked", []):
        os.close(fd)
    self.leaked = []


def release_of_all(self: Any, node: Any) -> None:
    if node is self._table.root_node:
        return
    while node.refs > 0:
        Good.release(self, node)


def walk_without_reference(self: Any, node: Any, names: Any) -> Any:
    found = Good.walk(self, node, names)
    if not names:
        node.refs -= 1
    return found


def close_but_for_files(self: Any) -> None:
    kept = {file: os.dup(file.fd) for file in self._files}
    Good.close(self)
    FORGOTTEN.extend(kept.values())


def close_but_for_locks(self: Any) -> None:
    kept = [os.dup(fd) for _, fd in self._pinned.values()]
    Good.close(self)
    FORGOTTEN.extend(kept)


FORGOTTEN: list[int] = []


@pytest.fixture(autouse=True)
def tidy() -> Any:
    yield
    while FORGOTTEN:
        os.close(FORGOTTEN.pop())


@pytest.mark.parametrize(
    ("check", "method", "fault"),
    [
        ("nothing_piles_up", "walk", walk_that_leaks),
        ("making_and_removing_piles_nothing_up", "mkdir", mkdir_that_leaks),
        ("locks_pile_nothing_up", "lock", lock_that_leaks),
    ],
)
def test_what_piles_up_is_found_although_close_takes_it(faulty: Any, check: str, method: str, fault: Any) -> None:
    text = faulty.failure(f"handles.{check}", {method: fault, "close": close})
    assert "more descriptors are open after 200 rounds" in text


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("nodes_are_independent", "release", release_of_all, "saw EBADF"),
        ("another_node_holds_the_object", "release", release_of_all, "saw EBADF"),
        ("another_node_holds_the_object", "walk", walk_without_reference, "saw EBADF"),
        ("close_takes_what_is_left", "close", close_but_for_files, "descriptors leaked"),
        ("close_takes_the_locks", "close", close_but_for_locks, "descriptors leaked"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"handles.{check}", {method: fault})
