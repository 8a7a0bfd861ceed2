from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def create_with_umask(self: Any, directory: Any, name: bytes, flags: int, mode: int, uid: int, gid: int) -> Any:
    return Good.create(self, directory, name, flags, mode & 0o755, uid, gid)


def create_then_truncate(self: Any, directory: Any, name: bytes, flags: int, *rest: Any) -> Any:
    node, file, qid = Good.create(self, directory, name, flags & ~os.O_TRUNC, *rest)
    if flags & os.O_TRUNC:
        Good.setattr(self, node, SetAttributes(size=0), 1000)
    return node, file, qid


def create_anyway(self: Any, directory: Any, name: bytes, flags: int, *rest: Any) -> Any:
    return Good.create(self, directory, name, flags & ~os.O_EXCL, *rest)


def create_and_truncate(self: Any, directory: Any, name: bytes, flags: int, *rest: Any) -> Any:
    return Good.create(self, directory, name, flags | os.O_TRUNC, *rest)


def create_chmods(self: Any, directory: Any, name: bytes, flags: int, mode: int, uid: int, gid: int) -> Any:
    node, file, qid = Good.create(self, directory, name, flags, mode, uid, gid)
    os.chmod(f"/proc/self/fd/{file.fd}", mode)
    return node, file, qid


def create_of_the_folder(self: Any, directory: Any, name: bytes, *rest: Any) -> Any:
    _, file, qid = Good.create(self, directory, name, *rest)
    return Good.walk(self, directory, []).node, file, qid


def open_without(flag: int) -> Any:
    def open_(self: Any, node: Any, flags: int, uid: int) -> Any:
        return Good.open(self, node, flags & ~flag, uid)

    return open_


def open_for_all(self: Any, node: Any, flags: int, uid: int) -> Any:
    if not flags & os.O_DIRECTORY and node.entry.kind == 0o100000:
        flags = flags & ~os.O_ACCMODE | os.O_RDWR
    return Good.open(self, node, flags, uid)


def open_of_another(self: Any, node: Any, flags: int, uid: int) -> Any:
    file, qid = Good.open(self, node, flags, uid)
    return file, qid._replace(version=qid.version ^ 1)


def getattr_of_truncated(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    return qid, attributes._replace(size=0) if node.entry in getattr(self, "truncated", ()) else attributes


def open_that_notes_it(self: Any, node: Any, flags: int, uid: int) -> Any:
    if flags & os.O_TRUNC:
        self.truncated = [node.entry]
    return Good.open(self, node, flags, uid)


def fsync_that_touches(self: Any, file: Any, *, datasync: bool) -> None:
    os.utime(file.fd, ns=(1, 1))


def fsync_of_files(self: Any, file: Any, *, datasync: bool) -> None:
    if file.entry.kind != 0o100000:
        raise OSError(errno.EINVAL, "no file")


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("files_have_exact_modes", "create", create_with_umask, "the mode of a file that was made"),
        ("new_files_keep_set_ids", "create", create_then_truncate, "the mode of a file that a user made"),
        ("exclusive_create", "create", create_anyway, "expected EEXIST, but it succeeded"),
        ("create_opens_what_is_there", "create", create_and_truncate, "what the file holds that was there"),
        ("create_opens_what_is_there", "create", create_chmods, "the mode of the file that was there"),
        ("create_makes_a_file", "create", create_of_the_folder, "the qid of the file that was made"),
        ("truncating_flags", "open", open_without(os.O_TRUNC), "after open with O_TRUNC"),
        ("appending", "open", open_without(os.O_APPEND), "what the file holds"),
        ("a_file_is_no_folder", "open", open_without(os.O_DIRECTORY), "expected ENOTDIR"),
        ("access_modes", "open", open_for_all, "expected EBADF, but it succeeded"),
        ("open_tells_the_qid", "open", open_of_another, "the qid that open told"),
        ("syncing", "fsync", fsync_of_files, "saw EINVAL"),
        ("syncing", "fsync", fsync_that_touches, "mtime_sec after fsync"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"files.{check}", {method: fault})


def test_a_size_that_stays_0_is_found(faulty: Any) -> None:
    methods = {"getattr": getattr_of_truncated, "open": open_that_notes_it}
    assert "the size after a write to a file" in faulty.failure("files.truncating_flags", methods)
