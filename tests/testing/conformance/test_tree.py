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


def readdir_with_negative_cookies(self: Any, file: Any, cookie: int) -> Any:
    top = 1 << 63
    return [(e[0], e[1] | top, *e[2:]) for e in Good.readdir(self, file, cookie & ~top)]


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
        ("listings_restart_anywhere", "readdir", readdir_with_negative_cookies, "is not within 1 to 2**63 - 1"),
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


def read_less(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return Good.read(self, file, offset, buffers.slice(0, min(buffers.nbytes, 65536)))


def read_fails_behind_the_start(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    return fail(errno.EIO) if offset else Good.read(self, file, offset, buffers)


def getattr_with_size(change: Any) -> Any:
    def getattr_(self: Any, node: Any) -> Any:
        qid, attributes = Good.getattr(self, node)
        return qid, attributes._replace(size=change(attributes.size))

    return getattr_


def place_by_another_name(self: Any, node: Any) -> Any:
    folder, name = Good.place(self, node)
    return folder, name if name == b"/" else name.upper()


def place_above(self: Any, node: Any) -> Any:
    folder, name = Good.place(self, node)
    return Good.walk(self, folder, [b".."]).node, name


class TestAnything:
    """What is looked at in an export that holds something."""

    @staticmethod
    def outcome(faulty: Any, tmp_path: Path, check: str, **methods: Any) -> str:
        top = tmp_path / "something"
        (top / "folder" / "below").mkdir(parents=True)
        for name, size in (("empty", 0), ("small", 10), ("below/large", 1 << 20), ("below/larger", (1 << 20) + 77)):
            (top / "folder" / name).write_bytes(os.urandom(size))
        (top / "link").symlink_to("folder")
        (top / "unreadable").touch(0)
        kind: Any = type("ReadOnly", (Good,), methods)
        return str(faulty.outcome(f"tree.{check}", lambda: kind(top, readonly=True)))

    @pytest.mark.parametrize(
        ("check", "method", "fault"),
        [
            ("files_can_be_read_in_pieces", "read", read_less),
            ("files_can_be_read_in_pieces", "read", read_fails_behind_the_start),
            ("sizes_tell_where_files_end", "read", lambda *_: 0),
            ("sizes_tell_where_files_end", "getattr", getattr_with_size(lambda size: 0)),
            ("sizes_tell_where_files_end", "getattr", getattr_with_size(lambda size: size + 100)),
            ("sizes_tell_where_files_end", "getattr", getattr_with_size(lambda size: max(size - 1, 0))),
            ("places_are_those_that_walks_led_to", "place", place_by_another_name),
            ("places_are_those_that_walks_led_to", "place", place_above),
            ("places_are_those_that_walks_led_to", "place", lambda *_: (None, b"name")),
        ],
    )
    def test_faults_are_found(self, faulty: Any, tmp_path: Path, check: str, method: str, fault: Any) -> None:
        assert self.outcome(faulty, tmp_path / "good", check) == "passed"
        assert self.outcome(faulty, tmp_path / "bad", check, **{method: fault}) == "failed"

    def test_who_does_not_know_the_place_passes(self, faulty: Any, tmp_path: Path) -> None:
        check = "places_are_those_that_walks_led_to"
        assert self.outcome(faulty, tmp_path, check, place=lambda *_: (None, b"")) == "passed"


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
