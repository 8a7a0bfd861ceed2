"""Checks on getattr, setattr and statfs."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import Any, Final

from pyvirtfs.fsdev.driver import NOW, SetAttributes
from pyvirtfs.testing.conformance.check import OTHER_GID, OTHER_UID, check
from pyvirtfs.testing.conformance.subject import Subject, expect, require

_HOUR: Final = 3600
_USER: Final = 1000


def _times(export: Subject, node: Any) -> tuple[int, int]:
    attributes = export.attributes(node)
    return (
        attributes.atime_sec * 1_000_000_000 + attributes.atime_nsec,
        attributes.mtime_sec * 1_000_000_000 + attributes.mtime_nsec,
    )


def _set_ids(export: Subject, name: bytes, mode: int) -> Any:
    node = export.make_file(name, b"content")
    export.setattr(node, SetAttributes(mode=mode), 0)
    expect(oct(export.mode(node)), oct(mode), "the mode that was set")
    return node


@check("chmod")
def modes_are_exact(export: Subject) -> None:
    """Setattr sets exactly the permission bits that were asked for, and leaves the type."""
    node = export.make_file(b"file")
    for mode in (0o000, 0o7777, 0o644, 0o1755, 0o2755, 0o4755, 0o666):
        export.setattr(node, SetAttributes(mode=mode), 0)
        expect(oct(export.attributes(node).mode), oct(stat.S_IFREG | mode), "the mode that was set")


@check("chmod", "mkdir")
def folders_have_modes(export: Subject) -> None:
    """Setattr sets the mode of a folder, too; what is in it can still be reached (the guest checks permissions)."""
    folder = export.make_folder(b"folder")
    export.release(export.make_file(b"file", at=folder))
    for mode in (0o7777, 0o1777, 0o700):
        export.setattr(folder, SetAttributes(mode=mode), 0)
        expect(oct(export.attributes(folder).mode), oct(stat.S_IFDIR | mode), "the mode that was set")
    require(export.exists(b"folder", b"file"), "the file in the folder cannot be found")


@check("utimes")
def times_are_exact(export: Subject) -> None:
    """Setattr sets times to the nanosecond, also before 1970; None leaves one alone."""
    node = export.make_file(b"file")
    for nanoseconds in (1_234_567_890_123_456_789, 0, -1_500_000_000, -1, 4_000_000_000_000_000_001):
        export.setattr(node, SetAttributes(atime_ns=nanoseconds, mtime_ns=nanoseconds + 2), 0)
        expect(_times(export, node), (nanoseconds, nanoseconds + 2), "access and modification time in ns")
    atime, _ = _times(export, node)
    export.setattr(node, SetAttributes(mtime_ns=5), 0)
    expect(_times(export, node), (atime, 5), "the times after setting the second one")
    export.setattr(node, SetAttributes(atime_ns=6), 0)
    expect(_times(export, node), (6, 5), "the times after setting the first one")


@check("utimes", "mkdir")
def folders_have_times(export: Subject) -> None:
    """Setattr sets the times of folders."""
    folder = export.make_folder(b"folder")
    export.setattr(folder, SetAttributes(atime_ns=1_000_000_007, mtime_ns=2_000_000_009), 0)
    expect(_times(export, folder), (1_000_000_007, 2_000_000_009), "the times of a folder")


@check("utimes")
def now(export: Subject) -> None:
    """`NOW` stands for the server's current time."""
    node = export.make_file(b"file")
    export.setattr(node, SetAttributes(atime_ns=1, mtime_ns=1), 0)
    export.setattr(node, SetAttributes(atime_ns=NOW), 0)
    atime, mtime = _times(export, node)
    expect(mtime, 1, "the modification time, left alone")
    require(abs(atime / 1e9 - time.time()) < _HOUR, f"NOW set the access time to {atime} ns")
    export.setattr(node, SetAttributes(atime_ns=1, mtime_ns=NOW), 0)
    atime, mtime = _times(export, node)
    expect(atime, 1, "the access time, set in the same call")
    require(abs(mtime / 1e9 - time.time()) < _HOUR, f"NOW set the modification time to {mtime} ns")


@check("utimes")
def times_that_no_clock_shows(export: Subject) -> None:
    """Times out of the range of a struct timespec are refused or kept within bounds."""
    node = export.make_file(b"file")
    for nanoseconds in (-(1 << 100), 1 << 100, ((1 << 63) - 1) * 1_000_000_000):
        with contextlib.suppress(OSError):
            export.setattr(node, SetAttributes(mtime_ns=nanoseconds), 0)
        require(-(1 << 63) <= export.attributes(node).mtime_sec < 1 << 63, "a time does not fit its field")


@check("owners")
def owners_are_exact(export: Subject) -> None:
    """Setattr sets user and group; None leaves one alone."""
    node = export.make_file(b"file")
    for uid, gid in ((OTHER_UID, OTHER_GID), (0, 0), ((1 << 31) + 5, (1 << 31) + 7)):
        export.setattr(node, SetAttributes(uid=uid, gid=gid), 0)
        expect(export.attributes(node)[1:3], (uid, gid), "owner and group that were set")
    export.setattr(node, SetAttributes(uid=1, gid=2), 0)
    export.setattr(node, SetAttributes(uid=3), 0)
    expect(export.attributes(node)[1:3], (3, 2), "owner and group after setting the owner")
    export.setattr(node, SetAttributes(gid=4), 0)
    expect(export.attributes(node)[1:3], (3, 4), "owner and group after setting the group")


@check("truncate", "write")
def sizes(export: Subject) -> None:
    """Setattr makes a file smaller, or larger by zeros; what was cut off does not come back."""
    node = export.make_file(b"file", b"0123456789")
    for size, wanted in (
        (4, b"0123"),
        (4, b"0123"),
        (10, b"0123" + bytes(6)),
        (1 << 20, b"0123" + bytes((1 << 20) - 4)),
        (5000, b"0123" + bytes(4996)),
        (0, b""),
        (3, bytes(3)),
    ):
        export.setattr(node, SetAttributes(size=size), 0)
        expect(export.attributes(node).size, size, "the size that was set")
        expect(export.content(node), wanted, f"the file with the size {size}")


@check("truncate", "write")
def sizes_of_open_files(export: Subject) -> None:
    """An open file sees at once that its size was set; it works on a file without permissions that is open, too."""
    node, file, _ = export.create(export.root, b"file", os.O_RDWR, 0, 0, 0)
    export.put(file, 0, b"0123456789")
    export.setattr(node, SetAttributes(size=3), 0)
    expect(export.get(file, 0, 10), b"012", "what the open file reads")
    export.put(file, 5, b"x")
    expect(export.get(file, 0, 10), b"012\0\0x", "what the open file reads after a write behind the end")
    export.close_file(file)


@check("truncate", "mkdir")
def only_files_have_sizes(export: Subject) -> None:
    """The size of a folder cannot be set (EISDIR), and nothing else of the same call is done."""
    folder = export.make_folder(b"folder")
    with export.unchanged(), export.refuses(errno.EISDIR):
        export.setattr(folder, SetAttributes(mode=0o700, mtime_ns=1, size=0), 0)


@check("truncate", "mknod", "symlink")
def special_files_have_no_sizes(export: Subject) -> None:
    """The size of a fifo or of a symbolic link cannot be set (EINVAL), and nothing else of the same call is done."""
    export.mknod(export.root, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
    target = export.make_file(b"target", b"content")
    for node in (export.find(b"fifo"), export.make_link(b"link", b"target")):
        with export.unchanged(), export.refuses(errno.EINVAL):
            export.setattr(node, SetAttributes(mtime_ns=1, size=0), 0)
    expect(export.content(target), b"content", "what the target of the link holds")


@check("truncate")
def sizes_that_no_file_has(export: Subject) -> None:
    """A size that no file can have is EFBIG or EINVAL, and changes nothing."""
    node = export.make_file(b"file")
    with export.unchanged():
        for size in (1 << 63, (1 << 64) - 1):
            with export.refuses(errno.EFBIG, errno.EINVAL):
                export.setattr(node, SetAttributes(mode=0o600, size=size), 0)


@check("truncate", "utimes", "write")
def size_comes_last(export: Subject) -> None:
    """Setattr applies in the order mode, times, owner, size: a change of the size changes the time that was set."""
    node = export.make_file(b"file", b"content")
    export.setattr(node, SetAttributes(mode=0o600, atime_ns=7, mtime_ns=7, size=3), 0)
    expect((oct(export.mode(node)), export.attributes(node).size), (oct(0o600), 3), "mode and size, set in one call")
    atime, mtime = _times(export, node)
    expect(atime, 7, "the access time that was set in the same call")
    require(mtime > _HOUR, "the size was not set after the times")


@check("chmod", "write")
def writing_clears_set_ids(export: Subject) -> None:
    """A write by a user other than 0 clears set-user-id, and set-group-id if the group may execute."""
    for mode, left in ((0o6755, 0o755), (0o4777, 0o777), (0o2755, 0o755), (0o4644, 0o644), (0o1755, 0o1755)):
        node = _set_ids(export, b"%o" % mode, mode)
        with export.opened(node, os.O_WRONLY, _USER) as file:
            expect(oct(export.mode(node)), oct(mode), "the mode after a user opened the file for writing")
            export.put(file, 0, b"C")
            expect(oct(export.mode(node)), oct(left), f"the mode after a user wrote to a file of mode {mode:o}")


@check("chmod", "truncate", "write")
def truncating_clears_set_ids(export: Subject) -> None:
    """A truncation by a user other than 0 clears the set-id bits: by setattr, and by O_TRUNC."""
    node = _set_ids(export, b"setattr", 0o6755)
    export.setattr(node, SetAttributes(size=3), _USER)
    expect(oct(export.mode(node)), oct(0o755), "the mode after a user set the size")
    node = _set_ids(export, b"open", 0o6755)
    with export.opened(node, os.O_WRONLY | os.O_TRUNC, _USER):
        expect(oct(export.mode(node)), oct(0o755), "the mode after a user opened the file with O_TRUNC")


@check("chmod", "write")
def chown_clears_set_ids(export: Subject) -> None:
    """A change of the owner clears the set-id bits of a file, also one to the same owner; mode comes before owner."""
    node = _set_ids(export, b"file", 0o6755)
    uid, gid = export.attributes(node)[1:3]
    export.setattr(node, SetAttributes(uid=uid, gid=gid), _USER)
    expect(oct(export.mode(node)), oct(0o755), "the mode after a change of the owner")
    export.setattr(node, SetAttributes(mode=0o6711, uid=uid, gid=gid), _USER)
    expect(oct(export.mode(node)), oct(0o711), "the mode after a change of mode and owner in one call")


@check("chmod", "mkdir")
def folders_keep_set_ids(export: Subject) -> None:
    """A change of the owner leaves the set-id bits of a folder."""
    folder = export.make_folder(b"folder")
    export.setattr(folder, SetAttributes(mode=0o2755), 0)
    uid, gid = export.attributes(folder)[1:3]
    export.setattr(folder, SetAttributes(uid=uid, gid=gid), _USER)
    expect(oct(export.mode(folder)), oct(0o2755), "the mode of a folder after a change of the owner")


@check("utimes", "symlink")
def symlinks_have_attributes(export: Subject) -> None:
    """Getattr and setattr never follow a symbolic link: its own times, not those of what it points to."""
    target = export.make_file(b"target", b"")
    link = export.make_link(b"link", b"target")
    before = export.getattr(target)
    attributes = export.attributes(link)
    expect((stat.S_IFMT(attributes.mode), attributes.size), (stat.S_IFLNK, 6), "type and size of a symbolic link")
    export.setattr(link, SetAttributes(atime_ns=5, mtime_ns=5), 0)
    expect(_times(export, link), (5, 5), "the times of a symbolic link")
    with contextlib.suppress(OSError):  # ELOOP or EOPNOTSUPP, as Linux has it, or it is done
        export.setattr(link, SetAttributes(mode=0o700), 0)
    expect(export.getattr(target), before, "qid and attributes of what the link points to")


@check("owners", "symlink")
def symlinks_have_owners(export: Subject) -> None:
    """The owner of a symbolic link can be set; that of what it points to stays."""
    target = export.make_file(b"target")
    link = export.make_link(b"link", b"target")
    export.setattr(link, SetAttributes(uid=5, gid=6), 0)
    expect(export.attributes(link)[1:3], (5, 6), "owner and group of a symbolic link")
    expect(export.attributes(target)[1:3], (0, 0), "owner and group of what it points to")


@check("chmod", "utimes", "truncate", "unlinkat", "write")
def unlinked_objects_have_attributes(export: Subject) -> None:
    """Getattr and setattr work on unlinked objects."""
    node = export.make_file(b"file", b"content")
    export.unlinkat(export.root, b"file", folder=False)
    export.setattr(node, SetAttributes(mode=0o640, atime_ns=7), 0)
    expect((oct(export.mode(node)), _times(export, node)[0]), (oct(0o640), 7), "mode and time of an unlinked file")
    export.setattr(node, SetAttributes(size=3), 0)
    expect(export.attributes(node)[5], 3, "the size of an unlinked file")
    require(export.statfs(node).bsize > 0, "statfs of an unlinked file has no block size")


@check("create", "write")
def statfs_is_one_file_systems(export: Subject) -> None:
    """All objects of one file system have one fsid, which stays when things change."""
    before = export.statfs(export.root)
    node = export.make_file(b"file", b"content")
    after = export.statfs(node)
    expect(after.fsid, before.fsid, "the fsid of a file")
    expect((after.bsize, after.namelen), (before.bsize, before.namelen), "block size and longest name")
