from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvirtfs.fsdev.entries import PATH_FLAGS, EntryTable, Node


@pytest.fixture
def table(root: Path, no_leak: None) -> Iterator[EntryTable]:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a" / "file").write_bytes(b"x")
    os.link(root / "a" / "file", root / "b" / "link")
    entries = EntryTable(os.open(root, PATH_FLAGS))
    yield entries
    entries.close()
    entries.close()


def test_one_entry_for_two_links_and_a_node_for_each(table: EntryTable) -> None:
    a, _ = table.find(table.root, b"a")
    b, _ = table.find(table.root, b"b")
    first, qid = table.find(a.entry, b"file")
    second, other_qid = table.find(b.entry, b"link")
    assert first is not second
    assert first.entry is second.entry
    assert qid == other_qid
    assert (first.parent, first.name, second.parent, second.name) == (a.entry, b"file", b.entry, b"link")
    again, _ = table.find(b.entry, b"link")
    assert again is second
    entry = first.entry
    table.release(first)
    assert entry.node is second
    table.release(second)
    assert entry.fd >= 0
    table.release(again)
    assert entry.fd == -1
    table.release(again)  # once too often: nothing happens
    table.release(a)
    table.release(b)
    assert len(table) == 1


def test_parents_live_as_long_as_their_nodes(table: EntryTable) -> None:
    a, _ = table.find(table.root, b"a")
    file, _ = table.find(a.entry, b"file")
    folder = a.entry
    table.release(a)
    assert folder.fd >= 0
    table.release(file)
    assert folder.fd == -1


def test_moved_takes_only_the_node_at_the_old_place(table: EntryTable) -> None:
    a, _ = table.find(table.root, b"a")
    b, _ = table.find(table.root, b"b")
    file, _ = table.find(a.entry, b"file")
    link, _ = table.find(b.entry, b"link")
    table.moved(file.entry, a.entry, b"file", table.root, b"up")
    assert (file.parent, file.name) == (table.root, b"up")
    assert (link.parent, link.name) == (b.entry, b"link")
    table.release(a)
    assert len(table) == 3
    for node in (file, link, b):
        table.release(node)
    assert table.root.refs == 1


def test_version_changes_with_each_write_and_is_never_zero(table: EntryTable, root: Path) -> None:
    a, _ = table.find(table.root, b"a")
    file, qid = table.find(a.entry, b"file")
    assert qid.version != 0
    assert table.qid(file.entry) == qid
    file.entry.writes += 1
    changed = table.qid(file.entry)
    assert changed.version != qid.version
    table.release(file)
    file, again = table.find(a.entry, b"file")  # the count survives the entry
    assert again == changed
    (root / "a" / "file").write_bytes(b"xy")
    assert table.qid(file.entry).version not in {qid.version, changed.version}
    table.release(file)
    table.release(a)


def test_stat_is_lstat(table: EntryTable, root: Path) -> None:
    os.symlink("a", root / "l")
    node, qid = table.find(table.root, b"l")
    expected = os.lstat(root / "l")
    found = table.stat(node.entry.fd)
    assert qid.type == 0x02
    assert (found.mode, found.ino, found.size, found.nlink) == (
        expected.st_mode, expected.st_ino, expected.st_size, expected.st_nlink,
    )  # fmt: skip
    assert found.mtime_sec * 10**9 + found.mtime_nsec == expected.st_mtime_ns
    assert found == table.stat(table.root.fd, b"l")
    assert table.identify(table.root.fd, b"l") == (expected.st_mode, qid.path)
    table.release(node)


def test_the_table_forgets_old_write_counts(table: EntryTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.entries._REMEMBERED_WRITES", 1)
    for name in (b"a", b"b"):
        node, _ = table.find(table.root, name)
        node.entry.writes += 1
        table.release(node)
    assert len(table._recent_writes) == 1


class References(RuleBasedStateMachine):
    """Handles taken and given back in any order: the counts come out even, whoever shares what."""

    def __init__(self) -> None:
        super().__init__()
        self.table = EntryTable(os.open("/proc/self/fdinfo/..", PATH_FLAGS))
        self.handles: list[Node] = []

    @rule(index=st.integers(0, 50), name=st.sampled_from([b"net", b"ns", b"attr", b"task", b"status", b"maps"]))
    def find(self, index: int, name: bytes) -> None:
        parents = [self.table.root_node, *self.handles]
        try:
            node, _ = self.table.find(parents[index % len(parents)].entry, name)
        except OSError:
            return
        self.handles.append(node)

    @precondition(lambda self: self.handles)
    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        self.table.release(self.handles.pop(index % len(self.handles)))

    @invariant()
    def counts(self) -> None:
        nodes = {id(node): node for node in [self.table.root_node, *self.handles]}
        for node in nodes.values():
            assert node.refs == sum(node is handle for handle in self.handles) + (node is self.table.root_node)
            assert node.entry.fd >= 0
        entries = {id(node.entry): node.entry for node in nodes.values()}
        entries.update({id(node.parent): node.parent for node in nodes.values() if node.parent is not None})
        assert len(self.table) == len(entries)
        for entry in entries.values():
            assert entry.refs == sum((node.entry is entry) + (node.parent is entry) for node in nodes.values())

    def teardown(self) -> None:
        while self.handles:
            self.table.release(self.handles.pop())
        assert len(self.table) == 1
        self.table.close()


References.TestCase.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestReferences = References.TestCase
