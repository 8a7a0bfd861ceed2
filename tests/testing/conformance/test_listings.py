from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def by_index(self: Any, file: Any, cookie: int) -> Any:
    """Cookies that count entries: they move when an entry vanishes."""
    entries = sorted(os.listdir(file.fd))
    dots = [(file.entry.qid, 1, 4, b"."), (file.entry.qid, 2, 4, b"..")]
    listed = [((0, 0, 99), number, 0, os.fsencode(name)) for number, name in enumerate(entries, 3)]
    return [entry for entry in (*dots, *listed) if entry[1] > cookie]


def once_only(self: Any, file: Any, cookie: int) -> Any:
    """A listing that goes on where it stands, whatever it is asked."""
    if not hasattr(self, "told"):
        self.told = set()
    if cookie == 0:
        self.told.discard(file)
    if file in self.told:
        return []
    self.told.add(file)
    return Good.readdir(self, file, 0)


def dots_of_the_folder(self: Any, file: Any, cookie: int) -> Any:
    """``..`` has the path of the folder itself."""
    return [(file.entry.qid if e[3] == b".." else e[0], *e[1:]) for e in Good.readdir(self, file, cookie)]


def dots_of_long_ago(self: Any, file: Any, cookie: int) -> Any:
    """``..`` has the path of where the folder was first."""
    entries = Good.readdir(self, file, cookie)
    if not hasattr(self, "above"):
        self.above = {}
    return [(self.above.setdefault(file.entry, e[0]), *e[1:]) if e[3] == b".." else e for e in entries]


def first_batch(self: Any, file: Any, cookie: int) -> Any:
    return [] if cookie else Good.readdir(self, file, 0)


def twice(self: Any, file: Any, cookie: int) -> Any:
    return [*Good.readdir(self, file, cookie), ((0, 0, 99), 98, 8, b"a ghost")] if not cookie else []


def frozen(self: Any, file: Any, cookie: int) -> Any:
    """What was there at the first listing, for ever."""
    if not hasattr(self, "kept"):
        self.kept = {}
    entries = self.kept.setdefault(file, Good.readdir(self, file, 0))
    return entries[next((i for i, entry in enumerate(entries, 1) if entry[1] == cookie), 0) :]


def all_files(self: Any, file: Any, cookie: int) -> Any:
    return [(qid, at, 8, name) for qid, at, kind, name in Good.readdir(self, file, cookie)]


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("cookies_survive_deletion", "readdir", by_index, "entries are missing"),
        ("every_cookie_survives_changes", "readdir", by_index, "the entries that stayed behind the cookie"),
        ("dots_lead_up", "readdir", dots_of_the_folder, "the path of b'..'"),
        ("dots_of_a_folder_that_moved", "readdir", dots_of_long_ago, "the path of b'..'"),
        ("the_same_cookie_twice", "readdir", once_only, "the entry behind number"),
        ("many_entries", "readdir", first_batch, "the entries, 1 at a time"),
        ("empty_folders", "readdir", twice, "the entries of an empty folder"),
        ("rewinding", "readdir", frozen, "the entries after a file was made"),
        ("types_are_listed", "readdir", all_files, "has the DT_ type 8, expected"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"listings.{check}", {method: fault})
