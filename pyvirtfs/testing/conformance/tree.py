"""Checks on whatever an export holds; the only ones that mean something for a tree that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pyvirtfs.fsdev.driver import NONUNAME, QID_DIRECTORY, QID_FILE, QID_SYMLINK, DirectoryEntry, Qid, SetAttributes
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.check import READONLY, check
from pyvirtfs.testing.conformance.subject import CheckError, Subject, error_name, expect, require

_ENOUGH: Final = 300
"""Objects; a tree may be large."""
_DEEP: Final = 8
_ROOMY: Final = 1 << 20
_QID_TYPES: Final = {stat.S_IFDIR: QID_DIRECTORY, stat.S_IFLNK: QID_SYMLINK}


class Found(NamedTuple):
    """An object of the tree, with the folder that it was found in."""

    folder: Any
    entry: DirectoryEntry
    node: Any
    qid: Qid
    """What walk told."""
    kind: int


def objects(export: Subject) -> Iterator[Found]:
    """The objects below the root, not more than `_ENOUGH`."""
    waiting: list[tuple[Any, int]] = [(export.root, 0)]
    count = 0
    while waiting:
        folder, depth = waiting.pop()
        for entry in export.entries(folder):
            if entry.name in {b".", b".."}:
                continue
            found = export.walk(folder, [entry.name])
            kind = stat.S_IFMT(export.attributes(found.node).mode)
            yield Found(folder, entry, found.node, Qid(*found.qids[0]), kind)
            if kind == stat.S_IFDIR and depth < _DEEP:
                waiting.append((found.node, depth + 1))
            count += 1
            if count == _ENOUGH:
                return


@check()
def attach_gives_a_folder(export: Subject) -> None:
    """Attach gives a new node for the root, which is a folder, and its qid; whoever asks."""
    for uid in (0, 1000, NONUNAME):
        node, qid = export.attach(b"", uid)
        expect(Qid(*qid), export.root_qid, "the qid of the root, attached again")
        require(stat.S_ISDIR(export.attributes(node).mode), "the root is no folder")
        expect(qid[0], QID_DIRECTORY, "the qid type of the root")
        export.release(node)
    expect(export.qid(export.root), export.root_qid, "the qid of the root that was attached first")


@check()
def attach_to_a_tree(export: Subject) -> None:
    """The aname is what the guest asked for: any bytes of it get a root, or an OSError."""
    for aname in (b"/", b"/no/such/tree", b"\xff" * 300, b"a\nb", b".."):
        with contextlib.suppress(OSError):
            node, qid = export.attach(aname, 0)
            expect(qid[0], QID_DIRECTORY, f"the qid type of the tree {aname!r}")
            export.release(node)


@check()
def walk_no_names(export: Subject) -> None:
    """A walk of no names gives another node for the same object."""
    qids, node = export.walk(export.root, [])
    expect(list(qids), [], "the qids of a walk of no names")
    expect(export.qid(node), export.root_qid, "the qid of the other node")
    export.release(node)
    expect(export.qid(export.root), export.root_qid, "the qid of the old node, the other one released")


@check()
def dots_at_the_root_stay(export: Subject) -> None:
    """``.`` is the folder itself, ``..`` at the root stays there, up to 16 names in one walk."""
    for names in ([b"."], [b".."], [b".", b"..", b"."], [b".."] * 16):
        qids, node = export.walk(export.root, names)
        expect([Qid(*qid) for qid in qids], [export.root_qid] * len(names), f"the qids of a walk of {names}")
        expect(export.qid(node), export.root_qid, f"the qid of what {names} led to")
        export.release(node)


@check()
def a_first_name_that_is_not_there(export: Subject) -> None:
    """A failure at the first name of a walk raises; the old node stays valid."""
    for names in ([b"no such name"], [b"no such name", b".."], [b"no such name"] * 16):
        with export.refuses(errno.ENOENT):
            export.walk(export.root, names)
    expect(export.qid(export.root), export.root_qid, "the qid of the old node")


@check()
def a_later_name_that_is_not_there(export: Subject) -> None:
    """A failure at a later name of a walk gives the qids of those before it, and no node."""
    qids, node = export.walk(export.root, [b".", b"..", b"no such name", b"."])
    expect([Qid(*qid) for qid in qids], [export.root_qid] * 2, "the qids before the missing name")
    expect(node, None, "the node of a walk that ended early")
    expect(export.qid(export.root), export.root_qid, "the qid of the old node")


@check()
def any_name_can_be_asked_for(export: Subject) -> None:
    """Names are bytes, of any length and any value: those that are not there are ENOENT, or ENAMETOOLONG."""
    longest = export.statfs(export.root).namelen
    for name in (b"\xff\xfe\x80", b"a\nb", b" ", b"...", b"%s%n{}", "ä😀".encode(), b"\x01", b"x" * longest):
        with export.refuses(errno.ENOENT):
            export.walk(export.root, [name])
    for length in (longest + 1, 4096, 65535):
        with export.refuses(errno.ENOENT, errno.ENAMETOOLONG):
            export.walk(export.root, [b"x" * length])


@check()
def listing_and_walk_agree(export: Subject) -> None:
    """What a folder lists can be walked to, with the same type and path in its qid; ``..`` leads back."""
    for found in objects(export):
        name = found.entry.name
        expect(found.entry.qid.path, found.qid.path, f"the qid.path of {name!r} in the listing")
        expect(found.entry.qid.type, found.qid.type, f"the qid type of {name!r} in the listing")
        expect(found.qid.type, _QID_TYPES.get(found.kind, QID_FILE), f"the qid type of {name!r}")
        if found.entry.type:  # DT_UNKNOWN
            expect(found.entry.type, found.kind >> 12, f"the DT_ type of {name!r}")
        if found.kind == stat.S_IFDIR:
            qids, node = export.walk(found.node, [b".."])
            expect(Qid(*qids[0])[::2], export.qid(found.folder)[::2], f"type and path of the folder above {name!r}")
            export.release(node)


@check()
def paths_are_unique(export: Subject) -> None:
    """qid.path is unique among the objects of the export: equal ones are links to one object."""
    seen: dict[int, tuple[int, int]] = {export.root_qid.path: (stat.S_IFDIR, 1)}
    for found in objects(export):
        attributes = export.attributes(found.node)
        if found.qid.path in seen:
            require(
                found.kind != stat.S_IFDIR and seen[found.qid.path][0] == found.kind and attributes.nlink > 1,
                f"{found.entry.name!r} has the qid.path {found.qid.path:#x} of another object",
            )
        seen[found.qid.path] = found.kind, attributes.nlink


@check()
def qids_are_well_formed(export: Subject) -> None:
    """A qid has 8 bits of type, 32 bits of version, never 0, and 64 bits of path; getattr and walk tell the same."""
    for found in objects(export):
        for qid in (found.qid, export.qid(found.node)):
            require(0 < qid.version < 1 << 32, f"the version of {found.entry.name!r} is {qid.version}")
            require(0 <= qid.path < 1 << 64, f"the path of {found.entry.name!r} is {qid.path}")
        expect(export.qid(found.node)[::2], found.qid[::2], f"type and path of {found.entry.name!r} in getattr")
    require(0 < export.root_qid.version < 1 << 32, f"the version of the root is {export.root_qid.version}")


@check()
def attributes_are_well_formed(export: Subject) -> None:
    """Attributes are what statx(2) tells: one type, numbers that fit their fields."""
    for node in (export.root, *(found.node for found in objects(export))):
        attributes = export.attributes(node)
        require(stat.S_IFMT(attributes.mode) in {kind << 12 for kind in (1, 2, 4, 6, 8, 10, 12)}, "there is no type")
        require(0 <= attributes.mode < 1 << 16, f"mode is {attributes.mode:#o}")
        for name in ("nlink", "uid", "gid", "rdev_major", "rdev_minor", "dev_major", "dev_minor"):
            value = getattr(attributes, name)
            require(0 <= value < 1 << 32, f"{name} is {value}")
        for name in ("ino", "size", "blocks"):
            value = getattr(attributes, name)
            require(0 <= value < 1 << 64, f"{name} is {value}")
        for name in ("atime", "btime", "ctime", "mtime"):
            value = getattr(attributes, f"{name}_nsec")
            require(0 <= value < 1_000_000_000, f"{name}_nsec is {value}")
            value = getattr(attributes, f"{name}_sec")
            require(-(1 << 63) <= value < 1 << 63, f"{name}_sec is {value}")
        require(attributes.nlink > 0, "nlink is 0, and the object has a name")


@check()
def dots_are_listed(export: Subject) -> None:
    """``.`` and ``..`` are among the entries, once each, with the paths of the folder and of the one above."""
    folders = [(export.root, export.root)]
    folders += [(found.node, found.folder) for found in objects(export) if found.kind == stat.S_IFDIR]
    for folder, above in folders:
        entries = export.entries(folder)
        for name, node in ((b".", folder), (b"..", above)):
            dots = [entry for entry in entries if entry.name == name]
            expect(len(dots), 1, f"how often {name!r} is listed")
            expect(dots[0].qid.path, export.qid(node).path, f"the qid.path of {name!r}")
            expect(dots[0].qid.type, QID_DIRECTORY, f"the qid type of {name!r}")
        names = [entry.name for entry in entries]
        expect(len({*names}), len(names), "how many names of a folder are different")
        require(all(names) and not any(b"/" in name or b"\0" in name for name in names), f"a name in {names} is none")


@check()
def listings_restart_anywhere(export: Subject) -> None:
    """A listing goes on behind any cookie; cookies are different from each other and from 0; 0 rewinds."""
    for folder in (export.root, *(found.node for found in objects(export) if found.kind == stat.S_IFDIR)):
        with export.opened(folder) as file:
            entries = list(export.batches(file))
            cookies = [entry.cookie for entry in entries]
            expect(len({0, *cookies}), len(cookies) + 1, "how many cookies there are, and 0")
            for cookie in cookies:
                require(0 < cookie < 1 << 63, f"the cookie {cookie:#x} is not within 1 to 2**63 - 1")
            for at in {0, 1, len(entries) // 2, len(entries)} & {*range(len(entries) + 1)}:
                rest = list(export.batches(file, cookies[at - 1] if at else 0))
                expect([e.name for e in rest], [e.name for e in entries[at:]], f"the entries behind entry {at}")
            one_by_one = itertools.islice(export.batches(file, take=1), _ENOUGH)
            expect(list(one_by_one), entries[:_ENOUGH], "the entries, taken one by one")


@check()
def files_can_be_read_in_pieces(export: Subject) -> None:
    """A read fills the buffers from any offset, but for the end of the file; there it gives 0."""
    for found in objects(export):
        if found.kind != stat.S_IFREG:
            continue
        file = _open_to_read(export, found)
        if file is None:
            continue
        name = found.entry.name
        whole = export.get(file, 0, _ROOMY)
        expect(export.get(file, 0, 0), b"", f"{name!r}, read 0 bytes")
        if len(whole) < _ROOMY:
            expect(export.get(file, len(whole), 100), b"", f"{name!r}, read at its end")
            expect(export.get(file, len(whole) + 7, 100), b"", f"{name!r}, read behind its end")
        step = max(len(whole) // 7, 1)
        for at in range(0, len(whole), step):
            part = whole[at : at + step]
            expect(export.get(file, at, len(part)), part, f"{name!r} from byte {at}")
        export.close_file(file)


@check()
def sizes_tell_where_files_end(export: Subject) -> None:
    """The size of a regular file is where reading ends: a guest that caches reads no further, and zeros up to there."""
    for found in objects(export):
        file = _open_to_read(export, found) if found.kind == stat.S_IFREG else None
        if file is None:
            continue
        size, name = export.attributes(found.node).size, found.entry.name
        near = max(size - 100, 0)
        expect(near + len(export.get(file, near, 200)), size, f"the end of {name!r}, the size being {size}")
        expect(export.get(file, size, 100), b"", f"{name!r}, read where its size says that it ends")
        export.close_file(file)


def _open_to_read(export: Subject, found: Found) -> Any:
    """An open file; None for one that is for writing only."""
    try:
        return export.open(found.node, os.O_RDONLY, 0)[0]
    except OSError:
        return None


def is_at(export: Subject, node: Any, folder: Any, name: bytes) -> None:
    """Require that `place` tells that folder and that name."""
    above, seen = export.place(node)
    expect(seen, name, f"the name that place tells of {name!r}")
    expect(export.qid(above).path, export.qid(folder).path, f"the path of the folder that place tells of {name!r}")
    export.release(above)


@check()
def places_are_those_that_walks_led_to(export: Subject) -> None:
    """Place gives the folder that a node was found in, and its name there; the root is in itself, or nobody knows."""
    for node, folder, name in (
        (export.root, export.root, b"/"),
        *((found.node, found.folder, found.entry.name) for found in objects(export)),
    ):
        above, seen = export.place(node)
        if above is None:
            expect(seen, b"", "the name that place tells where it tells no folder")
            continue
        export.release(above)
        is_at(export, node, folder, name)


@check()
def only_files_and_folders_are_opened(export: Subject) -> None:
    """Open opens a regular file or a folder, never anything else (ENXIO)."""
    for found in objects(export):
        if found.kind not in {stat.S_IFREG, stat.S_IFDIR}:
            with export.refuses(errno.ENXIO):
                export.open(found.node, os.O_RDONLY, 0)


@check()
def readlink_is_for_links(export: Subject) -> None:
    """Readlink gives the target of a symbolic link; EINVAL for anything else."""
    with export.refuses(errno.EINVAL):
        export.readlink(export.root)
    for found in objects(export):
        if found.kind == stat.S_IFLNK:
            require(export.readlink(found.node), f"the target of {found.entry.name!r} is empty")
        else:
            with export.refuses(errno.EINVAL):
                export.readlink(found.node)


@check()
def nothing_is_below_a_file(export: Subject) -> None:
    """A walk through what is no folder is ENOTDIR (or ELOOP for a symbolic link, which is never followed)."""
    for found in objects(export):
        if found.kind == stat.S_IFDIR:
            continue
        codes = (errno.ENOTDIR, errno.ELOOP) if found.kind == stat.S_IFLNK else (errno.ENOTDIR,)
        for name in (b"x", b".", b".."):
            with export.refuses(*codes):
                export.walk(found.node, [name])
        qids, node = export.walk(found.folder, [found.entry.name, b"x"])
        expect([Qid(*qid) for qid in qids], [found.qid], "the qids of a walk through what is no folder")
        expect(node, None, "the node of a walk through what is no folder")


@check()
def statfs_is_well_formed(export: Subject) -> None:
    """Statfs tells of a file system: its fsid is stable and not 0, its block size positive, its names not too short."""
    figures = export.statfs(export.root)
    require(0 < figures.fsid < 1 << 64, f"fsid is {figures.fsid}")
    require(0 < figures.bsize < 1 << 31, f"bsize is {figures.bsize}")
    require(0 < figures.namelen < 1 << 16, f"namelen is {figures.namelen}")
    for name in ("blocks", "bfree", "bavail", "files", "ffree"):
        value = getattr(figures, name)
        require(0 <= value < 1 << 64, f"{name} is {value}")
    require(figures.bfree <= figures.blocks, f"{figures.bfree} of {figures.blocks} blocks are free")
    expect(export.statfs(export.root).fsid, figures.fsid, "the fsid, asked again")
    for found in objects(export):
        require(export.statfs(found.node).fsid, f"the fsid of {found.entry.name!r} is 0")


@check()
def unknown_xattrs(export: Subject) -> None:
    """An extended attribute that is not there is ENODATA; a driver without any answers EOPNOTSUPP, and lists none."""
    for node in (export.root, *(found.node for found in objects(export))):
        listed = export.listxattr(node)
        require(listed == b"" or listed.endswith(b"\0"), f"the list of attributes {listed!r} does not end with NUL")
        for name in listed.split(b"\0")[:-1]:
            require(name, f"an attribute without a name in {listed!r}")
        with export.refuses(errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            export.getxattr(node, b"user.no such attribute")


@check()
def numbers_out_of_range(export: Subject) -> None:
    """Offsets and cookies of 64 bits that no file has are answered, or refused with an OSError."""
    for number in ((1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        with contextlib.suppress(OSError), export.opened(export.root) as file:
            list(export.batches(file, number))
        for found in objects(export):
            if found.kind == stat.S_IFREG:
                with contextlib.suppress(OSError), export.opened(found.node) as file:
                    expect(export.get(file, number, 10), b"", f"what is read at {number:#x}")


@check()
def files_and_folders_are_not_mixed_up(export: Subject) -> None:
    """A folder cannot be read as a file (EISDIR), a file not be listed (ENOTDIR)."""
    with export.opened(export.root) as file, export.refuses(errno.EISDIR):
        export.read(file, 0, ViewBuffers.of(bytearray(10)))
    for found in objects(export):
        if found.kind == stat.S_IFREG:
            try:
                file, _ = export.open(found.node, os.O_RDONLY, 0)
            except OSError:
                continue  # one that is for writing only
            with export.refuses(errno.ENOTDIR):
                export.readdir(file, 0)
            export.close_file(file)


@check(READONLY)
def readonly_exports_refuse_changes(export: Subject) -> None:
    """A read-only export refuses what changes it with EROFS (or does not offer it), and nothing changes."""
    nodes = [export.root, *(found.node for found in objects(export))]
    root = export.root
    with export.unchanged():
        for node in nodes:
            _refused(export, "setattr", node, SetAttributes(mode=0o700), 0)
            _refused(export, "setattr", node, SetAttributes(mtime_ns=1), 0)
            _refused(export, "setxattr", node, b"user.x", b"x", 0, 0)
            _refused(export, "removexattr", node, b"user.x", 0)
        for found in objects(export):
            name = found.entry.name
            _refused(export, "unlinkat", found.folder, name, folder=found.kind == stat.S_IFDIR)
            _refused(export, "remove", found.node)
            _refused(export, "rename", found.node, root, b"new")
            _refused(export, "renameat", found.folder, name, root, b"new")
            if found.kind == stat.S_IFREG:
                _refused(export, "setattr", found.node, SetAttributes(size=0), 0)
                _refused(export, "link", root, found.node, b"new")
                _refuses_writing(export, found.node)
        _refused(export, "mkdir", root, b"new", 0o755, 0, 0)
        _refused(export, "symlink", root, b"new", b"target", 0, 0)
        _refused(export, "mknod", root, b"new", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
        _refused(export, "create", root, b"new", os.O_RDWR, 0o644, 0, 0)


def _refused(export: Subject, method: str, *arguments: Any, **options: Any) -> None:
    with export.refuses(errno.EROFS, errno.EOPNOTSUPP):
        getattr(export, method)(*arguments, **options)


def _refuses_writing(export: Subject, node: Any) -> None:
    """Either the open fails, or each write."""
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC):
        try:
            file, _ = export.open(node, flags, 0)
        except OSError as error:
            if error.errno not in {errno.EROFS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}:
                raise CheckError(f"{export.last}: expected EROFS, saw {error_name(error.errno)}") from error
            continue
        try:
            with export.refuses(errno.EROFS, errno.EOPNOTSUPP, errno.EBADF):
                export.write(file, 0, ViewBuffers.of(b"x"))
        finally:
            export.close_file(file)
