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


class Counted(bytes):
    """A name that knows how often one of them was compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    def __hash__(self) -> int:
        return bytes.__hash__(self)


@pytest.mark.parametrize("step", [1, -1])
def test_an_object_with_many_names(table: EntryTable, root: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found, and forgotten in any order, without being looked through."""
    count = 2000
    monkeypatch.setattr(Counted, "compared", 0)
    names = [Counted(b"%d" % index) for index in range(count)]
    for name in names:
        os.link(root / "a" / "file", root / os.fsdecode(name))
    nodes = [table.find(table.root, name)[0] for name in names]
    assert len(set(nodes)) == count
    assert [table.find(table.root, Counted(name))[0] for name in names] == nodes
    assert len({node.entry for node in nodes}) == 1
    for node in [*nodes, *nodes][::step]:
        table.release(node)
    assert len(table) == 1
    assert table.root.refs == 1
    assert Counted.compared < 20 * count


def test_one_name_that_moves_on_and_on(table: EntryTable) -> None:
    """Former places are forgotten some time."""
    a, _ = table.find(table.root, b"a")
    b, _ = table.find(table.root, b"b")
    file, _ = table.find(a.entry, b"file")
    link, _ = table.find(b.entry, b"link")
    entry = file.entry
    for index in range(1000):
        table.moved(entry, link.parent or table.root, link.name, (a, b)[index % 2].entry, b"%d" % index)
    more = entry.more_nodes
    assert more is not None
    assert list(more) == [link]
    assert len(more._places) < 100
    assert more.at(b.entry, b"999") is link
    assert more.at(b.entry, b"link") is None
    again, _ = table.adopt(os.open(b"file", PATH_FLAGS, dir_fd=a.entry.fd))
    assert table.place(again, b.entry, b"999") is link
    for node in (link, link, file, a, b):
        table.release(node)
    assert len(table) == 1
    assert table.root.refs == 1


def test_a_name_that_becomes_that_of_another_node(table: EntryTable) -> None:
    a, _ = table.find(table.root, b"a")
    b, _ = table.find(table.root, b"b")
    first, _ = table.find(a.entry, b"file")
    second, _ = table.find(b.entry, b"link")
    entry = first.entry
    third = table.place(table.adopt(os.open(b"link", PATH_FLAGS, dir_fd=b.entry.fd))[0], None, b"")
    table.put(third, b.entry, b"link")  # it was found from below first
    table.moved(entry, b.entry, b"link", a.entry, b"file")
    assert {(node.parent, node.name) for node in (first, second, third)} == {(a.entry, b"file")}
    for node in (second, third, first, a, b):
        table.release(node)
    assert len(table) == 1
    assert table.root.refs == 1
