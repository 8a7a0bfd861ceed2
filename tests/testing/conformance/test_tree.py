from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import Walk
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def attach_to_a_file(self: Any, aname: bytes, uid: int) -> Any:
    node, qid = Good.attach(self, aname, uid)
    return node, qid._replace(type=0)


def walk_up_and_away(self: Any, node: Any, names: Any) -> Any:
    found = Good.walk(self, node, names)
    return found._replace(qids=[qid._replace(path=1) for qid in found.qids]) if b".." in names else found


def walk_without_errors(self: Any, node: Any, names: Any) -> Any:
    try:
        return Good.walk(self, node, names)
    except OSError:
        return Walk((), None)


def walk_all_or_nothing(self: Any, node: Any, names: Any) -> Any:
    found = Good.walk(self, node, names)
    return fail(errno.ENOENT) if found.node is None else found


def walk_crashes_on_long_names(self: Any, node: Any, names: Any) -> Any:
    return Good.walk(self, node, [name.decode("ascii").encode() for name in names])


def getattr_of_version_0(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    return qid._replace(version=0), attributes


def attach_of_version_0(self: Any, aname: bytes, uid: int) -> Any:
    node, qid = Good.attach(self, aname, uid)
    return node, qid._replace(version=0)


def getattr_with_large_nanoseconds(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    return qid, attributes._replace(mtime_nsec=1_000_000_000)


def readdir_without_dots(self: Any, file: Any, cookie: int) -> Any:
    return [entry for entry in Good.readdir(self, file, cookie) if entry[3] not in {b".", b".."}]


def readdir_with_cookie_0(self: Any, file: Any, cookie: int) -> Any:
    return [(entry[0], 0, *entry[2:]) for entry in Good.readdir(self, file, cookie)]


def readdir_restarts(self: Any, file: Any, cookie: int) -> Any:
    entries = Good.readdir(self, file, 0)
    return entries if not cookie or cookie != entries[-1][1] else []


def statfs_without_id(self: Any, node: Any) -> Any:
    return Good.statfs(self, node)._replace(fsid=0)


def statfs_without_blocks(self: Any, node: Any) -> Any:
    return Good.statfs(self, node)._replace(bsize=0)


def read_of_anything(self: Any, file: Any, offset: int, buffers: Any) -> int:
    return 0


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("attach_gives_a_folder", "attach", attach_to_a_file, "the qid"),
        ("dots_at_the_root_stay", "walk", walk_up_and_away, "the qids of a walk"),
        ("a_first_name_that_is_not_there", "walk", walk_without_errors, "expected ENOENT, but it succeeded"),
        ("a_later_name_that_is_not_there", "walk", walk_all_or_nothing, "expected to succeed, saw ENOENT"),
        ("any_name_can_be_asked_for", "walk", walk_crashes_on_long_names, "UnicodeDecodeError"),
        ("attach_gives_a_folder", "getattr", getattr_of_version_0, "the qid of the root"),
        ("qids_are_well_formed", "attach", attach_of_version_0, "the version of the root is 0"),
        ("attributes_are_well_formed", "getattr", getattr_with_large_nanoseconds, "mtime_nsec is 1000000000"),
        ("dots_are_listed", "readdir", readdir_without_dots, "how often b'.' is listed"),
        ("listings_restart_anywhere", "readdir", readdir_with_cookie_0, "a listing has no end"),
        ("listings_restart_anywhere", "readdir", readdir_restarts, "the entries behind entry 1"),
        ("statfs_is_well_formed", "statfs", statfs_without_id, "fsid is 0"),
        ("statfs_is_well_formed", "statfs", statfs_without_blocks, "bsize is 0"),
        ("files_and_folders_are_not_mixed_up", "read", read_of_anything, "expected EISDIR, but it succeeded"),
        ("readlink_is_for_links", "readlink", lambda *_: b"", "expected EINVAL, but it succeeded"),
        ("unknown_xattrs", "listxattr", lambda *_: b"user.x", "does not end with NUL"),
        (
            "walk_no_names",
            "walk",
            lambda self, node, names: Good.walk(self, node, names)._replace(node=None),
            "AttributeError",
        ),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"tree.{check}", {method: fault})


class TestReadonly:
    """What a read-only export must refuse."""

    @staticmethod
    def outcome(faulty: Any, tmp_path: Path, **methods: Any) -> str:
        top = tmp_path / "readonly"
        (top / "folder").mkdir(parents=True)
        (top / "folder" / "file").write_bytes(b"content")
        (top / "link").symlink_to("folder")
        kind: Any = type("ReadOnly", (Good,), methods)
        return str(faulty.outcome("tree.readonly_exports_refuse_changes", lambda: kind(top, readonly=True)))

    def test_local(self, faulty: Any, tmp_path: Path) -> None:
        assert self.outcome(faulty, tmp_path) == "passed"

    @pytest.mark.parametrize("method", ["mkdir", "symlink", "create", "unlinkat", "renameat", "setattr", "link"])
    def test_a_hole_is_found(self, faulty: Any, tmp_path: Path, method: str) -> None:
        def fault(self: Any, *arguments: Any, **options: Any) -> Any:
            self.readonly = False
            try:
                return getattr(Good, method)(self, *arguments, **options)
            finally:
                self.readonly = True

        assert self.outcome(faulty, tmp_path, **{method: fault}) == "failed"

    def test_a_write_is_found(self, faulty: Any, tmp_path: Path) -> None:
        def open_(self: Any, node: Any, flags: int, uid: int) -> Any:
            self.readonly = False
            file, qid = Good.open(self, node, flags, uid)
            self.readonly = True
            return file, qid

        assert self.outcome(faulty, tmp_path, open=open_) == "failed"


@pytest.mark.parametrize("options", ["local,security_model=none,path={}", "memory", "synth"])
def test_long_and_unknown_names(faulty: Any, tmp_path: Path, options: str) -> None:
    """H009: against every driver."""
    make = partial(create, options.format(tmp_path))
    assert faulty.outcome("tree.any_name_can_be_asked_for", make) == "passed"
