"""Checks on qids: what identifies an object, and what tells that it has changed."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from pyvirtfs.fsdev.driver import Qid, SetAttributes
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require

_TICK: Final = 0.02
"""Seconds; longer than the steps in which file systems tell the time."""


class _Versions:
    """The versions of an object, all of which must be different from the one before."""

    def __init__(self, export: Subject, node: Any) -> None:
        self.export = export
        self.node = node
        self.last = export.qid(node).version

    def must_change(self, what: str) -> None:
        version = self.export.qid(self.node).version
        require(0 < version < 1 << 32, f"the version is {version} after {what}")
        require(version != self.last, f"the version is {version} as before after {what}")
        self.last = version


@check("create", "mkdir", "symlink")
def paths_are_different(export: Subject) -> None:
    """Each object has a qid.path of its own, and keeps it."""
    nodes = {b"%d" % number: export.make_file(b"%d" % number) for number in range(100)}
    nodes |= {b"folder": export.make_folder(b"folder"), b"link": export.make_link(b"link", b"0")}
    paths = {name: export.qid(node).path for name, node in nodes.items()}
    expect(len({export.root_qid.path, *paths.values()}), len(paths) + 1, "how many paths are different")
    for name, node in nodes.items():
        export.release(node)
        expect(export.qid(export.find(name)).path, paths[name], f"the path of {name!r}, found again")


@check("create", "unlinkat")
def paths_are_not_used_again(export: Subject) -> None:
    """While somebody holds an object nothing else gets its path, whether it has a name or not."""
    held = [export.make_file(b"%d" % number) for number in range(20)]
    for number in range(20):
        export.unlinkat(export.root, b"%d" % number, folder=False)
    new = [export.make_file(b"%d" % number) for number in range(20)]
    paths = {export.qid(node).path for node in (*held, *new)}
    expect(len(paths), 40, "how many paths are different")


@check("create", "renameat", "chmod", "write")
def paths_stay(export: Subject) -> None:
    """The path stays when the object is renamed, written to, or changes its mode."""
    node = export.make_file(b"file")
    path = export.qid(node).path
    export.fill(node, b"content")
    export.setattr(node, SetAttributes(mode=0o600), 0)
    export.renameat(export.root, b"file", export.root, b"new")
    expect(export.qid(node).path, path, "the path after the changes")
    expect(export.qid(export.find(b"new")).path, path, "the path, found under the new name")


@check("create", "link")
def links_share_a_path(export: Subject) -> None:
    """Two names of one object lead to one path and version."""
    node = export.make_file(b"one")
    export.link(export.root, node, b"two")
    expect(export.qid(export.find(b"two")), export.qid(node), "the qid under the second name")


@check("create", "write")
def walk_getattr_and_open_agree(export: Subject) -> None:
    """Walk, getattr, open and create tell one qid for an object that does not change."""
    node, file, made = export.create(export.root, b"file", os.O_RDWR, 0o644, 0, 0)
    expect(export.qid(node), Qid(*made), "getattr's qid after create")
    export.put(file, 0, b"content")
    export.close_file(file)
    walked = export.walk(export.root, [b"file"])
    wanted = export.qid(node)
    expect(Qid(*walked.qids[0]), wanted, "walk's qid")
    expect(export.qid(walked.node), wanted, "getattr's qid through the node that walk gave")
    file, opened = export.open(node, os.O_RDONLY, 0)
    expect(Qid(*opened), wanted, "open's qid")
    expect(export.content_of(file), b"content", "what the file holds")
    expect(export.qid(node), wanted, "getattr's qid after reading")


@check("create", "write")
def every_write_changes_the_version(export: Subject) -> None:
    """The version changes whenever the content does: at every write, however fast, of the same size and bytes."""
    node = export.make_file(b"file", b"0")
    versions = _Versions(export, node)
    with export.opened(node, os.O_RDWR) as file:
        for number in range(200):
            export.put(file, 0, b"%d" % (number % 10))
            versions.must_change(f"write {number}")
    others = {Qid(*export.walk(export.root, [b"file"]).qids[0]).version for _ in range(3)}
    expect(others, {versions.last}, "the versions that walk tells")


@check("create", "write", "truncate")
def every_truncation_changes_the_version(export: Subject) -> None:
    """The version changes when the size is set, up or down, and at an open with O_TRUNC."""
    node = export.make_file(b"file", b"content")
    versions = _Versions(export, node)
    for size in (3, 10, 9, 0):
        export.setattr(node, SetAttributes(size=size), 0)
        versions.must_change(f"the size was set to {size}")
    export.fill(node, b"content")
    versions.must_change("a write")
    with export.opened(node, os.O_WRONLY | os.O_TRUNC):
        versions.must_change("an open with O_TRUNC")


@check("create", "write")
def versions_do_not_come_back(export: Subject) -> None:
    """A version is not used again for other content when nobody had the object in between."""
    seen = set()
    for number in range(50):
        name = b"file"
        node = export.make_file(name) if not number else export.find(name)
        export.fill(node, b"%d" % (number % 10))
        seen.add(export.qid(node).version)
        export.release(node)
    expect(len(seen), 50, "how many versions of 50 contents are different")


@check("create", "mkdir", "unlinkat", "renameat")
def folders_have_versions(export: Subject) -> None:
    """The version of a folder changes when its entries do (as soon as the file system's clock tells it)."""
    folder = export.make_folder(b"folder")
    versions = _Versions(export, folder)
    time.sleep(_TICK)
    export.release(export.make_file(b"file", at=folder))
    versions.must_change("a file was made in a folder")
    time.sleep(_TICK)
    export.renameat(folder, b"file", folder, b"new")
    versions.must_change("a file was renamed in a folder")
    time.sleep(_TICK)
    export.unlinkat(folder, b"new", folder=False)
    versions.must_change("a file was removed from a folder")


@check("create", "write")
def reading_does_not_change_the_version(export: Subject) -> None:
    """The version stays while the content does: a guest that caches would read again and again."""
    node = export.make_file(b"file", b"content")
    before = export.qid(node)
    for _ in range(3):
        export.content(node)
        export.release(export.find(b"file"))
        expect(export.qid(node), before, "the qid after reading")
