"""Checks on names: walking to what was made, folders, removing."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, Qid, SetAttributes
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require

ODD_NAMES: Final = (
    b"...", b" ", b"-rf", b"*", b"a\nb", b"\x01\x7f", b"\xff\xfe\x80", b"\\", b"C:", b"%s", b"..x", b".hidden",
    "ä😀".encode(), "e\u0301".encode(), b"Case", b"case",
)  # fmt: skip
"""What Linux takes for a name, and other systems may not."""


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """The process's umask, for as long as the block runs."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@check("mkdir")
def folders_in_folders(export: Subject) -> None:
    """A walk resolves up to 16 names, one qid each; ``..`` leads back up, from anywhere to the root and no higher."""
    names = [b"folder %d" % depth for depth in range(16)]
    folder, paths = export.root, []
    for name in names:
        qid = Qid(*export.mkdir(folder, name, 0o755, 0, 0))
        expect(qid.type, QID_DIRECTORY, "the qid type of a folder that was made")
        folder = export.find(name, at=folder)
        expect(export.qid(folder).path, qid.path, "the qid.path of a folder that was made")
        paths.append(qid.path)
    qids, node = export.walk(export.root, names)
    expect([qid[2] for qid in qids], paths, "the paths on the way down 16 folders")
    expect(export.qid(node).path, paths[-1], "the path of the folder at the end")
    qids, top = export.walk(node, [b".."] * 16)
    expect([qid[2] for qid in qids], [*paths[-2::-1], export.root_qid.path], "the paths on the way up")
    qids, same = export.walk(top, [names[0], b".", names[1], b"..", b"..", b"..", names[0]])
    wanted = [paths[0], paths[0], paths[1], paths[0], export.root_qid.path, export.root_qid.path, paths[0]]
    expect([qid[2] for qid in qids], wanted, "the paths of a walk with dots in it")
    expect(export.qid(same).path, paths[0], "the path of the folder that a walk with dots in it led to")


@check("create", "mkdir")
def walks_that_end_early(export: Subject) -> None:
    """At a later name that fails a walk gives the qids of those before it and no node; the old node stays valid."""
    folder = export.make_folder(b"folder")
    export.make_file(b"file", at=folder)
    for names, count in (
        ([b"folder", b"missing"], 1),
        ([b"folder", b"missing", b"file"], 1),
        ([b"folder", b"file", b"below"], 2),
        ([b"folder", b"file", b".."], 2),
        ([b"folder", b"..", b"missing"], 2),
    ):
        qids, node = export.walk(export.root, names)
        expect((len(qids), node), (count, None), f"number of qids and node of a walk of {names}")
    with export.refuses(errno.ENOENT):
        export.walk(folder, [b"missing", b"file"])
    expect(export.qid(folder).path, qids[0][2], "the path of the old node")
    require(export.exists(b"folder", b"file"), "the file cannot be found any more")


@check("create")
def odd_names(export: Subject) -> None:
    """Names are bytes: what is neither a slash nor NUL is taken as it is, told apart, listed and found again."""
    for name in ODD_NAMES:
        export.release(export.make_file(name))
    expect(export.names_in(export.root), sorted(ODD_NAMES), "the names in the folder")
    for name in ODD_NAMES:
        require(export.exists(name), f"{name!r} cannot be found")


@check("create", "mkdir")
def longest_names(export: Subject) -> None:
    """Names may be as long as statfs says; longer ones are ENAMETOOLONG."""
    longest = export.statfs(export.root).namelen
    name, longer = b"\xc3" * longest, b"x" * (longest + 1)
    node = export.make_file(name)
    expect(export.names_in(export.root), [name], "the names in the folder")
    require(export.exists(name), "the longest name cannot be found")
    with export.refuses(errno.ENAMETOOLONG):
        export.create(export.root, longer, os.O_RDWR, 0o644, 0, 0)
    with export.refuses(errno.ENAMETOOLONG):
        export.mkdir(export.root, longer, 0o755, 0, 0)
    export.release(node)


@check("mkdir")
def folders_have_exact_modes(export: Subject) -> None:
    """Mkdir gives a folder exactly the mode that was asked for, whatever the process's umask."""
    with umask(0o777):
        for mode in (0o777, 0o755, 0o1777, 0o2775, 0o700, 0o000):
            name = b"%o" % mode
            export.mkdir(export.root, name, mode, 0, 0)
            expect(oct(export.mode(export.find(name))), oct(mode), "the mode of a folder that was made")


@check("mkdir", "owners")
def folders_have_owners(export: Subject) -> None:
    """What is made belongs to the user of the fid and the group of the request."""
    export.mkdir(export.root, b"folder", 0o755, 1000, 2000)
    expect(export.attributes(export.find(b"folder"))[1:3], (1000, 2000), "owner and group of a folder")


@check("mkdir", "create")
def mkdir_refusals(export: Subject) -> None:
    """Mkdir: EEXIST for a name that is taken, ENOTDIR below a file, ENOENT below a folder that was removed."""
    folder = export.make_folder(b"folder")
    file = export.make_file(b"file")
    with export.unchanged():
        for name in (b"folder", b"file"):
            with export.refuses(errno.EEXIST):
                export.mkdir(export.root, name, 0o755, 0, 0)
        with export.refuses(errno.ENOTDIR):
            export.mkdir(file, b"below", 0o755, 0, 0)
    export.give_back(folder, file)


@check("mkdir", "unlinkat", "create")
def removed_folders(export: Subject) -> None:
    """A folder that was removed is still an object, empty, and nothing can be made in it (ENOENT)."""
    folder = export.make_folder(b"folder")
    opened, _ = export.open(folder, os.O_RDONLY, 0)
    path = export.qid(folder).path
    export.unlinkat(export.root, b"folder", folder=True)
    require(not export.exists(b"folder"), "the folder can be found after it was removed")
    expect(export.qid(folder).path, path, "the path of a folder that was removed")
    with export.refuses(errno.ENOENT):
        export.mkdir(folder, b"below", 0o755, 0, 0)
    with export.refuses(errno.ENOENT):
        export.create(folder, b"below", os.O_RDWR, 0o644, 0, 0)
    with export.refuses(errno.ENOENT):
        export.walk(folder, [b"below"])
    left = {entry.name for entry in export.batches(opened)}
    require(left <= {b".", b".."}, f"a folder that was removed lists {left}")
    export.close_file(opened)
    export.release(folder)


@check("mkdir", "unlinkat", "create")
def unlinkat_tells_folders_from_files(export: Subject) -> None:
    """Unlinkat is unlink(2) or rmdir(2): ENOENT, ENOTDIR, EISDIR, ENOTEMPTY where it cannot be done."""
    folder = export.make_folder(b"folder")
    file = export.make_file(b"file", at=folder)
    with export.unchanged():
        with export.refuses(errno.ENOTEMPTY, errno.EEXIST):
            export.unlinkat(export.root, b"folder", folder=True)
        with export.refuses(errno.EISDIR):
            export.unlinkat(export.root, b"folder", folder=False)
        with export.refuses(errno.ENOTDIR):
            export.unlinkat(folder, b"file", folder=True)
        for kind in (False, True):
            with export.refuses(errno.ENOENT):
                export.unlinkat(folder, b"missing", folder=kind)
            with export.refuses(errno.ENOTDIR):
                export.unlinkat(file, b"below", folder=kind)
    export.unlinkat(folder, b"file", folder=False)
    expect(export.names_in(folder), [], "what is in the folder after its file was removed")
    export.unlinkat(export.root, b"folder", folder=True)
    expect(export.names_in(export.root), [], "what is in the root after its folder was removed")


@check("mkdir", "unlinkat")
def folders_count_links(export: Subject) -> None:
    """A folder that lost its name has no links; one that has it has some."""
    folder = export.make_folder(b"folder")
    require(export.attributes(folder).nlink > 0, "a folder with a name has no links")
    export.unlinkat(export.root, b"folder", folder=True)
    expect(export.attributes(folder).nlink, 0, "nlink of a folder that was removed")


@check("create", "unlinkat", "write", "chmod")
def unlinked_files_stay_usable(export: Subject) -> None:
    """Nodes and files of an object that was unlinked stay usable: read, write, attributes, sync, another node."""
    node = export.make_file(b"file", b"content")
    path = export.qid(node).path
    with export.opened(node, os.O_RDWR) as file:
        export.unlinkat(export.root, b"file", folder=False)
        require(not export.exists(b"file"), "the file can be found after it was removed")
        expect(export.get(file, 0, 100), b"content", "what an unlinked file holds")
        export.put(file, 7, b", more")
        export.fsync(file, datasync=False)
        attributes = export.attributes(node)
        expect((attributes.nlink, attributes.size), (0, 13), "nlink and size of an unlinked file")
        export.setattr(node, SetAttributes(mode=0o640, mtime_ns=5_000_000_000), 0)
        expect(oct(export.mode(node)), oct(0o640), "the mode of an unlinked file")
        other = export.walk(node, []).node
        expect(export.qid(other).path, path, "the path of another node of an unlinked file")
        expect(export.content(other), b"content, more", "what an unlinked file holds, opened again")
        export.release(node)
        expect(export.content(other), b"content, more", "what it holds, its first node released")
    export.release(other)


@check("create", "unlinkat")
def a_name_that_was_removed_is_free(export: Subject) -> None:
    """A new object under the name of an unlinked one is another object, while somebody still holds the old one."""
    old = export.make_file(b"file")
    export.unlinkat(export.root, b"file", folder=False)
    new = export.make_file(b"file")
    require(export.qid(old).path != export.qid(new).path, "the new file has the qid.path of the unlinked one")
    expect(export.attributes(old).nlink, 0, "nlink of the unlinked file")
    expect(export.attributes(new).nlink, 1, "nlink of the new file")


@check("create", "mkdir", "remove")
def remove_by_node(export: Subject) -> None:
    """Remove removes the name under which the node was found: a file or an empty folder."""
    folder = export.make_folder(b"folder")
    file = export.make_file(b"file", at=folder)
    with export.unchanged(), export.refuses(errno.ENOTEMPTY, errno.EEXIST):
        export.remove(folder)
    export.remove(file)
    expect(export.names_in(folder), [], "what is in the folder after its file was removed")
    expect(export.attributes(file).nlink, 0, "nlink of the file that was removed")
    export.remove(folder)
    expect(export.names_in(export.root), [], "what is in the root after its folder was removed")


@check("create", "remove", "unlinkat")
def remove_of_what_is_not_there(export: Subject) -> None:
    """Remove is ESTALE if the object is not where the node was found any more; what is there now stays."""
    node = export.make_file(b"file")
    export.unlinkat(export.root, b"file", folder=False)
    with export.refuses(errno.ESTALE):
        export.remove(node)
    export.release(export.make_file(b"file"))
    with export.refuses(errno.ESTALE):
        export.remove(node)
    require(export.exists(b"file"), "another file was removed")


@check("remove")
def the_root_cannot_be_removed(export: Subject) -> None:
    """The root has no name that could be removed."""
    with export.unchanged(), export.refuses():
        export.remove(export.root)
    expect(stat.S_IFMT(export.attributes(export.root).mode), stat.S_IFDIR, "the type of the root")
