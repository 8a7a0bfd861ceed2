"""Checks on the times of what happens: what brings them to the present, and what leaves them alone."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Any, Final

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require

_TICK: Final = 0.02
"""Seconds; longer than the steps in which file systems tell the time."""
_HOUR: Final = 3600
"""Seconds; the clock of a driver may differ from ours."""
_LONG_AGO: Final = SetAttributes(mtime_ns=1)


def _mtime(export: Subject, node: Any) -> int:
    attributes = export.attributes(node)
    return attributes.mtime_sec * 1_000_000_000 + attributes.mtime_nsec


def _ctime(export: Subject, node: Any) -> int:
    attributes = export.attributes(node)
    return attributes.ctime_sec * 1_000_000_000 + attributes.ctime_nsec


@contextlib.contextmanager
def _modified(export: Subject, *nodes: Any) -> Iterator[None]:
    """The block brings the modification times to the present."""
    for node in nodes:
        export.setattr(node, _LONG_AGO, 0)
    yield
    last = export.last
    for node in nodes:
        seen = _mtime(export, node)
        require(abs(seen / 1e9 - time.time()) < _HOUR, f"the modification time is {seen} ns after {last}")


@contextlib.contextmanager
def _changed(export: Subject, node: Any) -> Iterator[None]:
    """The block moves the change time on, to the present."""
    before = _ctime(export, node)
    time.sleep(_TICK)
    yield
    last, after = export.last, _ctime(export, node)
    require(after > before, f"the change time is {after} ns after {last}, and was {before}")
    require(abs(after / 1e9 - time.time()) < _HOUR, f"the change time is {after} ns after {last}")


@check("create", "write", "utimes")
def writing_changes_times(export: Subject) -> None:
    """A write brings the modification and the change time to the present."""
    node = export.make_file(b"file")
    with export.opened(node, os.O_WRONLY) as file, _modified(export, node), _changed(export, node):
        export.put(file, 0, b"content")


@check("truncate", "write", "utimes")
def truncating_changes_times(export: Subject) -> None:
    """A size that is set, smaller or larger, and O_TRUNC bring the modification and the change time to the present."""
    node = export.make_file(b"file", b"content")
    for size in (3, 100):
        with _modified(export, node), _changed(export, node):
            export.setattr(node, SetAttributes(size=size), 0)
    with _modified(export, node):
        file, _ = export.open(node, os.O_WRONLY | os.O_TRUNC, 0)
    export.close_file(file)


@check("create", "utimes", "mkdir", "unlinkat")
def folders_change_with_their_entries(export: Subject) -> None:
    """What is made in a folder, or removed, brings its modification time to the present."""
    folder = export.make_folder(b"folder")
    with _modified(export, folder):
        node, file, _ = export.create(folder, b"file", os.O_RDWR, 0o644, 0, 0)
    export.close_file(file)
    export.release(node)
    with _modified(export, folder):
        export.mkdir(folder, b"below", 0o755, 0, 0)
    for name in (b"file", b"below"):
        with _modified(export, folder):
            export.unlinkat(folder, name, folder=name == b"below")


@check("utimes", "mkdir", "symlink")
def folders_change_with_symlinks(export: Subject) -> None:
    """A symbolic link that is made in a folder brings its modification time to the present."""
    folder = export.make_folder(b"folder")
    with _modified(export, folder):
        export.symlink(folder, b"link", b"target", 0, 0)


@check("utimes", "mkdir", "mknod")
def folders_change_with_special_files(export: Subject) -> None:
    """A special file that is made in a folder brings its modification time to the present."""
    folder = export.make_folder(b"folder")
    with _modified(export, folder):
        export.mknod(folder, b"fifo", stat.S_IFIFO | 0o644, 0, 0, 0, 0)


@check("utimes", "mkdir", "link", "unlinkat")
def links_change_times(export: Subject) -> None:
    """Link, and unlink of one of two names, bring the folder's modification and the object's change time to now."""
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file")
    with _modified(export, folder), _changed(export, node):
        export.link(folder, node, b"another")
    export.setattr(node, _LONG_AGO, 0)
    with _modified(export, folder), _changed(export, node):
        export.unlinkat(folder, b"another", folder=False)
    expect(_mtime(export, node), 1, "the modification time of the object, whose content is the same")


@check("create", "utimes", "mkdir", "renameat")
def renaming_changes_folders(export: Subject) -> None:
    """Renameat brings the modification times of both folders to the present, and leaves that of the object."""
    one, two = export.make_folder(b"one"), export.make_folder(b"two")
    node = export.make_file(b"file", at=one)
    export.setattr(node, _LONG_AGO, 0)
    with _modified(export, one):
        export.renameat(one, b"file", one, b"new")
    with _modified(export, one, two):
        export.renameat(one, b"new", two, b"moved")
    expect(_mtime(export, node), 1, "the modification time of the object, whose content is the same")


@check("create", "utimes", "mkdir", "rename")
def renaming_a_node_changes_folders(export: Subject) -> None:
    """Rename brings the modification times of both folders to the present."""
    one, two = export.make_folder(b"one"), export.make_folder(b"two")
    node = export.make_file(b"file", at=one)
    with _modified(export, one, two):
        export.rename(node, two, b"moved")


@check("chmod")
def change_time(export: Subject) -> None:
    """Every change moves the change time on; `touch_ctime` does nothing else; no change at all changes nothing."""
    node = export.make_file(b"file", mode=0o644)
    with _changed(export, node):
        export.setattr(node, SetAttributes(mode=0o600), 0)
    attributes = export.attributes(node)
    with _changed(export, node):
        export.setattr(node, SetAttributes(touch_ctime=True), 0)
    touched = export.attributes(node)
    expect(touched._replace(ctime_sec=0, ctime_nsec=0), attributes._replace(ctime_sec=0, ctime_nsec=0), "the rest")
    with export.unchanged():
        export.setattr(node, SetAttributes(), 0)


@check("utimes", "mkdir")
def setting_times_is_a_change(export: Subject) -> None:
    """The change time tells when the other times were set, not what they were set to."""
    for node in (export.make_file(b"file"), export.make_folder(b"folder")):
        for changes in (
            SetAttributes(mtime_ns=5_000_000_000),
            SetAttributes(atime_ns=7_000_000_000),
            SetAttributes(atime_ns=4_000_000_000_000_000_000, mtime_ns=4_000_000_000_000_000_000),
        ):
            with _changed(export, node):
                export.setattr(node, changes, 0)
