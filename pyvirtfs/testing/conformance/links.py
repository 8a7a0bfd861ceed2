"""Checks on symbolic links, hard links and special files."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from pyvirtfs.fsdev.driver import QID_FILE, QID_SYMLINK, Qid
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.names import umask
from pyvirtfs.testing.conformance.subject import Subject, expect, require

_TARGETS: Final = (
    b"target", b"/absolute/path", b"../../../../etc/passwd", b".", b"..", b"/", b"//a//b/", b" ", b"a\nb",
    b"\xff\xfe\x80", b"x" * 255, b"x/" * 500, b"%s", b"link",
)  # fmt: skip
_LONG_TARGET: Final = b"x/" * 2000
"""As long as Linux allows, but not every file system of a host (XFS: 1024)."""


@check("symlink")
def targets_are_kept(export: Subject) -> None:
    """The target of a symbolic link is never interpreted: readlink gives the bytes that symlink got."""
    for number, target in enumerate((*_TARGETS, _LONG_TARGET)):
        name = b"link %d" % number
        try:
            qid = Qid(*export.symlink(export.root, name, target, 0, 0))
        except OSError as error:
            if target is _LONG_TARGET and error.errno == errno.ENAMETOOLONG:
                continue
            raise
        expect(qid.type, QID_SYMLINK, "the qid type of a symbolic link that was made")
        node = export.find(name)
        expect(export.readlink(node), target, "the target of a symbolic link")
        expect(export.qid(node), qid, "the qid of a symbolic link")
        attributes = export.attributes(node)
        expect(stat.S_IFMT(attributes.mode), stat.S_IFLNK, "the type of a symbolic link")
        expect(attributes.size, len(target), "the size of a symbolic link")


@check("symlink", "mkdir", "create", "write")
def symlinks_are_not_followed(export: Subject) -> None:
    """A walk follows no symbolic link: it can be found, nothing can be reached through it, nor opened (ENXIO)."""
    folder = export.make_folder(b"folder")
    export.release(export.make_file(b"file", b"content", at=folder))
    to_folder = export.make_link(b"to folder", b"folder")
    to_file = export.make_link(b"to file", b"folder/file")
    with export.unchanged():
        for node in (to_folder, to_file):
            with export.refuses(errno.ENOTDIR, errno.ELOOP):
                export.walk(node, [b"file"])
            with export.refuses(errno.ENXIO, errno.ELOOP):
                export.open(node, os.O_RDONLY, 0)
            with export.refuses(errno.ENOTDIR, errno.ELOOP):
                export.create(node, b"new", os.O_RDWR, 0o644, 0, 0)
            with export.refuses(errno.ENOTDIR, errno.ELOOP):
                export.mkdir(node, b"new", 0o755, 0, 0)
        qids, node = export.walk(export.root, [b"to folder", b"file"])
        expect((len(qids), node), (1, None), "number of qids and node of a walk through a symbolic link")
        with export.refuses(errno.ENOTDIR):
            export.unlinkat(export.root, b"to folder", folder=True)


@check("symlink", "unlinkat", "renameat", "create")
def symlinks_are_objects(export: Subject) -> None:
    """A symbolic link is renamed and removed itself, not what it points to."""
    target = export.make_file(b"target")
    link = export.make_link(b"link", b"target")
    export.renameat(export.root, b"link", export.root, b"renamed")
    expect(export.readlink(export.find(b"renamed")), b"target", "the target of the renamed link")
    export.unlinkat(export.root, b"renamed", folder=False)
    expect(export.names_in(export.root), [b"target"], "the names after the link was removed")
    expect(export.readlink(link), b"target", "the target of the link that was removed")
    expect(export.attributes(target).nlink, 1, "nlink of what it pointed to")


@check("symlink", "create")
def symlink_refusals(export: Subject) -> None:
    """Symlink: EEXIST for a name that is taken, ENOTDIR below a file."""
    node = export.make_file(b"file")
    with export.unchanged():
        with export.refuses(errno.EEXIST):
            export.symlink(export.root, b"file", b"target", 0, 0)
        with export.refuses(errno.ENOTDIR):
            export.symlink(node, b"below", b"target", 0, 0)
        with export.refuses(errno.ENAMETOOLONG):
            export.symlink(export.root, b"x" * (export.statfs(export.root).namelen + 1), b"target", 0, 0)


@check("symlink", "owners")
def symlinks_belong_to_the_user(export: Subject) -> None:
    """A symbolic link belongs to the user of the fid and the group of the request."""
    export.symlink(export.root, b"link", b"target", 1000, 2000)
    expect(export.attributes(export.find(b"link"))[1:3], (1000, 2000), "owner and group of a symbolic link")


@check("link", "write", "unlinkat")
def links_are_names_of_one_object(export: Subject) -> None:
    """Link gives an object another name; the object counts its names and lives as long as it has one."""
    one = export.make_file(b"one", b"content")
    export.link(export.root, one, b"two")
    two = export.find(b"two")
    expect(export.attributes(one), export.attributes(two), "the attributes under both names")
    expect(export.attributes(one).nlink, 2, "nlink of an object with two names")
    export.fill(two, b"CONTENT")
    expect(export.content(one), b"CONTENT", "what was written under the other name")
    export.unlinkat(export.root, b"one", folder=False)
    expect(export.attributes(two).nlink, 1, "nlink after one name was removed")
    expect(export.content(export.find(b"two")), b"CONTENT", "what it holds under the name that is left")


@check("link", "mkdir", "unlinkat")
def link_refusals(export: Subject) -> None:
    """Link: EEXIST for a name that is taken, EPERM for a folder, ENOTDIR below a file, ENOENT for what has no name."""
    file = export.make_file(b"file")
    folder = export.make_folder(b"folder")
    gone = export.make_file(b"gone")
    export.unlinkat(export.root, b"gone", folder=False)
    with export.unchanged():
        for name in (b"file", b"folder"):
            with export.refuses(errno.EEXIST):
                export.link(export.root, file, name)
        with export.refuses(errno.EPERM):
            export.link(export.root, folder, b"new")
        with export.refuses(errno.ENOTDIR):
            export.link(file, file, b"new")
        with export.refuses(errno.ENOENT):
            export.link(export.root, gone, b"new")
        with export.refuses(errno.ENAMETOOLONG):
            export.link(export.root, file, b"x" * (export.statfs(export.root).namelen + 1))


@check("link", "symlink")
def symlinks_can_have_links(export: Subject) -> None:
    """A symbolic link can have another name, too; it is not followed (or refused with EPERM, as some systems do)."""
    target = export.make_file(b"target")
    link = export.make_link(b"link", b"target")
    try:
        export.link(export.root, link, b"another")
    except PermissionError:
        return
    expect(export.readlink(export.find(b"another")), b"target", "the target under the other name")
    expect(export.attributes(target).nlink, 1, "nlink of what the link points to")


@check("mknod")
def special_files(export: Subject) -> None:
    """Mknod makes a file, fifo or socket with exactly this mode; it is never opened but for a file (ENXIO)."""
    with umask(0o777):
        for kind, name in ((stat.S_IFIFO, b"fifo"), (stat.S_IFSOCK, b"socket"), (stat.S_IFREG, b"file")):
            for mode in (0o644, 0o7777, 0):
                name += b"+"  # noqa: PLW2901  # another one each time
                qid = Qid(*export.mknod(export.root, name, kind | mode, 0, 0, 0, 0))
                expect(qid.type, QID_FILE, "the qid type of a special file")
                node = export.find(name)
                expect(export.qid(node), qid, "the qid of a special file")
                attributes = export.attributes(node)
                expect(oct(attributes.mode), oct(kind | mode), f"type and mode of {name!r}")
                expect((attributes.size, attributes.nlink), (0, 1), f"size and nlink of {name!r}")
                if kind != stat.S_IFREG:
                    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                        with export.refuses(errno.ENXIO):
                            export.open(node, flags, 0)


@check("mknod", "create")
def mknod_refusals(export: Subject) -> None:
    """Mknod: EEXIST, ENOTDIR; it makes no folder and no symbolic link (EPERM or EINVAL)."""
    node = export.make_file(b"file")
    with export.unchanged():
        with export.refuses(errno.EEXIST):
            export.mknod(export.root, b"file", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
        with export.refuses(errno.ENOTDIR):
            export.mknod(node, b"below", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
        for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o170000):
            with export.refuses(errno.EPERM, errno.EINVAL):
                export.mknod(export.root, b"new", kind | 0o644, 0, 0, 0, 0)


@check("devices")
def devices(export: Subject) -> None:
    """Mknod makes devices with their numbers; they are never opened (ENXIO), nor do ordinary files have numbers."""
    for kind, name, major, minor in (
        (stat.S_IFCHR, b"null", 1, 3),
        (stat.S_IFBLK, b"disk", 259, 1000),
        (stat.S_IFCHR, b"large", 4095, 1048575),
    ):
        try:
            export.mknod(export.root, name, kind | 0o620, major, minor, 0, 0)
        except OSError as error:
            if name == b"large" and error.errno == errno.EINVAL:  # too large for the host's file system (XFS: 511)
                continue
            raise
        node = export.find(name)
        attributes = export.attributes(node)
        expect(oct(attributes.mode), oct(kind | 0o620), f"type and mode of {name!r}")
        expect((attributes.rdev_major, attributes.rdev_minor), (major, minor), f"the numbers of {name!r}")
        with export.refuses(errno.ENXIO):
            export.open(node, os.O_RDONLY, 0)
    attributes = export.attributes(export.root)
    expect((attributes.rdev_major, attributes.rdev_minor), (0, 0), "the device numbers of a folder")


@check("mknod", "unlinkat", "renameat")
def special_files_are_objects(export: Subject) -> None:
    """A special file is renamed and removed as any other."""
    export.mknod(export.root, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
    export.renameat(export.root, b"fifo", export.root, b"renamed")
    node = export.find(b"renamed")
    export.unlinkat(export.root, b"renamed", folder=False)
    require(not export.exists(b"renamed"), "a fifo can be found after it was removed")
    expect(export.attributes(node).nlink, 0, "nlink of a fifo that was removed")
