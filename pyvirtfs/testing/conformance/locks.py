"""Checks on byte-range locks: those of fcntl(2), between owners of several guests."""

from __future__ import annotations

import errno

from pyvirtfs.fsdev.driver import Lock, LockHolder
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect


def exclusive(start: int, end: int | None, process: int = 1, client: bytes = b"guest") -> Lock:
    """A lock for writing."""
    return Lock(exclusive=True, start=start, end=end, proc_id=process, client_id=client)


def shared(start: int, end: int | None, process: int = 1, client: bytes = b"guest") -> Lock:
    """A lock for reading."""
    return Lock(exclusive=False, start=start, end=end, proc_id=process, client_id=client)


class _Two:
    """A file, and two guests that know it."""

    def __init__(self, export: Subject) -> None:
        self.export = export
        self.node = export.make_file(b"file")
        self.other_node = export.find(b"file")
        self.one = LockHolder(object())
        self.two = LockHolder(object())

    def must_get(self, lock: Lock) -> None:
        """The first guest gets it."""
        expect(self.export.lock(self.node, lock, self.one), True, f"the first guest asks for {lock}")

    def free_for_other(self, start: int, end: int | None, *, wanted: bool) -> None:
        """Whether the second guest can have an exclusive lock."""
        lock = exclusive(start, end)
        expect(self.export.lock(self.other_node, lock, self.two), wanted, f"the second guest asks for {lock}")
        if wanted:
            self.export.unlock(self.other_node, lock, self.two)


@check("locks")
def exclusive_locks_exclude(export: Subject) -> None:
    """A lock that another owner's stands in the way of is not granted (False), and the driver does not wait."""
    both = _Two(export)
    both.must_get(exclusive(10, 20))
    for start, end, free in (
        (10, 20, False), (0, 11, False), (19, 20, False), (0, None, False), (15, 16, False),
        (0, 10, True), (20, 30, True), (20, None, True),
    ):  # fmt: skip
        both.free_for_other(start, end, wanted=free)
    export.unlock(both.node, exclusive(10, 20), both.one)
    both.free_for_other(0, None, wanted=True)


@check("locks")
def shared_locks_share(export: Subject) -> None:
    """Locks for reading do not exclude each other; one for writing excludes them and is excluded."""
    both = _Two(export)
    both.must_get(shared(0, 10))
    expect(export.lock(both.other_node, shared(5, 15), both.two), True, "the second guest asks to read, too")
    both.free_for_other(0, 1, wanted=False)
    expect(export.lock(both.node, exclusive(0, 10), both.one), False, "the first guest asks to write")
    expect(export.lock(both.node, exclusive(0, 5), both.one), True, "the first guest asks to write where none reads")


@check("locks")
def owners(export: Subject) -> None:
    """An owner is a client and a process of one session: equal ones of two guests are different owners."""
    both = _Two(export)
    both.must_get(exclusive(0, 10))
    both.must_get(exclusive(0, 10))
    for lock in (exclusive(0, 10, process=2), exclusive(0, 10, client=b"other")):
        expect(export.lock(both.node, lock, both.one), False, "another owner of the same guest")
    another_fid = LockHolder(both.one.session)
    expect(export.lock(both.node, exclusive(5, 15), another_fid), True, "the same owner through another fid")
    both.free_for_other(0, 1, wanted=False)


@check("locks")
def converting(export: Subject) -> None:
    """A lock replaces what its owner held in its range: up, down, and in the middle of another."""
    both = _Two(export)
    both.must_get(shared(0, 30))
    both.must_get(exclusive(10, 20))
    for start, end, reads in ((0, 10, True), (10, 20, False), (20, 30, True)):
        lock = shared(start, end)
        expect(export.lock(both.other_node, lock, both.two), reads, f"the second guest asks for {lock}")
        export.unlock(both.other_node, lock, both.two)
    both.must_get(shared(10, 20))
    expect(export.lock(both.other_node, shared(0, 30), both.two), True, "the second guest asks to read all")


@check("locks")
def splitting(export: Subject) -> None:
    """Unlock releases a range, also out of the middle; one that is not held is no error."""
    both = _Two(export)
    export.unlock(both.node, exclusive(0, 100), both.one)
    both.must_get(exclusive(0, 30))
    export.unlock(both.node, shared(10, 20), both.one)
    both.free_for_other(10, 20, wanted=True)
    for start, end in ((0, 10), (20, 30), (9, 11), (19, 21)):
        both.free_for_other(start, end, wanted=False)
    export.unlock(both.node, exclusive(0, None), both.one)
    both.free_for_other(0, None, wanted=True)
    export.unlock(both.node, exclusive(0, None), both.two)


@check("locks")
def open_ends(export: Subject) -> None:
    """A lock without an end goes to the end of the file, however far that grows."""
    both = _Two(export)
    both.must_get(exclusive(100, None))
    for start, end, free in ((0, 100, True), (1 << 40, (1 << 40) + 1, False), ((1 << 63) - 1, None, False)):
        both.free_for_other(start, end, wanted=free)


@check("locks")
def getlock_tells_who_is_in_the_way(export: Subject) -> None:
    """Getlock gives the lock that stands in the way, with its range and owner, or None; it takes nothing."""
    both = _Two(export)
    expect(export.getlock(both.node, exclusive(0, None), both.one), None, "the lock in the way of the first one")
    held = exclusive(10, 20, process=77, client=b"host name")
    both.must_get(held)
    expect(export.getlock(both.other_node, exclusive(0, None), both.two), held, "the lock in the way")
    expect(export.getlock(both.other_node, shared(15, 16), both.two), held, "the lock in the way of reading")
    expect(export.getlock(both.other_node, exclusive(0, 10), both.two), None, "the lock in the way before it")
    expect(export.getlock(both.node, held, both.one), None, "the lock in its owner's way")
    both.must_get(shared(10, 20, process=77, client=b"host name"))
    expect(export.getlock(both.other_node, shared(0, None), both.two), None, "the lock in the way of reading, too")
    endless = exclusive(30, None, process=5)
    both.must_get(endless)
    expect(export.getlock(both.other_node, exclusive(25, 1000), both.two), endless, "the lock without an end")


@check("locks")
def release_locks_releases_all(export: Subject) -> None:
    """Release_locks releases what was taken through one holder, and returns how many ranges that were."""
    both = _Two(export)
    expect(export.release_locks(both.node, both.one), 0, "the ranges released, none being held")
    for start in (0, 20, 40):
        both.must_get(exclusive(start, start + 10))
    another_fid = LockHolder(both.one.session)
    expect(export.lock(both.node, exclusive(60, 70), another_fid), True, "a lock through another fid")
    expect(export.release_locks(both.node, both.two), 0, "the ranges released for the other guest")
    both.free_for_other(0, 10, wanted=False)
    expect(export.release_locks(both.node, both.one), 3, "the ranges released")
    both.free_for_other(0, 60, wanted=True)
    both.free_for_other(60, 70, wanted=False)
    expect(export.release_locks(both.node, another_fid), 1, "the ranges released of the other fid")
    both.free_for_other(0, None, wanted=True)


@check("locks")
def limits(export: Subject) -> None:
    """A session may hold as many ranges as its holder says; beyond is ENOLCK, and nothing of what it holds is lost."""
    export_file = export.make_file(b"file")
    session = object()
    holder = LockHolder(session, 3)
    other = LockHolder(object())
    for start in (0, 20, 40):
        expect(export.lock(export_file, exclusive(start, start + 10), holder), True, "a lock within the limit")
    with export.refuses(errno.ENOLCK):
        export.lock(export_file, exclusive(60, 70), holder)
    with export.refuses(errno.ENOLCK):
        export.unlock(export_file, exclusive(3, 4), holder)
    expect(export.lock(export_file, exclusive(60, 70), other), True, "the lock that was refused, for another guest")
    expect(export.lock(export_file, exclusive(3, 4), other), False, "the lock that could not be split")
    expect(export.lock(export_file, exclusive(0, 50), holder), True, "a lock in place of three")
    expect(export.release_locks(export_file, holder), 1, "the ranges released")


@check("locks", "unlinkat")
def locks_belong_to_the_object(export: Subject) -> None:
    """Locks belong to the object: other files are free, all nodes share them, they stay when it loses its name."""
    both = _Two(export)
    elsewhere = export.make_file(b"another")
    both.must_get(exclusive(0, None))
    expect(export.lock(elsewhere, exclusive(0, None), both.two), True, "a lock on another file")
    export.unlinkat(export.root, b"file", folder=False)
    both.free_for_other(0, 1, wanted=False)
    expect(export.release_locks(both.node, both.one), 1, "the ranges released of an unlinked file")
    both.free_for_other(0, 1, wanted=True)


@check("locks", "link")
def links_share_locks(export: Subject) -> None:
    """Locks belong to the object, not to a name of it: one through another hard link stands in the way."""
    both = _Two(export)
    export.link(export.root, both.node, b"link")
    linked = export.find(b"link")
    held = exclusive(10, 20)
    both.must_get(held)
    expect(export.lock(linked, exclusive(0, None), both.two), False, "a lock through another hard link")
    expect(export.getlock(linked, exclusive(0, None), both.two), held, "the lock in the way at another hard link")
    expect(export.lock(linked, exclusive(15, 25), both.one), True, "the same owner through another hard link")
    export.unlock(linked, exclusive(0, None), both.one)
    both.free_for_other(0, None, wanted=True)


@check("locks")
def ranges_that_no_file_has(export: Subject) -> None:
    """A range that no file has is refused with an OSError."""
    node = export.make_file(b"file")
    holder = LockHolder(object())
    for start, end in ((10, 10), (10, 5), (1 << 63, None), (0, (1 << 63) + 1)):
        with export.refuses(errno.EINVAL, errno.EOVERFLOW):
            export.lock(node, exclusive(start, end), holder)
    expect(export.release_locks(node, holder), 0, "the ranges released after calls that failed")
