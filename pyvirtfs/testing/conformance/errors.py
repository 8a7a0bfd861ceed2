"""Checks on failures: a method that raises has changed nothing, and raises OSError and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any, Final

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, require

_MISSING: Final = b"missing"


def _calls(root: Any, folder: Any, file: Any) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls that must fail in a tree of a folder `full` with a file `file` in it."""
    return [
        ("mkdir", (root, b"full", 0o755, 0, 0), {}),
        ("mkdir", (folder, b"file", 0o755, 0, 0), {}),
        ("mkdir", (file, b"x", 0o755, 0, 0), {}),
        ("symlink", (folder, b"file", b"target", 0, 0), {}),
        ("mknod", (folder, b"file", stat.S_IFIFO | 0o644, 0, 0, 0, 0), {}),
        ("mknod", (folder, b"new", stat.S_IFDIR | 0o644, 0, 0, 0, 0), {}),
        ("link", (folder, file, b"file"), {}),
        ("link", (root, folder, b"new"), {}),
        ("create", (folder, b"file", os.O_RDWR | os.O_EXCL, 0o600, 1, 1), {}),
        ("create", (root, b"full", os.O_RDWR | os.O_TRUNC, 0o600, 1, 1), {}),
        ("create", (file, b"x", os.O_RDWR, 0o600, 1, 1), {}),
        ("renameat", (root, _MISSING, root, b"new"), {}),
        ("renameat", (root, b"full", folder, b"inside"), {}),
        ("renameat", (folder, b"file", root, b"full"), {}),
        ("rename", (folder, folder, b"inside"), {}),
        ("rename", (file, root, b"full"), {}),
        ("unlinkat", (root, b"full"), {"folder": True}),
        ("unlinkat", (root, b"full"), {"folder": False}),
        ("unlinkat", (folder, b"file"), {"folder": True}),
        ("unlinkat", (folder, _MISSING), {"folder": False}),
        ("remove", (folder,), {}),
        ("setattr", (folder, SetAttributes(mode=0o700, mtime_ns=1, size=1), 0), {}),
        ("setattr", (file, SetAttributes(mode=0o700, atime_ns=1, size=1 << 63), 0), {}),
        ("setxattr", (file, b"user.x", b"2", os.XATTR_CREATE, 0), {}),
        ("setxattr", (file, b"user.new", b"2", os.XATTR_REPLACE, 0), {}),
        ("removexattr", (file, b"user.new", 0), {}),
    ]


@check("create", "write", "mkdir")
def failures_change_nothing(export: Subject) -> None:
    """A method that raises has changed nothing: names, attributes, content, times and versions are as before."""
    folder = export.make_folder(b"full")
    file = export.make_file(b"file", b"content", at=folder)
    with contextlib.suppress(OSError):  # not offered; the calls below fail all the same
        export.setxattr(file, b"user.x", b"1", 0, 0)
    for method, arguments, options in _calls(export.root, folder, file):
        with export.unchanged(), export.refuses():
            getattr(export, method)(*arguments, **options)
    with export.opened(file) as opened:
        require(export.get(opened, 0, 10) == b"content", "a handle is of no use any more after calls that failed")


@check("create", "write")
def failed_files_are_closed(export: Subject) -> None:
    """An open that fails opens nothing, and a file that is closed can be opened again, many times."""
    node = export.make_file(b"file", b"content")
    for _ in range(300):
        with export.refuses(errno.ENOTDIR):
            export.open(node, os.O_RDONLY | os.O_DIRECTORY, 0)
        with export.opened(node, os.O_RDWR) as file:
            export.put(file, 0, b"C")


@check("create", "write")
def failed_writes_leave_the_file(export: Subject) -> None:
    """A write that fails changes neither content nor size."""
    node = export.make_file(b"file", b"content")
    with export.unchanged(), export.opened(node) as file:
        for data in (b"", b"x", b"x" * 100_000):
            if data:
                with export.refuses(errno.EBADF):
                    export.write(file, 3, ViewBuffers.of(data))
