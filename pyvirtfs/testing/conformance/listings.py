"""Checks on readdir: large folders, cookies that stay good while entries come and go."""

from __future__ import annotations

import itertools
import os
from typing import Any, Final

from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, names_of, require

_MANY: Final = 1000
_DOTS: Final = {b".", b".."}


def _fill(export: Subject, folder: Any, count: int, form: bytes = b"entry %d") -> list[bytes]:
    names = [form % number for number in range(count)]
    for name in names:
        export.release(export.make_file(name, at=folder))
    return names


@check("mkdir")
def empty_folders(export: Subject) -> None:
    """An empty folder lists ``.`` and ``..``, and behind them nothing."""
    folder = export.make_folder(b"folder")
    with export.opened(folder) as file:
        entries = list(export.batches(file))
        expect({*names_of(entries)}, _DOTS, "the entries of an empty folder")
        for _ in range(3):
            expect(list(export.readdir(file, entries[-1].cookie)), [], "what is behind the last entry")


@check("create", "mkdir")
def many_entries(export: Subject) -> None:
    """A folder of 1000 entries lists each once, in whatever portions they are taken."""
    folder = export.make_folder(b"folder")
    names = _fill(export, folder, _MANY)
    wanted = sorted([*names, *_DOTS])
    with export.opened(folder) as file:
        everything = list(export.batches(file))
        expect(sorted(names_of(everything)), wanted, "the entries of a large folder")
        for take in (1, 7, 100):
            expect(list(export.batches(file, take=take)), everything, f"the entries, {take} at a time")
        for at in range(0, _MANY, 97):
            rest = list(export.batches(file, everything[at].cookie))
            expect(names_of(rest), names_of(everything)[at + 1 :], f"the entries behind number {at}")


@check("create", "mkdir")
def the_same_cookie_twice(export: Subject) -> None:
    """The same cookie asked twice gives the same entries, also out of order."""
    folder = export.make_folder(b"folder")
    _fill(export, folder, 50)
    with export.opened(folder) as file:
        entries = list(export.batches(file))
        for at in (40, 3, 40, 20, 3):
            first = list(itertools.islice(export.batches(file, entries[at].cookie), 1))
            expect(first, entries[at + 1 : at + 2], f"the entry behind number {at}")


@check("create", "mkdir")
def listings_do_not_disturb_each_other(export: Subject) -> None:
    """Two open files of one folder are two listings."""
    folder = export.make_folder(b"folder")
    _fill(export, folder, 50)
    with export.opened(folder) as one, export.opened(folder) as two:
        first, second = export.batches(one, take=3), export.batches(two, take=5)
        mixed = list(itertools.chain.from_iterable(itertools.zip_longest(first, second)))
        expect(names_of(mixed[::2]), names_of(mixed[1::2]), "the entries of two listings at once")


@check("create", "mkdir", "unlinkat")
def cookies_survive_deletion(export: Subject) -> None:
    """A cookie is valid while the folder is open, also when entries vanish: nothing is left out or told twice."""
    folder = export.make_folder(b"folder")
    names = _fill(export, folder, 300)
    with export.opened(folder) as file:
        taken = names_of(list(itertools.islice(export.batches(file, take=10), 100)))
        entries = list(export.batches(file))
        cookie = entries[99].cookie
        expect(names_of(entries[:100]), taken, "the first 100 entries, taken again")
        gone = [name for name in (*taken[::2], entries[100].name, entries[150].name) if name not in _DOTS]
        for name in gone:
            export.unlinkat(folder, name, folder=False)
        rest = names_of(list(export.batches(file, cookie, take=10)))
        wanted = {*names, *_DOTS} - {*taken} - {*gone}
        require(wanted <= {*rest}, f"entries are missing: {sorted(wanted - {*rest})[:5]}")
        again = [name for name in rest if name in {*taken}]
        expect(again, [], "the entries that were told a second time")
        expect(len({*rest}), len(rest), "how many different entries follow")
    expect(export.names_in(folder), sorted({*names} - {*gone}), "the names that are left")


@check("create", "mkdir", "unlinkat")
def every_cookie_survives_changes(export: Subject) -> None:
    """After entries vanish and others come, any cookie goes on where it did: all that stayed behind it, once each."""
    folder = export.make_folder(b"folder")
    _fill(export, folder, 60)
    with export.opened(folder) as file:
        entries = list(export.batches(file))
        gone = {entry.name for entry in entries[::3] if entry.name not in _DOTS}
        for name in gone:
            export.unlinkat(folder, name, folder=False)
        new = {*_fill(export, folder, 20, b"new %d")}
        for at, entry in enumerate(entries, 1):
            rest = names_of(list(export.batches(file, entry.cookie)))
            expect(len({*rest}), len(rest), f"how many different entries follow the cookie of entry {at}")
            stayed = {*names_of(entries[at:])} - gone
            expect(sorted({*rest} - new), sorted(stayed), f"the entries that stayed behind the cookie of entry {at}")


@check("mkdir")
def dots_lead_up(export: Subject) -> None:
    """``.`` of a listing has the path of the folder, ``..`` that of the one above; the root's that of the root."""
    folder = export.make_folder(b"folder")
    below = export.make_folder(b"below", at=folder)
    _dots_are(export, export.root, export.root)
    _dots_are(export, folder, export.root)
    _dots_are(export, below, folder)


@check("mkdir", "renameat")
def dots_of_a_folder_that_moved(export: Subject) -> None:
    """``..`` in the listing of a folder that was renamed has the path of the folder that it is in now."""
    one, two = export.make_folder(b"one"), export.make_folder(b"two")
    moved = export.make_folder(b"folder", at=one)
    with export.opened(moved) as file:
        _dots_are(export, moved, one)
        export.renameat(one, b"folder", two, b"moved")
        _dots_are(export, moved, two)
        above = [entry.qid.path for entry in export.batches(file) if entry.name == b".."]
        expect(above, [export.qid(two).path], "the path of b'..' where the folder is open since before it moved")


def _dots_are(export: Subject, folder: Any, above: Any) -> None:
    dots = {entry.name: entry.qid for entry in export.entries(folder) if entry.name in _DOTS}
    for name, node in ((b".", folder), (b"..", above)):
        require(name in dots, f"{name!r} is not listed")
        expect(dots[name].path, export.qid(node).path, f"the path of {name!r}")


@check("create", "mkdir", "unlinkat")
def removing_while_listing(export: Subject) -> None:
    """A folder can be emptied while it is listed, as rm -r does it."""
    folder = export.make_folder(b"folder")
    names = _fill(export, folder, 200)
    seen = []
    with export.opened(folder) as file:
        for entry in export.batches(file, take=3):
            if entry.name not in _DOTS:
                seen.append(entry.name)
                export.unlinkat(folder, entry.name, folder=False)
    expect(sorted(seen), sorted(names), "the entries that were removed")
    export.unlinkat(export.root, b"folder", folder=True)


@check("create", "mkdir")
def adding_while_listing(export: Subject) -> None:
    """Entries that are made during a listing may be told or not; those that were there are told once."""
    folder = export.make_folder(b"folder")
    names = _fill(export, folder, 100)
    seen = []
    with export.opened(folder) as file:
        for number, entry in enumerate(export.batches(file, take=2)):
            seen.append(entry.name)
            if number < 50:
                export.release(export.make_file(b"new %d" % number, at=folder))
        expect(len({*seen}), len(seen), "how many different entries were told")
        expect(sorted({*seen} & {*names}), sorted(names), "those of them that were there before")
        afresh = names_of(list(export.batches(file)))
    expect(len(afresh), 152, "how many entries a listing from the start has")


@check("create", "unlinkat")
def rewinding(export: Subject) -> None:
    """The cookie 0 lists from the start, what is there now."""
    with export.opened(export.root) as file:
        expect({*names_of(list(export.batches(file)))}, _DOTS, "the entries of an empty folder")
        export.release(export.make_file(b"file"))
        expect({*names_of(list(export.batches(file)))}, {*_DOTS, b"file"}, "the entries after a file was made")
        export.unlinkat(export.root, b"file", folder=False)
        expect({*names_of(list(export.batches(file)))}, _DOTS, "the entries after it was removed")


@check("create", "mkdir", "symlink", "mknod")
def types_are_listed(export: Subject) -> None:
    """An entry tells the qid.path of its object, and its type unless it says that it does not know."""
    objects = {
        b"file": (8, export.qid(export.make_file(b"file"))),
        b"folder": (4, export.qid(export.make_folder(b"folder"))),
        b"link": (10, export.qid(export.make_link(b"link", b"folder"))),
        b"fifo": (1, None),
    }
    export.mknod(export.root, b"fifo", 0o010644, 0, 0, 0, 0)
    objects[b"fifo"] = 1, export.qid(export.find(b"fifo"))
    for entry in export.entries(export.root):
        if entry.name in _DOTS:
            continue
        kind, qid = objects.pop(entry.name)
        require(entry.type in {0, kind}, f"{entry.name!r} has the DT_ type {entry.type}, expected {kind}")
        assert qid is not None
        expect(entry.qid.path, qid.path, f"the path of {entry.name!r}")
        if entry.type:  # or nobody has looked
            expect(entry.qid.type, qid.type, f"the type of {entry.name!r}")
    expect([*objects], [], "the entries that were not listed")


@check("create")
def shortest_and_longest_entries(export: Subject) -> None:
    """Entries have names from one byte to the longest that statfs tells."""
    longest = export.statfs(export.root).namelen
    names = [b"x" * length for length in sorted({*range(1, 20), longest - 1, longest}) if length <= longest]
    for name in names:
        export.release(export.make_file(name))
    with export.opened(export.root, os.O_RDONLY) as file:
        expect(sorted(names_of(list(export.batches(file, take=1)))), sorted([*names, *_DOTS]), "the names listed")
