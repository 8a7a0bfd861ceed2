"""Checks on rename and renameat."""

from __future__ import annotations

import errno
import os
from typing import Any

from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require
from pyvirtfs.testing.conformance.tree import is_at


@check("create", "write", "renameat", "mkdir")
def files_move(export: Subject) -> None:
    """Renameat is rename(2) below two folders: the object has its new name, and no longer the old one."""
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file", b"content")
    path = export.qid(node).path
    export.renameat(export.root, b"file", export.root, b"renamed")
    expect(export.names_in(export.root), [b"folder", b"renamed"], "the names after renaming in one folder")
    export.renameat(export.root, b"renamed", folder, b"moved")
    expect(export.names_in(export.root), [b"folder"], "the names in the old folder")
    expect(export.names_in(folder), [b"moved"], "the names in the new folder")
    found = export.find(b"folder", b"moved")
    expect(export.qid(found).path, path, "the path of the object at its new place")
    expect(export.content(found), b"content", "what it holds")


@check("create", "write", "renameat")
def files_are_replaced(export: Subject) -> None:
    """A file that is renamed onto another takes its place; nodes of the one that lost it stay usable."""
    old, new = export.make_file(b"old", b"old"), export.make_file(b"new", b"new")
    with export.opened(new) as file:
        export.renameat(export.root, b"old", export.root, b"new")
        expect(export.names_in(export.root), [b"new"], "the names in the folder")
        expect(export.content(export.find(b"new")), b"old", "what the name leads to")
        expect(export.get(file, 0, 10), b"new", "what the file holds that lost its name")
    expect(export.attributes(new).nlink, 0, "nlink of the file that lost its name")
    expect(export.attributes(old).nlink, 1, "nlink of the file that took it")


@check("mkdir", "renameat", "create")
def folders_are_replaced(export: Subject) -> None:
    """A folder takes the place of an empty one, not of one that holds something (ENOTEMPTY or EEXIST)."""
    old = export.make_folder(b"old")
    export.release(export.make_file(b"file", at=old))
    empty, full = export.make_folder(b"empty"), export.make_folder(b"full")
    export.release(export.make_file(b"file", at=full))
    with export.unchanged(), export.refuses(errno.ENOTEMPTY, errno.EEXIST):
        export.renameat(export.root, b"old", export.root, b"full")
    export.renameat(export.root, b"old", export.root, b"empty")
    expect(export.names_in(export.root), [b"empty", b"full"], "the names in the folder")
    expect(export.names_in(export.find(b"empty")), [b"file"], "what is in the folder that was moved")
    expect(export.attributes(empty).nlink, 0, "nlink of the folder that was replaced")


@check("mkdir", "renameat", "create")
def rename_refusals(export: Subject) -> None:
    """Renameat: ENOENT, ENOTDIR, EISDIR where it cannot be done, EINVAL for a folder into itself; nothing changes."""
    folder = export.make_folder(b"folder")
    below = export.make_folder(b"below", at=folder)
    file = export.make_file(b"file")
    root = export.root
    longest = export.statfs(root).namelen
    with export.unchanged():
        for old, name, new, target, codes in (
            (root, b"missing", root, b"new", (errno.ENOENT,)),
            (file, b"x", root, b"new", (errno.ENOTDIR,)),
            (root, b"file", file, b"new", (errno.ENOTDIR,)),
            (root, b"file", root, b"folder", (errno.EISDIR,)),
            (root, b"folder", root, b"file", (errno.ENOTDIR,)),
            (root, b"folder", folder, b"new", (errno.EINVAL,)),
            (root, b"folder", below, b"new", (errno.EINVAL,)),
            (folder, b"below", root, b"folder", (errno.ENOTEMPTY, errno.EEXIST)),
            (root, b"file", root, b"x" * (longest + 1), (errno.ENAMETOOLONG,)),
        ):
            with export.refuses(*codes):
                export.renameat(old, name, new, target)


@check("mkdir", "renameat", "create", "unlinkat")
def nothing_moves_into_a_removed_folder(export: Subject) -> None:
    """A folder that was removed takes nothing (ENOENT)."""
    folder = export.make_folder(b"folder")
    export.unlinkat(export.root, b"folder", folder=True)
    export.release(export.make_file(b"file"))
    with export.unchanged(), export.refuses(errno.ENOENT):
        export.renameat(export.root, b"file", folder, b"file")


@check("create", "write", "renameat", "mkdir")
def rename_onto_itself(export: Subject) -> None:
    """A rename of a name to itself does nothing."""
    export.make_file(b"file", b"content")
    export.make_folder(b"folder")
    with export.unchanged():
        export.renameat(export.root, b"file", export.root, b"file")
        export.renameat(export.root, b"folder", export.root, b"folder")


@check("create", "renameat", "link", "rename")
def rename_onto_another_link(export: Subject) -> None:
    """A rename between two names of one object does nothing; both stay."""
    node = export.make_file(b"one")
    export.link(export.root, node, b"two")
    export.renameat(export.root, b"one", export.root, b"two")
    expect(export.names_in(export.root), [b"one", b"two"], "the names of the object")
    export.rename(node, export.root, b"two")
    expect(export.names_in(export.root), [b"one", b"two"], "the names of the object after Trename")
    expect(export.attributes(node).nlink, 2, "nlink")


@check("create", "write", "renameat", "mkdir", "unlinkat")
def nodes_follow(export: Subject) -> None:
    """Nodes of an object that is renamed, and of what is below it, follow."""
    folder = export.make_folder(b"folder")
    other = export.make_folder(b"other")
    below = export.make_folder(b"below", at=folder)
    file = export.make_file(b"file", b"content", at=below)
    with export.opened(file) as opened, export.opened(folder) as listed:
        export.renameat(export.root, b"folder", other, b"moved")
        expect(export.get(opened, 0, 10), b"content", "what an open file holds below the folder that moved")
        expect({e.name for e in export.batches(listed)}, {b".", b"..", b"below"}, "what the folder that moved lists")
    expect(export.content(file), b"content", "what a node of the file leads to")
    expect(export.names_in(below), [b"file"], "what is in the folder below")
    above = export.walk(folder, [b".."])
    expect(above.qids[0][2], export.qid(other).path, "the path of the folder above, after the move")
    again = export.find(b"..", b"..", b"..", b"other", b"moved", b"below", b"file", at=below)
    expect(export.qid(again).path, export.qid(file).path, "the path of the file, walked to from below")
    export.release(export.make_file(b"new", at=folder))
    expect(export.names_in(export.find(b"other", b"moved")), [b"below", b"new"], "what the folder that moved holds")
    require(not export.exists(b"folder"), "the folder is still at its old place")


def _place(export: Subject, node: Any) -> None:
    """Where a node is after it was moved: rename and remove go on from there."""
    export.rename(node, export.root, b"once more")
    expect(export.names_in(export.root), [b"folder", b"once more"], "the names after the second rename")


@check("create", "rename", "renameat", "mkdir", "remove")
def a_renamed_node_knows_its_place(export: Subject) -> None:
    """Rename gives the object of a node another place, and the node follows: it can be renamed and removed there."""
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file")
    export.rename(node, folder, b"moved")
    expect(export.names_in(folder), [b"moved"], "the names in the folder after Trename")
    _place(export, node)
    export.renameat(export.root, b"once more", folder, b"moved")
    _place(export, node)
    export.remove(node)
    expect(export.names_in(export.root), [b"folder"], "the names after Tremove")


@check("create", "mkdir", "renameat", "place")
def place_tells_where_it_is_now(export: Subject) -> None:
    """Place gives the folder and the name of an object as of now, after each rename of it or of what it is in."""
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file")
    is_at(export, node, export.root, b"file")
    export.renameat(export.root, b"file", export.root, b"renamed")
    is_at(export, node, export.root, b"renamed")
    export.renameat(export.root, b"renamed", folder, b"moved")
    is_at(export, node, folder, b"moved")
    export.renameat(export.root, b"folder", export.root, b"above")
    is_at(export, node, folder, b"moved")
    is_at(export, folder, export.root, b"above")


@check("create", "link", "place")
def place_tells_the_name_that_was_walked_to(export: Subject) -> None:
    """Of an object with two names, place tells the one that the node was found under."""
    one = export.make_file(b"one")
    export.link(export.root, one, b"two")
    is_at(export, one, export.root, b"one")
    is_at(export, export.find(b"two"), export.root, b"two")


@check("create", "rename", "renameat", "link", "remove")
def only_the_node_at_the_old_place_follows(export: Subject) -> None:
    """Of an object with two names, the node found under the one that is renamed follows; the other stays."""
    one = export.make_file(b"one")
    export.link(export.root, one, b"two")
    two = export.find(b"two")
    export.renameat(export.root, b"one", export.root, b"new")
    export.remove(two)
    expect(export.names_in(export.root), [b"new"], "the names after the second one was removed")
    export.remove(one)
    expect(export.names_in(export.root), [], "the names after both were removed")


@check("create", "rename", "unlinkat")
def rename_of_what_is_not_there(export: Subject) -> None:
    """Rename is ESTALE if the object is not where the node was found any more; what is there now stays."""
    node = export.make_file(b"file")
    export.unlinkat(export.root, b"file", folder=False)
    with export.refuses(errno.ESTALE):
        export.rename(node, export.root, b"new")
    export.release(export.make_file(b"file"))
    with export.refuses(errno.ESTALE):
        export.rename(node, export.root, b"new")
    expect(export.names_in(export.root), [b"file"], "the names in the folder")


@check("mkdir", "rename")
def rename_refuses_the_root(export: Subject) -> None:
    """The root has no name that could be changed; a folder cannot move into itself (EINVAL)."""
    folder = export.make_folder(b"folder")
    with export.unchanged():
        with export.refuses():
            export.rename(export.root, folder, b"new")
        with export.refuses(errno.EINVAL):
            export.rename(folder, folder, b"new")


@check("create", "renameat", "write")
def open_files_follow(export: Subject) -> None:
    """A file that is open can be written to after it was renamed."""
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as file:
        export.renameat(export.root, b"file", export.root, b"renamed")
        export.put(file, 0, b"content")
    expect(export.content(export.find(b"renamed")), b"content", "what the renamed file holds")
