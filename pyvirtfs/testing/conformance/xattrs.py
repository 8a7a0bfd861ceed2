"""Checks on extended attributes."""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, Final

from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, error_name, expect, require

_ACL: Final = struct.pack(
    "<I" + "HHI" * 5, 2,
    0x01, 6, 0xFFFFFFFF,  0x02, 4, 1000,  0x04, 4, 0xFFFFFFFF,  0x10, 4, 0xFFFFFFFF,  0x20, 4, 0xFFFFFFFF,
)  # fmt: skip
"""linux/posix_acl_xattr.h: user::rw-, user:1000:r--, group::r--, mask::r--, other::r--."""
_ACL_NAME: Final = b"system.posix_acl_access"
_FULL: Final = (errno.E2BIG, errno.ENOSPC, errno.ERANGE, errno.EDQUOT)
"""What a file system says that holds less than Linux allows."""


def _names(export: Subject, node: Any) -> list[bytes]:
    """The attributes of an object that a user made."""
    listed = export.listxattr(node)
    require(listed == b"" or listed.endswith(b"\0"), f"the list of attributes {listed!r} does not end with NUL")
    return sorted(name for name in listed.split(b"\0") if name.startswith(b"user."))


@check("xattrs", "mkdir")
def attributes_are_kept(export: Subject) -> None:
    """What setxattr has set, getxattr gives and listxattr names; on files and on folders."""
    for node in (export.make_file(b"file"), export.make_folder(b"folder")):
        expect(_names(export, node), [], "the names of a new object's attributes")
        for name, value in ((b"user.one", b"1"), (b"user.two", bytes(range(256))), (b"user.\xff\n", b"odd")):
            export.setxattr(node, name, value, 0, 0)
            expect(export.getxattr(node, name), value, f"the value of {name!r}")
        expect(_names(export, node), [b"user.one", b"user.two", b"user.\xff\n"], "the names of the attributes")
        export.setxattr(node, b"user.one", b"another", 0, 0)
        expect(export.getxattr(node, b"user.one"), b"another", "the value, set again")
        expect(len(_names(export, node)), 3, "how many attributes there are")


@check("xattrs")
def attributes_belong_to_the_object(export: Subject) -> None:
    """Other nodes of the object have the attribute, other objects do not."""
    one = export.make_file(b"one")
    two = export.make_file(b"two")
    export.setxattr(one, b"user.x", b"1", 0, 0)
    expect(export.getxattr(export.find(b"one"), b"user.x"), b"1", "the value through another node")
    with export.refuses(errno.ENODATA):
        export.getxattr(two, b"user.x")


@check("xattrs", "link")
def links_share_them(export: Subject) -> None:
    """Extended attributes belong to the object, not to a name of it: hard links share them."""
    one = export.make_file(b"one")
    export.setxattr(one, b"user.before", b"1", 0, 0)
    export.link(export.root, one, b"two")
    two = export.find(b"two")
    export.setxattr(two, b"user.after", b"2", 0, 0)
    for node in (one, two, export.find(b"one")):
        expect(_names(export, node), [b"user.after", b"user.before"], "the names at each of two hard links")
        expect(export.getxattr(node, b"user.before"), b"1", "the value that was set before there were two")
        expect(export.getxattr(node, b"user.after"), b"2", "the value that was set through the other one")
    export.removexattr(one, b"user.after", 0)
    expect(_names(export, two), [b"user.before"], "the names after one was removed through the other hard link")


@check("xattrs")
def an_empty_value_is_a_value(export: Subject) -> None:
    """An empty value is a value: it is kept, and named."""
    node = export.make_file(b"file")
    export.setxattr(node, b"user.empty", b"", 0, 0)
    expect(export.getxattr(node, b"user.empty"), b"", "an empty value")
    expect(_names(export, node), [b"user.empty"], "the names of the attributes")


@check("xattrs")
def create_and_replace(export: Subject) -> None:
    """XATTR_CREATE is EEXIST where there is one, XATTR_REPLACE ENODATA where there is none."""
    node = export.make_file(b"file")
    with export.refuses(errno.ENODATA):
        export.setxattr(node, b"user.x", b"1", os.XATTR_REPLACE, 0)
    expect(_names(export, node), [], "the names after a call that failed")
    export.setxattr(node, b"user.x", b"1", os.XATTR_CREATE, 0)
    with export.refuses(errno.EEXIST):
        export.setxattr(node, b"user.x", b"2", os.XATTR_CREATE, 0)
    expect(export.getxattr(node, b"user.x"), b"1", "the value after a call that failed")
    export.setxattr(node, b"user.x", b"3", os.XATTR_REPLACE, 0)
    expect(export.getxattr(node, b"user.x"), b"3", "the value that was replaced")


@check("xattrs")
def removing(export: Subject) -> None:
    """Removexattr removes one attribute; ENODATA if there is none."""
    node = export.make_file(b"file")
    for name in (b"user.one", b"user.two"):
        export.setxattr(node, name, b"x", 0, 0)
    export.removexattr(node, b"user.one", 0)
    expect(_names(export, node), [b"user.two"], "the names after one was removed")
    for method in ("getxattr", "removexattr"):
        with export.refuses(errno.ENODATA):
            getattr(export, method)(node, b"user.one", *([0] if method == "removexattr" else []))


@check("xattrs")
def long_names(export: Subject) -> None:
    """A name of 255 bytes is taken; a longer one is ERANGE, as Linux has it (or there is none: ENODATA)."""
    node = export.make_file(b"file")
    longest, longer = b"user.".ljust(255, b"n"), b"user.".ljust(256, b"n")
    export.setxattr(node, longest, b"x", 0, 0)
    expect(export.getxattr(node, longest), b"x", "the value of the attribute with the longest name")
    with export.unchanged():
        with export.refuses(errno.ERANGE, errno.ENAMETOOLONG):
            export.setxattr(node, longer, b"x", 0, 0)
        for method in ("getxattr", "removexattr"):
            with export.refuses(errno.ERANGE, errno.ENAMETOOLONG, errno.ENODATA):
                getattr(export, method)(node, longer, *([0] if method == "removexattr" else []))
    expect(_names(export, node), [longest], "the names of the attributes")


@check("xattrs")
def large_values(export: Subject) -> None:
    """A value may be 64 KiB, if the file system has room for it; a larger one is E2BIG, or there is no room."""
    node = export.make_file(b"file")
    export.setxattr(node, b"user.small", b"x" * 2000, 0, 0)
    expect(export.getxattr(node, b"user.small"), b"x" * 2000, "a value of 2000 bytes")
    value = bytes(range(256)) * 256
    try:
        export.setxattr(node, b"user.large", value, 0, 0)
    except OSError as error:
        require(error.errno in _FULL, f"a value of 64 KiB is refused with {error_name(error.errno)}")
        expect(_names(export, node), [b"user.small"], "the names after a value for which there is no room")
    else:
        expect(export.getxattr(node, b"user.large"), value, "a value of 64 KiB")
    with export.refuses(*_FULL):
        export.setxattr(node, b"user.small", value + b"x", 0, 0)
    expect(export.getxattr(node, b"user.small"), b"x" * 2000, "the value after a call that failed")


@check("xattrs", "unlinkat")
def unlinked_objects_have_them(export: Subject) -> None:
    """Extended attributes of an unlinked object can be read and set."""
    node = export.make_file(b"file")
    export.setxattr(node, b"user.x", b"1", 0, 0)
    export.unlinkat(export.root, b"file", folder=False)
    expect(export.getxattr(node, b"user.x"), b"1", "the value of an unlinked object")
    export.setxattr(node, b"user.x", b"2", 0, 0)
    expect(export.getxattr(node, b"user.x"), b"2", "the value of an unlinked object, set again")


@check("xattrs", "symlink")
def symlinks_are_not_followed(export: Subject) -> None:
    """Extended attributes of a symbolic link are its own, or refused; never those of what it points to."""
    target = export.make_file(b"target")
    export.setxattr(target, b"user.x", b"1", 0, 0)
    link = export.make_link(b"link", b"target")
    for method, arguments in (
        ("setxattr", (b"user.x", b"2", 0, 0)),
        ("getxattr", (b"user.x",)),
        ("removexattr", (b"user.x", 0)),
    ):
        try:
            value = getattr(export, method)(link, *arguments)
        except OSError:
            continue
        expect(value, b"2" if method == "getxattr" else None, f"the answer of {method} on a symbolic link")
    expect(export.getxattr(target, b"user.x"), b"1", "the value at what the link points to")


@check("acls", "xattrs")
def an_empty_acl_is_none(export: Subject) -> None:
    """A POSIX ACL is kept; an empty value for it means none, and it is no error if there is none."""
    node = export.make_file(b"file")
    export.setxattr(node, _ACL_NAME, _ACL, 0, 0)
    expect(export.getxattr(node, _ACL_NAME), _ACL, "the ACL that was set")
    for _ in range(2):
        export.setxattr(node, _ACL_NAME, b"", 0, 0)
        with export.refuses(errno.ENODATA):
            export.getxattr(node, _ACL_NAME)


@check("xattrs", "chmod")
def other_names_are_left_alone(export: Subject) -> None:
    """Names outside of what the driver offers are refused with an OSError, and change nothing."""
    node = export.make_file(b"file")
    with export.unchanged():
        for name in (b"nonsense", b"user", b".", b"\xff", b"unknown.x", b"user."):
            with export.refuses():
                export.setxattr(node, name, b"x", 0, 0)
            with export.refuses():
                export.getxattr(node, name)
