"""Checks on handles: what is held and given back, in any order, and that nothing piles up."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require
from pyvirtfs.testing.descriptors import open_descriptors

_ROUNDS: Final = 200
_ALLOWED: Final = 20
"""Descriptors that a driver may keep for itself; what leaks leaks in each round."""


@contextlib.contextmanager
def _nothing_piles_up(export: Subject) -> Iterator[None]:
    before = len(open_descriptors())
    yield
    more = len(open_descriptors()) - before
    require(more < _ALLOWED, f"{more} more descriptors are open after {_ROUNDS} rounds of: {export.last}")


@check()
def many_nodes_of_the_root(export: Subject) -> None:
    """Nodes are released one by one; the object stays as long as one is held."""
    nodes = [export.walk(export.root, [])[1] for _ in range(100)]
    nodes += [export.attach(b"", 1000)[0] for _ in range(100)]
    export.give_back(*nodes[::2])
    for node in nodes[1::2]:
        expect(export.qid(node), export.root_qid, "the qid of a node of the root")
    export.give_back(*nodes[1::2])
    expect(export.qid(export.root), export.root_qid, "the qid of the root after all others were released")


@check("create", "mkdir")
def nodes_are_independent(export: Subject) -> None:
    """A node is good until it is released, whatever becomes of others, of the folders above, and of open files."""
    folder = export.make_folder(b"folder")
    one = export.make_file(b"file", at=folder)
    two = export.find(b"folder", b"file")
    file, _ = export.open(two, os.O_RDONLY, 0)
    qid = export.qid(one)
    export.give_back(folder, one)
    expect(export.qid(two), qid, "the qid of the second node, the first one and the folder released")
    above = export.walk(two, [])[1]
    export.release(two)
    expect(export.qid(above), qid, "the qid of the third node, the second one released")
    export.release(above)
    expect(export.get(file, 0, 10), b"", "what the open file reads, all nodes released")
    export.close_file(file)
    require(export.exists(b"folder", b"file"), "the file is gone when nobody holds it")


@check("create", "write", "unlinkat")
def another_node_holds_the_object(export: Subject) -> None:
    """A walk of no names gives a node of its own: an unlinked object lives on, whichever of the two is released."""
    for kept in (0, 1):
        node = export.make_file(b"file", b"content")
        nodes = node, export.walk(node, [])[1]
        export.unlinkat(export.root, b"file", folder=False)
        export.release(nodes[1 - kept])
        export.release(export.make_file(b"another", b"another"))  # which may take the memory that is free
        attributes = export.attributes(nodes[kept])
        expect((attributes.nlink, attributes.size), (0, 7), "nlink and size of an object, its other node released")
        expect(export.content(nodes[kept]), b"content", "what the object holds, its other node released")
        export.release(nodes[kept])
        export.unlinkat(export.root, b"another", folder=False)


@check("create", "mkdir", "unlinkat")
def handles_of_what_is_gone(export: Subject) -> None:
    """Nodes and files of what was removed are given back as any other; what is below a removed folder, too."""
    folder = export.make_folder(b"folder")
    file = export.make_file(b"file", at=folder)
    opened, _ = export.open(file, os.O_RDWR, 0)
    listed, _ = export.open(folder, os.O_RDONLY, 0)
    export.unlinkat(folder, b"file", folder=False)
    export.unlinkat(export.root, b"folder", folder=True)
    export.give_back(folder, file)
    export.close_file(opened)
    export.close_file(listed)
    expect(export.names_in(export.root), [], "the names in the root")


@check("create")
def nothing_piles_up(export: Subject) -> None:
    """What is released and closed is free again: walks, opens and listings, those that fail as well."""
    export.release(export.make_file(b"file"))
    with _nothing_piles_up(export):
        for _ in range(_ROUNDS):
            export.give_back(export.find(b"file"), export.walk(export.root, [])[1], export.attach(b"", 0)[0])
            expect(export.walk(export.root, [b"file", b"below"]).node, None, "a walk through a file")
            with export.refuses(errno.ENOENT):
                export.walk(export.root, [b"missing"])
            node = export.find(b"file")
            with export.opened(node):
                export.release(node)
            export.entries(export.root)
            export.statfs(export.root)


@check("create", "mkdir", "unlinkat", "renameat")
def making_and_removing_piles_nothing_up(export: Subject) -> None:
    """What is made, renamed and removed again leaves nothing behind."""
    with _nothing_piles_up(export):
        for _ in range(_ROUNDS):
            folder = export.make_folder(b"folder")
            export.release(export.make_file(b"file", at=folder))
            export.renameat(folder, b"file", export.root, b"file")
            with export.refuses(errno.EEXIST):
                export.mkdir(export.root, b"file", 0o755, 0, 0)
            with export.refuses(errno.EEXIST):
                export.create(export.root, b"file", os.O_RDWR | os.O_EXCL, 0o644, 0, 0)
            export.unlinkat(export.root, b"file", folder=False)
            export.unlinkat(export.root, b"folder", folder=True)
            export.release(folder)
    expect(export.names_in(export.root), [], "the names in the root")


@check("locks")
def locks_pile_nothing_up(export: Subject) -> None:
    """Locks that are taken and released, or refused, leave nothing behind."""
    node = export.make_file(b"file")
    lock = Lock(exclusive=True, start=0, end=None, proc_id=1, client_id=b"guest")
    with _nothing_piles_up(export):
        for _ in range(_ROUNDS):
            one, two = LockHolder(object()), LockHolder(object())
            expect(export.lock(node, lock, one), True, "the first guest's lock")
            expect(export.lock(node, lock, two), False, "the second guest's lock")
            require(export.getlock(node, lock, two), "nobody is told to hold the lock")
            expect(export.release_locks(node, one), 1, "the ranges released")


@check("create", "write", "mkdir")
def close_takes_what_is_left(export: Subject) -> None:
    """Close releases everything, also what guests left behind: nodes, open files, listings in the middle."""
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file", b"content", at=folder)
    for _ in range(5):
        export.walk(node, [])
        file, _ = export.open(node, os.O_RDWR, 1000)
        export.get(file, 0, 3)
        listed, _ = export.open(folder, os.O_RDONLY, 0)
        export.readdir(listed, 0)


@check("locks")
def close_takes_the_locks(export: Subject) -> None:
    """Close releases the locks that are left."""
    node = export.make_file(b"file")
    for process in range(5):
        lock = Lock(exclusive=True, start=process, end=process + 1, proc_id=process, client_id=b"guest")
        expect(export.lock(node, lock, LockHolder(object())), True, "a lock")
